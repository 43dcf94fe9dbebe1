//! Running a program: exit codes, output, users, errors of start.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use baleen_runtime::client::{self, LogConfig};
use baleen_runtime::logs::LogStream;
use baleen_runtime::spec::{MountKind, MountSpec, Resources, Ulimit};
use baleen_runtime::{ContainerStatus, FailureKind, RuntimeError, StartFailure};

use crate::Test;
use crate::fixture::{Fixture, eventually};

pub(crate) const TESTS: &[Test] = &[
    ("a_program_runs_and_its_exit_is_recorded", a_program_runs_and_its_exit_is_recorded),
    ("exit_codes_and_signals_are_told_apart", exit_codes_and_signals_are_told_apart),
    (
        "output_is_in_the_log_to_the_last_byte_when_wait_returns",
        output_is_in_the_log_to_the_last_byte_when_wait_returns,
    ),
    ("a_container_without_log_runs", a_container_without_log_runs),
    ("a_missing_program_is_127_and_leaves_nothing", a_missing_program_is_127_and_leaves_nothing),
    ("a_program_that_may_not_run_is_126", a_program_that_may_not_run_is_126),
    ("a_wrong_format_ends_with_exec_format_error", a_wrong_format_ends_with_exec_format_error),
    ("a_missing_interpreter_is_127", a_missing_interpreter_is_127),
    ("unknown_users_and_missing_bind_sources_are_named", unknown_users_and_missing_bind_sources_are_named),
    ("a_directory_on_a_file_is_refused_with_dockers_hint", a_directory_on_a_file_is_refused_with_dockers_hint),
    ("the_cause_that_the_library_loses_is_told", the_cause_that_the_library_loses_is_told),
    ("users_and_groups_come_from_the_image", users_and_groups_come_from_the_image),
    ("environment_working_directory_and_host_name_are_set", environment_working_directory_and_host_name_are_set),
    ("binds_and_tmpfs_are_mounted", binds_and_tmpfs_are_mounted),
    ("a_memory_limit_kills_and_says_so", a_memory_limit_kills_and_says_so),
    ("limits_reach_the_kernel", limits_reach_the_kernel),
    ("a_paused_container_stands_still", a_paused_container_stands_still),
];

