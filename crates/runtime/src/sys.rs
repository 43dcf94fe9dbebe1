//! System calls that no safe wrapper of ours covers. All `unsafe` of this crate is here.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::Pid;

/// What `fork` returned.
pub(crate) enum Forked {
    /// In the parent: the child's PID.
    Parent(i32),
    /// In the child.
    Child,
}

/// Splits this process in two.
///
/// Only for a process with one thread: another thread's locks would stay locked in the child for ever. The shim has one thread from
/// its first instruction on (R1), and this asserts it.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count)?;
    assert_eq!(threads, 1, "fork in a process with {threads} threads");
    // SAFETY: fork takes no pointers. The process has one thread (asserted above), so that no lock of the allocator or of std can be
    // held by a thread that does not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Ends this process at once: no destructors, no buffers written, nothing done twice after a fork.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// A descriptor that reads when a child has ended. SIGCHLD is blocked from here on.
pub(crate) fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: a sigset_t is a plain bit set, for which all zeros is a valid value; sigemptyset initialises it anyway.
    let mut set: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is a live, exclusively borrowed local for all three calls; SIGCHLD is a valid signal; the kernel and libc keep no
    // pointer to it; the third argument of sigprocmask may be null.
    let fd = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by signalfd and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ignores the signals by which programs are asked to end. (What is ignored stays so in the container's first process until
/// [`reset_signals`].)
pub(crate) fn ignore_requests_to_end() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: takes a valid signal number and the constant for ignoring; no handler of ours is involved.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Gives every signal its default action and blocks none: what a fresh program expects. (Rust ignores SIGPIPE at its start, and an
/// ignored signal stays ignored across exec. glibc refuses to touch the two signals of its own, so the kernel is asked.)
pub(crate) fn reset_signals() {
    const SIGNALS: libc::c_int = 64;
    /// Length of the kernel's signal set.
    const SET_BYTES: usize = 8;
    // The kernel's struct sigaction (handler, flags, restorer, mask) is at most this long; all zeros mean SIG_DFL.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: `default` is initialised, at least as long as the kernel's struct and outlives the call; the old action is not asked
        // for. For signals that may not be changed (SIGKILL, SIGSTOP) the call fails without effect.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), SET_BYTES) };
    }
    let none = 0_u64;
    // SAFETY: `none` is a set of the length that is passed and outlives the call; the old set is not asked for.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, ptr::null_mut::<u64>(), SET_BYTES)
    };
}

/// Blocks every signal that can be blocked: [`next_signal`] takes them.
pub(crate) fn block_all_signals() -> io::Result<()> {
    let all = u64::MAX;
    // SAFETY: `all` is a set of the kernel's length, which is passed, and outlives the call; the old set is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const all,
            ptr::null_mut::<u64>(),
            mem::size_of::<u64>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for the next signal. All are blocked.
pub(crate) fn next_signal() -> io::Result<i32> {
    let all = u64::MAX;
    // SAFETY: `all` is a set of the kernel's length, which is passed, and outlives the call; neither what the signal tells nor a time limit
    // is asked for.
    let signal = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const all,
            ptr::null_mut::<libc::siginfo_t>(),
            ptr::null::<libc::timespec>(),
            mem::size_of::<u64>(),
        )
    };
    i32::try_from(signal).ok().filter(|&signal| signal > 0).ok_or_else(io::Error::last_os_error)
}

/// Sends any signal to a child that has not been reaped.
pub(crate) fn signal_child(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes numbers only; while the child is not reaped its number is its own.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Replaces this process's program. Returns only if that failed.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: `path` and every entry of both arrays are NUL-terminated strings borrowed for the whole call; both arrays end with a null
    // pointer; execve reads them and returns only on failure.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Returns freed memory of the allocator to the kernel.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and only releases memory that the allocator holds free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Leaves every supplementary group: those of the daemon are not the container's.
pub(crate) fn clear_groups() -> io::Result<()> {
    // SAFETY: with a count of 0 the pointer is not read.
    match unsafe { libc::setgroups(0, ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the session keyring for a new, empty one. Kernels without keys have nothing to leave.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read through it.
    if unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// Closes every descriptor from 3 on.
pub(crate) fn close_inherited() {
    // SAFETY: called before this process has opened anything of its own beyond the standard streams, so that no owner of a closed
    // descriptor exists. close_range takes numbers only.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed == 0 {
        return;
    }
    // Before Linux 5.9.
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|&number| number > 2) {
        // SAFETY: as above; the directory's own descriptor is closed already, and closing it again only fails.
        unsafe { libc::close(number) };
    }
}

/// Closes every descriptor from 3 on but these. For a process that is about to enter a container: no owner of a closed descriptor may
/// be dropped afterwards.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let kept: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    let listed = std::fs::read_dir("/proc/self/fd")?.flatten();
    let numbers: Vec<i32> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2 && !kept.contains(number)) {
        // SAFETY: close takes a number. The callers never drop what owned it: they execute another program or call `exit_now`. The
        // directory's own descriptor is closed already, and closing it again only fails.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Closes a descriptor whose owner will not be dropped.
pub(crate) fn close_borrowed(descriptor: BorrowedFd<'_>) {
    // SAFETY: close takes a number; as in `close_all_but`, the owner is never dropped, and nothing uses the descriptor after this.
    unsafe { libc::close(descriptor.as_raw_fd()) };
}

/// Splits a process in two that was forked itself and has joined other namespaces, where `/proc` does not tell its threads.
pub(crate) fn fork_inside() -> io::Result<Forked> {
    // SAFETY: fork takes no pointers. The only caller is a process that `fork` has made (which asserts one thread) and that starts none.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// Whether a child that has not been reaped has executed a program since it was forked.
pub(crate) fn has_executed(pid: Pid) -> bool {
    /// `PF_FORKNOEXEC` of the kernel's `sched.h`: forked, and nothing executed.
    const FORKED_ONLY: u64 = 0x40;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // After the name, which may hold anything: state, parent, group, session, terminal, its group, flags.
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & FORKED_ONLY == 0)
}

/// Has a child stop when it has executed a program, before the program's first instruction; a shim that dies before takes it along.
pub(crate) fn stop_at_execution(pid: Pid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL;
    // SAFETY: PTRACE_SEIZE takes a process ID, no address and a number as options; nothing of ours is read or written. The child has not
    // been reaped, so that the number is its own.
    trace(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw_nonzero().get(), 0_usize, options as usize) })
}

