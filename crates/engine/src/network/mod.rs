//! The networks of containers: `bridge`, `host`, `none` and another container's. The bridge itself is `baleen_network`'s.
//!
//! EN1  A container's place is reserved before its files are made (they name its address), connected once its namespace exists and
//!      before its program runs, and taken away before anybody hears of its end.
//! EN2  A start that fails leaves no address, port, link or rule.
//! EN3  At the opening, endpoints of containers that run are taken over; everything else that an earlier owner left is removed.

mod mode;
mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use baleen_network::{BridgeConfig, Endpoint, EndpointRequest, NetworkError};
use baleen_runtime::Shim;
use baleen_runtime::spec::NamespaceMode;

use crate::container::{Container, StoredContainer};
use crate::engine::Engine;
use crate::error::{EngineError, Kind};
use crate::events::EventType;

pub(crate) use mode::{Mode, check};
pub(crate) use ports::check_ports;

/// How containers are connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `None`: there is no bridge (`--bridge none`).
    pub bridge: Option<BridgeConfig>,
    /// Name servers of containers that name none themselves; empty: the host's.
    pub dns: Vec<String>,
    /// Search domains likewise.
    pub dns_search: Vec<String>,
    /// Resolver options likewise.
    pub dns_options: Vec<String>,
    /// What `host-gateway` stands for; `None`: the bridge's own address.
    pub host_gateway: Option<IpAddr>,
}

impl NetworkConfig {
    /// Docker's defaults, with the state below this directory.
    pub fn at(exec_root: &std::path::Path) -> Self {
        Self {
            bridge: Some(BridgeConfig::at(exec_root.join("network"))),
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            host_gateway: None,
        }
    }
}

/// A network, as list and inspect show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// `bridge`, `host`, `none`.
    pub name: &'static str,
    /// 64 hex digits, always the same.
    pub id: &'static str,
    /// `bridge`, `host`, `null`.
    pub driver: &'static str,
    /// `172.17.0.0/16` and the gateway, for each family.
    pub pools: Vec<(String, String)>,
    /// Whether it has IPv6.
    pub ipv6: bool,
    /// Options of the bridge, in Docker's names.
    pub options: BTreeMap<String, String>,
    /// Who is connected: ID, name, place on the bridge.
    pub containers: Vec<(String, String, Option<EndpointView>)>,
}

/// A container's place on the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// Of this run.
    pub id: String,
    /// Inside.
    pub address: String,
    /// Of its network.
    pub prefix: u8,
    /// The bridge's.
    pub gateway: String,
    /// Inside, or empty.
    pub address6: String,
    /// Of its network.
    pub prefix6: u8,
    /// The bridge's, or empty.
    pub gateway6: String,
    /// `02:42:ac:11:00:02`.
    pub mac: String,
    /// What the host's ports lead to.
    pub ports: Vec<PublishedPort>,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// Inside.
    pub container_port: u16,
    /// `tcp`.
    pub protocol: &'static str,
    /// Of the host.
    pub host_address: String,
    /// Of the host.
    pub host_port: u16,
}

impl From<Endpoint> for EndpointView {
    fn from(endpoint: Endpoint) -> Self {
        let mac = endpoint.mac_text();
        let text = |address: Option<std::net::Ipv6Addr>| address.map(|address| address.to_string()).unwrap_or_default();
        let ports = endpoint.ports.iter().map(|port| PublishedPort {
            container_port: port.container_port,
            protocol: port.protocol.as_str(),
            host_address: port.host_address.to_string(),
            host_port: port.host_port,
        });
        Self {
            ports: ports.collect(),
            address: endpoint.address.to_string(),
            prefix: endpoint.prefix,
            gateway: endpoint.gateway.to_string(),
            address6: text(endpoint.address6),
            prefix6: endpoint.prefix6,
            gateway6: text(endpoint.gateway6),
            mac,
            id: endpoint.id,
        }
    }
}

// Fixed, since a network that is not made anew has no reason to change its ID: the name and `-baleen-network`, in hex, filled up. The
// first twelve digits, which people see, tell them apart.
const PREDEFINED: [(&str, &str, &str); 3] = [
    ("bridge", "6272696467652d62616c65656e2d6e6574776f726b0000000000000000000000", "bridge"),
    ("host", "686f73742d62616c65656e2d6e6574776f726b00000000000000000000000000", "host"),
    ("none", "6e6f6e652d62616c65656e2d6e6574776f726b00000000000000000000000000", "null"),
];

