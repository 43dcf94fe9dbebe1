//! A layer through the whole pipeline into the store, on a simulated disk: the power is cut before every step, every
//! step fails once, and where the layer is found afterwards it is the one that was pulled, byte for byte and with every
//! attribute. Runs where no file can be reached but through the port.

#![allow(clippy::disallowed_methods, reason = "gzip makes the blob; nothing else of the host is used")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use baleen_fault_injection::{Exploration, Journal, Scenario, SimulatedDisk, Subsets, explore, sealed};
use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::rebuild::rebuild;
use baleen_snapshotter::{CheckpointPolicy, ExtractError, Extracted, Extraction, Intervals, Pace, Support};
use baleen_store::{
    Access, Disk, Handle, LayerFact, LayerKey, NodeKind, Owner, Partial, PullFact, PullLayer, Store, StoreError,
    read_file,
};
use common::archive::{Archive, Block};
use common::{chain, expectation_of, pipe};

struct Pull {
    name: &'static str,
    /// Whether it takes checkpoints: then each crash state is gone on with too.
    checkpoints: bool,
    /// Attempts that went on from a checkpoint.
    resumed: AtomicU64,
    tar: Vec<u8>,
    blob: Vec<u8>,
    /// The layer's folder after an undisturbed pull.
    expected: BTreeMap<Vec<u8>, Node>,
}

