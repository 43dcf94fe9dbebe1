//! Networks.

use serde_json::{Map, Value as Json, json};

use super::container::{self, filters};
use super::failure::Failure;
use super::flags::Form::{Bool, List, Number, Text};
use super::flags::{Command, Completes, MANY, Parsed, long, short};
use super::http::{Request, name};
use super::text::format::{self, Column, column, short_id};
use super::text::template::LABELS;
use super::text::units;
use super::text::value::Value;
use super::{Client, Ending, each, inspect, output, prune};

/// The commands on networks.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        names: &["network ls", "network list"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "List networks",
        flags: &[&[
            short('f', "filter", List("filter"), "Only those that match, as driver=bridge"),
            long("format", Text("string"), "table, json, a template, or 'table TEMPLATE'"),
            long("no-trunc", Bool, "Do not shorten anything"),
            short('q', "quiet", Bool, "Only their ids"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: ls,
    },
    Command {
        names: &["network create"],
        arguments: "[OPTIONS] NETWORK",
        count: (1, 1),
        about: "Create a network",
        flags: &[&[
            long("attachable", Bool, "Has no effect without a swarm"),
            long("aux-address", List("map"), "An address that no container gets, as name=address"),
            short('d', "driver", Text("string"), "Its driver (default bridge)"),
            long("gateway", List("strings"), "Its gateway"),
            long("internal", Bool, "Without a way to other networks"),
            long("ip-range", List("strings"), "The addresses that containers get"),
            long("ipam-driver", Text("string"), "What gives addresses out (default default)"),
            long("ipam-opt", List("map"), "An option of that, as key=value"),
            long("ipv4", Bool, "With IPv4 (default true)"),
            long("ipv6", Bool, "With IPv6"),
            long("label", List("list"), "A label, as key=value"),
            short('o', "opt", List("map"), "An option of the driver, as key=value"),
            long("subnet", List("strings"), "Its addresses, as 172.30.0.0/24"),
        ]],
        mixed: true,
        completes: Completes::Nothing,
        run: create,
    },
    Command {
        names: &["network inspect"],
        arguments: "[OPTIONS] NETWORK [NETWORK...]",
        count: (1, MANY),
        about: "Show everything about networks",
        flags: &[&[inspect::FORMAT, short('v', "verbose", Bool, "Has no effect without a swarm")]],
        mixed: true,
        completes: Completes::Networks,
        run: inspect::network,
    },
    Command {
        names: &["network rm", "network remove"],
        arguments: "[OPTIONS] NETWORK [NETWORK...]",
        count: (1, MANY),
        about: "Remove networks",
        flags: &[&[short('f', "force", Bool, "No failure if there is none of this name")]],
        mixed: true,
        completes: Completes::Networks,
        run: rm,
    },
    Command {
        names: &["network connect"],
        arguments: "[OPTIONS] NETWORK CONTAINER",
        count: (2, 2),
        about: "Connect a container to a network",
        flags: &[&[
            long("alias", List("strings"), "A further name of the container in the network"),
            long("driver-opt", List("strings"), "An option of the driver, as key=value"),
            long("gw-priority", Number, "The network with the highest gives the default route"),
            long("ip", Text("string"), "Its IPv4 address"),
            long("ip6", Text("string"), "Its IPv6 address"),
            long("link", List("list"), "A container that it can reach by name"),
            long("link-local-ip", List("strings"), "A link-local address"),
        ]],
        mixed: true,
        completes: Completes::Networks,
        run: connect,
    },
    Command {
        names: &["network disconnect"],
        arguments: "[OPTIONS] NETWORK CONTAINER",
        count: (2, 2),
        about: "Disconnect a container from a network",
        flags: &[&[short('f', "force", Bool, "Although the container is gone or hangs")]],
        mixed: true,
        completes: Completes::Networks,
        run: disconnect,
    },
    Command {
        names: &["network prune"],
        arguments: "[OPTIONS]",
        count: (0, 0),
        about: "Remove networks that no container uses",
        flags: &[prune::FLAGS],
        mixed: true,
        completes: Completes::Nothing,
        run: prune::networks,
    },
];

const COLUMNS: &[Column] = &[
    column("ID", "NETWORK ID"),
    column("Name", "NAME"),
    column("Driver", "DRIVER"),
    column("Scope", "SCOPE"),
    column("IPv4", "IPV4"),
    column("IPv6", "IPV6"),
    column("Internal", "INTERNAL"),
    column("Labels", "LABELS"),
    column("CreatedAt", "CREATED AT"),
];

fn ls(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let listed = client.document(Request::get("/networks").query_maybe("filters", filters(parsed.list("filter"))?))?;
    let mut networks = listed.items().to_vec();
    networks.sort_by(|a, b| container::natural(a.text_at(&["Name"]), b.text_at(&["Name"])));
    let full = parsed.is("no-trunc");
    let rows: Vec<Value> = networks.iter().map(|network| row(network, full)).collect();
    let format = parsed.text("format");
    if parsed.is("quiet") && format.is_none() {
        for row in &rows {
            output::print(&format!("{}\n", row.text_at(&["ID"])))?;
        }
        return Ok(Ending::SUCCESS);
    }
    format::print(format, COLUMNS, &["ID", "Name", "Driver", "Scope"], &rows)?;
    Ok(Ending::SUCCESS)
}

fn row(network: &Value, full: bool) -> Value {
    let id = network.text_at(&["Id"]);
    let labels = network.at(&["Labels"]).members();
    let label_text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
    // Daemons that do not say so have nothing but IPv4.
    let ipv4 = network.get("EnableIPv4").is_none_or(Value::is_true);
    let created = units::parse_time(network.text_at(&["Created"])).map(|(seconds, _)| units::go_time(seconds));
    let fields: [(&str, String); 9] = [
        ("CreatedAt", created.unwrap_or_default()),
        ("Driver", network.text_at(&["Driver"]).to_owned()),
        ("ID", if full { id.to_owned() } else { short_id(id) }),
        ("IPv4", ipv4.to_string()),
        ("IPv6", network.at(&["EnableIPv6"]).is_true().to_string()),
        ("Internal", network.at(&["Internal"]).is_true().to_string()),
        ("Labels", label_text.join(",")),
        ("Name", network.text_at(&["Name"]).to_owned()),
        ("Scope", network.text_at(&["Scope"]).to_owned()),
    ];
    let mut members: Vec<(String, Value)> =
        fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    members.push((LABELS.to_owned(), network.at(&["Labels"]).clone()));
    Value::Object(members)
}

fn create(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut body = json!({
        "Name": parsed.arguments[0],
        "Driver": parsed.text("driver").unwrap_or("bridge"),
        "Internal": parsed.is("internal"),
        "Attachable": parsed.is("attachable"),
        "EnableIPv6": parsed.is("ipv6"),
        "Options": container::pairs(parsed, "opt")?,
        "Labels": container::labels(parsed.list("label")),
        "IPAM": {
            "Driver": parsed.text("ipam-driver").unwrap_or("default"),
            "Options": container::pairs(parsed, "ipam-opt")?,
            "Config": pools(parsed)?,
        },
    });
    if let Some(ipv4) = parsed.boolean("ipv4") {
        body["EnableIPv4"] = ipv4.into();
    }
    let made = client.document(Request::post("/networks/create").json(&body))?;
    let warning = made.text_at(&["Warning"]);
    if !warning.is_empty() {
        output::tell(&format!("WARNING: {warning}"));
    }
    output::print(&format!("{}\n", made.text_at(&["Id"])))?;
    Ok(Ending::SUCCESS)
}

/// Whether an address, or a range of them, lies within a subnet.
fn within(subnet: &str, address: &str) -> bool {
    let bits = |text: &str| -> Option<(u128, u32, bool)> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let (bits, most, four) = match address.parse().ok()? {
            std::net::IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32, true),
            std::net::IpAddr::V6(address) => (address.to_bits(), 128, false),
        };
        let length = length.map_or(Some(most), |length| length.parse().ok()).filter(|length| *length <= most)?;
        Some((bits, length, four))
    };
    match (bits(subnet), bits(address)) {
        (Some((subnet, length, four)), Some((address, _, of_four))) => {
            four == of_four && (length == 0 || (subnet ^ address) >> (128 - length) == 0)
        }
        _ => false,
    }
}

