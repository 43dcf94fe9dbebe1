//! What is put on the disk and judged: the adapter that a program under test needs, and the words it speaks.
//!
//! K1  A mark is in the recording before [`Marks::begin`] or [`Marks::acknowledge`] returns, in order with the writes:
//!     after every write that was answered before the call, and before every flush that comes after it.
//! K2  A state is judged against every mark up to the end of its epoch: the latest moment at which that state could
//!     have been left, so the one with most promises.
//!
//! Touches nothing: the rig calls the adapter, on a thread with mounts of its own.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a workload lives: the same two paths in the recording and in every state, since engines store absolute paths.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Where the recorded file system, or a state of it, is mounted.
    pub disk: &'a Path,
    /// An empty folder in memory, for sockets and what else a reboot clears. It is new at each [`Workload::start`] and
    /// [`Workload::check`], as `/run` is after a reboot.
    pub run: &'a Path,
}

/// A program whose writes are recorded, and who judges what a power cut left of them.
///
/// All calls come from one thread that has a mount namespace of its own: start programs from that thread (or from
/// threads that it starts), so that they see the disk. The order of calls is, for a recording: `prepare`, then the disk
/// is unmounted and mounted again and the recording begins, `start`, `run`, then the power goes, `stop`. For a state:
/// `check`, `stop`. For a cut of the recovery: `start`, then the power goes, `stop`; then states of that.
pub trait Workload: Send {
    /// Names it in recordings and results, for instance `toy/rename-without-fsync` or `baleen/pull`.
    fn name(&self) -> String;

    /// Puts on the disk what must be there before the recording, and leaves no program running. Need not sync: the
    /// disk is unmounted after it.
    ///
    /// # Errors
    /// Any ends the recording.
    fn prepare(&mut self, _place: &Place<'_>) -> Result<(), WorkloadError> {
        Ok(())
    }

    /// Starts the program, and returns when it is ready: all of its recovery is done by then.
    ///
    /// # Errors
    /// Any ends the recording; where a state is judged, it is a breach (a program must start after a power cut).
    fn start(&mut self, _place: &Place<'_>) -> Result<(), WorkloadError> {
        Ok(())
    }

    /// Does the work, and marks what is begun and what has been acknowledged. When it returns, the power goes.
    ///
    /// # Errors
    /// Any ends the recording.
    fn run(&mut self, place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError>;

    /// Kills what `start`, `run` or `check` left running, with everything mounted below the disk, and waits until it
    /// is gone. Called on every path, also when nothing runs. Nothing that it writes is recorded.
    fn stop(&mut self) {}

    /// Judges a state, mounted at [`Place::disk`]: starts the program if it has one, and compares what is there with
    /// `history`. May write (the state is copy-on-write) and should: what was not acknowledged can be done again.
    ///
    /// # Errors
    /// Only where it could not judge (a tool missing, no memory): that ends the exploration. A program that does not
    /// start is [`Broken`].
    fn check(&mut self, place: &Place<'_>, history: &History) -> Result<Vec<Broken>, WorkloadError>;
}

/// Why a workload could not be run or a state not be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// A step failed.
    #[error("workload cannot {action}")]
    Failed {
        /// What it was about to do.
        action: String,
        /// Why it could not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl WorkloadError {
    /// A step that failed for `source`.
    pub fn failed(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> WorkloadError {
        WorkloadError::Failed { action: action.into(), source: source.into() }
    }
}

/// A promise that a state breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Which promise: `P1` and so on for baleen's (`docs/promises.md`), a short word for others.
    pub promise: String,
    /// What is wrong, with the name of the thing.
    pub what: String,
}

impl Broken {
    /// A breach of `promise`.
    pub fn new(promise: impl Into<String>, what: impl Into<String>) -> Broken {
        Broken { promise: promise.into(), what: what.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.promise, self.what)
    }
}

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkKind {
    /// From here on the step may be on the disk.
    Begun,
    /// From here on the step must be on the disk.
    Acknowledged,
    /// A word for the reader of the report; judges nothing.
    Note,
}

/// A moment of the workload, in order with the writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it says.
    pub kind: MarkKind,
    /// Of which step; the same text for the begin and the acknowledgement of a step. At most [`Mark::TEXT_MAX`] bytes.
    pub text: String,
}

impl Mark {
    /// Longest text of a mark, in bytes: longer ones are cut.
    pub const TEXT_MAX: usize = 4096;
}

/// Takes the marks of a running workload. Can be used from several threads.
#[derive(Clone)]
pub struct Marks {
    sink: Arc<dyn Fn(Mark) + Send + Sync>,
}

impl fmt::Debug for Marks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Marks")
    }
}

impl Marks {
    /// Marks that go to `sink`.
    pub fn to(sink: impl Fn(Mark) + Send + Sync + 'static) -> Marks {
        Marks { sink: Arc::new(sink) }
    }

    /// The step is about to begin: to be called before its first request (K1).
    pub fn begin(&self, step: impl Into<String>) {
        self.put(MarkKind::Begun, step.into());
    }

    /// The program has said that the step is done: to be called as soon as the answer is there (K1).
    pub fn acknowledge(&self, step: impl Into<String>) {
        self.put(MarkKind::Acknowledged, step.into());
    }

    /// A word for the reader of the report.
    pub fn note(&self, text: impl Into<String>) {
        self.put(MarkKind::Note, text.into());
    }

    fn put(&self, kind: MarkKind, mut text: String) {
        if text.len() > Mark::TEXT_MAX {
            let end = (0..=Mark::TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
        }
        (self.sink)(Mark { kind, text });
    }
}

/// What had happened when the power went (K2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// In order; of a chain of cuts, those before the earlier cuts too.
    pub marks: Vec<Mark>,
}

impl History {
    /// The steps that had been acknowledged, in order.
    pub fn acknowledged(&self) -> impl Iterator<Item = &str> {
        self.of(MarkKind::Acknowledged)
    }

    /// The steps that had begun, in order, acknowledged or not.
    pub fn begun(&self) -> impl Iterator<Item = &str> {
        self.of(MarkKind::Begun)
    }

    /// The steps that had begun and not been acknowledged: each may be there whole, or not at all.
    pub fn in_flight(&self) -> Vec<&str> {
        let mut open: Vec<&str> = Vec::new();
        for mark in &self.marks {
            match mark.kind {
                MarkKind::Begun => open.push(&mark.text),
                MarkKind::Acknowledged => {
                    if let Some(at) = open.iter().rposition(|step| *step == mark.text) {
                        open.remove(at);
                    }
                }
                MarkKind::Note => {}
            }
        }
        open
    }

    fn of(&self, kind: MarkKind) -> impl Iterator<Item = &str> {
        self.marks.iter().filter(move |mark| mark.kind == kind).map(|mark| mark.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_in_flight_from_its_begin_to_its_acknowledgement() {
        let mark = |kind, text: &str| Mark { kind, text: text.to_owned() };
        let history = History {
            marks: vec![
                mark(MarkKind::Begun, "a"),
                mark(MarkKind::Begun, "b"),
                mark(MarkKind::Note, "c"),
                mark(MarkKind::Acknowledged, "a"),
            ],
        };
        assert_eq!(history.in_flight(), ["b"]);
        assert_eq!(history.begun().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(history.acknowledged().collect::<Vec<_>>(), ["a"]);
    }
}
