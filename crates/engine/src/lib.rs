//! The verbs of the engine: pull, load, create, start, wait, remove and the rest. Knows no HTTP and no JSON of the API
//! beyond the names of the objects that it stores.
//!
//! E1  Any rule that a second front end would need is here; `daemon` parses, routes and renders.
//! E2  `Ok` from a verb that stores something means durable (P1): its record was synced before the verb returned, and
//!     the verb's events are sent after that.
//! E3  Blocking work (store, snapshotter, runtime) runs behind one door (`door.rs`): a bounded pool of threads. A job
//!     that has entered runs to its end, even if its caller has gone.
//! E4  No lock is held across an `.await`. What excludes whole verbs from each other is a turn: a semaphore of one.
//! E5  Durable facts (images, tags, a container's configuration) are in the store; PIDs, exit codes and restart counts
//!     are in the exec root and may be lost by a reboot.

#![forbid(unsafe_code)]

mod config;
mod container;
mod door;
mod engine;
mod error;
mod events;
mod image;
mod info;
mod network;
mod progress;
mod recovery;
mod reload;
mod time;
mod volume;

pub use baleen_delta::Header as DeltaHeader;
pub use baleen_network::{BridgeConfig, Ipv4Net, Ipv6Net};
pub use baleen_registry::Clock as RetryClock;
pub use baleen_runtime::usage::{BlockUsage, NetworkUsage, Usage};
pub use baleen_snapshotter::Intervals as CheckpointIntervals;
pub use config::{EngineConfig, Limits};
pub use container::{
    AttachRequest, Attachment, AttachmentInput, AttachmentOutput, Change, ChangeKind, ContainerConfig,
    ContainerDetails, ContainerState, ContainerStats, ContainerStatus, CreateRequest, Created, DeviceMapping,
    ExecDetails, ExecRequest, Exit, ExitWait, ExportStream, Health, HealthConfig, HealthProbe, HealthStatus,
    HostConfig, LogConfig, LogLine, LogStream, LogsRequest, Mount, MountPoint, OutputFrame, OutputStream, PortBinding,
    ProcessTable, PruneFilter, RemoveContainer, RestartPolicy, StopRequest, Ulimit, UpdateRequest, WaitCondition,
};
pub use engine::Engine;
pub use error::{EngineError, Kind, chain};
pub use events::{Actor, Event, EventQuery, EventStream, EventType};
pub use image::{
    DeltaFacts, DeltaLevel, Distribution, GraphDriver, HistoryItem, ImageDeletion, ImageDetails, ImageSummary,
    LayerFetcher, LoadRequest, MadeDelta, MakeDelta, OfferedDelta, Pruned, PullRequest, Pulled, PushRequest,
    RegistryAuth, RemoveImage,
};
pub use info::{DiskUsage, EngineInfo, hostname};
pub use network::{EndpointView, Network, NetworkConfig, PublishedPort};
pub use progress::{LayerPhase, Progress, ProgressSender, progress_channel};
pub use reload::Registries;
pub use time::Timestamp;
pub use volume::{CreateVolume, PruneVolumes, Volume};
