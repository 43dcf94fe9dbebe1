//! One layer on its way from the network into a directory, on two threads.
//!
//! ```text
//! feed ─> thread A: SHA-256 of the blob, decompress, SHA-256 of the tar ─> thread B: entries, BLAKE3, files, recipe
//! ```
//! X1  The recipe is finished, and [`Extraction::finish`] says `Ok`, only after size, digest and diff ID matched.
//! X2  Memory is bounded: [`CHUNKS_MAX`] chunks of the caller wait, and [`BUFFERS`] buffers go round.
//! X3  Both threads run without the right to start programs; A opens no file, and B changes none outside the layer's
//!     directory, where the kernel can enforce it (`jail`).
//! X4  An error of either thread ends both. The caller learns it from [`Extraction::finish`].
//! X5  A checkpoint is begun by A where the stream can be taken up again, goes through the same queue as the buffers, and is
//!     completed by B once all before it is written. A thread of its own makes it durable (`saver`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use baleen_oci::{Algorithm, Compression, DiffId, Digest, DigestHasher, MediaType};
use baleen_store::{Disk, Handle};

use crate::checkpoint::{CheckpointPolicy, Pacer};
use crate::decompress::Decompressor;
use crate::error::ExtractError;
use crate::jail;
use crate::limits::{Limits, UNCHECKPOINTABLE_BYTES};
use crate::lower::{Below, Lower};
use crate::saver::{Saver, Standing};
use crate::state::{State, StreamState};
use crate::tree::{TreeSummary, TreeWriter};

/// Chunks that may wait to be taken; [`Extraction::feed`] blocks beyond.
pub const CHUNKS_MAX: usize = 4;
/// Buffers of [`BUFFER_BYTES`] between the threads. 256 KiB times 8 is as fast as more, in 6 MB (docs/architecture.md).
pub const BUFFERS: usize = 8;
/// Size of each.
pub const BUFFER_BYTES: usize = 256 << 10;

/// What is known of a layer before it comes. Whatever is `Some` is verified.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// Digest of the bytes as transferred.
    pub blob: Option<Digest>,
    /// Their number.
    pub size_bytes: Option<u64>,
    /// Their media type; it must be a layer's. How the bytes are compressed is decided by how they begin, as Docker and
    /// containerd do: registries hold layers under the wrong one of the layer types.
    pub media_type: Option<MediaType>,
    /// Digest of the uncompressed tar, from the image's configuration.
    pub diff_id: Option<DiffId>,
    /// What the layer may use.
    pub limits: Limits,
}

/// What an extraction may ask of its caller.
#[derive(Default)]
pub struct Support {
    /// Where its checkpoints go; without, it makes none.
    pub checkpoints: Option<CheckpointPolicy>,
    /// The layers below, for hard links into them; without, such a link is refused.
    pub lower: Option<Box<dyn Lower>>,
}

impl std::fmt::Debug for Support {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (checkpoints, lower) = (self.checkpoints.is_some(), self.lower.is_some());
        formatter.debug_struct("Support").field("checkpoints", &checkpoints).field("lower", &lower).finish()
    }
}

/// A layer that was extracted and verified. Not durable yet: the store's barrier makes it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// Digest of the bytes as fed.
    pub blob: Digest,
    /// Their number.
    pub blob_size_bytes: u64,
    /// How they were compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// What was written.
    pub tree: TreeSummary,
}

/// How far an extraction is. Read from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    blob_bytes: AtomicU64,
    tar_bytes: AtomicU64,
    entries: AtomicU64,
    checkpoints: AtomicU64,
    no_point: AtomicBool,
}

impl Progress {
    /// Bytes of the blob that were taken.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the tar that were extracted.
    pub fn tar_bytes(&self) -> u64 {
        self.tar_bytes.load(Ordering::Relaxed)
    }

    /// Entries that were begun.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Checkpoints that were begun.
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    /// Whether the stream can be taken up again after a cut, as far as is known: not if it went on for 64 MiB after a
    /// checkpoint was due, without a place for one (a single zstd frame, a single deflate block).
    pub fn checkpointable(&self) -> bool {
        !self.no_point.load(Ordering::Relaxed)
    }
}

/// The extraction ended before the layer did; [`Extraction::finish`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("extraction has ended; finish it to learn why")]
pub struct Stopped;

