//! What is in a file: a length and blocks, shared until written.
//!
//! C1  A copy shares every block; a write copies only those that it touches.
//! C2  What was never written reads as zeros, and so does what [`Contents::set_len`] cut off and gave back.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

/// Size of a block, and the larger of the two units in which a write tears.
pub(crate) const BLOCK_BYTES: u64 = 4096;

const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

#[derive(Debug, Clone)]
struct Block {
    bytes: Box<[u8; BLOCK_BYTES as usize]>,
    hash: OnceLock<u64>,
}

impl Block {
    fn zeros() -> Self {
        Self { bytes: Box::new(ZEROS), hash: OnceLock::new() }
    }

    /// Hash of the bytes; 0 for a block of zeros, which reads like a hole.
    fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| {
            if *self.bytes == ZEROS {
                return 0;
            }
            let mut hasher = DefaultHasher::new();
            self.bytes.hash(&mut hasher);
            hasher.finish().max(1)
        })
    }
}

/// The sparse contents of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    size_bytes: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl Contents {
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// Bytes that a write there would allocate.
    pub(crate) fn missing_bytes(&self, offset: u64, length: u64) -> u64 {
        if length == 0 {
            return 0;
        }
        let (first, last) = (offset / BLOCK_BYTES, (offset + length - 1) / BLOCK_BYTES);
        let present = self.blocks.range(first..=last).count() as u64;
        (last - first + 1 - present) * BLOCK_BYTES
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let length = self.size_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut done = 0;
        while done < length {
            let position = offset + done as u64;
            let within = (position % BLOCK_BYTES) as usize;
            let count = (BLOCK_BYTES as usize - within).min(length - done);
            let target = &mut buffer[done..done + count];
            match self.blocks.get(&(position / BLOCK_BYTES)) {
                Some(block) => target.copy_from_slice(&block.bytes[within..within + count]),
                None => target.fill(0),
            }
            done += count;
        }
        length
    }

    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.put(bytes, offset);
        self.extend_to(offset + bytes.len() as u64);
    }

    /// Writes the sectors for which `keeps` says so; the length grows as if all had been written.
    pub(crate) fn write_torn(&mut self, bytes: &[u8], offset: u64, sector_bytes: u64, keeps: impl Fn(u64) -> bool) {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let count = ((sector_bytes - position % sector_bytes) as usize).min(bytes.len() - done);
            if keeps(position / sector_bytes) {
                self.put(&bytes[done..done + count], position);
            }
            done += count;
        }
        self.extend_to(offset + bytes.len() as u64);
    }

    /// Makes the file at least this long without touching a byte.
    pub(crate) fn extend_to(&mut self, size_bytes: u64) {
        self.size_bytes = self.size_bytes.max(size_bytes);
    }

    pub(crate) fn set_len(&mut self, size_bytes: u64) {
        if size_bytes < self.size_bytes {
            self.blocks.split_off(&size_bytes.div_ceil(BLOCK_BYTES));
            let within = (size_bytes % BLOCK_BYTES) as usize;
            if let Some(block) = self.blocks.get_mut(&(size_bytes / BLOCK_BYTES)) {
                let block = Arc::make_mut(block);
                block.bytes[within..].fill(0);
                block.hash = OnceLock::new();
            }
        }
        self.size_bytes = size_bytes;
    }

    /// Takes the blocks of `disk` for every page that begins in the range: the page cache was dropped.
    pub(crate) fn reread(&mut self, disk: &Contents, offset: u64, end: u64) {
        let last = end.min(self.size_bytes.max(disk.size_bytes)).div_ceil(BLOCK_BYTES);
        for number in offset / BLOCK_BYTES..last {
            match disk.blocks.get(&number) {
                Some(block) => self.blocks.insert(number, block.clone()),
                None => self.blocks.remove(&number),
            };
        }
    }

    /// Turns over the bits of `mask` in the byte at `offset`; false past the end.
    pub(crate) fn flip(&mut self, offset: u64, mask: u8) -> bool {
        if offset >= self.size_bytes {
            return false;
        }
        let mut byte = [0];
        self.read(&mut byte, offset);
        self.put(&[byte[0] ^ mask], offset);
        true
    }

    pub(crate) fn hash_into(&self, hasher: &mut DefaultHasher) {
        self.size_bytes.hash(hasher);
        for (number, block) in &self.blocks {
            let hash = block.hash();
            if hash != 0 {
                (number, hash).hash(hasher);
            }
        }
    }

    fn put(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let within = (position % BLOCK_BYTES) as usize;
            let count = (BLOCK_BYTES as usize - within).min(bytes.len() - done);
            let block = self.blocks.entry(position / BLOCK_BYTES).or_insert_with(|| Arc::new(Block::zeros()));
            let block = Arc::make_mut(block);
            block.bytes[within..within + count].copy_from_slice(&bytes[done..done + count]);
            block.hash = OnceLock::new();
            done += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(contents: &Contents) -> Vec<u8> {
        let mut buffer = vec![0xaa; contents.size_bytes() as usize];
        assert_eq!(contents.read(&mut buffer, 0), buffer.len());
        buffer
    }

    #[test]
    fn a_copy_does_not_see_later_writes() {
        let mut original = Contents::default();
        original.write(b"old", 0);
        let copy = original.clone();
        original.write(b"new", 0);
        assert_eq!((bytes(&original), bytes(&copy)), (b"new".to_vec(), b"old".to_vec()));
    }

    #[test]
    fn what_was_cut_off_reads_as_zeros_when_it_comes_back() {
        let mut contents = Contents::default();
        contents.write(&[7; 10_000], 0);
        contents.set_len(5_000);
        contents.set_len(10_000);
        let read = bytes(&contents);
        assert!(read[..5_000].iter().all(|byte| *byte == 7) && read[5_000..].iter().all(|byte| *byte == 0));
        assert_eq!(contents.allocated_bytes(), 8192);
    }

    #[test]
    fn a_torn_write_keeps_whole_sectors_and_the_whole_length() {
        let mut contents = Contents::default();
        contents.write_torn(&[7; 2_000], 100, 512, |sector| sector == 1);
        let read = bytes(&contents);
        assert_eq!(read.len(), 2_100);
        for (at, byte) in read.iter().enumerate() {
            assert_eq!(*byte == 7, (512..1024).contains(&at), "byte {at}");
        }
    }

    #[test]
    fn a_hole_and_written_zeros_have_one_hash() {
        let hash = |contents: &Contents| {
            let mut hasher = DefaultHasher::new();
            contents.hash_into(&mut hasher);
            hasher.finish()
        };
        let (mut hole, mut zeros) = (Contents::default(), Contents::default());
        hole.set_len(8192);
        zeros.write(&[0; 8192], 0);
        assert_eq!(hash(&hole), hash(&zeros));
        zeros.write(&[1], 8191);
        assert_ne!(hash(&hole), hash(&zeros));
    }
}
