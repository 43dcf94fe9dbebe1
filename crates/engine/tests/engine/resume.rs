//! Pulls that are cut and go on from a checkpoint, whoever goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use baleen_engine::{CheckpointIntervals, EngineConfig, LayerPhase, Progress, PruneFilter, Pulled, progress_channel};
use baleen_tests::archive::Entry;
use baleen_tests::image::{Compression, Image, Layer};
use baleen_tests::random::Random;
use baleen_tests::store::layer_differences;
use baleen_tests::stub::{Reply, Stub};
use baleen_tests::tree;

use crate::fixture::{Fixture, LIMIT, pull_request};

crate::tests!(
    a_pull_that_is_cut_again_and_again_fetches_hardly_more_than_the_image,
    a_pull_whose_client_has_gone_is_gone_on_with_by_another_tag_that_shares_the_layer,
    a_registry_that_refuses_ranges_ends_a_cut_pull_well,
    wrong_bytes_before_a_cut_are_found_and_the_layer_is_fetched_anew,
    a_layer_without_a_place_for_a_checkpoint_is_kept_compressed_after_two_cuts,
    a_prune_gives_up_what_cut_pulls_have_left,
);

/// Every 64 KiB, as fast as they come.
fn often(config: &mut EngineConfig) {
    config.checkpoint_intervals = CheckpointIntervals {
        output_bytes: 64 << 10,
        output_bytes_min: 64 << 10,
        spacing: Duration::ZERO,
        spacing_min: Duration::ZERO,
        ..CheckpointIntervals::default()
    };
}

/// How far the last checkpoint may be behind the byte at which a test cuts.
const BEHIND_BYTES_MAX: u64 = 512 << 10;
/// So slow that a checkpoint is made in the time of a few pieces.
const RATE_BYTES_PER_SECOND: u64 = 4 << 20;

/// A layer of files small and large, 100 kB a file on average, which no compressor makes smaller.
fn layer(seed: u64, files: usize) -> Result<Layer> {
    let mut random = Random::new(seed);
    let mut entries = vec![Entry::folder("d")];
    for number in 0..files {
        let size = [10, 5000, 100_000, 300_000][number % 4];
        entries.push(Entry::file(&format!("d/f{number}"), random.bytes(size)).mtime(1_700_000_000 + number as u64, 7));
    }
    Layer::of(&entries)
}

/// Begins a pull, and cuts it once its layer has come to `offset` and a checkpoint is near; `by` is what cuts.
fn cut_at(
    fixture: &mut Fixture,
    stub: &Stub,
    reference: &str,
    layer: &Layer,
    offset: u64,
    by: impl FnOnce(&mut Fixture) -> Result<()>,
) -> Result<()> {
    cut_when(fixture, stub, reference, layer, offset, &|partial| covered_bytes(partial) + BEHIND_BYTES_MAX >= offset)?;
    by(fixture)
}

/// The same without an engine's end, once `is_ready` says so of the layer's folder.
fn cut_when(
    fixture: &Fixture,
    stub: &Stub,
    reference: &str,
    layer: &Layer,
    offset: u64,
    is_ready: &dyn Fn(&Path) -> bool,
) -> Result<()> {
    stub.limit_rate(RATE_BYTES_PER_SECOND);
    stub.hold(&layer.digest(), offset);
    let engine = fixture.engine();
    let partial = partial(fixture, layer);
    let request = pull_request(reference);
    fixture.runtime.block_on(async {
        let (sender, mut told) = progress_channel();
        let pulling = tokio::spawn(async move { engine.pull(request, sender).await });
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        let begun = Instant::now();
        while !(stub.wait_held(Duration::ZERO) && is_ready(&partial)) {
            ensure!(begun.elapsed() < LIMIT, "no checkpoint came near in {}", partial.display());
            ensure!(!pulling.is_finished(), "the pull has ended");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pulling.abort();
        ensure!(pulling.await.is_err_and(|error| error.is_cancelled()), "the pull has ended");
        Ok(())
    })?;
    stub.release();
    stub.limit_rate(0);
    Ok(())
}

fn partial(fixture: &Fixture, layer: &Layer) -> PathBuf {
    fixture.scratch.join("data/partial").join(layer.digest().replace(':', "-"))
}

/// Bytes on disk that the last checkpoint there speaks of (docs/formats/partial.md), 0 for none.
fn covered_bytes(partial: &Path) -> u64 {
    let covered = |name| {
        let bytes = std::fs::read(partial.join(name)).ok()?;
        Some(u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?))
    };
    covered("checkpoint-0").max(covered("checkpoint-1")).unwrap_or(0)
}

