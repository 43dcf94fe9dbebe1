//! What a long verb tells while it runs, in types; a front end renders them in the words that Docker's clients parse.

use std::sync::Arc;

use tokio::sync::mpsc;

/// One message of a pull or load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// `Pulling from library/x`, with the tag or digest as id.
    PullingFrom {
        /// Path of the repository: `library/x`.
        repository: String,
        /// The tag or digest asked for.
        id: String,
    },
    /// `The push refers to repository [localhost:5000/x]`.
    PushingTo {
        /// The full name of the repository.
        repository: String,
    },
    /// `tag: digest: sha256:… size: n`, and the same for programs: a tag is in the registry.
    Pushed {
        /// The tag.
        tag: String,
        /// Of the manifest.
        digest: String,
        /// The manifest's length.
        size_bytes: u64,
    },
    /// A layer reached a phase.
    Layer {
        /// First 12 hex digits of the layer's digest.
        id: Arc<str>,
        /// Which.
        phase: LayerPhase,
    },
    /// `Digest: sha256:…`, once the whole image is durable.
    Digest(String),
    /// `Status: …`, the last line of a pull.
    Status(String),
    /// A line without id: a warning, or what a load did (`Loaded image: x:tag`).
    Line(String),
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerPhase {
    /// `Pulling fs layer`.
    PullingFsLayer,
    /// `Waiting`: other layers come first.
    Waiting,
    /// `Downloading`: bytes received; they are unpacked as they arrive.
    Downloading {
        /// Compressed bytes so far.
        current_bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
    /// `Verifying Checksum`.
    VerifyingChecksum,
    /// `Download complete`.
    DownloadComplete,
    /// `Extracting`.
    Extracting {
        /// Compressed bytes unpacked so far.
        current_bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
    /// `Pull complete`: the layer's record is durable.
    PullComplete,
    /// `Already exists`: the store had it.
    AlreadyExists,
    /// `Preparing`: of a push.
    Preparing,
    /// `Pushing`: bytes that the registry has.
    Pushing {
        /// Compressed bytes so far.
        current_bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
    /// `Pushed`.
    Pushed,
    /// `Layer already exists`: the registry had it.
    LayerAlreadyExists,
    /// `Mounted from x`: another repository of the registry had it.
    MountedFrom(String),
    /// `Skipping common layer`: both images of a delta have it.
    SkippingCommonLayer,
    /// `Computing delta`.
    ComputingDelta {
        /// Bytes of the layer's tar that are done.
        current_bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
    /// `Delta complete`.
    DeltaComplete,
    /// `Retrying in N seconds`, and why.
    Retrying {
        /// Seconds left.
        seconds: u64,
        /// What went wrong, and so what is waited for.
        reason: Arc<str>,
    },
    /// Loading from an archive: `Loading layer`.
    Loading {
        /// Bytes read so far.
        current_bytes: u64,
        /// Of how many.
        total_bytes: u64,
    },
}

/// Where a verb sends its progress. Counts are dropped when the reader is slow; milestones wait for room.
#[derive(Debug, Clone)]
pub struct ProgressSender(mpsc::Sender<Progress>);

/// Makes a bounded channel for one verb; drop the receiver to lose interest (which alone does not cancel the verb: drop
/// its future for that).
pub fn progress_channel() -> (ProgressSender, mpsc::Receiver<Progress>) {
    // Enough for a burst of phases of 125 layers; a message is under 100 bytes.
    let (sender, receiver) = mpsc::channel(256);
    (ProgressSender(sender), receiver)
}

impl ProgressSender {
    /// Sends a milestone; waits for a slow reader, returns at once when there is none.
    pub async fn send(&self, progress: Progress) {
        // A reader that has gone wants no progress: that is no error of the verb.
        let _ = self.0.send(progress).await;
    }

    /// Sends a milestone from a thread that may wait.
    pub(crate) fn send_blocking(&self, progress: Progress) {
        let _ = self.0.blocking_send(progress);
    }

    /// Whether nobody listens any more.
    pub(crate) fn has_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends a count if there is room.
    pub fn offer(&self, progress: Progress) {
        let _ = self.0.try_send(progress);
    }
}
