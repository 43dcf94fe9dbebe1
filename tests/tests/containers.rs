//! Containers through the unmodified `docker` client: run, exit codes, input and output, logs, signals, removal, export.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use baleen_tests::command::{run, wait_for};
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::scratch::{Scratch, mounts_below};
use baleen_tests::stub::Stub;
use serde_json::{Value, json};

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
fn run_gives_output_errors_and_exit_codes_as_docker_does() -> Result<()> {
    needs_root!("run_gives_output_errors_and_exit_codes_as_docker_does");
    let scratch = Scratch::new("run")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let docker =
        |command: &[&str]| daemon.docker(&[&["run", "--rm", "--network", "none", "busybox"], command].concat());

    let hello = docker(&["echo", "hello"])?;
    assert_eq!((hello.code, hello.stdout().as_str()), (0, "hello\n"), "{}", hello.output());
    let split = docker(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((split.code, split.stdout().as_str(), split.stderr.as_str()), (7, "out\n", "err\n"));
    let missing = docker(&["no-such-program"])?;
    assert_eq!(missing.code, 127, "{}", missing.output());
    assert!(missing.stderr.contains("executable file not found"), "{}", missing.stderr);
    let forbidden = docker(&["/etc/not-a-program"])?;
    assert_eq!(forbidden.code, 126, "{}", forbidden.output());
    assert!(forbidden.stderr.to_lowercase().contains("permission denied"), "{}", forbidden.stderr);
    let killed = docker(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])?;
    assert_eq!(killed.code, 137, "{}", killed.output());
    assert_eq!(daemon.docker_ok(&["ps", "-aq"])?, "", "--rm left a container");
    Ok(())
}

#[test]
fn a_million_bytes_pass_through_a_container_unchanged_both_ways() -> Result<()> {
    needs_root!("a_million_bytes_pass_through_a_container_unchanged_both_ways");
    let scratch = Scratch::new("stdin")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let bytes = baleen_tests::random::Random::for_test("a_million_bytes").bytes(1_000_000);
    let arguments = ["run", "-i", "--rm", "--network", "none", "busybox", "cat"];
    let finished = daemon.docker_with(&arguments, Some(&bytes))?.ok()?;
    assert!(finished.stdout_bytes == bytes, "{} bytes came back of {}", finished.stdout_bytes.len(), bytes.len());
    Ok(())
}

#[test]
fn a_detached_container_is_listed_logged_signalled_stopped_and_removed() -> Result<()> {
    needs_root!("a_detached_container_is_listed_logged_signalled_stopped_and_removed");
    let scratch = Scratch::new("detached")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let script = "trap 'echo got usr1' USR1; trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let id = daemon.docker_ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", script])?;
    assert_eq!(id.len(), 64, "{id}");
    let logs = |word: &str| {
        wait_for(&format!("{word:?} in the log"), Duration::from_secs(10), || {
            daemon.docker_ok(&["logs", "box"]).ok().filter(|text| text.contains(word))
        })
    };
    logs("ready")?;
    assert_eq!(
        daemon.docker_ok(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.State}}"])?,
        format!("{id} box running")
    );
    daemon.docker_ok(&["kill", "-s", "USR1", "box"])?;
    logs("got usr1")?;
    let refused = daemon.docker(&["rm", "box"])?;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.to_lowercase().contains("stop the container before"), "{}", refused.stderr);
    daemon.docker_ok(&["stop", "-t", "10", "box"])?;
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"])?, "exited 5");
    assert_eq!(daemon.docker_ok(&["wait", "box"])?, "5");
    assert_eq!(daemon.docker_ok(&["logs", "box"])?, "ready\ngot usr1\nbye");
    assert_eq!(daemon.docker_ok(&["logs", "--tail", "1", "box"])?, "bye");
    // A second start goes on in the same log.
    daemon.docker_ok(&["start", "box"])?;
    wait_for("the second start's line", Duration::from_secs(10), || {
        daemon.docker_ok(&["logs", "box"]).ok().filter(|text| text.matches("ready").count() == 2)
    })?;
    daemon.docker_ok(&["rm", "-f", "box"])?;
    assert_eq!(daemon.docker_ok(&["ps", "-aq"])?, "");
    Ok(())
}

