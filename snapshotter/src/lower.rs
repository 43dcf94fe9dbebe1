//! Looking into the layers below: for a hard link whose target is not in its own layer.
//!
//! L1  What is found is what overlayfs shows in the stack of parents: the topmost layer wins, and whiteouts and opaque
//!     directories hide what is below them.
//! L2  Links on the way are followed as in a chroot of that stack, one component below a held handle at a time: nothing
//!     leads out of it.
//! L3  A layer is asked for on a thread of its own, which is not confined: the extraction's own may not open files of others.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use baleen_store::{Access, Disk, Handle, Metadata, NodeKind};

use crate::error::ExtractError;
use crate::limits::{LINKS_FOLLOWED_MAX, PATH_BYTES_MAX};

/// What is found in the layers below.
#[derive(Debug)]
pub struct LowerNode {
    /// A regular file, open for reading; a directory; any other node by name only.
    pub handle: Handle,
    /// What it is.
    pub metadata: Metadata,
    /// Attributes of a file or directory, overlayfs's own left out.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A symbolic link's target.
    pub link: Vec<u8>,
}

/// The stack of a layer's parents.
pub trait Lower: Send {
    /// Finds the node at `path`, whose last part is not followed if it is a link. `None` if the stack shows nothing there.
    /// May wait until the parents are stored.
    ///
    /// # Errors
    /// Those of the disk; [`io::ErrorKind::NotConnected`] if the parents will not come.
    fn find(&self, path: &[u8]) -> io::Result<Option<LowerNode>>;
}

pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Trees of layers, looked at as overlayfs would show them.
pub struct LowerStack {
    disk: Arc<dyn Disk>,
    trees: Vec<Handle>,
}

impl std::fmt::Debug for LowerStack {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LowerStack").field("layers", &self.trees.len()).finish_non_exhaustive()
    }
}

/// One name in the stack.
enum Seen {
    Nothing,
    /// The directories of that name that are seen through one another, topmost first.
    Directory(Vec<Handle>),
    /// Anything else, in this directory.
    Leaf(usize, Metadata),
}

impl LowerStack {
    /// A stack of the `fs` directories of committed layers, topmost first.
    pub fn new(disk: Arc<dyn Disk>, trees: Vec<Handle>) -> Self {
        Self { disk, trees }
    }

    fn root(&self) -> io::Result<Vec<Handle>> {
        let mut root = Vec::new();
        for tree in &self.trees {
            root.push(self.disk.open_dir_in_root(tree, ".".as_ref())?);
            if is_opaque(&*self.disk, tree)? {
                break;
            }
        }
        Ok(root)
    }

    /// What `name` is in the directories `dirs` (L1).
    fn look(&self, dirs: &[Handle], name: &[u8]) -> io::Result<Seen> {
        let mut found = Vec::new();
        for (at, dir) in dirs.iter().enumerate() {
            let facts = match self.disk.metadata_at(dir, name) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                other => other?,
            };
            match facts.kind {
                NodeKind::Directory => {
                    let handle = self.disk.open_dir(dir, name)?;
                    let opaque = is_opaque(&*self.disk, &handle)?;
                    found.push(handle);
                    if opaque {
                        break;
                    }
                }
                NodeKind::CharDevice if facts.device_node == (0, 0) => break,
                _ if found.is_empty() => return Ok(Seen::Leaf(at, facts)),
                _ => break,
            }
        }
        Ok(if found.is_empty() { Seen::Nothing } else { Seen::Directory(found) })
    }
}

impl Lower for LowerStack {
    fn find(&self, path: &[u8]) -> io::Result<Option<LowerNode>> {
        let mut queue = parts(path);
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut dirs = self.root()?;
        let mut links = 0;
        while let Some(part) = queue.pop_front() {
            if part == b".." {
                at.pop();
                at.drain(..).rev().for_each(|part| queue.push_front(part));
                dirs = self.root()?;
                continue;
            }
            match self.look(&dirs, &part)? {
                Seen::Nothing => return Ok(None),
                Seen::Directory(found) => {
                    dirs = found;
                    at.push(part);
                }
                Seen::Leaf(layer, facts) if queue.is_empty() => {
                    return node(&*self.disk, &dirs[layer], &part, facts).map(Some);
                }
                Seen::Leaf(layer, facts) if facts.kind == NodeKind::Symlink => {
                    links += 1;
                    if links > LINKS_FOLLOWED_MAX || at.len() > PATH_BYTES_MAX {
                        return Ok(None);
                    }
                    let target = self.disk.read_link(&dirs[layer], &part)?;
                    if target.first() == Some(&b'/') {
                        at.clear();
                        dirs = self.root()?;
                    }
                    parts(&target).into_iter().rev().for_each(|part| queue.push_front(part));
                }
                Seen::Leaf(..) => return Ok(None),
            }
        }
        let Some(dir) = dirs.into_iter().next() else { return Ok(None) };
        let metadata = self.disk.metadata(&dir)?;
        let xattrs = visible(self.disk.xattrs(&dir)?);
        Ok(Some(LowerNode { handle: dir, metadata, xattrs, link: Vec::new() }))
    }
}

fn node(disk: &dyn Disk, dir: &Handle, name: &[u8], metadata: Metadata) -> io::Result<LowerNode> {
    if metadata.kind == NodeKind::File {
        let handle = disk.open_file(dir, name, Access::Read)?;
        let (metadata, xattrs) = (disk.metadata(&handle)?, visible(disk.xattrs(&handle)?));
        return Ok(LowerNode { handle, metadata, xattrs, link: Vec::new() });
    }
    let link = if metadata.kind == NodeKind::Symlink { disk.read_link(dir, name)? } else { Vec::new() };
    Ok(LowerNode { handle: disk.open_node(dir, name)?, metadata, xattrs: Vec::new(), link })
}

pub(crate) fn parts(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(<[u8]>::to_vec).collect()
}

/// Whether nothing below a directory is seen in it.
pub(crate) fn is_opaque(disk: &dyn Disk, dir: &Handle) -> io::Result<bool> {
    Ok(disk.xattrs(dir)?.iter().any(|(name, value)| name == OPAQUE_XATTR && value == b"y"))
}

fn visible(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    xattrs.retain(|(name, _)| !name.starts_with(OVERLAY_XATTRS));
    xattrs
}

/// The thread that asks (L3).
#[derive(Debug)]
pub(crate) struct Below {
    paths: Option<SyncSender<Vec<u8>>>,
    found: Receiver<io::Result<Option<LowerNode>>>,
    thread: Option<JoinHandle<()>>,
}

impl Below {
    pub(crate) fn start(lower: Box<dyn Lower>) -> Result<Self, ExtractError> {
        let (paths, asked) = sync_channel::<Vec<u8>>(1);
        let (tell, found) = sync_channel(1);
        let body = move || {
            while let Ok(path) = asked.recv() {
                if tell.send(lower.find(&path)).is_err() {
                    break;
                }
            }
        };
        let spawned = thread::Builder::new().name("layer-below".into()).spawn(body);
        let thread = spawned.map_err(|source| ExtractError::Io {
            action: "start a thread for",
            path: "the layer".into(),
            source,
        })?;
        Ok(Self { paths: Some(paths), found, thread: Some(thread) })
    }

    pub(crate) fn find(&self, path: &[u8]) -> io::Result<Option<LowerNode>> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.paths.as_ref().ok_or_else(gone)?.send(path.to_vec()).map_err(|_| gone())?;
        self.found.recv().map_err(|_| gone())?
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        drop(self.paths.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of the look-up is told by the question that met it.
        }
    }
}
