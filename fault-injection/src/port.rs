//! The port of the simulated disk: what each call does, and which error it gives (S1).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use baleen_store::{Access, DirEntry, Disk, Handle, Metadata, NodeKind, Space, Timestamp, WriteBack};
use rustix::io::Errno;

use crate::change::Change;
use crate::disk::SimulatedDisk;
use crate::fault::Operation;
use crate::living::{Closer, Living, Open, Turn, Usage, child_path, component};
use crate::random::Random;
use crate::record::{Outcome, Scope, Walk, What};
use crate::tree::{Body, INODE_BYTES, Inode, NewNode, PATH_BYTES_MAX, ROOT};

/// Length that ext4 with blocks of 4 KiB gives a file at most.
const FILE_BYTES_MAX: u64 = (u32::MAX as u64) * 4096;
const XATTR_NAME_BYTES_MAX: usize = 255;
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;
/// What ext4 has for the attributes of one inode without the feature `ea_inode`, headers left out.
const XATTRS_BYTES_MAX: usize = 4000;
const FREE_BYTES_UNLIMITED: u64 = 1 << 40;

impl SimulatedDisk {
    /// Counts the call and lets the faults strike that are due.
    fn begin(&self, operation: Operation, node: Option<&Handle>, name: &[u8]) -> io::Result<Turn<'_>> {
        let mut inner = self.living();
        let (step, error) = inner.begin(operation, node, name)?;
        if let Some(errno) = error
            && !(operation.is_barrier() || matches!(operation, Operation::Write | Operation::WriteBack))
        {
            return Err(errno.into());
        }
        Ok(Turn { inner, step, error })
    }

    fn hand_out(&self, inner: &mut Living, inode: u64, usage: Usage, path: Arc<str>) -> Handle {
        // Numbers are never used twice, so a handle of another disk, or of before a reboot, is `EBADF` here.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let node_errors = inner.errors.entry(inode).or_default().sample();
        let disk_errors = inner.disk_errors.sample();
        inner.opens.insert(number, Open { inode, usage, path, node_errors, disk_errors });
        *inner.openings.entry(inode).or_default() += 1;
        Handle::simulated(number, Box::new(Closer { inner: Arc::downgrade(&self.inner), number }))
    }

    fn create(&self, dir: &Handle, name: &[u8], node: NewNode) -> io::Result<(Turn<'_>, u64, Arc<str>)> {
        let mut turn = self.begin(Operation::Create, Some(dir), name)?;
        component(name)?;
        let target_bytes = node.target.len();
        if node.kind == NodeKind::Symlink && (target_bytes == 0 || target_bytes > PATH_BYTES_MAX) {
            return Err(if target_bytes == 0 { Errno::NOENT } else { Errno::NAMETOOLONG }.into());
        }
        let (dir, path) = turn.free_name(dir, name)?;
        let block = if node.kind == NodeKind::Directory { crate::contents::BLOCK_BYTES } else { 0 };
        turn.room(INODE_BYTES + block)?;
        let (inode, mode) = (turn.inner.tree.next_inode(), node.mode);
        // As the real disk does it: made private, then given its mode. A cut can fall between the two.
        let private = NewNode { mode: if node.kind == NodeKind::Symlink { mode } else { mode & 0o700 }, ..node };
        turn.change(Change::Create { inode, node: private, dir, name: name.to_vec() }, path.clone(), None);
        if turn.inner.tree.get(inode).is_some_and(|made| made.mode != mode) {
            turn.change(Change::SetMode { inode, mode }, path.clone(), None);
        }
        Ok((turn, inode, path))
    }

    fn write(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut turn = self.begin(Operation::Write, Some(file), b"")?;
        let open = turn.inner.open(file)?.clone();
        if bytes.is_empty() {
            return Ok(()); // No system call at all.
        }
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= i64::MAX as u64);
        match end {
            _ if offset > i64::MAX as u64 => return Err(Errno::INVAL.into()),
            _ if open.usage != Usage::ReadWrite => return Err(Errno::BADF.into()),
            None => return Err(Errno::INVAL.into()),
            Some(end) if end > FILE_BYTES_MAX => return Err(Errno::FBIG.into()),
            Some(_) => {}
        }
        let (bytes, result) = match turn.error {
            Some(errno) => {
                let part = Random::of(&[turn.step, offset]).below(bytes.len() as u64 + 1) as usize;
                (&bytes[..part], Err(errno.into()))
            }
            None => match turn.inner.fitting_bytes(open.inode, offset, bytes.len()) {
                fitting if fitting < bytes.len() => (&bytes[..fitting], Err(Errno::NOSPC.into())),
                _ => (bytes, Ok(())),
            },
        };
        if !bytes.is_empty() {
            turn.inner.dirty.insert(open.inode);
            turn.change(Change::Write { inode: open.inode, offset, bytes: bytes.into() }, open.path, None);
        }
        result
    }

    fn make_durable(&self, operation: Operation, handle: &Handle) -> io::Result<()> {
        let mut turn = self.begin(operation, Some(handle), b"")?;
        let open = turn.inner.open(handle)?.clone();
        if open.usage == Usage::Path {
            return Err(Errno::BADF.into());
        }
        let scope = match operation {
            Operation::Barrier => Scope::Everything,
            Operation::SyncData if turn.inner.tree.names(open.inode).is_none() => Scope::Contents(open.inode),
            _ => Scope::Node(open.inode),
        };
        let inner = &mut *turn.inner;
        let barrier = inner.barriers;
        inner.barriers += 1;
        if inner.is_read_only(turn.step) {
            return Err(Errno::ROFS.into());
        }
        let outcome = match turn.error {
            Some(_) => Outcome::Failed,
            None if inner.skipped_barriers.contains(&barrier) => Outcome::Skipped,
            None => Outcome::Done,
        };
        if outcome == Outcome::Failed {
            inner.writes_failed(scope);
        } else {
            match scope {
                Scope::Everything => inner.dirty.clear(),
                Scope::Node(inode) | Scope::Contents(inode) => {
                    inner.dirty.remove(&inode);
                }
            }
        }
        inner.record.add(turn.step, What::Sync { scope, barrier, outcome }, open.path);
        // An error is told once to each handle that was open when it happened (`errseq_t`).
        let number = handle.number().expect("looked up above");
        let is_news = inner.tell_error(number, scope == Scope::Everything);
        match turn.error {
            Some(errno) => Err(errno.into()),
            None if is_news && !(scope == Scope::Everything && inner.barrier_loses_errors) => {
                inner.old_errors_told += 1;
                Err(Errno::IO.into())
            }
            None => Ok(()),
        }
    }
}

