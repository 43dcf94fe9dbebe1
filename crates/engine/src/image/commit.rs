//! Extracted layers on their way into the log: together where several are ready, and with the image that they complete.
//!
//! C1  A layer waits for others that are still in flight, but no longer than [`COMMIT_SPACING`] after the last commit:
//!     one barrier for several is what keeps the flushes of a pull few. It does not wait for one that waits for it.
//! C2  An image whose layers are all stored, or among those that are being committed, is recorded with them.
//! C3  After a failed barrier every layer of the transaction is fetched again.
//! C4  A layer that was handed in is committed, or given up, whether the pull that wanted it still waits or not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baleen_oci::{Descriptor, Digest, Reference};
use baleen_registry::ResolvedImage;
use baleen_store::{
    Durability, ImageFact, LayerFact, LayerKey, Lease, Partial, PullFact, PullLayer, Store, StoreError, Txn,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::task;

use super::remove::tag_fact;
use super::stack::{Arrivals, Place};
use super::unpack::{self, UnpackError};
use crate::RetryClock;
use crate::error::EngineError;

/// Time that passes between two commits of layers while others are in flight.
const COMMIT_SPACING: Duration = Duration::from_secs(2);

/// A layer that was extracted and verified, not durable yet.
pub(crate) struct Ready {
    pub(crate) partial: Partial,
    pub(crate) fact: LayerFact,
    pub(crate) durability: Durability,
    /// The blob's turn, given back once nothing of it is in `partial/`.
    pub(crate) turn: OwnedSemaphorePermit,
}

/// What became of a layer, with the blob's turn.
pub(crate) type Outcome = (Result<LayerFact, UnpackError>, OwnedSemaphorePermit);

/// An image that is recorded as soon as its layers are (C2).
pub(crate) struct Awaited {
    pub(crate) names: Vec<Reference>,
    pub(crate) resolved: Arc<ResolvedImage>,
    pub(crate) layers: Vec<Place>,
    /// Keeps what is stored of the layers.
    pub(crate) lease: Arc<Lease>,
    is_recorded: AtomicBool,
}

impl Awaited {
    pub(crate) fn new(
        names: Vec<Reference>,
        resolved: Arc<ResolvedImage>,
        layers: Vec<Place>,
        lease: Arc<Lease>,
    ) -> Arc<Self> {
        Arc::new(Self { names, resolved, layers, lease, is_recorded: AtomicBool::new(false) })
    }

    /// The keys under which its layers are stored, or are about to be; `None` if one is neither.
    pub(crate) fn keys(&self, committing: &[LayerKey]) -> Option<Vec<LayerKey>> {
        let key = |place: &Place| {
            let new = committing.iter().find(|key| place.has(key)).cloned();
            new.or_else(|| place.find(&self.lease).map(|layer| layer.key))
        };
        self.layers.iter().map(key).collect()
    }

    /// Notes in the pull's record under which keys its layers are stored, if that of a new one depends on those below.
    fn note_stacked(&self, store: &Store, new: &[LayerKey]) {
        let is_new = |place: &Place| new.iter().any(|key| key.parents.is_some() && place.has(key));
        if self.is_recorded() || !self.layers.iter().any(is_new) {
            return;
        }
        let layers = self.resolved.manifest.layers.iter().zip(&self.layers);
        let pull = pull_fact(self.resolved.manifest_document.digest, layers, &self.lease);
        if let Err(error) = store.begin_pull(pull) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a layer may have to be fetched again if its pull is cut");
        }
    }

    /// Whether image, names and the end of the pull are durable.
    pub(crate) fn is_recorded(&self) -> bool {
        self.is_recorded.load(Ordering::Acquire)
    }
}

/// Records image, names and the end of the pull in a transaction that has, or follows, all its layers.
///
/// `layers` are the keys under which they are stored.
///
/// # Errors
/// Of staging the image's documents.
pub(crate) fn stage_image(txn: &mut Txn, image: &Awaited, layers: Vec<LayerKey>) -> Result<(), StoreError> {
    let resolved = &image.resolved;
    let id = resolved.config.id();
    let manifest = &resolved.manifest_document;
    txn.stage_blob(id.digest(), resolved.config.raw())?;
    txn.stage_blob(&manifest.digest, &manifest.bytes)?;
    txn.store_image(ImageFact { id, manifest: Some(manifest.digest), layers });
    for name in &image.names {
        txn.set_tag(tag_fact(name, id))?;
    }
    txn.end_pull(&manifest.digest);
    Ok(())
}

/// What the log says of a pull under way, so that what it has stored is kept.
pub(crate) fn pull_fact<'a>(
    manifest: Digest,
    layers: impl Iterator<Item = (&'a Descriptor, &'a Place)>,
    lease: &Lease,
) -> PullFact {
    let layer = |(descriptor, place): (&Descriptor, &Place)| PullLayer {
        blob: descriptor.digest,
        blob_size_bytes: descriptor.size,
        key: place.find(lease).map_or_else(|| place.plain(), |layer| layer.key),
    };
    PullFact { manifest, layers: layers.map(layer).collect() }
}

/// All layers between extraction and log.
#[derive(Debug)]
pub(crate) struct Commits {
    clock: Arc<dyn RetryClock>,
    state: Mutex<State>,
    /// Something was handed in, or is no longer in flight.
    changed: Arc<Notify>,
    /// Tells who waits for layers below that some are there.
    pub(crate) arrivals: Arc<Arrivals>,
}

#[derive(Default)]
struct State {
    ready: Vec<(Ready, oneshot::Sender<Outcome>)>,
    awaited: Vec<Arc<Awaited>>,
    /// Jobs that may still hand a layer in.
    in_flight: usize,
    is_served: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// A job that may still hand a layer in.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Commits>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
        self.0.changed.notify_one();
    }
}

