//! One file's payload on its way to the disk.
//!
//! F1  Writes end on 4 KiB boundaries until the file ends: a page that is written early in two halves is written twice.
//! F2  Pages of large files leave the cache early: by uncached writes, or where there are none by write-back and
//!     `drop_cache` on a ring of the last [`RING_FILES`] files.
//! F3  Small files are left to the kernel's own write-back until the layer is durable, then `release` drops them: written
//!     back one by one they cannot be merged, and 20,000 of 2.5 kB took five times as long on a disk with a queue.
//! F4  A file that a cut left is gone on with only as far as its state tells: cut to what was durable, and its last bytes,
//!     fewer than a group of the hash, read again.

use std::collections::VecDeque;
use std::io;

use baleen_store::recipe::{Content, Segment};
use baleen_store::{Disk, Handle, WriteBack, read_full_at};

use crate::content::{ContentHasher, ContentState, GROUP_BYTES};
use crate::state::Written;

/// Files whose pages are still on their way to the disk.
pub(super) const RING_FILES: usize = 128;
const PAGE_BYTES: u64 = 4096;
/// A file with less payload is small (F3).
pub(crate) const SMALL_FILE_BYTES: u64 = 64 << 10;

/// A file being written.
#[derive(Debug)]
pub(super) struct FileWriter {
    file: Handle,
    hasher: ContentHasher,
    /// Whether its pages leave the cache as they are written (F2, F3).
    uncached: bool,
    /// Payload still to come.
    left: u64,
    /// Offset of the first byte in `carry`.
    offset: u64,
    carry: Vec<u8>,
    segments: Option<SegmentCursor>,
}

#[derive(Debug)]
struct SegmentCursor {
    segments: Vec<Segment>,
    next: usize,
    left: u64,
}

impl FileWriter {
    /// A writer of `payload_bytes` into the new, empty `file`: to the parts `segments` of it, if it is sparse.
    pub(super) fn new(file: Handle, payload_bytes: u64, segments: Option<Vec<Segment>>) -> Self {
        let segments = segments.map(|segments| SegmentCursor { segments, next: 0, left: 0 });
        let uncached = payload_bytes >= SMALL_FILE_BYTES;
        let hasher = ContentHasher::default();
        Self { file, hasher, uncached, left: payload_bytes, offset: 0, carry: Vec::new(), segments }
    }

    pub(super) fn file(&self) -> &Handle {
        &self.file
    }

    /// What goes on from here after a cut; `inode` is the file's.
    pub(super) fn written(&self, inode: u64) -> Written {
        let stack = self.hasher.state().stack.clone();
        Written { inode, taken_bytes: self.hasher.taken_bytes(), carry: self.carry.clone(), stack }
    }

    /// A writer that goes on from `written` in `file`, whose payload is `payload_bytes` long (F4). `None` if there can be no
    /// such state of this file.
    pub(super) fn resume(
        disk: &dyn Disk,
        file: Handle,
        payload_bytes: u64,
        segments: Option<Vec<Segment>>,
        written: Written,
    ) -> io::Result<Option<Self>> {
        let Written { taken_bytes, carry, stack, .. } = written;
        let groups = taken_bytes.saturating_sub(1) / GROUP_BYTES;
        let Some(durable_bytes) = taken_bytes.checked_sub(carry.len() as u64) else { return Ok(None) };
        if taken_bytes > payload_bytes || stack.len() != groups.count_ones() as usize {
            return Ok(None);
        }
        let whole = [Segment { offset: 0, length: payload_bytes }];
        let parts = segments.as_deref().unwrap_or(&whole);
        let end = parts_of(parts, 0, durable_bytes).last().map_or(0, |part| part.offset + part.length);
        if disk.metadata(&file)?.size_bytes < end {
            return Ok(None);
        }
        disk.set_len(&file, end)?;
        let mut hasher = ContentHasher::resume(ContentState { groups, stack });
        let mut buffer = vec![0; GROUP_BYTES as usize];
        for part in parts_of(parts, groups * GROUP_BYTES, durable_bytes) {
            // At most a group, all parts together.
            let buffer = &mut buffer[..part.length as usize];
            if read_full_at(disk, &file, buffer, part.offset)? < buffer.len() {
                return Ok(None);
            }
            hasher.update(buffer);
        }
        hasher.update(&carry[(groups * GROUP_BYTES).saturating_sub(durable_bytes) as usize..]);
        let mut writer = Self::new(file, payload_bytes, None);
        writer.hasher = hasher;
        writer.left = payload_bytes - taken_bytes;
        writer.offset = durable_bytes;
        if let Some(segments) = segments {
            let mut cursor = SegmentCursor { segments, next: 0, left: 0 };
            let (mut rest, mut offset) = (taken_bytes, 0);
            while rest > 0 {
                let Some(segment) = cursor.segments.get(cursor.next).copied() else { return Ok(None) };
                let count = rest.min(segment.length);
                rest -= count;
                cursor.next += 1;
                cursor.left = segment.length - count;
                offset = segment.offset + count;
            }
            // What waits for its page never spans two segments, so it ends where the last one was left.
            writer.offset = offset.saturating_sub(carry.len() as u64);
            writer.segments = Some(cursor);
        }
        writer.carry = carry;
        Ok(Some(writer))
    }

