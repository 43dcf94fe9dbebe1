//! What can go wrong.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::port::Protocol;

/// Why a network operation failed. `Display` says what, on what, and what to do; sources are kept apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The kernel refused a change of a link, an address or a route.
    #[error("cannot {action} {name}")]
    Link {
        /// A verb.
        action: &'static str,
        /// The link.
        name: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the state directory, or a kernel setting.
    #[error("cannot {action} {path}")]
    Io {
        /// A verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The firewall program is missing.
    #[error("cannot set up the firewall: {program} is not installed; install iptables, or set iptables to false")]
    FirewallMissing {
        /// What was looked for.
        program: &'static str,
    },
    /// The firewall program failed.
    #[error("cannot set up the firewall: {program} ended with {status}: {output}")]
    Firewall {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// All addresses are taken.
    #[error("no available IPv4 addresses on this network's address pools: {subnet}")]
    AddressesUsedUp {
        /// The subnet.
        subnet: String,
    },
    /// No subnet is left that does not overlap with one of the host's.
    #[error("could not find an available, non-overlapping IPv4 address pool for the bridge; set --bip")]
    PoolsUsedUp,
    /// Text that is no network.
    #[error("invalid CIDR address: {text}")]
    BadSubnet {
        /// As given.
        text: String,
    },
    /// Text that is no port.
    #[error("invalid port specification: \"{text}\"")]
    BadPort {
        /// As given.
        text: String,
    },
    /// Another container has the port.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortTaken {
        /// Of the host.
        address: IpAddr,
        /// Of the host.
        port: u16,
    },
    /// Another program has the port, or the address is not the host's.
    #[error("failed to bind host port {address}:{port}/{protocol}")]
    PortBusy {
        /// Of the host.
        address: IpAddr,
        /// Of the host.
        port: u16,
        /// Of the port.
        protocol: Protocol,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// No port of the range is free.
    #[error("all ports of {first}-{last} are in use on {address}")]
    RangeTaken {
        /// Of the host.
        address: IpAddr,
        /// Of the range.
        first: u16,
        /// Of the range.
        last: u16,
    },
    /// An IPv6 port of a network without IPv6.
    #[error(
        "cannot publish a port on {address}: the bridge has no IPv6; set ipv6 and fixed-cidr-v6, or publish on an IPv4 address"
    )]
    NoIpv6 {
        /// As asked for.
        address: IpAddr,
    },
    /// The bridge's name is that of a link of another kind.
    #[error("{name} exists and is no bridge; choose another name with --bridge")]
    NotABridge {
        /// The name.
        name: String,
    },
    /// No endpoint of that container.
    #[error("container {container} has no endpoint on the bridge")]
    NotConnected {
        /// Its ID.
        container: String,
    },
    /// The first failure of a removal that went on, with all the others in its text.
    #[error("{failures}")]
    Several {
        /// One after the other.
        failures: String,
    },
}

impl NetworkError {
    /// The text with its causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}
