//! The engine's verbs on a real store, against a registry in this process, with shims that are this very program.

mod containers;
mod fixture;
mod images;
mod links;
mod resume;
mod retries;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Result;

/// A test: its name is a sentence that states the promise.
pub(crate) type Test = (&'static str, fn() -> Result<()>);

/// Names tests by their functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::Test] = &[$((stringify!($name), $name)),*];
    };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("shim") {
        baleen_runtime::shim_main();
    }
    let all: Vec<Test> = [images::TESTS, links::TESTS, retries::TESTS, resume::TESTS, containers::TESTS].concat();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| if exact { name == *filter } else { name.contains(*filter) })
    };
    let chosen: Vec<&Test> = all.iter().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "these tests need root");
        chosen.iter().for_each(|(name, _)| eprintln!("SKIPPED: {name}: needs root"));
        return ExitCode::SUCCESS;
    }
    println!("running {} tests", chosen.len());
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let begun = std::time::Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        if let Ok(Err(error)) = &outcome {
            println!("{name}: {error:#}");
        }
        let passed = matches!(outcome, Ok(Ok(())));
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, begun.elapsed().as_millis());
        if !passed {
            failed.push(*name);
        }
    }
    let (passed, verdict) = (chosen.len() - failed.len(), if failed.is_empty() { "ok" } else { "FAILED" });
    println!("\ntest result: {verdict}. {passed} passed; {} failed", failed.len());
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
