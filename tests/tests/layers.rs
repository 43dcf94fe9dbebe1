//! What a pull leaves on the disk, file by file, beside what GNU tar makes of the same layers.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use baleen_tests::archive::{Entry, archive, file_capability};
use baleen_tests::command::succeed;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Compression, Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::random::Random;
use baleen_tests::scratch::Scratch;
use baleen_tests::store::assert_image_is_whole;
use baleen_tests::stub::Stub;

/// A lower layer and one over it that hides, replaces and adds, of every kind of entry.
fn layers_of_every_kind() -> Vec<Vec<Entry>> {
    let long = "long-component-".repeat(12);
    let lower = vec![
        Entry::folder("etc").mtime(1_500_000_000, 0),
        Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Entry::file("etc/empty", ""),
        Entry::file("etc/block", vec![b'x'; 4096]),
        Entry::file("etc/odd", vec![b'y'; 4097]).mtime(1_600_000_000, 1),
        Entry::folder("bin").mode(0o755),
        Entry::file("bin/setuid", "program").mode(0o4755),
        Entry::file("bin/capable", "program").mode(0o755).xattr("security.capability", file_capability(1 << 10)),
        Entry::file("bin/noted", "text").xattr("user.note", "value").xattr("user.binary", vec![0, 1, 255]),
        Entry::hardlink("bin/other-name", "bin/setuid").mode(0o4755),
        Entry::hardlink("absolute-link", "/bin/noted"),
        Entry::symlink("lib", "usr/lib"),
        Entry::symlink("dangling", "/no/such/place").owner(7, 8),
        Entry::folder("tmp").mode(0o1777),
        Entry::folder("home/user").mode(0o700).owner(1000, 1000).mtime(1_234_567_890, 987_654_321),
        Entry::file("home/user/large-owner", "x").owner(3_000_000, 4_000_000_000),
        Entry::file(&format!("home/user/{long}/{long}"), "a long name"),
        Entry::symlink("home/user/long-target", &format!("/{long}/{long}")),
        Entry::device("dev/null", 1, 3).mode(0o666),
        Entry::pipe("dev/pipe"),
        Entry::folder("replaced"),
        Entry::file("replaced/below", "hidden by the next layer"),
        Entry::folder("emptied"),
        Entry::file("emptied/a", "1"),
        Entry::file("emptied/b", "2"),
        Entry::file("twice", "first"),
        Entry::file("twice", "second, which stays").mode(0o600),
        Entry::file("name with spaces, ünïcode and a\ttab", "x"),
    ];
    let upper = vec![
        Entry::whiteout("etc/passwd"),
        Entry::file("replaced", "a file in place of a folder"),
        Entry::folder("emptied").mtime(1_650_000_000, 5),
        Entry::opaque("emptied"),
        Entry::file("emptied/c", "3"),
        Entry::folder("tmp").mode(0o1777).mtime(1_700_000_000, 999_999_999),
        Entry::file("tmp/new", "new"),
        Entry::whiteout("dangling"),
        Entry::file("deep/er/than/any/folder/named", "implied folders"),
    ];
    vec![lower, upper]
}

#[test]
fn every_kind_of_entry_arrives_as_tar_would_make_it_in_every_compression() -> Result<()> {
    needs_root!("every_kind_of_entry_arrives_as_tar_would_make_it_in_every_compression");
    let scratch = Scratch::new("kinds")?;
    let stub = Stub::start()?;
    let daemon = Daemon::start(&scratch)?;
    for compression in [Compression::None, Compression::Gzip, Compression::GzipTwoMembers, Compression::Zstd] {
        let layers = layers_of_every_kind()
            .into_iter()
            .map(|entries| Layer::from_tar(archive(&entries), compression))
            .collect::<Result<Vec<_>>>()?;
        let image = Image::new(layers, &["/bin/setuid"]);
        let name = format!("{compression:?}").to_lowercase();
        stub.add(&name, "v1", &image);
        let reference = stub.reference(&format!("{name}:v1"));
        daemon.docker_ok(&["pull", "-q", &reference])?;
        assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
        // The layers are the same whatever the compression: each must be unpacked anew to be tested anew.
        daemon.docker_ok(&["rmi", &reference])?;
        daemon.docker_ok(&["system", "prune", "-af"])?;
    }
    Ok(())
}

