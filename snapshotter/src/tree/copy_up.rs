//! A hard link into the layers below: its target is copied into this layer first, as overlayfs does before it links.
//!
//! U1  What this layer has, hides or replaces so far comes first: the target is looked for in this layer on top of its
//!     parents, with links followed in that view.
//! U2  The copy lies at its own path, with contents, owner, mode, time and attributes; directories on the way that this
//!     layer lacks are copied too. The recipe tells of each, since no entry of the archive does.
//! U3  From then on the layer belongs to its parents, and takes no more checkpoints: its recipe alone does not tell what
//!     was copied from where.

use baleen_store::recipe::Copied;

use super::*;
use crate::limits::LINKS_FOLLOWED_MAX;
use crate::lower::{LowerNode, is_opaque, parts};

const BUFFER_BYTES: usize = 256 << 10;

/// Where a target was found.
enum Target {
    Nowhere,
    /// At this path of this layer, reached by links of the layers below.
    Here(Vec<u8>),
    Below(Vec<u8>, LowerNode),
}

impl TreeWriter {
    /// The node at `target`, which a hard link leads to, once it is in this layer; `None` if it is nowhere.
    pub(super) fn bring_up(&mut self, target: &[u8]) -> Result<Option<Handle>, ExtractError> {
        if self.below.is_none() {
            return Ok(None);
        }
        let path = match self.look_below(target)? {
            Target::Nowhere => return Ok(None),
            Target::Here(path) => {
                self.guard.retire()?;
                self.depends_on_parents = true;
                self.recipe.led_to(&path).map_err(ExtractError::Recipe)?;
                path
            }
            Target::Below(path, node) => {
                self.guard.retire()?;
                self.copy_parents(&path)?;
                self.copy_up(&path, &node)?;
                path
            }
        };
        let parts = parts(&path);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let Some((name, parents)) = parts.split_last() else { return Ok(None) };
        let Some(found) = self.directories.resolve(&*self.disk, &mut self.guard, parents, false)? else {
            return Ok(None);
        };
        let node = self.disk.open_node(&self.directories.current(found).handle, name);
        node.map(Some).map_err(|source| io_error("open", &path, source))
    }

    /// Walks `target` in this layer on top of its parents (U1).
    fn look_below(&self, target: &[u8]) -> Result<Target, ExtractError> {
        let disk = &*self.disk;
        let failed = |source| io_error("look below for", target, source);
        let root = || -> Result<(Option<Handle>, bool), ExtractError> {
            let handle = &self.directories.current(Found::Root).handle;
            let own = disk.open_dir_in_root(handle, std::path::Path::new(".")).map_err(failed)?;
            Ok((Some(own), !is_opaque(disk, handle).map_err(failed)?))
        };
        let mut queue = parts(target);
        let mut path: Vec<u8> = Vec::new();
        // This layer's directory at `path`, if it has one, and whether those below are seen through it.
        let (mut own, mut is_seen_through) = root()?;
        let mut links = 0;
        while let Some(part) = queue.pop_front() {
            if part == b".." {
                let above = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                parts(&path[..above]).into_iter().rev().for_each(|part| queue.push_front(part));
                path.clear();
                (own, is_seen_through) = root()?;
                continue;
            }
            let child = child_path(&path, &part);
            let is_last = queue.is_empty();
            let here = match &own {
                None => None,
                Some(dir) => match disk.metadata_at(dir, &part) {
                    Ok(facts) => Some((dir, facts)),
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
                    Err(error) => return Err(failed(error)),
                },
            };
            let link = match here {
                Some((_, facts)) if facts.kind == NodeKind::CharDevice && facts.device_node == (0, 0) => {
                    return Ok(Target::Nowhere);
                }
                Some(_) if is_last => return Ok(Target::Here(child)),
                Some((dir, facts)) if facts.kind == NodeKind::Directory => {
                    let handle = disk.open_dir(dir, &part).map_err(failed)?;
                    is_seen_through &= !is_opaque(disk, &handle).map_err(failed)?;
                    own = Some(handle);
                    path = child;
                    continue;
                }
                Some((dir, facts)) if facts.kind == NodeKind::Symlink => disk.read_link(dir, &part).map_err(failed)?,
                Some(_) => return Ok(Target::Nowhere),
                None if !is_seen_through => return Ok(Target::Nowhere),
                None => match self.find_below(&child)? {
                    None => return Ok(Target::Nowhere),
                    Some(node) if is_last => return Ok(Target::Below(child, node)),
                    Some(node) if node.metadata.kind == NodeKind::Directory => {
                        own = None;
                        path = child;
                        continue;
                    }
                    Some(node) if node.metadata.kind == NodeKind::Symlink => node.link,
                    Some(_) => return Ok(Target::Nowhere),
                },
            };
            links += 1;
            if links > LINKS_FOLLOWED_MAX {
                return Ok(Target::Nowhere);
            }
            if link.first() == Some(&b'/') {
                path.clear();
                (own, is_seen_through) = root()?;
            }
            parts(&link).into_iter().rev().for_each(|part| queue.push_front(part));
        }
        Ok(Target::Nowhere)
    }

