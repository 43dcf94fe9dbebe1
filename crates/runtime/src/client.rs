//! The daemon's side of a shim: starting one, finding one again, and its verbs.
//!
//! C1  A client connects through a descriptor of the container's run directory: no path is too long for a socket.
//! C2  Each verb has a connection of its own, so that a `Shim` can be used from any thread, and a daemon that dies harms none.
//! C3  The absence of an answer is never success: a lost connection is resolved by `exit.json`, or it is an error.
//!
//! Blocking: all of this; call it from a worker thread. An async caller uses [`connect_socket`] and [`crate::protocol`].

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::protocol::{self, AttachOptions, ExitRecord, Request, Response, ShimState};
use crate::spec::ContainerSpec;
use crate::{cgroup, sys};

/// Name of the control socket in a container's run directory.
pub const SOCKET_NAME: &str = "shim.sock";
/// Name of the exit record in a container's run directory.
pub const EXIT_NAME: &str = "exit.json";
/// Name of the record of what a shim has set up, for a daemon that finds the shim dead.
pub const STATE_NAME: &str = "state.json";

/// What a shim needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    /// Program of the shim; `/proc/self/exe` is this program.
    pub program: PathBuf,
    /// Its arguments; `["shim"]` for the `baleen` binary.
    pub arguments: Vec<String>,
    /// The container's run directory (`<exec-root>/containers/<id>`); made with mode 0700 if missing. Lives on a tmpfs.
    pub dir: PathBuf,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// The log; `None` keeps none (log driver `none`).
    pub log: Option<LogConfig>,
    /// The container. For an exec: its container, with the arguments, environment, directory, user and terminal of the exec.
    pub spec: ContainerSpec,
    /// Set for a further program in a container that runs.
    #[serde(default)]
    pub exec: Option<ExecConfig>,
}

/// A further program in a running container. It has a shim of its own, in a run directory of its own; what runs there ends with
/// the container at the latest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// The exec's ID, as records and states name it.
    pub id: String,
    /// Run directory of the container that it joins.
    pub container_dir: PathBuf,
    /// Gives it all capabilities; its system call filter stays the container's.
    #[serde(default)]
    pub privileged: bool,
}

impl ShimConfig {
    /// A configuration with this very program as the shim, called as `baleen shim`.
    #[must_use]
    pub fn new(dir: PathBuf, rootfs: PathBuf, spec: ContainerSpec) -> Self {
        let program = PathBuf::from("/proc/self/exe");
        Self { program, arguments: vec!["shim".to_owned()], dir, rootfs, log: None, spec, exec: None }
    }

    /// A configuration for a program in the container of `exec.container_dir`, with `dir` as its run directory.
    #[must_use]
    pub fn for_exec(dir: PathBuf, spec: ContainerSpec, exec: ExecConfig) -> Self {
        Self { exec: Some(exec), ..Self::new(dir, PathBuf::new(), spec) }
    }
}

/// A json-file log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The file; made with mode 0640. Older files are `<path>.1`, `<path>.2`, ...
    pub path: PathBuf,
    /// A new file is begun when a record would make this one longer; `None`: never.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Files kept, the current one included; at least 1.
    #[serde(default = "one")]
    pub max_files: u32,
}

fn one() -> u32 {
    1
}

impl LogConfig {
    /// A log without limit.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, max_bytes: None, max_files: 1 }
    }
}

/// A shim, and through it a container.
#[derive(Debug, Clone)]
pub struct Shim {
    dir: PathBuf,
    pid: i32,
}

/// A container whose program has been executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Host PID of its first process.
    pub pid: i32,
    /// When (RFC 3339 with nanoseconds).
    pub started_at: String,
}

