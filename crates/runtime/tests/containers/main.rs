//! Containers run for real: busybox in a directory, started by a shim that is this very program.

mod basics;
mod exec;
mod fixture;
mod lifetime;
mod probe;
mod security;
mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name is a sentence that states the promise.
pub(crate) type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("shim") => baleen_runtime::shim_main(),
        Some(fixture::HELPER) => return fixture::helper(&arguments[1..]),
        _ => {}
    }
    let all: Vec<Test> = [basics::TESTS, streams::TESTS, security::TESTS, lifetime::TESTS, exec::TESTS].concat();
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
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, begun.elapsed().as_millis());
        if !passed {
            failed.push(*name);
        }
    }
    println!(
        "\ntest result: {}. {} passed; {} failed",
        if failed.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failed.len(),
        failed.len()
    );
    failed.iter().for_each(|name| println!("    {name}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
