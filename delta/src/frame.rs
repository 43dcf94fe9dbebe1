//! A frame as it travels: its streams, each packed by itself.
//!
//! F1  A frame is unpacked only after its checksum was compared, and never to more than its header declares.
//! F2  Streams are kept apart by what they hold, since what is alike packs well together.

use std::io::{Read, Write};

use lzma_rust2::{EncodeMode, LzmaOptions, LzmaReader, LzmaWriter, MfType};

use crate::bytes::{Fields, put_number};
use crate::error::{DeltaError, damaged};

/// What a stream holds. The numbers are those of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// One byte a block of the tar: how it is made.
    BlockMode,
    /// Which fields of a header are new.
    BlockMask,
    /// Jumps to the block that a block is made from.
    BlockRef,
    /// Numbers in headers.
    FieldNumber,
    /// Times in headers.
    FieldTime,
    /// Sizes in headers.
    FieldSize,
    /// Texts in headers.
    FieldText,
    /// Blocks and padding that are like nothing else.
    BlockBytes,
    /// One byte or two a payload: how it is made.
    PayloadMode,
    /// Which source payload, and lengths.
    PayloadNumber,
    /// Lengths of matches.
    MatchLength,
    /// Lengths of what lies between them.
    GapLength,
    /// Jumps in the source.
    Jump,
    /// Lengths of runs of bytes that are as predicted, and of bytes that are not.
    Run,
    /// Differences to what was predicted.
    Difference,
    /// New bytes, text and the like.
    Text,
    /// New bytes of programs.
    Code,
    /// Numbers of references that are as predicted.
    ReferenceRun,
    /// Differences of references to what was predicted.
    ReferenceValue,
    /// Segments of programs, as their predictor must know them.
    Program,
    /// How compressed members are made again.
    #[allow(dead_code)] // Its number is kept for it.
    Deflate,
    /// Times within compiled Python files.
    Stamp,
}

/// Number of streams.
pub(crate) const STREAMS: usize = 22;

/// What reports call them.
const NAMES: [&str; STREAMS] = [
    "block modes",
    "header masks",
    "block jumps",
    "header numbers",
    "header times",
    "header sizes",
    "header texts",
    "block bytes",
    "payload modes",
    "payload numbers",
    "match lengths",
    "gap lengths",
    "jumps",
    "runs",
    "differences",
    "text",
    "code",
    "reference runs",
    "reference values",
    "programs",
    "deflate corrections",
    "stamps",
];

/// The streams of a frame, or of a part of one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams([Vec<u8>; STREAMS]);

impl Streams {
    pub(crate) fn at(&mut self, stream: Stream) -> &mut Vec<u8> {
        &mut self.0[stream as usize]
    }

    /// All of them, in the order of their numbers.
    pub(crate) fn all(&mut self) -> &mut [Vec<u8>] {
        &mut self.0
    }

    pub(crate) fn raw_bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    pub(crate) fn longest(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }

    pub(crate) fn append(&mut self, other: &Streams) {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            ours.extend_from_slice(theirs);
        }
    }

    /// A guess at how long they become, from a fast packer: for comparing two ways of making the same.
    pub(crate) fn cost(&self) -> usize {
        let packed = |stream: &Vec<u8>| match stream.len() {
            0..=24 => stream.len(),
            _ => zstd::bulk::compress(stream, 9).map_or(stream.len(), |packed| packed.len()),
        };
        self.0.iter().map(packed).sum()
    }

    /// Packs them; tells `note` of each stream its name and its lengths.
    pub(crate) fn pack(&self, level: PackLevel, note: &mut dyn FnMut(&'static str, u64, u64)) -> Vec<u8> {
        let mut packed = Vec::new();
        let mask = self.0.iter().enumerate().filter(|(_, stream)| !stream.is_empty());
        put_number(&mut packed, mask.map(|(number, _)| 1u64 << number).sum());
        for (number, stream) in self.0.iter().enumerate().filter(|(_, stream)| !stream.is_empty()) {
            let before = packed.len();
            put_number(&mut packed, stream.len() as u64);
            let shapes = candidates(number);
            let shapes = match level {
                // What a fast packer cannot shorten at all, none will.
                _ if stream.len() > 4096 && is_incompressible(stream) => &[],
                PackLevel::Fast => &shapes[..1],
                PackLevel::Best => shapes,
            };
            let packed_in = shapes.iter().filter_map(|shape| lzma(stream, *shape, level));
            let best = packed_in.min_by_key(|(_, bytes)| bytes.len());
            match best {
                Some((properties, bytes)) if bytes.len() + 2 < stream.len() => {
                    packed.push(properties + 1);
                    put_number(&mut packed, bytes.len() as u64);
                    packed.extend_from_slice(&bytes);
                }
                _ => {
                    packed.push(0);
                    packed.extend_from_slice(stream);
                }
            }
            note(NAMES[number], stream.len() as u64, (packed.len() - before) as u64);
        }
        packed
    }

    /// Unpacks a frame whose streams have `raw_bytes` in all.
    pub(crate) fn unpack(packed: &[u8], raw_bytes: usize) -> Result<Self, DeltaError> {
        let mut fields = Fields(packed);
        let mask = fields.number()?;
        if mask >> STREAMS != 0 {
            return Err(damaged("a frame has unknown streams"));
        }
        let mut streams = Self::default();
        let mut left = raw_bytes;
        for (number, stream) in streams.0.iter_mut().enumerate() {
            if mask >> number & 1 == 0 {
                continue;
            }
            let length = fields.size(left)?;
            left -= length;
            match fields.byte()? {
                0 => *stream = fields.take(length)?.to_vec(),
                properties => {
                    let packed_length = fields.size(packed.len())?;
                    *stream = unlzma(fields.take(packed_length)?, properties - 1, length)?;
                }
            }
        }
        if left != 0 || !fields.is_empty() {
            return Err(damaged("a frame is not as long as it says"));
        }
        Ok(streams)
    }
}

