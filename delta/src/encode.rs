//! Making a delta.

use std::io::{Read, Seek, Write};

use baleen_oci::{DiffId, Digest};

use crate::error::DeltaError;
use crate::header::Header;
use crate::source::{ReadAt, SourceLayer};

/// A layer to be made: its diff ID and its tar.
pub struct Target<'a> {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// The tar. Any bytes will do; those that are an archive become smaller.
    pub tar: &'a dyn ReadAt,
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Target").field("diff_id", &self.diff_id).finish_non_exhaustive()
    }
}

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// One way of matching for each file.
    Fast,
    /// All that this build knows, the smallest kept.
    #[default]
    Default,
}

/// How a delta is made.
pub struct Options<'a> {
    /// How hard to try.
    pub level: Level,
    /// Threads that match; at least one.
    pub threads: usize,
    /// Told how many bytes of all tars are done, now and then; `false` stops.
    pub progress: &'a (dyn Fn(u64) -> bool + Sync),
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { level: Level::Default, threads: 1, progress: &|_| true }
    }
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Options").field("level", &self.level).finish_non_exhaustive()
    }
}

/// Bytes by technique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Payloads made in this way.
    pub payloads: u64,
    /// Their bytes in the tars.
    pub output_bytes: u64,
    /// Bytes of their streams before packing.
    pub raw_bytes: u64,
}

/// What a delta became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its header.
    pub header: Header,
    /// Its length.
    pub delta_bytes: u64,
    /// Payloads by technique, the most frequent words: `copy`, `match`, `x86-64`, `arm64`, `literal`, …
    pub shares: Vec<(&'static str, Share)>,
}

/// Writes the delta that makes `targets` (the layers of the target image that the source image lacks, in order) out of
/// `sources` (the layers of the source image) to `out`. `config` is the digest of the target's config. `scratch` is an empty
/// file: the frames wait there until the header is known.
///
/// # Errors
/// [`DeltaError::Source`], [`DeltaError::Target`], [`DeltaError::Write`], [`DeltaError::TooLarge`], [`DeltaError::Stopped`].
///
/// # Blocking
/// About a second for each MB that changed.
pub fn encode<S: Read + Write + Seek>(
    config: &Digest,
    sources: &[&dyn SourceLayer],
    targets: &[Target<'_>],
    options: &Options<'_>,
    scratch: &mut S,
    out: &mut dyn Write,
) -> Result<Report, DeltaError> {
    let _ = (config, sources, targets, options, scratch, out);
    Err(DeltaError::TooLarge { problem: "making deltas is not implemented yet" })
}
