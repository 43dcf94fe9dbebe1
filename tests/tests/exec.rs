//! Exec through the unmodified `docker` client: output, exit codes, terminals, users, events, and what outlives what.

use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::http;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::scratch::Scratch;
use baleen_tests::stub::Stub;
use serde_json::{Value, json};

/// A daemon with a container `box` that runs.
fn daemon_with_box(scratch: &Scratch) -> Result<Daemon> {
    let daemon = Daemon::start(scratch)?;
    let stub = Stub::start()?;
    stub.add("busybox", "latest", &busybox()?);
    daemon.docker_ok(&["pull", "-q", &stub.reference("busybox:latest")])?;
    daemon.docker_ok(&["tag", &stub.reference("busybox:latest"), "busybox"])?;
    daemon.docker_ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "--network",
        "none",
        "-e",
        "KEPT=1",
        "-m",
        "64m",
        "busybox",
        "sleep",
        "1000",
    ])?;
    Ok(daemon)
}

#[test]
fn exec_gives_output_errors_and_exit_codes_as_docker_does() -> Result<()> {
    needs_root!("exec_gives_output_errors_and_exit_codes_as_docker_does");
    let scratch = Scratch::new("exec")?;
    let daemon = daemon_with_box(&scratch)?;
    let split = daemon.docker(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((split.code, split.stdout().as_str(), split.stderr.as_str()), (7, "out\n", "err\n"));
    let bytes = baleen_tests::random::Random::for_test("exec_bytes").bytes(1_000_000);
    let cat = daemon.docker_with(&["exec", "-i", "box", "cat"], Some(&bytes))?.ok()?;
    assert!(cat.stdout_bytes == bytes, "{} bytes came back of {}", cat.stdout_bytes.len(), bytes.len());
    let given = [
        "exec",
        "-e",
        "GIVEN=2",
        "-w",
        "/tmp",
        "-u",
        "1234:5",
        "box",
        "sh",
        "-c",
        "id -u; id -g; pwd; echo $KEPT$GIVEN",
    ];
    assert_eq!(daemon.docker_ok(&given)?, "1234\n5\n/tmp\n12");
    let missing = daemon.docker(&["exec", "box", "no-such-program"])?;
    assert_eq!(missing.code, 127, "{}", missing.output());
    assert!(missing.output().contains("executable file not found in $PATH"), "{}", missing.output());
    let forbidden = daemon.docker(&["exec", "box", "/etc/passwd"])?;
    assert_eq!(forbidden.code, 126, "{}", forbidden.output());
    let unknown = daemon.docker(&["exec", "-u", "nobody-here", "box", "true"])?;
    assert!(unknown.code != 0 && unknown.output().contains("unable to find user nobody-here"), "{}", unknown.output());
    daemon.docker_ok(&["exec", "-d", "box", "sh", "-c", "echo done > /tmp/done"])?;
    wait_for("what a detached exec writes", Duration::from_secs(10), || {
        (daemon.docker(&["exec", "box", "cat", "/tmp/done"]).ok()?.stdout() == "done\n").then_some(())
    })?;
    daemon.docker_ok(&["stop", "-t", "0", "box"])?;
    let stopped = daemon.docker(&["exec", "box", "true"])?;
    assert!(stopped.code == 1 && stopped.output().contains("is not running"), "{}", stopped.output());
    Ok(())
}

#[test]
fn an_exec_with_a_terminal_knows_its_size_and_detaches_by_its_keys() -> Result<()> {
    needs_root!("an_exec_with_a_terminal_knows_its_size_and_detaches_by_its_keys");
    let scratch = Scratch::new("exec-tty")?;
    let daemon = daemon_with_box(&scratch)?;
    // `script` gives the client a terminal.
    let typed = |command: &str, input: &str| -> Result<(i32, String)> {
        let socket = format!("unix://{}", daemon.socket().display());
        let line = format!("stty rows 33 cols 77; docker -H {socket} {command}");
        let mut program = std::process::Command::new("script");
        program.args(["-qec", &line, "/dev/null"]).env("HOME", scratch.join("."));
        let finished = baleen_tests::command::run(&mut program, Some(input.as_bytes()), Duration::from_secs(30))?;
        Ok((finished.code, finished.stdout()))
    };
    let (code, seen) = typed("exec -it box sh -c 'tty; sleep 0.5; stty size; exit 9'", "")?;
    assert_eq!(code, 9, "{seen}");
    assert!(seen.contains("/dev/pts/") && seen.contains("33 77"), "{seen}");
    let (_, seen) = typed("exec -it --detach-keys ctrl-a,x box sh -c 'echo begun; sleep 30'", "\u{1}x")?;
    assert!(!seen.contains("executable"), "{seen}");
    let running = wait_for("the exec that was left", Duration::from_secs(10), || {
        let ids = daemon.docker_ok(&["inspect", "-f", "{{json .ExecIDs}}", "box"]).ok()?;
        serde_json::from_str::<Vec<String>>(&ids).ok().filter(|ids| ids.len() == 1)
    })?;
    let answer = http::request(&daemon.socket(), "GET", &format!("/exec/{}/json", running[0]), None)?;
    let details: Value = serde_json::from_slice(&answer.body()?)?;
    assert_eq!((&details["Running"], &details["ExitCode"]), (&json!(true), &json!(null)));
    assert!(details["Pid"].as_u64().context("a number")? > 0, "{details}");
    Ok(())
}

#[test]
fn execs_are_told_by_events_and_end_with_their_container() -> Result<()> {
    needs_root!("execs_are_told_by_events_and_end_with_their_container");
    let scratch = Scratch::new("exec-events")?;
    let mut daemon = daemon_with_box(&scratch)?;
    daemon.docker(&["exec", "box", "sh", "-c", "exit 3"])?;
    let events = daemon.docker_ok(&[
        "events",
        "--since",
        "1h",
        "--until",
        "-1s",
        "--filter",
        "container=box",
        "--format",
        "{{.Action}} {{.Actor.Attributes.exitCode}}",
    ])?;
    let events: Vec<&str> = events.lines().filter(|line| line.starts_with("exec_")).collect();
    assert_eq!(events, ["exec_create: sh -c exit 3 <no value>", "exec_start: sh -c exit 3 <no value>", "exec_die 3"]);

    // One that runs when the daemon is killed goes on, and ends with its container; nothing of it is left.
    daemon.docker_ok(&["exec", "-d", "box", "sleep", "999"])?;
    let sleeps = || daemon.docker_ok(&["exec", "box", "sh", "-c", "ps | grep -c 'sleep 99[9]'"]).unwrap_or_default();
    assert_eq!(sleeps(), "1");
    daemon.kill();
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["exec", "box", "sh", "-c", "ps | grep -c 'sleep 99[9]'"])?, "1");
    daemon.docker_ok(&["rm", "-f", "box"])?;
    let folder = daemon.exec_root().join("exec");
    wait_for("the folders of execs to go", Duration::from_secs(15), || {
        (std::fs::read_dir(&folder).map_or(0, Iterator::count) == 0).then_some(())
    })?;
    Ok(())
}

