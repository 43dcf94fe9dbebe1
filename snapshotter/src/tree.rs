//! A layer's tree being written from its tar, with the recipe beside it: the second thread of an extraction, without
//! the thread.
//!
//! Rules P1 to P4 are in `dirs`, F1 and F2 in `file`. Besides:
//! P5  A name is made with `O_EXCL`, never opened for writing: what is in its way is removed first, or goes to `kept/` if
//!     the recipe needs its contents. Owner, mode, times and attributes are set through the handle of what was made.
//! P6  Whiteouts become overlay's own (0/0 devices, `trusted.overlay.opaque`), which only this code writes: of the
//!     archive's attributes `user.*` and a well-formed `security.capability` are set, the rest is in the recipe alone.
//! P7  What hides the layers below holds whatever its order in the archive: a directory that replaces a whiteout, or
//!     that a whiteout comes after, is opaque. A whiteout never hides what its own layer brings (OCI image-spec).
//! P8  While a checkpoint stands, nothing that it may speak of is removed, replaced or moved: it is given up first.

mod copy_up;
mod dirs;
mod file;
mod replay;
mod reread;
mod resume;
mod sweep;

use std::io;
use std::sync::Arc;

use baleen_oci::DiffId;
use baleen_store::recipe::{Content, KEPT_NAME, RecipeWriter, Segment, Summary, TREE_NAME};
use baleen_store::{Disk, Handle, NodeKind};

use crate::error::{ExtractError, shown};
use crate::limits::{Limits, TRAILING_ZEROS_MAX};
use crate::lower::Below;
use crate::name::{self, CleanPath, Meaning};
use crate::saver::Saver;
use crate::state::{OpenState, State, StreamState, TreeState, Written};
use crate::tar::{Entry, EntryKind, Parser, Step};
use dirs::{Directories, Found, child_path, io_error};
pub(crate) use file::SMALL_FILE_BYTES;
use file::{FileWriter, WriteBackRing};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeSummary {
    /// Length of the tar.
    pub tar_size_bytes: u64,
    /// Entries of the archive, without extension records.
    pub entries: u64,
    /// Bytes of payload written, in the tree and kept beside it.
    pub unpacked_size_bytes: u64,
    /// Length of the recipe.
    pub recipe_size_bytes: u64,
    /// Directories were made that the archive implies but does not contain.
    pub implied_directories: bool,
    /// Nodes were copied up from the layers below, for hard links to them: the layer belongs to its parents, and its key
    /// names their chain.
    pub depends_on_parents: bool,
}

/// A tree being written.
pub struct TreeWriter {
    disk: Arc<dyn Disk>,
    parser: Parser,
    directories: Directories,
    recipe: RecipeWriter,
    kept: Kept,
    ring: WriteBackRing,
    open: Option<Open>,
    limits: Limits,
    entries: u64,
    payload_bytes: u64,
    trailing_zeros: u64,
    tail: bool,
    guard: Guard,
    below: Option<Below>,
    copied_bytes: u64,
    depends_on_parents: bool,
    /// The length of the recipe where a cut extraction went on: what came after is read back at the end.
    resumed_at: Option<u64>,
}

/// Who makes checkpoints, if anyone does (P8).
#[derive(Debug, Default)]
struct Guard(Option<Saver>);

impl Guard {
    fn withdraw(&mut self) -> Result<(), ExtractError> {
        self.0.as_mut().map_or(Ok(()), Saver::withdraw)
    }

    /// Gives up the checkpoint, and takes no more.
    fn retire(&mut self) -> Result<(), ExtractError> {
        self.withdraw()?;
        self.0 = None;
        Ok(())
    }
}

impl std::fmt::Debug for TreeWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TreeWriter").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// The payload that is being taken.
#[derive(Debug)]
enum Open {
    File {
        writer: FileWriter,
        path: Vec<u8>,
        entry: Box<Entry>,
        has_owner: bool,
    },
    Kept {
        writer: FileWriter,
        number: u64,
    },
    /// An entry without payload.
    Nothing,
}

/// The directory `kept/`, made when it is first needed.
#[derive(Debug)]
struct Kept {
    layer_dir: Handle,
    dir: Option<Handle>,
    next: u64,
}

