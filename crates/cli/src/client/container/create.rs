//! From flags to the body of a create request.

use std::fs;

use serde_json::{Map, Value as Json, json};

use super::super::failure::Failure;
use super::super::flags::Parsed;
use super::super::text::units;
use super::ports;

/// A file that is named on the command line: environment, labels, a seccomp profile.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What a container is to be.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) body: Json,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    /// Standard input, output and error that are attached.
    pub(super) attach: [bool; 3],
}

/// Reads the flags of `run` and `create`. `detached` containers are attached to nothing.
///
/// # Errors
/// `Refused` with the flag and what is wrong with it, `Io` for a file that cannot be read.
pub(super) fn wanted(parsed: &Parsed, detached: bool) -> Result<Wanted, Failure> {
    let (image, command) = parsed.arguments.split_first().ok_or_else(|| Failure::refused("an image is needed"))?;
    let attach = attached(parsed, detached)?;
    let stdin = parsed.is("interactive");
    let tty = parsed.is("tty");
    let mut config = Map::new();
    let mut host = Map::new();

    config.insert("Image".into(), image.as_str().into());
    for (field, value) in [
        ("AttachStdin", attach[0]),
        ("AttachStdout", attach[1]),
        ("AttachStderr", attach[2]),
        ("Tty", tty),
        ("OpenStdin", stdin),
    ] {
        config.insert(field.into(), value.into());
    }
    config.insert("StdinOnce".into(), (stdin && attach[0]).into());
    if !command.is_empty() {
        config.insert("Cmd".into(), command.into());
    }
    for (flag, field) in [
        ("hostname", "Hostname"),
        ("domainname", "Domainname"),
        ("user", "User"),
        ("workdir", "WorkingDir"),
        ("stop-signal", "StopSignal"),
        ("mac-address", "MacAddress"),
    ] {
        if let Some(text) = parsed.text(flag).filter(|text| !text.is_empty()) {
            config.insert(field.into(), text.into());
        }
    }
    if let Some(program) = parsed.text("entrypoint") {
        config.insert("Entrypoint".into(), json!([program]));
    }
    put_list(&mut config, "Env", environment(parsed)?);
    let labels = labels(parsed)?;
    if !labels.is_empty() {
        config.insert("Labels".into(), labels.into());
    }
    if let Some(seconds) = parsed.number("stop-timeout") {
        config.insert("StopTimeout".into(), seconds.into());
    }
    if let Some(check) = health(parsed)? {
        config.insert("Healthcheck".into(), check);
    }

    limits(parsed, &mut host)?;
    ports_of(parsed, &mut config, &mut host)?;
    places(parsed, &mut config, &mut host)?;
    namespaces_and_security(parsed, &mut host)?;
    devices(parsed, &mut host)?;
    let networking = networks(parsed, &mut host)?;
    if parsed.is("rm") {
        host.insert("AutoRemove".into(), true.into());
        if parsed.text("restart").is_some_and(|policy| !matches!(policy, "" | "no")) {
            return Err(Failure::refused("conflicting options: cannot specify both --restart and --rm"));
        }
    }
    let log: Map<String, Json> = pairs(parsed, "log-opt")?;
    host.insert("LogConfig".into(), json!({ "Type": parsed.text("log-driver").unwrap_or_default(), "Config": log }));
    config.insert("HostConfig".into(), host.into());
    if !networking.is_empty() {
        config.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": networking }));
    }
    Ok(Wanted { body: config.into(), tty, stdin, attach })
}

fn attached(parsed: &Parsed, detached: bool) -> Result<[bool; 3], Failure> {
    let named = parsed.list("attach");
    if detached && !named.is_empty() {
        return Err(Failure::refused("conflicting options: cannot specify both --attach and --detach"));
    }
    if detached {
        return Ok([false; 3]);
    }
    let mut attach = [false; 3];
    for name in named {
        match name.to_ascii_lowercase().as_str() {
            "stdin" => attach[0] = true,
            "stdout" => attach[1] = true,
            "stderr" => attach[2] = true,
            _ => {
                return Err(Failure::refused(format!(
                    "invalid argument {name:?} for --attach: expected stdin, stdout or stderr"
                )));
            }
        }
    }
    if named.is_empty() {
        attach = [parsed.is("interactive"), true, true];
    }
    Ok(attach)
}

fn put_list(map: &mut Map<String, Json>, field: &str, items: Vec<String>) {
    if !items.is_empty() {
        map.insert(field.into(), items.into());
    }
}

