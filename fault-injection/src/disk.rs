//! The simulated disk: a [`Disk`] in memory that knows what of it a power cut would leave.
//!
//! S1  Without faults every call does what [`SystemDisk`](baleen_store::SystemDisk) does as root on ext4, error for
//!     error; `tests/like_linux.rs` compares them.
//! S2  A call that changes or syncs something is a *step* and numbered; a call that makes durable is also a
//!     *barrier* and numbered. What it changed is recorded, and nothing reaches a crash state but by that record.
//! S3  The clock stands still and nothing here is random but by seed: one run gives one record.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use baleen_store::{Access, DirEntry, Disk, Handle, Metadata, NodeKind, Space, Timestamp, WriteBack};
use rustix::io::Errno;

use crate::change::Change;
use crate::fault::{Fault, Operation, PowerGone, When};
use crate::random::Random;
use crate::record::{Outcome, Record, Recording, Scope, Walk, What};
use crate::tree::{Body, INODE_BYTES, Inode, NAME_BYTES_MAX, NewNode, PATH_BYTES_MAX, ROOT, Tree};

/// A disk in memory. Clones are the same disk.
///
/// ```
/// use baleen_fault_injection::{SimulatedDisk, Subsets};
/// use baleen_store::{Access, Disk};
///
/// let disk = SimulatedDisk::new();
/// let root = disk.root()?;
/// let file = disk.create_file(&root, b"greeting", 0o600)?;
/// disk.write_at(&file, b"hello", 0)?;
/// disk.sync(&file)?; // Its contents are durable now; its name is not.
///
/// let recording = disk.recording();
/// let after_the_cut = recording.states(recording.steps(), &Subsets::default());
/// let named: Vec<bool> = after_the_cut
///     .iter()
///     .map(|state| {
///         let rebooted = recording.reboot(state);
///         rebooted.open_file(&rebooted.root().unwrap(), b"greeting", Access::Read).is_ok()
///     })
///     .collect();
/// assert!(named.contains(&true) && named.contains(&false));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimulatedDisk {
    inner: Arc<Mutex<Inner>>,
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimulatedDisk {
    /// An empty disk: a root directory of mode 0755.
    pub fn new() -> Self {
        Self::with_tree(Tree::new())
    }

    pub(crate) fn with_tree(tree: Tree) -> Self {
        let inner = Inner {
            base: tree.clone(),
            tree,
            record: Record::default(),
            opens: HashMap::new(),
            openings: HashMap::new(),
            locks: HashMap::new(),
            steps: 0,
            barriers: 0,
            calls: 0,
            calls_of: HashMap::new(),
            faults: Vec::new(),
            skipped_barriers: HashSet::new(),
            power_goes_at: None,
            power_is_gone: false,
            full_from: None,
            read_only_from: None,
            capacity_bytes: None,
            short_reads: None,
            dirty: HashSet::new(),
            errors: HashMap::new(),
            disk_errors: ErrorSequence::default(),
            writes_failed: false,
            barrier_loses_errors: false,
            old_errors_told: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.lock_inner().steps
    }

    /// Barriers so far.
    pub fn barriers(&self) -> u64 {
        self.lock_inner().barriers
    }

    /// Calls so far, those that change nothing included.
    pub fn calls(&self) -> u64 {
        self.lock_inner().calls
    }

    /// Makes everything durable, forgets the record and all faults, and starts every number anew at 0.
    pub fn settle(&self) {
        let mut inner = self.lock_inner();
        let tree = inner.tree.clone();
        inner.base = tree;
        inner.record = Record::default();
        (inner.steps, inner.barriers, inner.calls) = (0, 0, 0);
        inner.calls_of.clear();
        inner.dirty.clear();
        inner.clear_faults();
        inner.writes_failed = false;
    }

    /// What happened since the disk was made or last settled.
    pub fn recording(&self) -> Recording {
        self.lock_inner().recording()
    }

    /// The tree as a listing, a line a node.
    pub fn describe(&self) -> String {
        self.lock_inner().tree.describe()
    }

    /// A number that differs between trees that can be told apart.
    pub fn hash(&self) -> u64 {
        let mut tree = self.lock_inner().tree.clone();
        tree.mount();
        tree.hash()
    }

    /// Lets calls fail.
    pub fn inject(&self, fault: Fault) {
        self.lock_inner().faults.push(fault);
    }

    /// Lets the call that is step `step` fail.
    pub fn fail_step(&self, step: u64, errno: Errno) {
        self.inject(Fault { when: When::Step(step), errno });
    }

    /// Lets the `n`-th call of a kind fail, counted from 0.
    pub fn fail_nth(&self, operation: Operation, n: u64, errno: Errno) {
        self.inject(Fault { when: When::Nth(operation, n), errno });
    }

    /// Lets the power go before step `step`: that call and all after it, whatever they are, end in [`PowerGone`].
    pub fn cut_power_at(&self, step: u64) {
        self.lock_inner().power_goes_at = Some(step);
    }

    /// Turns the disk read-only from step `step` on: changes end in `EROFS`, and so do syncs of what was not durable.
    pub fn read_only_from(&self, step: u64) {
        self.lock_inner().read_only_from = Some(step);
    }

    /// Lets the disk be full from step `step` on: it has then as much room as was used, so that removing makes some.
    pub fn full_from(&self, step: u64) {
        self.lock_inner().full_from = Some(step);
    }

    /// Limits the bytes that blocks, directories and inodes take; `ENOSPC` beyond. `None` lifts it.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.lock_inner().capacity_bytes = capacity_bytes;
    }

    /// Bytes that blocks, directories and inodes take.
    pub fn used_bytes(&self) -> u64 {
        self.lock_inner().tree.used_bytes()
    }

    /// Lets barrier `number` say that it was done and do nothing.
    pub fn skip_barrier(&self, number: u64) {
        self.lock_inner().skipped_barriers.insert(number);
    }

    /// Lets reads give less than was asked for, as the seed decides; `None` ends it.
    pub fn short_reads(&self, seed: Option<u64>) {
        self.lock_inner().short_reads = seed.map(Random::new);
    }

    /// Makes this the disk of a kernel before 5.17: a barrier does not tell of a write-back that failed before it.
    pub fn lose_barrier_errors(&self, lose: bool) {
        self.lock_inner().barrier_loses_errors = lose;
    }

    /// Errors so far that a sync, a barrier or a wait told of a write-back that had failed before it.
    pub fn old_errors_told(&self) -> u64 {
        self.lock_inner().old_errors_told
    }

    /// Takes back every fault, limit and skipped barrier. Errors that a later sync would report stay.
    pub fn clear_faults(&self) {
        self.lock_inner().clear_faults();
    }

    /// Turns over the bits of `mask` in the byte at `offset` of a file, on the disk and in the cache.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR` of the path; `EINVAL` if it is no file or ends before `offset`.
    pub fn flip_bits(&self, path: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut inner = self.lock_inner();
        let inode = path
            .split('/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT, |dir, name| inner.tree.child(dir, name.as_bytes()))
            .ok_or(Errno::NOENT)?;
        if inner.tree.contents(inode).is_none_or(|contents| offset >= contents.size_bytes()) {
            return Err(Errno::INVAL.into());
        }
        let step = inner.steps;
        inner.change_at(step, Change::Damage { inode, offset, mask }, path.into(), None);
        Ok(())
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and lets the faults strike that are due.
    fn begin(&self, operation: Operation, node: Option<&Handle>, name: &[u8]) -> io::Result<Turn<'_>> {
        let mut inner = self.lock_inner();
        let (step, error) = inner.begin(operation, node, name)?;
        if let Some(errno) = error
            && !(operation.is_barrier() || matches!(operation, Operation::Write | Operation::WriteBack))
        {
            return Err(errno.into());
        }
        Ok(Turn { inner, step, error })
    }

    fn hand_out(&self, inner: &mut Inner, inode: u64, usage: Usage, path: Arc<str>) -> Handle {
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

/// Length that ext4 with blocks of 4 KiB gives a file at most.
const FILE_BYTES_MAX: u64 = (u32::MAX as u64) * 4096;
const XATTR_NAME_BYTES_MAX: usize = 255;
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;
/// What ext4 has for the attributes of one inode without the feature `ea_inode`, headers left out.
const XATTRS_BYTES_MAX: usize = 4000;
const FREE_BYTES_UNLIMITED: u64 = 1 << 40;

/// What a handle may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usage {
    Directory,
    Read,
    ReadWrite,
    /// `O_PATH`.
    Path,
}

#[derive(Debug, Clone)]
struct Open {
    inode: u64,
    usage: Usage,
    path: Arc<str>,
    node_errors: u64,
    disk_errors: u64,
}

/// Counts write-back errors, as `errseq_t` does.
#[derive(Debug, Default)]
struct ErrorSequence {
    count: u64,
    was_told: bool,
}

impl ErrorSequence {
    /// Where a new handle begins: an error that nobody has seen yet is news to it.
    fn sample(&self) -> u64 {
        if self.was_told { self.count } else { self.count.saturating_sub(1) }
    }

    fn add(&mut self) {
        self.count += 1;
        self.was_told = false;
    }

    fn tell(&mut self, seen: &mut u64) -> bool {
        let is_news = *seen != self.count;
        *seen = self.count;
        self.was_told |= is_news;
        is_news
    }
}

/// Tells the disk that a handle is gone.
struct Closer {
    inner: Weak<Mutex<Inner>>,
    number: u64,
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.lock().unwrap_or_else(PoisonError::into_inner).close(self.number);
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// What calls see: the page cache over the disk.
    tree: Tree,
    /// The tree at the beginning of the record, all of it durable.
    base: Tree,
    record: Record,
    opens: HashMap<u64, Open>,
    /// Handles open on an inode: one without a name lives until the last is closed.
    openings: HashMap<u64, u64>,
    /// Locked inodes and the handle that holds each.
    locks: HashMap<u64, u64>,
    steps: u64,
    barriers: u64,
    calls: u64,
    calls_of: HashMap<Operation, u64>,
    faults: Vec<Fault>,
    skipped_barriers: HashSet<u64>,
    power_goes_at: Option<u64>,
    power_is_gone: bool,
    full_from: Option<u64>,
    read_only_from: Option<u64>,
    capacity_bytes: Option<u64>,
    short_reads: Option<Random>,
    /// Inodes with writes that no sync has covered.
    dirty: HashSet<u64>,
    errors: HashMap<u64, ErrorSequence>,
    disk_errors: ErrorSequence,
    /// Some sync or write-back has failed: what the cache shows and what is on the disk may differ.
    writes_failed: bool,
    barrier_loses_errors: bool,
    /// Errors told of what had failed earlier.
    old_errors_told: u64,
}

/// One call: the locked disk, the step it is, and the error that was injected into it.
struct Turn<'a> {
    inner: MutexGuard<'a, Inner>,
    step: u64,
    error: Option<Errno>,
}

impl Turn<'_> {
    fn change(&mut self, change: Change, path: Arc<str>, path_to: Option<Arc<str>>) {
        let step = self.step;
        self.inner.change_at(step, change, path, path_to);
    }

    /// The directory and the path of a name that is not taken.
    fn free_name(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let (dir, path) = self.inner.slot(dir, name)?;
        let node = self.inner.tree.get(dir).ok_or(Errno::NOENT)?;
        if self.inner.tree.child(dir, name).is_some() {
            return Err(Errno::EXIST.into());
        }
        if node.links == 0 {
            return Err(Errno::NOENT.into()); // A directory that was removed while it was open.
        }
        Ok((dir, path))
    }

    fn room(&self, wanted_bytes: u64) -> io::Result<()> {
        match self.inner.free_bytes() {
            Some(free_bytes) if free_bytes < wanted_bytes => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }
}

fn component(name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

impl Inner {
    fn begin(&mut self, operation: Operation, node: Option<&Handle>, name: &[u8]) -> io::Result<(u64, Option<Errno>)> {
        let step = self.steps;
        if operation.is_step() && self.power_goes_at.is_some_and(|cut| step >= cut) {
            self.power_is_gone = true;
        }
        if self.power_is_gone {
            return Err(PowerGone::error());
        }
        let call = self.calls;
        self.calls += 1;
        let of_kind = self.calls_of.entry(operation).or_default();
        let nth = *of_kind;
        *of_kind += 1;
        if operation.is_step() {
            self.steps += 1;
            if self.full_from.is_some_and(|from| step >= from) {
                self.full_from = None;
                self.capacity_bytes = Some(self.tree.used_bytes());
            }
            if operation.is_change() && self.is_read_only(step) {
                return Err(Errno::ROFS.into());
            }
        }
        let strikes = |fault: &&Fault| match &fault.when {
            When::Step(at) => operation.is_step() && *at == step,
            When::Call(at) => *at == call,
            When::Nth(kind, at) => *kind == operation && *at == nth,
            When::Path(kind, text) => {
                *kind == operation
                    && node.and_then(|node| self.open(node).ok()).is_some_and(|open| {
                        let path = if name.is_empty() { open.path.clone() } else { child_path(&open.path, name) };
                        path.contains(text.as_str())
                    })
            }
        };
        Ok((step, self.faults.iter().find(strikes).map(|fault| fault.errno)))
    }

    fn clear_faults(&mut self) {
        self.faults.clear();
        self.skipped_barriers.clear();
        (self.full_from, self.read_only_from, self.capacity_bytes) = (None, None, None);
        self.short_reads = None;
    }

    fn recording(&self) -> Recording {
        Recording { base: self.base.clone(), events: self.record.events.clone().into(), steps: self.steps }
    }

    fn is_read_only(&self, step: u64) -> bool {
        self.read_only_from.is_some_and(|from| step >= from)
    }

    fn open(&self, handle: &Handle) -> io::Result<&Open> {
        let open = handle.number().and_then(|number| self.opens.get(&number));
        open.ok_or_else(|| Errno::BADF.into())
    }

    fn node(&self, handle: &Handle) -> io::Result<&Inode> {
        self.tree.get(self.open(handle)?.inode).ok_or_else(|| Errno::BADF.into())
    }

    /// An open node that is more than a place (`O_PATH`).
    fn usable(&self, handle: &Handle) -> io::Result<&Open> {
        let open = self.open(handle)?;
        if open.usage == Usage::Path { Err(Errno::BADF.into()) } else { Ok(open) }
    }

    /// The directory of a handle, and the path of a name in it.
    fn slot(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let open = self.open(dir)?;
        component(name)?;
        if self.tree.names(open.inode).is_none() {
            return Err(Errno::NOTDIR.into());
        }
        if name.len() > NAME_BYTES_MAX {
            // A directory that was removed while it was open looks at no name.
            let is_removed = self.tree.get(open.inode).is_some_and(|node| node.links == 0);
            return Err(if is_removed { Errno::NOENT } else { Errno::NAMETOOLONG }.into());
        }
        Ok((open.inode, child_path(&open.path, name)))
    }

    /// What a name leads to, and its path.
    fn look_up(&self, dir: &Handle, name: &[u8]) -> io::Result<(u64, Arc<str>)> {
        let (dir, path) = self.slot(dir, name)?;
        Ok((self.tree.child(dir, name).ok_or(Errno::NOENT)?, path))
    }

    fn change_at(&mut self, step: u64, change: Change, path: Arc<str>, path_to: Option<Arc<str>>) {
        self.tree.apply(&change, crate::change::Fate::Kept);
        self.record.add_change(step, change, path, path_to);
    }

    fn free_bytes(&self) -> Option<u64> {
        self.capacity_bytes.map(|capacity_bytes| capacity_bytes.saturating_sub(self.tree.used_bytes()))
    }

    /// How many of these bytes there is room for.
    fn fitting_bytes(&self, inode: u64, offset: u64, length: usize) -> usize {
        let (Some(free_bytes), Some(contents)) = (self.free_bytes(), self.tree.contents(inode)) else { return length };
        let mut fitting = length as u64;
        while fitting > 0 && contents.missing_bytes(offset, fitting) > free_bytes {
            // Gives up the last block, then the one before it.
            fitting = ((offset + fitting - 1) / 4096 * 4096).saturating_sub(offset).min(fitting - 1);
        }
        fitting as usize
    }

    fn writes_failed(&mut self, scope: Scope) {
        self.writes_failed = true;
        let struck: Vec<u64> = match scope {
            Scope::Everything => self.dirty.drain().collect(),
            Scope::Node(inode) | Scope::Contents(inode) => {
                self.dirty.remove(&inode);
                vec![inode]
            }
        };
        for inode in struck {
            self.errors.entry(inode).or_default().add();
        }
        self.disk_errors.add();
    }

    /// True if the handle had an error to hear of: of its file, or of the disk.
    fn tell_error(&mut self, number: u64, of_disk: bool) -> bool {
        let Some(open) = self.opens.get_mut(&number) else { return false };
        if of_disk {
            self.disk_errors.tell(&mut open.disk_errors)
        } else {
            self.errors.entry(open.inode).or_default().tell(&mut open.node_errors)
        }
    }

    fn close(&mut self, number: u64) {
        let Some(open) = self.opens.remove(&number) else { return };
        if self.locks.get(&open.inode) == Some(&number) {
            self.locks.remove(&open.inode);
        }
        let left = self.openings.get_mut(&open.inode).expect("counted when it was opened");
        *left -= 1;
        if *left == 0 {
            self.openings.remove(&open.inode);
            self.errors.remove(&open.inode);
            self.forget_if_unnamed(open.inode);
        }
    }

    fn forget_if_unnamed(&mut self, inode: u64) {
        let is_unnamed = self.tree.get(inode).is_some_and(|node| node.links == 0);
        if is_unnamed && !self.openings.contains_key(&inode) {
            self.tree.forget(inode);
            self.dirty.remove(&inode);
        }
    }
}

fn child_path(dir: &str, name: &[u8]) -> Arc<str> {
    format!("{}/{}", dir.trim_end_matches('/'), name.escape_ascii()).into()
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
        let (inode, usage) = (open.inode, open.usage);
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
        Ok(contents.read(&mut buffer[..length], offset))
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
        !self.lock_inner().barrier_loses_errors
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
        if !turn.inner.writes_failed {
            return Ok(()); // The cache shows what is, or will be, on the disk.
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
