//! Deltas through the unmodified `docker` client: found by an ordinary pull, exact, and never in the way of one.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::archive::Entry;
use baleen_tests::command::{run, succeed};
use baleen_tests::daemon::{Daemon, binary};
use baleen_tests::image::{Image, Layer, digest};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::registry::{Options, Registry};
use baleen_tests::scratch::Scratch;
use baleen_tests::store::assert_image_is_whole;
use baleen_tests::stub::{Reply, Stub};
use serde_json::Value;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Two versions of an image: a base layer that both have, and an application of which a part is new.
struct Pair {
    old: Image,
    new: Image,
}

impl Pair {
    /// `new_bytes` of the new application are found nowhere in the old one.
    fn new(seed: u64, new_bytes: usize) -> Result<Self> {
        let mut random = Random::new(seed);
        let base = Layer::of(&[Entry::folder("base"), Entry::file("base/f", random.bytes(200_000))])?;
        let (same, changed) = (random.bytes(900_000), random.bytes(400_000));
        let application = |changed: &[u8], more: Option<Vec<u8>>, time: u64| {
            let mut entries = vec![
                Entry::folder("app"),
                Entry::file("app/same", same.clone()).mtime(time, 0),
                Entry::file("app/changed", changed).mtime(time, 0),
                Entry::hardlink("app/link", "app/same"),
            ];
            entries.extend(more.map(|bytes| Entry::file("app/new", bytes).mtime(time, 0)));
            Layer::of(&entries)
        };
        let old = application(&changed, None, 1_700_000_000)?;
        let mut after = changed;
        after.splice(1000..1100, b"another text in the middle".iter().copied());
        let new = application(&after, (new_bytes > 0).then(|| random.bytes(new_bytes)), 1_700_009_999)?;
        // A layer of its own on top, which has nothing to do with the old image.
        let top = Layer::of(&[Entry::file("version", "v2")])?;
        Ok(Self { old: Image::new(vec![base.clone(), old], &["/x"]), new: Image::new(vec![base, new, top], &["/x"]) })
    }

    /// Pushes both, and the delta as a build would.
    fn publish(&self, scratch: &Scratch, registry: &Registry) -> Result<String> {
        let (old, new) = (registry.reference("app:v1"), registry.reference("app:v2"));
        self.old.push(scratch, &old)?;
        self.new.push(scratch, &new)?;
        let mut make = Command::new(binary()?);
        make.args(["delta", "make", "--push", "--scratch"]).arg(scratch.join("")).args([&old, &new]);
        Ok(run(&mut make, None, Duration::from_secs(120))?.ok()?.output())
    }

    fn delta_tag(&self) -> String {
        format!("delta-{}-{}", &self.new.digest()[7..19], &self.old.id()[7..19])
    }
}

/// A delta as a registry has it.
#[derive(Clone)]
struct Published {
    manifest: Vec<u8>,
    list: Vec<u8>,
    blob_digest: String,
    blob: Vec<u8>,
}

fn fetch(registry: &Registry, path: &str, accept: &str) -> Result<Vec<u8>> {
    let url = format!("http://{}/v2/app/{path}", registry.address());
    Ok(succeed("curl", &["-sfL", "-H", &format!("Accept: {accept}"), &url])?.stdout_bytes)
}

/// Makes a delta by way of a real registry, and takes it out of there.
fn published(scratch: &Scratch, pair: &Pair) -> Result<Published> {
    let registry = Registry::start(scratch)?;
    pair.publish(scratch, &registry)?;
    let manifest = fetch(&registry, &format!("manifests/{}", pair.delta_tag()), MANIFEST_TYPE)?;
    let list = fetch(&registry, &format!("manifests/{}", pair.new.digest().replace(':', "-")), INDEX_TYPE)?;
    let parsed: Value = serde_json::from_slice(&manifest)?;
    let blob_digest = parsed["layers"][0]["digest"].as_str().context("no blob")?.to_owned();
    let blob = fetch(&registry, &format!("blobs/{blob_digest}"), "*/*")?;
    Ok(Published { manifest, list, blob_digest, blob })
}

