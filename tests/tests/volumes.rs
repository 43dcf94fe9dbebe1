//! Volumes, binds and tmpfs through the unmodified `docker` client: what is seen inside, what stays, what goes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Result;
use baleen_tests::archive::Entry;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Image, Layer, busybox_entries};
use baleen_tests::needs_root;
use baleen_tests::scratch::{Scratch, mounts_below};
use baleen_tests::stub::Stub;
use serde_json::json;

/// A daemon with busybox in two layers, the upper one with content at `/srv/data`, and a volume of its own at `/own`.
fn daemon_with_image(scratch: &Scratch) -> Result<Daemon> {
    let daemon = Daemon::start(scratch)?;
    let content = Layer::of(&[
        Entry::folder("srv"),
        Entry::folder("srv/data").mode(0o1777).owner(1000, 1000),
        Entry::file("srv/data/file", "from the image\n").mode(0o640).owner(1000, 1000),
        Entry::folder("srv/data/inner"),
        Entry::symlink("srv/data/inner/link", "/etc/passwd"),
        Entry::folder("own"),
        Entry::file("own/file", "own\n"),
        Entry::symlink("alias", "/srv"),
    ])?;
    let layers = vec![Layer::of(&busybox_entries()?)?, content];
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": { "/own": {} } });
    let stub = Stub::start()?;
    stub.add("data", "latest", &Image::with_config(layers, &config));
    daemon.docker_ok(&["pull", "-q", &stub.reference("data:latest")])?;
    daemon.docker_ok(&["tag", &stub.reference("data:latest"), "data"])?;
    Ok(daemon)
}

fn run(daemon: &Daemon, options: &[&str], script: &str) -> Result<String> {
    let command = [&["run", "--rm", "--network", "none"], options, &["data", "sh", "-c", script]].concat();
    daemon.docker_ok(&command)
}

fn now() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

