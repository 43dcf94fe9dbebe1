//! Exec: further programs in a running container.
//!
//! X1  Each has a shim of its own, so that it outlives the engine as its container does; what the engine knows of it does not.
//! X2  How it ended is known before its client's stream ends.
//! X3  A program that cannot be started tells its attached client so in the stream, and everybody else by its exit code.
//! X4  Memory is bounded: so many are remembered, those that have ended for five minutes.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use baleen_runtime::spec::ContainerSpec;
use baleen_runtime::{AttachOptions, ExecConfig, FailureKind, RuntimeError, Shim, ShimConfig, StartFailure, client};
use tokio::sync::{mpsc, watch};

use super::attach::{QUEUE_MAX, pump};
use super::files::EtcFiles;
use super::run::{clamp, exit_of, runtime_error};
use super::streams::{Attachment, AttachmentInput, AttachmentOutput, OutputFrame, OutputStream};
use super::table::Container;
use super::view::ContainerStatus;
use super::{name, spec};
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::{EngineError, Kind};

/// How long the end of one is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Remembered at once, of all containers; more are refused.
const EXECS_MAX: usize = 4096;
/// How long a resize waits for the program.
const RESIZE_PATIENCE: Duration = Duration::from_secs(10);
/// What is kept of a probe's output.
const PROBE_OUTPUT_BYTES_MAX: usize = 4096;
/// What Docker stores for a program that could not be started for any other reason than that it is missing.
const EXIT_NOT_STARTED: i32 = 126;

/// What is to be executed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `K=V`, over the container's.
    pub env: Vec<String>,
    /// `user[:group]`; empty: the container's.
    pub user: String,
    /// Empty: the container's.
    pub working_dir: String,
    /// All capabilities.
    pub privileged: bool,
    /// With a terminal of its own.
    pub tty: bool,
    /// Takes input.
    pub attach_stdin: bool,
    /// Gives standard output.
    pub attach_stdout: bool,
    /// Gives standard error.
    pub attach_stderr: bool,
    /// Keys that detach, as the client wrote them; for the front end.
    pub detach_keys: String,
    /// Rows and columns of the terminal; zeros: not known.
    pub console_size: [u32; 2],
}

/// What is known of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecDetails {
    /// 64 hex digits.
    pub id: String,
    /// Its container.
    pub container_id: String,
    /// What was asked for.
    pub request: ExecRequest,
    /// Whether it runs.
    pub running: bool,
    /// Once it has ended.
    pub exit_code: Option<i32>,
    /// On the host; 0 before it runs.
    pub pid: u32,
}

/// What became of a program that the engine has executed for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probed {
    /// It has ended by itself.
    Ended { exit_code: i32, output: String },
    /// It was killed.
    TimedOut { output: String },
}

/// One exec.
#[derive(Debug)]
struct Exec {
    id: String,
    container: Arc<Container>,
    request: ExecRequest,
    live: Mutex<Live>,
    /// Told of every change.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Live {
    phase: Phase,
    pid: u32,
    exit_code: Option<i32>,
    shim: Option<Shim>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Created,
    Starting,
    Running,
    Ended(Instant),
}

/// All that are remembered, by ID.
#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<BTreeMap<String, Arc<Exec>>>);

impl Execs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Exec>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, exec: Exec) -> Result<Arc<Exec>, EngineError> {
        let exec = Arc::new(exec);
        let mut execs = self.lock();
        execs.retain(|_, known| !known.is_forgotten());
        if execs.len() >= EXECS_MAX {
            let text = format!("{EXECS_MAX} exec instances exist already; wait until some have ended");
            return Err(EngineError::conflict(text));
        }
        execs.insert(exec.id.clone(), Arc::clone(&exec));
        Ok(exec)
    }

    fn find(&self, id: &str) -> Result<Arc<Exec>, EngineError> {
        let missing = || EngineError::NotFound { text: format!("No such exec instance: {id}") };
        let execs = self.lock();
        execs.get(id).filter(|exec| !exec.is_forgotten()).cloned().ok_or_else(missing)
    }

    /// Those of a container that run.
    pub(crate) fn running_in(&self, container: &str) -> Vec<String> {
        let execs = self.lock();
        let of = execs.values().filter(|exec| exec.container.id() == container && exec.live().phase == Phase::Running);
        of.map(|exec| exec.id.clone()).collect()
    }

    /// Forgets those of a container that is gone.
    pub(crate) fn forget(&self, container: &str) {
        self.lock().retain(|_, exec| exec.container.id() != container);
    }
}

