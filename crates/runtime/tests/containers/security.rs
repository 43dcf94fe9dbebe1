//! What a container cannot do (threats.md sections 4 and 8).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use baleen_runtime::logs::LogStream;
use baleen_runtime::spec::{DeviceSpec, NamespaceMode, Resources, SeccompProfile};
use baleen_runtime::{FailureKind, RuntimeError, Shim};

use crate::Test;
use crate::fixture::{Fixture, own_mounts, shim_pid};
use crate::probe;

pub(crate) const TESTS: &[Test] = &[
    ("the_default_filter_lets_through_what_dockers_does", the_default_filter_lets_through_what_dockers_does),
    ("without_filter_and_privileged_more_is_allowed", without_filter_and_privileged_more_is_allowed),
    ("a_profile_of_the_users_own_is_applied", a_profile_of_the_users_own_is_applied),
    (
        "capabilities_are_the_default_set_and_inheritable_ones_empty",
        capabilities_are_the_default_set_and_inheritable_ones_empty,
    ),
    (
        "no_new_privileges_is_set_when_asked_for_and_the_filter_stays",
        no_new_privileges_is_set_when_asked_for_and_the_filter_stays,
    ),
    (
        "masked_paths_are_empty_and_read_only_paths_refuse_writes",
        masked_paths_are_empty_and_read_only_paths_refuse_writes,
    ),
    ("limits_cannot_be_raised_from_inside", limits_cannot_be_raised_from_inside),
    ("devices_may_be_made_but_not_opened_unless_given", devices_may_be_made_but_not_opened_unless_given),
    ("the_program_has_three_descriptors", the_program_has_three_descriptors),
    ("the_program_starts_with_default_signals", the_program_starts_with_default_signals),
    ("a_working_directory_through_a_descriptor_is_refused", a_working_directory_through_a_descriptor_is_refused),
    ("links_in_the_image_lead_no_mount_out", links_in_the_image_lead_no_mount_out),
    (
        "a_link_swapped_while_containers_start_leads_no_mount_out",
        a_link_swapped_while_containers_start_leads_no_mount_out,
    ),
    ("nothing_is_mounted_on_the_root_or_in_proc", nothing_is_mounted_on_the_root_or_in_proc),
    ("namespaces_are_its_own_unless_shared", namespaces_are_its_own_unless_shared),
    ("a_read_only_root_refuses_writes_and_its_mounts_do_not", a_read_only_root_refuses_writes_and_its_mounts_do_not),
    ("passwd_and_group_may_be_anything", passwd_and_group_may_be_anything),
    ("the_shims_program_cannot_be_written_to", the_shims_program_cannot_be_written_to),
    ("the_run_directory_is_closed_to_others", the_run_directory_is_closed_to_others),
];

