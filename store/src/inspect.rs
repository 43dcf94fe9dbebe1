//! A store looked at without changing it: what its log says, and what stands below its root. For `fsck`.
//!
//! N1  Nothing is written, not even a mode or the note that somebody was here; it works on a read-only mount.
//! N2  Damage is no error here: it is what was asked for. An error is what keeps the look from being taken.
//! N3  The lock is held while it lasts, so that no owner changes what is being looked at.

use std::sync::Arc;

use baleen_oci::{Algorithm, Digest, ImageId};

use crate::disk::{Access, Disk, Handle, NodeKind};
use crate::error::{IoContext, StoreError};
use crate::facts::{BlobFact, ContainerFact, Facts, ImageFact, LayerFact, LayerKey, PullFact, TagFact};
use crate::format;
use crate::layout::{DIRECTORIES, Object, is_missing, partial_blob};
use crate::second_copy::{SLOTS, SecondCopy};
use crate::store::Store;
use crate::wal::{LogDamage, Remains};

/// A store as it stands.
pub struct Inspection {
    disk: Arc<dyn Disk>,
    root: Handle,
    facts: Facts,
    format: FormatState,
    log: LogState,
    _lock: Option<Handle>,
}

/// What `FORMAT` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormatState {
    /// As it was written.
    Whole,
    /// Not there.
    Missing,
    /// There, and not readable; what is wrong.
    Damaged(String),
}

/// What the log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// Whether the store was closed in order.
    pub clean: bool,
    /// Whether a batch was cut while it was written. It was never acknowledged.
    pub torn: bool,
    /// Where it is not as it was written.
    pub damage: Vec<LogDamage>,
    /// The sequence that the next record gets.
    pub next_sequence: u64,
    /// Files of the second copy that are there and not whole. Nothing is lost by that.
    pub damaged_copies: Vec<String>,
}

/// An object that the log names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredObject {
    /// A manifest, index or config.
    Blob(Digest),
    /// A layer.
    Layer(LayerKey),
    /// A container's folder, by its id.
    Container(String),
}

impl StoredObject {
    /// Its path below the root.
    pub fn path(&self) -> String {
        Object::from(self).path()
    }
}

impl From<&StoredObject> for Object {
    fn from(object: &StoredObject) -> Self {
        match object {
            StoredObject::Blob(digest) => Object::Blob(*digest),
            StoredObject::Layer(key) => Object::Layer(key.clone()),
            StoredObject::Container(id) => Object::Container(id.clone()),
        }
    }
}

/// Why a name stands below the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Standing {
    /// A recorded object in its place.
    Recorded(StoredObject),
    /// A recorded object where it was staged: the next opening gives it its name.
    Staged(StoredObject),
    /// Left by something that was never acknowledged, or already removed: the next opening throws it away.
    LeftOver,
    /// Begun by a pull that may go on.
    Partial,
    /// Waits for deletion.
    Trash,
    /// Waits for a person.
    Quarantine,
    /// Belongs to nothing that the store knows.
    Foreign,
    /// A directory or file of the store itself that is not there.
    Absent,
    /// A directory of the store has another mode than it should; the mode found and the one that belongs there.
    Mode(u32, u32),
}

/// A name below the root and why it stands there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stand {
    /// Below the root, with `/`; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Why.
    pub standing: Standing,
}

