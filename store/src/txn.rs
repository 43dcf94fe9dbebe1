//! Transactions: stage, barrier, record, then publish the names.
//!
//! T1  Everything a record names is durable before the record is written: contents, attributes and names.
//! T2  The descriptor that a barrier uses was opened before the first write that it answers for (D4).
//! T3  After a failed barrier every staging of that moment is dropped: its pages may be clean yet unwritten.
//! T4  A target that stands without a live record is moved to `quarantine/` before the record is written.
//! T5  Dropping an uncommitted transaction leaves nothing reachable; what it staged goes to `trash/`.

mod volume;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use baleen_oci::Digest;

use crate::disk::{Disk, Handle};
use crate::error::{IoContext, StoreError};
use crate::facts::{BlobFact, ContainerFact, ImageFact, LayerFact, LayerKey, PullFact, Record, TagFact, TransactionId};
use crate::layout::{Object, partial_name};
use crate::mutation::{self, Mutation};
use crate::partial::{Barrier, Partial, barrier, sync_tree};
use crate::store::{Key, Lease, Store};
use crate::wal::Purpose;

/// More staged nodes than these are made durable by one `syncfs` instead of an `fsync` each.
const SYNCS_MAX: usize = 30;
/// The longest name of a tag or a container in bytes.
const NAME_BYTES_MAX: usize = 1024;

/// How staged files are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync` of each file and directory where they are few, else one `syncfs`.
    Cheapest,
    /// `fsync` of each, however many: for the one retry after a failed `syncfs`.
    EachFile,
}

/// Changes that happen together or not at all.
pub struct Txn {
    store: Store,
    id: TransactionId,
    durability: Durability,
    /// Opened before the first write (T2).
    barrier: Barrier,
    /// `staging/<id>`, once something is staged there.
    dir: Option<Handle>,
    staged: StagedNodes,
    objects: Vec<Object>,
    partials: Vec<(LayerKey, Partial)>,
    records: Vec<Record>,
    keys: BTreeSet<Key>,
    lease: Lease,
}

/// Open nodes that the barrier must reach.
#[derive(Default)]
struct StagedNodes(Vec<Handle>);

/// A directory under construction in a transaction.
pub struct StagedDir<'a> {
    disk: &'a dyn Disk,
    nodes: &'a mut StagedNodes,
    dir: Handle,
    path: String,
}

impl StagedDir<'_> {
    /// Makes a file with these contents.
    ///
    /// # Errors
    /// `FullDisk`, `Io`.
    pub fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let path = || format!("{}/{name}", self.path);
        let file = self.disk.create_file(&self.dir, name.as_bytes(), mode).context("create", path)?;
        self.disk.write_at(&file, bytes, 0).context("write", path)?;
        self.nodes.0.push(file);
        Ok(())
    }

    /// Makes an empty directory.
    ///
    /// # Errors
    /// `FullDisk`, `Io`.
    pub fn dir(&mut self, name: &str, mode: u32, uid: u32, gid: u32) -> Result<(), StoreError> {
        let path = || format!("{}/{name}", self.path);
        self.disk.create_dir(&self.dir, name.as_bytes(), mode).context("create", path)?;
        let dir = self.disk.open_dir(&self.dir, name.as_bytes()).context("open", path)?;
        if (uid, gid) != (0, 0) {
            self.disk.set_owner(&dir, uid, gid).context("set the owner of", path)?;
            self.disk.set_mode(&dir, mode).context("set the mode of", path)?;
            // Without a change after its making an empty directory has nothing that its name does not bring along.
            self.nodes.0.push(dir);
        }
        Ok(())
    }
}

impl Store {
    /// Begins a transaction.
    ///
    /// # Errors
    /// `WritesStopped`, `Io`.
    pub fn begin(&self) -> Result<Txn, StoreError> {
        self.begin_with(Durability::Cheapest)
    }

