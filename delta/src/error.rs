//! What can go wrong with a delta.

use std::io;

use baleen_oci::DiffId;

/// Why a delta cannot be read, applied or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The bytes are no delta, or damaged ones.
    #[error("delta is damaged ({problem}); pull the image without it")]
    Damaged {
        /// What is wrong.
        problem: &'static str,
    },
    /// The delta ends before its last frame.
    #[error("delta ends early; fetch the rest of it")]
    Truncated,
    /// A newer build made it.
    #[error("delta has version {version}, and this build reads {}; pull the image without it", crate::VERSION)]
    Newer {
        /// The version found.
        version: u32,
    },
    /// Applying it takes more memory than the caller allows.
    #[error(
        "applying the delta takes {needed_bytes} bytes of memory, {allowed_bytes} are allowed; pull the image without it"
    )]
    TooMuchMemory {
        /// What the header declares.
        needed_bytes: u64,
        /// What the caller allows.
        allowed_bytes: u64,
    },
    /// A layer that the delta reads from is not here.
    #[error("layer {layer} is missing, which the delta needs; pull the image without it")]
    SourceMissing {
        /// The layer.
        layer: Box<DiffId>,
    },
    /// A file of a source layer is not what it was when the delta was made. The delta itself is as it was made.
    #[error("payload {index} of layer {layer} is damaged, which the delta needs; run fsck")]
    SourceDamaged {
        /// The layer.
        layer: Box<DiffId>,
        /// Number of the payload in the layer's tar.
        index: u64,
    },
    /// What a frame wrote is not what it should be; its source payloads have their recorded contents, or could not be told.
    #[error("frame {frame} of the delta gives other bytes than it declares; pull the image without it")]
    FrameMismatch {
        /// The frame.
        frame: usize,
    },
    /// A source layer cannot be read.
    #[error("cannot read layer {layer}")]
    Source {
        /// The layer.
        layer: Box<DiffId>,
        /// Why not.
        #[source]
        source: SourceError,
    },
    /// The delta's bytes cannot be read.
    #[error("cannot read the delta")]
    Read(#[source] io::Error),
    /// The receiver of the tar failed, or the scratch file or output of the encoder.
    #[error("cannot write")]
    Write(#[source] io::Error),
    /// A target's tar cannot be read while the delta is made.
    #[error("cannot read the tar of layer {layer}")]
    Target {
        /// The layer.
        layer: Box<DiffId>,
        /// The error of the disk.
        #[source]
        source: io::Error,
    },
    /// The images have more layers, or the delta more frames, than the format allows.
    #[error("image is too large for a delta ({problem})")]
    TooLarge {
        /// What is too much.
        problem: &'static str,
    },
    /// The caller asked to stop.
    #[error("making the delta was stopped")]
    Stopped,
}

/// Why a source layer cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The layer has fewer payloads.
    #[error("the layer has no payload {index}")]
    NoPayload {
        /// The number asked for.
        index: u64,
    },
    /// The recipe of a stored layer cannot be read.
    #[error("cannot read the layer's recipe")]
    Recipe(#[source] baleen_store::recipe::RecipeError),
    /// A file operation failed.
    #[error("cannot {action} {what}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// The error of the disk.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn damaged(problem: &'static str) -> DeltaError {
    DeltaError::Damaged { problem }
}