impl Exec {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        change(&mut self.live());
        self.changed.send_replace(());
    }

    fn is_forgotten(&self) -> bool {
        matches!(self.live().phase, Phase::Ended(at) if at.elapsed() > REMEMBERED)
    }

    fn dir(&self, exec_root: &Path) -> PathBuf {
        exec_root.join("exec").join(&self.id)
    }

    fn words(&self) -> String {
        self.request.command.join(" ")
    }

    fn ended(&self, exit_code: i32) {
        self.change(|live| {
            live.phase = Phase::Ended(Instant::now());
            live.exit_code = Some(exit_code);
            live.shim = None;
        });
    }
}

impl Engine {
    /// Prepares an exec in a running container; gives its ID.
    ///
    /// # Errors
    /// `InvalidParameter` without a command; `Conflict` if the container does not run.
    pub fn create_exec(self: &Arc<Self>, container: &str, request: ExecRequest) -> Result<String, EngineError> {
        let container = self.containers.find(container)?;
        if request.command.first().is_none_or(String::is_empty) {
            return Err(EngineError::invalid("No exec command specified"));
        }
        check_runs(&container)?;
        let id = name::new_id()?;
        let (live, changed) = (Mutex::default(), watch::Sender::new(()));
        let exec = self.execs.insert(Exec { id, container, request, live, changed })?;
        self.exec_event(&exec, &format!("exec_create: {}", exec.words()), &[]);
        Ok(exec.id.clone())
    }

    /// Starts an exec. Attached, this gives its streams at once, and a failure comes in them (X3); detached, it returns when the
    /// program has been executed.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it was started before or its container does not run; detached also `StartFailed`.
    pub async fn start_exec(
        self: &Arc<Self>,
        id: &str,
        detach: bool,
        console_size: Option<[u32; 2]>,
    ) -> Result<Option<Attachment>, EngineError> {
        let exec = self.execs.find(id)?;
        check_runs(&exec.container)?;
        {
            let mut live = exec.live();
            match live.phase {
                Phase::Created => live.phase = Phase::Starting,
                Phase::Starting | Phase::Running => {
                    return Err(EngineError::conflict(format!("exec command {id} is already running")));
                }
                Phase::Ended(_) => return Err(EngineError::conflict(format!("exec command {id} has already run"))),
            }
        }
        let size = console_size.unwrap_or(exec.request.console_size);
        let options = AttachOptions {
            stdin: exec.request.attach_stdin && !detach,
            stdout: exec.request.attach_stdout && !detach,
            stderr: exec.request.attach_stderr && !detach,
            close_stdin: true,
        };
        self.exec_event(&exec, &format!("exec_start: {}", exec.words()), &[]);
        let engine = Arc::clone(self);
        if detach {
            return to_its_end("start an exec", async move {
                let (shim, _) = engine.launch_exec(&exec, options, size).await?;
                drop(tokio::spawn(async move { engine.watch_exec(&exec, &shim).await }));
                Ok(None)
            })
            .await;
        }
        let (to_client, output) = mpsc::channel(QUEUE_MAX);
        let (input, from_client) = mpsc::channel(QUEUE_MAX);
        let tty = exec.request.tty;
        drop(tokio::spawn(async move {
            match engine.launch_exec(&exec, options, size).await {
                Ok((shim, stream)) => {
                    if let Some(stream) = stream
                        && let Err(error) = pump(stream, options.stdin, from_client, to_client.clone()).await
                    {
                        tracing::debug!(error = %error, "the streams of an exec ended early");
                    }
                    // Before the last sender goes, and with it the client's stream (X2).
                    engine.watch_exec(&exec, &shim).await;
                }
                Err(error) => {
                    let bytes = format!("{}\r\n", error.chain()).into();
                    let _ = to_client.send(OutputFrame { stream: OutputStream::Stdout, bytes }).await;
                }
            }
            drop(to_client);
        }));
        let input = options.stdin.then_some(AttachmentInput(input));
        Ok(Some(Attachment { tty, input, output: AttachmentOutput(output) }))
    }

