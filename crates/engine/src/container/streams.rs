//! How a container is talked to while it runs: exits, output, logs, export. A front end adds its own framing.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::error::EngineError;
use crate::time::Timestamp;

/// What a wait waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// At once if it does not run.
    #[default]
    NotRunning,
    /// The next end of its program, whatever it does now.
    NextExit,
    /// Its removal.
    Removed,
}

impl WaitCondition {
    /// Reads the API's word; empty is the default.
    ///
    /// # Errors
    /// `InvalidParameter` for any other word.
    pub fn parse(word: &str) -> Result<Self, EngineError> {
        match word {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            _ => Err(EngineError::invalid(format!("invalid condition: \"{word}\""))),
        }
    }
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255.
    pub code: i32,
    /// Why it could not run, or empty.
    pub error: String,
}

/// A wait that is already registered: nothing that happens from now on is missed.
#[derive(Debug)]
pub struct ExitWait(pub(crate) oneshot::Receiver<Exit>);

impl ExitWait {
    /// Waits.
    ///
    /// # Errors
    /// `ShuttingDown` if the engine ends first.
    pub async fn finished(self) -> Result<Exit, EngineError> {
        self.0.await.map_err(|_| EngineError::ShuttingDown)
    }
}

/// Which of a program's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What `attach` is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Replay the log first.
    pub logs: bool,
    /// Go on with what comes.
    pub stream: bool,
    /// Give input.
    pub stdin: bool,
    /// Take standard output.
    pub stdout: bool,
    /// Take standard error.
    pub stderr: bool,
}

/// A client's hold on a container's streams. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    /// Whether the container has a terminal: output is then one raw stream.
    pub tty: bool,
    /// Where input goes; `None` if not asked for or if the container takes none.
    pub input: Option<AttachmentInput>,
    /// Where output comes from.
    pub output: AttachmentOutput,
}

/// The way into a container's standard input.
#[derive(Debug)]
pub struct AttachmentInput(pub(crate) mpsc::Sender<Bytes>);

impl AttachmentInput {
    /// Sends bytes; waits while the program does not read.
    ///
    /// # Errors
    /// `Conflict` if the container has ended.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), EngineError> {
        self.0.send(bytes).await.map_err(|_| EngineError::conflict("the container's standard input is closed"))
    }

    /// Tells that nothing more comes. The program sees the end only if the container's `StdinOnce` is set.
    pub fn close(self) {}
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame {
    /// Which stream; always standard output with a terminal.
    pub stream: OutputStream,
    /// At most 64 KiB.
    pub bytes: Bytes,
}

/// The way out of a container's streams.
#[derive(Debug)]
pub struct AttachmentOutput(pub(crate) mpsc::Receiver<OutputFrame>);

impl AttachmentOutput {
    /// The next piece; `None` once the program has ended and everything it wrote was given.
    pub async fn next(&mut self) -> Option<OutputFrame> {
        self.0.recv().await
    }
}

/// What `logs` is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogsRequest {
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last so many lines; `None` is all.
    pub tail: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Nothing newer.
    pub until: Option<Timestamp>,
}

/// A record of the log: a line with its newline, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Who wrote it.
    pub stream: OutputStream,
    /// When the shim read it.
    pub time: Timestamp,
    /// As written.
    pub bytes: Bytes,
}

/// A container's log, read as it grows if asked for.
#[derive(Debug)]
pub struct LogStream {
    /// Whether the container has a terminal: a front end then sends the bytes without frames.
    pub tty: bool,
    pub(crate) lines: mpsc::Receiver<Result<LogLine, EngineError>>,
}

impl LogStream {
    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// If the log cannot be read; nothing follows.
    pub async fn next(&mut self) -> Option<Result<LogLine, EngineError>> {
        self.lines.recv().await
    }
}

/// A tar of a container's file system, as it is made.
#[derive(Debug)]
pub struct ExportStream(pub(crate) mpsc::Receiver<Result<Bytes, EngineError>>);

impl ExportStream {
    /// The next piece, at most 64 KiB; `None` at the end.
    ///
    /// # Errors
    /// If a file cannot be read; nothing follows, and the archive is not whole.
    pub async fn next(&mut self) -> Option<Result<Bytes, EngineError>> {
        self.0.recv().await
    }
}
