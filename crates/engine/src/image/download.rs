//! Layers on their way from a registry into the store: each blob once, whoever waits for it.
//!
//! W1  Pulls that want the same layer of the same blob share one job; the job ends when the last of them has gone.
//! W2  One blob is unpacked by one thread at a time: a job holds the blob's turn until its thread has let go of
//!     `partial/<blob>`.
//! W3  At most `concurrent_downloads_max` jobs fetch at once; the others wait, in order.
//! W4  A layer that a delta makes is fetched in full, by the same job, once anything is wrong with the delta (D2 of `delta`).
//! W5  Counts are sent at most every [`COUNT_INTERVAL`]; what was reached is never lost, only steps between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use baleen_oci::{Descriptor, DiffId, Digest};
use baleen_registry::{BlobEvent, RepositoryClient};
use baleen_snapshotter::{ExtractError, Pace};
use baleen_store::{Durability, Store};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{self, AbortHandle};

use super::commit::{Commits, Ready};
use super::delta::DeltaSource;
use super::delta::apply::{self, ApplyEvent, Origin};
use super::stack::{Arrivals, Below, Place, Wants};
use super::unpack::{self, Checkpointing, LayerSource, Piece, UnpackError, Unpacked};
use crate::door::ended;
use crate::error::EngineError;
use crate::{CheckpointIntervals, RetryClock};

const COUNT_INTERVAL: Duration = Duration::from_millis(100);
/// Pieces of up to 64 KiB between the network and the extraction, which has a queue of its own.
const PIECES_MAX: usize = 4;
/// A layer is begun again after a failed barrier or after room was made, once each.
const ATTEMPTS_MAX: u32 = 3;

/// How long a failed pull waits for its other threads to clean up.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What a job received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes of the blob that came over the network, those included that came twice.
    pub(crate) fetched_bytes: u64,
    /// Bytes that an earlier attempt had received, and that were not fetched again.
    pub(crate) resumed_bytes: u64,
    /// Size of the layer's blob, if a delta has made the layer.
    pub(crate) in_full_bytes: u64,
}

/// How far a job is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Others come first.
    Waiting,
    /// So many bytes have come, of so many.
    Downloading(u64, u64),
    /// The connection broke: seconds until it is tried again, and what went wrong.
    Retrying(u64, Arc<str>),
    /// Everything has come and is being verified and made durable.
    Storing,
    /// Durable. What this job received.
    Stored(Received),
    /// Not stored.
    Failed(Arc<EngineError>),
}

/// One layer's job, shared by its waiters (W1).
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) stage: watch::Receiver<Stage>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        // Nobody waits any more. The thread stops, and what it has unpacked is kept up to its last checkpoint.
        self.task.abort();
    }
}

type JobKey = (Digest, DiffId);

/// All jobs under way.
#[derive(Debug)]
pub(crate) struct Downloads {
    running: Arc<Semaphore>,
    concurrent_max: Mutex<usize>,
    jobs: Mutex<HashMap<JobKey, Weak<Job>>>,
    /// Who unpacks which blob (W2).
    turns: Mutex<HashMap<Digest, Arc<Semaphore>>>,
    /// One layer is made by a delta at a time (D4 of `delta`).
    applying: Arc<Semaphore>,
    /// When checkpoints are due, by all layers in flight.
    pace: Arc<Pace>,
    pub(crate) commits: Arc<Commits>,
}

impl Downloads {
    pub(crate) fn new(concurrent_max: usize, clock: Arc<dyn RetryClock>, intervals: CheckpointIntervals) -> Self {
        let concurrent_max = concurrent_max.max(1);
        let running = Arc::new(Semaphore::new(concurrent_max));
        let concurrent_max = Mutex::new(concurrent_max);
        let start = Instant::now();
        let pace = Arc::new(Pace::new(intervals, Box::new(move || start.elapsed())));
        let commits = Commits::new(clock);
        Self {
            running,
            concurrent_max,
            jobs: Mutex::default(),
            turns: Mutex::default(),
            applying: Arc::new(Semaphore::new(1)),
            pace,
            commits,
        }
    }

