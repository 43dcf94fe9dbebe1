//! Tells the daemon which compiler built it, for `docker version`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BALEEN_COMMIT");
    println!("cargo::rerun-if-env-changed=BALEEN_BUILD_TIME");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version =
        Command::new(compiler).arg("--version").output().ok().and_then(|out| String::from_utf8(out.stdout).ok());
    // `rustc 1.95.0 (f2d3ce0bd 2026-03-21)`: the first two words say enough.
    let version = version.map(|text| text.split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned());
    println!("cargo::rustc-env=BALEEN_COMPILER={}", version.unwrap_or_else(|| "rustc".to_owned()));
    for variable in ["BALEEN_COMMIT", "BALEEN_BUILD_TIME"] {
        println!("cargo::rustc-env={variable}={}", std::env::var(variable).unwrap_or_default());
    }
}
