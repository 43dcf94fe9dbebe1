//! What is changed of a container that exists, through the `docker` client: pause, names, limits, restart policies, and top.

use std::time::Duration;

use anyhow::Result;
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::http;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::scratch::Scratch;
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

/// Runs `command` in a detached container.
fn run(daemon: &Daemon, options: &[&str], command: &str) -> Result<String> {
    daemon.docker_ok(&[&["run", "-d", "--network", "none"], options, &["busybox", "sh", "-c", command]].concat())
}

fn state(daemon: &Daemon, container: &str, what: &str) -> String {
    daemon.docker_ok(&["inspect", "-f", &format!("{{{{{what}}}}}"), container]).unwrap_or_default()
}

#[test]
fn a_paused_container_stands_still_and_can_be_stopped() -> Result<()> {
    needs_root!("a_paused_container_stands_still_and_can_be_stopped");
    let scratch = Scratch::new("pause")?;
    let daemon = daemon_with_busybox(&scratch)?;
    run(&daemon, &["--name", "box"], "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")?;
    let lines = || daemon.docker_ok(&["logs", "box"]).map_or(0, |text| text.lines().count());
    wait_for("lines", Duration::from_secs(10), || (lines() > 5).then_some(()))?;
    daemon.docker_ok(&["pause", "box"])?;
    assert_eq!(state(&daemon, "box", ".State.Status"), "paused");
    let before = lines();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lines(), before, "a paused container has written");
    for (verb, text) in
        [("pause", "already paused"), ("exec", "is paused"), ("start", "cannot start a paused container")]
    {
        let arguments: &[&str] = if verb == "exec" { &["exec", "box", "true"] } else { &[verb, "box"] };
        let refused = daemon.docker(arguments)?;
        assert!(refused.code != 0 && refused.output().contains(text), "{verb}: {}", refused.output());
    }
    daemon.docker_ok(&["unpause", "box"])?;
    wait_for("more lines", Duration::from_secs(10), || (lines() > before).then_some(()))?;
    assert!(daemon.docker(&["unpause", "box"])?.output().contains("is not paused"));
    daemon.docker_ok(&["pause", "box"])?;
    daemon.docker_ok(&["stop", "-t", "10", "box"])?;
    assert_eq!(state(&daemon, "box", ".State.ExitCode"), "4", "the signal did not reach it");
    Ok(())
}

#[test]
fn a_name_is_changed_for_good_and_stays_unique() -> Result<()> {
    needs_root!("a_name_is_changed_for_good_and_stays_unique");
    let scratch = Scratch::new("rename")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    let id = run(&daemon, &["--name", "one"], "sleep 1000")?;
    run(&daemon, &["--name", "two"], "sleep 1000")?;
    daemon.docker_ok(&["rename", "one", "three"])?;
    for (arguments, text) in [
        (["rename", "three", "two"], "is already in use by container"),
        (["rename", "three", "three"], "same name as its current name"),
        (["rename", "three", "b@d"], "Invalid container name"),
        (["rename", "one", "four"], "No such container: one"),
    ] {
        let refused = daemon.docker(&arguments)?;
        assert!(refused.code != 0 && refused.output().contains(text), "{}", refused.output());
    }
    daemon.kill();
    daemon.run()?;
    assert_eq!(state(&daemon, "three", ".Id"), id);
    // Its old name is free.
    daemon.docker_ok(&["create", "--name", "one", "--network", "none", "busybox"])?;
    daemon.docker_ok(&["rm", "-f", "one", "two", "three"])?;
    Ok(())
}