fn lines(fixture: &Fixture) -> BTreeMap<String, String> {
    let text = fixture.output();
    text.lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn the_default_filter_lets_through_what_dockers_does() {
    let results = lines(&probe::container(&["probe", "calls"]));
    let (eperm, enosys) = ("1", "38");
    for name in [
        "clone-newuser",
        "clone-newns",
        "clone-newnet",
        "clone-newcgroup",
        "unshare-user",
        "setns",
        "mount",
        "keyctl",
        "add_key",
        "bpf",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "kexec_load",
        "reboot",
        "swapon",
        "personality-norandom",
        "socket-alg",
        "socket-vsock",
    ] {
        assert_eq!(results[name], eperm, "{name}");
    }
    assert_eq!(results["clone3"], enosys);
    for name in ["clone", "personality-query", "socket-unix", "socket-inet", "socket-netlink"] {
        assert_eq!(results[name], "ok", "{name}");
    }
    let status = Fixture::sh("grep Seccomp: /proc/self/status").output();
    assert_eq!(status.split_whitespace().collect::<Vec<_>>(), ["Seccomp:", "2"]);
}

fn without_filter_and_privileged_more_is_allowed() {
    let mut fixture = probe::container(&["probe", "calls"]);
    fixture.spec.seccomp = SeccompProfile::Unconfined;
    let results = lines(&fixture);
    assert_eq!(results["clone-newuser"], "ok");
    assert_ne!(results["clone3"], "38");
    let mut fixture = Fixture::sh(
        "grep -E '^(Seccomp|CapEff|CapInh|CapAmb):' /proc/self/status; mkdir /m && mount -t tmpfs none /m && echo mounted; ls /dev",
    );
    fixture.spec.privileged = true;
    let text = fixture.output();
    assert!(text.contains("mounted") && text.contains("Seccomp:\t0"), "{text}");
    assert!(text.contains("CapInh:\t0000000000000000") && text.contains("CapAmb:\t0000000000000000"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("loop")), "host devices are there: {text}");
}

fn a_profile_of_the_users_own_is_applied() {
    let mut fixture = Fixture::sh("mkdir /tmp/x 2>/dev/null || echo refused");
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    fixture.spec.seccomp = SeccompProfile::Profile(profile.to_owned());
    assert_eq!(fixture.output(), "refused\n");
    fixture.spec.seccomp = SeccompProfile::Profile("{".to_owned());
    assert!(matches!(fixture.run(), Err(RuntimeError::Start(failure)) if failure.kind == FailureKind::Invalid));
}

fn capabilities_are_the_default_set_and_inheritable_ones_empty() {
    let run = |user: &str, add: &[&str], drop: &[&str]| {
        let mut fixture = Fixture::sh("grep ^Cap /proc/self/status");
        fixture.spec.user = user.to_owned();
        fixture.spec.cap_add = add.iter().map(|&name| name.to_owned()).collect();
        fixture.spec.cap_drop = drop.iter().map(|&name| name.to_owned()).collect();
        let text = fixture.output();
        let sets: BTreeMap<String, u64> = text
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .map(|(name, value)| (name.to_owned(), u64::from_str_radix(value, 16).unwrap()))
            .collect();
        assert_eq!((sets["CapInh"], sets["CapAmb"]), (0, 0), "{text}");
        sets
    };
    let default = run("", &[], &[]);
    assert_eq!(default["CapEff"], 0xa804_25fb);
    assert_eq!((default["CapPrm"], default["CapBnd"]), (0xa804_25fb, 0xa804_25fb));
    let user = run("1000", &["NET_ADMIN"], &[]);
    assert_eq!((user["CapEff"], user["CapPrm"]), (0, 0));
    assert_eq!(user["CapBnd"], 0xa804_25fb | 1 << 12);
    assert_eq!(run("", &["SYS_TIME"], &["ALL"])["CapEff"], 1 << 25);
}

fn no_new_privileges_is_set_when_asked_for_and_the_filter_stays() {
    let mut fixture = Fixture::sh("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status");
    assert_eq!(fixture.output(), "NoNewPrivs:\t0\nSeccomp:\t2\n");
    fixture = Fixture::sh("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status");
    fixture.spec.no_new_privileges = true;
    assert_eq!(fixture.output(), "NoNewPrivs:\t1\nSeccomp:\t2\n");
}

fn masked_paths_are_empty_and_read_only_paths_refuse_writes() {
    let masked = "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi \
                  /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware";
    let script = format!(
        "for p in {masked}; do if test -d $p; then test -z \"$(ls -A $p)\" || echo full $p; \
         elif test -e $p; then test $(head -c 100 $p | wc -c) = 0 || echo readable $p; fi; done; \
         for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/shmmax /sys/kernel/profiling; do \
         test -e $p || continue; (echo x > $p) 2>&1 | grep -q 'Read-only file system' || echo writable $p; done; echo checked"
    );
    assert_eq!(Fixture::sh(&script).output(), "checked\n");
    let mut fixture = Fixture::sh(
        "head -c 10 /proc/interrupts | wc -c; (echo 0 > /proc/sys/kernel/shm_rmid_forced) 2>&1 && echo written",
    );
    fixture.spec.masked_paths = Some(Vec::new());
    fixture.spec.readonly_paths = Some(Vec::new());
    assert_eq!(fixture.output(), "10\nwritten\n");
}

fn limits_cannot_be_raised_from_inside() {
    let mut fixture = Fixture::sh(
        "find=0; for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do test -e $f || continue; find=1; cat $f; \
         (echo 800000000 > $f) 2>&1 | grep -q 'Read-only file system' || echo written; done; echo $find; \
         (mkdir /sys/fs/cgroup/x) 2>&1 | grep -c 'Read-only'; (mkdir /sys/fs/cgroup/memory/x) 2>&1 | grep -c 'Read-only\\|No such'",
    );
    fixture.spec.resources = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    assert_eq!(fixture.run().unwrap().exit_code, 0);
    assert_eq!(fixture.logged(LogStream::Stdout), "67108864\n1\n1\n1\n");
}

fn devices_may_be_made_but_not_opened_unless_given() {
    let mut fixture = Fixture::sh(
        "mknod /tmp/disk b 7 0 && (cat /tmp/disk) 2>&1 | grep -c 'Operation not permitted'; \
         mknod /tmp/tun c 10 200 && (cat /tmp/tun) 2>&1 | grep -c 'Operation not permitted'; \
         head -c 1 /dev/zero | wc -c; echo x > /dev/null && ls /dev",
    );
    let text = fixture.output();
    assert!(text.starts_with("1\n1\n1\n"), "{text}");
    for name in [
        "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ] {
        assert!(name == "console" || text.lines().any(|line| line == name), "{name} in {text}");
    }
    fixture = Fixture::sh(
        "ls /dev/given && head -c 0 /dev/given && (echo x > /dev/given) 2>&1 | grep -c 'Operation not permitted'",
    );
    fixture.spec.devices = vec![DeviceSpec {
        path_on_host: "/dev/loop-control".into(),
        path_in_container: "/dev/given".into(),
        permissions: "r".into(),
    }];
    if fs::metadata("/dev/loop-control").is_ok() {
        assert_eq!(fixture.output(), "/dev/given\n1\n");
    }
    fixture.spec.devices[0].path_on_host = "/etc/passwd".into();
    assert!(fixture.run().is_err());
}

fn the_program_has_three_descriptors() {
    assert_eq!(probe::container(&["probe", "descriptors"]).output(), "[0, 1, 2]\n");
    let mut fixture = probe::container(&["probe", "descriptors"]);
    fixture.spec.tty = true;
    fixture.spec.open_stdin = true;
    assert_eq!(fixture.output(), "[0, 1, 2]\r\n");
}

fn the_program_starts_with_default_signals() {
    let mut fixture = Fixture::new(&["grep", "-E", "^Sig(Blk|Ign|Cgt):", "/proc/self/status"]);
    let none = "0000000000000000";
    assert_eq!(fixture.output(), format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n"));
    fixture.spec.tty = true;
    fixture.log = Some(baleen_runtime::client::LogConfig::new(fixture.base.join("log/terminal.log")));
    assert_eq!(fixture.output(), format!("SigBlk:\t{none}\r\nSigIgn:\t{none}\r\nSigCgt:\t{none}\r\n"));
}

fn a_working_directory_through_a_descriptor_is_refused() {
    for number in 3..24 {
        let mut fixture = Fixture::sh("cat ../../../etc/shadow; pwd");
        fixture.spec.cwd = format!("/proc/self/fd/{number}");
        assert!(fixture.run().is_err(), "descriptor {number}");
        fixture.spec.cwd = format!("/way/in/{number}");
        fs::create_dir_all(fixture.rootfs().join("way/in")).unwrap();
        symlink(format!("/proc/self/fd/{number}"), fixture.rootfs().join(format!("way/in/{number}"))).unwrap();
        assert!(fixture.run().is_err(), "link to descriptor {number}");
    }
}

fn links_in_the_image_lead_no_mount_out() {
    for (name, target) in [
        ("proc", "/etc"),
        ("sys", "/tmp"),
        ("dev", "/tmp"),
        ("proc", "../.."),
        ("etc/hosts", "/../../../../../../tmp/baleen-canary"),
        ("data", "/../.."),
    ] {
        let mut fixture = Fixture::sh("cat /proc/self/mountinfo > /dev/null; true");
        let canary = fixture.base.join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "untouched").unwrap();
        let place = fixture.rootfs().join(name);
        let _ = fs::remove_dir(&place);
        symlink(target, &place).unwrap();
        let hosts = fixture.base.join("hosts");
        fs::write(&hosts, "x").unwrap();
        for (source, inside) in [(&hosts, "/etc/hosts"), (&canary, "/data/sub")] {
            fixture.spec.mounts.push(baleen_runtime::spec::MountSpec {
                kind: baleen_runtime::spec::MountKind::Bind {
                    source: source.clone(),
                    propagation: String::new(),
                    non_recursive: false,
                },
                target: inside.to_owned(),
                readonly: false,
            });
        }
        // Whether such a container starts is one question; that nothing outside changes is this test's.
        let _ = fixture.run();
        assert_eq!(fs::read_dir(&canary).unwrap().count(), 1, "{name} -> {target}");
        assert!(!std::path::Path::new("/tmp/baleen-canary").exists() && !std::path::Path::new("/sub").exists());
        assert_eq!(own_mounts(), [""; 0], "{name} -> {target}");
    }
}

/// Rounds of the race; `make soak` asks for more.
fn rounds() -> u32 {
    std::env::var("BALEEN_RACE_ROUNDS").map_or(60, |text| text.parse().unwrap())
}

fn a_link_swapped_while_containers_start_leads_no_mount_out() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut fixture = Fixture::sh("touch /vol/place/sub/made; true");
    let (volume, canary, source) =
        (fixture.base.join("volume"), fixture.base.join("canary"), fixture.base.join("source"));
    for directory in [&volume, &canary, &source, &volume.join("place")] {
        fs::create_dir(directory).unwrap();
    }
    symlink(&canary, volume.join("link")).unwrap();
    let bind = |source: &std::path::Path, target: &str| baleen_runtime::spec::MountSpec {
        kind: baleen_runtime::spec::MountKind::Bind {
            source: source.to_owned(),
            propagation: String::new(),
            non_recursive: false,
        },
        target: target.to_owned(),
        readonly: false,
    };
    // As a second container with the same volume could: the place of the inner mount is swapped with a link to the host.
    fixture.spec.mounts = vec![bind(&volume, "/vol"), bind(&source, "/vol/place/sub")];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = fs::File::open(&volume).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    &directory,
                    "place",
                    &directory,
                    "link",
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        for _ in 0..rounds() {
            // Some rounds fail to start: that is an answer too.
            let _ = fixture.run();
            let _ = baleen_runtime::client::clean_up(&fixture.dir());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "the host's directory was reached");
    assert_eq!(own_mounts(), [""; 0]);
}

