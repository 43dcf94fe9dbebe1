//! Further programs in a running container.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use baleen_runtime::protocol::{STREAM_BYTES_MAX, STREAM_HEADER_BYTES, StreamKind, parse_stream_header, stream_header};
use baleen_runtime::spec::{NamespaceMode, Resources};
use baleen_runtime::{
    AttachOptions, ContainerSpec, ExecConfig, ExitRecord, FailureKind, RuntimeError, Shim, ShimConfig, StartFailure,
};

use crate::Test;
use crate::fixture::{Fixture, eventually, is_alive};
use crate::probe;

pub(crate) const TESTS: &[Test] = &[
    ("an_exec_gives_output_errors_and_its_exit_code", an_exec_gives_output_errors_and_its_exit_code),
    (
        "an_exec_has_the_containers_namespaces_filter_capabilities_and_groups",
        an_exec_has_the_containers_namespaces_filter_capabilities_and_groups,
    ),
    (
        "a_privileged_exec_has_all_capabilities_and_the_same_filter",
        a_privileged_exec_has_all_capabilities_and_the_same_filter,
    ),
    ("an_exec_takes_user_environment_and_directory", an_exec_takes_user_environment_and_directory),
    ("an_exec_with_a_terminal_has_one_of_the_containers", an_exec_with_a_terminal_has_one_of_the_containers),
    ("a_failed_exec_says_why_and_leaves_nothing", a_failed_exec_says_why_and_leaves_nothing),
    ("an_exec_ends_with_its_container", an_exec_ends_with_its_container),
    ("an_exec_in_a_full_container_runs_or_names_the_limit", an_exec_in_a_full_container_runs_or_names_the_limit),
    ("with_the_oom_killer_off_neither_exec_nor_removal_hangs", with_the_oom_killer_off_neither_exec_nor_removal_hangs),
];

/// A program to be executed in the container of a fixture.
struct Exec {
    spec: ContainerSpec,
    config: ExecConfig,
    dir: PathBuf,
}

struct Ended {
    record: ExitRecord,
    out: String,
    err: String,
}

impl Exec {
    fn new(fixture: &Fixture, args: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("exec{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let args = args.iter().map(|&argument| argument.to_owned()).collect();
        let spec = ContainerSpec { args, tty: false, open_stdin: false, ..fixture.spec.clone() };
        let dir = fixture.base.join("run").join(&id);
        Self { spec, config: ExecConfig { id, container_dir: fixture.dir(), privileged: false }, dir }
    }

    fn spawn(&self) -> Result<Shim, RuntimeError> {
        Shim::spawn(&ShimConfig::for_exec(self.dir.clone(), self.spec.clone(), self.config.clone()))
    }

    fn run(&self) -> Result<Ended, RuntimeError> {
        self.run_with(None)
    }

    fn run_with(&self, input: Option<&[u8]>) -> Result<Ended, RuntimeError> {
        let shim = self.spawn()?;
        let options = AttachOptions { stdin: input.is_some(), stdout: true, stderr: true, close_stdin: true };
        let mut stream = shim.attach(options)?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let started = shim.start();
        let mut writer = stream.try_clone().unwrap();
        let (out, err) = std::thread::scope(|scope| {
            if let (Ok(_), Some(input)) = (&started, input) {
                scope.spawn(move || {
                    for piece in input.chunks(STREAM_BYTES_MAX) {
                        let length = u32::try_from(piece.len()).unwrap();
                        writer.write_all(&stream_header(StreamKind::Stdin, length)).unwrap();
                        writer.write_all(piece).unwrap();
                    }
                    writer.shutdown(Shutdown::Write).unwrap();
                });
            }
            rest(&mut stream)
        });
        let record = shim.wait()?;
        shim.delete()?;
        assert!(!self.dir.exists());
        started?;
        Ok(Ended { record, out, err })
    }

    fn failure(&self) -> StartFailure {
        match self.run() {
            Err(RuntimeError::Start(failure)) => failure,
            other => panic!("{:?}", other.map(|ended| (ended.record, ended.out, ended.err))),
        }
    }
}

fn rest(stream: &mut UnixStream) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let mut header = [0; STREAM_HEADER_BYTES];
        match stream.read_exact(&mut header) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            other => other.unwrap(),
        }
        let (kind, length) = parse_stream_header(header, 1 << 20).unwrap();
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        if kind == StreamKind::Stdout { &mut out } else { &mut err }.extend(payload);
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// A container that does nothing until it is removed.
fn idle() -> Fixture {
    Fixture::new(&["sleep", "1000"])
}

