//! The store's verbs on a real file system.

#![allow(clippy::disallowed_methods, reason = "a test looks at the disk from outside")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use baleen_oci::{ChainId, DiffId, Digest, ImageId};
use baleen_store::{
    ContainerFact, Desired, ImageFact, LayerFact, LayerKey, Opened, Owner, PullFact, PullLayer, Store, StoreError,
    SystemDisk, TagFact,
};

/// A directory of its own that goes when the test ends, however it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("baleen-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    fn open(&self) -> (Store, Opened) {
        self.try_open().expect("the store opens")
    }

    fn try_open(&self) -> Result<(Store, Opened), StoreError> {
        let disk = SystemDisk::open(&self.0).expect("the scratch directory opens");
        Store::open(Arc::new(disk), *b"a store of tests")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

fn key(text: &str) -> LayerKey {
    LayerKey::new(DiffId(digest(text)))
}

fn layer(text: &str) -> LayerFact {
    LayerFact {
        key: key(text),
        blob: digest(&format!("blob of {text}")),
        blob_size_bytes: 10,
        tar_size_bytes: 20,
        unpacked_size_bytes: 4,
        entries: 1,
        recipe_size_bytes: 1,
        implied_directories: false,
    }
}

/// Extracts a layer of one file, as the snapshotter would.
fn add_layer(store: &Store, text: &str) {
    let fact = layer(text);
    let partial = store.begin_partial(&fact.blob).expect("a partial layer");
    let disk = store.disk().clone();
    disk.create_dir(partial.dir(), b"fs", 0o755).expect("fs");
    let fs = disk.open_dir(partial.dir(), b"fs").expect("fs");
    let file = disk.create_file(&fs, b"file", 0o644).expect("a file");
    disk.write_at(&file, text.as_bytes(), 0).expect("contents");
    let mut txn = store.begin().expect("a transaction");
    txn.stage_layer(partial, fact);
    txn.commit().expect("a committed layer");
}

fn add_image(store: &Store, config: &str, layers: &[&str], tag: &str) -> ImageId {
    let (id, manifest) = (ImageId(digest(config)), format!("manifest of {config}"));
    let mut txn = store.begin().expect("a transaction");
    txn.stage_blob(&id.0, config.as_bytes()).expect("a config");
    txn.stage_blob(&digest(&manifest), manifest.as_bytes()).expect("a manifest");
    let layers = layers.iter().map(|text| key(text)).collect();
    txn.store_image(ImageFact { id, manifest: Some(digest(&manifest)), layers });
    txn.set_tag(TagFact { name: tag.to_owned(), image: id, set_at_seconds: 1 }).expect("a tag");
    txn.end_pull(&digest(&manifest));
    txn.commit().expect("a committed image");
    id
}

fn add_container(store: &Store, id: &str, name: &str, image: ImageId) -> Result<(), StoreError> {
    let mut txn = store.begin()?;
    let fact = ContainerFact { id: id.to_owned(), name: name.to_owned(), image, desired: Desired::Created };
    txn.stage_container(fact, |dir| {
        dir.file("config.json", 0o600, b"{}")?;
        dir.dir("upper", 0o755, 0, 0)?;
        dir.dir("work", 0o700, 0, 0)
    })?;
    txn.commit()
}

fn nobodys(store: &Store) -> Vec<String> {
    let owners = store.owners().expect("owners");
    owners.into_iter().filter(|owned| owned.owner == Owner::Nobody).map(|owned| owned.path).collect()
}

fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry"));
    let sizes = entries.map(|entry| match entry.file_type().expect("a type").is_dir() {
        true => 1 + bytes_below(&entry.path()),
        false => 1 + entry.metadata().expect("metadata").len(),
    });
    sizes.sum()
}

