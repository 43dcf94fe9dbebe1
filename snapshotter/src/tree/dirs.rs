//! The directories of a tree being written: found by path, followed through the layer's own links, cached.
//!
//! P1  A directory is reached by opening one component after the other below a held handle, never following a link. So
//!     nothing leads out, whatever the tree looks like and whoever changes it.
//! P2  A link on the way is read and followed as in a chroot: absolute targets start at the layer's root, and `..` ends
//!     there. What is looked up next is again one component below a held handle.
//! P3  The path of a cached directory is its own, without links. That is why this does not leave the walk to `openat2`
//!     (`RESOLVE_IN_ROOT`): the recipe names files by it.
//! P4  A directory's times are set when it leaves the cache. Whoever comes back to it later takes its times first, so
//!     that they are the archive's at the end, however often its names change; no list of directories is kept.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use baleen_store::{Disk, Handle, NodeKind, Timestamp};

use super::Guard;
use crate::error::{ExtractError, shown};
use crate::limits::{LINKS_FOLLOWED_MAX, PATH_BYTES_MAX};

/// Directories held open.
pub(super) const CACHED_MAX: usize = 32;

pub(super) use crate::lower::OPAQUE_XATTR;

/// Directories of the tree, the root first.
#[derive(Debug)]
pub(super) struct Directories {
    root: Cached,
    /// The last used comes last.
    cached: VecDeque<Cached>,
    /// Owner and group that new nodes get by themselves, if that is known.
    default_owner: Option<(u32, u32)>,
    implied: bool,
}

/// A directory held open.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) path: Vec<u8>,
    pub(super) handle: Handle,
    /// Its time of modification at the end.
    modified: Timestamp,
    changed: bool,
    /// New nodes in it get its group.
    setgid: bool,
}

impl Directories {
    /// Of a new, empty tree.
    pub(super) fn new(disk: &dyn Disk, root: Handle) -> io::Result<Self> {
        let facts = disk.metadata(&root)?;
        let mut directories = Self::resume(disk, root, false)?;
        directories.default_owner = Some((facts.uid, facts.gid));
        directories.enter_root(Timestamp::default(), 0o755);
        Ok(directories)
    }

    /// Of a tree that was begun before, whose directories have their times.
    pub(super) fn resume(disk: &dyn Disk, root: Handle, implied: bool) -> io::Result<Self> {
        let facts = disk.metadata(&root)?;
        let setgid = facts.mode & 0o2000 != 0;
        let root = Cached { path: Vec::new(), handle: root, modified: facts.modified, changed: true, setgid };
        Ok(Self { root, cached: VecDeque::new(), default_owner: None, implied })
    }

    /// Whether a directory was made that no entry of the archive names.
    pub(super) fn implied(&self) -> bool {
        self.implied
    }

    /// The directory that `resolve` gave last.
    pub(super) fn current(&self, found: Found) -> &Cached {
        match found {
            Found::Root => &self.root,
            Found::Last => self.cached.back().unwrap_or(&self.root),
        }
    }

    fn current_mut(&mut self, found: Found) -> &mut Cached {
        match found {
            Found::Root => &mut self.root,
            Found::Last => self.cached.back_mut().unwrap_or(&mut self.root),
        }
    }

    /// Notes that names in the directory change; gives whether a new node there has the owner `uid` and `gid` by itself.
    pub(super) fn touch(&mut self, found: Found, uid: u32, gid: u32) -> bool {
        let default_owner = self.default_owner;
        let directory = self.current_mut(found);
        directory.changed = true;
        !directory.setgid && default_owner == Some((uid, gid))
    }

    /// Finds the directory `parts`; with `create` makes what is missing, as 0755 root.
    pub(super) fn resolve(
        &mut self,
        disk: &dyn Disk,
        guard: &mut Guard,
        parts: &[&[u8]],
        create: bool,
    ) -> Result<Option<Found>, ExtractError> {
        if parts.is_empty() {
            return Ok(Some(Found::Root));
        }
        if self.recall(&parts.join(&b'/')) {
            return Ok(Some(Found::Last));
        }
        self.walk(disk, guard, parts, create)
    }

