//! Stacks of layers, mounted.
#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use baleen_snapshotter::active;
use baleen_snapshotter::overlay::{Overlay, OverlayError, is_mounted, unmount};
use baleen_snapshotter::{ExtractError, Extraction, LowerStack, Support};
use baleen_store::recipe::{Item, Recipe};
use baleen_store::{Disk, Handle, SystemDisk};
use common::archive::Archive;
use common::*;

/// Unmounts at the end, also of a failed test.
struct Mounted<'a>(&'a Handle);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0.fd().unwrap(), "merged");
    }
}

fn mount(disk: &SystemDisk, container: &Handle, layers: &[Handle]) -> Result<(), OverlayError> {
    let open = |name: &[u8]| disk.open_dir(container, name).unwrap();
    let (upper, work, merged) = (open(active::UPPER_NAME), open(active::WORK_NAME), open(active::MERGED_NAME));
    let lowers: Vec<_> = layers.iter().map(|layer| layer.fd().unwrap()).collect();
    let writable = Some((upper.fd().unwrap(), work.fd().unwrap()));
    Overlay { lowers: &lowers, writable }.mount(merged.fd().unwrap())
}

fn layer(disk: &SystemDisk, root: &Path, name: &str, script: &str) -> Handle {
    let tree = root.join(name);
    std::fs::create_dir(&tree).unwrap();
    sh(&tree, script);
    disk.open_dir(&disk.root().unwrap(), name.as_bytes()).unwrap()
}

#[test]
fn a_container_sees_its_layers_with_its_own_changes_on_top() {
    if !is_root("a_container_sees_its_layers_with_its_own_changes_on_top") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path();
    let disk = SystemDisk::open(root).unwrap();
    let bottom = layer(&disk, root, "bottom", "mkdir d e; echo low > d/low; echo hidden > d/gone; echo old > e/old");
    let top = layer(
        &disk,
        root,
        "top",
        "mkdir d e; echo high > d/high; mknod d/gone c 0 0; setfattr -n trusted.overlay.opaque -v y e; echo new > e/new",
    );
    scratch.dir("c");
    let container = disk.open_dir(&disk.root().unwrap(), b"c").unwrap();
    active::create(&disk, &container, true).unwrap();
    let merged = root.join("c/merged");
    {
        let _mounted = Mounted(&container);
        mount(&disk, &container, &[top, bottom]).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(is_mounted(container.fd().unwrap(), "merged").unwrap());
        let seen = sh(&merged, "find . -type f | sort; cat d/low");
        assert_eq!(String::from_utf8(seen).unwrap(), "./d/high\n./d/low\n./e/new\nlow\n");
        sh(&merged, "echo mine > d/low; rm d/high; mkdir -m 700 n");
        let options = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = options.lines().find(|line| line.contains(merged.to_str().unwrap())).expect("the mount is listed");
        assert!(
            !line.contains("redirect_dir=on") && !line.contains("metacopy=on") && !line.contains("index=on"),
            "{line}"
        );
    }
    assert!(!is_mounted(container.fd().unwrap(), "merged").unwrap());
    assert!(!unmount(container.fd().unwrap(), "merged").unwrap(), "nothing is mounted any more");
    assert_eq!(std::fs::read(root.join("c/upper/d/low")).unwrap(), b"mine\n");
    assert_eq!(std::fs::read(root.join("bottom/d/low")).unwrap(), b"low\n", "layers do not change");
    active::empty_work(&disk, &container).unwrap();
    assert_eq!(std::fs::read_dir(root.join("c/work")).unwrap().count(), 0);
}

#[test]
fn a_stack_of_125_layers_with_long_names_can_be_mounted() {
    if !is_root("a_stack_of_125_layers_with_long_names_can_be_mounted") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path();
    let disk = SystemDisk::open(root).unwrap();
    let layers: Vec<Handle> = (0..125)
        .map(|n| layer(&disk, root, &format!("{n:064x}"), &format!("echo {n} > f{n}; echo {n} > same")))
        .collect();
    scratch.dir("c");
    let container = disk.open_dir(&disk.root().unwrap(), b"c").unwrap();
    active::create(&disk, &container, true).unwrap();
    let _mounted = Mounted(&container);
    mount(&disk, &container, &layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let merged = root.join("c/merged");
    assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 126);
    assert_eq!(std::fs::read(merged.join("same")).unwrap(), b"0\n", "the first lower is the topmost");
    let one_more: Vec<_> = layers.iter().chain(&layers[..1]).map(|layer| layer.fd().unwrap()).collect();
    let target = disk.open_dir(&container, active::EMPTY_NAME);
    assert!(target.is_err(), "an image with layers needs no empty lower");
    let refused = Overlay { lowers: &one_more, writable: None }.mount(container.fd().unwrap().as_fd());
    assert!(matches!(refused, Err(OverlayError::Layers { layers: 126 })));
}

