//! What a container is: the plain, typed description that the engine fills in, and the OCI runtime spec made from it.
//!
//! S1  A field that is left at its default gives Docker's default container (docs/runtime.md has the table).
//! S2  Inheritable and ambient capabilities are always empty.
//! S3  Nothing is mounted on `/`, nor on or in `/proc` but the few files that monitoring needs.
//! S4  Users and groups come from the image's own files by our own parser; `HOME` is always set, so that no library looks it up.
//!
//! Touches: reads the root file system's `/etc/passwd` and `/etc/group`, host devices by `stat`, and the list of cgroup mounts.

mod capabilities;
mod exec;
mod generate;
mod inside;
mod mounts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use capabilities::{DEFAULT_CAPABILITIES, parse_capability};
pub(crate) use exec::{ExecProcess, exec_process};
pub use generate::{MASKED_PATHS, READONLY_PATHS, runtime_spec};
pub(crate) use generate::{device_folders, device_rules};
pub(crate) use inside::make_working_directory;
pub use mounts::check_target;
pub(crate) use mounts::{LateMount, late_mounts};

/// Everything about a container that its runtime must know: the image's configuration merged with the request.
/// It is sent to the shim as JSON; unknown fields are ignored, missing ones take their default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// 64 hex digits.
    pub id: String,
    /// Entrypoint and command, joined. Never empty.
    pub args: Vec<String>,
    /// `K=V`, image's and request's merged. `PATH`, `HOSTNAME`, `TERM` (with a terminal) and `HOME` are added if missing.
    pub env: Vec<String>,
    /// Absolute; empty means `/`. Created in the root if missing.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty means root.
    pub user: String,
    /// Further groups by name or number.
    pub group_add: Vec<String>,
    /// Ignored when `uts` is `Host`.
    pub hostname: String,
    /// NIS domain name; may be empty.
    pub domainname: String,
    /// Gives the program a terminal.
    pub tty: bool,
    /// Process 1 is a small init of ours, which starts the program, passes signals on to it and reaps what it leaves.
    pub init: bool,
    /// Keeps the program's input open for attached clients.
    pub open_stdin: bool,
    /// The first attached client's end of input is the program's.
    pub stdin_once: bool,
    /// All capabilities and devices, no masks, no seccomp, writable cgroups.
    pub privileged: bool,
    /// Mounts the root file system read-only.
    pub readonly_rootfs: bool,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// `ALL`, or names with or without `CAP_`.
    pub cap_add: Vec<String>,
    /// `ALL`, or names with or without `CAP_`.
    pub cap_drop: Vec<String>,
    /// `None`: Docker's list; empty: none.
    pub masked_paths: Option<Vec<String>>,
    /// `None`: Docker's list; empty: none.
    pub readonly_paths: Option<Vec<String>>,
    /// The system call filter.
    pub seccomp: SeccompProfile,
    /// Binds and tmpfs, in any order: they are mounted parents first.
    pub mounts: Vec<MountSpec>,
    /// Host devices.
    pub devices: Vec<DeviceSpec>,
    /// Further device rules: `c 42:* rmw`.
    pub device_cgroup_rules: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// `setrlimit(2)` limits.
    pub ulimits: Vec<Ulimit>,
    /// -1000 to 1000; `None`: 0, or what the daemon has if that is more.
    pub oom_score_adj: Option<i32>,
    /// Size of `/dev/shm`; 0 means 64 MiB.
    pub shm_size_bytes: u64,
    /// Mounts no `/dev/shm` (Docker's IPC mode `none`).
    pub no_shm: bool,
    /// Namespaced kernel settings only.
    pub sysctls: BTreeMap<String, String>,
    /// The network namespace. `Private` is a new one with only a loopback device (Docker's `none`).
    pub network: NamespaceMode,
    /// The PID namespace.
    pub pid: NamespaceMode,
    /// The IPC namespace.
    pub ipc: NamespaceMode,
    /// The UTS namespace.
    pub uts: NamespaceMode,
    /// The cgroup namespace; `None`: private on cgroup v2, the host's on v1.
    pub cgroupns: Option<NamespaceMode>,
    /// Absolute cgroup below which the container's is made; empty means `/baleen`.
    pub cgroup_parent: String,
}

impl Default for ContainerSpec {
    fn default() -> Self {
        Self {
            id: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            group_add: Vec::new(),
            hostname: String::new(),
            domainname: String::new(),
            tty: false,
            init: false,
            open_stdin: false,
            stdin_once: false,
            privileged: false,
            readonly_rootfs: false,
            no_new_privileges: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            masked_paths: None,
            readonly_paths: None,
            seccomp: SeccompProfile::Default,
            mounts: Vec::new(),
            devices: Vec::new(),
            device_cgroup_rules: Vec::new(),
            resources: Resources::default(),
            ulimits: Vec::new(),
            oom_score_adj: None,
            shm_size_bytes: 0,
            no_shm: false,
            sysctls: BTreeMap::new(),
            network: NamespaceMode::Private,
            pid: NamespaceMode::Private,
            ipc: NamespaceMode::Private,
            uts: NamespaceMode::Private,
            cgroupns: None,
            cgroup_parent: String::new(),
        }
    }
}

