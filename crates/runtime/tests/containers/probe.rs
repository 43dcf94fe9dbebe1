//! What a program inside a container tries, by raw system calls: this test program run in the container, with the host's libraries.

use std::fs;
use std::io;
use std::process::ExitCode;

use baleen_runtime::spec::{MountKind, MountSpec};

use crate::fixture::{Fixture, HELPER};

/// A container that runs this test program with these arguments.
pub(crate) fn container(arguments: &[&str]) -> Fixture {
    let mut all = vec!["/probe", HELPER];
    all.extend(arguments);
    let mut fixture = Fixture::new(&all);
    let bind = |source: &str, target: &str| MountSpec {
        kind: MountKind::Bind { source: source.into(), propagation: String::new(), non_recursive: false },
        target: target.to_owned(),
        readonly: true,
    };
    let program = std::env::current_exe().unwrap();
    fixture.spec.mounts = vec![bind(program.to_str().unwrap(), "/probe")];
    for libraries in ["/lib", "/lib64", "/usr/lib"] {
        if fs::metadata(libraries).is_ok() {
            fixture.spec.mounts.push(bind(libraries, libraries));
        }
    }
    fixture
}

/// The other side: `probe calls` prints a line `name result` for each system call, `probe descriptors` what is open.
pub(crate) fn run(what: &str) -> ExitCode {
    match what {
        "calls" => calls(),
        "descriptors" => {
            // The directory's own descriptor is the highest: it is left out.
            let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
                .collect();
            open.sort_unstable();
            open.pop();
            println!("{open:?}");
        }
        other => match other.strip_prefix("hog:").and_then(|left| left.parse().ok()) {
            Some(left_kb) => hog(left_kb),
            None => panic!("{other}"),
        },
    }
    ExitCode::SUCCESS
}

/// Takes anonymous memory, a page at a time, until so many kB are left of this container's limit; then keeps it.
fn hog(left_kb: u64) {
    use std::os::unix::fs::FileExt;
    const PAGE_BYTES: usize = 4096;
    let open = |names: [&str; 2]| {
        names.iter().find_map(|name| fs::File::open(format!("/sys/fs/cgroup/{name}")).ok()).expect("a memory group")
    };
    let limit_file = open(["memory/memory.limit_in_bytes", "memory.max"]);
    let usage_file = open(["memory/memory.usage_in_bytes", "memory.current"]);
    // Nothing is allocated from here on but what is held.
    let number = |file: &fs::File| {
        let mut digits = [0; 24];
        let read = file.read_at(&mut digits, 0).unwrap();
        digits[..read]
            .iter()
            .filter(|byte| byte.is_ascii_digit())
            .fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
    };
    let limit = number(&limit_file);
    let room = usize::try_from(limit).unwrap();
    println!("filling");
    // Zeroed memory of this size is mapped and not touched yet.
    let mut held = vec![0_u8; room];
    for page in held.chunks_mut(PAGE_BYTES) {
        if number(&usage_file) + left_kb * 1024 >= limit {
            break;
        }
        page[0] = 1;
    }
    std::hint::black_box(&held);
    println!("full");
    loop {
        std::thread::park();
    }
}

fn calls() {
    let report = |name: &str, result: i64| {
        let text = if result < 0 {
            io::Error::last_os_error().raw_os_error().map_or("?".to_owned(), |code| code.to_string())
        } else {
            "ok".to_owned()
        };
        println!("{name} {text}");
    };
    let call = |name: &str, number: i64, arguments: [i64; 3]| {
        // SAFETY: every call below passes numbers and null pointers only. What the kernel would read through them it refuses with EFAULT;
        // none of the calls changes this process's memory.
        report(name, unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0) });
    };
    let fork_with = |name: &str, flags: i64| {
        // SAFETY: with a null stack and no CLONE_VM this is a fork; the child only ends itself, by a system call.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags | i64::from(libc::SIGCHLD), 0, 0, 0, 0) };
        if result == 0 {
            // SAFETY: ends this process; returns nowhere.
            unsafe { libc::_exit(0) };
        }
        report(name, result);
    };
    fork_with("clone", 0);
    for (name, flag) in [
        ("newuser", libc::CLONE_NEWUSER),
        ("newns", libc::CLONE_NEWNS),
        ("newnet", libc::CLONE_NEWNET),
        ("newcgroup", libc::CLONE_NEWCGROUP),
    ] {
        fork_with(&format!("clone-{name}"), i64::from(flag));
    }
    call("clone3", libc::SYS_clone3, [0, 0, 0]);
    call("unshare-user", libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0]);
    call("setns", libc::SYS_setns, [0, 0, 0]);
    call("mount", libc::SYS_mount, [0, 0, 0]);
    call("keyctl", libc::SYS_keyctl, [0, 0, 0]);
    call("add_key", libc::SYS_add_key, [0, 0, 0]);
    call("bpf", libc::SYS_bpf, [0, 0, 0]);
    call("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]);
    call("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0]);
    call("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0]);
    call("open_by_handle_at", libc::SYS_open_by_handle_at, [0, 0, 0]);
    call("kexec_load", libc::SYS_kexec_load, [0, 0, 0]);
    call("reboot", libc::SYS_reboot, [0, 0, 0]);
    call("swapon", libc::SYS_swapon, [0, 0, 0]);
    call("personality-query", libc::SYS_personality, [0xffff_ffff, 0, 0]);
    call("personality-norandom", libc::SYS_personality, [0x4_0000, 0, 0]);
    for (name, family) in [("unix", 1), ("inet", 2), ("netlink", 16), ("alg", 38), ("vsock", 40)] {
        let kind = if family == 16 {
            libc::SOCK_RAW
        } else if family == 38 {
            libc::SOCK_SEQPACKET
        } else {
            libc::SOCK_STREAM
        };
        call(&format!("socket-{name}"), libc::SYS_socket, [family, kind.into(), 0]);
    }
}
