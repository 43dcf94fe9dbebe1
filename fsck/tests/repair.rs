//! What a repair puts right, what it leaves, and what it never touches.

#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use baleen_fsck::{Code, EXIT_CORRECTED, EXIT_UNCORRECTED, Finding, Outcome, Report, Severity, Source};
use baleen_store::{Desired, LayerKey, Store};
use common::archive::Archive;
use common::{Healthy, Scratch, add_image, damage, extract, healthy, is_root, rich_layer};

/// A world with these running containers on every layer, and no registry.
struct World(Vec<String>);

impl Source for World {
    fn containers_on(&self, _: &LayerKey) -> Vec<String> {
        self.0.clone()
    }

    fn fetch(&self, _: &Store, _: &LayerKey) -> Result<bool, String> {
        Ok(false)
    }
}

/// A registry that has one archive.
struct Registry(Vec<u8>);

impl Source for Registry {
    fn containers_on(&self, _: &LayerKey) -> Vec<String> {
        Vec::new()
    }

    fn fetch(&self, store: &Store, layer: &LayerKey) -> Result<bool, String> {
        store.mark_suspect(std::slice::from_ref(layer)).map_err(|error| error.to_string())?;
        let (partial, fact) = extract(store, &self.0).ok_or("the archive is refused")?;
        let mut txn = store.begin().map_err(|error| error.to_string())?;
        txn.stage_layer(partial, fact);
        txn.commit().map(|()| true).map_err(|error| error.to_string())
    }
}

fn repair_with(scratch: &Scratch, source: &dyn Source) -> Report {
    let (store, findings) = baleen_fsck::open(scratch.disk(), *b"another store id").expect("the store opens");
    let report = baleen_fsck::repair(&store, source, findings, &mut |_| false).expect("a report");
    store.close().expect("closed");
    report
}

fn repair(scratch: &Scratch) -> Report {
    repair_with(scratch, &World(Vec::new()))
}

fn rich(healthy: &Healthy, path: &str) -> std::path::PathBuf {
    healthy.scratch.layer(&healthy.app.layers[1]).join(path)
}

fn outcome<'r>(report: &'r Report, code: Code, end: &str) -> &'r Finding {
    let found = report.findings.iter().find(|finding| finding.code == code && finding.path.ends_with(end));
    found.unwrap_or_else(|| panic!("{code} of {end}: {}", report.to_text()))
}

