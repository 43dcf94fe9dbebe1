//! The parts of an ELF file that hold references (System V ABI, ELF-64). Reads any bytes; what it does not understand it leaves out.
//!
//! L1  At most [`SECTIONS_MAX`] sections, [`LOADS_MAX`] segments and [`MARKS_MAX`] marks are kept, whatever the file says.
//! L2  It never fails on what a file says, only on reading it: a file that makes no sense has no parts.

use std::io;

use crate::source::ReadAt;

/// Most sections that are looked at.
const SECTIONS_MAX: u64 = 256;
/// Most loadable segments.
pub(crate) const LOADS_MAX: usize = 16;
/// Most places in unwind records that are remembered.
const MARKS_MAX: usize = 1 << 16;
/// Distance between them, at least.
const MARK_BYTES: u64 = 4 << 10;

/// A processor whose references are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    X86,
    Arm64,
}

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_bytes: u64,
    pub(crate) memory_bytes: u64,
}

/// What a part of the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    Code,
    Relocations,
    Symbols,
    Unwind,
    UnwindTable,
}

/// A part that holds references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) kind: PartKind,
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elf {
    pub(crate) machine: Machine,
    pub(crate) loads: Vec<Load>,
    /// In the order of their offsets, none reaching into the next.
    pub(crate) parts: Vec<Part>,
    /// Where unwind records begin: some of them, in order.
    pub(crate) marks: Vec<u64>,
}

impl Elf {
    /// Reads a file. `None` if it is not one whose references are known.
    pub(crate) fn read(file: &dyn ReadAt) -> io::Result<Option<Self>> {
        let size_bytes = file.size_bytes();
        let mut head = [0; 64];
        if size_bytes < 64 {
            return Ok(None);
        }
        file.read_exact_at(&mut head, 0)?;
        // 64 bits, little-endian, current version.
        if head[..7] != *b"\x7fELF\x02\x01\x01" {
            return Ok(None);
        }
        let machine = match u16_at(&head, 18) {
            62 => Machine::X86,
            183 => Machine::Arm64,
            _ => return Ok(None),
        };
        let mut elf = Self { machine, loads: Vec::new(), parts: Vec::new(), marks: Vec::new() };
        let inside = |offset: u64, length: u64| offset.checked_add(length).is_some_and(|end| end <= size_bytes);
        let (segments, segment_count) = (u64_at(&head, 32), u64::from(u16_at(&head, 56)).min(64));
        if u16_at(&head, 54) == 56 && inside(segments, segment_count * 56) {
            for number in 0..segment_count {
                let mut entry = [0; 56];
                file.read_exact_at(&mut entry, segments + number * 56)?;
                let load = Load {
                    offset: u64_at(&entry, 8),
                    address: u64_at(&entry, 16),
                    file_bytes: u64_at(&entry, 32),
                    memory_bytes: u64_at(&entry, 40),
                };
                if u32_at(&entry, 0) == 1 && load.is_sane() && elf.loads.len() < LOADS_MAX {
                    elf.loads.push(load);
                }
            }
        }
        let (sections, section_count) = (u64_at(&head, 40), u64::from(u16_at(&head, 60)).min(SECTIONS_MAX));
        if u16_at(&head, 58) == 64 && inside(sections, section_count * 64) {
            elf.read_sections(file, sections, section_count, u64::from(u16_at(&head, 62)))?;
        }
        elf.parts.sort_by_key(|part| part.offset);
        let mut end = 0;
        elf.parts.retain(|part| {
            let keep = part.offset >= end && inside(part.offset, part.size_bytes);
            if keep {
                end = part.offset + part.size_bytes;
            }
            keep
        });
        if let Some(unwind) = elf.parts.iter().find(|part| part.kind == PartKind::Unwind).copied() {
            elf.marks = marks(file, unwind)?;
        }
        Ok(Some(elf))
    }

    fn read_sections(&mut self, file: &dyn ReadAt, sections: u64, count: u64, names: u64) -> io::Result<()> {
        let mut names_entry = [0; 64];
        if names < count {
            file.read_exact_at(&mut names_entry, sections + names * 64)?;
        }
        let (names_offset, names_bytes) = (u64_at(&names_entry, 24), u64_at(&names_entry, 32));
        for number in 0..count {
            let mut entry = [0; 64];
            file.read_exact_at(&mut entry, sections + number * 64)?;
            let (kind, flags) = (u32_at(&entry, 4), u64_at(&entry, 8));
            let (offset, size_bytes) = (u64_at(&entry, 24), u64_at(&entry, 32));
            let is_allocated = flags & 2 != 0;
            let found = match kind {
                1 if flags & 4 != 0 => Some(PartKind::Code),
                2 | 11 => Some(PartKind::Symbols),
                4 if is_allocated => Some(PartKind::Relocations),
                // Unwind data are ordinary bytes, or a type of their own on x86-64: their names tell.
                1 | 0x7000_0001 if is_allocated => {
                    let at = u64::from(u32_at(&entry, 0));
                    let mut name = [0; 14];
                    if at < names_bytes && names_bytes - at >= 14 && file.size_bytes() >= 14 {
                        let at = names_offset.saturating_add(at).min(file.size_bytes() - 14);
                        file.read_exact_at(&mut name, at)?;
                    }
                    match &name {
                        b".eh_frame_hdr\0" => Some(PartKind::UnwindTable),
                        name if name.starts_with(b".eh_frame\0") => Some(PartKind::Unwind),
                        _ => None,
                    }
                }
                _ => None,
            };
            if let Some(kind) = found
                && size_bytes > 0
            {
                self.parts.push(Part { kind, offset, size_bytes });
            }
        }
        Ok(())
    }
}

impl Load {
    /// Whether no sum of its numbers overflows.
    pub(crate) fn is_sane(&self) -> bool {
        let most = 1 << 48;
        self.offset < most && self.address < most && self.file_bytes <= self.memory_bytes && self.memory_bytes < most
    }
}

/// Goes through unwind records once, and remembers where some of them begin.
fn marks(file: &dyn ReadAt, unwind: Part) -> io::Result<Vec<u64>> {
    let mut marks = Vec::new();
    let end = unwind.offset + unwind.size_bytes;
    let mut at = unwind.offset;
    let mut buffer = vec![0; 32 << 10];
    let (mut from, mut have) = (at, 0);
    while end - at >= 4 && marks.len() < MARKS_MAX {
        if marks.last().is_none_or(|last| at - last >= MARK_BYTES) {
            marks.push(at);
        }
        if at < from || at + 4 > from + have {
            (from, have) = (at, (end - at).min(buffer.len() as u64));
            file.read_exact_at(&mut buffer[..have as usize], from)?;
        }
        let length = u64::from(u32_at(&buffer, (at - from) as usize));
        // The end, a record of the 64-bit form, or none at all.
        if length == 0 || length >= 0xffff_fff0 || length > end - at - 4 {
            break;
        }
        at += 4 + length;
    }
    Ok(marks)
}

/// Two bytes at a place that must exist.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |found| u16::from_le_bytes([found[0], found[1]]))
}

/// Four bytes; 0 past the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |found| u32::from_le_bytes([found[0], found[1], found[2], found[3]]))
}

/// Eight bytes; 0 past the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