/// Which namespace a container gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// One of its own.
    Private,
    /// The host's.
    Host,
    /// An existing one, by its path.
    Path(PathBuf),
}

/// Which system call filter a container gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeccompProfile {
    /// Docker's default profile; none when privileged.
    Default,
    /// None.
    Unconfined,
    /// A profile in the OCI runtime spec's JSON form (`linux.seccomp`), or in Docker's with conditions.
    Profile(String),
}

/// One bind or tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What is mounted.
    pub kind: MountKind,
    /// Absolute path in the container.
    pub target: String,
    /// Mounted read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// A host file or directory, with what is mounted below it.
    Bind {
        /// Absolute host path; must exist.
        source: PathBuf,
        /// `rprivate` (default), `private`, `rshared`, `shared`, `rslave`, `slave`.
        #[serde(default)]
        propagation: String,
        /// Leaves out what is mounted below the source.
        #[serde(default)]
        non_recursive: bool,
    },
    /// Memory.
    Tmpfs {
        /// Mount options as in `Tmpfs`: `size=64m,mode=1777`; empty means Docker's defaults.
        #[serde(default)]
        options: String,
    },
}

/// One host device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Host path; a directory means every device in it.
    pub path_on_host: String,
    /// Path in the container.
    pub path_in_container: String,
    /// A subset of `rwm`.
    pub permissions: String,
}

/// Limits; `None` means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together, bytes; -1 unlimited; `None`: twice the memory.
    pub memory_swap_bytes: Option<i64>,
    /// Soft limit, bytes.
    pub memory_reservation_bytes: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// Never kills for want of memory.
    pub oom_kill_disable: bool,
    /// Relative weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU in each period.
    pub cpu_quota_us: Option<i64>,
    /// Microseconds.
    pub cpu_period_us: Option<u64>,
    /// Billionths of a CPU; not together with quota or period.
    pub nano_cpus: Option<i64>,
    /// `0-3,7`.
    pub cpuset_cpus: String,
    /// `0-1`.
    pub cpuset_mems: String,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Weights and rates of single block devices.
    pub blkio_devices: Vec<BlkioDevice>,
}

/// A bound on one block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioDevice {
    /// What is bounded.
    pub kind: BlkioKind,
    /// The device's path on the host.
    pub path: String,
    /// Bytes or operations a second, or the weight.
    pub value: u64,
}

/// What a bound on a block device is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlkioKind {
    /// Relative weight, 10 to 1000.
    Weight,
    /// Bytes read a second.
    ReadBps,
    /// Bytes written a second.
    WriteBps,
    /// Reads a second.
    ReadIops,
    /// Writes a second.
    WriteIops,
}

/// One `setrlimit(2)` limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `core`, ... as in `ulimit`.
    pub name: String,
    /// Soft limit; -1 unlimited.
    pub soft: i64,
    /// Hard limit; -1 unlimited.
    pub hard: i64,
}

/// Why a description gives no spec.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Nothing to run.
    #[error("no command specified")]
    NoCommand,
    /// A NUL byte or the like.
    #[error("{field} {value:?} is not valid: {reason}")]
    BadValue {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A mount target that is refused.
    #[error("invalid mount target {target:?}: {reason}")]
    MountTarget {
        /// The path.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// A bind source that is not there.
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {path}")]
    BindSourceMissing {
        /// The host path.
        path: PathBuf,
    },
    /// A directory on a file, or a file on a directory.
    #[error(
        "error mounting {source_path:?} to rootfs at {target:?}: not a directory: Are you trying to mount a directory onto a file (or \
         vice-versa)? Check if the specified host path exists and is the expected type"
    )]
    MountTypes {
        /// The host path.
        source_path: PathBuf,
        /// The path in the container.
        target: String,
    },
    /// The host keeps to itself what is mounted there.
    #[error("path {path} is mounted on {mount} but it is not a {wanted} mount")]
    MountPropagation {
        /// The host path.
        path: PathBuf,
        /// The mount that it lies on.
        mount: PathBuf,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// An unknown capability.
    #[error("invalid capability: {name:?}")]
    Capability {
        /// As given.
        name: String,
    },
    /// A kernel setting that is not the container's own.
    #[error("sysctl {key:?} is not allowed: {reason}")]
    Sysctl {
        /// The key.
        key: String,
        /// Why not.
        reason: &'static str,
    },
    /// A device that is not one.
    #[error("error gathering device information while adding custom device {path:?}: {reason}")]
    Device {
        /// The host path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A user or group that the image does not know, or malformed text.
    #[error(transparent)]
    User(#[from] crate::users::UserError),
    /// A seccomp profile that cannot be read or applied.
    #[error("seccomp profile cannot be applied: {reason}")]
    Seccomp {
        /// What is wrong.
        reason: String,
    },
    /// Asked for something that this build does not do.
    #[error("{what} is not implemented yet")]
    NotImplemented {
        /// What.
        what: &'static str,
    },
    /// The host could not be read.
    #[error("cannot read {path}")]
    Host {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
