//! Numbers and byte strings as they lie in a delta: unsigned LEB128, and lengths before bytes.

use crate::error::{DeltaError, damaged};

/// Appends a number.
pub(crate) fn put_number(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Appends a signed number: 0, -1, 1, -2, …
pub(crate) fn put_signed(into: &mut Vec<u8>, value: i64) {
    put_number(into, zigzag(value));
}

pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads what the functions above wrote; every read is bounded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DeltaError> {
        let (first, rest) = self.0.split_first().ok_or_else(|| damaged("a stream ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DeltaError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| damaged("a stream ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DeltaError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DeltaError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged("a number is too large"))
    }

    pub(crate) fn signed(&mut self) -> Result<i64, DeltaError> {
        self.number().map(unzigzag)
    }

    /// A number that is an index or a length here.
    pub(crate) fn size(&mut self, most: usize) -> Result<usize, DeltaError> {
        match usize::try_from(self.number()?) {
            Ok(value) if value <= most => Ok(value),
            _ => Err(damaged("a number is too large")),
        }
    }
}