fn metadata_of(number: u64, node: &Inode) -> Metadata {
    Metadata {
        kind: node.kind(),
        mode: node.mode,
        uid: node.owner.0,
        gid: node.owner.1,
        size_bytes: node.size_bytes(),
        allocated_bytes: node.allocated_bytes(),
        links: node.links,
        inode: number,
        device: 0x51_0d,
        device_node: match &node.body {
            Body::Special(NodeKind::CharDevice | NodeKind::BlockDevice, device) => *device,
            _ => (0, 0),
        },
        modified: node.modified,
    }
}

/// Says what Linux says of an attribute's name and value on a file or directory.
fn check_xattr(node: &Inode, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::RANGE);
    }
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    let suffix = [&b"user."[..], b"trusted.", b"security."].iter().find_map(|prefix| name.strip_prefix(*prefix));
    match suffix {
        None => return Err(Errno::OPNOTSUPP),
        Some(b"") => return Err(Errno::INVAL),
        Some(_) => {}
    }
    if name == b"security.capability" {
        // An empty one Linux takes, and then cannot read back: refused here, and left out of the comparison.
        let revision = value.get(..4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")) & 0xff00_0000);
        if !matches!((revision, value.len()), (Some(0x0200_0000), 20) | (Some(0x0300_0000), 24)) {
            return Err(Errno::INVAL);
        }
    }
    let others = node.xattrs.iter().filter(|(other, _)| *other != name);
    let taken: usize = others.map(|(name, value)| name.len() + value.len() + 20).sum();
    if taken + name.len() + value.len() > XATTRS_BYTES_MAX { Err(Errno::NOSPC) } else { Ok(()) }
}
impl Disk for SimulatedDisk {
    fn root(&self) -> io::Result<Handle> {
        let mut turn = self.begin(Operation::Open, None, b"")?;
        Ok(self.hand_out(&mut turn.inner, ROOT, Usage::Directory, "/".into()))
    }

