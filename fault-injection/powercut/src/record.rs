//! The recording: every write and every flush of a disk in order, with the marks of the workload between them.
//! Bytes on disk: docs/formats/powercut-recording.md, format 1.
//!
//! R1  The file is only appended to, entry by entry, each with a checksum; a file without its end entry is refused.
//! R2  An event lies in the file before the request that it records is answered.
//! R3  What was recorded while something else wrote pages back is said in the end entry, and refused on opening.
//!
//! Touches the recording's file only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::contents::{BLOCK_BYTES, ContentId, Contents, ZEROS};
use crate::workload::{Mark, MarkKind};

/// First bytes of a recording.
pub(crate) const MAGIC: [u8; 8] = *b"BALEENPC";
/// The format that this build writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Longest description and longest body of an entry, in bytes.
const BODY_MAX: usize = 64 << 20;
/// Largest disk, in bytes.
pub(crate) const DISK_BYTES_MAX: u64 = 64 << 30;

const ENTRY_HEAD: usize = 16;
const CONTENT: u8 = 1;
const BASE: u8 = 2;
const WRITE: u8 = 3;
const FLUSH: u8 = 4;
const MARK: u8 = 5;
const CUT: u8 = 6;
const END: u8 = 7;

/// A recording that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file could not be used.
    #[error("cannot {action} recording {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a whole recording of this format.
    #[error("{path} is no whole recording: {why}; record again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The format is another one.
    #[error("recording {path} has format {found}, this build reads {VERSION}; record again")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Something else wrote pages back while it was made.
    #[error("recording {path} is no evidence: {why}; record again on a quiet machine")]
    NotQuiet {
        /// The file.
        path: PathBuf,
        /// What was seen.
        why: String,
    },
}

/// What a recording is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Logical block size of the disk in bytes: 512 or 4096.
    pub sector_bytes: u32,
    /// Type of the file system.
    pub filesystem: String,
    /// Options it was mounted with.
    pub mount_options: String,
    /// [`Workload::name`](crate::workload::Workload::name).
    pub workload: String,
    /// Where the disk was mounted.
    pub place: PathBuf,
    /// The commit of what was tested, or empty.
    #[serde(default)]
    pub commit: String,
    /// The kernel's release.
    #[serde(default)]
    pub kernel: String,
}

/// A part of a write: bytes within one block of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: u32,
    pub(crate) start: u16,
    pub(crate) length: u16,
    pub(crate) content: ContentId,
}

/// One thing that happened, in order.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Write(Vec<Piece>),
    Flush,
    Mark(Mark),
    /// The power went, and the disk goes on from a state of the epoch that ends here: its base with these blocks.
    Cut {
        state: String,
        blocks: Vec<(u32, ContentId)>,
    },
}

/// How a recording ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// What else wrote pages back; empty: nothing.
    pub(crate) disturbed: Vec<String>,
}

/// Splits bytes at `offset` of the disk where blocks end: block, first byte within it, range of the bytes.
pub(crate) fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u32, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= length {
            return None;
        }
        let position = offset + at as u64;
        let start = (position % BLOCK_BYTES as u64) as usize;
        let end = (at + BLOCK_BYTES - start).min(length);
        let piece = ((position / BLOCK_BYTES as u64) as u32, start, at..end);
        at = end;
        Some(piece)
    })
}

fn checksum(head: &[u8], body: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    checksum
}

/// Appends an entry; the offset of its body within `buffer`.
fn put_entry(buffer: &mut Vec<u8>, kind: u8, body: &[u8]) -> usize {
    let mut head = [0; 8];
    head[0] = kind;
    head[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(&checksum(&head, body));
    let at = buffer.len();
    buffer.extend_from_slice(body);
    at
}

/// Writes a recording.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    file: File,
    length: u64,
    contents: Arc<Contents>,
    buffer: Vec<u8>,
}

