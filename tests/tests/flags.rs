//! Flags of `docker run`, each read by its effect inside the container.

use anyhow::{Context as _, Result};
use baleen_tests::daemon::Daemon;
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

/// Whether the machine has cgroup v2 alone.
fn is_unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[test]
fn limits_of_a_run_are_those_of_its_control_groups() -> Result<()> {
    needs_root!("limits_of_a_run_are_those_of_its_control_groups");
    let scratch = Scratch::new("flag-limits")?;
    let daemon = daemon_with_busybox(&scratch)?;
    // Flags, the file of cgroup v1 and of v2 below the mount, and what they hold.
    let mib = |count: u64| (count << 20).to_string();
    let cases: [(&[&str], &str, &str, String, String); 8] = [
        (&["-m", "40m"], "memory/memory.limit_in_bytes", "memory.max", mib(40), mib(40)),
        (
            &["-m", "40m", "--memory-swap", "60m"],
            "memory/memory.memsw.limit_in_bytes",
            "memory.swap.max",
            mib(60),
            mib(20),
        ),
        (
            &["-m", "40m", "--memory-reservation", "30m"],
            "memory/memory.soft_limit_in_bytes",
            "memory.low",
            mib(30),
            mib(30),
        ),
        (&["--cpus", "0.5"], "cpu/cpu.cfs_quota_us", "cpu.max", "50000".into(), "50000 100000".into()),
        (
            &["--cpu-period", "50000", "--cpu-quota", "20000"],
            "cpu/cpu.cfs_quota_us",
            "cpu.max",
            "20000".into(),
            "20000 50000".into(),
        ),
        // The weight is that of runc since 1.3.2: the defaults, 1024 shares, become the default weight of 100.
        (&["--cpu-shares", "512"], "cpu/cpu.shares", "cpu.weight", "512".into(), "59".into()),
        (&["--cpuset-cpus", "0"], "cpuset/cpuset.cpus", "cpuset.cpus", "0".into(), "0".into()),
        (&["--pids-limit", "33"], "pids/pids.max", "pids.max", "33".into(), "33".into()),
    ];
    for (flags, v1, v2, value_v1, value_v2) in cases {
        let (file, value) = if is_unified() { (v2, value_v2) } else { (v1, value_v1) };
        let path = format!("/sys/fs/cgroup/{file}");
        let command = [&["run", "--rm", "--network", "none"], flags, &["busybox", "cat", &path]].concat();
        let read = daemon.docker(&command)?;
        if read.code != 0 && file.contains("memsw") {
            // A kernel without swap accounting drops that limit, as Docker does.
            continue;
        }
        assert_eq!(read.ok()?.stdout().trim(), value, "{flags:?}: {file}");
    }
    Ok(())
}

#[test]
fn rates_of_a_block_device_are_those_that_were_asked_for() -> Result<()> {
    needs_root!("rates_of_a_block_device_are_those_that_were_asked_for");
    let scratch = Scratch::new("flag-blkio")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let disk = std::fs::read_dir("/sys/block")?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let disk = disk.filter(|name| std::path::Path::new("/dev").join(name).exists()).min().context("no block device")?;
    let numbers = std::fs::read_to_string(format!("/sys/block/{disk}/dev"))?;
    let numbers = numbers.trim();
    let device = format!("/dev/{disk}");
    let cases = [
        ("--device-read-bps", "1mb", "throttle.read_bps_device", "rbps=", "1048576"),
        ("--device-write-bps", "2mb", "throttle.write_bps_device", "wbps=", "2097152"),
        ("--device-read-iops", "100", "throttle.read_iops_device", "riops=", "100"),
        ("--device-write-iops", "200", "throttle.write_iops_device", "wiops=", "200"),
    ];
    for (flag, value, v1, v2, number) in cases {
        let file = if is_unified() { "io.max".to_owned() } else { format!("blkio/blkio.{v1}") };
        let rate = format!("{device}:{value}");
        let path = format!("/sys/fs/cgroup/{file}");
        let read = daemon.docker_ok(&["run", "--rm", "--network", "none", flag, &rate, "busybox", "cat", &path])?;
        let expected = if is_unified() { format!("{v2}{number}") } else { format!("{numbers} {number}") };
        assert!(read.contains(&expected), "{flag}: {read:?}");
    }
    let missing =
        daemon.docker(&["run", "--rm", "--network", "none", "--device-read-bps", "/dev/none:1mb", "busybox"])?;
    assert!(missing.code != 0 && missing.output().contains("/dev/none"), "{}", missing.output());
    Ok(())
}

