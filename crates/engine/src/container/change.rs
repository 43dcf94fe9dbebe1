//! Changes of a container that exists: its name, its limits and restart policy, pause and its end.
//!
//! H1  A name is a record of the log; limits and policy are in `config.json`, which is replaced whole: written beside it, synced,
//!     renamed, its folder synced. A cut leaves the old one or the new one.
//! H2  A running container gets its new limits before they are stored: what the kernel refuses is not stored.

use std::sync::{Arc, PoisonError};

use baleen_runtime::{RuntimeError, update_limits};
use baleen_store::StoreError;

use super::host_config::HostConfig;
use super::table::Container;
use super::view::ContainerStatus;
use super::{limits, name, restart, spec};
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::image::store_error;

use super::run::runtime_error;

/// What an update may change; what is `None` or empty stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateRequest {
    /// The resources of the request: zeros and empty texts mean no change.
    pub resources: HostConfig,
    /// A new policy.
    pub restart_policy: Option<super::RestartPolicy>,
}

impl Engine {
    /// Gives a container another name.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `InvalidParameter` for a bad, empty or equal name; `Conflict` for one that is taken.
    pub async fn rename_container(self: &Arc<Self>, container: &str, new_name: &str) -> Result<(), EngineError> {
        if new_name.trim_matches('/').is_empty() {
            return Err(EngineError::invalid("Neither old nor new names may be empty"));
        }
        let container = self.containers.find(container)?;
        let new_name = name::check(new_name)?.to_owned();
        let old_name = container.name();
        if new_name == old_name {
            return Err(EngineError::invalid("Renaming a container with the same name as its current name"));
        }
        let engine = Arc::clone(self);
        to_its_end("rename a container", async move {
            let (worker, renaming, wanted) = (Arc::clone(&engine), Arc::clone(&container), new_name.clone());
            engine.door.enter("rename a container", move || worker.store_name(&renaming, wanted)).await?;
            container.live().name.clone_from(&new_name);
            engine.container_event(&container, "rename", &[("oldName", format!("/{old_name}"))]);
            Ok(())
        })
        .await
    }

    fn store_name(&self, container: &Container, wanted: String) -> Result<(), EngineError> {
        let _turn = container.fact_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || EngineError::NoSuchContainer { name: container.id().to_owned() };
        let mut fact = self.store.container(container.id()).ok_or_else(missing)?;
        fact.name = wanted;
        match self.store.change_container(fact) {
            Ok(()) => Ok(()),
            Err(StoreError::NameTaken { name, container }) => {
                let taken = EngineError::NameInUse { name, id: container };
                Err(EngineError::conflict(format!("Error when allocating new name: {taken}")))
            }
            Err(StoreError::ContainerMissing { .. }) => Err(missing()),
            Err(error) => Err(store_error("record the new name")(error)),
        }
    }

    /// Changes limits and restart policy; gives warnings.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `InvalidParameter` for numbers that cannot be; `Part` with the kernel's refusal.
    pub async fn update_container(
        self: &Arc<Self>,
        container: &str,
        request: UpdateRequest,
    ) -> Result<Vec<String>, EngineError> {
        let container = self.containers.find(container)?;
        if let Some(policy) = &request.restart_policy {
            restart::check(policy)?;
            if container.stored().host_config.auto_remove && !matches!(policy.name.as_str(), "" | "no") {
                let text = "Restart policy cannot be updated because AutoRemove is enabled for the container";
                return Err(EngineError::invalid(text));
            }
        }
        let engine = Arc::clone(self);
        to_its_end("update a container", async move {
            let (worker, updating) = (Arc::clone(&engine), Arc::clone(&container));
            engine.door.enter("update a container", move || worker.update(&updating, request)).await?;
            engine.container_event(&container, "update", &[]);
            Ok(Vec::new())
        })
        .await
    }

