//! What lies below baleen's root, asked of `baleen fsck` and of the file system.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::{Finished, run};
use baleen_tests::daemon::binary;
use baleen_tests::image::Image;
use baleen_tests::scratch::disk_usage;
use serde_json::Value;

use super::program::Options;
use crate::workload::Broken;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Exit codes of fsck that break a promise: damage, and a check that cannot be made.
const BAD_CODES: i32 = 4 | CANNOT;
const CANNOT: i32 = 8;
/// Space that an empty store has beside its log, and what directories that once were full keep of it.
const EMPTY_BYTES_MAX: u64 = 128 << 10;

/// What a store is taken to be before an engine starts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// A cut alone damages nothing.
    Whole,
    /// It had been damaged before.
    Damaged,
}

fn fsck(options: &Options, root: &Path, arguments: &[&str]) -> Result<Finished> {
    let program = options.program.clone().map_or_else(binary, Ok)?;
    let mut command = Command::new(program);
    // Without the variables of the engine that is judged: a mutated one is checked by a right one.
    command.arg("fsck").args(arguments).arg("--data-root").arg(root).stdin(Stdio::null());
    run(&mut command, None, PATIENCE)
}

/// Checks the store at `root` while no engine has it: nothing is damaged, everything has an owner, and the classes add up.
pub(super) fn check(options: &Options, root: &Path, expected: Health) -> Result<Vec<Broken>> {
    let when = "before its start";
    let checked = fsck(options, root, &["--usage", "--json"])?;
    let mut broken = Vec::new();
    let bad = if expected == Health::Whole { BAD_CODES } else { CANNOT };
    if checked.code & bad != 0 {
        broken
            .push(Broken::new("fsck", format!("{when} fsck ends with {}: {}", checked.code, checked.output().trim())));
    }
    let printed = checked.stdout();
    if printed.is_empty() {
        return Ok(broken); // There is no store yet.
    }
    let report: Value = serde_json::from_str(&printed).context("fsck printed no JSON")?;
    for finding in report["findings"].as_array().into_iter().flatten() {
        if finding["code"] == "foreign-name" {
            broken.push(Broken::new("owners", format!("{when} nobody owns {}", finding["path"])));
        }
    }
    let classes = report["usage"].as_object().context("fsck told no usage")?;
    let sum: u64 = classes.values().filter_map(Value::as_u64).sum();
    let du = disk_usage(root)?;
    if sum != du {
        broken.push(Broken::new("owners", format!("{when} du counts {du} bytes, and fsck {sum}: {classes:?}")));
    }
    Ok(broken)
}

/// Repairs the store, or checks it: what it leaves, if that is something.
pub(super) fn repair(options: &Options, root: &Path, arguments: &[&str]) -> Result<Option<String>> {
    let done = fsck(options, root, arguments)?;
    Ok((done.code & BAD_CODES != 0).then(|| format!("exit code {}: {}", done.code, done.output().trim())))
}

/// Damages an image's layers: what the store itself can mend, and what has to be fetched.
pub(super) fn damage(root: &Path, image: &Image) -> Result<()> {
    let folder = |number: usize| -> Result<PathBuf> {
        let layer = image.layers.get(number).context("an image with fewer layers")?;
        Ok(root.join("layers").join(layer.diff_id().trim_start_matches("sha256:")))
    };
    let (base, top) = (folder(0)?.join("fs"), folder(2)?);
    fs::write(base.join("var/large"), vec![0; 70_000])?;
    fs::set_permissions(base.join("etc/config"), fs::Permissions::from_mode(0o777))?;
    fs::remove_file(base.join("etc/second"))?;
    fs::write(base.join("etc/more"), b"nobody's")?;
    fs::remove_file(folder(1)?.join("fs/a/f3"))?;
    fs::remove_dir_all(top)?;
    Ok(())
}

/// How a root without images, containers and volumes takes more space than an empty store.
pub(super) fn larger_than_empty(root: &Path) -> Result<Option<String>> {
    let log = root.join("wal");
    let mut log_bytes = 0;
    for entry in fs::read_dir(&log).with_context(|| format!("cannot list {}", log.display()))? {
        log_bytes += entry?.metadata()?.blocks() * 512;
    }
    let rest = disk_usage(root)?.saturating_sub(log_bytes);
    Ok((rest > EMPTY_BYTES_MAX).then(|| format!("the root had {rest} bytes beside its log of {log_bytes}")))
}
