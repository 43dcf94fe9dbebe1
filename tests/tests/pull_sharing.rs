//! Pulls that meet: one download for two, an end for a client that has gone, a connection that breaks inside a layer.

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::archive::Entry;
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::http;
use baleen_tests::image::{Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::scratch::Scratch;
use baleen_tests::store::assert_image_is_whole;
use baleen_tests::stub::{Reply, Stub};

fn image() -> Result<Image> {
    let mut random = Random::new(7);
    Ok(Image::new(vec![Layer::of(&[Entry::file("large", random.bytes(3_000_000))])?], &["/large"]))
}

#[test]
fn two_pulls_of_one_layer_share_one_download_and_one_may_leave() -> Result<()> {
    needs_root!("two_pulls_of_one_layer_share_one_download_and_one_may_leave");
    let scratch = Scratch::new("two")?;
    let stub = Stub::start()?;
    let image = image()?;
    let digest = image.layers[0].digest();
    stub.add("one", "v1", &image);
    stub.add("two", "v1", &image);
    stub.hold(&digest, 1_500_000);
    let daemon = Daemon::start(&scratch)?;
    let mut first = daemon.client(&["pull", &stub.reference("one:v1")]);
    let mut first = first.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    assert!(stub.wait_held(Duration::from_secs(30)), "the first pull never came to the middle of its layer");
    // The second by the API: it has joined once it tells how far the layer is.
    let path = format!("/v1.41/images/create?fromImage={}/two&tag=v1", stub.address());
    let mut second = http::request(&daemon.socket(), "POST", &path, None)?;
    let mut said = String::new();
    let mut next = |said: &mut String| -> Result<bool> {
        let part = second.next_part()?;
        said.push_str(&String::from_utf8_lossy(part.as_deref().unwrap_or_default()));
        Ok(part.is_some())
    };
    while !said.contains("\"Downloading\"") {
        let goes_on = next(&mut said).with_context(|| format!("the second pull says no more than {said}"))?;
        assert!(goes_on, "the second pull ended: {said}");
    }
    first.kill()?;
    first.wait()?;
    stub.release();
    while next(&mut said)? {}
    assert!(said.contains("Downloaded newer image"), "{said}");
    assert_eq!(stub.fetches_of(&digest), 1, "the layer was fetched again");
    assert_image_is_whole(&daemon, &scratch, &stub.reference("two:v1"), &image)
}

#[test]
fn a_pull_whose_client_has_gone_stops_at_once() -> Result<()> {
    needs_root!("a_pull_whose_client_has_gone_stops_at_once");
    let scratch = Scratch::new("gone")?;
    let stub = Stub::start()?;
    let image = image()?;
    stub.add("app", "v1", &image);
    // At this rate the layer would take five minutes.
    stub.limit_rate(10_000);
    let daemon = Daemon::start(&scratch)?;
    let mut client = daemon.client(&["pull", &stub.reference("app:v1")]);
    let mut client = client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("the layer's first bytes", Duration::from_secs(30), || (stub.blob_bytes_sent() > 20_000).then_some(()))?;
    client.kill()?;
    client.wait()?;
    // The stub sends a block every three seconds; no more than what lies in the buffers may still leave it.
    let mut last = stub.blob_bytes_sent();
    wait_for("the download stopping", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_secs(8));
        let now = stub.blob_bytes_sent();
        let stopped = now == last;
        last = now;
        stopped.then_some(())
    })?;
    assert_eq!(daemon.docker_ok(&["images", "-aq"])?, "");
    Ok(())
}

#[test]
fn a_connection_that_breaks_inside_a_layer_goes_on_where_it_broke() -> Result<()> {
    needs_root!("a_connection_that_breaks_inside_a_layer_goes_on_where_it_broke");
    let scratch = Scratch::new("broken")?;
    let stub = Stub::start()?;
    let image = image()?;
    let layer = image.layers[0].clone();
    stub.add("app", "v1", &image);
    let breaks = AtomicUsize::new(0);
    let blob = layer.blob.clone();
    let path = format!("/v2/app/blobs/{}", layer.digest());
    stub.hook(move |request| {
        if request.path != path || request.method != "GET" || breaks.fetch_add(1, Ordering::Relaxed) >= 1 {
            return None;
        }
        Some(Reply::Cut { declared: blob.len() as u64, sent: blob[..2_000_000].to_vec() })
    });
    let daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("app:v1");
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
    let ranges: Vec<String> = stub
        .requests()
        .iter()
        .filter(|request| request.path.ends_with(&layer.digest()))
        .map(|request| request.headers.get("range").cloned().unwrap_or_default())
        .collect();
    assert_eq!(ranges, ["", "bytes=2000000-"], "the layer was not resumed at the byte where it broke");
    Ok(())
}
