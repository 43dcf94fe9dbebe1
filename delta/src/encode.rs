//! Making a delta.
//!
//! E1  Payloads are planned side by side and put together in the order of the tar, so a delta does not depend on the number of
//!     threads.
//! E2  Memory is bounded: a batch of payloads at a time, and the packed frames wait in the scratch file.

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::tar::BLOCK_BYTES;

use crate::assemble::Assembly;
use crate::catalog::Catalog;
use crate::error::DeltaError;
use crate::header::Header;
use crate::limits::LAYERS_MAX;
use crate::plan::{self, Part};
use crate::source::{ReadAt, SourceLayer};
use crate::walk::{Piece, pieces};

/// A batch of payloads that are planned together has at most about this many bytes.
const BATCH_BYTES: u64 = 96 << 20;
/// And at most this many payloads.
const BATCH_PAYLOADS: usize = 4096;
/// Longest payload that is read into memory as a whole; longer ones are planned in pieces of this.
const PIECE_BYTES: u64 = 64 << 20;

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
    /// Payloads, or parts of long ones, made in this way.
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
    /// Payloads by technique: `copy`, `match`, `program`, `literal`.
    pub shares: Vec<(&'static str, Share)>,
    /// Bytes by stream, unpacked and packed, over all frames: what the delta consists of.
    pub streams: Vec<(&'static str, u64, u64)>,
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
    if targets.len() > LAYERS_MAX || sources.len() > LAYERS_MAX {
        return Err(DeltaError::TooLarge { problem: "it has too many layers" });
    }
    let catalog = Catalog::new(sources)?;
    let mut assembly = Assembly::new(&catalog, options.level, scratch);
    let mut done_before = 0;
    for target in targets {
        layer(&catalog, target, options, &mut assembly, done_before)?;
        done_before += target.tar.size_bytes();
    }
    let (header, shares, streams) = assembly.finish(config)?;
    out.write_all(&header.write()).map_err(DeltaError::Write)?;
    scratch.seek(SeekFrom::Start(0)).map_err(DeltaError::Write)?;
    std::io::copy(scratch, out).map_err(DeltaError::Write)?;
    let delta_bytes = header.delta_bytes();
    Ok(Report { header, delta_bytes, shares, streams })
}

fn layer<S: Write>(
    catalog: &Catalog<'_>,
    target: &Target<'_>,
    options: &Options<'_>,
    assembly: &mut Assembly<'_, S>,
    done_before: u64,
) -> Result<(), DeltaError> {
    let failed = |source| DeltaError::Target { layer: Box::new(target.diff_id), source };
    let pieces = pieces(target.tar).map_err(failed)?;
    assembly.begin(target.diff_id);
    let mut rest = pieces.as_slice();
    let mut offset = 0;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(batch_length(rest));
        rest = later;
        let plans = plans(catalog, target, batch, options, done_before + offset)?;
        let mut plans = plans.into_iter();
        for (number, piece) in batch.iter().enumerate() {
            match piece {
                Piece::Blocks { offset: from, count } => {
                    // What comes after the last block of a run decides whether it says the right thing of it.
                    let mut blocks = vec![0; (*count as usize) * BLOCK_BYTES];
                    target.tar.read_exact_at(&mut blocks, *from).map_err(failed)?;
                    let follows = matches!(batch.get(number + 1), Some(Piece::Payload { .. }));
                    let next = if follows { plans.as_slice().first() } else { None };
                    assembly.blocks(&blocks, next.map(Vec::as_slice), target.tar)?;
                    offset = from + count * BLOCK_BYTES as u64;
                }
                Piece::Payload { offset: from, size_bytes, padding_bytes, .. } => {
                    let mut padding = vec![0; *padding_bytes as usize];
                    target.tar.read_exact_at(&mut padding, from + size_bytes).map_err(failed)?;
                    let parts = plans.next().unwrap_or_default();
                    let has_header = number > 0 && matches!(batch[number - 1], Piece::Blocks { .. });
                    assembly.payload(parts, has_header, &padding, target.tar)?;
                    offset = from + size_bytes + padding_bytes;
                }
                Piece::Zeros { count } => {
                    assembly.zeros(*count, target.tar)?;
                    offset += count;
                }
            }
        }
        if !(options.progress)(done_before + offset) {
            return Err(DeltaError::Stopped);
        }
    }
    assembly.end(target.tar)
}

