//! One request and its answer, on a connection that is used again where it can be.
//!
//! X1  Kept connections belong to one pull and end with it; at most four a host and sixteen in all are kept.
//! X2  A body is read in pieces with a wait for each; one that is given up ends its connection at once.
//! X3  Plain HTTP goes only to hosts that the user, or their being this machine, made insecure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Method, StatusCode, Uri};
use tokio::time::timeout;

use crate::config::ClientConfig;
use crate::connect::{Connection, Dialer, Trust};
use crate::error::RegistryError;
use crate::proxy::Proxy;
use crate::url::{Origin, Scheme, Url};

/// The largest piece of a body that is handed out, in bytes.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// However fast its pieces come, a body that is read as a whole has so long.
const WHOLE_WAIT: Duration = Duration::from_secs(300);
/// A body that nobody wants has so long and may be so large before its connection is given up instead.
const DISCARD_WAIT: Duration = Duration::from_millis(200);
const DISCARD_BYTES_MAX: usize = 64 << 10;
/// A line that takes less than this is as good as broken.
const SENT_BYTES_PER_SECOND_MIN: u64 = 8 << 10;
const KEPT_PER_HOST_MAX: usize = 4;
const KEPT_MAX: usize = 16;
/// Servers close idle connections after a minute or less; one that is about to go costs a failed request.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// TLS settings are kept for so many hosts: a registry, its token server and its stores.
const SETTINGS_MAX: usize = 16;

/// The connections of one pull.
pub(crate) struct Transport {
    pub(crate) dialer: Arc<Dialer>,
    answer_wait: Duration,
    idle_wait: Duration,
    user_agent: HeaderValue,
    kept: Mutex<Vec<Kept>>,
    settings: Mutex<HashMap<(Origin, bool), Arc<rustls::ClientConfig>>>,
}

struct Kept {
    origin: Origin,
    trust: Trust,
    since: Instant,
    connection: Connection,
}

/// What to ask for.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

/// The head of an answer, and its body yet to be read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    pub(crate) url: Url,
}

/// A body that arrives.
pub(crate) struct Body {
    host: String,
    incoming: Incoming,
    /// Came already, beyond the largest piece that is handed out.
    rest: Bytes,
    idle_wait: Duration,
    /// Goes back to be kept once the body has ended.
    connection: Option<(Arc<Transport>, Kept)>,
}

impl Transport {
    pub(crate) fn new(dialer: Arc<Dialer>, config: &ClientConfig) -> Transport {
        Transport {
            dialer,
            answer_wait: config.timeouts.answer,
            idle_wait: config.timeouts.idle,
            // A name that cannot stand in a header is left out rather than refused: no server needs it.
            user_agent: HeaderValue::from_str(&config.user_agent).unwrap_or(HeaderValue::from_static("baleen")),
            kept: Mutex::default(),
            settings: Mutex::default(),
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(self: &Arc<Self>, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let origin = &request.url.origin;
        let trust = self.dialer.trust(origin).await;
        self.send_trusting(request, trust).await
    }

    /// As `send`, with a trust that was found out before.
    pub(crate) async fn send_trusting(
        self: &Arc<Self>,
        request: &Request<'_>,
        trust: Trust,
    ) -> Result<Answer, RegistryError> {
        let origin = &request.url.origin;
        while let Some(connection) = self.take_kept(origin, &trust) {
            match self.send_on(connection, request, &trust).await {
                // The server closed it while it was idle: that says nothing about the request.
                Err(RegistryError::Broken { .. }) => {}
                other => return other,
            }
        }
        let connection = self.connect(origin, &trust).await?;
        self.send_on(connection, request, &trust).await
    }

    /// Opens a connection and keeps it for the next request.
    pub(crate) async fn warm(self: &Arc<Self>, origin: &Origin, trust: &Trust) -> Result<(), RegistryError> {
        let connection = self.connect(origin, trust).await?;
        self.keep(Kept { origin: origin.clone(), trust: trust.clone(), since: Instant::now(), connection });
        Ok(())
    }

    async fn connect(&self, origin: &Origin, trust: &Trust) -> Result<Connection, RegistryError> {
        let verified = *trust == Trust::Verified;
        let settings = match origin.scheme {
            Scheme::Http if verified => {
                let what = "it is a plain HTTP address; list the host in insecure-registries if you trust it";
                return Err(RegistryError::Protocol { host: origin.authority(), what });
            }
            Scheme::Http => None,
            Scheme::Https => Some(self.settings(origin, verified)?),
        };
        self.dialer.dial(origin, trust, settings).await
    }

    fn settings(&self, origin: &Origin, verified: bool) -> Result<Arc<rustls::ClientConfig>, RegistryError> {
        let mut all = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (origin.clone(), verified);
        if let Some(settings) = all.get(&key) {
            return Ok(settings.clone());
        }
        let settings = Arc::new(self.dialer.tls.settings(origin, verified)?);
        if all.len() < SETTINGS_MAX {
            all.insert(key, settings.clone());
        }
        Ok(settings)
    }

    async fn send_on(
        self: &Arc<Self>,
        mut connection: Connection,
        request: &Request<'_>,
        trust: &Trust,
    ) -> Result<Answer, RegistryError> {
        let origin = &request.url.origin;
        let host = origin.authority();
        let broken = |source| RegistryError::Broken { host: host.clone(), source: Some(source) };
        let message = self.message(request, &host, connection.proxy.as_ref())?;
        let exchanged = async {
            connection.sender.ready().await.map_err(broken)?;
            connection.sender.send_request(message).await.map_err(|error| match error.is_parse() {
                true => RegistryError::Protocol { host: host.clone(), what: "its answer is not HTTP/1.1" },
                false => broken(error),
            })
        };
        // What is sent takes its time before there can be an answer.
        let wait = self.answer_wait + Duration::from_secs(request.body.len() as u64 / SENT_BYTES_PER_SECOND_MIN);
        let Ok(response) = timeout(wait, exchanged).await else {
            return Err(RegistryError::Timeout { host, what: "answer", seconds: wait.as_secs() });
        };
        let (head, incoming) = response?.into_parts();
        let (origin, trust) = (origin.clone(), trust.clone());
        let kept = Kept { origin, trust, since: Instant::now(), connection };
        let connection = Some((self.clone(), kept));
        let body = Body { host, incoming, rest: Bytes::new(), idle_wait: self.idle_wait, connection };
        Ok(Answer { status: head.status, headers: head.headers, body, url: request.url.clone() })
    }

    fn message(
        &self,
        request: &Request<'_>,
        host: &str,
        proxy: Option<&Proxy>,
    ) -> Result<hyper::Request<Full<Bytes>>, RegistryError> {
        let unusable = |what| RegistryError::Protocol { host: host.to_owned(), what };
        // A proxy needs to be told where to go (RFC 9112, section 3.2.2).
        let target = if proxy.is_some() { request.url.to_string() } else { request.url.path.clone() };
        let uri: Uri = target.parse().map_err(|_| unusable("an address that cannot be asked for"))?;
        let mut message = hyper::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = uri;
        let headers = message.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| unusable("a host that cannot be asked for"))?);
        headers.insert(USER_AGENT, self.user_agent.clone());
        if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization.clone()) {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        headers.extend(request.headers.iter().cloned());
        Ok(message)
    }

