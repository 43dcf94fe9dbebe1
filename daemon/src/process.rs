//! The daemon's life: it reads its settings, opens sockets and engine, serves, reloads, and ends.
//!
//! D1  Sockets are opened before the engine, so that a second daemon is refused before it touches anything; requests wait
//!     in the backlog until the engine is open.
//! D2  A reload is all or nothing: a bad file is logged and changes nothing.
//! D3  The first SIGTERM or SIGINT ends the daemon in order; the third ends it at once.
//! D4  With live-restore (the default) containers do not notice the end.
//!
//! Touches: the pid file, the sockets, `$NOTIFY_SOCKET`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use baleen_engine::{Engine, EngineConfig, EngineError, LayerFetcher, StopRequest};
use rustix::fs::FlockOperation;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::api::Api;
use crate::http::{self, Service};
use crate::places::PlaceError;
use crate::settings::{Config, Invocation, SettingsError};
use crate::sockets::{self, Listener, SocketError};
use crate::{logging, places, sys};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long requests in flight may take to end once the daemon ends.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Why the daemon did not run, or did not end in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// Flags or file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Folders.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Another daemon has the pid file.
    #[error(
        "pid file {path} is held by a running daemon (pid {pid}); stop it, or give this one its own with --pidfile and --exec-root"
    )]
    AlreadyRunning {
        /// The file.
        path: PathBuf,
        /// What it says.
        pid: String,
    },
    /// The engine does not open, or does not close.
    #[error("cannot {action} the engine at {root}")]
    Engine {
        /// A verb.
        action: &'static str,
        /// The data root.
        root: PathBuf,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// A verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs the daemon with the arguments that follow `baleen daemon`, until a signal ends it. Answers `--help`, `--version`
/// and `--validate` by itself.
///
/// Must be called while the process has one thread.
///
/// # Errors
/// Each variant of [`DaemonError`]: nothing was started, or what was started has been ended.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<ExitCode, DaemonError> {
    let invocation = Invocation::parse(arguments)?;
    if invocation.help {
        print!("{}", crate::settings::help());
        return Ok(ExitCode::SUCCESS);
    }
    if invocation.version {
        println!("baleen version {}", env!("CARGO_PKG_VERSION"));
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(&invocation)?;
    if invocation.validate {
        println!("configuration OK");
        return Ok(ExitCode::SUCCESS);
    }
    sys::return_memory_early();
    logging::set_level(level(&config));
    // Containers and files must not depend on who started the daemon.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for warning in &config.warnings {
        tracing::warn!(warning, "configuration");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Io { action: "start", path: "the event loop".into(), source })?;
    let ended = runtime.block_on(serve(invocation, config));
    // Jobs that have entered the engine's door run to their end, but none may keep a daemon from ending.
    runtime.shutdown_timeout(DRAIN_TIME);
    ended
}

fn level(config: &Config) -> tracing::Level {
    if config.reloadable.debug {
        tracing::Level::DEBUG.max(config.reloadable.log_level)
    } else {
        config.reloadable.log_level
    }
}

async fn serve(invocation: Invocation, config: Config) -> Result<ExitCode, DaemonError> {
    let signals =
        Signals::new().map_err(|source| DaemonError::Io { action: "receive", path: "signals".into(), source })?;
    places::check(&config.data_root)?;
    places::check(&config.exec_root)?;
    make_private_folder(&config.exec_root)?;
    let _pid_file = config.pidfile.as_deref().map(PidFile::create).transpose()?;
    let listeners = sockets::listen(&config.hosts, &config.group, config.group_is_named)?;
    let engine_error =
        |action, error| DaemonError::Engine { action, root: config.data_root.clone(), source: Box::new(error) };
    let engine = Engine::open(engine_config(&config)).await;
    let engine = engine.map_err(|error| engine_error("open", error))?;
    let api = Arc::new(Api::new(engine.clone(), config.clone()));
    tracing::info!(path = %config.data_root.display(), "the daemon has started");
    notify("READY=1");
    let code = event_loop(listeners, api.clone(), signals, &invocation).await;
    notify("STOPPING=1");
    engine.begin_end();
    let live_restore = api.config().reloadable.live_restore;
    if !live_restore {
        stop_all(&engine, api.config().reloadable.shutdown_timeout).await;
    }
    engine.close().await.map_err(|error| engine_error("close", error))?;
    tracing::info!("the daemon has ended");
    Ok(code)
}

/// Fetches layers again as the daemon that has this configuration file (`None`: the usual one) would: from the same mirrors,
/// and with the same trust in registries. For a repair while it does not run.
///
/// # Errors
/// `Settings` for a file that a daemon would refuse; `Engine`.
pub fn layer_fetcher(config_file: Option<&Path>) -> Result<LayerFetcher, DaemonError> {
    let arguments = config_file.map(|path| format!("--config-file={}", path.display()));
    let config = Config::load(&Invocation::parse(arguments)?)?;
    LayerFetcher::new(&engine_config(&config)).map_err(|error| DaemonError::Engine {
        action: "prepare",
        root: config.data_root.clone(),
        source: Box::new(error),
    })
}

