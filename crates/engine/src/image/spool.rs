//! The compressed bytes of a layer that cannot be checkpointed, kept beside its extraction: promise P5's exception to P4.
//!
//! A single zstd frame and a gzip stream of one block have no place to go on from. After two cuts such a layer's bytes
//! are written into `partial/<blob>/blob` as they come; after the next cut the extraction reads them there again, and
//! the registry is asked for the rest.
//!
//! K1  How often the layer was cut, and how much of the file is to be believed, is in the folder's checkpoint, whose
//!     state begins with [`MAGIC`] instead of an extraction's.
//! K2  Nothing of the file is believed but through the extraction, which verifies all bytes from the first one.
//! K3  The file is gone before the layer is committed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baleen_store::{Access, Checkpoints, Disk, Handle, Partial, StoreError, read_full_at};

/// The file in the layer's folder.
pub(crate) const FILE: &[u8] = b"blob";
const MAGIC: [u8; 8] = *b"BALEENSP";
const VERSION: u32 = 1;
const STATE_BYTES: usize = 24;
/// A layer of which so much has come without a checkpoint, in a pull that was cut before, has none to expect.
const TRIED_BYTES: u64 = 4 << 20;
/// The file is made durable after so many bytes, but not more often than this.
const SAVED_BYTES: u64 = 2 << 20;
const SAVED_SPACING: Duration = Duration::from_secs(1);
/// Read at once.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// What the state of a checkpoint says of a layer's compressed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing: it is an extraction's.
    No,
    /// None, but the layer was cut twice without a checkpoint: from now on they are kept.
    FromNowOn,
    /// So many.
    Bytes(u64),
}

impl Kept {
    /// Reads a state (docs/formats/partial.md); one of another version starts the layer anew.
    pub(crate) fn of(state: &[u8]) -> Self {
        let Ok(state) = <&[u8; STATE_BYTES]>::try_from(state) else { return Self::No };
        let (magic, version, bytes) = (&state[..8], &state[8..12], &state[16..24]);
        if magic != MAGIC || version != VERSION.to_le_bytes() {
            return Self::No;
        }
        match bytes.try_into().map(u64::from_le_bytes) {
            Ok(0) | Err(_) => Self::FromNowOn,
            Ok(bytes) => Self::Bytes(bytes),
        }
    }

    fn state(bytes: u64) -> [u8; STATE_BYTES] {
        let mut state = [0; STATE_BYTES];
        state[..8].copy_from_slice(&MAGIC);
        state[8..12].copy_from_slice(&VERSION.to_le_bytes());
        state[16..].copy_from_slice(&bytes.to_le_bytes());
        state
    }
}

/// Watches a layer of a pull that was cut before, and notes durably if it never comes to a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    fed_bytes: u64,
    is_noted: bool,
}

impl Watch {
    /// Counts bytes that came; `checkpoints` is how many the extraction has begun.
    ///
    /// # Errors
    /// Those of a checkpoint.
    pub(crate) fn count(&mut self, bytes: usize, checkpoints: u64, sink: &Checkpoints) -> Result<(), StoreError> {
        self.fed_bytes += bytes as u64;
        if self.is_noted || checkpoints > 0 || self.fed_bytes < TRIED_BYTES {
            return Ok(());
        }
        self.is_noted = true;
        sink.save(&Kept::state(0), 0)
    }
}

/// The file of compressed bytes.
pub(crate) struct Spool {
    disk: Arc<dyn Disk>,
    file: Handle,
    checkpoints: Checkpoints,
    bytes: u64,
    saved_bytes: u64,
    saved_at: Instant,
}