fn start_failure(result: Result<impl std::fmt::Debug, RuntimeError>) -> StartFailure {
    match result {
        Err(RuntimeError::Start(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

fn a_program_runs_and_its_exit_is_recorded() {
    let fixture = Fixture::new(&["true"]);
    let shim = fixture.create().unwrap();
    assert_eq!(shim.state().unwrap().status, ContainerStatus::Created);
    let started = shim.start().unwrap();
    assert_eq!(started.pid, shim.pid());
    let record = shim.wait().unwrap();
    assert_eq!((record.exit_code, record.oom_killed, &record.failure), (0, false, &None));
    assert_eq!(record.started_at.as_ref(), Some(&started.started_at));
    assert!(record.finished_at > started.started_at);
    fixture.wait_for_shim_end();
    assert_eq!(client::read_exit(&fixture.dir()).unwrap(), Some(record.clone()));
    assert_eq!(shim.wait().unwrap(), record, "after the shim's end its record answers");
    let left: Vec<_> = fs::read_dir(fixture.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["exit.json"]);
    assert!(fixture.cgroup_dirs().is_empty());
}

fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(Fixture::sh("exit 7").run().unwrap().exit_code, 7);
    assert_eq!(
        Fixture::sh("kill -9 $$; exit 3").run().unwrap().exit_code,
        3,
        "the first process of a PID namespace ignores its own kill"
    );
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    shim.kill(9).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 137);
    let fixture = Fixture::sh("trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done");
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    eventually("the trap is set", || fixture.logged(LogStream::Stdout).contains("ready"));
    shim.kill(15).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 42);
    assert!(shim.kill(15).is_err());
}

fn output_is_in_the_log_to_the_last_byte_when_wait_returns() {
    let fixture = Fixture::sh("seq 1 20000; echo oops >&2; printf tail 2>/dev/null || echo -n tail");
    let text = fixture.output();
    let wanted: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(text, wanted + "tail");
    assert_eq!(fixture.logged(LogStream::Stderr), "oops\n");
    let mode = fs::metadata(&fixture.log.as_ref().unwrap().path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

fn a_container_without_log_runs() {
    let mut fixture = Fixture::sh("yes | head -c 1000000");
    fixture.log = None;
    assert_eq!(fixture.run().unwrap().exit_code, 0);
}

fn a_missing_program_is_127_and_leaves_nothing() {
    for (program, end) in
        [("no-such", "executable file not found in $PATH"), ("/bin/no-such", "no such file or directory")]
    {
        let fixture = Fixture::new(&[program]);
        let failure = start_failure(fixture.run());
        assert_eq!((failure.kind, failure.kind.exit_code()), (FailureKind::NotFound, 127));
        assert!(failure.message.ends_with(end), "{failure}");
        assert!(fixture.cgroup_dirs().is_empty());
        assert_eq!(fs::read_dir(fixture.dir()).unwrap().count(), 0);
    }
}

fn a_program_that_may_not_run_is_126() {
    for program in ["/etc/passwd", "/etc"] {
        let failure = start_failure(Fixture::new(&[program]).run());
        assert_eq!(failure.kind.exit_code(), 126);
        assert!(failure.message.ends_with("permission denied"), "{failure}");
    }
}

fn a_wrong_format_ends_with_exec_format_error() {
    let fixture = Fixture::new(&["/bin/strange"]);
    fs::write(fixture.rootfs().join("bin/strange"), "neither script nor program").unwrap();
    fs::set_permissions(fixture.rootfs().join("bin/strange"), fs::Permissions::from_mode(0o755)).unwrap();
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind, FailureKind::ExecFormat);
    assert!(failure.message.ends_with("exec format error"), "{failure}");
    fixture.wait_for_shim_end();
    let record = client::read_exit(&fixture.dir()).unwrap().unwrap();
    assert_eq!((record.exit_code, record.failure), (128, Some(failure)));
}

fn a_missing_interpreter_is_127() {
    let fixture = Fixture::new(&["/bin/script"]);
    fs::write(fixture.rootfs().join("bin/script"), "#!/no/interpreter\n").unwrap();
    fs::set_permissions(fixture.rootfs().join("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind.exit_code(), 127);
    assert!(failure.message.ends_with("no such file or directory"), "{failure}");
}

fn unknown_users_and_missing_bind_sources_are_named() {
    let mut fixture = Fixture::new(&["true"]);
    fixture.spec.user = "nobody-here".to_owned();
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind, FailureKind::UnknownUser);
    assert_eq!(failure.message, "unable to find user nobody-here: no matching entries in passwd file");
    fixture.spec.user = String::new();
    let source = fixture.base.join("missing");
    fixture.spec.mounts = vec![bind(&source, "/mnt", false)];
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind, FailureKind::BindSourceMissing);
    assert!(failure.message.contains(source.to_str().unwrap()), "{failure}");
}

fn a_directory_on_a_file_is_refused_with_dockers_hint() {
    let mut fixture = Fixture::new(&["true"]);
    fixture.spec.mounts = vec![bind(&fixture.base, "/etc/passwd", false)];
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind.exit_code(), 127);
    assert!(
        failure.message.contains("not a directory")
            && failure.message.contains("Are you trying to mount a directory onto a file")
    );
}

fn the_cause_that_the_library_loses_is_told() {
    let mut fixture = Fixture::new(&["true"]);
    fixture.spec.mounts = vec![MountSpec {
        kind: MountKind::Tmpfs { options: "size=plenty".to_owned() },
        target: "/scratch".to_owned(),
        readonly: false,
    }];
    let failure = start_failure(fixture.run());
    assert_eq!(failure.kind, FailureKind::Other);
    assert!(failure.message.contains("/scratch") && failure.message.contains("EINVAL"), "{failure}");
    fixture.spec.mounts.clear();
    fixture.spec.cwd = "/etc/passwd".to_owned();
    let failure = start_failure(fixture.run());
    assert!(failure.message.contains("chdir") && failure.message.contains("ENOTDIR"), "{failure}");
}

fn users_and_groups_come_from_the_image() {
    let run = |user: &str, add: &[&str]| {
        let mut fixture = Fixture::sh("grep -E '^(Uid|Gid|Groups)' /proc/self/status; echo $HOME");
        fixture.spec.user = user.to_owned();
        fixture.spec.group_add = add.iter().map(|&group| group.to_owned()).collect();
        fixture.output().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(run("", &[]), "Uid: 0 0 0 0 Gid: 0 0 0 0 Groups: 0 /root");
    assert_eq!(run("ann", &["44"]), "Uid: 1001 1001 1001 1001 Gid: 100 100 100 100 Groups: 29 44 100 /home/ann");
    assert_eq!(run("1000:1000", &[]), "Uid: 1000 1000 1000 1000 Gid: 1000 1000 1000 1000 Groups: 1000 /");
}

fn environment_working_directory_and_host_name_are_set() {
    let mut fixture = Fixture::sh("env; pwd; hostname");
    fixture.spec.env = vec!["A=x=y z".to_owned(), "PATH=/bin".to_owned()];
    fixture.spec.cwd = "/made/for me".to_owned();
    let text = fixture.output();
    for line in ["A=x=y z", "PATH=/bin", "HOSTNAME=box", "HOME=/root", "/made/for me", "box"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

fn bind(source: &std::path::Path, target: &str, readonly: bool) -> MountSpec {
    MountSpec {
        kind: MountKind::Bind { source: source.to_owned(), propagation: String::new(), non_recursive: false },
        target: target.to_owned(),
        readonly,
    }
}

fn binds_and_tmpfs_are_mounted() {
    let mut fixture = Fixture::sh(
        "cat /data/file /etc/hosts; echo new > /data/new; echo no > /ro/new || echo refused; \
         echo t > /scratch/t && cat /scratch/t; grep ' /scratch ' /proc/mounts",
    );
    let (data, hosts) = (fixture.base.join("data"), fixture.base.join("hosts"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    fs::write(&hosts, "hosts file\n").unwrap();
    let tmpfs = MountSpec {
        kind: MountKind::Tmpfs { options: "size=1m,mode=1777".to_owned() },
        target: "/scratch".to_owned(),
        readonly: false,
    };
    fixture.spec.mounts =
        vec![bind(&data, "/data", false), bind(&data, "/ro", true), bind(&hosts, "/etc/hosts", false), tmpfs];
    let text = fixture.output();
    assert!(text.starts_with("content\nhosts file\nrefused\nt\n"), "{text}");
    assert!(text.contains("nosuid,nodev,noexec") && text.contains("size=1024k"), "{text}");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
}

fn a_memory_limit_kills_and_says_so() {
    let mut fixture = Fixture::sh("dd if=/dev/zero of=/dev/shm/fill bs=1M count=60; echo survived");
    let limit = Some(16 << 20);
    fixture.spec.resources = Resources { memory_bytes: limit, memory_swap_bytes: limit, ..Resources::default() };
    let record = fixture.run().unwrap();
    assert!(record.oom_killed, "{record:?}");
    let fixture = Fixture::sh("exit 137");
    assert!(!fixture.run().unwrap().oom_killed);
}

fn limits_reach_the_kernel() {
    let mut fixture = Fixture::sh("ulimit -n; cat /proc/self/oom_score_adj; sleep 1000");
    fixture.spec.resources =
        Resources { pids_limit: Some(77), nano_cpus: Some(500_000_000), cpu_shares: Some(512), ..Resources::default() };
    fixture.spec.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 123, hard: 456 }];
    fixture.spec.oom_score_adj = Some(321);
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    eventually("both lines are written", || fixture.logged(LogStream::Stdout) == "123\n321\n");
    let read = |file: &str| {
        let dirs = fixture.cgroup_dirs();
        let path = dirs.iter().map(|dir| dir.join(file)).find(|path| path.exists());
        fs::read_to_string(path.unwrap()).unwrap().trim().to_owned()
    };
    assert_eq!(read("pids.max"), "77");
    if fixture.cgroup_dirs().len() > 1 {
        assert_eq!(
            (read("cpu.cfs_quota_us").as_str(), read("cpu.cfs_period_us").as_str(), read("cpu.shares").as_str()),
            ("50000", "100000", "512")
        );
    } else {
        assert_eq!(read("cpu.max"), "50000 100000");
    }
}

fn a_paused_container_stands_still() {
    let mut fixture = Fixture::sh("while :; do echo x; sleep 0.01; done");
    fixture.log = Some(LogConfig::new(fixture.base.join("log/paused.log")));
    let shim = fixture.create().unwrap();
    assert!(shim.pause().is_err(), "not before it runs");
    shim.start().unwrap();
    let size = || fs::metadata(&fixture.log.as_ref().unwrap().path).unwrap().len();
    eventually("it writes", || size() > 0);
    shim.pause().unwrap();
    assert_eq!(shim.state().unwrap().status, ContainerStatus::Paused);
    assert!(shim.pause().is_err());
    // What was in the pipe when it froze still arrives; then nothing may.
    let mut before = size();
    eventually("the pipe is drained", || std::mem::replace(&mut before, size()) == size());
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(size(), before);
    shim.unpause().unwrap();
    eventually("it writes again", || size() > before);
    shim.pause().unwrap();
    shim.kill(9).unwrap();
    assert_eq!(shim.wait().unwrap().exit_code, 137, "a paused container can be killed");
    let shim = fixture.create().unwrap();
    shim.start().unwrap();
    shim.pause().unwrap();
    shim.delete().unwrap();
}
