//! System calls that `rustix` lacks, one small wrapper each. The only unsafe code of this crate.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::disk::WriteBack;

/// `RWF_DONTCACHE` of `pwritev2(2)`, Linux 6.14; `libc` does not name it yet.
const RWF_DONTCACHE: libc::c_int = 0x80;

/// Writes at `offset` and asks that the pages leave the cache once clean (`pwritev2(2)`, Linux 6.14).
///
/// # Errors
/// Those of `pwritev2(2)`; `EOPNOTSUPP` where the kernel or the file system lacks the flag.
pub(crate) fn pwrite_uncached(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: `part` describes the live slice `bytes`, which the kernel only reads although the field is a mutable
    // pointer; one vector is passed and counted as one; the kernel keeps no pointer; `file` is open while borrowed.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset as libc::off_t, RWF_DONTCACHE) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
}

/// Tells whether the file system of `dir` takes [`pwrite_uncached`], by a write to an unnamed file there.
pub(crate) fn has_uncached_writes(dir: impl AsFd) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o600))
        .is_ok_and(|probe| pwrite_uncached(probe.as_fd(), &[0], 0).is_ok())
}

/// Starts or waits for the write-back of a range; a length of 0 reaches to the end (`sync_file_range(2)`).
///
/// # Errors
/// Those of `sync_file_range(2)`; with [`WriteBack::Wait`] also `EIO` of the pages written.
pub(crate) fn sync_file_range(file: BorrowedFd<'_>, offset: u64, length: u64, mode: WriteBack) -> io::Result<()> {
    let flags = match mode {
        WriteBack::Start => libc::SYNC_FILE_RANGE_WRITE,
        WriteBack::Wait => {
            libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER
        }
    };
    // SAFETY: takes no pointer; `file` is open while borrowed; the kernel checks offset and length.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset as i64, length as i64, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
