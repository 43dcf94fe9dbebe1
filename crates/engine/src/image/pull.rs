//! Pull: a reference to a durable image, with every step told.
//!
//! P1  The tag is resolved to a digest once; everything else is asked for by digest.
//! P2  `pull begun` is recorded before the first layer is fetched, so that a cut pull keeps the layers it has stored.
//! P3  `Pull complete` of a layer is told after its record is durable; `Digest` and `Status` after the image's.
//! P4  Image, tag and the end of the pull are one transaction.

use std::sync::Arc;
use std::time::Instant;

use baleen_oci::{Descriptor, DiffId, Platform, Reference};
use baleen_registry::{Credentials, RepositoryClient, ResolvedImage};
use baleen_store::{ImageFact, LayerKey, Lease, PullFact, PullLayer, Store, StoreError};

use super::download::{Job, Stage};
use super::lookup::store_error;
use super::remove::tag_fact;
use super::unpack::reserve_bytes;
use super::{PullRequest, Pulled};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::progress::{LayerPhase, Progress, ProgressSender};

/// A layer of the image that is being pulled.
#[derive(Debug, Clone)]
struct Wanted {
    descriptor: Descriptor,
    key: LayerKey,
    /// First 12 digits of the blob's digest, as progress names it.
    short: Arc<str>,
}

impl Wanted {
    fn tell(&self, phase: LayerPhase) -> Progress {
        Progress::Layer { id: Arc::clone(&self.short), phase }
    }
}

impl Engine {
    /// Pulls an image. Until the registry has answered for the manifest nothing is sent to `progress`: an error before
    /// the first message is a plain error of the request, one after it is the stream's last line.
    ///
    /// Dropping the future cancels the pull, except for layers that another pull waits for.
    ///
    /// # Durability
    /// `Pull complete` of a layer is sent after its record is synced; on `Ok` image and tag are durable.
    ///
    /// # Errors
    /// Those of names, registry, content, space and store, each by its own variant.
    pub async fn pull(self: &Arc<Self>, request: PullRequest, progress: ProgressSender) -> Result<Pulled, EngineError> {
        let began = Instant::now();
        let PullRequest { reference, platform, auth } = request;
        if reference.repository().is_docker_io() && reference.path() == "library/scratch" {
            return Err(EngineError::ScratchIsReserved);
        }
        let credentials = auth.0.as_deref().map_or(Credentials::Anonymous, Credentials::from_header_or_anonymous);
        let client = self.registry.repository(reference.repository(), credentials);
        let wanted_platform = platform.clone().unwrap_or_else(|| self.config.platform.clone());
        let resolved = client
            .resolve(&reference, &wanted_platform)
            .await
            .map_err(|error| EngineError::Registry(Box::new(error)))?;
        let layers = wanted(&reference, &resolved)?;

        let id = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        progress.send(Progress::PullingFrom { repository: reference.path().to_owned(), id }).await;
        if let Some(line) = platform_warning(&reference, &resolved, platform.as_ref()) {
            progress.send(Progress::Line(line)).await;
        }
        // The lease keeps what the store has until the image's own record does.
        let (lease, missing) = self.prepare(&resolved, &layers).await?;
        let fetched_bytes = self.fetch(&client, &lease, &layers, &missing, &progress).await?;
        let up_to_date = self.store_image(&reference, resolved.clone(), &layers, missing.is_empty()).await?;
        drop(lease);

        let name = reference.familiar();
        progress.send(Progress::Digest(resolved.digest.to_string())).await;
        let status = if up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
        progress.send(Progress::Status(format!("{status} {name}"))).await;
        self.image_event("pull", &name, &reference.repository().familiar());
        tracing::info!(reference = name, digest = %resolved.digest, fetched_bytes, seconds = began.elapsed().as_secs_f64(), "pulled");
        Ok(Pulled {
            image_id: resolved.config.id().to_string(),
            digest: resolved.digest.to_string(),
            up_to_date,
            fetched_bytes,
        })
    }

    /// Finds out what is missing, whether it fits, and records that the pull has begun (P2).
    async fn prepare(
        &self,
        resolved: &ResolvedImage,
        layers: &[Wanted],
    ) -> Result<(Arc<Lease>, Vec<Wanted>), EngineError> {
        let (store, layers) = (self.store.clone(), layers.to_vec());
        let manifest = resolved.manifest_document.digest;
        self.door
            .enter("begin a pull", move || {
                let lease = store.lease();
                let mut missing: Vec<Wanted> = Vec::new();
                for layer in &layers {
                    if lease.layer(&layer.key).is_none() && !missing.iter().any(|other| other.key == layer.key) {
                        missing.push(layer.clone());
                    }
                }
                if !missing.is_empty() {
                    check_space(&store, &missing)?;
                    let layers = layers.iter().map(|layer| PullLayer {
                        blob: layer.descriptor.digest,
                        blob_size_bytes: layer.descriptor.size,
                        key: layer.key.clone(),
                    });
                    let pull = PullFact { manifest, layers: layers.collect() };
                    store.begin_pull(pull).map_err(store_error("begin the pull"))?;
                }
                Ok((Arc::new(lease), missing))
            })
            .await
    }

