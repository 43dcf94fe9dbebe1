//! References in A64 code (Arm ARM, C4): branches, ADR, and ADRP with the instructions that add the low bits of its target.

use super::elf::u32_at;
use super::reference::{Form, Reference, adr};

/// How many instructions after an ADRP the one that completes it is looked for.
const PAIRED_MAX: usize = 16;

/// Finds references in `code`, whose first byte is at `address`, a multiple of 4. What begins before `from` is not told.
pub(crate) fn references(code: &[u8], address: u64, from: usize, into: &mut Vec<Reference>) {
    // The page that a register holds, from an ADRP before.
    let mut pages: [Option<u64>; 32] = [None; 32];
    for at in (0..code.len() / 4).map(|number| number * 4) {
        let word = u32_at(code, at);
        let here = address.wrapping_add(at as u64);
        let mut push = |form, target| {
            if at >= from {
                into.push(Reference::new(at, form, target));
            }
        };
        let destination = (word & 31) as usize;
        if let Some((bits, shift)) = branch(word) {
            let form = Form::Branch { bits, shift };
            if let Some(target) = form.get(word, word, here) {
                push(form, target);
            }
        } else if word & 0x9f00_0000 == 0x9000_0000 {
            let page = (here >> 12).wrapping_add_signed(adr(word)).wrapping_shl(12);
            let low = partner(&code[at + 4..], destination);
            push(Form::Adrp, page.wrapping_add(low));
            pages[destination] = Some(page);
        } else if word & 0x9f00_0000 == 0x1000_0000 {
            push(Form::Adr, here.wrapping_add_signed(adr(word)));
            pages[destination] = None;
        } else if let Some((register, scale, low)) = low_part(word) {
            if let Some(page) = pages[register] {
                push(Form::Low { scale }, page.wrapping_add(low));
            }
            // A store writes no register.
            if word & 0x3bc0_0000 != 0x3900_0000 {
                pages[destination] = None;
            }
        } else {
            pages[destination] = None;
        }
    }
}

/// Bits and place of the distance in a branch or a load from beside the code.
fn branch(word: u32) -> Option<(u8, u8)> {
    if word & 0x7c00_0000 == 0x1400_0000 {
        Some((26, 0))
    } else if word & 0xff00_0010 == 0x5400_0000
        || word & 0x7e00_0000 == 0x3400_0000
        || word & 0x3b00_0000 == 0x1800_0000
    {
        Some((19, 5))
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Some((14, 5))
    } else {
        None
    }
}

/// Register, scale and value of an instruction that adds low bits to a page: ADD, or a load or store with an offset.
fn low_part(word: u32) -> Option<(usize, u8, u64)> {
    let register = (word >> 5 & 31) as usize;
    let immediate = u64::from(word >> 10 & 0xfff);
    if word & 0xffc0_0000 == 0x9100_0000 {
        return Some((register, 0, immediate));
    }
    if word & 0x3b00_0000 != 0x3900_0000 {
        return None;
    }
    let is_quad = word >> 26 & 1 == 1 && word >> 23 & 1 == 1 && word >> 30 == 0;
    let scale = if is_quad { 4 } else { (word >> 30) as u8 };
    Some((register, scale, immediate << scale))
}

/// The low bits that the instruction adds which completes an ADRP; 0 if there is none.
fn partner(code: &[u8], register: usize) -> u64 {
    for at in (0..(code.len() / 4).min(PAIRED_MAX)).map(|number| number * 4) {
        let word = u32_at(code, at);
        match low_part(word) {
            Some((found, _, low)) if found == register => return low,
            _ if word & 0x9f00_0000 == 0x9000_0000 && (word & 31) as usize == register => return 0,
            _ => {}
        }
    }
    0
}
