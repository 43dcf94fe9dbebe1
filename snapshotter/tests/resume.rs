//! Extractions that are cut and gone on with: the layer is the one that no cut would have made, bit for bit.
#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baleen_snapshotter::{
    CheckpointPolicy, CheckpointSink, Expectation, ExtractError, Extracted, Extraction, Intervals, Pace, Support,
};
use baleen_store::StoreError;
use common::archive::*;
use common::*;

/// A sink in memory: the states since the last that was given up.
#[derive(Clone, Default)]
struct States {
    states: Arc<Mutex<Vec<Vec<u8>>>>,
    saved: Arc<AtomicU64>,
}

impl CheckpointSink for States {
    fn save(&self, state: &[u8], _: u64) -> Result<(), StoreError> {
        self.states.lock().unwrap().push(state.to_vec());
        self.saved.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.states.lock().unwrap().clear();
        Ok(())
    }
}

impl States {
    fn last(&self) -> Option<Vec<u8>> {
        self.states.lock().unwrap().last().cloned()
    }
}

/// Checkpoints as often as the stream has places for them, `output_bytes` apart at least.
fn support(states: &States, output_bytes: u64) -> Support {
    let now = AtomicU64::new(0);
    let clock = Box::new(move || Duration::from_secs(now.fetch_add(1, Ordering::Relaxed)));
    let intervals = Intervals {
        output_bytes,
        output_bytes_min: output_bytes,
        spacing: Duration::ZERO,
        spacing_min: Duration::ZERO,
        ..Intervals::default()
    };
    let pace = Arc::new(Pace::new(intervals, clock));
    let checkpoints = CheckpointPolicy { sink: Box::new(states.clone()), pace, cuts: 0, beside: true };
    Support { checkpoints: Some(checkpoints), ..Support::default() }
}

/// A layer as it lies on the disk: the tree with its root, and what is kept.
struct Snapshot {
    nodes: Vec<Node>,
    /// Mode, owner and time of the root.
    root: (u32, u32, u32, i64, i64),
    kept: Vec<(String, Vec<u8>)>,
    names: Vec<String>,
}

fn snapshot(layer: &Layer) -> Snapshot {
    let root = std::fs::metadata(layer.tree()).unwrap();
    let mut kept = Vec::new();
    let dir = layer.scratch.path().join("layer");
    if let Ok(entries) = std::fs::read_dir(dir.join("kept")) {
        for entry in entries.map(Result::unwrap) {
            let contents = std::fs::read(entry.path()).unwrap_or_default();
            kept.push((entry.file_name().into_string().unwrap(), contents));
        }
    }
    kept.sort();
    let mut nodes = list(&layer.tree());
    for node in nodes.iter_mut().filter(|node| node.kind == "char" && node.device == 0) {
        node.modified = (0, 0); // A whiteout's time means nothing, and is when it was made.
    }
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let root = (root.mode(), root.uid(), root.gid(), root.mtime(), root.mtime_nsec());
    Snapshot { nodes, root, kept, names }
}

fn assert_snapshots_agree(found: &Layer, expected: &Layer, case: &str) {
    let (found, expected) = (snapshot(found), snapshot(expected));
    assert_same(&found.nodes, &expected.nodes);
    assert_eq!(found.root, expected.root, "{case}: the root differs");
    assert!(found.kept == expected.kept, "{case}: what is kept differs");
    assert_eq!(found.names, expected.names, "{case}: the layer's directory differs");
}

/// When an extraction is cut.
#[derive(Clone, Copy)]
enum Until {
    /// After this many bytes.
    Fed(u64),
    /// Never.
    End,
    /// Never, and each state is saved before the next bytes come.
    EndSettled,
}

/// How one extraction went.
enum Went {
    Done(Box<Extracted>),
    Cut,
}

/// Extracts until `fed_max` bytes were fed in all, from the last state if there is one.
fn attempt(
    layer: &Layer,
    blob: &[u8],
    expected: &Expectation,
    states: &States,
    output_bytes: u64,
    part: usize,
    until: Until,
) -> Result<Went, ExtractError> {
    let support = support(states, output_bytes);
    let (extraction, offset) = match states.last() {
        Some(state) => Extraction::resume(layer.disk.clone(), layer.dir(), expected.clone(), support, &state)?,
        None => {
            layer.reset();
            (Extraction::start_with(layer.disk.clone(), layer.dir(), expected.clone(), support)?, 0)
        }
    };
    let mut fed = 0;
    let progress = extraction.progress();
    for chunk in blob[offset as usize..].chunks(part) {
        if matches!(until, Until::Fed(most) if fed >= most) {
            extraction.abort();
            return Ok(Went::Cut);
        }
        if extraction.feed(chunk.to_vec()).is_err() {
            break;
        }
        fed += chunk.len() as u64;
        let lags =
            || progress.blob_bytes() < offset + fed || states.saved.load(Ordering::Relaxed) < progress.checkpoints();
        while matches!(until, Until::EndSettled) && lags() {
            std::thread::yield_now();
        }
    }
    extraction.finish().map(|extracted| Went::Done(Box::new(extracted)))
}

