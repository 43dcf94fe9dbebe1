//! Where things lie below the root. Bytes and names: `docs/formats/store.md`.
//!
//! L1  A path is built from a parsed digest, a checked id or our own number, never from received text.

use std::io;

use baleen_oci::{Algorithm, Digest};

use crate::disk::{Disk, Handle};
use crate::error::{IoContext, StoreError};
use crate::facts::LayerKey;

/// The directories of a store, held open from its opening on.
pub(crate) struct Layout {
    pub(crate) root: Handle,
    pub(crate) wal: Handle,
    pub(crate) blobs: Handle,
    pub(crate) blobs_sha256: Handle,
    pub(crate) blobs_sha512: Handle,
    pub(crate) layers: Handle,
    pub(crate) partial: Handle,
    pub(crate) staging: Handle,
    pub(crate) trash: Handle,
    pub(crate) quarantine: Handle,
    pub(crate) containers: Handle,
    pub(crate) volumes: Handle,
}

/// The directories directly below the root, with their modes.
pub(crate) const DIRECTORIES: [(&[u8], u32); 9] = [
    (b"wal", 0o700),
    (b"blobs", 0o700),
    (b"layers", 0o700),
    (b"partial", 0o700),
    (b"staging", 0o700),
    (b"trash", 0o700),
    (b"quarantine", 0o700),
    (b"containers", 0o700),
    // What is bound from here into a container is reached by the mount, not through this directory.
    (b"volumes", 0o700),
];

impl Layout {
    /// Makes what is missing of the directories; nothing is synced.
    pub(crate) fn create(disk: &dyn Disk, root: &Handle) -> Result<(), StoreError> {
        for (name, mode) in DIRECTORIES {
            create_dir(disk, root, name, mode)?;
        }
        let blobs = open_dir(disk, root, b"blobs")?;
        create_dir(disk, &blobs, b"sha256", 0o700)?;
        create_dir(disk, &blobs, b"sha512", 0o700)
    }

    /// Makes what [`Layout::create`] made durable: the names are in two directories. Not by a barrier, which in the boot
    /// of a failed creation would answer for its error.
    pub(crate) fn sync(disk: &dyn Disk, root: &Handle) -> Result<(), StoreError> {
        disk.sync(&open_dir(disk, root, b"blobs")?).context("sync", || "blobs".to_owned())?;
        disk.sync(root).context("sync", || "the data root".to_owned())
    }

    /// Opens the directories and sets their modes again.
    ///
    /// # Errors
    /// `SeveralMounts` if one lies on another file system, which a barrier would not reach; `Io` if one is missing.
    pub(crate) fn open(disk: &dyn Disk, root: Handle) -> Result<Self, StoreError> {
        let device = disk.metadata(&root).context("read", || "the data root".to_owned())?.device;
        for (name, mode) in DIRECTORIES {
            let path = || String::from_utf8_lossy(name).into_owned();
            let dir = open_dir(disk, &root, name)?;
            let metadata = disk.metadata(&dir).context("read", path)?;
            // A user's volumes may lie elsewhere; everything that a barrier must reach may not.
            if metadata.device != device && name != b"volumes" {
                return Err(StoreError::SeveralMounts { path: path() });
            }
            if metadata.mode != mode {
                disk.set_mode(&dir, mode).context("set the mode of", path)?;
            }
        }
        let blobs = open_dir(disk, &root, b"blobs")?;
        Ok(Self {
            wal: open_dir(disk, &root, b"wal")?,
            blobs_sha256: open_dir(disk, &blobs, b"sha256")?,
            blobs_sha512: open_dir(disk, &blobs, b"sha512")?,
            blobs,
            layers: open_dir(disk, &root, b"layers")?,
            partial: open_dir(disk, &root, b"partial")?,
            staging: open_dir(disk, &root, b"staging")?,
            trash: open_dir(disk, &root, b"trash")?,
            quarantine: open_dir(disk, &root, b"quarantine")?,
            containers: open_dir(disk, &root, b"containers")?,
            volumes: open_dir(disk, &root, b"volumes")?,
            root,
        })
    }

    /// The directory that holds an object, and its name there.
    pub(crate) fn place<'a>(&'a self, object: &Object) -> (&'a Handle, Vec<u8>) {
        match object {
            Object::Blob(digest) => match digest.algorithm() {
                Algorithm::Sha256 => (&self.blobs_sha256, digest.hex().into_bytes()),
                Algorithm::Sha512 => (&self.blobs_sha512, digest.hex().into_bytes()),
            },
            Object::Layer(key) => (&self.layers, key.folder().into_bytes()),
            Object::Container(id) => (&self.containers, id.clone().into_bytes()),
            Object::Volume(name) => (&self.volumes, name.clone().into_bytes()),
        }
    }
}

/// What a name below the root holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Object {
    Blob(Digest),
    Layer(LayerKey),
    Container(String),
    Volume(String),
}

impl Object {
    /// Its path below the root, for messages.
    pub(crate) fn path(&self) -> String {
        match self {
            Object::Blob(digest) => format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()),
            Object::Layer(key) => format!("layers/{}", key.folder()),
            Object::Container(id) => format!("containers/{id}"),
            Object::Volume(name) => format!("volumes/{name}"),
        }
    }

    /// Its name below `staging/<transaction>/`. A layer is staged in `partial/` instead.
    pub(crate) fn staged_name(&self) -> Vec<u8> {
        match self {
            Object::Blob(digest) => format!("blob-{}-{}", digest.algorithm().name(), digest.hex()),
            Object::Layer(key) => format!("layer-{}", key.folder()),
            Object::Container(id) => format!("container-{id}"),
            Object::Volume(name) => format!("volume-{name}"),
        }
        .into_bytes()
    }
}

/// The name of a blob's folder below `partial/`.
pub(crate) fn partial_name(blob: &Digest) -> Vec<u8> {
    format!("{}-{}", blob.algorithm().name(), blob.hex()).into_bytes()
}

/// The blob whose folder below `partial/` this is.
pub(crate) fn partial_blob(name: &[u8]) -> Option<Digest> {
    let (algorithm, hex) = std::str::from_utf8(name).ok()?.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn create_dir(disk: &dyn Disk, dir: &Handle, name: &[u8], mode: u32) -> Result<(), StoreError> {
    match disk.create_dir(dir, name, mode) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.context("create", || String::from_utf8_lossy(name).into_owned()),
    }
}

fn open_dir(disk: &dyn Disk, dir: &Handle, name: &[u8]) -> Result<Handle, StoreError> {
    disk.open_dir(dir, name).context("open", || String::from_utf8_lossy(name).into_owned())
}

/// Whether an error says that a name is not there.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

/// Whether a name is there.
pub(crate) fn exists(disk: &dyn Disk, dir: &Handle, name: &[u8]) -> io::Result<bool> {
    match disk.metadata_at(dir, name) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
