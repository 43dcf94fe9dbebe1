//! Removal and collection: what nothing needs any more goes.
//!
//! C1  Roots are image records, containers (through their images), pull records and leases. Nothing else is.
//! C2  No decision uses the wall clock: age is counted in log sequence.
//! C3  Removal is record first, then one rename; a removed object's name is free before any later record for it.
//! C4  A removal may use the log's reserve, so that a full disk never forbids it.

use std::collections::{BTreeMap, BTreeSet};

use baleen_oci::{Digest, ImageId};

use crate::error::{IoContext, StoreError};
use crate::facts::{Facts, Record};
use crate::layout::{Object, partial_blob};
use crate::partial::kept_bytes;
use crate::store::{State, Store};
use crate::wal::Purpose;

/// Pull records kept; the oldest go first.
const PULLS_MAX: usize = 16;
/// What the partial layers of pulls that were cut may hold together, as a part of the file system. Those of the pull that
/// began last are kept whatever they hold, else it would never end.
const PARTIAL_PART: u64 = 8;
/// Records that one batch of a collection may have.
const RECORDS_MAX: usize = 256;

/// What a removal or a collection has taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names that were removed, of tags.
    pub tags: Vec<String>,
    /// Images.
    pub images: Vec<ImageId>,
    /// Layers, by diff ID.
    pub layers: Vec<Digest>,
    /// Bytes of the files of those layers and blobs.
    pub bytes: u64,
}

impl Store {
    /// Removes a tag. The image stays.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `TagMissing`, `WritesStopped`, `Io`.
    pub fn remove_tag(&self, name: &str) -> Result<(), StoreError> {
        let mut txn = self.begin()?;
        txn.remove_tag(name);
        txn.commit()
    }

    /// Removes an image with all its tags, and what only it needed.
    ///
    /// # Durability
    /// Durable on `Ok`; the blocks are free once the trash is emptied.
    /// # Errors
    /// `ImageMissing`, `ImageInUse`, `WritesStopped`, `Io`.
    pub fn remove_image(&self, id: &ImageId) -> Result<Removed, StoreError> {
        let _all = self.shared.reserve_all();
        let mut records = Vec::new();
        let mut removed = Removed::default();
        {
            let facts = &self.shared.state().facts;
            if !facts.images.contains_key(id) {
                return Err(StoreError::ImageMissing { image: id.to_string() });
            }
            if let Some((used, _)) = facts.containers.values().find(|(stated, _)| stated.fact.image == *id) {
                return Err(StoreError::ImageInUse { image: id.to_string(), container: used.fact.id.clone() });
            }
            for stated in facts.tags.values().filter(|stated| stated.fact.image == *id) {
                records.push(Record::TagRemoved(stated.fact.name.clone()));
                removed.tags.push(stated.fact.name.clone());
            }
        }
        records.push(Record::ImageRemoved(*id));
        removed.images.push(*id);
        self.remove(records, removed)
    }

    /// Removes a container with its folder.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `ContainerMissing`, `WritesStopped`, `Io`.
    pub fn remove_container(&self, id: &str) -> Result<(), StoreError> {
        let _all = self.shared.reserve_all();
        if !self.shared.state().facts.containers.contains_key(id) {
            return Err(StoreError::ContainerMissing { container: id.to_owned() });
        }
        self.remove(vec![Record::ContainerRemoved(id.to_owned())], Removed::default()).map(drop)
    }

    /// Removes a volume with its data.
    ///
    /// # Durability
    /// Durable on `Ok`; the blocks are free once the trash is emptied.
    /// # Errors
    /// `VolumeMissing`, `WritesStopped`, `Io`.
    pub fn remove_volume(&self, name: &str) -> Result<(), StoreError> {
        let _all = self.shared.reserve_all();
        if !self.shared.state().facts.volumes.contains_key(name) {
            return Err(StoreError::VolumeMissing { volume: name.to_owned() });
        }
        self.remove(vec![Record::VolumeRemoved(name.to_owned())], Removed::default()).map(drop)
    }

    /// Removes what nothing needs: blobs, layers and partial layers without a root, and the oldest pull records beyond
    /// a bound: 16 of them, and an eighth of the disk for their partial layers.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `WritesStopped`, `Io`.
    pub fn collect(&self) -> Result<Removed, StoreError> {
        let _all = self.shared.reserve_all();
        let ended = {
            let partial_bytes = self.partial_bytes()?;
            let bytes_max = self.space()?.total_bytes / PARTIAL_PART;
            let state = self.shared.state();
            abandoned(&state, &partial_bytes, bytes_max).into_iter().map(Record::PullEnded).collect()
        };
        self.remove(ended, Removed::default())
    }

