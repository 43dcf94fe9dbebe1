//! Programs: what refers to code and data that moved is predicted, and comes back bit for bit.

mod common;

use std::io::Cursor;

use baleen_delta::{Decoder, Options, SourceLayer, TarLayer, Target, encode};
use baleen_oci::{DiffId, Digest};
use common::{Machine, program};

/// One file in no archive is a payload without a header, and has no path to be found by: so it lies in one.
fn archive(contents: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..3].copy_from_slice(b"lib");
    block[100..108].copy_from_slice(b"0000755\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000001\0");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&block[..], contents].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn round(old: &[u8], new: &[u8]) -> (usize, bool) {
    let (old, new) = (archive(old), archive(new));
    let source = TarLayer::open(DiffId(Digest::sha256_of(&old)), old).unwrap();
    let layers: [&dyn SourceLayer; 1] = [&source];
    let targets = [Target { diff_id: DiffId(Digest::sha256_of(&new)), tar: &new }];
    let (mut delta, mut waiting) = (Vec::new(), Cursor::new(Vec::new()));
    let config = Digest::sha256_of(b"config");
    let report = encode(&config, &layers, &targets, &Options::default(), &mut waiting, &mut delta).unwrap();
    let sources = vec![source];
    let mut decoder = Decoder::new(delta.as_slice(), &sources, 32 << 20).unwrap();
    let mut tar = Vec::new();
    while decoder.next_frame(&mut tar).unwrap().is_some() {}
    assert!(tar == new, "the tar differs");
    (delta.len(), report.shares.iter().any(|(technique, _)| *technique == "program"))
}

#[test]
fn a_program_whose_code_moved_costs_little_on_both_processors() {
    for machine in [Machine::X86, Machine::Arm64] {
        let (old, new) = (program(machine, 400, 0), program(machine, 400, 4096 + 144));
        let (bytes, is_predicted) = round(&old, &new);
        assert!(is_predicted);
        // Four references and more in each of 400 functions have changed.
        assert!(bytes < 1600, "the delta has {bytes} bytes of {}", new.len());
    }
}

#[test]
fn programs_that_lie_about_themselves_come_back_bit_for_bit() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for machine in [Machine::X86, Machine::Arm64] {
        for _ in 0..60 {
            let (mut old, mut new) = (program(machine, 40, 0), program(machine, 41, 48));
            for file in [&mut old, &mut new] {
                for _ in 0..random() % 12 {
                    // Headers, where lies have the most effect, or anywhere.
                    let most = if random() % 2 == 0 { 128 } else { file.len() as u64 };
                    let at = (random() % most) as usize;
                    let at = if random() % 4 == 0 { file.len() - 1 - at % 448 } else { at };
                    if at > 20 {
                        file[at] = random() as u8;
                    }
                }
                let length = file.len() as u64;
                if random() % 4 == 0 {
                    file.truncate((length - random() % length / 2) as usize);
                }
            }
            round(&old, &new);
        }
    }
}
