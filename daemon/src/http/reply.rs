//! Replies: a whole body, a stream of messages, or a connection that stops being HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::hijack::{HijackRun, Hijacked};

/// Messages that may wait for a slow client; then whoever makes them waits.
const STREAM_MESSAGES_MAX: usize = 16;

/// What a handler answers.
pub(crate) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) content: Content,
}

pub(super) enum Content {
    Whole(Bytes),
    Stream(ChunkSource),
    Hijack(HijackRun),
}

/// The sending end of a streamed reply: each message is one chunk, flushed at once. A stream that is dropped without
/// [`Chunks::end`] is broken off, so that what a panic or an error has cut never looks whole to the client.
pub(crate) struct Chunks {
    sender: mpsc::Sender<Bytes>,
    whole: Arc<AtomicBool>,
}

/// The client has gone.
#[derive(Debug)]
pub(crate) struct ClientGone;

impl Chunks {
    /// Sends one message; waits while the client does not read.
    pub(crate) async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), ClientGone> {
        self.sender.send(bytes.into()).await.map_err(|_| ClientGone)
    }

    /// Returns once the client has gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Ends the stream as it should end.
    pub(crate) fn end(self) {
        self.whole.store(true, Ordering::Release);
    }
}

/// The other end of [`Chunks`].
pub(crate) struct ChunkSource {
    receiver: mpsc::Receiver<Bytes>,
    whole: Arc<AtomicBool>,
}

impl ChunkSource {
    /// The next message; none at the end, however it came about.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// Whether the end that was reached is the right one.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}

/// Makes the two ends of a streamed reply.
pub(crate) fn chunks() -> (Chunks, ChunkSource) {
    let (sender, receiver) = mpsc::channel(STREAM_MESSAGES_MAX);
    let whole = Arc::new(AtomicBool::new(false));
    (Chunks { sender, whole: whole.clone() }, ChunkSource { receiver, whole })
}

impl Reply {
    /// A reply with its whole body.
    pub(crate) fn whole(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
        Reply { status, headers: vec![("Content-Type", content_type.to_owned())], content: Content::Whole(body.into()) }
    }

    /// A reply without a body (204, 304, or a 200 that has nothing to say).
    pub(crate) fn empty(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), content: Content::Whole(Bytes::new()) }
    }

    /// A 200 whose head is sent at once and whose body follows in chunks.
    pub(crate) fn stream(content_type: &'static str, chunks: ChunkSource) -> Reply {
        Reply {
            status: 200,
            headers: vec![("Content-Type", content_type.to_owned())],
            content: Content::Stream(chunks),
        }
    }

    /// The connection becomes a raw stream: 101 if the client asked to upgrade, else a 200 that ends with the connection.
    pub(crate) fn hijack<Run, Done>(content_type: &'static str, run: Run) -> Reply
    where
        Run: FnOnce(Hijacked) -> Done + Send + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        Reply {
            status: 101,
            headers: vec![("Content-Type", content_type.to_owned())],
            content: Content::Hijack(Box::new(move |hijacked| Box::pin(run(hijacked)))),
        }
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// The reason phrase of a status; clients do not read it, people do.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        101 => "UPGRADED",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Request Entity Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
