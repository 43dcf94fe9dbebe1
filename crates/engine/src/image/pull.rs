//! Pull: a reference to a durable image, with every step told.
//!
//! P1  The tag is resolved to a digest once; everything else is asked for by digest.
//! P2  `pull begun` is recorded before the first layer is fetched, so that a cut pull keeps the layers it has stored.
//! P3  `Pull complete` of a layer is told after its record is durable; `Digest` and `Status` after the image's.
//! P4  Image, tag and the end of the pull are one transaction, with the layers that came last where that can be.

use std::sync::Arc;
use std::time::Instant;

use baleen_oci::{Descriptor, Platform, Reference};
use baleen_registry::{RepositoryClient, ResolvedImage};
use baleen_store::{Lease, Store, StoreError};

use super::commit::{Awaited, pull_fact, stage_image};
use super::delta::DeltaSource;
use super::delta::find::{MissingLayer, Search};
use super::download::{Job, Received, Stage};
use super::lookup::store_error;
use super::stack::Place;
use super::unpack::reserve_bytes;
use super::{PullRequest, Pulled};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::progress::{LayerPhase, Progress, ProgressSender};

/// What a pull that was cut before is taken to have been cut: the log tells of one, and where power fails once it may well
/// fail again, so that the longest intervals are passed over.
const KNOWN_CUTS: u32 = 2;

/// A layer of the image that is being pulled.
#[derive(Debug, Clone)]
struct Wanted {
    descriptor: Descriptor,
    /// Its own place last, after those below it.
    places: Arc<[Place]>,
    /// First 12 digits of the blob's digest, as progress names it.
    short: Arc<str>,
}

/// A pull that may begin.
struct Prepared {
    lease: Arc<Lease>,
    missing: Vec<Wanted>,
    /// Cuts that its record tells of.
    cuts: u32,
}

impl Wanted {
    fn place(&self) -> &Place {
        self.places.last().expect("a layer has a place")
    }

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
        let client = self.repository_client(reference.repository(), &auth);
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
        let Prepared { lease, missing, cuts } = self.prepare(&resolved, &layers).await?;
        let Search { delta, line } = self.find_delta(&client, &resolved, &in_full(&missing)).await;
        if let Some(line) = line {
            progress.send(Progress::Line(line)).await;
        }
        let resolved = Arc::new(resolved);
        let places = layers.iter().map(|layer| layer.place().clone()).collect();
        let image = Awaited::new(names(&reference, &resolved)?, Arc::clone(&resolved), places, Arc::clone(&lease));
        let waiting = (!missing.is_empty()).then(|| self.downloads.commits.await_layers(Arc::clone(&image)));
        let received = self.fetch((&client, delta.as_ref()), &lease, &layers, &missing, cuts, &progress).await?;
        drop(waiting);
        let up_to_date = self.store_image(&image, missing.is_empty()).await?;
        drop(lease);

