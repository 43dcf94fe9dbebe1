//! A thread that can reach no file: what runs in it and still works does so through the port alone.
//!
//! The filter (`seccomp(2)`) refuses every system call that names a file, changes one or makes one durable, with
//! `EPERM`, and notes it. So a caller that ignores its errors is found out too.

use std::io;

use crate::sys;

/// Why a sealed run is no proof.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealedError {
    /// Something went past the port. Of runs at one time in one process each reports the calls of all.
    #[error("file system calls went past the port: {}; use `Disk` for them", .calls.join(", "))]
    PastThePort {
        /// The names of the calls, in the order in which they were made; at most 64 are kept.
        calls: Vec<String>,
    },
    /// The filter could not be installed.
    #[error("cannot install the filter; it needs seccomp and an x86-64 or AArch64 kernel")]
    NoFilter {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Runs `run` in a thread of its own, where neither it nor any thread that it starts reaches a file.
///
/// # Errors
/// `PastThePort` if it tried, whatever came of it; `NoFilter`.
///
/// # Panics
/// As `run` does.
pub fn sealed<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, SealedError> {
    let before = sys::refused_calls().len();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::refuse_files()?;
            Ok(run())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let value = result.map_err(|source| SealedError::NoFilter { source })?;
    let calls = sys::refused_calls().split_off(before);
    if calls.is_empty() { Ok(value) } else { Err(SealedError::PastThePort { calls }) }
}
