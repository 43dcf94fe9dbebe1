//! Blocks of a tar that are no payload: headers, extension records, the end. Each is made from a block of a source skeleton
//! or from the header before it, field by field.
//!
//! B1  A block is coded against a reference that the decoder has too: block `next` of a source skeleton, moved on by one with each
//!     use, or the last header of the same frame.
//! B2  Any block can be coded; those that are headers cost what is new in them.

use baleen_snapshotter::tar::BLOCK_BYTES;

use crate::bytes::{put_number, put_signed, unzigzag, zigzag};
use crate::error::{DeltaError, damaged};
use crate::frame::{Cursors, Stream, Streams};
use crate::walk::{checksum, checksum_matches, octal, put_octal};

pub(crate) type Block = [u8; BLOCK_BYTES];

/// How a block is made: the low seven bits of its mode.
pub(crate) mod mode {
    /// As the reference.
    pub(crate) const SAME: u8 = 0;
    /// As the reference, with the time of the header before.
    pub(crate) const TIME: u8 = 1;
    /// As the reference, with some fields new.
    pub(crate) const FIELDS: u8 = 2;
    /// As the header before, with some fields new.
    pub(crate) const FIELDS_OF_LAST: u8 = 3;
    /// Bytes, the zeros at the end left out.
    pub(crate) const LITERAL: u8 = 4;
    /// As the reference, with some bytes new.
    pub(crate) const PATCH: u8 = 5;
    /// Zeros.
    pub(crate) const ZERO: u8 = 6;
    /// No block: the reference is elsewhere.
    pub(crate) const JUMP: u8 = 7;
    /// No block: zeros, as many as a number says.
    pub(crate) const ZEROS: u8 = 8;
    /// No block: a payload of its own.
    pub(crate) const PAYLOAD: u8 = 9;
    /// Flag: what follows is not what the block's fields say.
    pub(crate) const EXCEPTION: u8 = 0x80;
}

/// Most bytes of a block that [`mode::PATCH`] changes.
const PATCHED_BYTES_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Size,
    Time,
    Checksum,
    Raw,
}

/// The fields of a header: where each begins, its length, how its value is coded. Bit n of a mask is field n.
const FIELDS: [(usize, usize, Kind); 16] = [
    (0, 100, Kind::Text),
    (100, 8, Kind::Number),
    (108, 8, Kind::Number),
    (116, 8, Kind::Number),
    (124, 12, Kind::Size),
    (136, 12, Kind::Time),
    (148, 8, Kind::Checksum),
    (156, 1, Kind::Raw),
    (157, 100, Kind::Text),
    (257, 8, Kind::Raw),
    (265, 32, Kind::Text),
    (297, 32, Kind::Text),
    (329, 8, Kind::Number),
    (337, 8, Kind::Number),
    (345, 155, Kind::Text),
    (500, 12, Kind::Raw),
];
const TIME_FIELD: usize = 5;
const CHECKSUM_FIELD: usize = 6;
/// In place of a common length: the field's bytes follow as they are.
const TEXT_RAW: u8 = 255;

/// Where a source block is: the layer's number in the header's list, and the block's in its skeleton.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockAt {
    pub(crate) layer: usize,
    pub(crate) index: u64,
}

/// What both sides remember within a frame.
#[derive(Debug, Clone)]
pub(crate) struct BlockState {
    pub(crate) next: BlockAt,
    last_header: Box<Block>,
    last_time: u64,
}

impl Default for BlockState {
    fn default() -> Self {
        Self { next: BlockAt { layer: 0, index: 0 }, last_header: Box::new([0; BLOCK_BYTES]), last_time: 0 }
    }
}

/// Reads blocks of source skeletons.
pub(crate) trait Skeletons {
    fn block(&mut self, at: BlockAt) -> Result<Block, DeltaError>;
}

impl BlockState {
    fn remember(&mut self, block: &Block) {
        if checksum_matches(block) && !matches!(block[156], b'x' | b'g' | b'L' | b'K') {
            *self.last_header = *block;
            if let Some(time) = octal(&block[136..148]) {
                self.last_time = time;
            }
        }
    }

