//! The default system call filter, as a table of our own.
//!
//! The facts (which calls, on which condition) follow Docker's default profile of engine 29 as of 2026; the test beside them
//! counts. Everything not allowed fails with EPERM, except `clone3`, which fails with ENOSYS so that libraries fall back to
//! `clone`, whose flags a filter can see.

use serde_json::{Value, json};

use crate::spec::SpecError;

/// Allowed without condition, by subject.
const ALWAYS: &[&str] = &[
    // Processes, threads and their attributes.
    "alarm capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32",
    "getgid getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32",
    "getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill membarrier pause pidfd_open pidfd_send_signal prctl prlimit64",
    "process_mrelease restart_syscall riscv_hwprobe rseq set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32",
    "setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32",
    "setreuid setreuid32 setrlimit setsid setuid setuid32 tgkill tkill ugetrlimit umask uname uretprobe vfork wait4 waitid waitpid",
    "process_vm_readv process_vm_writev ptrace",
    // Scheduling.
    "sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval",
    "sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield",
    // Signals.
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo sigaltstack signalfd signalfd4 sigprocmask sigreturn",
    // Memory.
    "brk cachestat madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync",
    "munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages",
    // Files by name.
    "access chdir chmod chown chown32 creat faccessat faccessat2 fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat",
    "futimesat getcwd lchown lchown32 link linkat listmount lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat fstatat64",
    "open openat openat2 readlink readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64 statmount statx symlink symlinkat",
    "truncate truncate64 unlink unlinkat utime utimensat utimensat_time64 utimes",
    "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch landlock_add_rule landlock_create_ruleset landlock_restrict_self",
    // Extended attributes.
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr lremovexattr lsetxattr",
    "removexattr removexattrat setxattr setxattrat",
    // Files by descriptor.
    "_llseek close close_range copy_file_range dup dup2 dup3 fadvise64 fadvise64_64 fallocate fcntl fcntl64 fdatasync flock fstat fstat64",
    "fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev",
    "pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range syncfs tee vmsplice write writev",
    "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Waiting.
    "_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 futex",
    "futex_requeue futex_time64 futex_wait futex_waitv futex_wake poll ppoll ppoll_time64 pselect6 pselect6_time64 select",
    // Sockets; `socket` itself has conditions.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send sendmmsg",
    "sendmsg sendto setsockopt shutdown socketcall socketpair",
    // System V and POSIX IPC.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget",
    "msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget",
    // Time.
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep",
    "clock_nanosleep_time64 gettimeofday nanosleep time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64",
    "timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times",
    // The rest.
    "getrandom seccomp sysinfo",
];

/// Allowed on an architecture (as Rust names it).
const BY_ARCHITECTURE: &[(&str, &str)] = &[
    ("x86_64", "arch_prctl modify_ldt"),
    ("x86", "modify_ldt"),
    ("arm", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
    ("aarch64", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
    ("riscv64", "riscv_flush_icache"),
];

/// Allowed with a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr \
         mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 \
         unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Socket families that a container may open: all up to 45 but those without users in a container and those whose kernel code
/// has let containers out: 12, 19, 20, 23, 25, 34, 37, ALG 38, VSOCK 40.
const SOCKET_FAMILIES_BELOW: u64 = 12;
const SOCKET_FAMILIES: &[u64] =
    &[13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// `personality(2)` values: Linux, 32-bit Linux, both with UNAME26, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEW*` flags, which only `CAP_SYS_ADMIN` may use.
const CLONE_NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Architectures of the filter: this machine's and those whose programs its kernel also runs.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "x86" => &["SCMP_ARCH_X86"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "arm" => &["SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        _ => &["SCMP_ARCH_NATIVE"],
    }
}

/// The default profile for a set of capabilities, in the OCI runtime spec's form (`linux.seccomp`).
#[must_use]
pub fn default_profile(capabilities: &[&str]) -> Value {
    let names = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut allowed: Vec<String> = ALWAYS.iter().flat_map(|line| names(line)).collect();
    for (architecture, calls) in BY_ARCHITECTURE {
        if *architecture == std::env::consts::ARCH {
            allowed.extend(names(calls));
        }
    }
    for (capability, calls) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            allowed.extend(names(calls));
        }
    }
    let allow_if =
        |name: &str, argument: Value| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument] });
    let equal = |value: u64| json!({ "index": 0, "value": value, "op": "SCMP_CMP_EQ" });
    let mut rules = vec![json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" })];
    rules.push(allow_if("socket", json!({ "index": 0, "value": SOCKET_FAMILIES_BELOW, "op": "SCMP_CMP_LT" })));
    rules.extend(SOCKET_FAMILIES.iter().map(|&family| allow_if("socket", equal(family))));
    rules.extend(PERSONALITIES.iter().map(|&value| allow_if("personality", equal(value))));
    if !capabilities.contains(&"CAP_SYS_ADMIN") {
        rules.push(allow_if(
            "clone",
            json!({ "index": 0, "value": CLONE_NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }),
        ));
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
    }
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": architectures(), "syscalls": rules })
}

