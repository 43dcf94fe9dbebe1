//! When a layer's extraction is made durable on its way, and by whom. What is made durable: `state`.
//!
//! K1  A checkpoint is due by the output of all layers in flight together ([`Pace`]), so that a pull of many layers
//!     flushes no more often than one of a single layer; the layer that has most of it takes it.
//! K2  Each cut of a pull halves its intervals, down to a least: where power fails often, little is fetched twice.
//! K3  Two checkpoints of a layer are apart by a least time on a clock that only goes forward. Its first does not wait for
//!     that once much is there, if no layer's was taken for as long: then small files reach the disk while others still
//!     come, and a fast network pays one checkpoint for all that arrives in two seconds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use baleen_store::{Checkpoints, StoreError};

/// Makes an extraction's state durable: [`baleen_store::Checkpoints`], or a test's own.
pub trait CheckpointSink: Send {
    /// Makes everything written in the layer's directory so far durable, and then `state` in place of the last one.
    /// `tree_bytes` tells how much that is on the disk.
    ///
    /// # Errors
    /// Those of the store; then the last one holds, if any does.
    fn save(&self, state: &[u8], tree_bytes: u64) -> Result<(), StoreError>;

    /// Removes the last state durably: a cut from here on starts the layer anew.
    ///
    /// # Errors
    /// Those of the store.
    fn clear(&self) -> Result<(), StoreError>;
}

impl CheckpointSink for Checkpoints {
    fn save(&self, state: &[u8], tree_bytes: u64) -> Result<(), StoreError> {
        Checkpoints::save(self, state, tree_bytes)
    }

    fn clear(&self) -> Result<(), StoreError> {
        Checkpoints::clear(self)
    }
}

/// How an extraction takes checkpoints.
pub struct CheckpointPolicy {
    /// Where they go.
    pub sink: Box<dyn CheckpointSink>,
    /// Shared by all extractions of one engine (K1).
    pub pace: Arc<Pace>,
    /// Cuts of this pull that the caller knows of (K2). Those of which the resumed state tells count too.
    pub cuts: u32,
    /// Whether the extraction goes on while a checkpoint is being made durable. If not, all it does to the disk comes in one
    /// order.
    pub beside: bool,
}

impl fmt::Debug for CheckpointPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CheckpointPolicy").field("cuts", &self.cuts).finish_non_exhaustive()
    }
}

/// The intervals of checkpoints, before any cut and at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Bytes of output, over all layers in flight, between two checkpoints; halved by each cut.
    pub output_bytes: u64,
    /// The least that halving gives.
    pub output_bytes_min: u64,
    /// The same for an extraction that has no checkpoint yet, without waiting for [`Intervals::spacing`] (K3).
    pub output_bytes_first: u64,
    /// Least time between two checkpoints of a layer; halved by each cut.
    pub spacing: Duration,
    /// The least that halving gives.
    pub spacing_min: Duration,
    /// A checkpoint is also due after this time, if [`Intervals::came_bytes`] came; halved by each cut.
    pub patience: Duration,
    /// The least that halving gives.
    pub patience_min: Duration,
    /// The patience with an extraction that has no checkpoint yet: without any, a cut loses all, and nobody counts it.
    pub patience_first: Duration,
    /// Bytes of the blob that make a checkpoint for time alone worth its flushes.
    pub came_bytes: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            output_bytes: 32 << 20,
            output_bytes_min: 1 << 20,
            output_bytes_first: 64 << 20,
            spacing: Duration::from_secs(2),
            spacing_min: Duration::from_millis(250),
            patience: Duration::from_secs(60),
            patience_min: Duration::from_secs(2),
            patience_first: Duration::from_secs(10),
            came_bytes: 256 << 10,
        }
    }
}

