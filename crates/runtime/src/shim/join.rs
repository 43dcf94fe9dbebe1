//! The process that enters a running container: every step between a fork of the shim and the execution of a program inside.
//!
//! I1  It holds no descriptor of the host once it is inside, but two anonymous ones of ours; and nobody inside may look into it.
//! I2  Inside, nothing is asked of `/proc`: it is the container's to arrange. The terminal is checked to be one.
//! I3  The system call filter, capabilities and `no_new_privs` are the container's; inheritable and ambient sets stay empty.
//!
//! Runs in a child of the shim, and never returns from it.

use std::convert::Infallible;
use std::fs;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::DumpableBehavior;
use rustix::pty::OpenptFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use super::ContainerStdio;
use super::program;
use crate::error::{FailureKind, StartFailure};
use crate::spec::{ContainerSpec, ExecProcess};
use crate::sys;

/// Length of every message.
pub(super) const MESSAGE_BYTES: usize = 5;
/// The kernel's score of a process that is killed before all others.
const SCORE_FIRST_KILLED: &str = "1000";
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: i128 = 0x1cd1;
/// The device of a terminal's master.
const PTMX: (u32, u32) = (5, 2);
/// Capabilities that a kernel may have, with room for those to come.
const CAPABILITIES_MAX: u32 = 63;

/// What shim and process tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// The process exists, with this host PID.
    Forked(i32),
    /// Its terminal comes with this.
    Terminal,
    /// All is set up.
    Ready,
    /// Execute the program.
    Go,
}

impl Message {
    pub(super) fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (kind, number) = match self {
            Self::Forked(pid) => (1, pid),
            Self::Terminal => (2, 0),
            Self::Ready => (3, 0),
            Self::Go => (4, 0),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [kind, a, b, c, d]
    }

    pub(super) fn from_bytes([kind, number @ ..]: [u8; MESSAGE_BYTES]) -> Option<Self> {
        match kind {
            1 => Some(Self::Forked(i32::from_le_bytes(number))),
            2 => Some(Self::Terminal),
            3 => Some(Self::Ready),
            4 => Some(Self::Go),
            _ => None,
        }
    }
}

pub(super) struct Plan<'a> {
    pub(super) spec: &'a ContainerSpec,
    pub(super) process: &'a ExecProcess,
    /// The container's first process.
    pub(super) target: &'a OwnedFd,
    /// Whether to join its user namespace.
    pub(super) users: bool,
    /// `None`: a terminal is made inside.
    pub(super) stdio: Option<ContainerStdio>,
    pub(super) sync: OwnedFd,
    /// Where a failure is told; closed by the execution.
    pub(super) outcome: OwnedFd,
}