    /// Fetches the missing layers side by side and tells of all; gives the bytes that were received.
    async fn fetch(
        &self,
        client: &RepositoryClient,
        lease: &Arc<Lease>,
        layers: &[Wanted],
        missing: &[Wanted],
        progress: &ProgressSender,
    ) -> Result<u64, EngineError> {
        let is_missing = |layer: &Wanted| missing.iter().any(|other| other.key == layer.key);
        for layer in layers {
            let phase = if is_missing(layer) { LayerPhase::PullingFsLayer } else { LayerPhase::AlreadyExists };
            progress.send(layer.tell(phase)).await;
        }
        let mut followers = tokio::task::JoinSet::new();
        for layer in missing {
            let job = self.downloads.join(&self.store, client, &layer.descriptor, layer.key.diff_id);
            let (lease, layer, progress) = (Arc::clone(lease), layer.clone(), progress.clone());
            followers.spawn(follow(job, lease, layer, progress));
        }
        let mut fetched_bytes = 0;
        while let Some(followed) = followers.join_next().await {
            let outcome = followed.map_err(|error| crate::door::ended("fetch a layer", &error));
            match outcome.and_then(|outcome| outcome) {
                Ok(bytes) => fetched_bytes += bytes,
                Err(error) => {
                    // The first failure ends the pull: it lets go of the other jobs, and is told once they have cleaned up.
                    followers.shutdown().await;
                    for layer in missing {
                        self.downloads.settle(layer.descriptor.digest, layer.key.diff_id).await;
                    }
                    return Err(error);
                }
            }
        }
        // A layer that the image has twice is fetched once.
        Ok(fetched_bytes)
    }

    /// Records image and names (P4); gives whether everything was so already.
    async fn store_image(
        &self,
        reference: &Reference,
        resolved: ResolvedImage,
        layers: &[Wanted],
        had_layers: bool,
    ) -> Result<bool, EngineError> {
        let (store, reference) = (self.store.clone(), reference.clone());
        let keys: Vec<LayerKey> = layers.iter().map(|layer| layer.key.clone()).collect();
        let store_all = move || record(&store, &reference, &resolved, &keys, had_layers);
        self.door.enter("store an image", store_all).await
    }
}

/// The layers that the manifest and the configuration name together.
fn wanted(reference: &Reference, resolved: &ResolvedImage) -> Result<Vec<Wanted>, EngineError> {
    let pairs = resolved.manifest.layers.iter().zip(resolved.config.diff_ids());
    let layer = |(descriptor, diff_id): (&Descriptor, &DiffId)| match descriptor.layer_format() {
        Some(_) => Ok(Wanted {
            descriptor: descriptor.clone(),
            key: LayerKey::new(*diff_id),
            short: descriptor.digest.short().into(),
        }),
        None => Err(EngineError::ImageRefused {
            reference: reference.familiar(),
            reason: format!(
                "layer {} has the media type {}, which is not a layer's",
                descriptor.digest.short(),
                descriptor.media_type
            ),
        }),
    };
    pairs.map(layer).collect()
}

fn platform_warning(reference: &Reference, resolved: &ResolvedImage, asked: Option<&Platform>) -> Option<String> {
    let (asked, image) = (asked?, resolved.config.platform());
    if image.os.is_empty() || asked.is_same(&image) || asked.rank(&image).is_some() {
        return None;
    }
    let name = reference.familiar();
    Some(format!(
        "WARNING: image with reference {name} was found but its platform ({image}) does not match the specified platform ({asked})"
    ))
}

/// Compares the least that the layers need, their compressed size, with what is free.
fn check_space(store: &Store, missing: &[Wanted]) -> Result<(), EngineError> {
    let needed_bytes = missing.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add);
    let free_bytes = || -> Result<u64, EngineError> {
        let space = store.space().map_err(store_error("find out how much space is free"))?;
        Ok(space.free_bytes.saturating_sub(reserve_bytes(space.total_bytes)))
    };
    if needed_bytes <= free_bytes()? {
        return Ok(());
    }
    store.make_room();
    match free_bytes()? {
        enough if needed_bytes <= enough => Ok(()),
        free_bytes => Err(EngineError::NoSpace { what: "the image".to_owned(), needed_bytes, free_bytes }),
    }
}

