//! Which fields of a request are honoured. What is not is refused by name, never ignored (issue: "a clear refusal is no stub").

use super::config::CreateRequest;
use super::host_config::{HostConfig, Mount};
use super::{health, limits, restart};
use crate::error::EngineError;
use crate::network;
use crate::volume::parse_bind;

/// Log drivers of Docker's that exist but are not built yet.
const LOG_DRIVERS_LATER: [&str; 3] = ["local", "journald", "syslog"];

/// Refuses what cannot be honoured and fills in Docker's defaults; gives warnings for what is harmless.
///
/// # Errors
/// `NotImplemented` with the field's name; `InvalidParameter` or `NotFound` in Docker's words.
pub(crate) fn check(request: &mut CreateRequest) -> Result<Vec<String>, EngineError> {
    refuse_unbuilt(&request.host_config)?;
    if [&request.config.hostname, &request.config.domainname].iter().any(|name| has_blanks(name)) {
        return Err(EngineError::invalid(format!("invalid hostname format: {:?}", request.config.hostname)));
    }
    request.config.healthcheck.as_ref().map_or(Ok(()), health::check)?;
    check_values(&request.host_config)?;
    network::check(request)?;
    network::check_ports(&request.config, &request.host_config)?;
    check_mounts(&request.host_config)?;
    let warnings = warnings(&request.host_config);
    fill_defaults(&mut request.host_config);
    Ok(warnings)
}

fn refuse_unbuilt(host: &HostConfig) -> Result<(), EngineError> {
    fn some<T>(list: &Option<Vec<T>>) -> bool {
        list.as_ref().is_some_and(|list| !list.is_empty())
    }
    let unbuilt = [
        (some(&host.links), "HostConfig.Links"),
        (!host.cgroup.is_empty(), "HostConfig.Cgroup"),
        (host.storage_opt.as_ref().is_some_and(|options| !options.is_empty()), "HostConfig.StorageOpt"),
        (host.cpu_realtime_period != 0, "HostConfig.CpuRealtimePeriod"),
        (host.cpu_realtime_runtime != 0, "HostConfig.CpuRealtimeRuntime"),
        (some(&host.device_requests), "HostConfig.DeviceRequests"),
    ];
    match unbuilt.iter().find(|(asked_for, _)| *asked_for) {
        Some((_, field)) => Err(EngineError::not_implemented(*field)),
        None => Ok(()),
    }
}

