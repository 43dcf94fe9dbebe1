//! A layer under extraction: its folder, and the state from which a cut extraction goes on. Bytes: `docs/formats/partial.md`.
//!
//! R1  A checkpoint is written only after a barrier over everything that it speaks of, and over its own file's name.
//! R2  The last valid checkpoint is never overwritten: two files take turns, and the higher number wins.
//! R3  After a failed barrier nothing of this folder is believed, whatever its checkpoints say: it goes to the trash.
//! R4  A checkpoint stays until the record of its layer is durable, so that a cut in the barrier of its commit costs no more
//!     than any other. It is removed before the layer gets its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use baleen_oci::Digest;

use crate::disk::{Access, Disk, Handle, NodeKind, WriteBack, read_file};
use crate::error::{IoContext, StoreError};
use crate::layout::{exists, is_missing, partial_name};
use crate::mutation::{self, Mutation};
use crate::store::{Shared, Store};

/// The longest state that a checkpoint can hold, in bytes.
pub const CHECKPOINT_STATE_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"BALEENCP";
const VERSION: u32 = 1;
/// Bytes before the checksum.
const CHECKED: usize = 32;
/// Bytes before the state.
const HEADER: usize = CHECKED + 32;
/// The two files that take turns.
const SLOTS: [&[u8]; 2] = [b"checkpoint-0", b"checkpoint-1"];

/// A layer under extraction in `partial/<blob>/`. Dropping it gives up what was extracted; [`Partial::keep`] does not.
pub struct Partial {
    pub(crate) inner: Arc<Inner>,
    resumed: Option<Checkpoint>,
    kept: bool,
}

/// Saves checkpoints of one layer, from whichever thread extracts it. It may outlive its [`Partial`] only while that
/// thread ends: what it saves after a `keep` races with the next attempt.
#[derive(Clone)]
pub struct Checkpoints(Arc<Inner>);

/// What was last made durable of a layer under extraction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bytes on disk of what it speaks of, as the extraction counted them.
    pub tree_bytes: u64,
    /// The extraction's own state; the store does not look into it.
    pub state: Vec<u8>,
    number: u64,
}

pub(crate) struct Inner {
    store: Store,
    pub(crate) blob: Digest,
    pub(crate) dir: Handle,
    /// Opened before the first write, and shared with nobody (T2).
    pub(crate) barrier: Barrier,
    /// The number of the last checkpoint, and its files while they are open.
    saved: Mutex<Saved>,
}

#[derive(Default)]
struct Saved {
    number: u64,
    slots: Option<[Handle; 2]>,
}

/// The descriptor that a barrier uses, with what is needed to judge it.
pub(crate) struct Barrier {
    pub(crate) handle: Handle,
    /// Orders descriptors by the time at which they were opened.
    pub(crate) opened: u64,
    pub(crate) failed_barriers: u64,
}

impl Barrier {
    /// Opens one; what it answers for is written after this.
    pub(crate) fn open(shared: &Shared) -> Result<Self, StoreError> {
        let failed_barriers = shared.failed_barriers.load(Ordering::SeqCst);
        let opened = OPENED.fetch_add(1, Ordering::SeqCst);
        let handle = shared.disk.root().context("open", || "the data root".to_owned())?;
        Ok(Self { handle, opened, failed_barriers })
    }
}