fn nothing_is_mounted_on_the_root_or_in_proc() {
    for target in ["/", "/proc", "/proc/sys", "/proc/self/attr", "/x/../proc/1"] {
        let mut fixture = Fixture::new(&["true"]);
        fixture.spec.mounts = vec![baleen_runtime::spec::MountSpec {
            kind: baleen_runtime::spec::MountKind::Tmpfs { options: String::new() },
            target: target.to_owned(),
            readonly: false,
        }];
        match fixture.run() {
            Err(RuntimeError::Start(failure)) => assert_eq!(failure.kind, FailureKind::Invalid, "{target}"),
            other => panic!("{target}: {other:?}"),
        }
    }
}

fn namespaces_are_its_own_unless_shared() {
    let link = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_owned();
    let script = "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; echo $$; ls /sys/class/net";
    let own = Fixture::sh(script).output();
    for kind in ["net", "pid", "ipc", "uts", "mnt"] {
        assert!(!own.contains(&link(kind)), "{kind}");
    }
    assert_eq!(own.lines().skip(5).collect::<Vec<_>>(), ["1", "lo"], "{own}");
    let mut fixture = Fixture::sh(script);
    fixture.spec.network = NamespaceMode::Host;
    fixture.spec.pid = NamespaceMode::Host;
    fixture.spec.ipc = NamespaceMode::Host;
    fixture.spec.uts = NamespaceMode::Host;
    let shared = fixture.output();
    for kind in ["net", "pid", "ipc", "uts"] {
        assert!(shared.contains(&link(kind)), "{kind}");
    }
    assert!(!shared.contains(&link("mnt")));
}

