//! The kept corpus: `corpus/<target>/`, one input a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The largest kept input, in bytes.
pub const INPUT_BYTES_MAX: u64 = 16 << 10;
/// All kept inputs together, in bytes.
pub const CORPUS_BYTES_MAX: u64 = 1 << 20;

/// Where the kept inputs of all targets are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The kept inputs of a target, in the order of their names.
///
/// # Errors
/// If the folder cannot be read.
pub fn inputs(target: &str) -> Result<Vec<PathBuf>> {
    let folder = folder().join(target);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
