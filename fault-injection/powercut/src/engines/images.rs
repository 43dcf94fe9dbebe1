//! The images that the workloads pull, and the registry that serves them. Everything is made from the name alone, so that who
//! judges a recording has the same bytes as who made it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Result, bail};
use baleen_tests::archive::{Entry, file_capability};
use baleen_tests::command::wait_for;
use baleen_tests::image::{Image, Layer, busybox_entries, digest};
use baleen_tests::random::Random;
use baleen_tests::scratch::Scratch;
use baleen_tests::stub::Stub;
use baleen_tests::tree::{self, Tree};

/// An image, with what each of its layers must be on the disk.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) image: Image,
    /// By diff ID.
    pub(super) trees: BTreeMap<String, Tree>,
}

/// Everything that lies in a registry: the same for all workloads of a process.
static SAMPLES: Mutex<BTreeMap<String, Arc<Sample>>> = Mutex::new(BTreeMap::new());
static REGISTRIES: Mutex<Option<HashMap<SocketAddr, Weak<Stub>>>> = Mutex::new(None);

/// How long to wait for a registry's address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(60);

/// The image of this name (`a:1`).
pub(super) fn sample(name: &str) -> Result<Arc<Sample>> {
    let mut samples = SAMPLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sample) = samples.get(name) {
        return Ok(sample.clone());
    }
    let image = make(name)?;
    let scratch = Scratch::new("reference")?;
    let mut trees = BTreeMap::new();
    for layer in &image.layers {
        if let std::collections::btree_map::Entry::Vacant(tree) = trees.entry(layer.diff_id()) {
            tree.insert(tree::of_layer(&scratch, &layer.tar)?);
        }
    }
    let sample = Arc::new(Sample { image, trees });
    samples.insert(name.to_owned(), sample.clone());
    Ok(sample)
}

/// One word for the bytes of these images: a recording of others cannot be judged.
pub(super) fn fingerprint(names: &[String]) -> Result<String> {
    let mut all = String::new();
    for name in names {
        all += &format!("{name} {}\n", sample(name)?.image.digest());
    }
    Ok(digest(all.as_bytes()))
}

/// The registry at `address` with these images. One for all who judge at that address in this process.
pub(super) fn registry(address: SocketAddr, names: &[String]) -> Result<Arc<Stub>> {
    let mut registries = REGISTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = registries.get_or_insert_default();
    let stub = match known.get(&address).and_then(Weak::upgrade) {
        Some(stub) => stub,
        None => {
            // Another process that judges the same workload has the address until it ends.
            let mut last = None;
            let stub = wait_for("the registry's address", ADDRESS_PATIENCE, || {
                Stub::start_at(address).map_err(|error| last = Some(error)).ok()
            });
            let stub = Arc::new(stub.map_err(|late| last.unwrap_or(late))?);
            known.insert(address, Arc::downgrade(&stub));
            stub
        }
    };
    drop(registries);
    for name in names {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        stub.add(repository, tag, &sample(name)?.image);
    }
    Ok(stub)
}

/// The address of a workload's registry: tags on the disk name it, so it is the same in every process.
pub(super) fn address_of(workload: &str) -> SocketAddr {
    let hash = digest(workload.as_bytes());
    let part = |at: usize| u8::from_str_radix(&hash[at..at + 2], 16).unwrap_or(1);
    SocketAddr::from(([127, 64 + part(7) % 64, part(9), part(11).clamp(1, 254)], 5000))
}

fn make(name: &str) -> Result<Image> {
    let layers = match name {
        "tiny:1" => vec![Layer::of(&[Entry::file("tiny", "tiny")])?],
        "a:1" => vec![base()?, folder("a", 1, 12)?],
        "a:2" => vec![base()?, folder("a", 1, 12)?, above("a")?],
        "b:1" => vec![base()?, folder("b", 2, 20)?],
        "many:1" => many()?,
        "busy:1" => vec![busy()?],
        "large:1" => vec![files("large", 13, 250_000)?],
        "small:1" => vec![files("small", 75, 45_000)?],
        "real:1" => real()?,
        other => bail!("no image is called {other}"),
    };
    Ok(Image::new(layers, &["/bin/sh"]))
}

