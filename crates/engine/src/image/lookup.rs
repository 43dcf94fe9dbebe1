//! Finding images by what users call them, and what list, inspect and history tell.
//!
//! L1  A name is looked up as an ID in full, then as a reference, then as a unique prefix of an ID (Docker's order).
//! L2  The store's tags are full references: `repository:tag`, and `repository@digest` for what a pull was resolved to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use baleen_oci::{Digest, ImageConfig, ImageId, Reference, Repository};
use baleen_store::{ImageFact, LayerFact, LayerKey, Store, StoreError, TagFact};

use super::{GraphDriver, HistoryItem, ImageDetails, ImageSummary};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::time::Timestamp;

/// The shortest prefix of an ID that is looked for; one digit less would make a typing error an image.
const ID_PREFIX_DIGITS_MIN: usize = 1;

/// An image that was found, and the tag by which if by one.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) image: ImageFact,
    pub(crate) tag: Option<Reference>,
}

/// Finds an image by reference, ID or unique prefix of an ID (L1).
pub(crate) fn find(store: &Store, name: &str) -> Result<Found, EngineError> {
    if let Some(id) = full_id(name) {
        return match store.image(&id) {
            Some(image) => Ok(Found { image, tag: None }),
            None => Err(EngineError::NoSuchImage { name: name.to_owned() }),
        };
    }
    let reference = Reference::parse(name);
    if let Ok(reference) = &reference {
        let tag = stored_name(reference);
        if let Some(fact) = store.tag(&tag.to_string())
            && let Some(image) = store.image(&fact.image)
        {
            return Ok(Found { image, tag: Some(tag) });
        }
    }
    if let Some(image) = by_prefix(store, name)? {
        return Ok(Found { image, tag: None });
    }
    match reference {
        Ok(reference) => Err(EngineError::NoSuchImage { name: reference.familiar() }),
        Err(source) => Err(EngineError::InvalidReference { text: name.to_owned(), source }),
    }
}

/// The reference under which the store knows it: a digest beside a tag decides.
pub(crate) fn stored_name(reference: &Reference) -> Reference {
    match reference.digest() {
        Some(digest) => reference.repository().with_digest(*digest),
        None => reference.clone(),
    }
}

fn full_id(name: &str) -> Option<ImageId> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    format!("sha256:{hex}").parse::<Digest>().ok().map(ImageId)
}

fn by_prefix(store: &Store, name: &str) -> Result<Option<ImageFact>, EngineError> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_prefix = hex.len() >= ID_PREFIX_DIGITS_MIN
        && hex.len() < 64
        && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !is_prefix {
        return Ok(None);
    }
    let mut matching = store.images().into_iter().filter(|image| image.id.hex().starts_with(hex));
    match (matching.next(), matching.next()) {
        (Some(_), Some(_)) => Err(EngineError::AmbiguousPrefix { prefix: name.to_owned() }),
        (only, _) => Ok(only),
    }
}

/// A store error as the engine's.
pub(crate) fn store_error(action: &'static str) -> impl Fn(StoreError) -> EngineError {
    move |error| EngineError::part(action, error)
}

/// The store's tags by image, tags and digests apart, each sorted by its familiar form.
pub(crate) struct Names(BTreeMap<ImageId, Vec<(Reference, TagFact)>>);

impl Names {
    pub(crate) fn of(store: &Store) -> Self {
        let mut names: BTreeMap<ImageId, Vec<(Reference, TagFact)>> = BTreeMap::new();
        for fact in store.tags() {
            // Names are written by us from parsed references; one that no longer parses is shown by nobody.
            if let Ok(reference) = Reference::parse(&fact.name) {
                names.entry(fact.image).or_default().push((reference, fact));
            }
        }
        Self(names)
    }

    fn all(&self, id: &ImageId) -> impl Iterator<Item = &(Reference, TagFact)> {
        self.0.get(id).into_iter().flatten()
    }

    pub(crate) fn tags(&self, id: &ImageId) -> impl Iterator<Item = &Reference> {
        self.all(id).map(|(reference, _)| reference).filter(|reference| reference.digest().is_none())
    }

    pub(crate) fn digests(&self, id: &ImageId) -> impl Iterator<Item = &Reference> {
        self.all(id).map(|(reference, _)| reference).filter(|reference| reference.digest().is_some())
    }

    pub(crate) fn repositories(&self, id: &ImageId) -> Vec<Repository> {
        let mut repositories: Vec<Repository> = self.all(id).map(|(name, _)| name.repository().clone()).collect();
        repositories.sort();
        repositories.dedup();
        repositories
    }

    /// When a name of it was last set.
    pub(crate) fn last_set_seconds(&self, id: &ImageId) -> Option<i64> {
        self.all(id).map(|(_, fact)| fact.set_at_seconds).max()
    }

    fn last_set(&self, id: &ImageId) -> Option<Timestamp> {
        let seconds = self.last_set_seconds(id)?;
        Some(Timestamp { seconds, nanoseconds: 0 })
    }
}

fn familiar_sorted<'a>(references: impl Iterator<Item = &'a Reference>) -> Vec<String> {
    let mut names: Vec<String> = references.map(Reference::familiar).collect();
    names.sort();
    names
}

/// The configuration of an image, read from the store.
pub(crate) fn config(store: &Store, id: &ImageId) -> Result<ImageConfig, EngineError> {
    let raw = store.read_blob(id.digest()).map_err(store_error("read the image's configuration"))?;
    ImageConfig::parse(raw).map_err(|error| EngineError::part("read the image's configuration", error))
}

struct Catalogue {
    names: Names,
    layers: BTreeMap<LayerKey, LayerFact>,
    containers: BTreeMap<ImageId, u64>,
}

