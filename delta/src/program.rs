//! Programs: every reference of the old file that lies in a match is aimed anew, to where what it leads to is in the new one.
//!
//! Matches tell where code and data went, so they tell where references to them lead now; what is not covered follows its
//! neighbours, and what was seen once is remembered. Only the difference to the real field is coded.
//!
//! G1  A prediction depends on the old file, the matches, the segments of both files and the fields made so far: the encoder and the
//!     decoder have all of them, and both run this code.
//! G2  Memory is bounded by [`PREDICTOR_BYTES`], whatever the files say.

mod arm64;
mod elf;
mod reference;
mod x86;

use std::io;

use crate::bytes::{Fields, put_number};
use crate::error::{DeltaError, damaged};
use crate::patch::{Match, Predict, Residual};
use crate::source::ReadAt;
use elf::{Elf, LOADS_MAX, Load, Machine, Part, PartKind, u32_at};
use reference::{Form, Reference};

/// What a predictor takes in memory beside the matches: what it remembers, the marks, one chunk's references.
pub(crate) const PREDICTOR_BYTES: u64 = 6 << 20;

/// Targets that are remembered, in as many places.
const LEARNED: usize = 1 << 16;
/// Pages whose last error is remembered.
const PAGES: usize = 1 << 12;
/// How far before a chunk instructions are looked at, to find their beginnings.
const CONTEXT_BYTES: u64 = 128;

/// Why a predictor cannot be made.
pub(crate) enum ProgramError {
    Delta(DeltaError),
    Read(io::Error),
}

/// Predicts the references of one payload.
pub(crate) struct Predictor {
    old: Elf,
    new_loads: Vec<Load>,
    /// In the order of the old file.
    matches: Vec<Match>,
    learned: Vec<(u64, u64)>,
    /// For pages of two sizes: the page, and by how much the last reference to it was off.
    errors: [Vec<(u64, u64)>; 2],
    /// For each register of A64: the old page and the new one.
    pages: [(u64, u64); 32],
    /// The last entry of a table: where it was and what it led to, in the old program and in the new.
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    at: u64,
    old: u64,
    new: u64,
}

impl Predictor {
    /// For the encoder: if both files are programs for the same processor, what the decoder must know is written.
    pub(crate) fn encode(
        old: &dyn ReadAt,
        new: &dyn ReadAt,
        matches: &[Match],
        into: &mut Vec<u8>,
    ) -> io::Result<Option<Self>> {
        let (Some(old), Some(new)) = (Elf::read(old)?, Elf::read(new)?) else { return Ok(None) };
        if old.machine != new.machine {
            return Ok(None);
        }
        put_number(into, new.loads.len() as u64);
        for load in &new.loads {
            for number in [load.offset, load.address, load.file_bytes, load.memory_bytes - load.file_bytes] {
                put_number(into, number);
            }
        }
        Ok(Some(Self::new(old, new.loads, matches)))
    }

    /// For the decoder: reads what was written.
    pub(crate) fn decode(fields: &mut Fields<'_>, old: &dyn ReadAt, matches: &[Match]) -> Result<Self, ProgramError> {
        let mut loads = Vec::new();
        for _ in 0..fields.size(LOADS_MAX).map_err(ProgramError::Delta)? {
            let mut number = || fields.number().map_err(ProgramError::Delta);
            let (offset, address, file_bytes, more) = (number()?, number()?, number()?, number()?);
            let load = Load { offset, address, file_bytes, memory_bytes: file_bytes.saturating_add(more) };
            if !load.is_sane() {
                return Err(ProgramError::Delta(damaged("a segment is too large")));
            }
            loads.push(load);
        }
        let old = Elf::read(old).map_err(ProgramError::Read)?;
        let old = old.ok_or_else(|| ProgramError::Delta(damaged("a program is none")))?;
        Ok(Self::new(old, loads, matches))
    }

    fn new(old: Elf, new_loads: Vec<Load>, matches: &[Match]) -> Self {
        let mut matches = matches.to_vec();
        matches.sort_by_key(|found| (found.old, found.new));
        Self {
            old,
            new_loads,
            matches,
            learned: vec![(u64::MAX, 0); LEARNED],
            errors: [vec![(u64::MAX, 0); PAGES], vec![(u64::MAX, 0); PAGES]],
            pages: [(u64::MAX, 0); 32],
            running: None,
        }
    }

