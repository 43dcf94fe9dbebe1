//! What fuzzers feed: functions of bytes, most of them without a disk.

use std::sync::Arc;

use baleen_oci::{Algorithm, DiffId, DigestHasher};
use baleen_store::{Disk, Handle};

use crate::decompress::{Decompressor, Point};
use crate::error::ExtractError;
use crate::extraction::BUFFER_BYTES;
use crate::limits::Limits;
use crate::name::{self, CleanPath};
use crate::state::{State, StreamState};
use crate::tar::{Parser, Step};
use crate::tree::{TreeSummary, TreeWriter};

/// Parses `bytes` as a tar, cut in two at every length that the first byte picks, and checks that the parser gives every
/// byte back (tar, T1) and that the cut changes nothing.
pub fn tar(bytes: &[u8]) {
    let cut = bytes.first().map_or(0, |first| usize::from(*first) * bytes.len() / 256);
    assert_eq!(parse(&[bytes]), parse(&[&bytes[..cut], &bytes[cut..]]), "the parser depends on how its input is cut");
}

/// Entries and bytes that a parse gives, and whether it ends well.
fn parse(parts: &[&[u8]]) -> (Vec<u8>, u64, bool) {
    let mut parser = Parser::new();
    let (mut given, mut entries) = (Vec::new(), 0);
    for part in parts {
        let mut rest = *part;
        loop {
            let Ok((step, count)) = parser.step(rest) else {
                // Where the error is found depends on the cut; that it is found does not.
                return (Vec::new(), entries, false);
            };
            rest = &rest[count..];
            match step {
                Step::More => break,
                Step::Literal(bytes) | Step::Data(bytes) | Step::Tail(bytes) => given.extend_from_slice(bytes),
                Step::Zeros(count) => given.resize(given.len() + count as usize, 0),
                Step::Entry(entry) => {
                    entries += 1;
                    for path in [&entry.path, &entry.link] {
                        if let Ok(path) = CleanPath::parse(path)
                            && let Some((_, last)) = path.split()
                        {
                            let _ = name::meaning(last);
                        }
                    }
                }
                Step::EntryEnd => {}
            }
        }
        assert!(rest.is_empty(), "the parser wants more with input left");
    }
    let ended = parser.finish().is_ok();
    assert_eq!(given, parts.concat(), "the parser lost or changed bytes");
    (given, entries, ended)
}

/// Decompresses `bytes`, at most 4 MiB of output.
pub fn decompress(bytes: &[u8]) {
    let mut decompressor = Decompressor::new(true);
    let mut rest = bytes;
    for _ in 0..16 {
        let mut output = Vec::with_capacity(BUFFER_BYTES);
        match decompressor.run(rest, &mut output) {
            Ok(count) => rest = &rest[count..],
            Err(_) => return,
        }
        if output.len() < BUFFER_BYTES {
            break;
        }
    }
    let _ = decompressor.finish(&mut Vec::with_capacity(BUFFER_BYTES));
}

/// Reads `bytes` as the unpacked contents of a recipe.
pub fn recipe(bytes: &[u8]) {
    baleen_store::recipe::parse_anything(bytes);
}

/// Extracts the first bytes of an archive, `tar`, into the empty `layer_dir`, and gives the state of a cut after them.
///
/// # Errors
/// Those of the extraction.
pub fn cut_extraction(
    disk: &Arc<dyn Disk>,
    layer_dir: &Handle,
    limits: Limits,
    tar: &[u8],
) -> Result<Vec<u8>, ExtractError> {
    let mut tree = TreeWriter::create(Arc::clone(disk), layer_dir, limits)?;
    tree.take(tar)?;
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    hasher.update(tar);
    let stream = StreamState {
        blob: None,
        blob_size_bytes: None,
        diff_id: None,
        cuts: 0,
        blob_bytes: tar.len() as u64,
        blob_hasher: hasher.clone(),
        tar_bytes: tar.len() as u64,
        tar_hasher: hasher,
        point: Point::Plain,
    };
    Ok(tree.encoded(Box::new(stream))?.0.unwrap_or_default())
}

/// Goes on from `state` in `layer_dir` with the rest of the archive.
///
/// # Errors
/// Those of the extraction, and [`ExtractError::NotResumable`].
pub fn resumed_extraction(
    disk: &Arc<dyn Disk>,
    layer_dir: &Handle,
    limits: Limits,
    state: &[u8],
    rest: &[u8],
) -> Result<TreeSummary, ExtractError> {
    let State { stream, tree } = State::decode(state).map_err(|problem| ExtractError::NotResumable { problem })?;
    let resumed = Decompressor::resume(&stream.point);
    if let Ok(mut decompressor) = resumed {
        let _ = decompressor.run_to_point(rest, &mut Vec::with_capacity(BUFFER_BYTES));
    }
    let mut tree = TreeWriter::resume(Arc::clone(disk), layer_dir, limits, tree, stream.tar_bytes)?;
    tree.take(rest)?;
    let mut hasher = stream.tar_hasher;
    hasher.update(rest);
    tree.finish(DiffId(hasher.finish()))
}
