//! What of the configuration changes while the engine runs: how registries are spoken to.

use std::collections::BTreeMap;

use baleen_registry::Client;

use crate::engine::{Engine, client_config};
use crate::error::EngineError;
use crate::events::EventType;

/// Settings that [`Engine::reload`] takes over; each as in [`EngineConfig`](crate::EngineConfig).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    /// Hosts and networks that may be spoken to without verified TLS.
    pub insecure_registries: Vec<String>,
    /// URLs that are asked for images of docker.io first.
    pub registry_mirrors: Vec<String>,
    /// Layers that are fetched at once.
    pub concurrent_downloads_max: usize,
    /// Attempts before a pull fails that has not received a byte of any layer yet.
    pub download_attempts_max: u32,
}

impl Engine {
    /// Takes over new settings for pulls that begin from now on; those under way end as they began.
    ///
    /// # Errors
    /// `InvalidParameter` for a registry or mirror that cannot be; nothing has changed then.
    pub fn reload(&self, registries: &Registries) -> Result<(), EngineError> {
        let mut config = self.config.clone();
        config.insecure_registries.clone_from(&registries.insecure_registries);
        config.registry_mirrors.clone_from(&registries.registry_mirrors);
        config.limits.download_attempts_max = registries.download_attempts_max;
        let client = Client::new(client_config(&config)?);
        *self.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner) = client;
        self.downloads.set_concurrent_max(registries.concurrent_downloads_max);
        Ok(())
    }

    /// Tells of something that concerns the whole daemon.
    pub fn daemon_event(&self, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        self.events.send(EventType::Daemon, action, id, attributes);
    }

    /// The client with the settings in force.
    pub(crate) fn registry(&self) -> Client {
        self.registry.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
