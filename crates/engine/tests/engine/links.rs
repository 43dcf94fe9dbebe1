//! Hard links from a layer into the layers below it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use baleen_engine::{EngineConfig, LoadRequest, OutputStream, PruneFilter, RemoveImage, progress_channel};
use baleen_tests::archive::Entry;
use baleen_tests::command::run;
use baleen_tests::image::{Image, Layer, busybox_entries};
use baleen_tests::stub::Stub;
use bytes::Bytes;

use crate::fixture::{Fixture, LIMIT, pull_request};

crate::tests!(
    a_link_into_a_lower_layer_shows_what_overlayfs_would_and_a_container_sees_one_file,
    a_layer_that_waits_for_those_below_goes_when_its_client_goes,
    an_archive_with_links_into_lower_layers_is_loaded,
    one_layer_with_links_cannot_stand_on_two_stacks_and_the_refusal_says_so,
);

fn one_at_a_time(config: &mut EngineConfig) {
    config.limits.concurrent_downloads_max = 1;
}

fn base(text: &str) -> Result<Layer> {
    let mut entries = busybox_entries()?;
    entries.push(Entry::folder("data"));
    let mut file = Entry::file("data/file", text).mode(0o640).owner(5, 6).mtime(1_600_000_000, 123_000_000);
    file.xattrs.push(("user.note".to_owned(), b"kept".to_vec()));
    entries.push(file);
    Layer::of(&entries)
}

fn links() -> Result<Layer> {
    Layer::of(&[Entry::folder("data"), Entry::hardlink("data/link", "data/file"), Entry::file("other", "other")])
}

fn image(text: &str) -> Result<Image> {
    Ok(Image::new(vec![base(text)?, links()?, Layer::of(&[Entry::file("top", "top")])?], &["sh"]))
}

/// The folders of an image's layers, bottom first.
fn folders(fixture: &Fixture, reference: &str) -> Result<Vec<PathBuf>> {
    let details = fixture.run(fixture.engine().image(reference))?;
    let driver = details.graph_driver;
    let top_first = driver.upper_dir.into_iter().chain(driver.lower_dirs);
    let mut folders: Vec<PathBuf> = top_first.map(PathBuf::from).collect();
    folders.reverse();
    Ok(folders)
}

/// What overlayfs leaves in its upper directory when `data/link` is linked to the lower layer's `data/file`.
fn by_overlayfs(fixture: &Fixture, lower: &Path) -> Result<PathBuf> {
    let scratch = &fixture.scratch;
    let names = ["upper", "work", "merged"].map(|name| scratch.join(format!("overlay-{name}")));
    names.iter().try_for_each(std::fs::create_dir)?;
    let [upper, work, merged] = &names;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off",
        lower.display(),
        upper.display(),
        work.display()
    );
    let mount = |arguments: &[&str]| {
        let mut command = std::process::Command::new(arguments[0]);
        run(command.args(&arguments[1..]), None, Duration::from_secs(20))?.ok().map(drop)
    };
    let merged_path = merged.to_string_lossy();
    mount(&["mount", "-t", "overlay", "overlay", "-o", &options, &merged_path])?;
    let linked = std::fs::hard_link(merged.join("data/file"), merged.join("data/link"));
    mount(&["umount", &merged_path])?;
    linked?;
    Ok(upper.clone())
}

/// All of a file that anybody can see: content, an attribute, and its numbers.
fn seen(path: &Path) -> Result<(Vec<u8>, Vec<u8>, [i64; 6])> {
    let data = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    let mut note = [0; 64];
    let count = rustix::fs::lgetxattr(path, "user.note", &mut note[..])?;
    let content = std::fs::read(path)?;
    let owner = [data.mode(), data.uid(), data.gid()].map(i64::from);
    let numbers = [owner[0], owner[1], owner[2], data.mtime(), data.mtime_nsec(), data.nlink().try_into()?];
    Ok((content, note[..count].to_vec(), numbers))
}

