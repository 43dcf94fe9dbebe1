//! The one binary: `baleen daemon`, `baleen shim`, `baleen fsck`, `baleen delta`, the daemon under the name `dockerd`, and else the client, also
//! under the name `docker`.
//!
//! C1  A shim's entry is taken before anything else happens: no thread, no allocation of ours, no argument parser (R1 of
//!     the runtime).
//! C2  This file picks an entry, reports its error with the whole chain, and does no more.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use baleen_daemon::chain;

mod client;
mod delta;
mod fsck;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    if name == "dockerd" || name == "baleend" {
        return daemon(arguments);
    }
    let first = arguments.next();
    match first.as_deref().and_then(OsStr::to_str) {
        Some("shim") => baleen_runtime::shim_main(),
        Some("daemon") => daemon(arguments),
        Some("delta") => match arguments.map(OsString::into_string).collect::<Result<Vec<String>, _>>() {
            Ok(arguments) => delta::run(arguments),
            Err(argument) => {
                eprintln!("baleen: argument {argument:?} is not UTF-8");
                ExitCode::from(2)
            }
        },
        Some("fsck") => match arguments.map(OsString::into_string).collect::<Result<Vec<String>, _>>() {
            Ok(arguments) => fsck::run(arguments.into_iter()),
            Err(argument) => {
                eprintln!("baleen: argument {argument:?} is not UTF-8");
                ExitCode::from(16)
            }
        },
        _ => client::run(Path::new(&program), first.into_iter().chain(arguments)),
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
