//! `NetworkMode`: what it may be, and what goes with it.

use crate::container::{CreateRequest, StoredContainer, is_default};
use crate::error::EngineError;

/// How a container is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Bridge,
    Host,
    None,
    /// The network of another one, by its ID.
    Container(String),
}

impl Mode {
    /// That of a stored container, whose mode was checked.
    pub(crate) fn of(stored: &StoredContainer) -> Self {
        Self::read(&stored.host_config.network_mode, stored.config.network_disabled).unwrap_or(Self::None)
    }

    fn read(mode: &str, disabled: bool) -> Option<Self> {
        match mode {
            _ if disabled => Some(Self::None),
            "" | "default" | "bridge" => Some(Self::Bridge),
            "host" => Some(Self::Host),
            "none" => Some(Self::None),
            other => other.strip_prefix("container:").map(|other| Self::Container(other.to_owned())),
        }
    }

    /// The network that it is on.
    pub(crate) fn network_name(&self) -> Option<&'static str> {
        match self {
            Self::Bridge => Some("bridge"),
            Self::Host => Some("host"),
            Self::None => Some("none"),
            Self::Container(_) => None,
        }
    }
}

/// Checks what a request asks of the network, and takes over a hardware address that an endpoint names.
///
/// # Errors
/// `InvalidParameter` in Docker's words; `NetworkMode` for a network that cannot be had yet.
pub(crate) fn check(request: &mut CreateRequest) -> Result<(), EngineError> {
    let asked = request.host_config.network_mode.clone();
    let Some(mode) = Mode::read(&asked, request.config.network_disabled) else {
        return Err(EngineError::NetworkMode { mode: asked });
    };
    let host = &request.host_config;
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let conflict = |what: &str| Err(EngineError::invalid(format!("conflicting options: {what}")));
    match &mode {
        Mode::Container(other) => {
            if other.is_empty() {
                return Err(EngineError::invalid("invalid container format container:<name|id>"));
            }
            if !request.config.hostname.is_empty() {
                return conflict("hostname and the network mode");
            }
            if some(&host.dns) {
                return conflict("dns and the network mode");
            }
            if some(&host.extra_hosts) {
                return conflict("custom host-to-IP mapping and the network mode");
            }
            if !request.config.mac_address.is_empty() {
                return conflict("mac-address and the network mode");
            }
            if !host.port_bindings.is_empty() || host.publish_all_ports {
                return conflict("port publishing and the container type network mode");
            }
            if !request.config.exposed_ports.is_empty() {
                return conflict("port exposing and the container type network mode");
            }
        }
        Mode::Host if !request.config.hostname.is_empty() && host.uts_mode == "host" => {
            return conflict("hostname and the UTS mode");
        }
        _ => {}
    }
    for (network, settings) in &request.endpoints {
        let same = network == &asked || matches!((network.as_str(), &mode), ("default" | "bridge", Mode::Bridge));
        if !same {
            return Err(EngineError::not_implemented(format!("NetworkingConfig.EndpointsConfig \"{network}\"")));
        }
        for (key, value) in settings.as_object().into_iter().flatten().filter(|(_, value)| !is_default(value)) {
            match key.as_str() {
                "MacAddress" if mode == Mode::Bridge => {
                    request.config.mac_address = value.as_str().unwrap_or_default().to_owned();
                }
                "IPAMConfig" => {
                    return Err(EngineError::invalid(
                        "user specified IP address is supported on user defined networks only",
                    ));
                }
                "Aliases" => {
                    return Err(EngineError::invalid(
                        "network-scoped alias is supported only for containers in user defined networks",
                    ));
                }
                // What the engine fills in and old clients send back.
                "NetworkID" | "EndpointID" | "Gateway" | "IPAddress" | "IPPrefixLen" | "DNSNames" => {}
                _ => {
                    return Err(EngineError::not_implemented(format!(
                        "NetworkingConfig.EndpointsConfig \"{network}\" with {key}"
                    )));
                }
            }
        }
    }
    mac(&request.config.mac_address).map(drop)
}

/// Reads a hardware address; empty is none.
///
/// # Errors
/// `InvalidParameter` in Docker's words.
pub(crate) fn mac(text: &str) -> Result<Option<[u8; 6]>, EngineError> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || EngineError::invalid(format!("{text} is not a valid mac address"));
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let mut mac = [0; 6];
    if parts.len() != mac.len() {
        return Err(invalid());
    }
    for (byte, part) in mac.iter_mut().zip(parts) {
        let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| is_hex).ok_or_else(invalid)?;
    }
    // A group's address is nobody's own.
    if mac[0] & 1 == 1 || mac == [0; 6] { Err(invalid()) } else { Ok(Some(mac)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut CreateRequest)) -> Result<CreateRequest, EngineError> {
        let mut request = CreateRequest::default();
        change(&mut request);
        check(&mut request)?;
        Ok(request)
    }

    #[test]
    fn hardware_addresses_are_read() {
        assert_eq!(mac("02:42:aC:11:00:02").unwrap(), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        assert_eq!(mac("").unwrap(), None);
        for bad in [
            "02:42",
            "02:42:ac:11:00:0g",
            "2:42:ac:11:0:2",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "+2:42:ac:11:00:02",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_bridge_is_meant_by_three_names_and_other_networks_are_refused_by_theirs() {
        for name in ["", "default", "bridge"] {
            assert!(checked(|request| request.host_config.network_mode = name.to_owned()).is_ok());
        }
        let error = checked(|request| request.host_config.network_mode = "mynet".to_owned()).unwrap_err();
        assert!(error.to_string().starts_with("network mode \"mynet\" is not implemented yet"), "{error}");
    }

    #[test]
    fn what_cannot_go_together_is_refused_in_dockers_words() {
        let error = checked(|request| {
            request.host_config.network_mode = "container:x".to_owned();
            request.config.hostname = "own".to_owned();
        });
        assert_eq!(error.unwrap_err().to_string(), "conflicting options: hostname and the network mode");
        let error = checked(|request| {
            let settings = serde_json::json!({ "IPAMConfig": { "IPv4Address": "172.17.0.9" } });
            request.endpoints.insert("bridge".to_owned(), settings);
        });
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "user specified IP address is supported on user defined networks only");
        let request = checked(|request| {
            let settings = serde_json::json!({ "MacAddress": "02:42:ac:11:00:09", "Aliases": [] });
            request.endpoints.insert("default".to_owned(), settings);
        });
        assert_eq!(request.unwrap().config.mac_address, "02:42:ac:11:00:09");
    }
}
