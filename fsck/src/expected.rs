//! The tree that a layer's archive makes, in memory: what the folder of a committed layer must look like, node by node.
//!
//! E1  It is made from the recipe alone, by the rules of the snapshotter's `tree` (P5 to P7 there), and shares no code with
//!     it but the parser: an extraction that errs is found, not repeated.
//! E2  Memory is about 200 bytes a name and nothing a byte of payload. A layer has at most 4 million entries (threats,
//!     section 9), one of 6,000 takes a bit more than a megabyte.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use baleen_snapshotter::name::{self, CleanPath, Meaning};
use baleen_snapshotter::tar::{Entry, EntryKind, Parser, Step};
use baleen_store::recipe::{Content, Copied, Item, KEPT_NAME, Recipe, Segment, TREE_NAME};
use baleen_store::{NodeKind, Timestamp};

/// Index of an inode.
pub(crate) type Inode = u32;
/// Index of a name.
pub(crate) type Name = u32;

const NONE: u32 = u32::MAX;
pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// What a node must be.
#[derive(Debug, Clone)]
pub(crate) struct Attributes {
    pub(crate) kind: NodeKind,
    /// `None`: nothing says it (a link has none).
    pub(crate) mode: Option<u32>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None`: nothing says it, and nobody sees it.
    pub(crate) modified: Option<Timestamp>,
    pub(crate) device: (u32, u32),
    /// Target of a symbolic link.
    pub(crate) target: Box<[u8]>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) file: Option<Box<FileContent>>,
    /// The directory that has it, for a directory.
    parent: Inode,
    /// Names that lead to it.
    pub(crate) names: u32,
}

/// What a regular file must hold.
#[derive(Debug, Clone)]
pub(crate) struct FileContent {
    pub(crate) size_bytes: u64,
    pub(crate) content: Content,
    pub(crate) segments: Option<Vec<Segment>>,
}

#[derive(Debug)]
struct Dentry {
    dir: Inode,
    inode: Inode,
    /// Where its bytes lie in `letters`.
    start: u32,
    length: u16,
    gone: bool,
    seen: bool,
    /// The next name with the same hash.
    next: Name,
}

/// A layer's folder as it must be.
#[derive(Debug)]
pub(crate) struct Expected {
    inodes: Vec<Attributes>,
    dentries: Vec<Dentry>,
    letters: Vec<u8>,
    table: HashMap<u64, Name>,
    hasher: RandomState,
    root: Inode,
    tree: Inode,
    kept: Option<Inode>,
    next_kept: u64,
    owner: (u32, u32),
    entries: u64,
    /// A hard link whose target was copied up from the layers below: the items that follow tell of it.
    waiting: Option<Box<Entry>>,
}

/// Why a recipe describes no tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpectedError {
    #[error("{0}")]
    Recipe(String),
    #[error("its archive cannot be read: {0}")]
    Archive(String),
    #[error("its archive and its files do not belong together: {0}")]
    Mismatch(&'static str),
}

/// The payload that the archive is at.
enum Open {
    Nothing,
    File(Inode, Option<Vec<Segment>>, u64),
    Kept(Inode),
}

impl Expected {
    /// Reads the whole recipe. `owner` is who owns what no entry describes: the owner of the store.
    pub(crate) fn read(recipe: &Recipe, owner: (u32, u32)) -> Result<Self, ExpectedError> {
        let mut expected = Self::empty(owner);
        let mut parser = Parser::new();
        let mut open = Open::Nothing;
        let zeros = vec![0; 1 << 20];
        for item in recipe.items() {
            let item = item.map_err(|error| ExpectedError::Recipe(error.to_string()))?;
            if expected.waiting.is_some() && !matches!(item, Item::Copied(_) | Item::LedTo(_)) {
                break;
            }
            match item {
                Item::Copied(copied) => expected.copied(*copied)?,
                Item::LedTo(path) => expected.led_to(&path)?,
                Item::Literal(bytes) => expected.feed(&mut parser, &bytes, &mut open)?,
                Item::Zeros(count) => expected.feed_zeros(&mut parser, &zeros, count, &mut open)?,
                Item::File { content, .. } => {
                    expected.feed_zeros(&mut parser, &zeros, content.size_bytes, &mut open)?;
                    match std::mem::replace(&mut open, Open::Nothing) {
                        Open::File(inode, segments, size_bytes) => {
                            let file = FileContent { size_bytes, content, segments };
                            expected.inodes[inode as usize].file = Some(Box::new(file));
                        }
                        _ => return Err(ExpectedError::Mismatch("a file is in it that no entry describes")),
                    }
                }
                Item::Kept { content, .. } => {
                    if matches!(open, Open::Kept(_)) {
                        expected.feed_zeros(&mut parser, &zeros, content.size_bytes, &mut open)?;
                    } else {
                        // What follows the end of the archive: no entry, and the last item.
                        open = Open::Kept(expected.keep());
                    }
                    match std::mem::replace(&mut open, Open::Nothing) {
                        Open::Kept(inode) => {
                            let file = FileContent { size_bytes: content.size_bytes, content, segments: None };
                            expected.inodes[inode as usize].file = Some(Box::new(file));
                        }
                        _ => return Err(ExpectedError::Mismatch("something is kept that no entry describes")),
                    }
                }
            }
        }
        if expected.waiting.is_some() {
            return Err(ExpectedError::Mismatch("a hard link leads to a file that is not in it"));
        }
        if expected.entries != recipe.summary().entries {
            return Err(ExpectedError::Mismatch("it has another number of entries than it says"));
        }
        Ok(expected)
    }

    fn empty(owner: (u32, u32)) -> Self {
        let mut expected = Self {
            inodes: Vec::new(),
            dentries: Vec::new(),
            letters: Vec::new(),
            table: HashMap::new(),
            hasher: RandomState::new(),
            root: 0,
            tree: 0,
            kept: None,
            next_kept: 0,
            owner,
            entries: 0,
            waiting: None,
        };
        // The folder itself: its time is nobody's.
        expected.root = expected.add_inode(Attributes { modified: None, ..expected.plain(NodeKind::Directory, 0o700) });
        let tree = expected.plain(NodeKind::Directory, 0o755);
        expected.tree = expected.add_inode(Attributes { parent: expected.root, ..tree });
        expected.add_name(expected.root, TREE_NAME, expected.tree);
        expected
    }

    fn plain(&self, kind: NodeKind, mode: u32) -> Attributes {
        Attributes {
            kind,
            mode: Some(mode),
            uid: self.owner.0,
            gid: self.owner.1,
            modified: Some(Timestamp::default()),
            device: (0, 0),
            target: Box::default(),
            xattrs: Vec::new(),
            file: None,
            parent: NONE,
            names: 0,
        }
    }

    // What is asked when the folder is compared.

    /// The layer's folder itself.
    pub(crate) fn root(&self) -> Inode {
        self.root
    }

    pub(crate) fn attributes(&self, inode: Inode) -> &Attributes {
        &self.inodes[inode as usize]
    }

    /// Looks up a name, and gives what it leads to.
    pub(crate) fn find(&self, dir: Inode, name: &[u8]) -> Option<(Name, Inode)> {
        let mut at = self.table.get(&self.hash(dir, name)).copied().unwrap_or(NONE);
        while at != NONE {
            let dentry = &self.dentries[at as usize];
            if !dentry.gone && dentry.dir == dir && self.letters_of(dentry) == name {
                return Some((at, dentry.inode));
            }
            at = dentry.next;
        }
        None
    }

    /// Notes that a name was found.
    pub(crate) fn saw(&mut self, name: Name) {
        self.dentries[name as usize].seen = true;
    }

    /// Names that were not found, as path and inode: of what is missing as a whole only the top.
    pub(crate) fn unseen(&self) -> Vec<(Vec<u8>, Inode)> {
        let mut path_of_dir: HashMap<Inode, Name> = HashMap::new();
        for (number, dentry) in self.dentries.iter().enumerate().filter(|(_, dentry)| !dentry.gone) {
            if self.inodes[dentry.inode as usize].kind == NodeKind::Directory {
                path_of_dir.insert(dentry.inode, number as Name);
            }
        }
        let is_missing = |dir: Inode| path_of_dir.get(&dir).is_some_and(|name| !self.dentries[*name as usize].seen);
        let mut unseen = Vec::new();
        for dentry in self.dentries.iter().filter(|dentry| !dentry.gone && !dentry.seen && !is_missing(dentry.dir)) {
            let mut parts = vec![self.letters_of(dentry).to_vec()];
            let mut dir = dentry.dir;
            while let Some(name) = path_of_dir.get(&dir) {
                let above = &self.dentries[*name as usize];
                parts.push(self.letters_of(above).to_vec());
                dir = above.dir;
            }
            parts.reverse();
            unseen.push((parts.join(&b'/'), dentry.inode));
        }
        unseen.sort();
        unseen
    }

    /// The names in one directory.
    pub(crate) fn names_in(&self, dir: Inode) -> Vec<(Vec<u8>, Inode)> {
        let live = self.dentries.iter().filter(|dentry| !dentry.gone && dentry.dir == dir);
        live.map(|dentry| (self.letters_of(dentry).to_vec(), dentry.inode)).collect()
    }

    // How it is made.

    fn feed_zeros(
        &mut self,
        parser: &mut Parser,
        zeros: &[u8],
        mut count: u64,
        open: &mut Open,
    ) -> Result<(), ExpectedError> {
        while count > 0 {
            let part = usize::try_from(count).map_or(zeros.len(), |count| count.min(zeros.len()));
            self.feed(parser, &zeros[..part], open)?;
            count -= part as u64;
        }
        Ok(())
    }

    fn feed(&mut self, parser: &mut Parser, mut bytes: &[u8], open: &mut Open) -> Result<(), ExpectedError> {
        loop {
            let (step, count) = parser.step(bytes).map_err(|error| ExpectedError::Archive(error.to_string()))?;
            bytes = &bytes[count..];
            match step {
                Step::More => return Ok(()),
                Step::Entry(entry) => *open = self.entry(*entry)?,
                Step::Literal(_) | Step::Data(_) | Step::Zeros(_) | Step::EntryEnd | Step::Tail(_) => {}
            }
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<Open, ExpectedError> {
        self.entries += 1;
        if entry.kind == EntryKind::VolumeLabel {
            return Ok(self.keep_payload(&entry));
        }
        let archive = |error: &dyn std::fmt::Display| ExpectedError::Archive(error.to_string());
        let clean = CleanPath::parse(&entry.path).map_err(|error| archive(&error))?;
        let parts: Vec<Vec<u8>> = clean.parts().iter().map(|part| part.to_vec()).collect();
        let Some((name, parents)) = parts.split_last() else {
            self.describe_dir(self.tree, &entry);
            return Ok(self.keep_payload(&entry));
        };
        match name::meaning(name).map_err(|error| archive(&error))? {
            Meaning::Ignored => return Ok(self.keep_payload(&entry)),
            Meaning::Opaque => {
                let dir = self.parent(parents)?;
                self.make_opaque(dir);
                return Ok(self.keep_payload(&entry));
            }
            Meaning::Whiteout(hidden) => {
                let dir = self.parent(parents)?;
                self.whiteout(dir, hidden);
                return Ok(self.keep_payload(&entry));
            }
            Meaning::Plain => {}
        }
        match entry.kind {
            EntryKind::File => {
                let dir = self.parent(parents)?;
                let node = self.node_of(&entry, NodeKind::File);
                let inode = self.make(dir, name, node);
                return Ok(Open::File(inode, entry.segments, entry.size_bytes));
            }
            EntryKind::Directory | EntryKind::DumpDirectory => self.directory(parents, name, &entry)?,
            EntryKind::HardLink => self.hard_link(parents, name, &entry)?,
            EntryKind::Symlink => {
                let dir = self.parent(parents)?;
                let node = self.node_of(&entry, NodeKind::Symlink);
                self.make(dir, name, Attributes { mode: None, target: entry.link.clone().into(), ..node });
            }
            EntryKind::CharDevice => self.device(parents, name, &entry, NodeKind::CharDevice)?,
            EntryKind::BlockDevice => self.device(parents, name, &entry, NodeKind::BlockDevice)?,
            EntryKind::Fifo => self.device(parents, name, &entry, NodeKind::Fifo)?,
            EntryKind::VolumeLabel | EntryKind::Other(_) => {
                return Err(ExpectedError::Mismatch("it has an entry that no layer may contain"));
            }
        }
        Ok(self.keep_payload(&entry))
    }

    fn node_of(&self, entry: &Entry, kind: NodeKind) -> Attributes {
        Attributes {
            uid: entry.uid,
            gid: entry.gid,
            modified: Some(entry.modified),
            xattrs: allowed_xattrs(entry),
            ..self.plain(kind, entry.mode & 0o7777)
        }
    }

    fn device(&mut self, parents: &[Vec<u8>], name: &[u8], entry: &Entry, kind: NodeKind) -> Result<(), ExpectedError> {
        let dir = self.parent(parents)?;
        let mut node = self.node_of(entry, kind);
        let setgid = self.inodes[dir as usize].mode.is_some_and(|mode| mode & 0o2000 != 0);
        if setgid || (node.uid, node.gid) != self.owner {
            // Its owner is set after its mode, which takes these bits away (chown(2)).
            let group_bit = if entry.mode & 0o010 != 0 { 0o2000 } else { 0 };
            node.mode = node.mode.map(|mode| mode & !(0o4000 | group_bit));
        }
        let is_device = kind != NodeKind::Fifo;
        let device = if is_device { entry.device } else { (0, 0) };
        self.make(dir, name, Attributes { device, xattrs: Vec::new(), ..node });
        Ok(())
    }

    fn directory(&mut self, parents: &[Vec<u8>], name: &[u8], entry: &Entry) -> Result<(), ExpectedError> {
        let dir = self.parent(parents)?;
        let (mut inode, mut opaque) = (NONE, false);
        if let Some((_, there)) = self.find(dir, name) {
            if self.inodes[there as usize].kind == NodeKind::Directory {
                inode = there;
            } else {
                opaque = self.is_whiteout(there);
                self.clear(dir, name);
            }
        }
        if inode == NONE {
            inode = self.add_inode(Attributes { parent: dir, ..self.plain(NodeKind::Directory, 0o700) });
            self.add_name(dir, name, inode);
        }
        self.describe_dir(inode, entry);
        if opaque {
            self.make_opaque(inode);
        }
        Ok(())
    }

    fn describe_dir(&mut self, inode: Inode, entry: &Entry) {
        let xattrs = allowed_xattrs(entry);
        let node = &mut self.inodes[inode as usize];
        (node.mode, node.uid, node.gid) = (Some(entry.mode & 0o7777), entry.uid, entry.gid);
        node.modified = Some(entry.modified);
        xattrs.into_iter().for_each(|(name, value)| set_xattr(node, name, value));
    }

    fn hard_link(&mut self, parents: &[Vec<u8>], name: &[u8], entry: &Entry) -> Result<(), ExpectedError> {
        let outside = ExpectedError::Mismatch("a hard link leads to a file that is not in it");
        let target = CleanPath::parse(&entry.link).map_err(|error| ExpectedError::Archive(error.to_string()))?;
        let parts: Vec<Vec<u8>> = target.parts().iter().map(|part| part.to_vec()).collect();
        let Some((target_name, target_parents)) = parts.split_last() else { return Err(outside) };
        let target_dir = self.resolve(target_parents, false)?;
        let Some((_, inode)) = target_dir.and_then(|dir| self.find(dir, target_name)) else {
            self.waiting = Some(Box::new(entry.clone()));
            return Ok(());
        };
        self.link(parents, name, inode)
    }

    /// A node that was copied up; the last of several is what the link that waits leads to.
    fn copied(&mut self, copied: Copied) -> Result<(), ExpectedError> {
        let parts: Vec<Vec<u8>> = copied.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let Some((name, parents)) = parts.split_last() else { return Ok(()) };
        let dir = self.parent(parents)?;
        let mode = (copied.kind != NodeKind::Symlink).then_some(copied.mode);
        let file = copied
            .content
            .map(|content| Box::new(FileContent { size_bytes: content.size_bytes, content, segments: None }));
        let node = Attributes {
            mode,
            uid: copied.uid,
            gid: copied.gid,
            modified: Some(copied.modified),
            device: copied.device,
            target: copied.link.into(),
            xattrs: copied.xattrs,
            file,
            parent: dir,
            ..self.plain(copied.kind, 0)
        };
        let inode = self.make(dir, name, node);
        if copied.kind == NodeKind::Directory {
            return Ok(());
        }
        self.link_waiting(inode)
    }

    /// A path to which the link that waits leads through links of the layers below.
    fn led_to(&mut self, path: &[u8]) -> Result<(), ExpectedError> {
        let parts: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let found = match parts.split_last() {
            Some((name, parents)) => self.resolve(parents, false)?.and_then(|dir| self.find(dir, name)),
            None => None,
        };
        match found {
            Some((_, inode)) => self.link_waiting(inode),
            None => Err(ExpectedError::Mismatch("a hard link leads to a file that is not in it")),
        }
    }

    fn link_waiting(&mut self, inode: Inode) -> Result<(), ExpectedError> {
        let Some(entry) = self.waiting.take() else {
            return Err(ExpectedError::Mismatch("a file was copied up that no link leads to"));
        };
        let clean = CleanPath::parse(&entry.path).map_err(|error| ExpectedError::Archive(error.to_string()))?;
        let parts: Vec<Vec<u8>> = clean.parts().iter().map(|part| part.to_vec()).collect();
        match parts.split_last() {
            Some((name, parents)) => self.link(parents, name, inode),
            None => Err(ExpectedError::Mismatch("a hard link has no name")),
        }
    }

    fn link(&mut self, parents: &[Vec<u8>], name: &[u8], inode: Inode) -> Result<(), ExpectedError> {
        let dir = self.parent(parents)?;
        match self.find(dir, name) {
            Some((_, there)) if there == inode => return Ok(()),
            Some(_) => self.clear(dir, name),
            None => {}
        }
        self.add_name(dir, name, inode);
        Ok(())
    }

    fn whiteout(&mut self, dir: Inode, hidden: &[u8]) {
        match self.find(dir, hidden) {
            Some((_, there)) if self.inodes[there as usize].kind == NodeKind::Directory => self.make_opaque(there),
            Some(_) => {}
            None => {
                let above = &self.inodes[dir as usize];
                let gid = if above.mode.is_some_and(|mode| mode & 0o2000 != 0) { above.gid } else { self.owner.1 };
                let plain = self.plain(NodeKind::CharDevice, 0);
                let inode = self.add_inode(Attributes { gid, modified: None, ..plain });
                self.add_name(dir, hidden, inode);
            }
        }
    }

    fn make_opaque(&mut self, dir: Inode) {
        set_xattr(&mut self.inodes[dir as usize], OPAQUE_XATTR.to_vec(), b"y".to_vec());
    }

    fn is_whiteout(&self, inode: Inode) -> bool {
        let node = &self.inodes[inode as usize];
        node.kind == NodeKind::CharDevice && node.device == (0, 0)
    }

    /// A place in `kept/` for payload that the tree does not show.
    fn keep_payload(&mut self, entry: &Entry) -> Open {
        if entry.data_bytes == 0 { Open::Nothing } else { Open::Kept(self.keep()) }
    }

    fn keep(&mut self) -> Inode {
        let node = Attributes { modified: None, ..self.plain(NodeKind::File, 0o600) };
        let inode = self.add_inode(node);
        let (dir, name) = self.next_kept();
        self.add_name(dir, &name, inode);
        inode
    }

    fn next_kept(&mut self) -> (Inode, Vec<u8>) {
        let dir = match self.kept {
            Some(dir) => dir,
            None => {
                let node = self.plain(NodeKind::Directory, 0o700);
                let dir = self.add_inode(Attributes { parent: self.root, modified: None, ..node });
                self.add_name(self.root, KEPT_NAME, dir);
                *self.kept.insert(dir)
            }
        };
        let name = self.next_kept.to_string().into_bytes();
        self.next_kept += 1;
        (dir, name)
    }

    fn parent(&mut self, parts: &[Vec<u8>]) -> Result<Inode, ExpectedError> {
        self.resolve(parts, true)?.ok_or(ExpectedError::Mismatch("a directory of it cannot be made"))
    }

    /// The directory at `parts`, links followed as in a chroot; with `create`, made where it is missing.
    fn resolve(&mut self, parts: &[Vec<u8>], create: bool) -> Result<Option<Inode>, ExpectedError> {
        let mut queue: Vec<Vec<u8>> = parts.iter().rev().cloned().collect();
        let mut at = self.tree;
        let mut links = 0;
        while let Some(part) = queue.pop() {
            if part == b".." {
                at = if at == self.tree { at } else { self.inodes[at as usize].parent };
                continue;
            }
            match self.find(at, &part) {
                Some((_, inode)) if self.inodes[inode as usize].kind == NodeKind::Directory => at = inode,
                Some((_, inode)) if self.inodes[inode as usize].kind == NodeKind::Symlink => {
                    links += 1;
                    if links > baleen_snapshotter::limits::LINKS_FOLLOWED_MAX {
                        return Err(ExpectedError::Mismatch("a path of it leads through too many links"));
                    }
                    let target = self.inodes[inode as usize].target.clone();
                    if target.first() == Some(&b'/') {
                        at = self.tree;
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    queue.extend(parts.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec));
                }
                Some((_, inode)) if !create || !self.is_whiteout(inode) => return Ok(None),
                there => {
                    if !create {
                        return Ok(None);
                    }
                    if there.is_some() {
                        self.clear(at, &part);
                    }
                    let mut node = self.plain(NodeKind::Directory, 0o755);
                    (node.uid, node.gid, node.parent) = (0, 0, at);
                    let inode = self.add_inode(node);
                    if there.is_some() {
                        self.make_opaque(inode);
                    }
                    self.add_name(at, &part, inode);
                    at = inode;
                }
            }
        }
        Ok(Some(at))
    }

    /// Makes a node at a name, after clearing what is there.
    fn make(&mut self, dir: Inode, name: &[u8], node: Attributes) -> Inode {
        self.clear(dir, name);
        let inode = self.add_inode(node);
        self.add_name(dir, name, inode);
        inode
    }

    /// Takes away what is at a name: what has payload goes to `kept/`, the rest is gone.
    fn clear(&mut self, dir: Inode, name: &[u8]) {
        let Some((dentry, inode)) = self.find(dir, name) else { return };
        self.dentries[dentry as usize].gone = true;
        self.inodes[inode as usize].names -= 1;
        if matches!(self.inodes[inode as usize].kind, NodeKind::File | NodeKind::Directory) {
            let (kept, number) = self.next_kept();
            self.add_name(kept, &number, inode);
        }
    }

    fn add_inode(&mut self, attributes: Attributes) -> Inode {
        self.inodes.push(attributes);
        (self.inodes.len() - 1) as Inode
    }

    fn add_name(&mut self, dir: Inode, name: &[u8], inode: Inode) {
        let hash = self.hash(dir, name);
        let start = self.letters.len() as u32;
        self.letters.extend_from_slice(name);
        let number = self.dentries.len() as Name;
        let next = self.table.insert(hash, number).unwrap_or(NONE);
        let length = name.len() as u16;
        self.dentries.push(Dentry { dir, inode, start, length, gone: false, seen: false, next });
        self.inodes[inode as usize].names += 1;
    }

    fn hash(&self, dir: Inode, name: &[u8]) -> u64 {
        self.hasher.hash_one((dir, name))
    }

    fn letters_of(&self, dentry: &Dentry) -> &[u8] {
        let start = dentry.start as usize;
        &self.letters[start..start + dentry.length as usize]
    }
}

fn set_xattr(node: &mut Attributes, name: Vec<u8>, value: Vec<u8>) {
    match node.xattrs.iter_mut().find(|(known, _)| *known == name) {
        Some(known) => known.1 = value,
        None => node.xattrs.push((name, value)),
    }
    node.xattrs.sort();
}

/// The attributes of an entry that a layer may set (P6 of the snapshotter's `tree`).
fn allowed_xattrs(entry: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let is_capability = |value: &[u8]| {
        let Some((magic, _)) = value.split_first_chunk::<4>() else { return false };
        let length = match u32::from_le_bytes(*magic) & !1 {
            0x0100_0000 => 12,
            0x0200_0000 => 20,
            0x0300_0000 => 24,
            _ => return false,
        };
        value.len() == length
    };
    let allowed = |name: &[u8], value: &[u8]| match name {
        b"security.capability" => entry.kind == EntryKind::File && is_capability(value),
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() > b"user.".len(),
    };
    entry.xattrs.iter().filter(|(name, value)| allowed(name, value)).cloned().collect()
}