#[test]
fn a_container_that_ignores_its_stop_signal_is_killed_after_the_grace() -> Result<()> {
    needs_root!("a_container_that_ignores_its_stop_signal_is_killed_after_the_grace");
    let scratch = Scratch::new("stop")?;
    let daemon = daemon_with_busybox(&scratch)?;
    // Process 1 of a container ignores signals that it has no handler for.
    daemon.docker_ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000"])?;
    let begin = Instant::now();
    daemon.docker_ok(&["stop", "-t", "1", "box"])?;
    assert!(begin.elapsed() >= Duration::from_secs(1), "killed before its grace was over");
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.ExitCode}}", "box"])?, "137");
    Ok(())
}

#[test]
fn following_a_log_ends_with_the_container_and_misses_no_line() -> Result<()> {
    needs_root!("following_a_log_ends_with_the_container_and_misses_no_line");
    let scratch = Scratch::new("follow")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; sleep 0.3; echo last";
    daemon.docker_ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", script])?;
    let followed = daemon.docker_ok(&["logs", "-f", "box"])?;
    let expected: Vec<String> = (1..=2000).map(|n| format!("line {n}")).chain([String::from("last")]).collect();
    assert_eq!(followed.lines().collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn a_container_outlives_the_daemon_and_is_found_again_with_every_line_of_its_log() -> Result<()> {
    needs_root!("a_container_outlives_the_daemon_and_is_found_again_with_every_line_of_its_log");
    let scratch = Scratch::new("outlive")?;
    let mut daemon = daemon_with_busybox(&scratch)?;
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    daemon.docker_ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", script])?;
    daemon.docker_ok(&[
        "run",
        "-d",
        "--name",
        "short",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "sleep 1; exit 3",
    ])?;
    let pid = daemon.docker_ok(&["inspect", "-f", "{{.State.Pid}}", "box"])?;
    let lines = |daemon: &Daemon| -> Option<usize> { Some(daemon.docker_ok(&["logs", "box"]).ok()?.lines().count()) };
    wait_for("ten lines", Duration::from_secs(10), || lines(&daemon).filter(|&count| count >= 10))?;
    for _ in 0..3 {
        let before = lines(&daemon).context("no log")?;
        daemon.kill();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "the container died with the daemon");
        daemon.run()?;
        assert_eq!(
            daemon.docker_ok(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "box"])?,
            format!("running {pid}")
        );
        wait_for("more lines after the restart", Duration::from_secs(10), || {
            lines(&daemon).filter(|&count| count > before + 10)
        })?;
    }
    // What ended while no daemon ran is known too.
    assert_eq!(daemon.docker_ok(&["wait", "short"])?, "3");
    daemon.docker_ok(&["stop", "-t", "0", "box"])?;
    let log = daemon.docker_ok(&["logs", "box"])?;
    let expected: Vec<String> = (1..=log.lines().count()).map(|n| n.to_string()).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected, "a line of the log was lost or doubled");
    daemon.docker_ok(&["rm", "box"])?;
    Ok(())
}