fn read_file(path: &str) -> Result<String, Failure> {
    use std::io::Read;
    let mut text = String::new();
    let opened = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    opened.map_err(Failure::io(format!("read {path}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Failure::refused(format!("{path} is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The lines of a file that say something: without comments and empty ones.
fn lines(path: &str) -> Result<Vec<String>, Failure> {
    let text = read_file(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// Files first, flags after them; a name alone passes our own variable on.
pub(super) fn environment(parsed: &Parsed) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for path in parsed.list("env-file") {
        for line in lines(path)? {
            let (name, value) = line.split_once('=').map_or((line.as_str(), None), |(name, value)| (name, Some(value)));
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(Failure::refused(format!("invalid env file ({path}): variable {name:?} is no name")));
            }
            match (value, std::env::var(name)) {
                (Some(_), _) => all.push(line),
                (None, Ok(ours)) => all.push(format!("{name}={ours}")),
                (None, Err(_)) => {}
            }
        }
    }
    for variable in parsed.list("env") {
        let name = variable.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(Failure::refused(format!("invalid environment variable: {variable}")));
        }
        match std::env::var(variable) {
            // Without a value of ours the name goes alone, which takes the image's variable away.
            Ok(ours) if !variable.contains('=') => all.push(format!("{variable}={ours}")),
            _ => all.push(variable.clone()),
        }
    }
    Ok(all)
}

fn labels(parsed: &Parsed) -> Result<Map<String, Json>, Failure> {
    let mut all = Map::new();
    let mut put = |text: &str| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        all.insert(key.to_owned(), value.into());
    };
    for path in parsed.list("label-file") {
        lines(path)?.iter().for_each(|line| put(line));
    }
    parsed.list("label").iter().for_each(|label| put(label));
    Ok(all)
}

/// `key=value` as often as the flag was given.
pub(crate) fn pairs(parsed: &Parsed, flag: &str) -> Result<Map<String, Json>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.into())),
        _ => Err(Failure::refused(format!("invalid argument {text:?} for --{flag}: expected key=value"))),
    };
    parsed.list(flag).iter().map(pair).collect()
}

fn health(parsed: &Parsed) -> Result<Option<Json>, Failure> {
    let names = [
        "health-cmd",
        "health-interval",
        "health-timeout",
        "health-start-period",
        "health-start-interval",
        "health-retries",
    ];
    let given = names.iter().any(|name| parsed.given(name));
    if parsed.is("no-healthcheck") {
        return match given {
            true => Err(Failure::refused("--no-healthcheck conflicts with --health-* options")),
            false => Ok(Some(json!({ "Test": ["NONE"] }))),
        };
    }
    if !given {
        return Ok(None);
    }
    let mut check = Map::new();
    if let Some(command) = parsed.text("health-cmd").filter(|command| !command.is_empty()) {
        check.insert("Test".into(), json!(["CMD-SHELL", command]));
    }
    for (flag, field) in [
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
    ] {
        if let Some(nanoseconds) = parsed.text(flag).and_then(units::parse_duration) {
            check.insert(field.into(), nanoseconds.into());
        }
    }
    if let Some(retries) = parsed.number("health-retries") {
        check.insert("Retries".into(), retries.into());
    }
    Ok(Some(check.into()))
}

/// The limits that `update` knows too.
pub(super) fn limits(parsed: &Parsed, host: &mut Map<String, Json>) -> Result<(), Failure> {
    for (flag, field) in [
        ("blkio-weight", "BlkioWeight"),
        ("cpu-period", "CpuPeriod"),
        ("cpu-quota", "CpuQuota"),
        ("cpu-rt-period", "CpuRealtimePeriod"),
        ("cpu-rt-runtime", "CpuRealtimeRuntime"),
        ("cpu-shares", "CpuShares"),
        ("pids-limit", "PidsLimit"),
        ("memory-swappiness", "MemorySwappiness"),
        ("oom-score-adj", "OomScoreAdj"),
    ] {
        if let Some(number) = parsed.number(flag) {
            host.insert(field.into(), number.into());
        }
    }
    for (flag, field) in [
        ("memory", "Memory"),
        ("memory-reservation", "MemoryReservation"),
        ("memory-swap", "MemorySwap"),
        ("kernel-memory", "KernelMemory"),
        ("shm-size", "ShmSize"),
    ] {
        if let Some(bytes) = parsed.bytes(flag) {
            host.insert(field.into(), bytes.into());
        }
    }
    for (flag, field) in [("cpuset-cpus", "CpusetCpus"), ("cpuset-mems", "CpusetMems")] {
        if let Some(text) = parsed.text(flag) {
            host.insert(field.into(), text.into());
        }
    }
    if let Some(nano) = parsed.text("cpus").and_then(units::parse_nano) {
        host.insert("NanoCpus".into(), nano.into());
    }
    if let Some(policy) = parsed.text("restart") {
        let (name, retries) = policy.split_once(':').unwrap_or((policy, "0"));
        let retries: i64 = retries
            .parse()
            .map_err(|_| Failure::refused("invalid restart policy format: maximum retry count must be an integer"))?;
        host.insert("RestartPolicy".into(), json!({ "Name": name, "MaximumRetryCount": retries }));
    }
    Ok(())
}

