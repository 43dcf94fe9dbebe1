//! Deltas and sources with bytes changed at random, past all checksums: no panic, no more output than declared.

mod common;

use std::io::Cursor;

use baleen_delta::{Options, SourceLayer, TarLayer, Target, encode, fuzz};
use baleen_oci::{DiffId, Digest};
use common::{Machine, program};

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, contents) in files {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
        block[136..148].copy_from_slice(b"00000000001\0");
        block[156] = b'0';
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
        tar.extend_from_slice(contents);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn inputs() -> Vec<Vec<u8>> {
    let text: String = (0..200).map(|number| format!("line {number} of a text\n")).collect();
    let other = text.replace("line 5", "another line 5").replace("7 of", "8 and");
    let mut inputs = Vec::new();
    for machine in [Machine::X86, Machine::Arm64] {
        let (before, after) = (program(machine, 20, 0), program(machine, 21, 4096 + 48));
        let old = archive(&[("a", text.as_bytes()), ("lib", &before), ("same", b"same")]);
        let new = archive(&[("a", other.as_bytes()), ("lib", &after), ("new", b"new"), ("same", b"same")]);
        let source = TarLayer::open(fuzz::source_diff_id(), old.clone()).unwrap();
        let layers: [&dyn SourceLayer; 1] = [&source];
        let targets = [Target { diff_id: DiffId(Digest::sha256_of(&new)), tar: &new }];
        let (mut delta, mut waiting) = (Vec::new(), Cursor::new(Vec::new()));
        let config = Digest::sha256_of(b"config");
        encode(&config, &layers, &targets, &Options::default(), &mut waiting, &mut delta).unwrap();
        inputs.extend(fuzz::inputs(&old, &delta).unwrap());
    }
    inputs
}

#[test]
fn changed_deltas_and_sources_end_in_errors_and_never_in_a_panic() {
    let inputs = inputs();
    assert_eq!(inputs.len(), 4);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |most: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % most as u64) as usize
    };
    for round in 0..4000 {
        let mut input = inputs[round % inputs.len()].clone();
        let tar_bytes = usize::from(u16::from_le_bytes([input[1], input[2]])) + 3;
        for _ in 0..=random(8) {
            // Half of the changes in the delta, a quarter in the first part of the program's file, the rest anywhere.
            let at = match random(4) {
                0 | 1 => tar_bytes + random(input.len() - tar_bytes),
                2 => 3 + random((tar_bytes - 3).min(8192)),
                _ => 3 + random(input.len() - 3),
            };
            input[at] = match random(4) {
                0 => 0,
                1 => 0xff,
                2 => input[at] ^ 1 << random(8),
                _ => random(256) as u8,
            };
        }
        fuzz::feed(&input);
    }
}
