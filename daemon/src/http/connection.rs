//! One connection: reads a request, has it handled, writes the reply, and again.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::body::{Body, Continue, Reader, Writer};
use super::gone::{Gone, GoneWatch};
use super::head::{self, BadHead, Head, Method};
use super::hijack::{HijackInput, HijackOutput, Hijacked, Input};
use super::reply::{Content, Reply, reason};
use super::stream::Stream;
use super::{Framing, Request};

/// From the first byte of a head to its last.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// A connection without a request is closed after this; clients keep idle ones in their pools.
const IDLE_TIME: Duration = Duration::from_secs(3600);
/// How long the end of a connection waits for the client's own.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// What a lingering connection may still send us.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Whoever answers requests.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers one request. The future runs to its end even if the client goes; handlers that should stop with their
    /// client watch [`Request::gone`], and streams see it by their closed channel.
    fn call(self: Arc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply> + Send>>;

    /// Returns once the server ends: connections without a request are closed then.
    fn ending(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Headers that every reply carries.
    fn headers(&self) -> &str;

    /// The reply to a request that could not be handled at all.
    fn refusal(&self, status: u16, message: &str) -> Reply;
}

/// What comes after a reply.
enum Next {
    Request(Reader),
    /// Wait for the client's end, so that it can read the reply before the connection breaks.
    Linger(Option<Reader>),
    Gone,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(stream: Stream, service: Arc<dyn Service>) {
    let (watch, gone) = GoneWatch::new(stream.as_fd());
    let from_network = stream.is_tcp();
    let (read, write) = tokio::io::split(stream);
    let writer: Writer = Arc::new(Mutex::new(write));
    let mut reader = Reader { io: read, buffer: BytesMut::new() };
    loop {
        // Reading sees by itself that a client has gone, and what it sent before that still counts.
        let head = tokio::select! {
            biased;
            head = read_head(&mut reader) => head,
            () = service.ending() => Ok(None),
        };
        let next = match head {
            Ok(Some(head)) => {
                let parts = Parts { writer: &writer, watch: &watch, gone: &gone, service: &service, from_network };
                handle(head, reader, parts).await
            }
            Ok(None) => Next::Gone,
            Err(bad) => {
                let reply = service.refusal(bad.status, bad.message);
                let sending =
                    Sending { writer: &writer, service: &*service, keep_alive: false, chunked: false, with_body: true };
                match sending.reply(reply, &watch).await {
                    Ok(()) => Next::Linger(Some(reader)),
                    Err(_) => Next::Gone,
                }
            }
        };
        match next {
            Next::Request(back) => reader = back,
            Next::Linger(rest) => return linger(&writer, rest, &watch).await,
            Next::Gone => {
                let _ = writer.lock().await.shutdown().await;
                return;
            }
        }
    }
}

/// Reads a head; none if the client ended the connection before one began, or was too slow.
async fn read_head(reader: &mut Reader) -> Result<Option<Head>, BadHead> {
    if reader.buffer.is_empty() && !matches!(timeout(IDLE_TIME, reader.fill()).await, Ok(Ok(1..))) {
        return Ok(None);
    }
    timeout(HEAD_TIME, async {
        loop {
            // An empty line before a request is tolerated, as others do.
            while reader.buffer.starts_with(b"\r\n") {
                reader.buffer.advance(2);
            }
            if let Some((head, length)) = head::parse(&reader.buffer)? {
                reader.buffer.advance(length);
                return Ok(Some(head));
            }
            if !matches!(reader.fill().await, Ok(1..)) {
                return Ok(None);
            }
        }
    })
    .await
    .unwrap_or(Err(BadHead { status: 408, message: "request headers took longer than 30 s" }))
}

/// What all requests of a connection share.
struct Parts<'a> {
    writer: &'a Writer,
    watch: &'a GoneWatch,
    gone: &'a Gone,
    service: &'a Arc<dyn Service>,
    from_network: bool,
}

async fn handle(head: Head, reader: Reader, parts: Parts<'_>) -> Next {
    let Parts { writer, watch, gone, service, from_network } = parts;
    let answered = Arc::new(AtomicBool::new(false));
    let expects = (head.expects_continue && head.framing != Framing::Empty)
        .then(|| Continue { writer: writer.clone(), answered: answered.clone() });
    let upgrade = head.wants_upgrade();
    let sending = Sending {
        writer,
        service: &**service,
        // HTTP/1.0 has no way to tell the end of a stream but the end of the connection.
        keep_alive: head.keep_alive && head.chunked_reply,
        chunked: head.chunked_reply,
        with_body: head.method != Method::Head,
    };
    let (body, rest) = Body::new(reader, head.framing, expects);
    let request = Request { head, body, gone: gone.clone(), from_network };
    // A task of its own: a verb that has begun goes on when the client has gone, and a panic stays inside (H5).
    let mut handler = tokio::spawn(service.clone().call(request));
    let reply = tokio::select! {
        reply = &mut handler => reply.unwrap_or_else(|error| {
            tracing::error!(error = %error, "a request's handler panicked");
            service.refusal(500, "internal error: the handler of this request panicked; see the daemon's log")
        }),
        () = watch.wait() => return Next::Gone,
    };
    answered.store(true, Ordering::Release);
    match reply.content {
        Content::Hijack(run) => {
            let Ok(rest) = rest.await else { return Next::Gone };
            let Some(input) = hijack_input(rest, upgrade).await else { return Next::Gone };
            let head = sending.hijack_head(&reply.headers, upgrade);
            if writer.lock().await.write_all(head.as_bytes()).await.is_err() {
                return Next::Gone;
            }
            let hijacked = Hijacked { input: HijackInput(input), output: HijackOutput(writer.clone()) };
            tokio::select! {
                () = run(hijacked) => Next::Linger(None),
                () = watch.wait() => Next::Gone,
            }
        }
        content => {
            let reply = Reply { content, ..reply };
            match sending.reply(reply, watch).await {
                Err(_) => Next::Gone,
                Ok(()) => {
                    let reader = tokio::select! {
                        rest = rest => match rest { Ok(rest) => rest.into_reader().await, Err(_) => None },
                        () = watch.wait() => return Next::Gone,
                    };
                    match reader {
                        Some(reader) if sending.keep_alive => Next::Request(reader),
                        rest => Next::Linger(rest),
                    }
                }
            }
        }
    }
}

/// Decides what a hijacked stream reads (H4).
async fn hijack_input(mut rest: Body, upgrade: bool) -> Option<Input> {
    if let Some(reader) = rest.take_raw() {
        return Some(Input::Raw(reader));
    }
    if upgrade {
        // The stream begins after the body.
        return rest.into_reader().await.map(Input::Raw);
    }
    Some(Input::Body(Box::new(rest)))
}

/// Ends a connection so that the client can read all that was sent: closing a socket with unread input would break it.
async fn linger(writer: &Writer, rest: Option<Reader>, watch: &GoneWatch) {
    let _ = writer.lock().await.shutdown().await;
    let Some(mut reader) = rest else { return };
    let drain = async {
        let mut left = LINGER_BYTES_MAX;
        while let Ok(Some(piece)) = reader.any().await {
            match left.checked_sub(piece.len()) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    tokio::select! {
        _ = timeout(LINGER_TIME, drain) => {}
        () = watch.wait() => {}
    }
}

/// How replies to one request are written.
struct Sending<'a> {
    writer: &'a Writer,
    service: &'a dyn Service,
    keep_alive: bool,
    /// Else a streamed body ends with the connection (HTTP/1.0).
    chunked: bool,
    with_body: bool,
}

impl Sending<'_> {
    async fn reply(&self, reply: Reply, watch: &GoneWatch) -> io::Result<()> {
        let mut head = self.head(reply.status, &reply.headers);
        match reply.content {
            Content::Whole(body) => {
                if reply.status != 204 && reply.status != 304 {
                    let _ = write!(head, "Content-Length: {}\r\n", body.len());
                }
                head.push_str("\r\n");
                let mut bytes = head.into_bytes();
                if self.with_body && reply.status != 204 && reply.status != 304 {
                    bytes.extend_from_slice(&body);
                }
                self.writer.lock().await.write_all(&bytes).await
            }
            Content::Stream(mut chunks) => {
                if self.chunked {
                    head.push_str("Transfer-Encoding: chunked\r\n");
                }
                head.push_str("\r\n");
                self.writer.lock().await.write_all(head.as_bytes()).await?;
                if !self.with_body {
                    return Ok(());
                }
                loop {
                    let chunk = tokio::select! {
                        chunk = chunks.next() => chunk,
                        () = watch.wait() => return Err(io::ErrorKind::BrokenPipe.into()),
                    };
                    let Some(chunk) = chunk else { break };
                    self.chunk(&chunk, watch).await?;
                }
                if !chunks.is_whole() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let end: &[u8] = if self.chunked { b"0\r\n\r\n" } else { b"" };
                self.writer.lock().await.write_all(end).await
            }
            Content::Hijack(_) => Ok(()),
        }
    }

    /// Writes one message, which reaches the client before the next one is made.
    async fn chunk(&self, chunk: &Bytes, watch: &GoneWatch) -> io::Result<()> {
        // A chunk of no bytes would be the end.
        if chunk.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(chunk.len() + 16);
        if self.chunked {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        }
        bytes.extend_from_slice(chunk);
        if self.chunked {
            bytes.extend_from_slice(b"\r\n");
        }
        let mut writer = self.writer.lock().await;
        tokio::select! {
            written = writer.write_all(&bytes) => written,
            () = watch.wait() => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn head(&self, status: u16, headers: &[(&'static str, String)]) -> String {
        let mut head = format!("HTTP/1.1 {status} {}\r\n{}", reason(status), self.service.headers());
        for (name, value) in headers {
            push_header(&mut head, name, value);
        }
        if !self.keep_alive {
            head.push_str("Connection: close\r\n");
        }
        head
    }

    fn hijack_head(&self, headers: &[(&'static str, String)], upgrade: bool) -> String {
        let mut head = if upgrade {
            "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n".to_owned()
        } else {
            "HTTP/1.1 200 OK\r\n".to_owned()
        };
        head.push_str(self.service.headers());
        for (name, value) in headers {
            push_header(&mut head, name, value);
        }
        head.push_str("\r\n");
        head
    }
}

/// Writes a header; a line end inside its value would start another one.
fn push_header(head: &mut String, name: &str, value: &str) {
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = write!(head, "{name}: {value}\r\n");
}
