//! Archives of every kind that layers are made of: each is extracted, and comes back bit for bit.
#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::path::Path;
use std::process::Command;

use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::Limits;
use baleen_snapshotter::tree::TreeWriter;
use common::archive::*;
use common::*;

const TREE: &str = r#"
    mkdir -p d/e; echo hello > d/hello; printf '' > d/empty; head -c 5000 /dev/urandom > d/e/data
    ln d/hello d/hard; ln -s hello d/soft; chmod 600 d/hello; touch -d '2020-02-02 02:02:02 UTC' d/hello d/e d
"#;

/// Longer than a header's name: only some formats can hold it.
const LONG: &str = "mkdir -p $(printf 'p%.0s' $(seq 90))/$(printf 'q%.0s' $(seq 90)); echo l > $(printf 'p%.0s' $(seq 90))/$(printf 'q%.0s' $(seq 90))/$(printf 'f%.0s' $(seq 120))";

/// A file with 60 parts: more than a GNU header and two extension blocks hold.
const HOLES: &str = "truncate -s 4M holes; for i in $(seq 0 59); do printf part | dd of=holes bs=1 seek=$((i * 65536 + 4096)) conv=notrunc 2>/dev/null; done; truncate -s 100000 hole";

fn tar_of(script: &str, tar: &str) -> Vec<u8> {
    let scratch = Scratch::new();
    let tree = scratch.dir("tree");
    sh(&tree, script);
    sh(&tree, tar)
}

/// Extracts, rebuilds, and compares the tree with what GNU tar makes of the archive, which `program` wrote.
fn same_as(program: &str, tar: &[u8]) {
    let (layer, _) = extract_and_rebuild(tar);
    let scratch = Scratch::new();
    let expected = scratch.dir("expected");
    let args = ["--xattrs", "--xattrs-include=user.*", "--numeric-owner", "-p", "-xf", "-"];
    pipe(Command::new("tar").args(args).current_dir(&expected), tar);
    let (found, mut expected) = (list(&layer.tree()), list(&expected));
    for (found, expected) in found.iter().zip(&mut expected) {
        // GNU tar sets a directory's times when it leaves it and not again when bsdtar's archive comes back to it;
        // a directory that is only implied has the time of now there, and none here.
        if found.kind == "directory" && (program == "bsdtar" || found.modified == (0, 0)) {
            expected.modified = found.modified;
        }
    }
    assert_same(&found, &expected);
}

fn needs(test: &str, program: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        skip(test, &format!("needs {program}"));
    }
    found && is_root(test)
}

#[test]
fn the_five_formats_of_gnu_tar_come_back() {
    if !needs("the_five_formats_of_gnu_tar_come_back", "tar") {
        return;
    }
    for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
        let long = if matches!(format, "v7" | "ustar") { "" } else { LONG };
        let tar = tar_of(&format!("{TREE}\n{long}"), &format!("tar --format={format} -cf - *"));
        same_as("tar", &tar);
    }
}

#[test]
fn sparse_files_of_gnu_tar_come_back_in_all_four_forms() {
    if !needs("sparse_files_of_gnu_tar_come_back_in_all_four_forms", "tar") {
        return;
    }
    for form in [
        "--format=gnu",
        "--sparse-version=0.0 --format=pax",
        "--sparse-version=0.1 --format=pax",
        "--sparse-version=1.0 --format=pax",
    ] {
        let tar = tar_of(HOLES, &format!("tar -S {form} -cf - *"));
        assert!(tar.len() < 2 << 20, "{form} is sparse");
        same_as("tar", &tar);
        let (layer, _) = extract_and_rebuild(&tar);
        let holes = std::fs::metadata(layer.tree().join("holes")).unwrap();
        assert_eq!(holes.len(), 4 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&holes) * 512 < 1 << 20, "{form}: holes stay holes");
    }
}

#[test]
fn labels_incremental_and_global_headers_of_gnu_tar_come_back() {
    if !needs("labels_incremental_and_global_headers_of_gnu_tar_come_back", "tar") {
        return;
    }
    same_as("tar", &tar_of(TREE, "tar -V 'a label' --format=gnu -cf - *"));
    let incremental = tar_of(TREE, "tar --format=gnu -g ../snapshot -cf - *");
    assert!(
        incremental.chunks(512).any(|block| block[156] == b'D' && &block[257..262] == b"ustar"),
        "has a dump directory"
    );
    let (layer, _) = extract_and_rebuild(&incremental);
    assert_eq!(std::fs::read(layer.tree().join("d/hello")).unwrap(), b"hello\n");
    let global = tar_of(TREE, "tar --format=pax --pax-option=comment=all -cf - *");
    assert_eq!(global[156], b'g');
    same_as("tar", &global);
}