        let Received { fetched_bytes, resumed_bytes, in_full_bytes } = received;
        let name = reference.familiar();
        let by_delta = delta.as_ref().map_or(0, |delta| delta.fetched_bytes());
        let fetched_bytes = fetched_bytes + delta.as_ref().map_or(0, |delta| delta.begin_bytes);
        let saved_bytes = in_full_bytes.saturating_sub(by_delta);
        self.deltas.count(fetched_bytes, saved_bytes, delta.as_deref());
        if in_full_bytes > 0 {
            let line = format!("Delta: {by_delta} bytes fetched in place of {in_full_bytes}");
            progress.send(Progress::Line(line)).await;
        }
        progress.send(Progress::Digest(resolved.digest.to_string())).await;
        let status = if up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
        progress.send(Progress::Status(format!("{status} {name}"))).await;
        self.image_event("pull", &name, &reference.repository().familiar());
        tracing::info!(reference = name, digest = %resolved.digest, fetched_bytes, resumed_bytes, saved_bytes, seconds = began.elapsed().as_secs_f64(), "pulled");
        Ok(Pulled {
            image_id: resolved.config.id().to_string(),
            digest: resolved.digest.to_string(),
            up_to_date,
            fetched_bytes,
            resumed_bytes,
            saved_bytes,
        })
    }

    /// Finds out what is missing, whether it fits, and records that the pull has begun (P2).
    async fn prepare(&self, resolved: &ResolvedImage, layers: &[Wanted]) -> Result<Prepared, EngineError> {
        let (store, layers) = (self.store.clone(), layers.to_vec());
        let manifest = resolved.manifest_document.digest;
        self.door
            .enter("begin a pull", move || {
                let lease = store.lease();
                let mut missing: Vec<Wanted> = Vec::new();
                for layer in &layers {
                    let is_listed = || missing.iter().any(|other| other.place().diff_id == layer.place().diff_id);
                    if layer.place().find(&lease).is_none() && !is_listed() {
                        missing.push(layer.clone());
                    }
                }
                let mut was_cut = false;
                if !missing.is_empty() {
                    check_space(&store, &missing)?;
                    let places = layers.iter().map(Wanted::place);
                    let pull = pull_fact(manifest, layers.iter().map(|layer| &layer.descriptor).zip(places), &lease);
                    was_cut = store.begin_pull(pull).map_err(store_error("begin the pull"))?;
                }
                Ok(Prepared { lease: Arc::new(lease), missing, cuts: if was_cut { KNOWN_CUTS } else { 0 } })
            })
            .await
    }

    /// Fetches the missing layers side by side, by the delta what it makes, and tells of all; gives what was received.
    async fn fetch(
        &self,
        (client, delta): (&RepositoryClient, Option<&Arc<DeltaSource>>),
        lease: &Arc<Lease>,
        layers: &[Wanted],
        missing: &[Wanted],
        cuts: u32,
        progress: &ProgressSender,
    ) -> Result<Received, EngineError> {
        let is_missing = |layer: &Wanted| missing.iter().any(|other| other.place().diff_id == layer.place().diff_id);
        for layer in layers {
            let phase = if is_missing(layer) { LayerPhase::PullingFsLayer } else { LayerPhase::AlreadyExists };
            progress.send(layer.tell(phase)).await;
        }
        let mut followers = tokio::task::JoinSet::new();
        for layer in missing {
            let job = self.downloads.join(&self.store, client, &layer.descriptor, &layer.places, cuts, delta);
            let (lease, layer, progress) = (Arc::clone(lease), layer.clone(), progress.clone());
            followers.spawn(follow(job, lease, layer, delta.cloned(), progress));
        }
        let mut all = Received::default();
        while let Some(followed) = followers.join_next().await {
            let outcome = followed.map_err(|error| crate::door::ended("fetch a layer", &error));
            match outcome.and_then(|outcome| outcome) {
                Ok(received) => {
                    all.fetched_bytes += received.fetched_bytes;
                    all.resumed_bytes += received.resumed_bytes;
                    all.in_full_bytes += received.in_full_bytes;
                }
                Err(error) => {
                    // The first failure ends the pull: it lets go of the other jobs, and is told once they have cleaned up.
                    followers.shutdown().await;
                    for layer in missing {
                        self.downloads.settle(layer.descriptor.digest, layer.place().diff_id).await;
                    }
                    return Err(error);
                }
            }
        }
        // A layer that the image has twice is fetched once.
        Ok(all)
    }

    /// Records image and names (P4), unless the last layers brought them along; gives whether everything was so already.
    async fn store_image(&self, image: &Arc<Awaited>, had_layers: bool) -> Result<bool, EngineError> {
        if image.is_recorded() {
            return Ok(false);
        }
        let (store, image) = (self.store.clone(), Arc::clone(image));
        self.door.enter("store an image", move || record(&store, &image, had_layers)).await
    }
}

fn in_full(missing: &[Wanted]) -> Vec<MissingLayer> {
    let layer = |wanted: &Wanted| MissingLayer { diff_id: wanted.place().diff_id, size_bytes: wanted.descriptor.size };
    missing.iter().map(layer).collect()
}

