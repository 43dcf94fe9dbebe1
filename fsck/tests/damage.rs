//! Each file of the store removed, emptied, halved, 4 KiB of it zeroed, one bit of it flipped: the store opens, what is
//! left is whole, and what is lost is named. The table in `docs/fsck.md` is what this test finds.

#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use baleen_fsck::{Finding, Severity};
use baleen_store::{ImageFact, Store, TagFact};
use common::{Scratch, add_container, add_image, base_layer, is_root, other_layer, rich_layer};

/// A way to break a file.
const WAYS: [&str; 5] = ["removed", "emptied", "halved", "4 KiB zeroed", "one bit flipped"];

/// Breaks a file; `false` if that would change nothing.
fn break_file(path: &Path, way: &str, place: Place) -> bool {
    let before = std::fs::read(path).expect("a file");
    let mut bytes = before.clone();
    let at = match place {
        Place::Start => 0,
        Place::Used => {
            let used = before.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            used / 2
        }
        Place::End => before.iter().rposition(|byte| *byte != 0).unwrap_or(0),
    };
    match way {
        "removed" => {
            std::fs::remove_file(path).expect("removed");
            return true;
        }
        "emptied" => bytes.clear(),
        "halved" => bytes.truncate(bytes.len() / 2),
        "4 KiB zeroed" => {
            let start = at / 4096 * 4096;
            let end = bytes.len().min(start + 4096);
            bytes[start..end].fill(0);
        }
        _ => bytes[at] ^= 0x10,
    }
    if bytes == before {
        return false;
    }
    std::fs::write(path, bytes).expect("written");
    true
}

/// Where a file is broken by the ways that break a part of it.
#[derive(Clone, Copy, Debug)]
enum Place {
    Start,
    Used,
    End,
}

/// All that a store says that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Held {
    images: BTreeSet<String>,
    tags: BTreeSet<String>,
    layers: BTreeSet<String>,
    blobs: BTreeSet<String>,
    containers: BTreeSet<String>,
}

impl Held {
    fn by(store: &Store) -> Self {
        Self {
            images: store.images().iter().map(|image| image.id.to_string()).collect(),
            tags: store.tags().into_iter().map(|tag| tag.name).collect(),
            layers: store.layers().iter().map(|layer| layer.key.folder()).collect(),
            blobs: store.blobs().iter().map(|blob| blob.digest.to_string()).collect(),
            containers: store.containers().into_iter().map(|container| container.name).collect(),
        }
    }

    /// How many of each are not held any more.
    fn lost(&self, now: &Held) -> Vec<String> {
        let mut lost = Vec::new();
        for (what, before, after) in [
            ("image", &self.images, &now.images),
            ("tag", &self.tags, &now.tags),
            ("layer", &self.layers, &now.layers),
            ("blob", &self.blobs, &now.blobs),
            ("container name", &self.containers, &now.containers),
        ] {
            match before.difference(after).count() {
                0 => {}
                1 => lost.push(format!("1 {what}")),
                count => lost.push(format!("{count} {what}s")),
            }
        }
        lost
    }
}

/// A store with a log of several segments: a base, the base before it, and what came after.
fn full() -> (Scratch, ImageFact, String) {
    let scratch = Scratch::new();
    let store = scratch.open();
    let app = add_image(&store, "app:1", &[base_layer(), rich_layer()]);
    store.compact().expect("a base with facts");
    add_image(&store, "tool:1", &[base_layer(), other_layer()]);
    store.compact().expect("another");
    let container = add_container(&store, 'c', "web", &app);
    store.close().expect("closed");
    drop(store);
    // Opened, used and left without an end, as by a cut: so the log has a segment after its base, with a record that the
    // second copy has too, and a last one that nothing else knows of.
    drop(scratch.open());
    let store = scratch.open();
    assert!(store.write_second_copy().expect("a second copy"));
    for name in ["late:1", "late:2"] {
        let mut txn = store.begin().expect("a transaction");
        let late = TagFact { name: name.to_owned(), image: app.id, set_at_seconds: 8 };
        txn.set_tag(late).expect("a tag");
        txn.commit().expect("stored");
        if name == "late:1" {
            assert!(store.write_second_copy().expect("a second copy"));
        }
    }
    drop(store);
    (scratch, app, container)
}

fn copy_of(scratch: &Scratch) -> Scratch {
    let copy = Scratch::new();
    let copied = Command::new("cp").arg("-a").arg(scratch.path().join(".")).arg(copy.path()).status().expect("cp runs");
    assert!(copied.success());
    copy
}

