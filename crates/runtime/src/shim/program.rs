//! Finds and executes the container's program, inside the container.
//!
//! X1  A failure is reported as what it is, through a pipe that an execution closes: silence on it means that the program runs.
//! X2  The program starts with default signals, its own environment, and descriptors 0 to 2.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

use crate::error::{FailureKind, StartFailure};
use crate::sys;

/// The runtime library's hook for executing the program.
#[derive(Clone)]
pub(super) struct Program {
    outcome: Rc<OwnedFd>,
    init: bool,
}

impl Program {
    /// Reports failures to `outcome`, the writing end of a close-on-exec pipe. With `init` the program is the child of an init of ours.
    pub(super) fn new(outcome: OwnedFd, init: bool) -> Self {
        Self { outcome: Rc::new(outcome), init }
    }

    fn report(&self, failure: &StartFailure) {
        let json = serde_json::to_vec(failure).unwrap_or_default();
        if let Ok(copy) = self.outcome.try_clone() {
            // If the shim is gone there is nobody to tell; the exit code still says that the start failed.
            let _ = fs::File::from(copy).write_all(&json);
        }
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let found = process_of(spec).and_then(|(process, name)| find(name, path_of(process)));
        found.map(drop).map_err(|failure| {
            self.report(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is passed to execve as it is; this process's own (empty) one plays no part.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failure = match run(spec, self.init) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        self.report(&failure);
        Err(ExecutorError::Other(failure.message))
    }
}

fn run(spec: &Spec, init: bool) -> Result<std::convert::Infallible, StartFailure> {
    let (process, name) = process_of(spec)?;
    let none = Vec::new();
    let texts = |list: &'_ Option<Vec<String>>| list.as_ref().unwrap_or(&none).clone();
    let (arguments, environment) = (texts(process.args()), texts(process.env()));
    let ready = Ready::new(name, &arguments, &environment)?;
    if init {
        super::init::become_init().map_err(|error| failure_of(name, &error))?;
    }
    Err(ready.execute())
}

/// A program that is found and can be executed without further preparation.
pub(super) struct Ready<'a> {
    name: &'a str,
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl<'a> Ready<'a> {
    /// Finds a program, in the root and with the rights of this process.
    pub(super) fn new(name: &'a str, arguments: &[String], environment: &[String]) -> Result<Self, StartFailure> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| StartFailure::new(FailureKind::Invalid, "a NUL byte in an argument"))
        };
        let texts = |list: &[String]| list.iter().map(|entry| text(entry)).collect::<Result<Vec<_>, _>>();
        let path = find(name, search_path(environment))?;
        let path = text(&path.to_string_lossy())?;
        Ok(Self { name, path, arguments: texts(arguments)?, environment: texts(environment)? })
    }

    /// Executes it; what it returns is why it could not.
    pub(super) fn execute(self) -> StartFailure {
        sys::reset_signals();
        let error = sys::execute(&self.path, &self.arguments, &self.environment);
        failure_of(self.name, &error)
    }
}

fn process_of(spec: &Spec) -> Result<(&Process, &str), StartFailure> {
    let process =
        spec.process().as_ref().ok_or_else(|| StartFailure::new(FailureKind::Invalid, "no command specified"))?;
    let name = process.args().as_ref().and_then(|arguments| arguments.first());
    name.map(|name| (process, name.as_str()))
        .ok_or_else(|| StartFailure::new(FailureKind::Invalid, "no command specified"))
}

fn path_of(process: &Process) -> &str {
    process.env().as_ref().map_or("", |environment| search_path(environment))
}

fn search_path(environment: &[String]) -> &str {
    environment.iter().filter_map(|entry| entry.strip_prefix("PATH=")).next_back().unwrap_or_default()
}

/// The system's words for an error, as clients know them.
pub(super) fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

/// The file of a program: as it is if it has a slash, else the first executable one in `PATH`.
fn find(name: &str, search: &str) -> Result<PathBuf, StartFailure> {
    if name.contains('/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StartFailure::new(
                FailureKind::NotFound,
                format!("exec: \"{name}\": stat {name}: no such file or directory"),
            ),
            _ => failure_of(name, &error),
        });
    }
    let mut refused = None;
    for directory in search.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    match refused {
        Some(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(failure_of(name, &error)),
        _ => Err(StartFailure::new(
            FailureKind::NotFound,
            format!("exec: \"{name}\": executable file not found in $PATH"),
        )),
    }
}

/// Whether a file is one that may be executed by someone.
fn check(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn failure_of(name: &str, error: &io::Error) -> StartFailure {
    let with = |kind, words: &str| StartFailure::new(kind, format!("exec: \"{name}\": {words}"));
    match (error.kind(), error.raw_os_error()) {
        // The interpreter of a script is missing, or the file has gone since it was found.
        (io::ErrorKind::NotFound, _) => with(FailureKind::NotFound, "no such file or directory"),
        (io::ErrorKind::IsADirectory, _) => with(FailureKind::PermissionDenied, "is a directory: permission denied"),
        (io::ErrorKind::PermissionDenied, _) => with(FailureKind::PermissionDenied, "permission denied"),
        (_, Some(libc::ENOEXEC)) => with(FailureKind::ExecFormat, "exec format error"),
        _ => with(FailureKind::Other, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would_and_failures_have_their_kind() {
        let kind = |name: &str, path: &str| find(name, path).map_err(|failure| failure.kind);
        assert!(find("sh", "/nonexistent:/bin").unwrap().ends_with("bin/sh"));
        assert_eq!(kind("no-such-program", "/bin:/usr/bin"), Err(FailureKind::NotFound));
        assert_eq!(kind("/bin/no-such-program", ""), Err(FailureKind::NotFound));
        assert_eq!(kind("/etc", ""), Err(FailureKind::PermissionDenied));
        assert_eq!(kind("/etc/passwd", ""), Err(FailureKind::PermissionDenied));
        assert_eq!(kind("passwd", "/etc"), Err(FailureKind::PermissionDenied));
        assert_eq!(kind("/bin/sh/x", ""), Err(FailureKind::NotFound));
    }

    #[test]
    fn texts_are_those_that_dockers_clients_match() {
        let text = |name: &str, path: &str| find(name, path).unwrap_err().message;
        assert_eq!(text("x-none", "/bin"), "exec: \"x-none\": executable file not found in $PATH");
        assert!(text("/x-none", "").ends_with("no such file or directory"));
        assert!(text("/etc", "").ends_with("is a directory: permission denied"));
        assert!(failure_of("x", &io::Error::from_raw_os_error(libc::ENOEXEC)).message.ends_with("exec format error"));
    }
}
