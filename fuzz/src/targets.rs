//! The targets: each feeds bytes to one parser, and fails on whatever must never happen.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use anyhow::{Result, ensure};
use baleen_fault_injection::SimulatedDisk;
use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::Limits;
use baleen_snapshotter::decompress::Decompressor;
use baleen_snapshotter::extraction::BUFFER_BYTES;
use baleen_snapshotter::rebuild::rebuild;
use baleen_snapshotter::tree::TreeWriter;
use baleen_store::recipe::{RECIPE_NAME, Recipe};
use baleen_store::{Disk, Handle, read_file};

use crate::coverage::{self, Coverage};
use crate::{corpus, memory};

/// Something to feed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Feeds one input. Panics if the parser breaks a promise.
    parse: fn(&[u8]),
    /// Sources of the parser that it is there to try, below the workspace.
    pub sources: &'static [&'static str],
    /// The most memory that one input of [`FED_BYTES_MAX`] may cost.
    memory_bytes_max: usize,
}

/// The longest input that fuzzers make, in bytes.
pub const FED_BYTES_MAX: usize = 64 << 10;

const MEBIBYTE: usize = 1 << 20;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "tar",
        parse: tar,
        sources: &[
            "snapshotter/src/tar.rs",
            "snapshotter/src/tar/header.rs",
            "snapshotter/src/tar/pax.rs",
            "snapshotter/src/tar/sparse.rs",
            "snapshotter/src/name.rs",
        ],
        memory_bytes_max: 16 * MEBIBYTE,
    },
    Target {
        name: "checkpoint",
        parse: checkpoint,
        sources: &["snapshotter/src/state.rs"],
        memory_bytes_max: 16 * MEBIBYTE,
    },
    Target {
        name: "extraction",
        parse: extraction,
        sources: &[
            "snapshotter/src/tree.rs",
            "snapshotter/src/tree/dirs.rs",
            "snapshotter/src/tree/file.rs",
            "snapshotter/src/tree/replay.rs",
            "snapshotter/src/tree/reread.rs",
            "snapshotter/src/tree/resume.rs",
            "snapshotter/src/tree/sweep.rs",
            "snapshotter/src/rebuild.rs",
        ],
        memory_bytes_max: 64 * MEBIBYTE,
    },
    Target {
        name: "decompress",
        parse: decompress,
        sources: &["snapshotter/src/decompress.rs", "snapshotter/src/gzip.rs", "snapshotter/src/zstandard.rs"],
        memory_bytes_max: 16 * MEBIBYTE,
    },
    Target {
        name: "recipe",
        parse: recipe,
        sources: &["store/src/recipe/reader.rs", "store/src/recipe/bytes.rs"],
        memory_bytes_max: 64 * MEBIBYTE,
    },
    Target {
        name: "log",
        parse: |bytes| drop(baleen_store::fuzz_replay(bytes)),
        sources: &["store/src/wal.rs", "store/src/record.rs"],
        memory_bytes_max: 16 * MEBIBYTE,
    },
    Target {
        name: "documents",
        parse: baleen_oci::fuzzing::documents,
        sources: &[
            "crates/oci/src/document.rs",
            "crates/oci/src/json.rs",
            "crates/oci/src/config.rs",
            "crates/oci/src/archive.rs",
        ],
        memory_bytes_max: 16 * MEBIBYTE,
    },
    Target {
        name: "names",
        parse: baleen_oci::fuzzing::names,
        sources: &["crates/oci/src/reference.rs", "crates/oci/src/platform.rs"],
        memory_bytes_max: MEBIBYTE,
    },
    Target { name: "headers", parse: headers, sources: &["crates/registry/src/auth.rs"], memory_bytes_max: MEBIBYTE },
    Target {
        name: "addresses",
        parse: addresses,
        sources: &["crates/registry/src/url.rs"],
        memory_bytes_max: MEBIBYTE,
    },
    Target {
        name: "dns",
        parse: dns,
        sources: &["crates/registry/src/resolve/message.rs"],
        memory_bytes_max: MEBIBYTE,
    },
    Target {
        name: "users",
        parse: baleen_runtime::fuzzing::users,
        sources: &["crates/runtime/src/users.rs"],
        memory_bytes_max: MEBIBYTE,
    },
    Target {
        name: "log-lines",
        parse: baleen_runtime::fuzzing::log_lines,
        sources: &["crates/runtime/src/logs/reader.rs", "crates/runtime/src/clock.rs"],
        memory_bytes_max: MEBIBYTE,
    },
    Target {
        name: "frames",
        parse: baleen_runtime::fuzzing::frames,
        sources: &["crates/runtime/src/protocol.rs"],
        memory_bytes_max: 4 * MEBIBYTE,
    },
    Target {
        name: "head",
        parse: baleen_daemon::fuzzing::head,
        sources: &["daemon/src/http/head.rs"],
        memory_bytes_max: MEBIBYTE,
    },
];

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Feeds one input.
    ///
    /// # Panics
    /// If the parser does, if it breaks a promise, or if it asks for more memory than an input may cost.
    pub fn feed(&self, bytes: &[u8]) {
        let peak_bytes = memory::peak_bytes_of(|| (self.parse)(bytes));
        let (name, max) = (self.name, self.memory_bytes_max);
        assert!(peak_bytes <= max, "{name} asked for {peak_bytes} bytes; an input may cost {max}");
    }

    /// Which lines of the parser the kept corpus runs. `replay` is the program of that name.
    ///
    /// # Errors
    /// If it cannot be traced, or a source has no code in it.
    pub fn coverage(&self, replay: &Path) -> Result<Vec<Coverage>> {
        let mut measured = coverage::measure(replay, &[self.name.as_ref()], &self.source_paths())?;
        for source in &mut measured {
            source.source = source.source.strip_prefix(workspace())?.to_owned();
            ensure!(!source.lines.is_empty(), "{} has no code in the program", source.source.display());
        }
        Ok(measured)
    }

    /// Those of `found` that run statements of the parser which neither the kept corpus does nor one before.
    ///
    /// # Errors
    /// As [`Target::coverage`].
    pub fn that_run_more(&self, replay: &Path, found: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let kept = corpus::inputs(self.name)?;
        let mut arguments: Vec<&OsStr> = vec![self.name.as_ref()];
        arguments.extend(kept.iter().chain(found).map(|path| path.as_os_str()));
        let numbers = coverage::that_run_more(replay, &arguments, &self.source_paths())?;
        let of_found = |number: usize| found.get(number.checked_sub(kept.len() + 1)?).cloned();
        Ok(numbers.into_iter().filter_map(of_found).collect())
    }

    fn source_paths(&self) -> Vec<PathBuf> {
        self.sources.iter().map(|source| workspace().join(source)).collect()
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// A layer's archive, as it is and with every header's checksum put right: a fuzzer would hardly hit it.
fn tar(bytes: &[u8]) {
    baleen_snapshotter::fuzz::tar(bytes);
    let right = with_checksums(bytes);
    if right != bytes {
        baleen_snapshotter::fuzz::tar(&right);
    }
}

/// Sets the checksum of every block that looks like a header.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    const BLOCK_BYTES: usize = 512;
    let mut right = bytes.to_vec();
    for block in right.chunks_exact_mut(BLOCK_BYTES) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    right
}