fn restart(fixture: &mut Fixture) -> Result<()> {
    fixture.abandon()?;
    fixture.open()
}

/// Pulls to the end, and compares every file of the top layer with what `tar -x` makes of it.
fn finish(fixture: &Fixture, reference: &str, layer: &Layer) -> Result<(Pulled, Vec<Progress>)> {
    let (pulled, told) = fixture.pull(reference);
    let pulled = pulled?;
    let details = fixture.run(fixture.engine().image(reference))?;
    let top = details.graph_driver.upper_dir.context("no upper directory")?;
    let differences = layer_differences(top.as_ref(), &tree::of_layer(&fixture.scratch, &layer.tar)?)?;
    ensure!(differences.is_empty(), "{differences:?}");
    ensure!(!partial(fixture, layer).exists(), "the partial folder is still there");
    Ok((pulled, told))
}

fn a_pull_that_is_cut_again_and_again_fetches_hardly_more_than_the_image() -> Result<()> {
    let mut fixture = Fixture::tuned("resume", often)?;
    let stub = Stub::start()?;
    const CUTS: u64 = 4;
    let layer = layer(1, 160)?;
    let size = layer.blob.len() as u64;
    let image = Image::new(vec![layer.clone()], &["/x"]);
    stub.add("app", "v1", &image);
    let reference = stub.reference("app:v1");
    for cut in 1..=CUTS {
        cut_at(&mut fixture, &stub, &reference, &layer, size * cut / (CUTS + 1), restart)?;
    }
    let (pulled, told) = finish(&fixture, &reference, &layer)?;
    let fetched = stub.blob_bytes_sent() - image.config.len() as u64 * (CUTS + 1);
    println!("{CUTS} cuts, {fetched} bytes fetched of {size}: {:.3} times", fetched as f64 / size as f64);
    assert!(fetched * 100 <= size * 115, "{fetched} bytes were fetched of {size}");
    assert_eq!(pulled.fetched_bytes + pulled.resumed_bytes, size);
    assert!(pulled.resumed_bytes > size * 7 / 10, "{pulled:?}");
    let first = told.iter().find_map(|progress| match progress {
        Progress::Layer { phase: LayerPhase::Downloading { current_bytes, .. }, .. } => Some(*current_bytes),
        _ => None,
    });
    assert_eq!(first, Some(pulled.resumed_bytes), "the bar begins where the layer goes on");
    Ok(())
}

fn a_pull_whose_client_has_gone_is_gone_on_with_by_another_tag_that_shares_the_layer() -> Result<()> {
    let mut fixture = Fixture::tuned("shares", often)?;
    let stub = Stub::start()?;
    let layer = layer(2, 40)?;
    let size = layer.blob.len() as u64;
    let below = Layer::of(&[Entry::file("below", "below")])?;
    stub.add("one", "v1", &Image::new(vec![layer.clone()], &["/x"]));
    stub.add("two", "v7", &Image::new(vec![below, layer.clone()], &["/y"]));
    // The engine lives on: only the client goes.
    cut_at(&mut fixture, &stub, &stub.reference("one:v1"), &layer, size / 2, |_| Ok(()))?;
    let (pulled, _) = finish(&fixture, &stub.reference("two:v7"), &layer)?;
    assert!(pulled.resumed_bytes > size / 3, "{pulled:?} of {size}");
    let (pulled, _) = finish(&fixture, &stub.reference("one:v1"), &layer)?;
    assert_eq!((pulled.fetched_bytes, pulled.resumed_bytes), (0, 0));
    Ok(())
}

fn a_registry_that_refuses_ranges_ends_a_cut_pull_well() -> Result<()> {
    for status in [200, 416] {
        let mut fixture = Fixture::tuned("ranges", often)?;
        let stub = Stub::start()?;
        let layer = layer(3, 40)?;
        let size = layer.blob.len() as u64;
        stub.add("app", "v1", &Image::new(vec![layer.clone()], &["/x"]));
        let reference = stub.reference("app:v1");
        cut_at(&mut fixture, &stub, &reference, &layer, size / 2, restart)?;
        let whole = layer.blob.clone();
        stub.hook(move |request| match (request.headers.contains_key("range"), status) {
            (true, 200) => Some(Reply::Whole(200, vec![], whole.clone())),
            (true, _) => Some(Reply::Whole(status, vec![], vec![])),
            _ => None,
        });
        let (pulled, _) = finish(&fixture, &reference, &layer)?;
        assert_eq!(pulled.fetched_bytes, size, "what was passed over has been fetched as well");
        assert!(pulled.resumed_bytes > 0, "but not extracted again");
    }
    Ok(())
}