impl Intervals {
    /// After `cuts` cuts (K2).
    fn after(&self, cuts: u32) -> Self {
        let halved = |time: Duration, least: Duration| time.checked_div(1 << cuts.min(31)).unwrap_or(least).max(least);
        Self {
            output_bytes: (self.output_bytes >> cuts.min(63)).max(self.output_bytes_min),
            spacing: halved(self.spacing, self.spacing_min),
            patience: halved(self.patience, self.patience_min),
            ..*self
        }
    }
}

/// What the layers in flight have written and no checkpoint covers; one for an engine.
pub struct Pace {
    intervals: Intervals,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    uncovered_bytes: AtomicU64,
    in_flight: AtomicU64,
    /// When the last checkpoint of any layer was taken, in milliseconds of the clock; [`NEVER`].
    last_millis: AtomicU64,
}

/// No checkpoint was taken yet.
const NEVER: u64 = u64::MAX;

impl fmt::Debug for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pace").field("intervals", &self.intervals).finish_non_exhaustive()
    }
}

impl Default for Pace {
    fn default() -> Self {
        let start = Instant::now();
        Self::new(Intervals::default(), Box::new(move || start.elapsed()))
    }
}

impl Pace {
    /// A pace with other intervals, and another clock: one that never goes back.
    pub fn new(intervals: Intervals, clock: Box<dyn Fn() -> Duration + Send + Sync>) -> Self {
        let counter = AtomicU64::new;
        Self { intervals, clock, uncovered_bytes: counter(0), in_flight: counter(0), last_millis: counter(NEVER) }
    }

    /// How long ago the last checkpoint of any layer was taken, if one ever was.
    fn since_any(&self, now: Duration) -> Option<Duration> {
        let last = self.last_millis.load(Ordering::Relaxed);
        (last != NEVER).then(|| now.saturating_sub(Duration::from_millis(last)))
    }
}

/// One extraction's part in a [`Pace`].
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Arc<Pace>,
    intervals: Intervals,
    /// Output and input since the last checkpoint.
    own_bytes: u64,
    came_bytes: u64,
    last: Duration,
    has_checkpoint: bool,
}

impl Pacer {
    pub(crate) fn new(pace: Arc<Pace>, cuts: u32, has_checkpoint: bool) -> Self {
        let last = (pace.clock)();
        let intervals = pace.intervals.after(cuts);
        pace.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { pace, intervals, own_bytes: 0, came_bytes: 0, last, has_checkpoint }
    }

    /// Counts input and output.
    pub(crate) fn count(&mut self, came_bytes: u64, output_bytes: u64) {
        self.came_bytes += came_bytes;
        self.own_bytes += output_bytes;
        self.pace.uncovered_bytes.fetch_add(output_bytes, Ordering::Relaxed);
    }

    /// Whether a checkpoint is due; `lost` if the last one had to be given up.
    pub(crate) fn is_due(&self, lost: bool) -> bool {
        let now = (self.pace.clock)();
        let elapsed = now.saturating_sub(self.last);
        if elapsed < self.intervals.spacing || self.own_bytes == 0 {
            let is_first = !self.has_checkpoint && self.is_full(self.intervals.output_bytes_first);
            return is_first && self.pace.since_any(now).is_none_or(|elapsed| elapsed >= self.intervals.spacing);
        }
        let patience = if self.has_checkpoint {
            self.intervals.patience
        } else {
            self.intervals.patience.min(self.intervals.patience_first)
        };
        let is_full = self.is_full(self.intervals.output_bytes);
        is_full || lost || (elapsed >= patience && self.came_bytes >= self.intervals.came_bytes)
    }

    /// Whether all layers in flight have `output_bytes` that no checkpoint covers, and this one its part of it (K1).
    fn is_full(&self, output_bytes: u64) -> bool {
        let in_flight = self.pace.in_flight.load(Ordering::Relaxed).max(1);
        let uncovered_bytes = self.pace.uncovered_bytes.load(Ordering::Relaxed);
        uncovered_bytes >= output_bytes && self.own_bytes >= output_bytes / in_flight
    }

