//! The simulated disk: a [`Disk`](baleen_store::Disk) in memory that knows what of it a power cut would leave.
//!
//! S1  Without faults every call does what [`SystemDisk`](baleen_store::SystemDisk) does as root on ext4, error for
//!     error; `tests/like_linux.rs` compares them.
//! S2  A call that changes or syncs something is a *step* and numbered; a call that makes durable is also a
//!     *barrier* and numbered. What it changed is recorded, and nothing reaches a crash state but by that record.
//! S3  The clock stands still and nothing here is random but by seed: one run gives one record.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::change::Change;
use crate::fault::{Fault, Operation, When};
use crate::living::Living;
use crate::random::Random;
use crate::record::{Record, Recording};
use crate::tree::{ROOT, Tree};

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
    pub(crate) inner: Arc<Mutex<Living>>,
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
        Self { inner: Arc::new(Mutex::new(Living::new(tree))) }
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.living().steps
    }

    /// Barriers so far.
    pub fn barriers(&self) -> u64 {
        self.living().barriers
    }

    /// Calls so far, those that change nothing included.
    pub fn calls(&self) -> u64 {
        self.living().calls
    }

    /// Calls of one kind so far.
    pub fn calls_of(&self, operation: Operation) -> u64 {
        self.living().calls_of.get(&operation).copied().unwrap_or_default()
    }

    /// Bytes read so far: of files below one directory of the root, and of all others.
    pub fn read_bytes(&self, directory: &str) -> (u64, u64) {
        let inner = self.living();
        let below = inner.read_bytes.get(directory).copied().unwrap_or_default();
        (below, inner.read_bytes.values().sum::<u64>() - below)
    }

    /// The numbers of the calls that were no steps: they change and sync nothing.
    pub(crate) fn other_calls(&self) -> Vec<u64> {
        self.living().other_calls.clone()
    }

    /// Makes everything durable, forgets the record and all faults, and starts every number anew at 0.
    pub fn settle(&self) {
        let mut inner = self.living();
        let tree = inner.tree.clone();
        inner.base = tree;
        inner.record = Record::default();
        (inner.steps, inner.barriers, inner.calls) = (0, 0, 0);
        inner.calls_of.clear();
        inner.read_bytes.clear();
        inner.other_calls.clear();
        inner.dirty.clear();
        inner.clear_faults();
        inner.writes_failed = false;
    }

    /// What happened since the disk was made or last settled.
    pub fn recording(&self) -> Recording {
        self.living().recording()
    }

    /// The tree as a listing, a line a node.
    pub fn describe(&self) -> String {
        self.living().tree.describe()
    }

    /// A number that differs between trees that can be told apart.
    pub fn hash(&self) -> u64 {
        let mut tree = self.living().tree.clone();
        tree.mount();
        tree.hash()
    }

    /// Lets calls fail.
    pub fn inject(&self, fault: Fault) {
        self.living().faults.push(fault);
    }

    /// Lets the call that is step `step` fail.
    pub fn fail_step(&self, step: u64, errno: Errno) {
        self.inject(Fault { when: When::Step(step), errno });
    }

    /// Lets the `n`-th call of a kind fail, counted from 0.
    pub fn fail_nth(&self, operation: Operation, n: u64, errno: Errno) {
        self.inject(Fault { when: When::Nth(operation, n), errno });
    }

    /// Lets the power go before step `step`: that call and all after it, whatever they are, end in [`PowerGone`](crate::PowerGone).
    pub fn cut_power_at(&self, step: u64) {
        self.living().power_goes_at = Some(step);
    }

    /// Ends a cut without a reboot: what was a power cut to the process was only its own end.
    pub fn restore_power(&self) {
        let mut living = self.living();
        (living.power_goes_at, living.power_is_gone) = (None, false);
    }

    /// Turns the disk read-only from step `step` on: changes end in `EROFS`, and so do syncs of what was not durable.
    pub fn read_only_from(&self, step: u64) {
        self.living().read_only_from = Some(step);
    }

    /// Lets the disk be full from step `step` on: it has then as much room as was used, so that removing makes some.
    pub fn full_from(&self, step: u64) {
        self.living().full_from = Some(step);
    }

    /// Limits the bytes that blocks, directories and inodes take; `ENOSPC` beyond. `None` lifts it.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.living().capacity_bytes = capacity_bytes;
    }

    /// Bytes that blocks, directories and inodes take.
    pub fn used_bytes(&self) -> u64 {
        self.living().tree.used_bytes()
    }

    /// Lets barrier `number` say that it was done and do nothing.
    pub fn skip_barrier(&self, number: u64) {
        self.living().skipped_barriers.insert(number);
    }

    /// Lets reads give less than was asked for, as the seed decides; `None` ends it.
    pub fn short_reads(&self, seed: Option<u64>) {
        self.living().short_reads = seed.map(Random::new);
    }

    /// Makes this the disk of a kernel before 5.17: a barrier does not tell of a write-back that failed before it.
    pub fn lose_barrier_errors(&self, lose: bool) {
        self.living().barrier_loses_errors = lose;
    }

    /// Lets `drop_cache` drop nothing: it is advice, and pages that somebody else holds stay.
    pub fn keep_cache(&self, keep: bool) {
        self.living().cache_stays = keep;
    }

    /// Errors so far that a sync, a barrier or a wait told of a write-back that had failed before it.
    pub fn old_errors_told(&self) -> u64 {
        self.living().old_errors_told
    }

    /// Takes back every fault, limit and skipped barrier. Errors that a later sync would report stay.
    pub fn clear_faults(&self) {
        self.living().clear_faults();
    }

    /// Turns over the bits of `mask` in the byte at `offset` of a file, on the disk and in the cache.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR` of the path; `EINVAL` if it is no file or ends before `offset`.
    pub fn flip_bits(&self, path: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut inner = self.living();
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

    pub(crate) fn living(&self) -> MutexGuard<'_, Living> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