    /// The address of a byte of the old file.
    fn old_address(&self, offset: u64) -> Option<u64> {
        let inside = |load: &&Load| offset >= load.offset && offset - load.offset < load.file_bytes;
        self.old.loads.iter().find(inside).map(|load| load.address + (offset - load.offset))
    }

    fn new_address(&self, offset: u64) -> Option<u64> {
        let inside = |load: &&Load| offset >= load.offset && offset - load.offset < load.file_bytes;
        self.new_loads.iter().find(inside).map(|load| load.address + (offset - load.offset))
    }

    /// Whether an address belongs to the old program.
    fn is_old_address(&self, address: u64) -> bool {
        self.old.loads.iter().any(|load| address >= load.address && address - load.address <= load.memory_bytes)
    }

    /// Where an address of the old program is by the matches, `near` before all others.
    fn aligned(&self, target: u64, near: (u64, u64, u64)) -> (u64, bool) {
        let inside = |load: &Load| target >= load.address && target - load.address <= load.memory_bytes;
        let Some(number) = self.old.loads.iter().position(inside) else { return (target, false) };
        let load = self.old.loads[number];
        // What is only in memory follows the end of what is in the file.
        let of_end = |new: &Load| (new.address + new.file_bytes).wrapping_add(target - load.address - load.file_bytes);
        if target - load.address >= load.file_bytes {
            return (self.new_loads.get(number).map_or(target, of_end), false);
        }
        let offset = load.offset + (target - load.address);
        let (near_old, near_new, near_length) = near;
        let shifted = |old: u64, new: u64| self.new_address(new.wrapping_add(offset.wrapping_sub(old)));
        if offset >= near_old
            && offset - near_old < near_length
            && let Some(address) = shifted(near_old, near_new)
        {
            return (address, true);
        }
        let after = self.matches.partition_point(|found| found.old <= offset);
        let before = after.checked_sub(1).and_then(|before| self.matches.get(before));
        let covers = before.is_some_and(|found| offset - found.old < found.length);
        let next = self.matches.get(after);
        let follows = match (before, next) {
            (Some(before), Some(next)) if !covers && next.old - offset < offset - (before.old + before.length) => {
                Some(next)
            }
            (None, next) => next,
            (before, _) => before,
        };
        let address = follows.and_then(|found| shifted(found.old, found.new));
        (address.unwrap_or(target), covers)
    }

    fn predicted(&self, target: u64, near: (u64, u64, u64)) -> u64 {
        let (old, new) = self.learned[slot(target, LEARNED)];
        if old == target {
            return new;
        }
        let (address, is_covered) = self.aligned(target, near);
        for (errors, bits) in self.errors.iter().zip(PAGE_BITS) {
            let (page, error) = errors[slot(target >> bits, PAGES)];
            if page == target >> bits {
                return address.wrapping_add(error);
            }
            if is_covered {
                break;
            }
        }
        address
    }

    fn learn(&mut self, target: u64, real: u64, near: (u64, u64, u64)) {
        let (address, _) = self.aligned(target, near);
        self.learned[slot(target, LEARNED)] = (target, real);
        for (errors, bits) in self.errors.iter_mut().zip(PAGE_BITS) {
            errors[slot(target >> bits, PAGES)] = (target >> bits, real.wrapping_sub(address));
        }
    }

