//! The facts of the store, as the log's records state them, and the state that they add up to.
//!
//! F1  A fact changes only by applying a record, and a record is applied only once it is durable.
//! F2  Applying the same records in the same order gives the same facts, whatever the tree looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use baleen_oci::{ChainId, DiffId, Digest, ImageId};

use crate::layout::Object;

/// Names a layer: by its diff ID, and by the chain below it where it links into a lower layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerKey {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// The chain ID of its parents, only for a layer with hard links to a lower layer's files.
    pub parents: Option<ChainId>,
}

impl LayerKey {
    /// The key of a layer that stands alone.
    pub fn new(diff_id: DiffId) -> Self {
        Self { diff_id, parents: None }
    }

    /// The name of its folder below `layers/`.
    pub fn folder(&self) -> String {
        match &self.parents {
            None => self.diff_id.hex(),
            Some(parents) => format!("{}+{}", self.diff_id.hex(), parents.hex()),
        }
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.diff_id)?;
        match &self.parents {
            None => Ok(()),
            Some(parents) => write!(formatter, "+{parents}"),
        }
    }
}

/// A blob: a manifest, index or config, kept verbatim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFact {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// A committed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFact {
    /// Its key.
    pub key: LayerKey,
    /// The blob that it came from, as transferred.
    pub blob: Digest,
    /// Length of that blob.
    pub blob_size_bytes: u64,
    /// Length of its tar.
    pub tar_size_bytes: u64,
    /// Sum of the sizes of its files, as Docker counts a layer.
    pub unpacked_size_bytes: u64,
    /// Number of tar entries.
    pub entries: u64,
    /// Length of its recipe.
    pub recipe_size_bytes: u64,
    /// Whether it has directories that its tar only implies (they got 0755 root).
    pub implied_directories: bool,
}

/// An image: a config and the layers that it names, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFact {
    /// Digest of its config.
    pub id: ImageId,
    /// The manifest by which it came, if it came by one.
    pub manifest: Option<Digest>,
    /// Its layers, bottom first.
    pub layers: Vec<LayerKey>,
}

/// A name of an image. The store does not look into the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFact {
    /// The full reference: with a tag, or with a digest.
    pub name: String,
    /// The image it names.
    pub image: ImageId,
    /// Seconds since 1970 at which it was set, for display only.
    pub set_at_seconds: i64,
}

/// A pull that has begun and has not ended: keeps what it has fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullFact {
    /// The manifest pulled.
    pub manifest: Digest,
    /// Its layers: the blob as transferred, its size and what it must unpack to.
    pub layers: Vec<PullLayer>,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullLayer {
    /// The blob as transferred.
    pub blob: Digest,
    /// Its length.
    pub blob_size_bytes: u64,
    /// What it unpacks to.
    pub key: LayerKey,
}

/// A container. Its configuration is `config.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFact {
    /// 64 hex digits.
    pub id: String,
    /// Its unique name, without a leading slash.
    pub name: String,
    /// The image it was made from.
    pub image: ImageId,
    /// Whether it should run.
    pub desired: Desired,
}

/// A volume. What it is like is `volume.json` in its folder, and its files are users' data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFact {
    /// Its unique name: a folder below `volumes/`.
    pub name: String,
}

/// What a container should be doing (its desired state, not what it does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desired {
    /// Created and never started.
    Created,
    /// Running.
    Running,
    /// Stopped.
    Stopped,
}

/// One durable change, as one record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// The store was opened; `staging/<sequence>-*` are transactions of this opening.
    Opened,
    /// The store was closed: everything before was synced without an error.
    Closed,
    /// The base segment is complete, with this many records before.
    BaseEnd(u64),
    /// A blob was staged in that transaction.
    BlobStored(BlobFact, TransactionId),
    /// A blob is gone.
    BlobRemoved(Digest),
    /// A layer was extracted in `partial/<blob>`.
    LayerStored(LayerFact),
    /// A layer is gone.
    LayerRemoved(LayerKey),
    /// An image exists.
    ImageStored(ImageFact),
    /// An image is gone.
    ImageRemoved(ImageId),
    /// A name names an image.
    TagSet(TagFact),
    /// A name is gone.
    TagRemoved(String),
    /// A pull has begun.
    PullBegun(PullFact),
    /// A pull has ended, or its leavings are given up.
    PullEnded(Digest),
    /// A container was staged in that transaction.
    ContainerStored(ContainerFact, TransactionId),
    /// A container's name or desired state has changed.
    ContainerChanged(ContainerFact),
    /// A container is gone.
    ContainerRemoved(String),
    /// A layer was found damaged.
    LayerSuspect(LayerKey),
    /// A volume was staged in that transaction.
    VolumeStored(VolumeFact, TransactionId),
    /// A volume is gone.
    VolumeRemoved(String),
}

/// Names a transaction: the sequence of the `Opened` record, and a counter from there. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TransactionId {
    pub(crate) opened: u64,
    pub(crate) counter: u64,
}

impl TransactionId {
    /// The name of its folder below `staging/`.
    pub(crate) fn folder(self) -> String {
        format!("{:x}-{:x}", self.opened, self.counter)
    }
}

/// A fact with the sequence of the record that stated it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stated<T> {
    pub(crate) sequence: u64,
    pub(crate) fact: T,
}

