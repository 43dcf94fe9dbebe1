//! A registry that misbehaves as it is told: bytes on a socket, without an HTTP library that would put them right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baleen_oci::{Descriptor, Digest, MediaType, Platform};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How many requests with this method and path came before.
    pub(crate) earlier: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of an open range.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As it should.
    Whole,
    /// The connection closes after so many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes of the body, and the connection stays open.
    StallAfter(usize),
    /// The body is repeated for ever.
    Endless,
}

/// What to answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) ending: Ending,
    /// Whether the length is announced; without it the body ends with the connection.
    pub(crate) has_length: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), ending: Ending::Whole, has_length: true }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn ending(mut self, ending: Ending) -> Reply {
        self.ending = ending;
        self
    }

    pub(crate) fn without_length(mut self) -> Reply {
        self.has_length = false;
        self
    }

    pub(crate) fn redirect(to: impl Into<String>) -> Reply {
        Reply::new(307, "").header("Location", to)
    }

    pub(crate) fn document(media_type: &str, body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(200, body).header("Content-Type", media_type)
    }

    pub(crate) fn error(status: u16, code: &str, message: &str) -> Reply {
        Reply::new(status, format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
            .header("Content-Type", "application/json")
    }

    /// The blob from the range's start on, as a good registry answers.
    pub(crate) fn blob(asked: &Asked, blob: &[u8]) -> Reply {
        match asked.range_start() {
            None => Reply::new(200, blob),
            Some(start) => Reply::new(206, &blob[start..])
                .header("Content-Range", format!("bytes {start}-{}/{}", blob.len() - 1, blob.len())),
        }
    }
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A server that answers as its handler says and remembers what it was asked. Ends when dropped.
pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// How many connections are open.
    open: Arc<()>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Stub {
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Stub {
        Stub::start_with(None, handler).await
    }

    pub(crate) async fn start_tls(
        settings: rustls::ServerConfig,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Stub {
        Stub::start_with(Some(Arc::new(settings).into()), handler).await
    }

    async fn start_with(
        tls: Option<tokio_rustls::TlsAcceptor>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let open = Arc::new(());
        let accepted = Arc::new(AtomicUsize::new(0));
        let handler: Arc<Handler> = Arc::new(handler);
        let task = tokio::spawn(accept(listener, tls, handler, asked.clone(), open.clone(), accepted.clone()));
        Stub { address, asked, open, accepted, task }
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn open_connections(&self) -> usize {
        // This one, and the accepting task's.
        Arc::strong_count(&self.open) - 2
    }

    /// How many connections there were, TLS or not.
    pub(crate) fn accepted_connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    handler: Arc<Handler>,
    asked: Arc<Mutex<Vec<Asked>>>,
    open: Arc<()>,
    accepted: Arc<AtomicUsize>,
) {
    // Dropped with this task, and the connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        accepted.fetch_add(1, Ordering::Relaxed);
        let (tls, handler, asked, open) = (tls.clone(), handler.clone(), asked.clone(), open.clone());
        connections.spawn(async move {
            let _open = open;
            match tls {
                None => answer_as_http(stream, &handler, &asked).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &handler, &asked).await,
                    Err(_) => None,
                },
            }
        });
    }
}

/// As Go's server does, tells a TLS client that this is no TLS.
async fn answer_as_http(mut stream: TcpStream, handler: &Arc<Handler>, asked: &Mutex<Vec<Asked>>) -> Option<()> {
    let mut first = [0; 1];
    stream.peek(&mut first).await.ok()?;
    if first[0] == 0x16 {
        return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nthis is plain HTTP").await.ok();
    }
    serve(stream, handler, asked).await
}

async fn serve<S>(mut stream: S, handler: &Arc<Handler>, all: &Mutex<Vec<Asked>>) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = Vec::new();
    loop {
        let mut asked = read_request(&mut stream, &mut buffer).await?;
        asked.earlier = {
            let mut all = all.lock().unwrap();
            let earlier = all.iter().filter(|one| (&one.method, &one.path) == (&asked.method, &asked.path)).count();
            all.push(Asked { earlier, ..asked.clone() });
            earlier
        };
        let reply = handler(&asked);
        write_reply(&mut stream, &reply).await?;
        if reply.ending != Ending::Whole || !reply.has_length {
            let _ = stream.shutdown().await;
            return None;
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<Asked> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..head_end).collect()).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(buffer.drain(..length).collect()).ok()?;
    Some(Asked { method, path, headers, body, earlier: 0 })
}

async fn write_reply<S: AsyncWrite + Unpin>(stream: &mut S, reply: &Reply) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Said\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let is_endless = reply.ending == Ending::Endless;
    match reply.has_length && !is_endless {
        true => head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len())),
        false => head.push_str("Connection: close\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).await.ok()?;
    match reply.ending {
        Ending::Whole => stream.write_all(&reply.body).await.ok()?,
        Ending::CutAfter(length) => stream.write_all(&reply.body[..length]).await.ok()?,
        Ending::StallAfter(length) => {
            stream.write_all(&reply.body[..length]).await.ok()?;
            stream.flush().await.ok()?;
            // Until the client or the test ends it.
            std::future::pending::<()>().await;
        }
        Ending::Endless => loop {
            stream.write_all(&reply.body).await.ok()?;
        },
    }
    stream.flush().await.ok()
}

/// Bytes that do not repeat, so that a piece in the wrong place is seen.
pub(crate) fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: MediaType::from_name(media_type),
        digest: Digest::sha256_of(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
        artifact_type: None,
    }
}

/// A small image for this machine.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: String,
    pub(crate) config: String,
    pub(crate) layer: Vec<u8>,
}

impl Image {
    pub(crate) fn new(seed: u64) -> Image {
        let layer = bytes(10_000, seed);
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Platform::host().architecture,
            Digest::sha256_of(&layer)
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            serde_json::to_string(&descriptor(CONFIG_TYPE, config.as_bytes())).unwrap(),
            serde_json::to_string(&descriptor(LAYER_TYPE, &layer)).unwrap(),
        );
        Image { manifest, config, layer }
    }

    /// Answers for the image as `repository:tag`, or `None` for anything else.
    pub(crate) fn reply(&self, asked: &Asked, repository: &str, tag: &str) -> Option<Reply> {
        let path = asked.path.strip_prefix(&format!("/v2/{repository}/"))?;
        let digest = |bytes: &[u8]| Digest::sha256_of(bytes).to_string();
        let (config, layer) = (digest(self.config.as_bytes()), digest(&self.layer));
        match path.split_once('/')? {
            ("manifests", name) if name == tag || name == digest(self.manifest.as_bytes()) => {
                Some(Reply::document(MANIFEST_TYPE, self.manifest.clone()))
            }
            ("blobs", name) if name == config => Some(Reply::blob(asked, self.config.as_bytes())),
            ("blobs", name) if name == layer => Some(Reply::blob(asked, &self.layer)),
            _ => None,
        }
    }
}

/// Settings with which a test ends soon.
pub(crate) fn quick_config() -> baleen_registry::ClientConfig {
    let mut config = baleen_registry::ClientConfig::default();
    config.timeouts.retry_first = Duration::from_millis(5);
    config.timeouts.idle = Duration::from_secs(5);
    config.timeouts.answer = Duration::from_secs(5);
    config.timeouts.connect = Duration::from_secs(5);
    config.timeouts.handshake = Duration::from_secs(5);
    config.certs_dirs.clear();
    config
}
