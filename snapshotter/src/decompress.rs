//! From the bytes as transferred to the tar: gzip, zstd or neither, in parts of any size.
//!
//! Z1  How a stream is compressed is decided once, by its first bytes.
//! Z2  [`Decompressor::run`] takes all its input unless the buffer is full; memory does not depend on the input.
//! Z3  A stream ends where its format says so: what is cut short, or followed by anything but zeros, is an error.
//! Z4  It is taken up again from a `Point` and the number of bytes consumed; where there is one depends on the format.

use baleen_oci::Compression;

use crate::extraction::BUFFER_BYTES;
use crate::gzip::{Gzip, GzipPoint};
use crate::zstandard::Zstandard;

/// Why a stream could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// The stream contradicts its format.
    #[error("{format} stream is damaged ({problem}); pull again or ask the image's author")]
    Corrupt {
        /// Its format.
        format: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// The stream ends before its format says so.
    #[error("{format} stream ends in the middle; pull again or ask the image's author")]
    Truncated {
        /// Its format.
        format: &'static str,
    },
    /// The zstd window is larger than this engine's memory allows.
    #[error(
        "zstd stream needs a window of {window_bytes} bytes, and 16 MiB is the most; compress the layer without --ultra or --long"
    )]
    WindowTooLarge {
        /// The window that its frame asks for.
        window_bytes: u64,
    },
    /// The stream is of a format that layers do not use.
    #[error("stream is compressed with {format}, and layers use gzip, zstd or nothing; compress it so")]
    Unsupported {
        /// Its format.
        format: &'static str,
    },
    /// The memory for the decompressor could not be had.
    #[error("no memory for the {format} decompressor; free some and pull again")]
    NoMemory {
        /// Its format.
        format: &'static str,
    },
}

/// A stream being decompressed.
#[derive(Debug)]
pub struct Decompressor {
    verify_checksum: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The first bytes, while they are too few to decide.
    Undecided(Vec<u8>),
    Plain,
    Gzip(Box<Gzip>),
    Zstandard(Box<Zstandard>),
}

/// Where a stream can be taken up again (Z4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Point {
    /// A stream that is not compressed, anywhere.
    Plain,
    /// Between two blocks or members.
    Gzip(GzipPoint),
    /// Between two frames.
    Zstandard,
}

/// Bytes that decide: bzip2's magic is the longest.
const MAGIC_BYTES: usize = 10;

impl Decompressor {
    /// A decompressor for a stream that has not begun. `verify_checksum` asks for gzip's CRC-32, which costs time and
    /// tells nothing where a digest over the result is known.
    pub fn new(verify_checksum: bool) -> Self {
        Self { verify_checksum, stage: Stage::Undecided(Vec::new()) }
    }

    /// Decompresses `input` to the end of `output`, up to [`BUFFER_BYTES`]; gives the number of bytes consumed: all of
    /// them unless `output` is full. Call again with the rest, also if that is empty, after a full buffer.
    ///
    /// # Errors
    /// [`DecompressError`]; the stream is of no more use then.
    pub fn run(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, DecompressError> {
        self.take(input, output, false)
    }

    /// Like [`Decompressor::run`], but stops where the stream can be taken up again: [`Decompressor::point`] tells.
    pub(crate) fn run_to_point(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, DecompressError> {
        self.take(input, output, true)
    }

    /// Where the stream stands, if it can be taken up again there.
    pub(crate) fn point(&self) -> Option<Point> {
        match &self.stage {
            Stage::Undecided(_) => None,
            Stage::Plain => Some(Point::Plain),
            Stage::Gzip(gzip) => gzip.point().map(Point::Gzip),
            Stage::Zstandard(zstandard) => zstandard.at_end().then_some(Point::Zstandard),
        }
    }

    /// A decompressor that goes on from `point` with the byte after it.
    ///
    /// # Errors
    /// [`DecompressError::Corrupt`] if there is no such point; [`DecompressError::NoMemory`].
    pub(crate) fn resume(point: &Point) -> Result<Self, DecompressError> {
        let (verify_checksum, stage) = match point {
            Point::Plain => (false, Stage::Plain),
            Point::Gzip(point) => (point.checksum.is_some(), Stage::Gzip(Box::new(Gzip::resume(point)?))),
            Point::Zstandard => (false, Stage::Zstandard(Box::new(Zstandard::new()?))),
        };
        Ok(Self { verify_checksum, stage })
    }

    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, to_point: bool) -> Result<usize, DecompressError> {
        let mut consumed = 0;
        if let Stage::Undecided(head) = &mut self.stage {
            consumed = input.len().min(MAGIC_BYTES - head.len());
            head.extend_from_slice(&input[..consumed]);
            if head.len() < MAGIC_BYTES {
                return Ok(consumed);
            }
            self.decide(output)?;
        }
        let rest = &input[consumed..];
        let more = match &mut self.stage {
            Stage::Undecided(_) => 0,
            Stage::Plain => {
                let count = rest.len().min(BUFFER_BYTES.saturating_sub(output.len()));
                output.extend_from_slice(&rest[..count]);
                count
            }
            Stage::Gzip(gzip) => gzip.run(rest, output, to_point)?,
            Stage::Zstandard(zstandard) => zstandard.run(rest, output, to_point)?,
        };
        Ok(consumed + more)
    }

    /// Ends the stream: writes what is left to `output`, and tells how the stream was compressed once nothing is.
    /// `None`: `output` is full, call again.
    ///
    /// # Errors
    /// [`DecompressError::Truncated`] if the stream is not at an end.
    pub fn finish(&mut self, output: &mut Vec<u8>) -> Result<Option<Compression>, DecompressError> {
        if matches!(self.stage, Stage::Undecided(_)) {
            self.decide(output)?;
        }
        self.run(&[], output)?;
        if output.len() >= BUFFER_BYTES {
            return Ok(None);
        }
        match &self.stage {
            Stage::Undecided(_) | Stage::Plain => Ok(Some(Compression::None)),
            Stage::Gzip(gzip) if gzip.at_end() => Ok(Some(Compression::Gzip)),
            Stage::Gzip(_) => Err(DecompressError::Truncated { format: "gzip" }),
            Stage::Zstandard(zstandard) if zstandard.at_end() => Ok(Some(Compression::Zstd)),
            Stage::Zstandard(_) => Err(DecompressError::Truncated { format: "zstd" }),
        }
    }

    /// Decides by the first bytes, and decompresses them. At most [`MAGIC_BYTES`] come from a plain stream; a few
    /// hundred from a compressed one that small, so a buffer always has room for them unless it was nearly full.
    fn decide(&mut self, output: &mut Vec<u8>) -> Result<(), DecompressError> {
        let Stage::Undecided(head) = &mut self.stage else { return Ok(()) };
        let head = std::mem::take(head);
        self.stage = match head.as_slice() {
            [0x1f, 0x8b, ..] => Stage::Gzip(Box::new(Gzip::new(self.verify_checksum)?)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Stage::Zstandard(Box::new(Zstandard::new()?))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(DecompressError::Unsupported { format: "xz" }),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] => {
                return Err(DecompressError::Unsupported { format: "bzip2" });
            }
            _ => Stage::Plain,
        };
        let consumed = self.run(&head, output)?;
        assert_eq!(consumed, head.len(), "the buffer was new when the first bytes came");
        Ok(())
    }
}
