//! Feeds files to a target's parser, once each: `replay TARGET FILE...`. For measuring what a corpus covers, and for looking into a
//! crash with a debugger.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let name = arguments.next().unwrap_or_default();
    let feed: fn(&[u8]) = match name.to_str() {
        Some("documents") => baleen_oci::fuzzing::documents,
        Some("names") => baleen_oci::fuzzing::names,
        _ => {
            eprintln!("usage: replay TARGET FILE...");
            return ExitCode::FAILURE;
        }
    };
    for path in arguments {
        match std::fs::read(&path) {
            Ok(bytes) => feed(&bytes),
            Err(error) => {
                eprintln!("cannot read {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
