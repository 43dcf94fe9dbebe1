//! What an engine is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use baleen_oci::Platform;

use crate::network::NetworkConfig;
use baleen_registry::{Clock as RetryClock, MonotonicClock};
use baleen_snapshotter::Intervals as CheckpointIntervals;

/// Two checkpoints of a layer that was never cut are apart by so much: each costs a few flushes, and what a cut costs
/// then is so many seconds of downloading. The first one comes after that time as well, however slow the network is.
const CHECKPOINT_SPACING: Duration = Duration::from_secs(3);

/// Everything that an [`Engine`](crate::Engine) is told from outside. It reads no file and no variable by itself.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The store's root: `/var/lib/baleen`. Made with mode 0700 if missing.
    pub data_root: PathBuf,
    /// Where running things are kept: `/run/baleen`. Made with mode 0700 if missing.
    pub exec_root: PathBuf,
    /// The program that is started as `<binary> shim …`; usually `/proc/self/exe`'s target.
    pub shim_binary: PathBuf,
    /// Parent of the containers' control groups: `/baleen` unless told.
    pub cgroup_parent: Option<String>,
    /// What images are chosen for.
    pub platform: Platform,
    /// Hosts and networks that may be spoken to without verified TLS.
    pub insecure_registries: Vec<String>,
    /// URLs that are asked for images of docker.io first.
    pub registry_mirrors: Vec<String>,
    /// `certs.d` folders, the first that has a host's folder wins; empty means the client's defaults.
    pub certs_dirs: Vec<PathBuf>,
    /// Named in the `User-Agent` of registry requests.
    pub user_agent: String,
    /// What waits between the attempts of a download.
    pub retry_clock: Arc<dyn RetryClock>,
    /// When a layer that comes is made durable on its way.
    pub checkpoint_intervals: CheckpointIntervals,
    /// Whether pulls look for deltas.
    pub deltas: bool,
    /// How containers are connected.
    pub network: NetworkConfig,
    /// Numbers.
    pub limits: Limits,
}

/// The numbers that bound an engine.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Layers of one pull that are fetched at once (Docker's `max-concurrent-downloads`).
    pub concurrent_downloads_max: usize,
    /// Attempts before a pull fails that has not received a byte of any layer yet (`max-download-attempts`).
    pub download_attempts_max: u32,
    /// Threads behind the door to the store and the runtime.
    pub door_threads: usize,
    /// Seconds between SIGTERM and SIGKILL of a stop that names none.
    pub stop_timeout_seconds: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent_downloads_max: 3, download_attempts_max: 5, door_threads: 8, stop_timeout_seconds: 10 }
    }
}

impl EngineConfig {
    /// An engine at these places with defaults for the rest.
    pub fn at(data_root: PathBuf, exec_root: PathBuf, shim_binary: PathBuf) -> Self {
        let network = NetworkConfig::at(&exec_root);
        Self {
            data_root,
            exec_root,
            shim_binary,
            cgroup_parent: None,
            platform: Platform::host(),
            insecure_registries: Vec::new(),
            registry_mirrors: Vec::new(),
            certs_dirs: Vec::new(),
            user_agent: concat!("baleen/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry_clock: Arc::new(MonotonicClock),
            checkpoint_intervals: CheckpointIntervals {
                spacing: CHECKPOINT_SPACING,
                patience_first: CHECKPOINT_SPACING,
                ..CheckpointIntervals::default()
            },
            deltas: true,
            network,
            limits: Limits::default(),
        }
    }
}
