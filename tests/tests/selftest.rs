//! The support library judged: what it makes is what real tools read, and its comparison sees every kind of difference.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use baleen_tests::archive::{Entry, archive, file_capability};
use baleen_tests::command::succeed;
use baleen_tests::image::{Compression, Image, Layer, busybox};
use baleen_tests::needs_root;
use baleen_tests::registry::Registry;
use baleen_tests::scratch::{Scratch, SmallDisk, disk_usage, mounts_below};
use baleen_tests::stub::{Reply, Stub};
use baleen_tests::tree;

fn every_kind() -> Vec<Entry> {
    vec![
        Entry::folder("a"),
        Entry::file("a/file", "content").mode(0o4755).owner(1000, 4_000_000).mtime(1_600_000_000, 123_456_789),
        Entry::hardlink("a/link", "a/file"),
        Entry::symlink("a/symlink", "/a/file"),
        Entry::device("a/null", 1, 3),
        Entry::pipe("a/pipe"),
        Entry::file(&format!("a/{}", "n".repeat(200)), "long name"),
        Entry::file("a/capable", "program").mode(0o755).xattr("security.capability", file_capability(1 << 10)),
        Entry::file("a/marked", "text").xattr("user.note", "value"),
        Entry::whiteout("a/gone"),
        Entry::folder("b"),
        Entry::opaque("b"),
    ]
}

#[test]
fn an_archive_of_every_kind_of_entry_is_read_by_gnu_tar_as_it_was_meant() -> Result<()> {
    needs_root!("an_archive_of_every_kind_of_entry_is_read_by_gnu_tar_as_it_was_meant");
    let scratch = Scratch::new("archive")?;
    let tree = tree::of_layer(&scratch, &archive(&every_kind()))?;
    let file = &tree["a/file"];
    assert_eq!((file.kind, file.mode, file.owner), ('f', 0o4755, (1000, 4_000_000)));
    assert_eq!(file.mtime, Some((1_600_000_000, 123_456_789)));
    assert_eq!(tree["a/link"].first_link.as_deref(), Some("a/file"));
    assert_eq!(tree["a/symlink"].content, "/a/file");
    assert_eq!((tree["a/null"].kind, tree["a/null"].content.as_str()), ('c', "1:3"));
    assert_eq!(tree["a/pipe"].kind, 'p');
    assert_eq!(tree[&format!("a/{}", "n".repeat(200))].kind, 'f');
    assert_eq!(tree["a/capable"].xattrs["security.capability"], file_capability(1 << 10));
    assert_eq!(tree["a/marked"].xattrs["user.note"], b"value");
    assert_eq!(tree["a/gone"].kind, 'w');
    assert!(tree["b"].opaque);
    Ok(())
}

