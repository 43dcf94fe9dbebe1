//! What a check finds on a healthy store: nothing; and on one that is broken in one way: just that.

#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use baleen_fsck::{Code, EXIT_CLEAN, EXIT_OPERATIONAL, EXIT_UNCORRECTED, Report};
use baleen_oci::{DiffId, Digest};
use common::archive::{Archive, Block, Random};
use common::{Healthy, Scratch, damage, healthy, is_root, stage_layer, tags};

#[test]
fn a_healthy_store_has_no_findings_and_is_not_changed_by_looking() {
    if !is_root("a_healthy_store_has_no_findings_and_is_not_changed_by_looking") {
        return;
    }
    let healthy = healthy();
    let before = names_and_times(healthy.scratch.path());
    for report in [healthy.scratch.quick(), healthy.scratch.deep()] {
        assert_eq!(report.findings, [], "{}", report.to_text());
        assert_eq!(report.exit_code(), EXIT_CLEAN);
    }
    assert_eq!(names_and_times(healthy.scratch.path()), before);
}

fn names_and_times(root: &Path) -> Vec<(String, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut queue = vec![root.to_owned()];
    while let Some(path) = queue.pop() {
        let facts = std::fs::symlink_metadata(&path).expect("metadata");
        if facts.is_dir() {
            queue.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
        found.push((path.display().to_string(), facts.modified().expect("a time")));
    }
    found.sort();
    found
}

/// Names that meet and replace one another, links, whiteouts, every type, odd ends: as an extraction is tested with.
fn generated(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut archive = Archive::default();
    let names = [
        "a",
        "b",
        "a/c",
        "a/c/d",
        "b/e",
        "link",
        "link/f",
        "./a//c/",
        "/abs",
        "a/../b/g",
        ".wh.a",
        "a/.wh..wh..opq",
        "a/.wh.c",
        "l2/x",
        ".",
    ];
    for _ in 0..random.below(14) {
        let name = *random.pick(&names);
        let size = *random.pick(&[0, 1, 511, 512, 513, 4095, 4096, 4097, 9000]);
        let data = random.bytes(size);
        if random.below(4) == 0 {
            let value = random.bytes(20);
            archive = archive.pax(b'x', &[("SCHILY.xattr.user.r", &value), ("mtime", b"12.5"), ("comment", b"")]);
        }
        let owner = [0, 1000][random.below(2) as usize];
        let mode = *random.pick(&[0o644, 0o755, 0o2755, 0o4711, 0o1777, 0]);
        let described = |name: &str, flag: u8, size: u64| {
            let mut block = Block::new(name.as_bytes(), flag, size).mode(mode);
            block.octal(108, 8, owner);
            block.octal(116, 8, owner);
            block
        };
        archive = match random.below(10) {
            0..=3 => archive.block(described(name, b'0', data.len() as u64)).data(&data),
            4 | 5 => archive.block(described(name, b'5', 0)),
            6 => archive.symlink(name, random.pick::<&str>(&["a", "/a/c", "../b", "nowhere", "link", "."])),
            7 => archive.hard_link(name, random.pick::<&str>(&["a", "b/e", "/a/c", "link", "gone"])),
            8 => {
                let flag = *random.pick(b"346");
                archive.block(described(name, flag, 0).device(random.below(2), random.below(3)))
            }
            _ => archive
                .block(
                    Block::new(name.as_bytes(), b'S', 8)
                        .set(257, b"ustar  \0")
                        .set(386, b"00000000001\x0000000000003\x0000000000004\x0000000000005\0")
                        .set(483, b"00000000040\0"),
                )
                .data(&random.bytes(8)),
        };
    }
    match random.below(5) {
        0 => archive.0,
        1 => archive.raw(&[0; 512]).0,
        2 => archive.raw(&[0; 5000]).0,
        3 => archive.raw(&[0; 1024]).raw(&random.bytes(1000)).0,
        _ => archive.end(),
    }
}

#[test]
fn whatever_an_extraction_makes_of_a_generated_archive_is_what_the_check_expects() {
    if !is_root("whatever_an_extraction_makes_of_a_generated_archive_is_what_the_check_expects") {
        return;
    }
    let wanted = if std::env::var_os("BALEEN_SOAK").is_some() { 20_000 } else { 600 };
    let (mut accepted, mut seed) = (0, 0);
    while accepted < wanted {
        let scratch = Scratch::new();
        let store = scratch.open();
        let mut seeds = std::collections::BTreeMap::new();
        let mut txn = store.begin().expect("a transaction");
        for _ in 0..400 {
            let tar = generated(seed);
            let key = baleen_store::LayerKey::new(DiffId(Digest::sha256_of(&tar)));
            if !seeds.contains_key(&key.folder()) && stage_layer(&store, &mut txn, &tar).is_some() {
                seeds.insert(key.folder(), seed);
            }
            seed += 1;
        }
        txn.commit().expect("the layers are stored");
        store.close().expect("closed");
        drop(store);
        let report = scratch.deep();
        let wrong: Vec<_> = report.findings.iter().filter(|finding| finding.path.starts_with("layers/")).collect();
        if let Some(finding) = wrong.first() {
            let folder = finding.path.split('/').nth(1).unwrap_or_default();
            panic!("seed {:?}: {finding:?} and {} more", seeds.get(folder), wrong.len() - 1);
        }
        accepted += seeds.len();
    }
    println!("{accepted} layers of {seed} archives");
}

/// Breaks one thing and expects just these findings, each with the images it touches.
fn expect(name: &str, broken: impl FnOnce(&Healthy), expected: &[(Code, &str)], images: &[&str]) -> Report {
    let healthy = healthy();
    broken(&healthy);
    let report = healthy.scratch.deep();
    let rich = format!("layers/{}", healthy.app.layers[1].folder());
    let base = format!("layers/{}", healthy.app.layers[0].folder());
    let paths = |text: &str| {
        let text = text.replace("RICH", &rich).replace("BASE", &base);
        text.replace("CONTAINER", &format!("containers/{}", healthy.container))
    };
    let expected: Vec<(Code, String)> = expected.iter().map(|(code, path)| (*code, paths(path))).collect();
    let found: Vec<(Code, String)> =
        report.findings.iter().map(|finding| (finding.code, finding.path.clone())).collect();
    assert_eq!(found, expected, "{name}:\n{}", report.to_text());
    for finding in &report.findings {
        assert_eq!(tags(finding), images, "{name}");
    }
    let is_damage = report.damage() > 0;
    assert_eq!(report.exit_code(), if is_damage { EXIT_UNCORRECTED } else { EXIT_CLEAN }, "{name}");
    assert!(report.to_json().contains(&format!("\"code\":\"{}\"", expected[0].0)), "{name}");
    report
}

fn rich(healthy: &Healthy, path: &str) -> std::path::PathBuf {
    healthy.scratch.layer(&healthy.app.layers[1]).join(path)
}

/// Does something to a file and gives it and its directory the times that they had.
fn keeping_times(path: &Path, change: impl FnOnce(&Path)) {
    let parent = path.parent().expect("a parent");
    let time_of = |path: &Path| std::fs::symlink_metadata(path).ok().and_then(|facts| facts.modified().ok());
    let (own, parents) = (time_of(path), time_of(parent));
    change(path);
    for (path, time) in [(path, own), (parent, parents)] {
        if let (Some(time), Ok(facts)) = (time, std::fs::symlink_metadata(path))
            && (facts.is_file() || facts.is_dir())
        {
            std::fs::File::open(path).expect("opens").set_modified(time).expect("a time");
        }
    }
}

fn flip(path: &Path, at: usize) {
    keeping_times(path, |path| {
        let mut bytes = std::fs::read(path).expect("a file");
        bytes[at] ^= 0x04;
        std::fs::write(path, bytes).expect("written");
    });
}

#[test]
fn each_kind_of_damage_in_a_layer_is_named_by_its_own_code() {
    if !is_root("each_kind_of_damage_in_a_layer_is_named_by_its_own_code") {
        return;
    }
    let app = &["app:1"][..];
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let both = &["app:1", "tool:1"][..];
    expect("a flipped bit", |h| flip(&rich(h, "fs/bin/shared"), 3), &[(Code::FileContent, "RICH/fs/bin/shared")], app);
    expect("a bit in a hole", |h| flip(&rich(h, "fs/sparse"), 100), &[(Code::FileContent, "RICH/fs/sparse")], app);
    expect("kept bytes", |h| flip(&rich(h, "kept/0"), 0), &[(Code::FileContent, "RICH/kept/0")], app);
    expect("a hard link", |h| flip(&rich(h, "fs/bin/program"), 9), &[(Code::FileContent, "RICH/fs/bin/program")], app);
    expect(
        "a shorter file",
        |h| keeping_times(&rich(h, "fs/bin/shared"), |path| std::fs::write(path, b"these").unwrap()),
        &[(Code::FileSize, "RICH/fs/bin/shared")],
        app,
    );
    let in_base = |h: &Healthy| h.scratch.layer(&h.app.layers[0]).join("fs/etc/name");
    expect("a shared layer", |h| flip(&in_base(h), 0), &[(Code::FileContent, "BASE/fs/etc/name")], both);
    expect("a mode", |h| set_mode(&rich(h, "fs/bin/su"), 0o755), &[(Code::NodeMode, "RICH/fs/bin/su")], app);
    expect(
        "a mode of a device",
        |h| set_mode(&rich(h, "fs/dev/null"), 0o600),
        &[(Code::NodeMode, "RICH/fs/dev/null")],
        app,
    );
    expect("a mode of the root", |h| set_mode(&rich(h, "fs"), 0o700), &[(Code::NodeMode, "RICH/fs")], app);
    expect(
        "an owner",
        |h| std::os::unix::fs::chown(rich(h, "fs/home/file"), Some(1000), Some(7)).unwrap(),
        &[(Code::NodeOwner, "RICH/fs/home/file")],
        app,
    );
    expect(
        "an owner of a link",
        |h| std::os::unix::fs::lchown(rich(h, "fs/bin/sh"), Some(5), None).unwrap(),
        &[(Code::NodeOwner, "RICH/fs/bin/sh")],
        app,
    );
    expect(
        "an owner of a whiteout",
        |h| std::os::unix::fs::lchown(rich(h, "fs/home/gone"), Some(5), None).unwrap(),
        &[(Code::NodeOwner, "RICH/fs/home/gone")],
        app,
    );
    expect(
        "a time",
        |h| {
            let file = std::fs::File::open(rich(h, "fs/bin/program")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_788)).unwrap();
        },
        &[(Code::NodeTime, "RICH/fs/bin/program"), (Code::NodeTime, "RICH/fs/bin/program-too")],
        app,
    );
    let set_xattr = |path: &Path, name: &str, value: &[u8]| {
        keeping_times(path, |path| {
            rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect("an attribute");
        });
    };
    expect(
        "a capability",
        |h| rustix::fs::removexattr(rich(h, "fs/bin/ping"), "security.capability").unwrap(),
        &[(Code::NodeXattrs, "RICH/fs/bin/ping")],
        app,
    );
    expect(
        "another attribute",
        |h| set_xattr(&rich(h, "fs/home"), "user.more", b"1"),
        &[(Code::NodeXattrs, "RICH/fs/home")],
        app,
    );
    expect(
        "an opaque directory",
        |h| rustix::fs::removexattr(rich(h, "fs/opaque"), "trusted.overlay.opaque").unwrap(),
        &[(Code::NodeXattrs, "RICH/fs/opaque")],
        app,
    );
    expect(
        "a name more",
        |h| keeping_times(&rich(h, "fs/bin/more"), |path| std::fs::write(path, b"more").unwrap()),
        &[(Code::NameExtra, "RICH/fs/bin/more")],
        app,
    );
    expect(
        "a name beside the tree",
        |h| std::fs::write(rich(h, "more"), b"more").unwrap(),
        &[(Code::NameExtra, "RICH/more")],
        app,
    );
    for name in ["fs/bin/shared", "fs/bin/sh", "fs/dev/null", "fs/home/gone", "kept/0", "fs/empty"] {
        let path = format!("RICH/{name}");
        expect(
            name,
            |h| keeping_times(&rich(h, name), |path| std::fs::remove_file(path).unwrap()),
            &[(Code::NameMissing, &path)],
            app,
        );
    }
    expect(
        "a directory with what is in it",
        |h| keeping_times(&rich(h, "fs/home"), |path| std::fs::remove_dir_all(path).unwrap()),
        &[(Code::NameMissing, "RICH/fs/home")],
        app,
    );
    expect(
        "another kind",
        |h| {
            keeping_times(&rich(h, "fs/bin/shared"), |path| {
                std::fs::remove_file(path).unwrap();
                std::fs::create_dir(path).unwrap();
            });
        },
        &[(Code::NodeKind, "RICH/fs/bin/shared")],
        app,
    );
    expect(
        "a target",
        |h| {
            let path = rich(h, "fs/bin/sh");
            let facts = rustix::fs::lstat(&path).unwrap();
            keeping_times(&path, |path| {
                std::fs::remove_file(path).unwrap();
                symlink("programs", path).unwrap();
                let time = rustix::fs::Timespec { tv_sec: facts.st_mtime as _, tv_nsec: facts.st_mtime_nsec as _ };
                let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
            });
        },
        &[(Code::LinkTarget, "RICH/fs/bin/sh")],
        app,
    );
    expect(
        "a device number",
        |h| {
            let path = rich(h, "fs/dev/null");
            let facts = rustix::fs::lstat(&path).unwrap();
            keeping_times(&path, |path| {
                std::fs::remove_file(path).unwrap();
                let mode = rustix::fs::Mode::from_raw_mode(0o666);
                let kind = rustix::fs::FileType::CharacterDevice;
                rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, rustix::fs::makedev(1, 5)).unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
                let time = rustix::fs::Timespec { tv_sec: facts.st_mtime as _, tv_nsec: facts.st_mtime_nsec as _ };
                let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
            });
        },
        &[(Code::DeviceNumber, "RICH/fs/dev/null")],
        app,
    );
    expect(
        "a hard link that is a copy",
        |h| {
            keeping_times(&rich(h, "fs/bin/program-too"), |path| {
                let from = path.with_file_name("program");
                std::fs::remove_file(path).unwrap();
                assert!(std::process::Command::new("cp").arg("-a").args([&from, path]).status().unwrap().success());
            });
        },
        &[(Code::HardLinks, "RICH/fs/bin/program-too")],
        app,
    );
    expect("the recipe", |h| flip(&rich(h, "recipe"), 40), &[(Code::RecipeDamaged, "RICH/recipe")], app);
    expect(
        "no recipe",
        |h| std::fs::remove_file(rich(h, "recipe")).unwrap(),
        &[(Code::RecipeMissing, "RICH/recipe")],
        app,
    );
    expect(
        "the recipe of another layer",
        |h| {
            std::fs::copy(h.scratch.layer(&h.app.layers[0]).join("recipe"), rich(h, "recipe")).unwrap();
        },
        &[(Code::RecipeDamaged, "RICH/recipe")],
        app,
    );
    expect("no layer", |h| std::fs::remove_dir_all(rich(h, "")).unwrap(), &[(Code::ObjectMissing, "RICH")], app);
}