#[test]
fn an_exec_in_a_full_container_is_told_the_limit_and_the_program_lives() -> Result<()> {
    needs_root!("an_exec_in_a_full_container_is_told_the_limit_and_the_program_lives");
    let scratch = Scratch::new("exec-full")?;
    let daemon = daemon_with_box(&scratch)?;
    // A file in memory counts as the container's. The shell fills it by itself, since a program more would be killed; what the kernel
    // could take back (the program's own pages) counts as room, so it goes on until that has been taken.
    let fill = "mkfifo /tmp/never; d=/sys/fs/cgroup/memory; [ -e $d ] || d=/sys/fs/cgroup
        u=$d/memory.usage_in_bytes; [ -e $u ] || u=$d/memory.current
        full() { read used < $u; while read name count; do
            case $name in active_file|inactive_file|slab_reclaimable) used=$((used - count));; esac; done < $d/memory.stat
            [ $used -gt 8088608 ]; }
        until full; do printf '%8192s' x >> /dev/shm/full; done; echo full; read x < /tmp/never";
    daemon.docker_ok(&[
        "run",
        "-d",
        "--name",
        "full",
        "--network",
        "none",
        "-m",
        "8m",
        "--memory-swap",
        "8m",
        "busybox",
        "sh",
        "-c",
        fill,
    ])?;
    wait_for("the container to be full", Duration::from_secs(20), || {
        daemon.docker_ok(&["logs", "full"]).ok().filter(|text| text.contains("full"))
    })?;
    let exec = daemon.docker(&["exec", "full", "true"])?;
    assert!(exec.code == 126, "{}", exec.output());
    assert!(exec.output().contains("8388608") && exec.output().contains("no memory"), "{}", exec.output());
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Running}} {{.State.OOMKilled}}", "full"])?, "true false");
    daemon.docker_ok(&["rm", "-f", "full"])?;
    Ok(())
}
