//! Deltas: found in a registry on an ordinary pull (`find`), applied as one more source of layer bytes (`apply`), made and
//! pushed (`make`), in the shape of an OCI artifact (`artifact`). The codec is `baleen-delta`.
//!
//! D1  A delta never changes what a pull ends with: manifest, configuration and layers are the target's own, and each layer
//!     is verified by its diff ID before it is stored.
//! D2  Whatever is wrong with a delta, the pull fetches the layers that it has not made yet as if there were none, in the
//!     same request, and says why. Only what would fail a plain pull as well fails the pull.
//! D3  What a registry says of a delta is believed only as far as it decides what to fetch: the delta's own header counts,
//!     and of its bytes only what the decoder has checked.
//! D4  One layer is made by a delta at a time: that bounds the memory of a pull.

pub(crate) mod apply;
mod artifact;
pub(crate) mod find;
mod make;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baleen_delta::Header;
use baleen_oci::{Descriptor, DiffId};
use baleen_store::{LayerKey, Lease, Store};
use bytes::Bytes;

pub use artifact::DeltaFacts;
pub use make::{DeltaLevel, MadeDelta, MakeDelta, OfferedDelta};

/// What applying a delta may take, in bytes.
pub(crate) const MEMORY_BYTES_MAX: u64 = 32 << 20;
/// A registry without the referrers interface is asked again after so long.
const WITHOUT_REFERRERS: Duration = Duration::from_secs(60 * 60);
const WITHOUT_REFERRERS_MAX: usize = 256;

/// What the engine knows of deltas.
#[derive(Debug, Default)]
pub(crate) struct Deltas {
    /// Registries without the referrers interface, and since when that is known.
    without_referrers: Mutex<Vec<(String, Instant)>>,
    /// Bytes of layers that pulls have received.
    fetched_bytes: AtomicU64,
    /// Bytes that they would have received without deltas.
    in_full_bytes: AtomicU64,
    /// Pulls that used a delta, and pulls that gave one up.
    used: AtomicU64,
    given_up: AtomicU64,
}

impl Deltas {
    fn lacks_referrers(&self, registry: &str) -> bool {
        let mut known = self.without_referrers.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, since)| since.elapsed() < WITHOUT_REFERRERS);
        known.iter().any(|(name, _)| name == registry)
    }

    fn note_lack(&self, registry: &str) {
        let mut known = self.without_referrers.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < WITHOUT_REFERRERS_MAX {
            known.push((registry.to_owned(), Instant::now()));
        }
    }

    /// Counts a pull that has ended well: bytes received, and what of them stands for how many of a full pull.
    pub(crate) fn count(&self, fetched_bytes: u64, saved_bytes: u64, delta: Option<&DeltaSource>) {
        self.fetched_bytes.fetch_add(fetched_bytes, Ordering::Relaxed);
        self.in_full_bytes.fetch_add(fetched_bytes.saturating_add(saved_bytes), Ordering::Relaxed);
        match delta {
            Some(delta) if delta.reason().is_some() => drop(self.given_up.fetch_add(1, Ordering::Relaxed)),
            Some(_) => drop(self.used.fetch_add(1, Ordering::Relaxed)),
            None => {}
        }
    }

    /// What `info` shows: rows of name and value.
    pub(crate) fn rows(&self) -> Vec<(String, String)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let bytes = |counter: &AtomicU64| format!("{} bytes", read(counter));
        [
            ("Layers Fetched", bytes(&self.fetched_bytes)),
            ("Layers Without Deltas", bytes(&self.in_full_bytes)),
            ("Pulls By Delta", format!("{} used, {} given up", read(&self.used), read(&self.given_up))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// A delta that a pull uses, shared by the jobs of its layers.
pub(crate) struct DeltaSource {
    /// As users read it: the first digits of its digest.
    pub(crate) short: String,
    /// The delta's bytes in the registry.
    blob: Descriptor,
    header: Header,
    /// All of it, if it is small: then it was fetched at once.
    whole: Option<Bytes>,
    /// The layers that it reads from, kept by the lease.
    sources: Vec<LayerKey>,
    _lease: Arc<Lease>,
    /// Bytes that were fetched to get here.
    pub(crate) begin_bytes: u64,
    /// Bytes of it that were fetched since then.
    rest_bytes: AtomicU64,
    given_up: Mutex<Option<Arc<str>>>,
    is_told: AtomicBool,
}

impl std::fmt::Debug for DeltaSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DeltaSource").field("short", &self.short).finish_non_exhaustive()
    }
}

impl DeltaSource {
    /// Bytes of it that came over the network, in this pull.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.begin_bytes + self.rest_bytes.load(Ordering::Relaxed)
    }

    /// The number of a layer in the delta, if it makes it.
    pub(crate) fn layer(&self, diff_id: &DiffId) -> Option<usize> {
        self.header.layers.iter().position(|layer| layer.diff_id == *diff_id)
    }

    /// Length of a layer's tar.
    pub(crate) fn tar_size_bytes(&self, layer: usize) -> u64 {
        self.header.layers[layer].tar_size_bytes
    }

    /// Where a layer's frames begin and end in the delta.
    pub(crate) fn extent(&self, layer: usize) -> (u64, u64) {
        let layer = &self.header.layers[layer];
        let frames = &self.header.frames[layer.first_frame..layer.first_frame + layer.frame_count];
        let begin = frames.first().map_or(self.header.header_bytes, |frame| frame.offset);
        (begin, frames.last().map_or(begin, |frame| frame.offset + u64::from(frame.packed_bytes)))
    }

    /// Gives the delta up for the layers that it has not made yet (D2).
    pub(crate) fn give_up(&self, reason: &str) {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.get_or_insert_with(|| reason.into());
    }

    /// Why it was given up.
    pub(crate) fn reason(&self) -> Option<Arc<str>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The reason, the first time that it is asked for.
    pub(crate) fn untold_reason(&self) -> Option<Arc<str>> {
        let reason = self.reason()?;
        (!self.is_told.swap(true, Ordering::Relaxed)).then_some(reason)
    }
}

/// The layer with this diff ID, in whatever stack; its files are the same.
fn stored(store: &Store, lease: &Lease, diff_id: &DiffId) -> Option<LayerKey> {
    let plain = LayerKey::new(*diff_id);
    if lease.layer(&plain).is_some() {
        return Some(plain);
    }
    let key = store.layers().into_iter().map(|layer| layer.key).find(|key| key.diff_id == *diff_id)?;
    lease.layer(&key).map(|layer| layer.key)
}
