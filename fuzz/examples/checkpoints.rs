//! Writes the states with which the corpus of `checkpoint` began: that of the target's own layer, whole and damaged, and those of
//! other places in a stream.

use std::fs;
use std::sync::Arc;

use anyhow::Result;
use baleen_fault_injection::SimulatedDisk;
use baleen_fuzz::corpus;
use baleen_fuzz::targets::cut_archive;
use baleen_oci::{Algorithm, DigestHasher};
use baleen_snapshotter::Limits;
use baleen_snapshotter::fuzz::cut_extraction;
use baleen_store::Disk;

fn main() -> Result<()> {
    let folder = corpus::folder().join("checkpoint");
    fs::create_dir_all(&folder)?;
    let (begun, rest) = cut_archive();
    let whole = [&begun[..], &rest].concat();
    for (name, length) in
        [("file", begun.len()), ("start", 0), ("header", 700), ("between", 1024), ("end", whole.len())]
    {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
        // As the target has it, so that the inode is the same.
        let root = disk.root()?;
        disk.create_dir(&root, b"etc", 0o755)?;
        disk.create_file(&disk.open_dir(&root, b"etc")?, b"passwd", 0o644)?;
        disk.create_dir(&root, b"layer", 0o700)?;
        let state = cut_extraction(&disk, &disk.open_dir(&root, b"layer")?, Limits::default(), &whole[..length])?;
        fs::write(folder.join(name), &state)?;
        if name != "file" {
            continue;
        }
        // Behind magic and version, three expectations that are none, the cuts, and two lengths with their hash states.
        let hash_bytes = DigestHasher::new(Algorithm::Sha256).state().len();
        let point = 12 + 1 + 8 + 1 + 4 + 2 * (8 + 1 + 4 + hash_bytes);
        anyhow::ensure!(state[point] == 1, "the layout is another");
        let gzip = |kind: u8, rest: &[u8]| {
            [&state[..point], &[kind], &9u64.to_le_bytes()[..], &[1], &5u32.to_le_bytes(), rest, &state[point + 1..]]
                .concat()
        };
        let window = [&[3, 0xe0][..], &100u32.to_le_bytes(), &[7; 100]].concat();
        let changed = |at: usize, to: u8| [&state[..at], &[to], &state[at + 1..]].concat();
        let length = state.len();
        for (kind, bytes) in [
            ("magic", changed(0, 0)),
            ("newer", changed(8, 2)),
            ("zstd", changed(point, 2)),
            ("place", changed(point, 9)),
            ("gzip-block", gzip(3, &window)),
            ("gzip-between", gzip(4, &[])),
            ("gzip-zeros", gzip(5, &[])),
            // With digests and a size where none were expected.
            ("expected", {
                let digest = |number: u8, length: usize| {
                    [&[number][..], &(length as u32).to_le_bytes(), &vec![7; length]].concat()
                };
                [&state[..12], &digest(1, 32), &state[13..21], &digest(2, 64), &state[22..]].concat()
            }),
            ("digest", changed(12, 3)),
            // A file in `kept/`, and a move, where the payload in progress stands.
            ("kept", {
                let tree = point + 1;
                let moves = [&1u32.to_le_bytes()[..], &[0; 16], &3u32.to_le_bytes(), b"a/b"].concat();
                let open =
                    [&[2][..], &5u64.to_le_bytes(), &[0; 16], &1u32.to_le_bytes(), b"x", &0u32.to_le_bytes()].concat();
                [&state[..tree + 40], &[3], &moves, &open].concat()
            }),
            ("flags", changed(point + 1 + 40, 4)),
            ("cut", state[..length - 9].to_vec()),
            ("longer", [&state[..], b"x"].concat()),
            ("recipe-length", changed(point + 1 + 16, state[point + 1 + 16] ^ 1)),
            ("inode", changed(length - 1, state[length - 1] ^ 1)),
        ] {
            fs::write(folder.join(kind), bytes)?;
        }
    }
    Ok(())
}