    /// The references in a part of the old file; `bytes` is that part, at `offset`.
    fn references(&self, file: &dyn ReadAt, part: Part, offset: u64, bytes: &[u8]) -> io::Result<Vec<Reference>> {
        let mut found = Vec::new();
        let Some(address) = self.old_address(offset) else {
            // Symbols are not loaded, and need no address of their own.
            if part.kind == PartKind::Symbols {
                symbols(part, offset, bytes, &mut found);
            }
            return Ok(found);
        };
        match part.kind {
            PartKind::Code => {
                let before = CONTEXT_BYTES.min(offset - part.offset);
                let mut code = vec![0; before as usize];
                file.read_exact_at(&mut code, offset - before)?;
                code.extend_from_slice(bytes);
                let address = address.wrapping_sub(before);
                match self.old.machine {
                    Machine::X86 => x86::references(&code, address, before as usize, &mut found),
                    Machine::Arm64 => {
                        let odd = (address.wrapping_neg() & 3) as usize;
                        let code = code.get(odd..).unwrap_or_default();
                        let from = (before as usize).saturating_sub(odd);
                        arm64::references(code, address.wrapping_add(odd as u64), from, &mut found);
                        for reference in &mut found {
                            reference.at += odd;
                        }
                    }
                }
                found.retain(|reference| reference.at >= before as usize);
                for reference in &mut found {
                    reference.at -= before as usize;
                }
            }
            PartKind::Symbols => symbols(part, offset, bytes, &mut found),
            PartKind::Relocations => {
                for (entry, at) in entries(part, offset, bytes, 24) {
                    let kind = u32_at(entry, 8);
                    // Sorted by place: each goes on from the one before.
                    let target = u64::from(u32_at(entry, 0));
                    found.push(Reference { at, form: Form::Absolute, target, entry_bytes: 24 });
                    // R_X86_64_RELATIVE, R_AARCH64_RELATIVE.
                    if kind == 8 || kind == 1027 {
                        found.push(Reference::new(at + 16, Form::Absolute, u64::from(u32_at(entry, 16))));
                    }
                }
            }
            PartKind::UnwindTable => {
                let table = Part { offset: part.offset + 12, size_bytes: part.size_bytes.saturating_sub(12), ..part };
                let old = address.wrapping_sub(offset - part.offset);
                for (entry, at) in entries(table, offset, bytes, 8) {
                    for field in [0, 4] {
                        let target = old.wrapping_add_signed(i64::from(u32_at(entry, field) as i32));
                        // The new base is known once the chunk is placed.
                        // Records are in the order of what they describe, mostly.
                        let entry_bytes = if field == 4 { 8 } else { 0 };
                        found.push(Reference {
                            at: at + field,
                            form: Form::FromBase { old, new: 0 },
                            target,
                            entry_bytes,
                        });
                    }
                }
            }
            PartKind::Unwind => self.unwind(file, part, offset, address, bytes, &mut found)?,
        }
        found.retain(|reference| reference.at + 4 <= bytes.len() && self.is_old_address(reference.target));
        Ok(found)
    }

    /// The CIE pointers and beginnings of functions in unwind records (LSB, Exception Frames; pointers relative to themselves).
    fn unwind(
        &self,
        file: &dyn ReadAt,
        part: Part,
        offset: u64,
        address: u64,
        bytes: &[u8],
        found: &mut Vec<Reference>,
    ) -> io::Result<()> {
        let Some(mark) = self.old.marks.partition_point(|mark| *mark <= offset).checked_sub(1) else { return Ok(()) };
        let mut at = self.old.marks[mark];
        let end = (offset + bytes.len() as u64).min(part.offset + part.size_bytes);
        // Marks are thousands of bytes apart, a record may be longer.
        let mut before = vec![0; offset.saturating_sub(at).min(64 << 10) as usize];
        file.read_exact_at(&mut before, at)?;
        let from = at;
        let word = |at: u64| {
            if at >= offset { u32_at(bytes, (at - offset) as usize) } else { u32_at(&before, (at - from) as usize) }
        };
        while end.saturating_sub(at) >= 12 {
            let length = u64::from(word(at));
            if length == 0 || length >= 0xffff_fff0 {
                break;
            }
            if at >= offset {
                let here = |field: u64| address.wrapping_add(at + field - offset);
                let inside = (at - offset) as usize;
                let cie = word(at + 4);
                if cie != 0 {
                    let target = here(4).wrapping_sub(u64::from(cie));
                    found.push(Reference::new(inside + 4, Form::ToHere, target));
                    let target = here(8).wrapping_add_signed(i64::from(word(at + 8) as i32));
                    found.push(Reference::new(inside + 8, Form::FromHere, target));
                }
            }
            at += 4 + length;
        }
        Ok(())
    }