    fn take_kept(&self, origin: &Origin, trust: &Trust) -> Option<Connection> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| one.since.elapsed() < KEPT_FOR && !one.connection.sender.is_closed());
        let at = kept.iter().rposition(|one| one.origin == *origin && one.trust == *trust)?;
        Some(kept.swap_remove(at).connection)
    }

    fn keep(&self, connection: Kept) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let same = kept.iter().filter(|one| one.origin == connection.origin).count();
        if same < KEPT_PER_HOST_MAX && kept.len() < KEPT_MAX && !connection.connection.sender.is_closed() {
            kept.push(connection);
        }
    }
}

impl Answer {
    /// A header as text; `None` if it is missing or no text.
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Body {
    /// The next piece, at most 64 KiB; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.chunk_within(self.idle_wait).await
    }

    pub(crate) async fn chunk_within(&mut self, wait: Duration) -> Result<Option<Bytes>, RegistryError> {
        if !self.rest.is_empty() {
            return Ok(Some(self.piece()));
        }
        loop {
            let Ok(frame) = timeout(wait, self.incoming.frame()).await else {
                let (host, seconds) = (self.host.clone(), wait.as_secs());
                return Err(RegistryError::Timeout { host, what: "send any data", seconds });
            };
            match frame {
                None => {
                    if let Some((transport, mut kept)) = self.connection.take() {
                        kept.since = Instant::now();
                        transport.keep(kept);
                    }
                    return Ok(None);
                }
                Some(Err(source)) => {
                    return Err(RegistryError::Broken { host: self.host.clone(), source: Some(source) });
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.rest = data;
                        return Ok(Some(self.piece()));
                    }
                    // Trailers, or an empty piece.
                    _ => {}
                },
            }
        }
    }

    fn piece(&mut self) -> Bytes {
        self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX))
    }

    /// All of it, if it is no longer than `bytes_max` and comes within five minutes.
    pub(crate) async fn read(&mut self, what: &'static str, bytes_max: usize) -> Result<Vec<u8>, RegistryError> {
        let host = self.host.clone();
        let in_time = timeout(WHOLE_WAIT, self.read_whole(what, bytes_max)).await;
        let too_late = |_| RegistryError::Timeout { host, what: "finish its answer", seconds: WHOLE_WAIT.as_secs() };
        in_time.map_err(too_late)?
    }

    /// Reads away a body that nobody wants if it is short and here soon, so that its connection can be used again.
    pub(crate) async fn discard(mut self) {
        // Whatever goes wrong, the connection ends with the body, and another is opened.
        let _ = timeout(DISCARD_WAIT, self.read_whole("an answer without meaning", DISCARD_BYTES_MAX)).await;
    }

    async fn read_whole(&mut self, what: &'static str, bytes_max: usize) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > bytes_max {
                return Err(RegistryError::TooLarge { host: self.host.clone(), what, bytes_max: bytes_max as u64 });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