impl Spool {
    /// Makes the file, or takes the first `bytes` of the one that is there.
    ///
    /// # Errors
    /// Of the disk, and of a checkpoint.
    pub(crate) fn open(disk: &Arc<dyn Disk>, partial: &Partial, bytes: u64) -> Result<Self, StoreError> {
        let opened = match bytes {
            0 => disk.create_file(partial.dir(), FILE, 0o600),
            _ => disk.open_file(partial.dir(), FILE, Access::ReadWrite),
        };
        let file = opened.map_err(|source| io_error(partial, "open", source))?;
        let found = disk.metadata(&file).map_err(|source| io_error(partial, "read", source))?.size_bytes;
        if found < bytes {
            return Err(io_error(partial, "read", io::ErrorKind::UnexpectedEof.into()));
        }
        disk.set_len(&file, bytes).map_err(|source| io_error(partial, "cut", source))?;
        let checkpoints = partial.checkpoints();
        if bytes == 0 {
            // A cut before the first bytes are kept must not begin to count anew (K1).
            checkpoints.save(&Kept::state(0), 0)?;
        }
        Ok(Self { disk: Arc::clone(disk), file, checkpoints, bytes, saved_bytes: bytes, saved_at: Instant::now() })
    }

    /// The piece at `offset` of what was kept; empty at its end.
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn read(&self, partial: &Partial, offset: u64) -> Result<Vec<u8>, StoreError> {
        let length = self.bytes.saturating_sub(offset).min(PIECE_BYTES as u64) as usize;
        let mut piece = vec![0; length];
        let read = read_full_at(self.disk.as_ref(), &self.file, &mut piece, offset);
        match read.map_err(|source| io_error(partial, "read", source))? {
            count if count == length => Ok(piece),
            _ => Err(io_error(partial, "read", io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Adds what came, and makes it durable from time to time.
    ///
    /// # Errors
    /// Of the disk, and of a checkpoint.
    pub(crate) fn append(&mut self, partial: &Partial, piece: &[u8]) -> Result<(), StoreError> {
        let written = self.disk.write_at(&self.file, piece, self.bytes);
        written.map_err(|source| io_error(partial, "write", source))?;
        self.bytes += piece.len() as u64;
        if self.bytes - self.saved_bytes >= SAVED_BYTES && self.saved_at.elapsed() >= SAVED_SPACING {
            self.save()?;
        }
        Ok(())
    }

    /// Makes durable what was kept so far.
    ///
    /// # Errors
    /// Of a checkpoint.
    pub(crate) fn save(&mut self) -> Result<(), StoreError> {
        if self.bytes > self.saved_bytes {
            self.checkpoints.save(&Kept::state(self.bytes), self.bytes)?;
            (self.saved_bytes, self.saved_at) = (self.bytes, Instant::now());
        }
        Ok(())
    }

    /// Removes the file: the layer is about to be committed (K3).
    ///
    /// # Errors
    /// Of the disk.
    pub(crate) fn end(self, partial: &Partial) -> Result<(), StoreError> {
        self.disk.remove_file(partial.dir(), FILE).map_err(|source| io_error(partial, "remove", source))
    }
}

fn is_full(code: i32) -> bool {
    use rustix::io::Errno;
    [Errno::NOSPC, Errno::DQUOT].contains(&Errno::from_raw_os_error(code))
}

fn io_error(partial: &Partial, action: &'static str, source: io::Error) -> StoreError {
    let path = format!("partial/{}/blob", partial.blob());
    match source.raw_os_error() {
        Some(code) if is_full(code) => StoreError::FullDisk { path, source },
        _ => StoreError::Io { action, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_and_another_is_an_extractions() {
        for bytes in [1, 77, u64::MAX] {
            assert_eq!(Kept::of(&Kept::state(bytes)), Kept::Bytes(bytes));
        }
        assert_eq!(Kept::of(&Kept::state(0)), Kept::FromNowOn);
        assert_eq!(Kept::of(b""), Kept::No);
        assert_eq!(Kept::of(&[0; STATE_BYTES]), Kept::No);
        let mut newer = Kept::state(5);
        newer[8] = 2;
        assert_eq!(Kept::of(&newer), Kept::No);
    }
}
