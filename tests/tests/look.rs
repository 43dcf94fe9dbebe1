//! Looking at containers through the `docker` client: what they use (`stats`), what they have changed (`diff`).

use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::wait_for;
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::scratch::Scratch;
use serde_json::Value;

fn daemon_with_busybox(scratch: &Scratch) -> Result<Daemon> {
    let daemon = Daemon::start(scratch)?;
    let archive = scratch.join("busybox.tar");
    std::fs::write(&archive, busybox()?.docker_archive("busybox:latest"))?;
    daemon.docker_ok(&["load", "-q", "-i", &archive.to_string_lossy()])?;
    Ok(daemon)
}

#[test]
fn stats_tell_what_a_container_uses_and_nothing_of_one_that_does_not_run() -> Result<()> {
    needs_root!("stats_tell_what_a_container_uses_and_nothing_of_one_that_does_not_run");
    let scratch = Scratch::new("stats")?;
    let daemon = daemon_with_busybox(&scratch)?;
    // 8 MiB of memory that is used, and one processor as far as it is let.
    let script = "head -c 8388608 /dev/zero > /dev/shm/held; echo held; while :; do :; done";
    let options = ["--name", "busy", "--network", "none", "-m", "64m", "--pids-limit", "50", "--cpus", "0.2"];
    daemon.docker_ok(&[&["run", "-d"], &options[..], &["busybox", "sh", "-c", script]].concat())?;
    daemon.docker_ok(&["create", "--name", "idle", "busybox"])?;
    wait_for("the memory to be held", Duration::from_secs(20), || {
        daemon.docker_ok(&["logs", "busy"]).ok().filter(|text| text.contains("held"))
    })?;

    let one = daemon.api("GET", "/containers/busy/stats?stream=0", None, 200)?;
    assert_eq!(one["name"], "/busy");
    assert_eq!(one["memory_stats"]["limit"], 64 << 20);
    let used = one["memory_stats"]["usage"].as_u64().context("no memory")?;
    assert!((8 << 20..64 << 20).contains(&used), "{used} bytes");
    assert_eq!(one["pids_stats"]["limit"], 50);
    assert_eq!(one["pids_stats"]["current"], 1);
    let spent = |moment: &Value, at: &str| moment[at]["cpu_usage"]["total_usage"].as_u64().unwrap_or(0);
    let machine = |at: &str| one[at]["system_cpu_usage"].as_u64().unwrap_or(0);
    let (own, all) =
        (spent(&one, "cpu_stats") - spent(&one, "precpu_stats"), machine("cpu_stats") - machine("precpu_stats"));
    // A fifth of a processor for a second, with room for a busy machine and the accounting's grain.
    assert!((1_000_000..600_000_000).contains(&own), "{own} ns of {all}");
    assert!(all > own, "{one}");
    assert!(one["read"].as_str() > one["preread"].as_str(), "{one}");
    assert!(one["networks"].as_object().is_some_and(serde_json::Map::is_empty), "{}", one["networks"]);

    let first = daemon.api("GET", "/containers/busy/stats?stream=0&one-shot=1", None, 200)?;
    assert_eq!((&first["preread"], spent(&first, "precpu_stats")), (&Value::from("0001-01-01T00:00:00Z"), 0));
    let both = daemon.api("GET", "/containers/busy/stats?stream=1&one-shot=1", None, 400)?;
    assert_eq!(both["message"], "cannot have stream=true and one-shot=true");
    let idle = daemon.api("GET", "/containers/idle/stats?stream=0", None, 200)?;
    assert_eq!((&idle["name"], spent(&idle, "cpu_stats")), (&Value::from("/idle"), 0));

    let table = daemon.docker_ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}"])?;
    assert!(table.lines().any(|line| line.starts_with("busy 1 ") && line.ends_with("/ 64MiB")), "{table}");

    // A stream goes on until the container is removed.
    let socket = daemon.socket();
    let stream = std::thread::spawn(move || -> Result<usize> {
        let body = baleen_tests::http::request(&socket, "GET", "/containers/busy/stats", None)?.body()?;
        let lines = std::str::from_utf8(&body)?.lines().map(serde_json::from_str::<Value>);
        Ok(lines.collect::<Result<Vec<_>, _>>()?.len())
    });
    std::thread::sleep(Duration::from_millis(1500));
    daemon.docker_ok(&["rm", "-f", "busy"])?;
    assert!(stream.join().expect("the reader")? >= 2);
    Ok(())
}

#[test]
fn diff_tells_what_a_container_has_changed_of_its_image() -> Result<()> {
    needs_root!("diff_tells_what_a_container_has_changed_of_its_image");
    let scratch = Scratch::new("diff")?;
    let daemon = daemon_with_busybox(&scratch)?;
    daemon.docker_ok(&[
        "run",
        "--name",
        "same",
        "--network",
        "none",
        "-v",
        "/data",
        "busybox",
        "touch",
        "/data/x",
        "/dev/shm/y",
    ])?;
    assert_eq!(daemon.docker_ok(&["diff", "same"])?, "A /data");
    let script = "echo >> /etc/passwd; rm /etc/group; mkdir -p /new/deep; echo > /new/deep/file; rm -r /home; mkdir /home; echo > /home/mine; \
                  chmod 700 /root; ln -s x /var/link";
    daemon.docker_ok(&["run", "--name", "box", "--network", "none", "busybox", "sh", "-c", script])?;
    let expected = [
        "C /etc",
        "D /etc/group",
        "C /etc/passwd",
        "C /home",
        "A /home/mine",
        "A /new",
        "A /new/deep",
        "A /new/deep/file",
        "C /root",
        "C /var",
        "A /var/link",
    ];
    let found = daemon.docker_ok(&["diff", "box"])?;
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    let missing = daemon.docker(&["diff", "nobody"])?;
    assert!(missing.code != 0 && missing.output().contains("No such container: nobody"), "{}", missing.output());
    assert_eq!(baleen_tests::scratch::mounts_below(&daemon.exec_root()), Vec::<std::path::PathBuf>::new());
    Ok(())
}
