//! Second copy of the facts: what the log says, once more, for the case that the log is damaged.
//! Bytes on disk: docs/formats/second-copy.md, version 1.
//!
//! K1  No promise rests on it: it may be missing, damaged or behind, and nothing is lost.
//! K2  It says nothing that was not durable in the log before. So a copy that knows more than the log is proof that the log
//!     has lost its end.
//! K3  Two files take turns; the one that is not written meanwhile is whole.
//! K4  An empty store has none, so that it is as small as it was when it was made.
//! K5  It is written when somebody asks for it, as a whole, and never for a record.
//!
//! Touches: `index-0` and `index-1` in the data root, through [`Disk`] only.

use crate::disk::{Access, Disk, Handle, read_file, read_full_at};
use crate::error::{IoContext, StoreError};
use crate::facts::{Facts, Record};
use crate::layout::is_missing;
use crate::store::Store;
use crate::wal::{StoreId, decode_records, encode_record};

/// The two files.
pub(crate) const SLOTS: [&[u8]; 2] = [b"index-0", b"index-1"];
const MAGIC: [u8; 8] = *b"BALEENIX";
const VERSION: u32 = 1;
/// Bytes of the header that its checksum covers.
const CHECKED: usize = 56;
const HEADER: usize = CHECKED + 32;
/// The longest that is read: facts are limited to 8 MiB (DESIGN, Memory).
const BYTES_MAX: u64 = 64 << 20;

/// The facts as they were at one moment.
#[derive(Debug)]
pub(crate) struct SecondCopy {
    /// The last record that they come from.
    pub(crate) sequence: u64,
    pub(crate) facts: Facts,
}

/// What a header says.
struct Header {
    sequence: u64,
    records: u64,
    body_bytes: u64,
}

impl Header {
    fn encode(&self, store_id: StoreId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&store_id);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.records.to_le_bytes());
        bytes.extend_from_slice(&self.body_bytes.to_le_bytes());
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    fn decode(store_id: StoreId, bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let header = Self { sequence: number(32)?, records: number(40)?, body_bytes: number(48)? };
        // Encoding it again checks every byte at once.
        (bytes.get(..HEADER)? == header.encode(store_id)).then_some(header)
    }
}

