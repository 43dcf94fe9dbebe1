//! An opening that finds its log or `FORMAT` damaged: what is known is gathered anew, and the store starts with it.
//!
//! V1  Nothing is thrown away: damaged files of the log and objects that nobody can name go to `quarantine/`.
//! V2  Facts come from every readable record and the second copy first, then from the objects themselves: a blob is named by its digest, a
//!     layer by its recipe, an image by its config, a container by `config.json`, a volume by `volume.json`. Only tags,
//!     names of containers and pulls are in records alone.
//! V3  A cut anywhere leaves the damage as it was or a log that is whole: what is set aside is so durably before the new
//!     base segment has its name.
//!
//! Touches: everything below the root but what lies in layers, containers and volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use baleen_oci::{Algorithm, ChainId, DiffId, Digest, ImageConfig, ImageId, Manifest};
use serde::Deserialize;

use crate::disk::{Access, Disk, Handle, NodeKind, read_file};
use crate::error::{IoContext, StoreError};
use crate::facts::{
    BlobFact, ContainerFact, Desired, Facts, ImageFact, LayerFact, LayerKey, Stated, TransactionId, VolumeFact,
};
use crate::format;
use crate::layout::{Layout, exists};
use crate::recipe::Recipe;
use crate::second_copy::SecondCopy;
use crate::trash::{Aside, move_aside};
use crate::wal::{LogDamage, Remains, StoreId, Wal};

/// The longest blob that is looked into (threats, section 9).
const BLOB_BYTES_MAX: u64 = 4 << 20;
/// The longest configuration of a container (docs/formats/container.md).
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// What `FORMAT` and the log say together of a store whose `FORMAT` cannot be read.
pub(crate) enum Lost {
    /// It never was a store: a creation that was cut.
    Never,
    /// It was this store, as its log says; without an id, its log cannot be read either.
    Store(Option<StoreId>),
}

/// Finds out what a root without a readable `FORMAT` was. `missing`: there is none at all.
pub(crate) fn lost_format(disk: &dyn Disk, root: &Handle, missing: bool) -> Result<Lost, StoreError> {
    let wal = match disk.open_dir(root, b"wal") {
        Ok(wal) => wal,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && missing => return Ok(Lost::Never),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Lost::Store(None)),
        Err(error) => return Err(error).context("open", || "wal".to_owned()),
    };
    let remains = Remains::read(disk, &wal, None, None)?;
    // A creation that is cut before `FORMAT` leaves a base without a record: every opening writes one.
    match remains.store_id {
        Some(store_id) if !missing || remains.next_sequence > 1 => Ok(Lost::Store(Some(store_id))),
        None if !missing => Ok(Lost::Store(None)),
        _ => Ok(Lost::Never),
    }
}

/// Writes `FORMAT` again, and puts what stood there aside.
pub(crate) fn restore_format(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> Result<(), StoreError> {
    if exists(disk, root, b"FORMAT").context("look up", || "FORMAT".to_owned())? {
        // Never without a name that says what it was; a cut in between is the case of a missing one.
        let quarantine = match disk.open_dir(root, b"quarantine") {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Layout::create(disk, root)?;
                disk.open_dir(root, b"quarantine")
            }
            other => other,
        };
        let quarantine = quarantine.context("open", || "quarantine".to_owned())?;
        move_aside(disk, root, b"FORMAT", &quarantine, "quarantine", &Aside::new(0))?;
    }
    format::write(disk, root, store_id)
}

