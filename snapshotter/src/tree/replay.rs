//! What a recipe says of the tree that was written by it: read again when a cut extraction goes on.
//!
//! H1  The parser is fed the literals, and skips the payloads, so that it stands where it stood, also inside a header.
//! H2  A node is known by its path without links, as the extraction wrote it: links that the archive's names led through
//!     are followed by what the archive itself said of them.
//! H3  What is remembered of a node is a hash of 8 bytes, keyed anew each time: 4 million take 32 MB, for the moment.
//!     Below a directory that was moved away and made again the hashes are others.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use baleen_store::Timestamp;
use baleen_store::recipe::Item;

use super::dirs::child_path;
use crate::error::ExtractError;
use crate::limits::LINKS_FOLLOWED_MAX;
use crate::name::{self, CleanPath, Meaning};
use crate::tar::{Entry, EntryKind, Parser, Step};

/// Bytes of symbolic links, paths and targets, that are remembered.
const LINK_BYTES_MAX: usize = 16 << 20;

/// A tree as its recipe tells it.
pub(super) struct Replay {
    pub(super) parser: Parser,
    pub(super) entries: u64,
    pub(super) payload_bytes: u64,
    /// The entry whose payload is in progress, and its path if that is a file of the tree.
    pub(super) entry: Option<Box<Entry>>,
    pub(super) file: Option<Vec<u8>>,
    nodes: Nodes,
}

/// The nodes of the tree (H2, H3).
struct Nodes {
    keys: RandomState,
    names: Vec<u64>,
    /// Directories, with their times.
    dirs: HashMap<u64, Timestamp>,
    root_modified: Timestamp,
    /// How often a directory of this name was moved away.
    moved: HashMap<u64, u64>,
    links: HashMap<Vec<u8>, Vec<u8>>,
    link_bytes: usize,
    /// The directory that was looked up last.
    last: Option<(Vec<u8>, u64)>,
}

fn refuse<T>(problem: &'static str) -> Result<T, ExtractError> {
    Err(ExtractError::NotResumable { problem })
}

impl Replay {
    pub(super) fn new() -> Self {
        Self {
            parser: Parser::new(),
            entries: 0,
            payload_bytes: 0,
            entry: None,
            file: None,
            nodes: Nodes {
                keys: RandomState::new(),
                names: Vec::new(),
                dirs: HashMap::new(),
                root_modified: Timestamp::default(),
                moved: HashMap::new(),
                links: HashMap::new(),
                link_bytes: 0,
                last: None,
            },
        }
    }

    /// Takes the next item of the recipe (H1).
    pub(super) fn take(&mut self, item: Item) -> Result<(), ExtractError> {
        match item {
            Item::Literal(bytes) => self.literal(&bytes),
            Item::Zeros(count) => self.skip(count, false),
            Item::File { path, content, .. } => {
                if self.file.take() != Some(path) {
                    return refuse("its recipe names another file than its archive");
                }
                self.payload(content.size_bytes)
            }
            Item::Kept { content, .. } => self.payload(content.size_bytes),
            Item::Copied(_) | Item::LedTo(_) => refuse("it has nodes of the layers below"),
        }
    }

    fn literal(&mut self, mut bytes: &[u8]) -> Result<(), ExtractError> {
        loop {
            let (step, count) = self.parser.step(bytes).map_err(ExtractError::Tar)?;
            bytes = &bytes[count..];
            match step {
                Step::More => return Ok(()),
                Step::Literal(_) => {}
                Step::Entry(entry) => {
                    self.entries += 1;
                    self.file = self.nodes.add(&entry)?;
                    self.entry = Some(entry);
                }
                Step::EntryEnd => self.entry = None,
                Step::Data(_) | Step::Zeros(_) | Step::Tail(_) => return refuse("its recipe and its archive differ"),
            }
        }
    }

    /// A payload that is complete.
    fn payload(&mut self, size_bytes: u64) -> Result<(), ExtractError> {
        if self.parser.data_left() != size_bytes {
            return refuse("its recipe and its archive differ");
        }
        self.payload_bytes += size_bytes;
        self.skip(size_bytes, false)
    }

    /// Payload of which no item tells yet.
    pub(super) fn skip(&mut self, count: u64, is_tail: bool) -> Result<(), ExtractError> {
        if !self.parser.skip(count, is_tail) {
            return refuse("its recipe and its archive differ");
        }
        self.literal(&[])
    }

    /// What sweeping needs, once all items are taken.
    pub(super) fn known(self) -> (Parser, Known) {
        let Nodes { keys, mut names, dirs, root_modified, moved, .. } = self.nodes;
        names.sort_unstable();
        names.dedup();
        (self.parser, Known { keys, names, dirs, root_modified, moved })
    }
}

/// The names and directories of a tree.
pub(super) struct Known {
    keys: RandomState,
    names: Vec<u64>,
    dirs: HashMap<u64, Timestamp>,
    root_modified: Timestamp,
    moved: HashMap<u64, u64>,
}

/// What is known of a name.
pub(super) enum Node {
    Unknown,
    /// Anything but a directory.
    Leaf,
    Directory(DirKey, Timestamp),
}

/// A directory of the tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirKey(u64);

