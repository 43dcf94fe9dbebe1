//! The shim: the process that holds one container, from its creation to its end.
//!
//! H1  One thread, no async; it forks the runtime library into a child of its own and stays small itself.
//! H2  It needs no daemon: output goes to the log, the exit to `exit.json`, and a new daemon connects to the same socket.
//! H3  What the program wrote before it ended is in the log, and on its way to every attached client, before the exit is recorded.
//! H4  It ends by itself once the exit is recorded, the cgroup removed, and those who waited have their answer.
//!
//! Touches: the container's run directory, its log, its cgroup; nothing else of the host.

mod cause;
mod create;
mod exec;
mod init;
mod join;
mod late;
mod program;
mod serve;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::{self, Cgroup};
use crate::client::{self, EXIT_NAME, ExecConfig, LeftBehind, SOCKET_NAME, STATE_NAME, ShimConfig};
use crate::error::{FailureKind, StartFailure};
use crate::logs::LogWriter;
use crate::protocol::{self, Response};
use crate::spec::{self, SpecError};
use crate::{devices, sys};

/// Version of `state.json` and `exit.json`.
pub(crate) const RECORD_VERSION: u32 = 1;
/// Directory of the OCI bundle, in the run directory.
const BUNDLE_NAME: &str = "bundle";
/// Directory of the runtime library's own state, in the run directory.
const LIBRARY_NAME: &str = "oci";
/// Socket on which the terminal arrives.
const CONSOLE_NAME: &str = "console.sock";

/// The whole life of a shim: `baleen shim`. It reads its configuration from its input, forks the shim proper and ends at once;
/// the answer comes on its output when the container is set up. Call it first thing in `main`: no thread may have been started.
///
/// Takes no arguments: what would be one is in the configuration, where other users cannot see it.
pub fn shim_main() -> ! {
    if rustix::io::fcntl_getfd(rustix::stdio::stdin()).is_err() {
        sys::exit_now(2);
    }
    match sys::fork() {
        // The daemon waits for this process, and need not wait for the other: that one is PID 1's.
        Ok(sys::Forked::Parent(_)) => sys::exit_now(0),
        Ok(sys::Forked::Child) => {}
        Err(_) => sys::exit_now(1),
    }
    let code = match run() {
        Ok(()) => 0,
        Err(failure) => {
            // The daemon may be gone: then nobody is left to be told.
            let _ = io::stdout()
                .write_all(&protocol::encode_response(&Response::Failed(failure)))
                .and_then(|()| io::stdout().flush());
            1
        }
    };
    sys::exit_now(code)
}

fn run() -> Result<(), StartFailure> {
    sys::close_inherited();
    let config = read_config()?;
    become_shim().map_err(|error| StartFailure::other(format!("cannot set up the shim process: {error}")))?;
    let dir = config.dir.clone();
    if client::connect_socket(&dir).is_ok() {
        // Before anything is set up: cleaning up would take a living container's files away.
        return Err(StartFailure::other("container has a shim already; connect to it or delete it first"));
    }
    let server = match config.exec.clone() {
        Some(exec) => set_up_exec(&config, &exec),
        None => set_up(config),
    };
    let server = match server {
        Ok(server) => server,
        Err(failure) => {
            remove_work_files(&dir);
            return Err(failure);
        }
    };
    let ready = protocol::encode_response(&Response::Ready { pid: server.pid() });
    // A daemon that died meanwhile does not matter: the next one finds the socket.
    let _ = io::stdout().write_all(&ready).and_then(|()| io::stdout().flush());
    let _ = close_standard_streams();
    sys::trim_memory();
    server.run();
    Ok(())
}

fn read_config() -> Result<ShimConfig, StartFailure> {
    let bad = |what: String| StartFailure::other(format!("shim cannot read its configuration: {what}"));
    let mut bytes = Vec::new();
    let limit = protocol::CONTROL_BYTES_MAX as u64 + 4;
    io::stdin().take(limit).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    let frame = protocol::split_frame(&bytes, protocol::CONTROL_BYTES_MAX).map_err(|error| bad(error.to_string()))?;
    let (json, _) = frame.ok_or_else(|| bad("it is incomplete".to_owned()))?;
    protocol::decode_config(json).map_err(|error| bad(error.to_string()))
}

fn become_shim() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Orphans of a container in the host's PID namespace come to us, and so does the container's first process, whose parent ends.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::thread::set_name(c"baleen-shim")?;
    // Who ends a daemon, or all programs at a shutdown, must not leave a container without its shim: that one ends with its container.
    sys::ignore_requests_to_end();
    // The daemon's keys are not the container's.
    sys::new_session_keyring()?;
    Ok(())
}

