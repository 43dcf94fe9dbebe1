//! From the mounts of a request to the mount points of a container: Docker's rules, without touching the disk.
//!
//! Order: `VolumesFrom`, then `Binds` and `Mounts`, then `Volumes` of the request and the image. Binds and mounts win over what
//! came from another container; a volume of the image gives way to everything.

use std::collections::BTreeMap;

use super::description::{check_driver, check_name};
use crate::container::{self, ContainerConfig, Containers, HostConfig, Mount, MountPoint, clean_target, option};
use crate::error::EngineError;

/// A mount point with what only its making needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// A volume without a name is anonymous: it gets one when it is made.
    pub(crate) point: MountPoint,
    /// Fill a fresh volume with what the image has there.
    pub(crate) copy: bool,
    /// Labels of a volume that is made for it.
    pub(crate) labels: BTreeMap<String, String>,
}

/// What a bind shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path of the host.
    Host(String),
    /// A volume.
    Volume(String),
    /// A volume of its own.
    Anonymous,
}

/// An entry of `Binds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: Source,
    pub(crate) target: String,
    /// As written, for display.
    mode: String,
    readonly: bool,
    no_copy: bool,
    propagation: Option<String>,
}

/// Reads `[source:]target[:options]`.
///
/// # Errors
/// `InvalidParameter` in Docker's words.
pub(crate) fn parse_bind(text: &str) -> Result<Bind, EngineError> {
    let invalid = || EngineError::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] if !source.is_empty() => (source, target, ""),
        [source, target, mode] if !source.is_empty() => (source, target, mode),
        _ => return Err(invalid()),
    };
    if target.is_empty() {
        return Err(invalid());
    }
    let source = match source {
        "" => Source::Anonymous,
        path if path.starts_with('/') => Source::Host(path.to_owned()),
        name => {
            check_name(name)?;
            Source::Volume(name.to_owned())
        }
    };
    let mut bind = Bind {
        source,
        target: clean_target(target)?,
        mode: mode.to_owned(),
        readonly: false,
        no_copy: false,
        propagation: None,
    };
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        let is_bind = matches!(bind.source, Source::Host(_));
        match word {
            "ro" => bind.readonly = true,
            "rw" | "consistent" | "cached" | "delegated" => {}
            "nocopy" if !is_bind => bind.no_copy = true,
            // Relabelling does nothing without SELinux, as in Docker.
            "z" | "Z" => {}
            "shared" | "slave" | "private" | "rshared" | "rslave" | "rprivate" if is_bind => {
                bind.propagation = Some(word.to_owned());
            }
            _ => return Err(EngineError::invalid(format!("invalid mode: {mode}"))),
        }
    }
    Ok(bind)
}

impl Bind {
    fn planned(self) -> Planned {
        let (kind, name, source) = match &self.source {
            Source::Host(path) => ("bind", None, path.clone()),
            Source::Volume(name) => ("volume", Some(name.clone()), String::new()),
            Source::Anonymous => ("volume", None, String::new()),
        };
        let is_bind = kind == "bind";
        let point = MountPoint {
            kind: kind.to_owned(),
            anonymous: self.source == Source::Anonymous,
            device: None,
            name,
            source,
            destination: self.target,
            driver: (!is_bind).then(|| "local".to_owned()),
            mode: if self.mode.is_empty() && !is_bind { "z".to_owned() } else { self.mode },
            writable: !self.readonly,
            propagation: match self.propagation {
                None if is_bind => "rprivate".to_owned(),
                propagation => propagation.unwrap_or_default(),
            },
        };
        Planned { copy: !is_bind && !self.no_copy, point, labels: BTreeMap::new() }
    }
}

/// All mount points of a container but its plain tmpfs, in the order in which inspect shows them.
///
/// # Errors
/// `InvalidParameter`, `NoSuchContainer`, `NotFound`, `NotImplemented`.
pub(crate) fn plan(
    containers: &Containers,
    config: &ContainerConfig,
    host: &HostConfig,
) -> Result<Vec<Planned>, EngineError> {
    let mut plan: BTreeMap<String, Planned> = BTreeMap::new();
    let mut add = |planned: Planned| drop(plan.insert(planned.point.destination.clone(), planned));
    for entry in host.volumes_from.iter().flatten() {
        volumes_from(containers, entry)?.into_iter().for_each(&mut add);
    }
    for bind in host.binds.iter().flatten() {
        add(parse_bind(bind)?.planned());
    }
    for mount in host.mounts.iter().flatten() {
        add(mounted(mount)?);
    }
    let tmpfs: Vec<String> =
        host.tmpfs.iter().flatten().map(|(target, _)| clean_target(target)).collect::<Result<_, _>>()?;
    for target in config.volumes.iter().flatten().map(|(target, _)| target) {
        let target = clean_target(target)?;
        if tmpfs.contains(&target) || plan.contains_key(&target) {
            continue;
        }
        let bind = Bind {
            source: Source::Anonymous,
            target,
            mode: String::new(),
            readonly: false,
            no_copy: false,
            propagation: None,
        };
        let mut planned = bind.planned();
        planned.point.mode.clear();
        plan.insert(planned.point.destination.clone(), planned);
    }
    Ok(plan.into_values().collect())
}

