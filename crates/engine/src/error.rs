//! What can go wrong in a verb: one enum, each variant with the exact text that Docker's clients match on.
//!
//! `Display` is the wire text without its sources; [`EngineError::chain`] adds them for places that print one line.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use baleen_registry::RegistryError;

/// What a front end does with an error: HTTP's status classes without HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The thing named does not exist (404).
    NotFound,
    /// The state of the thing forbids it (409).
    Conflict,
    /// The request itself is wrong (400).
    InvalidParameter,
    /// Already so: nothing to do (304).
    NotModified,
    /// Not allowed whatever the credentials (403).
    Forbidden,
    /// A registry wants other credentials (401).
    Unauthorized,
    /// Not built yet, or left out on purpose (501).
    NotImplemented,
    /// Not now: the engine or a registry cannot be reached, or stops (503).
    Unavailable,
    /// Anything else (500).
    System,
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    // Images.
    /// Only what is paused can be unpaused.
    #[error("Container {id} is not paused")]
    NotPaused {
        /// Full ID.
        id: String,
    },
    /// No image has this name or ID.
    #[error("No such image: {name}")]
    NoSuchImage {
        /// As the client sent it, in its familiar form.
        name: String,
    },
    /// The text is no image reference.
    #[error("{source}")]
    InvalidReference {
        /// As sent.
        text: String,
        /// What is wrong with it.
        #[source]
        source: baleen_oci::ReferenceError,
    },
    /// `scratch` is no image.
    #[error("'scratch' is a reserved name")]
    ScratchIsReserved,
    /// A document or layer of the image is refused.
    #[error("image {reference} is refused: {reason}; nothing of it was stored")]
    ImageRefused {
        /// Familiar reference, or the archive's member.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes of a layer are not what its names promise.
    #[error("failed to register layer {layer}")]
    LayerRefused {
        /// Short digest.
        layer: String,
        /// What is wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The disk cannot hold what is asked for.
    #[error(
        "no space left on device: {what} needs {needed_bytes} bytes and {free_bytes} are free; remove images or containers, then try again"
    )]
    NoSpace {
        /// What needs it.
        what: String,
        /// Bytes that it needs.
        needed_bytes: u64,
        /// Bytes that the store may still use.
        free_bytes: u64,
    },
    /// The disk got full while something was written beside the store.
    #[error(
        "no space left on device: {path} does not hold {what}; remove images or containers, or make room, then try again"
    )]
    DiskFull {
        /// The folder whose disk is full.
        path: PathBuf,
        /// What was written.
        what: &'static str,
        /// The system's reason: `ENOSPC` or `EDQUOT`.
        #[source]
        source: std::io::Error,
    },
    /// The registry does not have it, cannot be reached, or sends what cannot be used.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// An image is in the way of its removal.
    #[error("conflict: {text}")]
    ImageInUse {
        /// Docker's words.
        text: String,
    },
    /// A tag that nobody could write.
    #[error("refusing to create an ambiguous tag using digest algorithm as name")]
    AmbiguousTag,

    // Containers.
    /// No container has this name or ID.
    #[error("No such container: {name}")]
    NoSuchContainer {
        /// As the client sent it.
        name: String,
    },
    /// Several IDs begin so.
    #[error("multiple IDs found with provided prefix: {prefix}")]
    AmbiguousPrefix {
        /// As the client sent it.
        prefix: String,
    },
    /// The name is taken.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// Without the slash.
        name: String,
        /// Who has it.
        id: String,
    },
    /// The name has other characters than names may have.
    #[error("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    InvalidName {
        /// As sent.
        name: String,
    },
    /// Neither the request nor the image names a program.
    #[error("no command specified")]
    NoCommand,
    /// The container's state forbids it.
    #[error("{text}")]
    Conflict {
        /// Docker's words.
        text: String,
    },
    /// The container's log driver keeps nothing that could be read.
    #[error("configured logging driver does not support reading")]
    LogsUnreadable,
    /// The container is running already.
    #[error("container already started")]
    AlreadyStarted,
    /// The container has stopped already.
    #[error("container already stopped")]
    AlreadyStopped,
    /// The program could not be started.
    #[error("{text}")]
    StartFailed {
        /// Docker's words, which decide the client's exit code.
        text: String,
        /// Stored as the container's exit code.
        exit_code: i32,
        /// Whether the request is to blame (400) or the engine (500).
        kind: Kind,
    },

    // Anything.
    /// The request is wrong.
    #[error("{text}")]
    InvalidParameter {
        /// Docker's words.
        text: String,
    },
    /// Not built yet.
    #[error("{what} is not implemented yet")]
    NotImplemented {
        /// The field, value or verb.
        what: String,
    },
    /// A network that a user has defined: it cannot be had yet.
    #[error("network mode \"{mode}\" is not implemented yet; use bridge, host, none or container:NAME")]
    NetworkMode {
        /// Its name.
        mode: String,
    },
    /// Not allowed whatever the credentials.
    #[error("{text}")]
    Forbidden {
        /// Docker's words.
        text: String,
    },
    /// The thing named inside another one does not exist.
    #[error("{text}")]
    NotFound {
        /// Docker's words.
        text: String,
    },
    /// The engine is stopping.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// A verb: `open`, `mount`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part below the engine failed.
    #[error("cannot {action}")]
    Part {
        /// What the engine wanted from it.
        action: String,
        /// Its own error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Work that several callers waited for has failed.
    #[error(transparent)]
    Shared(Arc<EngineError>),
    /// A job panicked; the engine goes on.
    #[error("internal error while {action}; the panic is in the engine's log")]
    Panicked {
        /// What was being done.
        action: &'static str,
    },
}