fn set_up(config: ShimConfig) -> Result<serve::Server, StartFailure> {
    let failed = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        StartFailure::other(format!("cannot {what} {}: {error}", path.display()))
    };
    let (dir, spec) = (&config.dir, &config.spec);
    let held: OwnedFd = fs::File::open(dir).map_err(|error| failed("open", dir, &error))?.into();
    match fs::remove_file(dir.join(EXIT_NAME)) {
        // The last run's exit must not pass for this one's.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the last exit in", dir, &error));
        }
        _ => {}
    }
    let signals = sys::child_signal_fd().map_err(|error| failed("watch children of", dir, &error))?;

    if !sys::has_mount_setattr() {
        return Err(StartFailure::other("this kernel has no mount_setattr(2); containers need Linux 5.12 or newer"));
    }
    let oci = spec::runtime_spec(spec, &config.rootfs).map_err(refusal)?;
    let rules = spec::device_rules(spec).map_err(refusal)?;
    spec::make_working_directory(spec, &config.rootfs).map_err(refusal)?;
    let bundle = dir.join(BUNDLE_NAME);
    fs::create_dir_all(&bundle).map_err(|error| failed("create", &bundle, &error))?;
    write_private(&bundle.join("config.json"), oci.to_string().as_bytes())
        .map_err(|error| failed("write", &bundle, &error))?;
    drop(oci);

    let log = LogWriter::open(config.log.as_ref()).map_err(|(path, error)| failed("open log", &path, &error))?;
    let listener = bind(&held, SOCKET_NAME).map_err(|error| failed("listen in", dir, &error))?;
    let (own, theirs) =
        Stdio::make(spec.tty, spec.open_stdin, dir, &held).map_err(|error| failed("make streams of", dir, &error))?;

    let created = create::create(create::Plan {
        id: &spec.id,
        bundle: &bundle,
        library: &dir.join(LIBRARY_NAME),
        stdio: theirs,
        init: spec.init,
    });
    let host = cgroup::Host::read().map_err(|(path, error)| failed("read", &path, &error))?;
    let group = host.group(&cgroup::path_of(&spec.cgroup_parent, &spec.id));
    let created = created.inspect_err(|_| discard(&group))?;
    let finish = || -> Result<serve::Server, StartFailure> {
        devices::apply(&rules, &group, host.is_unified())
            .map_err(|(path, error)| failed("apply the device rules in", &path, &error))?;
        if spec.resources.oom_kill_disable
            && let Some(dir) = group.dir_with("memory.oom_control")
        {
            // The library knows the field and leaves it out.
            let path = dir.join("memory.oom_control");
            fs::write(&path, "1").map_err(|error| failed("switch off the OOM killer in", &path, &error))?;
        }
        let streams = own.receive().map_err(|error| failed("receive the terminal of", dir, &error))?;
        let pid =
            Pid::from_raw(created.pid).ok_or_else(|| StartFailure::other("the runtime library named no process"))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| failed("watch the process of", dir, &error))?;
        late::finish(spec, &pidfd)?;
        let left = LeftBehind {
            version: RECORD_VERSION,
            pid: created.pid,
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            cgroup_dirs: group.dirs().to_vec(),
        };
        let text = serde_json::to_vec(&left).map_err(|error| failed("write", dir, &error))?;
        write_private(&dir.join(STATE_NAME), &text).map_err(|error| failed("write", dir, &error))?;
        Ok(serve::Server::new(serve::Parts {
            id: spec.id.clone(),
            held,
            listener,
            signals,
            pid,
            pidfd,
            outcome: created.outcome,
            streams,
            log,
            group: group.clone(),
            executes: !spec.init,
            gate: None,
        }))
    };
    finish().inspect_err(|_| discard(&group))
}

/// The shim of a further program. The cgroup is the container's, so that nothing of it is killed or removed here.
fn set_up_exec(config: &ShimConfig, exec: &ExecConfig) -> Result<serve::Server, StartFailure> {
    let dir = &config.dir;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        StartFailure::other(format!("cannot {what} {}: {error}", dir.display()))
    };
    let held: OwnedFd = fs::File::open(dir).map_err(|error| failed("open", &error))?.into();
    let signals = sys::child_signal_fd().map_err(|error| failed("watch children of", &error))?;
    let exec::Prepared { pid, outcome, streams, gate } = exec::prepare(config, exec)?;
    let finish = || -> io::Result<_> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let listener = bind(&held, SOCKET_NAME)?;
        let left = LeftBehind {
            version: RECORD_VERSION,
            pid: pid.as_raw_nonzero().get(),
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            cgroup_dirs: Vec::new(),
        };
        write_private(&dir.join(STATE_NAME), &serde_json::to_vec(&left)?)?;
        let log = LogWriter::open(None).map_err(|(_, error)| error)?;
        Ok((pidfd, listener, log))
    };
    let (pidfd, listener, log) = finish().map_err(|error| {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        failed("serve", &error)
    })?;
    let (id, group) = (exec.id.clone(), Cgroup::from_dirs(Vec::new()));
    let gate = Some(gate);
    Ok(serve::Server::new(serve::Parts {
        id,
        held,
        listener,
        signals,
        pid,
        pidfd,
        outcome,
        streams,
        log,
        group,
        executes: true,
        gate,
    }))
}

