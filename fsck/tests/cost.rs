//! What a deep check costs beside the hashing alone of the same files.

#![allow(clippy::disallowed_methods, reason = "a test looks at the disk from outside")]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::archive::{Archive, Block, Random};
use common::{Scratch, add_image, is_root};

/// Processor time of this process.
fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// A line of `/proc/self/status` in KiB.
fn memory_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// An application's layer: many small files, some large ones, as in images of Debian and Python.
fn layer(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut archive = Archive::default();
    let mut files = 0;
    while archive.0.len() < bytes {
        let size = match random.below(20) {
            0 => 1_000_000 + random.below(1_000_000),
            1..=4 => 50_000 + random.below(100_000),
            _ => random.below(12_000),
        };
        let name = format!("d{}/e{}/f{files}", files / 1000, files / 40);
        archive = archive.block(Block::new(name.as_bytes(), b'0', size));
        let start = archive.0.len();
        archive.0.resize(start + size as usize, 0);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&random.next().to_le_bytes());
        hasher.finalize_xof().fill(&mut archive.0[start..]);
        let padding = (512 - size as usize % 512) % 512;
        archive.0.resize(start + size as usize + padding, 0);
        files += 1;
    }
    archive.end()
}

#[test]
fn a_deep_check_costs_less_than_twice_the_hashing_alone_in_bounded_memory() {
    if !is_root("a_deep_check_costs_less_than_twice_the_hashing_alone_in_bounded_memory") {
        return;
    }
    let soak = std::env::var_os("BALEEN_SOAK").is_some();
    let bytes = if soak { 100 << 20 } else { 8 << 20 };
    let scratch = Scratch::new();
    let store = scratch.open();
    let layers: Vec<Vec<u8>> = (0..5).map(|seed| layer(seed, bytes)).collect();
    let image = add_image(&store, "app:1", &layers);
    drop(layers);
    store.close().expect("closed");
    drop(store);
    let mut files: Vec<PathBuf> = Vec::new();
    let mut queue: Vec<PathBuf> = image.layers.iter().map(|key| scratch.layer(key).join("fs")).collect();
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a kind").is_dir() {
                queue.push(entry.path())
            } else {
                files.push(entry.path())
            }
        }
    }
    // Once each before it counts, so that both read from the cache or both from the disk.
    let inspection = scratch.inspection();
    let check = || {
        let began = processor();
        let report = baleen_fsck::deep(&inspection, None, &mut |_| false).expect("a report");
        assert_eq!(report.findings, [], "{}", report.to_text());
        processor() - began
    };
    let hash = || {
        let began = processor();
        let mut buffer = vec![0; 256 << 10];
        for path in &files {
            use std::io::Read as _;
            let mut file = std::fs::File::open(path).expect("a file");
            let mut hasher = blake3::Hasher::new();
            loop {
                match file.read(&mut buffer).expect("bytes") {
                    0 => break,
                    count => drop(hasher.update(&buffer[..count])),
                }
            }
            assert!(hasher.count() < u64::MAX && hasher.finalize().as_bytes() != &[0; 32]);
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
        }
        processor() - began
    };
    hash();
    check();
    // The peak is counted from now on: the archives were in memory before.
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak is reset");
    let before_kib = memory_kib("VmRSS:");
    let (mut checked, mut hashed) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..3 {
        hashed += hash();
        checked += check();
    }
    let grown_kib = memory_kib("VmHWM:").saturating_sub(before_kib);
    let ratio = checked.as_secs_f64() / hashed.as_secs_f64();
    println!(
        "{} files, {} MiB: hashing alone {hashed:?}, the deep check {checked:?}, {ratio:.2} times; peak grew by {grown_kib} KiB",
        files.len(),
        (bytes * 5) >> 20
    );
    assert!(grown_kib < 32 << 10, "memory is bounded: {grown_kib} KiB");
    if soak {
        assert!(ratio <= 2.0, "{ratio:.2} times the processor time of hashing alone");
    }
}