impl Recorder {
    /// Begins a recording in a new file, replacing one that is there.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn create(path: &Path, description: &Description) -> Result<Recorder, RecordError> {
        let text = serde_json::to_vec(description).map_err(io::Error::from);
        let mut recorder = Recorder::open_new(path)?;
        let text = recorder.named("describe", text)?;
        let mut head = Vec::new();
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(text.len() as u32).to_le_bytes());
        let sum = checksum(&head, &text);
        recorder.buffer.extend_from_slice(&head);
        recorder.buffer.extend_from_slice(&sum);
        recorder.buffer.extend_from_slice(&text);
        recorder.write_out()?;
        Ok(recorder)
    }

    /// Begins a recording that goes on from a cut of another: the bytes of that up to its event `end`, then the cut.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn go_on(
        path: &Path,
        before: &Recording,
        end: usize,
        state: &str,
        blocks: &[(u32, ContentId)],
    ) -> Result<Recorder, RecordError> {
        let mut recorder = Recorder::open_new(path)?;
        let kept = before.event_ends.get(end.wrapping_sub(1)).copied().unwrap_or(before.events_begin);
        let copied = File::open(&before.path).and_then(|file| io::copy(&mut file.take(kept), &mut recorder.file));
        recorder.length = recorder.named("copy", copied)?;
        recorder.scan_contents()?;
        let mut body = (state.len() as u32).to_le_bytes().to_vec();
        body.extend_from_slice(state.as_bytes());
        for (block, content) in blocks {
            let mut bytes = [0; BLOCK_BYTES];
            let read = before.contents.read(*content, 0, &mut bytes);
            recorder.named("read", read)?;
            let content = recorder.put_content(&bytes);
            body.extend_from_slice(&block.to_le_bytes());
            body.extend_from_slice(&content.to_le_bytes());
        }
        put_entry(&mut recorder.buffer, CUT, &body);
        recorder.write_out()?;
        Ok(recorder)
    }

    fn open_new(path: &Path) -> Result<Recorder, RecordError> {
        let io = |source| RecordError::Io { action: "create", path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).map_err(io)?;
        let contents = Arc::new(Contents::new(file.try_clone().map_err(io)?));
        let path = path.to_owned();
        Ok(Recorder { path, file, length: 0, contents, buffer: Vec::new() })
    }

    /// Numbers the contents of the bytes copied from another recording.
    fn scan_contents(&mut self) -> Result<(), RecordError> {
        let mut reader = Reader::new(&self.path, &self.file)?;
        reader.description()?;
        while let Some((kind, offset, body)) = reader.entry()? {
            if kind == CONTENT {
                self.contents.add_stored(Contents::hash(&body), offset, body.len() as u16);
            }
        }
        let end = self.file.seek(io::SeekFrom::End(0));
        self.named("seek", end).map(|_| ())
    }

    /// The contents recorded so far.
    pub(crate) fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    /// Notes what is on the disk before the first event.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn base(&mut self, block: u32, bytes: &[u8; BLOCK_BYTES]) -> Result<ContentId, RecordError> {
        let content = self.put_content(bytes);
        if content != ZEROS {
            let mut body = block.to_le_bytes().to_vec();
            body.extend_from_slice(&content.to_le_bytes());
            put_entry(&mut self.buffer, BASE, &body);
            if self.buffer.len() > 1 << 20 {
                self.write_out()?;
            }
        }
        Ok(content)
    }

    /// Ends the base: its contents can be read from here on.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn base_is_whole(&mut self) -> Result<(), RecordError> {
        self.write_out()
    }

    /// Records a write; the pieces of it, in order.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<Vec<Piece>, RecordError> {
        let mut body = offset.to_le_bytes().to_vec();
        let mut written = Vec::new();
        for (block, start, range) in pieces(offset, data.len()) {
            let length = range.len() as u16;
            let content = self.put_content(&data[range]);
            body.extend_from_slice(&content.to_le_bytes());
            written.push(Piece { block, start: start as u16, length, content });
        }
        put_entry(&mut self.buffer, WRITE, &body);
        self.write_out()?;
        Ok(written)
    }

    /// Records a flush: what was written before it is durable.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn flush(&mut self) -> Result<(), RecordError> {
        put_entry(&mut self.buffer, FLUSH, &[]);
        self.write_out()
    }

    /// Records a mark.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn mark(&mut self, mark: &Mark) -> Result<(), RecordError> {
        let kind = match mark.kind {
            MarkKind::Begun => 1,
            MarkKind::Acknowledged => 2,
            MarkKind::Note => 3,
        };
        let mut body = vec![kind];
        body.extend_from_slice(mark.text.as_bytes());
        put_entry(&mut self.buffer, MARK, &body);
        self.write_out()
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn end(mut self, ending: &Ending) -> Result<PathBuf, RecordError> {
        let text = serde_json::to_vec(ending).map_err(io::Error::from);
        let text = self.named("end", text)?;
        put_entry(&mut self.buffer, END, &text);
        self.write_out()?;
        Ok(self.path)
    }

    fn put_content(&mut self, bytes: &[u8]) -> ContentId {
        if let Some(known) = self.contents.stored(bytes) {
            return known;
        }
        let at = put_entry(&mut self.buffer, CONTENT, bytes);
        self.contents.add_stored(Contents::hash(bytes), self.length + at as u64, bytes.len() as u16)
    }

    fn write_out(&mut self) -> Result<(), RecordError> {
        let written = self.file.write_all(&self.buffer);
        self.named("write", written)?;
        self.length += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn named<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T, RecordError> {
        result.map_err(|source| RecordError::Io { action, path: self.path.clone(), source })
    }
}

