//! What the engine tells of itself and of the machine it runs on.
//!
//! A part that cannot be had is left empty: `info` never fails because of one.

use std::fs;
use std::sync::Arc;

use baleen_oci::Digest;

use crate::container::ContainerStatus;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::image::store_error;

/// What `info` needs from the engine; a front end adds what it knows itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// The same for the same data root on the same machine.
    pub id: String,
    /// Containers, in any state.
    pub containers: u64,
    /// Of them running.
    pub running: u64,
    /// Of them paused.
    pub paused: u64,
    /// Of them not running.
    pub stopped: u64,
    /// Images.
    pub images: u64,
    /// Rows shown with the storage driver.
    pub driver_status: Vec<(String, String)>,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `uname -m`.
    pub machine: String,
    /// `PRETTY_NAME` of os-release.
    pub operating_system: String,
    /// `VERSION_ID` of os-release.
    pub os_version: String,
    /// The host's name.
    pub hostname: String,
    /// Processors that are on line.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// `name=seccomp,profile=builtin` and the like.
    pub security_options: Vec<String>,
    /// What the user should know: writes stopped, a limit that the kernel lacks.
    pub warnings: Vec<String>,
    /// Open event streams.
    pub event_listeners: u64,
}

/// What the store's parts take on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of all layers, each counted once.
    pub layers_bytes: u64,
    /// Bytes that cut pulls have left, of layers to go on with.
    pub partial_bytes: u64,
}

impl Engine {
    /// What `info` shows; a part that cannot be had is left empty.
    pub async fn info(self: &Arc<Self>) -> EngineInfo {
        let engine = Arc::clone(self);
        self.door.enter("look at the machine", move || Ok(engine.gather())).await.unwrap_or_default()
    }

    /// What everything takes on the disk.
    ///
    /// # Errors
    /// Of the store.
    pub async fn disk_usage(self: &Arc<Self>) -> Result<DiskUsage, EngineError> {
        let store = self.store.clone();
        self.door
            .enter("measure the store", move || {
                let layers_bytes = store.layers().iter().map(|layer| layer.unpacked_size_bytes).sum();
                let partial = store.partial_bytes().map_err(store_error("measure what cut pulls have left"))?;
                Ok(DiskUsage { layers_bytes, partial_bytes: partial.values().sum() })
            })
            .await
    }

    fn gather(&self) -> EngineInfo {
        let mut info = EngineInfo {
            id: self.id(),
            images: self.store.images().len() as u64,
            cgroup_version: if is_unified() { "2" } else { "1" }.to_owned(),
            hostname: hostname(),
            cpus: std::thread::available_parallelism().map_or(0, |count| count.get() as u64),
            memory_bytes: memory_bytes(),
            security_options: vec!["name=seccomp,profile=builtin".to_owned()],
            event_listeners: self.events.listeners(),
            ..EngineInfo::default()
        };
        let uname = rustix::system::uname();
        info.kernel_version = uname.release().to_string_lossy().into_owned();
        info.machine = uname.machine().to_string_lossy().into_owned();
        (info.operating_system, info.os_version) = os_release();
        if is_unified() {
            info.security_options.push("name=cgroupns".to_owned());
        }
        for container in self.containers.all() {
            info.containers += 1;
            match container.live().state.status {
                ContainerStatus::Running | ContainerStatus::Restarting => info.running += 1,
                ContainerStatus::Paused => info.paused += 1,
                _ => info.stopped += 1,
            }
        }
        let root = self.config.data_root.display().to_string();
        info.driver_status.push(("Store".to_owned(), root));
        info.driver_status.extend(self.deltas.rows());
        if let Ok(space) = self.store.space() {
            let text = |bytes: u64| format!("{} MB", bytes / 1_000_000);
            info.driver_status.push(("Space Free".to_owned(), text(space.free_bytes)));
            info.driver_status.push(("Space Total".to_owned(), text(space.total_bytes)));
        }
        info.driver_status.push(("Last Start".to_owned(), self.recovery.summary()));
        info.warnings.extend(self.recovery.warnings());
        if self.store.writes_stopped() {
            info.warnings.push(
                "WARNING: the store takes no more changes since a write to its log failed; restart the daemon to recover"
                    .to_owned(),
            );
        }
        info
    }

    /// What tells this engine from others, as `info` shows it: in the form of a UUID, from what does not change, the machine
    /// and the data root.
    pub fn id(&self) -> String {
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let seed = format!("{}\n{}", machine.trim(), self.config.data_root.display());
        let hex = Digest::sha256_of(seed.as_bytes()).hex();
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
    }
}

/// Whether control groups are mounted in their second version only.
fn is_unified() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false)
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

/// The pretty name and the version of the operating system.
fn os_release() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let text = text.unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    match value("PRETTY_NAME") {
        name if name.is_empty() => ("Linux".to_owned(), value("VERSION_ID")),
        name => (name, value("VERSION_ID")),
    }
}

/// The host's name.
pub fn hostname() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}
