//! A source layer that is a tar: for making deltas, and for tests.

use std::io;

use baleen_oci::DiffId;

use crate::error::SourceError;
use crate::source::{PayloadFacts, ReadAt, SourceLayer};
use crate::walk::{Piece, pieces};

/// A layer in the form of its tar.
pub struct TarLayer<T> {
    diff_id: DiffId,
    tar: T,
    payloads: Vec<(u64, PayloadFacts)>,
    /// Runs of the skeleton: where each begins in it and in the tar, and its length.
    runs: Vec<(u64, u64, u64)>,
}

impl<T> std::fmt::Debug for TarLayer<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TarLayer").field("diff_id", &self.diff_id).finish_non_exhaustive()
    }
}

impl<T: ReadAt> TarLayer<T> {
    /// Takes the tar apart and hashes its payloads. That it has this diff ID is the caller's word.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn open(diff_id: DiffId, tar: T) -> io::Result<Self> {
        let (mut payloads, mut runs) = (Vec::new(), Vec::new());
        let mut skeleton_bytes = 0;
        let mut buffer = vec![0; 256 << 10];
        for piece in pieces(&tar)? {
            match piece {
                Piece::Blocks { offset, count } => {
                    runs.push((skeleton_bytes, offset, count * 512));
                    skeleton_bytes += count * 512;
                }
                Piece::Payload { offset, size_bytes, path, .. } => {
                    let mut hasher = blake3::Hasher::new();
                    let mut done = 0;
                    while done < size_bytes {
                        let part = (size_bytes - done).min(buffer.len() as u64) as usize;
                        tar.read_exact_at(&mut buffer[..part], offset + done)?;
                        hasher.update(&buffer[..part]);
                        done += part as u64;
                    }
                    let (index, blocks_before) = (payloads.len() as u64, skeleton_bytes / 512);
                    let blake3 = *hasher.finalize().as_bytes();
                    payloads.push((offset, PayloadFacts { index, path, size_bytes, blake3, blocks_before }));
                }
                Piece::Zeros { .. } => {}
            }
        }
        Ok(Self { diff_id, tar, payloads, runs })
    }

    fn payload(&self, index: u64) -> Result<&(u64, PayloadFacts), SourceError> {
        let found = usize::try_from(index).ok().and_then(|index| self.payloads.get(index));
        found.ok_or(SourceError::NoPayload { index })
    }
}

impl<T: ReadAt> SourceLayer for TarLayer<T> {
    fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    fn open(&self, index: u64) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        let (offset, facts) = self.payload(index)?;
        Ok(Box::new(Part { tar: &self.tar, offset: *offset, size_bytes: facts.size_bytes }))
    }

    fn facts(&self, index: u64) -> Result<PayloadFacts, SourceError> {
        self.payload(index).map(|(_, facts)| facts.clone())
    }

    fn skeleton(&self) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        Ok(Box::new(Skeleton { tar: &self.tar, runs: &self.runs }))
    }

    fn for_each(&self, visit: &mut dyn FnMut(PayloadFacts)) -> Result<(), SourceError> {
        for (_, facts) in &self.payloads {
            visit(facts.clone());
        }
        Ok(())
    }
}

/// A part of something longer.
pub(crate) struct Part<'a, T: ?Sized> {
    pub(crate) tar: &'a T,
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
}

impl<T: ReadAt + ?Sized> ReadAt for Part<'_, T> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(offset);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if count == 0 { Ok(0) } else { self.tar.read_at(&mut buffer[..count], self.offset + offset) }
    }
}

struct Skeleton<'a, T> {
    tar: &'a T,
    runs: &'a [(u64, u64, u64)],
}

impl<T: ReadAt> ReadAt for Skeleton<'_, T> {
    fn size_bytes(&self) -> u64 {
        self.runs.last().map_or(0, |(at, _, length)| at + length)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = self.runs.partition_point(|(at, _, length)| at + length <= offset);
        let Some((at, tar_offset, length)) = self.runs.get(number) else { return Ok(0) };
        let inside = offset - at;
        let count = ((length - inside).min(buffer.len() as u64)) as usize;
        self.tar.read_at(&mut buffer[..count], tar_offset + inside)
    }
}