#[test]
fn an_update_changes_the_limits_inside_and_survives_a_crash() -> Result<()> {
    needs_root!("an_update_changes_the_limits_inside_and_survives_a_crash");
    let scratch = Scratch::new("update")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    run(&daemon, &["--name", "box", "-m", "32m", "--pids-limit", "50"], "sleep 1000")?;
    daemon.docker_ok(&[
        "update",
        "-m",
        "64m",
        "--memory-swap",
        "96m",
        "--pids-limit",
        "77",
        "--cpus",
        "0.5",
        "--restart",
        "unless-stopped",
        "box",
    ])?;
    let inside = |daemon: &Daemon, v1: &str, v2: &str| {
        let script = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
        daemon.docker_ok(&["exec", "box", "sh", "-c", &script])
    };
    assert_eq!(inside(&daemon, "memory/memory.limit_in_bytes", "memory.max")?, (64 << 20).to_string());
    assert_eq!(inside(&daemon, "pids/pids.max", "pids.max")?, "77");
    let quota = inside(&daemon, "cpu/cpu.cfs_quota_us", "cpu.max")?;
    assert_eq!(quota.split(' ').next(), Some("50000"));
    daemon.docker_ok(&["update", "-m", "16m", "--memory-swap", "16m", "box"])?;
    assert_eq!(inside(&daemon, "memory/memory.limit_in_bytes", "memory.max")?, (16 << 20).to_string());
    let small = daemon.docker(&["update", "-m", "1m", "box"])?;
    assert!(small.code != 0 && small.output().contains("Minimum memory limit allowed is 6MB"), "{}", small.output());
    daemon.kill();
    daemon.run()?;
    let kept = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}";
    let expected = format!("{0} {0} 77 500000000 unless-stopped", 16 << 20);
    assert_eq!(daemon.docker_ok(&["inspect", "-f", kept, "box"])?, expected);
    // The next run begins with them.
    daemon.docker_ok(&["restart", "-t", "0", "box"])?;
    assert_eq!(inside(&daemon, "pids/pids.max", "pids.max")?, "77");
    // As the balena supervisor asks for no restarts.
    let none = http::request(&daemon.socket(), "POST", "/containers/box/update", Some(br#"{"RestartPolicy":{}}"#))?;
    assert_eq!(none.status, 200);
    assert_eq!(state(&daemon, "box", ".HostConfig.RestartPolicy.Name"), "no");
    daemon.docker_ok(&["rm", "-f", "box"])?;
    Ok(())
}

#[test]
fn top_lists_the_processes_of_the_container_alone() -> Result<()> {
    needs_root!("top_lists_the_processes_of_the_container_alone");
    let scratch = Scratch::new("top")?;
    let daemon = daemon_with_busybox(&scratch)?;
    run(&daemon, &["--name", "box"], "sleep 1234 & sleep 1235")?;
    let table = wait_for("two processes", Duration::from_secs(10), || {
        daemon.docker_ok(&["top", "box"]).ok().filter(|table| table.lines().count() == 3)
    })?;
    assert!(table.starts_with("UID") && table.contains("sleep 1234") && table.contains("sleep 1235"), "{table}");
    let pid = state(&daemon, "box", ".State.Pid");
    assert!(table.lines().any(|line| line.split_whitespace().nth(1) == Some(&pid)), "{table}");
    let named = daemon.docker_ok(&["top", "box", "-o", "pid,args"])?;
    assert!(named.lines().count() == 3 && named.contains("sleep 1234"), "{named}");
    daemon.docker_ok(&["stop", "-t", "0", "box"])?;
    assert!(daemon.docker(&["top", "box"])?.output().contains("is not running"));
    Ok(())
}

#[test]
fn restart_policies_start_again_what_they_should_and_count() -> Result<()> {
    needs_root!("restart_policies_start_again_what_they_should_and_count");
    let scratch = Scratch::new("policy")?;
    let daemon = daemon_with_busybox(&scratch)?;
    run(&daemon, &["--name", "tries", "--restart", "on-failure:2"], "echo run; exit 9")?;
    assert_eq!(daemon.docker_ok(&["wait", "tries"])?, "9");
    assert_eq!(daemon.docker_ok(&["logs", "tries"])?, "run\nrun\nrun");
    assert_eq!(state(&daemon, "tries", ".State.Status"), "exited");
    assert_eq!(state(&daemon, "tries", ".RestartCount"), "2");
    run(&daemon, &["--name", "good", "--restart", "on-failure"], "echo run")?;
    assert_eq!(daemon.docker_ok(&["wait", "good"])?, "0");
    assert_eq!(daemon.docker_ok(&["logs", "good"])?, "run");

    run(&daemon, &["--name", "always", "--restart", "always"], "echo run")?;
    wait_for("five runs", Duration::from_secs(20), || {
        (daemon.docker_ok(&["logs", "always"]).ok()?.lines().count() >= 5).then_some(())
    })?;
    wait_for("a wait between two runs", Duration::from_secs(20), || {
        (state(&daemon, "always", ".State.Status") == "restarting").then_some(())
    })?;
    let attach = daemon.docker(&["exec", "always", "true"])?;
    assert!(attach.code != 0, "{}", attach.output());
    daemon.docker_ok(&["stop", "-t", "0", "always"])?;
    let runs = daemon.docker_ok(&["logs", "always"])?.lines().count();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.docker_ok(&["logs", "always"])?.lines().count(), runs, "it ran again after its stop");
    assert_eq!(state(&daemon, "always", ".State.Status"), "exited");
    // An update ends a policy, and begins one.
    daemon.docker_ok(&["update", "--restart", "no", "always"])?;
    daemon.docker_ok(&["start", "always"])?;
    assert_eq!(daemon.docker_ok(&["wait", "always"])?, "0");
    let refused =
        daemon.docker(&["run", "-d", "--rm", "--restart", "always", "--network", "none", "busybox", "true"])?;
    assert!(refused.code != 0, "{}", refused.output());
    Ok(())
}