fn folders(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("volumes"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[test]
fn a_named_volume_begins_with_the_images_files_and_outlives_containers_and_the_daemon() -> Result<()> {
    needs_root!("a_named_volume_begins_with_the_images_files_and_outlives_containers_and_the_daemon");
    let scratch = Scratch::new("volume")?;
    let mut daemon = daemon_with_image(&scratch)?;
    // Through a link of the image, as in a chroot.
    let first = run(
        &daemon,
        &["-v", "data:/alias/data"],
        "cat /srv/data/file; stat -c '%a %u %g' /srv/data /srv/data/file; readlink /srv/data/inner/link; echo mine > /srv/data/mine",
    )?;
    assert_eq!(first, "from the image\n1777 1000 1000\n640 1000 1000\n/etc/passwd");
    let data = daemon.root().join("volumes/data/_data");
    assert_eq!(fs::read_to_string(data.join("mine"))?, "mine\n");
    // What a user has emptied stays empty in the next container of another image path.
    fs::remove_file(data.join("file"))?;
    assert_eq!(run(&daemon, &["--mount", "type=volume,source=data,target=/srv/data"], "ls /srv/data")?, "inner\nmine");
    daemon.kill();
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?, "data");
    assert_eq!(
        run(&daemon, &["-v", "data:/x:ro"], "cat /x/mine; touch /x/no 2>&1 | grep -o 'Read-only file system'")?,
        "mine\nRead-only file system"
    );
    let shown = daemon.docker_ok(&[
        "volume",
        "inspect",
        "-f",
        "{{.Driver}} {{.Scope}} {{.Mountpoint}} {{json .Labels}} {{json .Options}}",
        "data",
    ])?;
    assert_eq!(shown, format!("local local {} null null", data.display()));
    assert_eq!(daemon.docker_ok(&["volume", "rm", "data"])?, "data");
    assert_eq!(folders(daemon.root())?, Vec::<String>::new());
    let missing = daemon.docker(&["volume", "inspect", "data"])?;
    assert!(missing.code == 1 && missing.stderr.to_lowercase().contains("no such volume"), "{}", missing.output());
    Ok(())
}

/// Whether the client is from before API 1.42, where a prune spares no volume and `-a` does not exist.
fn prunes_all_only(daemon: &Daemon) -> Result<bool> {
    Ok(!daemon.docker_ok(&["volume", "prune", "--help"])?.contains("--all"))
}

fn prune_all(daemon: &Daemon) -> Result<String> {
    let all: &[&str] = if prunes_all_only(daemon)? { &[] } else { &["-a"] };
    daemon.docker_ok(&[&["volume", "prune", "-f"], all].concat())
}

#[test]
fn volumes_are_made_listed_filtered_refused_and_pruned_as_docker_does() -> Result<()> {
    needs_root!("volumes_are_made_listed_filtered_refused_and_pruned_as_docker_does");
    let scratch = Scratch::new("volumes")?;
    let daemon = daemon_with_image(&scratch)?;
    assert_eq!(daemon.docker_ok(&["volume", "create", "--label", "a=b", "one"])?, "one");
    assert_eq!(daemon.docker_ok(&["volume", "create", "one"])?, "one");
    let anonymous = daemon.docker_ok(&["volume", "create"])?;
    assert_eq!(anonymous.len(), 64);
    for (arguments, words) in [
        (&["volume", "create", "../x"][..], "includes invalid characters for a local volume name"),
        (&["volume", "create", "-d", "nfs", "two"], "error looking up volume plugin nfs"),
        (&["volume", "create", "-o", "colour=red", "two"], "invalid option"),
    ] {
        let refused = daemon.docker(arguments)?;
        assert!(refused.code == 1 && refused.stderr.contains(words), "{arguments:?}: {}", refused.output());
    }
    let id = daemon.docker_ok(&["create", "--network", "none", "-v", "two:/two", "data"])?;
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q", "-f", "label=a=b"])?, "one");
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q", "-f", "name=^tw"])?, "two");
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q", "-f", "dangling=true"])?.lines().count(), 2);
    let refused = daemon.docker(&["volume", "rm", "two"])?;
    assert!(refused.stderr.contains(&format!("remove two: volume is in use - [{id}]")), "{}", refused.output());
    // The create left the volume of the image's own as well.
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?.lines().count(), 4);
    let pruned = if prunes_all_only(&daemon)? {
        daemon.api("POST", "/v1.43/volumes/prune", None, 200)?.to_string()
    } else {
        daemon.docker_ok(&["volume", "prune", "-f"])?
    };
    assert!(pruned.contains(&anonymous) && !pruned.contains("one\n"), "{pruned}");
    daemon.docker_ok(&["rm", "-v", &id])?;
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?, "one\ntwo");
    let pruned = prune_all(&daemon)?;
    assert!(pruned.contains("one") && pruned.contains("two"), "{pruned}");
    assert_eq!(folders(daemon.root())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_anonymous_volume_goes_with_the_container_that_brought_it_only_when_asked() -> Result<()> {
    needs_root!("an_anonymous_volume_goes_with_the_container_that_brought_it_only_when_asked");
    let scratch = Scratch::new("anonymous")?;
    let daemon = daemon_with_image(&scratch)?;
    assert_eq!(run(&daemon, &[], "cat /own/file")?, "own");
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?, "", "--rm left a volume");
    daemon.docker_ok(&[
        "run",
        "--name",
        "box",
        "--network",
        "none",
        "-v",
        "/more",
        "data",
        "sh",
        "-c",
        "echo x > /more/x",
    ])?;
    let mounts = daemon.docker_ok(&[
        "inspect",
        "-f",
        "{{range .Mounts}}{{.Type}} {{len .Name}} {{.Destination}} {{.Driver}} {{.RW}}\n{{end}}",
        "box",
    ])?;
    assert_eq!(mounts.trim_end(), "volume 64 /more local true\nvolume 64 /own local true");
    // Another container takes both along, and leaves them.
    let seen =
        run(&daemon, &["--volumes-from", "box:ro"], "cat /more/x /own/file; touch /more/y 2>/dev/null || echo ro")?;
    assert_eq!(seen, "x\nown\nro");
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?.lines().count(), 2);
    daemon.docker_ok(&["rm", "box"])?;
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?.lines().count(), 2, "a plain rm took a volume");
    daemon.docker_ok(&["run", "--name", "box", "--network", "none", "data", "true"])?;
    daemon.docker_ok(&["rm", "-v", "box"])?;
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q"])?.lines().count(), 2);
    // A create that fails leaves none.
    daemon.docker_ok(&["create", "--name", "taken", "--network", "none", "-v", "two:/own", "data"])?;
    let refused = daemon.docker(&["create", "--name", "taken", "--network", "none", "data"])?;
    assert!(refused.stderr.contains("already in use"), "{}", refused.output());
    assert_eq!(daemon.docker_ok(&["volume", "ls", "-q", "-f", "dangling=true"])?.lines().count(), 2);
    Ok(())
}

