//! What a test writes to have a workload explored.

use std::fmt;
use std::hash::Hash;

use crate::disk::SimulatedDisk;

/// What is explored: a workload, how to recover from a cut in it, and what must be true then.
///
/// The workload must do the same calls each time it runs, without threads of its own that touch the disk.
pub trait Scenario: Sync {
    /// A promise made to a user while the workload ran.
    type Ack: Clone + fmt::Debug + Hash + Send + Sync;
    /// What recovery gives: an opened store, or what was found.
    type Opened;

    /// Names the scenario in reports.
    fn name(&self) -> String;

    /// Makes what is on the disk, durably, before the workload. Runs once; nothing is cut.
    ///
    /// # Errors
    /// Any is a broken test.
    fn prepare(&self, disk: &SimulatedDisk) -> Result<(), String>;

    /// Opens what it needs, does the work, and acknowledges to `journal` what a user would be told is done.
    ///
    /// # Errors
    /// Any, where a mishap was injected; none otherwise.
    fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<Self::Ack>) -> Result<(), String>;

    /// Recovers, as the next start does.
    ///
    /// # Errors
    /// Only if a call on the disk failed. An error without one is a conviction. In the same boot a sync may tell of
    /// writes that had failed earlier: then recovery may fail for that, and is tried again.
    fn recover(&self, disk: &SimulatedDisk) -> Result<Self::Opened, String>;

    /// Judges what recovery gave against what had been acknowledged.
    ///
    /// # Errors
    /// The promise that is broken.
    fn judge(&self, disk: &SimulatedDisk, opened: &Self::Opened, acks: &[Self::Ack]) -> Result<(), String>;

    /// What a user sees after recovery. A cut after that and the next recovery must show the same: what was once seen
    /// is not lost, and what was seen to be gone does not return. Nothing by default.
    fn facts(&self, _disk: &SimulatedDisk, _opened: &Self::Opened) -> Vec<String> {
        Vec::new()
    }
}

/// Acknowledgements in order, each with the number of steps before it.
#[derive(Debug)]
pub struct Journal<A> {
    disk: SimulatedDisk,
    pub(crate) acks: Vec<A>,
    at: Vec<u64>,
}

impl<A> Journal<A> {
    pub(crate) fn new(disk: &SimulatedDisk) -> Self {
        Self { disk: disk.clone(), acks: Vec::new(), at: Vec::new() }
    }

    /// Notes a promise: from here on it must survive any cut.
    pub fn acknowledge(&mut self, ack: A) {
        self.at.push(self.disk.steps());
        self.acks.push(ack);
    }

    /// What had been acknowledged when the power went before step `cut`.
    pub(crate) fn before(&self, cut: u64) -> &[A] {
        &self.acks[..self.at.partition_point(|at| *at <= cut)]
    }
}
