//! How a payload is made: its mode, and the source payload that it is made from.

use std::io;

use crate::bytes::{Fields, put_number, put_signed};
use crate::error::{DeltaError, damaged};
use crate::source::ReadAt;

/// Where a compiled Python file has the time of its source (PEP 552: after magic and flags).
const STAMP_AT: usize = 8;
const STAMP_BYTES: usize = 4;

/// What a payload is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A source payload as it is.
    Copy,
    /// Matches with a source payload, and what is new.
    Match,
    /// New bytes.
    Text,
    /// New bytes, of a program.
    Code,
}

/// The byte that says how a payload is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) kind: Kind,
    /// The source payload is not the one after the last.
    pub(crate) has_jump: bool,
    /// Four bytes of the source payload are a time, and that is another.
    pub(crate) has_stamp: bool,
    /// Gaps are in the stream of code.
    pub(crate) gaps_are_code: bool,
    /// References are predicted.
    pub(crate) is_program: bool,
    /// The padding is not the zeros up to the next block.
    pub(crate) has_padding: bool,
}

impl Mode {
    pub(crate) fn new(kind: Kind) -> Self {
        let no = false;
        Self { kind, has_jump: no, has_stamp: no, gaps_are_code: no, is_program: no, has_padding: no }
    }

    pub(crate) fn byte(self) -> u8 {
        let kind = match self.kind {
            Kind::Copy => 0,
            Kind::Match => 1,
            Kind::Text => 2,
            Kind::Code => 3,
        };
        kind | u8::from(self.has_jump) << 3
            | u8::from(self.has_stamp) << 4
            | u8::from(self.gaps_are_code) << 5
            | u8::from(self.is_program) << 6
            | u8::from(self.has_padding) << 7
    }

    pub(crate) fn parse(byte: u8) -> Result<Self, DeltaError> {
        let kind = match byte & 7 {
            0 => Kind::Copy,
            1 => Kind::Match,
            2 => Kind::Text,
            3 => Kind::Code,
            _ => return Err(damaged("a payload is of an unknown kind")),
        };
        let bit = |number: u8| byte >> number & 1 != 0;
        Ok(Self {
            kind,
            has_jump: bit(3),
            has_stamp: bit(4),
            gaps_are_code: bit(5),
            is_program: bit(6),
            has_padding: bit(7),
        })
    }
}

/// A source payload: the layer's number in the header's list, and the payload's in the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct PayloadAt {
    pub(crate) layer: usize,
    pub(crate) index: u64,
}

impl PayloadAt {
    /// Writes the way from here to `to`.
    pub(crate) fn put_jump(self, to: PayloadAt, into: &mut Vec<u8>) {
        put_number(into, to.layer as u64);
        put_signed(into, to.index.wrapping_sub(self.index) as i64);
    }

    /// Goes the way that was written.
    pub(crate) fn jump(&mut self, fields: &mut Fields<'_>, layers: usize) -> Result<(), DeltaError> {
        self.layer = fields.size(layers.checked_sub(1).ok_or_else(|| damaged("it names no source"))?)?;
        self.index = self.index.wrapping_add_signed(fields.signed()?);
        if self.index > u64::MAX >> 1 {
            return Err(damaged("it names a payload that its source has not"));
        }
        Ok(())
    }
}

/// A payload whose time is another.
pub(crate) struct Stamped<'a> {
    pub(crate) payload: &'a dyn ReadAt,
    pub(crate) stamp: Option<u32>,
}

impl ReadAt for Stamped<'_> {
    fn size_bytes(&self) -> u64 {
        self.payload.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.payload.read_at(buffer, offset)?;
        if let Some(stamp) = self.stamp {
            for (number, byte) in stamp.to_le_bytes().into_iter().enumerate() {
                let at = (STAMP_AT + number) as u64;
                if let Some(place) = at.checked_sub(offset).and_then(|at| buffer[..count].get_mut(at as usize)) {
                    *place = byte;
                }
            }
        }
        Ok(count)
    }
}

/// The time in a compiled Python file that names its source by time: the version's magic ends with CR LF, and no flag is set.
pub(crate) fn stamp_of(bytes: &[u8]) -> Option<u32> {
    let is_one = bytes.get(2..8)? == b"\r\n\0\0\0\0";
    let stamp = bytes.get(STAMP_AT..STAMP_AT + STAMP_BYTES)?;
    is_one.then(|| stamp.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}