/// Each subnet with its range, gateway and reserved addresses.
fn pools(parsed: &Parsed) -> Result<Vec<Json>, Failure> {
    let subnets = parsed.list("subnet");
    let mut pools: Vec<Map<String, Json>> =
        subnets.iter().map(|subnet| Map::from_iter([("Subnet".to_owned(), subnet.as_str().into())])).collect();
    let mut place = |flag: &str, address: &str, put: &mut dyn FnMut(&mut Map<String, Json>)| {
        let index = subnets.iter().position(|subnet| within(subnet, address));
        match index {
            Some(index) => {
                put(&mut pools[index]);
                Ok(())
            }
            None => Err(Failure::refused(format!("no matching subnet for {flag} {address}"))),
        }
    };
    for (flag, field) in [("ip-range", "IPRange"), ("gateway", "Gateway")] {
        for address in parsed.list(flag) {
            place(flag, address, &mut |pool| drop(pool.insert(field.to_owned(), address.as_str().into())))?;
        }
    }
    for (key, address) in container::pairs(parsed, "aux-address")? {
        let text = address.as_str().unwrap_or_default().to_owned();
        place("aux-address", &text, &mut |pool| {
            pool.entry("AuxiliaryAddresses").or_insert_with(|| json!({}))[&key] = text.as_str().into();
        })?;
    }
    Ok(pools.into_iter().map(Json::from).collect())
}