/// A layer being extracted. Dropping it stops both threads and waits for them; what they wrote stays.
#[derive(Debug)]
pub struct Extraction {
    chunks: Option<SyncSender<Feed>>,
    inflater: Option<JoinHandle<Result<Verified, ExtractError>>>,
    writer: Option<JoinHandle<Result<TreeSummary, ExtractError>>>,
    progress: Arc<Progress>,
}

#[derive(Debug)]
enum Feed {
    Chunk(Vec<u8>),
    End,
}

enum Work {
    Tar(Vec<u8>),
    Checkpoint(Box<StreamState>),
    End(DiffId),
}

struct Verified {
    blob: Digest,
    blob_size_bytes: u64,
    compression: Compression,
    diff_id: DiffId,
}

impl Extraction {
    /// Starts to extract into `layer_dir`, an empty directory: `fs/`, `recipe` and, for what the archive holds but the
    /// tree cannot show, `kept/` (docs/formats/recipe.md).
    ///
    /// # Errors
    /// [`ExtractError::UnknownMediaType`]; [`ExtractError::Io`] if `layer_dir` is not empty or cannot be written, or a
    /// thread cannot be started.
    pub fn start(disk: Arc<dyn Disk>, layer_dir: Handle, expected: Expectation) -> Result<Self, ExtractError> {
        Self::start_with(disk, layer_dir, expected, Support::default())
    }

