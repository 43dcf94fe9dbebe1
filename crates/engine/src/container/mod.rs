//! Containers: what they are told (`config`, `host_config`), which of it is honoured (`honour`, `merge`), what they are
//! (`view`), how they are talked to (`streams`).

mod attach;
mod change;
mod changes;
mod config;
mod control;
mod create;
mod exec;
mod export;
mod files;
mod health;
mod honour;
mod host_config;
mod inspect;
mod limits;
mod logs;
mod merge;
mod name;
mod restart;
mod rootfs;
mod run;
mod signal;
mod spec;
mod stats;
mod stored;
mod streams;
mod table;
mod top;
mod view;

pub(crate) use exec::Execs;
pub(crate) use honour::{clean_target, is_default, option};
pub(crate) use inspect::tree_bytes_at;
pub(crate) use name::random;
pub(crate) use stored::StoredContainer;
pub(crate) use table::{Container, Containers};

pub use change::UpdateRequest;
pub use changes::{Change, ChangeKind};
pub use config::{ContainerConfig, CreateRequest, Created, HealthConfig};
pub use exec::{ExecDetails, ExecRequest};
pub use health::{Health, HealthProbe, HealthStatus};
pub use host_config::{DeviceMapping, HostConfig, LogConfig, Mount, PortBinding, RestartPolicy, Ulimit};
pub use stats::ContainerStats;
pub use streams::{
    AttachRequest, Attachment, AttachmentInput, AttachmentOutput, Exit, ExitWait, ExportStream, LogLine, LogStream,
    LogsRequest, OutputFrame, OutputStream, WaitCondition,
};
pub use top::ProcessTable;
pub use view::{ContainerDetails, ContainerState, ContainerStatus, MountPoint};

use std::collections::BTreeMap;

use crate::time::Timestamp;

/// How a container is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRequest {
    /// Name or number; `None`: the container's `StopSignal`, else SIGTERM.
    pub signal: Option<String>,
    /// Seconds until SIGKILL: -1 waits for ever, `None` takes the container's `StopTimeout`, else the engine's.
    pub timeout_seconds: Option<i64>,
}

/// How a container is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveContainer {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

/// Which stopped containers (or unused images) a prune takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneFilter {
    /// Only what was created before.
    pub until: Option<Timestamp>,
    /// `key` or `key=value`: all must match.
    pub labels: Vec<String>,
    /// `key` or `key=value`: none may match.
    pub not_labels: Vec<String>,
    /// Images: `true` takes only untagged ones, `false` all unused. Containers ignore it.
    pub dangling_only: bool,
}

impl PruneFilter {
    /// Whether something created then and labelled so is taken.
    pub(crate) fn lets_pass(&self, created: Timestamp, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|given| given == value),
            None => labels.contains_key(wanted),
        };
        self.until.is_none_or(|until| created < until)
            && self.labels.iter().all(has)
            && !self.not_labels.iter().any(has)
    }
}
