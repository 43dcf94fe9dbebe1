//! Simulated disks, crash states and failing I/O for the tests of the other crates.
//!
//! [`SimulatedDisk`] is the store's file port in memory. It keeps names and contents apart, records every change, and
//! makes from the record any state that a power cut could leave. [`explore()`] puts a workload through all of them.
//! [`sealed()`] shows that the workload touches files through the port alone. How to replay a failing state: `README.md`.

#![deny(unsafe_code)]

mod change;
mod contents;
mod disk;
mod explore;
mod fault;
mod living;
mod port;
mod random;
mod record;
mod replay;
mod report;
mod scenario;
mod sealed;
#[expect(unsafe_code, reason = "the filter and its signal handler")]
mod sys;
mod tree;

pub use change::{CrashState, Fate, NotACrashState};
pub use disk::SimulatedDisk;
pub use explore::{Exploration, explore, replay};
pub use fault::{Fault, Operation, PowerGone, When};
pub use random::Random;
pub use record::{Barrier, Recording, Subsets};
pub use replay::{Mishap, NotAReplay, Replay, Then};
pub use report::{Conviction, Report};
pub use rustix::io::Errno;
pub use scenario::{Journal, Scenario};
pub use sealed::{SealedError, sealed};