impl Catalogue {
    fn of(store: &Store) -> Self {
        let mut containers = BTreeMap::new();
        for container in store.containers() {
            *containers.entry(container.image).or_insert(0) += 1;
        }
        let layers = store.layers().into_iter().map(|layer| (layer.key.clone(), layer)).collect();
        Self { names: Names::of(store), layers, containers }
    }

    fn size_bytes(&self, image: &ImageFact) -> u64 {
        image.layers.iter().filter_map(|key| self.layers.get(key)).map(|layer| layer.unpacked_size_bytes).sum()
    }

    fn summary(&self, image: &ImageFact, config: &ImageConfig) -> ImageSummary {
        ImageSummary {
            id: image.id.to_string(),
            repo_tags: familiar_sorted(self.names.tags(&image.id)),
            repo_digests: familiar_sorted(self.names.digests(&image.id)),
            created: config.created().and_then(Timestamp::parse_rfc3339),
            size_bytes: self.size_bytes(image),
            labels: config.run_config().labels.clone(),
            containers: self.containers.get(&image.id).copied().unwrap_or(0),
        }
    }
}

/// overlay2's directories of an image: the top layer is the upper one.
pub(crate) fn graph_driver(data_root: &Path, layers: &[LayerKey]) -> GraphDriver {
    let mut dirs = layer_dirs(data_root, layers).into_iter();
    let upper_dir = dirs.next();
    GraphDriver { lower_dirs: dirs.collect(), upper_dir, work_dir: None, merged_dir: None }
}

/// Paths of layers' trees, top first.
pub(crate) fn layer_dirs(data_root: &Path, layers: &[LayerKey]) -> Vec<String> {
    let dir = |key: &LayerKey| data_root.join("layers").join(key.folder()).join("fs").to_string_lossy().into_owned();
    layers.iter().rev().map(dir).collect()
}

impl Engine {
    /// All images, newest first.
    ///
    /// # Errors
    /// Of the store.
    pub async fn images(self: &Arc<Self>) -> Result<Vec<ImageSummary>, EngineError> {
        let store = self.store.clone();
        self.door
            .enter("list images", move || {
                let catalogue = Catalogue::of(&store);
                let mut list = Vec::new();
                for image in store.images() {
                    // An image whose configuration is damaged must not hide the others.
                    match config(&store, &image.id) {
                        Ok(config) => list.push(catalogue.summary(&image, &config)),
                        Err(error) => {
                            tracing::warn!(digest = %image.id, error = error.chain(), "an image cannot be listed")
                        }
                    }
                }
                list.sort_by(|one, other| other.created.cmp(&one.created).then_with(|| one.id.cmp(&other.id)));
                Ok(list)
            })
            .await
    }

    /// One image by reference, ID or unique prefix of an ID.
    ///
    /// # Errors
    /// `NoSuchImage`.
    pub async fn image(self: &Arc<Self>, name: &str) -> Result<ImageDetails, EngineError> {
        let (engine, name) = (Arc::clone(self), name.to_owned());
        self.door
            .enter("inspect an image", move || {
                let image = find(&engine.store, &name)?.image;
                let config = config(&engine.store, &image.id)?;
                let catalogue = Catalogue::of(&engine.store);
                Ok(ImageDetails {
                    summary: catalogue.summary(&image, &config),
                    comment: config.comment().to_owned(),
                    author: config.author().to_owned(),
                    docker_version: config.docker_version().to_owned(),
                    config: config.run_config().clone(),
                    architecture: config.architecture().to_owned(),
                    variant: config.variant().to_owned(),
                    os: config.os().to_owned(),
                    os_version: config.os_version().to_owned(),
                    graph_driver: graph_driver(&engine.config.data_root, &image.layers),
                    diff_ids: config.diff_ids().iter().map(ToString::to_string).collect(),
                    last_tagged: catalogue.names.last_set(&image.id),
                })
            })
            .await
    }

    /// The steps that built an image, newest first.
    ///
    /// # Errors
    /// `NoSuchImage`.
    pub async fn image_history(self: &Arc<Self>, name: &str) -> Result<Vec<HistoryItem>, EngineError> {
        let (store, name) = (self.store.clone(), name.to_owned());
        self.door
            .enter("read the history of an image", move || {
                let image = find(&store, &name)?.image;
                let config = config(&store, &image.id)?;
                let catalogue = Catalogue::of(&store);
                Ok(history(&image, &config, &catalogue))
            })
            .await
    }
}

fn history(image: &ImageFact, config: &ImageConfig, catalogue: &Catalogue) -> Vec<HistoryItem> {
    let mut layers = image.layers.iter();
    let mut items: Vec<HistoryItem> = Vec::new();
    for step in config.history() {
        let layer = if step.empty_layer { None } else { layers.next() };
        let size_bytes = layer.and_then(|key| catalogue.layers.get(key)).map_or(0, |layer| layer.unpacked_size_bytes);
        items.push(HistoryItem {
            id: None,
            created: step.created.as_deref().and_then(Timestamp::parse_rfc3339),
            created_by: step.created_by.clone(),
            tags: Vec::new(),
            size_bytes,
            comment: step.comment.clone(),
        });
    }
    // Builders in the field write too short a history: the layers that are left over are shown without their step.
    for key in layers {
        let size_bytes = catalogue.layers.get(key).map_or(0, |layer| layer.unpacked_size_bytes);
        let (created_by, comment) = (String::new(), String::new());
        items.push(HistoryItem { id: None, created: None, created_by, tags: Vec::new(), size_bytes, comment });
    }
    items.reverse();
    if let Some(newest) = items.first_mut() {
        newest.id = Some(image.id.to_string());
        newest.tags = familiar_sorted(catalogue.names.tags(&image.id));
    }
    items
}
