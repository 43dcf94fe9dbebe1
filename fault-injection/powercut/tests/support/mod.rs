//! What these tests share.

#![allow(dead_code, reason = "no test program needs all of it")]

use std::path::PathBuf;

/// Says why the rig cannot work here; in CI that is a failure.
pub(crate) fn skipped(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if root && std::path::Path::new("/dev/fuse").exists() && std::path::Path::new("/dev/loop-control").exists() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "{test}: CI must have root, FUSE and loop devices");
    eprintln!("SKIPPED: {test}: it needs root, FUSE and loop devices");
    true
}

/// A folder for recordings that is gone with the test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// An empty folder with this word in its name.
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("powercut-test.{}.{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder takes a folder");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