/// A created container that cannot be kept.
fn discard(group: &Cgroup) {
    // What is left is named by the failure's own text, or found by the daemon's clean-up: there is nobody else to tell.
    let _ = group.kill_and_remove();
    while matches!(rustix::process::wait(rustix::process::WaitOptions::NOHANG), Ok(Some(_))) {}
}

/// Removes all but what a later daemon reads.
fn remove_work_files(dir: &Path) {
    for name in [BUNDLE_NAME, LIBRARY_NAME] {
        let _ = fs::remove_dir_all(dir.join(name));
    }
    for name in [SOCKET_NAME, CONSOLE_NAME, STATE_NAME] {
        let _ = fs::remove_file(dir.join(name));
    }
}

/// A request that cannot be honoured, sorted as the API needs it.
fn refusal(error: SpecError) -> StartFailure {
    let kind = match &error {
        SpecError::User(_) => FailureKind::UnknownUser,
        SpecError::BindSourceMissing { .. } => FailureKind::BindSourceMissing,
        SpecError::MountTypes { .. } => FailureKind::NotADirectory,
        SpecError::Host { .. } => FailureKind::Other,
        _ => FailureKind::Invalid,
    };
    let cause = std::error::Error::source(&error)
        .filter(|_| kind != FailureKind::UnknownUser)
        .map(|source| format!(": {source}"));
    StartFailure::new(kind, format!("{error}{}", cause.unwrap_or_default()))
}

pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// Listens in the run directory, through its descriptor: its path may be longer than a socket's name can be.
fn bind(held: &OwnedFd, name: &str) -> io::Result<UnixListener> {
    let path = format!("/proc/self/fd/{}/{name}", held.as_raw_fd());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn close_standard_streams() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The container's ends of its streams.
enum ContainerStdio {
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Terminal { socket: std::path::PathBuf },
}

/// The shim's ends, once they are known.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

/// The shim's ends while the container is being created.
enum Stdio {
    Pipes(Streams),
    Terminal { listener: UnixListener, open_stdin: bool },
}

impl Stdio {
    fn make(tty: bool, open_stdin: bool, dir: &Path, held: &OwnedFd) -> io::Result<(Self, ContainerStdio)> {
        if tty {
            let listener = bind(held, CONSOLE_NAME)?;
            return Ok((
                Self::Terminal { listener, open_stdin },
                ContainerStdio::Terminal { socket: dir.join(CONSOLE_NAME) },
            ));
        }
        Self::pipes(open_stdin).map(|(own, theirs)| (Self::Pipes(own), theirs))
    }

    fn pipes(open_stdin: bool) -> io::Result<(Streams, ContainerStdio)> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let (stdin, input) = if open_stdin {
            let (theirs, ours) = pipe()?;
            (theirs, Some(ours))
        } else {
            (fs::File::open("/dev/null")?.into(), None)
        };
        let ((stdout, theirs_out), (stderr, theirs_err)) = (pipe()?, pipe()?);
        for ours in [Some(&stdout), Some(&stderr), input.as_ref()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        let own = Streams { stdin: input, stdout: Some(stdout), stderr: Some(stderr), terminal: None };
        Ok((own, ContainerStdio::Pipes { stdin, stdout: theirs_out, stderr: theirs_err }))
    }

    /// Takes the terminal that the runtime library has made inside the container and sent.
    fn receive(self) -> io::Result<Streams> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
        let (listener, open_stdin) = match self {
            Self::Pipes(streams) => return Ok(streams),
            Self::Terminal { listener, open_stdin } => (listener, open_stdin),
        };
        // Both have happened already: the library connects and sends before it reports the container as created.
        let (socket, _) = listener.accept()?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0_u8; 64];
        rustix::net::recvmsg(&socket, &mut [io::IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let terminal = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no terminal was sent"))?;
        Streams::of_terminal(terminal, open_stdin)
    }
}

impl Streams {
    fn of_terminal(terminal: OwnedFd, open_stdin: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&terminal, true)?;
        let stdin = open_stdin.then(|| terminal.try_clone()).transpose()?;
        Ok(Self { stdin, stdout: Some(terminal.try_clone()?), stderr: None, terminal: Some(terminal) })
    }
}
