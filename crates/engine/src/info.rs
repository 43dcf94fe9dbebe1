//! What the engine tells of itself and of the machine it runs on.

/// What `info` needs from the engine; a front end adds what it knows itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// The store's ID.
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
}

/// The host's name.
pub(crate) fn hostname() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}
