//! The tar parser: fed slices of any size, it says of every byte whether it is a file's payload.
//!
//! T1  Every byte fed is given back exactly once and in order, as [`Step::Literal`], [`Step::Data`], [`Step::Zeros`] or
//!     [`Step::Tail`]. So an archive can be rebuilt exactly however a header is understood.
//! T2  Headers are read by the rules of Go's archive/tar, since Docker's are: a PAX `size` beats the header's; types 1
//!     to 6 have no data whatever their size says; unknown types have; two zero blocks end the archive, and so does the
//!     end of the input after one or none; global PAX records are checked and otherwise ignored.
//! T3  What a header says twice has one reading, and what cannot be read is an error, never skipped (threat L6).
//! T4  The state between two steps is a few numbers, except inside an extension record (at most 1 MiB).

mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;

pub use baleen_store::Timestamp;
pub use baleen_store::recipe::Segment;

use crate::limits::{EXTENSION_BYTES_MAX, SPARSE_SEGMENTS_MAX};
use header::Header;
use pax::Records;
use sparse::MapReader;

/// Size of a block.
pub const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// One more name for a file of the archive.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A directory of a GNU incremental archive; its data list what was in it.
    DumpDirectory,
    /// The name of a GNU archive.
    VolumeLabel,
    /// Any other type flag.
    Other(u8),
}

/// An entry of the archive, after all its extension records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name, as written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    /// Permission bits, setuid, setgid, sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub modified: Timestamp,
    /// Device number, major and minor.
    pub device: (u32, u32),
    /// Size of the file: with holes, if it is sparse.
    pub size_bytes: u64,
    /// Bytes of payload in the archive.
    pub data_bytes: u64,
    /// Where the payload lies in a sparse file; `None` for all others.
    pub segments: Option<Vec<Segment>>,
    /// Extended attributes, sorted by name (`SCHILY.xattr.`).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What the parser found next.
#[derive(Debug)]
pub enum Step<'a> {
    /// The input is used up; feed more, or call [`Parser::finish`].
    More,
    /// Bytes that are no payload: headers, extension records, sparse maps, padding.
    Literal(&'a [u8]),
    /// An entry begins; its payload follows.
    Entry(Box<Entry>),
    /// Payload of the entry.
    Data(&'a [u8]),
    /// The payload is complete.
    EntryEnd,
    /// Zero bytes after the end of the archive.
    Zeros(u64),
    /// Bytes after the end of the archive from the first that is not zero.
    Tail(&'a [u8]),
}

/// Where and why an archive cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("archive is damaged at byte {offset}: {problem}; ask the image's author")]
pub struct TarError {
    /// Bytes before the block that is wrong, or where the archive ends too early.
    pub offset: u64,
    /// What is wrong.
    pub problem: TarProblem,
}

/// What is wrong with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// A header's checksum does not match.
    #[error("header does not match its checksum")]
    Checksum,
    /// A number cannot be read, or is out of range.
    #[error("number in {0} cannot be read")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("PAX record is malformed")]
    Pax,
    /// An extension record is longer than 1 MiB.
    #[error("extension record is longer than 1 MiB")]
    ExtensionTooLong,
    /// A sparse map contradicts itself or the sizes.
    #[error("map of a sparse file is wrong")]
    SparseMap,
    /// A sparse map has too many parts.
    #[error("sparse file has more than 65,536 parts")]
    TooManySegments,
    /// A zero block is followed by another.
    #[error("a single zero block is followed by more")]
    LoneZeroBlock,
    /// The archive ends inside an entry.
    #[error("it ends inside an entry")]
    Truncated,
}

/// A tar archive being read.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// Bytes given back so far.
    offset: u64,
    block: Box<[u8; BLOCK_BYTES]>,
    filled: usize,
    extension: Vec<u8>,
    pending: Pending,
}

#[derive(Debug)]
enum State {
    Head,
    FirstZeroBlock,
    Extension { flag: u8, left: u64 },
    OldSparseMap { entry: Box<Entry>, segments: Vec<Segment> },
    SparseMap { entry: Box<Entry>, map: MapReader, data_left: u64 },
    Announce { entry: Box<Entry> },
    Data { left: u64, padding: usize },
    Padding { left: usize },
    End,
    Tail,
}