fn is_incompressible(bytes: &[u8]) -> bool {
    zstd::bulk::compress(bytes, 1).is_ok_and(|packed| packed.len() >= bytes.len())
}

/// How hard the packer tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackLevel {
    Fast,
    Best,
}

/// Literal context, literal position and position bits.
type Shape = (u32, u32, u32);

fn candidates(stream: usize) -> &'static [Shape] {
    if stream == Stream::Text as usize {
        &[(4, 0, 0), (3, 0, 0)]
    } else if stream == Stream::Code as usize {
        &[(3, 0, 2), (0, 2, 2), (4, 0, 0)]
    } else if stream == Stream::BlockMode as usize || stream == Stream::PayloadMode as usize {
        &[(0, 0, 0), (3, 0, 0)]
    } else {
        &[(0, 0, 0), (3, 0, 0), (2, 0, 2), (0, 2, 2)]
    }
}

fn dictionary_bytes(length: usize) -> u32 {
    (length as u32).max(4096)
}

fn lzma(bytes: &[u8], (lc, lp, pb): Shape, level: PackLevel) -> Option<(u8, Vec<u8>)> {
    if bytes.len() < 12 {
        return None;
    }
    let (mode, nice, mf, depth) = match level {
        PackLevel::Fast => (EncodeMode::Fast, 64, MfType::Hc4, 24),
        PackLevel::Best => (EncodeMode::Normal, 273, MfType::Bt4, 0),
    };
    let options = LzmaOptions::new(dictionary_bytes(bytes.len()), lc, lp, pb, mode, nice, mf, depth);
    let mut writer = LzmaWriter::new_no_header(Vec::new(), &options, false).ok()?;
    let properties = writer.props();
    writer.write_all(bytes).ok()?;
    let packed = writer.finish().ok()?;
    Some((properties, packed))
}

fn unlzma(packed: &[u8], properties: u8, length: usize) -> Result<Vec<u8>, DeltaError> {
    let wrong = |_| damaged("a stream cannot be unpacked");
    if properties > (4 * 5 + 4) * 9 + 8 {
        return Err(damaged("a stream cannot be unpacked"));
    }
    let mut reader =
        LzmaReader::new_with_props(packed, length as u64, properties, dictionary_bytes(length), None).map_err(wrong)?;
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).map_err(wrong)?;
    Ok(bytes)
}

/// The streams of a frame being read, each at its own place.
#[derive(Debug)]
pub(crate) struct Cursors<'a>([Fields<'a>; STREAMS]);

impl<'a> Cursors<'a> {
    pub(crate) fn new(streams: &'a Streams) -> Self {
        Self(std::array::from_fn(|number| Fields(&streams.0[number])))
    }

    pub(crate) fn at(&mut self, stream: Stream) -> &mut Fields<'a> {
        &mut self.0[stream as usize]
    }

    /// Whether all streams were read to their ends.
    pub(crate) fn are_used_up(&self) -> bool {
        self.0.iter().all(Fields::is_empty)
    }
}
