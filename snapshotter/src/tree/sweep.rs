//! A tree brought back to what it was at its checkpoint, before a cut extraction goes on.
//!
//! W1  What came after the checkpoint may be there in any part, or not: every name that the recipe does not tell of is
//!     removed, so that the rest of the layer meets what it met the first time. No file is opened for that.
//! W2  Directories get back the times that their entries gave them. Owner, mode and attributes need no such thing: the
//!     entry that changed them comes again.
//! W3  Directories that go away are first moved beside the tree, so that no depth needs more than one open directory.

use std::io;

use baleen_store::recipe::{KEPT_NAME, TREE_NAME};
use baleen_store::{Disk, Handle, NodeKind};

use super::dirs::{child_path, io_error};
use super::replay::{Known, Node};
use crate::error::ExtractError;

/// What a directory on its way out is called, with a number.
const SWEPT_PREFIX: &str = "swept-";
/// Numbers tried for one.
const NAMES_TRIED_MAX: u64 = 1 << 20;

/// Sweeps `fs/` and `kept/` in `layer_dir`; `kept_next` is the number that `kept/` goes on with.
pub(super) fn sweep(disk: &dyn Disk, layer_dir: &Handle, known: &Known, kept_next: u64) -> Result<(), ExtractError> {
    let mut swept = Swept { disk, layer_dir, next: 0 };
    swept.empty().map_err(|source| io_error("remove", SWEPT_PREFIX.as_bytes(), source))?;
    sweep_tree(&mut swept, known)?;
    sweep_kept(&mut swept, kept_next).map_err(|source| io_error("sweep", KEPT_NAME, source))?;
    swept.empty().map_err(|source| io_error("remove", SWEPT_PREFIX.as_bytes(), source))
}

fn sweep_tree(swept: &mut Swept<'_>, known: &Known) -> Result<(), ExtractError> {
    let disk = swept.disk;
    let root = disk.open_dir(swept.layer_dir, TREE_NAME).map_err(|source| io_error("open", TREE_NAME, source))?;
    let (key, modified) = known.root();
    // Paths, not handles: a tree may be deeper than a process may have open files.
    let mut todo = vec![(Vec::new(), key, modified)];
    let mut found = 0;
    while let Some((path, key, modified)) = todo.pop() {
        let failed = |source| io_error("sweep", &path, source);
        let own = open_path(disk, &root, &path).map_err(failed)?;
        let dir = own.as_ref().unwrap_or(&root);
        for entry in disk.read_dir(dir).map_err(failed)? {
            match (known.look(key, &entry.name), entry.kind) {
                (Node::Unknown, kind) => swept.remove(dir, &entry.name, kind).map_err(failed)?,
                (Node::Directory(child, modified), NodeKind::Directory) => {
                    todo.push((child_path(&path, &entry.name), child, modified));
                    found += 1;
                }
                (Node::Leaf, kind) if kind != NodeKind::Directory => found += 1,
                _ => return Err(ExtractError::NotResumable { problem: "its tree is another one" }),
            }
        }
        if disk.metadata(dir).map_err(failed)?.modified != modified {
            disk.set_times(dir, modified, modified).map_err(failed)?;
        }
    }
    if known.count().is_some_and(|count| count != found) {
        return Err(ExtractError::NotResumable { problem: "a part of its tree is missing" });
    }
    Ok(())
}

/// Opens the directory at `path` below `root`, a component at a time; `None` for the root itself.
pub(super) fn open_path(disk: &dyn Disk, root: &Handle, path: &[u8]) -> io::Result<Option<Handle>> {
    let mut dir = None;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        dir = Some(disk.open_dir(dir.as_ref().unwrap_or(root), part)?);
    }
    Ok(dir)
}

fn sweep_kept(swept: &mut Swept<'_>, kept_next: u64) -> io::Result<()> {
    let disk = swept.disk;
    let kept = match disk.open_dir(swept.layer_dir, KEPT_NAME) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        other => other?,
    };
    for entry in disk.read_dir(&kept)? {
        let number = std::str::from_utf8(&entry.name).ok().and_then(|name| name.parse::<u64>().ok());
        if number.is_none_or(|number| number >= kept_next) {
            swept.remove(&kept, &entry.name, entry.kind)?;
        }
    }
    // Made again when it is needed.
    if kept_next == 0 { disk.remove_dir(swept.layer_dir, KEPT_NAME) } else { Ok(()) }
}

/// What is removed (W3).
struct Swept<'a> {
    disk: &'a dyn Disk,
    layer_dir: &'a Handle,
    next: u64,
}

impl Swept<'_> {
    fn remove(&mut self, dir: &Handle, name: &[u8], kind: NodeKind) -> io::Result<()> {
        if kind != NodeKind::Directory {
            return self.disk.remove_file(dir, name);
        }
        for _ in 0..NAMES_TRIED_MAX {
            let aside = format!("{SWEPT_PREFIX}{}", self.next);
            self.next += 1;
            match self.disk.rename(dir, name, self.layer_dir, aside.as_bytes()) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                other => return other,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }

    /// Removes what was moved aside, now or by an attempt before.
    fn empty(&mut self) -> io::Result<()> {
        loop {
            let mut entries = self.disk.read_dir(self.layer_dir)?;
            entries.retain(|entry| entry.name.starts_with(SWEPT_PREFIX.as_bytes()));
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                if entry.kind != NodeKind::Directory {
                    self.disk.remove_file(self.layer_dir, &entry.name)?;
                    continue;
                }
                let dir = self.disk.open_dir(self.layer_dir, &entry.name)?;
                for inner in self.disk.read_dir(&dir)? {
                    self.remove(&dir, &inner.name, inner.kind)?;
                }
                self.disk.remove_dir(self.layer_dir, &entry.name)?;
            }
        }
    }
}