/// A profile that a user gave: the OCI form as it is, Docker's form with its conditions resolved for these capabilities.
/// # Errors
/// `Seccomp` if it is not such a profile. Unknown conditions are refused: ignoring one could allow what it forbids.
pub fn user_profile(text: &str, capabilities: &[&str]) -> Result<Value, SpecError> {
    let bad = |reason: String| SpecError::Seccomp { reason };
    let mut profile: Value = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let object = profile.as_object_mut().ok_or_else(|| bad("it is not a JSON object".to_owned()))?;
    if !object.contains_key("defaultAction") {
        return Err(bad("it has no defaultAction".to_owned()));
    }
    if object.remove("archMap").is_some() || !object.contains_key("architectures") {
        object.insert("architectures".to_owned(), json!(architectures()));
    }
    if let Some(rules) = object.get_mut("syscalls").and_then(Value::as_array_mut) {
        let mut kept = Vec::new();
        for mut rule in std::mem::take(rules) {
            let fields = rule.as_object_mut().ok_or_else(|| bad("a rule is not an object".to_owned()))?;
            fields.remove("comment");
            if fields.get("action").and_then(Value::as_str) == Some("SCMP_ACT_NOTIFY") {
                return Err(SpecError::NotImplemented { what: "seccomp notification (SCMP_ACT_NOTIFY)" });
            }
            if let Some(name) = fields.remove("name").filter(|name| name.as_str().is_some_and(|name| !name.is_empty()))
            {
                fields.insert("names".to_owned(), json!([name]));
            }
            let includes = fields.remove("includes");
            let excludes = fields.remove("excludes");
            let included =
                includes.filter(|value| !value.is_null()).map_or(Ok(true), |value| holds(&value, capabilities, All));
            let excluded =
                excludes.filter(|value| !value.is_null()).map_or(Ok(false), |value| holds(&value, capabilities, Any));
            if included.map_err(bad)? && !excluded.map_err(bad)? {
                if fields.get("args").is_some_and(Value::is_null) {
                    fields.remove("args");
                }
                kept.push(rule);
            }
        }
        *rules = kept;
    }
    serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(profile.clone())
        .map_err(|error| bad(error.to_string()))?;
    Ok(profile)
}

use Quantifier::{All, Any};

#[derive(Clone, Copy, PartialEq)]
enum Quantifier {
    All,
    Any,
}

fn holds(condition: &Value, capabilities: &[&str], quantifier: Quantifier) -> Result<bool, String> {
    let object = condition.as_object().ok_or("a condition is not an object")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut results = Vec::new();
    for (key, value) in object {
        let texts = || value.as_array().into_iter().flatten().filter_map(Value::as_str);
        match key.as_str() {
            _ if value.is_null() => {}
            "caps" if quantifier == All => results.push(texts().all(|name| capabilities.contains(&name))),
            "caps" => results.push(texts().any(|name| capabilities.contains(&name))),
            "arches" => results.push(texts().any(|name| name == architecture)),
            "minKernel" => {
                let wanted = value.as_str().and_then(kernel_version).ok_or("minKernel is not a version")?;
                let release = rustix::system::uname().release().to_string_lossy().into_owned();
                results.push(kernel_version(&release).is_some_and(|have| have >= wanted));
            }
            other => return Err(format!("condition {other:?} is not known")),
        }
    }
    Ok(if quantifier == All { results.iter().all(|&holds| holds) } else { results.iter().any(|&holds| holds) })
}

