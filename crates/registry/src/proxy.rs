//! Which hosts are reached through a proxy, and how.
//!
//! Y1  This machine is never reached through a proxy, nor what `NO_PROXY` names. Nor a host that is insecure because of
//!     the address it has: behind a proxy nobody could check the address.
//! Y2  TLS goes through a tunnel (`CONNECT`) and ends at the registry: the proxy sees names, never content.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::auth::sensitive;
use crate::config::{Cidr, ConfigError};
use crate::error::{RegistryError, clean};
use crate::url::{Origin, Scheme, Url, is_localhost, split_port};

/// The proxies of a machine, as Docker's `proxies` and the usual environment variables name them.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
    has_no_proxy_at_all: bool,
}

/// A proxy that is spoken to in plain HTTP.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) origin: Origin,
    pub(crate) authorization: Option<HeaderValue>,
}

/// The password stays out of logs.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)
    }
}

/// A host that is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    /// All addresses of a network.
    Network(Cidr),
    /// A host with an optional port; a name also stands for those below it, unless `.name` was written, which stands for
    /// those below it only.
    Host { name: String, port: Option<u16>, is_below_only: bool },
}

/// How many entries of `NO_PROXY` count, and the largest answer to `CONNECT`, in bytes.
const EXCEPTIONS_MAX: usize = 256;
const ANSWER_BYTES_MAX: usize = 16 << 10;

impl Proxies {
    /// The proxies by their addresses; an empty text is none.
    ///
    /// # Errors
    /// `Proxy` for an address that is not `[http://][user:password@]host[:port]`.
    pub fn new(http: &str, https: &str, no_proxy: &str) -> Result<Proxies, ConfigError> {
        let entries = no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
        let has_no_proxy_at_all = entries.clone().any(|entry| entry == "*");
        let exceptions = entries.take(EXCEPTIONS_MAX).filter_map(parse_exception).collect();
        Ok(Proxies { http: parse_proxy(http)?, https: parse_proxy(https)?, exceptions, has_no_proxy_at_all })
    }

    /// The proxies by `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in upper or lower case.
    ///
    /// # Errors
    /// As [`Proxies::new`].
    pub fn from_environment() -> Result<Proxies, ConfigError> {
        let variable = |name: &str| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty());
            value.or_else(|| std::env::var(name.to_ascii_lowercase()).ok()).unwrap_or_default()
        };
        Proxies::new(&variable("HTTP_PROXY"), &variable("HTTPS_PROXY"), &variable("NO_PROXY"))
    }

    /// The proxy that leads to `origin`, if one does (Y1).
    pub(crate) fn of(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = match origin.scheme {
            Scheme::Http => self.http.as_ref()?,
            Scheme::Https => self.https.as_ref()?,
        };
        let is_direct =
            self.has_no_proxy_at_all || origin.is_loopback() || self.exceptions.iter().any(|one| one.covers(origin));
        if is_direct { None } else { Some(proxy) }
    }
}

impl Exception {
    fn covers(&self, origin: &Origin) -> bool {
        match self {
            Exception::Network(network) => origin.ip().is_some_and(|address| network.contains(address)),
            Exception::Host { name, port, is_below_only } => {
                let is_same = *name == *origin.host && !is_below_only;
                let is_below = origin.host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                port.is_none_or(|port| port == origin.port) && (is_same || is_below)
            }
        }
    }
}

fn parse_exception(entry: &str) -> Option<Exception> {
    if let Ok(network) = entry.parse() {
        return Some(Exception::Network(network));
    }
    let (is_below_only, entry) = match entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')) {
        Some(name) => (true, name),
        None => (false, entry),
    };
    // An IPv6 address may stand without brackets here.
    let (name, port) = match entry.parse::<std::net::Ipv6Addr>() {
        Ok(_) => (entry, None),
        Err(_) => split_port(entry)?,
    };
    Some(Exception::Host { name: name.to_ascii_lowercase(), port, is_below_only })
}

