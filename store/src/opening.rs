//! Opening: the final facts from the whole log first, then the tree once; never record by record.
//!
//! O1  A store of a newer format, or a directory that is none, is refused before anything is written.
//! O2  A live object that is still where it was staged goes into place. If something stands there, that is older: its
//!     removal was recorded before this object was, and only its rename is lost. It goes to the trash.
//! O3  What no record names goes to the trash: it was never acknowledged, or its removal was.
//! O4  Work depends on what was in flight: directories are listed, and nothing below an object is opened.
//! O5  A layer that was being fetched stays if a pull wants it and it has a checkpoint; else it goes to the trash.
//! O6  What is in `volumes/` is users' data: what no record names stays there, and is only told. A volume whose removal is the
//!     last thing recorded goes to the trash: an answered removal has freed its name durably, this one was cut before.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};

use baleen_oci::Digest;

use crate::disk::{Access, Disk, Handle, NodeKind};
use crate::error::{IoContext, StoreError};
use crate::facts::{Facts, Record};
use crate::format;
use crate::group::LogQueue;
use crate::layout::{DIRECTORIES, Layout, Object, exists, is_missing, partial_blob};
use crate::mutation::{self, Mutation};
use crate::partial::{kept_bytes, remove_slots};
use crate::salvage::{Lost, lost_format, restore_format, salvage};
use crate::second_copy::SecondCopy;
use crate::store::{Shared, State, Store};
use crate::trash::{Aside, move_aside};
use crate::wal::{Purpose, Replayed, StoreId, Wal};

/// What an opening found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Whether the store was made by this opening.
    pub created: bool,
    /// Whether it had been closed in order.
    pub clean: bool,
    /// Objects that were recorded and now got their names.
    pub rolled_forward: Vec<String>,
    /// Paths without a record that went to the trash.
    pub discarded: Vec<String>,
    /// Layers that were cut while they were fetched, and of which a pull goes on from a checkpoint.
    pub resumable: Vec<String>,
    /// Names in `volumes/` that no record explains. They are left alone: whose they are is for a person to say.
    pub foreign_volumes: Vec<String>,
    /// Objects that are recorded and not there: damage. Layers and blobs among them are forgotten, so that a pull
    /// fetches them again.
    pub missing: Vec<String>,
    /// What was wrong with `FORMAT` or the log and how far the store is known again: damage. What was acknowledged may be
    /// lost, and each line says what.
    pub damage: Vec<String>,
}