/// All that can be told of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: NodeKind,
    mode: u32,
    owner: (u32, u32),
    /// Times of what a tar names; those of our own files and folders are when they were made.
    modified: (i64, u32),
    device: (u32, u32),
    links: u64,
    /// A file's bytes or a link's target.
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pull {
    fn new(name: &'static str, checkpoints: bool) -> Self {
        let long = "d/".to_owned() + &"n".repeat(120);
        let tar = Archive::default()
            .dir("d/")
            .file("d/small", &b"a small file\n".repeat(20))
            .file("large", &b"0123456789abcdef".repeat(1000))
            .hard_link("d/again", "d/small")
            .symlink("link", "d/small")
            .block(Block::new(b"setuid", b'0', 3).mode(0o4755))
            .data(b"su\n")
            .block(Block::new(b"null", b'3', 0).mode(0o666).device(1, 3))
            .pax(
                b'x',
                &[("path", long.as_bytes()), ("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.note", b"kept")],
            )
            .file("short", b"a long name")
            .file("d/.wh.gone", b"")
            .file("small/.wh..wh..opq", b"")
            .file("large", b"and replaced")
            .end();
        // A plain one can be taken up again at every byte; gzip makes one block of so little.
        let blob = if checkpoints { tar.clone() } else { pipe(Command::new("gzip").arg("-9nc"), &tar) };
        let mut pull = Self { name, checkpoints, resumed: AtomicU64::new(0), tar, blob, expected: BTreeMap::new() };
        let disk = SimulatedDisk::new();
        let store = open(&disk).expect("a store");
        pull.pull(&store, &mut |_| {}).expect("nothing fails");
        pull.expected = nodes(&store, &pull.key()).expect("it reads");
        assert!(pull.expected.len() > 12, "{:?}", pull.expected.keys());
        pull
    }

    fn key(&self) -> LayerKey {
        LayerKey::new(DiffId(Digest::sha256_of(&self.tar)))
    }

    /// Pulls the layer, unless it is there.
    fn pull(&self, store: &Store, ack: &mut dyn FnMut(&'static str)) -> Result<(), String> {
        let text = |error: StoreError| chain(&error);
        let blob = Digest::sha256_of(&self.blob);
        let pulled = PullLayer { blob, blob_size_bytes: self.blob.len() as u64, key: self.key() };
        store.begin_pull(PullFact { manifest: Digest::sha256_of(b"manifest"), layers: vec![pulled] }).map_err(text)?;
        ack("pull");
        if store.layer(&self.key()).is_none() {
            let partial = store.begin_partial(&blob).map_err(text)?;
            let (partial, extracted) = self.extract(store, partial)?;
            let fact = LayerFact {
                key: self.key(),
                blob,
                blob_size_bytes: extracted.blob_size_bytes,
                tar_size_bytes: extracted.tree.tar_size_bytes,
                unpacked_size_bytes: extracted.tree.unpacked_size_bytes,
                entries: extracted.tree.entries,
                recipe_size_bytes: extracted.tree.recipe_size_bytes,
                implied_directories: extracted.tree.implied_directories,
            };
            let mut txn = store.begin().map_err(text)?;
            txn.stage_layer(partial, fact);
            txn.commit().map_err(text)?;
        }
        ack("layer");
        Ok(())
    }

    /// Extracts the layer, from the checkpoint of an earlier attempt if there is one.
    fn extract(&self, store: &Store, partial: Partial) -> Result<(Partial, Extracted), String> {
        let disk = store.disk().clone();
        let dir = disk.open_dir_in_root(partial.dir(), ".".as_ref()).map_err(|error| error.to_string())?;
        let expected = expectation_of(&self.blob, &self.tar);
        let mut support = Support::default();
        if self.checkpoints {
            let intervals = Intervals {
                output_bytes: 5000,
                output_bytes_min: 5000,
                spacing: Duration::ZERO,
                spacing_min: Duration::ZERO,
                ..Intervals::default()
            };
            let pace = Arc::new(Pace::new(intervals, Box::new(|| Duration::ZERO)));
            let sink = Box::new(partial.checkpoints());
            support.checkpoints = Some(CheckpointPolicy { sink, pace, cuts: 0, beside: false });
        }
        let (extraction, offset) = match partial.checkpoint() {
            None => (Extraction::start_with(disk, dir, expected, support).map_err(|error| chain(&error))?, 0),
            Some(checkpoint) => match Extraction::resume(disk, dir, expected, support, &checkpoint.state) {
                Ok(resumed) => {
                    self.resumed.fetch_add(1, Ordering::Relaxed);
                    resumed
                }
                Err(error @ ExtractError::NotResumable { .. }) => {
                    return Err(format!("a checkpoint does not hold: {}", chain(&error)));
                }
                Err(error) => return Err(chain(&error)),
            },
        };
        for part in self.blob[offset as usize..].chunks(100) {
            if extraction.feed(part.to_vec()).is_err() {
                break; // Its end says why.
            }
        }
        let extracted = extraction.finish().map_err(|error| chain(&error))?;
        Ok((partial, extracted))
    }

    /// That the layer is what was pulled: its folder, and the tar that comes out of it.
    fn check(&self, store: &Store) -> Result<(), String> {
        let mut found = nodes(store, &self.key())?;
        // After a cut they may lie there, and mean nothing (docs/formats/partial.md).
        found.retain(|path, _| !path.starts_with(b"/checkpoint-"));
        for (path, node) in &self.expected {
            // Frames of the recipe end where checkpoints were; what it says is compared below.
            if self.checkpoints && path == b"/recipe" {
                continue;
            }
            if found.get(path) != Some(node) {
                let path = path.escape_ascii();
                return Err(format!(
                    "{path} is {:?} and should be {node:?}",
                    found.get(&path.to_string().into_bytes())
                ));
            }
        }
        if found.len() != self.expected.len() {
            return Err(format!("more than was pulled: {:?}", found.keys()));
        }
        let dir = store.layer_dir(&self.key()).map_err(|error| chain(&error))?;
        let mut tar = Vec::new();
        rebuild(store.disk(), &dir, &mut tar).map_err(|error| chain(&error))?;
        if tar == self.tar { Ok(()) } else { Err("another tar comes out of it".to_owned()) }
    }
}

fn open(disk: &SimulatedDisk) -> Result<Store, String> {
    let (store, opened) = Store::open(Arc::new(disk.clone()), *b"a store of tests").map_err(|error| chain(&error))?;
    if opened.missing.is_empty() { Ok(store) } else { Err(format!("{:?} are recorded and not there", opened.missing)) }
}

fn nodes(store: &Store, key: &LayerKey) -> Result<BTreeMap<Vec<u8>, Node>, String> {
    let dir = store.layer_dir(key).map_err(|error| chain(&error))?;
    let mut found = BTreeMap::new();
    add_nodes(store.disk().as_ref(), &dir, b"", &mut found).map_err(|error| error.to_string())?;
    Ok(found)
}

fn add_nodes(disk: &dyn Disk, dir: &Handle, path: &[u8], found: &mut BTreeMap<Vec<u8>, Node>) -> std::io::Result<()> {
    for entry in disk.read_dir(dir)? {
        let path = [path, b"/", &entry.name[..]].concat();
        let metadata = disk.metadata_at(dir, &entry.name)?;
        let (mut content, mut xattrs) = (Vec::new(), Vec::new());
        match metadata.kind {
            NodeKind::Directory => {
                let inner = disk.open_dir(dir, &entry.name)?;
                xattrs = disk.xattrs(&inner)?;
                add_nodes(disk, &inner, &path, found)?;
            }
            NodeKind::File => {
                let file = disk.open_file(dir, &entry.name, Access::Read)?;
                content = read_file(disk, &file, 1 << 20)?;
                xattrs = disk.xattrs(&file)?;
            }
            NodeKind::Symlink => content = disk.read_link(dir, &entry.name)?,
            _ => {}
        }
        let node = Node {
            kind: metadata.kind,
            mode: metadata.mode,
            owner: (metadata.uid, metadata.gid),
            modified: (metadata.modified.seconds, metadata.modified.nanoseconds),
            device: metadata.device_node,
            links: metadata.links,
            content,
            xattrs,
        };
        found.insert(path, node);
    }
    Ok(())
}

impl Scenario for Pull {
    type Ack = &'static str;
    type Opened = Store;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn prepare(&self, disk: &SimulatedDisk) -> Result<(), String> {
        open(disk).map(drop)
    }

    fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<&'static str>) -> Result<(), String> {
        self.pull(&open(disk)?, &mut |ack| journal.acknowledge(ack))
    }

    fn recover(&self, disk: &SimulatedDisk) -> Result<Store, String> {
        open(disk)
    }

    fn judge(&self, _: &SimulatedDisk, store: &Store, acks: &[&'static str]) -> Result<(), String> {
        let is_there = store.layer(&self.key()).is_some();
        if acks.contains(&"layer") && !is_there {
            return Err("the layer was acknowledged and is gone".to_owned());
        }
        if is_there {
            self.check(store)?;
        }
        let owners = store.owners().map_err(|error| chain(&error))?;
        if let Some(owned) = owners.iter().find(|owned| owned.owner == Owner::Nobody) {
            return Err(format!("{} belongs to nobody", owned.path));
        }
        if self.checkpoints {
            // In the boot of a failed write its barrier may tell of it once more; then the layer starts over.
            let again = self.pull(store, &mut |_| {}).or_else(|_| self.pull(store, &mut |_| {}));
            again.map_err(|error| format!("pulled again: {error}"))?;
            self.check(store).map_err(|error| format!("after it was pulled again: {error}"))?;
        }
        Ok(())
    }

    fn facts(&self, _: &SimulatedDisk, store: &Store) -> Vec<String> {
        let layers = store.layers().iter().map(|layer| format!("{layer:?}")).collect::<Vec<_>>();
        layers.into_iter().chain(store.pulls().iter().map(|pull| format!("{pull:?}"))).collect()
    }
}

#[test]
fn a_layer_cut_anywhere_in_the_pipeline_is_exact_or_not_there() {
    let pull = Pull::new("a layer through the pipeline", false);
    let exploration = Exploration {
        // Of what was pending, and lies in the trash after recovery, each single loss tells little: the store's own cuts
        // have them. After the barrier they do, and there few changes are pending.
        subsets: Subsets { random: 32, singles: false, ..Subsets::default() },
        after_error: Subsets::few(3),
        barriers_kept: vec![(
            " /wal".to_owned(),
            "the log's own; store/tests/cuts.rs shows the need of each".to_owned(),
        )],
        ..Exploration::default()
    };
    let report = sealed(|| explore(&pull, &exploration)).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    report.assert_clean();
}

#[test]
fn a_layer_with_checkpoints_cut_anywhere_goes_on_and_is_exact() {
    let pull = Pull::new("a layer with checkpoints", true);
    let exploration = Exploration {
        subsets: Subsets { random: 8, singles: false, ..Subsets::default() },
        after_error: Subsets::few(3),
        barriers_kept: vec![
            (" /wal".to_owned(), "the log's own; store/tests/cuts.rs shows the need of each".to_owned()),
            ("/checkpoint-".to_owned(), "without it more is fetched again, and nothing is wrong".to_owned()),
            (
                "barrier through /".to_owned(),
                "that of the first checkpoint makes its file's name durable too: without it there is none".to_owned(),
            ),
        ],
        ..Exploration::default()
    };
    let report = sealed(|| explore(&pull, &exploration)).unwrap_or_else(|error| panic!("{error}"));
    let resumed = pull.resumed.load(Ordering::Relaxed);
    println!("{report}\n{resumed} attempts went on from a checkpoint");
    report.assert_clean();
    // Those of the later checkpoints, of the clearing and of the commit are needed.
    assert!(report.barriers_needed >= 5, "{} barriers are needed", report.barriers_needed);
    assert!(resumed > 500, "{resumed} attempts went on from a checkpoint");
}