impl Kept {
    /// The directory, and the next free name in it.
    fn next(&mut self, disk: &dyn Disk) -> io::Result<(&Handle, u64)> {
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => {
                disk.create_dir(&self.layer_dir, KEPT_NAME, 0o700)?;
                disk.open_dir(&self.layer_dir, KEPT_NAME)?
            }
        };
        let number = self.next;
        self.next += 1;
        Ok((self.dir.insert(dir), number))
    }
}

impl TreeWriter {
    /// Makes `fs/` and `recipe` in the empty `layer_dir`.
    ///
    /// # Errors
    /// [`ExtractError::Io`] and [`ExtractError::Recipe`], with `EEXIST` if the directory is not empty.
    pub fn create(disk: Arc<dyn Disk>, layer_dir: &Handle, limits: Limits) -> Result<Self, ExtractError> {
        let make = || {
            disk.create_dir(layer_dir, TREE_NAME, 0o755)?;
            let tree = disk.open_dir(layer_dir, TREE_NAME)?;
            let directories = Directories::new(&*disk, tree)?;
            let layer_dir = disk.open_dir_in_root(layer_dir, std::path::Path::new("."))?;
            Ok((directories, layer_dir))
        };
        let (directories, own_dir) = make().map_err(|source| io_error("create", b"fs", source))?;
        let recipe = RecipeWriter::create(Arc::clone(&disk), layer_dir).map_err(ExtractError::Recipe)?;
        Ok(Self {
            disk,
            parser: Parser::new(),
            directories,
            recipe,
            kept: Kept { layer_dir: own_dir, dir: None, next: 0 },
            ring: WriteBackRing::default(),
            open: None,
            limits,
            entries: 0,
            payload_bytes: 0,
            trailing_zeros: 0,
            tail: false,
            guard: Guard::default(),
            below: None,
            copied_bytes: 0,
            depends_on_parents: false,
            resumed_at: None,
        })
    }

    /// Has checkpoints made by `saver`.
    pub(crate) fn set_saver(&mut self, saver: Option<Saver>) {
        self.guard = Guard(saver);
    }

    /// Has hard links into the layers below looked up by `below`.
    pub(crate) fn set_below(&mut self, below: Option<Below>) {
        self.below = below;
    }

    /// Makes a checkpoint where the tar stands: `stream` is where it comes from. With `beside`, goes on while it is being
    /// made durable.
    pub(crate) fn checkpoint(&mut self, stream: Box<StreamState>, beside: bool) -> Result<(), ExtractError> {
        if self.guard.0.is_none() {
            return Ok(());
        }
        let (state, tree_bytes) = self.encoded(stream)?;
        let Some(saver) = &mut self.guard.0 else { return Ok(()) };
        match state {
            Some(bytes) => saver.save(bytes, tree_bytes)?,
            None => {
                // Thousands of moves: the last checkpoint stays.
                tracing::debug!("no checkpoint is made of a layer whose state is too long");
                saver.skip();
            }
        }
        if beside { Ok(()) } else { saver.wait() }
    }

    /// The state as bytes, unless it is too long; and the bytes on the disk.
    pub(crate) fn encoded(&mut self, stream: Box<StreamState>) -> Result<(Option<Vec<u8>>, u64), ExtractError> {
        let recipe_bytes = self.recipe.seal().map_err(ExtractError::Recipe)?;
        let state = State { stream: *stream, tree: self.state(recipe_bytes)? };
        Ok((state.encode(), self.payload_bytes + recipe_bytes))
    }

    fn state(&self, recipe_bytes: u64) -> Result<TreeState, ExtractError> {
        let written = |writer: &FileWriter, path: &[u8]| -> Result<Written, ExtractError> {
            let facts = self.disk.metadata(writer.file()).map_err(|source| io_error("look at", path, source))?;
            Ok(writer.written(facts.inode))
        };
        let open = match &self.open {
            None | Some(Open::Nothing) => OpenState::Nothing,
            Some(Open::File { writer, path, .. }) => {
                OpenState::File { path: path.clone(), written: written(writer, path)? }
            }
            Some(Open::Kept { writer, number }) => {
                OpenState::Kept { number: *number, written: written(writer, KEPT_NAME)? }
            }
        };
        Ok(TreeState {
            entries: self.entries,
            payload_bytes: self.payload_bytes,
            recipe_bytes,
            trailing_zeros: self.trailing_zeros,
            tail: self.tail,
            implied_directories: self.directories.implied(),
            kept_next: self.kept.next,
            moves: self.recipe.moves().to_vec(),
            open,
        })
    }