#[test]
fn export_gives_the_whole_tree_also_of_a_container_that_never_ran() -> Result<()> {
    needs_root!("export_gives_the_whole_tree_also_of_a_container_that_never_ran");
    let scratch = Scratch::new("export")?;
    let daemon = daemon_with_busybox(&scratch)?;
    daemon.docker_ok(&["create", "--name", "never", "--network", "none", "busybox"])?;
    daemon.docker_ok(&[
        "run",
        "--name",
        "once",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo made > /made; rm /etc/group",
    ])?;
    let names = |container: &str| -> Result<Vec<String>> {
        let tar = daemon.docker(&["export", container])?.ok()?.stdout_bytes;
        let listed = run(Command::new("tar").arg("-t"), Some(&tar), Duration::from_secs(20))?.ok()?.stdout();
        Ok(listed.lines().map(str::to_owned).collect())
    };
    let never = names("never")?;
    let has = |list: &[String], name: &str| list.iter().any(|found| found == name);
    assert!(has(&never, "bin/busybox") && has(&never, "etc/group") && !has(&never, "made"), "{never:?}");
    let once = names("once")?;
    assert!(has(&once, "bin/busybox") && has(&once, "made") && !has(&once, "etc/group"), "{once:?}");
    Ok(())
}

#[test]
fn inspect_names_folders_that_mount_accepts_before_the_container_was_ever_started() -> Result<()> {
    needs_root!("inspect_names_folders_that_mount_accepts_before_the_container_was_ever_started");
    let scratch = Scratch::new("graph")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let merged = scratch.join("merged");
    std::fs::create_dir(&merged)?;
    let merged_text = merged.to_string_lossy().into_owned();
    daemon.docker_ok(&["create", "--name", "box", "--network", "none", "busybox"])?;
    let container: Value = serde_json::from_str(&daemon.docker_ok(&["inspect", "box"])?)?;
    assert_eq!(container[0]["GraphDriver"]["Name"], "overlay2");
    let data = &container[0]["GraphDriver"]["Data"];
    let path = |key: &str| data[key].as_str().with_context(|| format!("no {key} in {data}"));
    let options = format!("lowerdir={},upperdir={},workdir={}", path("LowerDir")?, path("UpperDir")?, path("WorkDir")?);
    assert!(!path("MergedDir")?.is_empty());
    baleen_tests::command::succeed("mount", &["-t", "overlay", "overlay", "-o", &options, &merged_text])?;
    assert!(merged.join("bin/busybox").is_file());
    baleen_tests::command::succeed("umount", &[&merged_text])?;

    let image: Value = serde_json::from_str(&daemon.docker_ok(&["image", "inspect", "busybox"])?)?;
    let data = &image[0]["GraphDriver"]["Data"];
    // Of an image the top layer is the upper; a view needs two folders at least, so that an empty one is added.
    let folders: Vec<&str> = ["UpperDir", "LowerDir"]
        .iter()
        .filter_map(|key| data[*key].as_str())
        .flat_map(|text| text.split(':'))
        .collect();
    let empty = scratch.join("empty");
    std::fs::create_dir(&empty)?;
    let options = format!("ro,lowerdir={}:{}", empty.display(), folders.join(":"));
    baleen_tests::command::succeed("mount", &["-t", "overlay", "overlay", "-o", &options, &merged_text])?;
    assert!(merged.join("bin/busybox").is_file());
    Ok(())
}

#[test]
fn a_container_has_the_isolation_that_docker_gives_by_default() -> Result<()> {
    needs_root!("a_container_has_the_isolation_that_docker_gives_by_default");
    let scratch = Scratch::new("defaults")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let shell = |script: &str| {
        daemon.docker_ok(&["run", "--rm", "--network", "none", "--hostname", "box", "busybox", "sh", "-c", script])
    };
    let status = shell("cat /proc/self/status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    assert_eq!(field("Seccomp:"), "2");
    // The fourteen capabilities that Docker leaves.
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), "00000000a80425fb", "{set}");
    }
    assert_eq!((field("CapInh:"), field("CapAmb:")), ("0000000000000000", "0000000000000000"));
    assert_eq!(shell("hostname; echo $$; ls /sys/class/net")?, "box\n1\nlo");
    assert_eq!(
        shell("cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; ls /proc/acpi 2>/dev/null | wc -l")?,
        "0\n0\n0"
    );
    let denied = "(echo x > /proc/sys/kernel/hostname; echo b > /proc/sysrq-trigger; touch /sys/x; mount -t tmpfs x /tmp) 2>&1 | wc -l";
    assert_eq!(shell(denied)?, "4", "something that must be refused was not");
    // The three descriptors, the folder that `ls` reads, and nothing of ours.
    assert_eq!(shell("ls /proc/self/fd")?, "0\n1\n2\n3");
    Ok(())
}