#[test]
fn what_a_run_asks_for_is_what_its_program_finds() -> Result<()> {
    needs_root!("what_a_run_asks_for_is_what_its_program_finds");
    let scratch = Scratch::new("flag-effects")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let cases: [(&[&str], &str, &str); 22] = [
        (&["--ulimit", "nofile=77:99"], "ulimit -n; ulimit -Hn", "77\n99"),
        (
            &["--sysctl", "net.ipv4.ip_unprivileged_port_start=7"],
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            "7",
        ),
        (&["--sysctl", "kernel.msgmax=9999"], "cat /proc/sys/kernel/msgmax", "9999"),
        (&["--group-add", "1234", "-u", "7:8"], "id -G", "8 1234"),
        (&["-u", "7:8"], "id -u; id -g", "7\n8"),
        (&["--hostname", "pebble"], "hostname; cat /etc/hostname", "pebble\npebble"),
        (&["--domainname", "beach"], "cat /proc/sys/kernel/domainname", "beach"),
        (&["--add-host", "sea:192.0.2.7"], "grep -c '192.0.2.7.sea' /etc/hosts", "1"),
        (
            &["--dns", "192.0.2.8", "--dns-search", "shore"],
            "grep -cE 'nameserver 192.0.2.8|search shore' /etc/resolv.conf",
            "2",
        ),
        (&["--shm-size", "3m"], "df -k /dev/shm | tail -n 1 | awk '{print $2}'", "3072"),
        (&["--ipc", "none"], "grep -c /dev/shm /proc/mounts", "0"),
        (&["--tmpfs", "/scratch:size=1m,mode=700"], "df -k /scratch | tail -n 1 | awk '{print $2}'", "1024"),
        (&["--read-only"], "touch /x 2>/dev/null || echo refused", "refused"),
        (&["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj", "321"),
        (&["--cap-drop", "ALL", "--cap-add", "CHOWN"], "grep CapEff /proc/self/status | cut -f 2", "0000000000000001"),
        (&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status | cut -f 2", "1"),
        (&["--security-opt", "seccomp=unconfined"], "grep Seccomp: /proc/self/status | cut -f 2", "0"),
        (&["--device", "/dev/full:/dev/mine:r"], "test -c /dev/mine && head -c 1 /dev/mine | wc -c", "1"),
        (&["--device-cgroup-rule", "c 1:7 r", "--cap-add", "MKNOD"], "mknod /f c 1 7; head -c 2 /f | wc -c", "2"),
        (&["--uts", "host"], "hostname", ""),
        (&["--pid", "host"], "test $(ls -d /proc/[0-9]* | wc -l) -gt 20 && echo many", "many"),
        (&["-w", "/made/here", "-e", "A=1"], "pwd; echo $A", "/made/here\n1"),
    ];
    let own_name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    for (flags, script, expected) in cases {
        let command = [&["run", "--rm", "--network", "none"], flags, &["busybox", "sh", "-c", script]].concat();
        let found = daemon.docker_with(&command, None)?;
        let expected = if expected.is_empty() { own_name.trim() } else { expected };
        assert_eq!(found.stdout().trim(), expected, "{flags:?}: {}", found.output());
    }
    Ok(())
}

#[test]
fn a_container_joins_the_processes_of_one_that_runs() -> Result<()> {
    needs_root!("a_container_joins_the_processes_of_one_that_runs");
    let scratch = Scratch::new("flag-pid")?;
    let daemon = daemon_with_busybox(&scratch)?;
    daemon.docker_ok(&["run", "-d", "--name", "donor", "--network", "none", "busybox", "sleep", "4321"])?;
    let join = ["run", "--rm", "--network", "none", "--pid", "container:donor", "busybox"];
    let seen = daemon.docker_ok(&[&join[..], &["ps", "-o", "pid,args"]].concat())?;
    assert!(seen.lines().any(|line| line.trim() == "1 sleep 4321"), "{seen}");
    // It ends without its donor.
    assert_eq!(daemon.docker(&[&join[..], &["sh", "-c", "exit 5"]].concat())?.code, 5);
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.Running}}", "donor"])?, "true");
    daemon.docker_ok(&["stop", "-t", "0", "donor"])?;
    let refused = daemon.docker(&[&join[..], &["true"]].concat())?;
    let text = "cannot join PID namespace of a non running container";
    assert!(refused.code != 0 && refused.output().contains(text), "{}", refused.output());
    Ok(())
}

#[test]
fn an_init_passes_signals_on_reaps_and_ends_as_the_program_does() -> Result<()> {
    needs_root!("an_init_passes_signals_on_reaps_and_ends_as_the_program_does");
    let scratch = Scratch::new("flag-init")?;
    let daemon = daemon_with_busybox(&scratch)?;
    let run = |command: &[&str]| {
        daemon.docker(&[&["run", "--rm", "--init", "--network", "none", "busybox"], command].concat())
    };
    assert_eq!(run(&["sh", "-c", "exit 7"])?.code, 7);
    assert_eq!(run(&["sh", "-c", "kill -9 $$"])?.code, 137);
    assert_eq!(run(&["no-such-program"])?.code, 127);
    assert_eq!(run(&["/etc/passwd"])?.code, 126);
    assert_eq!(run(&["sh", "-c", "test $$ -ne 1 && cat /proc/1/comm"])?.ok()?.stdout(), "docker-init\n");
    // Orphans do not stay as zombies.
    let orphans = "for i in 1 2 3; do sh -c 'true & exec true' & done; wait; sleep 0.3; ps -o stat | grep -c Z";
    let seen = run(&["sh", "-c", orphans])?;
    assert_eq!(seen.stdout().lines().next(), Some("0"), "{}", seen.output());
    let script = "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    daemon.docker_ok(&["run", "-d", "--name", "box", "--init", "--network", "none", "busybox", "sh", "-c", script])?;
    baleen_tests::command::wait_for("the program", std::time::Duration::from_secs(10), || {
        daemon.docker_ok(&["logs", "box"]).ok().filter(|text| text.contains("ready"))
    })?;
    assert_eq!(daemon.docker_ok(&["exec", "box", "echo", "inside"])?, "inside");
    daemon.docker_ok(&["stop", "-t", "20", "box"])?;
    assert_eq!(daemon.docker_ok(&["inspect", "-f", "{{.State.ExitCode}}", "box"])?, "4");
    assert_eq!(daemon.docker_ok(&["logs", "box"])?, "ready\nterm");
    Ok(())
}
