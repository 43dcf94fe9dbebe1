//! Containers and the deaths of those who look after them: the daemon's, and the shims'.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::{run, wait_for};
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::network::{Network, in_network};
use baleen_tests::random::Random;
use baleen_tests::scratch::{Scratch, mounts_below};
use baleen_tests::stub::Stub;

/// A daemon that has the busybox image as `busybox`.
fn daemon_with_busybox(scratch: &Scratch) -> Result<Daemon> {
    let daemon = Daemon::start(scratch)?;
    let stub = Stub::start()?;
    stub.add("busybox", "latest", &busybox()?);
    daemon.docker_ok(&["pull", "-q", &stub.reference("busybox:latest")])?;
    daemon.docker_ok(&["tag", &stub.reference("busybox:latest"), "busybox"])?;
    Ok(daemon)
}

#[test]
fn two_hundred_thousand_lines_over_five_kills_of_the_daemon_are_all_logged_once_in_order() -> Result<()> {
    needs_root!("two_hundred_thousand_lines_over_five_kills_of_the_daemon_are_all_logged_once_in_order");
    const LINES: u64 = 200_000;
    const KILLS: u64 = 5;
    let scratch = Scratch::new("lines")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    // In pieces, so that the writing outlasts the kills.
    let script = format!(
        "i=1; while [ $i -le {LINES} ]; do seq $i $((i+3999)); i=$((i+4000)); sleep 0.05; done; echo end; sleep 1000"
    );
    let options =
        ["run", "-d", "--name", "box", "--network", "none", "--log-opt", "max-size=1m", "--log-opt", "max-file=100"];
    daemon.docker_ok(&[&options[..], &["busybox", "sh", "-c", &script]].concat())?;
    let random = &mut Random::for_test("two_hundred_thousand_lines");
    let mut last = 0;
    for kill in 1..=KILLS {
        let written = || -> Option<u64> { daemon.docker_ok(&["logs", "--tail", "1", "box"]).ok()?.trim().parse().ok() };
        let wanted = kill * LINES / (KILLS + 2);
        last = wait_for("more lines", Duration::from_secs(60), || written().filter(|&line| line >= wanted))?;
        // Somewhere inside the next pieces.
        std::thread::sleep(Duration::from_millis(u64::from(random.bytes(1)[0]) / 2));
        daemon.kill();
        std::thread::sleep(Duration::from_millis(u64::from(random.bytes(1)[0])));
        daemon.run()?;
    }
    assert!(last < LINES, "the writing was over before the last kill");
    wait_for("the last line", Duration::from_secs(60), || {
        daemon.docker_ok(&["logs", "--tail", "1", "box"]).ok().filter(|text| text.trim() == "end")
    })?;
    let log = daemon.docker(&["logs", "box"])?.ok()?.stdout();
    let mut lines = log.lines();
    for number in 1..=LINES {
        let line = lines.next().with_context(|| format!("the log ends before line {number}"))?;
        assert_eq!(line, number.to_string());
    }
    assert_eq!(lines.collect::<Vec<_>>(), ["end"]);
    daemon.docker_ok(&["rm", "-f", "box"])?;
    Ok(())
}

/// Host PIDs of the shims of this daemon's containers, by container.
fn shim_pids(daemon: &Daemon) -> Result<Vec<(String, String)>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(daemon.exec_root().join("containers"))?.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.path().join("state.json"))?)?;
        pids.push((id, state["shim_pid"].to_string()));
    }
    pids.sort();
    Ok(pids)
}

#[test]
fn twenty_containers_through_kills_of_daemon_and_shims_have_known_states_and_leave_nothing() -> Result<()> {
    needs_root!("twenty_containers_through_kills_of_daemon_and_shims_have_known_states_and_leave_nothing");
    const CONTAINERS: usize = 20;
    let scratch = Scratch::new("twenty")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    let mut ids = BTreeSet::new();
    for number in 0..CONTAINERS {
        let name = format!("box{number}");
        ids.insert(daemon.docker_ok(&[
            "run",
            "-d",
            "--name",
            &name,
            "--network",
            "none",
            "busybox",
            "sleep",
            "1000",
        ])?);
    }
    let pids = shim_pids(&daemon)?;
    assert_eq!(pids.len(), CONTAINERS);
    // Every other shim dies, some while the daemon lives and some while it does not.
    let (with_daemon, without) = pids.split_at(CONTAINERS / 2);
    let kill = |list: &[(String, String)]| -> Result<BTreeSet<String>> {
        let chosen: Vec<_> = list.iter().step_by(2).collect();
        for (_, pid) in &chosen {
            baleen_tests::command::succeed("kill", &["-9", pid])?;
        }
        Ok(chosen.into_iter().map(|(id, _)| id.clone()).collect())
    };
    let mut killed = kill(with_daemon)?;
    daemon.kill();
    killed.extend(kill(without)?);
    daemon.run()?;
    let state = |id: &str| daemon.docker_ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", id]);
    for id in &ids {
        let expected = if killed.contains(id) { "exited" } else { "running 0" };
        wait_for(&format!("{id} to be {expected}"), Duration::from_secs(20), || {
            state(id).ok().filter(|state| state.starts_with(expected))
        })?;
    }
    // Those that have lost their shim can run again.
    let again = killed.iter().next().context("none was killed")?;
    daemon.docker_ok(&["start", again])?;
    assert_eq!(daemon.docker_ok(&["exec", again, "echo", "again"])?, "again");
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    daemon.docker_ok(&[&["rm", "-f"], &all[..]].concat())?;
    assert_eq!(daemon.docker_ok(&["ps", "-aq"])?, "");
    assert_eq!(mounts_below(daemon.root()), Vec::<std::path::PathBuf>::new());
    let left = wait_for("the shims' end", Duration::from_secs(10), || {
        let alive = |pid: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "baleen-shim")
        };
        (!pids.iter().any(|(_, pid)| alive(pid))).then_some(())
    });
    left?;
    assert_eq!(std::fs::read_dir(daemon.exec_root().join("containers"))?.count(), 0);
    Ok(())
}