fn ports_of(parsed: &Parsed, config: &mut Map<String, Json>, host: &mut Map<String, Json>) -> Result<(), Failure> {
    let mut exposed = Map::new();
    let mut bindings: Map<String, Json> = Map::new();
    for text in parsed.list("publish") {
        for port in ports::published(text).map_err(Failure::refused)? {
            exposed.insert(port.inside.clone(), json!({}));
            let binding = json!({ "HostIp": port.address, "HostPort": port.host });
            match bindings.entry(port.inside).or_insert_with(|| json!([])) {
                Json::Array(all) => all.push(binding),
                other => *other = json!([binding]),
            }
        }
    }
    for text in parsed.list("expose") {
        for port in ports::exposed(text).map_err(Failure::refused)? {
            exposed.insert(port, json!({}));
        }
    }
    if !exposed.is_empty() {
        config.insert("ExposedPorts".into(), exposed.into());
    }
    if !bindings.is_empty() {
        host.insert("PortBindings".into(), bindings.into());
    }
    if parsed.is("publish-all") {
        host.insert("PublishAllPorts".into(), true.into());
    }
    Ok(())
}

fn places(parsed: &Parsed, config: &mut Map<String, Json>, host: &mut Map<String, Json>) -> Result<(), Failure> {
    let mut binds = Vec::new();
    let mut anonymous = Map::new();
    for volume in parsed.list("volume") {
        match volume.split_once(':') {
            None if volume.is_empty() => return Err(Failure::refused("invalid empty volume spec")),
            None => drop(anonymous.insert(volume.clone(), json!({}))),
            // A path that is relative to us means nothing to the daemon.
            Some((source, rest)) if source.starts_with('.') => {
                let absolute = std::path::absolute(source).map_err(Failure::io(format!("find {source}")))?;
                binds.push(format!("{}:{rest}", normal(&absolute).display()));
            }
            Some(_) => binds.push(volume.clone()),
        }
    }
    put_list(host, "Binds", binds);
    if !anonymous.is_empty() {
        config.insert("Volumes".into(), anonymous.into());
    }
    let mut tmpfs = Map::new();
    for text in parsed.list("tmpfs") {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        tmpfs.insert(path.to_owned(), options.into());
    }
    if !tmpfs.is_empty() {
        host.insert("Tmpfs".into(), tmpfs.into());
    }
    let mounts: Vec<Json> = parsed.list("mount").iter().map(|text| mount(text)).collect::<Result<_, _>>()?;
    if !mounts.is_empty() {
        host.insert("Mounts".into(), mounts.into());
    }
    put_list(host, "VolumesFrom", parsed.list("volumes-from").to_vec());
    if let Some(driver) = parsed.text("volume-driver") {
        host.insert("VolumeDriver".into(), driver.into());
    }
    if parsed.is("read-only") {
        host.insert("ReadonlyRootfs".into(), true.into());
    }
    let options = pairs(parsed, "storage-opt")?;
    if !options.is_empty() {
        host.insert("StorageOpt".into(), options.into());
    }
    Ok(())
}

/// Without `.` and `..`, by the names alone.
fn normal(path: &std::path::Path) -> std::path::PathBuf {
    let mut whole = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(whole.pop()),
            std::path::Component::CurDir => {}
            part => whole.push(part),
        }
    }
    whole
}

