//! Images through the unmodified `docker` client: pull, list, inspect, tag, remove, load, prune.

use anyhow::{Context as _, Result};
use baleen_tests::archive::Entry;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Image, Layer, busybox};
use baleen_tests::needs_root;
use baleen_tests::registry::Registry;
use baleen_tests::scratch::{Scratch, disk_usage};
use baleen_tests::stub::Stub;
use serde_json::{Value, json};

fn small_image(text: &str) -> Result<Image> {
    Ok(Image::new(vec![Layer::of(&[Entry::folder("d"), Entry::file("d/text", text)])?], &["/d/text"]))
}

#[test]
fn docker_pulls_busybox_from_a_real_registry_and_tells_what_it_pulled() -> Result<()> {
    needs_root!("docker_pulls_busybox_from_a_real_registry_and_tells_what_it_pulled");
    let scratch = Scratch::new("pull")?;
    let registry = Registry::start(&scratch)?;
    let image = busybox()?;
    let reference = registry.reference("library/busybox:1.35");
    image.push(&scratch, &reference)?;
    let daemon = Daemon::start(&scratch)?;

    let output = daemon.docker_ok(&["pull", &reference])?;
    assert!(output.contains("1.35: Pulling from library/busybox"), "{output}");
    assert!(output.contains(&format!("{}: Pull complete", &image.layers[0].digest()[7..19])), "{output}");
    assert!(output.contains(&format!("Digest: {}", image.digest())), "{output}");
    assert!(output.contains(&format!("Status: Downloaded newer image for {reference}")), "{output}");
    let again = daemon.docker_ok(&["pull", &reference])?;
    assert!(again.contains(&format!("Status: Image is up to date for {reference}")), "{again}");

    let listed = daemon.docker_ok(&["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])?;
    assert_eq!(listed, format!("{reference} {}", image.id()));
    let inspected: Value = serde_json::from_str(&daemon.docker_ok(&["image", "inspect", &reference])?)?;
    let found = &inspected[0];
    assert_eq!(found["Id"], image.id());
    assert_eq!(found["RepoTags"], json!([reference]));
    let repository = reference.rsplit_once(':').context("no tag")?.0;
    assert_eq!(found["RepoDigests"], json!([format!("{repository}@{}", image.digest())]));
    assert_eq!(found["RootFS"], json!({ "Type": "layers", "Layers": [image.layers[0].diff_id()] }));
    assert_eq!(found["Config"]["Cmd"], json!(["sh"]));
    assert_eq!((&found["Os"], &found["Architecture"]), (&json!("linux"), &json!("amd64")));
    assert_eq!(found["GraphDriver"]["Name"], "overlay2");
    Ok(())
}

#[test]
fn an_image_can_be_pulled_by_its_digest_alone() -> Result<()> {
    needs_root!("an_image_can_be_pulled_by_its_digest_alone");
    let scratch = Scratch::new("digest")?;
    let registry = Registry::start(&scratch)?;
    let image = small_image("by digest")?;
    image.push(&scratch, &registry.reference("a/b:v1"))?;
    let daemon = Daemon::start(&scratch)?;
    let reference = registry.reference(&format!("a/b@{}", image.digest()));
    daemon.docker_ok(&["pull", &reference])?;
    assert_eq!(daemon.docker_ok(&["image", "inspect", "--format", "{{.Id}}", &reference])?, image.id());
    Ok(())
}

#[test]
fn a_tag_that_moved_leaves_the_old_image_without_a_name_until_it_is_pruned() -> Result<()> {
    needs_root!("a_tag_that_moved_leaves_the_old_image_without_a_name_until_it_is_pruned");
    let scratch = Scratch::new("moved")?;
    let stub = Stub::start()?;
    let (old, new) = (small_image("old")?, small_image("new")?);
    let daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("app:v1");
    stub.add("app", "v1", &old);
    daemon.docker_ok(&["pull", "-q", &reference])?;
    stub.add("app", "v1", &new);
    daemon.docker_ok(&["pull", "-q", &reference])?;
    assert_eq!(daemon.docker_ok(&["image", "inspect", "--format", "{{.Id}}", &reference])?, new.id());
    let dangling = daemon.docker_ok(&["images", "-q", "--no-trunc", "--filter", "dangling=true"])?;
    assert_eq!(dangling, old.id());
    let pruned = daemon.docker_ok(&["image", "prune", "-f"])?;
    assert!(pruned.contains(&old.id()), "{pruned}");
    assert_eq!(daemon.docker_ok(&["images", "-aq", "--no-trunc"])?, new.id());
    Ok(())
}

#[test]
fn tags_are_names_and_the_image_goes_with_the_last_of_them() -> Result<()> {
    needs_root!("tags_are_names_and_the_image_goes_with_the_last_of_them");
    let scratch = Scratch::new("tags")?;
    let stub = Stub::start()?;
    let image = small_image("tagged")?;
    stub.add("app", "v1", &image);
    let daemon = Daemon::start(&scratch)?;
    let reference = stub.reference("app:v1");
    daemon.docker_ok(&["pull", "-q", &reference])?;
    daemon.docker_ok(&["tag", &reference, "mine:latest"])?;
    let listed = daemon.docker_ok(&["images", "-q", "--no-trunc", "mine"])?;
    assert_eq!(listed, image.id());
    let removed = daemon.docker_ok(&["rmi", &reference])?;
    assert!(removed.contains(&format!("Untagged: {reference}")) && !removed.contains("Deleted:"), "{removed}");
    let removed = daemon.docker_ok(&["rmi", "mine"])?;
    assert!(removed.contains("Untagged: mine:latest"), "{removed}");
    assert!(removed.contains(&format!("Deleted: {}", image.id())), "{removed}");
    assert_eq!(daemon.docker_ok(&["images", "-aq"])?, "");
    let missing = daemon.docker(&["rmi", "mine"])?;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("No such image: mine"), "{}", missing.stderr);
    Ok(())
}

#[test]
fn two_images_share_the_layers_that_they_have_in_common() -> Result<()> {
    needs_root!("two_images_share_the_layers_that_they_have_in_common");
    let scratch = Scratch::new("shared")?;
    let stub = Stub::start()?;
    let base = Layer::of(&[Entry::file("base", vec![7; 100_000])])?;
    let first = Image::new(vec![base.clone(), Layer::of(&[Entry::file("first", "1")])?], &["/first"]);
    let second = Image::new(vec![base.clone(), Layer::of(&[Entry::file("second", "2")])?], &["/second"]);
    stub.add("first", "v1", &first);
    stub.add("second", "v1", &second);
    let daemon = Daemon::start(&scratch)?;
    daemon.docker_ok(&["pull", &stub.reference("first:v1")])?;
    let output = daemon.docker_ok(&["pull", &stub.reference("second:v1")])?;
    assert!(output.contains(&format!("{}: Already exists", &base.digest()[7..19])), "{output}");
    assert_eq!(stub.fetches_of(&base.digest()), 1);
    // The shared layer stays as long as one image has it.
    daemon.docker_ok(&["rmi", &stub.reference("first:v1")])?;
    daemon.docker_ok(&["create", "--name", "box", "--network", "none", &stub.reference("second:v1")])?;
    let exported = daemon.docker(&["export", "box"])?.ok()?;
    let names = baleen_tests::command::run(
        std::process::Command::new("tar").arg("-t"),
        Some(&exported.stdout_bytes),
        std::time::Duration::from_secs(20),
    )?
    .ok()?
    .stdout();
    assert!(names.lines().any(|name| name == "base") && names.lines().any(|name| name == "second"), "{names}");
    Ok(())
}

#[test]
fn docker_loads_archives_of_both_forms_and_tells_what_it_loaded() -> Result<()> {
    needs_root!("docker_loads_archives_of_both_forms_and_tells_what_it_loaded");
    let scratch = Scratch::new("load")?;
    let image = small_image("loaded")?;
    let daemon = Daemon::start(&scratch)?;
    let output = daemon.docker_with(&["load"], Some(&image.docker_archive("loaded:v1")))?.ok()?.stdout();
    assert!(output.contains("Loaded image: loaded:v1"), "{output}");
    assert_eq!(daemon.docker_ok(&["image", "inspect", "--format", "{{.Id}}", "loaded:v1"])?, image.id());
    daemon.docker_ok(&["rmi", "loaded:v1"])?;

    let layout = scratch.join("layout");
    image.write_layout(&layout, "v2")?;
    let index = layout.join("index.json");
    let text = std::fs::read_to_string(&index)?;
    // What `docker save` writes beside the short name: the full one.
    std::fs::write(
        &index,
        text.replace(
            "\"org.opencontainers.image.ref.name\":\"v2\"",
            "\"io.containerd.image.name\":\"docker.io/library/loaded:v2\",\"org.opencontainers.image.ref.name\":\"v2\"",
        ),
    )?;
    let layout_text = layout.to_string_lossy().into_owned();
    let tar = baleen_tests::command::succeed("tar", &["-c", "-C", &layout_text, "."])?.stdout_bytes;
    let output = daemon.docker_with(&["load"], Some(&tar))?.ok()?.stdout();
    assert!(output.contains("Loaded image: loaded:v2"), "{output}");
    assert_eq!(daemon.docker_ok(&["image", "inspect", "--format", "{{.Id}}", "loaded:v2"])?, image.id());
    Ok(())
}

#[test]
fn what_is_stored_survives_a_crash_and_what_is_removed_does_not_come_back() -> Result<()> {
    needs_root!("what_is_stored_survives_a_crash_and_what_is_removed_does_not_come_back");
    let scratch = Scratch::new("crash")?;
    let stub = Stub::start()?;
    let (kept, removed) = (small_image("kept")?, small_image("removed")?);
    stub.add("kept", "v1", &kept);
    stub.add("removed", "v1", &removed);
    let mut daemon = Daemon::start(&scratch)?;
    for name in ["kept:v1", "removed:v1"] {
        daemon.docker_ok(&["pull", "-q", &stub.reference(name)])?;
    }
    daemon.docker_ok(&["tag", &stub.reference("kept:v1"), "mine:v1"])?;
    daemon.docker_ok(&["create", "--name", "box", "--network", "none", "mine:v1"])?;
    daemon.docker_ok(&["rmi", &stub.reference("removed:v1")])?;
    daemon.kill();
    daemon.run()?;
    let listed = daemon.docker_ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    assert_eq!(names, [stub.reference("kept:v1").as_str(), "mine:v1"]);
    assert_eq!(daemon.docker_ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])?, "box Created");
    Ok(())
}

