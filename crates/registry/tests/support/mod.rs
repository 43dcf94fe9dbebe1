//! What the tests of this crate share: scratch directories, a runtime, a registry that misbehaves.

#![allow(dead_code)] // Each test binary uses some of it.

pub(crate) mod stub;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A directory that is removed with its content when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baleen-registry-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A clock on which every wait is over at once, and remembered.
#[derive(Debug, Default)]
pub(crate) struct Hurried(Mutex<Vec<Duration>>);

impl Hurried {
    pub(crate) fn waited(&self) -> Vec<Duration> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn total(&self) -> Duration {
        self.waited().iter().sum()
    }
}

impl baleen_registry::Clock for Hurried {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        self.0.lock().unwrap().push(duration);
        Box::pin(tokio::task::yield_now())
    }
}

/// Runs a test on a runtime like the daemon's: one thread.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, test).await.expect("the test ends within a minute")
    })
}

/// Says that a test cannot run here; in CI that is a failure.
pub(crate) fn skipped(test: &str, reason: &str) {
    assert!(std::env::var("CI").is_err(), "{test} cannot run: {reason}");
    eprintln!("SKIPPED: {test}: {reason}");
}
