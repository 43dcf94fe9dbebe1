//! A further program in a running container: finds the container, prepares the program's process, and lets it go.
//!
//! J1  The process is prepared outside the container's memory group and joins that last: what preparing costs is not the
//!     container's, and a container without room is told so before anything of it is touched.
//! J2  Until its program runs, the process is the first that the kernel would kill for want of memory.
//! J3  The container is found through its own shim, and its process held by a descriptor: a reused number is never joined.
//!
//! Touches: the exec's run directory, `/proc` of the container's process, its cgroup.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use super::join::{self, Message};
use super::{Stdio, Streams, refusal};
use crate::cgroup::{self, Cgroup};
use crate::client::{self, ExecConfig, Shim, ShimConfig};
use crate::error::{FailureKind, RuntimeError, StartFailure};
use crate::protocol::ContainerStatus;
use crate::spec;
use crate::sys;

/// The longest text about a failure.
const FAILURE_BYTES_MAX: u64 = 64 << 10;
/// What the kernel needs in the container's group to execute a small program and to run it: page tables, the first pages of program and
/// stack, with the room that each CPU sets aside. Measured with a static `true`: docs/decisions/0310-exec-in-low-memory.md.
const ROOM_BYTES: u64 = 384 << 10;

/// A process that waits to be let go.
pub(super) struct Prepared {
    pub(super) pid: Pid,
    pub(super) outcome: OwnedFd,
    pub(super) streams: Streams,
    pub(super) gate: Gate,
}

/// What holds a prepared process back.
pub(super) struct Gate {
    sync: OwnedFd,
    pid: Pid,
    container: Cgroup,
    oom_score: File,
    /// What the program gets once it runs.
    oom_score_adj: i32,
    /// Stops once its program is executed, before it runs; where tracing is forbidden it just runs.
    traced: bool,
    /// How many processes of the container the kernel had killed for want of memory when this one joined it.
    kills_before: u64,
}

impl Gate {
    /// Lets the process join the container's memory group and execute its program.
    pub(super) fn open(&mut self) -> Result<(), StartFailure> {
        if let Some(shortage) = self.container.memory_shortage(ROOM_BYTES) {
            return Err(no_memory(&shortage.to_string()));
        }
        self.kills_before = self.container.oom_kills();
        if let Some(dir) = self.container.memory_dir() {
            add(dir, self.pid).map_err(|error| {
                StartFailure::other(format!("cannot join the container's memory group {}: {error}", dir.display()))
            })?;
        }
        self.traced = sys::stop_at_execution(self.pid).is_ok();
        rustix::net::send(&self.sync, &Message::Go.to_bytes(), SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|error| StartFailure::other(format!("cannot start the prepared process: {error}")))
    }

    /// Called when the program has been executed. A traced one is let go by [`Gate::stopped`].
    pub(super) fn opened(&mut self) {
        if !self.traced {
            self.lower_score();
        }
    }

    /// Called when the process has stopped: with a signal on its way, or before the first instruction of its program (J2).
    pub(super) fn stopped(&mut self, signal: i32, executed: bool) {
        // A failure means that it has been killed meanwhile: its end comes next.
        let _ = if executed {
            self.lower_score();
            self.traced = false;
            sys::release(self.pid)
        } else {
            sys::go_on(self.pid, signal)
        };
    }

    /// From now on it is a program like the container's others.
    fn lower_score(&mut self) {
        // It may have ended already.
        let _ = self.oom_score.write_all(self.oom_score_adj.to_string().as_bytes());
    }

    /// Why the process was killed before its program ran.
    pub(super) fn killed(&self) -> StartFailure {
        if self.container.oom_kills() > self.kills_before {
            let now = self.container.memory_shortage(u64::MAX).map(|shortage| shortage.to_string());
            return no_memory(&now.unwrap_or_else(|| "the kernel killed the process".to_owned()));
        }
        StartFailure::new(FailureKind::NotRunning, "the process was killed before its program was executed")
    }
}

fn no_memory(what: &str) -> StartFailure {
    let text = format!("no memory for a further program in the container: {what}; raise the limit or end a program");
    StartFailure::new(FailureKind::NoMemory, text)
}