fn rm(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let force = parsed.is("force");
    each(&parsed.arguments, |network| {
        match client.command(Request::new("DELETE", format!("/networks/{}", name(network)))) {
            Err(failure) if force && failure.is_not_found() => {
                output::tell(&failure.to_string());
                Ok(())
            }
            ended => ended,
        }
    })
}

fn connect(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let mut endpoint = Map::new();
    let mut addresses = Map::new();
    for (flag, field) in [("ip", "IPv4Address"), ("ip6", "IPv6Address")] {
        if let Some(address) = parsed.text(flag) {
            addresses.insert(field.into(), address.into());
        }
    }
    if !parsed.list("link-local-ip").is_empty() {
        addresses.insert("LinkLocalIPs".into(), parsed.list("link-local-ip").into());
    }
    if !addresses.is_empty() {
        endpoint.insert("IPAMConfig".into(), addresses.into());
    }
    for (flag, field) in [("alias", "Aliases"), ("link", "Links")] {
        if !parsed.list(flag).is_empty() {
            endpoint.insert(field.into(), parsed.list(flag).into());
        }
    }
    let options = container::pairs(parsed, "driver-opt")?;
    if !options.is_empty() {
        endpoint.insert("DriverOpts".into(), options.into());
    }
    if let Some(priority) = parsed.number("gw-priority") {
        endpoint.insert("GwPriority".into(), priority.into());
    }
    let body = json!({ "Container": parsed.arguments[1], "EndpointConfig": endpoint });
    client.command(Request::post(format!("/networks/{}/connect", name(&parsed.arguments[0]))).json(&body))?;
    Ok(Ending::SUCCESS)
}

fn disconnect(client: &Client, parsed: &Parsed) -> Result<Ending, Failure> {
    let body = json!({ "Container": parsed.arguments[1], "Force": parsed.is("force") });
    client.command(Request::post(format!("/networks/{}/disconnect", name(&parsed.arguments[0]))).json(&body))?;
    Ok(Ending::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_put_into_the_subnet_that_holds_them() {
        for (subnet, address, holds) in [
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.0.0/16", "10.1.2.0/24", true),
            ("10.1.0.0/16", "10.2.0.1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("fd00::/64", "fd00::1", true),
            ("fd00::/64", "fd01::1", false),
            ("::/0", "1.2.3.4", false),
            ("x", "1.2.3.4", false),
        ] {
            assert_eq!(within(subnet, address), holds, "{address} in {subnet}");
        }
    }
}
