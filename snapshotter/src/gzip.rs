//! gzip (RFC 1952): members one after the other, over the raw inflate of `sys`.
//!
//! G1  After a member comes another, or zeros, or nothing. Other bytes are refused: Go refuses them, gzip and pigz warn.
//! G2  The length in each trailer is checked; its CRC-32 only on request, since a diff ID covers the same bytes.
//! G3  A stream can be taken up again at the end of a deflate block, and between members.

use crate::decompress::DecompressError;
use crate::extraction::BUFFER_BYTES;
use crate::limits::GZIP_HEADER_BYTES_MAX;
use crate::sys::{Inflate, InflatePoint, InflateStatus};

#[derive(Debug)]
pub(crate) struct Gzip {
    inflate: Inflate,
    stage: Stage,
    member_bytes: u64,
    checksum: Option<u32>,
}

#[derive(Debug)]
enum Stage {
    Header(Vec<u8>),
    Body,
    Trailer { bytes: [u8; 8], filled: usize },
    Between,
    Zeros,
}

/// Where a stream can be taken up again (G3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GzipPoint {
    pub(crate) place: GzipPlace,
    /// Of the member in progress.
    pub(crate) member_bytes: u64,
    /// Its CRC-32 so far, if it is verified.
    pub(crate) checksum: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GzipPlace {
    /// At the end of a block.
    Block(InflatePoint),
    /// After a member.
    Between,
    /// In the zeros after the last member.
    Zeros,
}

const RESERVED_FLAGS: u8 = 0b1110_0000;
const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;

fn corrupt(problem: &'static str) -> DecompressError {
    DecompressError::Corrupt { format: "gzip", problem }
}

impl Gzip {
    pub(crate) fn new(verify_checksum: bool) -> Result<Self, DecompressError> {
        let inflate = Inflate::new().ok_or(DecompressError::NoMemory { format: "gzip" })?;
        let checksum = verify_checksum.then_some(0);
        Ok(Self { inflate, stage: Stage::Header(Vec::new()), member_bytes: 0, checksum })
    }

    /// Goes on from `point`.
    pub(crate) fn resume(point: &GzipPoint) -> Result<Self, DecompressError> {
        let mut gzip = Self::new(false)?;
        (gzip.member_bytes, gzip.checksum) = (point.member_bytes, point.checksum);
        gzip.stage = match &point.place {
            GzipPlace::Block(block) => {
                gzip.inflate = Inflate::restore(block).ok_or(corrupt("its checkpoint is impossible"))?;
                Stage::Body
            }
            GzipPlace::Between => Stage::Between,
            GzipPlace::Zeros => Stage::Zeros,
        };
        Ok(gzip)
    }

    pub(crate) fn at_end(&self) -> bool {
        matches!(self.stage, Stage::Between | Stage::Zeros)
    }

    /// Where it stands, if it can be taken up again there.
    pub(crate) fn point(&self) -> Option<GzipPoint> {
        let place = match &self.stage {
            Stage::Body => GzipPlace::Block(self.inflate.point()?),
            Stage::Between => GzipPlace::Between,
            Stage::Zeros => GzipPlace::Zeros,
            Stage::Header(_) | Stage::Trailer { .. } => return None,
        };
        Some(GzipPoint { place, member_bytes: self.member_bytes, checksum: self.checksum })
    }

    /// Whether [`Gzip::point`] gives something, without the cost of it.
    fn at_point(&self) -> bool {
        match &self.stage {
            Stage::Body => self.inflate.at_point(),
            Stage::Between | Stage::Zeros => true,
            Stage::Header(_) | Stage::Trailer { .. } => false,
        }
    }

