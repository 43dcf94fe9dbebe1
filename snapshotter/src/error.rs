//! Why a layer could not be extracted.

use std::io;
use std::path::PathBuf;

use baleen_oci::{DiffId, Digest};
use baleen_store::StoreError;
use baleen_store::recipe::RecipeError;

use crate::decompress::DecompressError;
use crate::tar::TarError;

/// Why a layer could not be extracted. What was written so far stays in the layer's directory, for the caller to drop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The media type names no layer.
    #[error("layer has media type {media_type:?}, which is not a layer's; the image needs another engine")]
    UnknownMediaType {
        /// The type found.
        media_type: String,
    },
    /// More bytes came than were announced.
    #[error("layer {blob} is longer than the {expected_bytes} bytes announced; pull again or ask the image's author")]
    BlobTooLong {
        /// The blob.
        blob: String,
        /// The size announced.
        expected_bytes: u64,
    },
    /// The stream ended before the size announced.
    #[error("layer {blob} ended after {found_bytes} of {expected_bytes} bytes; pull again")]
    BlobTooShort {
        /// The blob.
        blob: String,
        /// The size announced.
        expected_bytes: u64,
        /// The bytes that came.
        found_bytes: u64,
    },
    /// The bytes are not those that were asked for.
    #[error(
        "layer arrived with digest {found} instead of {expected}; the registry or the network changed it, pull again"
    )]
    DigestMismatch {
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        found: Box<Digest>,
    },
    /// The uncompressed tar is not the one that the image's configuration names.
    #[error("layer has diff ID {found}, but the image names {expected}; the image is damaged, ask its author")]
    DiffIdMismatch {
        /// The diff ID in the image's configuration.
        expected: Box<DiffId>,
        /// The diff ID of what came.
        found: Box<DiffId>,
    },
    /// The compressed stream is damaged or cannot be read.
    #[error("cannot decompress the layer")]
    Decompress(#[source] DecompressError),
    /// The archive is damaged or cannot be read.
    #[error("cannot read the layer's archive")]
    Tar(#[source] TarError),
    /// The recipe could not be written.
    #[error("cannot write the layer's recipe")]
    Recipe(#[source] RecipeError),
    /// A name leads out of the layer.
    #[error("entry {path:?} leads out of the layer; the image is hostile or damaged")]
    PathOutside {
        /// The name, as in the archive.
        path: String,
    },
    /// A name cannot be one of a file.
    #[error("entry {path:?} {problem}; the image is hostile or damaged")]
    BadPath {
        /// The name, as in the archive.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A hard link leads to nothing that this layer or those below it show.
    #[error(
        "hard link {path:?} leads to {target:?}, which is neither in its layer nor in those below; build the image anew without it"
    )]
    LinkOutsideLayer {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A kind of entry that has no meaning in a layer.
    #[error("entry {path:?} is of type {type_flag:?}, which no layer may contain; build the image anew without it")]
    UnsupportedEntry {
        /// The name, as in the archive.
        path: String,
        /// The type flag of its header.
        type_flag: char,
    },
    /// More entries than allowed.
    #[error("layer has more than {entries_max} entries; raise the limit if the image is to be trusted")]
    TooManyEntries {
        /// The limit.
        entries_max: u64,
    },
    /// More bytes than allowed.
    #[error("layer unpacks to more than {tar_bytes_max} bytes; free space on the disk or raise the limit")]
    TooLarge {
        /// The limit.
        tar_bytes_max: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what, relative to the layer's directory.
        path: PathBuf,
        /// The error of the disk.
        #[source]
        source: io::Error,
    },
    /// The layer's threads could not be confined, so none of its bytes were looked at (T5).
    #[error("cannot confine the extraction")]
    Jail(#[source] io::Error),
    /// A cut extraction cannot be gone on with: the caller starts the layer over.
    #[error("cannot go on where the layer was cut: {problem}; it is fetched from its start")]
    NotResumable {
        /// What is wrong with its state or its files.
        problem: &'static str,
    },
    /// A file that was written after a cut does not read back as it was written.
    #[error("file {path:?} does not read back as it was written; pull again, and look for errors of the disk")]
    ReadBack {
        /// The file, below the layer's directory.
        path: String,
    },
    /// A checkpoint could not be made durable, or given up.
    #[error("cannot make a checkpoint of the layer")]
    Checkpoint {
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// The caller stopped before the end.
    #[error("extraction was stopped before the layer's end")]
    Aborted,
    /// A thread of the extraction panicked: a bug.
    #[error("extraction failed by a bug in the engine; please report it")]
    Panicked,
}

impl ExtractError {
    /// The error code of the disk, if that is what failed (`ENOSPC`, `EDQUOT`, `EIO`, ...).
    pub fn os_error(&self) -> Option<i32> {
        match self {
            ExtractError::Io { source, .. } => source.raw_os_error(),
            ExtractError::Recipe(RecipeError::Io { source, .. }) => source.raw_os_error(),
            ExtractError::Checkpoint { source } => match source.as_ref() {
                StoreError::Io { source, .. } | StoreError::FullDisk { source, .. } => source.raw_os_error(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the same blob may well be extracted from its start, although going on after a cut ended so.
    pub fn calls_for_a_new_start(&self) -> bool {
        matches!(
            self,
            ExtractError::NotResumable { .. }
                | ExtractError::ReadBack { .. }
                | ExtractError::DigestMismatch { .. }
                | ExtractError::DiffIdMismatch { .. }
                | ExtractError::BlobTooLong { .. }
                | ExtractError::Decompress(_)
                | ExtractError::Tar(_)
        )
    }

    /// Whether the disk or the quota is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }
}

impl From<RecipeError> for ExtractError {
    fn from(error: RecipeError) -> Self {
        ExtractError::Recipe(error)
    }
}

/// A name of an archive for an error message: at most 200 characters.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}
