//! A run of a container: from its start, or from finding it alive, to its end.
//!
//! N1  The shim outlives the engine: a restart adopts what runs, and learns from `exit.json` what has ended meanwhile.
//! N2  Desired state is durable before a start is answered; how a run ended is kept in the exec root only.
//! N3  The root is unmounted before anybody hears of the end.
//! N4  A start that fails leaves neither mount, process nor cgroup behind.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use baleen_network::Endpoint;
use baleen_runtime::client::{self, LogConfig};
use baleen_runtime::protocol::{self, Request, Response};
use baleen_runtime::spec::{ContainerSpec, NamespaceMode};
use baleen_runtime::{
    ContainerStatus as ShimStatus, ExitRecord, FailureKind, RuntimeError, Shim, ShimConfig, StartFailure,
};
use baleen_store::{Desired, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::files::EtcFiles;
use super::stored::StoredContainer;
use super::table::{Attaching, Container, Wake};
use super::view::ContainerStatus;
use super::{honour, rootfs, signal, spec};
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::{EngineError, Kind, chain};
use crate::events::EventType;
use crate::image::store_error;
use crate::time::Timestamp;

/// Who starts a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A client.
    User,
    /// Its restart policy, after the wait of this number, or as the engine opens.
    Policy(u64),
}

/// A container whose namespace another one joins.
struct Donor {
    /// `PID` or `IPC`.
    what: &'static str,
    container: Arc<Container>,
    shim: Shim,
    pid: i32,
}

impl Donor {
    fn gone(what: &str, container: &Container) -> EngineError {
        let (id, status) = (container.id(), container.live().state.status.as_str());
        EngineError::conflict(format!(
            "cannot join {what} namespace of a non running container: container {id} is {status}"
        ))
    }

    /// Refuses a donor that has ended meanwhile: its number may have been another process's when it was joined.
    fn check(&self) -> Result<(), EngineError> {
        match self.shim.state() {
            Ok(state) if state.pid == self.pid && state.status != ShimStatus::Stopped => Ok(()),
            _ => Err(Self::gone(self.what, &self.container)),
        }
    }
}