fn mount(text: &str) -> Result<Json, Failure> {
    let wrong = |reason: &str| Failure::refused(format!("invalid argument {text:?} for --mount: {reason}"));
    let mut kind = "volume".to_owned();
    let mut mount = Map::new();
    let (mut bind, mut volume, mut tmpfs, mut image) = (Map::new(), Map::new(), Map::new(), Map::new());
    let (mut labels, mut driver, mut options) = (Map::new(), None, Map::new());
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        let flag = || match value {
            "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(wrong(&format!("invalid value for {key}: {value}"))),
        };
        if value.is_empty()
            || (!field.contains('=')
                && !["readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src"].contains(&key))
        {
            return Err(wrong(&format!("invalid field '{field}' must be a key=value pair")));
        }
        let pair = || {
            let (key, value) = value.split_once('=').unwrap_or((value, ""));
            (key.to_owned(), Json::from(value))
        };
        match key {
            "type" => kind = value.to_ascii_lowercase(),
            "source" | "src" => drop(mount.insert("Source".into(), value.into())),
            "target" | "dst" | "destination" => drop(mount.insert("Target".into(), value.into())),
            "readonly" | "ro" => drop(mount.insert("ReadOnly".into(), flag()?.into())),
            "consistency" => drop(mount.insert("Consistency".into(), value.into())),
            "bind-propagation" => drop(bind.insert("Propagation".into(), value.into())),
            "bind-nonrecursive" => drop(bind.insert("NonRecursive".into(), flag()?.into())),
            "bind-create-src" => drop(bind.insert("CreateMountpoint".into(), flag()?.into())),
            "bind-recursive" => match value {
                "enabled" => {}
                "disabled" => drop(bind.insert("NonRecursive".into(), true.into())),
                "writable" => drop(bind.insert("ReadOnlyNonRecursive".into(), true.into())),
                "readonly" => drop(bind.insert("ReadOnlyForceRecursive".into(), true.into())),
                _ => return Err(wrong(&format!("invalid value for bind-recursive: {value}"))),
            },
            "volume-nocopy" => drop(volume.insert("NoCopy".into(), flag()?.into())),
            "volume-subpath" => drop(volume.insert("Subpath".into(), value.into())),
            "image-subpath" => drop(image.insert("Subpath".into(), value.into())),
            "volume-label" => labels.extend([pair()]),
            "volume-driver" => driver = Some(value.to_owned()),
            "volume-opt" => options.extend([pair()]),
            "tmpfs-size" => {
                let size = units::parse_bytes(value)
                    .ok_or_else(|| wrong(&format!("invalid value for tmpfs-size: {value}")))?;
                tmpfs.insert("SizeBytes".into(), size.into());
            }
            "tmpfs-mode" => {
                let mode = u32::from_str_radix(value, 8)
                    .map_err(|_| wrong(&format!("invalid value for tmpfs-mode: {value}")))?;
                tmpfs.insert("Mode".into(), mode.into());
            }
            _ => return Err(wrong(&format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    if !mount.contains_key("Target") {
        return Err(wrong("target is required"));
    }
    if !labels.is_empty() {
        volume.insert("Labels".into(), labels.into());
    }
    if driver.is_some() || !options.is_empty() {
        volume.insert("DriverConfig".into(), json!({ "Name": driver.unwrap_or_default(), "Options": options }));
    }
    for (of, name, options) in [
        ("bind", "BindOptions", bind),
        ("volume", "VolumeOptions", volume),
        ("tmpfs", "TmpfsOptions", tmpfs),
        ("image", "ImageOptions", image),
    ] {
        if options.is_empty() {
            continue;
        }
        if of != kind {
            return Err(wrong(&format!("cannot mix '{of}-*' options with mount type '{kind}'")));
        }
        mount.insert(name.into(), options.into());
    }
    if kind == "bind"
        && let Some(source) = mount.get("Source").and_then(Json::as_str).filter(|source| source.starts_with('.'))
    {
        let absolute = std::path::absolute(source).map_err(Failure::io(format!("find {source}")))?;
        mount.insert("Source".into(), normal(&absolute).display().to_string().into());
    }
    mount.insert("Type".into(), kind.into());
    Ok(mount.into())
}

fn namespaces_and_security(parsed: &Parsed, host: &mut Map<String, Json>) -> Result<(), Failure> {
    for (flag, field) in [
        ("ipc", "IpcMode"),
        ("pid", "PidMode"),
        ("uts", "UTSMode"),
        ("userns", "UsernsMode"),
        ("cgroupns", "CgroupnsMode"),
        ("cgroup-parent", "CgroupParent"),
        ("runtime", "Runtime"),
        ("isolation", "Isolation"),
    ] {
        if let Some(text) = parsed.text(flag) {
            host.insert(field.into(), text.into());
        }
    }
    for (flag, field) in [("privileged", "Privileged"), ("oom-kill-disable", "OomKillDisable")] {
        if parsed.is(flag) {
            host.insert(field.into(), true.into());
        }
    }
    if let Some(init) = parsed.boolean("init") {
        host.insert("Init".into(), init.into());
    }
    let (added, mut dropped) = (capabilities(parsed.list("cap-add")), capabilities(parsed.list("cap-drop")));
    dropped.retain(|capability| !added.contains(capability));
    put_list(host, "CapAdd", added);
    put_list(host, "CapDrop", dropped);
    put_list(host, "GroupAdd", parsed.list("group-add").to_vec());
    for (flag, field) in [("sysctl", "Sysctls"), ("annotation", "Annotations")] {
        let map = pairs(parsed, flag)?;
        if !map.is_empty() {
            host.insert(field.into(), map.into());
        }
    }
    let mut options = Vec::new();
    for option in parsed.list("security-opt") {
        let (key, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
            Some(pair) => pair,
            None => (option.as_str(), ""),
        };
        match (key, value) {
            ("systempaths", "unconfined") => {
                host.insert("MaskedPaths".into(), json!([]));
                host.insert("ReadonlyPaths".into(), json!([]));
            }
            ("seccomp", "unconfined" | "builtin") => options.push(format!("seccomp={value}")),
            // The daemon may be elsewhere: it gets the profile, not its name.
            ("seccomp", path) => {
                let profile: Json = serde_json::from_str(&read_file(path)?)
                    .map_err(|error| Failure::refused(format!("seccomp profile {path} is no JSON: {error}")))?;
                options.push(format!("seccomp={profile}"));
            }
            _ => options.push(option.clone()),
        }
    }
    put_list(host, "SecurityOpt", options);
    Ok(())
}

/// Capabilities in one spelling and order; ALL says everything.
fn capabilities(given: &[String]) -> Vec<String> {
    let whole = |name: &String| {
        let name = name.trim().to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let mut all: Vec<String> = given.iter().map(whole).collect();
    if all.iter().any(|name| name == "ALL") {
        return vec!["ALL".to_owned()];
    }
    all.sort();
    all.dedup();
    all
}

fn devices(parsed: &Parsed, host: &mut Map<String, Json>) -> Result<(), Failure> {
    let mut devices = Vec::new();
    for text in parsed.list("device") {
        let parts: Vec<&str> = text.split(':').collect();
        let is_mode = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
        let (outside, inside, mode) = match parts[..] {
            [outside] => (outside, outside, "rwm"),
            [outside, mode] if is_mode(mode) => (outside, outside, mode),
            [outside, inside] => (outside, inside, "rwm"),
            [outside, inside, mode] if is_mode(mode) => (outside, inside, mode),
            _ => return Err(Failure::refused(format!("invalid device specification: {text}"))),
        };
        devices.push(json!({ "PathOnHost": outside, "PathInContainer": inside, "CgroupPermissions": mode }));
    }
    if !devices.is_empty() {
        host.insert("Devices".into(), devices.into());
    }
    put_list(host, "DeviceCgroupRules", parsed.list("device-cgroup-rule").to_vec());
    for (flag, field, value) in [
        ("blkio-weight-device", "BlkioWeightDevice", "Weight"),
        ("device-read-bps", "BlkioDeviceReadBps", "Rate"),
        ("device-write-bps", "BlkioDeviceWriteBps", "Rate"),
        ("device-read-iops", "BlkioDeviceReadIOps", "Rate"),
        ("device-write-iops", "BlkioDeviceWriteIOps", "Rate"),
    ] {
        let mut all = Vec::new();
        for text in parsed.list(flag) {
            let wrong =
                || Failure::refused(format!("invalid argument {text:?} for --{flag}: expected /dev/NAME:NUMBER"));
            let (path, number) = text.rsplit_once(':').ok_or_else(wrong)?;
            let number = if flag.ends_with("bps") { units::parse_bytes(number) } else { number.parse().ok() };
            all.push(json!({ "Path": path, value: number.ok_or_else(wrong)? }));
        }
        if !all.is_empty() {
            host.insert(field.into(), all.into());
        }
    }
    let mut limits = Vec::new();
    for text in parsed.list("ulimit") {
        let wrong = || Failure::refused(format!("invalid ulimit argument: {text}"));
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
        limits.push(json!({ "Name": name, "Soft": number(soft)?, "Hard": number(hard)? }));
    }
    if !limits.is_empty() {
        host.insert("Ulimits".into(), limits.into());
    }
    if let Some(request) = parsed.text("gpus") {
        let count: i64 = if request == "all" { -1 } else { request.parse().unwrap_or(1) };
        host.insert("DeviceRequests".into(), json!([{ "Count": count, "Capabilities": [["gpu"]] }]));
    }
    Ok(())
}

/// The network mode goes into the host's part; answers the endpoints.
fn networks(parsed: &Parsed, host: &mut Map<String, Json>) -> Result<Map<String, Json>, Failure> {
    for (flag, field) in [
        ("dns", "Dns"),
        ("dns-option", "DnsOptions"),
        ("dns-search", "DnsSearch"),
        ("add-host", "ExtraHosts"),
        ("link", "Links"),
    ] {
        let values = parsed.list(flag).iter().map(|value| {
            // `name=address` is the newer way to write it.
            if flag == "add-host" && !value.contains(':') { value.replacen('=', ":", 1) } else { value.clone() }
        });
        put_list(host, field, values.collect());
    }
    let mut endpoints = Map::new();
    let mut mode = None;
    for text in parsed.list("network") {
        let mut endpoint = Map::new();
        let mut name = text.clone();
        // `name=x,alias=y` is the long form.
        if text.contains('=') {
            name.clear();
            let mut addresses = Map::new();
            for field in text.split(',') {
                let wrong = || Failure::refused(format!("invalid field {field:?} in --network {text:?}"));
                let (key, value) = field.split_once('=').ok_or_else(wrong)?;
                match key {
                    "name" => name = value.to_owned(),
                    "alias" => push(&mut endpoint, "Aliases", value),
                    "ip" => drop(addresses.insert("IPv4Address".into(), value.into())),
                    "ip6" => drop(addresses.insert("IPv6Address".into(), value.into())),
                    "link-local-ip" => push(&mut addresses, "LinkLocalIPs", value),
                    "mac-address" => drop(endpoint.insert("MacAddress".into(), value.into())),
                    "driver-opt" => {
                        let (key, value) = value.split_once('=').ok_or_else(wrong)?;
                        let options = endpoint.entry("DriverOpts").or_insert_with(|| json!({}));
                        options[key] = value.into();
                    }
                    "gw-priority" => {
                        drop(endpoint.insert("GwPriority".into(), value.parse::<i64>().map_err(|_| wrong())?.into()))
                    }
                    _ => return Err(wrong()),
                }
            }
            if !addresses.is_empty() {
                endpoint.insert("IPAMConfig".into(), addresses.into());
            }
        }
        if name.is_empty() {
            return Err(Failure::refused(format!("invalid argument {text:?} for --network: a name is needed")));
        }
        mode.get_or_insert_with(|| name.clone());
        endpoints.insert(name, endpoint.into());
    }
    let mode = mode.unwrap_or_else(|| "default".to_owned());
    let mut first = Map::new();
    for alias in parsed.list("network-alias") {
        push(&mut first, "Aliases", alias);
    }
    let mut addresses = Map::new();
    for (flag, field) in [("ip", "IPv4Address"), ("ip6", "IPv6Address")] {
        if let Some(address) = parsed.text(flag) {
            addresses.insert(field.into(), address.into());
        }
    }
    for address in parsed.list("link-local-ip") {
        push(&mut addresses, "LinkLocalIPs", address);
    }
    if !addresses.is_empty() {
        first.insert("IPAMConfig".into(), addresses.into());
    }
    if let Some(address) = parsed.text("mac-address") {
        first.insert("MacAddress".into(), address.into());
    }
    for link in parsed.list("link").iter().filter(|_| is_user_defined(&mode)) {
        push(&mut first, "Links", link);
    }
    if !first.is_empty()
        && let Json::Object(endpoint) = endpoints.entry(mode.clone()).or_insert_with(|| json!({}))
    {
        endpoint.extend(first);
    }
    // What needs no endpoint gets none: older daemons refuse one for these modes.
    endpoints.retain(|name, endpoint| {
        is_user_defined(name) || endpoint.as_object().is_some_and(|endpoint| !endpoint.is_empty())
    });
    host.insert("NetworkMode".into(), mode.into());
    Ok(endpoints)
}

fn push(map: &mut Map<String, Json>, field: &str, value: &str) {
    if let Json::Array(all) = map.entry(field).or_insert_with(|| json!([])) {
        all.push(value.into());
    }
}

fn is_user_defined(network: &str) -> bool {
    !matches!(network, "default" | "bridge" | "none" | "host") && !network.starts_with("container:")
}
