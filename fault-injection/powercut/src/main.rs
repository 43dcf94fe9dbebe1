//! `baleen-powercut`: the command line of the rig (`docs/powercut.md`). Picks a command, prints what it gives, and maps
//! it to an exit code: 0 no promise broken, 1 one broken, 2 the rig could not work.

#![forbid(unsafe_code)]

use std::process::ExitCode;

mod command;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    match command::run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("baleen-powercut: {error:#}");
            ExitCode::from(2)
        }
    }
}