    /// Takes `input`; with `to_point` up to where the stream can be taken up again, and at least something of it.
    pub(crate) fn run(&mut self, input: &[u8], output: &mut Vec<u8>, to_point: bool) -> Result<usize, DecompressError> {
        let mut consumed = 0;
        let started = output.len();
        loop {
            let rest = &input[consumed..];
            // A full buffer stops the body only: it may hold more output without any more input.
            let stuck = match &self.stage {
                Stage::Body => output.len() >= BUFFER_BYTES,
                _ => rest.is_empty(),
            };
            let moved = consumed > 0 || output.len() > started;
            if stuck || (to_point && moved && self.at_point()) {
                return Ok(consumed);
            }
            match &mut self.stage {
                Stage::Header(header) => {
                    let known = header.len();
                    let room = GZIP_HEADER_BYTES_MAX - known;
                    header.extend_from_slice(&rest[..rest.len().min(room)]);
                    match header_length(header)? {
                        Some(length) => {
                            consumed += length - known;
                            self.inflate.reset();
                            self.member_bytes = 0;
                            self.checksum = self.checksum.map(|_| 0);
                            self.stage = Stage::Body;
                        }
                        None if header.len() >= GZIP_HEADER_BYTES_MAX => return Err(corrupt("its header never ends")),
                        None => consumed += header.len() - known,
                    }
                }
                Stage::Body => {
                    let before = output.len();
                    let (count, status) = if to_point {
                        self.inflate.run_to_boundary(rest, output, BUFFER_BYTES)
                    } else {
                        self.inflate.run(rest, output, BUFFER_BYTES)
                    };
                    consumed += count;
                    self.member_bytes += (output.len() - before) as u64;
                    if let Some(checksum) = &mut self.checksum {
                        *checksum = crate::sys::crc32(*checksum, &output[before..]);
                    }
                    match status {
                        InflateStatus::End => self.stage = Stage::Trailer { bytes: [0; 8], filled: 0 },
                        InflateStatus::Corrupt => return Err(corrupt("its deflate data contradict themselves")),
                        InflateStatus::NoMemory => return Err(DecompressError::NoMemory { format: "gzip" }),
                        InflateStatus::More if count == 0 && output.len() == before => return Ok(consumed),
                        InflateStatus::More => {}
                    }
                }
                Stage::Trailer { bytes, filled } => {
                    let count = rest.len().min(8 - *filled);
                    bytes[*filled..*filled + count].copy_from_slice(&rest[..count]);
                    *filled += count;
                    consumed += count;
                    if *filled == 8 {
                        let [c0, c1, c2, c3, l0, l1, l2, l3] = *bytes;
                        if u32::from_le_bytes([l0, l1, l2, l3]) != self.member_bytes as u32 {
                            return Err(corrupt("a member is not as long as its trailer says"));
                        }
                        if self.checksum.is_some_and(|checksum| checksum != u32::from_le_bytes([c0, c1, c2, c3])) {
                            return Err(corrupt("a member does not match its checksum"));
                        }
                        self.stage = Stage::Between;
                    }
                }
                Stage::Between => match rest[0] {
                    0 => self.stage = Stage::Zeros,
                    0x1f => self.stage = Stage::Header(Vec::new()),
                    _ => return Err(corrupt("something else follows it")),
                },
                Stage::Zeros => {
                    if rest.iter().any(|byte| *byte != 0) {
                        return Err(corrupt("something else follows it"));
                    }
                    consumed = input.len();
                }
            }
        }
    }
}

/// The length of the header that `bytes` begin with, or `None` if more are needed.
fn header_length(bytes: &[u8]) -> Result<Option<usize>, DecompressError> {
    const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
    if !MAGIC.starts_with(&bytes[..bytes.len().min(3)]) {
        return Err(corrupt("it does not begin with a gzip header"));
    }
    let Some(flags) = bytes.get(3).copied() else { return Ok(None) };
    if flags & RESERVED_FLAGS != 0 {
        return Err(corrupt("its header has unknown flags"));
    }
    let mut length = 10;
    if flags & FLAG_EXTRA != 0 {
        let (Some(low), Some(high)) = (bytes.get(10), bytes.get(11)) else { return Ok(None) };
        length += 2 + usize::from(u16::from_le_bytes([*low, *high]));
    }
    for flag in [FLAG_NAME, FLAG_COMMENT] {
        if flags & flag != 0 {
            let Some(text) = bytes.get(length..) else { return Ok(None) };
            let Some(end) = text.iter().position(|byte| *byte == 0) else { return Ok(None) };
            length += end + 1;
        }
    }
    if flags & FLAG_HEADER_CRC != 0 {
        let Some(sum) = bytes.get(length..length + 2) else { return Ok(None) };
        let computed = crate::sys::crc32(0, &bytes[..length]) as u16;
        if sum != computed.to_le_bytes() {
            return Err(corrupt("its header does not match its checksum"));
        }
        length += 2;
    }
    Ok((bytes.len() >= length).then_some(length))
}