    /// Begins a transaction whose files are made durable in the given way.
    ///
    /// # Errors
    /// `WritesStopped`, `Io`.
    pub fn begin_with(&self, durability: Durability) -> Result<Txn, StoreError> {
        if self.writes_stopped() {
            return Err(StoreError::WritesStopped);
        }
        let shared = &self.shared;
        Ok(Txn {
            id: TransactionId { opened: shared.opened, counter: self.next_transaction() },
            durability,
            barrier: Barrier::open(shared)?,
            dir: None,
            staged: StagedNodes::default(),
            objects: Vec::new(),
            partials: Vec::new(),
            records: Vec::new(),
            keys: BTreeSet::new(),
            lease: self.lease(),
            store: self.clone(),
        })
    }

    /// Notes that a pull has begun, so that its layers are kept once they are stored, and its partial layers too; tells
    /// whether that was noted before: then an earlier attempt has been cut.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `LogFull`, `WritesStopped`, `Io`.
    pub fn begin_pull(&self, pull: PullFact) -> Result<bool, StoreError> {
        let _reservation = self.shared.reserve([Key::Pull(pull.manifest)].into());
        if self.shared.state().facts.pulls.get(&pull.manifest).is_some_and(|stated| stated.fact == pull) {
            return Ok(true);
        }
        self.shared.log.append(&self.shared, vec![Record::PullBegun(pull)], Purpose::Add).map(|()| false)
    }

    /// Changes the name or the desired state of a container.
    ///
    /// # Durability
    /// Durable on `Ok`. Nothing is written if nothing changes.
    /// # Errors
    /// `ContainerMissing`, `NameTaken`, `LogFull`, `WritesStopped`, `Io`.
    pub fn change_container(&self, fact: ContainerFact) -> Result<(), StoreError> {
        check_name("the container's name", &fact.name)?;
        let keys = [Key::Object(Object::Container(fact.id.clone())), Key::ContainerName(fact.name.clone())];
        let _reservation = self.shared.reserve(keys.into());
        {
            let state = self.shared.state();
            match state.facts.containers.get(&fact.id) {
                None => return Err(StoreError::ContainerMissing { container: fact.id }),
                Some((stated, _)) if stated.fact == fact => return Ok(()),
                Some(_) => check_container_name(&state.facts, &fact)?,
            }
        }
        // A stop must never meet a full disk, and a start is worth the reserve: both only change a state.
        self.shared.log.append(&self.shared, vec![Record::ContainerChanged(fact)], Purpose::Remove)
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), StoreError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(StoreError::TooLarge { what, limit_bytes: NAME_BYTES_MAX });
    }
    Ok(())
}

fn check_container_name(facts: &crate::facts::Facts, fact: &ContainerFact) -> Result<(), StoreError> {
    let other = facts.containers.values().find(|(other, _)| other.fact.name == fact.name && other.fact.id != fact.id);
    match other {
        None => Ok(()),
        Some((other, _)) => Err(StoreError::NameTaken { name: fact.name.clone(), container: other.fact.id.clone() }),
    }
}