fn wrong_bytes_before_a_cut_are_found_and_the_layer_is_fetched_anew() -> Result<()> {
    let mut fixture = Fixture::tuned("changed", often)?;
    let stub = Stub::start()?;
    // Not compressed, so that a wrong byte of a file is noticed by the digests alone.
    let layer = Layer::from_tar(layer(4, 40)?.tar, Compression::None)?;
    let size = layer.blob.len() as u64;
    stub.add("app", "v1", &Image::new(vec![layer.clone()], &["/x"]));
    let mut wrong = layer.blob.clone();
    let at = wrong.len() / 5;
    wrong[at] ^= 1;
    stub.add_blob(&layer.digest(), wrong);
    let reference = stub.reference("app:v1");
    cut_at(&mut fixture, &stub, &reference, &layer, size / 2, restart)?;
    stub.add_blob(&layer.digest(), layer.blob.clone());
    let (pulled, _) = finish(&fixture, &reference, &layer)?;
    assert!(pulled.fetched_bytes > size && pulled.fetched_bytes <= size + size * 2 / 3, "{pulled:?} of {size}");
    assert_eq!(pulled.resumed_bytes, 0);
    Ok(())
}

fn a_layer_without_a_place_for_a_checkpoint_is_kept_compressed_after_two_cuts() -> Result<()> {
    let mut fixture = Fixture::tuned("spool", often)?;
    let stub = Stub::start()?;
    // One frame of zstd.
    let layer = Layer::from_tar(layer(6, 80)?.tar, Compression::Zstd)?;
    let size = layer.blob.len() as u64;
    stub.add("app", "v1", &Image::new(vec![layer.clone()], &["/x"]));
    let reference = stub.reference("app:v1");
    let offset = size * 4 / 5;
    let file = partial(&fixture, &layer).join("blob");
    cut_when(&fixture, &stub, &reference, &layer, offset, &|_| true)?;
    restart(&mut fixture)?;
    assert!(!partial(&fixture, &layer).exists(), "there is nothing to go on from");
    cut_when(&fixture, &stub, &reference, &layer, offset, &|partial| partial.join("checkpoint-1").exists())?;
    restart(&mut fixture)?;
    assert!(!file.exists(), "it was cut once when the second attempt began");
    for part in [3, 4] {
        let offset = size * part / 5;
        let is_kept = |partial: &Path| partial.join("blob").metadata().is_ok_and(|blob| blob.len() + 65_536 >= offset);
        cut_when(&fixture, &stub, &reference, &layer, offset, &is_kept)?;
        restart(&mut fixture)?;
    }
    let kept = file.metadata()?.len();
    assert!(kept + 65_536 >= offset, "{kept} bytes are kept of {offset}");
    let (pulled, _) = finish(&fixture, &reference, &layer)?;
    assert_eq!((pulled.resumed_bytes, pulled.fetched_bytes), (kept, size - kept));
    let data = fixture.scratch.join("data/layers");
    let left = std::fs::read_dir(&data)?.flatten().any(|layer| layer.path().join("blob").exists());
    assert!(!left, "the compressed bytes are still there");
    Ok(())
}

fn a_prune_gives_up_what_cut_pulls_have_left() -> Result<()> {
    let mut fixture = Fixture::tuned("forget", often)?;
    let stub = Stub::start()?;
    let layer = layer(5, 40)?;
    stub.add("app", "v1", &Image::new(vec![layer.clone()], &["/x"]));
    let reference = stub.reference("app:v1");
    cut_at(&mut fixture, &stub, &reference, &layer, layer.blob.len() as u64 / 2, restart)?;
    assert!(partial(&fixture, &layer).exists());
    let filter = PruneFilter { dangling_only: true, ..PruneFilter::default() };
    fixture.run(fixture.engine().prune_images(filter))?;
    assert!(partial(&fixture, &layer).exists(), "a prune of dangling images leaves it");
    let filter = PruneFilter { dangling_only: false, ..PruneFilter::default() };
    let pruned = fixture.run(fixture.engine().prune_images(filter))?;
    assert!(!partial(&fixture, &layer).exists());
    assert!(pruned.reclaimed_bytes > layer.blob.len() as u64 / 3, "{pruned:?}");
    let (pulled, _) = finish(&fixture, &reference, &layer)?;
    assert_eq!(pulled.resumed_bytes, 0);
    Ok(())
}
