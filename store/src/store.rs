//! The open store: what it holds, read; and what several callers share while they change it.
//!
//! S1  A key (an object, a name) is changed by one transaction at a time: it is reserved from before the record is
//!     written until the tree follows. Look-ups of a reserved key wait.
//! S2  A lease is taken under the lock of the look-up that found the object, and collection sees every lease.
//! S3  Facts change by durable records alone (F1), in the order of the log.
//! S4  Once the tree cannot follow the log, or the log itself fails, nothing more is written (W3). Reading goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use baleen_oci::{Digest, ImageId};

use crate::disk::{Access, Disk, Handle, Space, read_file};
use crate::error::{IoContext, StoreError};
use crate::facts::{BlobFact, ContainerFact, Facts, ImageFact, LayerFact, LayerKey, PullFact, TagFact, VolumeFact};
use crate::group::LogQueue;
use crate::layout::{Layout, Object};
use crate::trash::Aside;

/// The largest blob that [`Store::read_blob`] reads: manifests, indexes and configs are at most 4 MiB.
const BLOB_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A durable content-addressed store. Cheap to clone; every clone is the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) layout: Layout,
    pub(crate) log: LogQueue,
    pub(crate) state: Mutex<State>,
    /// Wakes whoever waits for a reservation to end.
    pub(crate) released: Condvar,
    /// The sequence of this opening's record: names its transactions.
    pub(crate) opened: u64,
    pub(crate) counter: AtomicU64,
    pub(crate) aside: Aside,
    /// Held by whoever empties the trash.
    pub(crate) emptying: Mutex<()>,
    /// The record that the second copy was made at; held while it is written.
    pub(crate) copied: Mutex<u64>,
    /// Failed barriers so far: a staging that saw one is dropped.
    pub(crate) failed_barriers: AtomicU64,
    /// Held from opening to the end; close-on-exec.
    pub(crate) _lock: Handle,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) facts: Facts,
    pub(crate) reserved: BTreeSet<Key>,
    /// Collection and removals reserve everything.
    pub(crate) all_reserved: bool,
    pub(crate) leases: BTreeMap<u64, Leased>,
    pub(crate) partials: BTreeSet<Digest>,
    /// Damaged layers that can be replaced whatever should run ([`Store::replace_unmounted`]).
    pub(crate) unmounted: BTreeSet<LayerKey>,
    pub(crate) last_lease: u64,
}

/// What one lease protects.
#[derive(Default)]
pub(crate) struct Leased {
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) layers: BTreeSet<LayerKey>,
}

/// What a transaction reserves (S1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Object(Object),
    Image(ImageId),
    Tag(String),
    ContainerName(String),
    Pull(Digest),
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves whole facts: each change under this lock is one step.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.released.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The state once nobody has reserved `key` (S1).
    pub(crate) fn settled(&self, key: &Key) -> MutexGuard<'_, State> {
        let mut state = self.state();
        while state.all_reserved || state.reserved.contains(key) {
            state = self.wait(state);
        }
        state
    }

    /// Reserves `keys` until the reservation is dropped.
    pub(crate) fn reserve(self: &Arc<Self>, keys: BTreeSet<Key>) -> Reservation {
        let mut state = self.state();
        while state.all_reserved || !state.reserved.is_disjoint(&keys) {
            state = self.wait(state);
        }
        state.reserved.extend(keys.iter().cloned());
        Reservation { shared: self.clone(), keys: Some(keys) }
    }

    /// Reserves everything: no transaction is under way while it is held.
    pub(crate) fn reserve_all(self: &Arc<Self>) -> Reservation {
        let mut state = self.state();
        while state.all_reserved || !state.reserved.is_empty() {
            state = self.wait(state);
        }
        state.all_reserved = true;
        Reservation { shared: self.clone(), keys: None }
    }
}

/// Keys that belong to one transaction until this is dropped; `None` is all of them.
pub(crate) struct Reservation {
    shared: Arc<Shared>,
    keys: Option<BTreeSet<Key>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        match &self.keys {
            None => state.all_reserved = false,
            Some(keys) => state.reserved.retain(|key| !keys.contains(key)),
        }
        drop(state);
        self.shared.released.notify_all();
    }
}