    pub(super) fn take(&mut self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        if self.segments.is_none() {
            self.left = self.left.saturating_sub(bytes.len() as u64);
            let last = self.left == 0;
            return self.write(disk, bytes, last);
        }
        self.take_sparse(disk, bytes)
    }

    fn take_sparse(&mut self, disk: &dyn Disk, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(cursor) = &mut self.segments else { return Ok(()) };
            if cursor.left == 0 {
                // The parser has checked that the segments hold the payload exactly.
                let Some(segment) = cursor.segments.get(cursor.next).copied() else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                cursor.next += 1;
                cursor.left = segment.length;
                self.offset = segment.offset;
                continue;
            }
            let count = usize::try_from(cursor.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            cursor.left -= count as u64;
            let segment_ends = cursor.left == 0;
            let (part, rest) = bytes.split_at(count);
            self.write(disk, part, segment_ends)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes whole pages, or everything if nothing adjoins.
    fn write(&mut self, disk: &dyn Disk, mut bytes: &[u8], last: bool) -> io::Result<()> {
        if !self.carry.is_empty() {
            let end = self.offset + self.carry.len() as u64;
            let missing = (PAGE_BYTES - end % PAGE_BYTES) as usize;
            let count = bytes.len().min(missing);
            self.carry.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if count < missing && !last {
                return Ok(());
            }
            self.put(disk, &self.carry)?;
            self.offset += self.carry.len() as u64;
            self.carry.clear();
        }
        let whole = if last {
            bytes.len()
        } else {
            let end = (self.offset + bytes.len() as u64) / PAGE_BYTES * PAGE_BYTES;
            end.saturating_sub(self.offset) as usize
        };
        if whole > 0 {
            self.put(disk, &bytes[..whole])?;
            self.offset += whole as u64;
        }
        self.carry.extend_from_slice(&bytes[whole..]);
        Ok(())
    }

    fn put(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        if self.uncached {
            disk.write_uncached_at(&self.file, bytes, self.offset)
        } else {
            disk.write_at(&self.file, bytes, self.offset)
        }
    }

    /// Gives the file, what it holds, and where, if it is sparse.
    pub(super) fn finish(mut self, disk: &dyn Disk) -> io::Result<(Handle, Content, Option<Vec<Segment>>)> {
        if !self.carry.is_empty() {
            self.put(disk, &self.carry)?;
            self.carry.clear();
        }
        Ok((self.file, self.hasher.finish(), self.segments.map(|cursor| cursor.segments)))
    }
}

/// Where the payload from `start` to `end` lies in a file of these segments.
fn parts_of(segments: &[Segment], start: u64, end: u64) -> Vec<Segment> {
    let mut parts = Vec::new();
    let mut position = 0u64;
    for segment in segments {
        let (from, to) = (start.max(position), end.min(position + segment.length));
        if from < to {
            parts.push(Segment { offset: segment.offset + (from - position), length: to - from });
        }
        position += segment.length;
        if position >= end {
            break;
        }
    }
    parts
}

/// The last files written, where the disk has no uncached writes (F2).
#[derive(Debug, Default)]
pub(super) struct WriteBackRing(VecDeque<Handle>);

impl WriteBackRing {
    /// Starts the write-back of `file`, and drops from the cache what was written a while ago.
    pub(super) fn add(&mut self, disk: &dyn Disk, file: Handle, payload_bytes: u64) -> io::Result<()> {
        if disk.has_uncached_writes() || payload_bytes < SMALL_FILE_BYTES {
            return Ok(());
        }
        disk.write_back(&file, 0, 0, WriteBack::Start)?;
        self.0.push_back(file);
        while self.0.len() > RING_FILES {
            self.drop_oldest(disk)?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, disk: &dyn Disk) -> io::Result<()> {
        while !self.0.is_empty() {
            self.drop_oldest(disk)?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let Some(file) = self.0.pop_front() else { return Ok(()) };
        disk.write_back(&file, 0, 0, WriteBack::Wait)?;
        disk.drop_cache(&file, 0, 0)
    }
}
