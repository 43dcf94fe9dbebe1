//! What can go wrong with a container's process, sorted as Docker's clients need it.
//!
//! E1  The kind decides status and exit code; the text is for people and is never parsed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why a container could not be created or started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// The program is neither a file nor found in `PATH`.
    NotFound,
    /// The program is a directory or lacks the execute bit.
    PermissionDenied,
    /// The kernel does not know the program's format: another architecture, or a script without `#!`.
    ExecFormat,
    /// A directory was to be mounted on a file, or a file on a directory.
    NotADirectory,
    /// A bind mount's source does not exist.
    BindSourceMissing,
    /// The user or group is not in the image, or its text is malformed.
    UnknownUser,
    /// The request itself cannot be honoured: a bad mount target, capability, sysctl or the like.
    Invalid,
    /// The container's memory limit leaves no room for a further program.
    NoMemory,
    /// The container to join does not run.
    NotRunning,
    /// Everything else.
    Other,
}

impl FailureKind {
    /// The exit code that Docker stores for such a container: 127, 126 or 128.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::NotFound | Self::NotADirectory => 127,
            Self::PermissionDenied => 126,
            _ => 128,
        }
    }
}

/// A creation or start that failed, with its cause in words: for a missing program
/// `exec: "x": executable file not found in $PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// The cause in words, as it goes into the API's message.
    pub message: String,
}

impl StartFailure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Other, message)
    }
}

/// What a caller of this crate can meet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The container could not be created or started.
    #[error(transparent)]
    Start(#[from] StartFailure),
    /// The shim is gone: the container has ended, or the shim was killed. `client::read_exit` tells which.
    #[error("shim of {dir} does not answer; its container has ended or the shim was killed")]
    ShimGone {
        /// The container's run directory.
        dir: PathBuf,
    },
    /// The shim speaks another version of the protocol.
    #[error(
        "shim speaks protocol version {found}, this build up to {supported}; restart the container to replace its shim"
    )]
    Version {
        /// The shim's version.
        found: u32,
        /// The newest version that this build knows.
        supported: u32,
    },
    /// The shim refused a verb: it does not fit the container's state.
    #[error("{message}")]
    Refused {
        /// What the shim said.
        message: String,
    },
    /// The shim sent something that is not the protocol.
    #[error("shim of {dir} broke its protocol: {what}; kill the container and start it again")]
    Protocol {
        /// The container's run directory.
        dir: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// A file or process operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// The verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl RuntimeError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action, path: path.into(), source: source.into() }
    }
}