    /// Time of the last header.
    pub(crate) fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Makes the block of a mode that makes one.
    pub(crate) fn decode(
        &mut self,
        how: u8,
        cursors: &mut Cursors<'_>,
        skeletons: &mut dyn Skeletons,
    ) -> Result<Block, DeltaError> {
        let mut block = match how {
            mode::SAME | mode::TIME | mode::FIELDS | mode::PATCH => {
                let at = self.next;
                self.next.index += 1;
                skeletons.block(at)?
            }
            mode::FIELDS_OF_LAST => *self.last_header,
            _ => [0; BLOCK_BYTES],
        };
        match how {
            mode::SAME | mode::ZERO => {}
            mode::TIME => {
                if !put_octal(&mut block[136..148], self.last_time) {
                    return Err(damaged("a time does not fit"));
                }
                let sum = checksum(&block);
                block[148..156].copy_from_slice(&sum);
            }
            mode::FIELDS | mode::FIELDS_OF_LAST => self.decode_fields(&mut block, cursors)?,
            mode::LITERAL => {
                let bytes = cursors.at(Stream::BlockBytes);
                let length = bytes.size(BLOCK_BYTES)?;
                block[..length].copy_from_slice(bytes.take(length)?);
            }
            mode::PATCH => {
                let bytes = cursors.at(Stream::BlockBytes);
                let mut at = 0;
                for _ in 0..bytes.size(PATCHED_BYTES_MAX)? {
                    at += bytes.size(BLOCK_BYTES)?;
                    *block.get_mut(at).ok_or_else(|| damaged("a block is too short"))? = bytes.byte()?;
                    at += 1;
                }
            }
            _ => return Err(damaged("a block is of an unknown kind")),
        }
        self.remember(&block);
        Ok(block)
    }

    fn decode_fields(&self, block: &mut Block, cursors: &mut Cursors<'_>) -> Result<(), DeltaError> {
        let mask = u16::from_le_bytes(cursors.at(Stream::BlockMask).array()?);
        for (number, (at, length, kind)) in FIELDS.into_iter().enumerate() {
            if mask >> number & 1 == 0 {
                continue;
            }
            let field = &mut block[at..at + length];
            let value = match kind {
                Kind::Number => cursors.at(Stream::FieldNumber).number()?.checked_sub(1),
                Kind::Size => cursors.at(Stream::FieldSize).number()?.checked_sub(1),
                Kind::Time => {
                    let coded = cursors.at(Stream::FieldTime).number()?.checked_sub(1);
                    coded.map(|coded| self.last_time.wrapping_add_signed(unzigzag(coded)))
                }
                Kind::Checksum | Kind::Raw => None,
                Kind::Text => {
                    let text = cursors.at(Stream::FieldText);
                    let common = text.byte()?;
                    if common != TEXT_RAW {
                        let (common, rest) = (usize::from(common), text.size(length)?);
                        if common + rest > length {
                            return Err(damaged("a text does not fit"));
                        }
                        field.fill(0);
                        field[..common].copy_from_slice(&self.last_header[at..at + common]);
                        field[common..common + rest].copy_from_slice(text.take(rest)?);
                        continue;
                    }
                    None
                }
            };
            match value {
                Some(value) if put_octal(field, value) => {}
                Some(_) => return Err(damaged("a number does not fit")),
                None => field.copy_from_slice(cursors.at(Stream::BlockBytes).take(length)?),
            }
        }
        if mask >> CHECKSUM_FIELD & 1 == 0 {
            let sum = checksum(block);
            block[148..156].copy_from_slice(&sum);
        }
        Ok(())
    }

    /// Codes a block; `reference` is the source block that should be like it. Gives its mode, which the caller writes (after
    /// the jump that this writes).
    pub(crate) fn encode(&mut self, block: &Block, reference: Option<(BlockAt, Block)>, streams: &mut Streams) -> u8 {
        let how = self.encode_inner(block, reference, streams);
        self.remember(block);
        how
    }

