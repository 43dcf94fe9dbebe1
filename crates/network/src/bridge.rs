//! The bridge: set up when the first container needs it, and each container's place on it.
//!
//! BR1  One change at a time: whoever connects or disconnects holds the lock until links and rules are as they shall be.
//! BR2  The file of an endpoint is written before the first of its links is made and removed after the last has gone, so that an
//!      owner that was killed in between leaves nothing unnamed.
//! BR3  A container that starts again gets the address it had, unless another has it by now.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::{Ipv4Net, Ipv6Net, choose, mac_of};
use crate::endpoint::{Endpoint, EndpointRequest};
use crate::error::NetworkError;
use crate::firewall::{self, Leading, Rules};
use crate::link;
use crate::netlink::Netlink;
use crate::port::{self, ANY4, Reservation};
use crate::state::{BridgeState, StateDir, VERSION};
use crate::sysctl;

/// Addresses that are remembered for containers that do not run.
const REMEMBERED_MAX: usize = 4096;
/// Ports that one container may publish.
const PORTS_MAX: usize = 4096;

/// How the bridge is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its link: `baleen0`.
    pub name: String,
    /// Its own address (`--bip`); `None`: the first usual private network that the host does not use.
    pub address: Option<Ipv4Net>,
    /// Its own IPv6 address; `None`: no IPv6.
    pub address6: Option<Ipv6Net>,
    /// Bytes of a packet.
    pub mtu: u32,
    /// Containers reach each other.
    pub between_containers: bool,
    /// What leaves the host gets the host's address.
    pub masquerade: bool,
    /// Rules are written; without, ports are not published.
    pub firewall: bool,
    /// Forwarding is switched on.
    pub forwarding: bool,
    /// Where a port without an address is published; `None`: everywhere.
    pub default_host_address: Option<IpAddr>,
    /// Where what is connected is noted; emptied by a reboot.
    pub state_dir: PathBuf,
}

impl BridgeConfig {
    /// Docker's defaults with our link.
    pub fn at(state_dir: PathBuf) -> Self {
        Self {
            name: "baleen0".to_owned(),
            address: None,
            address6: None,
            mtu: 1500,
            between_containers: true,
            masquerade: true,
            firewall: true,
            forwarding: true,
            default_host_address: None,
            state_dir,
        }
    }
}

/// The bridge of one owner.
#[derive(Debug)]
pub struct Bridge {
    config: BridgeConfig,
    dir: StateDir,
    state: Mutex<State>,
    #[cfg(test)]
    faults: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    subnet: Option<Ipv4Net>,
    forwarding_was_off: bool,
    endpoints: BTreeMap<String, Connected>,
    /// BR3.
    last_addresses: BTreeMap<String, Ipv4Addr>,
}

#[derive(Debug)]
struct Connected {
    endpoint: Endpoint,
    /// Its links are there; its ports lead to it.
    is_up: bool,
    held: Vec<Reservation>,
}

impl Bridge {
    /// A bridge that is not looked at yet; nothing is made (NW5).
    pub fn new(config: BridgeConfig) -> Self {
        let dir = StateDir(config.state_dir.clone());
        Self {
            config,
            dir,
            state: Mutex::default(),
            #[cfg(test)]
            faults: std::sync::atomic::AtomicUsize::new(usize::MAX),
        }
    }

    /// How it is.
    pub fn config(&self) -> &BridgeConfig {
        &self.config
    }

    /// The network with the bridge's own address, chosen if it was not yet.
    ///
    /// # Errors
    /// `PoolsUsedUp`, `Link`.
    pub fn subnet(&self) -> Result<Ipv4Net, NetworkError> {
        self.chosen(&mut self.lock())
    }

    /// A container's place, if it has one.
    pub fn endpoint(&self, container: &str) -> Option<Endpoint> {
        self.lock().endpoints.get(container).map(|connected| connected.endpoint.clone())
    }