    /// Takes `parts` one by one (P1, P2).
    fn walk(
        &mut self,
        disk: &dyn Disk,
        guard: &mut Guard,
        parts: &[&[u8]],
        create: bool,
    ) -> Result<Option<Found>, ExtractError> {
        let wanted = || shown(&parts.join(&b'/'));
        // Parts to go, and whether a link brought them: those must exist.
        let mut queue: VecDeque<(Vec<u8>, bool)> = parts.iter().map(|part| (part.to_vec(), false)).collect();
        let mut path: Vec<u8> = Vec::new();
        let mut links = 0;
        let mut at = Found::Root;
        while let Some((part, by_link)) = queue.pop_front() {
            if part == b".." {
                // Above the root is the root, as in a chroot. The parent's handle may have left the cache: start anew.
                let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
                let parents = parent.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
                for part in parents.rev() {
                    queue.push_front((part.to_vec(), true));
                }
                path.clear();
                at = Found::Root;
                continue;
            }
            let child = child_path(&path, &part);
            if child.len() > PATH_BYTES_MAX {
                return Err(ExtractError::BadPath {
                    path: wanted(),
                    problem: "leads to a path longer than 4096 bytes",
                });
            }
            if self.recall(&child) {
                at = Found::Last;
                path = child;
                continue;
            }
            let directory = &self.current(at).handle;
            let failed = |source| io_error("open the directory", &child, source);
            match disk.open_dir(directory, &part) {
                Ok(handle) => {
                    let facts = disk.metadata(&handle).map_err(failed)?;
                    let setgid = facts.mode & 0o2000 != 0;
                    self.insert(
                        disk,
                        Cached { path: child.clone(), handle, modified: facts.modified, changed: false, setgid },
                    )?;
                    at = Found::Last;
                    path = child;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    if !create {
                        return Ok(None);
                    }
                    if by_link {
                        return Err(ExtractError::BadPath {
                            path: wanted(),
                            problem: "leads through a link to nothing",
                        });
                    }
                    self.make_implied(disk, at, &part, child.clone(), false)?;
                    at = Found::Last;
                    path = child;
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                    let facts = disk.metadata_at(directory, &part).map_err(failed)?;
                    match facts.kind {
                        NodeKind::Symlink => {
                            links += 1;
                            if links > LINKS_FOLLOWED_MAX {
                                return Err(ExtractError::BadPath {
                                    path: wanted(),
                                    problem: "leads through too many links",
                                });
                            }
                            let target = disk.read_link(directory, &part).map_err(failed)?;
                            if target.first() == Some(&b'/') {
                                path.clear();
                                at = Found::Root;
                            }
                            let parts = target.split(|byte| *byte == b'/');
                            for part in parts.rev().filter(|part| !part.is_empty() && *part != b".") {
                                queue.push_front((part.to_vec(), true));
                            }
                        }
                        NodeKind::CharDevice if facts.device_node == (0, 0) => {
                            if !create {
                                return Ok(None);
                            }
                            // The archive hides the name below and then has a directory there: only what it has is seen.
                            guard.withdraw()?;
                            disk.remove_file(directory, &part).map_err(failed)?;
                            self.make_implied(disk, at, &part, child.clone(), true)?;
                            at = Found::Last;
                            path = child;
                        }
                        _ if !create => return Ok(None),
                        _ => {
                            return Err(ExtractError::BadPath {
                                path: wanted(),
                                problem: "leads through a file that is no directory",
                            });
                        }
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Some(at))
    }

    fn make_implied(
        &mut self,
        disk: &dyn Disk,
        at: Found,
        name: &[u8],
        path: Vec<u8>,
        opaque: bool,
    ) -> Result<(), ExtractError> {
        let is_default = self.touch(at, 0, 0);
        let directory = &self.current(at).handle;
        let make = || {
            disk.create_dir(directory, name, 0o755)?;
            let handle = disk.open_dir(directory, name)?;
            if !is_default {
                disk.set_owner(&handle, 0, 0)?;
                disk.set_mode(&handle, 0o755)?;
            }
            if opaque {
                disk.set_xattr(&handle, OPAQUE_XATTR, b"y")?;
            }
            Ok(handle)
        };
        let handle = make().map_err(|source| io_error("create the directory", &path, source))?;
        self.implied = true;
        // No entry says its time; the same one each time makes the same tree each time.
        let modified = Timestamp::default();
        self.insert(disk, Cached { path, handle, modified, changed: true, setgid: false })
    }

    /// Remembers a directory that an entry made or named, with its time at the end.
    pub(super) fn enter(
        &mut self,
        disk: &dyn Disk,
        path: Vec<u8>,
        handle: Handle,
        modified: Timestamp,
        mode: u32,
    ) -> Result<(), ExtractError> {
        self.cached.retain(|cached| cached.path != path);
        self.insert(disk, Cached { path, handle, modified, changed: true, setgid: mode & 0o2000 != 0 })
    }

    /// The same for the root.
    pub(super) fn enter_root(&mut self, modified: Timestamp, mode: u32) {
        self.root.modified = modified;
        self.root.changed = true;
        self.root.setgid = mode & 0o2000 != 0;
    }

    /// Forgets `path` and all below it: they are about to be moved away.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let below = |cached: &Cached| match cached.path.strip_prefix(path) {
            Some(rest) => rest.is_empty() || rest.first() == Some(&b'/'),
            None => false,
        };
        self.cached.retain(|cached| !below(cached));
    }

    /// Makes a directory opaque: nothing of the layers below is seen in it.
    pub(super) fn make_opaque(&self, disk: &dyn Disk, found: Found) -> Result<(), ExtractError> {
        let directory = self.current(found);
        let done = disk.set_xattr(&directory.handle, OPAQUE_XATTR, b"y");
        done.map_err(|source| io_error("hide the layers below in the directory", &directory.path, source))
    }

    /// Sets the times of all directories held.
    pub(super) fn finish(&mut self, disk: &dyn Disk) -> Result<(), ExtractError> {
        while let Some(cached) = self.cached.pop_front() {
            settle(disk, &cached)?;
        }
        settle(disk, &self.root)
    }

    /// Puts the directory at `path` last, if it is held.
    fn recall(&mut self, path: &[u8]) -> bool {
        match self.cached.iter().rposition(|cached| cached.path == path) {
            Some(last) if last + 1 == self.cached.len() => true,
            Some(at) => {
                let cached = self.cached.remove(at);
                self.cached.extend(cached);
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, disk: &dyn Disk, cached: Cached) -> Result<(), ExtractError> {
        if self.cached.len() >= CACHED_MAX
            && let Some(oldest) = self.cached.pop_front()
        {
            settle(disk, &oldest)?;
        }
        self.cached.push_back(cached);
        Ok(())
    }
}

/// Which directory [`Directories::resolve`] found: valid until the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Root,
    Last,
}

fn settle(disk: &dyn Disk, cached: &Cached) -> Result<(), ExtractError> {
    if !cached.changed {
        return Ok(());
    }
    let done = disk.set_times(&cached.handle, cached.modified, cached.modified);
    done.map_err(|source| io_error("set the times of the directory", &cached.path, source))
}

pub(super) fn child_path(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

pub(super) fn io_error(action: &'static str, path: &[u8], source: io::Error) -> ExtractError {
    ExtractError::Io { action, path: PathBuf::from(shown(path)), source }
}
