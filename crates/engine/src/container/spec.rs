//! From a stored container to what the runtime is told.

use std::path::{Path, PathBuf};

use baleen_runtime::spec::{
    BlkioDevice, BlkioKind, ContainerSpec, DeviceSpec, MountKind, MountSpec, NamespaceMode, Resources, SeccompProfile,
    Ulimit, check_target,
};

use super::files::EtcFiles;
use super::honour::{self, SecurityOption, clean_target};
use super::host_config::{HostConfig, Mount};
use super::merge;
use super::stored::StoredContainer;
use crate::error::EngineError;
use crate::volume::parse_bind;

/// Whether missing sources of binds are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sources {
    Make,
    Leave,
}

/// What the runtime is told of this container.
pub(crate) fn container_spec(
    stored: &StoredContainer,
    etc: &EtcFiles,
    default_cgroup_parent: Option<&str>,
    sources: Sources,
) -> Result<ContainerSpec, EngineError> {
    let (config, host) = (&stored.config, &stored.host_config);
    let mut args = vec![stored.path.clone()];
    args.extend(stored.args.iter().cloned());
    let mut spec = ContainerSpec {
        id: stored.id.clone(),
        args,
        env: merge::environment(config),
        cwd: config.working_dir.clone(),
        user: config.user.clone(),
        group_add: host.group_add.clone().unwrap_or_default(),
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        tty: config.tty,
        init: host.init == Some(true),
        open_stdin: config.open_stdin,
        stdin_once: config.stdin_once,
        privileged: host.privileged,
        readonly_rootfs: host.readonly_rootfs,
        cap_add: host.cap_add.clone().unwrap_or_default(),
        cap_drop: host.cap_drop.clone().unwrap_or_default(),
        masked_paths: host.masked_paths.clone(),
        readonly_paths: host.readonly_paths.clone(),
        mounts: mounts(stored, etc, sources)?,
        devices: devices(host),
        device_cgroup_rules: host.device_cgroup_rules.clone().unwrap_or_default(),
        resources: resources(host),
        ulimits: ulimits(host),
        oom_score_adj: (host.oom_score_adj != 0).then_some(host.oom_score_adj.clamp(-1000, 1000) as i32),
        no_shm: host.ipc_mode == "none",
        shm_size_bytes: u64::try_from(host.shm_size).unwrap_or(0),
        sysctls: host.sysctls.clone().unwrap_or_default(),
        // What it joins, if it joins another's, is known only when it starts.
        network: namespace(if config.network_disabled { "none" } else { &host.network_mode }),
        pid: namespace(&host.pid_mode),
        ipc: namespace(&host.ipc_mode),
        uts: namespace(&host.uts_mode),
        cgroupns: (!host.cgroupns_mode.is_empty()).then(|| namespace(&host.cgroupns_mode)),
        cgroup_parent: cgroup_parent(&host.cgroup_parent, default_cgroup_parent),
        ..ContainerSpec::default()
    };
    for option in host.security_opt.iter().flatten() {
        match honour::security_option(option)? {
            SecurityOption::NoNewPrivileges(set) => spec.no_new_privileges = set,
            SecurityOption::Seccomp(profile) => {
                spec.seccomp = match profile.as_str() {
                    "unconfined" => SeccompProfile::Unconfined,
                    "builtin" | "default" => SeccompProfile::Default,
                    _ => SeccompProfile::Profile(profile),
                }
            }
            SecurityOption::SystemPathsUnconfined => {
                (spec.masked_paths, spec.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
            }
            SecurityOption::Nothing => {}
        }
    }
    Ok(spec)
}

fn namespace(mode: &str) -> NamespaceMode {
    if mode == "host" { NamespaceMode::Host } else { NamespaceMode::Private }
}

fn cgroup_parent(own: &str, default: Option<&str>) -> String {
    match (own, default) {
        ("", Some(default)) => default.to_owned(),
        (own, _) => own.to_owned(),
    }
}

fn devices(host: &HostConfig) -> Vec<DeviceSpec> {
    let device = |device: &super::DeviceMapping| DeviceSpec {
        path_on_host: device.path_on_host.clone(),
        path_in_container: match device.path_in_container.as_str() {
            "" => device.path_on_host.clone(),
            path => path.to_owned(),
        },
        permissions: match device.cgroup_permissions.as_str() {
            "" => "rwm".to_owned(),
            permissions => permissions.to_owned(),
        },
    };
    host.devices.iter().flatten().map(device).collect()
}

fn blkio_devices(host: &HostConfig) -> Vec<BlkioDevice> {
    let lists = [
        (BlkioKind::Weight, "Weight", &host.blkio_weight_device),
        (BlkioKind::ReadBps, "Rate", &host.blkio_device_read_bps),
        (BlkioKind::WriteBps, "Rate", &host.blkio_device_write_bps),
        (BlkioKind::ReadIops, "Rate", &host.blkio_device_read_iops),
        (BlkioKind::WriteIops, "Rate", &host.blkio_device_write_iops),
    ];
    let entries = lists.into_iter().flat_map(|(kind, field, list)| {
        list.iter().flatten().map(move |entry| BlkioDevice {
            kind,
            path: honour::field(entry, "Path").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
            value: honour::field(entry, field).and_then(serde_json::Value::as_u64).unwrap_or(0),
        })
    });
    entries.collect()
}

fn ulimits(host: &HostConfig) -> Vec<Ulimit> {
    let ulimit = |limit: &super::Ulimit| Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard };
    host.ulimits.iter().flatten().map(ulimit).collect()
}

