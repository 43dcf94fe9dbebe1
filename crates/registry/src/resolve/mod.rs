//! Host names to addresses, without libc: a static binary cannot load its name service modules, and a chroot has none.
//!
//! R1  Addresses and `localhost` need no file and no server. Then hosts(5), then the servers of resolv.conf(5); a file
//!     that is missing counts as empty, and without a server 127.0.0.1 is asked.
//! R2  Every question has a fresh port and a random ID, and a stated wait; an answer to another question is passed over.

pub(crate) mod message;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{RegistryError, ResolveProblem};
use crate::tls::Tls;
use crate::url::is_localhost;
use message::{Answer, MESSAGE_BYTES_MAX, RecordType, parse_answer, question};

/// The largest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
const SERVERS_MAX: usize = 3;
const SEARCH_DOMAINS_MAX: usize = 6;

/// Finds the addresses of hosts.
pub(crate) struct Resolver {
    hosts_file: PathBuf,
    resolv_conf: PathBuf,
    random: Arc<Tls>,
}

/// What resolv.conf(5) says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServerSettings {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    wait: Duration,
    attempts: usize,
}

impl Resolver {
    pub(crate) fn new(hosts_file: PathBuf, resolv_conf: PathBuf, random: Arc<Tls>) -> Resolver {
        Resolver { hosts_file, resolv_conf, random }
    }

    /// The addresses of `host`: at least one, in the order in which to try them.
    pub(crate) async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, RegistryError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if is_localhost(host) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let failed = |problem| RegistryError::Resolve { host: host.to_owned(), problem };
        if !is_host_name(host) {
            return Err(failed(ResolveProblem::BadName));
        }
        let listed = addresses_in_hosts(&read(&self.hosts_file), host);
        if !listed.is_empty() {
            return Ok(listed);
        }
        let settings = parse_resolv_conf(&read(&self.resolv_conf));
        let mut problem = ResolveProblem::NoSuchHost;
        for name in candidates(host, &settings) {
            match self.ask_for_both(&name, &settings).await {
                Ok(addresses) => return Ok(addresses),
                Err(ResolveProblem::NoSuchHost) => {}
                Err(ResolveProblem::Timeout) => return Err(failed(ResolveProblem::Timeout)),
                Err(other) => problem = other,
            }
        }
        Err(failed(problem))
    }

    async fn ask_for_both(&self, name: &str, settings: &ServerSettings) -> Result<Vec<IpAddr>, ResolveProblem> {
        let (v4, v6) =
            tokio::join!(self.ask(name, RecordType::A, settings), self.ask(name, RecordType::Aaaa, settings));
        let (v4, v6) = match (v4, v6) {
            (Ok(v4), Ok(v6)) => (v4, v6),
            // One family is enough. Old servers fail on AAAA instead of saying that there is none.
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => (found, Vec::new()),
            (Err(problem), _) | (_, Err(problem)) => return Err(problem),
        };
        let all: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
        if all.is_empty() { Err(ResolveProblem::NoAddress) } else { Ok(all) }
    }

    /// Asks each server in turn, several times round.
    async fn ask(
        &self,
        name: &str,
        record_type: RecordType,
        settings: &ServerSettings,
    ) -> Result<Vec<IpAddr>, ResolveProblem> {
        let mut problem = ResolveProblem::Timeout;
        for server in (0..settings.attempts).flat_map(|_| &settings.servers) {
            let random = self.random.random().ok_or(ResolveProblem::ServerFailure)?;
            let id = u16::from_be_bytes([random[0], random[1]]);
            let asked = question(id, name, record_type).ok_or(ResolveProblem::BadName)?;
            let mut answer = over_udp(*server, &asked, settings.wait).await;
            if answer == Some(Answer::Truncated) {
                answer = timeout(settings.wait, over_tcp(*server, &asked)).await.ok().flatten();
            }
            match answer {
                Some(Answer::Addresses(addresses)) => return Ok(addresses),
                Some(Answer::NoSuchName) => return Err(ResolveProblem::NoSuchHost),
                Some(Answer::Failed) => problem = ResolveProblem::ServerFailure,
                Some(Answer::Truncated) | None => {}
            }
        }
        Err(problem)
    }
}