    /// Like [`Extraction::start`], with checkpoints, and with what is below.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        disk: Arc<dyn Disk>,
        layer_dir: Handle,
        expected: Expectation,
        support: Support,
    ) -> Result<Self, ExtractError> {
        check_media_type(&expected)?;
        let limits = expected.limits;
        let cuts = support.checkpoints.as_ref().map_or(0, |policy| policy.cuts);
        let (saver, checkpoints, below) = helpers(support, cuts, false)?;
        let beside = checkpoints.as_ref().is_none_or(|checkpoints| checkpoints.beside);
        let mut tree = TreeWriter::create(disk, &layer_dir, limits)?;
        tree.set_saver(saver);
        tree.set_below(below);
        let inflater = |progress| Inflater::new(expected, checkpoints, progress);
        Self::spawn(layer_dir, beside, move || Ok(tree), inflater).map(|(extraction, _)| extraction)
    }

    /// Goes on with what a cut extraction left in `layer_dir`, from the last state that its [`CheckpointPolicy::sink`] made
    /// durable; gives the offset in the blob of the next byte to feed. `expected` is what it was then.
    ///
    /// # Blocking
    /// Until the recipe was read and the tree is as it was then.
    ///
    /// # Errors
    /// [`ExtractError::NotResumable`] if state, files and expectation do not belong together: then, and after any error
    /// that [`ExtractError::calls_for_a_new_start`], the layer is started over in an empty directory.
    pub fn resume(
        disk: Arc<dyn Disk>,
        layer_dir: Handle,
        expected: Expectation,
        support: Support,
        state: &[u8],
    ) -> Result<(Self, u64), ExtractError> {
        check_media_type(&expected)?;
        let mut state = State::decode(state).map_err(|problem| ExtractError::NotResumable { problem })?;
        let stream = &mut state.stream;
        let belongs = (stream.blob, stream.blob_size_bytes, stream.diff_id)
            == (expected.blob, expected.size_bytes, expected.diff_id);
        if !belongs || expected.size_bytes.is_some_and(|size_bytes| stream.blob_bytes > size_bytes) {
            return Err(ExtractError::NotResumable { problem: "something else was expected then" });
        }
        let known = support.checkpoints.as_ref().map_or(0, |policy| policy.cuts);
        stream.cuts = stream.cuts.saturating_add(1).max(known);
        let offset = stream.blob_bytes;
        let limits = expected.limits;
        let (saver, checkpoints, below) = helpers(support, stream.cuts, true)?;
        let beside = checkpoints.as_ref().is_none_or(|checkpoints| checkpoints.beside);
        let decompressor = Decompressor::resume(&stream.point)
            .map_err(|_| ExtractError::NotResumable { problem: "its stream cannot be taken up there" })?;
        let stream = Box::new(stream.clone());
        let inflater = {
            let stream = stream.clone();
            move |progress| Inflater::resume(expected, checkpoints, progress, &stream, decompressor)
        };
        let tree = state.tree;
        let dir = disk.open_dir_in_root(&layer_dir, std::path::Path::new("."));
        let dir = dir.map_err(|source| ExtractError::Io { action: "open", path: "the layer".into(), source })?;
        let prepare = move || {
            let mut tree = TreeWriter::resume(disk, &dir, limits, tree, stream.tar_bytes)?;
            tree.set_saver(saver);
            tree.set_below(below);
            // The same place, with one more cut: where power fails often, the next interval is shorter (K2).
            tree.checkpoint(stream, beside)?;
            Ok(tree)
        };
        let (extraction, prepared) = Self::spawn(layer_dir, beside, prepare, inflater)?;
        match prepared.recv() {
            Ok(()) => Ok((extraction, offset)),
            Err(_) => {
                let mut extraction = extraction;
                Err(extraction.join().1.err().unwrap_or(ExtractError::Aborted))
            }
        }
    }

    /// Starts both threads. `prepare` runs on thread B, confined; that it is done is told.
    fn spawn(
        layer_dir: Handle,
        beside: bool,
        prepare: impl FnOnce() -> Result<TreeWriter, ExtractError> + Send + 'static,
        inflater: impl FnOnce(Arc<Progress>) -> Inflater,
    ) -> Result<(Self, Receiver<()>), ExtractError> {
        let progress = Arc::new(Progress::default());
        let (chunks, fed) = sync_channel(CHUNKS_MAX);
        let (to_writer, work) = sync_channel(BUFFERS);
        let (recycle, spare) = sync_channel(BUFFERS);
        let (tell, prepared) = sync_channel(1);
        let spawn_error = |source| ExtractError::Io { action: "start a thread for", path: "the layer".into(), source };
        let writer = {
            let progress = Arc::clone(&progress);
            let body = move || {
                jail::confine(layer_dir.fd()).map_err(ExtractError::Jail)?;
                let tree = prepare()?;
                let _ = tell.send(()); // Nobody waits for it where there was nothing to prepare.
                write(tree, beside, &work, &recycle, &progress)
            };
            thread::Builder::new().name("layer-write".into()).spawn(body).map_err(spawn_error)?
        };
        let inflater = {
            let inflater = inflater(Arc::clone(&progress));
            let body = move || {
                jail::confine(None).map_err(ExtractError::Jail)?;
                inflater.run(&fed, &to_writer, &spare)
            };
            thread::Builder::new().name("layer-inflate".into()).spawn(body).map_err(spawn_error)?
        };
        let extraction = Self { chunks: Some(chunks), inflater: Some(inflater), writer: Some(writer), progress };
        Ok((extraction, prepared))
    }

    /// Counters that can be read while the layer comes.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Gives the next bytes of the blob. Blocks while [`CHUNKS_MAX`] chunks wait.
    ///
    /// # Errors
    /// [`Stopped`] if the extraction has failed; `finish` says how.
    pub fn feed(&self, chunk: Vec<u8>) -> Result<(), Stopped> {
        let chunks = self.chunks.as_ref().ok_or(Stopped)?;
        chunks.send(Feed::Chunk(chunk)).map_err(|_| Stopped)
    }

    /// Like [`Extraction::feed`], and gives the chunk back instead of blocking.
    ///
    /// # Errors
    /// [`Stopped`] as with `feed`.
    pub fn try_feed(&self, chunk: Vec<u8>) -> Result<Option<Vec<u8>>, Stopped> {
        match self.chunks.as_ref().ok_or(Stopped)?.try_send(Feed::Chunk(chunk)) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(Feed::Chunk(chunk))) => Ok(Some(chunk)),
            Err(_) => Err(Stopped),
        }
    }

    /// Ends the blob, waits for both threads, and tells what was extracted: size, digest and diff ID match.
    ///
    /// # Durability
    /// None: a barrier over the layer's directory is the caller's.
    ///
    /// # Errors
    /// The first thing that went wrong, in either thread.
    pub fn finish(mut self) -> Result<Extracted, ExtractError> {
        if let Some(chunks) = self.chunks.take() {
            let _ = chunks.send(Feed::End); // Fails only if thread A has ended; its result says why.
        }
        let (verified, tree) = self.join();
        match (verified, tree) {
            (Ok(Verified { blob, blob_size_bytes, compression, diff_id }), Ok(tree)) => {
                Ok(Extracted { blob, blob_size_bytes, compression, diff_id, tree })
            }
            // Each thread ends as `Aborted` when the other has failed: then the other's error is the cause.
            (Err(ExtractError::Aborted), Err(cause)) | (Err(cause), _) | (_, Err(cause)) => Err(cause),
        }
    }

    /// Stops both threads, waits for them, and gives nothing. The layer's directory stays, incomplete.
    pub fn abort(self) {
        drop(self);
    }

    fn join(&mut self) -> (Result<Verified, ExtractError>, Result<TreeSummary, ExtractError>) {
        drop(self.chunks.take());
        let verified = self
            .inflater
            .take()
            .map_or(Err(ExtractError::Aborted), |thread| thread.join().unwrap_or(Err(ExtractError::Panicked)));
        let tree = self
            .writer
            .take()
            .map_or(Err(ExtractError::Aborted), |thread| thread.join().unwrap_or(Err(ExtractError::Panicked)));
        (verified, tree)
    }
}