    /// Lets so many jobs fetch at once from now on; those beyond that fetch already end first.
    pub(crate) fn set_concurrent_max(&self, concurrent_max: usize) {
        let mut current = lock(&self.concurrent_max);
        let wanted = concurrent_max.max(1);
        if wanted > *current {
            self.running.add_permits(wanted - *current);
        }
        for _ in wanted..*current {
            let running = Arc::clone(&self.running);
            tokio::spawn(async move {
                if let Ok(permit) = running.acquire_owned().await {
                    permit.forget();
                }
            });
        }
        *current = wanted;
    }

    /// The job that fetches this layer: the one under way, or a new one, by this delta if it makes the layer. `cuts` is how
    /// often the pull was cut before.
    pub(crate) fn join(
        self: &Arc<Self>,
        store: &Store,
        client: &RepositoryClient,
        descriptor: &Descriptor,
        places: &[Place],
        cuts: u32,
        delta: Option<&Arc<DeltaSource>>,
    ) -> Arc<Job> {
        let (place, below) = places.split_last().expect("a layer and what is below it");
        let key = (descriptor.digest, place.diff_id);
        let mut jobs = lock(&self.jobs);
        if let Some(job) = jobs.get(&key).and_then(Weak::upgrade)
            && !matches!(*job.stage.borrow(), Stage::Failed(_))
        {
            return job;
        }
        jobs.retain(|_, job| job.strong_count() > 0);
        let (reports, stage) = watch::channel(Stage::Waiting);
        let fetch = Fetch {
            downloads: Arc::clone(self),
            store: store.clone(),
            client: client.clone(),
            descriptor: descriptor.clone(),
            place: place.clone(),
            below: below.into(),
            cuts,
            delta: delta.and_then(|delta| Some((Arc::clone(delta), delta.layer(&place.diff_id)?))),
            reports: Arc::new(reports),
        };
        let job = Arc::new(Job { stage, task: tokio::spawn(fetch.run()).abort_handle() });
        jobs.insert(key, Arc::downgrade(&job));
        job
    }

    /// Waits until the thread of a job that nobody wants any more has let go of what it unpacked.
    pub(crate) async fn settle(&self, blob: Digest, diff_id: DiffId) {
        let is_wanted = lock(&self.jobs).get(&(blob, diff_id)).is_some_and(|job| job.strong_count() > 0);
        if is_wanted {
            return;
        }
        // Should somebody else have begun with it in between, this is not the place to wait for them.
        let _ = tokio::time::timeout(SETTLE_MAX, self.turn(&blob).acquire_owned()).await;
    }

    /// The turn of a blob (W2).
    pub(crate) fn turn(&self, blob: &Digest) -> Arc<Semaphore> {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(*blob).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is one step: a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Fetch {
    downloads: Arc<Downloads>,
    store: Store,
    client: RepositoryClient,
    descriptor: Descriptor,
    place: Place,
    /// What lies below it, bottom first.
    below: Arc<[Place]>,
    /// Cuts of the pull before, as far as its record tells.
    cuts: u32,
    /// The delta that makes the layer, with the layer's number there.
    delta: Option<(Arc<DeltaSource>, usize)>,
    reports: Arc<watch::Sender<Stage>>,
}

/// Lets whoever waits for the layers below know that nobody wants this one any more, when it is dropped.
struct Leaving {
    wants: Arc<Wants>,
    arrivals: Arc<Arrivals>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.wants.leave(&self.arrivals);
    }
}

impl Fetch {
    async fn run(self) {
        let last = match self.fetch().await {
            Ok(received) => Stage::Stored(received),
            Err(error) => Stage::Failed(Arc::new(error)),
        };
        self.reports.send_replace(last);
    }