impl Engine {
    /// Starts a container; returns when its program has been executed.
    ///
    /// # Errors
    /// `AlreadyStarted`; `StartFailed` in the words that decide a client's exit code.
    pub async fn start_container(self: &Arc<Self>, name: &str) -> Result<(), EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        to_its_end("start a container", async move { engine.start_as(&container, Cause::User).await }).await
    }

    pub(crate) async fn start_as(
        self: &Arc<Self>,
        container: &Arc<Container>,
        cause: Cause,
    ) -> Result<(), EngineError> {
        let turn = Arc::clone(&container.turn).acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        {
            let mut live = container.live();
            if live.is_removing {
                return Err(EngineError::conflict("container is marked for removal and cannot be started"));
            }
            match live.state.status {
                // Its policy's own turn, if that wait has not been ended meanwhile.
                ContainerStatus::Restarting if live.restarts.is_waiting(cause) => {}
                ContainerStatus::Running | ContainerStatus::Restarting => return Err(EngineError::AlreadyStarted),
                ContainerStatus::Paused => {
                    return Err(EngineError::conflict("cannot start a paused container, try unpause instead"));
                }
                _ if matches!(cause, Cause::Policy(_)) => return Err(EngineError::AlreadyStarted),
                _ => live.restarts.begin(),
            }
        }
        let (engine, starting) = (Arc::clone(self), Arc::clone(container));
        let started = self.door.enter("start a container", move || engine.run(&starting)).await;
        match started {
            Ok(shim) => {
                self.network_event(container, "connect");
                self.mount_events(container, "mount");
                self.container_event(container, "start", &[]);
                self.watch(container, shim);
                Ok(())
            }
            Err(error) => {
                {
                    let mut live = container.live();
                    live.attaching.clear();
                    if live.state.status == ContainerStatus::Restarting {
                        live.state.status = ContainerStatus::Exited;
                    }
                    if let EngineError::StartFailed { exit_code, .. } = &error {
                        live.state.exit_code = *exit_code;
                        live.state.error = error.to_string();
                    }
                }
                // Nobody who waits for an exit is woken: there was no run, and `docker run` tells the start's own error.
                drop(turn);
                if container.stored().host_config.auto_remove
                    && let Err(error) = self.remove(container).await
                {
                    tracing::warn!(
                        container = container.id(),
                        error = error.chain(),
                        "cannot remove after a failed start"
                    );
                }
                Err(error)
            }
        }
    }

    /// Mounts, creates, starts and records. Blocking.
    fn run(&self, container: &Arc<Container>) -> Result<Shim, EngineError> {
        let stored = &container.stored();
        let run_dir = container.run_dir(&self.config.exec_root);
        // What the last run has left: its exit record, and whatever a killed shim could not clean up.
        client::clean_up(&run_dir).map_err(|error| runtime_error("clean up after the last run", error))?;
        let endpoint = self.reserve_network(stored)?;
        let started = self.run_reserved(container, endpoint.as_ref(), &run_dir);
        if started.is_err()
            && let Err(error) = self.release_network(container.id())
        {
            let error = error.chain();
            tracing::warn!(container = container.id(), error, "a failed start left something of its network behind");
        }
        started
    }

    fn run_reserved(
        &self,
        container: &Arc<Container>,
        endpoint: Option<&Endpoint>,
        run_dir: &Path,
    ) -> Result<Shim, EngineError> {
        let stored = &container.stored();
        let etc = EtcFiles::of(&self.config.exec_root, &self.names_owner(stored));
        if etc.is_of(container.id()) {
            etc.make(stored, &self.names(endpoint))?;
        }
        let cgroup_parent = self.config.cgroup_parent.as_deref();
        let mut spec = spec::container_spec(stored, &etc, cgroup_parent, spec::Sources::Make)?;
        spec.network = self.network_namespace(stored)?;
        let donors = self.join_donors(stored, &mut spec)?;
        let root = rootfs::mount(&self.store, &self.config.data_root, stored)?;
        let mut config = ShimConfig::new(run_dir.to_owned(), root, spec);
        config.program.clone_from(&self.config.shim_binary);
        config.log = container.log_path(&self.config.data_root).map(|path| log_config(stored, &path));
        let started = self.spawn(container, &config, &donors);
        if started.is_err() {
            // Each failure beside the first cause, which is what the caller hears.
            for cleaned in [
                client::clean_up(run_dir).map_err(|error| runtime_error("clean up after a failed start", error)),
                rootfs::unmount(&self.store, container.id()),
            ] {
                if let Err(error) = cleaned {
                    tracing::warn!(
                        container = container.id(),
                        error = error.chain(),
                        "a failed start left something behind"
                    );
                }
            }
        }
        started
    }

    /// Lets a container join the PID and IPC namespaces of others, which must run.
    fn join_donors(&self, stored: &StoredContainer, spec: &mut ContainerSpec) -> Result<Vec<Donor>, EngineError> {
        let host = &stored.host_config;
        let mut donors = Vec::new();
        for (what, kind, mode) in [("PID", "pid", &host.pid_mode), ("IPC", "ipc", &host.ipc_mode)] {
            let Some(name) = mode.strip_prefix("container:") else { continue };
            let container = self.containers.find(name)?;
            if kind == "ipc" && container.stored().host_config.ipc_mode != "shareable" {
                let id = container.id();
                return Err(EngineError::conflict(format!(
                    "cannot join IPC of a container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
                )));
            }
            let shim = container.live().shim.clone();
            let Some(shim) = shim else { return Err(Donor::gone(what, &container)) };
            let pid = shim.pid();
            let namespace = NamespaceMode::Path(format!("/proc/{pid}/ns/{kind}").into());
            *(if kind == "pid" { &mut spec.pid } else { &mut spec.ipc }) = namespace;
            donors.push(Donor { what, container, shim, pid });
        }
        Ok(donors)
    }

    fn spawn(&self, container: &Arc<Container>, config: &ShimConfig, donors: &[Donor]) -> Result<Shim, EngineError> {
        let stored = &container.stored();
        let shim = Shim::spawn(config).map_err(start_error)?;
        let outcome = (|| {
            donors.iter().try_for_each(Donor::check)?;
            let [height, width] = stored.host_config.console_size;
            if stored.tty() && height > 0 && width > 0 {
                let (height, width) = (clamp(height), clamp(width));
                shim.resize(height, width).map_err(|error| runtime_error("set the size of the terminal", error))?;
            }
            self.connect_network(stored, &shim)?;
            // Attached before the program runs, so that no byte is lost.
            let attaching = std::mem::take(&mut container.live().attaching);
            for Attaching { options, stream } in attaching {
                if !stream.is_closed() {
                    let connected = shim.attach(options).map_err(|error| runtime_error("attach", error))?;
                    let _ = stream.send(connected); // A client that has gone wants nothing.
                }
            }
            let started = shim.start().map_err(start_error)?;
            self.desire(container, Desired::Running)?;
            Ok(started)
        })();
        match outcome {
            Ok(started) => {
                let mut live = container.live();
                live.shim = Some(shim.clone());
                live.state.status = ContainerStatus::Running;
                live.state.pid = u32::try_from(started.pid).unwrap_or(0);
                live.state.started_at = Timestamp::parse_rfc3339(&started.started_at).unwrap_or_else(Timestamp::now);
                live.state.finished_at = Timestamp::ZERO;
                (live.state.exit_code, live.state.oom_killed) = (0, false);
                live.state.error.clear();
                Ok(shim)
            }
            Err(error) => {
                if let Err(left) = shim.delete() {
                    tracing::warn!(container = container.id(), error = %left, "a failed start left its shim behind");
                }
                Err(error)
            }
        }
    }

    /// Records what a container should be doing, if that is news. Blocking.
    pub(crate) fn desire(&self, container: &Container, desired: Desired) -> Result<(), EngineError> {
        let _turn = container.fact_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fact = self.store.container(container.id());
        let Some(mut fact) = fact else {
            return Err(EngineError::NoSuchContainer { name: container.id().to_owned() });
        };
        fact.desired = desired;
        match self.store.change_container(fact) {
            Ok(()) => {}
            // With a log that takes no more, containers can still be stopped (the error table of the store).
            Err(error @ (StoreError::WritesStopped | StoreError::Io { .. })) if desired == Desired::Stopped => {
                tracing::error!(container = container.id(), error = %error, "the stop is not recorded");
            }
            Err(error) => return Err(store_error("record what the container should be doing")(error)),
        }
        container.live().desired = desired;
        Ok(())
    }

    pub(crate) fn container_event(&self, container: &Container, action: &str, extra: &[(&str, String)]) {
        let mut attributes = container.stored().event_attributes(&container.name());
        attributes.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.send(EventType::Container, action, container.id(), attributes);
    }

    /// Waits in the background for the end of a run.
    fn watch(self: &Arc<Self>, container: &Arc<Container>, shim: Shim) {
        self.begin_probes(container);
        let (engine, container) = (Arc::clone(self), Arc::clone(container));
        drop(tokio::spawn(async move {
            let record = match exit_of(&shim).await {
                Ok(record) => Some(record),
                Err(error) => {
                    tracing::warn!(
                        container = container.id(),
                        error = error.chain(),
                        "the shim ended without recording an exit"
                    );
                    None
                }
            };
            engine.ended(&container, record).await;
        }));
    }

    /// Applies the end of a run (N3).
    async fn ended(self: &Arc<Self>, container: &Arc<Container>, record: Option<ExitRecord>) {
        let Ok(turn) = Arc::clone(&container.turn).acquire_owned().await else { return };
        let (engine, ending) = (Arc::clone(self), Arc::clone(container));
        let had_record = record.is_some();
        let cleaned = self
            .door
            .enter("clean up after a container", move || {
                if !had_record {
                    // The shim was killed: whatever it held must not go on without anybody knowing of it.
                    client::clean_up(&ending.run_dir(&engine.config.exec_root))
                        .map_err(|error| runtime_error("clean up after a killed shim", error))?;
                }
                // Each is tried; the first failure is told.
                let released = engine.release_network(ending.id());
                rootfs::unmount(&engine.store, ending.id()).and(released)
            })
            .await;
        if let Err(error) = cleaned {
            tracing::warn!(container = container.id(), error = error.chain(), "cannot clean up after a container");
        }
        apply_exit(container, record.as_ref());
        let lasted = {
            let state = &container.live().state;
            let nanoseconds = state.finished_at.unix_nanoseconds().saturating_sub(state.started_at.unix_nanoseconds());
            Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
        };
        let (exit_code, oom_killed, seconds) = {
            let state = &container.live().state;
            (
                state.exit_code,
                state.oom_killed,
                state.finished_at.seconds.saturating_sub(state.started_at.seconds).max(0),
            )
        };
        if oom_killed {
            self.container_event(container, "oom", &[]);
        }
        let extra = [("exitCode", exit_code.to_string()), ("execDuration", seconds.to_string())];
        self.container_event(container, "die", &extra);
        self.network_event(container, "disconnect");
        self.mount_events(container, "unmount");
        let waits = self.plan_restart(container, lasted);
        container.wake(if waits { Wake::RunEnded } else { Wake::Stopped });
        drop(turn);
        if container.stored().host_config.auto_remove
            && let Err(error) = self.remove(container).await
        {
            tracing::warn!(
                container = container.id(),
                error = error.chain(),
                "cannot remove a container after its end"
            );
        }
    }

    /// Loads all containers and adopts those whose shims are alive (N1).
    pub(crate) async fn adopt_all(self: &Arc<Self>) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        self.adopt_execs();
        let found = self.door.enter("look for running containers", move || Ok(engine.find_all())).await?;
        for (container, shim) in found {
            match shim {
                Some(shim) => self.watch(&container, shim),
                None if container.stored().host_config.auto_remove && container.live().desired != Desired::Created => {
                    if let Err(error) = self.remove(&container).await {
                        tracing::warn!(
                            container = container.id(),
                            error = error.chain(),
                            "cannot remove a container that has ended"
                        );
                    }
                }
                None => self.start_at_boot(&container),
            }
        }
        Ok(())
    }

    fn find_all(&self) -> Vec<(Arc<Container>, Option<Shim>)> {
        let mut found = Vec::new();
        for fact in self.store.containers() {
            let mut stored = match StoredContainer::load(&self.store, &fact.id) {
                Ok(stored) => stored,
                Err(error) => {
                    // One that cannot be read must not keep the others from being served.
                    tracing::error!(
                        container = fact.id,
                        error = error.chain(),
                        "a container cannot be loaded; run `baleen fsck`"
                    );
                    continue;
                }
            };
            self.place_volumes(&mut stored.mounts);
            let container = self.containers.insert(Container::new(stored, fact.name, fact.desired));
            let shim = self.find_shim(&container);
            if shim.is_none()
                && let Err(error) = rootfs::unmount(&self.store, container.id())
            {
                tracing::warn!(
                    container = container.id(),
                    error = error.chain(),
                    "cannot unmount what a container has left"
                );
            }
            found.push((container, shim));
        }
        let alive = found.iter().filter(|(_, shim)| shim.is_some()).map(|(container, _)| container.id().to_owned());
        self.restore_network(&alive.collect());
        self.clean_exec_root();
        found
    }

    /// Removes what containers that are gone have left in the exec root, when a removal was cut after its record.
    fn clean_exec_root(&self) {
        for folder in ["containers", "etc"] {
            let Ok(entries) = std::fs::read_dir(self.config.exec_root.join(folder)) else { continue };
            for entry in entries.flatten() {
                let id = entry.file_name().to_string_lossy().into_owned();
                if self.store.container(&id).is_some() {
                    continue;
                }
                let cleaned = match folder {
                    "etc" => EtcFiles::of(&self.config.exec_root, &id).remove(),
                    _ => client::clean_up(&entry.path()).map_err(|error| runtime_error("clean up", error)),
                };
                match cleaned {
                    Ok(()) => tracing::info!(container = id, "cleaned up after a container that is gone"),
                    Err(error) => tracing::warn!(
                        container = id,
                        error = error.chain(),
                        "cannot clean up after a container that is gone"
                    ),
                }
            }
        }
    }

    /// The shim of a container that runs; else what its run directory tells of its last run.
    fn find_shim(&self, container: &Container) -> Option<Shim> {
        let run_dir = container.run_dir(&self.config.exec_root);
        if !run_dir.exists() {
            return None;
        }
        let state = Shim::connect(&run_dir).and_then(|shim| shim.state().map(|state| (shim, state)));
        match state {
            Ok((shim, state)) if matches!(state.status, ShimStatus::Running | ShimStatus::Paused) => {
                let mut live = container.live();
                live.state.status = match state.status {
                    ShimStatus::Paused => ContainerStatus::Paused,
                    _ => ContainerStatus::Running,
                };
                live.state.pid = u32::try_from(state.pid).unwrap_or(0);
                live.state.exit_code = 0;
                live.state.started_at =
                    state.started_at.as_deref().and_then(Timestamp::parse_rfc3339).unwrap_or(Timestamp::ZERO);
                live.shim = Some(shim.clone());
                tracing::info!(container = container.id(), pid = state.pid, "adopted a running container");
                Some(shim)
            }
            // The engine was killed in the middle of its start: it has not been answered, so it has not happened.
            Ok((shim, state)) if state.status == ShimStatus::Created => {
                if let Err(error) = shim.delete() {
                    tracing::warn!(container = container.id(), error = %error, "cannot undo a start that was cut");
                }
                None
            }
            _ => {
                match client::read_exit(&run_dir) {
                    Ok(Some(record)) => apply_exit(container, Some(&record)),
                    Ok(None) => {
                        if let Err(error) = client::clean_up(&run_dir) {
                            tracing::warn!(container = container.id(), error = %error, "cannot clean up after a killed shim");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(container = container.id(), error = %error, "the exit record cannot be read")
                    }
                }
                None
            }
        }
    }
}

