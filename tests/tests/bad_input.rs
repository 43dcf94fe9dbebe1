//! Bad input from registries and images: each has a clear error, nothing of it is stored, and the next good pull works.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Result, bail};
use baleen_tests::archive::{Entry, archive};
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Compression, Image, Layer, digest, gzip};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::scratch::{Scratch, SmallDisk, mounts_below};
use baleen_tests::store::{Allowed, assert_image_is_whole, ownerless};
use baleen_tests::stub::{Reply, Stub};
use baleen_tests::tree;

/// A daemon, a stub, and the good image that must still be pulled at the end.
struct Bench {
    stub: Stub,
    daemon: Daemon,
    scratch: Scratch,
}

impl Bench {
    fn new(label: &str) -> Result<Self> {
        let scratch = Scratch::new(label)?;
        let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
        daemon.argument("--max-download-attempts").argument("2").run()?;
        Ok(Self { stub: Stub::start()?, daemon, scratch })
    }

    /// Pulls `name:v1`, which must fail with one of `words` in its message, and leave nothing.
    fn refused(&self, name: &str, words: &[&str]) -> Result<String> {
        let output = self.fails(name, words)?;
        let stray = ownerless(&self.daemon, &Allowed::default())?;
        if !stray.is_empty() {
            bail!("{name}: left behind {stray:?}");
        }
        Ok(output)
    }

    /// Pulls `name:v1`, which must fail with one of `words` in its message, and make no image.
    fn fails(&self, name: &str, words: &[&str]) -> Result<String> {
        let finished = self.daemon.docker(&["pull", &self.stub.reference(&format!("{name}:v1"))])?;
        let output = finished.output();
        if finished.code == 0 {
            bail!("{name}: was pulled:\n{output}");
        }
        if !words.iter().any(|word| output.to_lowercase().contains(word)) {
            bail!("{name}: the message has none of {words:?}:\n{output}");
        }
        if !self.daemon.docker_ok(&["images", "-aq"])?.is_empty() {
            bail!("{name}: an image is listed");
        }
        println!("{name}: {}", output.lines().last().unwrap_or_default());
        Ok(output)
    }

    /// The good image must come now.
    fn good(&self) -> Result<()> {
        let image = good()?;
        self.stub.add("good", "v1", &image);
        let reference = self.stub.reference("good:v1");
        self.daemon.docker_ok(&["pull", "-q", &reference])?;
        assert_image_is_whole(&self.daemon, &self.scratch, &reference, &image)
    }
}

fn good() -> Result<Image> {
    Ok(Image::new(vec![Layer::of(&[Entry::file("good", Random::new(3).bytes(300_000))])?], &["/good"]))
}

#[test]
fn a_layer_that_is_not_what_its_digest_its_size_or_its_diff_id_says_is_refused() -> Result<()> {
    needs_root!("a_layer_that_is_not_what_its_digest_its_size_or_its_diff_id_says_is_refused");
    let bench = Bench::new("verify")?;
    let image = good()?;
    let blob = &image.layers[0].blob;

    // Other bytes of the same length under the right name, at the end and in the middle.
    let mut other = Layer::of(&[Entry::file("good", Random::new(4).bytes(300_000))])?;
    other.blob.resize(blob.len(), 0);
    bench.stub.add("digest", "v1", &image);
    bench.stub.add_blob(&image.layers[0].digest(), other.blob);
    bench.refused("digest", &["digest"])?;

    // One byte less and one byte more than the manifest says.
    for (name, bytes) in [("short", blob[..blob.len() - 1].to_vec()), ("long", [blob.as_slice(), b"x"].concat())] {
        bench.stub.add(name, "v1", &image);
        bench.stub.add_blob(&image.layers[0].digest(), bytes);
        bench.refused(name, &["size", "bytes", "ended", "longer", "shorter"])?;
    }

    // The configuration promises another tar.
    let config =
        String::from_utf8(image.config.clone())?.replace(&image.layers[0].diff_id(), &digest(b"something else"));
    let wrong = Image::from_documents(image.layers.clone(), config.into_bytes(), &image.manifest_type);
    bench.stub.add("diff-id", "v1", &wrong);
    bench.refused("diff-id", &["diff id"])?;

    // A configuration that is not what the manifest names.
    bench.stub.add("config", "v1", &image);
    bench
        .stub
        .add_blob(&image.id(), image.config.iter().map(|byte| if *byte == b'2' { b'3' } else { *byte }).collect());
    bench.refused("config", &["digest", "config"])?;

    // The manifest of a digest reference is other bytes.
    bench.stub.add("by-digest", "v1", &image);
    bench.stub.hook({
        let manifest =
            String::from_utf8(image.manifest.clone())?.replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
        move |request| {
            let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
            let body = manifest.clone().into_bytes();
            request
                .path
                .contains("/manifests/sha256:")
                .then(|| Reply::Whole(200, vec![("Content-Type", media_type)], body))
        }
    });
    let reference = bench.stub.reference(&format!("by-digest@{}", image.digest()));
    let finished = bench.daemon.docker(&["pull", &reference])?;
    assert!(finished.code != 0 && finished.output().to_lowercase().contains("digest"), "{}", finished.output());
    bench.stub.hook(|_| None);
    bench.good()
}

