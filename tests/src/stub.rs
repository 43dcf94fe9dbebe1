//! A registry that misbehaves on request: wrong bytes, cut connections, endless answers, slow networks. Plain HTTP on loopback.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::image::Image;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Header names in lower case with their values.
    pub headers: BTreeMap<String, String>,
}

/// What to answer in place of the registry's own answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// This status, these headers (a length is added) and this body.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A length of `declared` bytes, these bytes, and then the connection breaks.
    Cut {
        /// What `Content-Length` says.
        declared: u64,
        /// What is sent.
        sent: Vec<u8>,
    },
    /// Headers, then this byte again and again until the client leaves.
    Endless(&'static str, u8),
    /// The connection breaks before an answer.
    Break,
}

type Hook = Box<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

/// Manifests by name and reference, each with its media type.
type Manifests = BTreeMap<(String, String), (String, Vec<u8>)>;

#[derive(Default)]
struct State {
    manifests: Mutex<Manifests>,
    blobs: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    hook: Mutex<Option<Hook>>,
    log: Mutex<Vec<Request>>,
    blob_bytes: AtomicU64,
    rate: AtomicU64,
    held: Mutex<Held>,
    changed: Condvar,
    stop: AtomicBool,
}

/// Where a blob's answer waits, and how many are waiting.
#[derive(Default)]
struct Held {
    at: Option<(String, u64)>,
    waiting: usize,
}

