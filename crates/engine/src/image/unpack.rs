//! A layer's bytes into the store: extraction while they arrive. `commit` makes it durable.
//!
//! U1  A layer is handed on only after the extraction has verified size, digest and diff ID.
//! U2  What was extracted before an error of content or disk goes to the trash. What was extracted before the pieces
//!     stopped to come is kept up to its last checkpoint, and gone on with by the next attempt, whoever makes it. Neither
//!     can be reached.
//! U3  An attempt that went on from a checkpoint and ends wrong is made once more from the start.
//! U4  Once a layer is durable, its pages leave the cache.
//! U5  Runs on a thread of its own, since it waits for the network; not behind the door, where it would be in the way.

use std::path::Path;
use std::sync::Arc;

use baleen_oci::{ChainId, DiffId, Digest, MediaType};
use baleen_snapshotter::{
    CheckpointPolicy, Expectation, ExtractError, Extracted, Extraction, Limits, Lower, Pace, Support,
};
use baleen_store::{Durability, LayerFact, LayerKey, Partial, Store, StoreError};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::spool::{self, Kept, Spool, Watch};
use super::stack::{Below, Place};
use crate::error::EngineError;

/// See [`known_cuts`]: a checkpoint after 2 MiB, and after 4 seconds of a slow network.
const UNCOUNTED_CUTS: u32 = 4;

/// What is known of a layer before it comes.
#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    /// Digest and size of the bytes as transferred; of an archive's layer only the diff ID is known.
    pub(crate) blob: Digest,
    pub(crate) blob_is_known: bool,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) media_type: Option<MediaType>,
    pub(crate) diff_id: DiffId,
    /// The bytes that come are not the blob's but those of its plain tar, which is so long: a delta makes them. What is left
    /// of such a layer is never gone on with by the blob's bytes, and the other way round.
    pub(crate) tar_bytes: Option<u64>,
    /// The chain ID of the layers below it.
    pub(crate) parents: Option<ChainId>,
}

impl LayerSource {
    /// Where it stands.
    pub(crate) fn place(&self) -> Place {
        Place { diff_id: self.diff_id, parents: self.parents }
    }
}

/// The next piece of a layer, or its end. A channel that closes without an end gives the layer up.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    End,
}

/// Why a layer could not be stored.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// The feeder has gone; its own error is the cause. What can be resumed is kept.
    Abandoned,
    /// Once more from the start may do, with files made durable in this way: the staged files are in doubt after a failed
    /// barrier, space was made since, or what an earlier attempt left did not lead to the right end.
    Again(EngineError, Durability),
    /// Anything else.
    Failed(EngineError),
}

/// A layer that was extracted and verified, or why not.
pub(crate) type Unpacked = Result<(Partial, LayerFact), UnpackError>;

impl UnpackError {
    fn of_store(error: StoreError, blob: &Digest) -> Self {
        match error {
            StoreError::StagingDropped => Self::Again(EngineError::part(action(blob), error), Durability::EachFile),
            // The same bytes show something else in another stack, and there is one place for what they unpack to.
            StoreError::LayerStored { stored, .. } if stored.parents.is_some() => {
                let reason = "it has hard links into the layers below it, and is stored for other layers below; remove \
                              the image that uses it, then pull again";
                let reference = format!("with layer {}", blob.short());
                Self::Failed(EngineError::ImageRefused { reference, reason: reason.to_owned() })
            }
            error => Self::Failed(EngineError::part(action(blob), error)),
        }
    }
}

pub(crate) fn action(blob: &Digest) -> String {
    format!("store layer {}", blob.short())
}

/// How checkpoints are taken of a layer that comes over a network.
#[derive(Debug, Clone)]
pub(crate) struct Checkpointing {
    /// One for the engine.
    pub(crate) pace: Arc<Pace>,
    /// Cuts of the pull that its record tells of.
    pub(crate) cuts: u32,
}