    /// Sets the size of an exec's terminal; waits for the program if it is not there yet.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` if it has ended.
    pub async fn resize_exec(self: &Arc<Self>, id: &str, height: u16, width: u16) -> Result<(), EngineError> {
        let exec = self.execs.find(id)?;
        let mut changed = exec.changed.subscribe();
        let has_come = changed.wait_for(|()| matches!(exec.live().phase, Phase::Running | Phase::Ended(_)));
        if tokio::time::timeout(RESIZE_PATIENCE, has_come).await.is_err() {
            return Err(EngineError::conflict(format!("exec {id} is not running")));
        }
        let shim = exec.live().shim.clone();
        let shim = shim.ok_or_else(|| EngineError::conflict(format!("exec {id} is not running")))?;
        self.door
            .enter("resize a terminal", move || match shim.resize(height, width) {
                Ok(()) | Err(RuntimeError::Refused { .. } | RuntimeError::ShimGone { .. }) => Ok(()),
                Err(error) => Err(runtime_error("resize the terminal", error)),
            })
            .await
    }

    /// What is known of an exec.
    ///
    /// # Errors
    /// `NotFound`, also once its container is gone.
    pub fn exec(&self, id: &str) -> Result<ExecDetails, EngineError> {
        let exec = self.execs.find(id)?;
        let live = exec.live();
        Ok(ExecDetails {
            id: exec.id.clone(),
            container_id: exec.container.id().to_owned(),
            request: exec.request.clone(),
            running: live.phase == Phase::Running,
            exit_code: live.exit_code,
            pid: live.pid,
        })
    }

    /// Tells that a client has left an exec's terminal by its keys.
    pub fn exec_detached(&self, id: &str) {
        if let Ok(exec) = self.execs.find(id) {
            self.exec_event(&exec, "exec_detach", &[]);
        }
    }

    fn exec_event(&self, exec: &Exec, action: &str, extra: &[(&str, String)]) {
        let mut attributes = vec![("execID", exec.id.clone())];
        attributes.extend(extra.iter().cloned());
        self.container_event(&exec.container, action, &attributes);
    }

    /// Starts the program with its streams attached; a failure is recorded as its end.
    async fn launch_exec(
        self: &Arc<Self>,
        exec: &Arc<Exec>,
        options: AttachOptions,
        size: [u32; 2],
    ) -> Result<(Shim, Option<UnixStream>), EngineError> {
        let (engine, launching) = (Arc::clone(self), Arc::clone(exec));
        let launched = self.door.enter("start an exec", move || engine.launch(&launching, options, size)).await;
        match &launched {
            Ok((shim, _)) => exec.change(|live| {
                live.phase = Phase::Running;
                live.pid = u32::try_from(shim.pid()).unwrap_or(0);
                live.shim = Some(shim.clone());
            }),
            Err(error) => {
                let exit_code = match error {
                    EngineError::StartFailed { exit_code, .. } => *exit_code,
                    _ => EXIT_NOT_STARTED,
                };
                exec.ended(exit_code);
                self.exec_event(exec, "exec_die", &[("exitCode", exit_code.to_string())]);
            }
        }
        launched
    }