/// Writes a new log from what is known (V2); gives what was found wrong and done, for people.
pub(crate) fn salvage(shared: &Arc<dyn Disk>, layout: &Layout, store_id: StoreId) -> Result<Vec<String>, StoreError> {
    let disk = shared.as_ref();
    let copy = SecondCopy::read(disk, &layout.root, store_id);
    // A copy whose end is damaged still says how far the log went.
    let known_through = SecondCopy::known_through(disk, &layout.root, store_id);
    let Remains { mut facts, next_sequence, damage, last_segment, .. } =
        Remains::read(disk, &layout.wal, Some(store_id), copy)?;
    let next_sequence = next_sequence.max(known_through + 1);
    let mut told: Vec<String> = damage.iter().map(|LogDamage { path, what }| format!("{path} {what}")).collect();
    let mut gathering = Gathering { disk, shared, layout, facts: &mut facts, sequence: next_sequence, told: &mut told };
    gathering.blobs()?;
    gathering.layers()?;
    gathering.images()?;
    gathering.containers()?;
    gathering.volumes()?;
    let aside = Aside::new(next_sequence);
    for name in unnamed(disk, layout, &facts)? {
        move_aside(disk, name.0, &name.1, &layout.quarantine, "quarantine", &aside)?;
        told.push(format!("{} is named by nothing that is left: it is in quarantine/", name.2));
    }
    disk.barrier(&layout.root).context("sync", || "the data root".to_owned())?; // V3
    Wal::start_over(disk, &layout.wal, store_id, last_segment + 1, next_sequence, &facts)?;
    for LogDamage { path, .. } in &damage {
        let Some(name) = path.strip_prefix("wal/") else { continue };
        if exists(disk, &layout.wal, name.as_bytes()).context("look up", || path.clone())? {
            move_aside(disk, &layout.wal, name.as_bytes(), &layout.quarantine, "quarantine", &aside)?;
        }
    }
    Ok(told)
}

/// Facts that objects tell of themselves.
struct Gathering<'a> {
    disk: &'a dyn Disk,
    shared: &'a Arc<dyn Disk>,
    layout: &'a Layout,
    facts: &'a mut Facts,
    sequence: u64,
    told: &'a mut Vec<String>,
}

