//! The OCI runtime spec of a container.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::mounts::mounts;
use super::{BlkioKind, ContainerSpec, DeviceSpec, NamespaceMode, Resources, SeccompProfile, SpecError, capabilities};
use crate::users::{self, ResolvedUser};
use crate::{cgroup, devices, seccomp};

const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// More devices than this in one directory are a mistake.
const DEVICES_MAX: usize = 4096;

/// What nobody in a container can read, by default.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What nobody in a container can change, by default.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The OCI runtime spec (`config.json`) of a container whose root file system is mounted at `rootfs`.
/// # Errors
/// As the variants of [`SpecError`] say: whatever cannot be honoured is refused, nothing is left out in silence.
pub fn runtime_spec(spec: &ContainerSpec, rootfs: &Path) -> Result<Value, SpecError> {
    check_texts(spec)?;
    let user = users::resolve(rootfs, &spec.user, &spec.group_add)?;
    let capabilities = capabilities::effective_set(spec.privileged, &spec.cap_add, &spec.cap_drop, own_capabilities())?;
    let (nodes, rules) = device_lists(spec)?;

    let mut process = json!({
        "terminal": spec.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022 },
        "args": spec.args,
        "env": environment(spec, &user),
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        // Inheritable and ambient stay empty (S2).
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities, "inheritable": [], "ambient": []
        },
        "rlimits": rlimits(spec)?,
    });
    // Only when asked for: the runtime library takes a `false` for a promise to load the filter late, when it no longer may.
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(adjustment) = spec.oom_score_adj.or_else(default_oom_score_adj) {
        process["oomScoreAdj"] = json!(adjustment);
    }

    let mut linux = json!({
        "namespaces": namespaces(spec)?,
        "cgroupsPath": cgroup::path_of(&spec.cgroup_parent, &spec.id),
        "resources": resources(&spec.resources, &rules)?,
        "devices": nodes,
        "sysctl": sysctls(spec)?,
        "rootfsPropagation": "private",
        "maskedPaths": masked_paths(spec),
        "readonlyPaths": readonly_paths(spec),
    });
    if let Some(profile) = filter(spec, &capabilities)? {
        linux["seccomp"] = profile;
    }

    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": rootfs, "readonly": spec.readonly_rootfs },
        "mounts": mounts(spec, rootfs)?,
        "linux": linux,
    });
    if spec.uts != NamespaceMode::Host {
        config["hostname"] = json!(spec.hostname);
        if !spec.domainname.is_empty() {
            config["domainname"] = json!(spec.domainname);
        }
    }
    Ok(config)
}

/// The system call filter, as the runtime library reads it.
pub(super) fn filter(spec: &ContainerSpec, capabilities: &[&str]) -> Result<Option<Value>, SpecError> {
    let profile = match &spec.seccomp {
        SeccompProfile::Unconfined => None,
        SeccompProfile::Default if spec.privileged => None,
        SeccompProfile::Default => Some(seccomp::default_profile(capabilities)),
        SeccompProfile::Profile(text) => Some(seccomp::user_profile(text, capabilities)?),
    };
    Ok(profile.map(seccomp::for_the_library))
}

/// The rules about opening devices, to be put in force when the runtime library has made the group.
pub(crate) fn device_rules(spec: &ContainerSpec) -> Result<Vec<devices::Rule>, SpecError> {
    device_lists(spec).map(|(_, rules)| rules)
}

