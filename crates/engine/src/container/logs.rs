//! Logs: what a container has written, and what it writes while a client follows.
//!
//! G1  Reading never ends early for a damaged record: those are skipped (the runtime's reader counts them).
//! G2  Who follows gets every record up to the end of the run: the log is read once more after the end was seen.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use baleen_runtime::logs::{self, LogEntry, LogQuery, LogReader};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task;

use super::streams::{LogLine, LogStream, LogsRequest, OutputStream, WaitCondition};
use super::table::Container;
use super::view::ContainerStatus;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::time::Timestamp;

/// Records between the reader and the client.
const QUEUE_MAX: usize = 64;
/// How often a log is looked at while somebody follows it.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

impl Engine {
    /// Reads a container's log.
    ///
    /// # Errors
    /// `InvalidParameter` if neither stream is asked for; `NotImplemented` in Docker's words for the driver `none`.
    pub async fn container_logs(self: &Arc<Self>, name: &str, request: LogsRequest) -> Result<LogStream, EngineError> {
        if !request.stdout && !request.stderr {
            return Err(EngineError::invalid("Bad parameters: you must choose at least one stream"));
        }
        let container = self.containers.find(name)?;
        if matches!(container.live().state.status, ContainerStatus::Dead | ContainerStatus::Removing) {
            return Err(EngineError::conflict("can not get logs from container which is dead or marked for removal"));
        }
        let path = container.log_path(&self.config.data_root).ok_or(EngineError::LogsUnreadable)?;
        let (sender, lines) = mpsc::channel(QUEUE_MAX);
        let tty = container.stored().tty();
        let reader = Reader { container, path, request, lines: sender };
        drop(tokio::spawn(reader.run()));
        Ok(LogStream { tty, lines })
    }
}

struct Reader {
    container: Arc<Container>,
    path: PathBuf,
    request: LogsRequest,
    lines: mpsc::Sender<Result<LogLine, EngineError>>,
}

impl Reader {
    async fn run(self) {
        let lines = self.lines.clone();
        if let Err(source) = self.read().await {
            let error = EngineError::Io { action: "read", path: self.path, source };
            let _ = lines.send(Err(error)).await; // A client that has gone wants nothing.
        }
    }

    async fn read(&self) -> io::Result<()> {
        // Registered before the first look at the state: an end in between is not missed (G2).
        let end = if self.request.follow { self.container.wait(WaitCondition::NotRunning).ok() } else { None };
        let mut reader = self.past().await?;
        let Some(end) = end else { return Ok(()) };
        let mut end = std::pin::pin!(end.finished());
        loop {
            let has_ended = tokio::select! {
                biased;
                _ = &mut end => true,
                () = self.lines.closed() => return Ok(()),
                () = tokio::time::sleep(FOLLOW_INTERVAL) => false,
            };
            reader = self.more(reader).await?;
            let is_over = self.request.until.is_some_and(|until| until < Timestamp::now());
            if has_ended || is_over || self.lines.is_closed() {
                return Ok(());
            }
        }
    }

    /// Sends what is there and gives a reader that stands at the end; none if there is no log yet.
    async fn past(&self) -> io::Result<Option<LogReader>> {
        let (path, query, lines) = (self.path.clone(), self.query(), self.lines.clone());
        let max_files = self.container.stored().log_files_max();
        let read = move || match logs::read_logs(&path, max_files, &query, |entry| give(&lines, entry)) {
            Ok(reader) => Ok(Some(reader)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        blocking(read).await
    }

    /// Sends what has come since.
    async fn more(&self, reader: Option<LogReader>) -> io::Result<Option<LogReader>> {
        let Some(mut reader) = reader else { return self.past().await };
        let (query, lines) = (self.query(), self.lines.clone());
        blocking(move || {
            while let Some(entry) = reader.next_entry()? {
                if query.wants(&entry) {
                    give(&lines, entry)?;
                }
            }
            Ok(Some(reader))
        })
        .await
    }

    fn query(&self) -> LogQuery {
        let nanoseconds = |time: Timestamp| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
        LogQuery {
            tail: self.request.tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
            since_nanoseconds: self.request.since.map(nanoseconds),
            until_nanoseconds: self.request.until.map(nanoseconds),
            stdout: self.request.stdout,
            stderr: self.request.stderr,
        }
    }
}

/// Reading waits for the client, so it has a thread of its own and does not stand in the door.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    task::spawn_blocking(read).await.map_err(io::Error::other)?
}

fn give(lines: &mpsc::Sender<Result<LogLine, EngineError>>, entry: LogEntry) -> io::Result<()> {
    let stream = match entry.stream {
        logs::LogStream::Stdout => OutputStream::Stdout,
        logs::LogStream::Stderr => OutputStream::Stderr,
    };
    let time = Timestamp {
        seconds: entry.time_nanoseconds.div_euclid(1_000_000_000) as i64,
        nanoseconds: entry.time_nanoseconds.rem_euclid(1_000_000_000) as u32,
    };
    let line = LogLine { stream, time, bytes: Bytes::from(entry.text) };
    // The client has gone: the reader ends with it, and nobody hears of this error.
    lines.blocking_send(Ok(line)).map_err(|_| io::ErrorKind::BrokenPipe.into())
}