impl Drop for Extraction {
    fn drop(&mut self) {
        if self.inflater.is_some() {
            let _ = self.join();
        }
    }
}

fn check_media_type(expected: &Expectation) -> Result<(), ExtractError> {
    match &expected.media_type {
        None | Some(MediaType::OciLayer(_) | MediaType::DockerLayer(_)) => Ok(()),
        Some(other) => Err(ExtractError::UnknownMediaType { media_type: other.as_str().chars().take(100).collect() }),
    }
}

/// Who saves, what thread A knows of that, and who looks into the layers below.
type Helpers = (Option<Saver>, Option<Checkpoints>, Option<Below>);

/// Starts what stands by both threads: it is not confined, so it begins before they are.
fn helpers(support: Support, cuts: u32, stands: bool) -> Result<Helpers, ExtractError> {
    let below = support.lower.map(Below::start).transpose()?;
    let Some(policy) = support.checkpoints else { return Ok((None, None, below)) };
    let (saver, standing) = Saver::start(policy.sink, stands)?;
    let pacer = Pacer::new(policy.pace, cuts, stands);
    let checkpoints = Checkpoints { pacer, standing, cuts, beside: policy.beside, searched_bytes: 0 };
    Ok((Some(saver), Some(checkpoints), below))
}

/// Thread B: takes the tar apart and writes it.
fn write(
    mut tree: TreeWriter,
    beside: bool,
    work: &Receiver<Work>,
    recycle: &SyncSender<Vec<u8>>,
    progress: &Progress,
) -> Result<TreeSummary, ExtractError> {
    loop {
        match work.recv() {
            Ok(Work::Tar(buffer)) => {
                tree.take(&buffer)?;
                progress.tar_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                progress.entries.store(tree.entries(), Ordering::Relaxed);
                // Fails only when thread A has sent its last buffer.
                let _ = recycle.try_send(buffer);
            }
            Ok(Work::Checkpoint(stream)) => tree.checkpoint(stream, beside)?,
            Ok(Work::End(diff_id)) => return tree.finish(diff_id),
            Err(_) => return Err(ExtractError::Aborted),
        }
    }
}

/// Thread A: verifies the blob and turns it into the tar.
struct Inflater {
    expected: Expectation,
    checkpoints: Option<Checkpoints>,
    progress: Arc<Progress>,
    decompressor: Decompressor,
    blob_hasher: DigestHasher,
    tar_hasher: DigestHasher,
    /// Bytes that came, and those of them that the decompressor took.
    came_bytes: u64,
    blob_bytes: u64,
    tar_bytes: u64,
}

/// What thread A knows of checkpoints.
struct Checkpoints {
    pacer: Pacer,
    standing: Arc<Standing>,
    cuts: u32,
    beside: bool,
    /// Output since one was due and the stream had no place for it.
    searched_bytes: u64,
}

impl Checkpoints {
    /// Without `beside`, thread B waits by itself, and what is due depends on the stream and the clock alone.
    fn is_due(&self) -> bool {
        let (busy, lost) = (&self.standing.busy, &self.standing.lost);
        let (busy, lost) = (busy.load(Ordering::Relaxed) && self.beside, lost.load(Ordering::Relaxed) && self.beside);
        !busy && self.pacer.is_due(lost)
    }
}