pub(super) fn check_texts(spec: &ContainerSpec) -> Result<(), SpecError> {
    let bad = |field, value: &str, reason| Err(SpecError::BadValue { field, value: value.to_owned(), reason });
    if spec.id.is_empty() || spec.id.len() > 64 || !spec.id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return bad("id", &spec.id, "an ID is letters and digits");
    }
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    for (field, values) in [("argument", &spec.args), ("environment variable", &spec.env)] {
        if let Some(value) = values.iter().find(|value| value.contains('\0')) {
            return bad(field, value, "it contains a NUL byte");
        }
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') || spec.cwd.contains('\0') {
        return bad("working directory", &spec.cwd, "it needs to be an absolute path");
    }
    let parent = &spec.cgroup_parent;
    if !parent.is_empty() && (!parent.starts_with('/') || parent.split('/').any(|part| part == ".."))
        || parent.contains('\0')
    {
        return bad("cgroup parent", parent, "it must be an absolute cgroup path");
    }
    if spec.oom_score_adj.is_some_and(|adjustment| !(-1000..=1000).contains(&adjustment)) {
        return bad("oom score adjustment", &spec.oom_score_adj.unwrap_or(0).to_string(), "range is -1000 to 1000");
    }
    Ok(())
}

pub(super) fn environment(spec: &ContainerSpec, user: &ResolvedUser) -> Vec<String> {
    let has = |key: &str| spec.env.iter().any(|entry| entry.split_once('=').is_some_and(|(name, _)| name == key));
    let mut env: Vec<String> = Vec::new();
    for entry in spec.env.iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0)) {
        // A name that is given twice has its last value: programs differ in which one they would take.
        let key = &entry[..=entry.find('=').unwrap_or(0)];
        match env.iter_mut().find(|known| known.starts_with(key)) {
            Some(known) => known.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    let mut default = |key: &str, value: &str| {
        if !has(key) {
            env.push(format!("{key}={value}"));
        }
    };
    default("PATH", PATH_DEFAULT);
    default("HOSTNAME", &spec.hostname);
    if spec.tty {
        default("TERM", "xterm");
    }
    // Always (S4): the library would ask libc, and libc's look-up loads code from the image.
    default("HOME", &user.home);
    env
}

fn namespaces(spec: &ContainerSpec) -> Result<Vec<Value>, SpecError> {
    let unified = cgroup::Host::read().map_err(|(path, source)| SpecError::Host { path, source })?.is_unified();
    let cgroup_default = if unified && !spec.privileged { NamespaceMode::Private } else { NamespaceMode::Host };
    let cgroup = spec.cgroupns.clone().unwrap_or(cgroup_default);
    let mut list = vec![json!({ "type": "mount" })];
    for (kind, mode) in
        [("network", &spec.network), ("pid", &spec.pid), ("ipc", &spec.ipc), ("uts", &spec.uts), ("cgroup", &cgroup)]
    {
        match mode {
            NamespaceMode::Private => list.push(json!({ "type": kind })),
            NamespaceMode::Host => {}
            NamespaceMode::Path(path) => list.push(json!({ "type": kind, "path": path })),
        }
    }
    Ok(list)
}

fn masked_paths(spec: &ContainerSpec) -> Vec<String> {
    match &spec.masked_paths {
        _ if spec.privileged => Vec::new(),
        Some(paths) => paths.clone(),
        None => {
            let mut all: Vec<String> = MASKED_PATHS.iter().map(|&path| path.to_owned()).collect();
            all.extend(thermal_throttle_paths());
            all
        }
    }
}

/// The power readings of every CPU of this machine.
fn thermal_throttle_paths() -> Vec<String> {
    let directory = "/sys/devices/system/cpu";
    let names = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let is_cpu = |name: &String| {
        name.strip_prefix("cpu").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let paths = names.filter(is_cpu).map(|name| format!("{directory}/{name}/thermal_throttle"));
    paths.filter(|path| Path::new(path).is_dir()).collect()
}

fn readonly_paths(spec: &ContainerSpec) -> Vec<String> {
    if spec.privileged {
        return Vec::new();
    }
    let mut paths = match &spec.readonly_paths {
        Some(paths) => paths.clone(),
        None => READONLY_PATHS.iter().map(|&path| path.to_owned()).collect(),
    };
    // On cgroup v1 this is a tmpfs of ours, writable only while the groups are mounted into it. On v2 it is read-only already.
    if cgroup::Host::read().is_ok_and(|host| !host.is_unified()) {
        paths.push("/sys/fs/cgroup".to_owned());
    }
    paths
}

fn sysctls(spec: &ContainerSpec) -> Result<Map<String, Value>, SpecError> {
    let own = |mode: &NamespaceMode| *mode != NamespaceMode::Host;
    let mut settings = Map::new();
    for (key, value) in &spec.sysctls {
        let refuse = |reason| SpecError::Sysctl { key: key.clone(), reason };
        let is_plain =
            key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/'));
        if !is_plain || key.contains("..") || value.contains(['\0', '\n']) {
            return Err(refuse("it is malformed"));
        }
        let allowed = match key.replace('/', ".").as_str() {
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced" => own(&spec.ipc),
            name if name.starts_with("fs.mqueue.") => own(&spec.ipc),
            name if name.starts_with("net.") => own(&spec.network),
            "kernel.domainname" => own(&spec.uts),
            _ => return Err(refuse("it is not in a separate kernel namespace")),
        };
        if !allowed {
            return Err(refuse("the container shares the host's namespace"));
        }
        settings.insert(key.clone(), json!(value));
    }
    if spec.network == NamespaceMode::Private {
        // As in Docker: in a network of its own anybody may listen on any port and send an echo request.
        for (key, value) in
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        {
            let file = Path::new("/proc/sys").join(key.replace('.', "/"));
            if !spec.sysctls.keys().any(|known| known.replace('/', ".") == key) && file.exists() {
                settings.insert(key.to_owned(), json!(value));
            }
        }
    }
    Ok(settings)
}

pub(super) fn rlimits(spec: &ContainerSpec) -> Result<Vec<Value>, SpecError> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    spec.ulimits
        .iter()
        .map(|ulimit| {
            let bad = |reason| SpecError::BadValue { field: "ulimit", value: ulimit.name.clone(), reason };
            if !NAMES.contains(&ulimit.name.as_str()) {
                return Err(bad("invalid ulimit type"));
            }
            if limit(ulimit.soft) > limit(ulimit.hard) {
                return Err(bad("the soft limit must not be above the hard one"));
            }
            let kind = format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase());
            Ok(json!({ "type": kind, "soft": limit(ulimit.soft), "hard": limit(ulimit.hard) }))
        })
        .collect()
}