impl Store {
    /// The disk below, for whoever extracts into what this store gave out.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.shared.disk
    }

    /// Whether changes are refused since the log failed; reading goes on.
    pub fn writes_stopped(&self) -> bool {
        self.shared.log.is_stopped()
    }

    /// Space on the file system of the store.
    ///
    /// # Errors
    /// `Io` from `statvfs`.
    pub fn space(&self) -> Result<Space, StoreError> {
        self.shared.disk.space(&self.shared.layout.root).context("read the space of", || "the data root".to_owned())
    }

    /// All images, by id.
    pub fn images(&self) -> Vec<ImageFact> {
        self.shared.state().facts.images.values().map(|stated| stated.fact.clone()).collect()
    }

    /// One image.
    pub fn image(&self, id: &ImageId) -> Option<ImageFact> {
        self.shared.settled(&Key::Image(*id)).facts.images.get(id).map(|stated| stated.fact.clone())
    }

    /// All tags, by name.
    pub fn tags(&self) -> Vec<TagFact> {
        self.shared.state().facts.tags.values().map(|stated| stated.fact.clone()).collect()
    }

    /// One tag.
    pub fn tag(&self, name: &str) -> Option<TagFact> {
        let state = self.shared.settled(&Key::Tag(name.to_owned()));
        state.facts.tags.get(name).map(|stated| stated.fact.clone())
    }

    /// All containers, by id.
    pub fn containers(&self) -> Vec<ContainerFact> {
        self.shared.state().facts.containers.values().map(|(stated, _)| stated.fact.clone()).collect()
    }

    /// One container, by its full id.
    pub fn container(&self, id: &str) -> Option<ContainerFact> {
        let state = self.shared.settled(&Key::Object(Object::Container(id.to_owned())));
        state.facts.containers.get(id).map(|(stated, _)| stated.fact.clone())
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<VolumeFact> {
        self.shared.state().facts.volumes.values().map(|(stated, _)| stated.fact.clone()).collect()
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Option<VolumeFact> {
        let state = self.shared.settled(&Key::Object(Object::Volume(name.to_owned())));
        state.facts.volumes.get(name).map(|(stated, _)| stated.fact.clone())
    }

    /// All layers, by key.
    pub fn layers(&self) -> Vec<LayerFact> {
        self.shared.state().facts.layers.values().map(|stated| stated.fact.clone()).collect()
    }

    /// One layer, without protecting it: see [`Store::lease`]. `None` for a damaged one that can be stored again.
    pub fn layer(&self, key: &LayerKey) -> Option<LayerFact> {
        let state = self.shared.settled(&Key::Object(Object::Layer(key.clone())));
        if state.is_replaceable(key) {
            return None;
        }
        state.facts.layers.get(key).map(|stated| stated.fact.clone())
    }

    /// All blobs, by digest.
    pub fn blobs(&self) -> Vec<BlobFact> {
        self.shared.state().facts.blobs.values().map(|(stated, _)| stated.fact.clone()).collect()
    }

    /// Pulls that have begun and not ended, oldest first.
    pub fn pulls(&self) -> Vec<PullFact> {
        let state = self.shared.state();
        let mut pulls: Vec<_> = state.facts.pulls.values().collect();
        pulls.sort_by_key(|stated| stated.sequence);
        pulls.into_iter().map(|stated| stated.fact.clone()).collect()
    }

    /// Reads a blob and verifies its digest.
    ///
    /// # Errors
    /// `BlobMissing`, `BlobCorrupt`, `Io`.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let object = Object::Blob(*digest);
        if !self.shared.settled(&Key::Object(object.clone())).facts.blobs.contains_key(digest) {
            return Err(StoreError::BlobMissing { digest: *digest });
        }
        let (dir, name) = self.shared.layout.place(&object);
        let disk = &self.shared.disk;
        let file = disk.open_file(dir, &name, Access::Read).context("open", || object.path())?;
        let bytes = read_file(disk.as_ref(), &file, BLOB_BYTES_MAX).context("read", || object.path())?;
        if digest.matches(&bytes) { Ok(bytes) } else { Err(StoreError::BlobCorrupt { digest: *digest }) }
    }

    /// Opens the folder of a layer: `fs` is its tree, `recipe` how its tar is made again.
    ///
    /// # Errors
    /// `LayerMissing`, `Io`.
    pub fn layer_dir(&self, key: &LayerKey) -> Result<Handle, StoreError> {
        let object = Object::Layer(key.clone());
        if !self.shared.settled(&Key::Object(object.clone())).facts.layers.contains_key(key) {
            return Err(StoreError::LayerMissing { key: Box::new(key.clone()) });
        }
        self.open_object(&object)
    }

    /// Opens the folder of a container.
    ///
    /// # Errors
    /// `ContainerMissing`, `Io`.
    pub fn container_dir(&self, id: &str) -> Result<Handle, StoreError> {
        let object = Object::Container(id.to_owned());
        if !self.shared.settled(&Key::Object(object.clone())).facts.containers.contains_key(id) {
            return Err(StoreError::ContainerMissing { container: id.to_owned() });
        }
        self.open_object(&object)
    }

    /// Opens the folder of a volume: `volume.json` says what it is like, `_data` is what containers see.
    ///
    /// # Errors
    /// `VolumeMissing`, `Io`.
    pub fn volume_dir(&self, name: &str) -> Result<Handle, StoreError> {
        let object = Object::Volume(name.to_owned());
        if !self.shared.settled(&Key::Object(object.clone())).facts.volumes.contains_key(name) {
            return Err(StoreError::VolumeMissing { volume: name.to_owned() });
        }
        self.open_object(&object)
    }

    fn open_object(&self, object: &Object) -> Result<Handle, StoreError> {
        let (dir, name) = self.shared.layout.place(object);
        self.shared.disk.open_dir(dir, &name).context("open", || object.path())
    }

    /// Begins to protect objects from collection: each one that a look-up of the lease finds stays until it is dropped.
    pub fn lease(&self) -> Lease {
        let mut state = self.shared.state();
        state.last_lease += 1;
        let number = state.last_lease;
        state.leases.insert(number, Leased::default());
        Lease { shared: self.shared.clone(), number }
    }

    /// A number that no other transaction of this store has.
    pub(crate) fn next_transaction(&self) -> u64 {
        self.shared.counter.fetch_add(1, Ordering::Relaxed)
    }
}