#[test]
fn docker_media_types_are_pulled_as_oci_ones_are() -> Result<()> {
    needs_root!("docker_media_types_are_pulled_as_oci_ones_are");
    let scratch = Scratch::new("docker-types")?;
    let stub = Stub::start()?;
    let layers = layers_of_every_kind().iter().map(|entries| Layer::of(entries)).collect::<Result<Vec<_>>>()?;
    let oci = Image::new(layers.clone(), &["/bin/setuid"]);
    let image = Image::from_documents(layers, oci.config, "application/vnd.docker.distribution.manifest.v2+json");
    stub.add("app", "v1", &image);
    let daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("app:v1");
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert_image_is_whole(&daemon, &scratch, &reference, &image)
}

#[test]
fn the_image_for_this_machine_is_chosen_from_an_index() -> Result<()> {
    needs_root!("the_image_for_this_machine_is_chosen_from_an_index");
    let scratch = Scratch::new("index")?;
    let stub = Stub::start()?;
    let image = Image::new(vec![Layer::of(&[Entry::file("here", "x")])?], &["/here"]);
    let other = Image::new(vec![Layer::of(&[Entry::file("elsewhere", "x")])?], &["/elsewhere"]);
    stub.add("app", "only-by-digest", &image);
    for (media_type, tag) in [
        ("application/vnd.oci.image.index.v1+json", "oci"),
        ("application/vnd.docker.distribution.manifest.list.v2+json", "docker"),
    ] {
        let descriptor = |image: &Image, architecture: &str| {
            serde_json::json!({
                "mediaType": image.manifest_type, "digest": image.digest(), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture },
            })
        };
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type,
            "manifests": [descriptor(&other, "s390x"), descriptor(&image, "amd64")],
        });
        stub.add_manifest("app", tag, media_type, index.to_string().as_bytes());
    }
    let daemon = Daemon::start(&scratch)?;
    for tag in ["oci", "docker"] {
        let reference = stub.reference(&format!("app:{tag}"));
        daemon.docker_ok(&["pull", "-q", &reference])?;
        assert_eq!(daemon.docker_ok(&["image", "inspect", "-f", "{{.Id}}", &reference])?, image.id());
    }
    let refused = daemon.docker(&["pull", "--platform", "linux/riscv64", &stub.reference("app:oci")])?;
    assert_ne!(refused.code, 0, "{}", refused.output());
    Ok(())
}

#[test]
fn sparse_files_arrive_whole_and_take_no_more_room_than_their_data() -> Result<()> {
    needs_root!("sparse_files_arrive_whole_and_take_no_more_room_than_their_data");
    let scratch = Scratch::new("sparse")?;
    let stub = Stub::start()?;
    let daemon = Daemon::start(&scratch)?;
    let source = scratch.join("source");
    std::fs::create_dir(&source)?;
    let file = std::fs::File::create(source.join("holes"))?;
    file.set_len(64 << 20)?;
    for offset in [1 << 20, 30 << 20, (64 << 20) - 5] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data!", offset)?;
    }
    for format in ["gnu", "pax"] {
        let tar = scratch.join(format!("{format}.tar"));
        let (tar_text, source_text) = (tar.to_string_lossy().into_owned(), source.to_string_lossy().into_owned());
        succeed("tar", &["-S", &format!("--format={format}"), "-c", "-f", &tar_text, "-C", &source_text, "holes"])?;
        let image = Image::new(vec![Layer::from_tar(std::fs::read(&tar)?, Compression::Gzip)?], &["/holes"]);
        stub.add(format, "v1", &image);
        let reference = stub.reference(&format!("{format}:v1"));
        daemon.docker_ok(&["pull", "-q", &reference])?;
        assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
        let layer = baleen_tests::store::layer_folders(&daemon, &reference)?.remove(0);
        let metadata = std::fs::metadata(layer.join("holes"))?;
        let room_bytes = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(room_bytes <= 1 << 20, "{format}: {room_bytes} bytes on the disk for 15 bytes of data");
    }
    Ok(())
}