static OPENED: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Takes `partial/<blob>/` to extract a layer into. If an earlier attempt left a checkpoint there, its files are kept
    /// and [`Partial::checkpoint`] tells of it; else the folder is empty.
    ///
    /// # Errors
    /// `PartialInUse` while another call extracts the same blob; `LayerStored` if this blob is already the source of a
    /// layer; `WritesStopped`, `FullDisk`, `Io`.
    pub fn begin_partial(&self, blob: &Digest) -> Result<Partial, StoreError> {
        if self.writes_stopped() {
            return Err(StoreError::WritesStopped);
        }
        let shared = &self.shared;
        {
            let mut state = shared.state();
            while state.all_reserved {
                state = shared.wait(state);
            }
            // A record names `partial/<blob>` as the place of its layer until the rename is known durable, so that
            // name may never hold anything else while the record lives.
            if let Some(fact) = state.facts.layer_of_blob(blob) {
                return Err(StoreError::LayerStored { blob: *blob, stored: Box::new(fact.key.clone()) });
            }
            if !state.partials.insert(*blob) {
                return Err(StoreError::PartialInUse { blob: *blob });
            }
        }
        let taken = self.take_partial(blob);
        if taken.is_err() {
            shared.state().partials.remove(blob);
        }
        taken
    }

    fn take_partial(&self, blob: &Digest) -> Result<Partial, StoreError> {
        let shared = &self.shared;
        let (disk, name) = (&shared.disk, partial_name(blob));
        let path = || format!("partial/{blob}");
        let barrier = Barrier::open(shared)?;
        if exists(disk.as_ref(), &shared.layout.partial, &name).context("look up", path)? {
            if let Some((dir, resumed)) = resume(disk.as_ref(), &shared.layout.partial, &name).context("read", path)? {
                let saved = Saved { number: resumed.number, slots: None };
                return Ok(self.partial(blob, dir, barrier, saved, Some(resumed)));
            }
            self.to_trash(&shared.layout.partial, &name)?;
        }
        disk.create_dir(&shared.layout.partial, &name, 0o700).context("create", path)?;
        let dir = disk.open_dir(&shared.layout.partial, &name).context("open", path)?;
        Ok(self.partial(blob, dir, barrier, Saved::default(), None))
    }

    fn partial(
        &self,
        blob: &Digest,
        dir: Handle,
        barrier: Barrier,
        saved: Saved,
        resumed: Option<Checkpoint>,
    ) -> Partial {
        let inner = Inner { store: self.clone(), blob: *blob, dir, barrier, saved: Mutex::new(saved) };
        Partial { inner: Arc::new(inner), resumed, kept: false }
    }
}

impl Partial {
    /// The blob that is unpacked here.
    pub fn blob(&self) -> &Digest {
        &self.inner.blob
    }

    /// The folder: `fs` and `recipe` are made in it.
    pub fn dir(&self) -> &Handle {
        &self.inner.dir
    }

    /// The checkpoint at which an earlier attempt was cut. What was written after it may be there in any part, or not.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.resumed.as_ref()
    }

    /// Saves checkpoints of this layer.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints(Arc::clone(&self.inner))
    }

    /// Gives up what an earlier attempt left, and goes on with an empty folder.
    ///
    /// # Errors
    /// `FullDisk`, `Io`; `WritesStopped`.
    pub fn start_over(self) -> Result<Self, StoreError> {
        let (store, blob) = (self.inner.store.clone(), self.inner.blob);
        drop(self);
        store.begin_partial(&blob)
    }

    /// Moves everything but the file `keep` and the checkpoint to the trash: a layer is extracted once more from what
    /// was kept of its bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn clear_but(&self, keep: &[u8]) -> Result<(), StoreError> {
        let (store, dir) = (&self.inner.store, &self.inner.dir);
        for entry in store.shared.disk.read_dir(dir).context("list", || format!("partial/{}", self.inner.blob))? {
            if entry.name != keep && !SLOTS.contains(&entry.name.as_slice()) {
                store.to_trash(dir, &entry.name)?;
            }
        }
        Ok(())
    }

    /// Lets go of the layer for now: a later [`Store::begin_partial`] goes on from the last checkpoint. Without one, and
    /// after a failed barrier (R3), what was extracted is given up. Every thread that extracted has ended.
    pub fn keep(mut self) {
        let saved = self.inner.saved.lock().unwrap_or_else(PoisonError::into_inner).number > 0;
        self.kept = saved && !self.inner.barrier_failed_since();
    }

    /// Keeps the folder from the trash: a record may name it.
    pub(crate) fn leave_in_place(&mut self) {
        self.kept = true;
    }

    /// Removes the checkpoints of a layer whose record is durable (R4).
    pub(crate) fn remove_checkpoints(&self) -> Result<(), StoreError> {
        *self.inner.saved.lock().unwrap_or_else(PoisonError::into_inner) = Saved::default();
        let path = || format!("partial/{}/checkpoint", self.inner.blob);
        remove_slots(self.inner.store.shared.disk.as_ref(), &self.inner.dir).context("remove", path).map(drop)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let shared = &self.inner.store.shared;
        if !self.kept {
            // What cannot be moved now is moved, or resumed, by the next opening.
            if let Err(error) = self.inner.store.to_trash(&shared.layout.partial, &partial_name(&self.inner.blob)) {
                tracing::debug!(error = %error, digest = %self.inner.blob, "a partial layer stays until the next start");
            }
        }
        shared.state().partials.remove(&self.inner.blob);
    }
}

