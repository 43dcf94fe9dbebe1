//! What the daemon is told: dockerd's flags, `daemon.json`, and the `Config` that both end in.
//!
//! S1  A key is given once: as a flag or in the file, never both.
//! S2  A key that nobody knows is refused. One that has no meaning here is accepted and warned about. One that is not
//!     honoured yet is refused unless it says what is done anyway: no setting is ignored in silence.
//! S3  Reading changes nothing outside; the same code checks a file for `--validate` and for a reload.
//!
//! Touches: the configuration file, for reading.

mod config;
mod file;
mod flags;
mod host;
mod table;

pub(crate) use config::{Config, Reloadable};
pub use flags::Invocation;
pub(crate) use flags::help;
pub(crate) use host::Host;

/// Why the daemon does not start, or a file is not taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A flag that dockerd does not have either.
    #[error("unknown flag: {flag}; see `baleen daemon --help`")]
    UnknownFlag {
        /// As given.
        flag: String,
    },
    /// A flag without its value.
    #[error("flag needs an argument: {flag}")]
    MissingValue {
        /// As given.
        flag: String,
    },
    /// A word that is no flag.
    #[error("\"baleen daemon\" accepts no arguments; found {argument:?}")]
    Argument {
        /// As given.
        argument: String,
    },
    /// A value that its key cannot have.
    #[error("invalid value {value:?} for {key}: {reason}")]
    Invalid {
        /// Key of daemon.json.
        key: String,
        /// As given.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// S1.
    #[error("the following directives are specified both as a flag and in the configuration file: {directives}")]
    Conflict {
        /// Each with both values.
        directives: String,
    },
    /// S2.
    #[error("the following directives don't match any configuration option: {directives}")]
    Unknown {
        /// Their keys.
        directives: String,
    },
    /// S2.
    #[error("setting {key} = {value:?} is not implemented yet; {remedy}")]
    NotImplemented {
        /// Key of daemon.json.
        key: String,
        /// As given.
        value: String,
        /// What can be done instead.
        remedy: String,
    },
    /// What this engine leaves out on purpose.
    #[error("{text}")]
    Excluded {
        /// Why, and what to do.
        text: String,
    },
    /// The file cannot be read.
    #[error("unable to configure the daemon with file {path}: {reason}")]
    File {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}