/// Extracts `blob` with cuts after random bytes, and compares with an extraction without any. Gives the cuts that went on
/// from a checkpoint.
fn cut_at_random(blob: &[u8], tar: &[u8], seed: u64, output_bytes: u64, part: usize) -> u64 {
    let case = format!("seed {seed}");
    let expected = expectation_of(blob, tar);
    let whole = Layer::new();
    let undisturbed = whole.extract(blob, part, expected.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let layer = Layer::new();
    let states = States::default();
    let mut random = Random(seed);
    let mut resumed = 0;
    for _ in 0..1000 {
        resumed += u64::from(states.last().is_some());
        // Now and then a long one, so that it ends.
        let until =
            if random.below(12) == 0 { Until::End } else { Until::Fed(1 + random.below(blob.len() as u64 / 3 + 1)) };
        let went = attempt(&layer, blob, &expected, &states, output_bytes, part, until);
        match went.unwrap_or_else(|error| panic!("{case}: {}", chain(&error))) {
            Went::Cut => {}
            Went::Done(extracted) => {
                assert_eq!(extracted.blob, undisturbed.blob);
                assert_eq!(extracted.diff_id, undisturbed.diff_id);
                let (mut found, mut expected) = (extracted.tree, undisturbed.tree);
                // Frames end where checkpoints were.
                (found.recipe_size_bytes, expected.recipe_size_bytes) = (0, 0);
                assert_eq!(found, expected, "{case}");
                assert_snapshots_agree(&layer, &whole, &case);
                assert!(layer.rebuilt().unwrap_or_else(|error| panic!("{case}: {}", chain(&error))) == tar);
                return resumed;
            }
        }
    }
    panic!("{case}: it never ends");
}

/// A tree with every kind of node, as a tar of GNU tar in PAX format.
fn sample(scratch: &Scratch) -> Vec<u8> {
    let tree = scratch.dir("sample");
    sh(
        &tree,
        r#"
        mkdir -p etc usr/bin usr/lib/deep/er var/mail many
        head -c 300000 /dev/urandom > usr/lib/large; head -c 4096 /dev/urandom > usr/lib/page
        head -c 12289 /dev/urandom > usr/lib/pages; printf '' > etc/empty
        echo tool > usr/bin/tool; chown 12:34 usr/bin/tool; chmod 4755 usr/bin/tool
        ln usr/bin/tool usr/bin/hard; ln -s tool usr/bin/soft; ln usr/bin/soft usr/bin/soft2
        ln -s /usr/lib lib; mknod usr/null c 1 3; mkfifo usr/fifo; chown 5:6 usr/null usr/fifo
        chmod 2775 var/mail; chgrp 8 var/mail; echo m > var/mail/m; chown 1000:8 var/mail/m
        for n in $(seq 300); do echo $n > many/$n; done
        echo caps > usr/bin/caps; setcap cap_net_raw+ep usr/bin/caps
        setfattr -n user.note -v hello usr/lib/page; setfattr -n user.dir -v there usr/lib/deep
        truncate -s 3M usr/lib/sparse; for at in 100 5000 70000 1200000; do head -c 9000 /dev/urandom | dd of=usr/lib/sparse bs=1 seek=$at conv=notrunc 2>/dev/null; done
        n=$(printf 'n%.0s' $(seq 150)); mkdir -p usr/$n/$n; echo long > usr/$n/$n/$n; ln -s $n/$n/$n usr/longlink
        touch -h -d '2001-02-03 04:05:06.123456789' usr/bin/soft
        find . -type d -exec touch -d '2020-01-01 00:00:00.25' {} +
        "#,
    );
    run(Command::new("tar")
        .args(["--format=pax", "--xattrs", "--xattrs-include=*", "-S", "-cf", "-", "."])
        .current_dir(tree))
}

/// `tar`, in every compression that can be taken up again.
fn blobs(tar: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let third = tar.len() / 3;
    let zstd: Vec<u8> =
        tar.chunks(20_000).flat_map(|part| pipe(Command::new("zstd").args(["-1", "-q"]), part)).collect();
    let members = [
        pipe(Command::new("gzip").arg("-1"), &tar[..third]),
        pipe(Command::new("gzip").arg("-9"), &tar[third..]),
        vec![0; 1000],
    ];
    vec![
        ("plain", tar.to_vec()),
        ("gzip", pipe(Command::new("gzip").arg("-6"), tar)),
        ("members", members.concat()),
        ("frames", zstd),
    ]
}

#[test]
fn a_layer_of_every_kind_of_node_is_the_same_however_often_it_was_cut() {
    if !is_root("a_layer_of_every_kind_of_node_is_the_same_however_often_it_was_cut") {
        return;
    }
    let scratch = Scratch::new();
    let tar = sample(&scratch);
    for (name, blob) in blobs(&tar) {
        let mut resumed = 0;
        for seed in 0..2 {
            for (output_bytes, part) in [(1, 1000), (20_000, 4093), (100_000, 70_001)] {
                resumed += cut_at_random(&blob, &tar, seed, output_bytes, part);
            }
        }
        println!("{name}: {resumed} times gone on");
        assert!(resumed > 5, "{name}: {resumed} times gone on");
    }
}

#[test]
fn generated_archives_are_the_same_however_often_they_were_cut() {
    if !is_root("generated_archives_are_the_same_however_often_they_were_cut") {
        return;
    }
    let (mut good, mut resumed) = (0, 0);
    for seed in 0.. {
        if good == 100 {
            break;
        }
        let tar = generated(seed);
        let layer = Layer::new();
        if layer.extract(&tar, 1000, expectation_of(&tar, &tar)).is_err() {
            continue;
        }
        good += 1;
        resumed += cut_at_random(&tar, &tar, seed, 1, 300);
    }
    println!("{resumed} times gone on");
    assert!(resumed > 100, "{resumed} times gone on");
}

#[test]
fn every_state_of_a_layer_leads_to_the_same_layer() {
    if !is_root("every_state_of_a_layer_leads_to_the_same_layer") {
        return;
    }
    let scratch = Scratch::new();
    let tar = sample(&scratch);
    let gzip = pipe(Command::new("gzip").arg("-6"), &tar);
    let expected = expectation_of(&gzip, &tar);
    let whole = Layer::new();
    whole.extract(&gzip, 5000, expected.clone()).unwrap();
    let mut number = 0;
    loop {
        // The whole layer is there when it is gone on from each of its states: all after it is what a cut may leave.
        let layer = Layer::new();
        let states = States::default();
        attempt(&layer, &gzip, &expected, &states, 1, 5000, Until::EndSettled).unwrap();
        let Some(state) = states.states.lock().unwrap().get(number).cloned() else { break };
        *states.states.lock().unwrap() = vec![state];
        let went = attempt(&layer, &gzip, &expected, &states, 1, 3000, Until::End);
        let went = went.unwrap_or_else(|error| panic!("state {number}: {}", chain(&error)));
        assert!(matches!(went, Went::Done(_)));
        assert_snapshots_agree(&layer, &whole, &format!("state {number}"));
        assert!(layer.rebuilt().unwrap() == tar);
        number += 1;
    }
    println!("{number} states");
    assert!(number > 8, "{number} states");
}

#[test]
fn a_stream_without_a_place_to_go_on_says_so() {
    if !is_root("a_stream_without_a_place_to_go_on_says_so") {
        return;
    }
    let tar = Archive::default().file("f", &vec![7; 80 << 20]).end();
    let zstd = pipe(Command::new("zstd").args(["-1", "-q"]), &tar);
    let gzip = pipe(Command::new("gzip").arg("-1"), &tar);
    for (blob, checkpointable) in [(&zstd, false), (&gzip, true)] {
        let layer = Layer::new();
        let states = States::default();
        let expected = expectation_of(blob, &tar);
        let extraction =
            Extraction::start_with(layer.disk.clone(), layer.dir(), expected, support(&states, 1 << 20)).unwrap();
        let progress = extraction.progress();
        assert!(progress.checkpointable(), "nothing is known yet");
        for chunk in blob.chunks(1000) {
            extraction.feed(chunk.to_vec()).unwrap();
        }
        extraction.finish().unwrap();
        assert_eq!(progress.checkpointable(), checkpointable);
        assert_eq!(progress.checkpoints() > 0, checkpointable);
    }
}

/// A layer that was cut in the middle of its file `large`, and the state it goes on from.
fn cut_layer() -> (Layer, Vec<u8>, Vec<u8>, Vec<u8>) {
    let tar = Archive::default()
        .dir("d")
        .file("d/small", b"small")
        .symlink("away", "/etc")
        .file("large", &Random(5).bytes(400_000))
        .file("d/after", b"after")
        .end();
    let layer = Layer::new();
    let states = States::default();
    let went = attempt(&layer, &tar, &expectation_of(&tar, &tar), &states, 100_000, 10_000, Until::Fed(300_000));
    assert!(matches!(went.unwrap(), Went::Cut));
    let state = states.last().expect("a state in the middle of the file");
    (layer, tar.clone(), tar, state)
}

fn go_on(layer: &Layer, blob: &[u8], expected: Expectation, state: &[u8]) -> Result<Extracted, ExtractError> {
    let states = States::default();
    let support = support(&states, 100_000);
    let (extraction, offset) = Extraction::resume(layer.disk.clone(), layer.dir(), expected, support, state)?;
    for chunk in blob[offset as usize..].chunks(10_000) {
        if extraction.feed(chunk.to_vec()).is_err() {
            break;
        }
    }
    extraction.finish()
}

fn assert_refused(result: Result<Extracted, ExtractError>, case: &str) {
    let error = result.map(drop).expect_err(case);
    assert!(matches!(error, ExtractError::NotResumable { .. }), "{case}: {}", chain(&error));
    assert!(error.calls_for_a_new_start(), "{case}");
}

#[test]
fn a_state_that_does_not_belong_to_layer_or_expectation_is_refused() {
    if !is_root("a_state_that_does_not_belong_to_layer_or_expectation_is_refused") {
        return;
    }
    let (layer, tar, blob, state) = cut_layer();
    let expected = expectation_of(&blob, &tar);
    let other = expectation_of(&blob[1..], &tar[1..]);
    for (case, expected) in [
        ("another blob", Expectation { blob: other.blob, ..expected.clone() }),
        ("another diff ID", Expectation { diff_id: other.diff_id, ..expected.clone() }),
        ("another size", Expectation { size_bytes: Some(blob.len() as u64 + 1), ..expected.clone() }),
    ] {
        assert_refused(go_on(&layer, &blob, expected, &state), case);
    }
    let empty = Layer::new();
    assert!(go_on(&empty, &blob, expected.clone(), &state).is_err(), "an empty directory");
    // None of that was an attempt: it still goes on.
    go_on(&layer, &blob, expected, &state).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(layer.rebuilt().unwrap() == tar);
}

#[test]
fn a_changed_byte_of_a_state_or_recipe_is_an_error_or_the_same_layer() {
    if !is_root("a_changed_byte_of_a_state_or_recipe_is_an_error_or_the_same_layer") {
        return;
    }
    let (mut refused, mut same) = (0, 0);
    let mut random = Random(7);
    for _ in 0..60 {
        let (layer, tar, blob, mut state) = cut_layer();
        let at = random.below(state.len() as u64) as usize;
        state[at] ^= 1 << random.below(8);
        match go_on(&layer, &blob, expectation_of(&blob, &tar), &state) {
            Err(_) => refused += 1,
            // The store has a checksum over the state. Even without it no other archive comes out of the layer unnoticed.
            Ok(_) => match layer.rebuilt() {
                Err(_) => refused += 1,
                Ok(rebuilt) => {
                    assert!(rebuilt == tar, "byte {at}");
                    same += 1;
                }
            },
        }
        let outside = list(layer.scratch.path());
        assert!(outside.iter().all(|node| node.path == b"layer" || node.path.starts_with(b"layer/")), "byte {at}");
    }
    println!("{refused} refused, {same} the same");
    assert!(refused > 20);
    let (layer, tar, blob, state) = cut_layer();
    let recipe = layer.scratch.path().join("layer/recipe");
    let mut bytes = std::fs::read(&recipe).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&recipe, bytes).unwrap();
    assert_refused(go_on(&layer, &blob, expectation_of(&blob, &tar), &state), "a damaged recipe");
}