/// Reads entries one after the other.
struct Reader<'a> {
    path: &'a Path,
    input: io::BufReader<&'a File>,
    offset: u64,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, file: &'a File) -> Result<Reader<'a>, RecordError> {
        let mut input = io::BufReader::with_capacity(1 << 20, file);
        let io = |source| RecordError::Io { action: "read", path: path.to_owned(), source };
        input.seek(io::SeekFrom::Start(0)).map_err(io)?;
        Ok(Reader { path, input, offset: 0 })
    }

    fn damaged(&self, why: impl Into<String>) -> RecordError {
        RecordError::Damaged { path: self.path.to_owned(), why: why.into() }
    }

    /// Reads exactly `length` bytes; `None` at the very end of the file.
    fn bytes(&mut self, length: usize) -> Result<Option<Vec<u8>>, RecordError> {
        if length > BODY_MAX {
            return Err(self.damaged(format!("a part of {length} bytes at {}", self.offset)));
        }
        let mut bytes = Vec::with_capacity(length);
        let read = (&mut self.input).take(length as u64).read_to_end(&mut bytes);
        let read = read.map_err(|source| RecordError::Io { action: "read", path: self.path.to_owned(), source })?;
        self.offset += read as u64;
        match read {
            0 if length > 0 => Ok(None),
            read if read == length => Ok(Some(bytes)),
            _ => Err(self.damaged(format!("it ends within a part, at {}", self.offset))),
        }
    }

    fn description(&mut self) -> Result<Description, RecordError> {
        let head = self.bytes(24)?.ok_or_else(|| self.damaged("it is empty"))?;
        if head[..8] != MAGIC {
            return Err(self.damaged("it does not begin with BALEENPC"));
        }
        let version = number(&head[8..12]);
        if version != VERSION {
            return Err(RecordError::Version { path: self.path.to_owned(), found: version });
        }
        let text = self.bytes(number(&head[12..16]) as usize)?.unwrap_or_default();
        if checksum(&head[..16], &text) != head[16..24] {
            return Err(self.damaged("the checksum of its head is wrong"));
        }
        let description: Description =
            serde_json::from_slice(&text).map_err(|error| self.damaged(format!("its description: {error}")))?;
        let sound = description.size_bytes <= DISK_BYTES_MAX
            && description.size_bytes.is_multiple_of(BLOCK_BYTES as u64)
            && [512, 4096].contains(&description.sector_bytes);
        if sound { Ok(description) } else { Err(self.damaged("it describes no disk")) }
    }

    /// The next entry: its kind, the offset of its body, its body.
    fn entry(&mut self) -> Result<Option<(u8, u64, Vec<u8>)>, RecordError> {
        let Some(head) = self.bytes(ENTRY_HEAD)? else { return Ok(None) };
        let at = self.offset;
        let length = number(&head[4..8]) as usize;
        let body = if length == 0 { Some(Vec::new()) } else { self.bytes(length)? };
        let body = body.ok_or_else(|| self.damaged(format!("it ends within an entry, at {at}")))?;
        if checksum(&head[..8], &body) != head[8..16] {
            return Err(self.damaged(format!("the checksum of the entry before {at} is wrong")));
        }
        Ok(Some((head[0], at, body)))
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes were cut out"))
}