impl Known {
    pub(super) fn root(&self) -> (DirKey, Timestamp) {
        (DirKey(ROOT_KEY), self.root_modified)
    }

    pub(super) fn look(&self, dir: DirKey, name: &[u8]) -> Node {
        let key = self.keys.hash_one((dir.0, name));
        if self.names.binary_search(&key).is_err() {
            return Node::Unknown;
        }
        match self.dirs.get(&key) {
            Some(modified) => Node::Directory(DirKey(dir_key(&self.keys, &self.moved, key)), *modified),
            None => Node::Leaf,
        }
    }

    /// How many names the tree has; `None` if some of them may have been moved away with their directory.
    pub(super) fn count(&self) -> Option<usize> {
        self.moved.is_empty().then_some(self.names.len())
    }
}

const ROOT_KEY: u64 = 0;

/// What the names in a directory are hashed with.
fn dir_key(keys: &RandomState, moved: &HashMap<u64, u64>, key: u64) -> u64 {
    match moved.get(&key) {
        None => key,
        Some(times) => keys.hash_one((key, times)),
    }
}

impl Nodes {
    /// Notes what an entry made; gives the path of a file.
    fn add(&mut self, entry: &Entry) -> Result<Option<Vec<u8>>, ExtractError> {
        let path = CleanPath::parse(&entry.path)?;
        if entry.kind == EntryKind::VolumeLabel {
            return Ok(None);
        }
        let Some((parents, name)) = path.split() else {
            self.root_modified = entry.modified;
            return Ok(None);
        };
        match name::meaning(name)? {
            Meaning::Ignored => return Ok(None),
            Meaning::Opaque => {
                self.directory(parents, true)?;
                return Ok(None);
            }
            Meaning::Whiteout(hidden) => {
                let dir = self.directory(parents, true)?;
                let key = self.key(&dir, hidden);
                self.names.push(key);
                return Ok(None);
            }
            Meaning::Plain => {}
        }
        let link = match entry.kind {
            EntryKind::Symlink => Some(entry.link.clone()),
            EntryKind::HardLink => self.linked(&entry.link)?,
            _ => None,
        };
        let dir = self.directory(parents, true)?;
        let (path, key) = (child_path(&dir, name), self.key(&dir, name));
        self.names.push(key);
        let old = self.links.remove(&path).map_or(0, |target| path.len() + target.len());
        self.link_bytes -= old;
        if matches!(entry.kind, EntryKind::Directory | EntryKind::DumpDirectory) {
            self.dirs.insert(key, entry.modified);
            return Ok(None);
        }
        if self.dirs.remove(&key).is_some() {
            // It was moved to `kept/` with all below it.
            *self.moved.entry(key).or_default() += 1;
            self.last = None;
            let below = [&path[..], b"/"].concat();
            self.links.retain(|path, _| !path.starts_with(&below));
            self.link_bytes = self.links.iter().map(|(path, target)| path.len() + target.len()).sum();
        }
        if let Some(target) = link {
            self.link_bytes += path.len() + target.len();
            if self.link_bytes > LINK_BYTES_MAX {
                return refuse("its links take too much memory");
            }
            self.links.insert(path.clone(), target);
        }
        Ok((entry.kind == EntryKind::File).then_some(path))
    }

    /// The target of the symbolic link that a hard link leads to.
    fn linked(&mut self, target: &[u8]) -> Result<Option<Vec<u8>>, ExtractError> {
        let target = CleanPath::parse(target)?;
        let Some((parents, name)) = target.split() else { return Ok(None) };
        let dir = self.directory(parents, false)?;
        Ok(self.links.get(&child_path(&dir, name)).cloned())
    }

    /// The path without links of the directory `parts`, as `Directories::resolve` finds or makes it.
    fn directory(&mut self, parts: &[&[u8]], create: bool) -> Result<Vec<u8>, ExtractError> {
        let mut queue: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut path: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = queue.pop_front() {
            if part == b".." {
                path.truncate(path.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let child = child_path(&path, &part);
            let Some(target) = self.links.get(&child) else {
                if create {
                    let key = self.key(&path, &part);
                    if let std::collections::hash_map::Entry::Vacant(place) = self.dirs.entry(key) {
                        place.insert(Timestamp::default());
                        self.names.push(key);
                    }
                }
                path = child;
                continue;
            };
            links += 1;
            if links > LINKS_FOLLOWED_MAX {
                return refuse("its links lead nowhere");
            }
            if target.first() == Some(&b'/') {
                path.clear();
            }
            for part in target.split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty() && *part != b".") {
                queue.push_front(part.to_vec());
            }
        }
        Ok(path)
    }

    /// The key of `name` in the directory at `dir`.
    fn key(&mut self, dir: &[u8], name: &[u8]) -> u64 {
        let known = self.last.as_ref().filter(|(path, _)| path == dir).map(|(_, key)| *key);
        let parent = known.unwrap_or_else(|| {
            let parts = dir.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
            let key =
                parts.fold(ROOT_KEY, |key, part| dir_key(&self.keys, &self.moved, self.keys.hash_one((key, part))));
            self.last = Some((dir.to_vec(), key));
            key
        });
        self.keys.hash_one((parent, name))
    }
}
