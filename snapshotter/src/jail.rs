//! What the threads of an extraction may do: they look at bytes that nobody has verified.
//!
//! J1  Neither thread can start a program or reach the network (seccomp): no `execve`, no `socket`, no `ptrace`.
//! J2  Thread B changes files below the layer's directory only, and thread A none (Landlock, from ABI 2: ABI 1 forbids
//!     every link from one directory to another, and layers are full of them).
//! J3  A kernel without Landlock is coped with, since paths are jailed by descriptors anyway; where it is there, a failure
//!     to apply it fails the extraction.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

/// Confines the calling thread for good: it can change files below `directory` only, or none.
///
/// # Errors
/// That of `prctl(2)`, `seccomp(2)` or `landlock_restrict_self(2)`.
pub(crate) fn confine(directory: Option<BorrowedFd<'_>>) -> io::Result<()> {
    sys::forbid_new_privileges()?;
    match sys::landlock_abi() {
        Some(abi) if abi >= 2 => sys::landlock_confine(abi, directory)?,
        abi => tracing::debug!(?abi, "landlock is not used: the kernel lacks it, or its first form"),
    }
    sys::forbid_programs()
}
