//! The engine: its parts, opened together, and what it tells of itself. The verbs are with their nouns: `image`, `container`.
//!
//! A verb that changes something runs to its end once it has begun, whether its caller stays or not; `pull` is the
//! exception: dropping its future means that the client has gone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use baleen_network::Bridge;
use baleen_registry::{Client, ClientConfig, InsecureRegistries};
use baleen_store::{Store, SystemDisk};
use tokio::sync::Semaphore;

use crate::config::EngineConfig;
use crate::container::{Containers, Execs};
use crate::door::{Door, ended};
use crate::error::EngineError;
use crate::events::{EventQuery, EventStream, Events};
use crate::image::{Compressed, Deltas, Downloads, store_error};
use crate::recovery::Recovery;
use crate::volume::{self, Volumes};

/// A container engine on one store. Cheap to share; every verb takes `&Arc<Engine>`.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) door: Door,
    pub(crate) store: Store,
    /// What the opening found.
    pub(crate) recovery: Recovery,
    /// Exchanged by a reload; a pull keeps the one that it began with.
    pub(crate) registry: RwLock<Client>,
    pub(crate) downloads: Arc<Downloads>,
    pub(crate) compressed: Compressed,
    pub(crate) deltas: Deltas,
    pub(crate) events: Events,
    pub(crate) containers: Containers,
    pub(crate) execs: Execs,
    pub(crate) volumes: Volumes,
    ending: AtomicBool,
    /// `None`: there is no bridge.
    pub(crate) bridge: Option<Bridge>,
    /// Held by a prune of containers.
    pub(crate) container_prune_turn: Semaphore,
    /// Held by a prune of images.
    pub(crate) prune_turn: Semaphore,
    /// Held by whoever empties the trash.
    pub(crate) trash_turn: Arc<Semaphore>,
}

impl Engine {
    /// Opens the store, adopts running containers, and gives an engine that answers. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the store refuses to open: in use, of a newer format, on an unfit file system, or damaged.
    pub async fn open(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        let registry = Client::new(client_config(&config)?);
        let (data_root, exec_root) = (config.data_root.clone(), config.exec_root.clone());
        let opening = tokio::task::spawn_blocking(move || open_store(&data_root, &exec_root));
        let (store, recovery) = opening.await.map_err(|error| ended("open the store", &error))??;
        let engine = Arc::new(Self {
            door: Door::new(config.limits.door_threads),
            store,
            recovery,
            registry: RwLock::new(registry),
            downloads: Arc::new(Downloads::new(
                config.limits.concurrent_downloads_max,
                Arc::clone(&config.retry_clock),
                config.checkpoint_intervals,
            )),
            compressed: Compressed::default(),
            deltas: Deltas::default(),
            events: Events::default(),
            containers: Containers::default(),
            execs: Execs::default(),
            volumes: Volumes::default(),
            ending: AtomicBool::new(false),
            bridge: config.network.bridge.clone().map(Bridge::new),
            container_prune_turn: Semaphore::new(1),
            prune_turn: Semaphore::new(1),
            trash_turn: Arc::new(Semaphore::new(1)),
            config,
        });
        engine.open_volumes().await?;
        engine.adopt_all().await?;
        engine.tell_recovery();
        engine.write_second_copy_later();
        // What the last owner has left in the trash.
        engine.empty_trash_later();
        Ok(engine)
    }

    /// Reads the descriptions of the volumes, and takes away what a killed engine had mounted for one.
    async fn open_volumes(self: &Arc<Self>) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        let load = move || {
            volume::clean_up(&engine.config.exec_root);
            engine.volumes.load(&engine.store);
            Ok(())
        };
        self.door.enter("look for volumes", load).await
    }

    /// Tells that the end of this engine begins: no restart policy starts anything from now on, and a container that is stopped from now
    /// on is one that should run when an engine opens again.
    pub fn begin_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Closes the store cleanly; containers and their shims go on. Changes are refused from then on.
    ///
    /// # Errors
    /// If the store's log cannot be closed; nothing that was acknowledged is lost by that.
    pub async fn close(self: &Arc<Self>) -> Result<(), EngineError> {
        let store = self.store.clone();
        let close = move || {
            write_second_copy(&store);
            store.close().map_err(store_error("close the store"))
        };
        self.door.enter("close the store", close).await
    }

    /// Brings the second copy of the facts up to date, behind everybody's back; no promise rests on it.
    fn write_second_copy_later(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        drop(tokio::spawn(async move {
            let store = engine.store.clone();
            let write = move || {
                write_second_copy(&store);
                Ok(())
            };
            let _ = engine.door.enter("write the second copy", write).await;
        }));
    }

    pub(crate) fn is_running(&self, container: &str) -> bool {
        self.containers.get(container).is_some_and(|container| container.live().state.status.is_running())
    }

    /// Listens to what happens.
    ///
    /// # Errors
    /// `InvalidParameter` for a filter key that does not exist or for times that cannot be.
    pub fn events(&self, query: EventQuery) -> Result<EventStream, EngineError> {
        self.events.subscribe(query)
    }
}

fn write_second_copy(store: &Store) {
    if let Err(error) = store.write_second_copy() {
        tracing::warn!(error = crate::error::chain(&error), "the second copy of the facts was not written");
    }
}

pub(crate) fn client_config(config: &EngineConfig) -> Result<ClientConfig, EngineError> {
    let invalid = |error: baleen_registry::ConfigError| EngineError::invalid(error.to_string());
    let mut client = ClientConfig::default();
    client.insecure_registries = InsecureRegistries::parse(&config.insecure_registries).map_err(invalid)?;
    client.mirrors =
        config.registry_mirrors.iter().map(|url| url.parse()).collect::<Result<_, _>>().map_err(invalid)?;
    if !config.certs_dirs.is_empty() {
        client.certs_dirs.clone_from(&config.certs_dirs);
    }
    client.user_agent.clone_from(&config.user_agent);
    client.download_attempts_max = config.limits.download_attempts_max;
    client.clock = Arc::clone(&config.retry_clock);
    Ok(client)
}

fn open_store(data_root: &Path, exec_root: &Path) -> Result<(Store, Recovery), EngineError> {
    make_private_dir(data_root)?;
    make_private_dir(exec_root)?;
    let io = |source| EngineError::Io { action: "open", path: data_root.to_owned(), source };
    let disk = SystemDisk::open(data_root).map_err(io)?;
    let id = crate::container::random()?;
    let (store, opened) = Store::open(Arc::new(disk), id).map_err(store_error("open the store"))?;
    Ok((store, Recovery::of(opened)))
}

/// Makes a directory that only root may look into (threats F1), and corrects one that is there.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
    let made = made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)));
    made.map_err(|source| EngineError::Io { action: "create", path: PathBuf::from(path), source })
}