#[test]
fn compressed_data_that_ends_early_or_is_damaged_is_refused() -> Result<()> {
    needs_root!("compressed_data_that_ends_early_or_is_damaged_is_refused");
    let bench = Bench::new("gzip")?;
    let tar = archive(&[Entry::file("text", "all work and no play ".repeat(20_000))]);
    let whole = gzip(&tar)?;
    let mut corrupt = whole.clone();
    let middle = corrupt.len() / 2;
    for byte in &mut corrupt[middle..middle + 16] {
        *byte ^= 0x55;
    }
    let trailing = [whole.as_slice(), b"garbage after the member"].concat();
    for (name, blob) in [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("no-trailer", whole[..whole.len() - 8].to_vec()),
        ("corrupt", corrupt),
        ("trailing-garbage", trailing),
        ("not-gzip", b"this is no gzip stream at all".to_vec()),
        ("empty", Vec::new()),
    ] {
        let layer =
            Layer { tar: tar.clone(), blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned() };
        bench.stub.add(name, "v1", &Image::new(vec![layer], &["/text"]));
        bench.refused(name, &["gzip", "diff id"])?;
    }
    let zstd = Layer::from_tar(tar.clone(), Compression::Zstd)?;
    let half = zstd.blob[..zstd.blob.len() / 2].to_vec();
    bench.stub.add("zstd-truncated", "v1", &Image::new(vec![Layer { blob: half, ..zstd }], &["/text"]));
    bench.refused("zstd-truncated", &["zstd", "ended", "ends", "truncated", "compressed"])?;
    // A tar that stops inside a file.
    let torn = Layer::from_tar(tar[..tar.len() / 2].to_vec(), Compression::Gzip)?;
    bench.stub.add("torn-tar", "v1", &Image::new(vec![torn], &["/text"]));
    bench.refused("torn-tar", &["tar", "archive", "ends", "ended"])?;
    bench.good()
}

#[test]
fn documents_of_unknown_or_mixed_type_are_refused_by_name() -> Result<()> {
    needs_root!("documents_of_unknown_or_mixed_type_are_refused_by_name");
    let bench = Bench::new("types")?;
    let image = good()?;
    let manifest = |name: &str, media_type: &str, text: &str| {
        bench.stub.add(name, "v1", &image);
        bench.stub.add_manifest(name, "v1", media_type, text.as_bytes());
    };
    let text = String::from_utf8(image.manifest.clone())?;
    let oci = "application/vnd.oci.image.manifest.v1+json";
    manifest(
        "unknown-type",
        "application/vnd.example.thing+json",
        &text.replace(oci, "application/vnd.example.thing+json"),
    );
    bench.refused("unknown-type", &["media type", "mediatype", "vnd.example.thing"])?;
    manifest("unknown-layer", oci, &text.replace("layer.v1.tar+gzip", "layer.v1.tar+mystery"));
    bench.refused("unknown-layer", &["media type", "mediatype", "mystery"])?;
    manifest("mixed", oci, &text.replacen('{', "{\"manifests\":[],", 1));
    bench.refused("mixed", &["manifests", "two types"])?;
    manifest("twice", oci, &text.replacen('{', "{\"layers\":[],", 1));
    bench.refused("twice", &["twice", "duplicate"])?;
    manifest("header-differs", "application/vnd.oci.image.index.v1+json", &text);
    bench.refused("header-differs", &["type", "content-type"])?;
    manifest(
        "schema-1",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#,
    );
    bench.refused("schema-1", &["schema"])?;
    manifest("not-json", oci, "{\"schemaVersion\":2,");
    bench.refused("not-json", &["json", "manifest"])?;
    manifest("climbing-digest", oci, &text.replace(&image.layers[0].digest(), "sha256:../../../x"));
    bench.refused("climbing-digest", &["digest"])?;
    bench.good()
}

