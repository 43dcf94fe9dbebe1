//! Simulated disks, crash states and failing I/O for the tests of the other crates.
//!
//! [`SimulatedDisk`] is the store's file port in memory. It keeps names and contents apart, records every change, and
//! makes from the record any state that a power cut could leave. [`explore`] puts a workload through all of them. How to replay a failing state: `README.md`.

mod change;
mod contents;
mod disk;
mod explore;
mod fault;
mod random;
mod record;
mod replay;
mod sealed;
mod sys;
mod tree;

pub use change::{CrashState, Fate, NotACrashState};
pub use disk::SimulatedDisk;
pub use explore::{Conviction, Exploration, Journal, Report, Scenario, explore, replay};
pub use fault::{Fault, Operation, PowerGone, When};
pub use random::Random;
pub use record::{Barrier, Recording, Subsets};
pub use replay::{Mishap, NotAReplay, Replay, Then};
pub use rustix::io::Errno;
pub use sealed::{SealedError, sealed};
