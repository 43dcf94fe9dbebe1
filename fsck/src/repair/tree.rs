//! The nodes of a damaged layer, brought back to what its recipe says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use baleen_store::recipe::RECIPE_NAME;
use baleen_store::{Access, Disk, Handle, Inspection, NodeKind, Store, StoredObject};

use super::content;
use crate::expected::{Attributes, Expected, FileContent, Inode};
use crate::finding::{Code, shown};
use crate::layer::{self, Difference, child};

/// Mends what it can of `differences`; `how` gets a word on each path.
pub(super) fn mend(
    store: &Store,
    inspection: &Inspection,
    object: &StoredObject,
    expected: &Expected,
    differences: &[&Difference],
    owner: (u32, u32),
    how: &mut BTreeMap<Vec<u8>, String>,
) {
    let disk = inspection.disk().as_ref();
    let opened = inspection.place(object).and_then(|(dir, name)| disk.open_dir(&dir, &name));
    let Ok(folder) = opened else { return };
    let mut mending = Mending { store, inspection, disk, folder, expected, owner, how, changed: BTreeSet::new() };
    // What is in the way goes first; then what is missing comes, from the top down; attributes last, from the bottom up.
    let rank = |difference: &&&Difference| match difference.code {
        Code::NameExtra => 0,
        Code::NodeKind | Code::LinkTarget | Code::DeviceNumber | Code::HardLinks => 1,
        Code::NameMissing => 2,
        _ => 3,
    };
    let mut ordered: Vec<&&Difference> = differences.iter().collect();
    ordered.sort_by_key(rank);
    for difference in ordered {
        if let Err(error) = mending.one(difference) {
            mending.how.insert(difference.path.clone(), format!("it cannot be mended: {error}"));
        }
    }
    mending.settle();
}

struct Mending<'a> {
    store: &'a Store,
    inspection: &'a Inspection,
    disk: &'a dyn Disk,
    folder: Handle,
    expected: &'a Expected,
    owner: (u32, u32),
    how: &'a mut BTreeMap<Vec<u8>, String>,
    /// Nodes whose attributes have to be set at the end, by path.
    changed: BTreeSet<Vec<u8>>,
}