#[test]
fn the_formats_of_bsdtar_come_back() {
    if !needs("the_formats_of_bsdtar_come_back", "bsdtar") {
        return;
    }
    for format in ["pax", "ustar", "gnutar", "v7"] {
        let long = if matches!(format, "v7" | "ustar") { "" } else { LONG };
        let script = format!("{TREE}\n{long}\n setfattr -n user.k -v v d/hello");
        let tar = tar_of(&script, &format!("bsdtar --format={format} --xattrs -cf - *"));
        same_as("bsdtar", &tar);
        let (layer, _) = extract_and_rebuild(&tar);
        let modified = std::fs::metadata(layer.tree().join("d/e")).unwrap().modified().unwrap();
        let since_1970 = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since_1970.as_secs(), 1_580_608_922, "{format}: a directory has its own time");
    }
}

#[test]
fn archives_of_pythons_tarfile_come_back() {
    if !needs("archives_of_pythons_tarfile_come_back", "python3") {
        return;
    }
    let scratch = Scratch::new();
    let made = |name: &str, script: &str| -> Vec<u8> {
        let path = scratch.path().join(name);
        let script = format!("import tarfile, io, sys\nf = sys.argv[1]\n{script}\n");
        run(Command::new("python3").arg("-c").arg(script).arg(&path));
        std::fs::read(path).unwrap()
    };
    let base256 = made(
        "base256",
        "t = tarfile.open(f, 'w', format=tarfile.GNU_FORMAT)\n\
         i = tarfile.TarInfo('big'); i.uid = 3000000000; i.gid = 2**31 + 5; i.mtime = 2**34; i.size = 5\n\
         t.addfile(i, io.BytesIO(b'hello'))\n\
         i = tarfile.TarInfo('old'); i.mtime = -1; t.addfile(i); t.close()",
    );
    same_as("tar", &base256);
    let xattrs = made(
        "xattrs",
        "t = tarfile.open(f, 'w', format=tarfile.PAX_FORMAT)\n\
         i = tarfile.TarInfo('x'); i.size = 3; i.pax_headers = {'SCHILY.xattr.user.a': 'one', 'SCHILY.xattr.user.b': 'two=2'}\n\
         t.addfile(i, io.BytesIO(b'abc')); t.close()",
    );
    same_as("tar", &xattrs);
    let size = made(
        "size",
        "t = tarfile.open(f, 'w', format=tarfile.PAX_FORMAT)\n\
         i = tarfile.TarInfo('\\u00e9' * 120); i.size = 700; i.mtime = 1.25; i.pax_headers = {'size': '700'}\n\
         t.addfile(i, io.BytesIO(b's' * 700)); t.close()",
    );
    same_as("tar", &size);
}