/// Tells of a job until it ends.
async fn follow(job: Arc<Job>, lease: Arc<Lease>, layer: Wanted, progress: ProgressSender) -> Result<u64, EngineError> {
    let mut stage = job.stage.clone();
    let total_bytes = layer.descriptor.size;
    let (mut waited, mut downloaded) = (false, false);
    loop {
        let now = stage.borrow_and_update().clone();
        match now {
            Stage::Waiting if !waited => {
                waited = true;
                progress.send(layer.tell(LayerPhase::Waiting)).await;
            }
            Stage::Waiting => {}
            Stage::Downloading(current_bytes) => {
                progress.offer(layer.tell(LayerPhase::Downloading { current_bytes, total_bytes }));
            }
            Stage::Retrying(seconds, reason) => progress.offer(layer.tell(LayerPhase::Retrying { seconds, reason })),
            Stage::Storing => {
                downloaded = true;
                tell_downloaded(&layer, &progress).await;
            }
            Stage::Stored(bytes) => {
                if !downloaded {
                    tell_downloaded(&layer, &progress).await;
                }
                // The pull's record keeps it already, unless that was given up meanwhile; from here on the lease does.
                let key = layer.key.clone();
                let leased = tokio::task::spawn_blocking(move || lease.layer(&key).is_some()).await;
                if !leased.map_err(|error| crate::door::ended("lease a layer", &error))? {
                    let reason = format!("layer {} was pruned while the pull went on; pull again", layer.short);
                    return Err(EngineError::conflict(reason));
                }
                progress.send(layer.tell(LayerPhase::PullComplete)).await;
                return Ok(bytes);
            }
            Stage::Failed(error) => return Err(EngineError::shared(error)),
        }
        if stage.changed().await.is_err() {
            // The job's task ended without a word: it panicked.
            return Err(EngineError::Panicked { action: "fetching a layer" });
        }
    }
}

async fn tell_downloaded(layer: &Wanted, progress: &ProgressSender) {
    let total_bytes = layer.descriptor.size;
    progress.send(layer.tell(LayerPhase::VerifyingChecksum)).await;
    progress.send(layer.tell(LayerPhase::DownloadComplete)).await;
    progress.send(layer.tell(LayerPhase::Extracting { current_bytes: total_bytes, total_bytes })).await;
}

fn record(
    store: &Store,
    reference: &Reference,
    resolved: &ResolvedImage,
    layers: &[LayerKey],
    had_layers: bool,
) -> Result<bool, EngineError> {
    let image = resolved.config.id();
    let names = names(reference, resolved)?;
    let is_named = |name: &Reference| store.tag(&name.to_string()).is_some_and(|tag| tag.image == image);
    if had_layers && store.image(&image).is_some() && names.iter().all(is_named) {
        return Ok(true);
    }
    // A barrier that fails drops what is staged, and the same again may do.
    match commit(store, &names, resolved, layers) {
        Err(StoreError::StagingDropped) => commit(store, &names, resolved, layers),
        other => other,
    }
    .map_err(store_error("store the image"))?;
    Ok(false)
}

/// The tag that was asked for, and the digest that it stood for.
fn names(reference: &Reference, resolved: &ResolvedImage) -> Result<Vec<Reference>, EngineError> {
    let by_digest = reference.repository().with_digest(resolved.digest);
    match (reference.digest(), reference.tag()) {
        (None, Some(tag)) => {
            let invalid = |source| EngineError::InvalidReference { text: reference.familiar(), source };
            Ok(vec![reference.repository().with_tag(tag).map_err(invalid)?, by_digest])
        }
        _ => Ok(vec![by_digest]),
    }
}

fn commit(store: &Store, names: &[Reference], resolved: &ResolvedImage, layers: &[LayerKey]) -> Result<(), StoreError> {
    let image = resolved.config.id();
    let manifest = &resolved.manifest_document;
    let mut txn = store.begin()?;
    txn.stage_blob(image.digest(), resolved.config.raw())?;
    txn.stage_blob(&manifest.digest, &manifest.bytes)?;
    txn.store_image(ImageFact { id: image, manifest: Some(manifest.digest), layers: layers.to_vec() });
    for name in names {
        txn.set_tag(tag_fact(name, image))?;
    }
    txn.end_pull(&manifest.digest);
    txn.commit()
}