impl Mending<'_> {
    fn one(&mut self, difference: &Difference) -> io::Result<()> {
        let path = &difference.path[..];
        match (difference.code, difference.inode) {
            (Code::NameExtra, _) => self.set_aside(path),
            (Code::NodeKind, Some(inode)) => {
                self.set_aside(path)?;
                self.make(path, inode)
            }
            (Code::LinkTarget | Code::DeviceNumber, Some(inode)) => {
                let (dir, name) = parent(self.disk, &self.folder, path)?;
                self.disk.remove_file(&dir, name)?;
                self.make(path, inode)
            }
            (Code::HardLinks, Some(inode)) => {
                let (dir, name) = parent(self.disk, &self.folder, path)?;
                match self.disk.metadata_at(&dir, name)?.links {
                    1 => self.set_aside(path)?,
                    _ => self.disk.remove_file(&dir, name)?,
                }
                self.make(path, inode)
            }
            (Code::NameMissing, Some(inode)) => self.make(path, inode),
            (Code::FileContent | Code::FileSize, Some(inode)) => self.rewrite(path, inode),
            (Code::NodeMode | Code::NodeOwner | Code::NodeTime | Code::NodeXattrs, _) => {
                self.changed.insert(path.to_vec());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Moves what stands at `path` to the quarantine (R3).
    fn set_aside(&mut self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = parent(self.disk, &self.folder, path)?;
        let moved = self.store.quarantine_name(&dir, name).map_err(io::Error::other)?;
        self.how.insert(path.to_vec(), format!("moved to quarantine/{moved}"));
        self.touch_parent(path);
        Ok(())
    }

    fn touch_parent(&mut self, path: &[u8]) {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.changed.insert(path[..slash].to_vec());
    }

    /// Makes the node that should be at `path`, with all that is below it.
    fn make(&mut self, path: &[u8], inode: Inode) -> io::Result<()> {
        let expected = self.expected;
        let wanted = expected.attributes(inode);
        let (dir, name) = parent(self.disk, &self.folder, path)?;
        self.touch_parent(path);
        self.changed.insert(path.to_vec());
        if wanted.names > 1 && self.link_to_other_name(&dir, name, path, inode)? {
            return Ok(());
        }
        match wanted.kind {
            NodeKind::Directory => {
                self.disk.create_dir(&dir, name, 0o700)?;
                for (name, below) in expected.names_in(inode) {
                    let path = child(path, &name);
                    if let Err(error) = self.make(&path, below) {
                        self.how.insert(path, format!("it cannot be made: {error}"));
                    }
                }
                Ok(())
            }
            NodeKind::Symlink => self.disk.create_symlink(&dir, name, &wanted.target),
            NodeKind::File => {
                let Some(file) = &wanted.file else { return Err(io::ErrorKind::InvalidData.into()) };
                self.make_file(&dir, name, path, file)
            }
            kind => self.disk.create_node(&dir, name, kind, wanted.mode.unwrap_or(0), wanted.device),
        }
    }

    /// Gives a file of several names the one that is missing, if another is there.
    fn link_to_other_name(&mut self, dir: &Handle, name: &[u8], path: &[u8], inode: Inode) -> io::Result<bool> {
        for other in paths_of(self.expected, inode) {
            if other == path {
                continue;
            }
            let Ok((other_dir, other_name)) = parent(self.disk, &self.folder, &other) else { continue };
            let Ok(node) = self.disk.open_node(&other_dir, other_name) else { continue };
            if self.disk.metadata(&node)?.kind == self.expected.attributes(inode).kind {
                self.disk.link(&node, dir, name)?;
                self.how.insert(path.to_vec(), format!("linked to {}", shown(&other)));
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn make_file(&mut self, dir: &Handle, name: &[u8], path: &[u8], wanted: &FileContent) -> io::Result<()> {
        let donor = match wanted.content.size_bytes {
            0 => None,
            _ => match content::find_donor(self.inspection, &wanted.content, None) {
                Some(donor) => Some(donor),
                None => {
                    self.how.insert(path.to_vec(), "no other file has what was stored".to_owned());
                    self.changed.remove(path);
                    return Ok(());
                }
            },
        };
        let file = self.disk.create_file(dir, name, 0o600)?;
        self.disk.set_len(&file, wanted.size_bytes)?;
        if let Some(donor) = donor {
            content::copy(self.disk, &donor, &file, wanted)?;
            self.how.insert(path.to_vec(), format!("copied from {}", donor.path));
        }
        self.disk.sync(&file)
    }

    /// Brings the bytes of a file back, in its own inode (R4).
    fn rewrite(&mut self, path: &[u8], inode: Inode) -> io::Result<()> {
        let Some(wanted) = &self.expected.attributes(inode).file else { return Ok(()) };
        let (dir, name) = parent(self.disk, &self.folder, path)?;
        let file = self.disk.open_file(&dir, name, Access::ReadWrite)?;
        let found = self.disk.metadata(&file)?;
        if content::trim(self.disk, &file, wanted)? {
            self.how.insert(path.to_vec(), "what was too much is gone; the rest was whole".to_owned());
        } else if let Some(donor) = content::find_donor(self.inspection, &wanted.content, Some(&found)) {
            content::copy(self.disk, &donor, &file, wanted)?;
            self.how.insert(path.to_vec(), format!("copied from {}", donor.path));
        } else if wanted.content.size_bytes == 0 && wanted.segments.is_none() {
            self.disk.set_len(&file, 0)?;
        } else if !self.turn_back_one_bit(&file, wanted)? {
            self.how.insert(path.to_vec(), "no other file has what was stored".to_owned());
            return Ok(());
        } else {
            self.how.insert(path.to_vec(), "one bit was flipped: it is as it was".to_owned());
        }
        self.changed.insert(path.to_vec());
        self.disk.sync(&file)
    }

    fn turn_back_one_bit(&self, file: &Handle, wanted: &FileContent) -> io::Result<bool> {
        if wanted.segments.is_some() || wanted.size_bytes > content::ONE_BIT_BYTES_MAX {
            return Ok(false);
        }
        let bytes = baleen_store::read_file(self.disk, file, content::ONE_BIT_BYTES_MAX)?;
        let is_right = |bytes: &[u8]| *blake3::hash(bytes).as_bytes() == wanted.content.blake3;
        if bytes.len() as u64 != wanted.size_bytes {
            return Ok(false);
        }
        match content::one_flipped_bit(&bytes, &is_right) {
            Some((at, byte)) => self.disk.write_at(file, &[byte], at as u64).map(|()| true),
            None => Ok(false),
        }
    }

    /// Sets the attributes of everything that was changed: what lies deeper first, so that times of directories stay.
    fn settle(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        for path in changed.iter().rev() {
            if let Err(error) = self.settle_one(path) {
                self.how.insert(path.clone(), format!("its attributes cannot be set: {error}"));
            }
        }
    }

    fn settle_one(&self, path: &[u8]) -> io::Result<()> {
        if path.is_empty() {
            return self.attributes(&self.folder, self.expected.attributes(self.expected.root()));
        }
        let (dir, name) = parent(self.disk, &self.folder, path)?;
        if path == RECIPE_NAME {
            let file = self.disk.open_file(&dir, name, Access::ReadWrite)?;
            self.disk.set_owner(&file, self.owner.0, self.owner.1)?;
            self.disk.set_mode(&file, layer::RECIPE_MODE)?;
            self.drop_xattrs(&file, &[])?;
            return self.disk.sync(&file);
        }
        let Some(inode) = at(self.expected, path) else { return Ok(()) };
        let wanted = self.expected.attributes(inode);
        match wanted.kind {
            NodeKind::File => {
                let file = self.disk.open_file(&dir, name, Access::ReadWrite)?;
                self.attributes(&file, wanted)
            }
            NodeKind::Directory => self.attributes(&self.disk.open_dir(&dir, name)?, wanted),
            kind => {
                self.disk.set_owner_at(&dir, name, wanted.uid, wanted.gid)?;
                if kind != NodeKind::Symlink
                    && let Some(mode) = wanted.mode
                {
                    // There is no call for the mode of what cannot be opened: it is made again with the right one.
                    if self.disk.metadata_at(&dir, name)?.mode != mode {
                        self.disk.remove_file(&dir, name)?;
                        self.disk.create_node(&dir, name, kind, mode, wanted.device)?;
                        self.disk.set_owner_at(&dir, name, wanted.uid, wanted.gid)?;
                        if let Some(time) =
                            self.expected.attributes(at(self.expected, parent_of(path)).unwrap_or(0)).modified
                        {
                            self.disk.set_times(&dir, time, time)?;
                        }
                    }
                }
                if let Some(time) = wanted.modified {
                    self.disk.set_times_at(&dir, name, time, time)?;
                }
                self.disk.sync(&dir)
            }
        }
    }

    /// Owner before mode, which a change of owner clears; attributes after both; times last.
    fn attributes(&self, node: &Handle, wanted: &Attributes) -> io::Result<()> {
        self.disk.set_owner(node, wanted.uid, wanted.gid)?;
        if let Some(mode) = wanted.mode {
            self.disk.set_mode(node, mode)?;
        }
        self.drop_xattrs(node, &wanted.xattrs)?;
        for (name, value) in &wanted.xattrs {
            self.disk.set_xattr(node, name, value)?;
        }
        if let Some(time) = wanted.modified {
            self.disk.set_times(node, time, time)?;
        }
        self.disk.sync(node)
    }

    fn drop_xattrs(&self, node: &Handle, wanted: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        let found = match self.disk.xattrs(node) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
            other => other?,
        };
        for (name, _) in found.iter().filter(|(name, _)| layer::is_layers_xattr(name)) {
            if !wanted.iter().any(|(known, _)| known == name) {
                self.disk.remove_xattr(node, name)?;
            }
        }
        Ok(())
    }
}

/// What should be at a path below the layer's folder.
fn at(expected: &Expected, path: &[u8]) -> Option<Inode> {
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    parts.try_fold(expected.root(), |dir, part| expected.find(dir, part).map(|(_, inode)| inode))
}

/// Every path of a node that has several names.
fn paths_of(expected: &Expected, wanted: Inode) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    let mut queue = vec![(Vec::new(), expected.root())];
    while let Some((path, dir)) = queue.pop() {
        for (name, inode) in expected.names_in(dir) {
            let path = child(&path, &name);
            if inode == wanted {
                paths.push(path);
            } else if expected.attributes(inode).kind == NodeKind::Directory {
                queue.push((path, inode));
            }
        }
    }
    paths
}

fn parent_of(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

/// Opens the directory of `path` below `folder`, one component after the other and following no link; gives the last name.
pub(super) fn parent<'p>(disk: &dyn Disk, folder: &Handle, path: &'p [u8]) -> io::Result<(Handle, &'p [u8])> {
    let mut dir = disk.open_dir_in_root(folder, std::path::Path::new("."))?;
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return Ok((dir, part));
        }
        dir = disk.open_dir(&dir, part)?;
    }
    Err(io::ErrorKind::NotFound.into())
}
