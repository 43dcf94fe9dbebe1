//! A container's place on the bridge.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::port::{PortRequest, Published};

/// What a container asks of the bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointRequest {
    /// Ports to publish, in the order of the request.
    pub ports: Vec<PortRequest>,
    /// Its hardware address; `None`: the one that goes with its address.
    pub mac: Option<[u8; 6]>,
}

/// What a container has on the bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub(crate) version: u32,
    /// Whose it is.
    pub container: String,
    /// 64 hex digits: another one for each run.
    pub id: String,
    /// Inside.
    pub address: Ipv4Addr,
    /// Of the network.
    pub prefix: u8,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// Inside, where the network has IPv6.
    pub address6: Option<Ipv6Addr>,
    /// Of the network.
    pub prefix6: u8,
    /// The bridge's own address.
    pub gateway6: Option<Ipv6Addr>,
    /// Inside.
    pub mac: [u8; 6],
    /// What the host's ports lead to.
    pub ports: Vec<Published>,
    /// The host's end of the pair of links.
    pub host_link: String,
}

impl Endpoint {
    /// `02:42:ac:11:00:02`.
    pub fn mac_text(&self) -> String {
        self.mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
    }
}