/// An error with all its causes, outermost first, as `what: why: why`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // A transparent error prints its source as its own.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

impl EngineError {
    /// Tells what a front end does with it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSuchImage { .. } | Self::NoSuchContainer { .. } | Self::NotFound { .. } => Kind::NotFound,
            Self::InvalidReference { .. }
            | Self::AmbiguousTag
            | Self::AmbiguousPrefix { .. }
            | Self::InvalidName { .. }
            | Self::NoCommand
            | Self::InvalidParameter { .. } => Kind::InvalidParameter,
            Self::ScratchIsReserved | Self::Forbidden { .. } => Kind::Forbidden,
            Self::ImageInUse { .. } | Self::NameInUse { .. } | Self::Conflict { .. } => Kind::Conflict,
            Self::AlreadyStarted | Self::AlreadyStopped => Kind::NotModified,
            Self::StartFailed { kind, .. } => *kind,
            Self::Shared(error) => error.kind(),
            Self::NotImplemented { .. } | Self::NetworkMode { .. } | Self::LogsUnreadable => Kind::NotImplemented,
            Self::Registry(error) => match error.docker_status() {
                401 => Kind::Unauthorized,
                403 => Kind::Forbidden,
                404 => Kind::NotFound,
                _ => Kind::System,
            },
            Self::ShuttingDown => Kind::Unavailable,
            Self::ImageRefused { .. }
            | Self::NotPaused { .. }
            | Self::LayerRefused { .. }
            | Self::NoSpace { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. }
            | Self::Part { .. }
            | Self::Panicked { .. } => Kind::System,
        }
    }

    /// The text with its causes, as `what: why: why`: for the wire's `message` and one-line logs.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// The error of one verb, told to everybody who waited for the same work.
    pub(crate) fn shared(error: Arc<EngineError>) -> Self {
        Self::Shared(error)
    }

    pub(crate) fn part(action: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Part { action: action.into(), source: source.into() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::InvalidParameter { text: text.into() }
    }

    pub(crate) fn not_implemented(what: impl Into<String>) -> Self {
        Self::NotImplemented { what: what.into() }
    }

    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self::Conflict { text: text.into() }
    }
}
