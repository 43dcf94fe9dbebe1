//! Feeds kept inputs, or files that are named, to a target, once each: `replay TARGET [FILE...]`. To look into a crash with a debugger,
//! and to be measured. Without arguments it lists the targets.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use baleen_fuzz::{TARGETS, Target, corpus, coverage};

fn main() -> Result<()> {
    coverage::wait_for_tracer()?;
    let mut arguments = std::env::args_os().skip(1);
    let Some(name) = arguments.next() else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    };
    let target = name.to_str().and_then(Target::named).with_context(|| format!("no target {}", name.display()))?;
    let mut paths: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    if paths.is_empty() {
        paths = corpus::inputs(target.name)?;
    }
    for path in paths {
        let input = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        coverage::next_input()?;
        target.feed(&input);
    }
    Ok(())
}