/// Lets a stopped child go on untraced.
pub(crate) fn release(pid: Pid) -> io::Result<()> {
    // SAFETY: PTRACE_DETACH takes a process ID, no address and a signal's number, here none; the child has not been reaped.
    trace(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid.as_raw_nonzero().get(), 0_usize, 0_usize) })
}

/// Lets a stopped child that is traced go on, with the signal that stopped it.
pub(crate) fn go_on(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: PTRACE_CONT takes a process ID, no address and a signal's number; the child has not been reaped.
    trace(unsafe { libc::ptrace(libc::PTRACE_CONT, pid.as_raw_nonzero().get(), 0_usize, signal as usize) })
}

fn trace(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The signal of a stop that a wait has reported, and whether it is the one after an execution.
pub(crate) fn stop_of(status: rustix::process::WaitStatus) -> Option<(i32, bool)> {
    let signal = status.stopping_signal()?;
    let event = status.as_raw() >> 16;
    // Other events are no signals that the child should get.
    Some((if event == 0 { signal } else { 0 }, event == libc::PTRACE_EVENT_EXEC))
}

/// Sends any signal, real-time ones included, to a process by descriptor.
pub(crate) fn send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and stays open; the signal is a number that the kernel checks; a null siginfo means that
    // of kill(2); flags must be 0.
    match unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0_u32)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor of a program from which nobody can write to the program's file: a container's process that reopens the shim's
/// `/proc/PID/exe` meets a read-only mount (Linux 5.12), or else a sealed copy in memory (threats R1).
pub(crate) fn open_program(path: &Path) -> io::Result<OwnedFd> {
    match readonly_view(path) {
        Ok(view) => Ok(view),
        Err(_) => sealed_copy(path),
    }
}

fn readonly_view(path: &Path) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags;
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path is a NUL-terminated literal; `attributes` is initialised, has the kernel's layout (struct mount_attr, 32 bytes)
    // and outlives the call, and its true size is passed; the kernel keeps neither pointer; `tree` is borrowed, so its descriptor
    // stays open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            mem::size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

fn sealed_copy(path: &Path) -> io::Result<OwnedFd> {
    let copy = rustix::fs::memfd_create("baleen-shim", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open(path)?, &mut copy)?;
    rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy.into())
}

/// Whether the kernel can change a mount by descriptor (Linux 5.12); the runtime library cannot mount without.
pub(crate) fn has_mount_setattr() -> bool {
    // SAFETY: with a size of 0 the attributes are not read (the call fails with EINVAL, or ENOSYS where it does not exist); the path is
    // a NUL-terminated literal.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, ptr::null::<u64>(), 0_usize) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Changes a tree of mounts: read-only or not, and its propagation (`mount_setattr(2)`, Linux 5.12).
pub(crate) fn change_mounts(tree: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    // struct mount_attr.
    let attributes: [u64; 4] = [if change.readonly { libc::MOUNT_ATTR_RDONLY } else { 0 }, 0, change.propagation, 0];
    let recursive = if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal; `attributes` is initialised, has the layout of the kernel's structure (four numbers of
    // 64 bits), outlives the call, and its true size is passed; the kernel keeps neither pointer; `tree` is borrowed, so it stays open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            attributes.as_ptr(),
            mem::size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What [`change_mounts`] changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountChange {
    /// No writes.
    pub(crate) readonly: bool,
    /// `MS_SHARED`, `MS_SLAVE` or 0 for as it is.
    pub(crate) propagation: u64,
    /// Of all mounts of the tree.
    pub(crate) recursive: bool,
}

/// Loads a program that decides about device access (`BPF_PROG_TYPE_CGROUP_DEVICE`).
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    // The head of union bpf_attr for BPF_PROG_LOAD, up to the program's name; the kernel takes what is missing for zero.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let attributes = Attributes {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        licence: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `attributes` is initialised, has the kernel's layout and its true size is passed; the two addresses in it are of slices that
    // outlive the call, the instruction count is that slice's length (8 bytes each, as struct bpf_insn), the licence is NUL-terminated;
    // the kernel copies everything and keeps no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, mem::size_of::<Attributes>()) };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned `fd` (close-on-exec, as all bpf descriptors) and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts such a program in force for a group of cgroup v2.
pub(crate) fn attach_device_program(group: &impl AsFd, program: &OwnedFd) -> io::Result<()> {
    const PROG_ATTACH: libc::c_long = 8;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    struct Attributes {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attributes = Attributes {
        target: group.as_fd().as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attributes` is initialised, has the kernel's layout for BPF_PROG_ATTACH and its true size is passed; it holds numbers only;
    // both descriptors are borrowed and stay open.
    match unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, mem::size_of::<Attributes>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
