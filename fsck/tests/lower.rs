//! Layers with hard links into the layers below: what was copied up is checked and mended like what came in the archive.

#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

mod common;

use baleen_fsck::{Code, EXIT_CORRECTED, Source};
use baleen_oci::{ChainId, DiffId, Digest};
use baleen_snapshotter::{Expectation, Extraction, LowerStack, Support};
use baleen_store::{LayerFact, LayerKey, Store};
use common::archive::Archive;
use common::{Scratch, add_image, damage, is_root, rich_layer};

struct Alone;

impl Source for Alone {
    fn containers_on(&self, _: &LayerKey) -> Vec<String> {
        Vec::new()
    }

    fn fetch(&self, _: &Store, _: &LayerKey) -> Result<bool, String> {
        Ok(false)
    }
}

#[test]
fn what_was_copied_up_from_a_lower_layer_is_checked_and_mended() {
    if !is_root("what_was_copied_up_from_a_lower_layer_is_checked_and_mended") {
        return;
    }
    let scratch = Scratch::new();
    let store = scratch.open();
    let image = add_image(&store, "base:1", &[rich_layer()]);
    let tar = Archive::default()
        .dir("n")
        .hard_link("n/program", "bin/program")
        .hard_link("n/again", "bin/program")
        .hard_link("n/ping", "bin/ping")
        .hard_link("n/sh", "bin/sh")
        .hard_link("n/through", "way/through")
        .hard_link("n/null", "dev/null")
        .end();
    let (diff_id, blob) = (DiffId(Digest::sha256_of(&tar)), Digest::sha256_of(&tar));
    let key = LayerKey { diff_id, parents: Some(ChainId::base(image.layers[0].diff_id)) };
    let partial = store.begin_partial(&blob).expect("a partial layer");
    let disk = store.disk().clone();
    let below = disk.open_dir(&store.layer_dir(&image.layers[0]).expect("the base"), b"fs").expect("its tree");
    let lower = LowerStack::new(disk.clone(), vec![below]);
    let support = Support { lower: Some(Box::new(lower)), ..Support::default() };
    let folder = disk.open_dir_in_root(partial.dir(), ".".as_ref()).expect("the folder");
    let expected = Expectation { blob: Some(blob), diff_id: Some(diff_id), ..Expectation::default() };
    let extraction = Extraction::start_with(disk, folder, expected, support).expect("it begins");
    extraction.feed(tar.clone()).expect("fed");
    let extracted = extraction.finish().expect("extracted");
    assert!(extracted.tree.depends_on_parents);
    let fact = LayerFact {
        key: key.clone(),
        blob,
        blob_size_bytes: tar.len() as u64,
        tar_size_bytes: extracted.tree.tar_size_bytes,
        unpacked_size_bytes: extracted.tree.unpacked_size_bytes,
        entries: extracted.tree.entries,
        recipe_size_bytes: extracted.tree.recipe_size_bytes,
        implied_directories: extracted.tree.implied_directories,
    };
    let mut txn = store.begin().expect("a transaction");
    txn.stage_layer(partial, fact);
    txn.commit().expect("stored");
    store.close().expect("closed");
    drop(store);
    assert_eq!(scratch.deep().findings, [], "{}", scratch.deep().to_text());

    let program = scratch.layer(&key).join("fs/bin/program");
    std::fs::write(&program, vec![1; 70_000]).expect("broken");
    std::fs::remove_file(scratch.layer(&key).join("fs/n/ping")).expect("broken");
    std::os::unix::fs::lchown(scratch.layer(&key).join("fs/bin/sh"), Some(7), None).expect("broken");
    let codes: Vec<Code> = damage(&scratch.deep()).into_iter().map(|(code, _)| code).collect();
    for code in [Code::FileContent, Code::NameMissing, Code::NodeOwner] {
        assert!(codes.contains(&code), "{code}: {codes:?}");
    }
    let (store, findings) = baleen_fsck::open(scratch.disk(), *b"another store id").expect("opens");
    let report = baleen_fsck::repair(&store, &Alone, findings, &mut |_| false).expect("a report");
    store.close().expect("closed");
    drop(store);
    assert_eq!(report.exit_code(), EXIT_CORRECTED, "{}", report.to_text());
    assert_eq!(damage(&scratch.deep()), []);
}
