//! A whole file system as one value: inodes, and directories that name them. Cheap to copy.
//!
//! T1  [`Tree::apply`] makes the change if it still makes sense and does nothing if not: it serves the living disk,
//!     which has checked before, and the replay of any subset after a power cut.
//! T2  Two trees have one [`Tree::hash`] when no look at them through the port tells them apart (inode numbers and
//!     access times aside).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use baleen_store::{NodeKind, Timestamp};
use rustix::io::Errno;

use crate::change::{Change, Fate, TORN_WAYS};
use crate::contents::{BLOCK_BYTES, Contents};
use crate::random::Random;

pub(crate) const ROOT: u64 = 2;
pub(crate) const NAME_BYTES_MAX: usize = 255;
pub(crate) const PATH_BYTES_MAX: usize = 4095;
const LINKS_FOLLOWED_MAX: usize = 40;

/// The one time at which everything happens here: a write after `set_times` shows, and equal states stay equal.
pub(crate) const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };

#[derive(Debug, Clone)]
pub(crate) enum Body {
    File(Contents),
    Directory { parent: u64, names: BTreeMap<Vec<u8>, u64> },
    Symlink(Vec<u8>),
    Special(NodeKind, (u32, u32)),
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) body: Body,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) accessed: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names that lead here; a directory also counts itself and the `..` of its subdirectories, as on ext4.
    pub(crate) links: u64,
}

impl Inode {
    fn new(body: Body, mode: u32) -> Self {
        Self { body, mode, owner: (0, 0), accessed: NOW, modified: NOW, xattrs: BTreeMap::new(), links: 0 }
    }

    pub(crate) fn kind(&self) -> NodeKind {
        match &self.body {
            Body::File(_) => NodeKind::File,
            Body::Directory { .. } => NodeKind::Directory,
            Body::Symlink(_) => NodeKind::Symlink,
            Body::Special(kind, _) => *kind,
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.body {
            Body::File(contents) => contents.size_bytes(),
            Body::Symlink(target) => target.len() as u64,
            Body::Directory { .. } => BLOCK_BYTES,
            Body::Special(..) => 0,
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        match &self.body {
            Body::File(contents) => contents.allocated_bytes(),
            Body::Directory { .. } => BLOCK_BYTES,
            Body::Symlink(_) | Body::Special(..) => 0,
        }
    }
}

/// Bytes that an inode itself takes from the capacity, beside what is in it.
pub(crate) const INODE_BYTES: u64 = 256;

/// What is to be made: the node that a [`Change::Create`] brings.
#[derive(Debug, Clone)]
pub(crate) struct NewNode {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u32,
    pub(crate) target: Vec<u8>,
    pub(crate) device: (u32, u32),
}

/// A file system at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    inodes: BTreeMap<u64, Arc<Inode>>,
    /// Never given twice, so that a record never means two nodes by one number.
    next_inode: u64,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let mut root = Inode::new(Body::Directory { parent: ROOT, names: BTreeMap::new() }, 0o755);
        root.links = 2;
        Self { inodes: BTreeMap::from([(ROOT, Arc::new(root))]), next_inode: ROOT + 1 }
    }

    pub(crate) fn get(&self, inode: u64) -> Option<&Inode> {
        self.inodes.get(&inode).map(Arc::as_ref)
    }

    fn edit(&mut self, inode: u64) -> Option<&mut Inode> {
        self.inodes.get_mut(&inode).map(Arc::make_mut)
    }

    pub(crate) fn names(&self, dir: u64) -> Option<&BTreeMap<Vec<u8>, u64>> {
        match &self.get(dir)?.body {
            Body::Directory { names, .. } => Some(names),
            _ => None,
        }
    }

    pub(crate) fn contents(&self, inode: u64) -> Option<&Contents> {
        match &self.get(inode)?.body {
            Body::File(contents) => Some(contents),
            _ => None,
        }
    }

    pub(crate) fn contents_mut(&mut self, inode: u64) -> Option<&mut Contents> {
        match &mut self.edit(inode)?.body {
            Body::File(contents) => Some(contents),
            _ => None,
        }
    }

    pub(crate) fn child(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.names(dir)?.get(name).copied()
    }

    /// The inode number that the next new node gets.
    pub(crate) fn next_inode(&self) -> u64 {
        self.next_inode
    }