#[test]
fn what_was_committed_is_there_after_an_end_without_a_close() {
    let scratch = Scratch::new("reopen");
    let (store, opened) = scratch.open();
    assert!(opened.created && opened.clean);
    add_layer(&store, "base");
    let image = add_image(&store, "config", &["base"], "app:1");
    add_container(&store, &"c".repeat(64), "one", image).expect("a container");
    drop(store);

    let (store, opened) = scratch.open();
    assert!(!opened.created && !opened.clean);
    assert_eq!(opened.missing, Vec::<String>::new());
    assert_eq!(store.tag("app:1").map(|tag| tag.image), Some(image));
    assert_eq!(store.image(&image).map(|image| image.layers), Some(vec![key("base")]));
    assert_eq!(store.read_blob(&image.0).expect("the config"), b"config");
    assert_eq!(store.container(&"c".repeat(64)).map(|container| container.name), Some("one".to_owned()));
    store.layer_dir(&key("base")).expect("the layer's folder");
    store.container_dir(&"c".repeat(64)).expect("the container's folder");
    assert_eq!(nobodys(&store), Vec::<String>::new());
    store.close().expect("a close");
    drop(store);
    assert!(scratch.open().1.clean, "a closed store opens clean");
}

#[test]
fn a_second_opening_is_refused_while_the_first_lives() {
    let scratch = Scratch::new("lock");
    let (store, _) = scratch.open();
    assert!(matches!(scratch.try_open(), Err(StoreError::InUse)));
    drop(store);
    scratch.open();
}

#[test]
fn a_directory_that_is_no_store_is_refused_and_left_alone() {
    let scratch = Scratch::new("foreign");
    std::fs::write(scratch.0.join("letters.txt"), "dear").expect("a file");
    assert!(matches!(scratch.try_open(), Err(StoreError::NotAStore { found }) if found == "letters.txt"));
    assert_eq!(std::fs::read_dir(&scratch.0).expect("the directory").count(), 1);
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_name_and_left_alone() {
    let scratch = Scratch::new("newer");
    drop(scratch.open());
    let path = scratch.0.join("FORMAT");
    let mut bytes = std::fs::read(&path).expect("FORMAT");
    bytes[8] = 7;
    bytes[70] ^= 0xff; // Its checksum is its own: with ours, one flipped bit would make a store look newer.
    std::fs::write(&path, bytes).expect("FORMAT");
    let before = bytes_below(&scratch.0);
    assert!(matches!(scratch.try_open(), Err(StoreError::NewerFormat { found, .. }) if found == "version 7"));
    assert_eq!(bytes_below(&scratch.0), before);
}

#[test]
fn after_removal_of_everything_the_root_is_as_large_as_an_empty_store() {
    let scratch = Scratch::new("remove");
    let (store, _) = scratch.open();
    let empty = bytes_below(&scratch.0);
    drop(store);
    drop(scratch.open());
    let (store, _) = scratch.open();
    for text in ["base", "middle", "top"] {
        add_layer(&store, text);
    }
    let one = add_image(&store, "one", &["base", "middle"], "app:1");
    let two = add_image(&store, "two", &["base", "top"], "app:2");
    add_container(&store, &"d".repeat(64), "user", one).expect("a container");
    assert!(matches!(store.remove_image(&one), Err(StoreError::ImageInUse { .. })));
    store.remove_container(&"d".repeat(64)).expect("the removal of the container");
    let removed = store.remove_image(&one).expect("the removal of the first image");
    assert_eq!((removed.tags, removed.layers), (vec!["app:1".to_owned()], vec![digest("middle")]));
    store.layer_dir(&key("base")).expect("the shared layer stays");
    store.remove_image(&two).expect("the removal of the second image");
    store.empty_trash(u64::MAX).expect("an empty trash");
    assert_eq!(nobodys(&store), Vec::<String>::new());
    assert_eq!(bytes_below(&scratch.0), empty);
}

#[test]
fn a_pull_that_has_begun_keeps_its_layers_and_a_lease_what_it_found() {
    let scratch = Scratch::new("collect");
    let (store, _) = scratch.open();
    let layers = ["kept", "lost"].map(|text| PullLayer { blob: layer(text).blob, blob_size_bytes: 10, key: key(text) });
    store.begin_pull(PullFact { manifest: digest("m"), layers: layers[..1].to_vec() }).expect("a pull");
    for text in ["kept", "lost", "leased"] {
        add_layer(&store, text);
    }
    let lease = store.lease();
    assert!(lease.layer(&key("leased")).is_some());
    assert_eq!(store.collect().expect("a collection").layers, vec![digest("lost")]);
    drop(lease);
    assert_eq!(store.collect().expect("a collection").layers, vec![digest("leased")]);
    assert_eq!(store.forget_pulls().expect("a collection").layers, vec![digest("kept")]);
}

#[test]
fn a_name_of_a_container_belongs_to_one() {
    let scratch = Scratch::new("names");
    let (store, _) = scratch.open();
    let image = add_image(&store, "config", &[], "app:1");
    add_container(&store, &"a".repeat(64), "web", image).expect("a container");
    let second = add_container(&store, &"b".repeat(64), "web", image);
    assert!(matches!(second, Err(StoreError::NameTaken { .. })));
    store.empty_trash(u64::MAX).expect("an empty trash");
    assert_eq!(nobodys(&store), Vec::<String>::new());
    let renamed = ContainerFact { id: "a".repeat(64), name: "db".to_owned(), image, desired: Desired::Running };
    store.change_container(renamed.clone()).expect("a change");
    add_container(&store, &"b".repeat(64), "web", image).expect("the free name");
    drop(store);
    assert_eq!(scratch.open().0.container(&"a".repeat(64)), Some(renamed));
}

#[test]
fn many_callers_share_the_log_and_none_is_lost() {
    let scratch = Scratch::new("many");
    let (store, _) = scratch.open();
    let image = add_image(&store, "config", &[], "app:0");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = store.clone();
            scope.spawn(move || {
                for number in 0..40 {
                    let mut txn = store.begin().expect("a transaction");
                    let name = format!("app:{thread}-{number}");
                    txn.set_tag(TagFact { name, image, set_at_seconds: 1 }).expect("a tag");
                    txn.commit().expect("a commit");
                }
            });
        }
    });
    store.compact().expect("a compaction");
    store.compact().expect("another");
    drop(store);
    let (store, _) = scratch.open();
    assert_eq!(store.tags().len(), 8 * 40 + 1);
    assert_eq!(nobodys(&store), Vec::<String>::new());
}