    fn find_below(&self, path: &[u8]) -> Result<Option<LowerNode>, ExtractError> {
        let Some(below) = &self.below else { return Ok(None) };
        below.find(path).map_err(|source| io_error("look below for", path, source))
    }

    /// Copies the directories above `path` that this layer lacks.
    fn copy_parents(&mut self, path: &[u8]) -> Result<(), ExtractError> {
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let dir = &path[..end];
            let parts = parts(dir);
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            if self.directories.resolve(&*self.disk, &mut self.guard, &parts, false)?.is_some() {
                continue;
            }
            match self.find_below(dir)? {
                Some(node) if node.metadata.kind == NodeKind::Directory => self.copy_up(dir, &node)?,
                _ => return Err(ExtractError::BadPath { path: shown(path), problem: "has no directory below" }),
            }
        }
        Ok(())
    }

    /// Copies one node to its own path (U2). Its directory is there.
    fn copy_up(&mut self, path: &[u8], node: &LowerNode) -> Result<(), ExtractError> {
        let disk = Arc::clone(&self.disk);
        let disk = &*disk;
        let facts = &node.metadata;
        let failed = |source| io_error("copy up", path, source);
        let parts = parts(path);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let Some((name, parents)) = parts.split_last() else { return Ok(()) };
        let found = self.parent_of_copy(parents, path)?;
        self.directories.touch(found, 0, 0);
        let dir = &self.directories.current(found).handle;
        let mut content = None;
        match facts.kind {
            NodeKind::File => {
                let file = disk.create_file(dir, name, NEW_FILE_MODE).map_err(failed)?;
                let (file, copied) = self.copy_contents(file, node, path)?;
                self.describe_copy(&file, node).map_err(failed)?;
                self.ring.add(disk, file, copied.size_bytes).map_err(failed)?;
                content = Some(copied);
            }
            NodeKind::Directory => {
                disk.create_dir(dir, name, 0o700).map_err(failed)?;
                let handle = disk.open_dir(dir, name).map_err(failed)?;
                self.describe_copy(&handle, node).map_err(failed)?;
                self.directories.enter(disk, path.to_vec(), handle, facts.modified, facts.mode)?;
            }
            NodeKind::Symlink => disk.create_symlink(dir, name, &node.link).map_err(failed)?,
            kind => disk.create_node(dir, name, kind, facts.mode, facts.device_node).map_err(failed)?,
        }
        if !matches!(facts.kind, NodeKind::File | NodeKind::Directory) {
            let dir = &self.directories.current(found).handle;
            disk.set_owner_at(dir, name, facts.uid, facts.gid).map_err(failed)?;
            disk.set_times_at(dir, name, facts.modified, facts.modified).map_err(failed)?;
        }
        let copied = Copied {
            path: path.to_vec(),
            kind: facts.kind,
            mode: facts.mode,
            uid: facts.uid,
            gid: facts.gid,
            modified: facts.modified,
            device: facts.device_node,
            link: node.link.clone(),
            xattrs: node.xattrs.clone(),
            content,
        };
        self.depends_on_parents = true;
        self.recipe.copied(&copied).map_err(ExtractError::Recipe)
    }

    fn parent_of_copy(&mut self, parents: &[&[u8]], path: &[u8]) -> Result<Found, ExtractError> {
        let found = self.directories.resolve(&*self.disk, &mut self.guard, parents, false)?;
        found.ok_or_else(|| ExtractError::BadPath { path: shown(path), problem: "has no directory" })
    }

    fn copy_contents(
        &mut self,
        file: Handle,
        node: &LowerNode,
        path: &[u8],
    ) -> Result<(Handle, Content), ExtractError> {
        let disk = &*self.disk;
        let failed = |source| io_error("copy up", path, source);
        let size_bytes = node.metadata.size_bytes;
        let tar_bytes_max = self.limits.tar_bytes_max;
        self.copied_bytes = self.copied_bytes.saturating_add(size_bytes);
        if self.copied_bytes > tar_bytes_max {
            return Err(ExtractError::TooLarge { tar_bytes_max });
        }
        let mut writer = FileWriter::new(file, size_bytes, None);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut offset = 0;
        while offset < size_bytes {
            let part = usize::try_from(size_bytes - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = disk.read_at(&node.handle, &mut buffer[..part], offset).map_err(failed)?;
            if count == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            writer.take(disk, &buffer[..count]).map_err(failed)?;
            offset += count as u64;
        }
        let (file, content, _) = writer.finish(disk).map_err(failed)?;
        // The pages read are the containers' memory again.
        let _ = disk.drop_cache(&node.handle, 0, 0);
        Ok((file, content))
    }

    fn describe_copy(&self, handle: &Handle, node: &LowerNode) -> io::Result<()> {
        let (disk, facts) = (&*self.disk, &node.metadata);
        disk.set_owner(handle, facts.uid, facts.gid)?;
        disk.set_mode(handle, facts.mode)?;
        for (name, value) in &node.xattrs {
            disk.set_xattr(handle, name, value)?;
        }
        disk.set_times(handle, facts.modified, facts.modified)
    }
}