#[test]
fn answers_without_an_end_are_cut_at_their_limit_and_take_no_memory() -> Result<()> {
    needs_root!("answers_without_an_end_are_cut_at_their_limit_and_take_no_memory");
    let bench = Bench::new("endless")?;
    let image = good()?;
    bench.stub.add("config", "v1", &image);
    let path = format!("/blobs/{}", image.id());
    bench.stub.hook(move |request| {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        if request.path.contains("/v2/manifest/manifests/") {
            let declared = 100 << 20;
            return Some(Reply::Whole(200, vec![("Content-Type", oci.to_owned())], vec![b' '; declared]));
        }
        if request.path.contains("/v2/endless/manifests/") {
            return Some(Reply::Endless(oci, b' '));
        }
        if request.path.contains("/v2/error/manifests/") {
            return Some(Reply::Whole(500, vec![], vec![b'\x07'; 10 << 20]));
        }
        request.path.ends_with(&path).then_some(Reply::Endless("application/octet-stream", b' '))
    });
    let peak = |daemon: &Daemon| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap_or(0)))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        Ok(line.split_whitespace().next().unwrap_or("0").parse()?)
    };
    let before_kib = peak(&bench.daemon)?;
    bench.refused("manifest", &["limit", "large", "larger", "too", "4 mib"])?;
    bench.refused("endless", &["limit", "large", "larger", "too", "4 mib"])?;
    let text = bench.refused("error", &["500"])?;
    assert!(text.len() < 8192 && !text.contains('\x07'), "the registry's text went through: {} bytes", text.len());
    bench.refused("config", &["size", "large", "limit", "descriptor says"])?;
    let after_kib = peak(&bench.daemon)?;
    println!("peak memory of the daemon: {before_kib} KiB before, {after_kib} KiB after");
    assert!(after_kib < before_kib + 32 * 1024, "an endless answer took {} KiB", after_kib - before_kib);
    bench.stub.hook(|_| None);
    bench.good()
}

#[test]
fn a_registry_that_refuses_or_vanishes_is_told_in_words() -> Result<()> {
    needs_root!("a_registry_that_refuses_or_vanishes_is_told_in_words");
    let bench = Bench::new("vanish")?;
    bench.refused("missing", &["not found", "unknown", "does not exist"])?;
    let image = good()?;
    for name in ["unauthorised", "cut", "broken"] {
        bench.stub.add(name, "v1", &image);
    }
    bench.stub.hook(|request| {
        if request.path.starts_with("/v2/unauthorised/") {
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#.to_vec();
            return Some(Reply::Whole(401, vec![("WWW-Authenticate", "Basic realm=\"stub\"".to_owned())], body));
        }
        if request.path.starts_with("/v2/broken/") {
            return Some(Reply::Break);
        }
        // A layer that never gives a byte more than its first hundred.
        let first = request.path.starts_with("/v2/cut/blobs/") && !request.headers.contains_key("range");
        if first && request.method == "GET" && !request.path.ends_with(&good().ok()?.id()) {
            return Some(Reply::Cut { declared: good().ok()?.layers[0].blob.len() as u64, sent: vec![0x1f; 100] });
        }
        (request.headers.contains_key("range") && request.path.starts_with("/v2/cut/")).then_some(Reply::Break)
    });
    bench.refused("unauthorised", &["unauthorized", "authentication required", "denied", "login"])?;
    bench.refused("broken", &["connection", "closed", "reset", "broke", "eof"])?;
    told_and_waited_for(&bench)?;
    // Nobody listens at all.
    let nobody = format!("127.0.0.1:{}/x:v1", baleen_tests::registry::free_port()?);
    let finished = bench.daemon.docker(&["pull", &nobody])?;
    assert!(finished.code != 0 && finished.output().to_lowercase().contains("refused"), "{}", finished.output());
    bench.stub.hook(|_| None);
    bench.good()
}