    /// Blocking.
    fn launch(
        &self,
        exec: &Exec,
        options: AttachOptions,
        size: [u32; 2],
    ) -> Result<(Shim, Option<UnixStream>), EngineError> {
        let stored = &exec.container.stored();
        let etc = EtcFiles::of(&self.config.exec_root, exec.container.id());
        let cgroup_parent = self.config.cgroup_parent.as_deref();
        let spec = spec::container_spec(stored, &etc, cgroup_parent, spec::Sources::Leave)?;
        let dir = exec.dir(&self.config.exec_root);
        let config = ExecConfig {
            id: exec.id.clone(),
            container_dir: exec.container.run_dir(&self.config.exec_root),
            privileged: exec.request.privileged,
        };
        let mut config = ShimConfig::for_exec(dir.clone(), exec_spec(spec, &exec.request, options.stdin), config);
        config.program.clone_from(&self.config.shim_binary);
        let launched = Shim::spawn(&config).and_then(|shim| {
            let begun = (|| {
                if exec.request.tty && size[0] > 0 && size[1] > 0 {
                    shim.resize(clamp(size[0]), clamp(size[1]))?;
                }
                // Attached before the program runs, so that no byte is lost.
                let wanted = options.stdin || options.stdout || options.stderr;
                let stream = wanted.then(|| shim.attach(options)).transpose()?;
                shim.start()?;
                Ok(stream)
            })();
            match begun {
                Ok(stream) => Ok((shim, stream)),
                Err(error) => {
                    let _ = shim.delete(); // What is left is removed below.
                    Err(error)
                }
            }
        });
        launched.map_err(|error| {
            if let Err(left) = client::clean_up(&dir) {
                tracing::warn!(path = %dir.display(), error = %left, "a failed exec left something behind");
            }
            exec_error(error)
        })
    }

    /// Executes a program for the engine itself, and kills it after a time.
    ///
    /// # Errors
    /// If it cannot be executed.
    pub(crate) async fn probe(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: ExecRequest,
        timeout: Duration,
    ) -> Result<Probed, EngineError> {
        let (id, live, changed) = (name::new_id()?, Mutex::default(), watch::Sender::new(()));
        let exec = Exec { id: id.clone(), container: Arc::clone(container), request, live, changed };
        let exec = self.execs.insert(exec)?;
        exec.live().phase = Phase::Starting;
        self.exec_event(&exec, &format!("exec_create: {}", exec.words()), &[]);
        self.exec_event(&exec, &format!("exec_start: {}", exec.words()), &[]);
        let options = AttachOptions { stdin: false, stdout: true, stderr: true, close_stdin: true };
        let engine = Arc::clone(self);
        // On its own, so that the end of the probing does not leave one half recorded.
        let probing = tokio::spawn(async move {
            let (shim, stream) = engine.launch_exec(&exec, options, [0; 2]).await?;
            let (to_us, mut frames) = mpsc::channel(QUEUE_MAX);
            let (_, no_input) = mpsc::channel(1);
            if let Some(stream) = stream {
                drop(tokio::spawn(pump(stream, false, no_input, to_us)));
            }
            let mut output = Vec::new();
            let reading = async {
                while let Some(frame) = frames.recv().await {
                    let room = PROBE_OUTPUT_BYTES_MAX.saturating_sub(output.len());
                    output.extend_from_slice(&frame.bytes[..frame.bytes.len().min(room)]);
                }
            };
            let in_time = tokio::time::timeout(timeout, reading).await.is_ok();
            if !in_time {
                let killing = shim.clone();
                let killed = engine.door.enter("kill a probe", move || match killing.kill(super::signal::SIGKILL) {
                    Ok(()) | Err(RuntimeError::Refused { .. } | RuntimeError::ShimGone { .. }) => Ok(()),
                    Err(error) => Err(runtime_error("kill a probe", error)),
                });
                killed.await?;
            }
            engine.watch_exec(&exec, &shim).await;
            let exit_code = exec.live().exit_code.unwrap_or(EXIT_NOT_STARTED);
            let output = String::from_utf8_lossy(&output).into_owned();
            Ok(if in_time { Probed::Ended { exit_code, output } } else { Probed::TimedOut { output } })
        });
        let probed = probing.await.map_err(|error| crate::door::ended("probe a container", &error))?;
        self.execs.lock().remove(&id);
        probed
    }