    async fn fetch(&self) -> Result<Received, EngineError> {
        let mut in_flight = self.downloads.commits.begin();
        let turn = self.downloads.turn(&self.descriptor.digest);
        let mut turn = turn.acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        let mut received = Received::default();
        let mut durability = Durability::Cheapest;
        let mut attempt = 0;
        loop {
            if self.is_stored().await? {
                break;
            }
            let delta = self.delta.as_ref().filter(|(delta, _)| delta.reason().is_none());
            attempt += u32::from(delta.is_none());
            let running = Arc::clone(&self.downloads.running).acquire_owned();
            let wants = Leaving { wants: Arc::default(), arrivals: Arc::clone(&self.downloads.commits.arrivals) };
            wants.wants.hold(running.await.map_err(|_| EngineError::ShuttingDown)?);
            if delta.is_some() {
                let applying = Arc::clone(&self.downloads.applying).acquire_owned();
                wants.wants.hold(applying.await.map_err(|_| EngineError::ShuttingDown)?);
            }
            let (pieces, taken) = mpsc::channel(PIECES_MAX);
            let (begins, offset) = oneshot::channel();
            let unpacking = self.unpack(&wants.wants, begins, taken, delta, turn);
            let fed = match delta {
                Some((delta, number)) => self.feed_by(delta, *number, offset, pieces, &mut received).await,
                None => self.feed(offset, pieces, &mut received).await,
            };
            let (unpacked, returned) = unpacking.await.map_err(|error| ended("unpack a layer", &error))?;
            wants.wants.let_go();
            turn = returned;
            let failure = match unpacked {
                Ok((partial, fact)) => {
                    let ready = Ready { partial, fact, durability, turn };
                    let outcome = self.downloads.commits.hand_in(&self.store, ready, in_flight).await;
                    let (committed, returned) = outcome.map_err(|_| EngineError::ShuttingDown)?;
                    let Err(failure) = committed else {
                        received.in_full_bytes = delta.map_or(0, |_| self.descriptor.size);
                        break;
                    };
                    (turn, in_flight) = (returned, self.downloads.commits.begin());
                    failure
                }
                Err(failure) => failure,
            };
            if let Some((delta, _)) = delta
                && let Some(reason) = blame(&failure, &fed)
            {
                tracing::warn!(digest = %self.descriptor.digest, error = reason, "a delta is given up; the layer is fetched in full");
                delta.give_up(&reason);
                continue;
            }
            match (failure, fed) {
                // Neither an error of the disk nor of the content: the network's.
                (UnpackError::Abandoned, Err(error)) => return Err(error),
                (UnpackError::Abandoned, Ok(())) => return Err(EngineError::ShuttingDown),
                (UnpackError::Again(error, how), _) if attempt < ATTEMPTS_MAX => {
                    tracing::warn!(digest = %self.descriptor.digest, error = error.chain(), "a layer is fetched again");
                    if how == Durability::EachFile {
                        durability = how;
                    }
                }
                (UnpackError::Again(error, _) | UnpackError::Failed(error), _) => return Err(error),
            }
        }
        Ok(received)
    }

    /// Whether somebody has stored the layer while this job waited for its turn.
    async fn is_stored(&self) -> Result<bool, EngineError> {
        let (store, place) = (self.store.clone(), self.place.clone());
        task::spawn_blocking(move || place.find(&store.lease()).is_some())
            .await
            .map_err(|error| ended("look up a layer", &error))
    }

    /// The thread that unpacks; it gives the blob's turn back when it has let go of everything (W2).
    fn unpack<T: Send + 'static>(
        &self,
        wants: &Arc<Wants>,
        begins: oneshot::Sender<u64>,
        mut pieces: mpsc::Receiver<Piece>,
        delta: Option<&(Arc<DeltaSource>, usize)>,
        turn: T,
    ) -> task::JoinHandle<(Unpacked, T)> {
        let store = self.store.clone();
        let source = LayerSource {
            blob: self.descriptor.digest,
            blob_is_known: true,
            size_bytes: Some(self.descriptor.size),
            media_type: Some(self.descriptor.media_type.clone()),
            diff_id: self.place.diff_id,
            tar_bytes: delta.map(|(delta, number)| delta.tar_size_bytes(*number)),
            parents: self.place.parents,
        };
        let below = (!self.below.is_empty()).then(|| Below {
            store: store.clone(),
            places: Arc::clone(&self.below),
            arrivals: Arc::clone(&self.downloads.commits.arrivals),
            wants: Arc::clone(wants),
            lease: Arc::new(store.lease()),
        });
        let checkpointing = Checkpointing { pace: Arc::clone(&self.downloads.pace), cuts: self.cuts };
        task::spawn_blocking(move || {
            let unpacked = unpack::unpack(&store, &source, below.as_ref(), Some(&checkpointing), begins, &mut pieces);
            // The feeder learns from this that nobody takes its pieces.
            drop(pieces);
            (unpacked, turn)
        })
    }

