//! A container as it lies on the disk: `config.json` in its folder, written once by `create`.
//!
//! C1  The name and the desired state are not in it: they change, so they are records of the store's log.
//! C2  A version that this build does not know is refused, never guessed at.

use baleen_oci::ImageId;
use baleen_store::{LayerKey, Store};
use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;
use super::host_config::HostConfig;
use super::view::MountPoint;
use crate::error::EngineError;
use crate::time::Timestamp;

/// Name of the file.
pub(crate) const CONFIG_NAME: &str = "config.json";
/// Longest that is read.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
const VERSION: u32 = 1;

/// Everything about a container that never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredContainer {
    version: u32,
    pub(crate) id: String,
    pub(crate) created: Timestamp,
    pub(crate) image_id: ImageId,
    /// The program and its arguments, after the merge with the image.
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) platform: String,
    pub(crate) config: ContainerConfig,
    pub(crate) host_config: HostConfig,
    pub(crate) mounts: Vec<MountPoint>,
    /// Keys of the image's layers, bottom first, as names of their folders.
    pub(crate) layers: Vec<String>,
}

impl StoredContainer {
    #[expect(clippy::too_many_arguments, reason = "a plain record")]
    pub(crate) fn new(
        id: String,
        image_id: ImageId,
        layers: &[LayerKey],
        command: &[String],
        platform: String,
        config: ContainerConfig,
        host_config: HostConfig,
        mounts: Vec<MountPoint>,
    ) -> Self {
        let (path, args) = match command.split_first() {
            Some((path, args)) => (path.clone(), args.to_vec()),
            None => (String::new(), Vec::new()),
        };
        let layers = layers.iter().map(LayerKey::folder).collect();
        let (version, created) = (VERSION, Timestamp::now());
        Self { version, id, created, image_id, path, args, platform, config, host_config, mounts, layers }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, EngineError> {
        serde_json::to_vec(self).map_err(|error| EngineError::part("write the container's configuration", error))
    }

    /// Reads the configuration of a container from its folder.
    pub(crate) fn load(store: &Store, id: &str) -> Result<Self, EngineError> {
        let dir = store.container_dir(id).map_err(|error| EngineError::part("open the container's folder", error))?;
        let path = || format!("containers/{id}/{CONFIG_NAME}").into();
        let io = |source| EngineError::Io { action: "read", path: path(), source };
        let disk = store.disk();
        let file = disk.open_file(&dir, CONFIG_NAME.as_bytes(), baleen_store::Access::Read).map_err(io)?;
        let bytes = baleen_store::read_file(disk.as_ref(), &file, CONFIG_BYTES_MAX).map_err(io)?;
        let stored: Self = serde_json::from_slice(&bytes)
            .map_err(|error| EngineError::part(format!("read containers/{id}/{CONFIG_NAME}"), error))?;
        if stored.version != VERSION || stored.id != id {
            let found = format!("it is of version {} and container {}", stored.version, stored.id);
            return Err(EngineError::part(format!("read containers/{id}/{CONFIG_NAME}"), found));
        }
        Ok(stored)
    }

    /// Whether the program has a terminal.
    pub(crate) fn tty(&self) -> bool {
        self.config.tty
    }

    /// The log's path, unless it keeps none.
    pub(crate) fn keeps_log(&self) -> bool {
        self.host_config.log_config.driver != "none"
    }

    /// Log files kept, the current one included.
    pub(crate) fn log_files_max(&self) -> u32 {
        self.host_config.log_config.config.get("max-file").and_then(|text| text.parse().ok()).unwrap_or(1)
    }

    /// Labels, image and name, as events carry them.
    pub(crate) fn event_attributes(&self, name: &str) -> std::collections::BTreeMap<String, String> {
        let mut attributes = self.config.labels.clone();
        attributes.insert("image".to_owned(), self.config.image.clone());
        attributes.insert("name".to_owned(), name.to_owned());
        attributes
    }
}
