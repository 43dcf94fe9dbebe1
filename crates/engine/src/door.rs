//! The one door between async callers and blocking work on the store, the snapshotter and the runtime.
//!
//! D1  At most so many jobs run at once as the door has permits; more wait outside, in order.
//! D2  A job that has entered runs to its end, even if its caller has gone.
//! D3  A panic is the error of its own job.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{self, JoinError};

use crate::error::EngineError;

/// Lets blocking jobs in.
#[derive(Debug)]
pub(crate) struct Door {
    permits: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(jobs_max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(jobs_max.max(1))) }
    }

    /// Runs `job` on a worker thread. Dropping the future before the job has entered cancels it; afterwards nothing does.
    pub(crate) async fn enter<T, F>(&self, action: &'static str, job: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, EngineError> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| EngineError::ShuttingDown)?;
        let work = task::spawn_blocking(move || {
            let outcome = job();
            drop(permit);
            outcome
        });
        work.await.map_err(|error| ended(action, &error))?
    }
}

/// The error of a task that did not end by itself.
pub(crate) fn ended(action: &'static str, error: &JoinError) -> EngineError {
    if error.is_panic() { EngineError::Panicked { action } } else { EngineError::ShuttingDown }
}

/// Runs a verb to its end whether or not its caller stays: dropping the future leaves the task running.
pub(crate) async fn to_its_end<T, F>(action: &'static str, verb: F) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, EngineError>> + Send + 'static,
{
    tokio::spawn(verb).await.map_err(|error| ended(action, &error))?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_job_that_has_entered_runs_to_its_end_though_its_caller_has_gone() {
        let door = Door::new(1);
        let (entered, has_entered) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        let call = door.enter("test", move || {
            entered.send(()).unwrap();
            may_go_on.recv().unwrap();
            done.send(()).unwrap();
            Ok(())
        });
        // The timeout drops the call while its job is inside.
        assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err());
        has_entered.recv_timeout(Duration::from_secs(10)).unwrap();
        go_on.send(()).unwrap();
        is_done.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[tokio::test]
    async fn no_more_jobs_run_at_once_than_the_door_has_permits() {
        let door = Arc::new(Door::new(2));
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let (door, inside, most) = (Arc::clone(&door), Arc::clone(&inside), Arc::clone(&most));
                tokio::spawn(async move {
                    door.enter("test", move || {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    })
                    .await
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn a_panic_is_the_error_of_its_job_and_the_door_goes_on() {
        let door = Door::new(1);
        let failed = door.enter::<(), _>("test", || panic!("on purpose")).await;
        assert!(matches!(failed, Err(EngineError::Panicked { action: "test" })));
        assert_eq!(door.enter("test", || Ok(7)).await.unwrap(), 7);
    }
}
