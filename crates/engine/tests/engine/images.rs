//! Images: pull, share, cut, remove.

use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_engine::{
    EngineError, ImageDeletion, Kind, LayerPhase, LoadRequest, Progress, PruneFilter, RegistryAuth, RemoveImage,
    progress_channel,
};
use baleen_tests::archive::Entry;
use baleen_tests::image::{Image, Layer};
use baleen_tests::random::Random;
use baleen_tests::scratch::disk_usage;
use baleen_tests::stub::{Reply, Stub};
use bytes::Bytes;

use crate::fixture::{Fixture, LIMIT, pull_request};

crate::tests!(
    a_pulled_image_is_whole_listed_and_still_there_after_a_restart,
    a_second_pull_fetches_nothing_and_says_so,
    what_the_registry_lacks_is_an_error_before_the_first_message,
    a_layer_that_is_not_what_its_digest_says_leaves_nothing,
    two_pulls_of_one_layer_share_one_download,
    a_pull_that_is_dropped_stops_and_its_finished_layers_are_kept,
    an_image_goes_with_its_last_name_and_prune_frees_everything,
    an_image_with_the_same_layer_twice_is_pulled,
    a_prune_in_the_middle_of_a_pull_takes_nothing_of_it,
    archives_of_both_forms_are_loaded_and_need_no_registry,
    an_archive_that_lies_leaves_nothing,
    all_tags_are_pulled_and_a_reference_is_inspected_without_a_pull,
);

fn small(text: &str) -> Result<Image> {
    let layers = vec![
        Layer::of(&[Entry::folder("etc"), Entry::file("etc/text", text)])?,
        Layer::of(&[Entry::file("upper", "upper")])?,
    ];
    Ok(Image::new(layers, &["/bin/true"]))
}

fn large(seed: u64) -> Result<Image> {
    let mut random = Random::new(seed);
    let layers = vec![
        Layer::of(&[Entry::file("small", "small")])?,
        Layer::of(&[Entry::file("large", random.bytes(2_000_000))])?,
    ];
    Ok(Image::new(layers, &["/bin/true"]))
}

fn phases(told: &[Progress], layer: &Layer) -> Vec<LayerPhase> {
    let short = &layer.digest()[7..19];
    told.iter()
        .filter_map(|progress| match progress {
            Progress::Layer { id, phase } if **id == *short => Some(phase.clone()),
            _ => None,
        })
        .collect()
}

/// Whether the stub holds a blob back, asked while the engine's tasks go on.
async fn held(stub: &Stub) -> bool {
    let begun = std::time::Instant::now();
    while begun.elapsed() < LIMIT {
        if stub.wait_held(Duration::ZERO) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

fn a_pulled_image_is_whole_listed_and_still_there_after_a_restart() -> Result<()> {
    let mut fixture = Fixture::new("pull")?;
    let stub = Stub::start()?;
    let image = small("text")?;
    stub.add("team/app", "v1", &image);
    let reference = stub.reference("team/app:v1");
    let (pulled, told) = fixture.pull(&reference);
    let pulled = pulled?;
    assert_eq!((pulled.image_id.as_str(), pulled.digest.as_str()), (&*image.id(), &*image.digest()));
    assert!(!pulled.up_to_date && pulled.fetched_bytes > 0);
    assert_eq!(told[0], Progress::PullingFrom { repository: "team/app".to_owned(), id: "v1".to_owned() });
    for layer in &image.layers {
        let phases = phases(&told, layer);
        assert_eq!(phases.first(), Some(&LayerPhase::PullingFsLayer), "{phases:?}");
        assert_eq!(phases.last(), Some(&LayerPhase::PullComplete), "{phases:?}");
    }
    let end = [Progress::Digest(image.digest()), Progress::Status(format!("Downloaded newer image for {reference}"))];
    assert_eq!(told[told.len() - 2..], end);

    for _ in 0..2 {
        let engine = fixture.engine();
        let list = fixture.run(engine.images())?;
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].repo_tags, std::slice::from_ref(&reference));
        assert_eq!(list[0].repo_digests, [format!("{}@{}", stub.reference("team/app"), image.digest())]);
        let details = fixture.run(engine.image(&reference))?;
        let top = details.graph_driver.upper_dir.context("no upper directory")?;
        assert_eq!(std::fs::read_to_string(format!("{top}/upper"))?, "upper");
        assert_eq!(details.graph_driver.lower_dirs.len(), 1);
        assert_eq!(std::fs::read_to_string(format!("{}/etc/text", details.graph_driver.lower_dirs[0]))?, "text");
        let short = &image.id()[7..17];
        assert_eq!(fixture.run(engine.image(short))?.summary.id, image.id());
        drop(engine);
        fixture.abandon()?;
        fixture.open()?;
    }
    Ok(())
}

