//! Changes: what a container's own layer changes of its image.
//!
//! G1  Two trees are walked side by side by descriptor, without following a link: the container's upper directory, which it may change
//!     meanwhile, and its image, which nobody changes. What vanishes meanwhile is not listed.
//! G2  What the engine itself put there so that something could be mounted on it is no change.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Stat, statat};

use super::export::open_dir;
use super::table::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::volume::ImageRoot;

const DEPTH_MAX: usize = 256;
/// Changes that are listed.
const CHANGES_MAX: usize = 1 << 20;
/// Places of the engine's own mounts: Docker keeps them in a layer of their own.
const PLACES: [&str; 10] = [
    "/.dockerenv",
    "/dev/console",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
];

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was there and is different, or something in it is.
    Modified = 0,
    /// It was not there.
    Added = 1,
    /// It is no longer there.
    Deleted = 2,
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, in the container.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
}

impl Engine {
    /// What a container has changed of its image, by path.
    ///
    /// # Errors
    /// `NoSuchContainer`; `Io` if a tree cannot be read.
    pub async fn container_changes(self: &Arc<Self>, name: &str) -> Result<Vec<Change>, EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        self.door.enter("list changes", move || engine.changes(&container)).await
    }

    fn changes(&self, container: &Container) -> Result<Vec<Change>, EngineError> {
        let upper = self.config.data_root.join("containers").join(container.id()).join("upper");
        let io = |source| EngineError::Io { action: "list the changes in", path: upper.clone(), source };
        let image_id = container.stored().image_id;
        let image = self.store.image(&image_id);
        let image = image.map(|image| ImageRoot::open(self, &image)).transpose()?;
        let mut changes = Vec::new();
        let upper_dir = open_dir(CWD, &upper).map_err(io)?;
        walk(&upper_dir, image.as_ref().map(ImageRoot::dir), "", DEPTH_MAX, &mut changes).map_err(io)?;
        changes.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(changes)
    }
}

/// Compares the names of a directory.
fn walk(
    upper: &OwnedFd,
    image: Option<&OwnedFd>,
    path: &str,
    depth: usize,
    changes: &mut Vec<Change>,
) -> std::io::Result<()> {
    if depth == 0 || changes.len() >= CHANGES_MAX {
        return Err(std::io::Error::other("too many changes, or directories nested too deep, to be listed"));
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(upper)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        names.push(name.to_owned());
        let Ok(facts) = statat(upper, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let before = image.and_then(|image| statat(image, name, AtFlags::SYMLINK_NOFOLLOW).ok());
        let path = format!("{path}/{}", name.to_string_lossy());
        let kind = FileType::from_raw_mode(facts.st_mode);
        if kind == FileType::CharacterDevice && facts.st_rdev == 0 {
            // A whiteout.
            if before.is_some() {
                changes.push(Change { path, kind: ChangeKind::Deleted });
            }
            continue;
        }
        if before.is_none() && PLACES.contains(&path.as_str()) {
            continue;
        }
        if kind != FileType::Directory {
            let kind = if before.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
            changes.push(Change { path, kind });
            continue;
        }
        let was_directory =
            before.as_ref().is_some_and(|facts| FileType::from_raw_mode(facts.st_mode) == FileType::Directory);
        let Ok(inner) = open_dir(upper, name) else { continue };
        let below = image.filter(|_| was_directory).and_then(|image| open_dir(image, name).ok());
        let listed = changes.len();
        walk(&inner, below.as_ref(), &path, depth - 1, changes)?;
        match before {
            None => changes.push(Change { path, kind: ChangeKind::Added }),
            Some(before) if changes.len() > listed || !was_directory || differs(&facts, &before) => {
                changes.push(Change { path, kind: ChangeKind::Modified });
            }
            // Copied up without a change of its own.
            Some(_) => {}
        }
    }
    // A directory that replaced one of the image hides what that had.
    if let Some(image) = image.filter(|_| is_opaque(upper)) {
        for entry in Dir::read_from(image)? {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") && !names.iter().any(|known| known.as_c_str() == name) {
                let path = format!("{path}/{}", name.to_string_lossy());
                changes.push(Change { path, kind: ChangeKind::Deleted });
            }
        }
    }
    Ok(())
}

fn differs(one: &Stat, other: &Stat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid)
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|length| length == 1 && value[0] == b'y')
}