/// The files that the table is about, each under the name that it has there.
fn files(root: &Path, app: &ImageFact, container: &str) -> Vec<(String, PathBuf)> {
    let mut files = vec![("FORMAT".to_owned(), root.join("FORMAT"))];
    let mut segments: Vec<PathBuf> = std::fs::read_dir(root.join("wal")).unwrap().map(|e| e.unwrap().path()).collect();
    segments.sort();
    let names = ["wal: the base before", "wal: the base", "wal: the last segment"];
    let (spare, numbered): (Vec<_>, Vec<_>) = segments.into_iter().partition(|path| path.ends_with("spare"));
    assert_eq!(numbered.len(), names.len(), "{numbered:?}");
    files.extend(names.iter().map(|name| (*name).to_owned()).zip(numbered));
    files.extend(spare.into_iter().map(|path| ("wal/spare".to_owned(), path)));
    files.push(("the second copy, the older file".to_owned(), root.join("index-0")));
    files.push(("the second copy, the newer file".to_owned(), root.join("index-1")));
    let blob = |digest: &baleen_oci::Digest| root.join("blobs/sha256").join(digest.hex());
    files.push(("blobs: a config".to_owned(), blob(&app.id.0)));
    files.push(("blobs: a manifest".to_owned(), blob(&app.manifest.expect("a manifest"))));
    files.push(("a layer's recipe".to_owned(), root.join("layers").join(app.layers[1].folder()).join("recipe")));
    files.push(("a container's config.json".to_owned(), root.join("containers").join(container).join("config.json")));
    files
}

/// What the check names, as codes.
fn codes(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings
        .iter()
        .filter(|finding| finding.severity == Severity::Damage)
        .map(|finding| finding.code.as_str())
        .collect()
}

#[test]
fn whatever_file_is_damaged_the_store_opens_and_names_what_is_lost() {
    if !is_root("whatever_file_is_damaged_the_store_opens_and_names_what_is_lost") {
        return;
    }
    let (scratch, app, container) = full();
    let before = Held::by(&copy_of(&scratch).open());
    let mut rows: Vec<String> = Vec::new();
    for (name, path) in files(scratch.path(), &app, &container) {
        for way in WAYS {
            let mut cells: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let partly = way == "4 KiB zeroed" || way == "one bit flipped";
            let places = if partly { &[Place::Start, Place::Used, Place::End][..] } else { &[Place::Start] };
            for place in places {
                let copy = copy_of(&scratch);
                let broken = copy.path().join(path.strip_prefix(scratch.path()).expect("below the root"));
                if !break_file(&broken, way, *place) {
                    continue;
                }
                let context = format!("{name} {way} {place:?}");
                let report = copy.deep();
                let found = codes(&report.findings);
                let opened = Store::open(copy.disk(), *b"another store id");
                let (store, opened) =
                    opened.unwrap_or_else(|error| panic!("{context}: the store does not open: {error}"));
                let lost = before.lost(&Held::by(&store));
                // What is lost was named, by the check before and by the opening. Only what came after the second copy can
                // be lost at the very end of the log like a batch that was cut while it was written.
                let end_of_log = name == "wal: the last segment" && matches!(place, Place::End);
                assert!(lost.is_empty() || !found.is_empty() || end_of_log, "{context}: {lost:?} is lost unnamed");
                let silent = opened.damage.is_empty() && opened.missing.is_empty();
                assert!(lost.is_empty() || !silent || end_of_log, "{context}: {lost:?} is lost in silence");
                store.close().expect("closed");
                drop(store);
                // Everything that is still known is whole, but for the file that was broken.
                let after = copy.deep();
                let relative = broken.strip_prefix(copy.path()).expect("below").display().to_string();
                let allowed = |finding: &&Finding| {
                    finding.severity == Severity::Damage
                        && finding.path != relative
                        && !matches!(finding.code.as_str(), "image-incomplete" | "container-without-image")
                };
                let wrong: Vec<_> = after.findings.iter().filter(allowed).collect();
                assert!(wrong.is_empty(), "{context}: {wrong:?}");
                // And it opens again, with nothing more to say of the log.
                let (store, again) = Store::open(copy.disk(), *b"another store id").expect("opens again");
                assert_eq!(again.damage, Vec::<String>::new(), "{context}");
                assert_eq!(before.lost(&Held::by(&store)), lost, "{context}: the second opening loses no more");
                let named = if found.is_empty() {
                    "nothing".to_owned()
                } else {
                    found.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ")
                };
                let lost = if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") };
                cells.entry(format!("{named} | {lost}")).or_default().push(format!("{place:?}"));
            }
            for (cell, places) in cells {
                let at = if partly && places.len() < 3 {
                    let words: Vec<&str> = places
                        .iter()
                        .map(|place| match place.as_str() {
                            "Start" => "the first block",
                            "Used" => "the middle",
                            _ => "the last bytes",
                        })
                        .collect();
                    format!(", in {}", words.join(" or "))
                } else {
                    String::new()
                };
                rows.push(format!("| {name} | {way}{at} | {cell} |"));
            }
        }
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fsck.md");
    let text = std::fs::read_to_string(&page).expect("the page");
    let (start, end) = ("<!-- damage table -->\n", "<!-- end of the damage table -->\n");
    let (Some(from), Some(to)) = (text.find(start), text.find(end)) else { panic!("the page has no table") };
    let table = format!(
        "| file | damage | named by `--deep` | lost when the daemon has started |\n|---|---|---|---|\n{}\n",
        rows.join("\n")
    );
    if text[from + start.len()..to] != table {
        if std::env::var_os("BALEEN_WRITE_DOCS").is_some() {
            let written = format!("{}{start}{table}{}", &text[..from], &text[to..]);
            std::fs::write(&page, written).expect("the page is written");
        } else {
            panic!("docs/fsck.md has another table; BALEEN_WRITE_DOCS=1 writes this one:\n{table}");
        }
    }
}