/// An archive through all of extraction, onto a simulated disk. Whatever it holds: nothing outside the layer's directory
/// changes, and an archive that is accepted comes back bit for bit.
fn extraction(bytes: &[u8]) {
    let bytes = &with_checksums(bytes);
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
    let layer_dir = layer_beside_a_canary(&*disk);
    let limits = Limits { entries_max: 1000, tar_bytes_max: 1 << 30 };
    let diff_id = DiffId(Digest::sha256_of(bytes));
    let cut = bytes.first().map_or(0, |first| usize::from(*first) * bytes.len() / 256);
    let extract = || {
        let mut tree = TreeWriter::create(Arc::clone(&disk), &layer_dir, limits)?;
        tree.take(&bytes[..cut])?;
        tree.take(&bytes[cut..])?;
        tree.finish(diff_id)
    };
    let extracted = extract();
    check_canary(&*disk);
    match extracted {
        Err(error) => drop(error.to_string()),
        Ok(summary) => {
            assert_eq!(summary.tar_size_bytes, bytes.len() as u64);
            let mut rebuilt = Vec::new();
            let found = rebuild(&disk, &layer_dir, &mut rebuilt);
            assert!(matches!(found, Ok(found) if found == diff_id), "{found:?}");
            assert_eq!(rebuilt, *bytes);
            cut_and_resumed(bytes, cut, limits);
        }
    }
}

