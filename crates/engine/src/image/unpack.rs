//! A layer's bytes into the store: extraction while they arrive, then one transaction that makes the layer durable.
//!
//! U1  A layer is recorded only after the extraction has verified size, digest and diff ID.
//! U2  What was extracted before an error goes to the trash; nothing of it can be reached.
//! U3  Once it is durable, its pages leave the cache.
//! U4  Runs on a thread of its own, since it waits for the network; not behind the door, where it would be in the way.

use std::path::Path;
use std::sync::Arc;

use baleen_oci::{DiffId, Digest, MediaType};
use baleen_snapshotter::{Expectation, ExtractError, Extracted, Extraction, Limits};
use baleen_store::{LayerFact, LayerKey, Store, StoreError};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::EngineError;

/// What is known of a layer before it comes.
#[derive(Debug, Clone)]
pub(crate) struct LayerSource {
    /// Digest and size of the bytes as transferred; of an archive's layer only the diff ID is known.
    pub(crate) blob: Digest,
    pub(crate) blob_is_known: bool,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) media_type: Option<MediaType>,
    pub(crate) diff_id: DiffId,
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
    /// The feeder has gone; its own error is the cause.
    Abandoned,
    /// The staged files are in doubt after a failed barrier, or space was made since: once more from the start may do.
    Again(EngineError),
    /// Anything else.
    Failed(EngineError),
}

impl UnpackError {
    fn of_store(error: StoreError, layer: &LayerSource) -> Self {
        match error {
            StoreError::StagingDropped => Self::Again(EngineError::part(action(layer), error)),
            error => Self::Failed(EngineError::part(action(layer), error)),
        }
    }
}

fn action(layer: &LayerSource) -> String {
    format!("store layer {}", layer.blob.short())
}

/// Extracts a layer from `pieces` and stores it durably. Blocking.
pub(crate) fn unpack(
    store: &Store,
    layer: &LayerSource,
    durability: baleen_store::Durability,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<LayerFact, UnpackError> {
    let failed = |error| UnpackError::of_store(error, layer);
    let partial = store.begin_partial(&layer.blob).map_err(failed)?;
    let tar_bytes_max = room(store).map_err(failed)?;
    let expected = Expectation {
        blob: layer.blob_is_known.then_some(layer.blob),
        size_bytes: layer.size_bytes,
        media_type: layer.media_type.clone(),
        diff_id: Some(layer.diff_id),
        limits: Limits { tar_bytes_max, ..Limits::default() },
    };
    let io = |source| UnpackError::Failed(EngineError::Io { action: "open", path: "partial".into(), source });
    let dir = store.disk().open_dir_in_root(partial.dir(), Path::new(".")).map_err(io)?;
    let extraction =
        Extraction::start(Arc::clone(store.disk()), dir, expected).map_err(|error| refused(store, layer, error))?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                if extraction.feed(bytes.into()).is_err() {
                    break; // `finish` says why.
                }
            }
            Some(Piece::End) => break,
            None => {
                extraction.abort();
                return Err(UnpackError::Abandoned);
            }
        }
    }
    let extracted = extraction.finish().map_err(|error| refused(store, layer, error))?;
    let fact = fact(layer, &extracted);
    let mut txn = store.begin_with(durability).map_err(failed)?;
    txn.stage_layer(partial, fact.clone());
    txn.commit().map_err(failed)?;
    leave_the_cache(store, &fact.key);
    Ok(fact)
}

/// Drops what the extraction left of a durable layer in the page cache, beside the pull: nobody waits for it.
fn leave_the_cache(store: &Store, key: &LayerKey) {
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

fn refused(store: &Store, layer: &LayerSource, error: ExtractError) -> UnpackError {
    let is_full = error.is_disk_full() || matches!(error, ExtractError::TooLarge { .. });
    let error = EngineError::LayerRefused { layer: layer.blob.short(), source: Box::new(error) };
    if is_full && store.make_room() {
        return UnpackError::Again(error);
    }
    UnpackError::Failed(error)
}

fn fact(layer: &LayerSource, extracted: &Extracted) -> LayerFact {
    LayerFact {
        key: LayerKey::new(extracted.diff_id),
        blob: layer.blob,
        blob_size_bytes: extracted.blob_size_bytes,
        tar_size_bytes: extracted.tree.tar_size_bytes,
        unpacked_size_bytes: extracted.tree.unpacked_size_bytes,
        entries: extracted.tree.entries,
        recipe_size_bytes: extracted.tree.recipe_size_bytes,
        implied_directories: extracted.tree.implied_directories,
    }
}
