//! Prints how many lines of each parser its kept corpus runs, and which it does not: `coverage [--keep FOLDER] [TARGET...]`. Fails below
//! 80 %. With `--keep` it first adds to the corpus those inputs in `FOLDER/<target>/` that run more.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use baleen_fuzz::{LINES_MIN_PERCENT, TARGETS, Target, corpus, coverage};

/// The longest input that is kept only because it runs more: small ones are easier to understand.
const KEPT_BYTES_MAX: u64 = 4096;

fn main() -> Result<ExitCode> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let found = match arguments.first().map(String::as_str) {
        Some("--keep") => {
            let folder = PathBuf::from(arguments.get(1).context("--keep wants a folder")?);
            arguments.drain(..2);
            Some(folder)
        }
        _ => None,
    };
    let replay = std::env::current_exe()?.with_file_name("replay");
    let mut enough = true;
    let is_wanted = |target: &&Target| arguments.is_empty() || arguments.iter().any(|name| name == target.name);
    for target in TARGETS.iter().filter(is_wanted) {
        if let Some(found) = &found {
            keep(target, &replay, &found.join(target.name))?;
        }
        let measured = target.coverage(&replay).with_context(|| format!("cannot measure {}", target.name))?;
        let percent = coverage::percent(&measured);
        println!("{}: the kept corpus runs {percent:.1} % of the lines of its parser", target.name);
        for source in &measured {
            let (name, lines) = (source.source.display(), source.lines.len());
            let percent = coverage::percent(std::slice::from_ref(source));
            println!("    {name}: {percent:.0} % of {lines} lines; not run: {}", source.missed());
        }
        if percent < LINES_MIN_PERCENT {
            eprintln!("{}: it must run {LINES_MIN_PERCENT} %", target.name);
            enough = false;
        }
    }
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Copies to the corpus what runs more, the shortest first.
fn keep(target: &Target, replay: &Path, found: &Path) -> Result<()> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(found).with_context(|| format!("cannot read {}", found.display()))? {
        let entry = entry?;
        let size_bytes = entry.metadata()?.len();
        if size_bytes <= KEPT_BYTES_MAX {
            inputs.push((size_bytes, entry.path()));
        }
    }
    inputs.sort();
    let inputs: Vec<PathBuf> = inputs.into_iter().map(|(_, path)| path).collect();
    for path in target.that_run_more(replay, &inputs)? {
        let name = path.file_name().context("a file has a name")?;
        fs::copy(&path, corpus::folder().join(target.name).join(name))?;
        println!("{}: kept {}", target.name, name.display());
    }
    Ok(())
}
