//! What fuzzers feed, the kept corpus, and how many lines of each parser it runs.
//!
//! Z1  Every parser of bytes from outside has a [`Target`]: a function that must return, whatever it is fed, within its
//!     memory; and the sources that it is there to try.
//! Z2  `corpus/<target>/` is kept: each file is fed by the tests of this crate, and by the fuzzer before it changes any.
//!     It runs at least [`LINES_MIN_PERCENT`] of the lines of those sources.
//! Z3  The same functions are fed by the tests and by libFuzzer (`make fuzz`), so that what one finds the other keeps.
//!
//! Touches: the corpus, and the programs of this crate while they are traced. Nothing of it is in `baleen`.

pub mod corpus;
pub mod coverage;
pub mod lines;
pub mod memory;
pub mod targets;

mod sys;

pub use targets::{TARGETS, Target};

/// Share of the lines of each parser that the kept corpus runs at least.
pub const LINES_MIN_PERCENT: f64 = 80.0;
