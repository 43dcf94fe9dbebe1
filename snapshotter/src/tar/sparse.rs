//! Maps of sparse files: GNU's old form in headers, and its PAX forms 0.0, 0.1 and 1.0.

use super::{BLOCK_BYTES, Segment, TarProblem, header};
use crate::limits::{EXTENSION_BYTES_MAX, SPARSE_SEGMENTS_MAX};

/// What PAX records say of a sparse file.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) path: Option<Vec<u8>>,
    pub(super) size_bytes: Option<u64>,
    /// `None`: version 1.0, the map is in the data.
    pub(super) segments: Option<Vec<Segment>>,
}

/// Reads the four parts in a GNU header; tells whether an extension block follows.
pub(super) fn old_header(block: &[u8; BLOCK_BYTES], segments: &mut Vec<Segment>) -> Result<bool, TarProblem> {
    old_parts(&block[386..482], segments)?;
    Ok(block[482] != 0)
}

/// Reads the 21 parts in an extension block; tells whether another follows.
pub(super) fn old_extension(block: &[u8; BLOCK_BYTES], segments: &mut Vec<Segment>) -> Result<bool, TarProblem> {
    old_parts(&block[..504], segments)?;
    Ok(block[504] != 0)
}

fn old_parts(parts: &[u8], segments: &mut Vec<Segment>) -> Result<(), TarProblem> {
    for part in parts.chunks_exact(24).take_while(|part| part[0] != 0) {
        let offset = header::number(&part[..12], "sparse map")?;
        let length = header::number(&part[12..], "sparse map")?;
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// A number of a PAX map: digits only.
pub(super) fn map_number(text: &[u8]) -> Result<u64, TarProblem> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = if digits { super::pax::decimal(text) } else { None };
    value.map(|value| value as u64).ok_or(TarProblem::SparseMap)
}

/// Offsets and lengths that alternate, as segments.
pub(super) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, TarProblem> {
    if numbers.len() > 2 * SPARSE_SEGMENTS_MAX {
        return Err(TarProblem::TooManySegments);
    }
    Ok(numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

/// Checks that segments are in order, apart, inside the file, and as long together as the data.
pub(super) fn check(segments: &[Segment], size_bytes: u64, data_bytes: u64) -> Result<(), TarProblem> {
    if segments.len() > SPARSE_SEGMENTS_MAX {
        return Err(TarProblem::TooManySegments);
    }
    let (mut end, mut sum) = (0u64, 0u64);
    for segment in segments {
        let segment_end = segment.offset.checked_add(segment.length).ok_or(TarProblem::SparseMap)?;
        if segment.offset < end || segment_end > size_bytes {
            return Err(TarProblem::SparseMap);
        }
        end = segment_end;
        sum += segment.length; // At most `size_bytes`.
    }
    let fits = sum == data_bytes && i64::try_from(size_bytes).is_ok();
    if fits { Ok(()) } else { Err(TarProblem::SparseMap) }
}

/// Reads a map of version 1.0: decimal numbers, one a line, the first one their number of pairs; then zeros to the end
/// of the block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    numbers: Vec<u64>,
    line: Vec<u8>,
    taken_bytes: u64,
}

impl MapReader {
    /// Takes the next block; gives the segments once they are complete.
    pub(super) fn take(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, TarProblem> {
        self.taken_bytes += block.len() as u64;
        if self.taken_bytes > 2 * EXTENSION_BYTES_MAX {
            return Err(TarProblem::TooManySegments);
        }
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                // 2⁶³ has 19 digits.
                if self.line.len() > 19 {
                    return Err(TarProblem::SparseMap);
                }
                continue;
            }
            self.numbers.push(map_number(&self.line)?);
            self.line.clear();
            let count = self.numbers[0];
            if count > SPARSE_SEGMENTS_MAX as u64 {
                return Err(TarProblem::TooManySegments);
            }
            if self.numbers.len() as u64 == 1 + 2 * count {
                return pairs(&self.numbers[1..]).map(Some);
            }
        }
        Ok(None)
    }
}