/// What a machine has that containers could leave behind, counted.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    mounts: usize,
    cgroups: usize,
    network_spaces: usize,
    links: usize,
    rules: usize,
    descriptors: usize,
    processes: usize,
    files: usize,
}

impl Left {
    fn count(daemon: &Daemon, network: &Network) -> Result<Self> {
        let pid = daemon.pid().context("no daemon")?;
        let entries = |path: String| std::fs::read_dir(path).map_or(0, Iterator::count);
        let inside = |program: &str, arguments: &[&str]| -> Result<usize> {
            let finished =
                run(in_network(Some(network.name()), program).args(arguments), None, Duration::from_secs(30))?;
            Ok(finished.ok()?.stdout().lines().count())
        };
        // Other mounts of the machine come and go.
        let folders = [daemon.root().display().to_string(), daemon.exec_root().display().to_string()];
        let is_ours = |line: &&str| {
            let place = line.split(' ').nth(4).unwrap_or_default();
            folders.iter().any(|folder| place.starts_with(folder))
        };
        // The namespaces that any process is in: one that is held by a descriptor or a mount alone is seen as such.
        let mut spaces = BTreeSet::new();
        let processes = daemon.processes();
        for pid in &processes {
            spaces.extend(std::fs::read_link(format!("/proc/{pid}/ns/net")).ok());
        }
        Ok(Self {
            mounts: std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?.lines().filter(is_ours).count(),
            cgroups: daemon.cgroups().len(),
            network_spaces: spaces.len(),
            links: inside("ip", &["-o", "link"])?,
            rules: inside("iptables-save", &[])?,
            descriptors: entries(format!("/proc/{pid}/fd")),
            processes: processes.len(),
            files: entries(daemon.exec_root().join("containers").display().to_string())
                + entries(daemon.exec_root().join("etc").display().to_string())
                + entries(daemon.exec_root().join("network").display().to_string())
                + entries(daemon.root().join("containers").display().to_string())
                + entries(daemon.root().join("volumes").display().to_string()),
        })
    }
}

#[test]
fn rounds_of_create_start_and_remove_leave_nothing_behind() -> Result<()> {
    needs_root!("rounds_of_create_start_and_remove_leave_nothing_behind");
    let rounds = if std::env::var_os("BALEEN_SOAK").is_some() { 1000 } else { 50 };
    let scratch = Scratch::new("rounds")?;
    let network = Network::new()?;
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&network).run()?;
    let archive = scratch.join("busybox.tar");
    std::fs::write(&archive, busybox()?.docker_archive("busybox:latest"))?;
    daemon.docker_ok(&["load", "-q", "-i", &archive.to_string_lossy()])?;
    let body = serde_json::json!({
        "Image": "busybox", "Cmd": ["sleep", "1000"], "Volumes": { "/data": {} },
        "ExposedPorts": { "80/tcp": {} },
        "HostConfig": { "PortBindings": { "80/tcp": [{ "HostPort": "" }] }, "Memory": 64 << 20, "Tmpfs": { "/scratch": "" } },
    });
    let round = || -> Result<()> {
        let made = daemon.api("POST", "/containers/create", Some(&body), 201)?;
        let id = made["Id"].as_str().context("no ID")?;
        daemon.api("POST", &format!("/containers/{id}/start"), None, 204)?;
        daemon.api("DELETE", &format!("/containers/{id}?force=1&v=1"), None, 204)?;
        Ok(())
    };
    // The first rounds make what stays: the bridge, its rules, the parent's group, threads that wait.
    for _ in 0..8 {
        round()?;
    }
    let settled = || -> Result<Left> {
        let mut last = Left::count(&daemon, &network)?;
        wait_for("counts that stay", Duration::from_secs(20), || {
            std::thread::sleep(Duration::from_millis(200));
            let now = Left::count(&daemon, &network).ok()?;
            let same = now == last;
            last = now;
            same.then_some(())
        })?;
        Ok(last)
    };
    let before = settled()?;
    for number in 0..rounds {
        round().with_context(|| format!("round {number}"))?;
    }
    // The trash is emptied in the background, and a shim ends a moment after its container.
    let mut after = settled()?;
    let same = wait_for("the counts from before", Duration::from_secs(30), || {
        after = settled().ok()?;
        (after == before).then_some(())
    });
    println!("{rounds} rounds; before and after: {before:?}");
    assert!(same.is_ok(), "before {before:?}\nafter  {after:?}");
    Ok(())
}
