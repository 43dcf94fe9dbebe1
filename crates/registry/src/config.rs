//! What the daemon's configuration says about registries.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxies;
use crate::retry::{Clock, MonotonicClock};
use crate::url::{Origin, Url, split_port};

/// How registries are spoken to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Hosts and networks without verified TLS.
    pub insecure_registries: InsecureRegistries,
    /// Mirrors of `docker.io`, tried first and in order.
    pub mirrors: Vec<Mirror>,
    /// Folders with one folder a host, `HOST[:port]`, that holds `*.crt` (authorities) and `*.cert` with `*.key` (client
    /// certificates). All are read.
    pub certs_dirs: Vec<PathBuf>,
    /// The file of certificate authorities; `None` is `SSL_CERT_FILE` if set, else the system's at its usual places.
    pub ca_bundle: Option<PathBuf>,
    /// The proxies; `None` is those of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`).
    pub proxies: Option<Proxies>,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// What we call ourselves.
    pub user_agent: String,
    /// How often a download is tried without getting a byte further, as long as the pull has not received any byte of a
    /// layer; and always where trying again would fetch the same bytes again and again.
    pub download_attempts_max: u32,
    /// What waits between attempts.
    pub clock: Arc<dyn Clock>,
    /// The names of hosts, as in hosts(5).
    pub hosts_file: PathBuf,
    /// The name servers, as in resolv.conf(5).
    pub resolv_conf: PathBuf,
}

/// How long to wait for what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Timeouts {
    /// For a connection, all addresses together.
    pub connect: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next bytes of an answer.
    pub idle: Duration,
    /// Before the first further attempt of a download; doubled each time without progress.
    pub retry_first: Duration,
    /// Before any further attempt.
    pub retry_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(30),
            handshake: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            insecure_registries: InsecureRegistries::default(),
            mirrors: Vec::new(),
            certs_dirs: vec!["/etc/baleen/certs.d".into(), "/etc/docker/certs.d".into()],
            ca_bundle: None,
            proxies: None,
            timeouts: Timeouts::default(),
            user_agent: concat!("baleen/", env!("CARGO_PKG_VERSION")).into(),
            download_attempts_max: 5,
            clock: Arc::new(MonotonicClock),
            hosts_file: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// Why a value of the configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not a host, a host with a port, or a network.
    #[error("insecure registry {text:?} is not valid; write host, host:port or a network such as 10.0.0.0/8")]
    InsecureRegistry {
        /// The value.
        text: String,
    },
    /// Not the address of a proxy.
    #[error("invalid proxy address; write [http://][user:password@]host[:port] into HTTP_PROXY and HTTPS_PROXY")]
    Proxy,
    /// Not the address of a server.
    #[error("invalid mirror: {text:?}; write its address, such as https://mirror.example, without user name and query")]
    Mirror {
        /// The value.
        text: String,
    },
}

/// A network: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// Whether the address lies in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same_prefix(one: &[u8], other: &[u8], mut bits: usize) -> bool {
            one.iter().zip(other).all(|(one, other)| {
                let counted = bits.min(8);
                bits -= counted;
                counted == 0 || (one ^ other) >> (8 - counted) == 0
            })
        }
        let bits = usize::from(self.prefix_bits);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => same_prefix(&own.octets(), &other.octets(), bits),
            (IpAddr::V6(own), IpAddr::V6(other)) => same_prefix(&own.octets(), &other.octets(), bits),
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Cidr, ConfigError> {
        let error = || ConfigError::InsecureRegistry { text: text.to_owned() };
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits: u8 = bits.parse().map_err(|_| error())?;
        match prefix_bits <= bits_max {
            true => Ok(Cidr { address, prefix_bits }),
            false => Err(error()),
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// The hosts and networks whose registries need no verified TLS: Docker's `insecure-registries`.
#[derive(Debug, Clone, Default)]
pub struct InsecureRegistries {
    hosts: Vec<(String, Option<u16>)>,
    networks: Vec<Cidr>,
}

impl InsecureRegistries {
    /// Parses the values of `insecure-registries`.
    pub fn parse<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Result<InsecureRegistries, ConfigError> {
        let mut parsed = InsecureRegistries::default();
        for value in values {
            let text = value.as_ref().trim();
            let error = || ConfigError::InsecureRegistry { text: text.to_owned() };
            if let Ok(network) = text.parse() {
                parsed.networks.push(network);
                continue;
            }
            // Docker forgives a scheme here.
            let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
            let (host, port) = split_port(host.trim_end_matches('/')).ok_or_else(error)?;
            parsed.hosts.push((host.to_ascii_lowercase(), port));
        }
        Ok(parsed)
    }

    /// The networks, for `docker info`.
    pub fn networks(&self) -> &[Cidr] {
        &self.networks
    }

    /// The hosts as `host` or `host:port`, for `docker info`.
    pub fn hosts(&self) -> impl Iterator<Item = String> {
        self.hosts.iter().map(|(host, port)| match port {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        })
    }

    /// Whether the origin's host is listed by name. A name without a port means the ports of HTTP and HTTPS.
    pub(crate) fn lists(&self, origin: &Origin) -> bool {
        self.hosts.iter().any(|(host, port)| {
            **host == *origin.host && port.map_or(matches!(origin.port, 80 | 443), |port| port == origin.port)
        })
    }
}

/// A server that holds what another registry holds: Docker's `registry-mirrors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub(crate) url: Url,
}

impl FromStr for Mirror {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Mirror, ConfigError> {
        let error = || ConfigError::Mirror { text: text.to_owned() };
        if text.contains(['?', '#']) {
            return Err(error());
        }
        let mut url = Url::parse(text).ok_or_else(error)?;
        url.path.truncate(url.path.trim_end_matches('/').len());
        Ok(Mirror { url })
    }
}

/// The address with a slash at its end, as `docker info` shows it.
impl std::fmt::Display for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Scheme;

    #[test]
    fn insecure_registries_are_hosts_ports_and_networks() {
        let listed =
            InsecureRegistries::parse(["r.example", "http://s.example:5000/", "10.0.0.0/8", "fd00::/8"]).unwrap();
        let lists = |domain| listed.lists(&Origin::of_domain(Scheme::Https, domain).unwrap());
        assert!(lists("r.example") && lists("R.example:80") && lists("s.example:5000"));
        assert!(!lists("r.example:5000") && !lists("s.example") && !lists("10.0.0.1"));
        let inside = |address: &str| listed.networks().iter().any(|net| net.contains(address.parse().unwrap()));
        assert!(inside("10.255.0.1") && inside("fd12::1") && inside("::ffff:10.0.0.1"));
        assert!(!inside("11.0.0.1") && !inside("fe80::1"));
        for text in ["", "a b", "10.0.0.0/33", "::/129", "a/b", "host:port"] {
            assert!(InsecureRegistries::parse([text]).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_of_odd_length_compares_single_bits() {
        let net: Cidr = "192.168.0.0/23".parse().unwrap();
        assert!(net.contains("192.168.1.255".parse().unwrap()));
        assert!(!net.contains("192.168.2.0".parse().unwrap()));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn a_mirror_is_an_address_without_query() {
        let mirror: Mirror = "https://m.example/docker/".parse().unwrap();
        assert_eq!(mirror.to_string(), "https://m.example/docker/");
        for text in ["m.example", "ftp://m", "https://u:p@m/", "https://m/?x", "https://m/#x"] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