impl Checkpoints {
    /// Makes everything that was written in the folder so far durable, and then `state`, in place of the last one.
    /// `tree_bytes` tells how much that is on disk: what is bounded in abandoned layers.
    ///
    /// # Durability
    /// Durable on `Ok`. After an error the last checkpoint holds, but for `StagingDropped`: then there is none.
    /// # Errors
    /// `StagingDropped` if the barrier failed, or another one since this layer was begun; `TooLarge`, `FullDisk`, `Io`.
    pub fn save(&self, state: &[u8], tree_bytes: u64) -> Result<(), StoreError> {
        let inner = &self.0;
        if state.len() > CHECKPOINT_STATE_BYTES_MAX {
            let limit_bytes = CHECKPOINT_STATE_BYTES_MAX;
            return Err(StoreError::TooLarge { what: "the state of a checkpoint", limit_bytes });
        }
        let path = || format!("partial/{}/checkpoint", inner.blob);
        let disk = inner.store.shared.disk.as_ref();
        let mut saved = inner.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.slots.is_none() {
            // Their names become durable by the barrier below.
            saved.slots = Some([inner.slot(0)?, inner.slot(1)?]);
        }
        if !mutation::is(Mutation::CheckpointBeforeData)
            && let Err(source) = barrier(disk, &[&inner.dir], &inner.barrier.handle)
        {
            return Err(inner.store.barrier_failed(source));
        }
        if inner.barrier_failed_since() {
            return Err(StoreError::StagingDropped);
        }
        let number = saved.number + 1;
        let bytes = encode(&Checkpoint { tree_bytes, state: state.to_vec(), number });
        let slots = saved.slots.as_ref().expect("opened above");
        let slot = &slots[(number % 2) as usize];
        disk.set_len(slot, bytes.len() as u64).context("write", path)?;
        disk.write_at(slot, &bytes, 0).context("write", path)?;
        disk.sync_data(slot).context("sync", path)?;
        saved.number = number;
        Ok(())
    }

    /// Removes the checkpoint, so that a cut from here on starts the layer anew: before something that it speaks of is
    /// removed or replaced.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `Io`.
    pub fn clear(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        let disk = inner.store.shared.disk.as_ref();
        let path = || format!("partial/{}/checkpoint", inner.blob);
        let mut saved = inner.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = Saved::default();
        match remove_slots(disk, &inner.dir).context("remove", path)? {
            true => disk.sync(&inner.dir).context("sync the name of", path),
            false => Ok(()),
        }
    }
}

impl Inner {
    fn barrier_failed_since(&self) -> bool {
        self.store.shared.failed_barriers.load(Ordering::SeqCst) > self.barrier.failed_barriers
    }

    /// Opens or makes one of the two files.
    fn slot(&self, index: usize) -> Result<Handle, StoreError> {
        let disk = self.store.shared.disk.as_ref();
        let path = || format!("partial/{}/checkpoint", self.blob);
        match disk.open_file(&self.dir, SLOTS[index], Access::ReadWrite) {
            Err(error) if is_missing(&error) => {
                disk.create_file(&self.dir, SLOTS[index], 0o600).context("create", path)
            }
            other => other.context("open", path),
        }
    }
}

/// Removes the checkpoints in the folder of a layer; tells whether there was one.
pub(crate) fn remove_slots(disk: &dyn Disk, dir: &Handle) -> std::io::Result<bool> {
    let mut removed = false;
    for slot in SLOTS {
        match disk.remove_file(dir, slot) {
            Err(error) if is_missing(&error) => {}
            other => {
                other?;
                removed = true;
            }
        }
    }
    Ok(removed)
}

/// Whether the folder `name` in `partial/` has a checkpoint from which a pull can go on, and how much it holds on disk.
pub(crate) fn kept_bytes(disk: &dyn Disk, partial: &Handle, name: &[u8]) -> std::io::Result<Option<u64>> {
    Ok(resume(disk, partial, name)?.map(|(_, checkpoint)| checkpoint.tree_bytes))
}

