//! Links, addresses and routes: the bridge, and a pair of links for each container.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::address::Ipv4Net;
use crate::endpoint::Endpoint;
use crate::error::NetworkError;
use crate::netlink::{
    CREATE, DUMP, EXCLUSIVE, Message, Netlink, REPLACE, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE,
    RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_SETLINK, attributes, link_info, put,
};
use crate::sysctl;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// An address that is used at once: no other host on this network can have it.
const IFA_F_NODAD: u32 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// What every network namespace has, down when it is made.
const LOOPBACK: &str = "lo";
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_MODE: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;

/// Name of a container's link, inside.
pub(crate) const INSIDE: &str = "eth0";

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) master: Option<u32>,
    pub(crate) kind: String,
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> NetworkError {
    let name = name.to_owned();
    move |source| NetworkError::Link { action, name, source }
}

/// All links of this namespace.
pub(crate) fn links(netlink: &mut Netlink) -> Result<Vec<Link>, NetworkError> {
    let mut links = Vec::new();
    let mut visit = |kind: u16, body: &[u8]| {
        if kind == RTM_NEWLINK {
            links.extend(read_link(body));
        }
    };
    netlink.ask(Message::new(RTM_GETLINK, DUMP, &link_info(0, 0, 0)), &mut visit).map_err(failed("list", "links"))?;
    Ok(links)
}

/// One link, by its name.
pub(crate) fn link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetworkError> {
    let mut found = None;
    let message = Message::new(RTM_GETLINK, 0, &link_info(0, 0, 0)).text(IFLA_IFNAME, name);
    let asked = netlink.ask(message, &mut |_, body| found = read_link(body));
    match asked {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        other => other.map(|()| found).map_err(failed("look up", name)),
    }
}

fn read_link(body: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let mut link = Link { index, name: String::new(), master: None, kind: String::new() };
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    attributes(body.get(16..)?, |kind, value| match kind {
        IFLA_IFNAME => link.name = text(value),
        IFLA_MASTER => link.master = value.try_into().ok().map(u32::from_ne_bytes),
        IFLA_LINKINFO => attributes(value, |kind, value| {
            if kind == IFLA_INFO_KIND {
                link.kind = text(value);
            }
        }),
        _ => {}
    });
    Some(link)
}

/// Makes a bridge that is down, with a hardware address that does not change as ports come and go.
pub(crate) fn create_bridge(netlink: &mut Netlink, name: &str, mac: [u8; 6], mtu: u32) -> Result<(), NetworkError> {
    let mut info = Vec::new();
    put(&mut info, IFLA_INFO_KIND, b"bridge");
    let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link_info(0, 0, 0))
        .text(IFLA_IFNAME, name)
        .attribute(IFLA_ADDRESS, &mac)
        .number(IFLA_MTU, mtu)
        .attribute(IFLA_LINKINFO, &info);
    netlink.change(message).map_err(failed("create the bridge", name))
}

/// Makes a pair of links: `host` here, a port of the bridge `master`, and `eth0` in the namespace `inside`; both are down.
pub(crate) fn create_pair(
    netlink: &mut Netlink,
    host: &str,
    master: u32,
    inside: BorrowedFd<'_>,
    mac: [u8; 6],
    mtu: u32,
) -> Result<(), NetworkError> {
    let mut peer = link_info(0, 0, 0).to_vec();
    put(&mut peer, IFLA_IFNAME, format!("{INSIDE}\0").as_bytes());
    put(&mut peer, IFLA_ADDRESS, &mac);
    put(&mut peer, IFLA_MTU, &mtu.to_ne_bytes());
    put(&mut peer, IFLA_NET_NS_FD, &inside.as_raw_fd().to_ne_bytes());
    let mut data = Vec::new();
    put(&mut data, VETH_INFO_PEER, &peer);
    let mut info = Vec::new();
    put(&mut info, IFLA_INFO_KIND, b"veth");
    put(&mut info, IFLA_INFO_DATA, &data);
    let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &link_info(0, 0, 0))
        .text(IFLA_IFNAME, host)
        .number(IFLA_MTU, mtu)
        .number(IFLA_MASTER, master)
        .attribute(IFLA_LINKINFO, &info);
    netlink.change(message).map_err(failed("create the pair of links", host))
}