impl Inflater {
    fn new(expected: Expectation, checkpoints: Option<Checkpoints>, progress: Arc<Progress>) -> Self {
        let algorithm = |digest: Option<Digest>| digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        // With a diff ID every byte is verified by it; without, the stream's own checksum is all there is.
        let decompressor = Decompressor::new(expected.diff_id.is_none());
        let blob_hasher = DigestHasher::new(algorithm(expected.blob));
        let tar_hasher = DigestHasher::new(algorithm(expected.diff_id.map(|diff_id| diff_id.0)));
        Self {
            expected,
            checkpoints,
            progress,
            decompressor,
            blob_hasher,
            tar_hasher,
            came_bytes: 0,
            blob_bytes: 0,
            tar_bytes: 0,
        }
    }

    fn resume(
        expected: Expectation,
        checkpoints: Option<Checkpoints>,
        progress: Arc<Progress>,
        stream: &StreamState,
        decompressor: Decompressor,
    ) -> Self {
        progress.blob_bytes.store(stream.blob_bytes, Ordering::Relaxed);
        progress.tar_bytes.store(stream.tar_bytes, Ordering::Relaxed);
        Self {
            expected,
            checkpoints,
            progress,
            decompressor,
            blob_hasher: stream.blob_hasher.clone(),
            tar_hasher: stream.tar_hasher.clone(),
            came_bytes: stream.blob_bytes,
            blob_bytes: stream.blob_bytes,
            tar_bytes: stream.tar_bytes,
        }
    }

    fn run(
        mut self,
        fed: &Receiver<Feed>,
        to_writer: &SyncSender<Work>,
        spare: &Receiver<Vec<u8>>,
    ) -> Result<Verified, ExtractError> {
        let mut lent = 0;
        let mut buffer = Vec::new();
        loop {
            match fed.recv() {
                Ok(Feed::Chunk(chunk)) => {
                    self.count(&chunk)?;
                    let mut rest = chunk.as_slice();
                    loop {
                        if buffer.capacity() == 0 {
                            buffer = next_buffer(&mut lent, spare)?;
                        }
                        let is_due = self.checkpoints.as_ref().is_some_and(Checkpoints::is_due);
                        let consumed = self.decompress(rest, &mut buffer, is_due)?;
                        rest = &rest[consumed..];
                        if is_due && self.checkpoint(&mut buffer, to_writer)? {
                            continue;
                        }
                        if buffer.len() < BUFFER_BYTES {
                            debug_assert!(rest.is_empty(), "the decompressor stops at a full buffer or the end only");
                            break;
                        }
                        self.hand_over(std::mem::take(&mut buffer), to_writer)?;
                    }
                    self.progress.blob_bytes.store(self.blob_bytes, Ordering::Relaxed);
                }
                Ok(Feed::End) => break,
                Err(_) => return Err(ExtractError::Aborted),
            }
        }
        let compression = self.end(&mut buffer, &mut lent, to_writer, spare)?;
        if !buffer.is_empty() {
            self.hand_over(buffer, to_writer)?;
        }
        let verified = self.verify(compression)?;
        to_writer.send(Work::End(verified.diff_id)).map_err(|_| ExtractError::Aborted)?;
        Ok(verified)
    }