fn engine_config(config: &Config) -> EngineConfig {
    let binary = fs::read_link("/proc/self/exe").unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let mut engine = EngineConfig::at(config.data_root.clone(), config.exec_root.clone(), binary);
    engine.cgroup_parent.clone_from(&config.cgroup_parent);
    engine.network.clone_from(&config.network);
    engine.deltas = config.deltas;
    engine.insecure_registries.clone_from(&config.reloadable.insecure_registries);
    engine.registry_mirrors.clone_from(&config.reloadable.registry_mirrors);
    engine.limits.concurrent_downloads_max = config.reloadable.max_concurrent_downloads;
    engine.limits.download_attempts_max = config.reloadable.max_download_attempts;
    engine
}

/// Accepts and serves until a signal ends it.
async fn event_loop(
    listeners: Vec<Listener>,
    api: Arc<Api>,
    mut signals: Signals,
    invocation: &Invocation,
) -> ExitCode {
    let mut connections = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    let service: Arc<dyn Service> = api.clone();
    let mut accepting = JoinSet::new();
    let (sender, mut accepted) = tokio::sync::mpsc::channel(1);
    for listener in listeners {
        let sender = sender.clone();
        accepting.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(stream) => {
                        if sender.send(stream).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: those that are open must get the time to close.
                        tracing::error!(error = %error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }
    loop {
        tokio::select! {
            Some(stream) = accepted.recv(), if open.load(Ordering::Relaxed) < CONNECTIONS_MAX => {
                let service = service.clone();
                connections.spawn(http::serve(stream, service));
                open.store(connections.len(), Ordering::Relaxed);
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(error = %error, "a connection panicked");
                }
                open.store(connections.len(), Ordering::Relaxed);
            }
            event = signals.next() => match event {
                Event::End => break,
                Event::Reload => reload(invocation, &api),
                Event::Dump => tracing::info!(connections = connections.len(), "SIGUSR1: the daemon is alive"),
            },
        }
    }
    // Closes and removes the sockets: whoever connects now learns that there is no daemon.
    accepting.shutdown().await;
    api.end();
    // Requests in flight may end; streams that never end are cut.
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
    ExitCode::SUCCESS
}

fn reload(invocation: &Invocation, api: &Api) {
    match Config::load(invocation) {
        Ok(config) => {
            let level = level(&config);
            match api.reload(config) {
                Ok(()) => {
                    logging::set_level(level);
                    tracing::info!("the configuration was reloaded");
                }
                Err(error) => {
                    tracing::error!(
                        error = error.chain(),
                        "the configuration was not reloaded; the old one stays in force"
                    );
                }
            }
        }
        Err(error) => tracing::error!(error = %error, "the configuration was not reloaded; the old one stays in force"),
    }
    notify("READY=1");
}

/// Stops every container, all at once, each by its own signal and timeout.
async fn stop_all(engine: &Arc<Engine>, timeout_seconds: i64) {
    let Ok(containers) = engine.containers(false).await else { return };
    let running: Vec<_> = containers.into_iter().filter(|container| container.state.status.is_running()).collect();
    let longest =
        running.iter().filter_map(|container| container.config.stop_timeout).max().map_or(0, |longest| longest + 5);
    let mut stops = JoinSet::new();
    for container in running {
        let engine = engine.clone();
        stops.spawn(async move {
            if let Err(error) = engine.stop_container(&container.id, StopRequest::default()).await {
                tracing::warn!(container = container.id, error = error.chain(), "cannot stop a container at the end");
            }
        });
    }
    let all = async { while stops.join_next().await.is_some() {} };
    match u64::try_from(timeout_seconds.max(longest)) {
        Ok(limit) if timeout_seconds >= 0 => {
            let _ = tokio::time::timeout(Duration::from_secs(limit), all).await;
        }
        _ => all.await,
    }
}

/// What a signal asks for.
enum Event {
    End,
    Reload,
    Dump,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        // SIGPIPE is ignored by Rust's runtime: a client that has gone is an error of its own connection.
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => self.end(15),
            _ = self.interrupt.recv() => self.end(2),
            _ = self.hang_up.recv() => Event::Reload,
            _ = self.user.recv() => Event::Dump,
        }
    }

    /// The daemon ends in order, unless it is asked twice more (D3).
    fn end(&mut self, number: i32) -> Event {
        tracing::info!(signal = number, "the daemon ends");
        let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        if let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) {
            tokio::spawn(async move {
                for _ in 0..2 {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                }
                std::process::exit(128 + number);
            });
        }
        Event::End
    }
}

/// The file that names this process; removed at the end. It is locked, since a number in a file says nothing after a crash.
struct PidFile {
    path: PathBuf,
    _held: File,
}

impl PidFile {
    fn create(path: &Path) -> Result<PidFile, DaemonError> {
        let io_error = |action, source| DaemonError::Io { action, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| io_error("make the folder of", error))?;
        }
        let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(|error| io_error("open", error))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
            return Err(DaemonError::AlreadyRunning { path: path.to_owned(), pid });
        }
        file.set_len(0).map_err(|error| io_error("empty", error))?;
        write!(file, "{}", std::process::id()).map_err(|error| io_error("write", error))?;
        Ok(PidFile { path: path.to_owned(), _held: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Still locked: nobody else can have made it theirs.
        let _ = fs::remove_file(&self.path);
    }
}

fn make_private_folder(path: &Path) -> Result<(), DaemonError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| DaemonError::Io {
        action: "make",
        path: path.to_owned(),
        source,
    })
}

/// Tells the service manager a state (sd_notify(3)); says nothing if there is none.
fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = address.to_string_lossy().into_owned();
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(error = %error, "cannot tell the service manager");
    }
}
