//! The one binary: `baleen daemon`, `baleen shim`, and the daemon under the name `dockerd`.
//!
//! C1  A shim's entry is taken before anything else happens: no thread, no allocation of ours, no argument parser (R1 of
//!     the runtime).
//! C2  This file picks an entry, reports its error with the whole chain, and does no more.

#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

mod fsck;

const HELP: &str = "\
Usage: baleen COMMAND

A container engine for devices. It speaks the Docker Engine API.

Commands:
  daemon      Run the engine (`baleen daemon --help` lists its options)
  fsck        Check the store (`baleen fsck --help` lists its options)
  version     Show the version of this program

Called as `dockerd`, this program is the daemon.

Containers and images are managed with any Docker client, for example
  docker -H unix:///run/docker.sock run --network none busybox echo hello
Client commands of baleen itself do not exist yet.
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    if name == "dockerd" || name == "baleend" {
        return daemon(arguments);
    }
    match arguments.next().unwrap_or_default().to_str() {
        Some("shim") => baleen_runtime::shim_main(),
        Some("daemon") => daemon(arguments),
        Some("fsck") => match arguments.map(OsString::into_string).collect::<Result<Vec<String>, _>>() {
            Ok(arguments) => fsck::run(arguments.into_iter()),
            Err(argument) => {
                eprintln!("baleen: argument {argument:?} is not UTF-8");
                ExitCode::from(16)
            }
        },
        Some("version" | "--version" | "-v") => {
            println!("baleen version {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h" | "") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        command => {
            let command = command.unwrap_or("(not UTF-8)");
            eprintln!("baleen: unknown command {command:?}; `baleen --help` lists the commands.");
            eprintln!("Client commands do not exist yet: use docker with -H unix:///run/docker.sock.");
            ExitCode::from(2)
        }
    }
}

fn daemon(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
    let ended = match arguments {
        Ok(arguments) => baleen_daemon::run(arguments),
        Err(argument) => {
            eprintln!("baleen: argument {argument:?} is not UTF-8");
            return ExitCode::from(2);
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("baleen: {}", chain(&error));
        ExitCode::FAILURE
    })
}

/// An error with all its causes, outermost first; a cause that is told already is not told twice.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