impl Gathering<'_> {
    fn blobs(&mut self) -> Result<(), StoreError> {
        let layout = self.layout;
        for (algorithm, dir) in [(Algorithm::Sha256, &layout.blobs_sha256), (Algorithm::Sha512, &layout.blobs_sha512)] {
            for (name, _) in self.names(dir, "blobs")? {
                let text = format!("{}:{}", algorithm.name(), String::from_utf8_lossy(&name));
                let Ok(digest) = text.parse::<Digest>() else { continue };
                if self.facts.blobs.contains_key(&digest) {
                    continue;
                }
                let Some(bytes) = self.read(dir, &name, BLOB_BYTES_MAX).filter(|bytes| digest.matches(bytes)) else {
                    continue;
                };
                let fact = BlobFact { digest, size_bytes: bytes.len() as u64 };
                self.facts.blobs.insert(digest, (self.stated(fact), NO_TRANSACTION));
                self.told.push(format!("blob {digest} is known again by its digest"));
            }
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<(), StoreError> {
        let sources = self.sources();
        for (name, kind) in self.names(&self.layout.layers, "layers")? {
            let folder = String::from_utf8_lossy(&name).into_owned();
            let known = self.facts.layers.keys().any(|key| key.folder() == folder);
            let Some(key) = key_of(&folder).filter(|_| !known && kind == NodeKind::Directory) else { continue };
            let Ok(dir) = self.disk.open_dir(&self.layout.layers, &name) else { continue };
            let Ok(recipe) = Recipe::open(Arc::clone(self.shared), &dir) else { continue };
            let (summary, recipe_size_bytes) = (recipe.summary(), recipe.size_bytes());
            if summary.diff_id != key.diff_id {
                continue;
            }
            // Without a manifest that names it, its source is called by the diff ID: that of an uncompressed layer.
            let own = (key.diff_id.0, summary.tar_size_bytes);
            let (blob, blob_size_bytes) = sources.get(&key.diff_id).copied().unwrap_or(own);
            let fact = LayerFact {
                key: key.clone(),
                blob,
                blob_size_bytes,
                tar_size_bytes: summary.tar_size_bytes,
                unpacked_size_bytes: summary.payload_bytes,
                entries: summary.entries,
                recipe_size_bytes,
                implied_directories: summary.implied_directories,
            };
            self.told.push(format!("layer {key} is known again by its recipe"));
            self.facts.layers.insert(key, self.stated(fact));
        }
        Ok(())
    }

    /// The blob that each layer was unpacked from, with its size, as manifests and configs tell together.
    fn sources(&self) -> BTreeMap<DiffId, (Digest, u64)> {
        let mut sources = BTreeMap::new();
        for (manifest, config) in self.manifests().into_values() {
            let layers = manifest.layers.iter().map(|layer| (layer.digest, layer.size));
            sources.extend(config.diff_ids().iter().copied().zip(layers));
        }
        sources
    }

    /// Every manifest whose config is here too, by the image.
    fn manifests(&self) -> BTreeMap<ImageId, (Manifest, ImageConfig)> {
        let documents = || self.facts.blobs.keys().filter_map(|digest| Some((digest, self.blob(digest)?)));
        let manifests = documents().filter_map(|(_, bytes)| Manifest::parse(&bytes, None).ok());
        let pairs = manifests.filter_map(|manifest| {
            let config = ImageConfig::parse(self.blob(&manifest.config.digest)?).ok()?;
            (config.diff_ids().len() == manifest.layers.len()).then_some((config.id(), (manifest, config)))
        });
        pairs.collect()
    }

    fn images(&mut self) -> Result<(), StoreError> {
        let mut manifests: BTreeMap<ImageId, Digest> = BTreeMap::new();
        let mut configs = Vec::new();
        for digest in self.facts.blobs.keys() {
            let Some(bytes) = self.blob(digest) else { continue };
            if let Ok(manifest) = Manifest::parse(&bytes, None) {
                manifests.insert(ImageId(manifest.config.digest), *digest);
            } else if let Ok(config) = ImageConfig::parse(bytes) {
                configs.push(config);
            }
        }
        configs.retain(|config| !self.facts.images.contains_key(&config.id()));
        for config in configs {
            let mut keys = Vec::new();
            for (index, diff_id) in config.diff_ids().iter().enumerate() {
                let parents = ChainId::of(&config.diff_ids()[..index]);
                let with_parents = LayerKey { diff_id: *diff_id, parents };
                let alone = LayerKey::new(*diff_id);
                let mut known = [alone, with_parents].into_iter();
                keys.extend(known.find(|key| self.facts.layers.contains_key(key)));
            }
            let id = config.id();
            // An image whose layers are not all here is one that was being pulled or removed.
            if keys.len() == config.diff_ids().len() {
                let fact = ImageFact { id, manifest: manifests.get(&id).copied(), layers: keys };
                self.facts.images.insert(id, self.stated(fact));
                self.told.push(format!("image {id} is known again by its config; its tags may be lost"));
            }
        }
        Ok(())
    }

    fn containers(&mut self) -> Result<(), StoreError> {
        /// What is needed of a container's configuration.
        #[derive(Deserialize)]
        struct Config {
            version: u32,
            id: String,
            image_id: ImageId,
        }
        for (name, _) in self.names(&self.layout.containers, "containers")? {
            let id = String::from_utf8_lossy(&name).into_owned();
            if self.facts.containers.contains_key(&id) {
                continue;
            }
            let Ok(dir) = self.disk.open_dir(&self.layout.containers, &name) else { continue };
            let bytes = self.read(&dir, b"config.json", CONFIG_BYTES_MAX).unwrap_or_default();
            let parsed = baleen_oci::json::parse::<Config>(&bytes, CONFIG_BYTES_MAX as usize);
            let Some(config) = parsed.ok().filter(|config| config.version == 1 && config.id == id) else { continue };
            let short: String = id.chars().take(12).collect();
            let name = format!("recovered-{short}");
            let fact = ContainerFact { id: id.clone(), name, image: config.image_id, desired: Desired::Stopped };
            self.told.push(format!("container {id} is known again by its config.json; its name is now {}", fact.name));
            self.facts.containers.insert(id, (self.stated(fact), NO_TRANSACTION));
        }
        Ok(())
    }

    fn volumes(&mut self) -> Result<(), StoreError> {
        for (name, kind) in self.names(&self.layout.volumes, "volumes")? {
            let Ok(text) = String::from_utf8(name.clone()) else { continue };
            if kind != NodeKind::Directory || self.facts.volumes.contains_key(&text) {
                continue;
            }
            let described = self.disk.open_dir(&self.layout.volumes, &name).is_ok_and(|dir| {
                let there = self.disk.metadata_at(&dir, b"volume.json");
                there.is_ok_and(|found| found.kind == NodeKind::File)
            });
            if described {
                self.told.push(format!("volume {text} is known again by its volume.json"));
                let fact = VolumeFact { name: text.clone() };
                self.facts.volumes.insert(text, (self.stated(fact), NO_TRANSACTION));
            }
        }
        Ok(())
    }

    fn stated<T>(&self, fact: T) -> Stated<T> {
        // Younger than every record: of two things that exclude each other, what a record says is older and stays.
        Stated { sequence: self.sequence.saturating_sub(1), fact }
    }

    fn names(&self, dir: &Handle, path: &str) -> Result<Vec<(Vec<u8>, NodeKind)>, StoreError> {
        let mut entries = self.disk.read_dir(dir).context("list", || path.to_owned())?;
        entries.sort();
        Ok(entries.into_iter().map(|entry| (entry.name, entry.kind)).collect())
    }

    fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let (dir, name) = self.layout.place(&crate::layout::Object::Blob(*digest));
        self.read(dir, &name, BLOB_BYTES_MAX).filter(|bytes| digest.matches(bytes))
    }

    /// The bytes of a file, if it can be read: one that cannot tells nothing.
    fn read(&self, dir: &Handle, name: &[u8], limit_bytes: u64) -> Option<Vec<u8>> {
        let file = self.disk.open_file(dir, name, Access::Read).ok()?;
        read_file(self.disk, &file, limit_bytes).ok()
    }
}