impl Txn {
    /// Protects what the look-ups of this lease find until the transaction ends.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Stages a blob. One that the store holds whole already is only protected.
    ///
    /// # Errors
    /// `BlobCorrupt` if the bytes do not have that digest; `FullDisk`, `Io`.
    pub fn stage_blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if !digest.matches(bytes) {
            return Err(StoreError::BlobCorrupt { digest: *digest });
        }
        let object = Object::Blob(*digest);
        if self.objects.contains(&object) {
            return Ok(());
        }
        if self.lease.blob(digest).is_some() && self.store.read_blob(digest).is_ok_and(|stored| stored == bytes) {
            return Ok(());
        }
        self.lease.expect(&object);
        let name = object.staged_name();
        let path = || object.path();
        self.staging()?;
        let disk = self.store.shared.disk.clone();
        let dir = self.dir.as_ref().expect("made by the line above");
        let file = disk.create_file(dir, &name, 0o600).context("create", path)?;
        disk.write_at(&file, bytes, 0).context("write", path)?;
        self.staged.0.push(file);
        self.keys.insert(Key::Object(object.clone()));
        let fact = BlobFact { digest: *digest, size_bytes: bytes.len() as u64 };
        self.records.push(Record::BlobStored(fact, self.id));
        self.objects.push(object);
        Ok(())
    }

    /// Adopts an extracted layer. If the store got the same layer meanwhile, this copy is given up at commit.
    pub fn stage_layer(&mut self, partial: Partial, fact: LayerFact) {
        assert_eq!(*partial.blob(), fact.blob, "a layer must be recorded with the blob that it was extracted from");
        let object = Object::Layer(fact.key.clone());
        self.lease.expect(&object);
        self.keys.insert(Key::Object(object));
        self.partials.push((fact.key.clone(), partial));
        self.records.push(Record::LayerStored(fact));
    }

    /// Stages a container's folder, filled by `build`.
    ///
    /// # Errors
    /// Those of `build`; `FullDisk`, `Io`.
    pub fn stage_container(
        &mut self,
        fact: ContainerFact,
        build: impl FnOnce(&mut StagedDir<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        check_name("the container's name", &fact.name)?;
        let object = Object::Container(fact.id.clone());
        let name = object.staged_name();
        let path = || object.path();
        self.staging()?;
        let disk = self.store.shared.disk.clone();
        let dir = self.dir.as_ref().expect("made by the line above");
        disk.create_dir(dir, &name, 0o710).context("create", path)?;
        let dir = disk.open_dir(dir, &name).context("open", path)?;
        let mut staged = StagedDir { disk: disk.as_ref(), nodes: &mut self.staged, dir, path: object.path() };
        build(&mut staged)?;
        let StagedDir { dir, .. } = staged;
        self.staged.0.push(dir);
        self.keys.insert(Key::Object(object.clone()));
        self.keys.insert(Key::ContainerName(fact.name.clone()));
        self.records.push(Record::ContainerStored(fact, self.id));
        self.objects.push(object);
        Ok(())
    }

    /// Records an image. Its blobs and layers are in the store or staged here, and leased by this transaction.
    pub fn store_image(&mut self, image: ImageFact) {
        self.keys.insert(Key::Image(image.id));
        self.records.push(Record::ImageStored(image));
    }

    /// Sets a name.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn set_tag(&mut self, tag: TagFact) -> Result<(), StoreError> {
        check_name("the tag's name", &tag.name)?;
        self.keys.insert(Key::Tag(tag.name.clone()));
        self.records.push(Record::TagSet(tag));
        Ok(())
    }

    /// Removes a name.
    pub fn remove_tag(&mut self, name: &str) {
        self.keys.insert(Key::Tag(name.to_owned()));
        self.records.push(Record::TagRemoved(name.to_owned()));
    }

    /// Notes that a pull has ended: the image of this transaction keeps what it fetched.
    pub fn end_pull(&mut self, manifest: &Digest) {
        self.keys.insert(Key::Pull(*manifest));
        self.records.push(Record::PullEnded(*manifest));
    }

    /// Makes every change of this transaction visible: all of them, or none.
    ///
    /// # Durability
    /// On `Ok` the changes survive a power cut. After an error of the log (`Io`, then `WritesStopped`) they may or may
    /// not have happened, and reopening the store tells; after any other error they have not.
    /// # Errors
    /// `StagingDropped` if the barrier failed, or another one while this was staged: stage again, with
    /// [`Durability::EachFile`]. `NameTaken`, `ImageMissing` and `LayerMissing` if what the records need is not there.
    /// `LogFull`, `WritesStopped`, `FullDisk`, `Io`.
    pub fn commit(mut self) -> Result<(), StoreError> {
        if !mutation::is(Mutation::BarrierSkipped) && !mutation::is(Mutation::RecordBeforeBarrier) {
            self.barrier()?;
        }
        let shared = self.store.shared.clone();
        let reservation = shared.reserve(std::mem::take(&mut self.keys));
        self.drop_layers_stored_meanwhile();
        self.check()?;
        let mut objects = std::mem::take(&mut self.objects);
        objects.extend(self.partials.iter().map(|(key, _)| Object::Layer(key.clone())));
        for object in &objects {
            self.store.quarantine_without_record(object)?;
        }
        let adds = |record: &Record| !matches!(record, Record::TagRemoved(_) | Record::PullEnded(_));
        let purpose = if self.records.iter().any(adds) { Purpose::Add } else { Purpose::Remove };
        if !self.records.is_empty() {
            let appended = shared.log.append(&shared, std::mem::take(&mut self.records), purpose);
            if let Err(error) = appended {
                if !matches!(error, StoreError::LogFull | StoreError::TooLarge { .. }) {
                    self.leave_in_place(); // The records may be durable: what they name stays for the next opening.
                }
                return Err(error);
            }
        }
        if mutation::is(Mutation::RecordBeforeBarrier) {
            self.barrier()?;
        }
        // From here on it has happened. Renames without a sync: opening would do them again.
        let dir = self.leave_in_place();
        let published = self.publish(&objects, dir);
        if published.is_err() {
            shared.log.wal().stop(); // S4: opening brings the tree after the log.
        }
        drop(reservation);
        published
    }

    /// Makes what is staged durable (T1). With a layer among it, by one barrier for all.
    fn barrier(&mut self) -> Result<(), StoreError> {
        let shared = self.store.shared.clone();
        let (disk, staging) = (shared.disk.as_ref(), &shared.layout.staging);
        let few = self.staged.0.len() <= SYNCS_MAX;
        let synced = if self.durability == Durability::EachFile || self.partials.is_empty() && few {
            let trees = self.partials.iter().try_for_each(|(_, partial)| sync_tree(disk, partial.dir()));
            // Children first, so that no name leads to what is not there.
            let nodes = self.dir.iter().flat_map(|dir| self.staged.0.iter().chain([dir, staging]));
            let partial = (!self.partials.is_empty()).then_some(&shared.layout.partial);
            trees.and_then(|()| nodes.chain(partial).try_for_each(|node| disk.sync(node)))
        } else {
            let dirs: Vec<&Handle> = self.partials.iter().map(|(_, partial)| partial.dir()).chain(&self.dir).collect();
            // The oldest descriptor answers for the writes of all (T2): an error that it was told of before has dropped
            // everything already (T3).
            let oldest = self.barriers().min_by_key(|barrier| barrier.opened).expect("the transaction's own");
            barrier(disk, &dirs, &oldest.handle)
        };
        if let Err(source) = synced {
            return Err(self.store.barrier_failed(source));
        }
        let now = shared.failed_barriers.load(Ordering::SeqCst);
        let seen_failing = self.barriers().any(|barrier| barrier.failed_barriers < now);
        if seen_failing && (self.dir.is_some() || !self.partials.is_empty()) {
            return Err(StoreError::StagingDropped); // T3
        }
        Ok(())
    }

    fn barriers(&self) -> impl Iterator<Item = &Barrier> {
        self.partials.iter().map(|(_, partial)| &partial.inner.barrier).chain([&self.barrier])
    }

    /// Gives up copies of layers that another transaction has stored since they were staged.
    fn drop_layers_stored_meanwhile(&mut self) {
        let state = self.store.shared.state();
        let stored: Vec<LayerKey> = self
            .partials
            .iter()
            .map(|(key, _)| key)
            .filter(|key| state.facts.layers.contains_key(key) && !state.is_replaceable(key))
            .cloned()
            .collect();
        drop(state);
        self.partials.retain(|(key, _)| !stored.contains(key));
        self.records.retain(|record| !matches!(record, Record::LayerStored(fact) if stored.contains(&fact.key)));
    }

    /// Checks what the records rest on, while everything they change is reserved.
    fn check(&self) -> Result<(), StoreError> {
        let state = self.store.shared.state();
        let facts = &state.facts;
        let staged = |object: &Object| self.objects.contains(object);
        let images = |id: &baleen_oci::ImageId| {
            let here = |record: &Record| matches!(record, Record::ImageStored(image) if image.id == *id);
            facts.images.contains_key(id) || self.records.iter().any(here)
        };
        let needs_image = |id: &baleen_oci::ImageId| match images(id) {
            true => Ok(()),
            false => Err(StoreError::ImageMissing { image: id.to_string() }),
        };
        for record in &self.records {
            match record {
                Record::ImageStored(image) => {
                    for key in &image.layers {
                        let here = self.partials.iter().any(|(staged, _)| staged == key);
                        if !here && !facts.layers.contains_key(key) {
                            return Err(StoreError::LayerMissing { key: Box::new(key.clone()) });
                        }
                    }
                    for digest in [Some(image.id.0), image.manifest].into_iter().flatten() {
                        if !staged(&Object::Blob(digest)) && !facts.blobs.contains_key(&digest) {
                            return Err(StoreError::BlobMissing { digest });
                        }
                    }
                }
                Record::TagSet(tag) => needs_image(&tag.image)?,
                Record::TagRemoved(name) if !facts.tags.contains_key(name) => {
                    return Err(StoreError::TagMissing { name: name.clone() });
                }
                Record::ContainerStored(fact, _) => {
                    needs_image(&fact.image)?;
                    check_container_name(facts, fact)?;
                }
                Record::VolumeStored(fact, _) if facts.volumes.contains_key(&fact.name) => {
                    return Err(StoreError::VolumeExists { volume: fact.name.clone() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps what is staged from the trash, whatever comes: a record may name it.
    fn leave_in_place(&mut self) -> Option<Handle> {
        self.partials.iter_mut().for_each(|(_, partial)| partial.leave_in_place());
        self.dir.take()
    }

    /// Gives every object its name.
    fn publish(&mut self, objects: &[Object], staging: Option<Handle>) -> Result<(), StoreError> {
        let layout = &self.store.shared.layout;
        let disk = self.store.shared.disk.as_ref();
        for object in objects {
            let (place, name) = layout.place(object);
            let layer = self.partials.iter().find(|(key, _)| *object == Object::Layer(key.clone()));
            if let Some((_, partial)) = layer {
                partial.remove_checkpoints()?;
            }
            let renamed = match (layer, &staging) {
                (Some((_, partial)), _) => disk.rename(&layout.partial, &partial_name(partial.blob()), place, &name),
                (None, Some(dir)) => disk.rename(dir, &object.staged_name(), place, &name),
                (None, None) => Ok(()),
            };
            renamed.context("rename", || object.path())?;
        }
        if staging.is_some() {
            // Empty by now. One that stays is removed by the next opening.
            let _ = disk.remove_dir(&layout.staging, self.id.folder().as_bytes());
        }
        Ok(())
    }

    /// Makes the folder of this transaction, once.
    fn staging(&mut self) -> Result<(), StoreError> {
        if self.dir.is_none() {
            let (disk, staging) = (&self.store.shared.disk, &self.store.shared.layout.staging);
            let name = self.id.folder();
            let path = || format!("staging/{name}");
            disk.create_dir(staging, name.as_bytes(), 0o700).context("create", path)?;
            self.dir = Some(disk.open_dir(staging, name.as_bytes()).context("open", path)?);
        }
        Ok(())
    }
}

impl Store {
    /// Notes that a barrier failed: everything staged at this moment is dropped (T3).
    pub(crate) fn barrier_failed(&self, source: std::io::Error) -> StoreError {
        tracing::warn!(error = %source, "a barrier failed; everything staged is dropped");
        self.shared.failed_barriers.fetch_add(1, Ordering::SeqCst);
        StoreError::StagingDropped
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if self.dir.take().is_some() {
            // T5. What cannot be moved now is moved by the next opening.
            let staging = &self.store.shared.layout.staging;
            if let Err(error) = self.store.to_trash(staging, self.id.folder().as_bytes()) {
                tracing::debug!(error = %error, "staged files stay until the next start");
            }
        }
    }
}
