//! A layer in the store and its tar are one source: what is made from the one is applied to the other.

#[path = "../../snapshotter/tests/common/mod.rs"]
mod common;

use std::io::Cursor;
use std::sync::Arc;

use baleen_delta::{
    Decoder, DeltaError, Options, PayloadFacts, ReadAt, SourceLayer, StoredLayer, TarLayer, Target, encode,
};
use baleen_oci::{DiffId, Digest};
use common::archive::generated;
use common::{Layer, expectation_of, is_root, sh};

fn all(bytes: &dyn ReadAt) -> Vec<u8> {
    let mut read = vec![0; bytes.size_bytes() as usize];
    bytes.read_exact_at(&mut read, 0).unwrap();
    read
}

fn facts(layer: &dyn SourceLayer) -> Vec<PayloadFacts> {
    let mut facts = Vec::new();
    layer.for_each(&mut |found| facts.push(found)).unwrap();
    facts
}

fn diff_id(tar: &[u8]) -> DiffId {
    DiffId(Digest::sha256_of(tar))
}

/// Extracts a tar, if it can be, and compares the two views of it. Gives the number of payloads.
fn compare(tar: &[u8]) -> Option<usize> {
    let layer = Layer::new();
    layer.extract(tar, 10_000, expectation_of(tar, tar)).ok()?;
    let stored = StoredLayer::open(Arc::clone(&layer.disk), layer.dir()).unwrap();
    let of_tar = TarLayer::open(diff_id(tar), tar.to_vec()).unwrap();
    assert_eq!(stored.diff_id(), of_tar.diff_id());
    assert!(all(&*stored.skeleton().unwrap()) == all(&*of_tar.skeleton().unwrap()), "the skeletons differ");
    let (in_store, in_tar) = (facts(&stored), facts(&of_tar));
    assert_eq!(in_store.len(), in_tar.len());
    for (ours, theirs) in in_store.iter().zip(&in_tar) {
        // Paths differ where links lead elsewhere.
        assert_eq!(
            PayloadFacts { path: Vec::new(), ..ours.clone() },
            PayloadFacts { path: Vec::new(), ..theirs.clone() }
        );
        assert_eq!(stored.facts(ours.index).unwrap(), *ours);
        assert!(all(&*stored.open(ours.index).unwrap()) == all(&*of_tar.open(ours.index).unwrap()), "payload {ours:?}");
    }
    assert!(stored.open(in_store.len() as u64).is_err());
    assert!(stored.facts(u64::MAX).is_err());
    Some(in_store.len())
}

#[test]
fn a_stored_layer_shows_the_same_payloads_and_skeleton_as_its_tar() {
    if !is_root("a_stored_layer_shows_the_same_payloads_and_skeleton_as_its_tar") {
        return;
    }
    let (mut payloads, mut archives) = (0, 0);
    for seed in 1..200 {
        println!("seed {seed}");
        if let Some(count) = compare(&generated(seed)) {
            payloads += count;
            archives += 1;
        }
    }
    assert!(archives > 50 && payloads > 70, "{archives} archives with {payloads} payloads were compared");
}

#[test]
fn sparse_files_long_names_and_replaced_files_are_the_same_source_stored_and_as_a_tar() {
    if !is_root("sparse_files_long_names_and_replaced_files_are_the_same_source_stored_and_as_a_tar") {
        return;
    }
    let scratch = common::Scratch::new();
    let tree = scratch.dir("tree");
    sh(
        &tree,
        "mkdir -p a/deep; printf hello > a/one; truncate -s 300000 a/sparse; printf x | dd of=a/sparse bs=1 seek=200000 conv=notrunc 2>&1
         printf long > a/deep/$(printf %0180d 7); ln a/one a/two; seq 20000 > a/numbers; : > a/empty; ln -s one a/link",
    );
    for format in ["gnu", "pax", "posix"] {
        for sparse in ["0.0", "0.1", "1.0"] {
            let tar = sh(&tree, &format!("tar -c --format={format} --sparse --sparse-version={sparse} a"));
            assert_eq!(compare(&tar), Some(4), "{format} {sparse}");
            // The same twice: the first is replaced, and kept.
            let twice =
                [&tar[..tar.len() / 10240 * 10240 - 10240 * usize::from(tar.ends_with(&[0; 10240]))], &tar].concat();
            compare(&twice);
        }
    }
}

#[test]
fn a_delta_of_two_tars_applies_to_the_stored_layer_and_names_a_file_that_changed_in_it() {
    if !is_root("a_delta_of_two_tars_applies_to_the_stored_layer_and_names_a_file_that_changed_in_it") {
        return;
    }
    let scratch = common::Scratch::new();
    let tree = scratch.dir("tree");
    sh(&tree, "mkdir a; seq 30000 > a/numbers; seq 5 > a/few; cp /bin/ls a/program");
    let old = sh(&tree, "tar -c a");
    sh(&tree, "sed -i s/777/999/ a/numbers; mv a/program a/moved; touch -d 2020-01-01 a/few");
    let new = sh(&tree, "tar -c a");
    let layer = Layer::new();
    layer.extract(&old, 10_000, expectation_of(&old, &old)).unwrap();
    let of_tar = TarLayer::open(diff_id(&old), old.clone()).unwrap();
    let mut delta = Vec::new();
    let targets = [Target { diff_id: diff_id(&new), tar: &new }];
    let (config, mut waiting) = (Digest::sha256_of(b"config"), Cursor::new(Vec::new()));
    encode(&config, &[&of_tar], &targets, &Options::default(), &mut waiting, &mut delta).unwrap();
    assert!(delta.len() < new.len() / 50, "the delta has {} bytes", delta.len());
    let apply = || -> Result<Vec<u8>, DeltaError> {
        let stored = vec![StoredLayer::open(Arc::clone(&layer.disk), layer.dir()).unwrap()];
        let mut decoder = Decoder::new(delta.as_slice(), &stored, 32 << 20)?;
        let mut tar = Vec::new();
        while decoder.next_frame(&mut tar)?.is_some() {}
        Ok(tar)
    };
    assert!(apply().unwrap() == new);
    // One byte changes on the disk, then the file is shorter, then it is gone.
    let path = layer.tree().join("a/numbers");
    let mut contents = std::fs::read(&path).unwrap();
    contents[5000] ^= 1;
    std::fs::write(&path, &contents).unwrap();
    assert!(matches!(apply(), Err(DeltaError::SourceDamaged { .. })));
    std::fs::write(&path, &contents[..1000]).unwrap();
    assert!(matches!(apply(), Err(DeltaError::SourceDamaged { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(apply(), Err(DeltaError::Source { .. })));
}
