//! Stands in until the snapshotter builds: refuses every layer.
use baleen_oci::{DiffId, Digest, MediaType};
use baleen_store::{LayerFact, Store};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::EngineError;

#[derive(Debug, Clone)]
#[allow(dead_code)]
pub(crate) struct LayerSource {
    pub(crate) blob: Digest,
    pub(crate) blob_is_known: bool,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) media_type: Option<MediaType>,
    pub(crate) diff_id: DiffId,
}

#[derive(Debug)]
#[allow(dead_code)]
pub(crate) enum Piece {
    Bytes(Bytes),
    End,
}

#[derive(Debug)]
#[allow(dead_code)]
pub(crate) enum UnpackError {
    Abandoned,
    Again(EngineError),
    Failed(EngineError),
}

pub(crate) fn unpack(
    _store: &Store,
    _layer: &LayerSource,
    _durability: baleen_store::Durability,
    _pieces: &mut mpsc::Receiver<Piece>,
) -> Result<LayerFact, UnpackError> {
    Err(UnpackError::Failed(EngineError::not_implemented("layer extraction")))
}

pub(crate) fn reserve_bytes(total_bytes: u64) -> u64 {
    (total_bytes / 50).max(64 << 20).min(total_bytes / 8)
}
