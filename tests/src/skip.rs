//! Saying that a test cannot run here.

use std::io::Write as _;

/// Whether this process may do what the whole-system tests do: mount, make devices, make control groups.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reports that `test` did not run. The line goes past the test harness, which would swallow it.
///
/// # Panics
/// With `CI=true`, where everything must run.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must run in CI: {reason}");
}

/// Returns from the test that is named, reported as skipped, unless it runs as root.
#[macro_export]
macro_rules! needs_root {
    ($test:literal) => {
        if !$crate::skip::is_root() {
            $crate::skip::skipped($test, "needs root");
            return Ok(());
        }
    };
}