fn resume(disk: &dyn Disk, partial: &Handle, name: &[u8]) -> std::io::Result<Option<(Handle, Checkpoint)>> {
    let dir = match disk.open_dir(partial, name) {
        // Something else than a folder, or one that was given up meanwhile.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ENOENT | libc::ELOOP)) => {
            return Ok(None);
        }
        other => other?,
    };
    let mut best: Option<Checkpoint> = None;
    for slot in SLOTS {
        let file = match disk.open_file(&dir, slot, Access::Read) {
            Err(error) if is_missing(&error) => continue,
            other => other?,
        };
        let limit_bytes = (HEADER + CHECKPOINT_STATE_BYTES_MAX) as u64;
        if disk.metadata(&file)?.size_bytes > limit_bytes {
            continue;
        }
        let found = decode(&read_file(disk, &file, limit_bytes)?);
        if let Some(found) = found
            && best.as_ref().is_none_or(|best| best.number < found.number)
        {
            best = Some(found);
        }
    }
    Ok(best.map(|checkpoint| (dir, checkpoint)))
}

fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + checkpoint.state.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(checkpoint.state.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&checkpoint.number.to_le_bytes());
    bytes.extend_from_slice(&checkpoint.tree_bytes.to_le_bytes());
    let checksum = checksum(&bytes, &checkpoint.state);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes.extend_from_slice(&checkpoint.state);
    bytes
}

/// Decodes a checkpoint; `None` for one that is torn, of another version, or none at all: the layer starts anew.
fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (checked, rest) = bytes.split_at_checked(CHECKED)?;
    let (found, state) = rest.split_at_checked(HEADER - CHECKED)?;
    let number_at = |offset: usize| checked.get(offset..offset + 8)?.try_into().ok().map(u64::from_le_bytes);
    let short_at = |offset: usize| checked.get(offset..offset + 4)?.try_into().ok().map(u32::from_le_bytes);
    let whole = checked[..8] == MAGIC
        && short_at(8)? == VERSION
        && short_at(12)? as usize == state.len()
        && checksum(checked, state).as_bytes() == found;
    whole.then_some(Checkpoint { number: number_at(16)?, tree_bytes: number_at(24)?, state: state.to_vec() })
}

fn checksum(checked: &[u8], state: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(checked).update(state);
    hasher.finalize()
}

/// One `syncfs`, on kernels that lose its errors after the errors of each file below `dirs` were asked for.
pub(crate) fn barrier(disk: &dyn Disk, dirs: &[&Handle], opened_before_writing: &Handle) -> std::io::Result<()> {
    if !disk.barrier_reports_every_error() {
        for dir in dirs {
            for_each_node(disk, dir, &mut |node, kind| match kind {
                NodeKind::Directory => Ok(()),
                _ => disk.write_back(node, 0, 0, WriteBack::Wait),
            })?;
            disk.sync(dir)?;
        }
    }
    if mutation::is(Mutation::DescriptorLate) {
        return disk.barrier(&disk.root()?);
    }
    disk.barrier(opened_before_writing)
}

/// `fsync` of every file and directory below `dir`, children first.
pub(crate) fn sync_tree(disk: &dyn Disk, dir: &Handle) -> std::io::Result<()> {
    for_each_node(disk, dir, &mut |node, _| disk.sync(node))?;
    disk.sync(dir)
}

type Visit<'a> = &'a mut dyn FnMut(&Handle, NodeKind) -> std::io::Result<()>;

/// Visits every regular file below `dir`, and each directory but `dir` after its content. The names and attributes of
/// other nodes become durable with their directory.
fn for_each_node(disk: &dyn Disk, dir: &Handle, visit: Visit<'_>) -> std::io::Result<()> {
    for entry in disk.read_dir(dir)? {
        match entry.kind {
            NodeKind::Directory => {
                let inner = disk.open_dir(dir, &entry.name)?;
                for_each_node(disk, &inner, visit)?;
                visit(&inner, entry.kind)?;
            }
            NodeKind::File => {
                visit(&disk.open_file(dir, &entry.name, Access::Read)?, entry.kind)?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_each_changed_or_missing_byte_is_refused() {
        let checkpoint = Checkpoint { tree_bytes: 1 << 40, state: b"where it was".to_vec(), number: 7 };
        let bytes = encode(&checkpoint);
        assert_eq!(decode(&bytes), Some(checkpoint));
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert_eq!(decode(&changed), None, "byte {index}");
            assert_eq!(decode(&bytes[..index]), None, "cut at {index}");
        }
    }
}