#[test]
fn after_everything_is_removed_the_root_is_as_large_as_an_empty_stores() -> Result<()> {
    needs_root!("after_everything_is_removed_the_root_is_as_large_as_an_empty_stores");
    let scratch = Scratch::new("empty")?;
    let stub = Stub::start()?;
    let files: Vec<Entry> = (0..500).map(|n| Entry::file(&format!("f{n}"), vec![n as u8; 9000])).collect();
    let image = Image::new(vec![Layer::of(&files)?, Layer::of(&[Entry::file("top", "t")])?], &["/top"]);
    stub.add("app", "v1", &image);
    let daemon = Daemon::start(&scratch)?;
    let empty = disk_usage(daemon.root())?;
    daemon.docker_ok(&["pull", "-q", &stub.reference("app:v1")])?;
    daemon.docker_ok(&["create", "--name", "box", "--network", "none", &stub.reference("app:v1")])?;
    let full = disk_usage(daemon.root())?;
    assert!(full > empty + 500 * 9000, "the image takes no room: {empty} -> {full}");
    daemon.docker_ok(&["rm", "box"])?;
    daemon.docker_ok(&["system", "prune", "-af"])?;
    let after = disk_usage(daemon.root())?;
    println!("bytes of the root: empty {empty}, with the image {full}, pruned {after}");
    assert!(after <= empty + 65_536, "{after} bytes are left of an empty store's {empty}");
    Ok(())
}
