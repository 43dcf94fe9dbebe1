//! What is mounted where, in which order.

use std::path::Path;

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
    match spec.ipc {
        NamespaceMode::Private => {
            all.push(of("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
            if !spec.no_shm {
                all.push(of("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size]));
            }
        }
        NamespaceMode::Host => {
            for path in ["/dev/mqueue", "/dev/shm"].into_iter().filter(|path| Path::new(path).is_dir()) {
                all.push(json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "nosuid", "noexec", "nodev"] }));
            }
        }
        NamespaceMode::Path(_) => {
            return Err(SpecError::NotImplemented { what: "joining another container's IPC namespace" });
        }
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
            let propagation = match propagation.as_str() {
                "" => "rprivate",
                known @ ("private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave") => known,
                _ => {
                    return Err(SpecError::MountTarget {
                        target: target.to_owned(),
                        reason: "invalid propagation mode",
                    });
                }
            };
            if !matches!(propagation, "private" | "rprivate") {
                return Err(SpecError::NotImplemented { what: "shared or slave mount propagation" });
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
