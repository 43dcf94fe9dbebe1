//! A layer's place in a stack: under which key it is stored, and what lies below it.
//!
//! S1  A layer is stored by its diff ID alone, unless it has hard links into the layers below it: then what it shows
//!     depends on them, and their chain ID is part of its key. Which of the two is known only once it was extracted, so a
//!     look-up asks for both.
//! S2  Whoever looks below a layer waits until all of that is stored, or until nobody wants the layer any more, and
//!     holds no right to fetch meanwhile.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use baleen_oci::{ChainId, DiffId};
use baleen_snapshotter::{Lower, LowerNode, LowerStack};
use baleen_store::{LayerFact, LayerKey, Lease, Store};
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// A layer in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) diff_id: DiffId,
    /// The chain ID of what lies below; none for a bottom layer.
    pub(crate) parents: Option<ChainId>,
}

impl Place {
    /// The places of an image's layers, bottom first.
    pub(crate) fn all(diff_ids: &[DiffId]) -> Vec<Place> {
        let mut below: Option<ChainId> = None;
        let place = |diff_id: &DiffId| {
            let parents = below;
            below = Some(parents.map_or_else(|| ChainId::base(*diff_id), |chain| chain.push(diff_id)));
            Place { diff_id: *diff_id, parents }
        };
        diff_ids.iter().map(place).collect()
    }

    /// The key of a layer that shows the same in any stack.
    pub(crate) fn plain(&self) -> LayerKey {
        LayerKey::new(self.diff_id)
    }

    /// The key if it depends on what lies below.
    pub(crate) fn stacked(&self) -> LayerKey {
        LayerKey { diff_id: self.diff_id, parents: self.parents }
    }

    /// Whether a layer with this key is the one of this place.
    pub(crate) fn has(&self, key: &LayerKey) -> bool {
        *key == self.plain() || *key == self.stacked()
    }

    /// Finds the layer and protects it (S1).
    pub(crate) fn find(&self, lease: &Lease) -> Option<LayerFact> {
        lease.layer(&self.plain()).or_else(|| self.parents.and_then(|_| lease.layer(&self.stacked())))
    }
}

/// Tells of every commit of layers, for those who wait for one (S2).
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    count: Mutex<u64>,
    changed: Condvar,
    /// How many wait, and who is told when one more does.
    waiting: AtomicUsize,
    begun: Arc<Notify>,
}

impl Arrivals {
    /// Wakes all who wait, to look again.
    pub(crate) fn tell(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Notified whenever somebody begins to wait.
    pub(crate) fn begun(&self) -> &Arc<Notify> {
        &self.begun
    }

    fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_beyond(&self, seen: u64) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.begun.notify_one();
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count == seen {
            count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a job has while it fetches, and gives up when it must wait for others.
#[derive(Debug, Default)]
pub(crate) struct Wants {
    permits: Mutex<Vec<OwnedSemaphorePermit>>,
    has_gone: AtomicBool,
}

impl Wants {
    pub(crate) fn hold(&self, permit: OwnedSemaphorePermit) {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
    }

    pub(crate) fn let_go(&self) {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Nobody wants the layer any more.
    pub(crate) fn leave(&self, arrivals: &Arrivals) {
        self.has_gone.store(true, Ordering::SeqCst);
        self.let_go();
        arrivals.tell();
    }

    fn has_gone(&self) -> bool {
        self.has_gone.load(Ordering::SeqCst)
    }
}

/// The layers below one that is being extracted.
#[derive(Clone)]
pub(crate) struct Below {
    pub(crate) store: Store,
    /// Bottom first.
    pub(crate) places: Arc<[Place]>,
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) wants: Arc<Wants>,
    /// Keeps what was found.
    pub(crate) lease: Arc<Lease>,
}

impl Below {
    fn stack(&self) -> io::Result<LowerStack> {
        loop {
            let seen = self.arrivals.count();
            if self.wants.has_gone() {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let found: Option<Vec<LayerFact>> = self.places.iter().rev().map(|place| place.find(&self.lease)).collect();
            if let Some(layers) = found {
                let trees = layers.iter().map(|layer| {
                    let dir = self.store.layer_dir(&layer.key).map_err(io::Error::other)?;
                    self.store.disk().open_dir(&dir, b"fs")
                });
                return Ok(LowerStack::new(Arc::clone(self.store.disk()), trees.collect::<io::Result<_>>()?));
            }
            // One that waits for a right to fetch may be what this one waits for.
            self.wants.let_go();
            self.arrivals.wait_beyond(seen);
        }
    }
}

impl Lower for Below {
    fn find(&self, path: &[u8]) -> io::Result<Option<LowerNode>> {
        self.stack()?.find(path)
    }
}

#[cfg(test)]
mod tests {
    use baleen_oci::Digest;

    use super::*;

    #[test]
    fn places_know_the_chain_below_them() {
        let diff_ids: Vec<DiffId> = ["a", "b", "c"].map(|text| DiffId(Digest::sha256_of(text.as_bytes()))).to_vec();
        let places = Place::all(&diff_ids);
        for (index, place) in places.iter().enumerate() {
            assert_eq!(place.diff_id, diff_ids[index]);
            assert_eq!(place.parents, ChainId::of(&diff_ids[..index]));
            assert!(place.has(&place.plain()) && place.has(&place.stacked()));
        }
        assert!(!places[1].has(&places[2].plain()));
        let elsewhere = Place { parents: places[1].parents, ..places[2].clone() };
        assert!(!elsewhere.has(&places[2].stacked()), "another stack");
    }
}