/// The mount points of another container: `name[:ro|:rw]`.
fn volumes_from(containers: &Containers, entry: &str) -> Result<Vec<Planned>, EngineError> {
    let (name, mode) = entry.split_once(':').unwrap_or((entry, "rw"));
    if name.is_empty() {
        return Err(EngineError::invalid(format!("malformed volumes-from specification: {entry}")));
    }
    let mut readonly = false;
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => readonly = true,
            "rw" | "z" | "Z" => {}
            _ => return Err(EngineError::invalid(format!("invalid mode for volumes-from: {mode}"))),
        }
    }
    // Not as 404, which at a create means the image: clients would pull it.
    let other = containers.find(name).map_err(|error| EngineError::invalid(error.to_string()))?;
    let stored = other.stored();
    let points = stored.mounts.iter().filter(|point| matches!(point.kind.as_str(), "bind" | "volume"));
    let take = |point: &MountPoint| {
        let writable = point.writable && !readonly;
        // It belongs to the other container: removing this one leaves it alone.
        let point = MountPoint { writable, anonymous: false, ..point.clone() };
        Planned { point, copy: false, labels: BTreeMap::new() }
    };
    Ok(points.map(take).collect())
}

/// An entry of `Mounts`; its form was checked before.
fn mounted(mount: &Mount) -> Result<Planned, EngineError> {
    let text = |options, key| option(options, key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let mut point = MountPoint {
        kind: mount.kind.clone(),
        name: None,
        source: String::new(),
        destination: clean_target(&mount.target)?,
        driver: None,
        mode: String::new(),
        writable: !mount.read_only,
        propagation: String::new(),
        anonymous: false,
        device: None,
    };
    let (mut copy, mut labels) = (false, BTreeMap::new());
    match mount.kind.as_str() {
        "bind" => {
            point.source.clone_from(&mount.source);
            point.propagation = match text(&mount.bind_options, "Propagation") {
                "" => "rprivate".to_owned(),
                propagation => propagation.to_owned(),
            };
        }
        "volume" => {
            point.driver = Some("local".to_owned());
            point.mode = "z".to_owned();
            point.anonymous = mount.source.is_empty();
            if !mount.source.is_empty() {
                check_name(&mount.source)?;
                point.name = Some(mount.source.clone());
            }
            copy = option(&mount.volume_options, "NoCopy") != Some(&serde_json::Value::Bool(true));
            let given = option(&mount.volume_options, "Labels").and_then(serde_json::Value::as_object);
            for (key, value) in given.into_iter().flatten() {
                labels.insert(key.clone(), value.as_str().unwrap_or_default().to_owned());
            }
            volume_options(mount)?;
        }
        _ => {}
    }
    Ok(Planned { point, copy, labels })
}

fn volume_options(mount: &Mount) -> Result<(), EngineError> {
    if option(&mount.volume_options, "Subpath").is_some_and(|value| !container::is_default(value)) {
        return Err(EngineError::not_implemented("VolumeOptions.Subpath"));
    }
    let Some(driver) = option(&mount.volume_options, "DriverConfig") else { return Ok(()) };
    check_driver(driver.get("Name").and_then(serde_json::Value::as_str).unwrap_or_default(), &mount.source)?;
    if driver.get("Options").is_some_and(|options| !container::is_default(options)) {
        return Err(EngineError::not_implemented("VolumeOptions.DriverConfig.Options"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(binds: &[&str], volumes: &[&str]) -> Result<Vec<Planned>, EngineError> {
        let host =
            HostConfig { binds: Some(binds.iter().map(|bind| (*bind).to_owned()).collect()), ..HostConfig::default() };
        let volumes = volumes.iter().map(|path| ((*path).to_owned(), Default::default())).collect();
        let config = ContainerConfig { volumes: Some(volumes), ..ContainerConfig::default() };
        plan(&Containers::default(), &config, &host)
    }

    #[test]
    fn a_source_is_a_path_a_volume_or_nothing() {
        let plan = planned(&["/h:/a:ro,rslave", "data:/b:nocopy", "/c"], &[]).unwrap();
        let points: Vec<&MountPoint> = plan.iter().map(|planned| &planned.point).collect();
        assert_eq!((points[0].kind.as_str(), points[0].source.as_str(), points[0].writable), ("bind", "/h", false));
        assert_eq!(points[0].propagation, "rslave");
        assert_eq!((points[1].kind.as_str(), points[1].name.as_deref()), ("volume", Some("data")));
        assert!(!plan[1].copy && plan[2].copy && points[2].anonymous && !points[1].anonymous);
    }

    #[test]
    fn a_volume_of_the_image_gives_way_to_what_the_request_puts_there() {
        let plan = planned(&["/h:/data"], &["/data/", "/other"]).unwrap();
        let kinds: Vec<(&str, &str)> =
            plan.iter().map(|planned| (planned.point.destination.as_str(), planned.point.kind.as_str())).collect();
        assert_eq!(kinds, [("/data", "bind"), ("/other", "volume")]);
    }

    #[test]
    fn malformed_binds_are_refused() {
        for bind in [
            "",
            ":",
            "::",
            "a:",
            "/h:/a:maybe",
            "data:/a:rshared",
            "../x:/a",
            "x y:/a",
            "/h:relative",
            "/h:/",
            "/h:/a:nocopy",
            "/a:",
            "/a:ro",
            "/a:/b:ro:x",
        ] {
            assert!(planned(&[bind], &[]).is_err(), "{bind}");
        }
    }
}