    /// Gives the blob to the thread from the offset that it names on, piece by piece, as fast as it takes them.
    async fn feed(
        &self,
        offset: oneshot::Receiver<u64>,
        pieces: mpsc::Sender<Piece>,
        received: &mut Received,
    ) -> Result<(), EngineError> {
        let Ok(offset) = offset.await else { return Ok(()) }; // The thread has failed and says why.
        let reports = Arc::clone(&self.reports);
        let mut blob = self.client.blob(&self.descriptor, offset, move |event| {
            if let BlobEvent::Retrying { seconds_left, error, .. } = event {
                reports.send_replace(Stage::Retrying(seconds_left, error.into()));
            }
        });
        if offset > 0 {
            tracing::info!(digest = %self.descriptor.digest, offset, "a cut layer is gone on with");
        }
        let size = self.descriptor.size;
        self.reports.send_replace(Stage::Downloading(offset, size));
        let mut last_report = Instant::now();
        let outcome = loop {
            match blob.next_chunk().await {
                Ok(Some(bytes)) => {
                    if pieces.send(Piece::Bytes(bytes)).await.is_err() {
                        break Ok(()); // The thread has failed and says why.
                    }
                    if last_report.elapsed() >= COUNT_INTERVAL {
                        last_report = Instant::now();
                        self.reports.send_replace(Stage::Downloading(blob.position(), size));
                    }
                }
                Ok(None) => {
                    self.reports.send_replace(Stage::Storing);
                    let _ = pieces.send(Piece::End).await;
                    break Ok(());
                }
                Err(error) => break Err(EngineError::Registry(Box::new(error))),
            }
        };
        received.fetched_bytes += blob.fetched_bytes();
        // If the layer starts over, what was resumed has helped nothing.
        received.resumed_bytes = offset;
        outcome
    }

    /// The same by a delta: gives the layer's tar to the thread from the offset that it names on.
    async fn feed_by(
        &self,
        delta: &Arc<DeltaSource>,
        number: usize,
        offset: oneshot::Receiver<u64>,
        pieces: mpsc::Sender<Piece>,
        received: &mut Received,
    ) -> Result<(), EngineError> {
        let Ok(offset) = offset.await else { return Ok(()) }; // The thread has failed and says why.
        if offset > 0 {
            tracing::info!(digest = %self.descriptor.digest, offset, delta = delta.short, "a cut layer is gone on with");
        }
        let (reports, last_report) = (Arc::clone(&self.reports), Mutex::new(None::<Instant>));
        let on_event = move |event| match event {
            ApplyEvent::Fetched(current, total) => {
                let mut last_report = lock(&last_report);
                if current == total || last_report.is_none_or(|last| last.elapsed() >= COUNT_INTERVAL) {
                    *last_report = Some(Instant::now());
                    reports.send_replace(Stage::Downloading(current, total));
                }
            }
            ApplyEvent::Retrying(seconds, reason) => drop(reports.send_replace(Stage::Retrying(seconds, reason))),
            ApplyEvent::Complete => drop(reports.send_replace(Stage::Storing)),
        };
        let origin = Origin { delta, number, store: &self.store, client: &self.client };
        apply::feed(&origin, offset, pieces, Arc::new(on_event), received).await
    }
}

/// Why a delta is to blame for a layer that was not stored; `None` if it is not: of the disk, or nobody waits any more.
fn blame(failure: &UnpackError, fed: &Result<(), EngineError>) -> Option<String> {
    let is_full = |source: &(dyn std::error::Error + 'static)| {
        source.downcast_ref::<ExtractError>().is_some_and(ExtractError::is_disk_full)
    };
    match (failure, fed) {
        (UnpackError::Abandoned, Err(error)) => Some(error.chain()),
        (UnpackError::Again(error, _) | UnpackError::Failed(error), _) => match error {
            EngineError::LayerRefused { source, .. } if !is_full(source.as_ref()) => Some(error.chain()),
            _ => None,
        },
        _ => None,
    }
}