fn resources(wanted: &Resources, rules: &[devices::Rule]) -> Result<Value, SpecError> {
    let bad = |field, value: String, reason| Err(SpecError::BadValue { field, value, reason });
    let mut memory = Map::new();
    if let Some(limit) = wanted.memory_bytes.filter(|&limit| limit > 0) {
        memory.insert("limit".to_owned(), json!(limit));
        let swap = match wanted.memory_swap_bytes {
            None | Some(0) => limit.saturating_mul(2),
            Some(swap) if swap != -1 && swap < limit => {
                return bad("memory swap limit", swap.to_string(), "it should be larger than the memory limit");
            }
            Some(swap) => swap,
        };
        if cgroup::Host::read().is_ok_and(|host| host.has_swap_limit()) {
            memory.insert("swap".to_owned(), json!(swap));
        }
    }
    if let Some(reservation) = wanted.memory_reservation_bytes.filter(|&bytes| bytes > 0) {
        memory.insert("reservation".to_owned(), json!(reservation));
    }
    if let Some(swappiness) = wanted.memory_swappiness {
        memory.insert("swappiness".to_owned(), json!(swappiness));
    }
    if wanted.oom_kill_disable {
        memory.insert("disableOOMKiller".to_owned(), json!(true));
    }

    let mut cpu = Map::new();
    if let Some(shares) = wanted.cpu_shares.filter(|&shares| shares > 0) {
        cpu.insert("shares".to_owned(), json!(shares));
    }
    let (mut quota, mut period) =
        (wanted.cpu_quota_us.filter(|&quota| quota > 0), wanted.cpu_period_us.filter(|&period| period > 0));
    if let Some(nano) = wanted.nano_cpus.filter(|&nano| nano > 0) {
        if quota.is_some() || period.is_some() {
            return bad(
                "cpus",
                nano.to_string(),
                "conflicting options: nano CPUs and CPU period or quota cannot both be set",
            );
        }
        const PERIOD_US: i64 = 100_000;
        quota = Some(nano.saturating_mul(PERIOD_US) / 1_000_000_000).filter(|&quota| quota >= 1_000).or(Some(1_000));
        period = Some(PERIOD_US.unsigned_abs());
    }
    if let Some(quota) = quota {
        cpu.insert("quota".to_owned(), json!(quota));
    }
    if let Some(period) = period {
        cpu.insert("period".to_owned(), json!(period));
    }
    for (key, field, value) in [("cpus", "cpuset", &wanted.cpuset_cpus), ("mems", "memory nodes", &wanted.cpuset_mems)]
    {
        if !value.is_empty() {
            if !value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-')) {
                return bad(field, value.clone(), "it must be a list of ranges");
            }
            cpu.insert(key.to_owned(), json!(value));
        }
    }

    let mut all = Map::new();
    all.insert("devices".to_owned(), Value::Array(rules.iter().map(devices::Rule::to_json).collect()));
    for (key, section) in [("memory", memory), ("cpu", cpu)] {
        if !section.is_empty() {
            all.insert(key.to_owned(), Value::Object(section));
        }
    }
    if let Some(limit) = wanted.pids_limit.filter(|&limit| limit > 0) {
        all.insert("pids".to_owned(), json!({ "limit": limit }));
    }
    let block = block_io(wanted)?;
    if !block.is_empty() {
        all.insert("blockIO".to_owned(), Value::Object(block));
    }
    Ok(Value::Object(all))
}