/// The layers that the manifest and the configuration name together.
fn wanted(reference: &Reference, resolved: &ResolvedImage) -> Result<Vec<Wanted>, EngineError> {
    let places = Place::all(resolved.config.diff_ids());
    let numbered = resolved.manifest.layers.iter().enumerate();
    let layer = |(number, descriptor): (usize, &Descriptor)| match descriptor.layer_format() {
        Some(_) => Ok(Wanted {
            descriptor: descriptor.clone(),
            places: places[..=number].into(),
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
    numbered.map(layer).collect()
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
    let kept = store.partial_bytes().map_err(store_error("look at what cut pulls have left"))?;
    // What a cut pull has left of a layer is there already; it is unpacked, so this asks for too little rather than too much.
    let needed =
        |layer: &Wanted| layer.descriptor.size.saturating_sub(kept.get(&layer.descriptor.digest).copied().unwrap_or(0));
    let needed_bytes = missing.iter().map(needed).fold(0, u64::saturating_add);
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
async fn follow(
    job: Arc<Job>,
    lease: Arc<Lease>,
    layer: Wanted,
    delta: Option<Arc<DeltaSource>>,
    progress: ProgressSender,
) -> Result<Received, EngineError> {
    let mut stage = job.stage.clone();
    let mut total_bytes = layer.descriptor.size;
    let (mut waited, mut downloaded) = (false, false);
    loop {
        let now = stage.borrow_and_update().clone();
        if let Some((short, reason)) = delta.as_ref().and_then(|delta| Some((&delta.short, delta.untold_reason()?))) {
            let line = format!("Delta {short} is given up: {reason}; fetching in full what it has not made yet");
            progress.send(Progress::Line(line)).await;
        }
        match now {
            Stage::Waiting if !waited => {
                waited = true;
                progress.send(layer.tell(LayerPhase::Waiting)).await;
            }
            Stage::Waiting => {}
            Stage::Downloading(current_bytes, total) => {
                total_bytes = total;
                progress.offer(layer.tell(LayerPhase::Downloading { current_bytes, total_bytes }));
            }
            Stage::Retrying(seconds, reason) => progress.offer(layer.tell(LayerPhase::Retrying { seconds, reason })),
            Stage::Storing => {
                downloaded = true;
                tell_downloaded(&layer, total_bytes, &progress).await;
            }
            Stage::Stored(received) => {
                if !downloaded {
                    tell_downloaded(&layer, total_bytes, &progress).await;
                }
                // The pull's record keeps it already, unless that was given up meanwhile; from here on the lease does.
                let place = layer.place().clone();
                let leased = tokio::task::spawn_blocking(move || place.find(&lease).is_some()).await;
                if !leased.map_err(|error| crate::door::ended("lease a layer", &error))? {
                    let reason = format!("layer {} was pruned while the pull went on; pull again", layer.short);
                    return Err(EngineError::conflict(reason));
                }
                progress.send(layer.tell(LayerPhase::PullComplete)).await;
                return Ok(received);
            }
            Stage::Failed(error) => return Err(EngineError::shared(error)),
        }
        if stage.changed().await.is_err() {
            // The job's task ended without a word: it panicked.
            return Err(EngineError::Panicked { action: "fetching a layer" });
        }
    }
}

async fn tell_downloaded(layer: &Wanted, total_bytes: u64, progress: &ProgressSender) {
    progress.send(layer.tell(LayerPhase::VerifyingChecksum)).await;
    progress.send(layer.tell(LayerPhase::DownloadComplete)).await;
    progress.send(layer.tell(LayerPhase::Extracting { current_bytes: total_bytes, total_bytes })).await;
}

fn record(store: &Store, image: &Awaited, had_layers: bool) -> Result<bool, EngineError> {
    let id = image.resolved.config.id();
    let is_named = |name: &Reference| store.tag(&name.to_string()).is_some_and(|tag| tag.image == id);
    if had_layers && store.image(&id).is_some() && image.names.iter().all(is_named) {
        return Ok(true);
    }
    // A barrier that fails drops what is staged, and the same again may do.
    match commit(store, image) {
        Err(StoreError::StagingDropped) => commit(store, image),
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

fn commit(store: &Store, image: &Awaited) -> Result<(), StoreError> {
    let missing = || StoreError::LayerMissing { key: Box::new(image.layers.last().expect("it has layers").plain()) };
    let layers = image.keys(&[]).ok_or_else(missing)?;
    let mut txn = store.begin()?;
    stage_image(&mut txn, image, layers)?;
    txn.commit()
}