#[test]
fn a_start_of_the_daemon_starts_what_should_run() -> Result<()> {
    needs_root!("a_start_of_the_daemon_starts_what_should_run");
    let scratch = Scratch::new("boot")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    for policy in ["always", "unless-stopped", "on-failure", "no"] {
        run(&daemon, &["--name", policy, "--restart", policy], "sleep 1000")?;
        run(&daemon, &["--name", &format!("{policy}-stopped"), "--restart", policy], "sleep 1000")?;
        daemon.docker_ok(&["stop", "-t", "0", &format!("{policy}-stopped")])?;
    }
    daemon.docker_ok(&[
        "create",
        "--name",
        "never",
        "--restart",
        "always",
        "--network",
        "none",
        "busybox",
        "sleep",
        "9",
    ])?;
    for name in ["ended", "gone"] {
        run(&daemon, &["--name", name, "--restart", "unless-stopped"], "sleep 1000")?;
    }
    // A boot: no daemon, no shim, no container, and nothing in the run directory.
    let pids: Vec<String> = ["always", "unless-stopped", "on-failure", "no", "ended", "gone"]
        .map(|name| state(&daemon, name, ".State.Pid"))
        .into();
    daemon.kill();
    for pid in pids {
        baleen_tests::command::succeed("kill", &["-9", &pid])?;
    }
    wait_for("the shims' end", Duration::from_secs(10), || {
        let left = std::fs::read_dir(daemon.exec_root().join("containers")).ok()?;
        let alive = left.flatten().any(|entry| entry.path().join("shim.sock").exists());
        (!alive).then_some(())
    })?;
    std::fs::remove_dir_all(daemon.exec_root())?;
    daemon.run()?;
    // A stop and a removal that come while the policies are at work last.
    daemon.docker(&["stop", "-t", "0", "ended"])?;
    daemon.docker_ok(&["rm", "-f", "gone"])?;
    let status = |name: &str| state(&daemon, name, ".State.Status");
    for name in ["always", "always-stopped", "unless-stopped", "on-failure"] {
        wait_for(name, Duration::from_secs(20), || (status(name) == "running").then_some(()))?;
    }
    for (name, expected) in
        [("unless-stopped-stopped", "exited"), ("on-failure-stopped", "exited"), ("no", "exited"), ("never", "created")]
    {
        assert_eq!(status(name), expected, "{name}");
    }
    assert_eq!(state(&daemon, "no", ".State.ExitCode"), "255");
    assert_eq!(status("ended"), "exited", "it runs again after its stop");
    assert!(daemon.docker(&["inspect", "gone"])?.code != 0);
    daemon.docker_ok(&["rm", "-f", "ended"])?;
    Ok(())
}
