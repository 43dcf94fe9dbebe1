//! Getting rid of things: one rename into `trash/`, and the unlinking later.
//!
//! H1  What is in `trash/` is reachable by nothing; losing a rename into it leaves an object without a record, which the
//!     next opening moves there again.
//! H2  What nobody can explain goes to `quarantine/`, and nothing here ever deletes that.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, Handle, NodeKind};
use crate::error::{IoContext, StoreError};
use crate::layout::{Layout, Object, exists, is_missing};
use crate::store::Store;

/// Names tried before giving up: far more than were ever left by earlier openings is a fault of the disk.
const NAMES_TRIED_MAX: u64 = 1 << 20;

/// Gives names for `trash/` and `quarantine/`: of this opening, and a counter.
pub(crate) struct Aside {
    opened: u64,
    next: AtomicU64,
}

impl Aside {
    pub(crate) fn new(opened: u64) -> Self {
        Self { opened, next: AtomicU64::new(0) }
    }

    fn next(&self) -> String {
        format!("{:x}-{:x}", self.opened, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// How much emptying the trash has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Emptied {
    /// Names removed.
    pub names: u64,
    /// Bytes that their files occupied.
    pub bytes: u64,
    /// Whether the limit came before the end.
    pub more: bool,
}

impl Store {
    /// Moves `name` to the trash.
    pub(crate) fn to_trash(&self, dir: &Handle, name: &[u8]) -> Result<(), StoreError> {
        let shared = &self.shared;
        move_aside(shared.disk.as_ref(), dir, name, &shared.layout.trash, "trash", &shared.aside).map(drop)
    }

    /// Moves what stands in the place of `object` without a live record to the quarantine.
    pub(crate) fn quarantine_without_record(&self, object: &Object) -> Result<(), StoreError> {
        let shared = &self.shared;
        let (place, name) = shared.layout.place(object);
        if !exists(shared.disk.as_ref(), place, &name).context("look up", || object.path())? {
            return Ok(());
        }
        if shared.state().facts.has(object) {
            // Stored again since what stands there was found damaged: nothing to explain.
            return self.to_trash(place, &name);
        }
        tracing::warn!(path = %object.path(), "moved to quarantine: it stands where a new object belongs, and no record names it");
        move_aside(shared.disk.as_ref(), place, &name, &shared.layout.quarantine, "quarantine", &shared.aside).map(drop)
    }

    /// Moves a name that belongs to nothing from inside an object to `quarantine/`; gives its name there. For repairs.
    ///
    /// # Errors
    /// `Io`.
    pub fn quarantine_name(&self, dir: &Handle, name: &[u8]) -> Result<String, StoreError> {
        let shared = &self.shared;
        move_aside(shared.disk.as_ref(), dir, name, &shared.layout.quarantine, "quarantine", &shared.aside)
    }

    /// Removes at most `limit` names from the trash.
    ///
    /// # Durability
    /// None is needed: what comes back after a cut is in the trash again.
    /// # Errors
    /// `Io`.
    pub fn empty_trash(&self, limit: u64) -> Result<Emptied, StoreError> {
        // One at a time: two would meet names that the other has just removed.
        let _turn = self.shared.emptying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        empty(self.shared.disk.as_ref(), &self.shared.layout.trash, limit, &self.shared.aside)
    }

    /// Makes room after a full disk was met: empties the trash. Tells whether that freed anything.
    pub fn make_room(&self) -> bool {
        match self.empty_trash(u64::MAX) {
            Ok(emptied) => emptied.names > 0,
            Err(error) => {
                tracing::warn!(error = %error, "the trash could not be emptied");
                false
            }
        }
    }

    /// Removes names of dead objects that a removal has recorded. The tree may lag behind the log, never lead it.
    pub(crate) fn remove_objects(&self, objects: &[Object]) -> Result<(), StoreError> {
        let layout: &Layout = &self.shared.layout;
        for object in objects {
            let (place, name) = layout.place(object);
            if exists(self.shared.disk.as_ref(), place, &name).context("look up", || object.path())? {
                self.to_trash(place, &name)?;
            }
        }
        Ok(())
    }
}

/// Renames `name` into `target` under a name of our own, and gives that.
pub(crate) fn move_aside(
    disk: &dyn Disk,
    dir: &Handle,
    name: &[u8],
    target: &Handle,
    target_path: &str,
    aside: &Aside,
) -> Result<String, StoreError> {
    for _ in 0..NAMES_TRIED_MAX {
        let aside = aside.next();
        match disk.rename(dir, name, target, aside.as_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
            Err(error) if is_missing(&error) => return Ok(aside),
            other => {
                let path = || format!("{} to {target_path}", String::from_utf8_lossy(name));
                return other.context("move", path).map(|()| aside);
            }
        }
    }
    Err(StoreError::Damaged { what: format!("{target_path} has no free name") })
}

/// Removes at most `limit` names below `trash`. A directory's own directories are moved up beside it, so that no depth
/// needs more than one open directory.
fn empty(disk: &dyn Disk, trash: &Handle, limit: u64, aside: &Aside) -> Result<Emptied, StoreError> {
    let mut emptied = Emptied::default();
    let path = || "trash".to_owned();
    loop {
        let entries = disk.read_dir(trash).context("list", path)?;
        if entries.is_empty() {
            return Ok(emptied);
        }
        for entry in entries {
            if entry.kind == NodeKind::Directory {
                let dir = disk.open_dir(trash, &entry.name).context("open", path)?;
                for inner in disk.read_dir(&dir).context("list", path)? {
                    if emptied.names >= limit {
                        return Ok(Emptied { more: true, ..emptied });
                    }
                    if inner.kind == NodeKind::Directory {
                        move_aside(disk, &dir, &inner.name, trash, "trash", aside)?;
                    } else {
                        remove(disk, &dir, &inner.name, &mut emptied)?;
                    }
                }
            }
            if emptied.names >= limit {
                return Ok(Emptied { more: true, ..emptied });
            }
            if entry.kind == NodeKind::Directory {
                disk.remove_dir(trash, &entry.name).context("remove", path)?;
                emptied.names += 1;
            } else {
                remove(disk, trash, &entry.name, &mut emptied)?;
            }
        }
    }
}

fn remove(disk: &dyn Disk, dir: &Handle, name: &[u8], emptied: &mut Emptied) -> Result<(), StoreError> {
    let path = || format!("trash/.../{}", String::from_utf8_lossy(name));
    let metadata = disk.metadata_at(dir, name).context("look up", path)?;
    disk.remove_file(dir, name).context("remove", path)?;
    emptied.names += 1;
    if metadata.links == 1 {
        emptied.bytes += metadata.allocated_bytes;
    }
    Ok(())
}