#[test]
fn archives_as_go_writes_them_come_back() {
    if !is_root("archives_as_go_writes_them_come_back") {
        return;
    }
    // Go's writer: directories end in a slash, types that need records get a PAX header named in `PaxHeaders.0`, device
    // numbers are there for all types, and the end is two blocks without a blocking factor.
    let long = format!("{}/{}", "g".repeat(150), "o".repeat(150));
    let record = pax_record("mtime", b"1600000000.123456");
    let pax = Archive::default()
        .block(Block::new(b"dir/", b'5', 0).mode(0o755).device(0, 0))
        .block(Block::new(b"dir/PaxHeaders.0/f", b'x', record.len() as u64).device(0, 0))
        .data(&record)
        .block(Block::new(b"dir/f", b'0', 4).device(0, 0))
        .data(b"data")
        .pax(b'x', &[("path", long.as_bytes())])
        .block(Block::new(&long.as_bytes()[..100], b'0', 1).device(0, 0))
        .data(b"1")
        .end();
    same_as("tar", &pax);
    let gnu = |block: Block| block.set(257, b"ustar  \0");
    let long_name = [long.as_bytes(), b"\0"].concat();
    let gnu = Archive::default()
        .block(gnu(Block::new(b"././@LongLink", b'L', long_name.len() as u64)))
        .data(&long_name)
        .block(gnu(Block::new(&long.as_bytes()[..100], b'0', 2).set(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x02")))
        .data(b"go")
        .end();
    same_as("tar", &gnu);
}

#[test]
fn ends_and_paddings_of_every_shape_come_back() {
    if !is_root("ends_and_paddings_of_every_shape_come_back") {
        return;
    }
    let body = Archive::default().dir("d").file("d/f", b"contents");
    let dirty = {
        // Bytes in the padding of a file's data and of an extension record.
        let mut tar = Archive::default().pax(b'x', &[("comment", b"c")]).file("f", b"abc").0;
        tar[600] = 7;
        tar[1024 + 512 + 400] = 9;
        Archive(tar).end()
    };
    let kinds: Vec<(&str, Vec<u8>)> = vec![
        ("nothing at all", Vec::new()),
        ("two zero blocks alone", vec![0; 1024]),
        ("no zero block", body.clone().0),
        ("one zero block", body.clone().raw(&[0; 512]).0),
        ("two zero blocks", body.clone().end()),
        ("a blocking factor", body.clone().raw(&[0; 10240]).0),
        ("an odd number of zeros", body.clone().raw(&[0; 1024 + 77]).0),
        ("a megabyte of zeros", body.clone().raw(&vec![0; 1 << 20]).0),
        ("garbage after the end", body.clone().raw(&[0; 2000]).raw(&Random(1).bytes(300_000)).0),
        ("an archive after the end", body.clone().raw(&[0; 1024]).raw(&body.clone().end()).0),
        ("an end inside padding", body.clone().0[..512 + 512 + 100].to_vec()),
        ("bytes in padding", dirty),
        ("a hard link with a size", body.clone().block(Block::new(b"h", b'1', 8).link(b"d/f")).end()),
        ("a symlink with a size", body.clone().block(Block::new(b"s", b'2', 99).link(b"d/f")).end()),
        ("a directory with a size", body.clone().block(Block::new(b"e", b'5', 4096)).file("e/x", b"x").end()),
        (
            "a label with a blank size",
            Archive::default().block(Block::new(b"label", b'V', 0).set(124, &[b' '; 12])).file("f", b"x").end(),
        ),
        (
            "a directory by its name",
            Archive::default()
                .block(Block::new(b"old/", 0, 0).set(257, &[0; 8]))
                .block(Block::new(b"old/f", 0, 0).set(257, &[0; 8]))
                .end(),
        ),
        (
            "PAX size over the header's",
            Archive::default().pax(b'x', &[("size", b"700")]).block(Block::new(b"f", b'0', 0)).data(&[b's'; 700]).end(),
        ),
        (
            "PAX size before a link",
            body.clone().pax(b'x', &[("size", b"700")]).block(Block::new(b"h", b'1', 0).link(b"d/f")).end(),
        ),
        ("an extension record of no bytes", Archive::default().block(Block::new(b"x", b'x', 0)).file("f", b"x").end()),
        ("a contiguous file", Archive::default().block(Block::new(b"c", b'7', 3)).data(b"con").end()),
        ("a record without an entry", body.clone().pax(b'x', &[("comment", b"last")]).end()),
        (
            "a star prefix",
            Archive::default().block(Block::new(b"f", b'0', 0).set(345, b"star/dir").set(508, b"tar\0")).end(),
        ),
        ("a file twice", body.clone().file("d/f", b"the second").end()),
        ("a file thrice, once as a link", body.clone().hard_link("l", "d/f").file("d/f", b"2").file("d/f", b"3").end()),
        ("a directory that becomes a file", body.clone().file("d", b"now a file").end()),
        ("a whiteout with data", Archive::default().file(".wh.gone", b"why?").end()),
    ];
    for (kind, tar) in &kinds {
        println!("{kind}");
        extract_and_rebuild(tar);
    }
    println!("{} kinds", kinds.len());
}

#[test]
fn a_header_summed_with_signed_bytes_is_read() {
    let mut block = Block::new("n\u{e9}".as_bytes(), b'0', 0).done();
    block[148..156].fill(b' ');
    let sum: i64 = block.iter().map(|byte| i64::from(*byte as i8)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    if is_root("a_header_summed_with_signed_bytes_is_read") {
        extract_and_rebuild(&Archive::default().raw(&block).end());
    }
}

#[test]
fn replaced_files_are_kept_for_the_rebuild_and_found_no_more() {
    if !is_root("replaced_files_are_kept_for_the_rebuild_and_found_no_more") {
        return;
    }
    let tar = Archive::default()
        .dir("d")
        .file("d/f", b"one")
        .file("d/g", b"two")
        .file("d/f", b"three")
        .symlink("d/g", "f")
        .file("e", b"a file first")
        .dir("e")
        .file("e/x", b"x")
        .file("e", b"a file again")
        .end();
    let (layer, extracted) = extract_and_rebuild(&tar);
    assert_eq!(extracted.tree.entries, 9);
    let read = |path: &str| std::fs::read(layer.tree().join(path)).unwrap();
    assert_eq!((read("d/f"), read("d/g"), read("e")), (b"three".to_vec(), b"three".to_vec(), b"a file again".to_vec()));
    let recipe = baleen_store::recipe::Recipe::open(layer.disk.clone(), &layer.dir()).unwrap();
    let found = |path: &[u8]| recipe.find(path).unwrap().map(|file| file.content.blake3);
    assert_eq!(found(b"d/f"), Some(*blake3::hash(b"three").as_bytes()));
    assert_eq!(found(b"e"), Some(*blake3::hash(b"a file again").as_bytes()));
    assert_eq!((found(b"d/g"), found(b"e/x"), found(b"nowhere")), (None, None, None));
}

#[test]
fn ten_thousand_generated_archives_come_back_and_every_other_is_refused() {
    if !is_root("ten_thousand_generated_archives_come_back_and_every_other_is_refused") {
        return;
    }
    // Most of the time is spent waiting for the disk, so several at once, each with seeds of its own.
    let workers: Vec<_> =
        (0..WORKERS).map(|worker| std::thread::spawn(move || generated_archives(worker, 10_000 / WORKERS))).collect();
    let (mut rebuilt, mut refused) = (0, std::collections::BTreeMap::new());
    for worker in workers {
        let (some, others) = worker.join().expect("no archive fails");
        rebuilt += some;
        for (kind, count) in others {
            *refused.entry(kind).or_insert(0) += count;
        }
    }
    println!("{rebuilt} rebuilt, refused: {refused:?}");
    assert_eq!(rebuilt, 10_000);
}

const WORKERS: u64 = 8;
/// Seeds tried for one archive that is to come back: somewhat less than half of the grammar's are good ones.
const SEEDS_MAX: u64 = 4;

/// How many came back, and how many were refused by each error.
type Outcome = (u64, std::collections::BTreeMap<String, u64>);

fn generated_archives(worker: u64, wanted: u64) -> Outcome {
    let (mut rebuilt, mut refused) = (0, std::collections::BTreeMap::new());
    let layer = Layer::new();
    canary(layer.scratch.path());
    let before = list(&layer.scratch.path().join("canary"));
    for seed in (worker..).step_by(WORKERS as usize).take((wanted * SEEDS_MAX) as usize) {
        if rebuilt == wanted {
            break;
        }
        let tar = generated(seed);
        layer.reset();
        // Without the threads of an extraction: they are the same for every archive.
        let extract = || {
            let mut tree = TreeWriter::create(layer.disk.clone(), &layer.dir(), Limits::default())?;
            for part in tar.chunks(700 + seed as usize % 3000) {
                tree.take(part)?;
            }
            tree.finish(DiffId(Digest::sha256_of(&tar)))
        };
        match extract() {
            Ok(_) => {
                let found = layer.rebuilt().unwrap_or_else(|error| panic!("seed {seed}: {}", chain(&error)));
                assert!(found == tar, "seed {seed}: the rebuilt tar differs");
                rebuilt += 1;
            }
            Err(error) => {
                let kind = format!("{error:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
                assert!(error.os_error().is_none(), "seed {seed}: {}", chain(&error));
                *refused.entry(kind).or_insert(0) += 1;
            }
        }
        if seed / WORKERS % 50 == 49 {
            assert_eq!(list(&layer.scratch.path().join("canary")), before, "seed {seed}: something outside changed");
        }
    }
    (rebuilt, refused)
}

/// A tree beside the layer that no layer may change.
fn canary(root: &Path) {
    std::fs::create_dir(root.join("canary")).unwrap();
    std::fs::write(root.join("canary/f"), b"untouched").unwrap();
}