/// A layer whose first bytes have come is waited for as long as the client waits, and the client is told why.
fn told_and_waited_for(bench: &Bench) -> Result<()> {
    let mut client = bench.daemon.client(&["pull", &bench.stub.reference("cut:v1")]);
    let mut client = client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let told = BufReader::new(client.stdout.take().expect("it is piped"));
    let mut retries = 0;
    // Each wait counts down to one second. Three are more than `max-download-attempts` lets a pull begin with.
    let lines: Vec<String> = told
        .lines()
        .map_while(Result::ok)
        .take_while(|line| {
            retries += u64::from(line.contains("Retrying in 1 second"));
            retries < 3
        })
        .collect();
    let is_still_there = client.try_wait()?.is_none();
    client.kill().ok();
    client.wait()?;
    assert!(is_still_there, "the client was not left to wait: {lines:?}");
    assert!(lines.iter().any(|line| line.contains("Retrying in") && line.contains("broke")), "{lines:?}");
    Ok(())
}

/// Every way out of threats.md, L1: what must be refused or land inside.
fn climbing(outside: &str) -> Vec<(&'static str, Vec<Entry>)> {
    let up = "../".repeat(30);
    let inside = outside.trim_start_matches('/');
    vec![
        ("parent", vec![Entry::file(&format!("{up}{inside}/planted"), "x")]),
        ("parent-below", vec![Entry::folder("a"), Entry::file(&format!("a/{up}{inside}/planted"), "x")]),
        ("absolute", vec![Entry::file(&format!("{outside}/planted"), "x")]),
        ("link-then-file", vec![Entry::symlink("way", outside), Entry::file("way/planted", "x")]),
        (
            "relative-link-then-file",
            vec![Entry::symlink("way", &format!("{up}{inside}")), Entry::file("way/planted", "x")],
        ),
        ("link-chain", vec![Entry::symlink("a", outside), Entry::symlink("b", "a"), Entry::file("b/planted", "x")]),
        (
            "file-over-link",
            vec![Entry::symlink("way", &format!("{outside}/victim")), Entry::file("way", "overwritten")],
        ),
        (
            "folder-over-link",
            vec![Entry::symlink("way", outside), Entry::folder("way").mode(0o700), Entry::file("way/planted", "x")],
        ),
        ("folder-mode-through-link", vec![Entry::symlink("way", outside), Entry::folder("way/.").mode(0o700)]),
        (
            "link-replaced-and-back",
            vec![
                Entry::folder("way"),
                Entry::file("way/one", "1"),
                Entry::symlink("way", outside),
                Entry::file("way/planted", "x"),
                Entry::folder("way"),
                Entry::file("way/two", "2"),
            ],
        ),
        (
            "hard-link-up",
            vec![Entry::hardlink("stolen", &format!("{up}{inside}/victim")), Entry::file("stolen", "overwritten")],
        ),
        (
            "hard-link-absolute",
            vec![Entry::hardlink("stolen", &format!("{outside}/victim")), Entry::file("stolen", "overwritten")],
        ),
        (
            "hard-link-through-link",
            vec![
                Entry::symlink("way", outside),
                Entry::hardlink("stolen", "way/victim"),
                Entry::file("stolen", "overwritten").mode(0o777),
            ],
        ),
        (
            "hard-link-to-link",
            vec![
                Entry::symlink("way", &format!("{outside}/victim")),
                Entry::hardlink("second", "way").mode(0o777),
                Entry::file("second", "overwritten"),
            ],
        ),
        ("whiteout-up", vec![Entry::file(&format!("{up}{inside}/.wh.victim"), "")]),
        ("whiteout-through-link", vec![Entry::symlink("way", outside), Entry::file("way/.wh.victim", "")]),
        ("whiteout-of-nothing", vec![Entry::file(".wh.", "")]),
        ("whiteout-of-dot", vec![Entry::file(".wh..", ""), Entry::file("a/.wh..", "")]),
        ("whiteout-of-parent", vec![Entry::file(".wh...", ""), Entry::file("a/.wh...", "")]),
        ("whiteout-folder", vec![Entry::folder(".wh."), Entry::folder(".wh.x")]),
        ("opaque-through-link", vec![Entry::symlink("way", outside), Entry::file("way/.wh..wh..opq", "")]),
        ("device-through-link", vec![Entry::symlink("way", outside), Entry::device("way/planted", 1, 3)]),
        (
            "xattr-through-link",
            vec![
                Entry::symlink("way", &format!("{outside}/victim")),
                Entry::file("way", "x").xattr("user.planted", b"1".to_vec()),
            ],
        ),
        ("name-of-5000-bytes", vec![Entry::file(&"n".repeat(5000), "x")]),
        ("path-of-5000-bytes", vec![Entry::file(&"n/".repeat(2500), "x")]),
        ("nul-in-name", vec![Entry::file("short", "x").pax("path", b"a\0b".to_vec())]),
        ("empty-name", vec![Entry::file("", "x")]),
        ("dots", vec![Entry::file("..", "x"), Entry::file(".", "x"), Entry::file("a/..", "x")]),
        (
            "overlay-xattrs",
            vec![
                Entry::folder("d")
                    .xattr("trusted.overlay.redirect", b"/etc".to_vec())
                    .xattr("trusted.overlay.opaque", b"y".to_vec()),
                Entry::file("f", "x")
                    .xattr("trusted.overlay.metacopy", Vec::new())
                    .xattr("security.ima", b"x".to_vec()),
            ],
        ),
    ]
}

