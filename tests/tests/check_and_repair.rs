//! `baleen fsck` beside a daemon: it refuses while one runs, fetches again what is damaged, leaves to a pull what it may not
//! fetch, and names what every byte is used for.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use baleen_tests::archive::Entry;
use baleen_tests::command::{Finished, run, succeed, wait_for};
use baleen_tests::daemon::{Daemon, binary};
use baleen_tests::image::{Image, Layer, busybox_entries};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::registry::{Options, Registry};
use baleen_tests::scratch::{Scratch, disk_usage};
use baleen_tests::store::{assert_image_is_whole, layer_folders};
use baleen_tests::stub::Stub;
use serde_json::Value;

fn fsck(root: &Path, options: &[&str]) -> Result<Finished> {
    let mut command = Command::new(binary()?);
    // What the machine's own daemon is told is nothing to this one.
    command.arg("fsck").arg("--data-root").arg(root).args(options).stdin(Stdio::null());
    run(&mut command, None, Duration::from_secs(60))
}

/// Checks that a store is clean down to the last byte, and that the bytes by class are what `du` counts.
fn assert_clean(root: &Path) -> Result<()> {
    let report = fsck(root, &["--deep", "--usage", "--json"])?;
    ensure!(report.code == 0, "{}", report.output());
    let report: Value = serde_json::from_str(&report.stdout())?;
    let classes = report["usage"].as_object().context("no usage")?;
    ensure!(!classes.contains_key("foreign") && !classes.contains_key("left-over"), "{classes:?}");
    let sum: u64 = classes.values().filter_map(Value::as_u64).sum();
    let du = disk_usage(root)?;
    ensure!(du == sum, "du says {du} and the classes {classes:?}");
    Ok(())
}

/// Two layers whose files nothing else has, with these files below: no duplicate can mend them.
fn two_layers(seed: u64, mut first: Vec<Entry>) -> Result<Image> {
    let mut random = Random::new(seed);
    first.push(Entry::file("first", random.bytes(300_000)));
    let second = [Entry::folder("d"), Entry::file("d/second", random.bytes(200_000))];
    Ok(Image::new(vec![Layer::of(&first)?, Layer::of(&second)?], &["true"]))
}

fn damage(file: &Path) -> Result<()> {
    let length = fs::metadata(file)?.len();
    Ok(fs::write(file, vec![0; usize::try_from(length)?])?)
}

#[test]
fn a_repair_fetches_just_the_damaged_and_the_lost_layer_again() -> Result<()> {
    needs_root!("a_repair_fetches_just_the_damaged_and_the_lost_layer_again");
    let scratch = Scratch::new("fetch")?;
    let registry = Stub::start()?;
    let image = two_layers(1, busybox_entries()?)?;
    registry.add("app", "v1", &image);
    let reference = registry.reference("app:v1");
    let mut daemon = Daemon::start(&scratch)?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    // One that should run, and does not: its image is mended all the same.
    daemon.docker_ok(&[
        "run",
        "-d",
        "--name",
        "app",
        "--network",
        "none",
        "--restart",
        "always",
        &reference,
        "sleep",
        "1000",
    ])?;
    let folders = layer_folders(&daemon, &reference)?;
    let busy = fsck(daemon.root(), &["--deep"])?;
    ensure!(busy.code == 8, "a check beside a daemon: {}", busy.output());
    let pid = daemon.pid().context("no daemon")?;
    ensure!(busy.output().contains(&format!("in use by process {pid} (")), "{}", busy.output());

    // The daemon ends, its container does not.
    daemon.stop()?;
    damage(&folders[1].join("d/second"))?;
    let root = daemon.root().to_owned();
    let running = fsck(&root, &["--deep", "--repair"])?;
    ensure!(
        running.code == 4 && running.output().contains("app has it mounted: stop it first"),
        "{}",
        running.output()
    );
    daemon.reboot()?;

    let before = (registry.fetches_of(&image.layers[0].digest()), registry.fetches_of(&image.layers[1].digest()));
    let offline = fsck(&root, &["--deep", "--repair", "--offline"])?;
    ensure!(offline.code & 4 == 4 && offline.output().contains("next pull"), "{}", offline.output());
    let first = fs::metadata(&folders[0])?.ino();
    let mended = fsck(&root, &["--deep", "--repair"])?;
    ensure!(mended.code == 1 && mended.output().contains("the layer was fetched again"), "{}", mended.output());
    assert_clean(&root)?;
    ensure!(fs::metadata(&folders[0])?.ino() == first, "the whole layer was replaced as well");
    let after = (registry.fetches_of(&image.layers[0].digest()), registry.fetches_of(&image.layers[1].digest()));
    ensure!(after == (before.0, before.1 + 1), "fetched {before:?} before and {after:?} after");

    // Lost altogether, without a record of it.
    fs::remove_dir_all(folders[0].parent().context("no folder")?)?;
    let found = fsck(&root, &[])?;
    ensure!(found.code == 4 && found.output().contains("object-missing"), "{}", found.output());
    let lost = fsck(&root, &["--deep", "--repair"])?;
    ensure!(lost.code == 1, "{}", lost.output());
    assert_clean(&root)?;
    daemon.run()?;
    wait_for("the container to run on the mended layers", Duration::from_secs(20), || {
        daemon.docker(&["exec", "app", "cat", "/d/second", "/first"]).ok().filter(|read| read.code == 0)
    })?;
    Ok(())
}

#[test]
fn a_layer_that_only_a_password_gives_is_marked_and_mended_by_the_next_pull() -> Result<()> {
    needs_root!("a_layer_that_only_a_password_gives_is_marked_and_mended_by_the_next_pull");
    let scratch = Scratch::new("marked")?;
    let file = scratch.join("htpasswd");
    // The registry knows bcrypt alone. This is "user" with the password "secret-51c".
    let script =
        "import crypt; print('user:' + crypt.crypt('secret-51c', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))";
    fs::write(&file, succeed("/usr/bin/python3", &["-W", "ignore", "-c", script])?.stdout())?;
    let registry = Registry::with(&scratch, &Options { htpasswd: Some(file), ..Options::default() })?;
    let reference = registry.reference("app:v1");
    let image = two_layers(2, Vec::new())?;
    image.push_from(&scratch, &reference, None, &["--dest-creds", "user:secret-51c"])?;
    let mut daemon = Daemon::start(&scratch)?;
    let auth = r#"{"auths":{"HOST":{"auth":"dXNlcjpzZWNyZXQtNTFj"}}}"#.replace("HOST", &registry.address());
    fs::write(daemon.client_folder().join("config.json"), auth)?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    let folders = layer_folders(&daemon, &reference)?;
    daemon.stop()?;
    damage(&folders[0].join("first"))?;

    let repaired = fsck(daemon.root(), &["--deep", "--repair"])?;
    ensure!(repaired.code & 4 == 4, "{}", repaired.output());
    ensure!(repaired.output().contains("could not be fetched"), "{}", repaired.output());
    let quick = fsck(daemon.root(), &[])?;
    ensure!(quick.code == 4 && quick.output().contains("layer-suspect"), "{}", quick.output());
    let first = fs::metadata(&folders[1])?.ino();
    daemon.run()?;
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
    ensure!(
        fs::metadata(&layer_folders(&daemon, &reference)?[1])?.ino() == first,
        "the whole layer was replaced as well"
    );
    daemon.stop()?;
    assert_clean(daemon.root())
}