pub(crate) fn clamp(cells: u32) -> u16 {
    u16::try_from(cells).unwrap_or(u16::MAX)
}

fn log_config(stored: &StoredContainer, path: &Path) -> LogConfig {
    let mut log = LogConfig::new(path.to_owned());
    let options = &stored.host_config.log_config.config;
    log.max_bytes = options.get("max-size").and_then(|text| honour::parse_size(text)).filter(|bytes| *bytes > 0);
    log.max_files = stored.log_files_max();
    log
}

/// What a container is after its run; without a record it is taken for killed.
fn apply_exit(container: &Container, record: Option<&ExitRecord>) {
    let mut live = container.live();
    live.shim = None;
    live.probing = None;
    live.state.status = ContainerStatus::Exited;
    live.state.pid = 0;
    let time = |text: &str| Timestamp::parse_rfc3339(text);
    match record {
        Some(record) => {
            live.state.exit_code = record.exit_code;
            live.state.oom_killed = record.oom_killed;
            if let Some(started_at) = record.started_at.as_deref().and_then(time) {
                live.state.started_at = started_at;
            }
            live.state.finished_at = time(&record.finished_at).unwrap_or_else(Timestamp::now);
            if let Some(failure) = &record.failure {
                live.state.error.clone_from(&failure.message);
            }
        }
        None => {
            live.state.exit_code = 128 + signal::SIGKILL;
            live.state.finished_at = Timestamp::now();
        }
    }
}