#[test]
fn each_kind_of_damage_beside_the_layers_is_named_by_its_own_code() {
    if !is_root("each_kind_of_damage_beside_the_layers_is_named_by_its_own_code") {
        return;
    }
    let app = &["app:1"][..];
    let root = |h: &Healthy, path: &str| h.scratch.path().join(path);
    let config = |h: &Healthy| h.scratch.blob(&h.app.id.0);
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let path_of = |h: &Healthy| format!("blobs/sha256/{}", h.app.id.0.hex());
    // The path of the config depends on the layers alone.
    let config_path = path_of(&healthy());
    expect("a blob's byte", |h| flip(&config(h), 5), &[(Code::BlobContent, &config_path)], app);
    expect("a blob's length", |h| std::fs::write(config(h), b"").unwrap(), &[(Code::BlobContent, &config_path)], app);
    expect("a blob's mode", |h| set_mode(&config(h), 0o644), &[(Code::BlobAttributes, &config_path)], app);
    expect(
        "a blob's owner",
        |h| std::os::unix::fs::chown(config(h), Some(3), None).unwrap(),
        &[(Code::BlobAttributes, &config_path)],
        app,
    );
    expect("no blob", |h| std::fs::remove_file(config(h)).unwrap(), &[(Code::ObjectMissing, &config_path)], app);
    let none = &[][..];
    expect(
        "FORMAT lost",
        |h| std::fs::remove_file(root(h, "FORMAT")).unwrap(),
        &[(Code::FormatMissing, "FORMAT")],
        none,
    );
    expect("FORMAT changed", |h| flip(&root(h, "FORMAT"), 45), &[(Code::FormatDamaged, "FORMAT")], none);
    let segment = |h: &Healthy| root(h, "wal/0000000000000001");
    let log = "wal/0000000000000001";
    expect("the log's header", |h| flip(&segment(h), 70), &[(Code::LogDamaged, log)], none);
    expect(
        "the log's tail",
        |h| flip_last_batch(&segment(h)),
        &[(Code::LogTorn, "wal"), (Code::NotClosed, "wal")],
        none,
    );
    expect(
        "a shorter log",
        |h| {
            let file = std::fs::File::options().write(true).open(segment(h)).unwrap();
            file.set_len(200_000).unwrap();
        },
        &[(Code::LogDamaged, log)],
        none,
    );
    expect(
        "no quarantine/",
        |h| std::fs::remove_dir(root(h, "quarantine")).unwrap(),
        &[(Code::DirectoryMissing, "quarantine")],
        none,
    );
    expect("a mode", |h| set_mode(&root(h, "layers"), 0o755), &[(Code::DirectoryMode, "layers")], none);
    expect("a foreign name", |h| std::fs::write(root(h, "notes"), b"").unwrap(), &[(Code::ForeignName, "notes")], none);
    expect(
        "a left-over",
        |h| std::fs::create_dir(root(h, "layers/00")).unwrap(),
        &[(Code::LeftOver, "layers/00")],
        none,
    );
    expect(
        "staging",
        |h| std::fs::create_dir(root(h, "staging/1-1")).unwrap(),
        &[(Code::LeftOver, "staging/1-1")],
        none,
    );
    expect("trash", |h| std::fs::write(root(h, "trash/1"), b"").unwrap(), &[(Code::TrashWaiting, "trash/1")], none);
    expect(
        "quarantine",
        |h| std::fs::write(root(h, "quarantine/1"), b"").unwrap(),
        &[(Code::QuarantineWaiting, "quarantine/1")],
        none,
    );
    expect(
        "a second copy",
        |h| std::fs::write(root(h, "index-1"), b"nothing").unwrap(),
        &[(Code::SecondCopyDamaged, "index-1")],
        none,
    );
    let folder = |h: &Healthy| root(h, &format!("containers/{}", h.container));
    let report = expect(
        "a configuration",
        |h| flip(&folder(h).join("config.json"), 100),
        &[(Code::ContainerConfig, "CONTAINER/config.json")],
        none,
    );
    assert_eq!(report.findings[0].touched.containers[0].name, "web");
    expect(
        "no upper",
        |h| std::fs::remove_dir(folder(h).join("upper")).unwrap(),
        &[(Code::ContainerIncomplete, "CONTAINER")],
        none,
    );
}