#[test]
fn network_host_shows_the_hosts_interfaces_and_none_only_the_loopback() -> Result<()> {
    needs_root!("network_host_shows_the_hosts_interfaces_and_none_only_the_loopback");
    let scratch = Scratch::new("network")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let read = |network: &str| {
        daemon.docker_ok(&["run", "--rm", "--network", network, "busybox", "readlink", "/proc/self/ns/net"])
    };
    let own = std::fs::read_link("/proc/self/ns/net")?.to_string_lossy().into_owned();
    assert_eq!(read("host")?, own);
    assert_ne!(read("none")?, own);
    Ok(())
}

#[test]
fn containers_are_configured_as_the_image_and_the_request_say() -> Result<()> {
    needs_root!("containers_are_configured_as_the_image_and_the_request_say");
    let scratch = Scratch::new("configured")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let arguments = [
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "NAME=value",
        "-u",
        "user",
        "-w",
        "/var",
        "--label",
        "a=b",
        "--entrypoint",
        "sh",
        "busybox",
        "-c",
        "echo $NAME; id -u; id -g; pwd; echo $PATH",
    ];
    assert_eq!(daemon.docker_ok(&arguments)?, "value\n1000\n1000\n/var\n/bin:/usr/bin:/sbin:/usr/sbin");
    let read_only = daemon.docker(&["run", "--rm", "--network", "none", "--read-only", "busybox", "touch", "/x"])?;
    assert!(read_only.code == 1 && read_only.stderr.contains("Read-only file system"), "{}", read_only.output());
    Ok(())
}

#[test]
fn a_memory_limit_is_kept_and_its_victim_is_known() -> Result<()> {
    needs_root!("a_memory_limit_is_kept_and_its_victim_is_known");
    let scratch = Scratch::new("memory")?;
    let daemon = daemon_with_busybox(&scratch)?;
    // `tail` keeps all that it has read until it meets the end of a line.
    let arguments = [
        "run",
        "--name",
        "big",
        "--network",
        "none",
        "-m",
        "32m",
        "--memory-swap",
        "32m",
        "busybox",
        "tail",
        "/dev/zero",
    ];
    let finished = daemon.docker(&arguments)?;
    assert_eq!(finished.code, 137, "{}", finished.output());
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.OOMKilled}}", "big"])?, "true");
    Ok(())
}

#[test]
fn names_are_unique_and_errors_are_those_that_clients_match_on() -> Result<()> {
    needs_root!("names_are_unique_and_errors_are_those_that_clients_match_on");
    let scratch = Scratch::new("names")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let id = daemon.docker_ok(&["create", "--name", "box", "--network", "none", "busybox"])?;
    let taken = daemon.docker(&["create", "--name", "box", "--network", "none", "busybox"])?;
    let text = format!("The container name \"/box\" is already in use by container \"{id}\"");
    assert!(taken.code == 1 && taken.stderr.contains(&text), "{}", taken.stderr);
    let missing = daemon.docker(&["start", "nobody"])?;
    assert!(missing.code == 1 && missing.stderr.contains("No such container: nobody"), "{}", missing.stderr);
    daemon.api("POST", "/v1.41/containers/box/start", None, 204)?;
    let answer = daemon.api("DELETE", "/v1.41/containers/box?force=1", None, 204)?;
    assert_eq!(answer, Value::Null);
    let absent = daemon.api(
        "POST",
        "/v1.41/containers/create",
        Some(&json!({ "Image": "absent:v9", "Cmd": ["x"], "HostConfig": { "NetworkMode": "none" } })),
        404,
    )?;
    assert_eq!(absent["message"], "No such image: absent:v9");
    Ok(())
}