#[test]
fn a_tree_that_somebody_changed_meanwhile_leads_the_writer_nowhere() {
    if !is_root("a_tree_that_somebody_changed_meanwhile_leads_the_writer_nowhere") {
        return;
    }
    type Change = fn(&Path, &Path);
    let changes: [(&str, Change, bool); 9] = [
        (
            "the file in progress is a link",
            |fs, canary| {
                std::fs::remove_file(fs.join("large")).unwrap();
                std::os::unix::fs::symlink(canary, fs.join("large")).unwrap();
            },
            true,
        ),
        (
            "the file in progress is a hard link",
            |fs, canary| {
                std::fs::remove_file(fs.join("large")).unwrap();
                std::fs::hard_link(canary, fs.join("large")).unwrap();
            },
            true,
        ),
        (
            "the file in progress has another name",
            |fs, canary| {
                std::fs::hard_link(fs.join("large"), canary.with_file_name("second")).unwrap();
            },
            true,
        ),
        (
            "the file in progress is a copy",
            |fs, _| {
                std::fs::copy(fs.join("large"), fs.join("copy")).unwrap();
                std::fs::rename(fs.join("copy"), fs.join("large")).unwrap();
            },
            true,
        ),
        (
            "the file in progress is short",
            |fs, _| {
                std::fs::File::options().write(true).open(fs.join("large")).unwrap().set_len(1000).unwrap();
            },
            true,
        ),
        (
            "the directory is a link",
            |fs, canary| {
                std::fs::remove_dir_all(fs.join("d")).unwrap();
                std::os::unix::fs::symlink(canary.parent().unwrap(), fs.join("d")).unwrap();
            },
            true,
        ),
        ("a file is gone", |fs, _| std::fs::remove_file(fs.join("d/small")).unwrap(), true),
        (
            "a name leads out",
            |fs, canary| {
                std::os::unix::fs::symlink(canary, fs.join("d/after")).unwrap();
                std::fs::create_dir_all(fs.join("new/deep/er")).unwrap();
                std::os::unix::fs::symlink(canary.parent().unwrap(), fs.join("new/deep/er/x")).unwrap();
            },
            false,
        ),
        (
            "a hard link to a file outside stands where one is to come",
            |fs, canary| {
                std::fs::hard_link(canary, fs.join("d/after")).unwrap();
            },
            false,
        ),
    ];
    for (case, change, is_refused) in changes {
        let (layer, tar, blob, state) = cut_layer();
        let outside = layer.scratch.dir("outside");
        let canary = outside.join("canary");
        std::fs::write(&canary, b"untouched").unwrap();
        let _ = std::fs::remove_file(layer.tree().join("d/after"));
        change(&layer.tree(), &canary);
        let before = list(&outside);
        let result = go_on(&layer, &blob, expectation_of(&blob, &tar), &state);
        if is_refused {
            assert_refused(result, case);
        } else {
            result.unwrap_or_else(|error| panic!("{case}: {}", chain(&error)));
            assert!(layer.rebuilt().unwrap() == tar, "{case}");
            assert!(!layer.tree().join("new").exists(), "{case}");
        }
        let contents = |nodes: Vec<Node>| nodes.into_iter().map(|node| (node.path, node.contents)).collect::<Vec<_>>();
        assert_eq!(contents(list(&outside)), contents(before), "{case}: something outside changed");
    }
}