#[test]
fn everything_that_the_recipe_or_a_duplicate_has_is_put_right_and_stays_so() {
    if !is_root("everything_that_the_recipe_or_a_duplicate_has_is_put_right_and_stays_so") {
        return;
    }
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    type Break = (&'static str, Box<dyn Fn(&Healthy)>);
    let cases: Vec<Break> = vec![
        ("a file that another layer has", Box::new(|h| std::fs::write(rich(h, "fs/bin/shared"), b"other").unwrap())),
        ("that file gone", Box::new(|h| std::fs::remove_file(rich(h, "fs/bin/shared")).unwrap())),
        (
            "another kind",
            Box::new(|h| {
                std::fs::remove_file(rich(h, "fs/bin/shared")).unwrap();
                std::fs::create_dir(rich(h, "fs/bin/shared")).unwrap();
                std::fs::write(rich(h, "fs/bin/shared/inner"), b"").unwrap();
            }),
        ),
        (
            "one bit of a small file",
            Box::new(|h| {
                let mut bytes = std::fs::read(rich(h, "fs/home/file")).unwrap();
                bytes[2] ^= 0x20;
                std::fs::write(rich(h, "fs/home/file"), bytes).unwrap();
            }),
        ),
        ("a mode", Box::new(move |h| set_mode(&rich(h, "fs/bin/su"), 0o755))),
        ("a mode of a device", Box::new(move |h| set_mode(&rich(h, "fs/dev/null"), 0o600))),
        ("an owner", Box::new(|h| std::os::unix::fs::chown(rich(h, "fs/bin/ping"), Some(9), None).unwrap())),
        ("an owner of a link", Box::new(|h| std::os::unix::fs::lchown(rich(h, "fs/bin/sh"), Some(9), None).unwrap())),
        (
            "a time",
            Box::new(|h| {
                std::fs::File::open(rich(h, "fs/bin")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
            }),
        ),
        (
            "an attribute more",
            Box::new(|h| {
                rustix::fs::setxattr(rich(h, "fs/home"), "user.more", b"1", rustix::fs::XattrFlags::empty()).unwrap();
            }),
        ),
        (
            "an attribute less",
            Box::new(|h| {
                rustix::fs::removexattr(rich(h, "fs/bin/ping"), "security.capability").unwrap();
            }),
        ),
        (
            "a link",
            Box::new(|h| {
                std::fs::remove_file(rich(h, "fs/bin/sh")).unwrap();
                std::os::unix::fs::symlink("elsewhere", rich(h, "fs/bin/sh")).unwrap();
            }),
        ),
        ("a whiteout", Box::new(|h| std::fs::remove_file(rich(h, "fs/home/gone")).unwrap())),
        ("a device", Box::new(|h| std::fs::remove_file(rich(h, "fs/dev/disk")).unwrap())),
        ("a directory with links", Box::new(|h| std::fs::remove_dir_all(rich(h, "fs/dev")).unwrap())),
        ("a name more", Box::new(|h| std::fs::write(rich(h, "fs/etc-passwd"), b"more").unwrap())),
        ("a hard link gone", Box::new(|h| std::fs::remove_file(rich(h, "fs/bin/program-too")).unwrap())),
        (
            "a hard link that is a copy",
            Box::new(|h| {
                std::fs::remove_file(rich(h, "fs/bin/program-too")).unwrap();
                std::fs::copy(rich(h, "fs/bin/program"), rich(h, "fs/bin/program-too")).unwrap();
            }),
        ),
        ("an empty file", Box::new(|h| std::fs::remove_file(rich(h, "fs/empty")).unwrap())),
        (
            "bytes in a hole",
            Box::new(|h| {
                let mut bytes = std::fs::read(rich(h, "fs/sparse")).unwrap();
                bytes[5] = 1;
                std::fs::write(rich(h, "fs/sparse"), bytes).unwrap();
            }),
        ),
        (
            "one bit of a config",
            Box::new(|h| {
                let path = h.scratch.blob(&h.app.id.0);
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[7] ^= 0x40;
                std::fs::write(path, bytes).unwrap();
            }),
        ),
        ("a blob's mode", Box::new(move |h| set_mode(&h.scratch.blob(&h.app.id.0), 0o644))),
        ("the recipe's mode", Box::new(move |h| set_mode(&rich(h, "recipe"), 0o644))),
        ("FORMAT", Box::new(|h| std::fs::remove_file(h.scratch.path().join("FORMAT")).unwrap())),
        ("trash", Box::new(|h| std::fs::write(h.scratch.path().join("trash/1"), b"").unwrap())),
    ];
    for (name, broken) in cases {
        let healthy = healthy();
        broken(&healthy);
        let before = healthy.scratch.deep();
        let report = repair(&healthy.scratch);
        assert!(!before.findings.is_empty(), "{name}: nothing was broken");
        let expected = if before.damage() > 0 { EXIT_CORRECTED } else { 0 };
        assert_eq!(report.exit_code(), expected, "{name}: {}", report.to_text());
        assert_eq!(damage(&healthy.scratch.deep()), [], "{name}: {}", healthy.scratch.deep().to_text());
    }
}

#[test]
fn a_file_that_layers_share_is_mended_once_in_all_of_them() {
    if !is_root("a_file_that_layers_share_is_mended_once_in_all_of_them") {
        return;
    }
    let scratch = Scratch::new();
    let store = scratch.open();
    let content = vec![0x5a; 40_000];
    let layers: Vec<Vec<u8>> = (0..3).map(|n| Archive::default().file(&format!("f{n}"), &content).end()).collect();
    let image = add_image(&store, "app:1", &layers);
    store.close().expect("closed");
    drop(store);
    let path = |n: usize| scratch.layer(&image.layers[n]).join(format!("fs/f{n}"));
    // The second layer's file becomes a further name of the first one's, as an update links what has not changed.
    std::fs::remove_file(path(1)).unwrap();
    std::fs::hard_link(path(0), path(1)).unwrap();
    let dir = |n: usize| scratch.layer(&image.layers[n]).join("fs");
    std::fs::File::open(dir(1)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(damage(&scratch.deep()), []);
    std::fs::write(path(0), vec![0x5b; 40_000]).unwrap();
    let report = repair(&scratch);
    assert_eq!(report.exit_code(), EXIT_CORRECTED, "{}", report.to_text());
    assert_eq!(damage(&scratch.deep()), []);
    assert_eq!(std::fs::read(path(1)).unwrap(), content);
    assert_eq!(std::fs::metadata(path(0)).unwrap().ino(), std::fs::metadata(path(1)).unwrap().ino(), "one file still");
    let mended = report.findings.iter().filter(|finding| finding.code == Code::FileContent);
    let copied = mended.filter(|finding| matches!(&finding.outcome, Outcome::Corrected(how) if how.contains("copied")));
    assert_eq!(copied.count(), 1, "{}", report.to_text());
}

#[test]
fn what_nothing_at_hand_has_is_marked_and_the_next_pull_of_the_layer_mends_it() {
    if !is_root("what_nothing_at_hand_has_is_marked_and_the_next_pull_of_the_layer_mends_it") {
        return;
    }
    let healthy = healthy();
    let key = healthy.app.layers[1].clone();
    std::fs::write(rich(&healthy, "fs/bin/program"), vec![8; 70_000]).unwrap();
    let report = repair(&healthy.scratch);
    assert_eq!(report.exit_code() & EXIT_UNCORRECTED, EXIT_UNCORRECTED);
    let finding = outcome(&report, Code::FileContent, "fs/bin/program");
    assert!(matches!(&finding.outcome, Outcome::Left(why) if why.contains("next pull")), "{finding:?}");
    assert_eq!(finding.touched.containers[0].name, "web");
    // It stays usable, and is told of until it is mended.
    assert!(outcome(&healthy.scratch.deep(), Code::LayerSuspect, &key.folder()).severity == Severity::Damage);
    let store = healthy.scratch.open();
    assert_eq!(store.suspects(), std::slice::from_ref(&key));
    assert!(store.layer_dir(&key).is_ok());
    // A pull takes it for missing, and stores it again.
    let lease = store.lease();
    assert!(lease.layer(&key).is_none());
    let (partial, fact) = extract(&store, &rich_layer()).expect("fetched again");
    let mut txn = store.begin().expect("a transaction");
    txn.stage_layer(partial, fact);
    txn.commit().expect("stored again");
    assert!(lease.layer(&key).is_some());
    assert_eq!(store.suspects(), []);
    drop(lease);
    store.close().expect("closed");
    drop(store);
    assert_eq!(damage(&healthy.scratch.deep()), []);
}

#[test]
fn a_suspect_layer_is_not_replaced_below_a_container_that_should_run() {
    if !is_root("a_suspect_layer_is_not_replaced_below_a_container_that_should_run") {
        return;
    }
    let healthy = healthy();
    let key = healthy.app.layers[1].clone();
    let store = healthy.scratch.open();
    store.mark_suspect(std::slice::from_ref(&key)).expect("marked");
    let mut container = store.container(&healthy.container).expect("a container");
    container.desired = Desired::Running;
    store.change_container(container.clone()).expect("running");
    assert!(store.lease().layer(&key).is_some(), "a pull takes it as it is");
    let before = std::fs::metadata(rich(&healthy, "fs")).unwrap().ino();
    let (partial, fact) = extract(&store, &rich_layer()).expect("fetched again");
    let mut txn = store.begin().expect("a transaction");
    txn.stage_layer(partial, fact);
    txn.commit().expect("given up");
    assert_eq!(std::fs::metadata(rich(&healthy, "fs")).unwrap().ino(), before);
    assert_eq!(store.suspects(), std::slice::from_ref(&key));
    container.desired = Desired::Stopped;
    store.change_container(container).expect("stopped");
    assert!(store.lease().layer(&key).is_none(), "now it can be replaced");
}

#[test]
fn a_source_brings_just_the_damaged_layer_again() {
    if !is_root("a_source_brings_just_the_damaged_layer_again") {
        return;
    }
    let healthy = healthy();
    std::fs::write(rich(&healthy, "recipe"), b"no recipe").unwrap();
    let base = healthy.scratch.layer(&healthy.app.layers[0]);
    let before = std::fs::metadata(&base).unwrap().ino();
    let report = repair_with(&healthy.scratch, &Registry(rich_layer()));
    assert_eq!(report.exit_code(), EXIT_CORRECTED, "{}", report.to_text());
    assert_eq!(damage(&healthy.scratch.deep()), []);
    assert_eq!(std::fs::metadata(&base).unwrap().ino(), before);
}

#[test]
fn a_repair_touches_no_layer_below_a_running_container_and_nothing_of_containers_and_volumes() {
    if !is_root("a_repair_touches_no_layer_below_a_running_container_and_nothing_of_containers_and_volumes") {
        return;
    }
    let healthy = healthy();
    let root = healthy.scratch.path();
    std::fs::set_permissions(rich(&healthy, "fs/bin/su"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let folder = root.join("containers").join(&healthy.container);
    std::fs::write(folder.join("upper/data"), b"the container's").unwrap();
    std::fs::create_dir_all(root.join("volumes/unknown/_data")).unwrap();
    std::fs::write(root.join("volumes/unknown/_data/file"), b"the user's").unwrap();
    std::fs::write(folder.join("config.json"), b"{}").unwrap();
    let report = repair_with(&healthy.scratch, &World(vec!["web".to_owned()]));
    let left = outcome(&report, Code::NodeMode, "fs/bin/su");
    assert!(matches!(&left.outcome, Outcome::Left(why) if why.starts_with("web has it mounted")), "{left:?}");
    assert_eq!(std::fs::metadata(rich(&healthy, "fs/bin/su")).unwrap().mode() & 0o7777, 0o755);
    assert!(matches!(outcome(&report, Code::ContainerConfig, "config.json").outcome, Outcome::Left(_)));
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    assert_eq!(std::fs::read(folder.join("upper/data")).unwrap(), b"the container's");
    assert_eq!(std::fs::read(root.join("volumes/unknown/_data/file")).unwrap(), b"the user's");
}