fn block_io(wanted: &Resources) -> Result<Map<String, Value>, SpecError> {
    let mut all = Map::new();
    if let Some(weight) = wanted.blkio_weight.filter(|&weight| weight > 0) {
        all.insert("weight".to_owned(), json!(weight));
    }
    for device in &wanted.blkio_devices {
        let bad = |reason: String| SpecError::Device { path: device.path.clone(), reason };
        let found = fs::metadata(&device.path).map_err(|error| bad(error.to_string()))?;
        if !found.file_type().is_block_device() {
            return Err(bad("not a block device".to_owned()));
        }
        let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
        let (list, field) = match device.kind {
            BlkioKind::Weight => ("weightDevice", "weight"),
            BlkioKind::ReadBps => ("throttleReadBpsDevice", "rate"),
            BlkioKind::WriteBps => ("throttleWriteBpsDevice", "rate"),
            BlkioKind::ReadIops => ("throttleReadIOPSDevice", "rate"),
            BlkioKind::WriteIops => ("throttleWriteIOPSDevice", "rate"),
        };
        let entry = json!({ "major": major, "minor": minor, field: device.value });
        match all.entry(list).or_insert_with(|| json!([])) {
            Value::Array(entries) => entries.push(entry),
            _ => return Err(bad("it is named twice".to_owned())),
        }
    }
    Ok(all)
}

/// The folders of device nodes below `/dev` that are made for them, parents first.
pub(crate) fn device_folders(spec: &ContainerSpec) -> Result<Vec<PathBuf>, SpecError> {
    let (nodes, _) = device_lists(spec)?;
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in nodes.iter().filter_map(|node| node["path"].as_str()).map(Path::new) {
        folders.extend(path.ancestors().skip(1).filter(|folder| folder.components().count() > 2).map(Path::to_owned));
    }
    folders.sort();
    folders.dedup();
    Ok(folders)
}