/// Changes the last batch of a segment: the note that the store was closed.
fn flip_last_batch(path: &Path) {
    let bytes = std::fs::read(path).expect("a segment");
    let last = bytes.chunks(4096).rposition(|block| block.iter().any(|byte| *byte != 0)).expect("a batch");
    flip(path, last * 4096 + 33);
}

#[test]
fn a_record_that_says_other_than_its_layer_is_named() {
    if !is_root("a_record_that_says_other_than_its_layer_is_named") {
        return;
    }
    let scratch = Scratch::new();
    let store = scratch.open();
    let mut txn = store.begin().expect("a transaction");
    let tar = common::base_layer();
    let mut fact = common::extract(&store, &tar).expect("a layer");
    fact.1.entries += 1;
    txn.stage_layer(fact.0, fact.1.clone());
    txn.commit().expect("stored");
    store.close().expect("closed");
    drop(store);
    let recipe = format!("layers/{}/recipe", fact.1.key.folder());
    assert_eq!(damage(&scratch.deep()), [(Code::RecordDisagrees, recipe)]);
}

#[test]
fn a_deep_check_that_is_stopped_goes_on_behind_what_it_has_checked() {
    if !is_root("a_deep_check_that_is_stopped_goes_on_behind_what_it_has_checked") {
        return;
    }
    let healthy = healthy();
    flip(&rich(&healthy, "fs/bin/shared"), 3);
    flip(&healthy.scratch.layer(&healthy.app.layers[0]).join("fs/etc/name"), 0);
    let whole = damage(&healthy.scratch.deep());
    assert_eq!(whole.len(), 2);
    let (mut after, mut found, mut runs) = (None, Vec::new(), 0);
    loop {
        // Stopped a few calls after the first object that is checked whole.
        let mut objects = std::collections::BTreeSet::new();
        let inspection = healthy.scratch.inspection();
        let report = baleen_fsck::deep(&inspection, after.as_deref(), &mut |progress| {
            objects.insert(progress.object.clone());
            objects.len() > 2
        })
        .expect("a report");
        found.extend(damage(&report));
        runs += 1;
        if report.complete {
            break;
        }
        assert_eq!(report.exit_code() & EXIT_OPERATIONAL, EXIT_OPERATIONAL);
        assert!(report.checked_through > after, "it goes on");
        after = report.checked_through;
    }
    assert!(runs > 3, "{runs} runs");
    assert_eq!(found, whole);
}