/// Name and ID of a container's network.
pub(crate) fn network_of(stored: &StoredContainer) -> Option<(&'static str, &'static str)> {
    let mode = Mode::of(stored);
    PREDEFINED.iter().find(|row| mode.network_name() == Some(row.0)).map(|(name, id, _)| (*name, *id))
}

impl Engine {
    /// All networks.
    ///
    /// # Errors
    /// If the host's networks cannot be looked at.
    pub async fn networks(self: &Arc<Self>) -> Result<Vec<Network>, EngineError> {
        let engine = Arc::clone(self);
        let list = move || PREDEFINED.iter().filter_map(|row| engine.look_at_network(row).transpose()).collect();
        self.door.enter("list networks", list).await
    }

    fn look_at_network(
        &self,
        &(name, id, driver): &(&'static str, &'static str, &'static str),
    ) -> Result<Option<Network>, EngineError> {
        let mut network = Network {
            name,
            id,
            driver,
            pools: Vec::new(),
            ipv6: false,
            options: BTreeMap::new(),
            containers: Vec::new(),
        };
        if name == "bridge" {
            let Some(bridge) = &self.bridge else { return Ok(None) };
            let config = bridge.config();
            let subnet = bridge.subnet().map_err(network_error("look at the bridge"))?;
            network.pools.push((subnet.cidr(), subnet.address.to_string()));
            if let Some(subnet6) = config.address6 {
                network.ipv6 = true;
                network.pools.push((subnet6.cidr(), subnet6.address.to_string()));
            }
            let host = config.default_host_address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
            let options = [
                ("com.docker.network.bridge.default_bridge", "true".to_owned()),
                ("com.docker.network.bridge.enable_icc", config.between_containers.to_string()),
                ("com.docker.network.bridge.enable_ip_masquerade", config.masquerade.to_string()),
                ("com.docker.network.bridge.host_binding_ipv4", host),
                ("com.docker.network.bridge.name", config.name.clone()),
                ("com.docker.network.driver.mtu", config.mtu.to_string()),
            ];
            network.options = options.map(|(key, value)| (key.to_owned(), value)).into();
        }
        for container in self.containers.all() {
            let running = container.live().state.status.is_running();
            if running && Mode::of(&container.stored()).network_name() == Some(name) {
                let endpoint = self.endpoint_of(container.id());
                network.containers.push((container.id().to_owned(), container.name(), endpoint));
            }
        }
        Ok(Some(network))
    }

    /// A container's place on the bridge while it has one.
    pub(crate) fn endpoint_of(&self, container: &str) -> Option<EndpointView> {
        self.bridge.as_ref()?.endpoint(container).map(EndpointView::from)
    }

    /// Takes an address and ports for a container that is to start (EN1). Blocking.
    pub(crate) fn reserve_network(&self, stored: &StoredContainer) -> Result<Option<Endpoint>, EngineError> {
        if Mode::of(stored) != Mode::Bridge {
            return Ok(None);
        }
        let bridge = self.bridge.as_ref().ok_or_else(no_bridge)?;
        let request = EndpointRequest { ports: ports::requests(stored)?, mac: mode::mac(&stored.config.mac_address)? };
        bridge.reserve(&stored.id, &request).map(Some).map_err(|error| start_error(stored, error))
    }

    /// Connects a container whose namespaces exist. Blocking.
    pub(crate) fn connect_network(&self, stored: &StoredContainer, shim: &Shim) -> Result<(), EngineError> {
        let mode = Mode::of(stored);
        if !matches!(mode, Mode::Bridge | Mode::None) {
            return Ok(()); // It has no namespace of its own.
        }
        // The process waits for its start, and the shim that answered a moment ago holds it: the number is its own.
        let path = std::path::PathBuf::from(format!("/proc/{}/ns/net", shim.pid()));
        let inside = std::fs::File::open(&path).map_err(|source| EngineError::Io { action: "open", path, source })?;
        use std::os::fd::AsFd;
        baleen_network::bring_up_loopback(inside.as_fd(), &stored.id).map_err(|error| start_error(stored, error))?;
        match (mode, &self.bridge) {
            (Mode::Bridge, Some(bridge)) => {
                bridge.connect(&stored.id, inside.as_fd()).map_err(|error| start_error(stored, error))
            }
            _ => Ok(()),
        }
    }

    /// Takes a container's place away, whether it was connected or only reserved. Blocking.
    pub(crate) fn release_network(&self, container: &str) -> Result<(), EngineError> {
        match &self.bridge {
            Some(bridge) => bridge.disconnect(container).map_err(network_error("take the container's network away")),
            None => Ok(()),
        }
    }

    /// Takes over the endpoints of containers that run, and removes what others have left (EN3). Blocking.
    pub(crate) fn restore_network(&self, alive: &BTreeSet<String>) {
        let Some(bridge) = &self.bridge else { return };
        if let Err(error) = bridge.restore(alive) {
            // Containers that run go on; the next change writes the rules again.
            tracing::error!(error = error.chain(), "the network of an earlier daemon could not be taken over whole");
        }
    }

    /// Writes the firewall's rules again, in the background: a hang-up asks for it after the firewall was flushed.
    pub fn refresh_network(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        drop(tokio::spawn(async move {
            let worker = Arc::clone(&engine);
            let refresh = move || match &worker.bridge {
                Some(bridge) => bridge.refresh().map_err(network_error("write the firewall's rules again")),
                None => Ok(()),
            };
            if let Err(error) = engine.door.enter("write the firewall's rules", refresh).await {
                tracing::error!(error = error.chain(), "the firewall's rules are not what they should be");
            }
        }));
    }

    /// Which network namespace a container joins: its own, the host's, or that of a container that runs.
    ///
    /// # Errors
    /// `NoSuchContainer`, `Conflict` in Docker's words.
    pub(crate) fn network_namespace(&self, stored: &StoredContainer) -> Result<NamespaceMode, EngineError> {
        match Mode::of(stored) {
            Mode::Bridge | Mode::None => Ok(NamespaceMode::Private),
            Mode::Host => Ok(NamespaceMode::Host),
            Mode::Container(other) => {
                let container = self.containers.find(&other)?;
                let pid = container.live().state.pid;
                if !container.live().state.status.is_running() || pid == 0 {
                    let id = container.id();
                    return Err(EngineError::conflict(format!("cannot join network of a non running container: {id}")));
                }
                Ok(NamespaceMode::Path(format!("/proc/{pid}/ns/net").into()))
            }
        }
    }

    /// Whose `hosts`, `hostname` and `resolv.conf` a container sees.
    pub(crate) fn names_owner(&self, stored: &StoredContainer) -> String {
        match Mode::of(stored) {
            Mode::Container(other) => self.containers.get(&other).map_or(other, |container| container.id().to_owned()),
            _ => stored.id.clone(),
        }
    }

    /// What `host-gateway` stands for.
    pub(crate) fn host_gateway(&self) -> Option<IpAddr> {
        let own = || self.bridge.as_ref()?.subnet().ok().map(|subnet| IpAddr::V4(subnet.address));
        self.config.network.host_gateway.or_else(own)
    }

    /// Tells that a container is connected to its network, or no longer.
    pub(crate) fn network_event(&self, container: &Container, action: &str) {
        let mode = Mode::of(&container.stored());
        let Some((name, id, driver)) = PREDEFINED.iter().find(|row| mode.network_name() == Some(row.0)) else {
            return;
        };
        let attributes = [("name", *name), ("type", *driver), ("container", container.id())];
        let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
        self.events.send(EventType::Network, action, id, attributes.into());
    }
}

fn no_bridge() -> EngineError {
    EngineError::invalid("the bridge network is switched off (--bridge none); use --network none or --network host")
}

fn network_error(action: &'static str) -> impl FnOnce(NetworkError) -> EngineError {
    move |error| EngineError::part(action, error)
}

/// A network that cannot be had, in Docker's words: clients print them, and exit with 125.
fn start_error(stored: &StoredContainer, error: NetworkError) -> EngineError {
    let text = match &error {
        NetworkError::PortTaken { .. } | NetworkError::PortBusy { .. } | NetworkError::RangeTaken { .. } => format!(
            "driver failed programming external connectivity on endpoint {}: {}",
            &stored.id[..12.min(stored.id.len())],
            error.chain()
        ),
        _ => format!("failed to set up container networking: {}", error.chain()),
    };
    EngineError::StartFailed { text, exit_code: 128, kind: Kind::System }
}
