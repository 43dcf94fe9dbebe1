//! One layer's folder compared with what its recipe says, node by node and byte by byte.
//!
//! Y1  Each node is opened once, by its name in a directory that is held, following no link.
//! Y2  What is read leaves the page cache.
//! Y3  Not compared, since nothing states it and nobody sees it: the time of the folder itself, of `recipe`, of `kept/` and
//!     the directories in it, of whiteouts; the mode of links; attributes of nodes that cannot be opened.
//! Y4  Attributes in the name spaces `security.` (but `security.capability`) and `system.` belong to the host, and are
//!     not compared.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use baleen_store::recipe::{Content, KEPT_NAME, RECIPE_NAME, Recipe, RecipeError, Segment};
use baleen_store::{Access, DirEntry, Disk, Handle, LayerFact, Metadata, NodeKind, Timestamp};

use crate::expected::{Attributes, Expected, FileContent, Inode};
use crate::finding::{Code, shown};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;
const PAGE_BYTES: u64 = 4096;

/// One difference in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) code: Code,
    /// Below the layer's folder; empty for itself.
    pub(crate) path: Vec<u8>,
    pub(crate) detail: String,
    /// The node that should be there.
    pub(crate) inode: Option<Inode>,
}

/// A layer after its comparison.
pub(crate) struct Compared {
    pub(crate) differences: Vec<Difference>,
    /// What it must be; `None` if its recipe cannot be read.
    pub(crate) expected: Option<Expected>,
}

/// Somebody asked to stop.
#[derive(Debug)]
pub(crate) struct Interrupted;

/// Told of every piece of work: the bytes just read. Says whether to stop.
pub(crate) type Advance<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Compares the layer in `folder`. `owner` owns the store.
pub(crate) fn compare(
    disk: &Arc<dyn Disk>,
    folder: Handle,
    fact: &LayerFact,
    owner: (u32, u32),
    advance: Advance<'_>,
) -> Result<Compared, Interrupted> {
    let mut comparison = Comparison {
        disk: disk.as_ref(),
        differences: Vec::new(),
        inodes: HashMap::new(),
        files: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
        advance,
    };
    let recipe = match Recipe::open(Arc::clone(disk), &folder) {
        Ok(recipe) => recipe,
        Err(error) => {
            comparison.recipe_error(&error);
            return Ok(Compared { differences: comparison.differences, expected: None });
        }
    };
    if recipe.summary().diff_id != fact.key.diff_id {
        // Nothing of it says what this layer must be.
        let detail = format!("is that of layer {}", recipe.summary().diff_id);
        comparison.add(Code::RecipeDamaged, RECIPE_NAME, detail, None);
        return Ok(Compared { differences: comparison.differences, expected: None });
    }
    comparison.facts(fact, &recipe);
    let mut expected = match Expected::read(&recipe, owner) {
        Ok(expected) => expected,
        Err(error) => {
            comparison.add(Code::RecipeDamaged, RECIPE_NAME, error.to_string(), None);
            return Ok(Compared { differences: comparison.differences, expected: None });
        }
    };
    // The index alone: the frames were read for the expectation, which took their sum as it went.
    (comparison.advance)(recipe.size_bytes());
    comparison.folder(folder, &mut expected)?;
    for (path, inode) in expected.unseen() {
        comparison.add(Code::NameMissing, &path, "is not there".to_owned(), Some(inode));
    }
    Ok(Compared { differences: comparison.differences, expected: Some(expected) })
}

struct Comparison<'a> {
    disk: &'a dyn Disk,
    differences: Vec<Difference>,
    /// The real inode of an expected one that has several names.
    inodes: HashMap<Inode, u64>,
    /// The expected inode of a real one that has several names.
    files: HashMap<u64, Inode>,
    buffer: Vec<u8>,
    advance: Advance<'a>,
}

/// A directory being walked: one is open a level.
struct Walked {
    handle: Handle,
    entries: std::vec::IntoIter<DirEntry>,
    inode: Inode,
    path: Vec<u8>,
    /// Whether it lies in `kept/`, where directories have no times.
    kept: bool,
}

