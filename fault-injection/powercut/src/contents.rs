//! Blocks of a disk by number: each content once, in the recording's file or, for what is only made, in memory.
//!
//! C1  Content 0 is a block of zeros and is nowhere stored.
//! C2  A number once given keeps its bytes: contents are only ever added.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

/// Bytes of a block: the unit of contents and of images, whatever the sectors of the disk.
pub const BLOCK_BYTES: usize = 4096;

/// The number of a content.
pub(crate) type ContentId = u32;

/// The number of the block of zeros.
pub(crate) const ZEROS: ContentId = 0;

/// Numbers from here on are of contents in memory.
const IN_MEMORY: ContentId = 1 << 31;

/// Contents of blocks and of parts of blocks.
#[derive(Debug)]
pub(crate) struct Contents {
    file: File,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Offset in the file and length of content 1, 2, ...
    places: Vec<(u64, u16)>,
    by_hash: HashMap<[u8; 16], ContentId>,
    made: Vec<Box<[u8]>>,
    made_by_hash: HashMap<[u8; 16], ContentId>,
}

impl Contents {
    /// Contents that lie in `file`, none so far.
    pub(crate) fn new(file: File) -> Contents {
        Contents { file, known: RwLock::default() }
    }

    pub(crate) fn hash(bytes: &[u8]) -> [u8; 16] {
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        hash
    }

    /// The number of `bytes` if the file has them.
    pub(crate) fn stored(&self, bytes: &[u8]) -> Option<ContentId> {
        if bytes == [0; BLOCK_BYTES] {
            return Some(ZEROS);
        }
        self.known.read().unwrap_or_else(PoisonError::into_inner).by_hash.get(&Self::hash(bytes)).copied()
    }

    /// Gives the next number to what lies at `offset` of the file; its hash is that of the bytes.
    pub(crate) fn add_stored(&self, hash: [u8; 16], offset: u64, length: u16) -> ContentId {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.places.push((offset, length));
        let id = known.places.len() as ContentId;
        assert!(id < IN_MEMORY, "a recording has fewer than 2^31 contents");
        known.by_hash.insert(hash, id);
        id
    }

    /// The number of `bytes`, kept in memory unless known.
    pub(crate) fn made(&self, bytes: &[u8]) -> ContentId {
        if let Some(id) = self.stored(bytes) {
            return id;
        }
        let hash = Self::hash(bytes);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = known.made_by_hash.get(&hash) {
            return *id;
        }
        known.made.push(bytes.into());
        let id = IN_MEMORY + (known.made.len() - 1) as ContentId;
        known.made_by_hash.insert(hash, id);
        id
    }

    /// The number in `to`, which has the same stored contents, of a content of this.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub(crate) fn carry(&self, id: ContentId, to: &Contents) -> io::Result<ContentId> {
        if id < IN_MEMORY {
            return Ok(id);
        }
        let mut bytes = vec![0; self.length(id).unwrap_or(0)];
        self.read(id, 0, &mut bytes)?;
        Ok(to.made(&bytes))
    }

    /// The length of a content in bytes, if there is one of that number.
    pub(crate) fn length(&self, id: ContentId) -> Option<usize> {
        if id == ZEROS {
            return Some(BLOCK_BYTES);
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        match id.checked_sub(IN_MEMORY) {
            Some(at) => known.made.get(at as usize).map(|bytes| bytes.len()),
            None => known.places.get(id as usize - 1).map(|(_, length)| usize::from(*length)),
        }
    }

    /// Fills `bytes` from `start` of a content.
    ///
    /// # Errors
    /// Those of reading the file; `InvalidInput` for bytes that the content does not have.
    pub(crate) fn read(&self, id: ContentId, start: usize, bytes: &mut [u8]) -> io::Result<()> {
        if id == ZEROS {
            bytes.fill(0);
            return Ok(());
        }
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = id.checked_sub(IN_MEMORY) {
            let made = known.made.get(at as usize).ok_or_else(outside)?;
            bytes.copy_from_slice(made.get(start..start + bytes.len()).ok_or_else(outside)?);
            return Ok(());
        }
        let (offset, length) = *known.places.get(id as usize - 1).ok_or_else(outside)?;
        drop(known);
        if start + bytes.len() > usize::from(length) {
            return Err(outside());
        }
        self.file.read_exact_at(bytes, offset + start as u64)
    }
}