/// Lets a port of a bridge send back what came from it: a container that speaks to its own published port is led there in the
/// bridge itself, where the host's rules see bridged frames.
pub(crate) fn set_hairpin(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), NetworkError> {
    let mut fixed = link_info(index, 0, 0);
    fixed[0] = AF_BRIDGE;
    let mut info = Vec::new();
    put(&mut info, IFLA_BRPORT_MODE, &[1]);
    let message = Message::new(RTM_SETLINK, 0, &fixed).attribute(IFLA_PROTINFO | NLA_F_NESTED, &info);
    netlink.change(message).map_err(failed("set the mode of", name))
}

/// Brings a link up.
pub(crate) fn set_up(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), NetworkError> {
    netlink.change(Message::new(RTM_NEWLINK, 0, &link_info(index, IFF_UP, IFF_UP))).map_err(failed("bring up", name))
}

/// Removes a link; true if it was there.
pub(crate) fn delete(netlink: &mut Netlink, name: &str) -> Result<bool, NetworkError> {
    match netlink.change(Message::new(RTM_DELLINK, 0, &link_info(0, 0, 0)).text(IFLA_IFNAME, name)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
        Err(error) => Err(failed("remove", name)(error)),
    }
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

/// Gives a link an address; one that it has already stays.
pub(crate) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    name: &str,
    address: IpAddr,
    prefix: u8,
) -> Result<(), NetworkError> {
    let (family, bytes) = octets(address);
    let mut fixed = [family, prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message =
        Message::new(RTM_NEWADDR, CREATE | REPLACE, &fixed).attribute(IFA_LOCAL, &bytes).attribute(IFA_ADDRESS, &bytes);
    message = match address {
        IpAddr::V4(address) => message.attribute(IFA_BROADCAST, &Ipv4Net { address, prefix }.broadcast().octets()),
        IpAddr::V6(_) => message.number(IFA_FLAGS, IFA_F_NODAD),
    };
    netlink.change(message).map_err(failed("give an address to", name))
}

fn add_default_route(netlink: &mut Netlink, index: u32, gateway: IpAddr) -> Result<(), NetworkError> {
    let (family, bytes) = octets(gateway);
    let fixed = [family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    let message =
        Message::new(RTM_NEWROUTE, CREATE | EXCLUSIVE, &fixed).attribute(RTA_GATEWAY, &bytes).number(RTA_OIF, index);
    netlink.change(message).map_err(failed("set the default route of", INSIDE))
}

/// IPv4 networks that this namespace has addresses in or routes to, but the default route.
pub(crate) fn used_networks(netlink: &mut Netlink, but: Option<u32>) -> Result<Vec<Ipv4Net>, NetworkError> {
    let mut used = Vec::new();
    let net = |value: &[u8], prefix: u8| {
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?);
        (prefix > 0 && prefix <= 32).then_some(Ipv4Net { address, prefix })
    };
    let mut addresses = |_: u16, body: &[u8]| {
        let (Some(fixed), Some(rest)) = (body.get(..8), body.get(8..)) else { return };
        let index = u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        attributes(rest, |kind, value| {
            if kind == IFA_LOCAL && Some(index) != but {
                used.extend(net(value, fixed[1]));
            }
        });
    };
    let all = Message::new(RTM_GETADDR, DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    netlink.ask(all, &mut addresses).map_err(failed("list", "addresses"))?;
    let mut routes = |_: u16, body: &[u8]| {
        let (Some(fixed), Some(rest)) = (body.get(..12), body.get(12..)) else { return };
        let (mut destination, mut index) = (None, None);
        attributes(rest, |kind, value| match kind {
            RTA_DST => destination = net(value, fixed[1]),
            RTA_OIF => index = value.try_into().ok().map(u32::from_ne_bytes),
            _ => {}
        });
        if index != but || but.is_none() {
            used.extend(destination);
        }
    };
    let all = Message::new(RTM_GETROUTE, DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    netlink.ask(all, &mut routes).map_err(failed("list", "routes"))?;
    Ok(used)
}

/// The first IPv4 address of a link.
pub(crate) fn address_of(netlink: &mut Netlink, index: u32) -> Result<Option<Ipv4Net>, NetworkError> {
    let mut found = None;
    let mut visit = |_: u16, body: &[u8]| {
        let (Some(fixed), Some(rest)) = (body.get(..8), body.get(8..)) else { return };
        let of = u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        attributes(rest, |kind, value| {
            if kind == IFA_LOCAL
                && of == index
                && let Ok(octets) = <[u8; 4]>::try_from(value)
                && found.is_none()
            {
                found = Some(Ipv4Net { address: octets.into(), prefix: fixed[1] });
            }
        });
    };
    let all = Message::new(RTM_GETADDR, DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    netlink.ask(all, &mut visit).map_err(failed("list", "addresses"))?;
    Ok(found)
}

/// Brings up the loopback of a container's namespace: what its programs say to each other needs no other network.
///
/// # Errors
/// `Link`.
pub fn bring_up_loopback(inside: BorrowedFd<'_>, container: &str) -> Result<(), NetworkError> {
    within(inside, container, || {
        let mut netlink = Netlink::open().map_err(failed("open a socket in", container))?;
        let missing = || failed("look up", LOOPBACK)(io::Error::from(io::ErrorKind::NotFound));
        let index = link(&mut netlink, LOOPBACK)?.ok_or_else(missing)?.index;
        set_up(&mut netlink, index, LOOPBACK)
    })
}

/// Configures the container's end.
pub(crate) fn configure_inside(inside: BorrowedFd<'_>, endpoint: &Endpoint) -> Result<(), NetworkError> {
    within(inside, &endpoint.container, || configure(endpoint))
}

/// Works on a thread that enters a container's namespace and ends there.
fn within(
    inside: BorrowedFd<'_>,
    container: &str,
    work: impl FnOnce() -> Result<(), NetworkError> + Send,
) -> Result<(), NetworkError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let spawned = thread.spawn_scoped(scope, || {
            move_into_link_name_space(inside.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| failed("enter the network namespace of", container)(error.into()))?;
            work()
        });
        let thread = spawned.map_err(failed("start a thread for", container))?;
        let panicked = || failed("configure the network of", container)(io::Error::other("the thread panicked"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

fn configure(endpoint: &Endpoint) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open().map_err(failed("open a socket in", &endpoint.container))?;
    // Before the link is up: an interface must not get an address by itself (threats N2, N3).
    sysctl::write_if_there(&format!("ipv6/conf/{INSIDE}/accept_ra"), "0")?;
    let off = if endpoint.address6.is_some() { "0" } else { "1" };
    sysctl::write_if_there(&format!("ipv6/conf/{INSIDE}/disable_ipv6"), off)?;
    let missing = || failed("look up", INSIDE)(io::Error::from(io::ErrorKind::NotFound));
    let index = link(&mut netlink, INSIDE)?.ok_or_else(missing)?.index;
    add_address(&mut netlink, index, INSIDE, endpoint.address.into(), endpoint.prefix)?;
    if let Some(address) = endpoint.address6 {
        add_address(&mut netlink, index, INSIDE, address.into(), endpoint.prefix6)?;
    }
    set_up(&mut netlink, index, INSIDE)?;
    add_default_route(&mut netlink, index, endpoint.gateway.into())?;
    if let Some(gateway) = endpoint.gateway6 {
        add_default_route(&mut netlink, index, gateway.into())?;
    }
    Ok(())
}
