//! Stop, kill, restart, wait, resize, removal and prune.
//!
//! A stop that has begun goes on when its client leaves. The desired state is durable before it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use baleen_runtime::{RuntimeError, client};
use baleen_store::{Desired, StoreError};

use super::files::EtcFiles;
use super::run::{Cause, runtime_error};
use super::signal::{self, SIGKILL, SIGTERM};
use super::streams::{ExitWait, WaitCondition};
use super::table::{Container, Wake};
use super::view::ContainerStatus;
use super::{ContainerConfig, PruneFilter, RemoveContainer, StopRequest, rootfs};
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::EventType;
use crate::image::{Pruned, store_error};

impl Engine {
    /// Registers a wait; it is in force when this returns.
    ///
    /// # Errors
    /// `NoSuchContainer`.
    pub async fn wait_container(
        self: &Arc<Self>,
        name: &str,
        condition: WaitCondition,
    ) -> Result<ExitWait, EngineError> {
        self.containers.find(name)?.wait(condition)
    }

    /// Stops a container, by its signal and then by SIGKILL.
    ///
    /// # Durability
    /// That it should not run is durable on `Ok`.
    /// # Errors
    /// `AlreadyStopped`.
    pub async fn stop_container(self: &Arc<Self>, name: &str, request: StopRequest) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        to_its_end("stop a container", async move {
            engine.stop(&container, &request).await?;
            engine.record_stopped(&container).await?;
            engine.container_event(&container, "stop", &[]);
            Ok(())
        })
        .await
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// As stop and start.
    pub async fn restart_container(self: &Arc<Self>, name: &str, request: StopRequest) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        to_its_end("restart a container", async move {
            match engine.stop(&container, &request).await {
                Ok(()) => engine.container_event(&container, "stop", &[]),
                Err(EngineError::AlreadyStopped) => {}
                Err(error) => return Err(error),
            }
            // That it should run is recorded already, or is recorded by the start: a cut in between does not leave it stopped.
            engine.start_as(&container, Cause::User).await?;
            engine.container_event(&container, "restart", &[]);
            Ok(())
        })
        .await
    }

    /// Sends a signal: a name with or without `SIG`, or a number; empty is SIGKILL, which waits for the end.
    ///
    /// # Errors
    /// `Conflict` if it does not run; `InvalidParameter` for an unknown signal.
    pub async fn kill_container(self: &Arc<Self>, name: &str, signal: &str) -> Result<(), EngineError> {
        let number = if signal.is_empty() { SIGKILL } else { signal::parse(signal)? };
        let container = self.containers.find(name)?;
        if !container.live().state.status.is_running() {
            let id = container.id();
            return Err(EngineError::conflict(format!("cannot kill container: {name}: container {id} is not running")));
        }
        let engine = Arc::clone(self);
        to_its_end("kill a container", async move {
            // By the signals that end it a user wants it to stay down; others (a SIGHUP to reload) leave its policy in force.
            let stop_signal = stop_signal(&container.stored().config)?;
            let is_end = number == SIGKILL || number == stop_signal;
            if is_end && engine.end_wait(&container) {
                // What a start under way has begun gets the signal.
                engine.await_turn(&container).await?;
                if !container.live().state.status.is_running() {
                    return engine.record_stopped(&container).await;
                }
            }
            if number != SIGKILL {
                engine.signal(&container, number).await?;
                return if is_end { engine.record_stopped(&container).await } else { Ok(()) };
            }
            let end = container.wait(WaitCondition::NotRunning)?;
            engine.signal(&container, number).await?;
            end.finished().await?;
            engine.record_stopped(&container).await
        })
        .await
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Conflict` if it does not run.
    pub async fn resize_container(self: &Arc<Self>, name: &str, height: u16, width: u16) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let shim = container.shim()?;
        let id = container.id().to_owned();
        self.door
            .enter("resize a terminal", move || match shim.resize(height, width) {
                Ok(()) => Ok(()),
                // Without a terminal there is nothing to resize, and Docker says nothing either.
                Err(RuntimeError::Refused { .. }) => Ok(()),
                Err(RuntimeError::ShimGone { .. }) => {
                    Err(EngineError::conflict(format!("container {id} is not running")))
                }
                Err(error) => Err(runtime_error("resize the terminal", error)),
            })
            .await?;
        let extra = [("height", height.to_string()), ("width", width.to_string())];
        self.container_event(&container, "resize", &extra);
        Ok(())
    }

    /// Removes a container.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `Conflict` if it runs and `force` is not set, or if its removal is in progress.
    pub async fn remove_container(self: &Arc<Self>, name: &str, how: RemoveContainer) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let status = container.live().state.status;
        if status.is_running() && !how.force {
            let (name, state) = (container.name(), status.as_str());
            let advice = match status {
                ContainerStatus::Paused => "unpause and then stop the container before removing or force remove",
                _ => "stop the container before removing or force remove",
            };
            return Err(EngineError::conflict(format!(
                "cannot remove container \"/{name}\": container is {state}: {advice}"
            )));
        }
        let engine = Arc::clone(self);
        to_its_end("remove a container", async move {
            engine.remove_by_force(&container).await?;
            if how.volumes {
                engine.remove_anonymous_volumes(&container).await?;
            }
            Ok(())
        })
        .await
    }

    /// Removes containers that do not run; gives their IDs.
    ///
    /// # Errors
    /// `Conflict` if a prune is already running.
    pub async fn prune_containers(self: &Arc<Self>, filter: PruneFilter) -> Result<Pruned<String>, EngineError> {
        let engine = Arc::clone(self);
        to_its_end("prune containers", async move {
            let Ok(_turn) = engine.container_prune_turn.try_acquire() else {
                return Err(EngineError::conflict("a prune operation is already running"));
            };
            let mut pruned = Pruned::default();
            for container in engine.containers.all() {
                let passes = filter.lets_pass(container.stored().created, &container.stored().config.labels);
                if container.live().state.status.is_running() || !passes {
                    continue;
                }
                let (worker, measured) = (Arc::clone(&engine), Arc::clone(&container));
                let size = engine.door.enter("measure a container", move || Ok(worker.upper_bytes(&measured))).await?;
                match engine.remove(&container).await {
                    Ok(()) => {
                        pruned.reclaimed_bytes += size;
                        pruned.deleted.push(container.id().to_owned());
                    }
                    // It was started or removed meanwhile.
                    Err(EngineError::Conflict { .. } | EngineError::NoSuchContainer { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let attributes = BTreeMap::from([("reclaimed".to_owned(), pruned.reclaimed_bytes.to_string())]);
            engine.events.send(EventType::Container, "prune", "", attributes);
            Ok(pruned)
        })
        .await
    }

    async fn stop(self: &Arc<Self>, container: &Arc<Container>, request: &StopRequest) -> Result<(), EngineError> {
        let config = &container.stored().config;
        let waited = self.end_wait(container);
        if !container.live().state.status.is_running() {
            // A start that is under way is waited for, and what it has begun is stopped like any other.
            self.await_turn(container).await?;
            match container.live().state.status.is_running() {
                true => {}
                false if waited => return Ok(()),
                false => return Err(EngineError::AlreadyStopped),
            }
        }
        let number = match request.signal.as_deref() {
            Some(signal) if !signal.is_empty() => signal::parse(signal)?,
            _ => stop_signal(config)?,
        };
        let seconds =
            request.timeout_seconds.or(config.stop_timeout).unwrap_or(self.config.limits.stop_timeout_seconds);
        let end = container.wait(WaitCondition::NotRunning)?;
        match seconds {
            0 => self.signal(container, SIGKILL).await?,
            _ => {
                self.signal(container, number).await?;
                // What is frozen hears no signal.
                match self.freeze_in_turn(container, false).await {
                    Ok(()) | Err(EngineError::NotPaused { .. } | EngineError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        match u64::try_from(seconds) {
            // Negative: for ever.
            Err(_) => drop(end.finished().await?),
            Ok(seconds) => {
                let mut end = std::pin::pin!(end.finished());
                // SIGKILL was sent already when there is no time to wait.
                let patience = if seconds == 0 { KILL_PATIENCE } else { Duration::from_secs(seconds) };
                if let Ok(ended) = tokio::time::timeout(patience, &mut end).await {
                    ended?;
                } else {
                    self.signal(container, SIGKILL).await?;
                    end.await?;
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn record_stopped(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), EngineError> {
        if self.is_ending() {
            // It stops because the engine does: the next one starts it again.
            return Ok(());
        }
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        let recording = self.door.enter("record a stop", move || engine.desire(&container, Desired::Stopped));
        match recording.await {
            // Removed as it ended (AutoRemove): nothing is left to record.
            Err(EngineError::NoSuchContainer { .. }) => Ok(()),
            other => other,
        }
    }

    /// Sends a signal; one that finds nobody any more has done what it was to do.
    async fn signal(self: &Arc<Self>, container: &Arc<Container>, number: i32) -> Result<(), EngineError> {
        let Ok(shim) = container.shim() else { return Ok(()) };
        let sent = self.door.enter("send a signal", move || match shim.kill(number) {
            Ok(()) => Ok(true),
            Err(RuntimeError::ShimGone { .. } | RuntimeError::Refused { .. }) => Ok(false),
            Err(error) => Err(runtime_error("send the signal", error)),
        });
        if sent.await? {
            self.container_event(container, "kill", &[("signal", number.to_string())]);
        }
        Ok(())
    }

    /// Waits until nobody starts, ends or removes the container.
    async fn await_turn(&self, container: &Container) -> Result<(), EngineError> {
        let turn = Arc::clone(&container.turn).acquire_owned().await;
        turn.map(drop).map_err(|_| EngineError::ShuttingDown)
    }

    async fn remove_by_force(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), EngineError> {
        self.end_wait(container);
        // So that what a start under way has begun is killed too.
        self.await_turn(container).await?;
        if container.live().state.status.is_running() {
            let end = container.wait(WaitCondition::NotRunning)?;
            self.signal(container, SIGKILL).await?;
            end.finished().await?;
        }
        match self.remove(container).await {
            // AutoRemove was faster: it is gone as asked.
            Err(EngineError::NoSuchContainer { .. }) => Ok(()),
            Err(EngineError::Conflict { .. }) if container.stored().host_config.auto_remove => Ok(()),
            other => other,
        }
    }

    /// Removes a container that does not run.
    pub(crate) async fn remove(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), EngineError> {
        let id = container.id().to_owned();
        {
            let mut live = container.live();
            if live.is_removing {
                let text = format!("removal of container {id} is already in progress");
                return Err(EngineError::conflict(text));
            }
            live.is_removing = true;
        }
        let outcome = self.remove_marked(container).await;
        if outcome.is_err() {
            container.live().is_removing = false;
        }
        outcome
    }

    async fn remove_marked(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), EngineError> {
        let _turn = Arc::clone(&container.turn).acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        if container.live().state.status.is_running() {
            let name = container.name();
            return Err(EngineError::conflict(format!(
                "cannot remove container \"/{name}\": container is running: stop the container before removing or force remove"
            )));
        }
        let (engine, removing) = (Arc::clone(self), Arc::clone(container));
        self.door.enter("remove a container", move || engine.remove_stored(&removing)).await?;
        self.containers.remove(container.id());
        self.execs.forget(container.id());
        self.container_event(container, "destroy", &[]);
        container.live().attaching.clear();
        if container.stored().host_config.auto_remove
            && let Err(error) = self.remove_anonymous_volumes(container).await
        {
            tracing::warn!(
                container = container.id(),
                error = error.chain(),
                "volumes of a removed container are left"
            );
        }
        container.wake(Wake::Removed);
        self.empty_trash_later();
        Ok(())
    }

    fn remove_stored(&self, container: &Container) -> Result<(), EngineError> {
        let id = container.id();
        // A mounted folder must not go to the trash: emptying it would reach into the mount.
        match rootfs::unmount(&self.store, id) {
            Ok(()) => {}
            Err(error) if self.store.container(id).is_none() => {
                tracing::debug!(container = id, error = error.chain(), "the container is gone already");
            }
            Err(error) => return Err(error),
        }
        match self.store.remove_container(id) {
            Ok(()) => {}
            Err(StoreError::ContainerMissing { .. }) => {
                return Err(EngineError::NoSuchContainer { name: id.to_owned() });
            }
            Err(error) => return Err(store_error("remove the container")(error)),
        }
        let run_dir = container.run_dir(&self.config.exec_root);
        let cleaned = client::clean_up(&run_dir).map_err(|error| runtime_error("clean up after the container", error));
        for cleaned in [cleaned, EtcFiles::of(&self.config.exec_root, id).remove()] {
            if let Err(error) = cleaned {
                // The container is gone; what is left lies in the exec root, which a reboot empties.
                tracing::warn!(container = id, error = error.chain(), "something of a removed container is left");
            }
        }
        Ok(())
    }
}

/// The signal that asks a container to end.
fn stop_signal(config: &ContainerConfig) -> Result<i32, EngineError> {
    match config.stop_signal.as_str() {
        "" => Ok(SIGTERM),
        signal => signal::parse(signal),
    }
}

/// After SIGKILL a container ends unless the kernel holds its processes.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
