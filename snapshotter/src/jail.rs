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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tries what the jail must refuse")]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_confined_thread_starts_no_program_and_leaves_its_directory_alone() {
        let outside = std::env::temp_dir().join(format!("baleen-jail-{}", std::process::id()));
        let inside = outside.join("inside");
        std::fs::create_dir_all(&inside).unwrap();
        let directory = std::fs::File::open(&inside).unwrap();
        let paths = (outside.clone(), inside);
        let found = std::thread::spawn(move || {
            confine(Some(directory.as_fd())).unwrap();
            let (outside, inside) = paths;
            let code = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
            let program = code(std::process::Command::new("/bin/true").status().map(drop));
            let socket = code(std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
            let in_place = code(std::fs::write(inside.join("a"), b"a"))
                .or(code(std::fs::create_dir(inside.join("d"))))
                .or(code(std::fs::hard_link(inside.join("a"), inside.join("d/b"))))
                .or(code(std::fs::rename(inside.join("d/b"), inside.join("c"))));
            let elsewhere = code(std::fs::write(outside.join("x"), b"x"));
            let link_out = code(std::fs::hard_link(inside.join("a"), outside.join("x")));
            (program, socket, in_place, elsewhere, link_out)
        });
        let (program, socket, in_place, elsewhere, link_out) = found.join().unwrap();
        std::fs::remove_dir_all(&outside).unwrap();
        assert_eq!((program, socket, in_place), (Some(libc::EPERM), Some(libc::EPERM), None));
        // Without Landlock the jail is the walk by descriptors alone (J3).
        if sys::landlock_abi().is_some_and(|abi| abi >= 2) {
            assert!(matches!(elsewhere, Some(libc::EACCES)), "{elsewhere:?}");
            assert!(matches!(link_out, Some(libc::EACCES | libc::EXDEV)), "{link_out:?}");
        }
        // The others are as free as before.
        assert!(std::process::Command::new("/bin/true").status().unwrap().success());
    }
}
