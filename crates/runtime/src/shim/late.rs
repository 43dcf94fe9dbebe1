//! The last work on a container before its program runs: what the runtime library cannot do, done in the container's own mounts.
//!
//! LM1  It is done by a child that has entered the container's mount namespace, where every path leads to something of the container's:
//!      its root is the child's root. Nobody runs in there yet.
//! LM2  Source trees are opened before that, on the host or in the donor, and held by descriptor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use rustix::thread::ThreadNameSpaceType;

use crate::error::StartFailure;
use crate::spec::{self, ContainerSpec, LateMount};
use crate::sys::{self, MountChange};

const REPORT_BYTES_MAX: u64 = 16 << 10;
const TMPFS_MAGIC: i128 = 0x0102_1994;

/// Does it for a container that is created and not started.
pub(super) fn finish(spec: &ContainerSpec, container: &OwnedFd) -> Result<(), StartFailure> {
    let late = spec::late_mounts(spec).map_err(super::refusal)?;
    let folders = device_folders(spec)?;
    if late.is_empty() && folders.is_empty() {
        return Ok(());
    }
    let failed =
        |error: &dyn std::fmt::Display| StartFailure::other(format!("cannot finish the container's mounts: {error}"));
    let (report, report_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
    let child = match sys::fork().map_err(|error| failed(&error))? {
        sys::Forked::Parent(pid) => pid,
        sys::Forked::Child => {
            let told = match work(&late, &folders, container) {
                Ok(()) => String::new(),
                Err((what, error)) => format!("{what}: {error}"),
            };
            // If the shim is gone there is nobody to tell.
            let _ = File::from(report_in).write_all(told.as_bytes());
            sys::exit_now(i32::from(!told.is_empty()))
        }
    };
    drop(report_in);
    let mut text = String::new();
    let read = File::from(report).take(REPORT_BYTES_MAX).read_to_string(&mut text);
    let status =
        rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty()).map_err(|error| failed(&error))?;
    read.map_err(|error| failed(&error))?;
    match status {
        Some((_, status)) if text.is_empty() && status.exit_status() == Some(0) => Ok(()),
        Some((_, status)) if text.is_empty() => Err(failed(&format!("it ended early ({status:?})"))),
        _ => Err(failed(&text)),
    }
}

/// Folders that the library makes with every permission for everybody.
fn device_folders(spec: &ContainerSpec) -> Result<Vec<PathBuf>, StartFailure> {
    let covered = |mount: &spec::MountSpec| spec::check_target(&mount.target).is_ok_and(|target| target == "/dev");
    if spec.mounts.iter().any(covered) {
        return Ok(Vec::new()); // What is there is somebody else's.
    }
    spec::device_folders(spec).map_err(super::refusal)
}

type Failure = (String, io::Error);

fn work(late: &[LateMount], folders: &[PathBuf], container: &OwnedFd) -> Result<(), Failure> {
    let mut trees = Vec::new();
    // The host's first: there is no way back.
    for mount in late {
        if let LateMount::Bind { source, target, propagation, readonly, non_recursive } = mount {
            let tree =
                open_tree(source, !non_recursive).map_err(|error| (format!("open {}", source.display()), error))?;
            let kind = if propagation.shared { libc::MS_SHARED } else { libc::MS_SLAVE };
            // A slave's own mounts must not reach the host through what was shared below it.
            let recursive = propagation.recursive || !propagation.shared;
            let change = MountChange { propagation: kind, recursive, ..MountChange::default() };
            let limit = MountChange { readonly: *readonly, recursive: !non_recursive, ..MountChange::default() };
            sys::change_mounts(tree.as_fd(), change)
                .and_then(|()| sys::change_mounts(tree.as_fd(), limit))
                .map_err(|error| (format!("set the propagation of {}", source.display()), error))?;
            trees.push((tree, target));
        }
    }
    for mount in late {
        if let LateMount::SharedMemory { donor_pid, target } = mount {
            let tree = shared_memory_of(*donor_pid)
                .map_err(|error| ("open the other container's /dev/shm".to_owned(), error))?;
            trees.push((tree, target));
        }
    }
    enter(container).map_err(|error| ("enter the container".to_owned(), error))?;
    for (tree, target) in trees {
        let exchanged = rustix::mount::unmount(target.as_str(), UnmountFlags::DETACH).and_then(|()| {
            rustix::mount::move_mount(&tree, "", CWD, target.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        });
        exchanged.map_err(|error| (format!("mount {target}"), error.into()))?;
    }
    let of_dev = std::fs::metadata("/dev").map_err(|error| ("look at /dev".to_owned(), error))?.dev();
    for folder in folders {
        let facts =
            std::fs::symlink_metadata(folder).map_err(|error| (format!("look at {}", folder.display()), error))?;
        if facts.is_dir() && facts.dev() == of_dev {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
                .map_err(|error| (format!("set the mode of {}", folder.display()), error))?;
        }
    }
    Ok(())
}

fn enter(process: &OwnedFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)?)
}

fn open_tree(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, source, flags)?)
}

/// A copy of the memory that a running container shares. Its root becomes ours.
fn shared_memory_of(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    enter(&process)?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let found = rustix::fs::openat2(
        &root,
        "dev/shm",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?;
    if i128::from(rustix::fs::fstatfs(&found)?.f_type) != TMPFS_MAGIC {
        return Err(io::Error::other("it is no memory file system"));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(&found, "", flags)?)
}