fn a_read_only_root_refuses_writes_and_its_mounts_do_not() {
    let mut fixture = Fixture::sh(
        "(echo x > /file) 2>&1 | grep -c 'Read-only file system'; echo x > /dev/shm/file && cat /dev/shm/file",
    );
    fixture.spec.readonly_rootfs = true;
    assert_eq!(fixture.output(), "1\nx\n");
}

fn passwd_and_group_may_be_anything() {
    let run = |prepare: &dyn Fn(&std::path::Path)| {
        let mut fixture = Fixture::new(&["true"]);
        fixture.spec.user = "ann".to_owned();
        let passwd = fixture.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        prepare(&passwd);
        match fixture.run() {
            Err(RuntimeError::Start(failure)) => failure,
            other => panic!("{other:?}"),
        }
    };
    let failure = run(&|path| {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap()
    });
    assert!(failure.message.contains("not a regular file"), "{failure}");
    let failure = run(&|path| symlink("/proc/kmsg", path).unwrap());
    assert_eq!(failure.message, "unable to find user ann: no matching entries in passwd file");
    let failure = run(&|path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap());
    assert!(failure.message.contains("longer than"), "{failure}");
    let failure = run(&|path| symlink("../../../../../../etc/passwd", path).unwrap());
    assert!(failure.kind == FailureKind::UnknownUser, "{failure}");
}

