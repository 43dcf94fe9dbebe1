//! Networks, and a container's place on them.

use std::collections::BTreeMap;

use baleen_engine::{ContainerDetails, EndpointView, Network, PublishedPort, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// An entry of `/networks`, and `/networks/{id}`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkShape {
    name: &'static str,
    id: &'static str,
    created: Timestamp,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Value,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: Value,
    config_only: bool,
    containers: BTreeMap<String, Value>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

impl NetworkShape {
    /// Renders a network; a list shows no containers.
    pub(crate) fn new(network: Network, with_containers: bool) -> NetworkShape {
        let pools: Vec<Value> =
            network.pools.iter().map(|(subnet, gateway)| json!({ "Subnet": subnet, "Gateway": gateway })).collect();
        let containers = network.containers.into_iter().filter(|_| with_containers).map(|(id, name, endpoint)| {
            let with_prefix = |address: &str, prefix: u8| match address {
                "" => String::new(),
                address => format!("{address}/{prefix}"),
            };
            let shape = match endpoint {
                Some(endpoint) => json!({
                    "Name": name, "EndpointID": endpoint.id, "MacAddress": endpoint.mac,
                    "IPv4Address": with_prefix(&endpoint.address, endpoint.prefix),
                    "IPv6Address": with_prefix(&endpoint.address6, endpoint.prefix6),
                }),
                None => json!({
                    "Name": name, "EndpointID": id, "MacAddress": "", "IPv4Address": "", "IPv6Address": "",
                }),
            };
            (id, shape)
        });
        NetworkShape {
            name: network.name,
            id: network.id,
            created: Timestamp::ZERO,
            scope: "local",
            driver: network.driver,
            enable_ipv6: network.ipv6,
            ipam: json!({ "Driver": "default", "Options": null, "Config": pools }),
            internal: false,
            attachable: false,
            ingress: false,
            config_from: json!({ "Network": "" }),
            config_only: false,
            containers: containers.collect(),
            options: network.options,
            labels: BTreeMap::new(),
        }
    }
}

/// `Networks` of a container: the one that its mode names, with its addresses while it runs.
pub(super) fn networks(details: &ContainerDetails) -> Value {
    let Some((name, id)) = &details.network else { return json!({}) };
    let endpoint = Shown::of(details.endpoint.as_ref());
    json!({ *name: {
        "IPAMConfig": null, "Links": null, "Aliases": null, "MacAddress": endpoint.mac, "DriverOpts": null,
        "NetworkID": id, "EndpointID": endpoint.id, "Gateway": endpoint.gateway, "IPAddress": endpoint.address,
        "IPPrefixLen": endpoint.prefix, "IPv6Gateway": endpoint.gateway6, "GlobalIPv6Address": endpoint.address6,
        "GlobalIPv6PrefixLen": endpoint.prefix6, "DNSNames": null,
    } })
}

/// `NetworkSettings` of an inspect.
pub(super) fn network_settings(details: &ContainerDetails) -> Value {
    let sandbox = if details.state.status.is_running() { details.id.as_str() } else { "" };
    let key = if details.endpoint.is_some() { format!("/proc/{}/ns/net", details.state.pid) } else { String::new() };
    let endpoint = Shown::of(details.endpoint.as_ref());
    json!({
        "Bridge": "", "SandboxID": sandbox, "SandboxKey": key, "Ports": port_map(details),
        "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null, "EndpointID": endpoint.id, "Gateway": endpoint.gateway,
        "GlobalIPv6Address": endpoint.address6, "GlobalIPv6PrefixLen": endpoint.prefix6,
        "IPAddress": endpoint.address, "IPPrefixLen": endpoint.prefix, "IPv6Gateway": endpoint.gateway6,
        "MacAddress": endpoint.mac, "Networks": networks(details),
    })
}

/// An endpoint, or what is shown where there is none.
#[derive(Default)]
struct Shown<'a> {
    id: &'a str,
    address: &'a str,
    prefix: u8,
    gateway: &'a str,
    address6: &'a str,
    prefix6: u8,
    gateway6: &'a str,
    mac: &'a str,
}

impl<'a> Shown<'a> {
    fn of(endpoint: Option<&'a EndpointView>) -> Self {
        let Some(endpoint) = endpoint else { return Shown::default() };
        Shown {
            id: &endpoint.id,
            address: &endpoint.address,
            prefix: endpoint.prefix,
            gateway: &endpoint.gateway,
            address6: &endpoint.address6,
            prefix6: endpoint.prefix6,
            gateway6: &endpoint.gateway6,
            mac: &endpoint.mac,
        }
    }
}

/// Ports that the container exposes and does not publish, one by one: `80` and `tcp`.
fn only_exposed(details: &ContainerDetails) -> Vec<(u16, String)> {
    let Some(endpoint) = &details.endpoint else { return Vec::new() };
    let mut exposed = Vec::new();
    for key in details.config.exposed_ports.keys() {
        let (ports, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else { continue };
        for port in first..=last {
            let is_published = |one: &PublishedPort| one.container_port == port && one.protocol == protocol;
            if !endpoint.ports.iter().any(is_published) {
                exposed.push((port, protocol.to_owned()));
            }
        }
    }
    exposed
}

/// `Ports` of an inspect; empty while it does not run.
fn port_map(details: &ContainerDetails) -> Value {
    let mut map = Map::new();
    for (port, protocol) in only_exposed(details) {
        map.insert(format!("{port}/{protocol}"), Value::Null);
    }
    for port in details.endpoint.iter().flat_map(|endpoint| &endpoint.ports) {
        let key = format!("{}/{}", port.container_port, port.protocol);
        let entry = map.entry(key).or_insert_with(|| json!([]));
        if let Value::Array(list) = entry {
            list.push(json!({ "HostIp": port.host_address, "HostPort": port.host_port.to_string() }));
        }
    }
    Value::Object(map)
}

/// `Ports` of a list entry.
pub(super) fn port_list(details: &ContainerDetails) -> Vec<Value> {
    let exposed = only_exposed(details);
    let exposed = exposed.iter().map(|(port, protocol)| json!({ "PrivatePort": port, "Type": protocol }));
    let published = details.endpoint.iter().flat_map(|endpoint| &endpoint.ports).map(|port| {
        json!({
            "IP": port.host_address, "PrivatePort": port.container_port, "PublicPort": port.host_port, "Type": port.protocol,
        })
    });
    published.chain(exposed).collect()
}
