//! A container as it lies on the disk: `config.json` in its folder, written by `create` and replaced whole by `update`.
//!
//! C1  The name and the desired state are not in it: they change, so they are records of the store's log.
//! C2  A version that this build does not know is refused, never guessed at.
//! C3  It ends with its own digest, so that a changed bit is found; a file of an earlier build has none.

use baleen_oci::{Digest, ImageId};
use baleen_store::{LayerKey, Store};
use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;
use super::host_config::HostConfig;
use super::view::MountPoint;
use crate::error::EngineError;
use crate::time::Timestamp;

/// Name of the file.
pub(crate) const CONFIG_NAME: &str = "config.json";
/// Name of what an update writes before it takes the file's place.
const NEW_NAME: &str = "config.json.new";
/// What begins the digest that ends the file, and what follows its digits.
const DIGEST_FIELD: &str = ",\"digest\":\"sha256:";
const DIGEST_END: &str = "\"}";
/// Digits of the digest.
const DIGEST_DIGITS: usize = 64;
/// Longest that is read.
const CONFIG_BYTES_MAX: u64 = 8 << 20;
const VERSION: u32 = 1;

/// Everything about a container that only an update changes.
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

    /// The file, which ends with the digest of what stands before it (C3).
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, EngineError> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|error| EngineError::part("write the container's configuration", error))?;
        let digest = Digest::sha256_of(&bytes);
        bytes.pop(); // The brace that ends the object.
        bytes.extend_from_slice(format!("{DIGEST_FIELD}{}{DIGEST_END}", digest.hex()).as_bytes());
        Ok(bytes)
    }

    /// Puts this in the place of what a container's folder has. A cut leaves the old file or the new one.
    ///
    /// # Durability
    /// Durable on `Ok`.
    pub(crate) fn replace(&self, store: &Store) -> Result<(), EngineError> {
        let id = &self.id;
        let bytes = self.to_bytes()?;
        let dir = store.container_dir(id).map_err(|error| EngineError::part("open the container's folder", error))?;
        let io =
            |source| EngineError::Io { action: "write", path: format!("containers/{id}/{NEW_NAME}").into(), source };
        let disk = store.disk();
        match disk.remove_file(&dir, NEW_NAME.as_bytes()) {
            // An update that was cut has left it.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let file = disk.create_file(&dir, NEW_NAME.as_bytes(), 0o600).map_err(io)?;
        // What it holds must be durable before its name takes the place of the old one.
        disk.write_at(&file, &bytes, 0).and_then(|()| disk.sync(&file)).map_err(io)?;
        // The port's rename takes no other name's place, as all else in the store wants it; here that is the point.
        let no_fd = || {
            EngineError::part(
                "replace the container's configuration",
                "its store is not on a file system of the kernel",
            )
        };
        let fd = dir.fd().ok_or_else(no_fd)?;
        rustix::fs::renameat(fd, NEW_NAME, fd, CONFIG_NAME).map_err(|error| io(error.into()))?;
        disk.sync(&dir).map_err(io)
    }

    /// Reads the configuration of a container from its folder.
    pub(crate) fn load(store: &Store, id: &str) -> Result<Self, EngineError> {
        let dir = store.container_dir(id).map_err(|error| EngineError::part("open the container's folder", error))?;
        let path = || format!("containers/{id}/{CONFIG_NAME}").into();
        let io = |source| EngineError::Io { action: "read", path: path(), source };
        let disk = store.disk();
        let file = disk.open_file(&dir, CONFIG_NAME.as_bytes(), baleen_store::Access::Read).map_err(io)?;
        let bytes = baleen_store::read_file(disk.as_ref(), &file, CONFIG_BYTES_MAX).map_err(io)?;
        check_digest(&bytes)
            .map_err(|found| EngineError::part(format!("read containers/{id}/{CONFIG_NAME}"), found))?;
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

/// Whether a file is what its digest says; one without passes.
fn check_digest(bytes: &[u8]) -> Result<(), String> {
    let tail_bytes = DIGEST_FIELD.len() + DIGEST_DIGITS + DIGEST_END.len();
    let Some((json, tail)) = bytes.split_at_checked(bytes.len().saturating_sub(tail_bytes)) else { return Ok(()) };
    let Some(digits) =
        tail.strip_prefix(DIGEST_FIELD.as_bytes()).and_then(|tail| tail.strip_suffix(DIGEST_END.as_bytes()))
    else {
        return Ok(());
    };
    let found = Digest::sha256_of(&[json, b"}"].concat()).hex();
    if found.as_bytes() == digits {
        return Ok(());
    }
    Err("its content is not what its digest says; run `baleen fsck`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_any_bit_changed_is_refused() {
        let image = format!("sha256:{}", "0".repeat(64)).parse().map(ImageId).unwrap();
        let (config, host) = (ContainerConfig::default(), HostConfig::default());
        let command = ["true".to_owned()];
        let stored =
            StoredContainer::new("1".repeat(64), image, &[], &command, "linux".to_owned(), config, host, Vec::new());
        let bytes = stored.to_bytes().unwrap();
        check_digest(&bytes).unwrap();
        assert_eq!(serde_json::from_slice::<StoredContainer>(&bytes).unwrap(), stored);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let is_found =
                check_digest(&changed).is_err() || serde_json::from_slice::<StoredContainer>(&changed).is_err();
            // Only a change of the digest's own name turns it into an unknown field; that leaves the content as it was.
            let stays = serde_json::from_slice::<StoredContainer>(&changed).is_ok_and(|read| read == stored);
            assert!(is_found || stays, "byte {at}");
        }
        assert!(check_digest(br#"{"version":1}"#).is_ok());
    }
}