fn a_second_pull_fetches_nothing_and_says_so() -> Result<()> {
    let fixture = Fixture::new("again")?;
    let stub = Stub::start()?;
    stub.add("app", "v1", &small("text")?);
    let reference = stub.reference("app:v1");
    fixture.pull(&reference).0?;
    let (pulled, told) = fixture.pull(&reference);
    let pulled = pulled?;
    assert!(pulled.up_to_date && pulled.fetched_bytes == 0);
    assert_eq!(told.last(), Some(&Progress::Status(format!("Image is up to date for {reference}"))));
    Ok(())
}

fn what_the_registry_lacks_is_an_error_before_the_first_message() -> Result<()> {
    let fixture = Fixture::new("lacks")?;
    let stub = Stub::start()?;
    stub.add("app", "v1", &small("text")?);
    let (pulled, told) = fixture.pull(&stub.reference("app:v2"));
    let error = pulled.expect_err("there is no v2");
    assert_eq!((error.kind(), told.len()), (Kind::NotFound, 0), "{}", error.chain());
    assert!(error.chain().starts_with(&format!("manifest for {} not found", stub.reference("app:v2"))), "{error}");
    let (scratch, _) = fixture.pull("scratch");
    assert_eq!(scratch.expect_err("scratch is no image").kind(), Kind::Forbidden);
    Ok(())
}