fn parse_proxy(text: &str) -> Result<Option<Proxy>, ConfigError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    // The text may hold a password: the error does not repeat it.
    let error = || ConfigError::Proxy;
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let (user, address) = match rest.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, rest),
    };
    let url = Url::parse(&format!("{scheme}://{address}")).ok_or_else(error)?;
    if url.origin.scheme != Scheme::Http {
        return Err(error());
    }
    let authorization = match user {
        None => None,
        Some(user) => {
            let user = percent_decode(user).ok_or_else(error)?;
            Some(sensitive(format!("Basic {}", STANDARD.encode(user))).ok_or_else(error)?)
        }
    };
    Ok(Some(Proxy { origin: url.origin, authorization }))
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(bytes.next())? << 4 | digit(bytes.next())?).ok()?
            }
            other => other,
        });
    }
    Some(decoded)
}

/// Asks a proxy, to which `stream` leads, for a tunnel to `target`.
pub(crate) async fn tunnel(mut stream: TcpStream, proxy: &Proxy, target: &Origin) -> Result<TcpStream, RegistryError> {
    let failed = |why: String| RegistryError::Proxy { proxy: proxy.origin.authority(), host: target.authority(), why };
    let bracketed = if is_v6(&target.host) { format!("[{}]", target.host) } else { target.host.to_string() };
    let address = format!("{bracketed}:{}", target.port);
    let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let broken = |error: std::io::Error| failed(error.to_string());
    stream.write_all(&request).await.map_err(broken)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        // Byte by byte: what follows the head belongs to the tunnel. It is short, and there is one a connection.
        match stream.read_u8().await {
            Ok(byte) if answer.len() < ANSWER_BYTES_MAX => answer.push(byte),
            Ok(_) => return Err(failed("its answer has no end".into())),
            Err(error) => return Err(broken(error)),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or("");
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    match status {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(stream),
        _ => Err(failed(clean(line))),
    }
}

fn is_v6(host: &str) -> bool {
    host.contains(':') && !is_localhost(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Url::parse(text).unwrap().origin
    }

    #[test]
    fn a_proxy_is_used_for_its_scheme_and_never_for_this_machine() {
        let proxies = Proxies::new("plain.proxy:3128", "http://user:p%40ss@tls.proxy", "").unwrap();
        let of = |text| proxies.of(&origin(text)).map(|proxy| proxy.origin.to_string());
        assert_eq!(of("http://a.example/").as_deref(), Some("http://plain.proxy:3128"));
        assert_eq!(of("https://a.example/").as_deref(), Some("http://tls.proxy"));
        for direct in ["http://localhost:5000/", "https://127.0.0.1/", "http://[::1]/"] {
            assert_eq!(of(direct), None, "{direct}");
        }
        let shown = proxies.https.as_ref().unwrap().authorization.as_ref().unwrap();
        assert_eq!(shown, &format!("Basic {}", STANDARD.encode("user:p@ss")));
        assert!(!format!("{proxies:?}").contains(&STANDARD.encode("user:p@ss")));
    }

    #[test]
    fn exceptions_are_hosts_names_below_ports_and_networks() {
        let proxies =
            Proxies::new("p:1", "p:1", "a.example, .b.example,*.c.example d.example:5000,10.0.0.0/8,fd00::1").unwrap();
        let is_direct = |host: &str| proxies.of(&origin(&format!("https://{host}/"))).is_none();
        for host in [
            "a.example",
            "x.a.example",
            "A.example:5000",
            "x.b.example",
            "x.c.example",
            "d.example:5000",
            "10.1.2.3",
            "[fd00::1]",
        ] {
            assert!(is_direct(host), "{host}");
        }
        for host in ["xa.example", "b.example", "c.example", "d.example", "11.0.0.1", "[fd00::2]"] {
            assert!(!is_direct(host), "{host}");
        }
        assert!(Proxies::new("p", "p", "x,*").unwrap().of(&origin("https://y/")).is_none());
    }

    #[test]
    fn an_address_that_is_no_proxy_is_refused() {
        for text in ["socks5://p:1", "https://p", "http://", "p:port", "u:%zz@p"] {
            assert_eq!(Proxies::new(text, "", "").unwrap_err(), ConfigError::Proxy, "{text}");
        }
    }
}
