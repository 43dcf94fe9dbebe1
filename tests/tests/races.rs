//! Someone who can change a layer's folder while it is being filled: nothing may be written outside it all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use baleen_tests::archive::Entry;
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Compression, Image, Layer};
use baleen_tests::needs_root;
use baleen_tests::scratch::Scratch;
use baleen_tests::stub::Stub;
use baleen_tests::tree;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Entries of the layer that is pulled, each of which looks its folder up.
const ENTRIES: usize = 1000;

/// The folder below `folder` that holds `name`, wherever it is.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        if entry.file_name() == name {
            return Some(folder.to_owned());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&entry.path(), name)
        {
            return Some(found);
        }
    }
    None
}

#[test]
fn a_folder_that_is_swapped_with_a_link_while_a_layer_is_unpacked_leads_nobody_outside() -> Result<()> {
    needs_root!("a_folder_that_is_swapped_with_a_link_while_a_layer_is_unpacked_leads_nobody_outside");
    let rounds_wanted = if std::env::var_os("BALEEN_SOAK").is_some() { 10_000 } else { 500 };
    let scratch = Scratch::new("race")?;
    let canary = Scratch::new("canary")?;
    let outside = canary.join("c");
    for number in 0..50 {
        fs::create_dir_all(outside.join(format!("s{number}")))?;
    }
    fs::write(outside.join("victim"), "untouched")?;
    let before = tree::read(canary.path())?;

    let mut head = vec![Entry::symlink("swapped-link", &outside.to_string_lossy()), Entry::folder("dir")];
    for number in 0..50 {
        head.push(Entry::folder(&format!("dir/s{number}")));
    }
    // The engine takes its input in large pieces: this fills the first ones.
    head.push(Entry::file("filling", vec![b'x'; 2 << 20]));
    let mut entries = head.clone();
    // Each entry lies in another folder than the one before, so that every one of them is looked up anew.
    for number in 0..ENTRIES {
        let folder = format!("dir/s{}", number % 50);
        entries.push(match number % 4 {
            0 => Entry::file(&format!("{folder}/planted{number}"), "x"),
            1 => Entry::symlink(&format!("{folder}/planted{number}"), "y"),
            2 => Entry::hardlink(
                &format!("{folder}/planted{number}"),
                &format!("dir/s{}/planted{}", (number - 2) % 50, number - 2),
            ),
            _ => Entry::folder(&folder).mode(0o700).owner(7, 7),
        });
    }
    let layer = Layer::from_tar(baleen_tests::archive::archive(&entries), Compression::None)?;
    let held_at = baleen_tests::archive::archive(&head).len() as u64;
    let image = Image::new(vec![layer.clone()], &["/x"]);
    let stub = Stub::start()?;
    stub.add("app", "v1", &image);
    let daemon = Daemon::start(&scratch)?;
    let swaps = AtomicU64::new(0);
    let (mut rounds, mut pulls) = (0, 0);
    while rounds < rounds_wanted {
        pulls += 1;
        stub.hold(&layer.digest(), held_at);
        let mut client = daemon.client(&["pull", "-q", &stub.reference("app:v1")]);
        let client = client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        assert!(stub.wait_held(Duration::from_secs(30)), "the layer never came:\n{}", daemon.log());
        let folder = wait_for("the layer's first entries", Duration::from_secs(30), || {
            find(&daemon.root().join("partial"), "swapped-link").filter(|folder| folder.join("dir").is_dir())
        })?;
        let stop = AtomicBool::new(false);
        let finished = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (dir, link) = (folder.join("dir"), folder.join("swapped-link"));
                while !stop.load(Ordering::Relaxed)
                    && renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE).is_ok()
                {
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
            });
            stub.release();
            let finished = client.wait_with_output();
            stop.store(true, Ordering::Relaxed);
            finished
        })?;
        let differences = tree::differences(&tree::read(canary.path())?, &before);
        assert!(differences.is_empty(), "pull {pulls} changed what lies outside: {differences:?}");
        // Every entry before the first that met the link was looked up while the two changed places.
        let said = String::from_utf8_lossy(&finished.stderr).into_owned();
        let met = said.rsplit("planted").next().and_then(|rest| rest.split('"').next()?.parse().ok());
        rounds += if finished.status.success() { ENTRIES } else { met.unwrap_or(1) };
        if finished.status.success() {
            daemon.docker_ok(&["rmi", &stub.reference("app:v1")])?;
        }
        daemon.docker_ok(&["system", "prune", "-af"])?;
        if pulls <= 3 {
            println!("{}", said.trim());
        }
        assert!(pulls < 2000, "only {rounds} rounds in {pulls} pulls");
    }
    println!(
        "{rounds} entries raced with {} swaps in {pulls} pulls; nothing outside changed",
        swaps.load(Ordering::Relaxed)
    );
    Ok(())
}