#[test]
fn the_log_compacts_itself_and_keeps_every_fact() {
    let scratch = Scratch::new("compact");
    let (store, _) = scratch.open();
    let image = add_image(&store, "config", &[], "app:0");
    for number in 0..1400 {
        let mut txn = store.begin().expect("a transaction");
        txn.set_tag(TagFact { name: format!("app:{}", number % 10), image, set_at_seconds: number }).expect("a tag");
        txn.commit().expect("a commit");
    }
    let segments = std::fs::read_dir(scratch.0.join("wal")).expect("the log").count();
    assert!(segments < 40, "{segments} segments");
    drop(store);
    let (store, _) = scratch.open();
    let times: i64 = store.tags().iter().map(|tag| tag.set_at_seconds).sum();
    assert_eq!((store.tags().len(), times), (10, (1390..1400).sum()));
}

#[test]
fn an_image_without_its_layer_or_its_blobs_is_refused() {
    let scratch = Scratch::new("needs");
    let (store, _) = scratch.open();
    let id = ImageId(digest("config"));
    let mut txn = store.begin().expect("a transaction");
    txn.store_image(ImageFact { id, manifest: None, layers: vec![] });
    assert!(matches!(txn.commit(), Err(StoreError::BlobMissing { .. })));
    let mut txn = store.begin().expect("a transaction");
    assert!(matches!(txn.stage_blob(&id.0, b"other bytes"), Err(StoreError::BlobCorrupt { .. })));
    txn.stage_blob(&id.0, b"config").expect("a config");
    let stacked = LayerKey { parents: Some(ChainId(digest("p"))), ..key("none") };
    txn.store_image(ImageFact { id, manifest: None, layers: vec![stacked] });
    assert!(matches!(txn.commit(), Err(StoreError::LayerMissing { .. })));
    assert_eq!(store.images(), vec![]);
    store.empty_trash(u64::MAX).expect("an empty trash");
    assert_eq!(nobodys(&store), Vec::<String>::new());
}

