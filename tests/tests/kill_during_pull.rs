//! SIGKILL of the daemon at random moments of a pull, again and again: nothing half done is ever seen, and the pull always ends.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use baleen_tests::archive::Entry;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::scratch::{Scratch, disk_usage};
use baleen_tests::store::{Allowed, assert_image_is_whole, ownerless};
use baleen_tests::stub::Stub;

/// Slow enough that a pull takes seconds and can be hit, fast enough that fifty rounds end.
const RATE_BYTES_PER_SECOND: u64 = 6 << 20;

fn image(random: &mut Random, name: &str) -> Result<Image> {
    let mut layers = Vec::new();
    for number in 0..3 {
        let mut entries = vec![Entry::folder(&format!("{name}-{number}"))];
        for file in 0..60 {
            let size = [100, 4096, 20_000, 100_000][random.below(4) as usize];
            let path = format!("{name}-{number}/f{file}");
            entries.push(Entry::file(&path, random.bytes(size)).mtime(1_700_000_000 + file, 5));
        }
        entries.push(Entry::file(&format!("{name}-{number}/large"), random.bytes(6_000_000)));
        layers.push(Layer::of(&entries)?);
    }
    layers.push(Layer::of(&[Entry::whiteout(&format!("{name}-0/f1")), Entry::file("common", name)])?);
    Ok(Image::new(layers, &["/x"]))
}

/// A pull in progress; `None` once it has ended, with whether it succeeded.
struct Pull(std::process::Child);

