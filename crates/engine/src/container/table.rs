//! The containers that exist, and what each of them is doing now.
//!
//! T1  A container has one turn: start, the end of a run, export of one that does not run, and removal exclude each other.
//! T2  What it is doing is behind one lock, which nobody holds while waiting.
//! T3  A waiter that was registered hears of every end after that, exactly once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use baleen_runtime::{AttachOptions, Shim};
use baleen_store::Desired;
use tokio::sync::{Semaphore, oneshot};

use super::health::Health;
use super::restart::Restarts;
use super::stored::StoredContainer;
use super::streams::{Exit, ExitWait, WaitCondition};
use super::view::{ContainerState, ContainerStatus};
use crate::error::EngineError;
use crate::time::Timestamp;

/// A container in memory.
#[derive(Debug)]
pub(crate) struct Container {
    id: String,
    stored: RwLock<Arc<StoredContainer>>,
    /// Held by whoever reads a fact of the store to write it back changed.
    pub(crate) fact_turn: Mutex<()>,
    /// T1.
    pub(crate) turn: Arc<Semaphore>,
    live: Mutex<Live>,
}

/// What changes.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) name: String,
    pub(crate) desired: Desired,
    pub(crate) state: ContainerState,
    /// What its probes have said since its last start.
    pub(crate) health: Option<Health>,
    /// Dropped at the end of a run, which ends its probes.
    pub(crate) probing: Option<oneshot::Sender<()>>,
    /// What its restart policy remembers.
    pub(crate) restarts: Restarts,
    /// Present while it runs.
    pub(crate) shim: Option<Shim>,
    pub(crate) is_removing: bool,
    waiters: Vec<(WaitCondition, oneshot::Sender<Exit>)>,
    /// Clients that attached before the start; each gets its stream, or learns by the drop that none will come.
    pub(crate) attaching: Vec<Attaching>,
}

/// A client that waits for a start.
#[derive(Debug)]
pub(crate) struct Attaching {
    pub(crate) options: AttachOptions,
    pub(crate) stream: oneshot::Sender<std::os::unix::net::UnixStream>,
}

/// What those who wait are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A run has ended, and another will follow.
    RunEnded,
    /// It does not run any more.
    Stopped,
    /// It is gone.
    Removed,
}

impl Wake {
    fn answers(self, condition: WaitCondition) -> bool {
        match self {
            Self::RunEnded => condition == WaitCondition::NextExit,
            Self::Stopped => condition != WaitCondition::Removed,
            Self::Removed => true,
        }
    }
}

/// Waiters of one container; more are refused.
const WAITERS_MAX: usize = 1024;

impl Container {
    pub(crate) fn new(stored: StoredContainer, name: String, desired: Desired) -> Self {
        let (status, exit_code) = match desired {
            Desired::Created => (ContainerStatus::Created, 0),
            // It ran, and nothing tells how it ended: the exec root is gone with a reboot (P1).
            Desired::Running | Desired::Stopped => (ContainerStatus::Exited, 255),
        };
        let state = ContainerState {
            status,
            pid: 0,
            exit_code,
            error: String::new(),
            oom_killed: false,
            started_at: Timestamp::ZERO,
            finished_at: Timestamp::ZERO,
        };
        let live = Live {
            name,
            desired,
            state,
            health: None,
            probing: None,
            restarts: Restarts::default(),
            shim: None,
            is_removing: false,
            waiters: Vec::new(),
            attaching: Vec::new(),
        };
        Self {
            id: stored.id.clone(),
            stored: RwLock::new(Arc::new(stored)),
            fact_turn: Mutex::new(()),
            turn: Arc::new(Semaphore::new(1)),
            live: Mutex::new(live),
        }
    }