fn running(fixture: &Fixture) -> Shim {
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    shim
}

fn sh(fixture: &Fixture, script: &str) -> String {
    let ended = Exec::new(fixture, &["sh", "-c", script]).run().unwrap();
    assert_eq!((ended.record.exit_code, ended.err.as_str()), (0, ""), "{script}: {}", ended.out);
    ended.out
}

fn an_exec_gives_output_errors_and_its_exit_code() {
    let fixture = idle();
    let container = running(&fixture);
    let ended = Exec::new(&fixture, &["sh", "-c", "echo out; echo err >&2; exit 7"]).run().unwrap();
    assert_eq!((ended.record.exit_code, ended.out.as_str(), ended.err.as_str()), (7, "out\n", "err\n"));
    let killed = Exec::new(&fixture, &["sh", "-c", "kill -9 $$"]).run().unwrap();
    assert_eq!(killed.record.exit_code, 137);
    let mut cat = Exec::new(&fixture, &["cat"]);
    cat.spec.open_stdin = true;
    let input = b"line\n".repeat(100_000);
    assert_eq!(cat.run_with(Some(&input)).unwrap().out.into_bytes(), input);
    assert!(is_alive(container.pid()));
    container.delete().unwrap();
}

fn an_exec_has_the_containers_namespaces_filter_capabilities_and_groups() {
    let mut fixture = Fixture::sh(
        "for n in mnt pid net ipc uts cgroup user; do readlink /proc/1/ns/$n; done > /tmp/own; cat /proc/1/uid_map >> /tmp/own
         grep -E '^(Seccomp|NoNewPrivs|Cap|Groups|Uid|Gid)' /proc/1/status >> /tmp/own; cat /proc/1/cgroup >> /tmp/own
         ulimit -n >> /tmp/own; umask >> /tmp/own; echo > /tmp/ready; sleep 1000",
    );
    fixture.spec.no_new_privileges = true;
    fixture.spec.cap_drop = vec!["NET_RAW".to_owned()];
    fixture.spec.group_add = vec!["audio".to_owned()];
    fixture.spec.ulimits = vec![baleen_runtime::spec::Ulimit { name: "nofile".to_owned(), soft: 77, hard: 99 }];
    let container = running(&fixture);
    eventually("the container has told of itself", || fixture.rootfs().join("tmp/ready").exists());
    let own = fs::read_to_string(fixture.rootfs().join("tmp/own")).unwrap();
    assert!(own.contains("Seccomp:\t2") && own.contains("NoNewPrivs:\t1"), "{own}");
    let script = "for n in mnt pid net ipc uts cgroup user; do readlink /proc/self/ns/$n; done; cat /proc/self/uid_map
         grep -E '^(Seccomp|NoNewPrivs|Cap|Groups|Uid|Gid)' /proc/self/status; cat /proc/self/cgroup; ulimit -n; umask";
    assert_eq!(sh(&fixture, script), own);
    assert_eq!(sh(&fixture, "cat /proc/self/oom_score_adj").trim(), "0");
    let results = sh(&fixture, "ls /proc/self/fd | wc -l; unshare -n true 2>/dev/null || echo refused");
    assert_eq!(results, "4\nrefused\n", "0 to 2 and the directory that is listed");
    container.delete().unwrap();
}

