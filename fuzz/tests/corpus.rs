//! The kept corpus: replayed, small, and enough.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use baleen_fuzz::{LINES_MIN_PERCENT, TARGETS, Target, corpus, coverage};

/// Whether lines can be counted here. Reports the test as skipped if not.
fn counts_lines(test: &str) -> bool {
    if cfg!(target_arch = "x86_64") {
        return true;
    }
    let reason = "lines are counted on x86-64 only";
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} may not be skipped here: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
    false
}

#[test]
fn every_kept_input_is_read_within_its_memory_and_breaks_no_promise_of_its_parser() -> Result<()> {
    for target in TARGETS {
        let inputs = corpus::inputs(target.name)?;
        assert!(inputs.len() >= 10, "{} has {} kept inputs", target.name, inputs.len());
        for path in &inputs {
            // Shown only if it fails.
            println!("{}", path.display());
            target.feed(&fs::read(path)?);
        }
        target.feed(&[]);
    }
    Ok(())
}

#[test]
fn the_kept_corpus_belongs_to_targets_and_is_small() -> Result<()> {
    let mut total_bytes = 0;
    for folder in fs::read_dir(corpus::folder())? {
        let name = folder?.file_name().into_string().ok().context("a folder's name is text")?;
        assert!(Target::named(&name).is_some(), "{name} is the corpus of no target");
        for path in corpus::inputs(&name)? {
            let size_bytes = fs::metadata(&path)?.len();
            assert!(size_bytes <= corpus::INPUT_BYTES_MAX, "{} has {size_bytes} bytes", path.display());
            total_bytes += size_bytes;
        }
    }
    assert!(total_bytes <= corpus::CORPUS_BYTES_MAX, "the corpus has {total_bytes} bytes");
    Ok(())
}

#[test]
fn the_kept_corpus_runs_four_fifths_of_the_lines_of_every_parser() -> Result<()> {
    if !counts_lines("the_kept_corpus_runs_four_fifths_of_the_lines_of_every_parser") {
        return Ok(());
    }
    let mut too_few = Vec::new();
    for target in TARGETS {
        let measured = target.coverage(Path::new(env!("CARGO_BIN_EXE_replay")))?;
        let percent = coverage::percent(&measured);
        println!("{}: {percent:.1} % of the lines of its parser", target.name);
        if percent < LINES_MIN_PERCENT {
            too_few.push(target.name);
        }
    }
    assert!(too_few.is_empty(), "too few lines are run of the parsers of {}", too_few.join(", "));
    Ok(())
}

#[test]
fn lines_that_are_not_run_are_told_from_lines_that_are() -> Result<()> {
    if !counts_lines("lines_that_are_not_run_are_told_from_lines_that_are") {
        return Ok(());
    }
    // One input of one parser: what it refuses at once leaves the rest alone.
    let program = Path::new(env!("CARGO_BIN_EXE_replay"));
    let source = corpus::folder().parent().context("the crate")?.join("src/targets.rs");
    let empty = std::env::temp_dir().join(format!("baleen-fuzz-{}", std::process::id()));
    fs::write(&empty, b"")?;
    let measured = coverage::measure(program, &["recipe".as_ref(), empty.as_ref()], std::slice::from_ref(&source));
    fs::remove_file(&empty)?;
    let measured = measured?;
    let text = fs::read_to_string(&source)?;
    let line_of = |part: &str| text.lines().position(|line| line.contains(part)).map(|at| at as u32 + 1);
    let (read, not_read) = (line_of("let root = open()").unwrap(), line_of("let mut paths = Vec::new()").unwrap());
    assert!(measured[0].run.contains(&read), "line {read} was run");
    assert!(measured[0].lines.contains(&not_read) && !measured[0].run.contains(&not_read), "line {not_read} was not");
    Ok(())
}
