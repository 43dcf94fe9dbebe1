//! What can go wrong in the store, and what the user can do about it.

use std::io;

use baleen_oci::Digest;

use crate::facts::LayerKey;

/// An error of the store. Its `Display` says what failed, on what, and what to do; sources are kept apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A call on the disk failed. What was stored before is intact.
    #[error("cannot {action} {path} in the store")]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what: a path below the root.
        path: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The disk is full (or a quota is reached); nothing of this transaction is stored.
    #[error("no space is left on the disk while writing {path}; remove images or containers, or make room")]
    FullDisk {
        /// On what: a path below the root.
        path: String,
        /// The system's reason: `ENOSPC` or `EDQUOT`.
        #[source]
        source: io::Error,
    },
    /// The log could not be written or synced. It is unknown whether the last transaction happened.
    #[error(
        "the store takes no more changes since a write to its log failed; restart the daemon to recover from the log"
    )]
    WritesStopped,
    /// A barrier failed while this transaction was staged, so its pages may be clean yet unwritten.
    #[error("what was staged is dropped since the disk reported an error of write-back; try again")]
    StagingDropped,
    /// No room for one more log segment. Removals still work.
    #[error("no space is left for the log; remove images or containers, or make room")]
    LogFull,
    /// Another process owns the store.
    #[error("the store is in use by another process; stop the other daemon, or give this one its own --data-root")]
    InUse,
    /// The directory has files and is no store.
    #[error("{found} is in the data root, which is not a store; give an empty directory as --data-root")]
    NotAStore {
        /// What stood there.
        found: String,
    },
    /// The store was written by a newer build.
    #[error(
        "the store has format {found}, and this build reads up to {known}; use a newer build (nothing was changed)"
    )]
    NewerFormat {
        /// The version found, with the features that this build lacks.
        found: String,
        /// The newest version that this build reads.
        known: u32,
    },
    /// Bytes that were durable are not what they were.
    #[error("the store is damaged: {what}; run `baleen fsck`")]
    Damaged {
        /// What is wrong and where.
        what: String,
    },
    /// The root spans several mounts or lies on a file system that cannot hold a store.
    #[error("{path} lies on another file system than the data root; the store needs one mount")]
    SeveralMounts {
        /// The directory that lies elsewhere.
        path: String,
    },
    /// No such blob.
    #[error("blob {digest} is not in the store; pull an image that contains it")]
    BlobMissing {
        /// Its digest.
        digest: Digest,
    },
    /// Bytes do not have the digest by which they are named.
    #[error("the content of blob {digest} does not match its digest; pull the image again")]
    BlobCorrupt {
        /// Its digest.
        digest: Digest,
    },
    /// No such layer.
    #[error("layer {key} is not in the store; pull an image that contains it")]
    LayerMissing {
        /// Its key.
        key: Box<LayerKey>,
    },
    /// No such image.
    #[error("image {image} is not in the store; pull it")]
    ImageMissing {
        /// Its id or name.
        image: String,
    },
    /// The image cannot be removed while containers use it.
    #[error("image {image} is used by container {container}; remove the container first")]
    ImageInUse {
        /// The image's id.
        image: String,
        /// One container that uses it.
        container: String,
    },
    /// No such tag.
    #[error("tag {name} is not in the store")]
    TagMissing {
        /// The name looked for.
        name: String,
    },
    /// No such container.
    #[error("container {container} is not in the store")]
    ContainerMissing {
        /// Its id.
        container: String,
    },
    /// The name belongs to another container.
    #[error("the container name {name} is in use by container {container}; remove or rename that container")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// Who has it.
        container: String,
    },
    /// No such volume.
    #[error("volume {volume} is not in the store")]
    VolumeMissing {
        /// Its name.
        volume: String,
    },
    /// A volume has this name already.
    #[error("volume {volume} exists already; remove it or choose another name")]
    VolumeExists {
        /// The name asked for.
        volume: String,
    },
    /// The name cannot be a folder's.
    #[error(
        "{name:?} cannot be the name of a volume; use letters, digits, `_`, `.` and `-`, at most {limit_bytes} of them"
    )]
    VolumeName {
        /// The name asked for.
        name: String,
        /// The longest that it may be.
        limit_bytes: usize,
    },
    /// The blob was unpacked before, to another layer than is claimed now.
    #[error("blob {blob} unpacks to layer {stored}; the image that claims otherwise is wrong")]
    LayerStored {
        /// The compressed blob.
        blob: Digest,
        /// The layer that it gave.
        stored: Box<LayerKey>,
    },
    /// The same layer is being fetched by another call.
    #[error("blob {blob} is being unpacked by another pull; wait for it")]
    PartialInUse {
        /// The compressed blob.
        blob: Digest,
    },
    /// A value is larger than its record can hold.
    #[error("{what} is longer than {limit_bytes} bytes")]
    TooLarge {
        /// Which value.
        what: &'static str,
        /// Its limit.
        limit_bytes: usize,
    },
}

/// Adds action and path to an error of the disk; a full disk becomes [`StoreError::FullDisk`].
pub(crate) trait IoContext<T> {
    /// `action` is a verb ("open"), `path` lies below the root.
    fn context(self, action: &'static str, path: impl FnOnce() -> String) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: impl FnOnce() -> String) -> Result<T, StoreError> {
        self.map_err(|source| {
            let path = path();
            match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => StoreError::FullDisk { path, source },
                _ => StoreError::Io { action, path, source },
            }
        })
    }
}
