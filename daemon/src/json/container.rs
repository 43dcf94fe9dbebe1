//! Containers: list and inspect.

use std::collections::BTreeMap;

use baleen_engine::{
    ContainerConfig, ContainerDetails, ContainerStatus, Health, HealthProbe, HealthStatus, HostConfig, MountPoint,
    Timestamp,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::image::graph_driver;
use super::network::{network_settings, networks, port_list};

/// An entry of `/containers/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerListItem {
    id: String,
    names: [String; 1],
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: i64,
    ports: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    labels: BTreeMap<String, String>,
    state: &'static str,
    status: String,
    host_config: Value,
    network_settings: Value,
    mounts: Vec<Mounted>,
}

impl ContainerListItem {
    /// Renders a container as it is at `now`.
    pub(crate) fn new(details: ContainerDetails, now: Timestamp) -> ContainerListItem {
        let status = status_text(&details, now);
        let networks = networks(&details);
        let ports = port_list(&details);
        let words: Vec<&str> = std::iter::once(&details.path).chain(&details.args).map(String::as_str).collect();
        ContainerListItem {
            id: details.id,
            names: [format!("/{}", details.name)],
            image: details.image_shown,
            image_id: details.image_id,
            command: words.join(" "),
            created: details.created.seconds,
            ports,
            size_rw: details.size_rw_bytes,
            size_root_fs: details.size_root_fs_bytes,
            labels: details.config.labels,
            state: details.state.status.as_str(),
            status,
            host_config: json!({ "NetworkMode": details.host_config.network_mode }),
            network_settings: json!({ "Networks": networks }),
            mounts: details.mounts.into_iter().map(Mounted::from).collect(),
        }
    }
}

/// `/containers/{id}/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerInspect {
    id: String,
    created: Timestamp,
    path: String,
    args: Vec<String>,
    state: State,
    image: String,
    resolv_conf_path: String,
    hostname_path: String,
    hosts_path: String,
    log_path: String,
    name: String,
    restart_count: u64,
    driver: &'static str,
    platform: String,
    mount_label: &'static str,
    process_label: &'static str,
    app_armor_profile: String,
    #[serde(rename = "ExecIDs")]
    exec_ids: Option<Vec<String>>,
    host_config: HostConfig,
    graph_driver: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    mounts: Vec<Mounted>,
    config: ContainerConfig,
    network_settings: Value,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    dead: bool,
    pid: u32,
    exit_code: i32,
    error: String,
    started_at: Timestamp,
    finished_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Value>,
}

impl From<ContainerDetails> for ContainerInspect {
    fn from(details: ContainerDetails) -> ContainerInspect {
        let network_settings = network_settings(&details);
        let status = details.state.status;
        ContainerInspect {
            id: details.id,
            created: details.created,
            path: details.path,
            args: details.args,
            state: State {
                status: status.as_str(),
                running: status.is_running(),
                paused: status == ContainerStatus::Paused,
                restarting: status == ContainerStatus::Restarting,
                oom_killed: details.state.oom_killed,
                dead: status == ContainerStatus::Dead,
                pid: details.state.pid,
                exit_code: details.state.exit_code,
                error: details.state.error,
                started_at: details.state.started_at,
                finished_at: details.state.finished_at,
                health: details.health.as_ref().map(health),
            },
            image: details.image_id,
            resolv_conf_path: details.resolv_conf_path.display().to_string(),
            hostname_path: details.hostname_path.display().to_string(),
            hosts_path: details.hosts_path.display().to_string(),
            log_path: details.log_path.map(|path| path.display().to_string()).unwrap_or_default(),
            name: format!("/{}", details.name),
            restart_count: details.restart_count,
            driver: "overlay2",
            platform: details.platform,
            mount_label: "",
            process_label: "",
            app_armor_profile: details.apparmor_profile,
            exec_ids: Some(details.exec_ids).filter(|ids| !ids.is_empty()),
            graph_driver: graph_driver(&details.graph_driver),
            host_config: details.host_config,
            size_rw: details.size_rw_bytes,
            size_root_fs: details.size_root_fs_bytes,
            mounts: details.mounts.into_iter().map(Mounted::from).collect(),
            config: details.config,
            network_settings,
        }
    }
}

/// An entry of `Mounts`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    source: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    mode: String,
    #[serde(rename = "RW")]
    rw: bool,
    propagation: String,
}

impl From<MountPoint> for Mounted {
    fn from(mount: MountPoint) -> Mounted {
        Mounted {
            kind: mount.kind,
            name: mount.name,
            source: mount.source,
            destination: mount.destination,
            driver: mount.driver,
            mode: mount.mode,
            rw: mount.writable,
            propagation: mount.propagation,
        }
    }
}

/// `State.Health`.
fn health(health: &Health) -> Value {
    let probe = |probe: &HealthProbe| json!({ "Start": probe.start, "End": probe.end, "ExitCode": probe.exit_code, "Output": probe.output });
    json!({
        "Status": health.status.as_str(),
        "FailingStreak": health.failing_streak,
        "Log": health.log.iter().map(probe).collect::<Vec<_>>(),
    })
}

/// `Up 5 minutes`, `Exited (0) 3 seconds ago`.
fn status_text(details: &ContainerDetails, now: Timestamp) -> String {
    let state = &details.state;
    let since = |moment: Timestamp| duration_text(now.seconds.saturating_sub(moment.seconds));
    match state.status {
        ContainerStatus::Created => "Created".to_owned(),
        ContainerStatus::Running => match details.health.as_ref().map(|health| health.status) {
            None => format!("Up {}", since(state.started_at)),
            Some(HealthStatus::Starting) => format!("Up {} (health: starting)", since(state.started_at)),
            Some(status) => format!("Up {} ({})", since(state.started_at), status.as_str()),
        },
        ContainerStatus::Paused => format!("Up {} (Paused)", since(state.started_at)),
        ContainerStatus::Restarting => format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_at)),
        ContainerStatus::Removing => "Removal In Progress".to_owned(),
        ContainerStatus::Dead => "Dead".to_owned(),
        // Never started, yet ended: its start failed.
        ContainerStatus::Exited if state.finished_at.is_zero() => format!("Exited ({})", state.exit_code),
        ContainerStatus::Exited => format!("Exited ({}) {} ago", state.exit_code, since(state.finished_at)),
    }
}

/// A duration in Docker's words.
fn duration_text(seconds: i64) -> String {
    let (minutes, days) = (seconds / 60, seconds / 86_400);
    // Docker rounds hours, and nothing else.
    let rounded_hours = (seconds + 1800) / 3600;
    if seconds < 1 {
        "Less than a second".to_owned()
    } else if seconds == 1 {
        "1 second".to_owned()
    } else if seconds < 60 {
        format!("{seconds} seconds")
    } else if minutes == 1 {
        "About a minute".to_owned()
    } else if minutes < 60 {
        format!("{minutes} minutes")
    } else if rounded_hours == 1 {
        "About an hour".to_owned()
    } else if rounded_hours < 48 {
        format!("{rounded_hours} hours")
    } else if days < 14 {
        format!("{days} days")
    } else if days < 60 {
        format!("{} weeks", days / 7)
    } else if days < 730 {
        format!("{} months", days / 30)
    } else {
        format!("{} years", days / 365)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_in_dockers_words() {
        for (seconds, text) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86_400, "2 weeks"),
            (60 * 86_400, "2 months"),
            (2 * 365 * 86_400, "2 years"),
        ] {
            assert_eq!(duration_text(seconds), text, "{seconds}");
        }
    }
}