/// The device nodes to make, and the rules about opening them.
fn device_lists(spec: &ContainerSpec) -> Result<(Vec<Value>, Vec<devices::Rule>), SpecError> {
    let node = |path: &str, minor: u32, major: u32| json!({ "path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0 });
    let mut nodes = vec![
        node("/dev/null", 3, 1),
        node("/dev/zero", 5, 1),
        node("/dev/full", 7, 1),
        node("/dev/random", 8, 1),
        node("/dev/urandom", 9, 1),
        node("/dev/tty", 0, 5),
    ];
    let mut rules = devices::default_rules();
    let mut wanted = Vec::new();
    if spec.privileged {
        rules = vec![devices::Rule::allow_all()];
        collect_devices(Path::new("/dev"), "/dev", "rwm", 0, &mut wanted)?;
    }
    for device in &spec.devices {
        wanted.extend(host_devices(device)?);
    }
    for (found, permissions) in wanted {
        rules.push(devices::Rule::allow(found.kind, found.major, found.minor, &permissions));
        if nodes.iter().all(|node| node["path"] != found.path) {
            nodes.push(json!({
                "path": found.path, "type": found.kind.to_string(), "major": found.major, "minor": found.minor,
                "fileMode": found.mode & 0o7777, "uid": found.uid, "gid": found.gid
            }));
        }
    }
    for text in &spec.device_cgroup_rules {
        let bad = SpecError::BadValue {
            field: "device cgroup rule",
            value: text.clone(),
            reason: "invalid device cgroup rule format",
        };
        rules.push(devices::Rule::parse(text).ok_or(bad)?);
    }
    Ok((nodes, rules))
}

struct FoundDevice {
    path: String,
    kind: char,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

fn host_devices(wanted: &DeviceSpec) -> Result<Vec<(FoundDevice, String)>, SpecError> {
    let bad = |reason: String| SpecError::Device { path: wanted.path_on_host.clone(), reason };
    let permissions = if wanted.permissions.is_empty() { "rwm" } else { &wanted.permissions };
    if !permissions.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm')) {
        return Err(bad(format!("invalid device mode: {permissions}")));
    }
    let host = PathBuf::from(&wanted.path_on_host);
    let inside = if wanted.path_in_container.is_empty() { &wanted.path_on_host } else { &wanted.path_in_container };
    if !host.is_absolute() || !inside.starts_with("/dev/") || inside.split('/').any(|part| part == "..") {
        return Err(bad("it must be an absolute path, in the container below /dev".to_owned()));
    }
    let metadata = fs::metadata(&host).map_err(|error| bad(error.to_string()))?;
    let mut found = Vec::new();
    if metadata.is_dir() {
        collect_devices(&host, inside, permissions, 0, &mut found)?;
        if found.is_empty() {
            return Err(bad("no device found in this directory".to_owned()));
        }
    } else {
        let device = device_of(inside.clone(), &metadata).ok_or_else(|| bad("not a device node".to_owned()))?;
        found.push((device, permissions.to_owned()));
    }
    Ok(found)
}

fn device_of(path: String, metadata: &fs::Metadata) -> Option<FoundDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Some(FoundDevice { path, kind, major, minor, mode: metadata.mode(), uid: metadata.uid(), gid: metadata.gid() })
}

/// Every device below a directory, but what a container has of its own.
fn collect_devices(
    host: &Path,
    inside: &str,
    permissions: &str,
    depth: usize,
    found: &mut Vec<(FoundDevice, String)>,
) -> Result<(), SpecError> {
    const DEPTH_MAX: usize = 8;
    let entries = fs::read_dir(host).map_err(|source| SpecError::Host { path: host.to_owned(), source })?;
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            if depth < DEPTH_MAX
                && !matches!(name.as_str(), "pts" | "shm" | "mqueue" | "fd" | ".lxc" | ".lxd-mounts" | ".udev")
            {
                collect_devices(&entry.path(), &format!("{inside}/{name}"), permissions, depth + 1, found)?;
            }
        } else if name != "console" && name != "ptmx" && found.len() < DEVICES_MAX {
            found.extend(
                device_of(format!("{inside}/{name}"), &metadata).map(|device| (device, permissions.to_owned())),
            );
        }
    }
    Ok(())
}

/// 0 where the daemon is better protected than that; what it has where it is not, since lowering takes a capability.
pub(super) fn default_oom_score_adj() -> Option<i32> {
    let text = fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    text.trim().parse::<i32>().ok().filter(|&own| own < 0).map(|_| 0)
}