    fn count(&mut self, chunk: &[u8]) -> Result<(), ExtractError> {
        self.came_bytes += chunk.len() as u64;
        match self.expected.size_bytes {
            Some(expected_bytes) if self.came_bytes > expected_bytes => {
                Err(ExtractError::BlobTooLong { blob: self.blob_name(), expected_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Decompresses; what the decompressor took, and no more, is in the digest then, so that both stand at one byte.
    fn decompress(&mut self, input: &[u8], output: &mut Vec<u8>, to_point: bool) -> Result<usize, ExtractError> {
        let decompressor = &mut self.decompressor;
        let before = output.len();
        let taken = if to_point { decompressor.run_to_point(input, output) } else { decompressor.run(input, output) };
        let consumed = taken.map_err(ExtractError::Decompress)?;
        self.blob_hasher.update(&input[..consumed]);
        self.blob_bytes += consumed as u64;
        if let Some(checkpoints) = &mut self.checkpoints {
            let output_bytes = (output.len() - before) as u64;
            checkpoints.pacer.count(consumed as u64, output_bytes);
            if to_point {
                checkpoints.searched_bytes += output_bytes;
            }
        }
        Ok(consumed)
    }

    /// Begins a checkpoint, if the stream stands where it can be taken up again (X5).
    fn checkpoint(&mut self, buffer: &mut Vec<u8>, to_writer: &SyncSender<Work>) -> Result<bool, ExtractError> {
        let point = self.decompressor.point();
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(false) };
        // At the end of the blob the commit is near.
        let at_end = self.expected.size_bytes == Some(self.blob_bytes);
        let Some(point) = point.filter(|_| !at_end) else {
            if checkpoints.searched_bytes >= UNCHECKPOINTABLE_BYTES {
                self.progress.no_point.store(true, Ordering::Relaxed);
            }
            return Ok(false);
        };
        checkpoints.searched_bytes = 0;
        checkpoints.standing.busy.store(true, Ordering::Relaxed);
        let cuts = checkpoints.cuts;
        self.progress.no_point.store(false, Ordering::Relaxed);
        self.progress.checkpoints.fetch_add(1, Ordering::Relaxed);
        if !buffer.is_empty() {
            self.hand_over(std::mem::take(buffer), to_writer)?;
        }
        let state = StreamState {
            blob: self.expected.blob,
            blob_size_bytes: self.expected.size_bytes,
            diff_id: self.expected.diff_id,
            cuts,
            blob_bytes: self.blob_bytes,
            blob_hasher: self.blob_hasher.clone(),
            tar_bytes: self.tar_bytes,
            tar_hasher: self.tar_hasher.clone(),
            point,
        };
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.pacer.taken();
        }
        to_writer.send(Work::Checkpoint(Box::new(state))).map_err(|_| ExtractError::Aborted)?;
        Ok(true)
    }

    fn hand_over(&mut self, buffer: Vec<u8>, to_writer: &SyncSender<Work>) -> Result<(), ExtractError> {
        self.tar_bytes += buffer.len() as u64;
        let tar_bytes_max = self.expected.limits.tar_bytes_max;
        if self.tar_bytes > tar_bytes_max {
            return Err(ExtractError::TooLarge { tar_bytes_max });
        }
        self.tar_hasher.update(&buffer);
        to_writer.send(Work::Tar(buffer)).map_err(|_| ExtractError::Aborted)
    }

    /// Empties the decompressor. Size and digest go first: they explain a stream that ends early better than it can.
    fn end(
        &mut self,
        buffer: &mut Vec<u8>,
        lent: &mut usize,
        to_writer: &SyncSender<Work>,
        spare: &Receiver<Vec<u8>>,
    ) -> Result<Compression, ExtractError> {
        if let Some(expected_bytes) = self.expected.size_bytes
            && self.blob_bytes != expected_bytes
        {
            let (blob, found_bytes) = (self.blob_name(), self.blob_bytes);
            return Err(ExtractError::BlobTooShort { blob, expected_bytes, found_bytes });
        }
        if let Some(expected) = self.expected.blob {
            let found = self.blob_hasher.clone().finish();
            if found != expected {
                let (expected, found) = (Box::new(expected), Box::new(found));
                return Err(ExtractError::DigestMismatch { expected, found });
            }
        }
        loop {
            if buffer.capacity() == 0 {
                *buffer = next_buffer(lent, spare)?;
            }
            match self.decompressor.finish(buffer).map_err(ExtractError::Decompress)? {
                Some(compression) => return Ok(compression),
                None => self.hand_over(std::mem::take(buffer), to_writer)?,
            }
        }
    }

    fn verify(self, compression: Compression) -> Result<Verified, ExtractError> {
        let diff_id = DiffId(self.tar_hasher.finish());
        if let Some(expected) = self.expected.diff_id
            && expected != diff_id
        {
            let (expected, found) = (Box::new(expected), Box::new(diff_id));
            return Err(ExtractError::DiffIdMismatch { expected, found });
        }
        let blob = self.blob_hasher.finish();
        Ok(Verified { blob, blob_size_bytes: self.blob_bytes, compression, diff_id })
    }

    fn blob_name(&self) -> String {
        self.expected.blob.map_or_else(|| "without a digest".into(), |blob| blob.to_string())
    }
}

/// A buffer that thread B has given back, or a new one while fewer than [`BUFFERS`] go round.
fn next_buffer(lent: &mut usize, spare: &Receiver<Vec<u8>>) -> Result<Vec<u8>, ExtractError> {
    if let Ok(mut buffer) = spare.try_recv() {
        buffer.clear();
        return Ok(buffer);
    }
    if *lent < BUFFERS {
        *lent += 1;
        return Ok(Vec::with_capacity(BUFFER_BYTES));
    }
    let mut buffer = spare.recv().map_err(|_| ExtractError::Aborted)?;
    buffer.clear();
    Ok(buffer)
}