impl Comparison<'_> {
    fn add(&mut self, code: Code, path: &[u8], detail: String, inode: Option<Inode>) {
        self.differences.push(Difference { code, path: path.to_vec(), detail, inode });
    }

    fn recipe_error(&mut self, error: &RecipeError) {
        let (code, detail) = match error {
            RecipeError::Io { source, .. } if source.raw_os_error() == Some(libc::ENOENT) => {
                (Code::RecipeMissing, "is not there".to_owned())
            }
            RecipeError::Io { source, .. } if !is_tree_error(source) => (Code::ReadError, source.to_string()),
            RecipeError::Damaged { problem } => (Code::RecipeDamaged, (*problem).to_owned()),
            other => (Code::RecipeDamaged, other.to_string()),
        };
        self.add(code, RECIPE_NAME, detail, None);
    }

    /// What the log says of the layer beside what the recipe says.
    fn facts(&mut self, fact: &LayerFact, recipe: &Recipe) {
        let summary = recipe.summary();
        // What was copied up from the layers below is counted by the log, and is no payload of the archive.
        let unpacked_size_bytes =
            if summary.depends_on_parents { summary.payload_bytes } else { fact.unpacked_size_bytes };
        let pairs = [
            ("bytes of its tar", fact.tar_size_bytes, summary.tar_size_bytes),
            ("entries", fact.entries, summary.entries),
            ("bytes of its files", unpacked_size_bytes, summary.payload_bytes),
            ("bytes of its recipe", fact.recipe_size_bytes, recipe.size_bytes()),
        ];
        for (what, logged, found) in pairs.into_iter().filter(|(_, logged, found)| logged != found) {
            let detail = format!("the log says {logged} {what}, the recipe {found}");
            self.add(Code::RecordDisagrees, RECIPE_NAME, detail, None);
        }
    }

    fn folder(&mut self, folder: Handle, expected: &mut Expected) -> Result<(), Interrupted> {
        match self.disk.metadata(&folder) {
            Ok(metadata) => self.attributes(&metadata, expected.root(), expected, b"", false),
            Err(error) => self.read_error(b"", &error),
        }
        self.xattrs(&folder, expected.attributes(expected.root()), b"", Some(expected.root()));
        let mut stack = Vec::new();
        self.enter(folder, expected.root(), Vec::new(), false, &mut stack);
        while let Some(directory) = stack.last_mut() {
            let Some(entry) = directory.entries.next() else {
                stack.pop();
                continue;
            };
            let path = child(&directory.path, &entry.name);
            if directory.path.is_empty() && entry.name == RECIPE_NAME {
                self.recipe_file(&directory.handle, expected);
                continue;
            }
            let Some((name, inode)) = expected.find(directory.inode, &entry.name) else {
                self.add(Code::NameExtra, &path, "is no part of the layer".to_owned(), None);
                continue;
            };
            expected.saw(name);
            let kept = directory.kept || (directory.path.is_empty() && entry.name == KEPT_NAME);
            if let Some(handle) = self.node(&directory.handle, &entry.name, &path, inode, expected, kept)? {
                self.enter(handle, inode, path, kept, &mut stack);
            }
        }
        Ok(())
    }

    fn enter(&mut self, handle: Handle, inode: Inode, path: Vec<u8>, kept: bool, stack: &mut Vec<Walked>) {
        match self.disk.read_dir(&handle) {
            Ok(mut entries) => {
                entries.sort();
                stack.push(Walked { handle, entries: entries.into_iter(), inode, path, kept });
            }
            Err(error) => self.read_error(&path, &error),
        }
    }

    /// Mode and owner of the recipe: the tree does not describe it.
    fn recipe_file(&mut self, folder: &Handle, expected: &Expected) {
        let opened = self.disk.open_file(folder, RECIPE_NAME, Access::Read);
        match opened.and_then(|file| Ok((self.disk.metadata(&file)?, file))) {
            Ok((found, file)) => {
                let root = expected.attributes(expected.root());
                self.xattrs(&file, root, RECIPE_NAME, None);
                if found.mode != RECIPE_MODE {
                    self.add(Code::NodeMode, RECIPE_NAME, modes(found.mode, RECIPE_MODE), None);
                }
                if (found.uid, found.gid) != (root.uid, root.gid) {
                    let detail = owners((found.uid, found.gid), (root.uid, root.gid));
                    self.add(Code::NodeOwner, RECIPE_NAME, detail, None);
                }
            }
            Err(error) => self.read_error(RECIPE_NAME, &error),
        }
    }

    /// Compares one node; gives the handle of a directory to go on with.
    fn node(
        &mut self,
        dir: &Handle,
        name: &[u8],
        path: &[u8],
        inode: Inode,
        expected: &Expected,
        kept: bool,
    ) -> Result<Option<Handle>, Interrupted> {
        let wanted = expected.attributes(inode);
        let opened = match wanted.kind {
            NodeKind::File => self.disk.open_file(dir, name, Access::Read).map(Some),
            NodeKind::Directory => self.disk.open_dir(dir, name).map(Some),
            _ => Ok(None),
        };
        let looked = opened.and_then(|handle| {
            let metadata = match &handle {
                Some(handle) => self.disk.metadata(handle)?,
                None => self.disk.metadata_at(dir, name)?,
            };
            Ok((handle, metadata))
        });
        let (handle, found) = match looked {
            Ok(looked) => looked,
            Err(error) if is_tree_error(&error) => {
                let kind = self.disk.metadata_at(dir, name).map_or("nothing", |found| kind_name(found.kind));
                let detail = format!("is {kind}, and should be {}", kind_name(wanted.kind));
                self.add(Code::NodeKind, path, detail, Some(inode));
                return Ok(None);
            }
            Err(error) => {
                self.read_error(path, &error);
                return Ok(None);
            }
        };
        if found.kind != wanted.kind {
            let detail = format!("is {}, and should be {}", kind_name(found.kind), kind_name(wanted.kind));
            self.add(Code::NodeKind, path, detail, Some(inode));
            return Ok(None);
        }
        let first = self.links(&found, wanted, inode, path);
        self.attributes(&found, inode, expected, path, kept);
        match wanted.kind {
            NodeKind::Symlink => match self.disk.read_link(dir, name) {
                Ok(target) if target[..] != wanted.target[..] => {
                    let detail = format!("leads to {}, and should to {}", shown(&target), shown(&wanted.target));
                    self.add(Code::LinkTarget, path, detail, Some(inode));
                }
                Ok(_) => {}
                Err(error) => self.read_error(path, &error),
            },
            NodeKind::CharDevice | NodeKind::BlockDevice if found.device_node != wanted.device => {
                let ((major, minor), (want_major, want_minor)) = (found.device_node, wanted.device);
                let detail = format!("is {major}:{minor}, and should be {want_major}:{want_minor}");
                self.add(Code::DeviceNumber, path, detail, Some(inode));
            }
            _ => {}
        }
        let Some(handle) = handle else { return Ok(None) };
        self.xattrs(&handle, wanted, path, Some(inode));
        if let Some(file) = &wanted.file {
            if first {
                self.content(&handle, &found, file, path, inode)?;
            }
            return Ok(None);
        }
        Ok((wanted.kind == NodeKind::Directory).then_some(handle))
    }

    /// Whether several names lead to one file just where they should. Tells whether this is the first name of its file.
    fn links(&mut self, found: &Metadata, wanted: &Attributes, inode: Inode, path: &[u8]) -> bool {
        if wanted.kind == NodeKind::Directory {
            return true;
        }
        let mut first = true;
        if wanted.names > 1 {
            match self.inodes.get(&inode) {
                None => drop(self.inodes.insert(inode, found.inode)),
                Some(other) if *other == found.inode => first = false,
                Some(_) => {
                    let detail = "is a file of its own, and should be one with its other names".to_owned();
                    self.add(Code::HardLinks, path, detail, Some(inode));
                }
            }
        }
        if found.links > 1 {
            match self.files.insert(found.inode, inode) {
                Some(other) if other != inode => {
                    let detail = "is one file with another name of the layer, and should be its own".to_owned();
                    self.add(Code::HardLinks, path, detail, Some(inode));
                }
                _ => {}
            }
        }
        first
    }

    fn attributes(&mut self, found: &Metadata, inode: Inode, expected: &Expected, path: &[u8], kept: bool) {
        let wanted = expected.attributes(inode);
        if found.kind != wanted.kind {
            return;
        }
        if let Some(mode) = wanted.mode.filter(|mode| *mode != found.mode) {
            self.add(Code::NodeMode, path, modes(found.mode, mode), Some(inode));
        }
        if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
            let detail = owners((found.uid, found.gid), (wanted.uid, wanted.gid));
            self.add(Code::NodeOwner, path, detail, Some(inode));
        }
        let timeless = kept && wanted.kind == NodeKind::Directory;
        if let Some(modified) = wanted.modified.filter(|modified| *modified != found.modified && !timeless) {
            let detail = format!("was modified at {}, and should at {}", time(found.modified), time(modified));
            self.add(Code::NodeTime, path, detail, Some(inode));
        }
    }

    fn xattrs(&mut self, node: &Handle, wanted: &Attributes, path: &[u8], inode: Option<Inode>) {
        let found = match self.disk.xattrs(node) {
            Ok(found) => found,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && wanted.xattrs.is_empty() => return,
            Err(error) => return self.read_error(path, &error),
        };
        let found: Vec<_> = found.into_iter().filter(|(name, _)| is_layers_xattr(name)).collect();
        if found != wanted.xattrs {
            let names = |xattrs: &[(Vec<u8>, Vec<u8>)]| {
                let names: Vec<String> = xattrs.iter().map(|(name, _)| shown(name)).collect();
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            };
            let (has, should) = (names(&found), names(&wanted.xattrs));
            let detail = match has == should {
                true => format!("has another value in {has}"),
                false => format!("has the extended attributes {has}, and should have {should}"),
            };
            self.add(Code::NodeXattrs, path, detail, inode);
        }
    }

    fn content(
        &mut self,
        handle: &Handle,
        found: &Metadata,
        file: &FileContent,
        path: &[u8],
        inode: Inode,
    ) -> Result<(), Interrupted> {
        if found.size_bytes != file.size_bytes {
            let detail = format!("has {} bytes, and should have {}", found.size_bytes, file.size_bytes);
            self.add(Code::FileSize, path, detail, Some(inode));
            return Ok(());
        }
        let read = read_content(self.disk, handle, found, file, &mut self.buffer, self.advance);
        match read {
            Ok(Some(content)) if content == file.content => {}
            Ok(Some(_)) => {
                self.add(Code::FileContent, path, "has other bytes than were stored".to_owned(), Some(inode));
            }
            Ok(None) => {
                let detail = "has bytes where it should have a hole of zeros".to_owned();
                self.add(Code::FileContent, path, detail, Some(inode));
            }
            Err(ReadStopped::Interrupted) => return Err(Interrupted),
            Err(ReadStopped::Failed(error)) => {
                self.read_error(path, &error);
                // Known to be damaged, so that a repair looks for another copy.
                self.add(Code::FileContent, path, "cannot be read".to_owned(), Some(inode));
            }
        }
        let _ = self.disk.drop_cache(handle, 0, 0); // Y2; only other people's memory depends on it.
        Ok(())
    }

    fn read_error(&mut self, path: &[u8], error: &io::Error) {
        self.add(Code::ReadError, path, format!("cannot be read: {error}"), None);
    }
}