/// Moves a process into a group.
fn add(dir: &Path, pid: Pid) -> io::Result<()> {
    std::fs::write(dir.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
}

/// The container that is joined.
struct Target {
    pidfd: OwnedFd,
    pid: i32,
    container: Cgroup,
}

impl Target {
    /// Finds a running container by its run directory (J3).
    fn find(dir: &Path) -> Result<Self, StartFailure> {
        let failed = |error: RuntimeError| match error {
            RuntimeError::ShimGone { .. } => not_running(),
            error => StartFailure::other(format!("cannot find the container to join: {error}")),
        };
        let shim = Shim::connect(dir).map_err(failed)?;
        let pid = Pid::from_raw(shim.pid()).ok_or_else(not_running)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| not_running())?;
        // Its shim has not reaped it: the number was still its own when the descriptor was opened.
        let state = shim.state().map_err(failed)?;
        if state.pid != shim.pid() || state.status != ContainerStatus::Running {
            return Err(not_running());
        }
        let left = client::left_behind(dir).map_err(failed)?.ok_or_else(not_running)?;
        let dirs = left.cgroup_dirs.into_iter().map(|dir| cgroup::dir_for_processes(dir, state.pid)).collect();
        Ok(Self { pidfd, pid: state.pid, container: Cgroup::from_dirs(dirs) })
    }

    /// The container's root, as its first process sees it.
    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// Whether it has a user namespace of its own: joining one's own is an error.
    fn has_own_users(&self) -> io::Result<bool> {
        let id = |pid: &str| rustix::fs::stat(format!("/proc/{pid}/ns/user")).map(|stat| (stat.st_dev, stat.st_ino));
        Ok(id(&self.pid.to_string())? != id("self")?)
    }

    /// Whether its first process has not ended: the descriptor reads when it has.
    fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }
}

fn not_running() -> StartFailure {
    StartFailure::new(FailureKind::NotRunning, "container is not running")
}

/// Prepares the process of `config.exec` up to, and not including, the execution of its program.
pub(super) fn prepare(config: &ShimConfig, exec: &ExecConfig) -> Result<Prepared, StartFailure> {
    let system = |what: &str, error: &dyn std::fmt::Display| StartFailure::other(format!("cannot {what}: {error}"));
    let target = Target::find(&exec.container_dir)?;
    let process = spec::exec_process(&config.spec, exec.privileged, &target.root()).map_err(refusal)?;
    let users = target.has_own_users().map_err(|error| system("look at the container's namespaces", &error))?;
    let own_score = || std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse::<i32>().ok();
    let oom_score_adj = process.oom_score_adj.or_else(own_score).unwrap_or(0);

    let (sync, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| system("make a socket pair", &error))?;
    let (outcome, outcome_in) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| system("make a pipe", &error))?;
    let (own, stdio) = match config.spec.tty {
        true => (None, None),
        false => {
            let (own, stdio) =
                Stdio::pipes(config.spec.open_stdin).map_err(|error| system("make the streams", &error))?;
            (Some(own), Some(stdio))
        }
    };
    let child = match sys::fork().map_err(|error| system("fork", &error))? {
        sys::Forked::Parent(pid) => pid,
        sys::Forked::Child => {
            let spec = &config.spec;
            let target = &target.pidfd;
            join::enter(join::Plan { spec, process: &process, target, users, stdio, sync: theirs, outcome: outcome_in })
        }
    };
    drop((theirs, outcome_in, stdio, process));
    let mut arriving = Arriving { pid: None, terminal: None };
    let arrived = arriving.receive(&sync, &target.container);
    // It ends by itself once it has made the process that is ours from then on.
    let _ = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
    let (Ok(()), Some(pid)) = (&arrived, arriving.pid) else {
        drop(sync);
        if let Some(pid) = arriving.pid {
            // Not reaped yet, so that the number is its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let mut told = Vec::new();
        let _ = File::from(outcome).take(FAILURE_BYTES_MAX).read_to_end(&mut told);
        return Err(match (serde_json::from_slice(&told), arrived) {
            (Ok(failure), _) => failure,
            (_, Err(error)) if target.is_alive() => system("prepare the process", &error),
            _ => not_running(),
        });
    };
    rustix::io::ioctl_fionbio(&outcome, true).map_err(|error| system("watch the process", &error))?;
    let oom_score = OpenOptions::new()
        .write(true)
        .open(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()))
        .map_err(|error| system("open the process's score", &error))?;
    let streams = match (own, arriving.terminal) {
        (Some(streams), _) => streams,
        (None, Some(terminal)) => Streams::of_terminal(terminal, config.spec.open_stdin)
            .map_err(|error| system("take the terminal", &error))?,
        (None, None) => return Err(StartFailure::other("no terminal was made")),
    };
    let gate =
        Gate { sync, pid, container: target.container, oom_score, oom_score_adj, traced: false, kills_before: 0 };
    Ok(Prepared { pid, outcome, streams, gate })
}

/// What has come from the process so far.
struct Arriving {
    pid: Option<Pid>,
    terminal: Option<OwnedFd>,
}

impl Arriving {
    /// Takes messages until the process is ready. It joins every group but the one for memory as soon as it exists (J1).
    fn receive(&mut self, sync: &OwnedFd, container: &Cgroup) -> io::Result<()> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; join::MESSAGE_BYTES];
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(sync, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            })?;
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                    self.terminal = descriptors.next();
                }
            }
            match Message::from_bytes(bytes) {
                Some(Message::Forked(number)) => {
                    let pid = Pid::from_raw(number).ok_or(io::ErrorKind::InvalidData)?;
                    self.pid = Some(pid);
                    for dir in container.dirs().iter().filter(|dir| Some(dir.as_path()) != container.memory_dir()) {
                        add(dir, pid)?;
                    }
                }
                Some(Message::Ready) => return Ok(()),
                Some(Message::Terminal) => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}