fn check(fixture: &Fixture, reference: &str, text: &str) -> Result<()> {
    let folders = folders(fixture, reference)?;
    let linking = &folders[1];
    let name = linking.parent().and_then(Path::file_name).context("a layer has a folder")?.to_string_lossy();
    assert!(name.contains('+'), "its key has nothing of what is below it: {name}");
    let expected = by_overlayfs(fixture, &folders[0])?;
    for name in ["data/file", "data/link"] {
        assert_eq!(seen(&linking.join(name))?, seen(&expected.join(name))?, "{name}");
    }
    let inode = |name: &str| std::fs::metadata(linking.join(name)).map(|data| data.ino());
    assert_eq!(inode("data/file")?, inode("data/link")?);

    let script = "cat /data/link /data/file; stat -c %h /data/file; cat /other /top";
    let id = fixture.start(reference, &["sh", "-c", script])?;
    assert_eq!(fixture.exit_code(&id)?, 0);
    let output = fixture.output(&id, OutputStream::Stdout, false)?;
    assert_eq!(output, format!("{text}{text}2\nothertop"));
    Ok(())
}

fn a_link_into_a_lower_layer_shows_what_overlayfs_would_and_a_container_sees_one_file() -> Result<()> {
    for tune in [one_at_a_time as fn(&mut EngineConfig), |_| {}] {
        let mut fixture = Fixture::tuned("links", tune)?;
        let stub = Stub::start()?;
        stub.add("app", "v1", &image("text\n")?);
        let reference = stub.reference("app:v1");
        fixture.pull(&reference).0?;
        check(&fixture, &reference, "text\n")?;
        // It is known after a restart, under its own key.
        fixture.abandon()?;
        fixture.open()?;
        let (pulled, _) = fixture.pull(&reference);
        assert!(pulled?.up_to_date);
        let history = fixture.run(fixture.engine().image_history(&reference))?;
        assert!(history.iter().all(|item| item.size_bytes > 0), "{history:?}");
    }
    Ok(())
}

fn a_layer_that_waits_for_those_below_goes_when_its_client_goes() -> Result<()> {
    let fixture = Fixture::new("links-gone")?;
    let stub = Stub::start()?;
    let image = image("text\n")?;
    stub.add("app", "v1", &image);
    let reference = stub.reference("app:v1");
    stub.hold(&image.layers[0].digest(), 100_000);
    let engine = fixture.engine();
    fixture.runtime.block_on(async {
        let (sender, mut told) = progress_channel();
        let request = pull_request(&reference);
        let pulling = tokio::spawn(async move { engine.pull(request, sender).await });
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        let begun = Instant::now();
        while stub.fetches_of(&image.layers[1].digest()) == 0 || !stub.wait_held(Duration::ZERO) {
            ensure!(begun.elapsed() < LIMIT, "the layers never came to where they wait");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pulling.abort();
        ensure!(pulling.await.is_err_and(|error| error.is_cancelled()), "the pull has ended");
        Ok(())
    })?;
    stub.release();
    // Its thread has let go: the folder is free for the next pull.
    fixture.pull(&reference).0?;
    check(&fixture, &reference, "text\n")
}

fn an_archive_with_links_into_lower_layers_is_loaded() -> Result<()> {
    let fixture = Fixture::new("links-load")?;
    let archive = image("text\n")?.docker_archive("example/app:v1");
    let engine = fixture.engine();
    fixture.run(async {
        let (pieces, received) = tokio::sync::mpsc::channel(4);
        let (sender, mut told) = progress_channel();
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        tokio::spawn(async move {
            for piece in archive.chunks(65_536) {
                if pieces.send(Ok(Bytes::copy_from_slice(piece))).await.is_err() {
                    return;
                }
            }
        });
        engine.load(LoadRequest::default(), received, sender).await
    })?;
    check(&fixture, "example/app:v1", "text\n")
}

fn one_layer_with_links_cannot_stand_on_two_stacks_and_the_refusal_says_so() -> Result<()> {
    let fixture = Fixture::new("links-two")?;
    let stub = Stub::start()?;
    stub.add("app", "v1", &image("one\n")?);
    stub.add("app", "v2", &image("two\n")?);
    let (first, second) = (stub.reference("app:v1"), stub.reference("app:v2"));
    fixture.pull(&first).0?;
    let error = fixture.pull(&second).0.expect_err("there is one place for what the layer's blob unpacks to");
    assert!(error.chain().contains("hard links into the layers below it"), "{}", error.chain());
    // What the refusal asks for is what helps.
    fixture.run(fixture.engine().remove_image(&first, RemoveImage::default()))?;
    fixture.run(fixture.engine().prune_images(PruneFilter { dangling_only: true, ..PruneFilter::default() }))?;
    fixture.pull(&second).0?;
    check(&fixture, &second, "two\n")
}
