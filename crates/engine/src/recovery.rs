//! What opening the store found after a power cut or a crash, for logs, `info` and an event.

use std::collections::BTreeMap;

use baleen_store::Opened;

use crate::engine::Engine;

/// Damage shown by `info`; the log has all.
const WARNINGS_MAX: usize = 8;

/// What an opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovery(Opened);

impl Recovery {
    /// Logs what was found; each piece of damage on a line of its own.
    pub(crate) fn of(opened: Opened) -> Self {
        for volume in &opened.foreign_volumes {
            tracing::warn!(
                volume,
                "no record names this volume; it is left alone, and a new volume of that name moves it to quarantine"
            );
        }
        for path in &opened.missing {
            tracing::error!(path, "a recorded object is not on the disk; run `baleen fsck`");
        }
        for damage in &opened.damage {
            tracing::error!(damage, "the store was damaged; run `baleen fsck --deep`");
        }
        let recovery = Self(opened);
        tracing::info!(found = recovery.summary(), "the store is open");
        recovery
    }

    /// One line for `info`.
    pub(crate) fn summary(&self) -> String {
        let opened = &self.0;
        if opened.created {
            return "the store was made".to_owned();
        }
        if opened.clean {
            return "after an orderly end".to_owned();
        }
        format!(
            "after a crash or power cut: {} rolled forward, {} to resume, {} discarded, {} missing, {} damaged",
            opened.rolled_forward.len(),
            opened.resumable.len(),
            opened.discarded.len(),
            opened.missing.len(),
            opened.damage.len()
        )
    }

    /// What a person must know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let missing = self
            .0
            .missing
            .iter()
            .map(|path| format!("WARNING: {path} is recorded and not on the disk; run `baleen fsck`"));
        let damage = self.0.damage.iter().map(|damage| format!("WARNING: the store was damaged: {damage}"));
        let all: Vec<String> = damage.chain(missing).collect();
        let more = all.len().saturating_sub(WARNINGS_MAX);
        let mut shown: Vec<String> = all.into_iter().take(WARNINGS_MAX).collect();
        if more > 0 {
            shown.push(format!("WARNING: {more} more findings are in the daemon's log"));
        }
        shown
    }
}

impl Engine {
    /// Tells of an opening after a crash or power cut (`daemon recovery`).
    pub(crate) fn tell_recovery(&self) {
        let opened = &self.recovery.0;
        if opened.clean || opened.created {
            return;
        }
        let attributes = [
            ("name", crate::info::hostname()),
            ("rolled-forward", opened.rolled_forward.len().to_string()),
            ("resumable", opened.resumable.len().to_string()),
            ("discarded", opened.discarded.len().to_string()),
            ("missing", opened.missing.len().to_string()),
            ("damaged", opened.damage.len().to_string()),
        ];
        let attributes: BTreeMap<String, String> =
            attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        self.daemon_event("recovery", &self.id(), attributes);
    }
}