#[test]
fn a_stack_of_125_layers_runs_and_shows_the_topmost_of_every_name() -> Result<()> {
    needs_root!("a_stack_of_125_layers_runs_and_shows_the_topmost_of_every_name");
    let scratch = Scratch::new("stack")?;
    let stub = Stub::start()?;
    let mut layers = vec![Layer::of(&baleen_tests::image::busybox_entries()?)?];
    for number in 1..125 {
        layers.push(Layer::of(&[
            Entry::file(&format!("own-{number}"), "x"),
            Entry::file("common", format!("{number}\n")),
        ])?);
    }
    stub.add("deep", "v1", &Image::new(layers, &["sh"]));
    let daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("deep:v1");
    daemon.docker_ok(&["pull", "-q", &reference])?;
    let output = daemon.docker_ok(&[
        "run",
        "--rm",
        "--network",
        "none",
        &reference,
        "sh",
        "-c",
        "cat /common; ls / | grep -c own-",
    ])?;
    assert_eq!(output, "124\n124");
    Ok(())
}

#[test]
fn a_layer_of_random_archives_by_real_tools_arrives_as_tar_would_make_it() -> Result<()> {
    needs_root!("a_layer_of_random_archives_by_real_tools_arrives_as_tar_would_make_it");
    let scratch = Scratch::new("tools")?;
    let stub = Stub::start()?;
    let daemon = Daemon::start(&scratch)?;
    let mut random = Random::for_test("a_layer_of_random_archives_by_real_tools");
    let source = scratch.join("source");
    make_random_tree(&mut random, &source)?;
    let source_text = source.to_string_lossy().into_owned();
    for format in ["gnu", "oldgnu", "pax", "ustar", "posix"] {
        let extra: &[&str] = if matches!(format, "pax" | "posix") { &["--xattrs"] } else { &[] };
        let mut arguments = extra.to_vec();
        let option = format!("--format={format}");
        arguments.extend(["--numeric-owner", &option, "-c", "-C", &source_text, "."]);
        let tar = succeed("tar", &arguments)?.stdout_bytes;
        let image = Image::new(vec![Layer::from_tar(tar, Compression::Gzip)?], &["/x"]);
        stub.add(format, "v1", &image);
        let reference = stub.reference(&format!("{format}:v1"));
        daemon.docker_ok(&["pull", "-q", &reference])?;
        assert_image_is_whole(&daemon, &scratch, &reference, &image)?;
    }
    Ok(())
}

/// A folder of a few hundred files of sizes around the limits that matter, with links, modes, owners and times.
fn make_random_tree(random: &mut Random, root: &Path) -> Result<()> {
    let mut folders = vec![PathBuf::new()];
    std::fs::create_dir(root)?;
    for number in 0..300 {
        let parent = folders[random.below(folders.len() as u64) as usize].clone();
        let path = root.join(&parent).join(format!("n{number}"));
        match random.below(10) {
            0 | 1 if folders.len() < 40 => {
                std::fs::create_dir(&path)?;
                folders.push(parent.join(format!("n{number}")));
            }
            2 => std::os::unix::fs::symlink(format!("../n{}", random.below(300)), &path)?,
            3 => {
                let target = root.join(format!("linked{}", random.below(5)));
                if !target.exists() {
                    std::fs::write(&target, random.bytes(5000))?;
                }
                std::fs::hard_link(&target, &path)?;
            }
            _ => {
                let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_536, 200_000];
                let size = sizes[random.below(sizes.len() as u64) as usize];
                std::fs::write(&path, random.bytes(size))?;
                let mode = [0o644, 0o600, 0o755, 0o2755, 0o4711, 0o444][random.below(6) as usize];
                std::os::unix::fs::lchown(&path, Some(random.below(5) as u32), Some(random.below(5) as u32))?;
                rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode)).context("chmod")?;
                let time =
                    std::time::UNIX_EPOCH + std::time::Duration::from_nanos(random.below(2_000_000_000_000_000_000));
                std::fs::File::open(&path)?.set_modified(time)?;
            }
        }
    }
    Ok(())
}