    /// Begins anew after a checkpoint.
    pub(crate) fn taken(&mut self) {
        self.pace.uncovered_bytes.fetch_sub(self.own_bytes, Ordering::Relaxed);
        self.own_bytes = 0;
        self.came_bytes = 0;
        self.last = (self.pace.clock)();
        let millis = u64::try_from(self.last.as_millis()).unwrap_or(NEVER);
        self.pace.last_millis.store(millis, Ordering::Relaxed);
        self.has_checkpoint = true;
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.pace.uncovered_bytes.fetch_sub(self.own_bytes, Ordering::Relaxed);
        self.pace.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pace whose clock stands until it is set, in milliseconds.
    fn pace() -> (Arc<Pace>, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let clock = Box::new(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
        (Arc::new(Pace::new(Intervals::default(), clock)), now)
    }

    #[test]
    fn a_checkpoint_is_due_by_the_output_of_all_layers_and_taken_by_the_greater() {
        let (pace, now) = pace();
        let mut large = Pacer::new(Arc::clone(&pace), 0, true);
        let mut small = Pacer::new(Arc::clone(&pace), 0, true);
        large.count(0, 24 << 20);
        small.count(0, 8 << 20);
        assert!(!large.is_due(false), "not before its time");
        now.store(2000, Ordering::Relaxed);
        assert!(large.is_due(false) && !small.is_due(false));
        large.taken();
        small.count(0, 8 << 20);
        now.store(4000, Ordering::Relaxed);
        assert!(!small.is_due(false), "half of it is covered");
        drop(large);
        small.count(0, 16 << 20);
        assert!(small.is_due(false));
        drop(small);
        assert_eq!(pace.uncovered_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_first_checkpoint_comes_at_once_when_much_is_there_and_one_for_all_layers() {
        let (pace, now) = pace();
        let mut first = Pacer::new(Arc::clone(&pace), 0, false);
        let mut second = Pacer::new(Arc::clone(&pace), 0, false);
        first.count(0, (64 << 20) - 1);
        assert!(!first.is_due(false));
        first.count(0, 1);
        assert!(first.is_due(false));
        first.taken();
        first.count(0, 64 << 20);
        assert!(!first.is_due(false), "its second waits for its time");
        second.count(0, 64 << 20);
        assert!(!second.is_due(false), "the other layer's was just now");
        now.store(1999, Ordering::Relaxed);
        let late = Pacer::new(pace, 0, false);
        assert!(!second.is_due(false) && !late.is_due(false));
        now.store(2000, Ordering::Relaxed);
        assert!(first.is_due(false) && second.is_due(false));
    }

    #[test]
    fn cuts_halve_the_intervals_down_to_the_least() {
        let intervals = Intervals::default();
        assert_eq!(intervals.after(0), intervals);
        let after = intervals.after(2);
        assert_eq!((after.output_bytes, after.spacing), (8 << 20, Duration::from_millis(500)));
        let after = intervals.after(u32::MAX);
        assert_eq!((after.output_bytes, after.spacing), (1 << 20, Duration::from_millis(250)));
        assert_eq!(after.patience, intervals.patience_min);
    }

    #[test]
    fn a_slow_network_gets_a_checkpoint_by_time_and_the_first_one_early() {
        let (pace, now) = pace();
        let mut pacer = Pacer::new(pace, 0, false);
        pacer.count(256 << 10, 1 << 20);
        now.store(9_999, Ordering::Relaxed);
        assert!(!pacer.is_due(false));
        now.store(10_000, Ordering::Relaxed);
        assert!(pacer.is_due(false));
        pacer.taken();
        pacer.count((256 << 10) - 1, 1 << 20);
        now.store(70_000, Ordering::Relaxed);
        assert!(!pacer.is_due(false), "too little came");
        assert!(pacer.is_due(true), "but without any a new one is due");
        pacer.count(1, 0);
        assert!(pacer.is_due(false));
    }
}