/// Whether a data root holds nothing but what the making of a store leaves that was cut before its end: the next opening makes it.
/// Nothing is written.
///
/// # Errors
/// `NewerFormat`, `Io`.
pub fn was_never_finished(disk: &dyn Disk) -> Result<bool, StoreError> {
    let root = disk.root().context("open", || "the data root".to_owned())?;
    match format::read(disk, &root) {
        Ok(None) => {}
        Ok(Some(_)) | Err(StoreError::Damaged { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    match (lost_format(disk, &root, true)?, check_empty(disk, &root)) {
        (Lost::Never, Ok(())) => Ok(true),
        (Lost::Store(_), _) | (_, Err(StoreError::NotAStore { .. })) => Ok(false),
        (_, Err(error)) => Err(error),
    }
}

impl Store {
    /// Opens the store on `disk`, or makes one in an empty directory. `new_id` identifies a store that is made: random
    /// bytes, unique to it.
    ///
    /// # Durability
    /// On `Ok` everything that was ever acknowledged is in place and durable.
    /// # Errors
    /// `InUse`, `NewerFormat`, `NotAStore`, `SeveralMounts`: nothing was changed. `FullDisk`, `Io`. A damaged log is none:
    /// the store opens with what is known ([`Opened::damage`]).
    pub fn open(disk: Arc<dyn Disk>, new_id: [u8; 16]) -> Result<(Self, Opened), StoreError> {
        let root = disk.root().context("open", || "the data root".to_owned())?;
        let mut opened = Opened::default();
        let (found, format_lost) = match format::read(disk.as_ref(), &root) {
            Err(StoreError::Damaged { .. }) => (lost_format(disk.as_ref(), &root, false)?, true),
            Ok(None) => (lost_format(disk.as_ref(), &root, true)?, true),
            other => (Lost::Store(other?), false),
        };
        if matches!(found, Lost::Never) {
            check_empty(disk.as_ref(), &root)?;
        }
        let lock = take_lock(disk.as_ref(), &root)?;
        let store_id = match found {
            Lost::Store(store_id) => store_id.unwrap_or(new_id),
            Lost::Never => {
                opened.created = true;
                create(disk.as_ref(), &root, new_id)?
            }
        };
        if format_lost && !opened.created {
            restore_format(disk.as_ref(), &root, store_id)?;
            opened.damage.push("FORMAT was lost or damaged: it is written anew from the log".to_owned());
        }
        disk.set_mode(&root, 0o700).context("set the mode of", || "the data root".to_owned())?;
        let layout = match Layout::open(disk.as_ref(), root) {
            Err(StoreError::Io { source, path, .. }) if is_missing(&source) => {
                let root = disk.root().context("open", || "the data root".to_owned())?;
                Layout::create(disk.as_ref(), &root)?;
                Layout::sync(disk.as_ref(), &root)?;
                opened.damage.push(format!("the directory {path} was lost: it is made anew, empty"));
                Layout::open(disk.as_ref(), root)?
            }
            other => other?,
        };
        let wal_dir = disk.open_dir(&layout.root, b"wal").context("open", || "wal".to_owned())?;
        // The creation may have been killed before the name of `FORMAT` was synced, and from here on records follow. Every
        // opening since leaves a spare segment.
        if !opened.created
            && !exists(disk.as_ref(), &wal_dir, b"spare").context("look up", || "wal/spare".to_owned())?
        {
            disk.sync(&layout.root).context("sync", || "the data root".to_owned())?;
        }
        let known_through = SecondCopy::known_through(disk.as_ref(), &layout.root, store_id);
        let (wal, replayed) = match Wal::open(disk.clone(), wal_dir, store_id, known_through) {
            Err(StoreError::Damaged { what }) => {
                tracing::error!(what, "the log is damaged: the store is gathered anew from what can be read");
                opened.damage.extend(salvage(&disk, &layout, store_id)?);
                let wal_dir = disk.open_dir(&layout.root, b"wal").context("open", || "wal".to_owned())?;
                Wal::open(disk.clone(), wal_dir, store_id, known_through)?
            }
            other => other?,
        };
        opened.clean = replayed.clean || opened.created;
        let aside = Aside::new(replayed.opened);
        let mut missing = Vec::new();
        if !opened.clean {
            missing = reconcile(disk.as_ref(), &layout, &replayed, &aside, &mut opened)?;
        }
        let state = State { facts: replayed.facts, ..State::default() };
        let store = Self {
            shared: Arc::new(Shared {
                disk,
                layout,
                log: LogQueue::new(wal),
                state: Mutex::new(state),
                released: Condvar::new(),
                opened: replayed.opened,
                counter: AtomicU64::new(0),
                aside,
                emptying: Mutex::new(()),
                failed_barriers: AtomicU64::new(0),
                copied: Mutex::new(known_through),
                _lock: lock,
            }),
        };
        store.forget_missing(missing)?;
        Ok((store, opened))
    }

    /// Makes every name durable, and notes in the log that nothing is in flight. The last act of an owner; later changes are refused.
    ///
    /// # Errors
    /// `WritesStopped`, `Io`: the next opening then takes it for a power cut, and that is always right.
    pub fn close(&self) -> Result<(), StoreError> {
        let _all = self.shared.reserve_all();
        let shared = &self.shared;
        if self.writes_stopped() {
            return Err(StoreError::WritesStopped);
        }
        // What follows `Closed` is not reconciled, so the names that records have given are durable before it: the log's own sync
        // need not reach them.
        shared.disk.barrier(&shared.layout.root).context("sync", || "the data root".to_owned())?;
        let closed = self.shared.log.append(&self.shared, vec![Record::Closed], Purpose::Remove);
        self.shared.log.wal().stop();
        closed
    }

    /// Forgets layers and blobs whose folder is lost, so that the next pull fetches them.
    fn forget_missing(&self, missing: Vec<Object>) -> Result<(), StoreError> {
        let records: Vec<Record> = missing
            .into_iter()
            .filter_map(|object| match object {
                Object::Blob(digest) => Some(Record::BlobRemoved(digest)),
                Object::Layer(key) => Some(Record::LayerRemoved(key)),
                Object::Container(_) | Object::Volume(_) => None,
            })
            .collect();
        for batch in records.chunks(256) {
            self.shared.log.append(&self.shared, batch.to_vec(), Purpose::Remove)?;
        }
        Ok(())
    }
}

/// Refuses a directory that has anything but what a cut creation of a store leaves (O1).
fn check_empty(disk: &dyn Disk, root: &Handle) -> Result<(), StoreError> {
    for entry in disk.read_dir(root).context("list", || "the data root".to_owned())? {
        let ours = DIRECTORIES.iter().any(|(name, _)| *name == entry.name);
        let found = || String::from_utf8_lossy(&entry.name).into_owned();
        if !ours && !matches!(&entry.name[..], b"LOCK" | b"FORMAT.new" | b"lost+found") {
            return Err(StoreError::NotAStore { found: found() });
        }
        // `FORMAT` is written last, so nothing can have been stored yet. Else it was lost, and a person must look.
        if ours && !matches!(&entry.name[..], b"wal" | b"blobs") {
            let dir = disk.open_dir(root, &entry.name).context("open", found)?;
            if let Some(inner) = disk.read_dir(&dir).context("list", found)?.first() {
                let found = format!("{}/{} without FORMAT", found(), String::from_utf8_lossy(&inner.name));
                return Err(StoreError::NotAStore { found });
            }
        }
    }
    Ok(())
}

fn take_lock(disk: &dyn Disk, root: &Handle) -> Result<Handle, StoreError> {
    let path = || "LOCK".to_owned();
    let lock = match disk.create_file(root, b"LOCK", 0o600) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => disk.open_file(root, b"LOCK", Access::ReadWrite),
        other => other,
    };
    let lock = lock.context("open", path)?;
    match disk.lock(&lock) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Err(StoreError::InUse),
        other => other.context("lock", path).map(|()| lock),
    }
}

/// Makes a store in an empty directory; `FORMAT` comes last, so that a store with it is whole.
fn create(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> Result<StoreId, StoreError> {
    Layout::create(disk, root)?;
    let wal = disk.open_dir(root, b"wal").context("open", || "wal".to_owned())?;
    for entry in disk.read_dir(&wal).context("list", || "wal".to_owned())? {
        // Of a creation that was cut, under another id.
        disk.remove_file(&wal, &entry.name).context("remove", || "wal".to_owned())?;
    }
    Wal::create(disk, &wal, store_id)?;
    Layout::sync(disk, root)?;
    format::write(disk, root, store_id)?;
    Ok(store_id)
}

/// Brings the tree after the facts (O2, O3); gives the objects that are not there.
fn reconcile(
    disk: &dyn Disk,
    layout: &Layout,
    replayed: &Replayed,
    aside: &Aside,
    opened: &mut Opened,
) -> Result<Vec<Object>, StoreError> {
    let facts = &replayed.facts;
    if mutation::is(Mutation::StagingWiped) {
        discard_staged(disk, layout, aside, opened)?;
        discard_partial(disk, layout, facts, aside, opened)?;
    }
    for (from, name, object) in staged_by_live_records(disk, layout, facts)? {
        let (place, target) = layout.place(&object);
        if exists(disk, place, &target).context("look up", || object.path())? {
            move_aside(disk, place, &target, &layout.trash, "trash", aside)?;
        }
        if matches!(object, Object::Layer(_)) {
            let dir = disk.open_dir(&from, &name).context("open", || object.path())?;
            remove_slots(disk, &dir).context("remove a checkpoint of", || object.path())?;
        }
        disk.rename(&from, &name, place, &target).context("rename", || object.path())?;
        opened.rolled_forward.push(object.path());
    }
    discard_staged(disk, layout, aside, opened)?;
    discard_partial(disk, layout, facts, aside, opened)?;
    let mut missing = Vec::new();
    let blobs = facts.blobs.keys().map(|digest| Object::Blob(*digest));
    let layers = facts.layers.keys().map(|key| Object::Layer(key.clone()));
    let containers = facts.containers.keys().map(|id| Object::Container(id.clone()));
    let volumes = facts.volumes.keys().map(|name| Object::Volume(name.clone()));
    let live: Vec<Object> = blobs.chain(layers).chain(containers).chain(volumes).collect();
    for (dir, prefix) in [
        (&layout.blobs_sha256, "blobs/sha256"),
        (&layout.blobs_sha512, "blobs/sha512"),
        (&layout.layers, "layers"),
        (&layout.containers, "containers"),
        (&layout.volumes, "volumes"),
    ] {
        let mut names: std::collections::BTreeSet<Vec<u8>> =
            disk.read_dir(dir).context("list", || prefix.to_owned())?.into_iter().map(|entry| entry.name).collect();
        for object in live.iter().filter(|object| object.path().rsplit_once('/').is_some_and(|(dir, _)| dir == prefix))
        {
            if !names.remove(&layout.place(object).1) {
                missing.push(object.clone());
                opened.missing.push(object.path());
            }
        }
        for name in names {
            if prefix == "volumes" && !is_removed_volume(disk, dir, &name, replayed)? {
                opened.foreign_volumes.push(String::from_utf8_lossy(&name).into_owned());
                continue;
            }
            move_aside(disk, dir, &name, &layout.trash, "trash", aside)?;
            opened.discarded.push(format!("{prefix}/{}", String::from_utf8_lossy(&name)));
        }
    }
    Ok(missing)
}

/// Whether a folder in `volumes/` is one that a removal gave up whose rename is lost (O6).
fn is_removed_volume(disk: &dyn Disk, dir: &Handle, name: &[u8], replayed: &Replayed) -> Result<bool, StoreError> {
    let removed = std::str::from_utf8(name).is_ok_and(|name| replayed.removed_volumes.contains(name));
    let path = || format!("volumes/{}", String::from_utf8_lossy(name));
    if !removed || disk.metadata_at(dir, name).context("look up", path)?.kind != NodeKind::Directory {
        return Ok(false);
    }
    let volume = disk.open_dir(dir, name).context("open", path)?;
    exists(disk, &volume, b"volume.json").context("look up", path)
}

/// Empties `staging/`. Name by name and never a transaction's folder as a whole: the rename that took a live object out of
/// it may not be durable, and then a cut would bring it back to where the folder went.
fn discard_staged(disk: &dyn Disk, layout: &Layout, aside: &Aside, opened: &mut Opened) -> Result<(), StoreError> {
    for transaction in disk.read_dir(&layout.staging).context("list", || "staging".to_owned())? {
        let path = || format!("staging/{}", String::from_utf8_lossy(&transaction.name));
        if transaction.kind == NodeKind::Directory {
            let dir = disk.open_dir(&layout.staging, &transaction.name).context("open", path)?;
            for entry in disk.read_dir(&dir).context("list", path)? {
                move_aside(disk, &dir, &entry.name, &layout.trash, "trash", aside)?;
                opened.discarded.push(format!("{}/{}", path(), String::from_utf8_lossy(&entry.name)));
            }
            disk.remove_dir(&layout.staging, &transaction.name).context("remove", path)?;
        } else {
            move_aside(disk, &layout.staging, &transaction.name, &layout.trash, "trash", aside)?;
            opened.discarded.push(path());
        }
    }
    Ok(())
}

/// Empties `partial/` but for what a pull goes on from (O5).
fn discard_partial(
    disk: &dyn Disk,
    layout: &Layout,
    facts: &Facts,
    aside: &Aside,
    opened: &mut Opened,
) -> Result<(), StoreError> {
    let wanted = facts.reachable().partials;
    for entry in disk.read_dir(&layout.partial).context("list", || "partial".to_owned())? {
        let path = || format!("partial/{}", String::from_utf8_lossy(&entry.name));
        let is_wanted = partial_blob(&entry.name).is_some_and(|blob| wanted.contains(&blob));
        if is_wanted && kept_bytes(disk, &layout.partial, &entry.name).context("read", path)?.is_some() {
            opened.resumable.push(path());
        } else {
            move_aside(disk, &layout.partial, &entry.name, &layout.trash, "trash", aside)?;
            opened.discarded.push(path());
        }
    }
    Ok(())
}

/// Every object that a live record names and that still stands where it was staged.
fn staged_by_live_records(
    disk: &dyn Disk,
    layout: &Layout,
    facts: &Facts,
) -> Result<Vec<(Handle, Vec<u8>, Object)>, StoreError> {
    let mut found = Vec::new();
    for transaction in disk.read_dir(&layout.staging).context("list", || "staging".to_owned())? {
        let path = || format!("staging/{}", String::from_utf8_lossy(&transaction.name));
        if transaction.kind != NodeKind::Directory {
            continue;
        }
        let dir = disk.open_dir(&layout.staging, &transaction.name).context("open", path)?;
        let blobs = facts.blobs.iter().map(|(digest, (_, by))| (Object::Blob(*digest), *by));
        let containers = facts.containers.iter().map(|(id, (_, by))| (Object::Container(id.clone()), *by));
        let volumes = facts.volumes.iter().map(|(name, (_, by))| (Object::Volume(name.clone()), *by));
        let named: Vec<Object> = blobs
            .chain(containers)
            .chain(volumes)
            .filter(|(_, by)| by.folder().as_bytes() == transaction.name)
            .map(|(object, _)| object)
            .collect();
        for entry in disk.read_dir(&dir).context("list", path)? {
            if let Some(object) = named.iter().find(|object| object.staged_name() == entry.name) {
                let from = disk.open_dir(&layout.staging, &transaction.name).context("open", path)?;
                found.push((from, entry.name, object.clone()));
            }
        }
    }
    for entry in disk.read_dir(&layout.partial).context("list", || "partial".to_owned())? {
        let blob: Option<Digest> = partial_blob(&entry.name);
        if let Some(fact) = blob.as_ref().and_then(|blob| facts.layer_of_blob(blob)) {
            let from = disk.open_dir(&layout.root, b"partial").context("open", || "partial".to_owned())?;
            found.push((from, entry.name, Object::Layer(fact.key.clone())));
        }
    }
    Ok(found)
}