    /// Makes the real bytes of a piece of one part.
    fn part(
        &mut self,
        references: Vec<Reference>,
        (old_at, new_at): (u64, u64),
        near: (u64, u64, u64),
        buffer: &mut [u8],
        residual: &mut dyn Residual,
    ) -> Result<(), DeltaError> {
        let mut done = 0;
        for reference in references {
            let at = reference.at;
            if at < done || at + 4 > buffer.len() {
                continue;
            }
            residual.bytes(new_at + done as u64, &mut buffer[done..at])?;
            let old = u32_at(buffer, at);
            let here = self.new_address(new_at + at as u64).unwrap_or_default();
            let form = match reference.form {
                Form::FromBase { old, .. } => {
                    let (new, _) = self.aligned(old, near);
                    Form::FromBase { old, new }
                }
                form => form,
            };
            let target = reference.target;
            let guess = match self.running {
                Some(running)
                    if reference.entry_bytes != 0 && old_at + at as u64 == running.at + reference.entry_bytes =>
                {
                    running.new.wrapping_add(target.wrapping_sub(running.old))
                }
                _ => self.predicted(target, near),
            };
            let field = residual.reference(new_at + at as u64, form.put(old, here, guess))?;
            buffer[at..at + 4].copy_from_slice(&field.to_le_bytes());
            done = at + 4;
            self.note(form, field, old, here, target, near);
            if reference.entry_bytes != 0
                && let Some(new) = form.get(field, old, here)
            {
                self.running = Some(Running { at: old_at + at as u64, old: target, new });
            }
        }
        residual.bytes(new_at + done as u64, &mut buffer[done..])
    }

    /// Remembers where a reference leads in truth.
    fn note(&mut self, form: Form, field: u32, old: u32, here: u64, target: u64, near: (u64, u64, u64)) {
        let Some(real) = form.get(field, old, here) else { return };
        match form {
            Form::Adrp => {
                self.pages[(field & 31) as usize] = (target >> 12, real);
            }
            Form::Low { .. } => {
                let (old_page, new_page) = self.pages[(field >> 5 & 31) as usize];
                if old_page == target >> 12 {
                    self.learn(target, new_page.wrapping_add(real), near);
                }
            }
            _ => self.learn(target, real, near),
        }
    }
}

/// Sizes of pages whose errors are remembered, as powers of two.
const PAGE_BITS: [u32; 2] = [8, 14];

fn slot(value: u64, slots: usize) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % slots
}

/// Whole entries of a table within `bytes`, which are at `offset` of the file, and where each begins.
fn entries(part: Part, offset: u64, bytes: &[u8], length: usize) -> impl Iterator<Item = (&[u8], usize)> {
    let skip = if offset < part.offset {
        (part.offset - offset) as usize
    } else {
        (length - ((offset - part.offset) % length as u64) as usize) % length
    };
    let rest = bytes.get(skip..).unwrap_or_default();
    rest.chunks_exact(length).enumerate().map(move |(number, entry)| (entry, skip + number * length))
}

fn symbols(part: Part, offset: u64, bytes: &[u8], found: &mut Vec<Reference>) {
    for (entry, at) in entries(part, offset, bytes, 24) {
        let value = u64::from(u32_at(entry, 8));
        // Defined ones only.
        if value != 0 && elf::u16_at(entry, 6) != 0 {
            found.push(Reference::new(at + 8, Form::Absolute, value));
        }
    }
}

impl Predict for Predictor {
    fn chunk(
        &mut self,
        old: &dyn ReadAt,
        old_at: u64,
        new_at: u64,
        buffer: &mut [u8],
        residual: &mut dyn Residual,
        near: (u64, u64, u64),
    ) -> Result<(), DeltaError> {
        let end = old_at + buffer.len() as u64;
        let mut done = 0;
        let first = self.old.parts.partition_point(|part| part.offset + part.size_bytes <= old_at);
        let mut number = first;
        while let Some(part) = self.old.parts.get(number).copied().filter(|part| part.offset < end) {
            number += 1;
            let from = (part.offset.max(old_at) - old_at) as usize;
            let to = ((part.offset + part.size_bytes).min(end) - old_at) as usize;
            residual.bytes(new_at + done as u64, &mut buffer[done..from])?;
            let offset = old_at + from as u64;
            let references = self.references(old, part, offset, &buffer[from..to]).map_err(DeltaError::Read)?;
            self.part(references, (offset, new_at + from as u64), near, &mut buffer[from..to], residual)?;
            done = to;
        }
        residual.bytes(new_at + done as u64, &mut buffer[done..])
    }
}