/// Enters the container, and there executes the program when told to.
pub(super) fn enter(plan: Plan<'_>) -> ! {
    let failure = match cross(&plan) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let told = serde_json::to_vec(&failure).unwrap_or_default();
    // If the shim is gone there is nobody to tell.
    let _ = plan.outcome.try_clone().map(fs::File::from).and_then(|mut outcome| outcome.write_all(&told));
    sys::exit_now(1)
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StartFailure {
    move |error| StartFailure::other(format!("exec failed: cannot {what}: {error}"))
}

fn cross(plan: &Plan<'_>) -> Result<Infallible, StartFailure> {
    // Inherited by the process to come (J2), and while this is still the host's /proc.
    fs::write("/proc/self/oom_score_adj", SCORE_FIRST_KILLED).map_err(failed("raise its score"))?;
    if let Some(ContainerStdio::Pipes { stdin, stdout, stderr }) = &plan.stdio {
        place(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()).map_err(failed("place its streams"))?;
    }
    sys::close_all_but(&[plan.sync.as_fd(), plan.outcome.as_fd(), plan.target.as_fd()])
        .map_err(failed("close descriptors"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("hide itself"))?;
    let mut spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    spaces.set(ThreadNameSpaceType::USER, plan.users);
    // All at once: either it is inside, or nothing has happened.
    rustix::thread::move_into_thread_name_spaces(plan.target.as_fd(), spaces)
        .map_err(failed("join the container's namespaces"))?;
    sys::close_borrowed(plan.target.as_fd());
    match sys::fork_inside().map_err(failed("fork"))? {
        sys::Forked::Parent(pid) => {
            send(plan, Message::Forked(pid)).map_err(failed("report"))?;
            sys::exit_now(0)
        }
        sys::Forked::Child => inside(plan),
    }
}

/// A member of the container from here on.
fn inside(plan: &Plan<'_>) -> Result<Infallible, StartFailure> {
    let process = plan.process;
    rustix::process::setsid().map_err(failed("begin a session"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if plan.stdio.is_none() {
        make_terminal(plan)?;
    }
    for (resource, limit) in &process.rlimits {
        rustix::process::setrlimit(*resource, *limit).map_err(failed("set a resource limit"))?;
    }
    let (uid, gid) = (Uid::from_raw(process.user.uid), Gid::from_raw(process.user.gid));
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        give(stream, uid);
    }
    enter_directory(plan)?;
    restrict(process, uid, gid)?;
    let arguments = &plan.spec.args;
    let name = arguments.first().ok_or_else(|| StartFailure::new(FailureKind::Invalid, "no command specified"))?;
    let ready = program::Ready::new(name, arguments, &process.environment)?;
    send(plan, Message::Ready).map_err(failed("report"))?;
    let mut answer = [0; MESSAGE_BYTES];
    match rustix::io::retry_on_intr(|| rustix::net::recv(&plan.sync, &mut answer, RecvFlags::empty())) {
        Ok((MESSAGE_BYTES, _)) if Message::from_bytes(answer) == Some(Message::Go) => Err(ready.execute()),
        // The shim has gone, or gave it up.
        _ => sys::exit_now(1),
    }
}

fn send(plan: &Plan<'_>, message: Message) -> io::Result<()> {
    rustix::net::send(&plan.sync, &message.to_bytes(), SendFlags::NOSIGNAL)?;
    Ok(())
}

fn place(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
    // Each of them is above 2: the shim's own standard streams are open.
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    Ok(())
}

/// A pipe or terminal belongs to the program's user, who may open it again by its name. What is not ours (`/dev/null`) stays as it is.
fn give(stream: BorrowedFd<'_>, uid: Uid) {
    let is_ours = rustix::fs::fstat(stream).is_ok_and(|stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        kind == FileType::Fifo || (kind == FileType::CharacterDevice && rustix::termios::isatty(stream))
    });
    if is_ours && !uid.is_root() {
        // A user whom the container's namespace does not map goes without.
        let _ = rustix::fs::fchown(stream, Some(uid), None);
    }
}

/// Makes a terminal of the container's own and sends its other end to the shim (threats R4).
fn make_terminal(plan: &Plan<'_>) -> Result<(), StartFailure> {
    let master = ["/dev/pts/ptmx", "/dev/ptmx"]
        .into_iter()
        .find_map(|path| {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let master = rustix::fs::open(path, flags, Mode::empty()).ok()?;
            is_master(&master).then_some(master)
        })
        .ok_or_else(|| StartFailure::other("exec failed: the container's /dev/pts is not a devpts"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let own = rustix::pty::unlockpt(&master).and_then(|()| rustix::pty::ioctl_tiocgptpeer(&master, flags));
    let own = own.map_err(failed("open its terminal"))?;
    rustix::process::ioctl_tiocsctty(&own).map_err(failed("take its terminal"))?;
    place(own.as_fd(), own.as_fd(), own.as_fd()).map_err(failed("place its terminal"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let bytes = Message::Terminal.to_bytes();
    rustix::net::sendmsg(&plan.sync, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(failed("hand its terminal over"))
}

fn is_master(file: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && device == PTMX
        && rustix::fs::fstatfs(file).is_ok_and(|found| i128::from(found.f_type) == DEVPTS_MAGIC)
}

fn enter_directory(plan: &Plan<'_>) -> Result<(), StartFailure> {
    let cwd = if plan.spec.cwd.is_empty() { "/" } else { &plan.spec.cwd };
    let refuse = |why: &dyn std::fmt::Display| {
        let text = format!("chdir to cwd ({cwd:?}) set in config.json failed: {why}");
        StartFailure::new(FailureKind::Invalid, text)
    };
    rustix::process::chdir(cwd).map_err(|error| refuse(&program::words(&error.into())))?;
    // A directory that cannot be reached from the root is one of another mount tree (threats R2).
    let reached = rustix::process::getcwd(Vec::new()).map_err(|error| refuse(&error))?;
    match reached.as_bytes().first() {
        Some(b'/') => Ok(()),
        _ => Err(refuse(&"it is outside of the container")),
    }
}

/// Takes on the container's user, groups, capabilities and filter (I3).
fn restrict(process: &ExecProcess, uid: Uid, gid: Gid) -> Result<(), StartFailure> {
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    } else {
        // It takes CAP_SYS_ADMIN, which goes next.
        load_filter(process)?;
    }
    let wanted = CapabilitySet::from_bits_retain(process.capabilities);
    for number in (0..=CAPABILITIES_MAX).filter(|number| process.capabilities >> number & 1 == 0) {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            // The kernel does not know it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed("drop capabilities")(error)),
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(failed("clear the ambient set")(error)),
    }
    let groups: Vec<Gid> = process.user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed("set its groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("set its group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("set its user"))?;
    // Another user than root has none by now, and gets none by an execution.
    let granted = if uid.is_root() { wanted } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: granted, permitted: granted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed("set its capabilities"))?;
    if process.no_new_privileges {
        load_filter(process)?;
    }
    Ok(())
}

fn load_filter(process: &ExecProcess) -> Result<(), StartFailure> {
    let Some(filter) = &process.filter else { return Ok(()) };
    libcontainer::seccomp::initialize_seccomp(filter).map(drop).map_err(failed("load the system call filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_bytes() {
        for message in [Message::Forked(4_194_304), Message::Terminal, Message::Ready, Message::Go] {
            assert_eq!(Message::from_bytes(message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes([9, 0, 0, 0, 0]), None);
    }
}
