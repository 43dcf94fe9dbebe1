//! What is connected, in files of the state directory: gone with a reboot, as the links are.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::Ipv4Net;
use crate::endpoint::Endpoint;
use crate::error::NetworkError;

pub(crate) const VERSION: u32 = 1;
const BYTES_MAX: u64 = 1 << 20;

/// The bridge as it was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BridgeState {
    pub(crate) version: u32,
    pub(crate) name: String,
    pub(crate) subnet: Ipv4Net,
    /// The host did not forward packets before.
    pub(crate) forwarding_was_off: bool,
}

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir(pub(crate) PathBuf);

impl StateDir {
    fn bridge_path(&self) -> PathBuf {
        self.0.join("bridge.json")
    }

    fn endpoint_path(&self, container: &str) -> PathBuf {
        self.0.join("endpoints").join(format!("{container}.json"))
    }

    pub(crate) fn bridge(&self) -> Option<BridgeState> {
        read(&self.bridge_path()).filter(|state: &BridgeState| state.version == VERSION)
    }

    pub(crate) fn write_bridge(&self, state: &BridgeState) -> Result<(), NetworkError> {
        write(&self.bridge_path(), state)
    }

    pub(crate) fn remove_bridge(&self) -> Result<(), NetworkError> {
        remove(&self.bridge_path())
    }

    pub(crate) fn write_endpoint(&self, endpoint: &Endpoint) -> Result<(), NetworkError> {
        write(&self.endpoint_path(&endpoint.container), endpoint)
    }

    pub(crate) fn remove_endpoint(&self, container: &str) -> Result<(), NetworkError> {
        remove(&self.endpoint_path(container))
    }

    /// All endpoints whose files can be read; one that cannot has no owner that could use it.
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        let Ok(entries) = fs::read_dir(self.0.join("endpoints")) else { return Vec::new() };
        let read = |entry: fs::DirEntry| {
            let found: Option<Endpoint> = read(&entry.path());
            let found = found.filter(|endpoint| {
                endpoint.version == VERSION && self.endpoint_path(&endpoint.container) == entry.path()
            });
            if found.is_none() {
                tracing::warn!(path = %entry.path().display(), "a file of an endpoint cannot be read and is removed");
                let _ = fs::remove_file(entry.path()); // It is told again at the next start.
            }
            found
        };
        entries.flatten().filter_map(read).collect()
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whole or not at all, also when this process is killed; the disk has no part in it.
fn write(path: &Path, value: &impl Serialize) -> Result<(), NetworkError> {
    use std::io::Write;
    let failed = |source| NetworkError::Io { action: "write", path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|error| failed(io::Error::other(error)))?;
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().mode(0o700).recursive(true).create(folder).map_err(failed)?;
    }
    let new = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

fn remove(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