/// A good archive, cut and gone on with, beside what a cut may leave: the same archive comes back.
fn cut_and_resumed(bytes: &[u8], cut: usize, limits: Limits) {
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
    let layer_dir = layer_beside_a_canary(&*disk);
    let state = baleen_snapshotter::fuzz::cut_extraction(&disk, &layer_dir, limits, &bytes[..cut]);
    leave_something(&*disk, &layer_dir);
    let resumed = state.and_then(|state| {
        baleen_snapshotter::fuzz::resumed_extraction(&disk, &layer_dir, limits, &state, &bytes[cut..])
    });
    check_canary(&*disk);
    let mut rebuilt = Vec::new();
    let found = resumed.map(|_| rebuild(&disk, &layer_dir, &mut rebuilt));
    assert!(matches!(found, Ok(Ok(_))), "cut after {cut} bytes: {found:?}");
    assert_eq!(rebuilt, *bytes, "cut after {cut} bytes");
    let fs = disk.open_dir(&layer_dir, b"fs").expect("a tree");
    assert!(disk.metadata_at(&fs, LEFT).is_err(), "what a cut left is still there");
}

const LEFT: &[u8] = b"left by a cut";

/// Leaves what a cut may leave of what came after its checkpoint.
fn leave_something(disk: &dyn Disk, layer_dir: &Handle) {
    let leave = || {
        let fs = disk.open_dir(layer_dir, b"fs")?;
        disk.create_dir(&fs, LEFT, 0o700)?;
        let left = disk.open_dir(&fs, LEFT)?;
        disk.create_dir(&left, b"deeper", 0o700)?;
        disk.create_file(&left, b"file", 0o600)?;
        disk.create_symlink(&left, b"out", b"/etc/passwd")?;
        let kept = match disk.open_dir(layer_dir, b"kept") {
            Ok(kept) => kept,
            Err(_) => {
                disk.create_dir(layer_dir, b"kept", 0o700)?;
                disk.open_dir(layer_dir, b"kept")?
            }
        };
        disk.create_file(&kept, b"4000000", 0o600).map(drop)
    };
    leave().expect("a simulated disk takes files");
}

/// The state of a cut extraction, of which nothing is believed: beside a layer that was cut in a file, it is refused or leads
/// nowhere else.
fn checkpoint(bytes: &[u8]) {
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
    let layer_dir = layer_beside_a_canary(&*disk);
    let limits = Limits { entries_max: 1000, tar_bytes_max: 1 << 30 };
    let (begun, rest) = cut_archive();
    let own = baleen_snapshotter::fuzz::cut_extraction(&disk, &layer_dir, limits, &begun);
    assert!(own.is_ok(), "{own:?}");
    leave_something(&*disk, &layer_dir);
    if let Err(error) = baleen_snapshotter::fuzz::resumed_extraction(&disk, &layer_dir, limits, bytes, &rest) {
        drop(error.to_string());
    }
    check_canary(&*disk);
}