/// What extension records said about the entry to come.
#[derive(Debug, Default)]
struct Pending {
    records: Option<Records>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Head,
            offset: 0,
            block: Box::new([0; BLOCK_BYTES]),
            filled: 0,
            extension: Vec::new(),
            pending: Pending::default(),
        }
    }

    /// Looks at the start of `input` and gives what is there, with the number of bytes that it covers. Call it with the
    /// rest until it says [`Step::More`], also with an empty rest.
    ///
    /// # Errors
    /// [`TarError`]; the parser is of no more use then.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<(Step<'a>, usize), TarError> {
        match &mut self.state {
            State::Announce { .. } => {
                let State::Announce { entry } = std::mem::replace(&mut self.state, State::Head) else { unreachable!() };
                let padding = padding_of(entry.data_bytes);
                self.state = State::Data { left: entry.data_bytes, padding };
                Ok((Step::Entry(entry), 0))
            }
            State::Data { left: 0, padding } => {
                self.state = if *padding == 0 { State::Head } else { State::Padding { left: *padding } };
                Ok((Step::EntryEnd, 0))
            }
            _ if input.is_empty() => Ok((Step::More, 0)),
            State::Data { left, .. } => {
                let count = at_most(input, *left);
                *left -= count as u64;
                self.offset += count as u64;
                Ok((Step::Data(&input[..count]), count))
            }
            State::Padding { left } => {
                let count = input.len().min(*left);
                *left -= count;
                if *left == 0 {
                    self.state = State::Head;
                }
                Ok(self.literal(input, count))
            }
            State::Extension { flag, left } => {
                let count = at_most(input, *left);
                self.extension.extend_from_slice(&input[..count]);
                *left -= count as u64;
                if *left == 0 {
                    let flag = *flag;
                    self.extension_complete(flag)?;
                }
                Ok(self.literal(input, count))
            }
            State::End => match input.iter().position(|byte| *byte != 0) {
                Some(0) => {
                    self.state = State::Tail;
                    self.step(input)
                }
                zeros => {
                    let count = zeros.unwrap_or(input.len());
                    self.offset += count as u64;
                    Ok((Step::Zeros(count as u64), count))
                }
            },
            State::Tail => {
                self.offset += input.len() as u64;
                Ok((Step::Tail(input), input.len()))
            }
            State::Head | State::FirstZeroBlock | State::OldSparseMap { .. } | State::SparseMap { .. } => {
                let count = input.len().min(BLOCK_BYTES - self.filled);
                self.block[self.filled..self.filled + count].copy_from_slice(&input[..count]);
                self.filled += count;
                if self.filled == BLOCK_BYTES {
                    self.filled = 0;
                    self.block_complete()?;
                }
                Ok(self.literal(input, count))
            }
        }
    }

    /// Goes on as if `count` bytes of payload had been fed, of zeros after the end of the archive, or of what follows them:
    /// for an archive whose rest is known from its recipe. `false` if it is not at such a place.
    pub(crate) fn skip(&mut self, count: u64, is_tail: bool) -> bool {
        match &mut self.state {
            State::Data { left, .. } if count <= *left && !is_tail => *left -= count,
            State::End if is_tail && count > 0 => self.state = State::Tail,
            State::End if !is_tail => {}
            State::Tail if is_tail => {}
            _ => return count == 0,
        }
        self.offset = self.offset.saturating_add(count);
        true
    }

    /// Bytes of payload that the entry still has.
    pub(crate) fn data_left(&self) -> u64 {
        match &self.state {
            State::Data { left, .. } => *left,
            _ => 0,
        }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// [`TarProblem::Truncated`] if it ends inside a header, an extension record or an entry's payload. Like Go, this
    /// takes an end inside padding, or without zero blocks, for an end.
    pub fn finish(&self) -> Result<(), TarError> {
        match &self.state {
            State::Head | State::FirstZeroBlock if self.filled == 0 => Ok(()),
            State::Padding { .. } | State::End | State::Tail => Ok(()),
            _ => Err(TarError { offset: self.offset, problem: TarProblem::Truncated }),
        }
    }

    /// Bytes given back so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn literal<'a>(&mut self, input: &'a [u8], count: usize) -> (Step<'a>, usize) {
        self.offset += count as u64;
        (Step::Literal(&input[..count]), count)
    }

    fn wrong(&self, problem: TarProblem) -> TarError {
        // The block or record that is wrong has just been completed, but not been counted in full.
        TarError { offset: self.offset, problem }
    }

    fn block_complete(&mut self) -> Result<(), TarError> {
        let next = match std::mem::replace(&mut self.state, State::Head) {
            State::Head if self.block.iter().all(|byte| *byte == 0) => Ok(State::FirstZeroBlock),
            State::Head => self.header_complete(),
            State::FirstZeroBlock if self.block.iter().all(|byte| *byte == 0) => Ok(State::End),
            State::FirstZeroBlock => Err(TarProblem::LoneZeroBlock),
            State::OldSparseMap { entry, mut segments } => {
                let more = sparse::old_extension(&self.block, &mut segments);
                more.and_then(|more| old_sparse_next(entry, segments, more))
            }
            State::SparseMap { entry, map, data_left } => sparse_next(entry, map, data_left, &self.block[..]),
            other => Ok(other),
        };
        self.state = next.map_err(|problem| self.wrong(problem))?;
        Ok(())
    }

    fn header_complete(&mut self) -> Result<State, TarProblem> {
        let header = Header::read(&self.block)?;
        if matches!(header.flag, b'x' | b'g' | b'L' | b'K') {
            if header.size_bytes > EXTENSION_BYTES_MAX {
                return Err(TarProblem::ExtensionTooLong);
            }
            self.extension.clear();
            if header.size_bytes == 0 {
                return self.extension_meaning(header.flag).map(|()| State::Head);
            }
            return Ok(State::Extension { flag: header.flag, left: header.size_bytes });
        }
        let pending = std::mem::take(&mut self.pending);
        let mut header = header;
        let mut xattrs = BTreeMap::new();
        if let Some(records) = &pending.records {
            header.merge(records, &mut xattrs)?;
        }
        if let Some(path) = pending.path.filter(|path| !path.is_empty()) {
            header.path = path;
        }
        if let Some(link) = pending.link.filter(|link| !link.is_empty()) {
            header.link = link;
        }
        let kind = header.kind();
        let data_bytes = if header.has_data() { header.size_bytes } else { 0 };
        let mut entry = Box::new(header.entry(kind, data_bytes, xattrs)?);
        if header.flag == b'S' {
            if !header.is_gnu {
                return Err(TarProblem::SparseMap);
            }
            entry.size_bytes = header::number(&self.block[483..495], "realsize")?;
            let mut segments = Vec::new();
            let more = sparse::old_header(&self.block, &mut segments)?;
            return old_sparse_next(entry, segments, more);
        }
        let Some(sparse) = pending.records.as_ref().map(Records::sparse).transpose()?.flatten() else {
            return Ok(State::Announce { entry });
        };
        if !header.has_data() {
            return Err(TarProblem::SparseMap);
        }
        if let Some(path) = sparse.path {
            entry.path = path;
        }
        if let Some(size_bytes) = sparse.size_bytes {
            entry.size_bytes = size_bytes;
        }
        match sparse.segments {
            Some(segments) => with_segments(entry, segments),
            // Version 1.0: the map is the first part of the data, in whole blocks.
            None if data_bytes < BLOCK_BYTES as u64 => Err(TarProblem::SparseMap),
            None => Ok(State::SparseMap { entry, map: MapReader::default(), data_left: data_bytes }),
        }
    }

    fn extension_complete(&mut self, flag: u8) -> Result<(), TarError> {
        let length = self.extension.len() as u64;
        self.extension_meaning(flag).map_err(|problem| self.wrong(problem))?;
        // Long records are rare: their memory is not kept.
        self.extension = Vec::new();
        let padding = padding_of(length);
        self.state = if padding == 0 { State::Head } else { State::Padding { left: padding } };
        Ok(())
    }

    fn extension_meaning(&mut self, flag: u8) -> Result<(), TarProblem> {
        match flag {
            b'x' => self.pending.records = Some(Records::parse(&self.extension)?),
            b'g' => {
                Records::parse(&self.extension)?;
                // Go hands a global header out as an entry of its own, and what came before it is forgotten.
                self.pending = Pending::default();
            }
            b'L' => self.pending.path = Some(header::text(&self.extension).to_vec()),
            _ => self.pending.link = Some(header::text(&self.extension).to_vec()),
        }
        Ok(())
    }
}

