//! Changes by seed of any byte, mode, owner, time, name or attribute below `layers/` and `blobs/`: each is named, with the
//! images that it touches.

#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use baleen_fsck::{EXIT_UNCORRECTED, Severity};
use baleen_store::LayerKey;
use common::archive::Random;
use common::{Healthy, Scratch, healthy, is_root, tags};

/// Every node below `layers/` and `blobs/sha256/`.
fn nodes(root: &Path) -> Vec<PathBuf> {
    let mut nodes = Vec::new();
    let mut queue = vec![root.join("layers"), root.join("blobs/sha256")];
    while let Some(path) = queue.pop() {
        if std::fs::symlink_metadata(&path).expect("metadata").is_dir() {
            queue.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
        nodes.push(path);
    }
    nodes.sort();
    nodes.retain(|path| *path != root.join("layers") && *path != root.join("blobs/sha256"));
    nodes
}

/// Whether nothing says when this was modified (docs/fsck.md): then a change of it cannot be seen, and nobody sees it.
fn is_timeless(below: &Path, facts: &std::fs::Metadata) -> bool {
    let parts: Vec<&str> = below.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    match parts[..] {
        ["blobs", ..] | ["layers", _] | ["layers", _, "recipe" | "kept"] => true,
        ["layers", _, "kept", _] => true,
        _ => facts.mode() & 0o170_000 == 0o020_000 && facts.rdev() == 0,
    }
}

/// Changes one node in one way; `None` if this way does not apply to it.
fn change(random: &mut Random, root: &Path, path: &Path) -> Option<String> {
    let facts = std::fs::symlink_metadata(path).expect("metadata");
    let below = path.strip_prefix(root).expect("below the root").to_owned();
    let shown = below.display();
    let times = |path: &Path, time: std::time::SystemTime| {
        if let Ok(file) = std::fs::File::open(path) {
            file.set_modified(time).expect("a time");
        }
    };
    match random.below(6) {
        0 if facts.is_file() && facts.len() > 0 => {
            let mut bytes = std::fs::read(path).expect("bytes");
            let (at, bit) = (random.below(facts.len()), random.below(8));
            bytes[at as usize] ^= 1 << bit;
            std::fs::write(path, bytes).expect("written");
            times(path, facts.modified().expect("a time"));
            Some(format!("bit {bit} of byte {at} of {shown}"))
        }
        1 if !facts.is_symlink() => {
            let mode = (facts.mode() & 0o7777) ^ (1 << random.below(12));
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            Some(format!("mode {mode:o} of {shown}"))
        }
        2 => {
            let other = (facts.uid() + 1 + random.below(1000) as u32, facts.gid() + 1);
            let (uid, gid) = if random.below(2) == 0 { (Some(other.0), None) } else { (None, Some(other.1)) };
            std::os::unix::fs::lchown(path, uid, gid).expect("an owner");
            Some(format!("owner {uid:?} {gid:?} of {shown}"))
        }
        3 if !is_timeless(&below, &facts) && (facts.is_file() || facts.is_dir()) => {
            let shift = Duration::from_nanos(1 + random.below(1 << 40));
            times(path, facts.modified().expect("a time") + shift);
            Some(format!("time of {shown} by {shift:?}"))
        }
        4 => {
            let parent = path.parent().expect("a parent");
            let before = std::fs::metadata(parent).expect("metadata").modified().expect("a time");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let renamed = format!("{name}{}", random.below(10));
            std::fs::rename(path, parent.join(&renamed)).expect("a new name");
            times(parent, before);
            Some(format!("name {renamed} of {shown}"))
        }
        5 if facts.is_file() || facts.is_dir() => {
            let name = *random.pick(&["user.more", "trusted.overlay.opaque", "trusted.more", "user.colour"]);
            rustix::fs::setxattr(path, name, b"x", rustix::fs::XattrFlags::empty()).expect("an attribute");
            Some(format!("attribute {name} of {shown}"))
        }
        _ => None,
    }
}

fn images_of(healthy: &Healthy, below: &Path) -> Vec<&'static str> {
    let text = below.display().to_string();
    let has = |keys: &[LayerKey]| keys.iter().any(|key| text.starts_with(&format!("layers/{}", key.folder())));
    let mut images = Vec::new();
    for (name, image) in [("app:1", &healthy.app), ("tool:1", &healthy.tool)] {
        let blobs = [Some(image.id.0), image.manifest];
        if has(&image.layers) || blobs.into_iter().flatten().any(|digest| text.ends_with(&digest.hex())) {
            images.push(name);
        }
    }
    images
}

#[test]
fn two_hundred_changes_by_seed_are_each_named_with_the_images_they_touch() {
    if !is_root("two_hundred_changes_by_seed_are_each_named_with_the_images_they_touch") {
        return;
    }
    let wanted = if std::env::var_os("BALEEN_SOAK").is_some() { 5_000 } else { 200 };
    let healthy = healthy();
    let copies = Scratch::new();
    let (mut made, mut seed) = (0, 0);
    while made < wanted {
        seed += 1;
        let mut random = Random(seed);
        let copy = Scratch::new();
        let from = healthy.scratch.path().join(".");
        let copied = Command::new("cp").arg("-a").arg(from).arg(copy.path()).status().expect("cp runs");
        assert!(copied.success());
        let all = nodes(copy.path());
        let path = random.pick(&all).clone();
        let below = path.strip_prefix(copy.path()).expect("below the root").to_owned();
        let Some(what) = change(&mut random, copy.path(), &path) else { continue };
        made += 1;
        let report = copy.deep();
        let images = images_of(&healthy, &below);
        let named = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
        let named: Vec<_> = named
            .filter(|finding| {
                // Another name of the same file may be the one that was looked at.
                let text = below.display().to_string();
                finding.path == text || text.ends_with("program-too") && text.starts_with(&finding.path)
            })
            .collect();
        assert!(!named.is_empty(), "seed {seed}, {what}:\n{}", report.to_text());
        for finding in named {
            assert_eq!(tags(finding), images, "seed {seed}, {what}");
        }
        assert_eq!(report.exit_code(), EXIT_UNCORRECTED, "seed {seed}, {what}");
    }
    drop(copies);
    println!("{made} changes of {seed} seeds");
}