fn pairs(bytes: &[u8]) -> Option<Vec<(u32, ContentId)>> {
    let whole = bytes.len().is_multiple_of(8);
    whole.then(|| bytes.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]))).collect())
}

/// A stretch between two flushes: what a flush leaves open until the next.
#[derive(Debug, Clone)]
pub(crate) struct Epoch {
    /// First event after the flush (or cut) that began it.
    pub(crate) begin: usize,
    /// The flush or cut that ended it, or the end of the recording.
    pub(crate) end: usize,
}

/// A whole recording, opened for making states from it.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    /// What it is of.
    pub description: Description,
    pub(crate) contents: Arc<Contents>,
    pub(crate) events: Vec<Event>,
    event_ends: Vec<u64>,
    events_begin: u64,
    pub(crate) epochs: Vec<Epoch>,
    /// The disk before each `SNAPSHOT_EVERY`th epoch, as far as computed.
    snapshots: Vec<Arc<Vec<ContentId>>>,
    identity: String,
}

/// Epochs from one kept image to the next.
const SNAPSHOT_EVERY: usize = 64;

impl Recording {
    /// Opens a recording and checks all of it.
    ///
    /// # Errors
    /// `Damaged`, `Version`, `NotQuiet` as their texts say; `Io`.
    pub fn open(path: &Path) -> Result<Recording, RecordError> {
        let file =
            File::open(path).map_err(|source| RecordError::Io { action: "open", path: path.to_owned(), source })?;
        let kept =
            file.try_clone().map_err(|source| RecordError::Io { action: "open", path: path.to_owned(), source })?;
        let mut reader = Reader::new(path, &file)?;
        let description = reader.description()?;
        let blocks = description.size_bytes / BLOCK_BYTES as u64;
        let contents = Arc::new(Contents::new(kept));
        let mut base = vec![ZEROS; blocks as usize];
        let (mut events, mut event_ends, mut events_begin) = (Vec::new(), Vec::new(), reader.offset);
        let mut ending: Option<Ending> = None;
        let mut hasher = blake3::Hasher::new();
        while let Some((kind, offset, body)) = reader.entry()? {
            hasher.update(&[kind]);
            hasher.update(&body);
            if ending.is_some() {
                return Err(reader.damaged("something follows its end"));
            }
            let wrong = |what: &str| reader.damaged(format!("{what} before offset {}", reader.offset));
            let known = |content: ContentId| contents.length(content);
            let event = match kind {
                CONTENT if !body.is_empty() && body.len() <= BLOCK_BYTES => {
                    contents.add_stored(Contents::hash(&body), offset, body.len() as u16);
                    if events.is_empty() {
                        events_begin = reader.offset;
                    }
                    continue;
                }
                BASE if events.is_empty() && body.len() == 8 => {
                    let (block, content) = (number(&body[..4]), number(&body[4..]));
                    let slot = base.get_mut(block as usize).ok_or_else(|| wrong("a block outside the disk"))?;
                    if known(content) != Some(BLOCK_BYTES) {
                        return Err(wrong("a base block without content"));
                    }
                    *slot = content;
                    events_begin = reader.offset;
                    continue;
                }
                WRITE => {
                    Event::Write(read_write(&body, description.size_bytes, known).ok_or_else(|| wrong("a bad write"))?)
                }
                FLUSH if body.is_empty() => Event::Flush,
                MARK => Event::Mark(read_mark(&body).ok_or_else(|| wrong("a bad mark"))?),
                CUT => read_cut(&body, blocks, known).ok_or_else(|| wrong("a bad cut"))?,
                END => {
                    let read = serde_json::from_slice(&body);
                    ending = Some(read.map_err(|error| wrong(&format!("a bad end ({error})")))?);
                    continue;
                }
                _ => return Err(wrong(&format!("an entry of unknown kind {kind} or of wrong length"))),
            };
            events.push(event);
            event_ends.push(reader.offset);
        }
        let ending = ending.ok_or_else(|| reader.damaged("it has no end: the recording was interrupted"))?;
        if !ending.disturbed.is_empty() {
            return Err(RecordError::NotQuiet { path: path.to_owned(), why: ending.disturbed.join("; ") });
        }
        let identity = hasher.finalize().to_hex()[..16].to_owned();
        let epochs = divide(&events);
        let path = path.to_owned();
        let snapshots = vec![Arc::new(base)];
        let mut recording =
            Recording { path, description, contents, events, event_ends, events_begin, epochs, snapshots, identity };
        recording.take_snapshots()?;
        Ok(recording)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name for exactly this recording: a hash of all that is in it.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// How many epochs it has: stretches between two flushes.
    pub fn epoch_count(&self) -> u32 {
        self.epochs.len() as u32
    }

    /// Writes of the whole recording, and their bytes.
    pub fn written(&self) -> (u64, u64) {
        let lengths = self.events.iter().filter_map(|event| match event {
            Event::Write(pieces) => Some(pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>()),
            _ => None,
        });
        lengths.fold((0, 0), |(count, bytes), length| (count + 1, bytes + length))
    }

    /// The marks up to the end of an epoch (K2).
    pub fn marks_until(&self, epoch: u32) -> Vec<Mark> {
        let end = self.epochs.get(epoch as usize).map_or(self.events.len(), |epoch| epoch.end);
        let marks = self.events[..end].iter().filter_map(|event| match event {
            Event::Mark(mark) => Some(mark.clone()),
            _ => None,
        });
        marks.collect()
    }

    /// The disk as it was when an epoch began.
    ///
    /// # Errors
    /// `Io` where parts of blocks have to be put together and cannot be read.
    pub(crate) fn image(&self, epoch: u32) -> Result<Arc<Vec<ContentId>>, RecordError> {
        let epoch = (epoch as usize).min(self.epochs.len());
        let from = (epoch / SNAPSHOT_EVERY).min(self.snapshots.len() - 1);
        let mut image = Arc::clone(&self.snapshots[from]);
        for number in from * SNAPSHOT_EVERY..epoch {
            let blocks: &mut Vec<ContentId> = Arc::make_mut(&mut image);
            self.pass(number, blocks)?;
        }
        Ok(image)
    }

    fn take_snapshots(&mut self) -> Result<(), RecordError> {
        let mut image = Arc::clone(&self.snapshots[0]);
        for number in 0..self.epochs.len() {
            let blocks: &mut Vec<ContentId> = Arc::make_mut(&mut image);
            self.pass(number, blocks)?;
            if (number + 1) % SNAPSHOT_EVERY == 0 {
                self.snapshots.push(Arc::clone(&image));
            }
        }
        Ok(())
    }

    /// Takes an image from the begin of an epoch to the begin of the next.
    fn pass(&self, epoch: usize, image: &mut [ContentId]) -> Result<(), RecordError> {
        let epoch = &self.epochs[epoch];
        if let Some(Event::Cut { blocks, .. }) = self.events.get(epoch.end) {
            for (block, content) in blocks {
                image[*block as usize] = *content;
            }
            return Ok(());
        }
        for event in &self.events[epoch.begin..epoch.end] {
            let Event::Write(pieces) = event else { continue };
            for piece in pieces {
                let old = image[piece.block as usize];
                image[piece.block as usize] = self.patched(old, piece, 0xff)?;
            }
        }
        Ok(())
    }

    /// What a block holds once the sectors in `mask` of a piece have been written over it.
    pub(crate) fn patched(&self, old: ContentId, piece: &Piece, mask: u8) -> Result<ContentId, RecordError> {
        if mask == 0xff && usize::from(piece.length) == BLOCK_BYTES {
            return Ok(piece.content);
        }
        let io = |source| RecordError::Io { action: "read", path: self.path.clone(), source };
        let mut bytes = [0; BLOCK_BYTES];
        self.contents.read(old, 0, &mut bytes).map_err(io)?;
        let mut new = vec![0; usize::from(piece.length)];
        self.contents.read(piece.content, 0, &mut new).map_err(io)?;
        for (at, byte) in new.into_iter().enumerate() {
            let position = usize::from(piece.start) + at;
            if mask >> (position / 512) & 1 == 1 {
                bytes[position] = byte;
            }
        }
        Ok(self.contents.made(&bytes))
    }
}

fn divide(events: &[Event]) -> Vec<Epoch> {
    let mut epochs = Vec::new();
    let mut begin = 0;
    for (at, event) in events.iter().enumerate() {
        if matches!(event, Event::Flush | Event::Cut { .. }) {
            epochs.push(Epoch { begin, end: at });
            begin = at + 1;
        }
    }
    epochs.push(Epoch { begin, end: events.len() });
    epochs
}

fn read_write(body: &[u8], size: u64, known: impl Fn(ContentId) -> Option<usize>) -> Option<Vec<Piece>> {
    let (offset, ids) = body.split_at_checked(8)?;
    let mut offset = u64::from_le_bytes(offset.try_into().ok()?);
    if !ids.len().is_multiple_of(4) {
        return None;
    }
    let mut written = Vec::with_capacity(ids.len() / 4);
    for id in ids.chunks_exact(4) {
        let content = number(id);
        let length = known(content)?;
        let start = (offset % BLOCK_BYTES as u64) as usize;
        if start + length > BLOCK_BYTES || offset.checked_add(length as u64)? > size {
            return None;
        }
        let block = u32::try_from(offset / BLOCK_BYTES as u64).ok()?;
        written.push(Piece { block, start: start as u16, length: length as u16, content });
        offset += length as u64;
    }
    Some(written)
}

fn read_mark(body: &[u8]) -> Option<Mark> {
    let (kind, text) = body.split_first()?;
    let kind = match kind {
        1 => MarkKind::Begun,
        2 => MarkKind::Acknowledged,
        3 => MarkKind::Note,
        _ => return None,
    };
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= Mark::TEXT_MAX)?;
    Some(Mark { kind, text: text.to_owned() })
}

fn read_cut(body: &[u8], blocks: u64, known: impl Fn(ContentId) -> Option<usize>) -> Option<Event> {
    let (length, rest) = body.split_at_checked(4)?;
    let (state, rest) = rest.split_at_checked(number(length) as usize)?;
    let changed = pairs(rest)?;
    let sound =
        |(block, content): &(u32, ContentId)| u64::from(*block) < blocks && known(*content) == Some(BLOCK_BYTES);
    let state = std::str::from_utf8(state).ok()?.to_owned();
    changed.iter().all(sound).then_some(Event::Cut { state, blocks: changed })
}
