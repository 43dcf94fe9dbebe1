//! From `PortBindings`, `ExposedPorts` and `PublishAllPorts` to the ports that are published.

use std::collections::BTreeSet;

use baleen_network::{PortRequest, parse_container_port};

use crate::container::{ContainerConfig, HostConfig, StoredContainer};
use crate::error::EngineError;

/// Ports that one container may publish or expose.
const PORTS_MAX: usize = 4096;

/// Refuses what is no port, at create.
///
/// # Errors
/// `InvalidParameter` in Docker's words.
pub(crate) fn check_ports(config: &ContainerConfig, host: &HostConfig) -> Result<(), EngineError> {
    for port in config.exposed_ports.keys() {
        parse_container_port(port).map_err(|error| EngineError::invalid(error.to_string()))?;
    }
    wanted(config, host).map(drop)
}

/// What a container that starts is to publish.
pub(super) fn requests(stored: &StoredContainer) -> Result<Vec<PortRequest>, EngineError> {
    wanted(&stored.config, &stored.host_config)
}

fn wanted(config: &ContainerConfig, host: &HostConfig) -> Result<Vec<PortRequest>, EngineError> {
    let invalid = |error: baleen_network::NetworkError| EngineError::invalid(error.to_string());
    let mut requests = Vec::new();
    let mut bound = BTreeSet::new();
    for (key, bindings) in &host.port_bindings {
        for port in parse_container_port(key).map_err(invalid)? {
            for binding in bindings.iter().flatten() {
                requests.push(PortRequest::new(port, &binding.host_ip, &binding.host_port).map_err(invalid)?);
                bound.insert(port);
            }
            if bindings.as_ref().is_none_or(Vec::is_empty) {
                requests.push(PortRequest::new(port, "", "").map_err(invalid)?);
                bound.insert(port);
            }
        }
    }
    if host.publish_all_ports {
        for key in config.exposed_ports.keys() {
            for port in parse_container_port(key).map_err(invalid)? {
                if bound.insert(port) {
                    requests.push(PortRequest::new(port, "", "").map_err(invalid)?);
                }
            }
        }
    }
    if requests.len() > PORTS_MAX {
        return Err(EngineError::invalid(format!("a container may publish at most {PORTS_MAX} ports")));
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::PortBinding;

    #[test]
    fn every_exposed_port_is_published_once_where_all_are_asked_for() {
        let mut config = ContainerConfig::default();
        for port in ["80/tcp", "53/udp", "9000-9002/tcp"] {
            config.exposed_ports.insert(port.to_owned(), Default::default());
        }
        let binding = PortBinding { host_ip: "127.0.0.1".to_owned(), host_port: "8080".to_owned() };
        let mut host = HostConfig { publish_all_ports: true, ..HostConfig::default() };
        host.port_bindings.insert("80/tcp".to_owned(), Some(vec![binding]));
        let wanted = wanted(&config, &host).unwrap();
        assert_eq!(wanted.len(), 5);
        assert_eq!(wanted.iter().filter(|port| port.container_port == 80).count(), 1);
        host.port_bindings.insert("x/tcp".to_owned(), None);
        assert!(check_ports(&config, &host).is_err());
    }
}