/// What two images share.
fn base() -> Result<Layer> {
    let mut random = Random::new(11);
    Layer::of(&[
        Entry::folder("etc").mode(0o750).owner(0, 7).mtime(1_600_000_000, 123_456_789),
        Entry::file("etc/config", random.bytes(5_000)).mode(0o640).owner(5, 7).mtime(1_600_000_001, 5),
        Entry::file("etc/empty", ""),
        Entry::file("etc/block", random.bytes(4_096)).xattr("user.note", b"kept".to_vec()),
        Entry::hardlink("etc/second", "etc/block"),
        Entry::symlink("etc/link", "config"),
        Entry::folder("var"),
        Entry::file("var/large", random.bytes(70_000)).mode(0o600).owner(1000, 1000),
        Entry::pipe("var/pipe"),
    ])
}

fn folder(name: &str, seed: u64, files: u64) -> Result<Layer> {
    let mut random = Random::new(seed);
    let mut entries = vec![Entry::folder(name).mode(0o711)];
    for number in 0..files {
        let size = [0, 100, 4_096, 9_000, 20_000][random.below(5) as usize];
        let path = format!("{name}/f{number}");
        entries.push(
            Entry::file(&path, random.bytes(size)).mode(0o600 | (number as u32 % 8)).mtime(1_700_000_000 + number, 7),
        );
    }
    Layer::of(&entries)
}

/// Hides and replaces what lies below.
fn above(name: &str) -> Result<Layer> {
    Layer::of(&[
        Entry::folder(name).mode(0o755),
        Entry::whiteout(&format!("{name}/f1")),
        Entry::file(&format!("{name}/f2"), "another"),
        Entry::folder("var"),
        Entry::opaque("var"),
        Entry::file("var/own", Random::new(3).bytes(30_000)),
    ])
}

/// So many layers that the record of its pull is longer than two blocks.
fn many() -> Result<Vec<Layer>> {
    (0..110).map(|number| Layer::of(&[Entry::file(&format!("layer{number}"), format!("{number}"))])).collect()
}

/// Something to run, folder by folder: the reference is made by `tar`, which forgets the time of a folder that it comes back to.
fn busy() -> Result<Layer> {
    let mut entries = busybox_entries()?;
    entries.sort_by(|one, two| one.name.cmp(&two.name));
    Layer::of(&entries)
}

/// Long enough for checkpoints. Files of 64 KiB and more are written back as they come, others not before a barrier.
fn files(name: &str, count: u64, size: usize) -> Result<Layer> {
    let mut random = Random::new(21);
    let mut entries = vec![Entry::folder(name)];
    entries.extend((0..count).map(|number| Entry::file(&format!("{name}/f{number}"), random.bytes(size))));
    Layer::of(&entries)
}

/// As large as applications are in names, not in bytes: 6,000 entries in four layers.
fn real() -> Result<Vec<Layer>> {
    let mut random = Random::new(31);
    let mut layers = Vec::new();
    for layer in 0..4_u64 {
        let top = format!("srv{layer}");
        let mut entries: Vec<Entry> = match layer.checked_sub(1) {
            Some(below) => (0..8).map(|dir| Entry::whiteout(&format!("srv{below}/d{}/f0", dir * 5))).collect(),
            None => Vec::new(),
        };
        entries.push(Entry::folder(&top).mtime(1_650_000_000, 1));
        for dir in 0..50_u64 {
            let dir = format!("{top}/d{dir}");
            entries.push(Entry::folder(&dir).mode(0o755 - (dir.len() as u32 % 2) * 0o5));
            for file in 0..28_u64 {
                let path = format!("{dir}/f{file}");
                entries.push(match random.below(20) {
                    0 => Entry::symlink(&path, "f0"),
                    1 if file > 0 => Entry::hardlink(&path, &format!("{dir}/f0")),
                    2 => Entry::file(&path, random.bytes(300)).xattr("security.capability", file_capability(1 << 10)),
                    3 => Entry::file(&path, random.bytes(9_000)).mode(0o4755),
                    _ => {
                        let size = [0, 40, 200, 700, 2_500][random.below(5) as usize];
                        let size = if file == 0 { 64 } else { size };
                        let size = size + random.below(30) as usize;
                        Entry::file(&path, random.bytes(size))
                            .owner(random.below(3) as u32, 0)
                            .mtime(1_700_000_000, file as u32)
                    }
                });
            }
        }
        layers.push(Layer::of(&entries)?);
    }
    Ok(layers)
}