fn a_privileged_exec_has_all_capabilities_and_the_same_filter() {
    let fixture = idle();
    let container = running(&fixture);
    let script = "grep -E '^(Seccomp|CapEff|CapInh|CapAmb)' /proc/self/status";
    let mut exec = Exec::new(&fixture, &["sh", "-c", script]);
    exec.config.privileged = true;
    let out = exec.run().unwrap().out;
    let value = |name: &str| out.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(u64::from_str_radix(&value("CapEff:"), 16).unwrap().count_ones() >= 38, "{out}");
    assert_eq!((value("CapInh:"), value("CapAmb:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(value("Seccomp:"), "2");
    container.delete().unwrap();
}

fn an_exec_takes_user_environment_and_directory() {
    let mut fixture = idle();
    fixture.spec.env.push("KEPT=1".to_owned());
    let container = running(&fixture);
    let mut exec = Exec::new(
        &fixture,
        &[
            "sh",
            "-c",
            "id -u; id -g; id -G; pwd; echo $KEPT $GIVEN $HOME; grep CapEff /proc/self/status; echo x > /dev/stdout",
        ],
    );
    exec.spec.user = "ann".to_owned();
    exec.spec.cwd = "/tmp".to_owned();
    exec.spec.env.push("GIVEN=2".to_owned());
    assert_eq!(exec.run().unwrap().out, "1001\n100\n100 29\n/tmp\n1 2 /home/ann\nCapEff:\t0000000000000000\nx\n");
    exec.spec.user = "nobody".to_owned();
    assert_eq!(exec.failure().kind, FailureKind::UnknownUser);
    exec.spec.user = "4294967296".to_owned();
    assert_eq!(exec.failure().kind, FailureKind::UnknownUser);
    container.delete().unwrap();
}

fn an_exec_with_a_terminal_has_one_of_the_containers() {
    let fixture = idle();
    let container = running(&fixture);
    let mut exec = Exec::new(&fixture, &["sh", "-c", "tty; stty size; read line; stty size; echo got $line"]);
    (exec.spec.tty, exec.spec.open_stdin) = (true, true);
    let shim = exec.spawn().unwrap();
    let mut stream = shim.attach(AttachOptions { stdin: true, stdout: true, stderr: true, close_stdin: true }).unwrap();
    shim.resize(33, 77).unwrap();
    shim.start().unwrap();
    let mut seen = String::new();
    let mut until = |wanted: &str| {
        while !seen.contains(wanted) {
            let mut header = [0; STREAM_HEADER_BYTES];
            stream.read_exact(&mut header).unwrap();
            let mut payload = vec![0; parse_stream_header(header, 1 << 20).unwrap().1];
            stream.read_exact(&mut payload).unwrap();
            seen.push_str(&String::from_utf8(payload).unwrap());
        }
    };
    until("/dev/pts/");
    until("33 77");
    shim.resize(41, 99).unwrap();
    let mut writer = stream.try_clone().unwrap();
    writer.write_all(&stream_header(StreamKind::Stdin, 6)).unwrap();
    writer.write_all(b"hello\n").unwrap();
    let mut until = |wanted: &str| {
        while !seen.contains(wanted) {
            let mut header = [0; STREAM_HEADER_BYTES];
            stream.read_exact(&mut header).unwrap();
            let mut payload = vec![0; parse_stream_header(header, 1 << 20).unwrap().1];
            stream.read_exact(&mut payload).unwrap();
            seen.push_str(&String::from_utf8(payload).unwrap());
        }
    };
    until("41 99");
    until("got hello");
    assert_eq!(shim.wait().unwrap().exit_code, 0);
    shim.delete().unwrap();
    container.delete().unwrap();
}

fn a_failed_exec_says_why_and_leaves_nothing() {
    let fixture = idle();
    let container = running(&fixture);
    for (program, kind, text) in [
        ("no-such-program", FailureKind::NotFound, "executable file not found in $PATH"),
        ("/bin/none", FailureKind::NotFound, "no such file or directory"),
        ("/etc/passwd", FailureKind::PermissionDenied, "permission denied"),
        ("/etc", FailureKind::PermissionDenied, "is a directory: permission denied"),
    ] {
        let failure = Exec::new(&fixture, &[program]).failure();
        assert_eq!(failure.kind, kind, "{}", failure.message);
        assert!(failure.message.contains(text), "{}", failure.message);
    }
    for number in 3..64 {
        let mut exec = Exec::new(&fixture, &["pwd"]);
        exec.spec.cwd = format!("/proc/self/fd/{number}");
        assert_eq!(exec.failure().kind, FailureKind::Invalid);
    }
    container.delete().unwrap();
    assert_eq!(Exec::new(&fixture, &["true"]).failure().kind, FailureKind::NotRunning);
}

fn an_exec_ends_with_its_container() {
    for pid in [NamespaceMode::Private, NamespaceMode::Host] {
        let mut fixture = idle();
        fixture.spec.pid = pid;
        let container = running(&fixture);
        let exec = Exec::new(&fixture, &["sleep", "1000"]);
        let shim = exec.spawn().unwrap();
        shim.start().unwrap();
        let state = shim.state().unwrap();
        assert!(is_alive(state.pid));
        container.kill(9).unwrap();
        assert_eq!(shim.wait().unwrap().exit_code, 137);
        assert!(!is_alive(state.pid));
        shim.delete().unwrap();
        container.delete().unwrap();
    }
}

/// A container whose program holds memory until so many kB are left of its limit.
fn hog(limit_mib: i64, left_kb: u64, oom_kill_disable: bool) -> (Fixture, Shim, PathBuf) {
    let mut fixture = probe::container(&["probe", &format!("hog:{left_kb}")]);
    let limit = limit_mib << 20;
    fixture.spec.resources = Resources {
        memory_bytes: Some(limit),
        memory_swap_bytes: Some(limit),
        oom_kill_disable,
        ..Resources::default()
    };
    let container = running(&fixture);
    eventually("the hog is full", || fixture.logged(baleen_runtime::logs::LogStream::Stdout).contains("full"));
    let dirs = fixture.cgroup_dirs();
    let has = |file: &str| dirs.iter().find(|dir| dir.join(file).exists());
    let memory = has("memory.usage_in_bytes").or_else(|| has("memory.current")).expect("a memory group").clone();
    (fixture, container, memory)
}

fn oom_kills(memory: &Path) -> u64 {
    let text = fs::read_to_string(memory.join("memory.events"))
        .or_else(|_| fs::read_to_string(memory.join("memory.oom_control")))
        .unwrap();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().trim().parse().unwrap()
}

fn an_exec_in_a_full_container_runs_or_names_the_limit() {
    const EXECS: usize = 20;
    for limit_mib in [8, 16, 32] {
        for left_kb in [900, 600, 100, 20] {
            let (fixture, container, memory) = hog(limit_mib, left_kb, false);
            let mut ran = 0;
            for _ in 0..EXECS {
                match Exec::new(&fixture, &["/bin/busybox", "true"]).run() {
                    Ok(ended) => {
                        assert_eq!(ended.record.exit_code, 0, "{limit_mib} MiB, {left_kb} kB left: {}", ended.err);
                        ran += 1;
                    }
                    Err(RuntimeError::Start(failure)) => {
                        assert_eq!(failure.kind, FailureKind::NoMemory, "{}", failure.message);
                        let limit = (limit_mib << 20).to_string();
                        assert!(failure.message.contains(&limit), "{}", failure.message);
                        assert!(left_kb < 900, "{limit_mib} MiB, {left_kb} kB left: {}", failure.message);
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
            println!("    {limit_mib} MiB, {left_kb} kB left: {ran} of {EXECS} ran");
            assert!(is_alive(container.pid()), "the hog was killed");
            assert_eq!(oom_kills(&memory), 0, "{limit_mib} MiB, {left_kb} kB left");
            container.delete().unwrap();
        }
    }
}

fn with_the_oom_killer_off_neither_exec_nor_removal_hangs() {
    if !Path::new("/sys/fs/cgroup/memory/memory.oom_control").exists() {
        eprintln!("SKIPPED: with_the_oom_killer_off_neither_exec_nor_removal_hangs: cgroup v2 has no such switch");
        return;
    }
    let (fixture, container, _) = hog(16, 0, true);
    assert_eq!(Exec::new(&fixture, &["/bin/busybox", "true"]).failure().kind, FailureKind::NoMemory);
    container.delete().unwrap();
}