#[test]
fn an_image_without_layers_is_an_empty_root_that_can_be_written() {
    if !is_root("an_image_without_layers_is_an_empty_root_that_can_be_written") {
        return;
    }
    let scratch = Scratch::new();
    let disk = SystemDisk::open(scratch.path()).unwrap();
    scratch.dir("c");
    let container = disk.open_dir(&disk.root().unwrap(), b"c").unwrap();
    active::create(&disk, &container, false).unwrap();
    let empty = disk.open_dir(&container, active::EMPTY_NAME).unwrap();
    let _mounted = Mounted(&container);
    mount(&disk, &container, &[empty]).unwrap_or_else(|error| panic!("{}", chain(&error)));
    std::fs::write(scratch.path().join("c/merged/x"), b"x").unwrap();
    assert_eq!(std::fs::read(scratch.path().join("c/upper/x")).unwrap(), b"x");
}

#[test]
fn a_mount_in_use_is_taken_away_all_the_same() {
    if !is_root("a_mount_in_use_is_taken_away_all_the_same") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path();
    let disk = SystemDisk::open(root).unwrap();
    let bottom = layer(&disk, root, "bottom", "echo x > x");
    scratch.dir("c");
    let container = disk.open_dir(&disk.root().unwrap(), b"c").unwrap();
    active::create(&disk, &container, true).unwrap();
    let _mounted = Mounted(&container);
    mount(&disk, &container, &[bottom]).unwrap();
    let open = std::fs::File::open(root.join("c/merged/x")).unwrap();
    assert!(unmount(container.fd().unwrap(), "merged").unwrap());
    assert!(!root.join("c/merged/x").exists());
    drop(open);
}

/// Two layers, of which the second hides some of the first.
fn stack(disk: &SystemDisk, root: &Path) -> [Handle; 2] {
    let bottom = layer(
        disk,
        root,
        "bottom",
        r#"
        mkdir -p usr/share/deep usr/lib usr/opaque dev
        head -c 200000 /dev/urandom > usr/share/deep/a; chown 12:34 usr/share/deep/a; chmod 4755 usr/share/deep/a
        setfattr -n user.note -v below usr/share/deep/a; setfattr -n user.dir -v there usr/share/deep
        echo x > usr/lib/x; chmod 640 usr/lib/x; ln -s usr/lib lib; ln -s deep/a usr/share/link; mknod dev/zero c 1 5
        echo gone > usr/share/gone; echo hidden > usr/opaque/f; echo old > usr/share/new; mkfifo dev/pipe
        chmod 2775 usr/share/deep; chown 5:6 usr/share
        find . -exec touch -h -d '2001-02-03 04:05:06.123456789' {} +
        "#,
    );
    let top = layer(
        disk,
        root,
        "top",
        r#"
        mkdir -p usr/share usr/opaque; mknod usr/share/gone c 0 0; echo newer > usr/share/new
        setfattr -n trusted.overlay.opaque -v y usr/opaque; chmod 751 usr/share; chown 7:8 usr/share
        find . -exec touch -h -d '2003-04-05 06:07:08.5' {} +
        "#,
    );
    [top, bottom]
}

