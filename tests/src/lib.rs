//! What the whole-system tests stand on: scratch places, registries, a daemon of their own, images of every shape, trees to compare.
//!
//! S1  Whatever a test starts or mounts is ended by the guard that it holds, on failure too: processes, mounts, loop devices,
//!     control groups, folders.
//! S2  A test that cannot run here says so through [`skip::skipped`] and is counted as skipped, never as passed; with `CI=true` it fails.
//! S3  The engine is reached as its users reach it: the built binary, its socket, real clients. No crate of the engine is linked, so
//!     that a mistake in one of them cannot hide itself in the test that looks for it.
//! S4  Everything listens on the loopback interface only, of the machine or of a network namespace that the test made.

#![forbid(unsafe_code)]

pub mod archive;
pub mod command;
pub mod daemon;
pub mod dockerd;
pub mod http;
pub mod image;
pub mod machine;
pub mod network;
pub mod random;
pub mod registry;
pub mod scratch;
pub mod skip;
pub mod store;
pub mod stub;
pub mod tree;
