//! Stats: what a container uses at one moment. A front end puts moments side by side.

use std::sync::Arc;

use baleen_runtime::usage::{self, MachineTime, Usage};

use super::run::runtime_error;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::time::Timestamp;

/// What a container uses, and the machine's clock at that moment.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// 64 hex digits.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// When.
    pub read: Timestamp,
    /// `None`: it does not run.
    pub usage: Option<Usage>,
    /// Of all processors.
    pub machine: MachineTime,
    /// Memory of the machine, in bytes: the limit of a container without one.
    pub machine_memory_bytes: u64,
}

impl Engine {
    /// What a container uses now.
    ///
    /// # Errors
    /// `NoSuchContainer`.
    pub async fn container_stats(self: &Arc<Self>, name: &str) -> Result<ContainerStats, EngineError> {
        let container = self.containers.find(name)?;
        let run_dir = container.run_dir(&self.config.exec_root);
        let read = move || {
            let runs = container.live().state.status.is_running();
            let usage = if runs {
                usage::usage(&run_dir).map_err(|error| runtime_error("read statistics", error))?
            } else {
                None
            };
            Ok(ContainerStats {
                id: container.id().to_owned(),
                name: container.name(),
                read: Timestamp::now(),
                usage,
                machine: usage::machine_time(),
                machine_memory_bytes: machine_memory_bytes(),
            })
        };
        self.door.enter("read statistics", read).await
    }
}

fn machine_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}