#[test]
fn no_layer_writes_changes_or_links_anything_outside_its_own_folder() -> Result<()> {
    needs_root!("no_layer_writes_changes_or_links_anything_outside_its_own_folder");
    let bench = Bench::new("climb")?;
    // The folder that must not change; its name is short, since some archives name it in old headers.
    let canary = Scratch::new("canary")?;
    let outside = canary.join("c");
    fs::create_dir(&outside)?;
    fs::write(outside.join("victim"), "untouched")?;
    let before = tree::read(canary.path())?;
    let system_before = fs::read("/etc/passwd")?;
    for (name, entries) in climbing(&outside.to_string_lossy()) {
        let image = Image::new(vec![Layer::of(&entries)?], &["/x"]);
        bench.stub.add(name, "v1", &image);
        let reference = bench.stub.reference(&format!("{name}:v1"));
        let finished = bench.daemon.docker(&["pull", "-q", &reference])?;
        let differences = tree::differences(&tree::read(canary.path())?, &before);
        assert!(differences.is_empty(), "{name}: changed outside: {differences:?}");
        assert_eq!(
            fs::metadata(outside.join("victim")).map(|found| std::os::unix::fs::MetadataExt::nlink(&found))?,
            1,
            "{name}"
        );
        assert_eq!(fs::read("/etc/passwd")?, system_before, "{name}");
        let said = if finished.code == 0 { "landed inside".to_owned() } else { finished.output().trim().to_owned() };
        println!("{name}: {said}");
        if finished.code == 0 {
            for folder in baleen_tests::store::layer_folders(&bench.daemon, &reference)? {
                for (path, attributes) in names_with_attributes(&folder)? {
                    let odd: Vec<_> = attributes.iter().filter(|key| forbidden_attribute(key)).collect();
                    assert!(odd.is_empty(), "{name}: {path} carries {odd:?}");
                }
            }
            bench.daemon.docker_ok(&["rmi", &reference])?;
        }
        bench.daemon.docker_ok(&["system", "prune", "-af"])?;
        let stray = ownerless(&bench.daemon, &Allowed::default())?;
        assert!(stray.is_empty(), "{name}: left behind {stray:?}");
    }
    assert!(mounts_below(canary.path()).is_empty());
    bench.good()
}

