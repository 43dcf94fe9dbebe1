//! Layers of every kind of node, extracted while they arrive, beside what GNU tar makes of them.

#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::process::Command;

use baleen_oci::Compression;
use common::*;

/// A tree with every kind of node, as a tar of GNU tar in PAX format.
fn sample(scratch: &Scratch) -> Vec<u8> {
    let tree = scratch.dir("sample");
    sh(
        &tree,
        r#"
        mkdir -p etc usr/bin usr/lib/deep/er var/mail var/tmp
        echo root:x:0:0 > etc/passwd; printf '' > etc/empty
        head -c 1000000 /dev/urandom > usr/lib/large; head -c 4096 /dev/urandom > usr/lib/page
        head -c 12289 /dev/urandom > usr/lib/pages
        echo tool > usr/bin/tool; chmod 4755 usr/bin/tool; chown 12:34 usr/bin/tool; chmod 4755 usr/bin/tool
        ln usr/bin/tool usr/bin/hard; ln -s tool usr/bin/soft; ln usr/bin/soft usr/bin/soft2
        ln -s /usr/lib lib; ln -s ../../etc/passwd usr/lib/up
        mknod usr/null c 1 3; mknod usr/disk b 7 1; mkfifo usr/fifo; chown 5:6 usr/null usr/fifo
        chmod 2775 var/mail; chgrp 8 var/mail; echo m > var/mail/m; chown 1000:8 var/mail/m; echo r > var/mail/r; chgrp 0 var/mail/r
        chmod 1777 var/tmp
        echo caps > usr/bin/caps; setcap cap_net_raw+ep usr/bin/caps
        echo x > usr/lib/x; setfattr -n user.note -v hello usr/lib/x; setfattr -n user.dir -v there usr/lib/deep
        truncate -s 10M usr/lib/sparse; echo middle | dd of=usr/lib/sparse bs=1M seek=5 conv=notrunc 2>/dev/null
        n=$(printf 'n%.0s' $(seq 150)); mkdir -p usr/$n/$n; echo long > usr/$n/$n/$n; ln -s $n/$n/$n usr/longlink
        touch -h -d '2001-02-03 04:05:06.123456789' usr/bin/soft
        touch -d '1969-12-31 23:00:00.5' etc/passwd
        find . -type d -exec touch -d '2020-01-01 00:00:00.25' {} +
        "#,
    );
    run(Command::new("tar")
        .args(["--format=pax", "--xattrs", "--xattrs-include=*", "-S", "-cf", "-", "."])
        .current_dir(tree))
}

fn gnu_extracts(scratch: &Scratch, tar: &[u8]) -> Vec<Node> {
    let tree = scratch.dir("gnu");
    let args = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-xf", "-"];
    pipe(Command::new("tar").args(args).current_dir(&tree), tar);
    list(&tree)
}

#[test]
fn a_layer_is_extracted_as_gnu_tar_does_however_it_is_compressed_and_cut() {
    if !is_root("a_layer_is_extracted_as_gnu_tar_does_however_it_is_compressed_and_cut") {
        return;
    }
    let scratch = Scratch::new();
    let tar = sample(&scratch);
    let expected = gnu_extracts(&scratch, &tar);
    let gzip = pipe(Command::new("gzip").arg("-6"), &tar);
    let half = tar.len() / 3;
    let two_members = [
        pipe(Command::new("gzip").arg("-1"), &tar[..half]),
        pipe(Command::new("gzip").arg("-9"), &tar[half..]),
        vec![0; 1000],
    ]
    .concat();
    let zstd = pipe(Command::new("zstd").args(["-3", "-q"]), &tar);
    let two_frames = [
        pipe(Command::new("zstd").args(["-1", "-q"]), &tar[..half]),
        pipe(Command::new("zstd").args(["-19", "-q"]), &tar[half..]),
    ]
    .concat();
    for (blob, compression) in [
        (&tar, Compression::None),
        (&gzip, Compression::Gzip),
        (&two_members, Compression::Gzip),
        (&zstd, Compression::Zstd),
        (&two_frames, Compression::Zstd),
    ] {
        for part in [1 << 20, 4093] {
            let layer = Layer::new();
            let extracted = layer.extract(blob, part, expectation_of(blob, &tar));
            let extracted = extracted.unwrap_or_else(|error| panic!("{compression:?}: {}", chain(&error)));
            assert_eq!(extracted.compression, compression);
            assert_eq!(extracted.tree.tar_size_bytes, tar.len() as u64);
            assert_same(&list(&layer.tree()), &expected);
            assert!(layer.rebuilt().expect("the tar comes back") == tar);
            let sparse = std::fs::metadata(layer.tree().join("usr/lib/sparse")).unwrap();
            assert!(std::os::unix::fs::MetadataExt::blocks(&sparse) * 512 < 1 << 20, "holes stay holes");
        }
    }
}

#[test]
fn a_durable_layer_leaves_the_page_cache() {
    if !is_root("a_durable_layer_leaves_the_page_cache") {
        return;
    }
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    sh(&tree, "for n in $(seq 50); do head -c 3000 /dev/urandom > s$n; done; head -c 3000000 /dev/urandom > large");
    let tar = sh(&tree, "tar -cf - *");
    let layer = Layer::new();
    let barrier = layer.disk.root().unwrap();
    layer.extract(&tar, 1 << 16, expectation_of(&tar, &tar)).unwrap();
    layer.disk.barrier(&barrier).unwrap();
    let released = baleen_snapshotter::release(&layer.disk, &layer.dir()).unwrap();
    assert_eq!(released, 50);
    let pages = sh(&layer.tree(), "fincore -b -n -o RES * | awk '{s += $1} END {print s / 4096}'");
    let pages: u64 = String::from_utf8(pages).unwrap().trim().parse().unwrap();
    // Of 783. A page that another process just looks at may stay.
    assert!(pages < 80, "{pages} pages are still cached");
}
