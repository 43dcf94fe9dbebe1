//! Small programs, built by hand: an ELF file with code, unwind records, relocations and symbols.
#![allow(unreachable_pub, reason = "shared by the programs of several crates")]

/// x86-64 or AArch64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86,
    Arm64,
}

const BASE: u64 = 0x1_0000;

/// A program of as many functions, each with calls and loads, preceded by `pad` bytes of something else: so that a larger pad moves
/// all of them and all that refers to them.
pub fn program(machine: Machine, functions: usize, pad: usize) -> Vec<u8> {
    let function_bytes = 64;
    let (hdr_at, frame_at, rela_at) = (0x200usize, 0x300 + 8 * functions, 0x400 + 48 * functions);
    let sym_at = rela_at + 24 * functions;
    let data_at = sym_at + 24 * functions + 16;
    let text_at = (data_at + 16 * functions + pad).next_multiple_of(16);
    let names = b"\0.text\0.eh_frame\0.eh_frame_hdr\0.rela.dyn\0.dynsym\0.shstrtab\0.....................";
    let names_at = text_at + function_bytes * functions;
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut file = vec![0u8; sections_at + 7 * 64];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let address = |at: usize| BASE + at as u64;
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &3u16.to_le_bytes());
    put(&mut file, 18, &(if machine == Machine::X86 { 62u16 } else { 183 }).to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 40, &(sections_at as u64).to_le_bytes());
    for (at, value) in [(54, 56u16), (56, 1), (58, 64), (60, 7), (62, 6)] {
        put(&mut file, at, &value.to_le_bytes());
    }
    let whole = file.len() as u64;
    for (at, value) in [(64, 1 | 5u64 << 32), (72, 0), (80, BASE), (96, whole), (104, whole + 4096)] {
        put(&mut file, at, &value.to_le_bytes());
    }
    put(&mut file, hdr_at, &[1, 0x1b, 3, 0x3b]);
    // One record for all, then one a function.
    put(&mut file, frame_at, &[12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    for number in 0..functions {
        let text = text_at + number * function_bytes;
        let (record, entry) = (frame_at + 16 + 20 * number, hdr_at + 12 + 8 * number);
        let relative = |to: u64, from: u64| (to.wrapping_sub(from) as u32).to_le_bytes();
        put(&mut file, record, &16u32.to_le_bytes());
        put(&mut file, record + 4, &((record + 4 - frame_at) as u32).to_le_bytes());
        put(&mut file, record + 8, &relative(address(text), address(record + 8)));
        put(&mut file, record + 12, &(function_bytes as u32).to_le_bytes());
        put(&mut file, entry, &relative(address(text), address(hdr_at)));
        put(&mut file, entry + 4, &relative(address(record), address(hdr_at)));
        let relocation = rela_at + 24 * number;
        put(&mut file, relocation, &address(data_at + 16 * number).to_le_bytes());
        put(&mut file, relocation + 8, &(if machine == Machine::X86 { 8u64 } else { 1027 }).to_le_bytes());
        put(&mut file, relocation + 16, &address(text).to_le_bytes());
        let symbol = sym_at + 24 * number;
        put(&mut file, symbol, &[number as u8, 0, 0, 0, 0x12, 0, 1, 0]);
        put(&mut file, symbol + 8, &address(text).to_le_bytes());
        let code = function(machine, number, functions, address(text), address(text_at), address(data_at));
        put(&mut file, text, &code);
    }
    put(&mut file, names_at, names);
    let sections = [
        (1u32, 1u32, 6u64, text_at, function_bytes * functions),
        (7, 1, 2, frame_at, 16 + 20 * functions),
        (17, 1, 2, hdr_at, 12 + 8 * functions),
        (31, 4, 2, rela_at, 24 * functions),
        (41, 11, 2, sym_at, 24 * functions),
        (49, 3, 0, names_at, names.len()),
    ];
    // The first is empty; names are the sixth.
    for (number, (name, kind, flags, offset, size)) in sections.into_iter().enumerate() {
        let at = sections_at + 64 * (number + 1);
        put(&mut file, at, &name.to_le_bytes());
        put(&mut file, at + 4, &kind.to_le_bytes());
        put(&mut file, at + 8, &flags.to_le_bytes());
        put(&mut file, at + 24, &(offset as u64).to_le_bytes());
        put(&mut file, at + 32, &(size as u64).to_le_bytes());
    }
    file
}

fn function(machine: Machine, number: usize, functions: usize, here: u64, text: u64, data: u64) -> Vec<u8> {
    let other = text + ((number * 7 + 3) % functions * 64) as u64;
    let datum = data + 16 * number as u64;
    let mut code = Vec::new();
    match machine {
        Machine::X86 => {
            let relative = |code: &mut Vec<u8>, opcode: &[u8], target: u64, more: &[u8]| {
                code.extend_from_slice(opcode);
                let end = here + (code.len() + 4 + more.len()) as u64;
                code.extend_from_slice(&(target.wrapping_sub(end) as u32).to_le_bytes());
                code.extend_from_slice(more);
            };
            code.extend_from_slice(&[0x55, 0x48, 0x89, 0xe5, 0x66, 0x90, 0x8b, 0x44, 0x24, 8]);
            relative(&mut code, &[0x48, 0x8d, 0x3d], datum, &[]);
            relative(&mut code, &[0xe8], other, &[]);
            relative(&mut code, &[0x83, 0x3d], datum, &[number as u8]);
            relative(&mut code, &[0x0f, 0x84], here, &[]);
            relative(&mut code, &[0xc5, 0xf8, 0x10, 0x05], datum, &[]);
            code.extend_from_slice(&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xf7, 0xc0, 1, 0, 0, 0, 0xc8, 1, 0, 2, 0xc3]);
        }
        Machine::Arm64 => {
            let mut word = |value: u32| code.extend_from_slice(&value.to_le_bytes());
            let at = |number: u64| here + number * 4;
            let pages = |target: u64, from: u64| {
                let distance = ((target >> 12).wrapping_sub(from >> 12)) as u32;
                (distance & 3) << 29 | (distance >> 2 & 0x7_ffff) << 5
            };
            let words = |target: u64, from: u64, bits: u32| (target.wrapping_sub(from) >> 2) as u32 & ((1 << bits) - 1);
            word(0x9000_0000 | pages(datum, at(0)));
            word(0x9100_0000 | (datum as u32 & 0xfff) << 10);
            word(0x9000_0001 | pages(datum, at(2)));
            word(0xf940_0021 | (datum as u32 & 0xfff) >> 3 << 10);
            word(0x9400_0000 | words(other, at(4), 26));
            word(0x5400_0000 | words(here, at(5), 19) << 5);
            word(0xb400_0000 | words(here, at(6), 19) << 5);
            word(0x3600_0000 | words(here, at(7), 14) << 5);
            word(
                0x1000_0002
                    | (datum.wrapping_sub(at(8)) as u32 & 3) << 29
                    | (datum.wrapping_sub(at(8)) as u32 >> 2 & 0x7_ffff) << 5,
            );
            word(0x9000_0003 | pages(datum, at(9)));
            word(0x9000_0003 | pages(other, at(10)));
            word(0x3dc0_0060 | (datum as u32 & 0xfff) >> 4 << 10);
            word(0xd65f_03c0);
        }
    }
    code.resize(64, if machine == Machine::X86 { 0x90 } else { 0 });
    code
}
