//! OCI runtime spec from image and request, and the shim that holds a running container.
//!
//! [`spec::ContainerSpec`] says what a container is; [`client::Shim::spawn`] starts a shim (this same binary, exec'd), which creates
//! the container through the embedded OCI runtime library, holds its stdio or terminal, writes its log and records its exit.
//! A shim lives exactly as long as its container: what it leaves behind is `exit.json`.
//!
//! R1  A shim has one thread, from its first instruction to its last: the runtime library forks without exec.
//! R2  A protection that cannot be applied fails the creation. Nothing here warns and goes on.
//! R3  A process is signalled through a pidfd, never by a bare number; what the runtime library's state file says is not read.
//! R4  No file of the container is opened by host code other than through a descriptor resolved inside the root.
//!
//! Knows no store, no HTTP and no async: `protocol` gives an async caller pure encoders and decoders.

pub mod spec;

pub mod client;
pub mod protocol;
pub mod shim;

pub mod logs;

pub mod seccomp;
pub mod users;

#[doc(hidden)]
pub mod fuzzing;

mod cgroup;
pub mod clock;
mod devices;
mod error;
mod limits;
mod sys;
pub mod usage;

pub use client::{ExecConfig, Shim, ShimConfig};
pub use error::{FailureKind, RuntimeError, StartFailure};
pub use limits::{processes, update_limits};
pub use protocol::{AttachOptions, ContainerStatus, ExitRecord, ShimState};
pub use shim::shim_main;
pub use spec::ContainerSpec;