/// A stub that serves both images and a delta between them.
fn stub_with(pair: &Pair, delta: &Published) -> Result<Stub> {
    let stub = Stub::start()?;
    stub.add("app", "v1", &pair.old);
    stub.add("app", "v2", &pair.new);
    stub.add_manifest("app", &pair.new.digest().replace(':', "-"), INDEX_TYPE, &delta.list);
    stub.add_manifest("app", &pair.delta_tag(), MANIFEST_TYPE, &delta.manifest);
    stub.add_blob(&delta.blob_digest, delta.blob.clone());
    Ok(stub)
}

#[test]
fn a_pull_beside_an_older_image_fetches_the_delta_and_no_layer_that_it_makes() -> Result<()> {
    needs_root!("a_pull_beside_an_older_image_fetches_the_delta_and_no_layer_that_it_makes");
    let scratch = Scratch::new("delta")?;
    let registry = Registry::with(&scratch, &Options { access_log: true, ..Options::default() })?;
    let pair = Pair::new(11, 0)?;
    let made = pair.publish(&scratch, &registry)?;
    assert!(made.contains(&pair.delta_tag()), "{made}");
    let daemon = Daemon::start(&scratch)?;
    let (old, new) = (registry.reference("app:v1"), registry.reference("app:v2"));
    daemon.docker_ok(&["pull", "-q", &old])?;
    let before = registry.requests()?.len();
    let output = daemon.docker_ok(&["pull", &new])?;
    assert!(output.contains("Delta "), "{output}");
    assert!(output.contains("fetched in place of"), "{output}");
    assert!(output.contains(&format!("Digest: {}", pair.new.digest())), "{output}");
    let asked = registry.requests()?.split_off(before);
    for layer in &pair.new.layers {
        let blob = format!("blobs/{}", layer.digest());
        assert!(!asked.iter().any(|request| request.contains(&blob)), "a layer was fetched in full: {asked:?}");
    }
    assert!(daemon.log().contains("a delta is used"), "{}", daemon.log());
    assert_image_is_whole(&daemon, &scratch, &new, &pair.new)?;
    let digests = daemon.docker_ok(&["image", "inspect", "--format", "{{json .RepoDigests}}", &new])?;
    assert!(digests.contains(&pair.new.digest()), "{digests}");
    let info = daemon.docker_ok(&["info"])?;
    assert!(info.contains("1 used, 0 given up"), "{info}");
    // The image is gone on with as any other: removed, and pulled again by the same delta.
    daemon.docker_ok(&["rmi", &new])?;
    daemon.docker_ok(&["pull", "-q", &new])?;
    assert_image_is_whole(&daemon, &scratch, &new, &pair.new)
}

#[test]
fn a_delta_is_not_looked_for_by_a_daemon_that_is_told_so() -> Result<()> {
    needs_root!("a_delta_is_not_looked_for_by_a_daemon_that_is_told_so");
    let scratch = Scratch::new("no-deltas")?;
    let pair = Pair::new(12, 0)?;
    let delta = published(&scratch, &pair)?;
    let stub = stub_with(&pair, &delta)?;
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.argument("--deltas=false").run()?;
    daemon.docker_ok(&["pull", "-q", &stub.reference("app:v1")])?;
    let output = daemon.docker_ok(&["pull", &stub.reference("app:v2")])?;
    assert!(!output.contains("Delta"), "{output}");
    assert!(stub.requests().iter().all(|request| !request.path.contains("referrers")));
    assert_eq!(stub.fetches_of(&pair.new.layers[1].digest()), 1);
    Ok(())
}