/// Asks a shim for the end of its container, without a thread that waits.
pub(crate) async fn exit_of(shim: &Shim) -> Result<ExitRecord, EngineError> {
    let answer = ask(shim.dir(), &Request::Wait).await;
    if let Ok(Response::Exited(record)) = answer {
        return Ok(record);
    }
    // A shim ends soon after its container: the record says what its answer would have said.
    let dir = shim.dir().to_owned();
    let read = tokio::task::spawn_blocking(move || client::read_exit(&dir)).await;
    let read = read.map_err(|error| crate::door::ended("read an exit record", &error))?;
    match read.map_err(|error| runtime_error("read the exit record", error))? {
        Some(record) => Ok(record),
        None => Err(runtime_error("wait for the container", RuntimeError::ShimGone { dir: shim.dir().to_owned() })),
    }
}

async fn ask(dir: &Path, request: &Request) -> std::io::Result<Response> {
    use std::io::{Error, ErrorKind};
    let stream = client::connect_socket(dir)?;
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    stream.write_all(&protocol::encode_request(request)).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = u32::from_le_bytes(head) as usize;
    if length > protocol::CONTROL_BYTES_MAX {
        return Err(Error::from(ErrorKind::InvalidData));
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await?;
    protocol::decode_response(&json).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

pub(crate) fn runtime_error(action: &'static str, error: RuntimeError) -> EngineError {
    EngineError::part(action, error)
}

/// A failed start in Docker's words: clients take their exit code from them.
fn start_error(error: RuntimeError) -> EngineError {
    let RuntimeError::Start(StartFailure { kind, message, .. }) = error else {
        let text = format!("failed to create task for container: {}", chain(&error));
        return EngineError::StartFailed { text, exit_code: 128, kind: Kind::System };
    };
    let status = match kind {
        FailureKind::ExecFormat | FailureKind::Other => Kind::System,
        _ => Kind::InvalidParameter,
    };
    let text = match kind {
        // Clients look for it at the very end.
        FailureKind::ExecFormat => format!("failed to create task for container: OCI runtime create failed: {message}"),
        FailureKind::UnknownUser | FailureKind::Invalid | FailureKind::BindSourceMissing => message,
        FailureKind::NotADirectory => format!(
            "failed to create task for container: OCI runtime create failed: {message}: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type: unknown"
        ),
        _ => format!("failed to create task for container: OCI runtime create failed: {message}: unknown"),
    };
    EngineError::StartFailed { text, exit_code: kind.exit_code(), kind: status }
}
