//! Published ports: how they are asked for, and how the host's port is kept for us.
//!
//! P1  A published port is held by a socket of ours, so that no other program takes it, and two containers never share one.
//!     Packets do not reach that socket: the firewall leads them away before.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with, sockopt};
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// `tcp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRequest {
    /// Inside.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// Of the host; `None`: all.
    pub host_address: Option<IpAddr>,
    /// First and last of the host's ports to choose from; 0: any that is free.
    pub host_ports: (u16, u16),
}

impl PortRequest {
    /// From an entry of `PortBindings`: its key as read by [`parse_container_port`], `HostIp` and `HostPort`.
    ///
    /// # Errors
    /// `BadPort`.
    pub fn new(port: (u16, Protocol), host_ip: &str, host_port: &str) -> Result<Self, NetworkError> {
        let bad = |text: &str| NetworkError::BadPort { text: text.to_owned() };
        let host_address = match host_ip.trim_matches(['[', ']']) {
            "" => None,
            text => Some(text.parse().map_err(|_| bad(host_ip))?),
        };
        let host_ports = match host_port {
            "" => (0, 0),
            text => range(text).ok_or_else(|| bad(host_port))?,
        };
        Ok(Self { container_port: port.0, protocol: port.1, host_address, host_ports })
    }
}

/// Reads `80`, `80/tcp`, `8000-8010/udp`: each port with its protocol.
///
/// # Errors
/// `BadPort`.
pub fn parse_container_port(text: &str) -> Result<Vec<(u16, Protocol)>, NetworkError> {
    let bad = || NetworkError::BadPort { text: text.to_owned() };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(bad()),
    };
    let (first, last) = range(ports).filter(|(first, _)| *first > 0).ok_or_else(bad)?;
    Ok((first..=last).map(|port| (port, protocol)).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

/// A port that is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Inside.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// Of the host.
    pub host_address: IpAddr,
    /// Of the host.
    pub host_port: u16,
}

impl Published {
    /// Whether both lead the same packets away.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && self.host_address.is_ipv4() == other.host_address.is_ipv4()
            && (self.host_address == other.host_address
                || self.host_address.is_unspecified()
                || other.host_address.is_unspecified())
    }
}

/// The socket that holds a port (P1); SCTP has none.
#[derive(Debug)]
pub(crate) struct Reservation(#[expect(dead_code, reason = "it is held for its being open")] Option<OwnedFd>);

/// Chooses and takes a port of the host that none of `taken` has.
pub(crate) fn reserve(
    request: &PortRequest,
    address: IpAddr,
    taken: &[Published],
) -> Result<(Published, Reservation), NetworkError> {
    let (first, last) = request.host_ports;
    let published = |host_port| Published {
        container_port: request.container_port,
        protocol: request.protocol,
        host_address: address,
        host_port,
    };
    let mut last_error = None;
    for port in first..=last {
        if port != 0 && taken.iter().any(|taken| taken.collides(&published(port))) {
            last_error = Some(NetworkError::PortTaken { address, port });
            continue;
        }
        match hold(address, port, request.protocol) {
            Ok((port, reservation)) => return Ok((published(port), reservation)),
            Err(source) => {
                last_error = Some(NetworkError::PortBusy { address, port, protocol: request.protocol, source });
            }
        }
    }
    match last_error {
        Some(error) if first == last => Err(error),
        _ => Err(NetworkError::RangeTaken { address, first, last }),
    }
}

/// Takes a port that a container had before: whoever took it meanwhile keeps his socket, and the firewall its rule.
pub(crate) fn hold_again(published: &Published) -> io::Result<Reservation> {
    hold(published.host_address, published.host_port, published.protocol).map(|(_, reservation)| reservation)
}

fn hold(address: IpAddr, port: u16, protocol: Protocol) -> io::Result<(u16, Reservation)> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, ipproto::UDP),
        // No port of its own can be chosen without the kernel's module.
        Protocol::Sctp if port == 0 => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        Protocol::Sctp => return Ok((port, Reservation(None))),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(number))?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of a server that has gone are no reason to wait for minutes.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    if protocol == Protocol::Tcp {
        listen(&socket, 1)?;
    }
    let name: SocketAddr = getsockname(&socket)?.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((name.port(), Reservation(Some(socket))))
}

/// All of the host's addresses.
pub(crate) const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_every_form() {
        assert_eq!(parse_container_port("80").unwrap(), [(80, Protocol::Tcp)]);
        assert_eq!(parse_container_port("53-54/udp").unwrap(), [(53, Protocol::Udp), (54, Protocol::Udp)]);
        for bad in ["", "0", "65536", "80/icmp", "90-80", "-1", "80-", "a", "+80", "80/tcp/udp"] {
            assert!(parse_container_port(bad).is_err(), "{bad}");
        }
        let port = (80, Protocol::Tcp);
        assert_eq!(PortRequest::new(port, "", "").unwrap().host_ports, (0, 0));
        assert_eq!(PortRequest::new(port, "127.0.0.1", "8000-8010").unwrap().host_ports, (8000, 8010));
        assert_eq!(PortRequest::new(port, "[::1]", "1").unwrap().host_address, Some("::1".parse().unwrap()));
        for (address, port_text) in [("localhost", ""), ("", "x"), ("", "70000"), ("1.2.3", "1"), ("", "5-4")] {
            assert!(PortRequest::new(port, address, port_text).is_err(), "{address} {port_text}");
        }
    }

    #[test]
    fn a_port_is_given_once_and_a_range_until_it_is_used_up() {
        let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
        let any = PortRequest::new((80, Protocol::Tcp), "", "").unwrap();
        let (one, held) = reserve(&any, loopback, &[]).unwrap();
        assert_ne!(one.host_port, 0);
        let same = PortRequest { host_ports: (one.host_port, one.host_port), ..any.clone() };
        // Another container has it.
        assert!(matches!(
            reserve(&same, ANY4, std::slice::from_ref(&one)),
            Err(NetworkError::PortTaken { port, .. }) if port == one.host_port
        ));
        // Another program has it: ours, here.
        assert!(matches!(reserve(&same, loopback, &[]), Err(NetworkError::PortBusy { .. })));
        drop(held);
        assert_eq!(reserve(&same, loopback, &[]).unwrap().0.host_port, one.host_port);
        let udp = PortRequest { protocol: Protocol::Udp, ..same };
        assert!(reserve(&udp, loopback, std::slice::from_ref(&one)).is_ok(), "another protocol is another port");
        let taken = Published { host_address: ANY4, ..one.clone() };
        let range = PortRequest { host_ports: (one.host_port, one.host_port.saturating_add(1)), ..any };
        match reserve(&range, loopback, &[taken]) {
            Ok((next, _)) => assert_eq!(next.host_port, one.host_port + 1),
            Err(error) => assert!(matches!(error, NetworkError::RangeTaken { .. }), "{error}"),
        }
    }
}