#[test]
fn a_registry_with_the_referrers_interface_is_asked_there_and_one_that_answers_a_page_is_not_believed() -> Result<()> {
    needs_root!("a_registry_with_the_referrers_interface_is_asked_there_and_one_that_answers_a_page_is_not_believed");
    let scratch = Scratch::new("referrers")?;
    let pair = Pair::new(13, 0)?;
    let delta = published(&scratch, &pair)?;
    let list = delta.list.clone();
    let hidden = Published { list: br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), ..delta.clone() };
    let stub = stub_with(&pair, &hidden)?;
    stub.hook(move |request| {
        let has_it = request.path.contains("/referrers/");
        has_it.then(|| Reply::Whole(200, vec![("Content-Type", INDEX_TYPE.to_owned())], list.clone()))
    });
    let daemon = Daemon::start(&scratch)?;
    let new = stub.reference("app:v2");
    daemon.docker_ok(&["pull", "-q", &stub.reference("app:v1")])?;
    daemon.docker_ok(&["pull", "-q", &new])?;
    assert_eq!(stub.fetches_of(&pair.new.layers[1].digest()), 0, "the delta was not used:\n{}", daemon.log());
    assert_image_is_whole(&daemon, &scratch, &new, &pair.new)?;

    // A page for people, and nothing under the list's tag: the delta's own tag is left.
    let stub = stub_with(&pair, &hidden)?;
    stub.hook(|request| {
        let is_asked = request.path.contains("/referrers/");
        let page = || Reply::Whole(200, vec![("Content-Type", "text/html".to_owned())], b"<html>hello</html>".to_vec());
        is_asked.then(page)
    });
    daemon.docker_ok(&["rmi", &new])?;
    let (old, new) = (stub.reference("app:v1"), stub.reference("app:v2"));
    daemon.docker_ok(&["pull", "-q", &old])?;
    daemon.docker_ok(&["pull", "-q", &new])?;
    assert_eq!(stub.fetches_of(&pair.new.layers[1].digest()), 0, "the probe found nothing:\n{}", daemon.log());
    assert_image_is_whole(&daemon, &scratch, &new, &pair.new)
}

#[test]
fn whatever_is_wrong_with_a_delta_the_pull_ends_with_the_right_image() -> Result<()> {
    needs_root!("whatever_is_wrong_with_a_delta_the_pull_ends_with_the_right_image");
    let scratch = Scratch::new("bad-delta")?;
    // Large enough that it is fetched in parts, in the second round.
    for (seed, new_bytes) in [(14, 0), (15, 400_000)] {
        let pair = Pair::new(seed, new_bytes)?;
        let good = published(&scratch, &pair)?;
        let daemon = Daemon::prepare(&scratch, &scratch.join(format!("root-{seed}")));
        let mut daemon = daemon?;
        daemon.run()?;
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad.blob[at] ^= 0x40;
            bad
        };
        let length = good.blob.len();
        let mut bad = vec![
            ("a flipped byte in the header", flipped(30)),
            ("a flipped byte in the middle", flipped(length / 2)),
            ("a flipped byte at the end", flipped(length - 1)),
            ("cut", Published { blob: good.blob[..length / 2].to_vec(), ..good.clone() }),
            ("empty", Published { blob: Vec::new(), ..good.clone() }),
            ("a manifest that is none", Published { manifest: b"{}".to_vec(), ..good.clone() }),
        ];
        // A delta by all its digests, but of bytes that are no delta.
        let noise = Random::new(seed).bytes(length);
        let renamed = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&good.blob_digest, &digest(&noise));
        let manifest = renamed(&good.manifest).into_bytes();
        let list = String::from_utf8_lossy(&good.list).replace(&digest(&good.manifest), &digest(&manifest));
        bad.push((
            "forged",
            Published { manifest, list: list.into_bytes(), blob_digest: digest(&noise), blob: noise.clone() },
        ));
        let mut newer = good.blob.clone();
        newer[8] = 99;
        bad.push(("of a newer version", Published { blob: newer, ..good.clone() }));
        for (what, delta) in bad {
            let stub = stub_with(&pair, &delta)?;
            let (old, new) = (stub.reference("app:v1"), stub.reference("app:v2"));
            daemon.docker_ok(&["pull", "-q", &old])?;
            let output = daemon.docker_ok(&["pull", &new]).with_context(|| format!("delta: {what}"))?;
            assert!(
                output.contains("is not used") || output.contains("is given up"),
                "{what}: nothing says why the delta is not used:\n{output}\n{}",
                daemon.log()
            );
            assert_image_is_whole(&daemon, &scratch, &new, &pair.new).with_context(|| format!("delta: {what}"))?;
            daemon.docker_ok(&["rmi", &new])?;
            daemon.docker_ok(&["rmi", &old])?;
        }
    }
    Ok(())
}