/// Extracts a layer from `pieces`, which start at the offset that `begins` is told. Blocking.
///
/// With `checkpointing` it goes on from what an earlier attempt left, and leaves what a later one goes on from.
pub(crate) fn unpack(
    store: &Store,
    layer: &LayerSource,
    below: Option<&Below>,
    checkpointing: Option<&Checkpointing>,
    begins: oneshot::Sender<u64>,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Unpacked {
    let Begun { partial, extraction, offset, mut spool } = begin(store, layer, below, checkpointing)?;
    let was_resumed = offset > 0 && spool.is_none();
    let failed = |error| UnpackError::of_store(error, &layer.blob);
    // Nobody listens any more: then no pieces come either.
    let _ = begins.send(offset);
    let mut is_fed = true;
    if let Some(spool) = &spool {
        let mut at = 0;
        while is_fed && at < offset {
            let piece = spool.read(&partial, at).map_err(failed)?;
            at += piece.len() as u64;
            is_fed = extraction.feed(piece).is_ok();
        }
    }
    let (progress, sink) = (extraction.progress(), partial.checkpoints());
    let was_cut = checkpointing.is_some_and(|checkpointing| checkpointing.cuts > 0);
    let mut watch = (was_cut && offset == 0 && spool.is_none() && layer.tar_bytes.is_none()).then(Watch::default);
    while is_fed {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                if let Some(spool) = &mut spool {
                    spool.append(&partial, &bytes).map_err(failed)?;
                }
                if let Some(watch) = &mut watch {
                    watch.count(bytes.len(), progress.checkpoints(), &sink).map_err(failed)?;
                }
                is_fed = extraction.feed(bytes.into()).is_ok(); // If not, `finish` says why.
            }
            Some(Piece::End) => break,
            None => {
                extraction.abort();
                if let Some(Err(error)) = spool.map(|mut spool| spool.save()) {
                    tracing::debug!(digest = %layer.blob, error = %error, "the last bytes of a layer are not kept");
                }
                partial.keep();
                return Err(UnpackError::Abandoned);
            }
        }
    }
    match extraction.finish() {
        // Links of the part before the cut may have been made to another stack.
        Ok(extracted) if was_resumed && extracted.tree.depends_on_parents => {
            let reason = "its links into the layers below are made anew".to_owned();
            let error = EngineError::ImageRefused { reference: layer.blob.short(), reason };
            Err(UnpackError::Again(error, Durability::Cheapest))
        }
        Ok(extracted) => {
            if let Some(spool) = spool {
                spool.end(&partial).map_err(failed)?;
            }
            Ok((partial, fact(layer, &extracted)))
        }
        Err(error) => Err(refused(store, layer, error, offset > 0)),
    }
}

/// A layer that is being extracted.
struct Begun {
    partial: Partial,
    extraction: Extraction,
    /// The next byte that is needed of its blob.
    offset: u64,
    /// What is kept of its bytes, if that is how it goes on.
    spool: Option<Spool>,
}

/// Begins with a layer, or goes on with what is left of it.
fn begin(
    store: &Store,
    layer: &LayerSource,
    below: Option<&Below>,
    checkpointing: Option<&Checkpointing>,
) -> Result<Begun, UnpackError> {
    let failed = |error| UnpackError::of_store(error, &layer.blob);
    let io = |source| UnpackError::Failed(EngineError::Io { action: "open", path: "partial".into(), source });
    let room_bytes = room(store).map_err(failed)?;
    // What an earlier attempt has written already is not free, and is part of what the layer may use.
    let expected = |written_bytes: u64| Expectation {
        blob: match layer.tar_bytes {
            Some(_) => Some(*layer.diff_id.digest()),
            None => layer.blob_is_known.then_some(layer.blob),
        },
        size_bytes: layer.tar_bytes.or(layer.size_bytes),
        media_type: layer.media_type.clone().filter(|_| layer.tar_bytes.is_none()),
        diff_id: Some(layer.diff_id),
        limits: Limits { tar_bytes_max: room_bytes.saturating_add(written_bytes), ..Limits::default() },
    };
    let lower = || below.map(|below| -> Box<dyn Lower> { Box::new(below.clone()) });
    let support = |partial: &Partial| Support {
        checkpoints: checkpointing.map(|Checkpointing { pace, cuts }| CheckpointPolicy {
            sink: Box::new(partial.checkpoints()),
            pace: Arc::clone(pace),
            cuts: known_cuts(*cuts, partial),
            beside: true,
        }),
        lower: lower(),
    };
    let dir = |partial: &Partial| store.disk().open_dir_in_root(partial.dir(), Path::new(".")).map_err(io);
    let mut partial = store.begin_partial(&layer.blob).map_err(failed)?;
    let mut kept = None;
    if let Some(checkpoint) = partial.checkpoint().filter(|_| checkpointing.is_some()) {
        match Kept::of(&checkpoint.state) {
            Kept::No => {
                let (disk, dir, expected) = (Arc::clone(store.disk()), dir(&partial)?, expected(checkpoint.tree_bytes));
                match Extraction::resume(disk, dir, expected, support(&partial), &checkpoint.state) {
                    Ok((extraction, offset)) => return Ok(Begun { partial, extraction, offset, spool: None }),
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(digest = %layer.blob, error, "a cut layer cannot be resumed and starts anew");
                    }
                }
            }
            // A plain tar always has places to go on from.
            Kept::FromNowOn | Kept::Bytes(_) if layer.tar_bytes.is_some() => {}
            Kept::FromNowOn => kept = Some(0),
            Kept::Bytes(bytes) if layer.size_bytes.is_none_or(|size_bytes| bytes <= size_bytes) => kept = Some(bytes),
            Kept::Bytes(_) => {}
        }
    }
    let (disk, start) = (store.disk(), |partial: &Partial, support| {
        let extraction = Extraction::start_with(Arc::clone(store.disk()), dir(partial)?, expected(0), support);
        extraction.map_err(|error| refused(store, layer, error, false))
    });
    if let Some(bytes @ 1..) = kept {
        // All but the compressed bytes is extracted once more.
        match partial.clear_but(spool::FILE).and_then(|()| Spool::open(disk, &partial, bytes)) {
            Ok(spool) => {
                let extraction = start(&partial, Support { checkpoints: None, lower: lower() })?;
                return Ok(Begun { partial, extraction, offset: bytes, spool: Some(spool) });
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(digest = %layer.blob, error, "the bytes that were kept of a layer are fetched anew");
            }
        }
    }
    if partial.checkpoint().is_some() {
        partial = partial.start_over().map_err(failed)?;
    }
    if kept.is_some() {
        let spool = Spool::open(disk, &partial, 0).map_err(failed)?;
        let extraction = start(&partial, Support { checkpoints: None, lower: lower() })?;
        return Ok(Begun { partial, extraction, offset: 0, spool: Some(spool) });
    }
    let extraction = start(&partial, support(&partial))?;
    Ok(Begun { partial, extraction, offset: 0, spool: None })
}

