//! `hosts`, `hostname` and `resolv.conf` of a container: files in the exec root that are bound into it.
//!
//! F1  They are made once and then left alone: a file that the container changed is not rewritten while it exists. On the bridge
//!     `hosts` names the address of this run, so it is made at each start, as Docker does.
//! F2  They lie in the exec root: after a reboot they are made again, and a start writes nothing to the disk for them.
//! F3  The engine writes nothing into a container's tree: these are mounts (threats R14).

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use baleen_network::Endpoint;

use super::stored::StoredContainer;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::network::Mode;

/// Longest host file that is copied.
const HOST_FILE_BYTES_MAX: u64 = 1 << 20;

/// Paths of the three files.
#[derive(Debug, Clone)]
pub(crate) struct EtcFiles {
    pub(crate) dir: PathBuf,
}

impl EtcFiles {
    pub(crate) fn of(exec_root: &Path, id: &str) -> Self {
        Self { dir: exec_root.join("etc").join(id) }
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// Whether these are that container's own.
    pub(crate) fn is_of(&self, id: &str) -> bool {
        self.dir.file_name().is_some_and(|name| name == id)
    }

    /// Makes what is missing.
    pub(crate) fn make(&self, container: &StoredContainer, names: &Names) -> Result<(), EngineError> {
        let io = |source| EngineError::Io { action: "create", path: self.dir.clone(), source };
        fs::create_dir_all(&self.dir).map_err(io)?;
        // The files are read by any user of the container, through a mount; the way to them is root's alone.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
        write_once(&self.hostname(), &format!("{}\n", container.config.hostname))?;
        if !names.addresses.is_empty() {
            match fs::remove_file(self.hosts()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
        }
        write_once(&self.hosts(), &hosts(container, names))?;
        write_once(&self.resolv_conf(), &resolv_conf(container, names))
    }

    pub(crate) fn remove(&self) -> Result<(), EngineError> {
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(EngineError::Io { action: "remove", path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

fn write_once(path: &Path, text: &str) -> Result<(), EngineError> {
    use std::io::Write;
    let io = |source| EngineError::Io { action: "write", path: path.to_owned(), source };
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(io(source)),
    }
}

/// A file of the host, or nothing if there is none or it is no plain text of a sane size.
fn host_file(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(HOST_FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                     ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// What the files say beside what the request says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    /// The container's own, on the bridge.
    pub(crate) addresses: Vec<IpAddr>,
    /// What `host-gateway` stands for.
    pub(crate) host_gateway: Option<IpAddr>,
    /// The engine's own settings: name servers, search domains, options.
    pub(crate) dns: [Vec<String>; 3],
}

impl Engine {
    /// What the files of a container say that has this place on the bridge, or none.
    pub(crate) fn names(&self, endpoint: Option<&Endpoint>) -> Names {
        let addresses = endpoint.map(|endpoint| {
            let six = endpoint.address6.map(IpAddr::V6);
            std::iter::once(IpAddr::V4(endpoint.address)).chain(six).collect()
        });
        let config = &self.config.network;
        Names {
            addresses: addresses.unwrap_or_default(),
            host_gateway: self.host_gateway(),
            dns: [config.dns.clone(), config.dns_search.clone(), config.dns_options.clone()],
        }
    }
}

fn hosts(container: &StoredContainer, names: &Names) -> String {
    let is_host = Mode::of(container) == Mode::Host;
    let mut text = if is_host { host_file("/etc/hosts") } else { None }.unwrap_or_else(|| HOSTS.to_owned());
    for entry in container.host_config.extra_hosts.iter().flatten() {
        if let Some((name, address)) = entry.split_once([':', '=']) {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            let address = match (address, names.host_gateway) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                // Without a bridge nothing is the way to the host.
                ("host-gateway", None) => continue,
                (address, _) => address.trim_matches(['[', ']']).to_owned(),
            };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    let (host, domain) = (&container.config.hostname, &container.config.domainname);
    for address in &names.addresses {
        match domain.as_str() {
            "" => match host.split_once('.') {
                Some((short, _)) => text.push_str(&format!("{address}\t{host} {short}\n")),
                None => text.push_str(&format!("{address}\t{host}\n")),
            },
            domain => text.push_str(&format!("{address}\t{host}.{domain} {host}\n")),
        }
    }
    text
}

/// The host's own resolver, which a container elsewhere cannot reach, keeps the real name servers here.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Where nothing else is known, as in Docker.
const PUBLIC_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

fn name_server(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("nameserver")?.split_whitespace().next()
}

fn is_loopback(server: &str) -> bool {
    server.split('%').next().is_some_and(|text| text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

/// What the host's file says to a container on the bridge: without name servers on loopback, but with at least one.
fn bridged(host: String, resolved: Option<String>) -> String {
    let reached = |text: &str| text.lines().filter_map(name_server).any(|server| !is_loopback(server));
    let host = match resolved {
        Some(resolved) if !reached(&host) && reached(&resolved) => resolved,
        _ => host,
    };
    let kept = host.lines().filter(|line| name_server(line).is_none_or(|server| !is_loopback(server)));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    if !reached(&text) {
        PUBLIC_SERVERS.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
    }
    text
}

fn resolv_conf(container: &StoredContainer, names: &Names) -> String {
    let host_config = &container.host_config;
    let requested = [&host_config.dns, &host_config.dns_search, &host_config.dns_options];
    let own: Vec<&[String]> = requested
        .iter()
        .zip(&names.dns)
        .map(|(requested, default)| requested.as_deref().filter(|list| !list.is_empty()).unwrap_or(default))
        .collect();
    let host = match Mode::of(container) {
        Mode::Host => host_file("/etc/resolv.conf").unwrap_or_default(),
        // One without a network has the file too, as in Docker.
        _ => bridged(host_file("/etc/resolv.conf").unwrap_or_default(), host_file(RESOLVED)),
    };
    if own.iter().all(|list| list.is_empty()) {
        return host;
    }
    let mut text = String::new();
    for (keyword, list) in ["nameserver", "search", "options"].into_iter().zip(own) {
        match list {
            [] => {
                let kept = host.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
                kept.for_each(|line| text.push_str(&format!("{line}\n")));
            }
            list if keyword == "nameserver" => {
                list.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
            }
            // Docker's word for no search domain at all.
            [only] if keyword == "search" && only == "." => {}
            list => text.push_str(&format!("{keyword} {}\n", list.join(" "))),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_on_the_bridge_gets_name_servers_that_it_can_reach() {
        let real = "nameserver 10.0.0.53\nsearch lan\n";
        assert_eq!(bridged(real.to_owned(), None), real);
        let mixed = format!("nameserver 127.0.0.1\n{real}nameserver ::1\n");
        assert_eq!(bridged(mixed, None), real);
        let stub = "nameserver 127.0.0.53\noptions edns0\n";
        assert_eq!(bridged(stub.to_owned(), Some(real.to_owned())), real);
        let public = "options edns0\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n";
        assert_eq!(bridged(stub.to_owned(), None), public);
        assert_eq!(bridged(stub.to_owned(), Some("nameserver ::1\n".to_owned())), public);
    }
}
