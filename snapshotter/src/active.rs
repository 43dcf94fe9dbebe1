//! The directories of a container: what it writes, and where it sees its image with that on top.
//!
//! V1  The directories are made through the port; making them durable is the caller's, before its record.
//! V2  `work` is emptied before each mount: after a cut overlayfs could find its own remains there.

use std::io;
use std::path::Path;

use baleen_store::{Disk, Handle, NodeKind};

/// What the container has changed: its `upper`.
pub const UPPER_NAME: &[u8] = b"upper";
/// Overlayfs's own.
pub const WORK_NAME: &[u8] = b"work";
/// Where the container's root appears.
pub const MERGED_NAME: &[u8] = b"merged";
/// The only lower of an image without layers: overlayfs wants at least one.
pub const EMPTY_NAME: &[u8] = b"empty";

/// How deep `work` may be; overlayfs itself makes two levels.
const WORK_DEPTH_MAX: usize = 64;

/// Makes `upper`, `work` and `merged` in the container's directory, and `empty` if its image has no layers.
///
/// # Errors
/// That of the disk; `EEXIST` if the container has them already.
pub fn create(disk: &dyn Disk, container_dir: &Handle, image_has_layers: bool) -> io::Result<()> {
    disk.create_dir(container_dir, UPPER_NAME, 0o755)?;
    disk.create_dir(container_dir, WORK_NAME, 0o700)?;
    disk.create_dir(container_dir, MERGED_NAME, 0o755)?;
    if !image_has_layers {
        disk.create_dir(container_dir, EMPTY_NAME, 0o755)?;
    }
    Ok(())
}

/// Gives `upper` the owner, mode and times of the image's top layer that has them: the root directory that the
/// container sees is `upper` itself.
///
/// # Errors
/// That of the disk.
pub fn adopt_root(disk: &dyn Disk, container_dir: &Handle, top_layer: &Handle) -> io::Result<()> {
    let facts = disk.metadata(top_layer)?;
    let upper = disk.open_dir(container_dir, UPPER_NAME)?;
    disk.set_owner(&upper, facts.uid, facts.gid)?;
    disk.set_mode(&upper, facts.mode)?;
    disk.set_times(&upper, facts.modified, facts.modified)
}

/// Empties `work` (V2). The container must not be mounted.
///
/// # Errors
/// That of the disk; `EMFILE` if `work` is deeper than overlayfs makes it.
pub fn empty_work(disk: &dyn Disk, container_dir: &Handle) -> io::Result<()> {
    let work = disk.open_dir_in_root(container_dir, Path::new("work"))?;
    empty(disk, &work, WORK_DEPTH_MAX)
}

fn empty(disk: &dyn Disk, dir: &Handle, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    for entry in disk.read_dir(dir)? {
        if entry.kind == NodeKind::Directory {
            empty(disk, &disk.open_dir(dir, &entry.name)?, depth - 1)?;
            disk.remove_dir(dir, &entry.name)?;
        } else {
            disk.remove_file(dir, &entry.name)?;
        }
    }
    Ok(())
}
