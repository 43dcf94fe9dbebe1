//! A reference: a field of four bytes that tells of a place in the program, in one of several forms.

/// How a field holds its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Distance from the end of the instruction, which is so many bytes after the field's start.
    Relative { to_end: u8 },
    /// Distance from the field to the target.
    FromHere,
    /// Distance from the target to the field.
    ToHere,
    /// Distance of the target from a base.
    FromBase { old: u64, new: u64 },
    /// The low half of the target itself.
    Absolute,
    /// A branch of A64: so many bits of words' distance, from this bit on.
    Branch { bits: u8, shift: u8 },
    /// The distance of an A64 ADR in bytes.
    Adr,
    /// The distance of an A64 ADRP in pages.
    Adrp,
    /// The low twelve bits of the target, scaled, in an A64 instruction that adds them to a page.
    Low { scale: u8 },
}

/// A reference that was found in the old program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Where its field is, in the bytes that were looked at.
    pub(crate) at: usize,
    pub(crate) form: Form,
    /// What it leads to, an address of the old program.
    pub(crate) target: u64,
    /// Length of the table's entries, if it goes on from the entry before; else 0.
    pub(crate) entry_bytes: u64,
}

impl Reference {
    pub(crate) fn new(at: usize, form: Form, target: u64) -> Self {
        Self { at, form, target, entry_bytes: 0 }
    }
}

impl Form {
    /// The field for a target, where `here` is the field's address and `old` its old value.
    pub(crate) fn put(self, old: u32, here: u64, target: u64) -> u32 {
        match self {
            Form::Relative { to_end } => target.wrapping_sub(here.wrapping_add(u64::from(to_end))) as u32,
            Form::FromHere => target.wrapping_sub(here) as u32,
            Form::ToHere => here.wrapping_sub(target) as u32,
            Form::FromBase { new, .. } => target.wrapping_sub(new) as u32,
            Form::Absolute => target as u32,
            Form::Branch { bits, shift } => {
                let mask = ((1u32 << bits) - 1) << shift;
                let distance = (target.wrapping_sub(here) >> 2) as u32;
                old & !mask | distance << shift & mask
            }
            Form::Adr => put_adr(old, target.wrapping_sub(here) as u32),
            Form::Adrp => put_adr(old, (target >> 12).wrapping_sub(here >> 12) as u32),
            Form::Low { scale } => {
                let mask = 0xfff << 10;
                old & !mask | ((target as u32 & 0xfff) >> scale) << 10 & mask
            }
        }
    }

    /// What a field leads to, or the page of that; `None` if the instruction is another than `old`, or that is not all of it.
    pub(crate) fn get(self, field: u32, old: u32, here: u64) -> Option<u64> {
        match self {
            Form::Relative { to_end } => {
                Some(here.wrapping_add(u64::from(to_end)).wrapping_add_signed(i64::from(field as i32)))
            }
            Form::FromHere => Some(here.wrapping_add_signed(i64::from(field as i32))),
            Form::ToHere => Some(here.wrapping_sub(u64::from(field))),
            Form::FromBase { new, .. } => Some(new.wrapping_add_signed(i64::from(field as i32))),
            Form::Absolute => Some(u64::from(field)),
            Form::Branch { bits, shift } => {
                let mask = ((1u32 << bits) - 1) << shift;
                let distance = ((field & mask) << (32 - bits - shift)) as i32 >> (32 - bits);
                ((field ^ old) & !mask == 0).then(|| here.wrapping_add_signed(i64::from(distance) * 4))
            }
            Form::Adr => same_adr(field, old).then(|| here.wrapping_add_signed(adr(field))),
            Form::Adrp => same_adr(field, old).then(|| (here >> 12).wrapping_add_signed(adr(field)).wrapping_shl(12)),
            Form::Low { scale } => {
                ((field ^ old) & !(0xfff << 10) == 0).then(|| u64::from((field >> 10 & 0xfff) << scale))
            }
        }
    }
}

const ADR_MASK: u32 = 3 << 29 | 0x7_ffff << 5;

fn put_adr(old: u32, distance: u32) -> u32 {
    old & !ADR_MASK | (distance & 3) << 29 | (distance >> 2 & 0x7_ffff) << 5
}

fn same_adr(field: u32, old: u32) -> bool {
    (field ^ old) & !ADR_MASK == 0
}

/// The distance in an ADR or ADRP: 21 bits with a sign.
pub(crate) fn adr(field: u32) -> i64 {
    let value = (field >> 5 & 0x7_ffff) << 2 | field >> 29 & 3;
    i64::from((value << 11) as i32 >> 11)
}