fn check_values(host: &HostConfig) -> Result<(), EngineError> {
    limits::check(host)?;
    restart::check(&host.restart_policy)?;
    if host.auto_remove && !matches!(host.restart_policy.name.as_str(), "" | "no") {
        return Err(EngineError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    if !matches!(host.isolation.as_str(), "" | "default") {
        let isolation = &host.isolation;
        return Err(EngineError::invalid(format!("invalid isolation ({isolation}): linux only supports 'default'")));
    }
    if host.io_maximum_bandwidth != 0 || host.io_maximum_iops != 0 {
        let what = if host.io_maximum_bandwidth != 0 { "bandwidth" } else { "IOPs" };
        return Err(EngineError::invalid(format!(
            "invalid option: QoS maximum {what} configuration is not supported on linux"
        )));
    }
    if !matches!(host.runtime.as_str(), "" | "runc" | "baleen") {
        return Err(EngineError::invalid(format!("unknown or invalid runtime name: {}", host.runtime)));
    }
    if !matches!(host.volume_driver.as_str(), "" | "local") {
        let driver = &host.volume_driver;
        return Err(EngineError::NotFound {
            text: format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"),
        });
    }
    check_blkio(host)?;
    check_names(host)?;
    check_log(host)?;
    check_modes(host)
}

/// What goes into `hosts` and `resolv.conf` of the container: no entry may bring a line of its own along.
fn check_names(host: &HostConfig) -> Result<(), EngineError> {
    for entry in host.extra_hosts.iter().flatten() {
        let parts = entry.split_once([':', '=']);
        let address = parts.map(|(_, address)| address.trim_matches(['[', ']']));
        if address.is_none_or(|address| address != "host-gateway" && address.parse::<std::net::IpAddr>().is_err())
            || has_blanks(entry)
        {
            return Err(EngineError::invalid(format!("invalid IP address in add-host: \"{entry}\"")));
        }
    }
    for server in host.dns.iter().flatten() {
        if server.parse::<std::net::IpAddr>().is_err() {
            return Err(EngineError::invalid(format!("invalid IP address: {server}")));
        }
    }
    match host.dns_search.iter().chain(&host.dns_options).flatten().find(|text| has_blanks(text)) {
        Some(text) => Err(EngineError::invalid(format!("invalid DNS search domain or option: {text:?}"))),
        None => Ok(()),
    }
}

fn has_blanks(text: &str) -> bool {
    text.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}

fn check_log(host: &HostConfig) -> Result<(), EngineError> {
    let log = &host.log_config;
    match log.driver.as_str() {
        "" | "json-file" => {}
        "none" => return Ok(()),
        later if LOG_DRIVERS_LATER.contains(&later) => {
            return Err(EngineError::not_implemented(format!("log driver \"{later}\"")));
        }
        unknown => return Err(EngineError::invalid(format!("logger: no log driver named '{unknown}' is registered"))),
    }
    for (key, value) in &log.config {
        let valid = match key.as_str() {
            "max-size" => value == "-1" || parse_size(value).is_some(),
            "max-file" => value.parse::<u32>().is_ok_and(|count| (1..=1000).contains(&count)),
            "mode" if value == "blocking" => true,
            "compress" if value == "false" => true,
            "compress" | "mode" | "max-buffer-size" | "labels" | "labels-regex" | "env" | "env-regex" | "tag" => {
                return Err(EngineError::not_implemented(format!("log option \"{key}={value}\"")));
            }
            _ => return Err(EngineError::invalid(format!("unknown log opt '{key}' for json-file log driver"))),
        };
        if !valid {
            return Err(EngineError::invalid(format!("invalid value for {key}: {value}")));
        }
    }
    Ok(())
}

/// `10m`, `64k`, `1g` or bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn check_modes(host: &HostConfig) -> Result<(), EngineError> {
    let modes: [(&str, &str, &[&str]); 5] = [
        ("PidMode", &host.pid_mode, &["", "private", "host"]),
        ("IpcMode", &host.ipc_mode, &["", "none", "private", "shareable", "host"]),
        ("UTSMode", &host.uts_mode, &["", "private", "host"]),
        ("UsernsMode", &host.userns_mode, &["", "host"]),
        ("CgroupnsMode", &host.cgroupns_mode, &["", "private", "host"]),
    ];
    for (field, value, known) in modes {
        if known.contains(&value) {
            continue;
        }
        return Err(match value.split_once(':') {
            Some(("container", donor)) if matches!(field, "PidMode" | "IpcMode") && !donor.is_empty() => continue,
            Some(("container", _)) => EngineError::not_implemented(format!("HostConfig.{field} \"{value}\"")),
            _ => EngineError::invalid(format!("invalid {field}: {value}")),
        });
    }
    for option in host.security_opt.iter().flatten() {
        security_option(option)?;
    }
    Ok(())
}

/// One entry of `SecurityOpt`, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecurityOption {
    NoNewPrivileges(bool),
    Seccomp(String),
    SystemPathsUnconfined,
    /// Says what is so anyway: no AppArmor or SELinux label is set.
    Nothing,
}

/// Reads an entry of `SecurityOpt`; both `=` and the old `:` divide it.
pub(crate) fn security_option(option: &str) -> Result<SecurityOption, EngineError> {
    let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
    match (key, value) {
        ("no-new-privileges", "" | "true") => Ok(SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges", "false") => Ok(SecurityOption::NoNewPrivileges(false)),
        ("seccomp", profile) if !profile.is_empty() => Ok(SecurityOption::Seccomp(profile.to_owned())),
        ("systempaths", "unconfined") => Ok(SecurityOption::SystemPathsUnconfined),
        ("apparmor", "unconfined") | ("label", "disable") => Ok(SecurityOption::Nothing),
        ("apparmor" | "label", _) => Err(EngineError::not_implemented(format!("security option \"{option}\""))),
        _ => Err(EngineError::invalid(format!("invalid --security-opt 2: \"{option}\""))),
    }
}

pub(crate) fn is_default(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_default),
    }
}