#[test]
fn binds_and_tmpfs_are_seen_as_asked_and_nothing_of_the_host_is_touched() -> Result<()> {
    needs_root!("binds_and_tmpfs_are_seen_as_asked_and_nothing_of_the_host_is_touched");
    let scratch = Scratch::new("binds")?;
    let daemon = daemon_with_image(&scratch)?;
    let host = scratch.join("host");
    fs::create_dir(&host)?;
    fs::write(host.join("file"), "host\n")?;
    let bind = format!("{}:/b", host.display());
    assert_eq!(run(&daemon, &["-v", &bind], "cat /b/file; echo x > /b/new")?, "host");
    assert_eq!(fs::metadata(host.join("new"))?.uid(), 0);
    let readonly = format!("type=bind,source={},target=/b/one,readonly", host.join("file").display());
    let seen = run(&daemon, &["--mount", &readonly], "cat /b/one; echo x > /b/one || true")?;
    assert_eq!(seen, "host", "a read-only file was written");
    // A volume that stands for a directory of the host.
    let device = format!("device={}", host.display());
    daemon.docker_ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "shown"])?;
    assert_eq!(run(&daemon, &["-v", "shown:/srv/data"], "cat /srv/data/file; ls /srv/data")?, "host\nfile\nnew");
    let pruned = prune_all(&daemon)?;
    assert!(!pruned.contains("shown"), "{pruned}");
    daemon.docker_ok(&["volume", "rm", "shown"])?;
    assert!(host.join("file").exists(), "the host's directory went with the volume");
    // A missing source is made by -v and refused by --mount.
    let missing = host.join("made/deep");
    run(&daemon, &["-v", &format!("{}:/b", missing.display())], "true")?;
    assert!(missing.is_dir());
    let absent = format!("type=bind,source={},target=/b", host.join("absent").display());
    let refused = daemon.docker(&["run", "--rm", "--network", "none", "--mount", &absent, "data", "true"])?;
    assert!(refused.stderr.contains("bind source path does not exist"), "{}", refused.output());
    let tmpfs = run(
        &daemon,
        &["--tmpfs", "/t:size=64k,mode=700", "--mount", "type=tmpfs,target=/u,tmpfs-size=65536"],
        "stat -c %a /t; grep -E ' /[tu] ' /proc/self/mountinfo | grep -c size=64k",
    )?;
    assert_eq!(tmpfs, "700\n2");
    // The image's link to a place of the host is followed inside the container only.
    let inside = Layer::of(&[Entry::symlink("out", "/../../../../../..")])?;
    let layers = vec![Layer::of(&busybox_entries()?)?, inside];
    let hostile = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": { "/out/etc": {}, "/../../home": {} } });
    let stub = Stub::start()?;
    stub.add("hostile", "latest", &Image::with_config(layers, &hostile));
    daemon.docker_ok(&["pull", "-q", &stub.reference("hostile:latest")])?;
    let mut command = vec!["run", "--rm", "--network", "none"];
    let reference = stub.reference("hostile:latest");
    command.extend([reference.as_str(), "sh", "-c", "cat /etc/group; ls /home | wc -l"]);
    let seen = daemon.docker_ok(&command)?;
    assert_eq!(seen, "root:x:0:\nuser:x:1000:\n0", "files of the host came into a volume");
    for (bind, words) in
        [("/:/", "destination can't be '/'"), ("/tmp:/proc/self", "/proc"), ("data:/x:rshared", "invalid mode")]
    {
        let refused = daemon.docker(&["create", "--network", "none", "-v", bind, "data"])?;
        assert!(refused.code != 0 && refused.stderr.contains(words), "{bind}: {}", refused.output());
    }
    let left: Vec<_> = mounts_below(daemon.root()).into_iter().collect();
    assert!(left.is_empty(), "mounts are left: {left:?}");
    Ok(())
}

#[test]
fn events_tell_of_a_volumes_life_in_dockers_order() -> Result<()> {
    needs_root!("events_tell_of_a_volumes_life_in_dockers_order");
    let scratch = Scratch::new("volume-events")?;
    let daemon = daemon_with_image(&scratch)?;
    let since = now()?;
    run(&daemon, &["-v", "seen:/own"], "true")?;
    daemon.docker_ok(&["volume", "rm", "seen"])?;
    let (since, until) = (since.to_string(), (now()? + 1).to_string());
    let filter = ["-f", "type=volume", "-f", "volume=seen", "--format", "{{.Action}}"];
    let events = daemon.docker_ok(&[&["events", "--since", &since, "--until", &until], &filter[..]].concat())?;
    assert_eq!(events, "create\nmount\nunmount\ndestroy");
    Ok(())
}