/// What an update changes in a running container: what its request names, completed by what the container has after it.
pub(crate) fn changed_resources(wanted: &HostConfig, after: &HostConfig) -> Resources {
    let mut changed = resources(wanted);
    if changed.memory_bytes.is_some() || changed.memory_swap_bytes.is_some() {
        let whole = resources(after);
        (changed.memory_bytes, changed.memory_swap_bytes) = (whole.memory_bytes, whole.memory_swap_bytes);
    }
    changed.pids_limit = wanted.pids_limit;
    changed
}

fn resources(host: &HostConfig) -> Resources {
    fn some(value: i64) -> Option<i64> {
        (value != 0).then_some(value)
    }
    fn unsigned(value: i64) -> Option<u64> {
        u64::try_from(value).ok().filter(|value| *value != 0)
    }
    Resources {
        memory_bytes: some(host.memory),
        memory_swap_bytes: some(host.memory_swap),
        memory_reservation_bytes: some(host.memory_reservation),
        memory_swappiness: host.memory_swappiness.and_then(|value| u64::try_from(value).ok()),
        oom_kill_disable: host.oom_kill_disable == Some(true),
        cpu_shares: unsigned(host.cpu_shares),
        cpu_quota_us: some(host.cpu_quota),
        cpu_period_us: unsigned(host.cpu_period),
        nano_cpus: some(host.nano_cpus),
        cpuset_cpus: host.cpuset_cpus.clone(),
        cpuset_mems: host.cpuset_mems.clone(),
        pids_limit: host.pids_limit.filter(|limit| *limit > 0),
        blkio_weight: (host.blkio_weight != 0).then_some(host.blkio_weight),
        blkio_devices: blkio_devices(host),
    }
}

/// Binds, volumes and tmpfs, and the three files of ours that they do not cover.
fn mounts(stored: &StoredContainer, etc: &EtcFiles, sources: Sources) -> Result<Vec<MountSpec>, EngineError> {
    let host = &stored.host_config;
    let mut mounts = Vec::new();
    for point in &stored.mounts {
        let typed = host.mounts.iter().flatten().find(|mount| {
            mount.kind == point.kind && clean_target(&mount.target).is_ok_and(|target| target == point.destination)
        });
        match (point.kind.as_str(), typed) {
            ("volume", _) => {
                mounts.push(bind_mount(
                    point.device.clone().unwrap_or_else(|| point.source.clone()),
                    point.destination.clone(),
                    !point.writable,
                    String::new(),
                    false,
                ));
            }
            (_, Some(mount)) => mounts.push(typed_mount(mount, sources)?),
            ("bind", None) => {
                let named = |bind: &String| parse_bind(bind).is_ok_and(|bind| bind.target == point.destination);
                // What another container has brought along is not made: it was there.
                if sources == Sources::Make && host.binds.iter().flatten().any(named) {
                    make_source(Path::new(&point.source))?;
                }
                let (source, target) = (point.source.clone(), point.destination.clone());
                mounts.push(bind_mount(source, target, !point.writable, point.propagation.clone(), false));
            }
            _ => {}
        }
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        let kind = MountKind::Tmpfs { options: options.clone() };
        mounts.push(MountSpec { kind, target: clean_target(target)?, readonly: false });
    }
    let ours =
        [("/etc/hosts", etc.hosts()), ("/etc/hostname", etc.hostname()), ("/etc/resolv.conf", etc.resolv_conf())];
    for (target, source) in ours {
        if !mounts.iter().any(|mount| mount.target == target) {
            let source = source.to_string_lossy().into_owned();
            mounts.push(bind_mount(source, target.to_owned(), host.readonly_rootfs, String::new(), false));
        }
    }
    Ok(mounts)
}

fn bind_mount(source: String, target: String, readonly: bool, propagation: String, non_recursive: bool) -> MountSpec {
    let kind = MountKind::Bind { source: PathBuf::from(source), propagation, non_recursive };
    MountSpec { kind, target, readonly }
}

fn typed_mount(mount: &Mount, sources: Sources) -> Result<MountSpec, EngineError> {
    let target = clean_target(&mount.target)?;
    if mount.kind == "tmpfs" {
        let mut options = Vec::new();
        if let Some(size) = honour::option(&mount.tmpfs_options, "SizeBytes").and_then(serde_json::Value::as_i64)
            && size > 0
        {
            options.push(format!("size={size}"));
        }
        if let Some(mode) = honour::option(&mount.tmpfs_options, "Mode").and_then(serde_json::Value::as_u64)
            && mode > 0
        {
            options.push(format!("mode={mode:o}"));
        }
        let kind = MountKind::Tmpfs { options: options.join(",") };
        return Ok(MountSpec { kind, target, readonly: mount.read_only });
    }
    let text = |key| honour::option(&mount.bind_options, key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let flag = |key| honour::option(&mount.bind_options, key) == Some(&serde_json::Value::Bool(true));
    if flag("CreateMountpoint") && sources == Sources::Make {
        make_source(Path::new(&mount.source))?;
    }
    let propagation = text("Propagation").to_owned();
    Ok(bind_mount(mount.source.clone(), target, mount.read_only, propagation, flag("NonRecursive")))
}

/// Refuses targets that the runtime would refuse at the start.
pub(crate) fn check_targets(spec: &ContainerSpec) -> Result<(), EngineError> {
    for mount in &spec.mounts {
        check_target(&mount.target).map_err(|error| EngineError::invalid(error.to_string()))?;
    }
    Ok(())
}

/// A missing source of a bind is made a directory, as Docker does.
fn make_source(path: &Path) -> Result<(), EngineError> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|source| EngineError::Io { action: "create", path: path.to_owned(), source })
}