fn a_layer_that_is_not_what_its_digest_says_leaves_nothing() -> Result<()> {
    let fixture = Fixture::new("wrong")?;
    let stub = Stub::start()?;
    let image = small("text")?;
    stub.add("app", "v1", &image);
    let mut wrong = image.layers[1].blob.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    stub.add_blob(&image.layers[1].digest(), wrong);
    let (pulled, told) = fixture.pull(&stub.reference("app:v1"));
    let error = pulled.expect_err("the layer is wrong");
    assert!(error.chain().contains("failed to register layer"), "{}", error.chain());
    assert!(!phases(&told, &image.layers[1]).contains(&LayerPhase::PullComplete));
    let engine = fixture.engine();
    assert_eq!(fixture.run(engine.images())?, []);
    fixture.run(engine.prune_images(PruneFilter::default()))?;
    let left: Vec<_> = std::fs::read_dir(fixture.scratch.join("data/partial"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

fn two_pulls_of_one_layer_share_one_download() -> Result<()> {
    let fixture = Fixture::new("share")?;
    let stub = Stub::start()?;
    let image = large(1)?;
    let digest = image.layers[1].digest();
    stub.add("one", "v1", &image);
    stub.add("two", "v1", &image);
    stub.hold(&digest, 1_000_000);
    let engine = fixture.engine();
    fixture.runtime.block_on(async {
        let (first_told, _told) = progress_channel();
        let (second_told, mut told) = progress_channel();
        let (one, two) = (pull_request(&stub.reference("one:v1")), pull_request(&stub.reference("two:v1")));
        let (first_engine, second_engine) = (engine.clone(), engine.clone());
        let first = tokio::spawn(async move { first_engine.pull(one, first_told).await });
        assert!(held(&stub).await, "the layer never came to its middle");
        let second = tokio::spawn(async move { second_engine.pull(two, second_told).await });
        // The second waits for the first's layer; then the first leaves.
        while let Some(progress) = told.recv().await {
            if matches!(&progress, Progress::Layer { phase: LayerPhase::Downloading { .. }, .. }) {
                break;
            }
        }
        first.abort();
        stub.release();
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        second.await??;
        anyhow::Ok(())
    })?;
    assert_eq!(stub.fetches_of(&digest), 1, "the layer was fetched again");
    let list = fixture.run(engine.images())?;
    assert_eq!(list[0].repo_tags, [stub.reference("two:v1")]);
    Ok(())
}

fn a_pull_that_is_dropped_stops_and_its_finished_layers_are_kept() -> Result<()> {
    let mut fixture = Fixture::new("dropped")?;
    let stub = Stub::start()?;
    let image = large(2)?;
    stub.add("app", "v1", &image);
    stub.hold(&image.layers[1].digest(), 1_000_000);
    let engine = fixture.engine();
    fixture.runtime.block_on(async {
        let (sender, mut told) = progress_channel();
        let request = pull_request(&stub.reference("app:v1"));
        let pulling = tokio::spawn(async move { engine.pull(request, sender).await });
        let mut complete = 0;
        while let Some(progress) = told.recv().await {
            complete += usize::from(matches!(&progress, Progress::Layer { phase: LayerPhase::PullComplete, .. }));
            if complete == 1 {
                break;
            }
        }
        assert!(held(&stub).await, "the layer never came to its middle");
        pulling.abort();
        assert!(pulling.await.is_err_and(|error| error.is_cancelled()));
    });
    stub.release();
    // The engine dies as well; what was stored is known to the next one.
    fixture.abandon()?;
    fixture.open()?;
    let (pulled, told) = fixture.pull(&stub.reference("app:v1"));
    pulled?;
    assert_eq!(phases(&told, &image.layers[0]), [LayerPhase::AlreadyExists]);
    assert_eq!(phases(&told, &image.layers[1]).last(), Some(&LayerPhase::PullComplete));
    assert_eq!(stub.fetches_of(&image.layers[0].digest()), 1);
    Ok(())
}

fn an_image_goes_with_its_last_name_and_prune_frees_everything() -> Result<()> {
    let fixture = Fixture::new("remove")?;
    let data = fixture.scratch.join("data");
    let empty_bytes = disk_usage(&data)?;
    let stub = Stub::start()?;
    let image = large(3)?;
    stub.add("app", "v1", &image);
    let reference = stub.reference("app:v1");
    fixture.pull(&reference).0?;
    let engine = fixture.engine();
    fixture.run(engine.tag_image(&reference, "mine", Some("new")))?;
    let removed = fixture.run(engine.remove_image(&reference, RemoveImage::default()))?;
    let digest = format!("{}@{}", stub.reference("app"), image.digest());
    assert_eq!(removed, [ImageDeletion::Untagged(reference.clone()), ImageDeletion::Untagged(digest)]);
    let removed = fixture.run(engine.remove_image("mine:new", RemoveImage::default()))?;
    assert_eq!(removed, [ImageDeletion::Untagged("mine:new".to_owned()), ImageDeletion::Deleted(image.id())]);
    let gone = fixture.run(engine.image(&reference)).expect_err("it is gone");
    assert_eq!(gone.to_string(), format!("No such image: {reference}"));
    fixture.run(engine.prune_images(PruneFilter::default()))?;
    let left_bytes = disk_usage(&data)?;
    // The log has grown within its preallocated segment; directories may keep a block.
    assert!(left_bytes <= empty_bytes + 64 * 1024, "{left_bytes} bytes are left, an empty store has {empty_bytes}");
    Ok(())
}

fn an_image_with_the_same_layer_twice_is_pulled() -> Result<()> {
    let fixture = Fixture::new("twice")?;
    let stub = Stub::start()?;
    let layer = Layer::of(&[Entry::file("same", "same")])?;
    let image = Image::new(vec![layer.clone(), Layer::of(&[Entry::file("b", "b")])?, layer], &["/bin/true"]);
    stub.add("app", "v1", &image);
    fixture.pull(&stub.reference("app:v1")).0?;
    let details = fixture.run(fixture.engine().image(&stub.reference("app:v1")))?;
    assert_eq!(details.diff_ids.len(), 3);
    assert_eq!(stub.fetches_of(&image.layers[0].digest()), 1);
    Ok(())
}

/// Loads an archive in small pieces; gives the outcome and the lines that were told.
fn load(fixture: &Fixture, archive: &[u8]) -> (Result<(), EngineError>, Vec<String>) {
    let engine = fixture.engine();
    fixture.runtime.block_on(async {
        let (progress, mut told) = progress_channel();
        let (pieces, received) = tokio::sync::mpsc::channel(2);
        let loading = tokio::spawn(async move { engine.load(LoadRequest::default(), received, progress).await });
        let archive = archive.to_vec();
        tokio::spawn(async move {
            for piece in archive.chunks(70_001) {
                if pieces.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                    break;
                }
            }
        });
        let mut lines = Vec::new();
        while let Some(progress) = told.recv().await {
            if let Progress::Line(line) = progress {
                lines.push(line);
            }
        }
        (loading.await.expect("the load panicked"), lines)
    })
}

fn archives_of_both_forms_are_loaded_and_need_no_registry() -> Result<()> {
    let fixture = Fixture::new("load")?;
    let image = large(4)?;
    let plain = image.docker_archive("loaded:v1");
    let layout = fixture.scratch.join("layout");
    image.write_layout(&layout, "example.com/loaded:v3")?;
    let folder = layout.to_string_lossy().into_owned();
    let layout = baleen_tests::command::succeed("tar", &["-c", "-C", &folder, "."])?.stdout_bytes;
    for (archive, name) in [
        (plain.clone(), "loaded:v1"),
        (baleen_tests::image::gzip(&plain)?, "loaded:v1"),
        (layout, "example.com/loaded:v3"),
    ] {
        let (loaded, lines) = load(&fixture, &archive);
        loaded?;
        assert_eq!(lines, [format!("Loaded image: {name}\n")]);
        let engine = fixture.engine();
        let details = fixture.run(engine.image(name))?;
        assert_eq!(details.summary.id, image.id());
        let top = details.graph_driver.upper_dir.context("no upper directory")?;
        assert_eq!(std::fs::metadata(format!("{top}/large"))?.len(), 2_000_000);
        fixture.run(engine.remove_image(name, RemoveImage::default()))?;
        fixture.run(engine.prune_images(PruneFilter::default()))?;
    }
    Ok(())
}

fn an_archive_that_lies_leaves_nothing() -> Result<()> {
    let fixture = Fixture::new("lie")?;
    let image = small("text")?;
    let honest = image.docker_archive("loaded:v1");
    let mut wrong = honest.clone();
    let place = wrong.windows(5).position(|bytes| bytes == b"upper").context("no content")?;
    wrong[place] ^= 1;
    let truncated = &honest[..honest.len() / 2];
    for archive in [&wrong[..], truncated, b"no archive at all", b""] {
        let (loaded, lines) = load(&fixture, archive);
        assert!(loaded.is_err() && lines.is_empty(), "{lines:?}");
    }
    let engine = fixture.engine();
    assert_eq!(fixture.run(engine.images())?, []);
    fixture.run(engine.prune_images(PruneFilter::default()))?;
    for folder in ["layers", "partial", "staging", "trash"] {
        let left: Vec<_> = std::fs::read_dir(fixture.scratch.join("data").join(folder))?.collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    Ok(())
}

fn a_prune_in_the_middle_of_a_pull_takes_nothing_of_it() -> Result<()> {
    let fixture = Fixture::new("prune")?;
    let stub = Stub::start()?;
    let image = large(5)?;
    stub.add("app", "v1", &image);
    stub.hold(&image.layers[1].digest(), 1_000_000);
    let engine = fixture.engine();
    fixture.runtime.block_on(async {
        let (sender, mut told) = progress_channel();
        let request = pull_request(&stub.reference("app:v1"));
        let puller = engine.clone();
        let pulling = tokio::spawn(async move { puller.pull(request, sender).await });
        while let Some(progress) = told.recv().await {
            if matches!(&progress, Progress::Layer { phase: LayerPhase::PullComplete, .. }) {
                break;
            }
        }
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        assert!(held(&stub).await, "the layer never came to its middle");
        // Also what unfinished pulls have left is asked for, and this one has not finished.
        engine.prune_images(PruneFilter::default()).await?;
        stub.release();
        pulling.await??;
        anyhow::Ok(())
    })?;
    assert_eq!(stub.fetches_of(&image.layers[0].digest()), 1);
    let details = fixture.run(engine.image(&stub.reference("app:v1")))?;
    let top = details.graph_driver.upper_dir.context("no upper directory")?;
    assert_eq!(std::fs::metadata(format!("{top}/large"))?.len(), 2_000_000);
    assert_eq!(std::fs::read_to_string(format!("{}/small", details.graph_driver.lower_dirs[0]))?, "small");
    Ok(())
}

fn all_tags_are_pulled_and_a_reference_is_inspected_without_a_pull() -> Result<()> {
    let fixture = Fixture::new("tags")?;
    let stub = Stub::start()?;
    let (one, two) = (small("one")?, small("two")?);
    stub.add("app", "v1", &one);
    stub.add("app", "v2", &two);
    stub.hook(|request| {
        let list = br#"{"name":"app","tags":["v1","v2"]}"#.to_vec();
        request.path.ends_with("/tags/list").then(|| Reply::Whole(200, vec![], list))
    });
    let engine = fixture.engine();
    let reference = baleen_oci::Reference::parse(&stub.reference("app:v2"))?;
    let found = fixture.run(engine.distribution(&reference, &RegistryAuth::anonymous()))?;
    assert_eq!((found.digest, found.size_bytes), (two.digest(), two.manifest.len() as u64));
    assert_eq!((found.media_type, found.platforms.len()), (two.manifest_type.clone(), 1));
    assert_eq!(fixture.run(engine.images())?, [], "nothing is stored by looking");

    let (sender, mut told) = progress_channel();
    let pulled = fixture.run(async {
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        engine.pull_all_tags(reference.repository(), None, RegistryAuth::anonymous(), sender).await
    })?;
    assert_eq!(pulled.iter().map(|pulled| &*pulled.image_id).collect::<Vec<_>>(), [one.id(), two.id()]);
    let missing = baleen_oci::Reference::parse(&stub.reference("app:v3"))?;
    let error = fixture.run(engine.distribution(&missing, &RegistryAuth::anonymous())).expect_err("there is no v3");
    assert_eq!(error.kind(), Kind::NotFound);
    Ok(())
}