#[test]
fn two_trees_that_differ_in_anything_are_told_apart() -> Result<()> {
    needs_root!("two_trees_that_differ_in_anything_are_told_apart");
    let scratch = Scratch::new("differences")?;
    let base = tree::of_layer(&scratch, &archive(&every_kind()))?;
    let changes: [fn(&mut Vec<Entry>); 9] = [
        |entries| entries[1].content = b"Content".to_vec(),
        |entries| entries[1].mode = 0o755,
        |entries| entries[1].uid = 1001,
        |entries| entries[1].mtime_nanoseconds += 1,
        |entries| {
            entries[2] =
                Entry::file("a/link", "content").mode(0o4755).owner(1000, 4_000_000).mtime(1_600_000_000, 123_456_789)
        },
        |entries| entries[4].device = (1, 5),
        |entries| entries[7].xattrs.clear(),
        |entries| drop(entries.remove(9)),
        |entries| drop(entries.remove(11)),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut entries = every_kind();
        change(&mut entries);
        let other = tree::of_layer(&scratch, &archive(&entries))?;
        assert!(!tree::differences(&base, &other).is_empty(), "change {number} was not seen");
    }
    assert_eq!(tree::differences(&base, &base), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_pushed_image_comes_back_from_the_registry_bit_for_bit() -> Result<()> {
    let scratch = Scratch::new("registry")?;
    let registry = Registry::start(&scratch)?;
    let tar = archive(&every_kind());
    let layers = vec![
        Layer::of(&[Entry::file("one", "1")])?,
        Layer::from_tar(tar.clone(), Compression::GzipTwoMembers)?,
        Layer::from_tar(tar[..1024].to_vec(), Compression::Zstd)?,
    ];
    let image = Image::new(layers, &["true"]);
    image.push(&scratch, &registry.reference("some/image:v1"))?;
    let url = format!("http://{}/v2/some/image", registry.address());
    let manifest =
        succeed("curl", &["-sf", "-H", &format!("Accept: {}", image.manifest_type), &format!("{url}/manifests/v1")])?;
    assert_eq!(manifest.stdout_bytes, image.manifest);
    for (digest, bytes) in image.blobs() {
        assert_eq!(succeed("curl", &["-sf", &format!("{url}/blobs/{digest}")])?.stdout_bytes, bytes);
    }
    Ok(())
}

#[test]
fn the_busybox_image_is_one_that_skopeo_accepts_as_a_docker_archive() -> Result<()> {
    let scratch = Scratch::new("archive-in")?;
    let image = busybox()?;
    fs::write(scratch.join("image.tar"), image.docker_archive("busybox:latest"))?;
    let source = format!("docker-archive:{}", scratch.join("image.tar").display());
    let found = succeed("skopeo", &["inspect", "--config", &source])?.stdout();
    let config: serde_json::Value = serde_json::from_str(&found)?;
    assert_eq!(config["rootfs"]["diff_ids"][0], image.layers[0].diff_id());
    Ok(())
}

#[test]
fn the_stub_serves_whole_blobs_and_ranges_cuts_where_told_and_holds_until_released() -> Result<()> {
    let stub = Stub::start()?;
    let image = Image::new(vec![Layer::from_tar(vec![7; 200_000], Compression::None)?], &["true"]);
    stub.add("x", "v1", &image);
    let digest = image.layers[0].digest();
    let url = format!("http://{}/v2/x/blobs/{digest}", stub.address());
    assert_eq!(succeed("curl", &["-sf", &url])?.stdout_bytes, image.layers[0].blob);
    assert_eq!(succeed("curl", &["-sf", "-r", "199990-", &url])?.stdout_bytes.len(), 10);
    assert_eq!((stub.fetches_of(&digest), stub.blob_bytes_sent()), (2, 200_010));

    stub.hold(&digest, 100_000);
    let fetched = std::thread::scope(|scope| {
        let fetch = scope.spawn(|| succeed("curl", &["-sf", &url]));
        assert!(stub.wait_held(Duration::from_secs(10)), "nobody reached the held place");
        assert_eq!(stub.blob_bytes_sent(), 300_010);
        stub.release();
        fetch.join().expect("curl")
    })?;
    assert_eq!(fetched.stdout_bytes.len(), 200_000);

    stub.hook(|request| request.path.contains("/blobs/").then(|| Reply::Cut { declared: 10, sent: b"12345".to_vec() }));
    assert!(succeed("curl", &["-sf", &url]).is_err(), "a cut answer counted as whole");
    Ok(())
}

#[test]
fn a_small_disk_counts_what_is_written_and_nothing_of_it_stays() -> Result<()> {
    needs_root!("a_small_disk_counts_what_is_written_and_nothing_of_it_stays");
    let scratch = Scratch::new("disk")?;
    let path = {
        let disk = SmallDisk::new(&scratch, "disk", 32 << 20)?;
        let (before, flushes) = disk.written()?;
        fs::write(disk.path().join("file"), vec![1; 4 << 20])?;
        fs::File::open(disk.path().join("file"))?.sync_all()?;
        let (after, flushes_after) = disk.written()?;
        assert!(after - before >= 4 << 20, "{} bytes seen of 4 MiB", after - before);
        assert!(flushes_after > flushes);
        assert!(disk_usage(disk.path())? >= 4 << 20);
        disk.path().to_owned()
    };
    assert!(mounts_below(&path).is_empty());
    let devices = succeed("losetup", &["-n", "-l", "-O", "BACK-FILE"])?.stdout();
    assert!(!devices.contains(&*scratch.path().to_string_lossy()), "a loop device stayed:\n{devices}");
    Ok(())
}