    fn update(&self, container: &Container, request: UpdateRequest) -> Result<(), EngineError> {
        // One update after the other: each begins with what the last one has stored.
        let _turn = container.fact_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stored = (*container.stored()).clone();
        merge(&mut stored.host_config, &request.resources);
        if let Some(policy) = request.restart_policy {
            stored.host_config.restart_policy = policy;
            if stored.host_config.restart_policy.name.is_empty() {
                stored.host_config.restart_policy.name = "no".to_owned();
            }
        }
        limits::check(&stored.host_config)?;
        let run_dir = container.run_dir(&self.config.exec_root);
        if container.live().state.status.is_running() {
            let wanted = spec::changed_resources(&request.resources, &stored.host_config);
            match update_limits(&run_dir, &wanted) {
                // It has just ended.
                Ok(()) | Err(RuntimeError::ShimGone { .. }) => {}
                Err(error) => return Err(runtime_error("change the limits of the container", error)),
            }
        }
        stored.replace(&self.store)?;
        container.replace_stored(stored);
        Ok(())
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// `Conflict` unless it runs.
    pub async fn pause_container(self: &Arc<Self>, name: &str) -> Result<(), EngineError> {
        self.freeze(name, true).await
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// `NotPaused`.
    pub async fn unpause_container(self: &Arc<Self>, name: &str) -> Result<(), EngineError> {
        self.freeze(name, false).await
    }

    async fn freeze(self: &Arc<Self>, name: &str, frozen: bool) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        to_its_end("pause a container", async move {
            let _turn = Arc::clone(&container.turn).acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
            engine.freeze_in_turn(&container, frozen).await
        })
        .await
    }

    /// With the container's turn held, or by whoever ends it.
    pub(crate) async fn freeze_in_turn(
        self: &Arc<Self>,
        container: &Arc<Container>,
        frozen: bool,
    ) -> Result<(), EngineError> {
        let id = container.id();
        let status = container.live().state.status;
        match (status, frozen) {
            (ContainerStatus::Running, true) | (ContainerStatus::Paused, false) => {}
            (_, false) => return Err(EngineError::NotPaused { id: id.to_owned() }),
            (ContainerStatus::Paused, true) => {
                return Err(EngineError::conflict(format!("Container {id} is already paused")));
            }
            (ContainerStatus::Restarting, true) => {
                let text = format!("Container {id} is restarting, wait until the container is running");
                return Err(EngineError::conflict(text));
            }
            _ => return Err(EngineError::conflict(format!("Container {id} is not running"))),
        }
        let shim = container.shim()?;
        let action = if frozen { "pause the container" } else { "unpause the container" };
        self.door
            .enter(action, move || {
                if frozen { shim.pause() } else { shim.unpause() }.map_err(|error| runtime_error(action, error))
            })
            .await?;
        {
            let mut live = container.live();
            // It may have ended meanwhile.
            if live.state.status == status {
                live.state.status = if frozen { ContainerStatus::Paused } else { ContainerStatus::Running };
            }
        }
        self.container_event(container, if frozen { "pause" } else { "unpause" }, &[]);
        Ok(())
    }
}

/// Takes over what a request names.
fn merge(host: &mut HostConfig, wanted: &HostConfig) {
    fn number(field: &mut i64, wanted: i64) {
        if wanted != 0 {
            *field = wanted;
        }
    }
    fn text(field: &mut String, wanted: &str) {
        if !wanted.is_empty() {
            *field = wanted.to_owned();
        }
    }
    // A limit of CPUs replaces one by quota and period, and the other way round.
    if wanted.nano_cpus != 0 {
        (host.cpu_quota, host.cpu_period) = (0, 0);
    } else if wanted.cpu_quota != 0 || wanted.cpu_period != 0 {
        host.nano_cpus = 0;
    }
    number(&mut host.cpu_shares, wanted.cpu_shares);
    number(&mut host.nano_cpus, wanted.nano_cpus);
    number(&mut host.cpu_quota, wanted.cpu_quota);
    number(&mut host.cpu_period, wanted.cpu_period);
    number(&mut host.memory, wanted.memory);
    number(&mut host.memory_swap, wanted.memory_swap);
    number(&mut host.memory_reservation, wanted.memory_reservation);
    text(&mut host.cpuset_cpus, &wanted.cpuset_cpus);
    text(&mut host.cpuset_mems, &wanted.cpuset_mems);
    if wanted.blkio_weight != 0 {
        host.blkio_weight = wanted.blkio_weight;
    }
    if let Some(limit) = wanted.pids_limit {
        host.pids_limit = Some(limit).filter(|&limit| limit > 0);
    }
}
