//! Prints how many lines of each parser its kept corpus runs, and which it does not: `coverage [TARGET...]`. Fails below 80 %.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use baleen_fuzz::{LINES_MIN_PERCENT, TARGETS, coverage};

fn main() -> Result<ExitCode> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let program = std::env::current_exe()?.with_file_name("replay");
    let mut enough = true;
    for target in TARGETS.iter().filter(|target| wanted.is_empty() || wanted.iter().any(|name| name == target.name)) {
        let measured = target.coverage(&program).with_context(|| format!("cannot measure {}", target.name))?;
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
