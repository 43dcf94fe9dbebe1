//! What the tests of this crate share: directories that go away, layers by GNU tar, and two trees compared.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test program uses its own part")]

pub mod archive;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::rebuild::{RebuildError, rebuild};
use baleen_snapshotter::{Expectation, ExtractError, Extracted, Extraction};
use baleen_store::{Disk, SystemDisk};

/// A directory of its own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baleen-snapshotter-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a scratch directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Attributes that forbid removal do not occur; whatever is left is reported by the next look at the directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this process may make devices and owners. Reports the test as skipped if not.
pub fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    skip(test, "needs root");
    false
}

pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} may not be skipped here: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
}

/// An extraction into an empty directory, fed in parts of `part` bytes.
pub struct Layer {
    pub scratch: Scratch,
    pub disk: Arc<dyn Disk>,
}

impl Layer {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        scratch.dir("layer");
        let disk = SystemDisk::open(scratch.path()).expect("a disk");
        Self { scratch, disk: Arc::new(disk) }
    }

    /// Empties the layer's directory.
    pub fn reset(&self) {
        let path = self.scratch.path().join("layer");
        std::fs::remove_dir_all(&path).expect("the layer goes away");
        std::fs::create_dir(&path).expect("an empty layer");
    }

    pub fn tree(&self) -> PathBuf {
        self.scratch.path().join("layer/fs")
    }

    pub fn dir(&self) -> baleen_store::Handle {
        self.disk.open_dir(&self.disk.root().unwrap(), b"layer").unwrap()
    }

    pub fn extract(&self, blob: &[u8], part: usize, expected: Expectation) -> Result<Extracted, ExtractError> {
        let extraction = Extraction::start(Arc::clone(&self.disk), self.dir(), expected)?;
        for chunk in blob.chunks(part) {
            if extraction.feed(chunk.to_vec()).is_err() {
                break;
            }
        }
        extraction.finish()
    }

    /// The tar, rebuilt.
    pub fn rebuilt(&self) -> Result<Vec<u8>, RebuildError> {
        let mut tar = Vec::new();
        rebuild(&self.disk, &self.dir(), &mut tar)?;
        Ok(tar)
    }
}

/// Extracts a plain tar, which must succeed and come back bit for bit.
pub fn extract_and_rebuild(tar: &[u8]) -> (Layer, Extracted) {
    let layer = Layer::new();
    let expected = expectation_of(tar, tar);
    let extracted = layer.extract(tar, 10_000, expected).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let rebuilt = layer.rebuilt().unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(rebuilt == tar, "the rebuilt tar differs: {} bytes instead of {}", rebuilt.len(), tar.len());
    (layer, extracted)
}

/// What is known of `blob`, whose tar is `tar`.
pub fn expectation_of(blob: &[u8], tar: &[u8]) -> Expectation {
    Expectation {
        blob: Some(Digest::sha256_of(blob)),
        size_bytes: Some(blob.len() as u64),
        diff_id: Some(DiffId(Digest::sha256_of(tar))),
        ..Expectation::default()
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs a command that must succeed; gives its output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs a shell script in `dir`.
pub fn sh(dir: &Path, script: &str) -> Vec<u8> {
    run(Command::new("sh").arg("-euc").arg(script).current_dir(dir))
}

/// `input` through a command.
pub fn pipe(command: &mut Command, input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command runs");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().expect("the command takes its input");
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// A node as far as a layer's archive describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: Vec<u8>,
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub modified: (i64, i64),
    pub device: u64,
    pub contents: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Nodes of one inode have one number.
    pub group: u64,
}

/// Everything below `root`, sorted by path; the root itself is not in it.
pub fn list(root: &Path) -> Vec<Node> {
    let mut nodes = Vec::new();
    walk(root, root, &mut nodes);
    nodes.sort_by(|left, right| left.path.cmp(&right.path));
    // Numbered in the order of paths, so that two trees are comparable.
    let mut order = std::collections::BTreeMap::new();
    for node in &mut nodes {
        let next = order.len() as u64;
        node.group = *order.entry(node.group).or_insert(next);
    }
    nodes
}

fn walk(root: &Path, dir: &Path, nodes: &mut Vec<Node>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let facts = std::fs::symlink_metadata(&path).expect("metadata");
        let file_type = facts.file_type();
        let (kind, contents) = if file_type.is_dir() {
            ("directory", Vec::new())
        } else if file_type.is_symlink() {
            ("symlink", std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else if file_type.is_file() {
            ("file", std::fs::read(&path).unwrap())
        } else if file_type.is_fifo() {
            ("fifo", Vec::new())
        } else if file_type.is_char_device() {
            ("char", Vec::new())
        } else if file_type.is_block_device() {
            ("block", Vec::new())
        } else {
            ("other", Vec::new())
        };
        nodes.push(Node {
            path: path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(),
            kind: kind.into(),
            mode: facts.mode() & 0o7777,
            owner: (facts.uid(), facts.gid()),
            links: if file_type.is_dir() { 0 } else { facts.nlink() },
            modified: (facts.mtime(), facts.mtime_nsec()),
            device: if kind == "char" || kind == "block" { facts.rdev() } else { 0 },
            contents,
            xattrs: if file_type.is_symlink() { Vec::new() } else { xattrs(&path) },
            group: facts.ino(),
        });
        if file_type.is_dir() {
            walk(root, &path, nodes);
        }
    }
}

pub fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap_or(0);
        value.truncate(size);
        found.push((name.to_vec(), value));
    }
    found.sort();
    found
}

/// Asserts that two trees are the same, node by node.
pub fn assert_same(found: &[Node], expected: &[Node]) {
    let names =
        |nodes: &[Node]| nodes.iter().map(|node| String::from_utf8_lossy(&node.path).into_owned()).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (found, expected) in found.iter().zip(expected) {
        let path = String::from_utf8_lossy(&found.path);
        assert!(found.contents == expected.contents, "{path}: contents differ");
        let (mut found, mut expected) = (found.clone(), expected.clone());
        found.contents.clear();
        expected.contents.clear();
        assert_eq!(found, expected, "{path}");
    }
}