impl SecondCopy {
    /// The last record that either file knows of; reads their headers alone. 0 if none can be read (K1).
    pub(crate) fn known_through(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> u64 {
        let header = |name: &[u8]| {
            let file = disk.open_file(root, name, Access::Read).ok()?;
            let mut bytes = [0; HEADER];
            read_full_at(disk, &file, &mut bytes, 0).ok()?;
            Some(Header::decode(store_id, &bytes)?.sequence)
        };
        SLOTS.into_iter().filter_map(header).max().unwrap_or(0)
    }

    /// The newer of the files that are whole.
    pub(crate) fn read(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> Option<Self> {
        let read = |name: &[u8]| {
            let file = disk.open_file(root, name, Access::Read).ok()?;
            Self::decode(store_id, &read_file(disk, &file, BYTES_MAX).ok()?)
        };
        SLOTS.into_iter().filter_map(read).max_by_key(|copy| copy.sequence)
    }

    /// The names of files that are there and not whole.
    pub(crate) fn damaged(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> Vec<String> {
        let is_damaged = |name: &&[u8]| match disk.open_file(root, name, Access::Read) {
            Err(error) => !is_missing(&error),
            Ok(file) => {
                let bytes = read_file(disk, &file, BYTES_MAX);
                bytes.map_or(true, |bytes| Self::decode(store_id, &bytes).is_none())
            }
        };
        let damaged = SLOTS.into_iter().filter(is_damaged);
        damaged.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    fn encode(&self, store_id: StoreId) -> Result<Vec<u8>, StoreError> {
        let mut body = Vec::new();
        let records = self.facts.records();
        for (sequence, record) in &records {
            encode_record(&mut body, *sequence, record)?;
        }
        let header = Header { sequence: self.sequence, records: records.len() as u64, body_bytes: body.len() as u64 };
        let mut bytes = header.encode(store_id);
        bytes.extend_from_slice(&body);
        let checksum = blake3::hash(&body);
        bytes.extend_from_slice(checksum.as_bytes());
        Ok(bytes)
    }

    fn decode(store_id: StoreId, bytes: &[u8]) -> Option<Self> {
        let header = Header::decode(store_id, bytes)?;
        let rest = bytes.get(HEADER..)?;
        let (body, checksum) = rest.split_at_checked(usize::try_from(header.body_bytes).ok()?)?;
        if blake3::hash(body).as_bytes()[..] != *checksum {
            return None;
        }
        let mut facts = Facts::default();
        for (sequence, record) in decode_records(body, header.records).ok()? {
            if matches!(record, Record::Opened | Record::Closed | Record::BaseEnd(_)) {
                return None;
            }
            facts.apply(sequence, record);
        }
        Some(Self { sequence: header.sequence, facts })
    }
}

impl Store {
    /// Removes both files (K4).
    pub(crate) fn remove_second_copy(&self) -> Result<(), StoreError> {
        for name in SLOTS {
            match self.shared.disk.remove_file(&self.shared.layout.root, name) {
                Err(error) if !is_missing(&error) => {
                    return Err(error).context("remove", || String::from_utf8_lossy(name).into_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the second copy of the facts, if anything was recorded since it was written last. For a moment when nothing
    /// else is to be done, and for the end.
    ///
    /// # Durability
    /// On `Ok(true)` the copy is durable. Nothing depends on it (K1).
    /// # Errors
    /// `FullDisk`, `Io`: the copy of before stands.
    pub fn write_second_copy(&self) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let (disk, root) = (shared.disk.as_ref(), &shared.layout.root);
        // One at a time: the turn of the two files is taken from what stands.
        let mut written = shared.copied.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (store_id, copy) = {
            let wal = shared.log.wal();
            let sequence = wal.last_sequence();
            if sequence <= *written {
                return Ok(false);
            }
            (wal.store_id(), SecondCopy { sequence, facts: shared.state().facts.clone() })
        };
        if copy.facts.is_empty() {
            self.remove_second_copy()?;
            *written = copy.sequence;
            return Ok(false);
        }
        let bytes = copy.encode(store_id)?;
        let newest = |name: &&[u8]| {
            let file = disk.open_file(root, name, Access::Read).ok()?;
            let mut header = [0; HEADER];
            read_full_at(disk, &file, &mut header, 0).ok()?;
            Some(Header::decode(store_id, &header)?.sequence)
        };
        let older = SLOTS.into_iter().min_by_key(|name| newest(name).unwrap_or(0)).unwrap_or(SLOTS[0]);
        let path = || String::from_utf8_lossy(older).into_owned();
        match disk.remove_file(root, older) {
            Err(error) if !is_missing(&error) => return Err(error).context("remove", path),
            _ => {}
        }
        let file = disk.create_file(root, older, 0o600).context("create", path)?;
        disk.write_at(&file, &bytes, 0).context("write", path)?;
        disk.sync(&file).context("sync", path)?;
        disk.sync(root).context("sync the name of", path)?;
        *written = copy.sequence;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::TagFact;
    use baleen_oci::{Digest, ImageId};

    #[test]
    fn a_copy_reads_back_and_each_changed_or_missing_byte_is_refused() {
        let mut facts = Facts::default();
        for number in 0..3 {
            let image = ImageId(Digest::sha256_of(&[number]));
            let fact = TagFact { name: format!("app:{number}"), image, set_at_seconds: 1 };
            facts.apply(u64::from(number) + 4, Record::TagSet(fact));
        }
        let copy = SecondCopy { sequence: 9, facts };
        let bytes = copy.encode([7; 16]).expect("encoded");
        let back = SecondCopy::decode([7; 16], &bytes).expect("whole");
        assert_eq!((back.sequence, &back.facts), (9, &copy.facts));
        assert!(SecondCopy::decode([8; 16], &bytes).is_none(), "another store's");
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(SecondCopy::decode([7; 16], &changed).is_none(), "byte {at}");
            assert!(SecondCopy::decode([7; 16], &bytes[..at]).is_none(), "cut at {at}");
        }
    }
}
