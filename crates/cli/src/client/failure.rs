//! Why a command failed, in words for the one who typed it, and the exit code that docker gives.

use std::io;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A flag that does not exist, or a value that is none.
    #[error("{reason}\n\nUsage:  {program} {command} {usage}\n\nRun '{program} {command} --help' for more information", program = super::program())]
    BadFlags { reason: String, command: String, usage: &'static str },
    /// Too many or too few arguments.
    #[error("{program}: '{program} {command}' {reason}\n\nUsage:  {program} {command} {usage}\n\nSee '{program} {command} --help' for more information", program = super::program())]
    BadArguments { reason: String, command: String, usage: &'static str },
    /// The daemon refused.
    #[error("Error response from daemon: {message}")]
    Api { status: u16, message: String },
    /// Nobody listens there, or not to us.
    #[error("cannot connect to the daemon at {host}: {source}; {}", remedy(source))]
    NoDaemon { host: String, source: io::Error },
    /// The connection broke, or what came is no HTTP.
    #[error("cannot {action}: {source}")]
    Io { action: String, source: io::Error },
    /// The daemon's answer makes no sense.
    #[error("unexpected answer of the daemon: {reason}")]
    Answer { reason: String },
    /// The template of --format.
    #[error("template parsing error: {reason}")]
    Template { reason: String },
    /// What was asked for cannot be done, and why.
    #[error("{reason}")]
    Refused { reason: String },
    /// A failure of `run` and `start`, whose code says where it happened.
    #[error("{program}: {source}\n\nRun '{program} {command} --help' for more information", program = super::program())]
    Coded { code: u8, command: String, source: Box<Failure> },
    /// Whoever read our output has gone: nothing to tell.
    #[error("the output was closed")]
    OutputClosed,
}

/// What helps where a connection was refused.
fn remedy(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "become root, or a member of the group that the socket belongs to".to_owned()
        }
        _ => {
            format!("start one as root with `{} daemon`, or name another one with -H or DOCKER_HOST", super::program())
        }
    }
}

impl Failure {
    /// A refusal in words.
    pub(crate) fn refused(reason: impl Into<String>) -> Failure {
        Failure::Refused { reason: reason.into() }
    }

    /// An I/O error with what was attempted.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        |source| Failure::Io { action: action.into(), source }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::BadFlags { .. } => 125,
            Failure::Coded { code, .. } => *code,
            _ => 1,
        }
    }

    /// Whether the daemon says that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Failure::Api { status: 404, .. })
    }

    /// As `docker run` reports a start that failed: 127 for a program that is not there, 126 for one that cannot be run.
    pub(crate) fn of_start(self, command: &str) -> Failure {
        let text = self.to_string();
        let code = if ["executable file not found", "no such file or directory"].iter().any(|part| text.contains(part))
        {
            127
        } else if ["permission denied", "is a directory"].iter().any(|part| text.contains(part)) {
            126
        } else {
            125
        };
        Failure::Coded { code, command: command.to_owned(), source: Box::new(self) }
    }

    /// As `docker run` reports whatever went wrong before the start.
    pub(crate) fn before_start(self, command: &str) -> Failure {
        match self {
            failure @ (Failure::BadFlags { .. } | Failure::BadArguments { .. } | Failure::Coded { .. }) => failure,
            failure => Failure::Coded { code: 125, command: command.to_owned(), source: Box::new(failure) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_cannot_reach_a_daemon_is_told_what_helps() {
        let refused = |kind: io::ErrorKind| {
            Failure::NoDaemon { host: "unix:///run/docker.sock".to_owned(), source: kind.into() }.to_string()
        };
        assert!(refused(io::ErrorKind::NotFound).contains("`baleen daemon`"));
        assert!(refused(io::ErrorKind::ConnectionRefused).contains("`baleen daemon`"));
        let denied = refused(io::ErrorKind::PermissionDenied);
        assert!(denied.contains("group") && !denied.contains("baleen daemon"), "{denied}");
    }

    #[test]
    fn a_failed_start_has_the_code_that_says_why() {
        for (message, code) in [
            ("exec: \"x\": executable file not found in $PATH: unknown", 127),
            ("stat /x: no such file or directory", 127),
            ("exec: \"/etc\": permission denied", 126),
            ("network mine not found", 125),
        ] {
            let failure = Failure::Api { status: 400, message: message.to_owned() }.of_start("run");
            assert_eq!(failure.code(), code, "{message}");
        }
        assert_eq!(Failure::refused("no").code(), 1);
        assert_eq!(Failure::refused("no").before_start("run").code(), 125);
    }
}