    fn open_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle> {
        let mut turn = self.begin(Operation::Open, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        if turn.inner.tree.names(inode).is_none() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(self.hand_out(&mut turn.inner, inode, Usage::Directory, path))
    }

    fn open_dir_in_root(&self, root: &Handle, path: &Path) -> io::Result<Handle> {
        let mut turn = self.begin(Operation::Open, Some(root), path.as_os_str().as_bytes())?;
        let open = turn.inner.open(root)?.clone();
        let inode = turn.inner.tree.resolve_in_root(open.inode, path.as_os_str().as_bytes())?;
        let opened_as = child_path(&open.path, path.as_os_str().as_bytes());
        Ok(self.hand_out(&mut turn.inner, inode, Usage::Directory, opened_as))
    }

    fn open_file(&self, dir: &Handle, name: &[u8], access: Access) -> io::Result<Handle> {
        let mut turn = self.begin(Operation::Open, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        let usage = match access {
            Access::Read => Usage::Read,
            Access::ReadWrite => Usage::ReadWrite,
        };
        let kind = turn.inner.tree.get(inode).ok_or(Errno::NOENT)?.kind();
        match kind {
            NodeKind::File => {}
            NodeKind::Symlink => return Err(Errno::LOOP.into()),
            NodeKind::Directory if usage == Usage::ReadWrite => return Err(Errno::ISDIR.into()),
            NodeKind::Directory | NodeKind::Fifo => return Err(Errno::INVAL.into()),
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Socket => return Err(Errno::NXIO.into()),
        }
        if usage == Usage::ReadWrite && turn.inner.is_read_only(turn.step) {
            return Err(Errno::ROFS.into());
        }
        Ok(self.hand_out(&mut turn.inner, inode, usage, path))
    }

    fn open_node(&self, dir: &Handle, name: &[u8]) -> io::Result<Handle> {
        let mut turn = self.begin(Operation::Open, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        Ok(self.hand_out(&mut turn.inner, inode, Usage::Path, path))
    }

    fn metadata(&self, node: &Handle) -> io::Result<Metadata> {
        let turn = self.begin(Operation::Look, Some(node), b"")?;
        Ok(metadata_of(turn.inner.open(node)?.inode, turn.inner.node(node)?))
    }

    fn metadata_at(&self, dir: &Handle, name: &[u8]) -> io::Result<Metadata> {
        let turn = self.begin(Operation::Look, Some(dir), name)?;
        let (inode, _) = turn.inner.look_up(dir, name)?;
        Ok(metadata_of(inode, turn.inner.tree.get(inode).ok_or(Errno::NOENT)?))
    }

    fn read_dir(&self, dir: &Handle) -> io::Result<Vec<DirEntry>> {
        let turn = self.begin(Operation::Look, Some(dir), b"")?;
        let inode = turn.inner.open(dir)?.inode;
        let names = turn.inner.tree.names(inode).ok_or(Errno::NOTDIR)?;
        if turn.inner.tree.get(inode).is_some_and(|node| node.links == 0) {
            return Err(Errno::NOENT.into());
        }
        let entry = |(name, inode): (&Vec<u8>, &u64)| DirEntry {
            name: name.clone(),
            kind: turn.inner.tree.get(*inode).expect("a name leads to an inode").kind(),
        };
        Ok(names.iter().map(entry).collect())
    }

    fn read_link(&self, dir: &Handle, name: &[u8]) -> io::Result<Vec<u8>> {
        let turn = self.begin(Operation::Look, Some(dir), name)?;
        let (inode, _) = turn.inner.look_up(dir, name)?;
        match turn.inner.tree.get(inode).map(|node| &node.body) {
            Some(Body::Symlink(target)) => Ok(target.clone()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn read_at(&self, file: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut turn = self.begin(Operation::Read, Some(file), b"")?;
        if offset > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        let open = turn.inner.usable(file)?;
        let (inode, usage, path) = (open.inode, open.usage, open.path.clone());
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::INVAL.into());
        }
        if usage == Usage::Directory {
            return Err(Errno::ISDIR.into());
        }
        let mut length = buffer.len();
        if let Some(random) = &mut turn.inner.short_reads
            && length > 1
        {
            length = 1 + random.below(length as u64) as usize;
        }
        let contents = turn.inner.tree.contents(inode).ok_or(Errno::BADF)?;
        let count = contents.read(&mut buffer[..length], offset);
        let below = path.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
        *turn.inner.read_bytes.entry(below).or_default() += count as u64;
        Ok(count)
    }

    fn xattrs(&self, node: &Handle) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let turn = self.begin(Operation::Look, Some(node), b"")?;
        turn.inner.usable(node)?;
        let xattrs = &turn.inner.node(node)?.xattrs;
        Ok(xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn space(&self, dir: &Handle) -> io::Result<Space> {
        let turn = self.begin(Operation::Look, Some(dir), b"")?;
        turn.inner.open(dir)?;
        let free_bytes = turn.inner.free_bytes().unwrap_or(FREE_BYTES_UNLIMITED);
        Ok(Space { free_bytes, total_bytes: turn.inner.tree.used_bytes() + free_bytes })
    }

    fn create_file(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<Handle> {
        let node = NewNode { kind: NodeKind::File, mode, target: Vec::new(), device: (0, 0) };
        let (mut turn, inode, path) = self.create(dir, name, node)?;
        Ok(self.hand_out(&mut turn.inner, inode, Usage::ReadWrite, path))
    }

    fn create_dir(&self, dir: &Handle, name: &[u8], mode: u32) -> io::Result<()> {
        let node = NewNode { kind: NodeKind::Directory, mode, target: Vec::new(), device: (0, 0) };
        self.create(dir, name, node).map(drop)
    }

    fn create_symlink(&self, dir: &Handle, name: &[u8], target: &[u8]) -> io::Result<()> {
        let node = NewNode { kind: NodeKind::Symlink, mode: 0o777, target: target.to_vec(), device: (0, 0) };
        self.create(dir, name, node).map(drop)
    }

    fn create_node(&self, dir: &Handle, name: &[u8], kind: NodeKind, mode: u32, device: (u32, u32)) -> io::Result<()> {
        if !matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo | NodeKind::Socket) {
            return Err(Errno::INVAL.into());
        }
        self.create(dir, name, NewNode { kind, mode, target: Vec::new(), device }).map(drop)
    }

    fn link(&self, node: &Handle, dir: &Handle, name: &[u8]) -> io::Result<()> {
        let mut turn = self.begin(Operation::Link, Some(dir), name)?;
        let inode = turn.inner.open(node)?.inode;
        let (dir, path) = turn.free_name(dir, name)?;
        match turn.inner.tree.get(inode) {
            Some(node) if node.kind() == NodeKind::Directory => return Err(Errno::PERM.into()),
            Some(node) if node.links == 0 => return Err(Errno::NOENT.into()),
            Some(_) => {}
            None => return Err(Errno::BADF.into()),
        }
        turn.change(Change::Link { inode, dir, name: name.to_vec() }, path, None);
        Ok(())
    }

    fn rename(&self, from: &Handle, from_name: &[u8], to: &Handle, to_name: &[u8]) -> io::Result<()> {
        let mut turn = self.begin(Operation::Rename, Some(to), to_name)?;
        turn.inner.open(from)?;
        turn.inner.open(to)?;
        // Both directories are looked at before either name, and the old name before the new one.
        component(from_name).and(component(to_name))?;
        turn.inner.slot(from, b"any")?;
        turn.inner.slot(to, b"any")?;
        let (from, path) = turn.inner.slot(from, from_name)?;
        let inode = turn.inner.tree.child(from, from_name).ok_or(Errno::NOENT)?;
        let (to, path_to) = turn.free_name(to, to_name)?;
        if turn.inner.tree.names(inode).is_some() && turn.inner.tree.is_within(to, inode) {
            return Err(Errno::INVAL.into());
        }
        let (from_name, to_name) = (from_name.to_vec(), to_name.to_vec());
        turn.change(Change::Rename { inode, from, from_name, to, to_name }, path, Some(path_to));
        Ok(())
    }

    fn remove_file(&self, dir: &Handle, name: &[u8]) -> io::Result<()> {
        let mut turn = self.begin(Operation::Remove, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        if turn.inner.tree.names(inode).is_some() {
            return Err(Errno::ISDIR.into());
        }
        let dir = turn.inner.open(dir)?.inode;
        turn.change(Change::Remove { inode, dir, name: name.to_vec() }, path, None);
        turn.inner.forget_if_unnamed(inode);
        Ok(())
    }

    fn remove_dir(&self, dir: &Handle, name: &[u8]) -> io::Result<()> {
        let mut turn = self.begin(Operation::Remove, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        match turn.inner.tree.names(inode) {
            None => return Err(Errno::NOTDIR.into()),
            Some(names) if !names.is_empty() => return Err(Errno::NOTEMPTY.into()),
            Some(_) => {}
        }
        let dir = turn.inner.open(dir)?.inode;
        turn.change(Change::Remove { inode, dir, name: name.to_vec() }, path, None);
        turn.inner.forget_if_unnamed(inode);
        Ok(())
    }

    fn write_at(&self, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(file, bytes, offset)
    }

    fn set_len(&self, file: &Handle, size_bytes: u64) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetLen, Some(file), b"")?;
        if size_bytes > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        let open = turn.inner.usable(file)?.clone();
        if open.usage != Usage::ReadWrite {
            return Err(Errno::INVAL.into());
        }
        if size_bytes > FILE_BYTES_MAX {
            return Err(Errno::FBIG.into());
        }
        turn.change(Change::SetLen { inode: open.inode, size_bytes }, open.path, None);
        Ok(())
    }

    fn set_owner(&self, node: &Handle, uid: u32, gid: u32) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(node), b"")?;
        let open = turn.inner.usable(node)?.clone();
        turn.change(Change::SetOwner { inode: open.inode, owner: (uid, gid) }, open.path, None);
        Ok(())
    }

    fn set_owner_at(&self, dir: &Handle, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        turn.change(Change::SetOwner { inode, owner: (uid, gid) }, path, None);
        Ok(())
    }

    fn set_mode(&self, node: &Handle, mode: u32) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(node), b"")?;
        let open = turn.inner.usable(node)?.clone();
        turn.change(Change::SetMode { inode: open.inode, mode: mode & 0o7777 }, open.path, None);
        Ok(())
    }

    fn set_times(&self, node: &Handle, accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(node), b"")?;
        let open = turn.inner.usable(node)?.clone();
        turn.change(Change::SetTimes { inode: open.inode, accessed, modified }, open.path, None);
        Ok(())
    }