fn check_mounts(host: &HostConfig) -> Result<(), EngineError> {
    let mut targets = std::collections::BTreeSet::new();
    let mut claim = |target: &str| -> Result<(), EngineError> {
        let clean = clean_target(target)?;
        if targets.insert(clean.clone()) {
            Ok(())
        } else {
            Err(EngineError::invalid(format!("Duplicate mount point: {clean}")))
        }
    };
    for bind in host.binds.iter().flatten() {
        claim(&parse_bind(bind)?.target)?;
    }
    for mount in host.mounts.iter().flatten() {
        check_mount(mount)?;
        claim(&mount.target)?;
    }
    for target in host.tmpfs.iter().flatten().map(|(target, _)| target) {
        claim(target)?;
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<(), EngineError> {
    let bad =
        |reason: String| EngineError::invalid(format!("invalid mount config for type \"{}\": {reason}", mount.kind));
    match mount.kind.as_str() {
        "bind" => {
            if !mount.source.starts_with('/') {
                return Err(bad(format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
            }
            let creates = option(&mount.bind_options, "CreateMountpoint").is_some_and(|value| value == true);
            if !creates && std::fs::symlink_metadata(&mount.source).is_err() {
                return Err(bad(format!("bind source path does not exist: {}", mount.source)));
            }
        }
        "tmpfs" => {
            if !mount.source.is_empty() {
                return Err(bad("field Source must not be specified".to_owned()));
            }
            if option(&mount.tmpfs_options, "Options").is_some_and(|value| !is_default(value)) {
                return Err(EngineError::not_implemented("TmpfsOptions.Options"));
            }
        }
        "volume" if mount.source.is_empty() && mount.read_only => {
            return Err(bad("must not set ReadOnly mode when using anonymous volumes".to_owned()));
        }
        "volume" => {}
        "image" | "cluster" => {
            return Err(EngineError::not_implemented(format!("mount type \"{}\"", mount.kind)));
        }
        unknown => return Err(EngineError::invalid(format!("mount type unknown: \"{unknown}\""))),
    }
    let fits =
        |kind: &str, options: &Option<serde_json::Value>| kind == mount.kind || options.as_ref().is_none_or(is_default);
    let all_fit = fits("bind", &mount.bind_options)
        && fits("tmpfs", &mount.tmpfs_options)
        && fits("volume", &mount.volume_options);
    if !all_fit {
        return Err(bad("options of another mount type are given".to_owned()));
    }
    for key in ["ReadOnlyNonRecursive", "ReadOnlyForceRecursive"] {
        if option(&mount.bind_options, key).is_some_and(|value| value == true) {
            return Err(EngineError::not_implemented(format!("BindOptions.{key}")));
        }
    }
    Ok(())
}

/// Blocks of `BlkioWeightDevice` and its kin: each names a device, and a rate or a weight in its range.
fn check_blkio(host: &HostConfig) -> Result<(), EngineError> {
    let lists = [
        ("Weight", &host.blkio_weight_device),
        ("Rate", &host.blkio_device_read_bps),
        ("Rate", &host.blkio_device_write_bps),
        ("Rate", &host.blkio_device_read_iops),
        ("Rate", &host.blkio_device_write_iops),
    ];
    for (name, list) in lists {
        if list.as_ref().is_some_and(|list| list.len() > limits::LIST_MAX) {
            return Err(EngineError::invalid(format!("more than {} block devices are named", limits::LIST_MAX)));
        }
        for entry in list.iter().flatten() {
            let path = field(entry, "Path").and_then(serde_json::Value::as_str).unwrap_or_default();
            if !path.starts_with('/') {
                return Err(EngineError::invalid(format!("bad format for path: {path}")));
            }
            let value = field(entry, name).and_then(serde_json::Value::as_u64);
            let fits =
                value.is_some_and(|value| if name == "Weight" { (10..=1000).contains(&value) } else { value > 0 });
            if !fits {
                return Err(EngineError::invalid(format!("invalid {} for device {path}", name.to_lowercase())));
            }
        }
    }
    Ok(())
}

/// A field of an entry whose keys may be spelt in any case.
pub(crate) fn field<'a>(entry: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    entry.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// A field of a mount's options.
pub(crate) fn option<'a>(options: &'a Option<serde_json::Value>, key: &str) -> Option<&'a serde_json::Value> {
    options.as_ref()?.as_object()?.get(key)
}

/// A mount's target, cleaned as a path: absolute, without `.`, `..`, `//` and a trailing slash.
pub(crate) fn clean_target(target: &str) -> Result<String, EngineError> {
    if !target.starts_with('/') {
        return Err(EngineError::invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(EngineError::invalid("invalid volume specification: destination can't be '/'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn warnings(host: &HostConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let mode = &host.network_mode;
    if (!host.port_bindings.is_empty() || host.publish_all_ports) && matches!(mode.as_str(), "host" | "none") {
        warnings.push(format!("Published ports are discarded when using {mode} network mode"));
    }
    if host.kernel_memory != 0 || host.kernel_memory_tcp != 0 {
        warnings.push("Kernel memory limits are not supported by any current kernel. They are ignored.".to_owned());
    }
    warnings
}

/// Whether the host has control groups of version 2 alone.
fn is_unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Docker's defaults, which inspect shows.
fn fill_defaults(host: &mut HostConfig) {
    fn default(field: &mut String, value: &str) {
        if field.is_empty() {
            field.push_str(value);
        }
    }
    default(&mut host.log_config.driver, "json-file");
    default(&mut host.restart_policy.name, "no");
    default(&mut host.ipc_mode, "private");
    default(&mut host.runtime, "runc");
    default(&mut host.cgroupns_mode, if is_unified() && !host.privileged { "private" } else { "host" });
    host.memory_swappiness = host.memory_swappiness.filter(|value| *value >= 0);
    if host.shm_size == 0 {
        host.shm_size = 64 << 20;
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        host.pids_limit = None;
    }
    if host.oom_kill_disable.is_none() {
        host.oom_kill_disable = Some(false);
    }
    host.kernel_memory = 0;
    host.kernel_memory_tcp = 0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::LogConfig;
    use crate::error::Kind;

    fn request(change: impl FnOnce(&mut CreateRequest)) -> Result<CreateRequest, EngineError> {
        let mut request = CreateRequest::default();
        request.host_config.network_mode = "none".to_owned();
        change(&mut request);
        check(&mut request)?;
        Ok(request)
    }

    #[test]
    fn a_plain_request_gets_dockers_defaults() {
        let host = request(|_| {}).unwrap().host_config;
        assert_eq!((host.shm_size, host.ipc_mode.as_str()), (64 << 20, "private"));
        assert_eq!((host.log_config.driver.as_str(), host.restart_policy.name.as_str()), ("json-file", "no"));
        let limited = request(|request| request.host_config.memory = 64 << 20).unwrap();
        assert_eq!(limited.host_config.memory_swap, 128 << 20);
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_name() {
        type Change = fn(&mut CreateRequest);
        let cases: [(Change, &str); 4] = [
            (|request| request.host_config.network_mode = "mynet".to_owned(), "network mode \"mynet\""),
            (|request| request.host_config.links = Some(vec!["a:b".to_owned()]), "HostConfig.Links"),
            (
                |request| request.host_config.cgroupns_mode = "container:x".to_owned(),
                "HostConfig.CgroupnsMode \"container:x\"",
            ),
            (
                |request| {
                    request.host_config.log_config = LogConfig { driver: "journald".to_owned(), ..LogConfig::default() }
                },
                "log driver \"journald\"",
            ),
        ];
        for (change, name) in cases {
            let error = request(change).unwrap_err();
            assert_eq!(error.kind(), Kind::NotImplemented);
            let text = error.to_string();
            assert!(text.starts_with(&format!("{name} is not implemented yet")), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_in_dockers_words() {
        type Change = fn(&mut CreateRequest);
        let cases: [(Change, &str); 7] = [
            (|request| request.host_config.memory = 4096, "Minimum memory limit allowed is 6MB"),
            (
                |request| request.host_config.log_config.driver = "gelf".to_owned(),
                "logger: no log driver named 'gelf' is registered",
            ),
            (
                |request| drop(request.host_config.log_config.config.insert("x".to_owned(), String::new())),
                "unknown log opt 'x' for json-file log driver",
            ),
            (
                |request| request.host_config.binds = Some(vec!["/a:/p".to_owned(), "/b:/x/../p/".to_owned()]),
                "Duplicate mount point: /p",
            ),
            (
                |request| request.host_config.binds = Some(vec!["/a:/".to_owned()]),
                "invalid volume specification: destination can't be '/'",
            ),
            (
                |request| request.host_config.isolation = "hyperv".to_owned(),
                "invalid isolation (hyperv): linux only supports 'default'",
            ),
            (
                |request| {
                    let mount = Mount {
                        kind: "bind".to_owned(),
                        source: "/no/such/path".to_owned(),
                        target: "/p".to_owned(),
                        ..Mount::default()
                    };
                    request.host_config.mounts = Some(vec![mount]);
                },
                "invalid mount config for type \"bind\": bind source path does not exist: /no/such/path",
            ),
        ];
        for (change, text) in cases {
            let error = request(change).unwrap_err();
            assert_eq!(error.to_string(), text);
            assert!(matches!(error, EngineError::InvalidParameter { .. }));
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("10m", Some(10 << 20)),
            ("64K", Some(64 << 10)),
            ("1g", Some(1 << 30)),
            ("7", Some(7)),
            ("x", None),
            ("1x", None),
        ] {
            assert_eq!(parse_size(text), bytes);
        }
    }
}
