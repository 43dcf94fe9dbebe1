//! What a container is at one moment: what list and inspect show.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;
use super::health::Health;
use super::host_config::HostConfig;
use crate::image::GraphDriver;
use crate::network::EndpointView;
use crate::time::Timestamp;

/// Everything that inspect tells of a container; list shows a part of it.
#[derive(Debug, Clone)]
pub struct ContainerDetails {
    /// 64 hex digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// The program, after the merge with the image.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    /// What list shows as `Image`: the name given, or the image's ID when that name has moved or gone.
    pub image_shown: String,
    /// `linux`.
    pub platform: String,
    /// What it is doing.
    pub state: ContainerState,
    /// What its probes say, if it has any and was started.
    pub health: Option<Health>,
    /// How often the restart policy has started it again.
    pub restart_count: u64,
    /// IDs of further programs that run in it.
    pub exec_ids: Vec<String>,
    /// After the merge with the image.
    pub config: ContainerConfig,
    /// As sent, with Docker's defaults filled in.
    pub host_config: HostConfig,
    /// The lower layers and the container's own directories, as plain paths.
    pub graph_driver: GraphDriver,
    /// Binds, volumes and tmpfs.
    pub mounts: Vec<MountPoint>,
    /// Name and ID of its network; `None` where it shares another container's.
    pub network: Option<(&'static str, &'static str)>,
    /// Its place on the bridge while it runs.
    pub endpoint: Option<EndpointView>,
    /// `hosts` as mounted inside.
    pub hosts_path: PathBuf,
    /// `hostname` as mounted inside.
    pub hostname_path: PathBuf,
    /// `resolv.conf` as mounted inside.
    pub resolv_conf_path: PathBuf,
    /// The json-file log; `None` for the driver `none`.
    pub log_path: Option<PathBuf>,
    /// `docker-default` or empty.
    pub apparmor_profile: String,
    /// Bytes of the upper directory; only where sizes were asked for.
    pub size_rw_bytes: Option<u64>,
    /// Bytes of image and upper together; only where sizes were asked for.
    pub size_root_fs_bytes: Option<u64>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// The word that the API shows.
    pub status: ContainerStatus,
    /// On the host; 0 when it does not run.
    pub pid: u32,
    /// Of the last run.
    pub exit_code: i32,
    /// Why the last start failed, or empty.
    pub error: String,
    /// Whether the kernel killed it for memory in its last run.
    pub oom_killed: bool,
    /// Of the last run; [`Timestamp::ZERO`] if it never ran.
    pub started_at: Timestamp,
    /// Of the last run; [`Timestamp::ZERO`] if it never ended.
    pub finished_at: Timestamp,
}

/// Docker's words for a container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerStatus {
    /// Never started.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Between two runs of its restart policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Its program has ended.
    Exited,
    /// Its removal failed half way.
    Dead,
}

impl ContainerStatus {
    /// The API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Reads the API's word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Created, Self::Running, Self::Paused, Self::Restarting, Self::Removing, Self::Exited, Self::Dead]
            .into_iter()
            .find(|status| status.as_str() == word)
    }

    /// Whether a process exists (`State.Running`).
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// An entry of `Mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// `bind`, `volume`, `tmpfs`.
    pub kind: String,
    /// Of a volume.
    pub name: Option<String>,
    /// On the host.
    pub source: String,
    /// Inside.
    pub destination: String,
    /// Of a volume: `local`.
    pub driver: Option<String>,
    /// As the client wrote it.
    pub mode: String,
    /// Whether it may be written.
    pub writable: bool,
    /// `rprivate` and the like.
    pub propagation: String,
    /// A volume that was made for this container and that nobody named: it may go with the container.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
    /// What a volume with `o=bind` shows instead of its own files; a path of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}