    /// What `create` and `update` have stored.
    pub(crate) fn stored(&self) -> Arc<StoredContainer> {
        Arc::clone(&self.stored.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what an update has stored.
    pub(crate) fn replace_stored(&self, stored: StoredContainer) {
        *self.stored.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(stored);
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        // Every change under this lock is one step.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> String {
        self.live().name.clone()
    }

    /// The shim, if it runs.
    ///
    /// # Errors
    /// `Conflict` in Docker's words if not.
    pub(crate) fn shim(&self) -> Result<Shim, EngineError> {
        self.live().shim.clone().ok_or_else(|| EngineError::conflict(format!("container {} is not running", self.id)))
    }

    /// Registers a wait (T3).
    pub(crate) fn wait(&self, condition: WaitCondition) -> Result<ExitWait, EngineError> {
        let (sender, receiver) = oneshot::channel();
        let mut live = self.live();
        if condition == WaitCondition::NotRunning && !live.state.status.is_running() {
            let _ = sender.send(live.exit());
            return Ok(ExitWait(receiver));
        }
        live.waiters.retain(|(_, waiter)| !waiter.is_closed());
        if live.waiters.len() >= WAITERS_MAX {
            return Err(EngineError::conflict(format!("{WAITERS_MAX} clients wait for this container already")));
        }
        live.waiters.push((condition, sender));
        Ok(ExitWait(receiver))
    }

    /// Tells those who wait for what has happened.
    pub(crate) fn wake(&self, what: Wake) {
        let mut live = self.live();
        let exit = live.exit();
        let (woken, waiting) =
            std::mem::take(&mut live.waiters).into_iter().partition(|(condition, _)| what.answers(*condition));
        live.waiters = waiting;
        drop(live);
        let woken: Vec<(WaitCondition, oneshot::Sender<Exit>)> = woken;
        for (_, waiter) in woken {
            let _ = waiter.send(exit.clone()); // One that has gone wants nothing.
        }
    }

    /// The run directory of its shim.
    pub(crate) fn run_dir(&self, exec_root: &Path) -> PathBuf {
        exec_root.join("containers").join(&self.id)
    }

    /// The log, unless it keeps none.
    pub(crate) fn log_path(&self, data_root: &Path) -> Option<PathBuf> {
        let id = &self.id;
        self.stored().keeps_log().then(|| data_root.join("containers").join(id).join(format!("{id}-json.log")))
    }
}

impl Live {
    pub(crate) fn exit(&self) -> Exit {
        Exit { code: self.state.exit_code, error: self.state.error.clone() }
    }
}

/// All containers, by ID.
#[derive(Debug, Default)]
pub(crate) struct Containers(Mutex<BTreeMap<String, Arc<Container>>>);

impl Containers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        self.lock().insert(container.id().to_owned(), Arc::clone(&container));
        container
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// All, newest first.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by(|one, other| {
            other.stored().created.cmp(&one.stored().created).then_with(|| one.id().cmp(other.id()))
        });
        all
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.lock().get(id).cloned()
    }

    /// Finds one by full ID, exact name with or without a slash, or unique prefix of an ID.
    ///
    /// # Errors
    /// `NoSuchContainer`, `AmbiguousPrefix`.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Container>, EngineError> {
        let missing = || EngineError::NoSuchContainer { name: name.to_owned() };
        let containers = self.lock();
        if let Some(container) = containers.get(name) {
            return Ok(Arc::clone(container));
        }
        let bare = name.strip_prefix('/').unwrap_or(name);
        if bare.is_empty() {
            return Err(missing());
        }
        if let Some(container) = containers.values().find(|container| container.live().name == bare) {
            return Ok(Arc::clone(container));
        }
        let mut matching = containers.range(name.to_owned()..).take_while(|(id, _)| id.starts_with(name));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(EngineError::AmbiguousPrefix { prefix: name.to_owned() }),
            (Some((_, only)), None) => Ok(Arc::clone(only)),
            (None, _) => Err(missing()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ContainerConfig, HostConfig};
    use super::*;

    fn container(id: &str, name: &str, desired: Desired) -> Container {
        let image = format!("sha256:{}", "0".repeat(64)).parse().map(baleen_oci::ImageId).unwrap();
        let (config, host) = (ContainerConfig::default(), HostConfig::default());
        let command = ["true".to_owned()];
        let stored =
            StoredContainer::new(id.to_owned(), image, &[], &command, "linux".to_owned(), config, host, Vec::new());
        Container::new(stored, name.to_owned(), desired)
    }

    #[test]
    fn a_container_is_found_by_id_then_name_then_prefix() {
        let containers = Containers::default();
        let (one, two) = (format!("ab{}", "1".repeat(62)), format!("ab{}", "2".repeat(62)));
        containers.insert(container(&one, "web", Desired::Created));
        // Its name is the beginning of the other's ID.
        containers.insert(container(&two, "ab1", Desired::Created));
        assert_eq!(containers.find(&one).unwrap().id(), one);
        assert_eq!(containers.find("/web").unwrap().id(), one);
        assert_eq!(containers.find("ab1").unwrap().id(), two);
        assert_eq!(containers.find("ab2").unwrap().id(), two);
        assert!(matches!(containers.find("ab"), Err(EngineError::AmbiguousPrefix { .. })));
        for name in ["", "/", "nobody", "b1"] {
            let error = containers.find(name).unwrap_err();
            assert_eq!(error.to_string(), format!("No such container: {name}"));
        }
    }

    #[tokio::test]
    async fn waiters_hear_of_what_they_wait_for_and_of_nothing_else() {
        let container = container(&"1".repeat(64), "web", Desired::Stopped);
        let now = container.wait(WaitCondition::NotRunning).unwrap().finished().await.unwrap();
        assert_eq!(now.code, 255);
        let next = container.wait(WaitCondition::NextExit).unwrap();
        let mut removed = container.wait(WaitCondition::Removed).unwrap();
        container.live().state.status = ContainerStatus::Restarting;
        let mut stopped = container.wait(WaitCondition::NotRunning).unwrap();
        container.live().state.exit_code = 3;
        container.wake(Wake::RunEnded);
        assert_eq!(next.finished().await.unwrap().code, 3);
        assert!(stopped.0.try_recv().is_err());
        container.wake(Wake::Stopped);
        assert_eq!(stopped.finished().await.unwrap().code, 3);
        assert!(removed.0.try_recv().is_err());
        container.wake(Wake::Removed);
        assert_eq!(removed.finished().await.unwrap().code, 3);
    }
}