/// Protects what its look-ups found (S2).
pub struct Lease {
    pub(crate) shared: Arc<Shared>,
    pub(crate) number: u64,
}

impl Lease {
    /// Looks up a layer and protects it. A damaged one that can be stored again is taken for missing (`suspect`, U1); it is
    /// protected all the same.
    pub fn layer(&self, key: &LayerKey) -> Option<LayerFact> {
        let mut state = self.shared.settled(&Key::Object(Object::Layer(key.clone())));
        let replaceable = state.is_replaceable(key);
        let fact = state.facts.layers.get(key).map(|stated| stated.fact.clone())?;
        state.leases.entry(self.number).or_default().layers.insert(key.clone());
        (!replaceable).then_some(fact)
    }

    /// Looks up a blob and protects it.
    pub fn blob(&self, digest: &Digest) -> Option<BlobFact> {
        let mut state = self.shared.settled(&Key::Object(Object::Blob(*digest)));
        let fact = state.facts.blobs.get(digest).map(|(stated, _)| stated.fact.clone())?;
        state.leases.entry(self.number).or_default().blobs.insert(*digest);
        Some(fact)
    }

    /// Protects objects that are about to be stored by a transaction.
    pub(crate) fn expect(&self, object: &Object) {
        let mut state = self.shared.state();
        let leased = state.leases.entry(self.number).or_default();
        match object {
            Object::Blob(digest) => drop(leased.blobs.insert(*digest)),
            Object::Layer(key) => drop(leased.layers.insert(key.clone())),
            Object::Container(_) | Object::Volume(_) => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.state().leases.remove(&self.number);
    }
}
