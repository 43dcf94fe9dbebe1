//! A tar as blocks, payloads and zeros: the two views of `source`, by the snapshotter's parser.
//!
//! K1  The pieces of a tar, in order, are all its bytes. What cannot be read as an archive is one more payload.

use std::io;

use baleen_snapshotter::tar::{BLOCK_BYTES, Parser, Step};

use crate::source::ReadAt;

const READ_BYTES: usize = 256 << 10;

/// A piece of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Whole blocks without payload.
    Blocks { offset: u64, count: u64 },
    /// Payload, and what pads it.
    Payload { offset: u64, size_bytes: u64, padding_bytes: u64, path: Vec<u8> },
    /// Zeros after the end of the archive.
    Zeros { count: u64 },
}

/// Takes a tar apart.
pub(crate) fn pieces(tar: &dyn ReadAt) -> io::Result<Vec<Piece>> {
    let mut walk = Walk::default();
    let mut parser = Parser::new();
    let mut buffer = vec![0; READ_BYTES];
    let size_bytes = tar.size_bytes();
    let mut offset = 0;
    'tar: while offset < size_bytes {
        let count = match tar.read_at(&mut buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => (count as u64).min(size_bytes - offset) as usize,
        };
        let mut rest = &buffer[..count];
        loop {
            let Ok((step, used)) = parser.step(rest) else { break 'tar };
            let at = offset + (count - rest.len()) as u64;
            match step {
                Step::More => break,
                Step::Literal(bytes) => walk.literal(at, bytes.len() as u64),
                Step::Entry(entry) => walk.path = plain_path(&entry.path),
                Step::Data(bytes) | Step::Tail(bytes) => walk.data(at, bytes.len() as u64),
                Step::EntryEnd => walk.data_end(),
                Step::Zeros(count) => walk.zeros(at, count),
            }
            rest = &rest[used..];
        }
        offset += count as u64;
    }
    Ok(walk.finish(size_bytes))
}

#[derive(Default)]
struct Walk {
    pieces: Vec<Piece>,
    path: Vec<u8>,
    /// All before is in `pieces`, but for the open run of literals or data.
    end: u64,
    literals_from: u64,
    data: Option<(u64, u64)>,
    padding_left: u64,
}

impl Walk {
    fn literal(&mut self, at: u64, mut count: u64) {
        let padding = count.min(self.padding_left);
        if padding > 0 {
            if let Some(Piece::Payload { padding_bytes, .. }) = self.pieces.last_mut() {
                *padding_bytes += padding;
            }
            self.padding_left -= padding;
            count -= padding;
            self.literals_from = at + padding;
            self.end = self.literals_from;
        }
        self.end += count;
    }

    /// Closes the run of literals: whole blocks of it.
    fn blocks(&mut self) {
        let count = (self.end - self.literals_from) / BLOCK_BYTES as u64;
        if count > 0 {
            self.pieces.push(Piece::Blocks { offset: self.literals_from, count });
            self.literals_from += count * BLOCK_BYTES as u64;
        }
    }

    fn data(&mut self, at: u64, count: u64) {
        self.blocks();
        let (from, length) = self.data.unwrap_or((at, 0));
        self.data = Some((from, length + count));
        self.end = at + count;
        self.literals_from = self.end;
    }

    fn data_end(&mut self) {
        let path = std::mem::take(&mut self.path);
        if let Some((offset, size_bytes)) = self.data.take() {
            let block = BLOCK_BYTES as u64;
            self.padding_left = (block - size_bytes % block) % block;
            self.pieces.push(Piece::Payload { offset, size_bytes, padding_bytes: 0, path });
        }
    }

    fn zeros(&mut self, at: u64, more: u64) {
        self.blocks();
        self.end = at + more;
        self.literals_from = self.end;
        match self.pieces.last_mut() {
            Some(Piece::Zeros { count }) => *count += more,
            _ => self.pieces.push(Piece::Zeros { count: more }),
        }
    }

    fn finish(mut self, size_bytes: u64) -> Vec<Piece> {
        self.blocks();
        self.data_end();
        // A tail, an archive that ends within a block, or what cannot be read.
        let rest = size_bytes - self.literals_from;
        if rest > 0 {
            let (offset, size_bytes) = (self.literals_from, rest);
            self.pieces.push(Piece::Payload { offset, size_bytes, padding_bytes: 0, path: Vec::new() });
        }
        self.pieces
    }
}

/// A path without leading `/` and `./`, and without a slash at its end.
pub(crate) fn plain_path(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.collect::<Vec<_>>().join(&b'/')
}

/// Length of the payload that follows a block, by the simple rule that the format has for it: an ordinary header of a file with
/// its size in octal.
pub(crate) fn payload_after(block: &[u8; BLOCK_BYTES]) -> Option<u64> {
    let is_file = matches!(block[156], 0 | b'0' | b'7');
    if !is_file || !checksum_matches(block) {
        return None;
    }
    octal(&block[124..136]).filter(|size| *size > 0)
}

/// A number of exactly as many octal digits as fit before a final NUL.
pub(crate) fn octal(field: &[u8]) -> Option<u64> {
    let (last, digits) = field.split_last()?;
    if *last != 0 || !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value << 3 | u64::from(digit - b'0')))
}

/// Writes such a number; `false` if it does not fit.
pub(crate) fn put_octal(field: &mut [u8], mut value: u64) -> bool {
    let Some((last, digits)) = field.split_last_mut() else { return false };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    value == 0
}

/// The checksum of a header: the sum of its bytes, its own field taken as blanks.
pub(crate) fn checksum(block: &[u8; BLOCK_BYTES]) -> [u8; 8] {
    let field = u64::from(b' ') * 8;
    let outside = block[..148].iter().chain(&block[156..]).map(|byte| u64::from(*byte)).sum::<u64>();
    let mut text = [0; 8];
    put_octal(&mut text[..7], outside + field);
    text[7] = b' ';
    text
}

/// Whether a block has a checksum in the usual form, and the right one.
pub(crate) fn checksum_matches(block: &[u8; BLOCK_BYTES]) -> bool {
    checksum(block) == block[148..156]
}
