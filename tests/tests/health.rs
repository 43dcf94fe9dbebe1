//! Health checks through the `docker` client: verdicts, timeouts, and what a container without memory is told.

use std::time::Duration;

use anyhow::Result;
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::scratch::Scratch;
use baleen_tests::stub::Stub;
use serde_json::Value;

/// A daemon that has the busybox image as `busybox`.
fn daemon_with_busybox(scratch: &Scratch) -> Result<Daemon> {
    let daemon = Daemon::start(scratch)?;
    let stub = Stub::start()?;
    stub.add("busybox", "latest", &busybox()?);
    daemon.docker_ok(&["pull", "-q", &stub.reference("busybox:latest")])?;
    daemon.docker_ok(&["tag", &stub.reference("busybox:latest"), "busybox"])?;
    Ok(daemon)
}

fn run(daemon: &Daemon, name: &str, options: &[&str], command: &str) -> Result<String> {
    let fixed = ["run", "-d", "--network", "none", "--name", name, "--health-interval", "100ms"];
    daemon.docker_ok(&[&fixed, options, &["busybox", "sh", "-c", command]].concat())
}

fn health(daemon: &Daemon, name: &str) -> Option<Value> {
    serde_json::from_str(&daemon.docker_ok(&["inspect", "-f", "{{json .State.Health}}", name]).ok()?).ok()
}

fn becomes(daemon: &Daemon, name: &str, status: &str) -> Result<Value> {
    wait_for(&format!("{name} to be {status}"), Duration::from_secs(20), || {
        health(daemon, name).filter(|health| health["Status"] == status)
    })
}

#[test]
fn a_container_is_healthy_or_not_as_its_probe_says() -> Result<()> {
    needs_root!("a_container_is_healthy_or_not_as_its_probe_says");
    let scratch = Scratch::new("health")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    run(&daemon, "box", &["--health-cmd", "echo probed; cat /tmp/ok", "--health-retries", "2"], "sleep 1000")?;
    let sick = becomes(&daemon, "box", "unhealthy")?;
    assert!(sick["FailingStreak"].as_u64() >= Some(2), "{sick}");
    assert!(sick["Log"][0]["ExitCode"] == 1, "{sick}");
    assert!(sick["Log"][0]["Output"].as_str().is_some_and(|text| text.starts_with("probed\n")), "{sick}");
    daemon.docker_ok(&["exec", "box", "touch", "/tmp/ok"])?;
    let well = becomes(&daemon, "box", "healthy")?;
    assert_eq!(well["FailingStreak"], 0);
    assert!(daemon.docker_ok(&["ps", "--filter", "health=healthy"])?.contains("(healthy)"));
    let events = daemon.docker_ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "-1s",
        "--filter",
        "event=health_status",
        "--format",
        "{{.Action}}",
    ])?;
    assert_eq!(events.lines().collect::<Vec<_>>(), ["health_status: unhealthy", "health_status: healthy"]);
    // A paused container is not probed; one that a new daemon finds is.
    daemon.docker_ok(&["pause", "box"])?;
    let last = || health(&daemon, "box").map(|health| health["Log"].to_string());
    std::thread::sleep(Duration::from_millis(300));
    let before = last();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(last(), before);
    daemon.docker_ok(&["unpause", "box"])?;
    daemon.kill();
    daemon.run()?;
    becomes(&daemon, "box", "healthy")?;
    daemon.docker_ok(&["rm", "-f", "box"])?;
    Ok(())
}

#[test]
fn a_probe_that_takes_too_long_is_killed_and_has_failed() -> Result<()> {
    needs_root!("a_probe_that_takes_too_long_is_killed_and_has_failed");
    let scratch = Scratch::new("health-slow")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let options = ["--health-cmd", "sleep 777", "--health-timeout", "200ms", "--health-retries", "1"];
    run(&daemon, "box", &options, "sleep 1000")?;
    let sick = becomes(&daemon, "box", "unhealthy")?;
    assert_eq!(sick["Log"][0]["ExitCode"], -1, "{sick}");
    assert_eq!(sick["Log"][0]["Output"], "Health check exceeded timeout (200ms)", "{sick}");
    daemon.docker_ok(&["stop", "-t", "0", "box"])?;
    let refused = daemon.docker(&[
        "run",
        "-d",
        "--network",
        "none",
        "--health-cmd",
        "true",
        "--health-interval",
        "1us",
        "busybox",
    ])?;
    assert!(refused.code != 0 && refused.output().contains("cannot be less than 1ms"), "{}", refused.output());
    Ok(())
}

#[test]
fn a_container_without_memory_could_not_be_probed_and_is_not_called_sick() -> Result<()> {
    needs_root!("a_container_without_memory_could_not_be_probed_and_is_not_called_sick");
    let scratch = Scratch::new("health-full")?;
    let daemon = daemon_with_busybox(&scratch)?;
    // The program's pages are another container's, so that none of the full one's can be taken back.
    let warm = "cat /bin/* > /dev/null";
    daemon.docker_ok(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", warm])?;
    let options =
        ["--health-cmd", "true", "--health-retries", "1", "-m", "8m", "--memory-swap", "8m", "--health-interval", "2s"];
    let fill = "mkfifo /tmp/never; u=/sys/fs/cgroup/memory/memory.usage_in_bytes; [ -e $u ] || u=/sys/fs/cgroup/memory.current
        while read used < $u; [ $used -lt 8250000 ]; do printf '%8192s' x >> /dev/shm/full; done; echo full; read x < /tmp/never";
    run(&daemon, "full", &options, fill)?;
    let told = wait_for("a probe that could not be made", Duration::from_secs(20), || {
        let health = health(&daemon, "full")?;
        let log = health["Log"].as_array()?.clone();
        log.into_iter().find(|probe| probe["Output"].as_str().is_some_and(|text| text.starts_with("could not probe: ")))
    })?;
    assert_eq!(told["ExitCode"], -1);
    assert!(told["Output"].as_str().is_some_and(|text| text.contains("8388608")), "{told}");
    let health = health(&daemon, "full").unwrap_or_default();
    assert!(health["Status"] != "unhealthy" && health["FailingStreak"] == 0, "{health}");
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Running}}", "full"])?, "true");
    daemon.docker_ok(&["rm", "-f", "full"])?;
    Ok(())
}