impl Shim {
    /// A new shim with its container set up: all but its program's execution is done, and clients may attach.
    /// The root file system must be mounted; it may be unmounted once the container has ended.
    ///
    /// # Errors
    /// `Start` if the container cannot be created, with the cause (the shim is gone then, and nothing is left);
    /// `Io` if the shim cannot be started.
    pub fn spawn(config: &ShimConfig) -> Result<Self, RuntimeError> {
        let dir = &config.dir;
        make_run_dir(dir)?;
        let program = sys::open_program(&config.program)
            .map_err(|source| RuntimeError::io("open shim program", &config.program, source))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0("baleen").args(&config.arguments).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|source| RuntimeError::io("start shim", &config.program, source))?;
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&protocol::encode_config(config)));
        let mut answer = Vec::new();
        let read = match child.stdout.take() {
            Some(stdout) => stdout.take(protocol::CONTROL_BYTES_MAX as u64).read_to_end(&mut answer),
            None => Ok(0),
        };
        // The process that we started ends as soon as it has forked the shim proper, which belongs to PID 1 from then on.
        let status = child.wait().map_err(|source| RuntimeError::io("wait for shim", dir, source))?;
        drop(program);
        read.map_err(|source| RuntimeError::io("read from shim", dir, source))?;
        let broken = |what: String| RuntimeError::Protocol { dir: dir.clone(), what };
        let frame =
            protocol::split_frame(&answer, protocol::CONTROL_BYTES_MAX).map_err(|error| broken(error.to_string()))?;
        let Some((json, _)) = frame else {
            return Err(match written {
                Err(source) => RuntimeError::io("write to shim", dir, source),
                Ok(()) => broken(format!("it ended without an answer ({status})")),
            });
        };
        match decode(dir, json)? {
            Response::Ready { pid } => Ok(Self { dir: dir.clone(), pid }),
            Response::Failed(failure) => Err(failure.into()),
            other => Err(broken(format!("unexpected answer {other:?}"))),
        }
    }

    /// The shim that already holds the container of this run directory.
    /// # Errors
    /// `ShimGone` if there is none (any more): see [`read_exit`] and [`clean_up`].
    pub fn connect(dir: &Path) -> Result<Self, RuntimeError> {
        let mut shim = Self { dir: dir.to_owned(), pid: 0 };
        shim.pid = shim.state()?.pid;
        Ok(shim)
    }

    /// Host PID of the container's first process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The container's run directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets the container run; returns when its program has been executed.
    /// # Errors
    /// `Start` if the program could not be executed; the container has ended then. `Refused` if it was started before.
    pub fn start(&self) -> Result<Started, RuntimeError> {
        match self.call(&Request::Start)? {
            Response::Started { pid, started_at } => Ok(Started { pid, started_at }),
            Response::Failed(failure) => Err(failure.into()),
            other => Err(self.unexpected(other)),
        }
    }

    /// How the container ended. Blocking: until it has.
    /// # Errors
    /// `ShimGone` if the shim was killed without recording an exit.
    pub fn wait(&self) -> Result<ExitRecord, RuntimeError> {
        match self.call(&Request::Wait) {
            Ok(Response::Exited(record)) => Ok(record),
            Ok(other) => Err(self.unexpected(other)),
            // A shim ends soon after its container: the record says what its answer would have said (C3).
            Err(RuntimeError::ShimGone { dir }) => read_exit(&self.dir)?.ok_or(RuntimeError::ShimGone { dir }),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal to the container's first process.
    /// # Errors
    /// `Refused` or `ShimGone` if it has ended.
    pub fn kill(&self, signal: i32) -> Result<(), RuntimeError> {
        self.done(&Request::Kill { signal })
    }

    /// Sets the terminal's size.
    /// # Errors
    /// `Refused` without a terminal or after the end.
    pub fn resize(&self, height: u16, width: u16) -> Result<(), RuntimeError> {
        self.done(&Request::Resize { height, width })
    }

    /// What the shim knows.
    /// # Errors
    /// `ShimGone`.
    pub fn state(&self) -> Result<ShimState, RuntimeError> {
        match self.call(&Request::State)? {
            Response::State(state) => Ok(state),
            other => Err(self.unexpected(other)),
        }
    }

    /// A stream connected to the container's input and output, in stream frames (protocol P3) both ways. What the container
    /// writes after this returns arrives on it, to the last byte; then it ends. A client that does not read holds the container up.
    /// # Errors
    /// `ShimGone`, `Refused`.
    pub fn attach(&self, options: AttachOptions) -> Result<UnixStream, RuntimeError> {
        let mut stream = self.open()?;
        match self.exchange(&mut stream, &Request::Attach(options))? {
            Response::Done => Ok(stream),
            other => Err(self.unexpected(other)),
        }
    }

    /// Closes the container's input.
    /// # Errors
    /// `ShimGone`.
    pub fn close_stdin(&self) -> Result<(), RuntimeError> {
        self.done(&Request::CloseStdin)
    }

    /// Freezes all processes of the container.
    /// # Errors
    /// `Refused` unless it runs.
    pub fn pause(&self) -> Result<(), RuntimeError> {
        self.done(&Request::Pause)
    }

    /// Thaws them.
    /// # Errors
    /// `Refused` unless it is paused.
    pub fn unpause(&self) -> Result<(), RuntimeError> {
        self.done(&Request::Unpause)
    }

    /// Kills what runs, waits for the shim to clean up, and removes the run directory, `exit.json` included.
    /// # Errors
    /// `Io` for what could not be removed.
    pub fn delete(&self) -> Result<(), RuntimeError> {
        match self.done(&Request::Delete) {
            Ok(()) | Err(RuntimeError::ShimGone { .. }) => {}
            Err(error) => return Err(error),
        }
        clean_up(&self.dir)
    }

    fn open(&self) -> Result<UnixStream, RuntimeError> {
        connect_socket(&self.dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                RuntimeError::ShimGone { dir: self.dir.clone() }
            }
            _ => RuntimeError::io("connect to shim", &self.dir, source),
        })
    }

    fn call(&self, request: &Request) -> Result<Response, RuntimeError> {
        self.exchange(&mut self.open()?, request)
    }

    fn done(&self, request: &Request) -> Result<(), RuntimeError> {
        match self.call(request)? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    fn exchange(&self, stream: &mut UnixStream, request: &Request) -> Result<Response, RuntimeError> {
        let gone = |source: io::Error| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                RuntimeError::ShimGone { dir: self.dir.clone() }
            }
            _ => RuntimeError::io("talk to shim", &self.dir, source),
        };
        stream.write_all(&protocol::encode_request(request)).map_err(gone)?;
        let mut head = [0_u8; 4];
        stream.read_exact(&mut head).map_err(gone)?;
        let length = u32::from_le_bytes(head) as usize;
        if length > protocol::CONTROL_BYTES_MAX {
            return Err(RuntimeError::Protocol { dir: self.dir.clone(), what: format!("answer of {length} bytes") });
        }
        let mut json = vec![0; length];
        stream.read_exact(&mut json).map_err(gone)?;
        match decode(&self.dir, &json)? {
            Response::Refused { message } => Err(RuntimeError::Refused { message }),
            response => Ok(response),
        }
    }

    fn unexpected(&self, response: Response) -> RuntimeError {
        RuntimeError::Protocol { dir: self.dir.clone(), what: format!("unexpected answer {response:?}") }
    }
}