/// The running stub. Dropping it ends it.
pub struct Stub {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Stub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stub").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Stub {
    /// Starts an empty one.
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts an empty one at this address of the loopback network; port 0 for any.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = state.clone();
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Acquire) {
                    break;
                }
                if let Ok(stream) = stream {
                    let shared = shared.clone();
                    std::thread::spawn(move || serve(&shared, &stream));
                }
            }
        });
        Ok(Self { address, state, acceptor: Some(acceptor) })
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The reference of `name` (with its tag) here.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Serves `image` as `name:tag` and by its digest.
    pub fn add(&self, name: &str, tag: &str, image: &Image) {
        self.add_manifest(name, tag, &image.manifest_type, &image.manifest);
        for (digest, bytes) in image.blobs() {
            self.add_blob(&digest, bytes);
        }
    }

    /// Serves these bytes as the manifest `reference` (a tag or a digest) of `name`, and by their own digest as registries do.
    pub fn add_manifest(&self, name: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let mut manifests = self.state.manifests.lock().expect("stub");
        for reference in [crate::image::digest(bytes), reference.to_owned()] {
            manifests.insert((name.to_owned(), reference), (media_type.to_owned(), bytes.to_vec()));
        }
    }

    /// Serves these bytes as the blob `digest`, whether they are or not.
    pub fn add_blob(&self, digest: &str, bytes: Vec<u8>) {
        self.state.blobs.lock().expect("stub").insert(digest.to_owned(), Arc::new(bytes));
    }

    /// Asks `hook` first for every request; where it gives nothing, the stub answers by itself.
    pub fn hook(&self, hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        *self.state.hook.lock().expect("stub") = Some(Box::new(hook));
    }

    /// Sends blobs no faster than this; 0 for as fast as it goes.
    pub fn limit_rate(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Lets answers with the blob `digest` wait once they have sent everything before `offset`.
    pub fn hold(&self, digest: &str, offset: u64) {
        self.state.held.lock().expect("stub").at = Some((digest.to_owned(), offset));
    }

    /// Waits until an answer has reached the place of [`Stub::hold`]; false if none has within `limit`.
    pub fn wait_held(&self, limit: Duration) -> bool {
        let held = self.state.held.lock().expect("stub");
        let (held, _) = self.state.changed.wait_timeout_while(held, limit, |held| held.waiting == 0).expect("stub");
        held.waiting > 0
    }

    /// Lets what waits go on, and nothing wait any more.
    pub fn release(&self) {
        self.state.held.lock().expect("stub").at = None;
        self.state.changed.notify_all();
    }

    /// Bytes of blobs sent so far.
    pub fn blob_bytes_sent(&self) -> u64 {
        self.state.blob_bytes.load(Ordering::Relaxed)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.log.lock().expect("stub").clone()
    }

    /// How many requests so far asked for this blob's content.
    pub fn fetches_of(&self, digest: &str) -> usize {
        self.requests().iter().filter(|request| request.method == "GET" && request.path.ends_with(digest)).count()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        self.release();
        TcpStream::connect(self.address).ok(); // Wakes the acceptor.
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

fn serve(state: &State, stream: &TcpStream) {
    stream.set_nodelay(true).ok();
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok();
    let Ok(clone) = stream.try_clone() else { return };
    let mut reader = BufReader::new(clone);
    while let Some(request) = read_request(&mut reader) {
        if state.stop.load(Ordering::Acquire) {
            return;
        }
        state.log.lock().expect("stub").push(request.clone());
        let reply = state.hook.lock().expect("stub").as_ref().and_then(|hook| hook(&request));
        let done = match reply {
            Some(reply) => send_reply(stream, &request, &reply),
            None => own_answer(state, stream, &request),
        };
        if done.is_err() {
            stream.shutdown(std::net::Shutdown::Both).ok();
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    // The registry's clients post forms to ask for tokens; their content does not matter here.
    let length: usize = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    std::io::Read::read_exact(reader, &mut vec![0; length.min(1 << 20)]).ok()?;
    Some(Request { method, path, headers })
}

fn head(stream: &mut &TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Stub\r\nDocker-Distribution-Api-Version: registry/2.0\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all((text + "\r\n").as_bytes())
}

fn broken() -> std::io::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionAborted)
}

fn send_reply(mut stream: &TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    match reply {
        Reply::Whole(status, headers, body) => {
            let mut headers = headers.clone();
            headers.push(("Content-Length", body.len().to_string()));
            head(&mut stream, *status, &headers)?;
            if request.method != "HEAD" {
                stream.write_all(body)?;
            }
            Ok(())
        }
        Reply::Cut { declared, sent } => {
            head(&mut stream, 200, &[("Content-Length", declared.to_string())])?;
            stream.write_all(sent)?;
            Err(broken())
        }
        Reply::Endless(media_type, byte) => {
            head(&mut stream, 200, &[("Content-Type", (*media_type).to_owned()), ("Connection", "close".to_owned())])?;
            let block = vec![*byte; 65_536];
            loop {
                stream.write_all(&block)?;
            }
        }
        Reply::Break => Err(broken()),
    }
}

fn own_answer(state: &State, mut stream: &TcpStream, request: &Request) -> std::io::Result<()> {
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/v2/" || path == "/v2" {
        return send_reply(stream, request, &Reply::Whole(200, vec![], b"{}".to_vec()));
    }
    if let Some((name, reference)) = path.trim_start_matches("/v2/").split_once("/manifests/") {
        let found = state.manifests.lock().expect("stub").get(&(name.to_owned(), reference.to_owned())).cloned();
        let reply = match found {
            Some((media_type, bytes)) => {
                let digest = crate::image::digest(&bytes);
                Reply::Whole(200, vec![("Content-Type", media_type), ("Docker-Content-Digest", digest)], bytes)
            }
            None => not_found("MANIFEST_UNKNOWN", "manifest unknown"),
        };
        return send_reply(stream, request, &reply);
    }
    let Some((_, digest)) = path.split_once("/blobs/") else {
        return send_reply(stream, request, &not_found("UNSUPPORTED", "no such route"));
    };
    let Some(blob) = state.blobs.lock().expect("stub").get(digest).cloned() else {
        return send_reply(stream, request, &not_found("BLOB_UNKNOWN", "blob unknown to registry"));
    };
    let total = blob.len() as u64;
    let range = request.headers.get("range").and_then(|text| parse_range(text, total));
    let (start, end) = range.unwrap_or((0, total));
    let mut headers = vec![
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("Content-Length", (end - start).to_string()),
    ];
    if range.is_some() {
        headers.push(("Content-Range", format!("bytes {start}-{}/{total}", end - 1)));
    }
    head(&mut stream, if range.is_some() { 206 } else { 200 }, &headers)?;
    if request.method == "HEAD" {
        return Ok(());
    }
    send_blob(state, stream, digest, &blob, start, end)
}

fn send_blob(
    state: &State,
    mut stream: &TcpStream,
    digest: &str,
    blob: &[u8],
    start: u64,
    end: u64,
) -> std::io::Result<()> {
    let mut at = start;
    while at < end {
        let mut stop = end.min(at + 32_768);
        if let Some(place) = hold_of(state, digest) {
            if at < place {
                stop = stop.min(place);
            } else if at == place {
                wait_at_hold(state, digest, stream)?;
            }
        }
        stream.write_all(&blob[at as usize..stop as usize])?;
        state.blob_bytes.fetch_add(stop - at, Ordering::Relaxed);
        // This is the slow network itself, not a wait for somebody.
        let pause = ((stop - at) * 1_000_000_000).checked_div(state.rate.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_nanos(pause.unwrap_or(0)));
        at = stop;
    }
    Ok(())
}

fn hold_of(state: &State, digest: &str) -> Option<u64> {
    state.held.lock().expect("stub").at.as_ref().filter(|(held, _)| held == digest).map(|(_, offset)| *offset)
}

fn wait_at_hold(state: &State, digest: &str, stream: &TcpStream) -> std::io::Result<()> {
    let mut held = state.held.lock().expect("stub");
    held.waiting += 1;
    state.changed.notify_all();
    let is_held = |held: &Held| held.at.as_ref().is_some_and(|(name, _)| name == digest);
    let mut gone = false;
    while is_held(&held) && !gone && !state.stop.load(Ordering::Acquire) {
        held = state.changed.wait_timeout(held, Duration::from_millis(50)).expect("stub").0;
        // A client that has left would never ask for the rest.
        stream.set_nonblocking(true).ok();
        gone = matches!(stream.peek(&mut [0]), Ok(0));
        stream.set_nonblocking(false).ok();
    }
    held.waiting -= 1;
    if gone { Err(broken()) } else { Ok(()) }
}

fn parse_range(text: &str, total: u64) -> Option<(u64, u64)> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = start.parse().ok()?;
    let end = if end.is_empty() { total } else { end.parse::<u64>().ok()? + 1 };
    (start < end && end <= total).then_some((start, end))
}

fn not_found(code: &str, message: &str) -> Reply {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
    Reply::Whole(404, vec![("Content-Type", "application/json".to_owned())], body.into_bytes())
}