    /// Entries begun so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes the next bytes of the tar.
    ///
    /// # Errors
    /// [`ExtractError`]; the tree is of no more use then.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), ExtractError> {
        if let Some(saver) = &mut self.guard.0 {
            saver.look()?;
        }
        loop {
            let (step, count) = self.parser.step(bytes).map_err(ExtractError::Tar)?;
            bytes = &bytes[count..];
            match step {
                Step::More => return Ok(()),
                Step::Literal(literal) => self.recipe.literal(literal).map_err(ExtractError::Recipe)?,
                Step::Entry(entry) => self.open = Some(self.begin(entry)?),
                Step::Data(data) => self.payload(data)?,
                Step::EntryEnd => self.end()?,
                Step::Zeros(count) => {
                    self.trailing_zeros += count;
                    if self.trailing_zeros > TRAILING_ZEROS_MAX {
                        return Err(ExtractError::TooLarge { tar_bytes_max: TRAILING_ZEROS_MAX });
                    }
                }
                Step::Tail(tail) => {
                    if !self.tail {
                        self.tail = true;
                        self.end_zeros()?;
                        self.open = Some(self.keep(u64::MAX)?);
                    }
                    self.payload(tail)?;
                }
            }
        }
    }

    /// Ends the tar: sets the times of directories and finishes the recipe, which then names `diff_id`.
    ///
    /// # Errors
    /// [`ExtractError::Tar`] if the archive is cut short; the errors of writing.
    pub fn finish(mut self, diff_id: DiffId) -> Result<TreeSummary, ExtractError> {
        self.parser.finish().map_err(ExtractError::Tar)?;
        self.end()?;
        self.end_zeros()?;
        self.directories.finish(&*self.disk)?;
        self.ring.finish(&*self.disk).map_err(|source| io_error("write back", b"fs", source))?;
        let implied_directories = self.directories.implied();
        let (tar_size_bytes, entries, payload_bytes) = (self.parser.offset(), self.entries, self.payload_bytes);
        let depends_on_parents = self.depends_on_parents;
        let summary =
            Summary { diff_id, tar_size_bytes, entries, payload_bytes, implied_directories, depends_on_parents };
        let recipe_size_bytes = self.recipe.finish(&summary).map_err(ExtractError::Recipe)?;
        if let Some(offset) = self.resumed_at {
            reread::reread(&self.disk, &self.kept.layer_dir, offset)?;
        }
        if let Some(saver) = &mut self.guard.0 {
            saver.wait()?;
        }
        Ok(TreeSummary {
            tar_size_bytes,
            entries,
            unpacked_size_bytes: payload_bytes + self.copied_bytes,
            recipe_size_bytes,
            implied_directories,
            depends_on_parents,
        })
    }

    fn end_zeros(&mut self) -> Result<(), ExtractError> {
        match std::mem::take(&mut self.trailing_zeros) {
            0 => Ok(()),
            count => self.recipe.zeros(count).map_err(ExtractError::Recipe),
        }
    }

    fn payload(&mut self, data: &[u8]) -> Result<(), ExtractError> {
        self.payload_bytes += data.len() as u64;
        match &mut self.open {
            Some(Open::File { writer, path, .. }) => {
                writer.take(&*self.disk, data).map_err(|source| io_error("write", path, source))
            }
            Some(Open::Kept { writer, .. }) => {
                writer.take(&*self.disk, data).map_err(|source| io_error("write", b"kept", source))
            }
            Some(Open::Nothing) | None => unreachable!("only entries with payload have data (tar, T1)"),
        }
    }

    /// Completes the payload that is open, if one is.
    fn end(&mut self) -> Result<(), ExtractError> {
        let disk = &*self.disk;
        match self.open.take() {
            Some(Open::File { writer, path, entry, has_owner }) => {
                let failed = |source| io_error("write", &path, source);
                let (file, content, segments) = writer.finish(disk).map_err(failed)?;
                if segments.is_some() {
                    disk.set_len(&file, entry.size_bytes).map_err(failed)?;
                }
                if !has_owner {
                    disk.set_owner(&file, entry.uid, entry.gid).map_err(failed)?;
                }
                if entry.mode != NEW_FILE_MODE || !has_owner {
                    disk.set_mode(&file, entry.mode).map_err(failed)?;
                }
                set_xattrs(disk, &file, &entry, &path)?;
                disk.set_times(&file, entry.modified, entry.modified).map_err(failed)?;
                self.ring.add(disk, file, content.size_bytes).map_err(failed)?;
                self.recipe.file(&path, &content, segments.as_deref()).map_err(ExtractError::Recipe)
            }
            Some(Open::Kept { writer, number }) => {
                let failed = |source| io_error("write", b"kept", source);
                let (file, content, _): (_, Content, Option<Vec<Segment>>) = writer.finish(disk).map_err(failed)?;
                self.ring.add(disk, file, content.size_bytes).map_err(failed)?;
                self.recipe.kept(number, &content).map_err(ExtractError::Recipe)
            }
            Some(Open::Nothing) | None => Ok(()),
        }
    }

    /// Makes what the entry names, and opens it for its payload.
    fn begin(&mut self, entry: Box<Entry>) -> Result<Open, ExtractError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(ExtractError::TooManyEntries { entries_max: self.limits.entries_max });
        }
        match entry.kind {
            EntryKind::VolumeLabel => return self.keep(entry.data_bytes),
            EntryKind::Other(flag) => {
                return Err(ExtractError::UnsupportedEntry { path: shown(&entry.path), type_flag: flag.into() });
            }
            _ => {}
        }
        let path = CleanPath::parse(&entry.path)?;
        let Some((parents, name)) = path.split() else {
            self.root(&entry)?;
            return self.keep(entry.data_bytes);
        };
        match name::meaning(name)? {
            Meaning::Ignored => return self.keep(entry.data_bytes),
            Meaning::Opaque => {
                let found = self.parent(parents, &entry)?;
                self.directories.make_opaque(&*self.disk, found)?;
                return self.keep(entry.data_bytes);
            }
            Meaning::Whiteout(hidden) => {
                self.whiteout(parents, hidden, &entry)?;
                return self.keep(entry.data_bytes);
            }
            Meaning::Plain => {}
        }
        match entry.kind {
            EntryKind::File => {
                let (parents, name) = (parents.to_vec(), name.to_vec());
                return self.file(&parents, &name, entry.clone());
            }
            EntryKind::Directory | EntryKind::DumpDirectory => self.directory(parents, name, &entry)?,
            EntryKind::HardLink => self.hard_link(parents, name, &entry)?,
            EntryKind::Symlink => self.symlink(parents, name, &entry)?,
            EntryKind::CharDevice => self.node(parents, name, &entry, NodeKind::CharDevice)?,
            EntryKind::BlockDevice => self.node(parents, name, &entry, NodeKind::BlockDevice)?,
            EntryKind::Fifo => self.node(parents, name, &entry, NodeKind::Fifo)?,
            EntryKind::VolumeLabel | EntryKind::Other(_) => unreachable!("handled above"),
        }
        self.keep(entry.data_bytes)
    }

    /// A place for payload that the tree does not show.
    fn keep(&mut self, data_bytes: u64) -> Result<Open, ExtractError> {
        if data_bytes == 0 {
            return Ok(Open::Nothing);
        }
        let disk = &*self.disk;
        let mut make = || {
            let (dir, number) = self.kept.next(disk)?;
            let file = disk.create_file(dir, number.to_string().as_bytes(), NEW_FILE_MODE)?;
            Ok(Open::Kept { writer: FileWriter::new(file, data_bytes, None), number })
        };
        make().map_err(|source| io_error("create a file in", KEPT_NAME, source))
    }

    fn parent(&mut self, parents: &[&[u8]], entry: &Entry) -> Result<Found, ExtractError> {
        let found = self.directories.resolve(&*self.disk, &mut self.guard, parents, true)?;
        found.ok_or_else(|| ExtractError::BadPath { path: shown(&entry.path), problem: "has no directory" })
    }

    fn file(&mut self, parents: &[&[u8]], name: &[u8], mut entry: Box<Entry>) -> Result<Open, ExtractError> {
        let found = self.parent(parents, &entry)?;
        let (path, file) = self.make(found, name, |disk, dir| disk.create_file(dir, name, NEW_FILE_MODE))?;
        let has_owner = self.directories.touch(found, entry.uid, entry.gid);
        let writer = FileWriter::new(file, entry.data_bytes, entry.segments.take());
        Ok(Open::File { writer, path, entry, has_owner })
    }

    fn symlink(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        if entry.link.is_empty() {
            return Err(ExtractError::BadPath { path: shown(&entry.path), problem: "is a link to nothing" });
        }
        let found = self.parent(parents, entry)?;
        let (path, ()) = self.make(found, name, |disk, dir| disk.create_symlink(dir, name, &entry.link))?;
        self.attributes_at(found, name, entry, &path)
    }

    fn node(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry, kind: NodeKind) -> Result<(), ExtractError> {
        let found = self.parent(parents, entry)?;
        let device = entry.device;
        let (path, ()) = self.make(found, name, |disk, dir| disk.create_node(dir, name, kind, entry.mode, device))?;
        self.attributes_at(found, name, entry, &path)
    }

    /// Sets owner and times of what cannot be opened.
    fn attributes_at(&mut self, found: Found, name: &[u8], entry: &Entry, path: &[u8]) -> Result<(), ExtractError> {
        let disk = &*self.disk;
        let has_owner = self.directories.touch(found, entry.uid, entry.gid);
        let dir = &self.directories.current(found).handle;
        let set = || {
            if !has_owner {
                disk.set_owner_at(dir, name, entry.uid, entry.gid)?;
            }
            disk.set_times_at(dir, name, entry.modified, entry.modified)
        };
        set().map_err(|source| io_error("set owner and times of", path, source))
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let disk = Arc::clone(&self.disk);
        let outside = || ExtractError::LinkOutsideLayer { path: shown(&entry.path), target: shown(&entry.link) };
        let bad = |problem| ExtractError::BadPath { path: shown(&entry.path), problem };
        let target = CleanPath::parse(&entry.link)?;
        let (target_parents, target_name) = target.split().ok_or_else(|| bad("is a hard link to the root"))?;
        let found = self.directories.resolve(&*disk, &mut self.guard, target_parents, false)?;
        let node = match found.map(|found| disk.open_node(&self.directories.current(found).handle, target_name)) {
            Some(Ok(node)) => Some(node),
            Some(Err(error)) if error.raw_os_error() != Some(libc::ENOENT) => {
                return Err(io_error("open the target of", &entry.path, error));
            }
            _ => None,
        };
        let node = match node {
            Some(node) => node,
            None => self.bring_up(&target.parts().join(&b'/'))?.ok_or_else(outside)?,
        };
        let facts = disk.metadata(&node).map_err(|source| io_error("look at the target of", &entry.path, source))?;
        match facts.kind {
            NodeKind::Directory => return Err(bad("is a hard link to a directory")),
            NodeKind::CharDevice if facts.device_node == (0, 0) => return Err(outside()),
            _ => {}
        }
        let found = self.parent(parents, entry)?;
        let at_place = disk.metadata_at(&self.directories.current(found).handle, name);
        if at_place.is_ok_and(|there| (there.device, there.inode) == (facts.device, facts.inode)) {
            return Ok(()); // A link to itself, or one that is there already.
        }
        self.make(found, name, |disk, dir| disk.link(&node, dir, name))?;
        self.directories.touch(found, 0, 0);
        Ok(())
    }

    fn directory(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let disk = Arc::clone(&self.disk);
        let found = self.parent(parents, entry)?;
        let path = child_path(&self.directories.current(found).path, name);
        let failed = |source| io_error("create the directory", &path, source);
        let mut opaque = false;
        let dir = &self.directories.current(found).handle;
        if let Err(error) = disk.create_dir(dir, name, 0o700) {
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(failed(error));
            }
            let there = disk.metadata_at(dir, name).map_err(failed)?;
            if there.kind != NodeKind::Directory {
                opaque = there.kind == NodeKind::CharDevice && there.device_node == (0, 0);
                self.clear(found, name, &path)?;
                disk.create_dir(&self.directories.current(found).handle, name, 0o700).map_err(failed)?;
            }
        }
        self.directories.touch(found, entry.uid, entry.gid);
        let handle = disk.open_dir(&self.directories.current(found).handle, name).map_err(failed)?;
        // Always both: below a setgid directory a new one inherits more than its group.
        disk.set_owner(&handle, entry.uid, entry.gid).map_err(failed)?;
        disk.set_mode(&handle, entry.mode).map_err(failed)?;
        set_xattrs(&*disk, &handle, entry, &path)?;
        self.directories.enter(&*disk, path, handle, entry.modified, entry.mode)?;
        if opaque {
            self.directories.make_opaque(&*disk, Found::Last)?;
        }
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        if !matches!(entry.kind, EntryKind::Directory | EntryKind::DumpDirectory) {
            return Err(ExtractError::BadPath { path: shown(&entry.path), problem: "is the root but no directory" });
        }
        let disk = &*self.disk;
        let handle = &self.directories.current(Found::Root).handle;
        let set = || {
            disk.set_owner(handle, entry.uid, entry.gid)?;
            disk.set_mode(handle, entry.mode)
        };
        set().map_err(|source| io_error("set owner and mode of", b"/", source))?;
        set_xattrs(disk, handle, entry, b"/")?;
        self.directories.enter_root(entry.modified, entry.mode);
        Ok(())
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8], entry: &Entry) -> Result<(), ExtractError> {
        let found = self.parent(parents, entry)?;
        let disk = &*self.disk;
        let parent = self.directories.current(found);
        let path = child_path(&parent.path, hidden);
        let failed = |source| io_error("hide", &path, source);
        match disk.create_node(&parent.handle, hidden, NodeKind::CharDevice, 0, (0, 0)) {
            Ok(()) => {
                self.directories.touch(found, 0, 0);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if disk.metadata_at(&parent.handle, hidden).map_err(failed)?.kind == NodeKind::Directory {
                    let directory = disk.open_dir(&parent.handle, hidden).map_err(failed)?;
                    disk.set_xattr(&directory, dirs::OPAQUE_XATTR, b"y").map_err(failed)?;
                }
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes `name`, after clearing what is in its way; gives the path too.
    fn make<T>(
        &mut self,
        found: Found,
        name: &[u8],
        create: impl Fn(&dyn Disk, &Handle) -> io::Result<T>,
    ) -> Result<(Vec<u8>, T), ExtractError> {
        let path = child_path(&self.directories.current(found).path, name);
        let made = match create(&*self.disk, &self.directories.current(found).handle) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.clear(found, name, &path)?;
                create(&*self.disk, &self.directories.current(found).handle)
            }
            other => other,
        };
        let made = made.map_err(|source| io_error("create", &path, source))?;
        Ok((path, made))
    }

    /// Takes away what is at `name` (P5).
    fn clear(&mut self, found: Found, name: &[u8], path: &[u8]) -> Result<(), ExtractError> {
        self.guard.withdraw()?;
        let failed = |source| io_error("replace", path, source);
        let disk = &*self.disk;
        let parent = &self.directories.current(found).handle;
        match disk.metadata_at(parent, name).map_err(failed)?.kind {
            NodeKind::File | NodeKind::Directory => {
                let (dir, number) = self.kept.next(disk).map_err(failed)?;
                disk.rename(parent, name, dir, number.to_string().as_bytes()).map_err(failed)?;
                self.directories.forget(path);
                self.recipe.moved(path, number).map_err(ExtractError::Recipe)
            }
            _ => disk.remove_file(parent, name).map_err(failed),
        }
    }
}

