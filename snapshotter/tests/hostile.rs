//! What attackers put into layers (threats L1, L2, L6, L7, L8): nothing outside changes, and each trick has its error.
#![allow(clippy::disallowed_methods, reason = "tests look at the tree behind the port's back")]

mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use baleen_oci::{DiffId, Digest, MediaType};
use baleen_snapshotter::decompress::DecompressError;
use baleen_snapshotter::tar::{TarError, TarProblem};
use baleen_snapshotter::{Expectation, ExtractError, Limits};
use common::archive::*;
use common::*;

/// A layer's place with a tree of canaries around it.
struct Guarded {
    layer: Layer,
    before: Vec<Node>,
}

impl Guarded {
    fn new() -> Self {
        let layer = Layer::new();
        let outside = layer.scratch.dir("outside");
        sh(
            &outside,
            "echo secret > victim; chmod 640 victim; mkdir dir; echo x > dir/x; chmod 700 dir; ln -s victim link; setfattr -n user.u -v u victim",
        );
        let before = Self::look(&layer);
        Self { layer, before }
    }

    fn look(layer: &Layer) -> Vec<Node> {
        let top: Vec<_> = std::fs::read_dir(layer.scratch.path()).unwrap().collect();
        assert_eq!(top.len(), 2, "nothing is made beside the layer: {top:?}");
        list(&layer.scratch.path().join("outside"))
    }

    fn outside(&self) -> String {
        self.layer.scratch.path().join("outside").to_str().unwrap().to_owned()
    }