/// Everything that the log says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) blobs: BTreeMap<Digest, (Stated<BlobFact>, TransactionId)>,
    pub(crate) layers: BTreeMap<LayerKey, Stated<LayerFact>>,
    pub(crate) images: BTreeMap<ImageId, Stated<ImageFact>>,
    pub(crate) tags: BTreeMap<String, Stated<TagFact>>,
    pub(crate) pulls: BTreeMap<Digest, Stated<PullFact>>,
    pub(crate) containers: BTreeMap<String, (Stated<ContainerFact>, TransactionId)>,
    pub(crate) volumes: BTreeMap<String, (Stated<VolumeFact>, TransactionId)>,
    /// Damaged layers, each with the sequence of the record that says so.
    pub(crate) suspects: BTreeMap<LayerKey, u64>,
}

impl Facts {
    /// Applies one record (F1).
    pub(crate) fn apply(&mut self, sequence: u64, record: Record) {
        match record {
            Record::Opened | Record::Closed | Record::BaseEnd(_) => {}
            Record::BlobStored(fact, transaction) => {
                self.blobs.insert(fact.digest, (Stated { sequence, fact }, transaction));
            }
            Record::BlobRemoved(digest) => drop(self.blobs.remove(&digest)),
            Record::LayerStored(fact) => {
                self.suspects.remove(&fact.key);
                self.layers.insert(fact.key.clone(), Stated { sequence, fact });
            }
            Record::LayerRemoved(key) => {
                self.suspects.remove(&key);
                self.layers.remove(&key);
            }
            Record::LayerSuspect(key) => {
                if self.layers.contains_key(&key) {
                    self.suspects.insert(key, sequence);
                }
            }
            Record::ImageStored(fact) => {
                self.images.insert(fact.id, Stated { sequence, fact });
            }
            Record::ImageRemoved(id) => drop(self.images.remove(&id)),
            Record::TagSet(fact) => {
                self.tags.insert(fact.name.clone(), Stated { sequence, fact });
            }
            Record::TagRemoved(name) => drop(self.tags.remove(&name)),
            Record::PullBegun(fact) => {
                self.pulls.insert(fact.manifest, Stated { sequence, fact });
            }
            Record::PullEnded(manifest) => drop(self.pulls.remove(&manifest)),
            Record::ContainerStored(fact, transaction) => {
                self.containers.insert(fact.id.clone(), (Stated { sequence, fact }, transaction));
            }
            Record::ContainerChanged(fact) => {
                if let Some((stated, _)) = self.containers.get_mut(&fact.id) {
                    stated.fact = fact;
                }
            }
            Record::ContainerRemoved(id) => drop(self.containers.remove(&id)),
            Record::VolumeStored(fact, transaction) => {
                self.volumes.insert(fact.name.clone(), (Stated { sequence, fact }, transaction));
            }
            Record::VolumeRemoved(name) => drop(self.volumes.remove(&name)),
        }
    }

    /// Whether nothing is stored.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The records that state these facts, each with its sequence, for a base segment.
    pub(crate) fn records(&self) -> Vec<(u64, Record)> {
        let mut records = Vec::new();
        for (stated, transaction) in self.blobs.values() {
            records.push((stated.sequence, Record::BlobStored(stated.fact.clone(), *transaction)));
        }
        records.extend(self.layers.values().map(|stated| (stated.sequence, Record::LayerStored(stated.fact.clone()))));
        records.extend(self.images.values().map(|stated| (stated.sequence, Record::ImageStored(stated.fact.clone()))));
        records.extend(self.tags.values().map(|stated| (stated.sequence, Record::TagSet(stated.fact.clone()))));
        records.extend(self.pulls.values().map(|stated| (stated.sequence, Record::PullBegun(stated.fact.clone()))));
        for (stated, transaction) in self.containers.values() {
            records.push((stated.sequence, Record::ContainerStored(stated.fact.clone(), *transaction)));
        }
        for (stated, transaction) in self.volumes.values() {
            records.push((stated.sequence, Record::VolumeStored(stated.fact.clone(), *transaction)));
        }
        records.extend(self.suspects.iter().map(|(key, sequence)| (*sequence, Record::LayerSuspect(key.clone()))));
        // In the order of the log, so that a base reads like the log it replaces.
        records.sort_by_key(|(sequence, _)| *sequence);
        records
    }

    /// Whether a live record names `object`.
    pub(crate) fn has(&self, object: &Object) -> bool {
        match object {
            Object::Blob(digest) => self.blobs.contains_key(digest),
            Object::Layer(key) => self.layers.contains_key(key),
            Object::Container(id) => self.containers.contains_key(id),
            Object::Volume(name) => self.volumes.contains_key(name),
        }
    }

    /// The live layer that was extracted from `blob`; a damaged one was in its place long ago, and does not count.
    pub(crate) fn layer_of_blob(&self, blob: &Digest) -> Option<&LayerFact> {
        self.layers
            .values()
            .map(|stated| &stated.fact)
            .find(|fact| fact.blob == *blob && !self.suspects.contains_key(&fact.key))
    }

    /// What is reachable from images, containers and pulls, without the leases.
    pub(crate) fn reachable(&self) -> Reachable {
        let mut reachable = Reachable::default();
        for stated in self.images.values() {
            reachable.blobs.insert(stated.fact.id.0);
            reachable.blobs.extend(stated.fact.manifest);
            reachable.layers.extend(stated.fact.layers.iter().cloned());
        }
        for stated in self.pulls.values() {
            reachable.blobs.insert(stated.fact.manifest);
            reachable.layers.extend(stated.fact.layers.iter().map(|layer| layer.key.clone()));
            reachable.partials.extend(stated.fact.layers.iter().map(|layer| layer.blob));
        }
        reachable
    }
}

/// The objects that something needs.
#[derive(Debug, Default)]
pub(crate) struct Reachable {
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) layers: BTreeSet<LayerKey>,
    pub(crate) partials: BTreeSet<Digest>,
}
