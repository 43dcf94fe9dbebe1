//! The daemon's own log: lines on standard error, at a level that a reload may change.
//!
//! L1  One subscriber for the process, installed once; only its level changes.
//! L2  Values from outside are escaped (fields are written in their debug form), so that no line can be forged.

use std::io;
use std::sync::OnceLock;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts to log at `level`, or changes the level of a log that has been started.
pub(crate) fn set_level(level: Level) {
    let level = LevelFilter::from_level(level);
    if let Some(handle) = LEVEL.get() {
        // An error would mean that the subscriber is gone; then there is nobody to tell.
        let _ = handle.modify(|current| *current = level);
        return;
    }
    let (filter, handle) = reload::Layer::new(level);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false).with_target(false);
    // Another subscriber may have been installed by a test; then its level stays.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
}