/// `None` if the server does not answer, or cannot be reached.
async fn over_udp(server: SocketAddr, asked: &[u8], wait: Duration) -> Option<Answer> {
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A fresh socket, and with it a fresh port, for every question: half of what makes an answer hard to forge.
    let socket = UdpSocket::bind(own).await.ok()?;
    // Connected: the kernel passes on only what comes from the server, and its refusals at once.
    socket.connect(server).await.ok()?;
    socket.send(asked).await.ok()?;
    let deadline = Instant::now() + wait;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = timeout_at(deadline, socket.recv(&mut buffer)).await.ok()?.ok()?;
        if let Some(answer) = parse_answer(&buffer[..length], asked) {
            return Some(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, asked: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let mut message = u16::try_from(asked.len()).ok()?.to_be_bytes().to_vec();
    message.extend(asked);
    stream.write_all(&message).await.ok()?;
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > MESSAGE_BYTES_MAX {
        return None;
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.ok()?;
    parse_answer(&answer, asked)
}

/// The names to ask for, in order: with the search domains after or before the name itself, by its dots.
fn candidates(host: &str, settings: &ServerSettings) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.to_owned()];
    }
    let searched = settings.search.iter().map(|domain| format!("{host}.{domain}"));
    let dots = host.bytes().filter(|&byte| byte == b'.').count();
    let mut names: Vec<String> = match dots >= settings.ndots {
        true => std::iter::once(host.to_owned()).chain(searched).collect(),
        false => searched.chain(std::iter::once(host.to_owned())).collect(),
    };
    names.retain(|name| is_host_name(name));
    names
}

fn is_host_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(inner)
    };
    // A name whose last label is a number would be an address to other programs.
    let last = name.rsplit('.').next().unwrap_or("");
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// The addresses that hosts(5) gives a name, in their order.
fn addresses_in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let addresses_of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for address in text.lines().filter_map(addresses_of_line).take(32) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn parse_resolv_conf(text: &str) -> ServerSettings {
    let mut settings =
        ServerSettings { servers: vec![], search: vec![], ndots: 1, wait: Duration::from_secs(5), attempts: 2 };
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or("").split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(parse_server);
                settings.servers.extend(address.filter(|_| settings.servers.len() < SERVERS_MAX));
            }
            Some("domain" | "search") => {
                let domains = words.map(|domain| domain.trim_matches('.').to_owned());
                settings.search = domains.filter(|domain| !domain.is_empty()).take(SEARCH_DOMAINS_MAX).collect();
            }
            Some("options") => words.for_each(|option| apply_option(&mut settings, option)),
            _ => {}
        }
    }
    if settings.servers.is_empty() {
        settings.servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    settings
}

/// An address; also `[address]:port`, which our tests need and some resolvers write.
fn parse_server(word: &str) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some((address, 53).into());
    }
    // A link-local server needs its interface: `fe80::1%eth0`.
    if let Some((address, interface)) = word.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(SocketAddrV6::new(address, 53, 0, interface_index(interface)?).into());
    }
    let (address, port) = word.strip_prefix('[')?.split_once("]:")?;
    Some((address.parse::<IpAddr>().ok()?, port.parse().ok()?).into())
}

/// The kernel's number of an interface, which may be given as such.
fn interface_index(interface: &str) -> Option<u32> {
    if let Ok(index) = interface.parse() {
        return Some(index);
    }
    let is_name = !interface.is_empty() && interface.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !is_name || interface.starts_with('.') {
        return None;
    }
    read(&Path::new("/sys/class/net").join(interface).join("ifindex")).trim().parse().ok()
}

fn apply_option(settings: &mut ServerSettings, option: &str) {
    let Some((name, value)) = option.split_once(':') else { return };
    let Ok(value) = value.parse::<usize>() else { return };
    match name {
        "ndots" => settings.ndots = value.min(15),
        "timeout" => settings.wait = Duration::from_secs(value.clamp(1, 30) as u64),
        "attempts" => settings.attempts = value.clamp(1, 5),
        _ => {}
    }
}

/// The text of a file; empty if it cannot be read.
fn read(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read before an error is still good.
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_servers_is_read_within_its_limits() {
        let text = "# x\nnameserver 10.0.0.1\nnameserver 2001:db8::1 # y\nnameserver bad\nnameserver [127.0.0.1]:5353\n\
                    nameserver 10.0.0.4\nsearch a.test. b.test ; z\noptions ndots:99 timeout:0 attempts:3 rotate\n";
        let read = parse_resolv_conf(text);
        let servers: Vec<_> = read.servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[2001:db8::1]:53", "127.0.0.1:5353"]);
        assert_eq!(read.search, ["a.test", "b.test"]);
        assert_eq!((read.ndots, read.wait, read.attempts), (15, Duration::from_secs(1), 3));
        let none = parse_resolv_conf("options\nsearch\nnameserver\n");
        assert_eq!((none.servers.len(), none.servers[0].to_string()), (1, "127.0.0.1:53".into()));
    }

    #[test]
    fn a_link_local_server_keeps_its_interface() {
        let read = parse_resolv_conf("nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%../lo\n");
        let servers: Vec<_> = read.servers.iter().map(SocketAddr::to_string).collect();
        // The loopback interface is number 1 in every network namespace.
        assert_eq!(servers, ["[fe80::1%1]:53", "[fe80::2%7]:53"]);
    }

    #[test]
    fn names_that_lead_nowhere_are_not_asked_for() {
        for name in ["", ".", "a..b", "a b", "a/b", "1.2.3.4.5", "999", "é.test", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(!is_host_name(name), "{name}");
        }
        for name in ["a", "a.", "_srv.a-b.test", "1a"] {
            assert!(is_host_name(name), "{name}");
        }
    }
}