/// The mode that a new file has until it is complete.
const NEW_FILE_MODE: u32 = 0o600;

/// Sets the attributes of an entry that a layer may set (P6).
fn set_xattrs(disk: &dyn Disk, node: &Handle, entry: &Entry, path: &[u8]) -> Result<(), ExtractError> {
    for (name, value) in &entry.xattrs {
        if is_allowed_xattr(entry.kind, name, value) {
            let set = disk.set_xattr(node, name, value);
            set.map_err(|source| io_error("set an extended attribute of", path, source))?;
        }
    }
    Ok(())
}

fn is_allowed_xattr(kind: EntryKind, name: &[u8], value: &[u8]) -> bool {
    if name == b"security.capability" {
        return kind == EntryKind::File && is_capability(value);
    }
    name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() > b"user.".len()
}

/// Whether `value` is a `struct vfs_cap_data` of revision 1, 2 or 3 (capabilities(7)).
fn is_capability(value: &[u8]) -> bool {
    const EFFECTIVE: u32 = 1;
    let Some((magic, _)) = value.split_first_chunk::<4>() else { return false };
    match u32::from_le_bytes(*magic) & !EFFECTIVE {
        0x0100_0000 => value.len() == 12,
        0x0200_0000 => value.len() == 20,
        0x0300_0000 => value.len() == 24,
        _ => false,
    }
}