/// Objects that are known by themselves were in place: no transaction's folder is looked for.
const NO_TRANSACTION: TransactionId = TransactionId { opened: 0, counter: 0 };

/// What a layer's folder says it is.
fn key_of(folder: &str) -> Option<LayerKey> {
    let digest = |hex: &str| {
        let algorithm = match hex.len() {
            64 => Algorithm::Sha256,
            128 => Algorithm::Sha512,
            _ => return None,
        };
        format!("{}:{hex}", algorithm.name()).parse::<Digest>().ok()
    };
    match folder.split_once('+') {
        None => Some(LayerKey::new(DiffId(digest(folder)?))),
        Some((own, parents)) => {
            Some(LayerKey { diff_id: DiffId(digest(own)?), parents: Some(ChainId(digest(parents)?)) })
        }
    }
}

type Unnamed<'a> = (&'a Handle, Vec<u8>, String);

/// What stands where objects do and is named by no fact: an opening would throw it away, and here its record may be lost.
fn unnamed<'a>(disk: &dyn Disk, layout: &'a Layout, facts: &Facts) -> Result<Vec<Unnamed<'a>>, StoreError> {
    let mut found = Vec::new();
    for (dir, prefix) in [
        (&layout.blobs_sha256, "blobs/sha256"),
        (&layout.blobs_sha512, "blobs/sha512"),
        (&layout.layers, "layers"),
        (&layout.containers, "containers"),
    ] {
        for entry in disk.read_dir(dir).context("list", || prefix.to_owned())? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let named = match prefix {
                "layers" => facts.layers.keys().any(|key| key.folder() == name),
                "containers" => facts.containers.contains_key(&name),
                _ => {
                    facts.blobs.keys().any(|digest| prefix.ends_with(digest.algorithm().name()) && digest.hex() == name)
                }
            };
            if !named {
                found.push((dir, entry.name, format!("{prefix}/{name}")));
            }
        }
    }
    Ok(found)
}
