//! The life of a device in one piece: an image from a registry, containers under limits, a crash of the daemon, a look at the store.
//! It needs nothing but the engine's binary as `docker`, busybox and Debian's registry, so it runs in virtual machines too (`vm.rs`):
//! there it is what shows cgroup v2 alone, another kernel and another architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::{run, wait_for};
use baleen_tests::daemon::{self, Daemon};
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::registry::Registry;
use baleen_tests::scratch::Scratch;
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(20);

/// A daemon that has pulled the busybox image from Debian's registry, as `busybox`.
fn daemon_with_busybox(scratch: &Scratch) -> Result<Daemon> {
    let registry = Registry::start(scratch)?;
    registry.upload(&busybox()?, "busybox", "latest")?;
    let daemon = Daemon::start(scratch)?;
    daemon.docker_ok(&["pull", "-q", &registry.reference("busybox:latest")])?;
    daemon.docker_ok(&["tag", &registry.reference("busybox:latest"), "busybox"])?;
    Ok(daemon)
}

/// Whether cgroup v2 alone is in charge.
fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The groups of one container, on the host.
fn groups_of(daemon: &Daemon, id: &str) -> Vec<PathBuf> {
    daemon.cgroups().into_iter().filter(|path| path.ends_with(id)).collect()
}

/// What `baleen fsck --deep` says of the store of a daemon that has been stopped.
fn fsck(daemon: &Daemon) -> Result<baleen_tests::command::Finished> {
    let mut command = std::process::Command::new(daemon::binary()?);
    command.args(["fsck", "--deep", "--data-root"]).arg(daemon.root());
    run(&mut command, None, Duration::from_secs(120))
}

#[test]
fn a_device_pulls_and_runs_under_limits_that_take_effect() -> Result<()> {
    needs_root!("a_device_pulls_and_runs_under_limits_that_take_effect");
    let scratch = Scratch::new("device-limits")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let run = |flags: &[&str], script: &str| {
        daemon.docker(&[&["run", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let version = if is_unified() { "2" } else { "1" };
    assert_eq!(daemon.docker_ok(&["info", "-f", "{{.CgroupVersion}}"])?, version);

    // Memory: the kernel kills, and everybody is told.
    let killed =
        run(&["--name", "hungry", "-m", "16m", "--memory-swap", "16m"], "exec dd if=/dev/zero of=/dev/null bs=64M")?;
    assert_eq!(killed.code, 137, "{}", killed.output());
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "hungry"])?, "true 137");
    let events =
        ["events", "--since", "1h", "--until", "-1s", "--filter", "container=hungry", "--format", "{{.Action}}"];
    let events = daemon.docker_ok(&events)?;
    assert!(events.lines().any(|line| line == "oom"), "{events}");
    // One that ends with the same code for a reason of its own is not told to have been killed.
    run(&["--name", "modest", "-m", "16m"], "exit 137")?;
    assert_eq!(
        daemon.docker_ok(&["inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "modest"])?,
        "false 137"
    );

    // Processors: a loop is held back. (The loop reads with the shell alone: a program more costs too much here.)
    let stat = if is_unified() { "/sys/fs/cgroup/cpu.stat" } else { "/sys/fs/cgroup/cpu/cpu.stat" };
    let script = format!(
        "held() {{ while read name count; do [ $name != nr_throttled ] || [ $count -lt 3 ] || return 0; done < {stat}; return 1; }}
         until held; do :; done; echo held"
    );
    assert_eq!(run(&["--rm", "--cpus", "0.3"], &script)?.ok()?.stdout(), "held\n");

    // Processes: the fork that is one too many fails, the others go on.
    let many = run(&["--rm", "--pids-limit", "8"], "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 300 & done; echo all")?;
    assert!(many.code != 0 && many.stderr.contains("fork"), "{}", many.output());

    // The container sees its own group as the root, and cannot raise its limits.
    let seen = run(
        &["--rm", "-m", "16m"],
        "cat /proc/self/cgroup; for f in memory.max memory/memory.limit_in_bytes; do
        [ ! -e /sys/fs/cgroup/$f ] || { cat /sys/fs/cgroup/$f; echo 99999999 > /sys/fs/cgroup/$f; }; done 2>&1; true",
    )?;
    let text = seen.ok()?.stdout();
    assert!(text.contains("16777216") && text.contains("Read-only file system"), "{text}");
    if is_unified() {
        assert_eq!(text.lines().next(), Some("0::/"), "{text}");
    }
    Ok(())
}

#[test]
fn a_device_keeps_its_containers_through_a_crash_of_the_daemon() -> Result<()> {
    needs_root!("a_device_keeps_its_containers_through_a_crash_of_the_daemon");
    let scratch = Scratch::new("device-crash")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    let flags = ["run", "-d", "--name", "box", "--network", "none", "-m", "32m", "busybox", "sh", "-c", script];
    let id = daemon.docker_ok(&flags)?;
    let lines = |daemon: &Daemon| -> Option<usize> { Some(daemon.docker_ok(&["logs", "box"]).ok()?.lines().count()) };
    let more = |daemon: &Daemon| -> Result<()> {
        let before = lines(daemon).context("no log")?;
        wait_for("more lines", WAIT, || lines(daemon).filter(|&count| count > before + 2)).map(drop)
    };
    more(&daemon)?;

    // Exec, and the same with a limit that was changed meanwhile.
    assert_eq!(daemon.docker_ok(&["exec", "box", "sh", "-c", "echo $((6 * 7))"])?, "42");
    daemon.docker_ok(&["update", "-m", "48m", "--memory-swap", "48m", "box"])?;
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true";
    assert_eq!(daemon.docker_ok(&["exec", "box", "sh", "-c", limit])?, "50331648");

    // A crash with the container paused: it is still paused for the next daemon, and goes on when it is told to.
    daemon.docker_ok(&["pause", "box"])?;
    daemon.kill();
    let groups = groups_of(&daemon, &id);
    let frozen = |file: &str, word: &str| {
        groups.iter().any(|group| fs::read_to_string(group.join(file)).is_ok_and(|text| text.contains(word)))
    };
    assert!(frozen("cgroup.events", "frozen 1") || frozen("freezer.state", "FROZEN"), "{groups:?}");
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Status}}", "box"])?, "paused");
    daemon.docker_ok(&["unpause", "box"])?;
    more(&daemon)?;

    // A crash while it runs: the same process, every line once.
    let pid = daemon.docker_ok(&["inspect", "-f", "{{.State.Pid}}", "box"])?;
    daemon.kill();
    daemon.run()?;
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "box"];
    assert_eq!(daemon.docker_ok(&state)?, format!("running {pid}"));
    more(&daemon)?;
    daemon.docker_ok(&["kill", "box"])?;
    assert_eq!(daemon.docker_ok(&["wait", "box"])?, "137");
    let log = daemon.docker_ok(&["logs", "box"])?;
    let expected: Vec<String> = (1..=log.lines().count()).map(|number| number.to_string()).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected, "a line was lost or doubled");
    let left = groups_of(&daemon, &id);
    assert!(left.is_empty(), "the groups of an ended container are left: {left:?}");

    let details: Value = daemon.api("GET", "/containers/box/json", None, 200)?;
    assert_eq!(details["State"]["OOMKilled"], Value::Bool(false));
    daemon.docker_ok(&["rm", "box"])?;
    daemon.stop()?;
    let checked = fsck(&daemon)?;
    assert_eq!(checked.code, 0, "{}", checked.output());
    Ok(())
}