#[test]
fn a_hard_link_into_a_lower_layer_is_what_overlayfs_makes_of_it() {
    if !is_root("a_hard_link_into_a_lower_layer_is_what_overlayfs_makes_of_it") {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path();
    let disk = SystemDisk::open(root).unwrap();
    let layers = stack(&disk, root);
    scratch.dir("c");
    let container = disk.open_dir(&disk.root().unwrap(), b"c").unwrap();
    active::create(&disk, &container, true).unwrap();
    {
        let _mounted = Mounted(&container);
        mount(&disk, &container, &layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
        let script = "mkdir n; ln usr/share/deep/a n/a; ln lib/x n/x; ln lib/x n/again; ln -P usr/share/link n/link;
                      ln dev/zero n/zero; ln dev/pipe n/pipe; ln usr/share/new n/new; touch -d @1600000000 n";
        sh(&root.join("c/merged"), script);
    }
    let tar = Archive::default()
        .dir("n")
        .hard_link("n/a", "usr/share/deep/a")
        .hard_link("n/x", "/lib/x")
        .hard_link("n/again", "lib/x")
        .hard_link("n/link", "usr/share/link")
        .hard_link("n/zero", "dev/zero")
        .hard_link("n/pipe", "dev/pipe")
        .hard_link("n/new", "usr/share/new")
        .end();
    let third = Layer::new();
    let below =
        || -> Vec<Handle> { layers.iter().map(|layer| disk.open_dir_in_root(layer, ".".as_ref()).unwrap()).collect() };
    let lower: Arc<dyn Disk> = Arc::new(SystemDisk::open(root).unwrap());
    let extract = |layer: &Layer, tar: &[u8]| {
        let lower = LowerStack::new(Arc::clone(&lower), below());
        let support = Support { lower: Some(Box::new(lower)), ..Support::default() };
        let expected = expectation_of(tar, tar);
        let extraction = Extraction::start_with(layer.disk.clone(), layer.dir(), expected, support)?;
        let _ = extraction.feed(tar.to_vec()); // Its end says why.
        extraction.finish()
    };
    let extracted = extract(&third, &tar).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(extracted.tree.depends_on_parents && !extracted.tree.implied_directories);
    let visible = |tree: &Path| {
        let mut nodes = list(tree);
        nodes.iter_mut().for_each(|node| node.xattrs.retain(|(name, _)| !name.starts_with(b"trusted.overlay.")));
        nodes
    };
    assert_same(&visible(&third.tree()), &visible(&root.join("c/upper")));
    assert!(list(&third.tree()).iter().all(|node| node.xattrs.iter().all(|(name, _)| name.starts_with(b"user."))));
    assert!(third.rebuilt().unwrap_or_else(|error| panic!("{}", chain(&error))) == tar);
    let recipe = Recipe::open(third.disk.clone(), &third.dir()).unwrap();
    assert!(recipe.summary().depends_on_parents);
    let copied: Vec<_> = recipe
        .items()
        .filter_map(|item| match item.unwrap() {
            Item::Copied(copied) => Some(String::from_utf8(copied.path.clone()).unwrap()),
            Item::LedTo(path) => Some(format!("led to {}", String::from_utf8(path).unwrap())),
            _ => None,
        })
        .collect();
    let expected = [
        "usr",
        "usr/share",
        "usr/share/deep",
        "usr/share/deep/a",
        "usr/lib",
        "usr/lib/x",
        "led to usr/lib/x",
        "usr/share/link",
        "dev",
        "dev/zero",
        "dev/pipe",
        "usr/share/new",
    ];
    assert_eq!(copied, expected);
    let content = blake3::hash(&std::fs::read(third.tree().join("n/a")).unwrap());
    assert_eq!(recipe.find(b"usr/share/deep/a").unwrap().unwrap().content.blake3, *content.as_bytes());

    // What the stack does not show, and what this layer hides itself, is nowhere.
    for (case, tar) in [
        ("a whiteout below", Archive::default().hard_link("h", "usr/share/gone").end()),
        ("an opaque directory below", Archive::default().hard_link("h", "usr/opaque/f").end()),
        ("nothing", Archive::default().hard_link("h", "usr/nothing").end()),
        ("its own whiteout", Archive::default().file("usr/lib/.wh.x", b"").hard_link("h", "usr/lib/x").end()),
        (
            "its own opaque directory",
            Archive::default().dir("usr").file("usr/.wh..wh..opq", b"").hard_link("h", "usr/lib/x").end(),
        ),
        ("its own file on the way", Archive::default().file("usr", b"").hard_link("h", "usr/lib/x").end()),
    ] {
        let error = extract(&Layer::new(), &tar).expect_err(case);
        assert!(matches!(error, ExtractError::LinkOutsideLayer { .. }), "{case}: {}", chain(&error));
    }
    let directory = Archive::default().hard_link("h", "usr/share").end();
    let error = extract(&Layer::new(), &directory).expect_err("a directory");
    assert!(matches!(error, ExtractError::BadPath { .. }), "{}", chain(&error));
}