    /// What each partial layer with a checkpoint holds on disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn partial_bytes(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let (disk, dir) = (self.shared.disk.as_ref(), &self.shared.layout.partial);
        let mut held = BTreeMap::new();
        for entry in disk.read_dir(dir).context("list", || "partial".to_owned())? {
            let path = || format!("partial/{}", String::from_utf8_lossy(&entry.name));
            if let (Some(blob), Some(bytes)) =
                (partial_blob(&entry.name), kept_bytes(disk, dir, &entry.name).context("read", path)?)
            {
                held.insert(blob, bytes);
            }
        }
        Ok(held)
    }

    /// Gives up every pull that has not ended, then collects: what `system prune -a` asks for.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `WritesStopped`, `Io`.
    pub fn forget_pulls(&self) -> Result<Removed, StoreError> {
        let _all = self.shared.reserve_all();
        let pulls: Vec<_> =
            self.shared.state().facts.pulls.keys().map(|manifest| Record::PullEnded(*manifest)).collect();
        self.remove(pulls, Removed::default())
    }

    /// Starts the log anew from a base segment that holds the present facts.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `FullDisk`, and then nothing has changed; `WritesStopped`, `Io`.
    pub fn compact(&self) -> Result<(), StoreError> {
        let mut wal = self.shared.log.wal();
        let facts = self.shared.state().facts.clone();
        wal.compact(&facts)
    }

    /// Records these removals and those that follow from them, then moves the objects to the trash (C3). The caller has
    /// reserved everything.
    fn remove(&self, mut records: Vec<Record>, mut removed: Removed) -> Result<Removed, StoreError> {
        let (objects, partials) = {
            let state = self.shared.state();
            let mut after = state.facts.clone();
            records.iter().for_each(|record| after.apply(0, record.clone()));
            let (unreachable, objects) = unreachable(&state, &after, &mut removed);
            let gone = records.iter().filter_map(|record| match record {
                Record::ContainerRemoved(id) => Some(Object::Container(id.clone())),
                Record::VolumeRemoved(name) => Some(Object::Volume(name.clone())),
                _ => None,
            });
            let objects: Vec<Object> = gone.chain(objects).collect();
            records.extend(unreachable);
            let mut partials = after.reachable().partials;
            partials.extend(state.partials.iter().copied());
            (objects, partials)
        };
        // What was asked for is in the first batch; should the rest be cut, the next collection finds it again.
        for batch in records.chunks(RECORDS_MAX) {
            self.shared.log.append(&self.shared, batch.to_vec(), Purpose::Remove)?;
        }
        let tidied = self.remove_objects(&objects).and_then(|()| {
            let dir = &self.shared.layout.partial;
            for entry in self.shared.disk.read_dir(dir).context("list", || "partial".to_owned())? {
                if !partial_blob(&entry.name).is_some_and(|blob| partials.contains(&blob)) {
                    self.to_trash(dir, &entry.name)?;
                }
            }
            Ok(())
        });
        if tidied.is_err() {
            self.shared.log.wal().stop(); // A name is not free (C3): opening brings the tree after the log.
        }
        tidied?;
        if objects.iter().any(|object| matches!(object, Object::Volume(_))) {
            self.settle_removed_volume()?; // Before the log forgets that it was removed.
        }
        // An empty store gives back what its log took.
        let mut wal = self.shared.log.wal();
        let facts = self.shared.state().facts.clone();
        if facts.is_empty() && !wal.is_minimal()? {
            wal.compact(&facts)?;
        }
        drop(wal);
        if facts.is_empty()
            && let Err(error) = self.remove_second_copy()
        {
            tracing::debug!(error = %error, "the second copy stays until it is written again");
        }
        Ok(removed)
    }
}

/// Pulls that are given up: the oldest beyond [`PULLS_MAX`], and the oldest whose partial layers bring the sum over
/// `bytes_max`. Never one of whose layers is being extracted now.
fn abandoned(state: &State, partial_bytes: &BTreeMap<Digest, u64>, bytes_max: u64) -> Vec<Digest> {
    let mut pulls: Vec<_> = state.facts.pulls.values().collect();
    pulls.sort_unstable_by_key(|stated| std::cmp::Reverse(stated.sequence));
    let mut counted: BTreeSet<Digest> = BTreeSet::new();
    let (mut bytes, mut given_up) = (0u64, Vec::new());
    for (index, stated) in pulls.into_iter().enumerate() {
        let blobs = || stated.fact.layers.iter().map(|layer| layer.blob);
        let new = blobs().filter(|blob| counted.insert(*blob));
        bytes = bytes.saturating_add(new.filter_map(|blob| partial_bytes.get(&blob)).sum());
        let too_much = index > 0 && bytes > bytes_max && blobs().any(|blob| partial_bytes.contains_key(&blob));
        if (index >= PULLS_MAX || too_much) && !blobs().any(|blob| state.partials.contains(&blob)) {
            given_up.push(stated.fact.manifest);
        }
    }
    given_up
}

/// The records and objects of what neither `after` nor a lease needs.
fn unreachable(state: &State, after: &Facts, removed: &mut Removed) -> (Vec<Record>, Vec<Object>) {
    let mut reachable = after.reachable();
    for leased in state.leases.values() {
        reachable.blobs.extend(leased.blobs.iter().copied());
        reachable.layers.extend(leased.layers.iter().cloned());
    }
    let (mut records, mut objects) = (Vec::new(), Vec::new());
    for (digest, (stated, _)) in after.blobs.iter().filter(|(digest, _)| !reachable.blobs.contains(digest)) {
        records.push(Record::BlobRemoved(*digest));
        objects.push(Object::Blob(*digest));
        removed.bytes += stated.fact.size_bytes;
    }
    for (key, stated) in after.layers.iter().filter(|(key, _)| !reachable.layers.contains(key)) {
        records.push(Record::LayerRemoved(key.clone()));
        objects.push(Object::Layer(key.clone()));
        removed.layers.push(key.diff_id.0);
        removed.bytes += stated.fact.unpacked_size_bytes + stated.fact.recipe_size_bytes;
    }
    (records, objects)
}