/// Cuts to reckon with: a layer that was cut without leaving a checkpoint may have been so many times, uncounted.
fn known_cuts(cuts_of_pull: u32, partial: &Partial) -> u32 {
    match (cuts_of_pull, partial.checkpoint()) {
        (1.., None) => cuts_of_pull.max(UNCOUNTED_CUTS),
        _ => cuts_of_pull,
    }
}

/// Makes one layer durable, in a transaction of its own. Blocking.
pub(crate) fn store(
    store: &Store,
    partial: Partial,
    fact: &LayerFact,
    durability: Durability,
) -> Result<(), UnpackError> {
    let failed = |error| UnpackError::of_store(error, &fact.blob);
    let mut txn = store.begin_with(durability).map_err(failed)?;
    txn.stage_layer(partial, fact.clone());
    txn.commit().map_err(failed)?;
    leave_the_cache(store, &fact.key);
    Ok(())
}

/// Drops what the extraction left of a durable layer in the page cache, beside the pull: nobody waits for it.
pub(crate) fn leave_the_cache(store: &Store, key: &LayerKey) {
    let (store, key) = (store.clone(), key.clone());
    let release = move || {
        // Removed meanwhile, or not to be read: then there is nothing to drop, and who needs the layer will say so.
        if let Ok(dir) = store.layer_dir(&key)
            && let Err(error) = baleen_snapshotter::release(store.disk(), &dir)
        {
            tracing::debug!(error = %error, "a layer's pages stay in the cache");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("layer-release".to_owned()).spawn(release) {
        tracing::debug!(error = %error, "a layer's pages stay in the cache");
    }
}

/// Bytes that a layer may use: what is free less the reserve, which only removals use.
fn room(store: &Store) -> Result<u64, StoreError> {
    let space = store.space()?;
    Ok(space.free_bytes.saturating_sub(reserve_bytes(space.total_bytes)))
}

/// 2 % of the disk, at least 64 MiB, but never more than an eighth of a small one.
pub(crate) fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 50).max(64 << 20).min(total_bytes / 8)
}

fn refused(store: &Store, layer: &LayerSource, error: ExtractError, was_resumed: bool) -> UnpackError {
    let is_full = error.is_disk_full() || matches!(error, ExtractError::TooLarge { .. });
    // What it went on from may be to blame, or what the registry had then (U3).
    let is_doubtful = was_resumed && error.calls_for_a_new_start();
    let error = match error {
        ExtractError::Checkpoint { source } if !is_full => return UnpackError::of_store(*source, &layer.blob),
        error => EngineError::LayerRefused { layer: layer.blob.short(), source: Box::new(error) },
    };
    if is_doubtful || (is_full && store.make_room()) {
        return UnpackError::Again(error, Durability::Cheapest);
    }
    UnpackError::Failed(error)
}

fn fact(layer: &LayerSource, extracted: &Extracted) -> LayerFact {
    LayerFact {
        key: LayerKey {
            diff_id: extracted.diff_id,
            parents: layer.parents.filter(|_| extracted.tree.depends_on_parents),
        },
        blob: layer.blob,
        blob_size_bytes: match layer.tar_bytes {
            Some(_) => layer.size_bytes.unwrap_or(extracted.blob_size_bytes),
            None => extracted.blob_size_bytes,
        },
        tar_size_bytes: extracted.tree.tar_size_bytes,
        unpacked_size_bytes: extracted.tree.unpacked_size_bytes,
        entries: extracted.tree.entries,
        recipe_size_bytes: extracted.tree.recipe_size_bytes,
        implied_directories: extracted.tree.implied_directories,
    }
}
