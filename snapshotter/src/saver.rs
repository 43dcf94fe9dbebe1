//! The thread that makes an extraction's checkpoints durable, and the layers below visible: it is not confined, and sees
//! no byte of the layer but in a state.
//!
//! V1  One job at a time. Thread B goes on while a state is being saved, and waits before whatever a checkpoint forbids:
//!     what comes after a state was made is what a cut may leave in any part, so more of it changes nothing.
//! V2  Before something that a checkpoint speaks of is removed or replaced, no checkpoint stands ([`Saver::withdraw`]).
//! V3  Once the saver is dropped, nothing of its layer is saved any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use baleen_store::StoreError;

use crate::checkpoint::CheckpointSink;
use crate::error::ExtractError;

/// What both threads of an extraction know of its checkpoints.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// One is being made: no other is due.
    pub(crate) busy: AtomicBool,
    /// The last one had to be given up: a new one is due.
    pub(crate) lost: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Saver {
    jobs: Option<SyncSender<Job>>,
    results: Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Standing>,
    /// A result is to come.
    pending: bool,
    /// A checkpoint may be there.
    stands: bool,
}

#[derive(Debug)]
enum Job {
    Save { state: Vec<u8>, tree_bytes: u64 },
    Clear,
}

impl Saver {
    /// Starts the thread; `stands` tells whether there is a checkpoint already.
    pub(crate) fn start(sink: Box<dyn CheckpointSink>, stands: bool) -> Result<(Self, Arc<Standing>), ExtractError> {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (done, results) = sync_channel(1);
        let shared = Arc::new(Standing::default());
        let standing = Arc::clone(&shared);
        let body = move || {
            while let Ok(job) = todo.recv() {
                let result = match job {
                    Job::Save { state, tree_bytes } => sink.save(&state, tree_bytes),
                    Job::Clear => sink.clear(),
                };
                standing.busy.store(false, Ordering::Relaxed);
                if done.send(result).is_err() {
                    break;
                }
            }
        };
        let spawned = thread::Builder::new().name("layer-save".into()).spawn(body);
        let thread = spawned.map_err(|source| ExtractError::Io {
            action: "start a thread for",
            path: "the layer".into(),
            source,
        })?;
        let saver = Self {
            jobs: Some(jobs),
            results,
            thread: Some(thread),
            shared: Arc::clone(&shared),
            pending: false,
            stands,
        };
        Ok((saver, shared))
    }

    /// Has `state` made durable beside what follows (V1).
    pub(crate) fn save(&mut self, state: Vec<u8>, tree_bytes: u64) -> Result<(), ExtractError> {
        self.wait()?;
        self.send(Job::Save { state, tree_bytes })?;
        self.stands = true;
        self.shared.lost.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives up the state that was wanted: it cannot be made.
    pub(crate) fn skip(&self) {
        self.shared.busy.store(false, Ordering::Relaxed);
    }

    /// Returns once no checkpoint stands (V2).
    pub(crate) fn withdraw(&mut self) -> Result<(), ExtractError> {
        self.wait()?;
        if !self.stands {
            return Ok(());
        }
        self.send(Job::Clear)?;
        self.wait()?;
        self.stands = false;
        self.shared.lost.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the result of a state that is done, and waits for none.
    pub(crate) fn look(&mut self) -> Result<(), ExtractError> {
        if !self.pending {
            return Ok(());
        }
        match self.results.try_recv() {
            Ok(result) => self.done(result),
            Err(_) => Ok(()),
        }
    }

    /// Waits until the last state is durable.
    pub(crate) fn wait(&mut self) -> Result<(), ExtractError> {
        if !self.pending {
            return Ok(());
        }
        let result = self.results.recv().map_err(|_| ExtractError::Panicked)?;
        self.done(result)
    }

    fn done(&mut self, result: Result<(), StoreError>) -> Result<(), ExtractError> {
        self.pending = false;
        result.map_err(|source| ExtractError::Checkpoint { source: Box::new(source) })
    }

    fn send(&mut self, job: Job) -> Result<(), ExtractError> {
        let jobs = self.jobs.as_ref().ok_or(ExtractError::Panicked)?;
        jobs.send(job).map_err(|_| ExtractError::Panicked)?;
        self.pending = true;
        Ok(())
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of the sink is told by the job that met it.
        }
    }
}