#[test]
fn a_device_stores_what_it_pulled_through_a_crash_and_its_check_finds_nothing() -> Result<()> {
    needs_root!("a_device_stores_what_it_pulled_through_a_crash_and_its_check_finds_nothing");
    let scratch = Scratch::new("device-store")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    let id = daemon.docker_ok(&["inspect", "-f", "{{.Id}}", "busybox"])?;
    daemon.kill();
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.Id}}", "busybox"])?, id);
    daemon.docker_ok(&["create", "--name", "box", "--network", "none", "busybox"])?;
    let tar = daemon.docker(&["export", "box"])?.ok()?.stdout_bytes;
    assert!(tar.len() > 500_000, "an export of {} bytes", tar.len());
    // Where the kernel cannot run containers the refusal names what it lacks, and nothing but the start is refused.
    let started = daemon.docker(&["start", "-a", "box"])?;
    if kernel_version() >= (5, 12) {
        assert_eq!(started.code, 0, "{}", started.output());
    } else {
        assert!(started.code != 0 && started.output().contains("Linux 5.12"), "{}", started.output());
        assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Running}}", "box"])?, "false");
    }
    daemon.stop()?;
    let checked = fsck(&daemon)?;
    assert_eq!(checked.code, 0, "{}", checked.output());
    // The check does look: a byte of the program changed is found, and named by the exit code.
    let program = find(&daemon.root().join("."), "busybox").context("the program in the store")?;
    let mut bytes = fs::read(&program)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&program, bytes)?;
    let checked = fsck(&daemon)?;
    assert_ne!(checked.code, 0, "{}", checked.output());
    Ok(())
}

/// Major and minor version of the kernel.
fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The file of that name below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name() == name {
                return Some(entry.path());
            }
        }
    }
    None
}