/// Waits for an image's layers until it is dropped.
pub(crate) struct Waiting {
    commits: Arc<Commits>,
    image: Arc<Awaited>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.commits.state().awaited.retain(|other| !Arc::ptr_eq(other, &self.image));
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        // The engine ends: what is not committed yet goes on from its last checkpoint after the next start.
        for (ready, _) in std::mem::take(&mut self.state().ready) {
            ready.partial.keep();
        }
    }
}

impl Commits {
    pub(crate) fn new(clock: Arc<dyn RetryClock>) -> Arc<Self> {
        let arrivals = Arc::<Arrivals>::default();
        Arc::new(Self { clock, state: Mutex::default(), changed: Arc::clone(arrivals.begun()), arrivals })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under this lock is one step: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a job as in flight.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.state().in_flight += 1;
        InFlight(Arc::clone(self))
    }

    /// Records the image with the last of its layers, unless what is returned is dropped before.
    pub(crate) fn await_layers(self: &Arc<Self>, image: Arc<Awaited>) -> Waiting {
        self.state().awaited.push(Arc::clone(&image));
        Waiting { commits: Arc::clone(self), image }
    }

    /// Hands a layer in; what is returned tells when it is durable. `in_flight` is the job's own.
    pub(crate) fn hand_in(
        self: &Arc<Self>,
        store: &Store,
        ready: Ready,
        in_flight: InFlight,
    ) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        let begins = {
            let mut state = self.state();
            state.ready.push((ready, done));
            !std::mem::replace(&mut state.is_served, true)
        };
        drop(in_flight);
        if begins {
            let (commits, store) = (Arc::clone(self), store.clone());
            drop(tokio::spawn(async move { commits.serve(&store).await }));
        }
        outcome
    }

    /// Commits what is handed in, until nothing is left and nothing more can come.
    async fn serve(self: Arc<Self>, store: &Store) {
        let mut spaced = self.clock.sleep(COMMIT_SPACING);
        loop {
            while self.state().ready.is_empty() {
                {
                    let mut state = self.state();
                    if state.ready.is_empty() && state.in_flight == 0 {
                        state.is_served = false;
                        return;
                    }
                }
                self.changed.notified().await;
            }
            let all_are_here = async {
                while self.state().in_flight > self.arrivals.waiting() {
                    self.changed.notified().await;
                }
            };
            tokio::select! {
                () = &mut spaced => {}
                () = all_are_here => {}
            }
            let (ready, awaited) = {
                let mut state = self.state();
                (std::mem::take(&mut state.ready), state.awaited.clone())
            };
            let (store, arrivals) = (store.clone(), Arc::clone(&self.arrivals));
            let committing = task::spawn_blocking(move || {
                commit_all(&store, ready, &awaited);
                arrivals.tell();
            });
            if let Err(error) = committing.await {
                tracing::error!(error = %error, "layers could not be committed");
            }
            spaced = self.clock.sleep(COMMIT_SPACING);
        }
    }
}

/// One transaction for these layers, and for the images that they complete. Blocking.
fn commit_all(store: &Store, ready: Vec<(Ready, oneshot::Sender<Outcome>)>, awaited: &[Arc<Awaited>]) {
    let durability = match ready.iter().all(|(layer, _)| layer.durability == Durability::Cheapest) {
        true => Durability::Cheapest,
        false => Durability::EachFile,
    };
    let keys: Vec<LayerKey> = ready.iter().map(|(layer, _)| layer.fact.key.clone()).collect();
    let mut images: Vec<(&Arc<Awaited>, Vec<LayerKey>)> = Vec::new();
    for image in awaited {
        // Another pull of the same image records its own names by itself.
        if images.iter().all(|(other, _)| other.resolved.config.id() != image.resolved.config.id())
            && let Some(layers) = image.keys(&keys)
        {
            images.push((image, layers));
        }
    }
    let mut told = Vec::new();
    let mut partials = Vec::new();
    for (Ready { partial, fact, turn, .. }, done) in ready {
        told.push((fact.clone(), turn, done));
        partials.push((partial, fact));
    }
    let layers = partials.len();
    let committed = store.begin_with(durability).and_then(|mut txn| {
        partials.into_iter().for_each(|(partial, fact)| txn.stage_layer(partial, fact));
        images.iter().try_for_each(|(image, layers)| stage_image(&mut txn, image, layers.clone()))?;
        txn.commit()
    });
    tracing::debug!(layers, images = images.len(), is_durable = committed.is_ok(), "layers were committed");
    if committed.is_ok() {
        images.iter().for_each(|(image, _)| image.is_recorded.store(true, Ordering::Release));
        awaited.iter().for_each(|image| image.note_stacked(store, &keys));
    }
    let shared = committed.map_err(Arc::new);
    for (fact, turn, done) in told {
        let outcome = match &shared {
            Ok(()) => {
                unpack::leave_the_cache(store, &fact.key);
                Ok(fact)
            }
            Err(error) => Err(failure(&fact, error)),
        };
        // Nobody waits for it any more (C4): the store has it, or it is given up.
        let _ = done.send((outcome, turn));
    }
}

fn failure(fact: &LayerFact, error: &Arc<StoreError>) -> UnpackError {
    let is_dropped = matches!(**error, StoreError::StagingDropped);
    let error = EngineError::part(unpack::action(&fact.blob), Arc::clone(error));
    match is_dropped {
        true => UnpackError::Again(error, Durability::EachFile),
        false => UnpackError::Failed(error),
    }
}