/// The mode in which an extraction makes the recipe.
pub(crate) const RECIPE_MODE: u32 = 0o600;

pub(crate) enum ReadStopped {
    Interrupted,
    Failed(io::Error),
}

/// Size and hash of a file's payload; `None` if a hole of it is not zeros.
pub(crate) fn read_content(
    disk: &dyn Disk,
    handle: &Handle,
    found: &Metadata,
    file: &FileContent,
    buffer: &mut [u8],
    advance: Advance<'_>,
) -> Result<Option<Content>, ReadStopped> {
    let content = read_payload(disk, handle, file, buffer, advance)?;
    if file.segments.is_some() {
        let segments = file.segments.as_deref().unwrap_or_default();
        let everywhere = more_is_allocated(found, segments);
        let (mut end, mut zeros) = (0, true);
        for next in segments.iter().copied().chain([Segment { offset: file.size_bytes, length: 0 }]) {
            for hole in hole_parts(end, next.offset, everywhere) {
                read_range(disk, handle, hole, buffer, advance, &mut |bytes| {
                    zeros &= bytes.iter().all(|byte| *byte == 0)
                })?;
            }
            end = next.offset + next.length;
        }
        if !zeros {
            return Ok(None);
        }
    }
    Ok(Some(content))
}

/// Size and hash of a file's payload alone.
pub(crate) fn read_payload(
    disk: &dyn Disk,
    handle: &Handle,
    file: &FileContent,
    buffer: &mut [u8],
    advance: Advance<'_>,
) -> Result<Content, ReadStopped> {
    let mut hasher = blake3::Hasher::new();
    let mut size_bytes = 0;
    let whole = [Segment { offset: 0, length: file.size_bytes }];
    for segment in file.segments.as_deref().unwrap_or(&whole) {
        read_range(disk, handle, *segment, buffer, advance, &mut |bytes| {
            hasher.update(bytes);
            size_bytes += bytes.len() as u64;
        })?;
    }
    Ok(Content { size_bytes, blake3: *hasher.finalize().as_bytes() })
}

