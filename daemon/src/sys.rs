//! The system calls for which no safe wrapper exists. The only module of this crate with `unsafe`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Blocks of this size and more go back to the kernel when they are freed.
const RETURN_BYTES: libc::c_int = 64 * 1024;

/// Makes the allocator give memory back early: a burst of requests must not stay resident on a small device.
///
/// Must be called before other threads exist. Does nothing where the C library has no such setting.
pub(crate) fn return_memory_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for setting in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: mallopt(3) takes two integers by value and keeps no pointer; it is called before a second thread could
        // be allocating, which is the one thing that it asks for. A setting that it refuses leaves the default in force.
        unsafe {
            libc::mallopt(setting, RETURN_BYTES);
        }
    }
}

/// Takes the sockets that the service manager passed (sd_listen_fds(3)): descriptors from 3 on.
///
/// May be called once: a second call would own the same descriptors twice, so it gets none.
pub(crate) fn take_activated_sockets() -> Vec<OwnedFd> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    const FIRST: RawFd = 3;
    const COUNT_MAX: RawFd = 64;
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<RawFd>().ok());
    let ours = number("LISTEN_PID").is_some_and(|pid| u32::try_from(pid) == Ok(std::process::id()));
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0).clamp(0, COUNT_MAX);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    (FIRST..FIRST + count)
        .filter_map(|fd| {
            // SAFETY: fcntl(F_GETFD) only asks whether the number is an open descriptor.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
                return None;
            }
            // SAFETY: the descriptor is open, and by the protocol of LISTEN_FDS it was opened by the service manager for
            // this process to own; `TAKEN` makes this the only place that ever owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // Containers must not inherit it (threats R2).
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
            Some(fd)
        })
        .collect()
}

/// Registers a descriptor with the event loop, for what concerns writing only.
///
/// # Errors
/// If the descriptor cannot be polled, or there is no room for it.
pub(crate) fn watch_writes(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call demands a descriptor that is open, stays open and stays the same while it is registered. An
    // `OwnedFd` is open and moves into the `AsyncFd`, which gives it out by reference only and closes it after taking it
    // out of the loop; its number never changes.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::WRITABLE) };
    registered.map_err(io::Error::from)
}