/// An archive, in two parts: a link that leads out, and a file that is cut.
pub fn cut_archive() -> (Vec<u8>, Vec<u8>) {
    let header = |name: &[u8], flag: u8, size: usize, link: &[u8]| {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block
    };
    let data: Vec<u8> = (0..9000u32).map(|at| (at % 251) as u8).collect();
    let mut tar = Vec::new();
    tar.extend_from_slice(&header(b"d", b'5', 0, b""));
    tar.extend_from_slice(&header(b"out", b'2', 0, b"/etc/passwd"));
    tar.extend_from_slice(&header(b"d/file", b'0', data.len(), b""));
    tar.extend_from_slice(&data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let mut tar = with_checksums(&tar);
    let rest = tar.split_off(6000);
    (tar, rest)
}

const CANARY: &[u8] = b"nobody touches this";

/// Makes `layer/`, with what nothing of a layer may reach beside it: a file, a directory, and a link to it.
fn layer_beside_a_canary(disk: &dyn Disk) -> Handle {
    let make = || {
        let root = disk.root()?;
        disk.create_dir(&root, b"etc", 0o755)?;
        let file = disk.create_file(&disk.open_dir(&root, b"etc")?, b"passwd", 0o644)?;
        disk.write_at(&file, CANARY, 0)?;
        disk.create_dir(&root, b"layer", 0o700)?;
        disk.open_dir(&root, b"layer")
    };
    make().expect("a simulated disk takes files")
}

fn check_canary(disk: &dyn Disk) {
    let look = || {
        let root = disk.root()?;
        let mut names: Vec<_> = disk.read_dir(&root)?.into_iter().map(|entry| entry.name).collect();
        names.sort();
        assert_eq!(names, [&b"etc"[..], b"layer"], "a name outside the layer");
        let etc = disk.open_dir(&root, b"etc")?;
        assert_eq!(disk.read_dir(&etc)?.len(), 1, "a name outside the layer");
        let file = disk.open_file(&etc, b"passwd", baleen_store::Access::Read)?;
        let facts = disk.metadata(&file)?;
        assert_eq!((facts.mode & 0o7777, facts.uid, facts.gid, facts.links), (0o644, 0, 0, 1), "the file's facts");
        read_file(disk, &file, 1 << 20)
    };
    assert_eq!(look().expect("the file outside is there"), CANARY, "the file outside is another");
}

/// A compressed stream, with and without its own checksums counting: how it is cut on its way must not matter.
fn decompress(bytes: &[u8]) {
    baleen_snapshotter::fuzz::decompress(bytes);
    let part = bytes.first().map_or(1, |first| usize::from(*first) % 64 + 1);
    for verify_checksum in [true, false] {
        let whole = decompressed(bytes, bytes.len().max(1), verify_checksum);
        let cut = decompressed(bytes, part, verify_checksum);
        if let (Some(whole), Some(cut)) = (whole, cut) {
            assert!(whole == cut, "the result depends on how the stream is cut, here in parts of {part} bytes");
        }
    }
}

/// Most bytes of a decompressed stream that are looked at.
const OUTPUT_BYTES_MAX: usize = 2 * MEBIBYTE;

/// What the stream holds, `Err` if it is damaged; `None` if it holds more than [`OUTPUT_BYTES_MAX`].
fn decompressed(bytes: &[u8], part: usize, verify_checksum: bool) -> Option<Result<Vec<u8>, ()>> {
    let mut decompressor = Decompressor::new(verify_checksum);
    let mut all = Vec::new();
    let mut output = Vec::with_capacity(BUFFER_BYTES);
    for mut rest in bytes.chunks(part) {
        loop {
            let Ok(count) = decompressor.run(rest, &mut output) else { return Some(Err(())) };
            rest = &rest[count..];
            if output.len() < BUFFER_BYTES {
                assert!(rest.is_empty(), "it stops with room for output left");
                break;
            }
            all.append(&mut output);
            if all.len() > OUTPUT_BYTES_MAX {
                return None;
            }
        }
    }
    loop {
        match decompressor.finish(&mut output) {
            Err(_) => return Some(Err(())),
            Ok(Some(_)) => break,
            Ok(None) => all.append(&mut output),
        }
        if all.len() > OUTPUT_BYTES_MAX {
            return None;
        }
    }
    all.append(&mut output);
    Some(Ok(all))
}

/// The recipe of a layer: the bytes as what its frames hold, and as the whole file.
fn recipe(bytes: &[u8]) {
    baleen_snapshotter::fuzz::recipe(bytes);
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
    let open = || {
        let root = disk.root()?;
        let file = disk.create_file(&root, RECIPE_NAME, 0o600)?;
        disk.write_at(&file, bytes, 0)?;
        Ok::<_, std::io::Error>(root)
    };
    let root = open().expect("a simulated disk takes files");
    match Recipe::open(Arc::clone(&disk), &root) {
        Err(error) => drop(error.to_string()),
        Ok(recipe) => {
            let mut paths = Vec::new();
            for item in recipe.items() {
                match item {
                    Ok(baleen_store::recipe::Item::File { path, .. }) => paths.push(path),
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            for path in paths.iter().take(16) {
                let _ = recipe.find(path);
            }
            let _ = rebuild(&disk, &root, &mut std::io::sink());
        }
    }
}

/// Headers of a registry's answer.
fn headers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for challenge in baleen_registry::fuzzing::parse_challenges(text) {
        assert!(!challenge.scheme.is_empty() && !challenge.scheme.bytes().any(|byte| byte.is_ascii_uppercase()));
        for (name, value) in &challenge.parameters {
            assert!(!name.is_empty() && challenge.parameter(name).is_some(), "{name}={value}");
        }
    }
    if let Some((first, last, total)) = baleen_registry::fuzzing::parse_content_range(text) {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
}

/// An address that a registry names, and after a line end where a redirect leads from there.
fn addresses(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (address, location) = text.split_once('\n').unwrap_or((text, text));
    baleen_registry::fuzzing::addresses(address, location);
}

/// An answer of a name server, to a question that is always the same.
fn dns(bytes: &[u8]) {
    const QUESTION: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x08registry\x07example\x03com\x00\x00\x01\x00\x01";
    let _ = baleen_registry::fuzzing::parse_answer(bytes, QUESTION);
}
