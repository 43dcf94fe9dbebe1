//! The network of containers: a bridge, a pair of links for each container, addresses, published ports, firewall rules.
//!
//! NW1  Nothing of the host's is touched: links, chains and files are our own. What the host must allow (forwarding, a jump into
//!      each chain) is added once and named in docs/network.md.
//! NW2  A connect that fails at any step leaves nothing of itself; a disconnect goes on past each failing step and tells all.
//! NW3  The firewall is always written whole, from what is connected: one transaction a table, so that no change is ever half.
//! NW4  Nothing lives in memory alone: a new owner finds every endpoint in the state directory, and takes away what has no container.
//! NW5  Nothing is made before the first container needs it.
//!
//! Ordinary blocking code. Knows no store, no image, no HTTP.

#![forbid(unsafe_code)]

mod address;
mod bridge;
mod endpoint;
mod error;
mod firewall;
mod link;
mod netlink;
mod port;
mod state;
mod sysctl;

pub use address::{Ipv4Net, Ipv6Net, mac_of};
pub use bridge::{Bridge, BridgeConfig};
pub use endpoint::{Endpoint, EndpointRequest};
pub use error::NetworkError;
pub use link::bring_up_loopback;
pub use port::{PortRequest, Protocol, Published, parse_container_port};
