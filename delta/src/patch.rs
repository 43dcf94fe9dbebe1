//! A payload made from a source payload: what both sides do alike.
//!
//! P1  The new bytes are matches with the source and gaps between them, in order. Of a match the source's bytes, or what a
//!     predictor makes of them, are corrected by differences; a gap is new bytes.
//! P2  One function walks them for both sides: the decoder's [`Residual`] reads what the encoder's has written.

use crate::error::{DeltaError, damaged};
use crate::source::ReadAt;

/// Bytes that are made at a time. A part of the format: no reference that a predictor knows spans two.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Most matches of one payload.
pub(crate) const MATCHES_MAX: usize = 1 << 17;

/// A part of the payload that is like a part of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) new: u64,
    pub(crate) old: u64,
    pub(crate) length: u64,
}

/// What corrects predictions: differences that are read, or found and written.
pub(crate) trait Residual {
    /// Turns the predicted bytes of a match at `new` into the real ones.
    fn bytes(&mut self, new: u64, buffer: &mut [u8]) -> Result<(), DeltaError>;

    /// The real value of a reference whose four bytes are at `new`.
    fn reference(&mut self, new: u64, predicted: u32) -> Result<u32, DeltaError>;

    /// Gives the bytes of a gap at `new`.
    fn gap(&mut self, new: u64, buffer: &mut [u8]) -> Result<(), DeltaError>;
}

/// Predicts references within matches.
pub(crate) trait Predict {
    /// Makes the real bytes of a part of a match: `buffer` has the bytes of `old` at `old_at`. `near` is the match: where in the
    /// old bytes, where in the new, how long.
    fn chunk(
        &mut self,
        old: &dyn ReadAt,
        old_at: u64,
        new_at: u64,
        buffer: &mut [u8],
        residual: &mut dyn Residual,
        near: (u64, u64, u64),
    ) -> Result<(), DeltaError>;
}

/// Predicts that all stays as it is.
pub(crate) struct Plain;

impl Predict for Plain {
    fn chunk(
        &mut self,
        _old: &dyn ReadAt,
        _old_at: u64,
        new_at: u64,
        buffer: &mut [u8],
        residual: &mut dyn Residual,
        _near: (u64, u64, u64),
    ) -> Result<(), DeltaError> {
        residual.bytes(new_at, buffer)
    }
}

/// Where the bytes of the source come from, and what to say when they cannot be read.
pub(crate) struct Old<'a> {
    pub(crate) bytes: &'a dyn ReadAt,
    pub(crate) failed: &'a dyn Fn(std::io::Error) -> DeltaError,
}

/// Makes `length` bytes from `old`, and gives them to `output` in order.
pub(crate) fn run(
    old: &Old<'_>,
    matches: &[Match],
    length: u64,
    predict: &mut dyn Predict,
    residual: &mut dyn Residual,
    output: &mut dyn FnMut(&[u8]) -> Result<(), DeltaError>,
) -> Result<(), DeltaError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    let end = Match { new: length, old: 0, length: 0 };
    for part in matches.iter().chain([&end]) {
        let next = part.new;
        if next < at || next > length || length - next < part.length {
            return Err(damaged("a match is outside its payload"));
        }
        while at < next {
            let buffer = chunk(&mut buffer, next - at);
            residual.gap(at, buffer)?;
            output(buffer)?;
            at += buffer.len() as u64;
        }
        let source_bytes = old.bytes.size_bytes();
        if part.old > source_bytes || source_bytes - part.old < part.length {
            return Err(damaged("a match is outside its source"));
        }
        let mut done = 0;
        while done < part.length {
            let buffer = chunk(&mut buffer, part.length - done);
            old.bytes.read_exact_at(buffer, part.old + done).map_err(old.failed)?;
            predict.chunk(old.bytes, part.old + done, at, buffer, residual, (part.old, part.new, part.length))?;
            output(buffer)?;
            done += buffer.len() as u64;
            at += buffer.len() as u64;
        }
    }
    Ok(())
}

fn chunk(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..count]
}

/// Differences found: the encoder's side.
pub(crate) struct Finder<'a> {
    /// The real bytes.
    pub(crate) new: &'a [u8],
    /// Differences of all bytes of matches that are no reference, in order.
    pub(crate) differences: Vec<u8>,
    /// Differences of all references, in order.
    pub(crate) references: Vec<u32>,
    /// New bytes.
    pub(crate) gaps: Vec<u8>,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(new: &'a [u8]) -> Self {
        Self { new, differences: Vec::new(), references: Vec::new(), gaps: Vec::new() }
    }

    fn at(&self, new: u64, length: usize) -> Result<&'a [u8], DeltaError> {
        self.new.get(new as usize..new as usize + length).ok_or_else(|| damaged("a match is outside its payload"))
    }
}

impl Residual for Finder<'_> {
    fn bytes(&mut self, new: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        let real = self.at(new, buffer.len())?;
        self.differences.extend(real.iter().zip(&*buffer).map(|(real, predicted)| real.wrapping_sub(*predicted)));
        buffer.copy_from_slice(real);
        Ok(())
    }

    fn reference(&mut self, new: u64, predicted: u32) -> Result<u32, DeltaError> {
        let mut real = [0; 4];
        real.copy_from_slice(self.at(new, 4)?);
        let real = u32::from_le_bytes(real);
        self.references.push(difference(real, predicted));
        Ok(real)
    }

    fn gap(&mut self, new: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        let real = self.at(new, buffer.len())?;
        self.gaps.extend_from_slice(real);
        buffer.copy_from_slice(real);
        Ok(())
    }
}

/// The difference of two words, small ones of either sign as small numbers.
pub(crate) fn difference(real: u32, predicted: u32) -> u32 {
    let difference = real.wrapping_sub(predicted) as i32;
    (difference << 1 ^ difference >> 31) as u32
}

/// Undoes [`difference`].
pub(crate) fn real(predicted: u32, difference: u32) -> u32 {
    predicted.wrapping_add((difference >> 1) ^ (difference & 1).wrapping_neg())
}
