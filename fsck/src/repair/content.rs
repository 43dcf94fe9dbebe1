//! The bytes of a damaged file from somewhere else: another inode with the same content, or its own with one bit turned
//! back.

use std::io;
use std::sync::Arc;

use baleen_store::recipe::{Content, Item, KEPT_NAME, Location, Recipe, Segment, TREE_NAME};
use baleen_store::{Access, Disk, Handle, Inspection, Metadata, StoredObject};

use crate::expected::FileContent;
use crate::layer;

/// The longest content in which one flipped bit is looked for: each try hashes all of it.
pub(super) const ONE_BIT_BYTES_MAX: u64 = 16 << 10;
const BUFFER_BYTES: usize = 256 << 10;

/// A file that was read and found to hold what is wanted.
pub(super) struct Donor {
    file: Handle,
    segments: Vec<Segment>,
    /// Where it lies, below the data root.
    pub(super) path: String,
}

/// Finds a file of any layer that holds `wanted`, in another inode than `damaged`.
pub(super) fn find_donor(inspection: &Inspection, wanted: &Content, damaged: Option<&Metadata>) -> Option<Donor> {
    let disk = inspection.disk();
    for fact in inspection.layers() {
        let object = StoredObject::Layer(fact.key);
        let opened = inspection.place(&object).and_then(|(dir, name)| disk.open_dir(&dir, &name));
        let Ok(folder) = opened else { continue };
        let Ok(recipe) = Recipe::open(Arc::clone(disk), &folder) else { continue };
        let mut files = 0;
        for item in recipe.items() {
            let Ok(item) = item else { break };
            let (location, content, segments) = match item {
                Item::File { path, content, segments, .. } => {
                    files += 1;
                    (recipe.location(files - 1, &path), content, segments)
                }
                Item::Kept { number, content } => (Location::Kept { number, rest: Vec::new() }, content, None),
                Item::Copied(copied) => {
                    let Some(content) = copied.content else { continue };
                    files += 1;
                    (recipe.location(files - 1, &copied.path), content, None)
                }
                _ => continue, // No payload of its own.
            };
            if content != *wanted {
                continue;
            }
            let path = path_of(&location);
            if let Some((file, segments)) = verified(disk.as_ref(), &folder, &path, &content, segments, damaged) {
                let path = format!("{}/{}", object.path(), crate::finding::shown(&path));
                return Some(Donor { file, segments, path });
            }
        }
    }
    None
}

/// Opens a candidate and reads all of it (R2).
fn verified(
    disk: &dyn Disk,
    folder: &Handle,
    path: &[u8],
    content: &Content,
    segments: Option<Vec<Segment>>,
    damaged: Option<&Metadata>,
) -> Option<(Handle, Vec<Segment>)> {
    let (dir, name) = super::tree::parent(disk, folder, path).ok()?;
    let file = disk.open_file(&dir, name, Access::Read).ok()?;
    let found = disk.metadata(&file).ok()?;
    if damaged.is_some_and(|damaged| (damaged.device, damaged.inode) == (found.device, found.inode)) {
        return None;
    }
    let whole = vec![Segment { offset: 0, length: content.size_bytes }];
    let segments = segments.unwrap_or(whole);
    let wanted = FileContent { size_bytes: found.size_bytes, content: *content, segments: Some(segments.clone()) };
    let read = layer::read_payload(disk, &file, &wanted, &mut vec![0; BUFFER_BYTES], &mut |_| false);
    matches!(read, Ok(read) if read == *content).then_some((file, segments))
}

/// If a file has the right payload, takes away what is beside it: bytes in holes and behind its end.
pub(super) fn trim(disk: &dyn Disk, file: &Handle, wanted: &FileContent) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let read = layer::read_payload(disk, file, wanted, &mut buffer, &mut |_| false);
    if !matches!(read, Ok(read) if read == wanted.content) {
        return Ok(false);
    }
    if disk.metadata(file)?.size_bytes != wanted.size_bytes {
        disk.set_len(file, wanted.size_bytes)?;
    }
    let mut end = 0;
    for part in wanted.segments.iter().flatten() {
        zero(disk, file, end, part.offset, &mut buffer)?;
        end = part.offset + part.length;
    }
    if wanted.segments.is_some() {
        zero(disk, file, end, wanted.size_bytes, &mut buffer)?;
    }
    Ok(true)
}

/// Writes what `donor` holds into `file`, where it is not so already.
pub(super) fn copy(disk: &dyn Disk, donor: &Donor, file: &Handle, wanted: &FileContent) -> io::Result<()> {
    if disk.metadata(file)?.size_bytes != wanted.size_bytes {
        disk.set_len(file, wanted.size_bytes)?;
    }
    let whole = [Segment { offset: 0, length: wanted.content.size_bytes }];
    let targets = wanted.segments.as_deref().unwrap_or(&whole);
    let mut from = donor.segments.iter().copied().filter(|part| part.length > 0);
    let mut source = from.next();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut end = 0;
    for target in targets {
        zero(disk, file, end, target.offset, &mut buffer)?;
        end = target.offset + target.length;
        let (mut offset, mut left) = (target.offset, target.length);
        while left > 0 {
            let Some(part) = &mut source else { return Err(io::ErrorKind::UnexpectedEof.into()) };
            let count = left.min(part.length).min(BUFFER_BYTES as u64) as usize;
            let bytes = &mut buffer[..count];
            if baleen_store::read_full_at(disk, &donor.file, bytes, part.offset)? != count {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_if_other(disk, file, bytes, offset)?;
            let count = count as u64;
            (offset, left) = (offset + count, left - count);
            (part.offset, part.length) = (part.offset + count, part.length - count);
            if part.length == 0 {
                source = from.next();
            }
        }
    }
    zero(disk, file, end, wanted.size_bytes, &mut buffer)
}

/// Writes zeros into a hole where something else stands.
fn zero(disk: &dyn Disk, file: &Handle, start: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut offset = start;
    while offset < end {
        let part = usize::try_from(end - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = disk.read_at(file, &mut buffer[..part], offset)?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            buffer[..count].fill(0);
            disk.write_at(file, &buffer[..count], offset)?;
        }
        offset += count as u64;
    }
    Ok(())
}

fn write_if_other(disk: &dyn Disk, file: &Handle, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut there = vec![0; bytes.len()];
    // What cannot be read is written over: that may be all that a bad block needs.
    match baleen_store::read_full_at(disk, file, &mut there, offset) {
        Ok(count) if count == bytes.len() && there == bytes => Ok(()),
        _ => disk.write_at(file, bytes, offset),
    }
}

/// Finds the bit that has to be turned for `bytes` to be what `is_right` says; gives its byte's place and right value.
pub(super) fn one_flipped_bit(bytes: &[u8], is_right: &dyn Fn(&[u8]) -> bool) -> Option<(usize, u8)> {
    if bytes.len() as u64 > ONE_BIT_BYTES_MAX {
        return None;
    }
    let mut tried = bytes.to_vec();
    for at in 0..tried.len() {
        for bit in 0..8 {
            tried[at] ^= 1 << bit;
            if is_right(&tried) {
                return Some((at, tried[at]));
            }
            tried[at] ^= 1 << bit;
        }
    }
    None
}

fn path_of(location: &Location) -> Vec<u8> {
    match location {
        Location::Tree(path) => [TREE_NAME, path].join(&b'/'),
        Location::Kept { number, rest } if rest.is_empty() => [KEPT_NAME, number.to_string().as_bytes()].join(&b'/'),
        Location::Kept { number, rest } => [KEPT_NAME, number.to_string().as_bytes(), rest].join(&b'/'),
    }
}