/// The capabilities that this process may pass on, as bits. (Its own bounding set may be smaller than the kernel's: what it lacks
/// nobody can give.)
pub(super) fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(u64::MAX)
    };
    set("CapPrm:") & set("CapBnd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> ContainerSpec {
        ContainerSpec {
            id: "a1".to_owned(),
            args: vec!["true".to_owned()],
            hostname: "a1".to_owned(),
            ..ContainerSpec::default()
        }
    }

    fn made(spec: &ContainerSpec) -> Result<Value, SpecError> {
        runtime_spec(spec, Path::new("/"))
    }

    #[test]
    fn the_runtime_library_reads_what_is_made() {
        let spec = made(&minimal()).unwrap();
        serde_json::from_value::<oci_spec::runtime::Spec>(spec).unwrap();
    }

    #[test]
    fn inheritable_and_ambient_capabilities_are_empty_even_when_privileged() {
        let spec = made(&ContainerSpec { privileged: true, cap_add: vec!["ALL".to_owned()], ..minimal() }).unwrap();
        assert_eq!(spec["process"]["capabilities"]["inheritable"], json!([]));
        assert_eq!(spec["process"]["capabilities"]["ambient"], json!([]));
    }

    #[test]
    fn path_home_and_hostname_are_always_set_and_a_bare_name_is_dropped() {
        let spec =
            made(&ContainerSpec { env: ["A=0", "A=1=2", "BARE", "=x"].map(str::to_owned).to_vec(), ..minimal() })
                .unwrap();
        let env: Vec<&str> =
            spec["process"]["env"].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect();
        assert_eq!(env[0], "A=1=2");
        assert!(
            env.contains(&"HOSTNAME=a1")
                && env.iter().any(|entry| entry.starts_with("HOME=/"))
                && env.iter().any(|entry| entry.starts_with("PATH=/"))
        );
        assert_eq!(env.len(), 4);
    }

    #[test]
    fn swap_defaults_to_twice_the_memory_and_must_not_be_below_it() {
        let limits =
            |memory, swap| Resources { memory_bytes: Some(memory), memory_swap_bytes: swap, ..Resources::default() };
        let made = resources(&limits(8 << 20, None), &[]).unwrap();
        assert_eq!(made["memory"]["limit"], 8 << 20);
        assert!(made["memory"].get("swap").is_none_or(|swap| *swap == json!(16 << 20)));
        assert!(resources(&limits(8 << 20, Some(4 << 20)), &[]).is_err());
    }

    #[test]
    fn only_namespaced_sysctls_are_taken() {
        let with = |key: &str, network| {
            sysctls(&ContainerSpec { sysctls: [(key.to_owned(), "1".to_owned())].into(), network, ..minimal() })
        };
        assert!(with("net.ipv4.ip_forward", NamespaceMode::Private).is_ok());
        assert!(with("net.ipv4.ip_forward", NamespaceMode::Host).is_err());
        for key in [
            "kernel.core_pattern",
            "kernel.shm_rmid_forced=1+kernel.core_pattern",
            "net.../../kernel/core_pattern",
            "vm.swappiness",
        ] {
            assert!(with(key, NamespaceMode::Private).is_err(), "{key}");
        }
    }

    #[test]
    fn a_malformed_request_is_refused_by_name() {
        assert!(matches!(made(&ContainerSpec { args: vec![], ..minimal() }), Err(SpecError::NoCommand)));
        for spec in [
            ContainerSpec { cwd: "relative".to_owned(), ..minimal() },
            ContainerSpec { id: "../x".to_owned(), ..minimal() },
            ContainerSpec { cgroup_parent: "/a/../b".to_owned(), ..minimal() },
            ContainerSpec { args: vec!["a\0b".to_owned()], ..minimal() },
            ContainerSpec { oom_score_adj: Some(2000), ..minimal() },
        ] {
            assert!(matches!(made(&spec), Err(SpecError::BadValue { .. })), "{spec:?}");
        }
    }
}