    fn set_times_at(&self, dir: &Handle, name: &[u8], accessed: Timestamp, modified: Timestamp) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(dir), name)?;
        let (inode, path) = turn.inner.look_up(dir, name)?;
        turn.change(Change::SetTimes { inode, accessed, modified }, path, None);
        Ok(())
    }

    fn set_xattr(&self, node: &Handle, name: &[u8], value: &[u8]) -> io::Result<()> {
        let mut turn = self.begin(Operation::SetAttributes, Some(node), b"")?;
        let open = turn.inner.usable(node)?.clone();
        check_xattr(turn.inner.node(node)?, name, value)?;
        let change = Change::SetXattr { inode: open.inode, name: name.to_vec(), value: value.to_vec() };
        turn.change(change, open.path, None);
        Ok(())
    }

    fn sync(&self, node: &Handle) -> io::Result<()> {
        self.make_durable(Operation::Sync, node)
    }

    fn sync_data(&self, file: &Handle) -> io::Result<()> {
        self.make_durable(Operation::SyncData, file)
    }

    fn barrier(&self, opened_before_writing: &Handle) -> io::Result<()> {
        self.make_durable(Operation::Barrier, opened_before_writing)
    }

    fn barrier_reports_every_error(&self) -> bool {
        !self.living().barrier_loses_errors
    }

    fn write_back(&self, file: &Handle, offset: u64, length: u64, mode: WriteBack) -> io::Result<()> {
        let mut turn = self.begin(Operation::WriteBack, Some(file), b"")?;
        let open = turn.inner.usable(file)?.clone();
        let end = if length == 0 { u64::MAX } else { offset.checked_add(length).ok_or(Errno::INVAL)? };
        let number = file.number().expect("looked up above");
        let Some(errno) = turn.error else {
            if mode == WriteBack::Wait && turn.inner.tell_error(number, false) {
                turn.inner.old_errors_told += 1;
                return Err(Errno::IO.into());
            }
            return Ok(());
        };
        let failed = What::WriteBackFailed { inode: open.inode, offset, end };
        let step = turn.step;
        turn.inner.record.add(step, failed, open.path);
        turn.inner.writes_failed = true;
        turn.inner.errors.entry(open.inode).or_default().add();
        turn.inner.disk_errors.add();
        match mode {
            WriteBack::Start => Ok(()), // It fails after this call: a later sync says so.
            WriteBack::Wait => {
                turn.inner.tell_error(number, false);
                Err(errno.into())
            }
        }
    }

    fn drop_cache(&self, file: &Handle, offset: u64, length: u64) -> io::Result<()> {
        let mut turn = self.begin(Operation::DropCache, Some(file), b"")?;
        let open = turn.inner.usable(file)?.clone();
        if !turn.inner.writes_failed || turn.inner.cache_stays {
            return Ok(()); // Where nothing failed the cache shows what is, or will be, on the disk.
        }
        let end = if length == 0 { u64::MAX } else { offset.saturating_add(length) };
        let recording = turn.inner.recording();
        let mut walk = Walk::new(&recording, None);
        walk.advance(u64::MAX);
        let on_disk = walk.without_abandoned();
        if let (Some(on_disk), Some(cached)) = (on_disk.contents(open.inode), turn.inner.tree.contents_mut(open.inode))
        {
            cached.reread(on_disk, offset, end);
        }
        let step = turn.step;
        turn.inner.record.add(step, What::CacheDropped { inode: open.inode, offset, end }, open.path);
        Ok(())
    }

    fn lock(&self, file: &Handle) -> io::Result<()> {
        let mut turn = self.begin(Operation::Lock, Some(file), b"")?;
        let inode = turn.inner.usable(file)?.inode;
        let number = file.number().expect("looked up above");
        match turn.inner.locks.get(&inode) {
            Some(holder) if *holder != number => Err(Errno::WOULDBLOCK.into()),
            _ => {
                turn.inner.locks.insert(inode, number);
                Ok(())
            }
        }
    }
}
