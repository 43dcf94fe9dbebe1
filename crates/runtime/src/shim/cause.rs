//! Recovers the cause of a failed creation: the runtime library sends only the outermost error between its processes, but reports
//! each step to `tracing`. This subscriber writes error events into an anonymous file that all those processes share.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const EVENT_BYTES_MAX: usize = 1024;
const ALL_BYTES_MAX: u64 = 16 << 10;

/// A shared, anonymous file of error events.
pub(super) struct Causes {
    file: File,
}

impl Causes {
    pub(super) fn new() -> io::Result<Self> {
        let file: OwnedFd = rustix::fs::memfd_create("baleen-causes", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into() })
    }

    /// Collects from here on, in this process and in those that it forks.
    pub(super) fn collect(&self) -> io::Result<()> {
        let file = self.file.try_clone()?;
        // A subscriber that is already set stays: then causes are told by it.
        let _ = tracing::subscriber::set_global_default(Collector { file });
        Ok(())
    }

    /// The deepest cause: the first event, and the first one that shows an error in full, since the others' words may lack the
    /// system's.
    pub(super) fn deepest(mut self) -> Option<String> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).ok()?;
        self.file.take(ALL_BYTES_MAX).read_to_string(&mut text).ok()?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next()?;
        let in_full = |line: &str| line.contains("(err: ");
        match lines.find(|line| in_full(line)).filter(|_| !in_full(first)) {
            Some(full) => Some(format!("{first}: {full}")),
            None => Some(first.to_owned()),
        }
    }
}

struct Collector {
    file: File,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let mut text = line.message;
        if !line.fields.is_empty() {
            text.push_str(" (");
            text.push_str(&line.fields);
            text.push(')');
        }
        let mut end = text.len().min(EVENT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let text = text.replace(['\n', '\r'], " ");
        // Losing a cause must not add a failure to the failure.
        let _ = (&self.file).write_all(format!("{text}\n").as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let separator = if self.fields.is_empty() { "" } else { ", " };
            let _ = write!(self.fields, "{separator}{}: {value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_event_is_the_cause_and_others_are_not_kept() {
        let causes = Causes::new().unwrap();
        let collector = Collector { file: causes.file.try_clone().unwrap() };
        tracing::subscriber::with_default(collector, || {
            tracing::warn!("not this");
            tracing::error!(path = "/x", "cannot open\nit");
            tracing::error!(err = 38, "failed to prepare");
            tracing::error!(err = 38, "failed to create");
        });
        assert_eq!(causes.deepest().unwrap(), "cannot open it (path: \"/x\"): failed to prepare (err: 38)");
    }
}
