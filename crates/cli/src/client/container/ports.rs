//! Ports as `-p` and `--expose` write them.

/// Ports that one flag may name.
const PORTS_MAX: u32 = 65_535;

/// A port that is published, or only exposed where `host` is nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Port {
    /// As `80/tcp`.
    pub(super) inside: String,
    /// Address and port of the host; either may be empty.
    pub(super) address: String,
    pub(super) host: String,
}

fn range(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|port| *port <= PORTS_MAX);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

fn protocol(text: &str) -> Option<(&str, String)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    ["tcp", "udp", "sctp"].contains(&protocol.as_str()).then_some((ports, protocol))
}

/// Reads `80`, `8000-8010/udp`.
pub(super) fn exposed(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("invalid range format for --expose: {text}");
    let (ports, protocol) = protocol(text).ok_or_else(wrong)?;
    let (first, last) = range(ports).ok_or_else(wrong)?;
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Reads `[address:][host port:]port[/protocol]`; ports may be ranges of one length.
pub(super) fn published(text: &str) -> Result<Vec<Port>, String> {
    let (rest, protocol) = protocol(text).ok_or_else(|| format!("invalid proto: {text}"))?;
    let (before, inside) = rest.rsplit_once(':').map_or((None, rest), |(before, inside)| (Some(before), inside));
    if inside.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    // An IPv6 address stands in brackets; without them its last part would be a port.
    let (address, host) = match before {
        None => ("", ""),
        Some(before) => match before.rsplit_once(':') {
            Some((address, host)) if !before.ends_with(']') => (address, host),
            _ if before.ends_with(']') => (before, ""),
            _ => ("", before),
        },
    };
    let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let (first, last) = range(inside).ok_or_else(|| format!("invalid containerPort: {inside}"))?;
    let port =
        |inside: u32, host: String| Port { inside: format!("{inside}/{protocol}"), address: address.to_owned(), host };
    if host.is_empty() {
        return Ok((first..=last).map(|inside| port(inside, String::new())).collect());
    }
    let (low, high) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
    match high - low == last - first {
        true => Ok((first..=last).map(|inside| port(inside, (low + inside - first).to_string())).collect()),
        // One port inside, and the host may choose among several.
        false if first == last => Ok(vec![port(first, host.to_owned())]),
        false => Err(format!("invalid ranges specified for container and host Ports: {inside} and {host}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let ports = published(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        ports.into_iter().map(|port| format!("{}|{}|{}", port.address, port.host, port.inside)).collect()
    }

    #[test]
    fn every_form_of_a_published_port_is_read() {
        assert_eq!(read("80"), ["||80/tcp"]);
        assert_eq!(read("8080:80"), ["|8080|80/tcp"]);
        assert_eq!(read("127.0.0.1:8080:80/udp"), ["127.0.0.1|8080|80/udp"]);
        assert_eq!(read("127.0.0.1::80"), ["127.0.0.1||80/tcp"]);
        assert_eq!(read("[::1]:8080:80"), ["::1|8080|80/tcp"]);
        assert_eq!(read("8000-8001:80-81"), ["|8000|80/tcp", "|8001|81/tcp"]);
        assert_eq!(read("8000-8010:80"), ["|8000-8010|80/tcp"]);
        assert_eq!(exposed("80-81/UDP").expect("a range"), ["80/udp", "81/udp"]);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "x",
            "80/icmp",
            "8080:",
            "1:2:3:80",
            "256.0.0.1:1:2",
            "70000",
            "9-8",
            "8000-8001:80-90",
            ":::",
            "[::1:80",
        ] {
            assert!(published(text).is_err(), "{text}");
        }
        assert!(exposed("x").is_err() && exposed("80/icmp").is_err());
    }
}