    /// All places, by container.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.lock().endpoints.values().filter(|one| one.is_up).map(|one| one.endpoint.clone()).collect()
    }

    /// Takes an address and ports for a container. Nothing of the network is changed yet.
    ///
    /// # Errors
    /// `AddressesUsedUp`, `PortTaken`, `PortBusy`, `RangeTaken`, `NoIpv6`.
    pub fn reserve(&self, container: &str, request: &EndpointRequest) -> Result<Endpoint, NetworkError> {
        let mut state = self.lock();
        if state.endpoints.contains_key(container) {
            self.take_down(&mut state, container)?;
        }
        let subnet = self.chosen(&mut state)?;
        let wanted = state.last_addresses.get(container).copied();
        let taken = |address| state.endpoints.values().any(|other| other.endpoint.address == address);
        let address =
            subnet.free(taken, wanted).ok_or_else(|| NetworkError::AddressesUsedUp { subnet: subnet.cidr() })?;
        let (ports, held) = self.take_ports(&state, request)?;
        let address6 = self.config.address6;
        let endpoint = Endpoint {
            version: VERSION,
            container: container.to_owned(),
            id: endpoint_id()?,
            address,
            prefix: subnet.prefix,
            gateway: subnet.address,
            address6: address6.map(|net| net.paired(address, subnet)),
            prefix6: address6.map_or(0, |net| net.prefix),
            gateway6: address6.map(|net| net.address),
            mac: request.mac.unwrap_or_else(|| mac_of(address)),
            ports,
            host_link: host_link(container),
        };
        if state.last_addresses.len() >= REMEMBERED_MAX {
            state.last_addresses.clear();
        }
        state.last_addresses.insert(container.to_owned(), address);
        state.endpoints.insert(container.to_owned(), Connected { endpoint: endpoint.clone(), is_up: false, held });
        Ok(endpoint)
    }

    fn take_ports(
        &self,
        state: &State,
        request: &EndpointRequest,
    ) -> Result<(Vec<port::Published>, Vec<Reservation>), NetworkError> {
        let mut taken: Vec<port::Published> =
            state.endpoints.values().flat_map(|other| other.endpoint.ports.iter().cloned()).collect();
        let (mut ports, mut held) = (Vec::new(), Vec::new());
        for wanted in request.ports.iter().take(PORTS_MAX) {
            let address = wanted.host_address.or(self.config.default_host_address);
            if let Some(address) = address.filter(IpAddr::is_ipv6)
                && self.config.address6.is_none()
            {
                return Err(NetworkError::NoIpv6 { address });
            }
            let (published, reservation) = port::reserve(wanted, address.unwrap_or(ANY4), &taken)?;
            taken.push(published.clone());
            held.push(reservation);
            if address.is_none() && self.config.address6.is_some() {
                // The same number in the other family, as clients expect.
                let number = published.host_port;
                let again = port::PortRequest { host_ports: (number, number), ..wanted.clone() };
                let (published6, reservation) = port::reserve(&again, Ipv6Addr::UNSPECIFIED.into(), &taken)?;
                taken.push(published6.clone());
                held.push(reservation);
                ports.extend([published, published6]);
            } else {
                ports.push(published);
            }
        }
        Ok((ports, held))
    }

    /// Connects a container that has reserved a place: its end of the links goes into the namespace `inside`.
    ///
    /// # Errors
    /// Any; then nothing of the container is left (NW2), its reservation included.
    pub fn connect(&self, container: &str, inside: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let mut state = self.lock();
        let connected = self.connect_locked(&mut state, container, inside);
        if connected.is_err()
            && let Err(left) = self.take_down(&mut state, container)
        {
            tracing::warn!(container, error = left.chain(), "a failed connect left something behind");
        }
        connected
    }

    fn connect_locked(&self, state: &mut State, container: &str, inside: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let mut netlink = open_netlink()?;
        let bridge = self.ensure_bridge(state, &mut netlink)?;
        let missing = || NetworkError::NotConnected { container: container.to_owned() };
        let endpoint = state.endpoints.get(container).ok_or_else(missing)?.endpoint.clone();
        self.step("note the endpoint")?;
        self.dir.write_endpoint(&endpoint)?; // BR2
        let host = &endpoint.host_link;
        // One of an earlier run that a kill has left.
        link::delete(&mut netlink, host)?;
        self.step("create the pair")?;
        link::create_pair(&mut netlink, host, bridge, inside, endpoint.mac, self.config.mtu)?;
        self.step("configure the host's end")?;
        // A port of a bridge needs no address of its own (threats N3).
        sysctl::write_if_there(&format!("ipv6/conf/{host}/disable_ipv6"), "1")?;
        let vanished = || NetworkError::Link {
            action: "look up",
            name: host.clone(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        let index = link::link(&mut netlink, host)?.ok_or_else(vanished)?.index;
        link::set_hairpin(&mut netlink, index, host)?;
        link::set_up(&mut netlink, index, host)?;
        self.step("configure the container's end")?;
        link::configure_inside(inside, &endpoint)?;
        if let Some(connected) = state.endpoints.get_mut(container) {
            connected.is_up = true;
        }
        self.step("write the rules")?;
        self.write_rules(state)?;
        self.step("finish")
    }

    /// Takes a container's place away: rules, links, ports, address. One that has none is no error.
    ///
    /// # Errors
    /// `Several`, once everything was tried.
    pub fn disconnect(&self, container: &str) -> Result<(), NetworkError> {
        let mut state = self.lock();
        if !state.endpoints.contains_key(container) {
            return Ok(());
        }
        self.take_down(&mut state, container)
    }

    fn take_down(&self, state: &mut State, container: &str) -> Result<(), NetworkError> {
        let Some(gone) = state.endpoints.remove(container) else { return Ok(()) };
        let mut failures = Vec::new();
        let mut tried = |outcome: Result<(), NetworkError>| failures.extend(outcome.err().map(|error| error.chain()));
        if gone.is_up {
            tried(self.step("take the rules away").and_then(|()| self.write_rules(state)));
        }
        // Of its own accord it goes with the namespace, some time later.
        tried(
            self.step("remove the pair")
                .and_then(|()| link::delete(&mut open_netlink()?, &gone.endpoint.host_link).map(drop)),
        );
        tried(self.dir.remove_endpoint(container));
        drop(gone.held);
        if failures.is_empty() { Ok(()) } else { Err(NetworkError::Several { failures: failures.join("; ") }) }
    }

    /// Takes over what an earlier owner has left: endpoints of containers that are `alive` stay, with their ports; of the others
    /// links, rules and files are removed (NW4). Nothing is made where nothing was.
    ///
    /// # Errors
    /// `Link`, `Firewall`, `Io`: after everything else was tried.
    pub fn restore(&self, alive: &BTreeSet<String>) -> Result<(), NetworkError> {
        let mut state = self.lock();
        let known = self.dir.bridge();
        let endpoints = self.dir.endpoints();
        if let Some(known) = &known {
            state.forwarding_was_off = known.forwarding_was_off;
            // A bridge of another name or address is an earlier setting's.
            if known.name == self.config.name {
                state.subnet = Some(known.subnet).filter(|net| self.config.address.is_none_or(|own| own == *net));
            }
        }
        if known.is_none() && endpoints.is_empty() {
            return Ok(());
        }
        let mut failures = Vec::new();
        let mut tried = |outcome: Result<(), NetworkError>| failures.extend(outcome.err().map(|error| error.chain()));
        let mut netlink = open_netlink()?;
        for endpoint in endpoints {
            if !alive.contains(&endpoint.container) {
                tracing::info!(container = endpoint.container, "took away the network of a container that has ended");
                tried(link::delete(&mut netlink, &endpoint.host_link).map(drop));
                tried(self.dir.remove_endpoint(&endpoint.container));
                continue;
            }
            let mut held = Vec::new();
            for published in &endpoint.ports {
                match port::hold_again(published) {
                    Ok(reservation) => held.push(reservation),
                    Err(error) => tracing::warn!(
                        container = endpoint.container,
                        port = published.host_port,
                        %error,
                        "a published port is in use by another program; packets still go to the container"
                    ),
                }
            }
            state.last_addresses.insert(endpoint.container.clone(), endpoint.address);
            state.endpoints.insert(endpoint.container.clone(), Connected { endpoint, is_up: true, held });
        }
        if let Some(bridge) = link::link(&mut netlink, &self.config.name)? {
            for one in link::links(&mut netlink)? {
                let ours = one.master == Some(bridge.index) && one.name.starts_with(LINK_PREFIX);
                if ours && !state.endpoints.values().any(|known| known.endpoint.host_link == one.name) {
                    tried(link::delete(&mut netlink, &one.name).map(drop));
                }
            }
            tried(self.write_rules(&state));
        } else {
            tried(if self.config.firewall { firewall::remove(self.config.address6.is_some()) } else { Ok(()) });
            tried(self.dir.remove_bridge());
        }
        if failures.is_empty() { Ok(()) } else { Err(NetworkError::Several { failures: failures.join("; ") }) }
    }

    /// Writes the rules again, for a firewall that somebody has flushed or loaded anew. Nothing is done where no bridge was made.
    ///
    /// # Errors
    /// `Firewall`, `FirewallMissing`.
    pub fn refresh(&self) -> Result<(), NetworkError> {
        let mut state = self.lock();
        if self.dir.bridge().is_none() {
            return Ok(());
        }
        self.chosen(&mut state)?;
        self.write_rules(&state)
    }

    /// Takes the bridge and the rules away if nobody is connected; true if it did.
    ///
    /// # Errors
    /// `Link`, `Firewall`, `Io`.
    pub fn remove(&self) -> Result<bool, NetworkError> {
        let mut state = self.lock();
        if !state.endpoints.is_empty() || self.dir.bridge().is_none() {
            return Ok(false);
        }
        if self.config.firewall {
            firewall::remove(self.config.address6.is_some())?;
        }
        link::delete(&mut open_netlink()?, &self.config.name)?;
        if std::mem::take(&mut state.forwarding_was_off) {
            sysctl::write("ipv4/ip_forward", "0")?;
        }
        self.dir.remove_bridge()?;
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves what is noted true: each note is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chosen(&self, state: &mut State) -> Result<Ipv4Net, NetworkError> {
        if let Some(subnet) = state.subnet {
            return Ok(subnet);
        }
        let subnet = match self.config.address {
            Some(address) => address,
            None => {
                let mut netlink = open_netlink()?;
                let bridge = link::link(&mut netlink, &self.config.name)?;
                let own = match &bridge {
                    Some(bridge) => link::address_of(&mut netlink, bridge.index)?,
                    None => None,
                };
                match own {
                    // Somebody has made the bridge before us.
                    Some(own) => own,
                    None => choose(&link::used_networks(&mut netlink, bridge.map(|bridge| bridge.index))?)
                        .ok_or(NetworkError::PoolsUsedUp)?,
                }
            }
        };
        state.subnet = Some(subnet);
        Ok(subnet)
    }

    /// The bridge's index; makes what is missing of it.
    fn ensure_bridge(&self, state: &mut State, netlink: &mut Netlink) -> Result<u32, NetworkError> {
        let subnet = self.chosen(state)?;
        let name = &self.config.name;
        if let Some(bridge) = link::link(netlink, name)? {
            if bridge.kind != "bridge" {
                return Err(NetworkError::NotABridge { name: name.clone() });
            }
            if self.dir.bridge().is_some_and(|known| known.name == *name && known.subnet == subnet) {
                return Ok(bridge.index);
            }
            self.configure_bridge(state, netlink, bridge.index, subnet)?;
            return Ok(bridge.index);
        }
        self.step("create the bridge")?;
        link::create_bridge(netlink, name, mac_of(subnet.address), self.config.mtu)?;
        let made = (|| {
            let missing = || NetworkError::NotABridge { name: name.clone() };
            let index = link::link(netlink, name)?.ok_or_else(missing)?.index;
            self.step("configure the bridge")?;
            self.configure_bridge(state, netlink, index, subnet)?;
            Ok(index)
        })();
        if made.is_err()
            && let Err(left) = link::delete(netlink, name)
        {
            tracing::warn!(error = left.chain(), "a bridge that could not be set up is left");
        }
        made
    }

    fn configure_bridge(
        &self,
        state: &mut State,
        netlink: &mut Netlink,
        index: u32,
        subnet: Ipv4Net,
    ) -> Result<(), NetworkError> {
        let name = &self.config.name;
        // Before it is up (threats N2, N3).
        sysctl::write_if_there(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        let off = if self.config.address6.is_some() { "0" } else { "1" };
        sysctl::write_if_there(&format!("ipv6/conf/{name}/disable_ipv6"), off)?;
        link::add_address(netlink, index, name, subnet.address.into(), subnet.prefix)?;
        if let Some(address6) = self.config.address6 {
            link::add_address(netlink, index, name, address6.address.into(), address6.prefix)?;
        }
        link::set_up(netlink, index, name)?;
        if self.config.firewall {
            // The host's loopback addresses reach published ports; the way back ends here (FW5).
            sysctl::write(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
        }
        if self.config.forwarding {
            state.forwarding_was_off |= sysctl::read("ipv4/ip_forward").as_deref() == Some("0");
            sysctl::write("ipv4/ip_forward", "1")?;
            if self.config.address6.is_some() {
                sysctl::write("ipv6/conf/all/forwarding", "1")?;
            }
        }
        let known =
            BridgeState { version: VERSION, name: name.clone(), subnet, forwarding_was_off: state.forwarding_was_off };
        self.dir.write_bridge(&known)
    }

    /// Writes the rules for everybody who is connected (NW3).
    fn write_rules(&self, state: &State) -> Result<(), NetworkError> {
        if !self.config.firewall {
            return Ok(());
        }
        let subnet = state.subnet.ok_or(NetworkError::PoolsUsedUp)?;
        let mut ports = Vec::new();
        for Connected { endpoint, .. } in state.endpoints.values().filter(|one| one.is_up) {
            for published in &endpoint.ports {
                let container = match published.host_address {
                    IpAddr::V4(_) => Some(IpAddr::V4(endpoint.address)),
                    IpAddr::V6(_) => endpoint.address6.map(IpAddr::V6),
                };
                ports.extend(container.map(|container| Leading {
                    protocol: published.protocol,
                    host_address: published.host_address,
                    host_port: published.host_port,
                    container,
                    container_port: published.container_port,
                }));
            }
        }
        // An address before all addresses: the first rule that fits wins.
        ports.sort_by_key(|port| port.host_address.is_unspecified());
        firewall::apply(&Rules {
            bridge: &self.config.name,
            subnet: subnet.cidr(),
            subnet6: self.config.address6.map(Ipv6Net::cidr),
            masquerade: self.config.masquerade,
            between_containers: self.config.between_containers,
            nothing_else: state.forwarding_was_off,
            sees_bridged: Path::new("/proc/sys/net/bridge").exists(),
            ports,
        })
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let each step fail once")]
    fn step(&self, _: &'static str) -> Result<(), NetworkError> {
        Ok(())
    }

    /// Fails when its turn has come.
    #[cfg(test)]
    fn step(&self, action: &'static str) -> Result<(), NetworkError> {
        use std::sync::atomic::Ordering;
        let left = self.faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            usize::MAX => None,
            0 => Some(usize::MAX),
            left => Some(left - 1),
        });
        match left {
            Ok(0) => {
                Err(NetworkError::Link { action, name: "a fault".to_owned(), source: io::Error::other("injected") })
            }
            _ => Ok(()),
        }
    }
}

/// First letters of our links.
const LINK_PREFIX: &str = "bv";

/// The host's end of a container's pair: found by the container's ID alone, within the 15 bytes of a link's name.
fn host_link(container: &str) -> String {
    let digits: String = container.chars().take(12).collect();
    format!("{LINK_PREFIX}{digits}")
}

fn open_netlink() -> Result<Netlink, NetworkError> {
    Netlink::open().map_err(|source| NetworkError::Link {
        action: "open a socket for",
        name: "links".to_owned(),
        source,
    })
}

fn endpoint_id() -> Result<String, NetworkError> {
    use std::io::Read;
    let path = Path::new("/proc/sys/kernel/random/uuid");
    let mut text = String::new();
    // Two of them have more than 64 digits; none is a secret.
    for _ in 0..3 {
        std::fs::File::open(path)
            .and_then(|file| file.take(64).read_to_string(&mut text))
            .map_err(|source| NetworkError::Io { action: "read", path: path.to_owned(), source })?;
    }
    Ok(text.chars().filter(char::is_ascii_hexdigit).take(64).collect())
}

#[cfg(test)]
mod tests;
