//! Looks at and makes directories inside a root file system, by descriptors that cannot leave it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{ContainerSpec, SpecError};

/// Places that the container's own mounts will cover.
const COVERED: [&str; 3] = ["dev", "proc", "sys"];

fn open_root(rootfs: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A rename elsewhere makes the kernel ask for another try, at worst many times under attack.
    const TRIES_MAX: usize = 128;
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Whether something is a directory; `None` if it does not exist or cannot be seen.
pub(super) fn is_directory(rootfs: &Path, path: &str) -> Option<bool> {
    let found = open(&open_root(rootfs).ok()?, path.trim_start_matches('/')).ok()?;
    let stat = rustix::fs::fstat(&found).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Makes the working directory if the image lacks it, as Docker does.
pub(crate) fn make_working_directory(spec: &ContainerSpec, rootfs: &Path) -> Result<(), SpecError> {
    let parts: Vec<&str> = spec.cwd.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let Some(first) = parts.first() else { return Ok(()) };
    if COVERED.contains(first)
        || parts.contains(&"..")
        || spec.readonly_rootfs && is_directory(rootfs, &spec.cwd) == Some(true)
    {
        return Ok(());
    }
    let failed = |source: Errno| SpecError::Host { path: rootfs.join(parts.join("/")), source: source.into() };
    let root = open_root(rootfs).map_err(failed)?;
    for length in 1..=parts.len() {
        let path = parts[..length].join("/");
        match open(&root, &path) {
            Err(Errno::NOENT) => {
                let parent = if length == 1 { open(&root, ".") } else { open(&root, &parts[..length - 1].join("/")) }
                    .map_err(failed)?;
                match rustix::fs::mkdirat(&parent, parts[length - 1], Mode::from_raw_mode(0o755)) {
                    // A dangling link is in its place: entering it fails later, with the runtime's words.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            Err(error) => return Err(failed(error)),
            Ok(_) => {}
        }
    }
    Ok(())
}
