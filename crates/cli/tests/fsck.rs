//! `baleen fsck` as an init system or a person calls it: what it prints, and its exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use baleen_store::{Store, SystemDisk};

/// A directory of its own that goes when the test ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baleen-cli-fsck-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a scratch directory");
        Self(path)
    }

    fn store(&self) -> Store {
        let disk = SystemDisk::open(&self.0).expect("a disk");
        Store::open(Arc::new(disk), *b"a store of tests").expect("a store").0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn fsck(root: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baleen"));
    command.arg("fsck").arg("--data-root").arg(root).args(options).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A store with one blob that an image record would name; gives the blob's path.
fn with_a_blob(scratch: &Scratch) -> PathBuf {
    let store = scratch.store();
    let bytes = b"{\"a\":\"document\"}";
    let mut txn = store.begin().expect("a transaction");
    let digest: String = {
        // Its own digest, as sha256sum prints it.
        let output =
            Command::new("sh").arg("-c").arg("printf '{\"a\":\"document\"}' | sha256sum").output().expect("it runs");
        text(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
    };
    txn.stage_blob(&format!("sha256:{digest}").parse().expect("a digest"), bytes).expect("a blob");
    txn.commit().expect("stored");
    store.close().expect("closed");
    scratch.0.join("blobs/sha256").join(digest)
}

#[test]
fn a_store_is_checked_and_mended_with_the_exit_codes_of_e2fsck() {
    let scratch = Scratch::new("codes");
    let nothing = fsck(&scratch.0, &[]);
    assert_eq!(nothing.status.code(), Some(0), "{}", text(&nothing.stderr));
    // The making of a store that was cut before it wrote FORMAT is no damage: the daemon makes it whole.
    std::fs::create_dir(scratch.0.join("wal")).expect("a directory");
    std::fs::create_dir(scratch.0.join("layers")).expect("a directory");
    for options in [&[][..], &["--deep", "--repair"]] {
        let unfinished = fsck(&scratch.0, options);
        assert_eq!(unfinished.status.code(), Some(0), "{options:?}: {}", text(&unfinished.stderr));
    }
    let blob = with_a_blob(&scratch);
    for options in [&[][..], &["--deep"], &["--deep", "--json"]] {
        let clean = fsck(&scratch.0, options);
        assert_eq!(clean.status.code(), Some(0), "{options:?}: {}{}", text(&clean.stdout), text(&clean.stderr));
    }
    let mut bytes = std::fs::read(&blob).expect("the blob");
    bytes[3] ^= 0x10;
    std::fs::write(&blob, bytes).expect("broken");
    assert_eq!(fsck(&scratch.0, &[]).status.code(), Some(0), "the quick check reads no blob");
    let found = fsck(&scratch.0, &["--deep", "--json"]);
    assert_eq!(found.status.code(), Some(4));
    let report: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!((&report["exit_code"], &report["complete"]), (&4.into(), &true.into()));
    assert_eq!(report["findings"][0]["code"], "blob-content");
    assert_eq!(report["findings"][0]["severity"], "damage");
    let mended = fsck(&scratch.0, &["--deep", "--repair"]);
    assert_eq!(mended.status.code(), Some(1), "{}{}", text(&mended.stdout), text(&mended.stderr));
    assert!(text(&mended.stdout).contains("corrected: one bit was flipped"), "{}", text(&mended.stdout));
    assert_eq!(fsck(&scratch.0, &["--deep"]).status.code(), Some(0));
}

#[test]
fn what_cannot_be_checked_is_told_by_the_exit_code_and_in_words() {
    let scratch = Scratch::new("refusals");
    let owner = scratch.store();
    let busy = fsck(&scratch.0, &["--deep"]);
    assert_eq!(busy.status.code(), Some(8));
    let owned_by = format!("in use by process {} (", std::process::id());
    assert!(text(&busy.stderr).contains(&owned_by), "{}", text(&busy.stderr));
    drop(owner);
    let foreign = Scratch::new("foreign");
    std::fs::write(foreign.0.join("letter"), b"dear").expect("a file");
    assert_eq!(fsck(&foreign.0, &[]).status.code(), Some(8));
    for wrong in [&["--what"][..], &["--after", "layers/00"], &["--deep=yes"]] {
        assert_eq!(fsck(&scratch.0, wrong).status.code(), Some(16), "{wrong:?}");
    }
    let help = fsck(&scratch.0, &["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("--repair"));
}