#[test]
fn nothing_of_a_removed_container_stays_on_the_machine() -> Result<()> {
    needs_root!("nothing_of_a_removed_container_stays_on_the_machine");
    let scratch = Scratch::new("remains")?;
    let daemon = daemon_with_busybox(&scratch)?;
    for name in ["one", "two"] {
        daemon.docker_ok(&["run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000"])?;
    }
    assert!(daemon.processes().len() >= 3, "no shims are seen");
    daemon.docker_ok(&["kill", "one"])?;
    daemon.docker_ok(&["rm", "one"])?;
    daemon.docker_ok(&["rm", "-f", "two"])?;
    let pid = daemon.pid().context("no daemon")?;
    wait_for("shims, groups and mounts going", Duration::from_secs(10), || {
        let processes = daemon.processes();
        let groups: Vec<_> = daemon
            .cgroups()
            .into_iter()
            .filter(|path| !path.ends_with(daemon.cgroup_parent().trim_start_matches('/')))
            .collect();
        let mounts = mounts_below(daemon.root());
        (processes.iter().all(|&found| found == pid) && groups.is_empty() && mounts.len() <= 1).then_some(())
    })
    .with_context(|| format!("{:?} {:?} {:?}", daemon.processes(), daemon.cgroups(), mounts_below(daemon.root())))?;
    Ok(())
}

#[test]
fn what_is_not_implemented_is_refused_by_name() -> Result<()> {
    needs_root!("what_is_not_implemented_is_refused_by_name");
    let scratch = Scratch::new("refused")?;
    let daemon = daemon_with_busybox(&scratch)?;
    for (method, path) in [("POST", "/v1.41/commit"), ("POST", "/v1.41/networks/create"), ("POST", "/v1.41/build")] {
        let answer = daemon.api(method, path, Some(&json!({})), 501)?;
        assert!(
            answer["message"].as_str().is_some_and(|text| text.contains("not implemented yet")),
            "{path}: {answer}"
        );
    }
    // A field that is not honoured is never ignored.
    let refused = daemon.docker(&["run", "--rm", "--network", "none", "--gpus", "all", "busybox", "true"])?;
    assert_ne!(refused.code, 0, "{}", refused.output());
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_socket_or_root_is_refused_and_others_run_side_by_side() -> Result<()> {
    needs_root!("a_second_daemon_on_the_same_socket_or_root_is_refused_and_others_run_side_by_side");
    let scratch = Scratch::new("second")?;
    let first = daemon_with_busybox(&scratch)?;
    let mut same_root = Daemon::prepare(&scratch, first.root())?;
    let error = same_root.run().expect_err("two daemons own one store");
    assert!(format!("{error:#}").contains("ended with"), "{error:#}");
    let mut other = Daemon::prepare(&scratch, &scratch.join("other-root"))?;
    other.run()?;
    assert_eq!(other.docker_ok(&["images", "-q"])?, "");
    assert_ne!(first.docker_ok(&["images", "-q"])?, "");
    let socket = format!("unix://{}", first.socket().display());
    let binary = baleen_tests::daemon::binary()?;
    let (root, exec_root) = (scratch.join("third-root"), scratch.join("x3"));
    let arguments =
        ["daemon", "-H", &socket, "--data-root", &root.to_string_lossy(), "--exec-root", &exec_root.to_string_lossy()];
    let refused = run(Command::new(binary).args(arguments), None, Duration::from_secs(20))?;
    assert_ne!(refused.code, 0);
    assert!(refused.output().contains(&*first.socket().to_string_lossy()), "{}", refused.output());
    assert_ne!(first.docker_ok(&["images", "-q"])?, "", "the first daemon lost its socket");
    Ok(())
}