/// Attributes that an image must never be able to set on the disk (threats.md, L8); the opaque mark may come from `.wh..wh..opq` alone.
fn forbidden_attribute(key: &str) -> bool {
    key.starts_with("trusted.")
        || key.starts_with("user.overlay.")
        || key.starts_with("security.") && key != "security.capability"
}

fn names_with_attributes(folder: &std::path::Path) -> Result<Vec<(String, Vec<String>)>> {
    let tree = tree::read(folder)?;
    tree.keys().map(|path| Ok((path.clone(), tree::all_xattrs(&folder.join(path))?.into_keys().collect()))).collect()
}

#[test]
fn a_bomb_ends_in_an_error_and_leaves_the_disk_as_it_was() -> Result<()> {
    needs_root!("a_bomb_ends_in_an_error_and_leaves_the_disk_as_it_was");
    let scratch = Scratch::new("bomb")?;
    let disk = SmallDisk::new(&scratch, "disk", 256 << 20)?;
    let mut daemon = Daemon::prepare(&scratch, &disk.path().join("root"))?;
    daemon.run()?;
    let stub = Stub::start()?;
    let free_before = disk.free_bytes()?;
    // Two gigabytes of zeros in two megabytes of gzip: a header of that size, then one member of zeros again and again.
    let mut header = Entry::file("zeros", "");
    header.header_size_bytes = Some(2 << 30);
    let mut blob = gzip(&archive(&[header])[..512])?;
    blob.extend(gzip(&vec![0; 64 << 20])?.repeat(33));
    println!("the bomb is {} bytes", blob.len());
    let layer = Layer { tar: Vec::new(), blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned() };
    stub.add("bomb", "v1", &Image::new(vec![layer], &["/zeros"]));
    let finished = daemon.docker(&["pull", &stub.reference("bomb:v1")])?;
    assert_ne!(finished.code, 0);
    assert!(
        ["space", "full", "limit", "large"].iter().any(|word| finished.output().contains(word)),
        "{}",
        finished.output()
    );
    assert_eq!(daemon.docker_ok(&["images", "-aq"])?, "");
    daemon.docker_ok(&["system", "prune", "-af"])?;
    let free_after = disk.free_bytes()?;
    assert!(free_after + (1 << 20) > free_before, "{} bytes are gone", free_before - free_after);
    Ok(())
}

#[test]
fn a_full_disk_fails_the_pull_that_does_not_fit_and_nothing_else() -> Result<()> {
    needs_root!("a_full_disk_fails_the_pull_that_does_not_fit_and_nothing_else");
    let scratch = Scratch::new("full")?;
    let disk = SmallDisk::new(&scratch, "disk", 192 << 20)?;
    let mut daemon = Daemon::prepare(&scratch, &disk.path().join("root"))?;
    daemon.run()?;
    let stub = Stub::start()?;
    let kept = good()?;
    stub.add("kept", "v1", &kept);
    let kept_reference = stub.reference("kept:v1");
    daemon.docker_ok(&["pull", "-q", &kept_reference])?;
    // Fits by its compressed size, and not once it is unpacked: zeros and noise.
    let mut entries = Vec::new();
    let mut random = Random::new(9);
    for number in 0..60 {
        entries.push(Entry::file(&format!("noise{number}"), random.bytes(100_000)));
        entries.push(Entry::file(&format!("plain{number}"), vec![number as u8 + 1; 4 << 20]));
    }
    let large = Image::new(vec![Layer::of(&entries)?], &["/x"]);
    stub.add("large", "v1", &large);
    let finished = daemon.docker(&["pull", &stub.reference("large:v1")])?;
    assert_ne!(finished.code, 0);
    assert!(["space", "full"].iter().any(|word| finished.output().contains(word)), "{}", finished.output());
    println!("{}", finished.output().lines().last().unwrap_or_default());
    // A second image whose compressed size alone is more than what is free is refused before it is fetched.
    let noise = Image::new(
        vec![Layer::from_tar(archive(&[Entry::file("n", random.bytes(200 << 20))]), Compression::None)?],
        &["/n"],
    );
    stub.add("noise", "v1", &noise);
    let finished = daemon.docker(&["pull", &stub.reference("noise:v1")])?;
    assert!(finished.code != 0 && finished.output().contains("space"), "{}", finished.output());
    assert_eq!(stub.fetches_of(&noise.layers[0].digest()), 0, "fetched although it cannot fit");
    // An archive that the disk cannot take in says which disk, and what to do.
    let file = scratch.path().join("noise.tar");
    fs::write(&file, noise.docker_archive("noise:v1"))?;
    let finished = daemon.docker(&["load", "-i", &file.display().to_string()])?;
    let told = finished.output();
    let root = daemon.root().display().to_string();
    assert!(finished.code != 0 && told.contains("no space left on device") && told.contains(&root), "{told}");
    assert!(told.contains("remove images or containers"), "{told}");
    // What was there is there, and room can be made and used.
    assert_image_is_whole(&daemon, &scratch, &kept_reference, &kept)?;
    daemon.docker_ok(&["system", "prune", "-f"])?;
    daemon.docker_ok(&["rmi", &kept_reference])?;
    daemon.docker_ok(&["pull", "-q", &kept_reference])?;
    assert_image_is_whole(&daemon, &scratch, &kept_reference, &kept)
}