    /// Extracts, and checks that nothing outside has changed.
    fn extract(&self, tar: &[u8]) -> Result<(), ExtractError> {
        let result = self.layer.extract(tar, 4096, expectation_of(tar, tar)).map(drop);
        assert_same(&Self::look(&self.layer), &self.before);
        result
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.layer.tree().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// How a trick must end.
enum Ends {
    Outside,
    BadPath,
    LinkOutside,
    /// Accepted; this path below the tree holds `planted`.
    Inside(&'static str),
    Accepted,
}

#[test]
fn no_archive_reaches_what_lies_outside_its_layer() {
    if !is_root("no_archive_reaches_what_lies_outside_its_layer") {
        return;
    }
    let place = Guarded::new();
    let outside = place.outside();
    let up = "../".repeat(20);
    let new = Archive::default;
    let victim = format!("{outside}/victim");
    let tricks: Vec<(&str, Archive, Ends)> = vec![
        ("a name with ..", new().file(&format!("{up}x"), b"planted"), Ends::Outside),
        ("a name with .. below", new().dir("a").file("a/../../x", b"planted"), Ends::Outside),
        ("a name with .. after a slash", new().file("/../x", b"planted"), Ends::Outside),
        ("an absolute name", new().file("/etc/passwd", b"planted"), Ends::Inside("etc/passwd")),
        (
            "a file through an absolute link",
            new().symlink("l", "/d").dir("d").file("l/f", b"planted"),
            Ends::Inside("d/f"),
        ),
        ("a file through a link out", new().symlink("l", &outside).file("l/victim", b"planted"), Ends::BadPath),
        (
            "a file through a link up",
            new().symlink("l", &format!("{up}d")).dir("d").file("l/f", b"planted"),
            Ends::Inside("d/f"),
        ),
        (
            "a file through a link chain",
            new().dir("d").symlink("a", "d").symlink("b", "a").symlink("c", "/b").file("c/f", b"planted"),
            Ends::Inside("d/f"),
        ),
        ("a file through a loop", new().symlink("a", "b").symlink("b", "a").file("a/f", b"planted"), Ends::BadPath),
        ("a file through a file", new().file("a", b"").file("a/f", b"planted"), Ends::BadPath),
        (
            "a file through a link to a file",
            new().file("a", b"").symlink("l", "a").file("l/f", b"planted"),
            Ends::BadPath,
        ),
        ("a file over a link", new().symlink("l", &victim).file("l", b"planted"), Ends::Inside("l")),
        (
            "a directory over a link",
            new().symlink("l", &outside).dir("l").file("l/victim", b"planted"),
            Ends::Inside("l/victim"),
        ),
        (
            "a link over a directory and back",
            new().dir("d").file("d/f", b"1").symlink("d", &outside).dir("d").file("d/victim", b"planted"),
            Ends::Inside("d/victim"),
        ),
        (
            "a link to a link that is replaced",
            new().dir("d").symlink("l", "d").file("l/f", b"1").symlink("d", &outside).file("l/victim", b"planted"),
            Ends::BadPath,
        ),
        ("a hard link up", new().hard_link("h", &format!("{up}{outside}/victim")), Ends::Outside),
        ("a hard link to an absolute name", new().hard_link("h", &victim), Ends::LinkOutside),
        (
            "a hard link to an absolute name of the layer",
            new().file("f", b"planted").hard_link("h", "/f"),
            Ends::Inside("h"),
        ),
        ("a hard link through a link out", new().symlink("l", &outside).hard_link("h", "l/victim"), Ends::LinkOutside),
        (
            "a hard link to a link",
            new().symlink("l", &victim).hard_link("h", "l").file("h", b"planted"),
            Ends::Inside("h"),
        ),
        ("a hard link to a directory", new().dir("d").hard_link("h", "d"), Ends::BadPath),
        ("a hard link to itself", new().file("f", b"planted").hard_link("f", "f"), Ends::Inside("f")),
        ("a hard link to the root", new().hard_link("h", "/"), Ends::BadPath),
        ("a hard link to a lower layer's file", new().hard_link("h", "usr/bin/env"), Ends::LinkOutside),
        ("a name of 5000 bytes", new().pax(b'x', &[("path", &[b'n'; 5000])]).file("n", b"planted"), Ends::BadPath),
        (
            "a deep name of 5000 bytes",
            new().pax(b'x', &[("path", &b"n/".repeat(2500))]).file("n", b"planted"),
            Ends::BadPath,
        ),
        ("a part of 256 bytes", new().pax(b'x', &[("path", &[b'n'; 256])]).file("n", b"planted"), Ends::BadPath),
        ("a whiteout of nothing", new().file(".wh.", b""), Ends::BadPath),
        ("a whiteout of .", new().file(".wh..", b""), Ends::BadPath),
        ("a whiteout of ..", new().dir("d").file("d/.wh...", b""), Ends::BadPath),
        ("a whiteout with a slash after it", new().dir(".wh../"), Ends::BadPath),
        ("an opaque marker over a link", new().symlink("l", &outside).file("l/.wh..wh..opq", b""), Ends::BadPath),
        ("a whiteout over a link", new().symlink("l", &victim).file(".wh.l", b""), Ends::Accepted),
        ("a whiteout through a link", new().symlink("l", &outside).file("l/.wh.victim", b""), Ends::BadPath),
        ("the root as a file", new().file("./", b""), Ends::BadPath),
        ("the root as a link", new().symlink("/", &outside), Ends::BadPath),
        ("a symlink to nothing", new().symlink("l", ""), Ends::BadPath),
        ("AUFS's directory", new().dir(".wh..wh.plnk").file(".wh..wh.aufs", b"x"), Ends::Accepted),
        ("a device of the host's disk", new().block(Block::new(b"sda", b'4', 0).device(8, 0)), Ends::Accepted),
    ];
    for (trick, archive, ends) in tricks {
        let place = Guarded::new();
        // The tricks name the first place's canaries; both are checked.
        let result = place.extract(&archive.clone().end());
        let fits = match (&result, &ends) {
            (Err(ExtractError::PathOutside { .. }), Ends::Outside)
            | (Err(ExtractError::BadPath { .. }), Ends::BadPath)
            | (Err(ExtractError::LinkOutsideLayer { .. }), Ends::LinkOutside)
            | (Ok(()), Ends::Accepted) => true,
            (Ok(()), Ends::Inside(path)) => place.read(path) == b"planted",
            _ => false,
        };
        assert!(fits, "{trick}: {result:?}");
    }
    assert_same(&Guarded::look(&place.layer), &place.before);
}

#[test]
fn whiteouts_hide_the_layers_below_and_never_their_own() {
    if !is_root("whiteouts_hide_the_layers_below_and_never_their_own") {
        return;
    }
    let tar = Archive::default()
        .file(".wh.gone", b"")
        .file("late", b"own")
        .file(".wh.late", b"")
        .file(".wh.early", b"")
        .file("early", b"own")
        .file(".wh.dir", b"")
        .file("dir/f", b"own")
        .dir("dir2")
        .file("dir2/f", b"own")
        .file(".wh.dir2", b"")
        .dir("opaque")
        .file("opaque/before", b"own")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/after", b"own")
        .block(Block::new(b"device", b'3', 0).device(0, 0))
        .end();
    let (layer, extracted) = extract_and_rebuild(&tar);
    assert!(extracted.tree.implied_directories, "dir is implied");
    let nodes = list(&layer.tree());
    let kind = |path: &str| nodes.iter().find(|node| node.path == path.as_bytes()).map(|node| node.kind.as_str());
    assert_eq!((kind("gone"), kind("device")), (Some("char"), Some("char")));
    assert_eq!(
        (kind("late"), kind("early"), kind("dir/f"), kind("dir2/f")),
        (Some("file"), Some("file"), Some("file"), Some("file"))
    );
    let opaque = (b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    for dir in ["dir", "dir2", "opaque"] {
        let node = nodes.iter().find(|node| node.path == dir.as_bytes()).unwrap();
        assert_eq!(node.xattrs, std::slice::from_ref(&opaque), "{dir}");
    }
    assert_eq!(list(&layer.tree()).iter().filter(|node| node.path.starts_with(b".wh.")).count(), 0);
}

#[test]
fn only_harmless_attributes_of_an_archive_reach_the_disk() {
    if !is_root("only_harmless_attributes_of_an_archive_reach_the_disk") {
        return;
    }
    let capability = [[1, 0, 0, 2].as_slice(), &[0x20, 0, 0, 0], &[0; 12]].concat();
    let long_capability = [capability.clone(), vec![0; 4]].concat();
    let attributes: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.good", b"kept"),
        ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.other", b"t"),
        ("SCHILY.xattr.security.selinux", b"system_u:object_r:etc_t:s0"),
        ("SCHILY.xattr.security.ima", b"\x01\x02"),
        ("SCHILY.xattr.security.evm", b"\x01\x02"),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
    ];
    let with = |value: &[u8]| {
        let mut all = attributes.to_vec();
        all.push(("SCHILY.xattr.security.capability", value));
        Archive::default().pax(b'x', &all).file("f", b"f").pax(b'x', &all).dir("d").end()
    };
    let user = (b"user.good".to_vec(), b"kept".to_vec());
    let of = |layer: &Layer, path: &str| xattrs(&layer.tree().join(path));
    let (layer, _) = extract_and_rebuild(&with(&capability));
    assert_eq!(of(&layer, "f"), [(b"security.capability".to_vec(), capability.clone()), user.clone()]);
    assert_eq!(of(&layer, "d"), std::slice::from_ref(&user));
    for bad in [&long_capability[..], &capability[..19], b"", b"\xff\xff\xff\xff"] {
        let (layer, _) = extract_and_rebuild(&with(bad));
        assert_eq!(of(&layer, "f"), std::slice::from_ref(&user));
    }
}

#[test]
fn a_size_that_is_said_twice_has_one_reading() {
    if !is_root("a_size_that_is_said_twice_has_one_reading") {
        return;
    }
    // What looks like an entry is data to who takes the PAX size, and an entry to who takes the header's.
    let hidden = Archive::default().file("hidden", b"").0;
    let tar = Archive::default()
        .pax(b'x', &[("size", hidden.len().to_string().as_bytes())])
        .block(Block::new(b"f", b'0', 0))
        .data(&hidden)
        .end();
    let (layer, extracted) = extract_and_rebuild(&tar);
    assert_eq!(extracted.tree.entries, 1);
    assert_eq!(std::fs::read(layer.tree().join("f")).unwrap(), hidden);
}

fn refused(tar: &[u8]) -> ExtractError {
    let place = Guarded::new();
    place.extract(tar).expect_err("refused")
}

#[test]
fn a_damaged_archive_is_refused_by_name() {
    if !is_root("a_damaged_archive_is_refused_by_name") {
        return;
    }
    let new = Archive::default;
    let mut checksum = new().file("f", b"f").end();
    checksum[0] ^= 1;
    let sparse = |records: &[(&str, &[u8])], data: &[u8]| new().pax(b'x', records).file("s", data).end();
    for (tar, problem) in [
        (checksum, TarProblem::Checksum),
        (new().file("f", &[1; 600]).0[..1100].to_vec(), TarProblem::Truncated),
        (new().file("f", b"f").0[..300].to_vec(), TarProblem::Truncated),
        (new().pax(b'x', &[("path", b"n")]).0[..515].to_vec(), TarProblem::Truncated),
        (new().block(Block::new(b"x", b'x', 10)).data(b"5 bad\n\n\n\n\n").file("f", b"").end(), TarProblem::Pax),
        (new().block(Block::new(b"x", b'g', 10)).data(b"5 bad\n\n\n\n\n").file("f", b"").end(), TarProblem::Pax),
        (new().block(Block::new(b"x", b'x', 1 << 30)).0, TarProblem::ExtensionTooLong),
        (new().block(Block::new(b"x", b'L', (1 << 20) + 1)).0, TarProblem::ExtensionTooLong),
        (new().raw(&[0; 512]).file("f", b"f").end(), TarProblem::LoneZeroBlock),
        (new().pax(b'x', &[("size", b"-1")]).file("f", b"").end(), TarProblem::Number("PAX size")),
        (new().pax(b'x', &[("uid", b"4294967295")]).file("f", b"").end(), TarProblem::Number("uid")),
        (new().pax(b'x', &[("mtime", b"today")]).file("f", b"").end(), TarProblem::Number("PAX mtime")),
        (new().block(Block::new(b"f", b'0', 0).set(124, b"9")).end(), TarProblem::Number("size")),
        (sparse(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], b""), TarProblem::SparseMap),
        (sparse(&[("GNU.sparse.map", b"0,1,2"), ("GNU.sparse.numblocks", b"2")], b"abc"), TarProblem::SparseMap),
        (
            sparse(
                &[("GNU.sparse.map", b"9,1,0,1"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.size", b"10")],
                b"ab",
            ),
            TarProblem::SparseMap,
        ),
        (
            sparse(&[("GNU.sparse.map", b"0,9"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.size", b"9")], b"ab"),
            TarProblem::SparseMap,
        ),
        (sparse(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], &[b'9'; 1024]), TarProblem::SparseMap),
        (new().block(Block::new(b"s", b'S', 0)).end(), TarProblem::SparseMap),
    ] {
        match refused(&tar) {
            ExtractError::Tar(TarError { problem: found, .. }) if found == problem => {}
            other => panic!("{problem:?}: {other:?}"),
        }
    }
    for flag in *b"MNXAZ" {
        let error = refused(&new().block(Block::new(b"odd", flag, 0)).end());
        assert!(matches!(error, ExtractError::UnsupportedEntry { .. }), "{error:?}");
    }
}

#[test]
fn bytes_that_are_not_those_announced_are_refused_before_the_end() {
    if !is_root("bytes_that_are_not_those_announced_are_refused_before_the_end") {
        return;
    }
    let tar = Archive::default().file("f", &Random(9).bytes(100_000)).end();
    let gzip = pipe(Command::new("gzip").arg("-1"), &tar);
    let wrong = Digest::sha256_of(b"other");
    let good = expectation_of(&gzip, &tar);
    let finish = |blob: &[u8], expected: Expectation| {
        let layer = Layer::new();
        let result = layer.extract(blob, 1000, expected).map(drop);
        let recipe = baleen_store::recipe::Recipe::open(layer.disk.clone(), &layer.dir());
        assert_eq!(result.is_ok(), recipe.is_ok(), "a recipe is whole if and only if the layer is (X1)");
        result
    };
    assert!(finish(&gzip, good.clone()).is_ok());
    let found = finish(&gzip, Expectation { blob: Some(wrong), ..good.clone() });
    assert!(matches!(&found, Err(ExtractError::DigestMismatch { expected, .. }) if **expected == wrong), "{found:?}");
    let found = finish(&gzip, Expectation { diff_id: Some(DiffId(wrong)), ..good.clone() });
    assert!(matches!(&found, Err(ExtractError::DiffIdMismatch { .. })), "{found:?}");
    let found = finish(&gzip[..gzip.len() - 1], good.clone());
    assert!(matches!(&found, Err(ExtractError::BlobTooShort { .. })), "{found:?}");
    let found = finish(&[gzip.as_slice(), b"x"].concat(), good.clone());
    assert!(matches!(&found, Err(ExtractError::BlobTooLong { .. })), "{found:?}");
    let media_type = MediaType::from_name("application/vnd.example.layer+lz4");
    let found = finish(&gzip, Expectation { media_type: Some(media_type), ..good.clone() });
    assert!(matches!(&found, Err(ExtractError::UnknownMediaType { .. })), "{found:?}");
    let media_type = Some(MediaType::from_name("application/vnd.docker.image.rootfs.diff.tar.gzip"));
    assert!(finish(&gzip, Expectation { media_type, ..good.clone() }).is_ok());
    let layer = Layer::new();
    let extraction = baleen_snapshotter::Extraction::start(layer.disk.clone(), layer.dir(), good).unwrap();
    extraction.feed(gzip[..5000].to_vec()).unwrap();
    extraction.abort();
}

#[test]
fn a_damaged_stream_is_refused_by_name() {
    if !is_root("a_damaged_stream_is_refused_by_name") {
        return;
    }
    let tar = Archive::default().file("f", &b"all work and no play ".repeat(30_000)).end();
    let gzip = pipe(Command::new("gzip").arg("-6"), &tar);
    let zstd = pipe(Command::new("zstd").arg("-q"), &tar);
    let window = pipe(
        Command::new("zstd").args(["-q", "--ultra", "-22", "--long=27", "--stream-size=200000000"]),
        &vec![7; 200_000_000],
    );
    let flip = |blob: &[u8], at: usize| {
        let mut blob = blob.to_vec();
        blob[at] ^= 0x40;
        blob
    };
    let cut = |blob: &[u8]| blob[..blob.len() - 9].to_vec();
    let find = |blob: &[u8]| {
        // Nothing is known of the bytes but what they say themselves.
        let expected =
            Expectation { limits: Limits { tar_bytes_max: 1 << 30, ..Limits::default() }, ..Expectation::default() };
        Layer::new().extract(blob, 777, expected).expect_err("refused")
    };
    for (name, blob) in [
        ("gzip", flip(&gzip, gzip.len() / 2)),
        ("checksum", flip(&gzip, gzip.len() - 6)),
        ("length", flip(&gzip, gzip.len() - 2)),
        ("flags", flip(&gzip, 3).iter().enumerate().map(|(at, byte)| if at == 3 { 0xe0 } else { *byte }).collect()),
        ("garbage", [gzip.as_slice(), b"garbage"].concat()),
        ("garbage after zeros", [gzip.as_slice(), b"\0\0\0x"].concat()),
        ("zstd", flip(&zstd, zstd.len() / 2)),
        ("zstd garbage", [zstd.as_slice(), b"garbage"].concat()),
    ] {
        let error = find(&blob);
        assert!(matches!(error, ExtractError::Decompress(DecompressError::Corrupt { .. })), "{name}: {error:?}");
    }
    for blob in [cut(&gzip), cut(&zstd), gzip[..5].to_vec(), gzip[..12].to_vec(), zstd[..7].to_vec()] {
        let error = find(&blob);
        assert!(matches!(error, ExtractError::Decompress(DecompressError::Truncated { .. })), "{error:?}");
    }
    let error = find(&window);
    assert!(
        matches!(error, ExtractError::Decompress(DecompressError::WindowTooLarge { window_bytes }) if window_bytes == 1 << 27),
        "{error:?}"
    );
    for magic in [&b"\xfd7zXZ\0\0\0\0\0\0\0"[..], b"BZh91AY&SY..."] {
        let error = find(magic);
        assert!(matches!(error, ExtractError::Decompress(DecompressError::Unsupported { .. })), "{error:?}");
    }
}

/// Peak memory of this process in KiB; the tests of one program share it.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_bomb_ends_at_its_limit_in_bounded_time_and_memory() {
    if !is_root("a_bomb_ends_at_its_limit_in_bounded_time_and_memory") {
        return;
    }
    let limits = Limits { entries_max: 10_000, tar_bytes_max: 64 << 20 };
    let bomb = |name: &str, blob: &[u8]| {
        let layer = Layer::new();
        let started = Instant::now();
        let error = layer.extract(blob, 64 << 10, Expectation { limits, ..Expectation::default() }).expect_err(name);
        println!("{name}: {} ms, {error}", started.elapsed().as_millis());
        error
    };
    // A file of 10 GiB of zeros: 10 MB of gzip, less than 1 MB of zstd. Its first 256 MiB are enough.
    let head = Archive::default().block(Block::new(b"zeros", b'0', 7 << 30)).0;
    let zeros = [head, vec![0; 256 << 20]].concat();
    for program in ["gzip", "zstd"] {
        let blob = pipe(Command::new(program).arg("-1"), &zeros);
        let error = bomb(program, &blob);
        assert!(matches!(error, ExtractError::TooLarge { .. }), "{error:?}");
    }
    drop(zeros);
    let mut many = Archive::default();
    for number in 0..10_001 {
        many = many.file(&format!("f{number}"), b"");
    }
    let error = bomb("entries", &many.end());
    assert!(matches!(error, ExtractError::TooManyEntries { .. }), "{error:?}");
    let map: String = (0..1_000_000).map(|part| format!("{part}\n1\n")).collect();
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9999999")];
    let sparse = Archive::default().pax(b'x', records).file("s", format!("1000000\n{map}").as_bytes()).end();
    let error = bomb("sparse", &sparse);
    assert!(matches!(error, ExtractError::Tar(TarError { problem: TarProblem::TooManySegments, .. })), "{error:?}");
    // Many small parts cost memory while they are read: 1 MiB of them is the most.
    let before = peak_kib();
    let record = Archive::default().pax(b'x', &[("comment", &vec![b'c'; (1 << 20) - 100])]).file("f", b"");
    let tar = (0..40).fold(Archive::default(), |tar, _| tar.raw(&record.0)).end();
    let place = Layer::new();
    let result = place.extract(&tar, 64 << 10, Expectation { limits, ..Expectation::default() });
    assert!(result.is_ok(), "{result:?}");
    println!("peak memory {} KiB more for 40 records of 1 MiB", peak_kib().saturating_sub(before));
}

#[test]
fn the_layer_s_own_directory_is_all_that_an_extraction_makes() {
    if !is_root("the_layer_s_own_directory_is_all_that_an_extraction_makes") {
        return;
    }
    let (layer, _) = extract_and_rebuild(&Archive::default().file("f", b"1").file("f", b"2").end());
    let names = |path: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&layer.scratch.path().join("layer")), [b"fs".to_vec(), b"kept".to_vec(), b"recipe".to_vec()]);
    assert_eq!(names(&layer.scratch.path().join("layer/kept")), [b"0".to_vec()]);
    let again = layer.extract(b"", 1, Expectation::default());
    assert_eq!(again.expect_err("the directory is not empty").os_error(), Some(libc::EEXIST));
}

#[test]
fn a_damaged_tree_is_found_by_the_rebuild() {
    if !is_root("a_damaged_tree_is_found_by_the_rebuild") {
        return;
    }
    use baleen_snapshotter::rebuild::RebuildError;
    let tar = Archive::default().dir("d").file("d/f", b"contents").file("g", b"others").end();
    for (damage, script) in [
        ("changed", "printf Contents > d/f"),
        ("shorter", "printf content > d/f"),
        ("gone", "rm d/f"),
        ("a directory", "rm d/f; mkdir d/f"),
        ("a link", "mv d/f e; ln -s ../e d/f"),
        ("a fifo", "rm d/f; mkfifo d/f"),
        ("its directory gone", "mv d e; ln -s e d"),
    ] {
        let (layer, _) = extract_and_rebuild(&tar);
        sh(&layer.tree(), script);
        let error = layer.rebuilt().expect_err("found");
        assert!(matches!(&error, RebuildError::Damaged { path, .. } if path == "fs/d/f"), "{damage}: {error:?}");
    }
    let (layer, _) = extract_and_rebuild(&tar);
    let path = layer.scratch.path().join("layer/recipe");
    let recipe = std::fs::read(&path).unwrap();
    for at in 0..recipe.len() {
        let mut damaged = recipe.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        if let Ok(found) = layer.rebuilt() {
            panic!("a flip of byte {at} of {} went unseen: {}", recipe.len(), found == tar);
        }
    }
    for length in 0..recipe.len() {
        std::fs::write(&path, &recipe[..length]).unwrap();
        assert!(layer.rebuilt().is_err(), "a recipe of {length} bytes is read");
    }
}

#[test]
fn a_tree_that_changes_under_an_extraction_leads_nowhere() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    if !is_root("a_tree_that_changes_under_an_extraction_leads_nowhere") {
        return;
    }
    let rounds = if std::env::var_os("BALEEN_SOAK").is_some() { 10_000 } else { 500 };
    let place = Guarded::new();
    let root = place.layer.scratch.path().to_owned();
    let mut tar = Archive::default().dir("d").dir("d/e").file("d/victim", b"planted");
    for number in 0..20 {
        // Coming back to `d` by way of its parent, so that it is looked up again and again.
        tar = tar.file(&format!("d/e/f{number}"), b"x").file(&format!("d/f{number}"), b"x").file(".wh.n", b"");
        tar = tar.hard_link(&format!("d/victim{number}"), "d/victim").file("d/victim", b"planted");
    }
    let tar = tar.end();
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = Arc::new(AtomicU64::new(0));
    let racer = {
        let (stop, swaps, root) = (Arc::clone(&stop), Arc::clone(&swaps), root.clone());
        std::thread::spawn(move || {
            let (link, tree) = (root.join("layer/way-out"), root.join("layer/fs"));
            while !stop.load(Ordering::Relaxed) {
                let _ = std::os::unix::fs::symlink(root.join("outside"), &link);
                for name in ["d", "d/e"] {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    if rustix::fs::renameat_with(rustix::fs::CWD, &link, rustix::fs::CWD, tree.join(name), exchange)
                        .is_ok()
                    {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        })
    };
    let mut ends = std::collections::BTreeMap::new();
    for _ in 0..rounds {
        // The racer may put things back while they are removed.
        while std::fs::remove_dir_all(root.join("layer")).is_err() && root.join("layer").exists() {}
        std::fs::create_dir(root.join("layer")).unwrap();
        let result = (|| {
            let limits = Limits::default();
            let mut tree =
                baleen_snapshotter::tree::TreeWriter::create(place.layer.disk.clone(), &place.layer.dir(), limits)?;
            for part in tar.chunks(512) {
                tree.take(part)?;
            }
            tree.finish(DiffId(Digest::sha256_of(&tar)))
        })();
        let end = result.map_or_else(
            |error| format!("{error:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
            |_| "Ok".into(),
        );
        *ends.entry(end).or_insert(0) += 1;
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    println!("{rounds} rounds, {} swaps: {ends:?}", swaps.load(Ordering::Relaxed));
    assert!(swaps.load(Ordering::Relaxed) > rounds, "the race was run");
    assert_same(&Guarded::look(&place.layer), &place.before);
}
