//! What is mounted where, in which order.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{ContainerSpec, MountKind, MountSpec, NamespaceMode, SpecError};
use crate::cgroup;

/// Files of `/proc` on which something may be mounted: tools that virtualise them per container do.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

const SHM_BYTES_DEFAULT: u64 = 64 << 20;
/// Where programs look for shared memory.
const SHM: &str = "/dev/shm";
/// More mounts than this are a mistake.
const MOUNTS_MAX: usize = 1024;

/// The mount target in its shortest form, if something may be mounted there.
/// # Errors
/// `MountTarget`: relative, `/`, or on or in `/proc` (but a few files).
pub fn check_target(target: &str) -> Result<String, SpecError> {
    let refuse = |reason| SpecError::MountTarget { target: target.to_owned(), reason };
    if !target.starts_with('/') {
        return Err(refuse("mount path must be absolute"));
    }
    if target.contains('\0') || target.len() > 4096 {
        return Err(refuse("mount path is malformed"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    if parts.is_empty() {
        return Err(refuse("destination can't be '/'"));
    }
    let clean = format!("/{}", parts.join("/"));
    if parts[0] == "proc" && !PROC_FILES.contains(&clean.as_str()) && clean != "/proc" {
        return Err(refuse("nothing may be mounted inside /proc"));
    }
    Ok(clean)
}

/// All mounts, parents before children: the defaults, less those that the request replaces, then the request's.
pub(super) fn mounts(spec: &ContainerSpec, rootfs: &Path) -> Result<Vec<Value>, SpecError> {
    if spec.mounts.len() > MOUNTS_MAX {
        return Err(SpecError::MountTarget { target: String::new(), reason: "too many mounts" });
    }
    let mut wanted = Vec::new();
    for mount in &spec.mounts {
        let target = check_target(&mount.target)?;
        if target == "/proc" && !is_proc_root(mount) {
            return Err(SpecError::MountTarget { target, reason: "only the host's /proc may be mounted on /proc" });
        }
        wanted.push((target, mount));
    }
    wanted.sort_by_key(|(target, _)| target.matches('/').count());

    let replaced = |target: &str| wanted.iter().any(|(wanted, _)| wanted == target);
    let mut all = defaults(spec)?;
    all.retain(|mount| mount["destination"].as_str().is_none_or(|target| !replaced(target)));
    // What is below a replaced default (the cgroup mounts below a bind of the host's /sys/fs/cgroup) goes with it.
    if replaced("/sys") || replaced("/sys/fs/cgroup") {
        all.retain(|mount| mount["destination"].as_str().is_none_or(|target| !target.starts_with("/sys/fs/cgroup")));
    }
    for (target, mount) in wanted {
        check_types(&target, mount, rootfs)?;
        all.push(one(&target, mount)?);
    }
    Ok(all)
}

/// Refuses a directory on a file and the like while the paths are at hand: the runtime library's own words would be unclear.
fn check_types(target: &str, mount: &MountSpec, rootfs: &Path) -> Result<(), SpecError> {
    let MountKind::Bind { source, .. } = &mount.kind else { return Ok(()) };
    let Ok(source_is_dir) = std::fs::metadata(source).map(|metadata| metadata.is_dir()) else { return Ok(()) };
    match super::inside::is_directory(rootfs, target) {
        Some(target_is_dir) if target_is_dir != source_is_dir => {
            Err(SpecError::MountTypes { source_path: source.clone(), target: target.to_owned() })
        }
        _ => Ok(()),
    }
}

fn defaults(spec: &ContainerSpec) -> Result<Vec<Value>, SpecError> {
    let of = |kind: &str, target: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let shm_size = format!("size={}", if spec.shm_size_bytes == 0 { SHM_BYTES_DEFAULT } else { spec.shm_size_bytes });
    let mut sys_options = vec!["nosuid", "noexec", "nodev"];
    if !spec.privileged {
        sys_options.push("ro");
    }
    let mut all = vec![
        of("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        of("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        of("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ];
    // A container on the host's network may not mount a sysfs of its own: it would show another network namespace.
    all.push(of("sysfs", "/sys", &sys_options));
    // A new mount of the queues shows those of the IPC namespace that the container is in, whoever's that is.
    all.push(of("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
    match spec.ipc {
        // For one that joins another's this is the place: the other's is put there when the container exists (`late_mounts`).
        NamespaceMode::Private | NamespaceMode::Path(_) if !spec.no_shm => {
            let options = ["nosuid", "noexec", "nodev", "mode=1777", &shm_size];
            all.push(json!({ "destination": SHM, "type": "tmpfs", "source": "shm", "options": options }));
        }
        NamespaceMode::Host if Path::new(SHM).is_dir() => {
            all.push(json!({ "destination": SHM, "type": "bind", "source": SHM, "options": ["rbind"] }));
        }
        _ => {}
    }
    all.extend(cgroup_mounts(spec)?);
    Ok(all)
}

/// On cgroup v2 the hierarchy itself. On v1 read-only binds of the container's own groups, since the runtime library would mount
/// them writable: root inside could raise its own limits.
fn cgroup_mounts(spec: &ContainerSpec) -> Result<Vec<Value>, SpecError> {
    let host = cgroup::Host::read().map_err(|(path, source)| SpecError::Host { path, source })?;
    let access = if spec.privileged { "rw" } else { "ro" };
    if host.is_unified() {
        let options = [access, "nosuid", "noexec", "nodev"];
        return Ok(vec![
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options }),
        ]);
    }
    let mut all = vec![json!({
        "destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=755"]
    })];
    let path = cgroup::path_of(&spec.cgroup_parent, &spec.id);
    for hierarchy in host.v1_hierarchies() {
        let source = hierarchy.mount_point.join(path.trim_start_matches('/'));
        for name in hierarchy.names() {
            let target = format!("/sys/fs/cgroup/{name}");
            let options = ["bind", access, "nosuid", "noexec", "nodev"];
            all.push(json!({ "destination": target, "type": "bind", "source": source, "options": options }));
        }
    }
    Ok(all)
}

fn one(target: &str, mount: &MountSpec) -> Result<Value, SpecError> {
    let mut options: Vec<String> = Vec::new();
    match &mount.kind {
        MountKind::Bind { source, propagation, non_recursive } => {
            if !source.is_absolute() {
                return Err(SpecError::MountTarget {
                    target: target.to_owned(),
                    reason: "bind source must be absolute",
                });
            }
            match std::fs::metadata(source) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(SpecError::BindSourceMissing { path: source.clone() });
                }
                Err(error) => return Err(SpecError::Host { path: source.clone(), source: error }),
            }
            if !matches!(propagation.as_str(), "" | "private" | "rprivate") {
                Propagation::read(propagation).ok_or_else(|| SpecError::MountTarget {
                    target: target.to_owned(),
                    reason: "invalid propagation mode",
                })?;
            }
            options.push(if *non_recursive { "bind" } else { "rbind" }.to_owned());
            // A read-only bind is read-only all the way down, as in Docker since API 1.44.
            match (mount.readonly, *non_recursive) {
                (true, true) => options.push("ro".to_owned()),
                (true, false) => options.extend(["ro".to_owned(), "rro".to_owned()]),
                (false, _) => {}
            }
            Ok(json!({ "destination": target, "type": "bind", "source": source, "options": options }))
        }
        MountKind::Tmpfs { options: given } => {
            // Docker's defaults, which the given options may take back (`exec`).
            options.extend(["noexec", "nosuid", "nodev"].map(str::to_owned));
            for option in given.split(',').filter(|option| !option.is_empty()) {
                let name = option.split('=').next().unwrap_or(option);
                if !TMPFS_OPTIONS.contains(&name) {
                    return Err(SpecError::BadValue {
                        field: "tmpfs option",
                        value: option.to_owned(),
                        reason: "invalid tmpfs option",
                    });
                }
                options.push(option.to_owned());
            }
            if mount.readonly {
                options.push("ro".to_owned());
            }
            Ok(json!({ "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options }))
        }
    }
}

const TMPFS_OPTIONS: [&str; 24] = [
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "mode",
    "uid",
    "gid",
    "size",
    "nr_inodes",
];

/// How a mount and its copies tell each other what is mounted below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Propagation {
    /// Both ways; else from the host alone.
    pub(crate) shared: bool,
    /// For what is mounted below it too.
    pub(crate) recursive: bool,
}

impl Propagation {
    fn read(text: &str) -> Option<Self> {
        let (shared, recursive) = match text {
            "shared" => (true, false),
            "rshared" => (true, true),
            "slave" => (false, false),
            "rslave" => (false, true),
            _ => return None,
        };
        Some(Self { shared, recursive })
    }
}

/// A mount that the runtime library cannot make: it makes a plain one in its place, which is exchanged before the program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LateMount {
    /// A bind that is not private.
    Bind { source: PathBuf, target: String, propagation: Propagation, readonly: bool, non_recursive: bool },
    /// The shared memory of the container with this IPC namespace.
    SharedMemory { donor_pid: i32, target: String },
}

/// What is to be exchanged, parents before children.
/// # Errors
/// `NotImplemented` for something mounted below such a bind; `MountPropagation` for a source that the host itself keeps to itself.
pub(crate) fn late_mounts(spec: &ContainerSpec) -> Result<Vec<LateMount>, SpecError> {
    let mut late = Vec::new();
    let targets: Vec<String> = spec.mounts.iter().map(|mount| check_target(&mount.target)).collect::<Result<_, _>>()?;
    for (mount, target) in spec.mounts.iter().zip(&targets) {
        let MountKind::Bind { source, propagation, non_recursive } = &mount.kind else { continue };
        let Some(propagation) = Propagation::read(propagation) else { continue };
        if targets.iter().any(|other| other.strip_prefix(target.as_str()).is_some_and(|rest| rest.starts_with('/'))) {
            return Err(SpecError::NotImplemented { what: "a mount below one with shared or slave propagation" });
        }
        check_propagation(source, propagation)?;
        late.push(LateMount::Bind {
            source: source.clone(),
            target: target.clone(),
            propagation,
            readonly: mount.readonly,
            non_recursive: *non_recursive,
        });
    }
    if let NamespaceMode::Path(path) = &spec.ipc
        && !targets.iter().any(|target| target == SHM)
    {
        let pid = path
            .strip_prefix("/proc")
            .ok()
            .and_then(|rest| rest.iter().next())
            .and_then(|pid| pid.to_str()?.parse().ok());
        let malformed =
            || SpecError::MountTarget { target: SHM.to_owned(), reason: "the IPC namespace has no process" };
        late.push(LateMount::SharedMemory { donor_pid: pid.ok_or_else(malformed)?, target: SHM.to_owned() });
    }
    Ok(late)
}

/// Refuses a source that lies on a mount of which no copy hears, in Docker's words.
fn check_propagation(source: &Path, wanted: Propagation) -> Result<(), SpecError> {
    let host = |source_error| SpecError::Host { path: source.to_owned(), source: source_error };
    let real = std::fs::canonicalize(source).map_err(host)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(host)?;
    let (mount, told) = propagation_at(&table, &real).unwrap_or_default();
    let fits = told.contains("shared:") || !wanted.shared && told.contains("master:");
    if fits {
        return Ok(());
    }
    let wanted = if wanted.shared { "shared" } else { "shared or slave" };
    Err(SpecError::MountPropagation { path: real, mount, wanted })
}

/// The mount that a path lies on, and its optional fields.
fn propagation_at(table: &str, path: &Path) -> Option<(PathBuf, String)> {
    let rows = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(" - ").next()?.split(' ').collect();
        let mount = PathBuf::from(fields.get(4)?.replace("\\040", " ").replace("\\011", "\t"));
        path.starts_with(&mount).then(|| (mount, fields.get(6..).unwrap_or_default().join(" ")))
    });
    // The last of the longest: it covers the others.
    rows.max_by_key(|(mount, _)| mount.components().count())
}

/// Whether a bind's source is the root of a real procfs: monitoring agents mount the host's.
fn is_proc_root(mount: &MountSpec) -> bool {
    use std::os::unix::fs::MetadataExt;
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    const PROC_ROOT_INODE: u64 = 1;
    let MountKind::Bind { source, .. } = &mount.kind else { return false };
    let is_procfs =
        rustix::fs::statfs(source).is_ok_and(|stat| i128::from(stat.f_type) == i128::from(PROC_SUPER_MAGIC));
    is_procfs && std::fs::metadata(source).is_ok_and(|metadata| metadata.ino() == PROC_ROOT_INODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_cleaned_and_the_dangerous_ones_refused() {
        assert_eq!(check_target("/a/./b/../c//").unwrap(), "/a/c");
        assert_eq!(check_target("/proc/uptime").unwrap(), "/proc/uptime");
        assert_eq!(check_target("/process").unwrap(), "/process");
        for target in ["", "a", "/", "/..", "/proc/sys", "/x/../proc/self/attr", "/proc/sysrq-trigger", "/a\0b"] {
            assert!(matches!(check_target(target), Err(SpecError::MountTarget { .. })), "{target}");
        }
    }

    #[test]
    fn only_a_real_procfs_root_goes_onto_proc() {
        let bind = |source: &str| MountSpec {
            kind: MountKind::Bind { source: source.into(), propagation: String::new(), non_recursive: false },
            target: "/proc".to_owned(),
            readonly: true,
        };
        assert!(is_proc_root(&bind("/proc")));
        assert!(!is_proc_root(&bind("/proc/sys")));
        assert!(!is_proc_root(&bind("/")));
    }
}