impl Inspection {
    /// Looks at the store on `disk`.
    ///
    /// # Errors
    /// `InUse`, `NewerFormat`, `NotAStore` if there is neither `FORMAT` nor a log, `Io`.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, StoreError> {
        let root = disk.root().context("open", || "the data root".to_owned())?;
        let lock = lock(disk.as_ref(), &root)?;
        let (format, store_id) = match format::read(disk.as_ref(), &root) {
            Ok(Some(store_id)) => (FormatState::Whole, Some(store_id)),
            Ok(None) => (FormatState::Missing, None),
            Err(StoreError::Damaged { what }) => (FormatState::Damaged(what), None),
            Err(error) => return Err(error),
        };
        let remains = match disk.open_dir(&root, b"wal") {
            Ok(wal) => {
                let copy = store_id.and_then(|store_id| SecondCopy::read(disk.as_ref(), &root, store_id));
                Remains::read(disk.as_ref(), &wal, store_id, copy)?
            }
            Err(error) if is_missing(&error) => Remains::default(),
            Err(error) => return Err(error).context("open", || "wal".to_owned()),
        };
        if format == FormatState::Missing && remains.store_id.is_none() && remains.last_segment == 0 {
            return Err(StoreError::NotAStore { found: "no FORMAT and no log".to_owned() });
        }
        let Remains { facts, next_sequence, clean, torn, damage, .. } = remains;
        let damaged_copies =
            store_id.map(|store_id| SecondCopy::damaged(disk.as_ref(), &root, store_id)).unwrap_or_default();
        let log = LogState { clean, torn, damage, next_sequence, damaged_copies };
        Ok(Self { disk, root, facts, format, log, _lock: lock })
    }

    /// The disk below.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The directory of the store.
    pub fn root(&self) -> &Handle {
        &self.root
    }

    /// What `FORMAT` is.
    pub fn format(&self) -> &FormatState {
        &self.format
    }

    /// What the log is.
    pub fn log(&self) -> &LogState {
        &self.log
    }

    /// All images, by id.
    pub fn images(&self) -> Vec<ImageFact> {
        self.facts.images.values().map(|stated| stated.fact.clone()).collect()
    }

    /// All tags, by name.
    pub fn tags(&self) -> Vec<TagFact> {
        self.facts.tags.values().map(|stated| stated.fact.clone()).collect()
    }

    /// All containers, by id.
    pub fn containers(&self) -> Vec<ContainerFact> {
        self.facts.containers.values().map(|(stated, _)| stated.fact.clone()).collect()
    }

    /// All layers, by key.
    pub fn layers(&self) -> Vec<LayerFact> {
        self.facts.layers.values().map(|stated| stated.fact.clone()).collect()
    }

    /// All blobs, by digest.
    pub fn blobs(&self) -> Vec<BlobFact> {
        self.facts.blobs.values().map(|(stated, _)| stated.fact.clone()).collect()
    }

    /// Pulls that have begun and not ended.
    pub fn pulls(&self) -> Vec<PullFact> {
        self.facts.pulls.values().map(|stated| stated.fact.clone()).collect()
    }

    /// Layers that are marked as damaged.
    pub fn suspects(&self) -> Vec<LayerKey> {
        self.facts.suspects.keys().cloned().collect()
    }

    /// Whether an image is recorded.
    pub fn has_image(&self, id: &ImageId) -> bool {
        self.facts.images.contains_key(id)
    }

    /// Opens the directory that holds an object, and gives its name there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn place(&self, object: &StoredObject) -> std::io::Result<(Handle, Vec<u8>)> {
        let path = object.path();
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let dir = self.disk.open_dir_in_root(&self.root, std::path::Path::new(dir))?;
        Ok((dir, name.as_bytes().to_vec()))
    }

    /// Every name below the root, down to the level where one owner has the rest, without volumes' own.
    ///
    /// # Errors
    /// `Io`.
    pub fn stands(&self) -> Result<Vec<Stand>, StoreError> {
        let mut stands = Vec::new();
        self.root_stands(&mut stands)?;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = format!("blobs/{}", algorithm.name());
            self.objects(&dir, &mut stands, |name| {
                format!("{}:{name}", algorithm.name()).parse().ok().map(StoredObject::Blob)
            })?;
        }
        self.objects("layers", &mut stands, |name| {
            let live = self.facts.layers.keys().find(|key| key.folder() == name);
            live.map(|key| StoredObject::Layer(key.clone()))
        })?;
        self.objects("containers", &mut stands, |name| Some(StoredObject::Container(name.to_owned())))?;
        self.list("wal", |name, path| {
            let ours = name == b"spare" || name == b"new" || name.len() == 16 && name.iter().all(u8::is_ascii_hexdigit);
            stands.extend((!ours).then_some(Stand { path, standing: Standing::Foreign }));
        })?;
        self.list("blobs", |name, path| {
            let ours = matches!(name, b"sha256" | b"sha512");
            stands.extend((!ours).then_some(Stand { path, standing: Standing::Foreign }));
        })?;
        let expected = self.facts.reachable().partials;
        self.list("partial", |name, path| {
            let blob = partial_blob(name);
            let stored = blob.as_ref().and_then(|blob| self.facts.layer_of_blob(blob));
            let standing = match (stored, blob) {
                (Some(fact), _) => Standing::Staged(StoredObject::Layer(fact.key.clone())),
                (None, Some(blob)) if expected.contains(&blob) => Standing::Partial,
                _ => Standing::LeftOver,
            };
            stands.push(Stand { path, standing });
        })?;
        self.staging(&mut stands)?;
        self.list("trash", |_, path| stands.push(Stand { path, standing: Standing::Trash }))?;
        self.list("quarantine", |_, path| stands.push(Stand { path, standing: Standing::Quarantine }))?;
        Ok(stands)
    }

    /// Objects that the log names and that stand neither in their place nor where they were staged.
    pub fn missing(&self, stands: &[Stand]) -> Vec<StoredObject> {
        let there: std::collections::BTreeSet<&StoredObject> = stands
            .iter()
            .filter_map(|stand| match &stand.standing {
                Standing::Recorded(object) | Standing::Staged(object) => Some(object),
                _ => None,
            })
            .collect();
        let blobs = self.facts.blobs.keys().map(|digest| StoredObject::Blob(*digest));
        let layers = self.facts.layers.keys().map(|key| StoredObject::Layer(key.clone()));
        let containers = self.facts.containers.keys().map(|id| StoredObject::Container(id.clone()));
        blobs.chain(layers).chain(containers).filter(|object| !there.contains(object)).collect()
    }

    fn root_stands(&self, stands: &mut Vec<Stand>) -> Result<(), StoreError> {
        let absent = |path: &str| Stand { path: path.to_owned(), standing: Standing::Absent };
        for (name, mode) in DIRECTORIES {
            let path = String::from_utf8_lossy(name).into_owned();
            match self.disk.metadata_at(&self.root, name) {
                Ok(found) if found.kind != NodeKind::Directory => stands.push(absent(&path)),
                Ok(found) if found.mode != mode => {
                    stands.push(Stand { path, standing: Standing::Mode(found.mode, mode) });
                }
                Ok(_) => {}
                Err(error) if is_missing(&error) => stands.push(absent(&path)),
                Err(error) => return Err(error).context("look up", || path),
            }
        }
        for path in ["blobs/sha256", "blobs/sha512"] {
            match self.disk.open_dir_in_root(&self.root, std::path::Path::new(path)) {
                Err(error) if is_missing(&error) => stands.push(absent(path)),
                other => drop(other.context("open", || path.to_owned())?),
            }
        }
        self.list("", |name, path| {
            let ours = DIRECTORIES.iter().any(|(directory, _)| *directory == name);
            if !ours && !SLOTS.contains(&name) && !matches!(name, b"FORMAT" | b"FORMAT.new" | b"LOCK" | b"lost+found") {
                stands.push(Stand { path, standing: Standing::Foreign });
            }
        })
    }

    fn objects(
        &self,
        dir: &str,
        stands: &mut Vec<Stand>,
        object: impl Fn(&str) -> Option<StoredObject>,
    ) -> Result<(), StoreError> {
        self.list(dir, |name, path| {
            let object = std::str::from_utf8(name).ok().and_then(&object);
            let standing = match object {
                Some(object) if self.facts.has(&Object::from(&object)) => Standing::Recorded(object),
                _ => Standing::LeftOver,
            };
            stands.push(Stand { path, standing });
        })
    }

    fn staging(&self, stands: &mut Vec<Stand>) -> Result<(), StoreError> {
        let mut transactions = Vec::new();
        self.list("staging", |name, path| transactions.push((name.to_vec(), path)))?;
        let blobs = self.facts.blobs.iter().map(|(digest, (_, by))| (StoredObject::Blob(*digest), *by));
        let containers = self.facts.containers.iter().map(|(id, (_, by))| (StoredObject::Container(id.clone()), *by));
        let live: Vec<_> = blobs.chain(containers).collect();
        for (transaction, path) in transactions {
            let mut empty = true;
            self.list(&path, |name, path| {
                empty = false;
                let named = live.iter().find(|(object, by)| {
                    by.folder().as_bytes() == transaction && Object::from(object).staged_name() == name
                });
                let standing = named.map_or(Standing::LeftOver, |(object, _)| Standing::Staged(object.clone()));
                stands.push(Stand { path, standing });
            })?;
            if empty {
                stands.push(Stand { path, standing: Standing::LeftOver });
            }
        }
        Ok(())
    }

    /// Calls `visit` with each name in `dir` and its path; a directory that is not there has none.
    fn list(&self, dir: &str, mut visit: impl FnMut(&[u8], String)) -> Result<(), StoreError> {
        let path = || if dir.is_empty() { "the data root".to_owned() } else { dir.to_owned() };
        let handle = match self.disk.open_dir_in_root(&self.root, std::path::Path::new(dir)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
            other => other.context("open", path)?,
        };
        let mut entries = self.disk.read_dir(&handle).context("list", path)?;
        entries.sort();
        for entry in entries {
            let name = String::from_utf8_lossy(&entry.name);
            let path = if dir.is_empty() { name.into_owned() } else { format!("{dir}/{name}") };
            visit(&entry.name, path);
        }
        Ok(())
    }
}

impl Store {
    /// The open store as something to look at: its facts of this moment. What is changed meanwhile may look like damage,
    /// so whoever checks layers holds a [`Lease`](crate::Lease) on them.
    ///
    /// # Errors
    /// `Io`.
    pub fn inspection(&self) -> Result<Inspection, StoreError> {
        let shared = &self.shared;
        let root = shared.disk.root().context("open", || "the data root".to_owned())?;
        let facts = shared.state().facts.clone();
        let log =
            LogState { clean: true, torn: false, damage: Vec::new(), next_sequence: 0, damaged_copies: Vec::new() };
        Ok(Inspection { disk: shared.disk.clone(), root, facts, format: FormatState::Whole, log, _lock: None })
    }
}

/// Takes the lock, if there is a file to lock: nothing is made here (N1).
fn lock(disk: &dyn Disk, root: &Handle) -> Result<Option<Handle>, StoreError> {
    let path = || "LOCK".to_owned();
    let file = match disk.open_file(root, b"LOCK", Access::Read) {
        Err(error) if is_missing(&error) => return Ok(None),
        other => other.context("open", path)?,
    };
    match disk.lock(&file) {
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Err(StoreError::InUse),
        other => other.context("lock", path).map(|()| Some(file)),
    }
}
