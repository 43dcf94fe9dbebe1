//! A layer's tar stream to an overlay directory while it arrives, the exact tar back from it, and overlay mounts.
//!
//! S1  Files are touched through [`baleen_store::Disk`] only; mounts alone speak to the kernel (`overlay`).
//! S2  Nothing that this crate returns as extracted has an unverified digest, size or diff ID.
//! S3  Memory is bounded whatever the layer's size: `limits` has the numbers.
//! S4  No path of a layer leads out of the layer's own directory (`tree`, rules P1 to P4).

pub mod active;
pub mod checkpoint;
pub mod content;
pub mod decompress;
pub mod error;
pub mod extraction;
pub mod fuzz;
pub mod limits;
pub mod lower;
pub mod name;
pub mod overlay;
pub mod rebuild;
pub mod release;
pub mod tar;
pub mod tree;

mod gzip;
mod jail;
mod saver;
mod state;
mod sys;
mod zstandard;

pub use checkpoint::{CheckpointPolicy, CheckpointSink, Intervals, Pace};
pub use error::ExtractError;
pub use extraction::{Expectation, Extracted, Extraction, Progress, Stopped, Support};
pub use limits::Limits;
pub use lower::{Lower, LowerNode, LowerStack};
pub use release::release;