impl Pull {
    fn begin(daemon: &Daemon, reference: &str) -> Result<Self> {
        let mut client = daemon.client(&["pull", "-q", reference]);
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(client.spawn()?))
    }

    fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().ok().flatten().map(|status| status.success())
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_daemon_killed_again_and_again_while_it_pulls_loses_nothing_and_ends_the_pull() -> Result<()> {
    needs_root!("a_daemon_killed_again_and_again_while_it_pulls_loses_nothing_and_ends_the_pull");
    let rounds: u64 = if std::env::var_os("BALEEN_SOAK").is_some() { 50 } else { 10 };
    let scratch = Scratch::new("kill")?;
    let mut random = Random::for_test("a_daemon_killed_again_and_again");
    let stub = Stub::start()?;
    stub.limit_rate(RATE_BYTES_PER_SECOND);
    let mut daemon = Daemon::start(&scratch)?;
    let empty_bytes = disk_usage(daemon.root())?;

    let mut done: Vec<(String, Image)> = Vec::new();
    let mut kills_in_data = 0;
    let mut kills = 0;
    let mut fetched = Vec::new();
    while kills < rounds {
        let name = format!("app{}", done.len());
        let image = image(&mut random, &name)?;
        stub.add(&name, "v1", &image);
        let reference = stub.reference(&format!("{name}:v1"));
        let total_bytes = image.blob_bytes();
        let sent_before_image = stub.blob_bytes_sent();
        let mut cuts: u32 = 0;
        // What the first cut costs: nobody knows then that cuts are to be reckoned with.
        let mut first_cut_bytes = 0;
        // Up to four cuts an image, so that several images are finished along the way.
        loop {
            let sent_before = stub.blob_bytes_sent();
            let mut pull = Pull::begin(&daemon, &reference)?;
            if kills >= rounds || cuts >= 4 {
                finish(&mut pull, &daemon)?;
                break;
            }
            // The moment is a random byte of what the pull may still fetch; a bit beyond its end, to hit the commit too.
            let moment = sent_before + random.below(total_bytes + total_bytes / 8) + 1;
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut ended = None;
            while ended.is_none() && stub.blob_bytes_sent() < moment {
                ended = pull.ended();
                if Instant::now() > deadline {
                    bail!("the pull neither ends nor goes on:\n{}", daemon.log());
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            if ended == Some(false) {
                bail!("the pull of {reference} failed without a cut:\n{}", daemon.log());
            }
            let in_data = ended.is_none()
                && stub.blob_bytes_sent() - sent_before < total_bytes
                && stub.blob_bytes_sent() > sent_before;
            daemon.kill();
            kills += 1;
            kills_in_data += u64::from(in_data);
            let acknowledged = pull.ended() == Some(true);
            drop(pull);
            cuts += 1;
            if cuts == 1 {
                first_cut_bytes = stub.blob_bytes_sent() - sent_before_image;
            }

            daemon.run().with_context(|| format!("after kill {kills}"))?;
            let listed = daemon.docker_ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
            for (reference, image) in &done {
                assert!(listed.lines().any(|line| line == reference), "{reference} is lost after kill {kills}");
                assert_image_is_whole(&daemon, &scratch, reference, image)?;
            }
            let there = listed.lines().any(|line| line == reference);
            assert!(there || !acknowledged, "{reference} was acknowledged and is gone after kill {kills}");
            if there {
                assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
            }
            let stray = ownerless(&daemon, &Allowed::pull_of(&image))?;
            assert!(stray.is_empty(), "after kill {kills} nobody owns {stray:?}");
            if acknowledged {
                break;
            }
        }
        assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
        fetched.push((cuts, stub.blob_bytes_sent() - sent_before_image, total_bytes, first_cut_bytes));
        done.push((reference, image));
    }
    for (number, (cuts, bytes, total, first)) in fetched.iter().enumerate() {
        println!(
            "image {number}: {cuts} cuts, {bytes} bytes fetched of {total}: {:.2} times its size",
            *bytes as f64 / *total as f64
        );
        // The image is so small that a checkpoint's interval is a good part of it; `bench/cuts` has the real figure.
        // And what the registry hands to a connection just when that is cut counts as sent a little later.
        let in_buffers = u64::from(*cuts) * (1 << 20);
        let most = total + first + in_buffers + u64::from(*cuts).saturating_sub(1) * total * 4 / 10;
        assert!(*bytes <= most, "image {number}: {bytes} bytes were fetched, {most} at most were to be expected");
    }
    println!("{kills} kills, {kills_in_data} of them while layer data was being written");
    assert!(kills_in_data * 2 > kills, "only {kills_in_data} of {kills} kills hit a layer being written");

    let stray = ownerless(&daemon, &Allowed::default())?;
    assert!(stray.is_empty(), "after the last pull nobody owns {stray:?}");
    for (reference, _) in &done {
        daemon.docker_ok(&["rmi", reference])?;
    }
    daemon.docker_ok(&["system", "prune", "-af"])?;
    assert_eq!(daemon.docker_ok(&["images", "-aq"])?, "");
    let left_bytes = disk_usage(daemon.root())?;
    println!("bytes of the root: empty {empty_bytes}, after removal of everything {left_bytes}");
    assert!(left_bytes <= empty_bytes + 65_536, "{left_bytes} bytes are left of an empty store's {empty_bytes}");
    Ok(())
}

fn finish(pull: &mut Pull, daemon: &Daemon) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match pull.ended() {
            Some(true) => return Ok(()),
            Some(false) => bail!("the pull failed after the last cut:\n{}", daemon.log()),
            None if Instant::now() > deadline => bail!("the pull does not end:\n{}", daemon.log()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn a_daemon_killed_with_a_layer_half_fetched_goes_on_after_its_start() -> Result<()> {
    needs_root!("a_daemon_killed_with_a_layer_half_fetched_goes_on_after_its_start");
    let scratch = Scratch::new("half")?;
    let stub = Stub::start()?;
    let mut random = Random::new(1);
    let whole = Layer::of(&[Entry::file("first", random.bytes(100_000))])?;
    let half = Layer::of(&[Entry::file("second", random.bytes(2_000_000))])?;
    let image = Image::new(vec![whole.clone(), half.clone()], &["/first"]);
    stub.add("app", "v1", &image);
    stub.hold(&half.digest(), 1_000_000);
    let mut daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("app:v1");
    let pull = Pull::begin(&daemon, &reference)?;
    assert!(stub.wait_held(Duration::from_secs(30)), "the pull never came to the middle of its layer");
    daemon.kill();
    drop(pull);
    stub.release();
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["images", "-aq"])?, "", "an image that is not whole is listed");
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
    Ok(())
}