/// Pieces of the next batch. It does not end with the block of a header whose payload comes next.
fn batch_length(pieces: &[Piece]) -> usize {
    let (mut bytes, mut payloads) = (0, 0);
    for (number, piece) in pieces.iter().enumerate() {
        if let Piece::Payload { size_bytes, .. } = piece {
            bytes += size_bytes;
            payloads += 1;
        }
        if bytes >= BATCH_BYTES || payloads >= BATCH_PAYLOADS {
            return number + 1;
        }
    }
    pieces.len()
}

/// What became of one payload.
type Planned = Result<Vec<Part>, DeltaError>;

/// Plans the payloads of a batch, on all threads.
fn plans(
    catalog: &Catalog<'_>,
    target: &Target<'_>,
    batch: &[Piece],
    options: &Options<'_>,
    done_before: u64,
) -> Result<Vec<Vec<Part>>, DeltaError> {
    let mut jobs: Vec<(usize, u64, u64, &[u8])> = Vec::new();
    for piece in batch {
        if let Piece::Payload { offset, size_bytes, path, .. } = piece {
            jobs.push((jobs.len(), *offset, *size_bytes, path));
        }
    }
    let count = jobs.len();
    // The longest first: so that none is begun last.
    jobs.sort_by_key(|(number, _, size_bytes, _)| (std::cmp::Reverse(*size_bytes), *number));
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(done_before);
    let results: Mutex<Vec<Option<Planned>>> = Mutex::new((0..count).map(|_| None).collect());
    let work = || {
        while let Some((number, offset, size_bytes, path)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let planned = plan_one(catalog, target, *offset, *size_bytes, path, options.level);
            let is_wrong = planned.is_err();
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[*number] = Some(planned);
            let done = done.fetch_add(*size_bytes, Ordering::Relaxed) + size_bytes;
            if is_wrong || !(options.progress)(done) {
                next.store(count, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..options.threads.clamp(1, 64).min(count.max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.into_iter().map(|planned| planned.unwrap_or(Err(DeltaError::Stopped))).collect()
}

fn plan_one(
    catalog: &Catalog<'_>,
    target: &Target<'_>,
    offset: u64,
    size_bytes: u64,
    path: &[u8],
    level: Level,
) -> Result<Vec<Part>, DeltaError> {
    let failed = |source| DeltaError::Target { layer: Box::new(target.diff_id), source };
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    let mut done = 0;
    while done < size_bytes {
        let count = (size_bytes - done).min(PIECE_BYTES) as usize;
        bytes.resize(count, 0);
        target.tar.read_exact_at(&mut bytes, offset + done).map_err(failed)?;
        hasher.update(&bytes);
        done += count as u64;
    }
    if let Some(source) = catalog.same(path, hasher.finalize().as_bytes()) {
        return Ok(vec![plan::copy(source, size_bytes)]);
    }
    if size_bytes <= PIECE_BYTES {
        return plan::plan(catalog, path, &bytes, level);
    }
    let mut parts = Vec::new();
    done = 0;
    while done < size_bytes {
        let count = (size_bytes - done).min(PIECE_BYTES) as usize;
        bytes.resize(count, 0);
        target.tar.read_exact_at(&mut bytes, offset + done).map_err(failed)?;
        parts.extend(plan::plan(catalog, path, &bytes, level)?);
        done += count as u64;
    }
    Ok(parts)
}