    /// Bytes taken from the capacity.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| INODE_BYTES + inode.allocated_bytes()).sum()
    }

    pub(crate) fn forget(&mut self, inode: u64) {
        self.inodes.remove(&inode);
    }

    /// True if `dir` is `ancestor` or lies below it.
    pub(crate) fn is_within(&self, mut dir: u64, ancestor: u64) -> bool {
        // Bounded by the number of inodes: a chain that long would be a cycle.
        for _ in 0..=self.inodes.len() {
            if dir == ancestor {
                return true;
            }
            match self.get(dir).map(|inode| &inode.body) {
                Some(Body::Directory { parent, .. }) if *parent != dir => dir = *parent,
                _ => return false,
            }
        }
        true
    }

    /// The names that lead to `dir`, each with its directory, from `dir` up to the root.
    pub(crate) fn places_above(&self, mut dir: u64) -> Vec<(u64, Vec<u8>)> {
        let mut places = Vec::new();
        while let Some(Body::Directory { parent, .. }) = self.get(dir).map(|inode| &inode.body) {
            let name = self.names(*parent).and_then(|names| names.iter().find(|(_, inode)| **inode == dir));
            match name {
                Some((name, _)) => places.push((*parent, name.clone())),
                None => break, // The root, or a directory that was removed.
            }
            dir = *parent;
        }
        places
    }

    /// Finds the directory at `path` with `root` as in a chroot (`openat2`, `RESOLVE_IN_ROOT`).
    pub(crate) fn resolve_in_root(&self, root: u64, path: &[u8]) -> Result<u64, Errno> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).rev().map(<[u8]>::to_vec).collect()
        };
        let mut walked = vec![root];
        let mut ahead = split(path);
        let mut followed = 0;
        while let Some(name) = ahead.pop() {
            let here = *walked.last().expect("the root is never popped");
            let names = self.names(here).ok_or(Errno::NOTDIR)?;
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if walked.len() > 1 {
                        walked.pop();
                    }
                    continue;
                }
                name if name.len() > NAME_BYTES_MAX => return Err(Errno::NAMETOOLONG),
                _ => {}
            }
            let next = *names.get(&name).ok_or(Errno::NOENT)?;
            match &self.get(next).ok_or(Errno::NOENT)?.body {
                Body::Symlink(target) => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED_MAX {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        walked.truncate(1);
                    }
                    ahead.extend(split(target));
                }
                _ => walked.push(next),
            }
        }
        let here = *walked.last().expect("the root is never popped");
        self.names(here).map(|_| here).ok_or(Errno::NOTDIR)
    }

    /// Makes a change, as far as `fate` lets it reach the disk and as far as it still makes sense (T1).
    pub(crate) fn apply(&mut self, change: &Change, fate: Fate) {
        if fate == Fate::Lost {
            return;
        }
        match change {
            Change::Create { inode, node, dir, name } => self.create(*inode, node, *dir, name),
            Change::Link { inode, dir, name } => {
                if self.get(*inode).is_some() && self.place(*dir, name, *inode) {
                    self.edit(*inode).expect("looked up above").links += 1;
                }
            }
            Change::Rename { inode, from, from_name, to, to_name } => {
                self.rename(*inode, (*from, from_name), (*to, to_name));
            }
            Change::Remove { inode, dir, name } => self.remove(*inode, *dir, name),
            Change::Write { inode, offset, bytes } => self.write(*inode, *offset, bytes, fate),
            Change::SetLen { inode, size_bytes } => {
                if let Some(contents) = self.contents_mut(*inode) {
                    contents.set_len(*size_bytes);
                    self.written(*inode);
                }
            }
            Change::SetMode { inode, mode } => {
                if let Some(node) = self.edit(*inode) {
                    node.mode = *mode;
                }
            }
            Change::SetOwner { inode, owner } => {
                if let Some(node) = self.edit(*inode) {
                    node.owner = *owner;
                    if !matches!(node.body, Body::Directory { .. }) {
                        // `chown(2)`: setuid goes, and setgid where it does not mean mandatory locking.
                        let setgid = if node.mode & 0o010 != 0 { 0o2000 } else { 0 };
                        node.mode &= !(0o4000 | setgid);
                        node.xattrs.remove(SECURITY_CAPABILITY);
                    }
                }
            }
            Change::SetTimes { inode, accessed, modified } => {
                if let Some(node) = self.edit(*inode) {
                    (node.accessed, node.modified) = (*accessed, *modified);
                }
            }
            Change::SetXattr { inode, name, value } => {
                if let Some(node) = self.edit(*inode) {
                    node.xattrs.insert(name.clone(), value.clone());
                }
            }
            Change::Damage { inode, offset, mask } => {
                if let Some(contents) = self.contents_mut(*inode) {
                    contents.flip(*offset, *mask);
                }
            }
        }
    }

    fn create(&mut self, inode: u64, node: &NewNode, dir: u64, name: &[u8]) {
        let body = match node.kind {
            NodeKind::File => Body::File(Contents::default()),
            NodeKind::Directory => Body::Directory { parent: dir, names: BTreeMap::new() },
            NodeKind::Symlink => Body::Symlink(node.target.clone()),
            kind => Body::Special(kind, node.device),
        };
        self.next_inode = self.next_inode.max(inode + 1);
        let mut made = Inode::new(body, node.mode);
        made.links = if node.kind == NodeKind::Directory { 1 } else { 0 };
        if let Some(parent) = self.get(dir).filter(|parent| parent.mode & 0o2000 != 0) {
            made.owner.1 = parent.owner.1; // A setgid directory hands its group on, and to directories its bit.
            made.mode |= if node.kind == NodeKind::Directory { 0o2000 } else { 0 };
        }
        // A node whose directory was lost still exists: a later rename that survived may bring it to a place that did.
        self.inodes.insert(inode, Arc::new(made));
        if self.place(dir, name, inode) {
            self.edit(inode).expect("just made").links += 1;
            if node.kind == NodeKind::Directory {
                self.edit(dir).expect("just named in").links += 1;
            }
        }
    }

    /// Writes a name into a directory; false if that directory is not there or the name is taken.
    fn place(&mut self, dir: u64, name: &[u8], inode: u64) -> bool {
        let Some(Body::Directory { names, .. }) = self.edit(dir).map(|node| &mut node.body) else { return false };
        if names.contains_key(name) {
            return false;
        }
        names.insert(name.to_vec(), inode);
        self.modified(dir);
        true
    }

    /// Takes a name out of a directory; false if it does not lead to `inode`.
    fn displace(&mut self, dir: u64, name: &[u8], inode: u64) -> bool {
        let Some(Body::Directory { names, .. }) = self.edit(dir).map(|node| &mut node.body) else { return false };
        if names.get(name) != Some(&inode) {
            return false;
        }
        names.remove(name);
        self.modified(dir);
        true
    }

    fn rename(&mut self, inode: u64, (from, from_name): (u64, &[u8]), (to, to_name): (u64, &[u8])) {
        let Some(node) = self.get(inode) else { return };
        let is_dir = matches!(node.body, Body::Directory { .. });
        let is_free = self.names(to).is_some_and(|names| !names.contains_key(to_name));
        if !is_free || (is_dir && self.is_within(to, inode)) {
            return;
        }
        let was_named = self.displace(from, from_name, inode);
        // Without its old name it may have been unattached, its directory lost: then this is its only name. With its
        // old directory there, the name must have led here.
        if !was_named && self.names(from).is_some() {
            return;
        }
        self.place(to, to_name, inode);
        if !was_named {
            self.edit(inode).expect("looked up above").links += 1;
        }
        if is_dir {
            if let Body::Directory { parent, .. } = &mut self.edit(inode).expect("looked up above").body {
                *parent = to;
            }
            if was_named {
                self.edit(from).expect("displaced from").links -= 1;
            }
            self.edit(to).expect("placed in").links += 1;
        }
    }

    fn remove(&mut self, inode: u64, dir: u64, name: &[u8]) {
        if self.names(inode).is_some_and(|names| !names.is_empty()) || !self.displace(dir, name, inode) {
            return;
        }
        let is_dir = self.names(inode).is_some();
        if is_dir {
            self.edit(dir).expect("displaced from").links -= 1;
        }
        let node = self.edit(inode).expect("a name leads to an inode");
        node.links = if is_dir { 0 } else { node.links - 1 };
    }

    fn write(&mut self, inode: u64, offset: u64, bytes: &[u8], fate: Fate) {
        let Some(contents) = self.contents_mut(inode) else { return };
        match fate {
            Fate::Kept => contents.write(bytes, offset),
            Fate::Lost => {}
            Fate::Zeros => contents.extend_to(offset + bytes.len() as u64),
            Fate::Torn { sector_bytes, seed } => {
                let sector_bytes = u64::from(sector_bytes);
                let (first, end) = (offset / sector_bytes, (offset + bytes.len() as u64).div_ceil(sector_bytes));
                // One of the borders between two sectors; of a write within one sector there is none.
                let border = first + 1 + u64::from(seed / TORN_WAYS) % (end - first).saturating_sub(1).max(1);
                let keeps = |sector| match seed % TORN_WAYS {
                    0 => sector < border,
                    1 => sector >= border,
                    2 => sector != border - 1,
                    _ => Random::of(&[seed.into(), sector]).chance(1, 2),
                };
                contents.write_torn(bytes, offset, sector_bytes, keeps);
            }
        }
        self.written(inode);
    }

    /// What any change of contents does on Linux beside it.
    fn written(&mut self, inode: u64) {
        self.modified(inode);
        if self.get(inode).is_some_and(|node| node.xattrs.contains_key(SECURITY_CAPABILITY)) {
            self.edit(inode).expect("looked up above").xattrs.remove(SECURITY_CAPABILITY);
        }
    }

    fn modified(&mut self, inode: u64) {
        if let Some(node) = self.edit(inode) {
            node.modified = NOW;
        }
    }

    /// Keeps only what a name reaches from the root, and counts links anew: what mounting after a power cut does.
    pub(crate) fn mount(&mut self) {
        let mut links: HashMap<u64, u64> = HashMap::from([(ROOT, 2)]);
        let mut ahead = vec![ROOT];
        while let Some(dir) = ahead.pop() {
            let names: Vec<u64> = self.names(dir).expect("only directories are queued").values().copied().collect();
            for inode in names {
                if self.names(inode).is_some() {
                    *links.get_mut(&dir).expect("counted before it was queued") += 1;
                    links.insert(inode, 2);
                    ahead.push(inode);
                } else {
                    *links.entry(inode).or_default() += 1;
                }
            }
        }
        self.inodes.retain(|inode, _| links.contains_key(inode));
        for (inode, links) in links {
            if self.get(inode).is_some_and(|node| node.links != links) {
                self.edit(inode).expect("looked up above").links = links;
            }
        }
    }

    /// A hash of all that can be seen of this tree (T2).
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        let mut ahead = vec![ROOT];
        while let Some(inode) = ahead.pop() {
            let count = seen.len();
            if let Some(number) = seen.get(&inode) {
                number.hash(&mut hasher); // One more name of a node that was hashed already.
                continue;
            }
            seen.insert(inode, count);
            let node = self.get(inode).expect("a name leads to an inode");
            (node.kind(), node.mode, node.owner, node.links).hash(&mut hasher);
            (node.modified.seconds, node.modified.nanoseconds).hash(&mut hasher);
            node.xattrs.hash(&mut hasher);
            match &node.body {
                Body::File(contents) => contents.hash_into(&mut hasher),
                Body::Directory { names, .. } => {
                    for (name, inode) in names {
                        name.hash(&mut hasher);
                        ahead.push(*inode);
                    }
                }
                Body::Symlink(target) => target.hash(&mut hasher),
                Body::Special(_, device) => device.hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// A listing for people: a line a node, in the order of names.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        self.describe_below(ROOT, "", &mut text);
        text
    }

    fn describe_below(&self, dir: u64, path: &str, text: &mut String) {
        for (name, inode) in self.names(dir).expect("only directories are described") {
            let path = format!("{path}/{}", name.escape_ascii());
            let node = self.get(*inode).expect("a name leads to an inode");
            let _ = match &node.body {
                Body::File(contents) => {
                    let mut head = [0; 32];
                    let count = contents.read(&mut head, 0);
                    let head = head[..count].escape_ascii();
                    writeln!(text, "{path}: file of {} bytes: {head}", contents.size_bytes())
                }
                Body::Directory { .. } => writeln!(text, "{path}/"),
                Body::Symlink(target) => writeln!(text, "{path} -> {}", target.escape_ascii()),
                Body::Special(kind, device) => writeln!(text, "{path}: {kind:?} {device:?}"),
            };
            if self.names(*inode).is_some() {
                self.describe_below(*inode, &path, text);
            }
        }
    }
}

const SECURITY_CAPABILITY: &[u8] = b"security.capability";