/// The form in which libcontainer 0.7.0 reads a profile: it takes a masked comparison's two values the other way round than the
/// specification says (`value` is the mask there), so that `clone`'s rule would let every flag pass. To be dropped with the fix upstream;
/// the tests ask the kernel.
pub(crate) fn for_the_library(mut profile: Value) -> Value {
    let rules = profile.get_mut("syscalls").and_then(Value::as_array_mut).into_iter().flatten();
    let arguments = rules.filter_map(|rule| rule.get_mut("args").and_then(Value::as_array_mut)).flatten();
    for argument in arguments.filter_map(Value::as_object_mut) {
        if argument.get("op").and_then(Value::as_str) == Some("SCMP_CMP_MASKED_EQ") {
            let mask = argument.remove("value").unwrap_or(json!(0));
            let wanted = argument.insert("valueTwo".to_owned(), mask).filter(|value| !value.is_null());
            argument.insert("value".to_owned(), wanted.unwrap_or(json!(0)));
        }
    }
    profile
}

fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(profile: &Value) -> Vec<String> {
        let first = &profile["syscalls"][0]["names"];
        first.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn no_call_is_listed_twice_and_the_dangerous_ones_are_not_listed() {
        let listed = names(&default_profile(&crate::spec::DEFAULT_CAPABILITIES));
        let set: BTreeSet<_> = listed.iter().collect();
        assert_eq!(set.len(), listed.len());
        // What the profile that this follows allows without condition (on kernels from 4.8 on).
        assert_eq!(ALWAYS.iter().flat_map(|line| line.split_ascii_whitespace()).count(), 364);
        for call in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "kexec_load",
            "userfaultfd",
            "clone",
            "clone3",
            "socket",
            "personality",
            "open_by_handle_at",
            "perf_event_open",
        ] {
            assert!(!set.contains(&call.to_owned()), "{call}");
        }
        assert!(set.contains(&"chroot".to_owned()));
    }

    #[test]
    fn a_masked_comparison_is_turned_round_for_the_library_and_nothing_else_is() {
        let turned = for_the_library(default_profile(&[]));
        let rules = turned["syscalls"].as_array().unwrap();
        let clone = rules.iter().find(|rule| rule["names"][0] == "clone").unwrap();
        assert_eq!(
            clone["args"][0],
            json!({ "index": 0, "value": 0, "valueTwo": CLONE_NAMESPACE_FLAGS, "op": "SCMP_CMP_MASKED_EQ" })
        );
        let socket = rules.iter().find(|rule| rule["names"][0] == "socket").unwrap();
        assert_eq!(socket["args"][0]["value"], SOCKET_FAMILIES_BELOW);
    }

    #[test]
    fn the_runtime_library_reads_the_profile() {
        serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(default_profile(&[])).unwrap();
    }

    #[test]
    fn dockers_form_is_resolved_for_the_capabilities() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[],"syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}}]}"#;
        let without = user_profile(text, &[]).unwrap();
        assert_eq!(without["syscalls"].as_array().unwrap().len(), 3);
        let with = user_profile(text, &["CAP_SYS_ADMIN"]).unwrap();
        assert_eq!(with["syscalls"][1]["names"][0], "mount");
        assert_eq!(with["syscalls"].as_array().unwrap().len(), 3);
        assert!(user_profile(r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["x"],"action":"SCMP_ACT_ALLOW","includes":{"moon":["full"]}}]}"#, &[]).is_err());
        assert!(user_profile("[]", &[]).is_err());
    }
}