#[test]
fn a_daemon_killed_while_it_applies_a_delta_goes_on_with_it() -> Result<()> {
    needs_root!("a_daemon_killed_while_it_applies_a_delta_goes_on_with_it");
    let scratch = Scratch::new("delta-kill")?;
    let pair = Pair::new(16, 1_500_000)?;
    let delta = published(&scratch, &pair)?;
    let stub = stub_with(&pair, &delta)?;
    let mut daemon = Daemon::start(&scratch)?;
    let (old, new) = (stub.reference("app:v1"), stub.reference("app:v2"));
    daemon.docker_ok(&["pull", "-q", &old])?;
    for part in [4, 2] {
        stub.hold(&delta.blob_digest, (delta.blob.len() / part) as u64);
        let mut client = daemon.client(&["pull", "-q", &new]);
        let mut pull = client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let is_held = stub.wait_held(Duration::from_secs(30));
        daemon.kill();
        pull.kill().ok();
        pull.wait()?;
        stub.release();
        assert!(is_held, "the pull never came to the middle of the delta");
        daemon.run()?;
        let listed = daemon.docker_ok(&["images", "--format", "{{.Tag}}"])?;
        assert_eq!(listed, "v1", "an image that is not whole is listed");
    }
    daemon.docker_ok(&["pull", "-q", &new])?;
    assert_eq!(stub.fetches_of(&pair.new.layers[1].digest()), 0, "the layer was fetched in full:\n{}", daemon.log());
    assert_image_is_whole(&daemon, &scratch, &new, &pair.new)
}

#[test]
fn deltas_of_two_writers_are_both_listed_and_each_has_its_tag() -> Result<()> {
    needs_root!("deltas_of_two_writers_are_both_listed_and_each_has_its_tag");
    let scratch = Scratch::new("two-writers")?;
    let registry = Registry::start(&scratch)?;
    let (one, two) = (Pair::new(17, 0)?, Pair::new(18, 0)?);
    let target = registry.reference("app:v9");
    one.new.push(&scratch, &target)?;
    let mut makers = Vec::new();
    for (name, image) in [("app:one", &one.old), ("app:two", &two.new)] {
        let source = registry.reference(name);
        image.push(&scratch, &source)?;
        let mut make = Command::new(binary()?);
        make.args(["delta", "make", "-q", "--push", "--scratch"]).arg(scratch.join("")).args([&source, &target]);
        makers.push((image.id(), make.stdout(Stdio::null()).spawn()?));
    }
    let mut tags = Vec::new();
    for (id, mut maker) in makers {
        assert!(maker.wait()?.success(), "the delta from {id} was not made");
        tags.push(format!("delta-{}-{}", &one.new.digest()[7..19], &id[7..19]));
    }
    let list = fetch(&registry, &format!("manifests/{}", one.new.digest().replace(':', "-")), INDEX_TYPE)?;
    let list: Value = serde_json::from_slice(&list)?;
    for tag in tags {
        let manifest = fetch(&registry, &format!("manifests/{tag}"), MANIFEST_TYPE)?;
        let entries = list["manifests"].as_array().context("no list")?;
        assert!(entries.iter().any(|entry| entry["digest"] == digest(&manifest)), "{tag} is not listed: {list}");
    }
    let mut inspect = Command::new(binary()?);
    inspect.args(["delta", "inspect", "--scratch"]).arg(scratch.join("")).arg(&target);
    let shown = run(&mut inspect, None, Duration::from_secs(60))?.ok()?.stdout();
    assert!(shown.contains(&one.old.id()[7..19]) && shown.contains(&two.new.id()[7..19]), "{shown}");
    Ok(())
}
