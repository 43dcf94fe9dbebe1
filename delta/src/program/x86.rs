//! References in x86-64 code: instructions are told apart only as far as their lengths need it (Intel SDM, volume 2, appendix A).

use super::elf::u32_at;
use super::reference::{Form, Reference};

/// Longest instruction.
pub(crate) const INSTRUCTION_BYTES_MAX: usize = 15;

/// What the end of an instruction looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Immediate {
    None,
    /// One byte.
    Byte,
    /// Four, or two with an operand-size prefix.
    Word,
    /// A fixed number.
    Bytes(usize),
}

/// An instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    length: usize,
    /// Where it has a displacement of four bytes from its end, if it has.
    relative: Option<usize>,
}

/// Finds references in `code`, whose first byte is at `address`. What begins before `from` is not told.
pub(crate) fn references(code: &[u8], address: u64, from: usize, into: &mut Vec<Reference>) {
    let mut at = 0;
    while at < code.len() {
        let Some(instruction) = decode(&code[at..]) else {
            at += 1;
            continue;
        };
        if let Some(field) = instruction.relative
            && at + field >= from
        {
            let displacement = u32_at(code, at + field) as i32;
            let end = address.wrapping_add((at + instruction.length) as u64);
            let target = end.wrapping_add_signed(i64::from(displacement));
            let form = Form::Relative { to_end: (instruction.length - field) as u8 };
            into.push(Reference::new(at + field, form, target));
        }
        at += instruction.length;
    }
}

fn decode(code: &[u8]) -> Option<Instruction> {
    let mut at = 0;
    let mut short_operand = false;
    while let Some(0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) = code.get(at) {
        short_operand |= code[at] == 0x66;
        at += 1;
        if at >= INSTRUCTION_BYTES_MAX {
            return None;
        }
    }
    let mut wide = false;
    if let Some(rex @ 0x40..=0x4f) = code.get(at) {
        wide = rex & 8 != 0;
        at += 1;
    }
    let opcode = *code.get(at)?;
    at += 1;
    let (has_modrm, immediate) = match opcode {
        0x0f => {
            let second = *code.get(at)?;
            at += 1;
            match second {
                0x38 => {
                    at += 1;
                    (true, Immediate::None)
                }
                0x3a => {
                    at += 1;
                    (true, Immediate::Byte)
                }
                0x80..=0x8f => return relative(code, at),
                _ => two_byte(second),
            }
        }
        0xc5 => {
            let second = *code.get(at + 1)?;
            at += 2;
            two_byte(second)
        }
        0xc4 => {
            let (map, second) = (*code.get(at)? & 0x1f, *code.get(at + 2)?);
            at += 3;
            of_map(map, second)?
        }
        0x62 => {
            let (map, second) = (*code.get(at)? & 7, *code.get(at + 3)?);
            at += 4;
            of_map(map, second)?
        }
        0xe8 | 0xe9 => return relative(code, at),
        0xb8..=0xbf if wide => (false, Immediate::Bytes(8)),
        0xf6 | 0xf7 => {
            let is_test = *code.get(at)? >> 3 & 7 < 2;
            let immediate = if opcode == 0xf6 { Immediate::Byte } else { Immediate::Word };
            (true, if is_test { immediate } else { Immediate::None })
        }
        _ => one_byte(opcode)?,
    };
    let mut relative = None;
    if has_modrm {
        let modrm = *code.get(at)?;
        at += 1;
        let (mode, register) = (modrm >> 6, modrm & 7);
        if mode != 3 {
            let mut displacement = [0, 1, 4, 0][usize::from(mode)];
            if register == 4 {
                let base = *code.get(at)? & 7;
                at += 1;
                if mode == 0 && base == 5 {
                    displacement = 4;
                }
            } else if mode == 0 && register == 5 {
                displacement = 4;
                relative = Some(at);
            }
            at += displacement;
        }
    }
    at += match immediate {
        Immediate::None => 0,
        Immediate::Byte => 1,
        Immediate::Word if short_operand => 2,
        Immediate::Word => 4,
        Immediate::Bytes(count) => count,
    };
    (at <= code.len() && at <= INSTRUCTION_BYTES_MAX).then_some(Instruction { length: at, relative })
}

fn relative(code: &[u8], at: usize) -> Option<Instruction> {
    (at + 4 <= code.len()).then_some(Instruction { length: at + 4, relative: Some(at) })
}

fn of_map(map: u8, opcode: u8) -> Option<(bool, Immediate)> {
    match map {
        1 => Some(two_byte(opcode)),
        2 | 5 | 6 => Some((true, Immediate::None)),
        3 => Some((true, Immediate::Byte)),
        _ => None,
    }
}

/// Opcodes after 0F: whether they have a ModRM byte, and what follows.
fn two_byte(opcode: u8) -> (bool, Immediate) {
    match opcode {
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf => {
            (false, Immediate::None)
        }
        0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => (true, Immediate::Byte),
        _ => (true, Immediate::None),
    }
}

fn one_byte(opcode: u8) -> Option<(bool, Immediate)> {
    Some(match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => (true, Immediate::None),
            4 => (false, Immediate::Byte),
            5 => (false, Immediate::Word),
            _ => return None,
        },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => (true, Immediate::None),
        0x68 | 0xa9 | 0xb8..=0xbf => (false, Immediate::Word),
        0x69 | 0x81 | 0xc7 => (true, Immediate::Word),
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe0..=0xe7 | 0xeb => (false, Immediate::Byte),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => (true, Immediate::Byte),
        0xa0..=0xa3 => (false, Immediate::Bytes(8)),
        0xc2 | 0xca => (false, Immediate::Bytes(2)),
        0xc8 => (false, Immediate::Bytes(3)),
        0x50..=0x5f
        | 0x6c..=0x6f
        | 0x90..=0x99
        | 0x9b..=0x9f
        | 0xa4..=0xa7
        | 0xaa..=0xaf
        | 0xc3
        | 0xc9
        | 0xcb
        | 0xcc
        | 0xcf
        | 0xd7
        | 0xec..=0xef
        | 0xf1
        | 0xf4
        | 0xf5
        | 0xf8..=0xfd => (false, Immediate::None),
        _ => return None,
    })
}