#[test]
fn a_disk_that_turns_read_only_fails_what_writes_and_lets_the_rest_go_on() -> Result<()> {
    needs_root!("a_disk_that_turns_read_only_fails_what_writes_and_lets_the_rest_go_on");
    let scratch = Scratch::new("readonly")?;
    let disk = SmallDisk::new(&scratch, "disk", 192 << 20)?;
    let mut daemon = Daemon::prepare(&scratch, &disk.path().join("root"))?;
    daemon.run()?;
    let stub = Stub::start()?;
    let (kept, other) = (good()?, Image::new(vec![Layer::of(&[Entry::file("other", "x")])?], &["/other"]));
    stub.add("kept", "v1", &kept);
    stub.add("other", "v1", &other);
    let kept_reference = stub.reference("kept:v1");
    daemon.docker_ok(&["pull", "-q", &kept_reference])?;
    disk.abort()?;
    let failed = daemon.docker(&["pull", &stub.reference("other:v1")])?;
    assert_ne!(failed.code, 0);
    assert!(failed.output().to_lowercase().contains("read-only"), "{}", failed.output());
    let failed = daemon.docker(&["tag", &kept_reference, "new:v1"])?;
    assert_ne!(failed.code, 0);
    assert_eq!(daemon.docker_ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?, kept_reference);
    assert_image_is_whole(&daemon, &scratch, &kept_reference, &kept)
}

#[test]
fn a_store_of_a_newer_format_is_refused_by_name_and_left_as_it_is() -> Result<()> {
    needs_root!("a_store_of_a_newer_format_is_refused_by_name_and_left_as_it_is");
    let scratch = Scratch::new("newer")?;
    let mut daemon = Daemon::start(&scratch)?;
    daemon.stop()?;
    let path = daemon.root().join("FORMAT");
    let format = fs::read(&path)?;
    fs::write(&path, newer(&format)?)?;
    let before = tree::read(daemon.root())?;
    let error = format!("{:#}", daemon.run().expect_err("a store of a newer format was opened"));
    assert!(error.contains("format") || error.contains("FORMAT"), "{error}");
    let after = tree::read(daemon.root())?;
    assert_eq!(tree::differences(&before, &after), Vec::<String>::new(), "the store was touched");
    // And with the format that this build knows it opens again.
    fs::write(&path, format)?;
    daemon.run()
}

/// A FORMAT file of the next version (docs/formats/store.md: 32 bits, little-endian, after eight bytes of magic), with a
/// checksum of its own at its end.
fn newer(format: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = format[..64].to_vec();
    let version = u32::from_le_bytes(bytes[8..12].try_into()?);
    bytes[8..12].copy_from_slice(&(version + 1).to_le_bytes());
    bytes.extend([0xa5; 64]);
    Ok(bytes)
}
