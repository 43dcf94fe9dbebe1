//! Stacks of layers, mounted.
#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::os::fd::AsFd;
use std::path::Path;

use baleen_snapshotter::active;
use baleen_snapshotter::overlay::{Overlay, OverlayError, is_mounted, unmount};
use baleen_store::{Disk, Handle, SystemDisk};
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