fn old_sparse_next(entry: Box<Entry>, segments: Vec<Segment>, more: bool) -> Result<State, TarProblem> {
    if segments.len() > SPARSE_SEGMENTS_MAX {
        return Err(TarProblem::TooManySegments);
    }
    if more { Ok(State::OldSparseMap { entry, segments }) } else { with_segments(entry, segments) }
}

fn sparse_next(mut entry: Box<Entry>, mut map: MapReader, data_left: u64, block: &[u8]) -> Result<State, TarProblem> {
    let data_left = data_left.checked_sub(BLOCK_BYTES as u64).ok_or(TarProblem::SparseMap)?;
    match map.take(block)? {
        Some(segments) => {
            entry.data_bytes = data_left;
            with_segments(entry, segments)
        }
        None if data_left < BLOCK_BYTES as u64 => Err(TarProblem::SparseMap),
        None => Ok(State::SparseMap { entry, map, data_left }),
    }
}

/// Announces a sparse file, if its map fits its sizes.
fn with_segments(mut entry: Box<Entry>, segments: Vec<Segment>) -> Result<State, TarProblem> {
    sparse::check(&segments, entry.size_bytes, entry.data_bytes)?;
    entry.segments = Some(segments);
    Ok(State::Announce { entry })
}

fn padding_of(size_bytes: u64) -> usize {
    let block = BLOCK_BYTES as u64;
    ((block - size_bytes % block) % block) as usize
}

fn at_most(input: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(input.len(), |left| left.min(input.len()))
}