/// A connection to the shim of this run directory, for callers that speak [`crate::protocol`] themselves.
/// # Errors
/// `NotFound` or `ConnectionRefused` if the shim is gone.
pub fn connect_socket(dir: &Path) -> io::Result<UnixStream> {
    let held: OwnedFd = fs::File::open(dir)?.into();
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_NAME}", held.as_raw_fd()))
}

/// How the container of this run directory ended, if its shim has recorded it.
/// # Errors
/// `Io` if the record cannot be read or is not one.
pub fn read_exit(dir: &Path) -> Result<Option<ExitRecord>, RuntimeError> {
    read_record(&dir.join(EXIT_NAME))
}

/// Removes what a container has left: kills what still runs in its cgroup, removes the cgroup and the run directory.
/// For a container whose shim has ended or was killed; does nothing if nothing is left.
/// # Errors
/// `Io` for what could not be removed.
pub fn clean_up(dir: &Path) -> Result<(), RuntimeError> {
    if let Some(left) = read_record::<LeftBehind>(&dir.join(STATE_NAME))? {
        cgroup::Cgroup::from_dirs(left.cgroup_dirs)
            .kill_and_remove()
            .map_err(|(path, source)| RuntimeError::io("remove cgroup", path, source))?;
    }
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RuntimeError::io("remove", dir, source)),
        _ => Ok(()),
    }
}

/// Content of `state.json`: what someone must know to clean up after a killed shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeftBehind {
    pub(crate) version: u32,
    pub(crate) pid: i32,
    pub(crate) shim_pid: i32,
    pub(crate) cgroup_dirs: Vec<PathBuf>,
}

/// What the shim of this run directory has set up, if it has.
pub(crate) fn left_behind(dir: &Path) -> Result<Option<LeftBehind>, RuntimeError> {
    read_record(&dir.join(STATE_NAME))
}

fn read_record<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RuntimeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| RuntimeError::io("read", path, io::Error::new(io::ErrorKind::InvalidData, error))),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RuntimeError::io("read", path, source)),
    }
}

fn decode(dir: &Path, json: &[u8]) -> Result<Response, RuntimeError> {
    protocol::decode_response(json).map_err(|error| match error {
        protocol::ProtocolError::Version { found } => RuntimeError::Version { found, supported: protocol::VERSION },
        other => RuntimeError::Protocol { dir: dir.to_owned(), what: other.to_string() },
    })
}

fn make_run_dir(dir: &Path) -> Result<(), RuntimeError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(|source| RuntimeError::io("create", dir, source))
}