#[test]
fn what_was_written_after_a_cut_is_read_back_before_the_layer_counts() {
    if !is_root("what_was_written_after_a_cut_is_read_back_before_the_layer_counts") {
        return;
    }
    let (layer, tar, blob, state) = cut_layer();
    let states = States::default();
    let support = support(&states, 100_000);
    let expected = expectation_of(&blob, &tar);
    let (extraction, offset) = Extraction::resume(layer.disk.clone(), layer.dir(), expected, support, &state).unwrap();
    for chunk in blob[offset as usize..].chunks(10_000) {
        extraction.feed(chunk.to_vec()).unwrap();
    }
    // Meanwhile another hand, or the disk, changes what was durable of the file in progress.
    let large = std::fs::File::options().write(true).open(layer.tree().join("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, b"changed", 1000).unwrap();
    let error = extraction.finish().expect_err("a file differs");
    assert!(matches!(&error, ExtractError::ReadBack { path } if path == "fs/large"), "{}", chain(&error));
}

#[test]
fn a_sink_that_fails_ends_the_extraction_with_its_error() {
    struct Full;
    impl CheckpointSink for Full {
        fn save(&self, _: &[u8], _: u64) -> Result<(), StoreError> {
            Err(StoreError::FullDisk {
                path: "partial".into(),
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
            })
        }

        fn clear(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }
    let tar = Archive::default().file("f", &vec![1; 1 << 20]).end();
    let layer = Layer::new();
    let mut support = support(&States::default(), 1);
    support.checkpoints.as_mut().unwrap().sink = Box::new(Full);
    let extraction =
        Extraction::start_with(layer.disk.clone(), layer.dir(), expectation_of(&tar, &tar), support).unwrap();
    for chunk in tar.chunks(10_000) {
        if extraction.feed(chunk.to_vec()).is_err() {
            break;
        }
    }
    let error = extraction.finish().expect_err("the disk is full");
    assert!(matches!(error, ExtractError::Checkpoint { .. }) && error.is_disk_full(), "{}", chain(&error));
}
