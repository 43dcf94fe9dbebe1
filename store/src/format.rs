//! `FORMAT`: which format a store has, readable by any build. Bytes: `docs/formats/store.md`.

use crate::disk::{Access, Disk, Handle, read_file};
use crate::error::{IoContext, StoreError};
use crate::wal::StoreId;

/// The newest format version that this build reads, and the one that it writes.
pub(crate) const VERSION: u32 = 1;
/// Incompatible features that this build knows: a store with any other is refused.
const INCOMPATIBLE_KNOWN: u64 = 0;
/// Features that a build must know before it writes.
const READ_ONLY_COMPATIBLE_KNOWN: u64 = 0;

const MAGIC: [u8; 8] = *b"BALEENST";
const CHECKED: usize = 64;
const LENGTH: usize = 96;
const NAME: &[u8] = b"FORMAT";
const NEW: &[u8] = b"FORMAT.new";

/// Reads `FORMAT`; `None` if there is none.
///
/// # Errors
/// `NewerFormat` by name for a store of a newer build; `Damaged`, `Io`.
pub(crate) fn read(disk: &dyn Disk, root: &Handle) -> Result<Option<StoreId>, StoreError> {
    let file = match disk.open_file(root, NAME, Access::Read) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error).context("open", || "FORMAT".to_owned()),
    };
    let bytes = read_file(disk, &file, 4096).context("read", || "FORMAT".to_owned())?;
    decode(&bytes).map(Some)
}

/// Writes `FORMAT`: the last act of creating a store.
pub(crate) fn write(disk: &dyn Disk, root: &Handle, store_id: StoreId) -> Result<(), StoreError> {
    let path = || "FORMAT".to_owned();
    match disk.remove_file(root, NEW) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error).context("remove", path),
        _ => {}
    }
    let file = disk.create_file(root, NEW, 0o600).context("create", path)?;
    disk.write_at(&file, &encode(store_id), 0).context("write", path)?;
    disk.sync(&file).context("sync", path)?;
    disk.rename(root, NEW, root, NAME).context("rename", path)?;
    disk.sync(root).context("sync the name of", path)
}

fn encode(store_id: StoreId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&0u64.to_le_bytes()); // compatible features
    bytes.extend_from_slice(&0u64.to_le_bytes()); // read-only compatible features
    bytes.extend_from_slice(&0u64.to_le_bytes()); // incompatible features
    bytes.extend_from_slice(&store_id);
    bytes.resize(CHECKED, 0);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// Decodes `FORMAT`. The version is looked at before the checksum: a newer format may place that elsewhere.
pub(crate) fn decode(bytes: &[u8]) -> Result<StoreId, StoreError> {
    let damaged = || StoreError::Damaged { what: "FORMAT is not valid".to_owned() };
    let number = |offset: usize| {
        bytes
            .get(offset..offset + 8)
            .and_then(|field| field.try_into().ok())
            .map(u64::from_le_bytes)
            .ok_or_else(damaged)
    };
    if bytes.get(..8).ok_or_else(damaged)? != MAGIC {
        return Err(damaged());
    }
    let version = number(8)? as u32;
    if version > VERSION {
        // One flipped bit must not make a store look newer: the checksum tells, since a newer one does not have ours.
        let mut older = bytes.get(..CHECKED).ok_or_else(damaged).map(<[u8]>::to_vec).unwrap_or_default();
        if let Some(field) = older.get_mut(8..12) {
            field.copy_from_slice(&VERSION.to_le_bytes());
            if bytes.get(CHECKED..) == Some(&blake3::hash(&older).as_bytes()[..]) {
                return Err(damaged());
            }
        }
        return Err(StoreError::NewerFormat { found: format!("version {version}"), known: VERSION });
    }
    let checked = bytes.get(..CHECKED).ok_or_else(damaged)?;
    if version == 0 || bytes.get(CHECKED..) != Some(&blake3::hash(checked).as_bytes()[..]) {
        return Err(damaged());
    }
    let unknown = (number(24)? & !READ_ONLY_COMPATIBLE_KNOWN) | (number(32)? & !INCOMPATIBLE_KNOWN);
    if unknown != 0 {
        let found = format!("version {version} with the unknown features {unknown:#x}");
        return Err(StoreError::NewerFormat { found, known: VERSION });
    }
    bytes[40..56].try_into().map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_reads_back_and_each_changed_byte_is_refused() {
        let id = *b"0123456789abcdef";
        let bytes = encode(id);
        assert_eq!(bytes.len(), LENGTH);
        assert_eq!(decode(&bytes).expect("valid"), id);
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x40;
            assert!(decode(&changed).is_err(), "byte {index}");
            assert!(decode(&bytes[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn a_newer_version_is_named_whatever_follows_it() {
        let mut bytes = encode([7; 16]);
        bytes[8] = 9;
        bytes.truncate(16);
        assert!(matches!(decode(&bytes), Err(StoreError::NewerFormat { found, .. }) if found == "version 9"));
    }
}