#[test]
fn whoever_empties_the_trash_waits_for_the_other() {
    let scratch = Scratch::new("empty");
    let (store, _) = scratch.open();
    for text in ["base", "middle", "top"] {
        add_layer(&store, text);
    }
    store.collect().expect("a collection");
    std::thread::scope(|scope| {
        let emptiers: Vec<_> =
            (0..4).map(|_| scope.spawn(|| store.empty_trash(u64::MAX).expect("an empty trash"))).collect();
        let names: u64 = emptiers.into_iter().map(|emptier| emptier.join().expect("no panic").names).sum();
        assert_eq!(names, 3 * 3, "a folder, its tree and its file for each layer, each removed once");
    });
}

fn begin_cut_pull(store: &Store, text: &str, tree_bytes: u64) {
    let fact = layer(text);
    let pulled = PullLayer { blob: fact.blob, blob_size_bytes: 10, key: fact.key.clone() };
    let pull = PullFact { manifest: digest(&format!("pull of {text}")), layers: vec![pulled] };
    assert!(!store.begin_pull(pull.clone()).expect("a pull"), "begun before");
    assert!(store.begin_pull(pull).expect("a pull"), "not begun before");
    let partial = store.begin_partial(&fact.blob).expect("a partial layer");
    assert_eq!(partial.checkpoint(), None);
    partial.checkpoints().save(text.as_bytes(), tree_bytes).expect("a checkpoint");
    partial.keep();
}

#[test]
fn a_cut_layer_is_kept_over_a_start_while_its_pull_is_and_no_longer() {
    let scratch = Scratch::new("kept");
    let (store, _) = scratch.open();
    begin_cut_pull(&store, "base", 4096);
    // Nobody's pull: it goes.
    let stray = store.begin_partial(&digest("stray")).expect("a partial layer");
    stray.checkpoints().save(b"state", 1).expect("a checkpoint");
    stray.keep();
    drop(store);
    let (store, opened) = scratch.open();
    assert_eq!((opened.resumable.len(), opened.discarded.len()), (1, 1), "{opened:?}");
    assert_eq!(nobodys(&store), Vec::<String>::new());
    let partial = store.begin_partial(&layer("base").blob).expect("a partial layer");
    let checkpoint = partial.checkpoint().expect("the checkpoint");
    assert_eq!((&checkpoint.state[..], checkpoint.tree_bytes), (&b"base"[..], 4096));
    let partial = partial.start_over().expect("an empty folder");
    assert_eq!(partial.checkpoint(), None);
    partial.keep();
    assert_eq!(store.begin_partial(&layer("base").blob).expect("an empty folder").checkpoint(), None);
    store.close().expect("closed");
}

#[test]
fn cut_pulls_are_given_up_oldest_first_beyond_an_eighth_of_the_disk_but_never_the_last() {
    let scratch = Scratch::new("bounds");
    let (store, _) = scratch.open();
    let eighth = store.space().expect("space").total_bytes / 8;
    for (text, part) in [("first", 3), ("second", 2), ("third", 8)] {
        begin_cut_pull(&store, text, eighth / 10 * part);
    }
    store.collect().expect("collected");
    let left = |store: &Store| store.pulls().iter().map(|pull| pull.manifest).collect::<Vec<_>>();
    let pull = |text: &str| digest(&format!("pull of {text}"));
    assert_eq!(left(&store), [pull("second"), pull("third")]);
    begin_cut_pull(&store, "giant", eighth * 2);
    store.collect().expect("collected");
    assert_eq!(left(&store), [pull("giant")]);
    assert!(store.begin_partial(&layer("giant").blob).expect("a partial layer").checkpoint().is_some());
    assert_eq!(store.begin_partial(&layer("second").blob).expect("a partial layer").checkpoint(), None);
    store.forget_pulls().expect("forgotten");
    assert_eq!(std::fs::read_dir(scratch.0.join("partial")).expect("partial").count(), 0);
}