    /// Waits for the end, and records it.
    async fn watch_exec(self: &Arc<Self>, exec: &Arc<Exec>, shim: &Shim) {
        let exit_code = match exit_of(shim).await {
            Ok(record) => record.exit_code,
            Err(error) => {
                tracing::warn!(
                    container = exec.container.id(),
                    error = error.chain(),
                    "the shim of an exec ended without recording an exit"
                );
                137
            }
        };
        exec.ended(exit_code);
        self.exec_event(exec, "exec_die", &[("exitCode", exit_code.to_string())]);
        self.remove_exec_dir(shim.dir().to_owned()).await;
    }

    async fn remove_exec_dir(self: &Arc<Self>, dir: PathBuf) {
        let path = dir.clone();
        let removed = self.door.enter("clean up after an exec", move || {
            client::clean_up(&dir).map_err(|error| runtime_error("clean up after an exec", error))
        });
        if let Err(error) = removed.await {
            tracing::warn!(path = %path.display(), error = error.chain(), "cannot clean up after an exec");
        }
    }

    /// Looks after the shims of execs that an engine before this one has started: when they end, what they leave is removed.
    pub(crate) fn adopt_execs(self: &Arc<Self>) {
        let folder = self.config.exec_root.join("exec");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let engine = Arc::clone(self);
            drop(tokio::spawn(async move {
                let dir = entry.path();
                let asked = dir.clone();
                if let Ok(Ok(shim)) = tokio::task::spawn_blocking(move || Shim::connect(&asked)).await {
                    let _ = exit_of(&shim).await;
                }
                engine.remove_exec_dir(dir).await;
            }));
        }
    }
}

/// Whether a program can be executed in a container.
fn check_runs(container: &Container) -> Result<(), EngineError> {
    let id = container.id();
    match container.live().state.status {
        ContainerStatus::Running => Ok(()),
        ContainerStatus::Paused => {
            Err(EngineError::conflict(format!("Container {id} is paused, unpause the container before exec")))
        }
        ContainerStatus::Restarting => {
            Err(EngineError::conflict(format!("Container {id} is restarting, wait until the container is running")))
        }
        _ => Err(EngineError::conflict(format!("container {id} is not running"))),
    }
}

/// The container's description with the exec's own program in it.
pub(crate) fn exec_spec(container: ContainerSpec, request: &ExecRequest, open_stdin: bool) -> ContainerSpec {
    let mut spec = container;
    spec.args.clone_from(&request.command);
    spec.env.extend(request.env.iter().cloned());
    if !request.user.is_empty() {
        spec.user.clone_from(&request.user);
    }
    if !request.working_dir.is_empty() {
        spec.cwd.clone_from(&request.working_dir);
    }
    (spec.tty, spec.open_stdin, spec.stdin_once) = (request.tty, open_stdin, true);
    // Nothing is mounted for it, and it has no init of its own.
    spec.init = false;
    spec.mounts.clear();
    spec
}

/// A failed start in Docker's words; the exit code is what a client ends with.
pub(crate) fn exec_error(error: RuntimeError) -> EngineError {
    let RuntimeError::Start(StartFailure { kind, message, .. }) = error else {
        return runtime_error("start the exec", error);
    };
    let exit_code = if kind == FailureKind::NotFound { 127 } else { EXIT_NOT_STARTED };
    let status = match kind {
        FailureKind::NotRunning | FailureKind::NoMemory => Kind::Conflict,
        FailureKind::ExecFormat | FailureKind::Other => Kind::System,
        _ => Kind::InvalidParameter,
    };
    let text = match kind {
        FailureKind::UnknownUser => message,
        _ => format!("OCI runtime exec failed: exec failed: unable to start container process: {message}: unknown"),
    };
    EngineError::StartFailed { text, exit_code, kind: status }
}