    fn encode_inner(&mut self, block: &Block, reference: Option<(BlockAt, Block)>, streams: &mut Streams) -> u8 {
        let is_header = checksum_matches(block);
        if let Some((at, reference)) = reference {
            let patched = block.iter().zip(&reference).filter(|(new, old)| new != old).count();
            let how = if patched == 0 {
                mode::SAME
            } else if is_header && checksum_matches(&reference) {
                if self.is_time_alone(block, &reference) { mode::TIME } else { mode::FIELDS }
            } else if patched <= PATCHED_BYTES_MAX {
                mode::PATCH
            } else {
                mode::LITERAL
            };
            if how != mode::LITERAL {
                self.jump(at, streams);
                match how {
                    mode::FIELDS => self.encode_fields(block, &reference, streams),
                    mode::PATCH => encode_patch(block, &reference, streams.at(Stream::BlockBytes)),
                    _ => {}
                }
                return how;
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return mode::ZERO;
        }
        if is_header && checksum_matches(&self.last_header) {
            let last = self.last_header.clone();
            self.encode_fields(block, &last, streams);
            return mode::FIELDS_OF_LAST;
        }
        let length = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let bytes = streams.at(Stream::BlockBytes);
        put_number(bytes, length as u64);
        bytes.extend_from_slice(&block[..length]);
        mode::LITERAL
    }

    fn is_time_alone(&self, block: &Block, reference: &Block) -> bool {
        let mut made = *reference;
        if !put_octal(&mut made[136..148], self.last_time) {
            return false;
        }
        let sum = checksum(&made);
        made[148..156].copy_from_slice(&sum);
        made == *block
    }

    fn jump(&mut self, at: BlockAt, streams: &mut Streams) {
        if at != self.next {
            streams.at(Stream::BlockMode).push(mode::JUMP);
            let jumps = streams.at(Stream::BlockRef);
            put_number(jumps, at.layer as u64);
            put_signed(jumps, at.index.wrapping_sub(self.next.index) as i64);
        }
        self.next = BlockAt { layer: at.layer, index: at.index + 1 };
    }

    /// Reads what [`mode::JUMP`] announces.
    pub(crate) fn decode_jump(&mut self, cursors: &mut Cursors<'_>, layers: usize) -> Result<(), DeltaError> {
        let jumps = cursors.at(Stream::BlockRef);
        let layer = jumps.size(layers.checked_sub(1).ok_or_else(|| damaged("it names no source"))?)?;
        let index = self.next.index.wrapping_add_signed(jumps.signed()?);
        if index > u64::MAX >> 12 {
            return Err(damaged("a block is outside its source"));
        }
        self.next = BlockAt { layer, index };
        Ok(())
    }

    fn encode_fields(&self, block: &Block, base: &Block, streams: &mut Streams) {
        let mut mask = 0u16;
        // A checksum is derived, if it is the usual one: then the block is a header, as both are here.
        for (number, (at, length, kind)) in FIELDS.into_iter().enumerate() {
            let field = &block[at..at + length];
            if number == CHECKSUM_FIELD || field == &base[at..at + length] {
                continue;
            }
            mask |= 1 << number;
            let value = octal(field);
            match kind {
                Kind::Number | Kind::Size => {
                    let stream = if kind == Kind::Size { Stream::FieldSize } else { Stream::FieldNumber };
                    put_number(streams.at(stream), value.map_or(0, |value| value + 1));
                }
                Kind::Time => {
                    let coded = value.map_or(0, |value| zigzag(value.wrapping_sub(self.last_time) as i64) + 1);
                    put_number(streams.at(Stream::FieldTime), coded);
                }
                Kind::Text => {
                    let text = streams.at(Stream::FieldText);
                    let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
                    if field[end..].iter().any(|byte| *byte != 0) {
                        text.push(TEXT_RAW);
                    } else {
                        let last = &self.last_header[at..at + length];
                        let common = field[..end].iter().zip(last).take_while(|(new, old)| new == old).count();
                        text.push(common as u8);
                        put_number(text, (end - common) as u64);
                        text.extend_from_slice(&field[common..end]);
                        continue;
                    }
                }
                Kind::Checksum | Kind::Raw => {}
            }
            if !matches!(kind, Kind::Number | Kind::Size | Kind::Time) || value.is_none() {
                streams.at(Stream::BlockBytes).extend_from_slice(field);
            }
        }
        debug_assert_eq!(FIELDS[TIME_FIELD].2, Kind::Time);
        streams.at(Stream::BlockMask).extend_from_slice(&mask.to_le_bytes());
    }
}

fn encode_patch(block: &Block, reference: &Block, bytes: &mut Vec<u8>) {
    let changed: Vec<usize> = (0..BLOCK_BYTES).filter(|at| block[*at] != reference[*at]).collect();
    put_number(bytes, changed.len() as u64);
    let mut from = 0;
    for at in changed {
        put_number(bytes, (at - from) as u64);
        bytes.push(block[at]);
        from = at + 1;
    }
}