fn read_range(
    disk: &dyn Disk,
    handle: &Handle,
    range: Segment,
    buffer: &mut [u8],
    advance: Advance<'_>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), ReadStopped> {
    let (mut offset, mut left) = (range.offset, range.length);
    while left > 0 {
        let part = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = disk.read_at(handle, &mut buffer[..part], offset).map_err(ReadStopped::Failed)?;
        if count == 0 {
            return Ok(()); // Shorter than it was a moment ago: the hash tells.
        }
        take(&buffer[..count]);
        (offset, left) = (offset + count as u64, left - count as u64);
        if advance(count as u64) {
            return Err(ReadStopped::Interrupted);
        }
    }
    Ok(())
}

/// Whether more pages are allocated than the parts with data need: then a page of a hole may have data.
fn more_is_allocated(found: &Metadata, segments: &[Segment]) -> bool {
    let pages = |part: &Segment| match part.length {
        0 => 0,
        length => (part.offset + length - 1) / PAGE_BYTES - part.offset / PAGE_BYTES + 1,
    };
    found.allocated_bytes > segments.iter().map(|part| pages(part) * PAGE_BYTES).sum()
}

/// What of the hole from `start` to `end` has to be read: all of it, or only what shares a page with data.
fn hole_parts(start: u64, end: u64, everywhere: bool) -> Vec<Segment> {
    let part = |from: u64, to: u64| Segment { offset: from, length: to.saturating_sub(from) };
    let (first, last) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
    if everywhere || first >= last { vec![part(start, end)] } else { vec![part(start, first), part(last, end)] }
}

/// Whether a layer can have this attribute, or the host has set it (Y4).
pub(crate) fn is_layers_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || !(name.starts_with(b"security.") || name.starts_with(b"system."))
}

pub(crate) fn child(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Whether an error says that the tree is not what it was, and not that the disk fails.
pub(crate) fn is_tree_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EINVAL | libc::EISDIR | libc::ENXIO)
    )
}

fn kind_name(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "a file",
        NodeKind::Directory => "a directory",
        NodeKind::Symlink => "a symbolic link",
        NodeKind::CharDevice => "a character device",
        NodeKind::BlockDevice => "a block device",
        NodeKind::Fifo => "a named pipe",
        NodeKind::Socket => "a socket",
    }
}

pub(crate) fn modes(found: u32, wanted: u32) -> String {
    format!("has the mode {found:04o}, and should have {wanted:04o}")
}

pub(crate) fn owners(found: (u32, u32), wanted: (u32, u32)) -> String {
    format!("belongs to {}:{}, and should to {}:{}", found.0, found.1, wanted.0, wanted.1)
}

fn time(time: Timestamp) -> String {
    format!("{}.{:09}", time.seconds, time.nanoseconds)
}