fn the_shims_program_cannot_be_written_to() {
    let fixture = Fixture::new(&["sleep", "1000"]);
    let shim = fixture.create().unwrap();
    // Before the start the first process still runs the shim's program; a container's program would reach it by /proc/self/exe.
    for pid in [shim_pid(&fixture), shim.pid()] {
        let exe = format!("/proc/{pid}/exe");
        let flags = rustix::fs::statvfs(&exe).unwrap().f_flag;
        let sealed = fs::read_link(&exe).unwrap().to_string_lossy().contains("memfd:");
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) || sealed, "{exe}");
        assert!(fs::OpenOptions::new().write(true).open(&exe).is_err());
    }
    let before = fs::read(std::env::current_exe().unwrap()).unwrap();
    let attack = probe::container(&[]);
    let mut attack_fixture = Fixture::new(&["/attack"]);
    attack_fixture.spec.mounts = attack.spec.mounts.clone();
    fs::write(attack_fixture.rootfs().join("attack"), "#!/proc/self/exe helper\n").unwrap();
    std::process::Command::new("chmod").arg("755").arg(attack_fixture.rootfs().join("attack")).status().unwrap();
    let _ = attack_fixture.run();
    assert!(fs::read(std::env::current_exe().unwrap()).unwrap() == before);
}

fn the_run_directory_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new(&["sleep", "1000"]);
    let _shim: Shim = fixture.create().unwrap();
    assert_eq!(fs::metadata(fixture.dir()).unwrap().permissions().mode() & 0o7777, 0o700);
    for name in ["bundle/config.json", "state.json"] {
        assert_eq!(fs::metadata(fixture.dir().join(name)).unwrap().permissions().mode() & 0o7777, 0o600, "{name}");
    }
    let abstract_sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!abstract_sockets.lines().any(|line| line.contains(" @") && line.contains("baleen")), "{abstract_sockets}");
}
