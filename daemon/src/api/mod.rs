//! The API: from a request to the handler of its route, and from what the handler says to a reply.
//!
//! Q1  Every reply carries the API's headers; every refusal is JSON in one shape.
//! Q2  A path or method that the API does not have is 404 `page not found`. What it has and this engine does not is
//!     refused by name, with 501 while it is to come and the documented status where it is left out for good.
//! Q3  `_ping` needs no engine, no lock and no healthy store.

mod attach;
mod containers;
mod create;
mod error;
mod excluded;
mod exec;
mod filters;
mod images;
mod input;
mod networks;
mod query;
mod routes;
mod stats;
mod system;
mod version;
mod volumes;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, RwLock};

use baleen_engine::{Engine, EngineError, Registries};
use serde::Serialize;
use tokio::sync::watch;

use crate::http::{Body, Gone, Head, Method, Reply, Request, Service};
use crate::settings::{Config, Reloadable};
use error::{ApiError, body_error};
use input::{JSON_BYTES_MAX, Value};
use query::Query;
pub(crate) use version::Asked;
use version::{ApiVersion, FLOOR, MAX};

/// What `docker version` shows: it begins with the release of Docker whose API is served, since clients parse it so.
pub(crate) const SERVER_VERSION: &str = concat!("25.0.0+baleen-", env!("CARGO_PKG_VERSION"));

/// The API of one daemon.
pub(crate) struct Api {
    engine: Arc<Engine>,
    config: RwLock<Arc<Config>>,
    minimum: ApiVersion,
    headers: String,
    ending: watch::Sender<bool>,
}

/// What a handler is given.
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    pub(crate) asked: Asked,
    pub(crate) query: Query,
    pub(crate) head: Head,
    pub(crate) body: Body,
    pub(crate) gone: Gone,
}

/// What a handler answers.
pub(crate) type Answer = Result<Reply, ApiError>;

impl Api {
    /// An API on an engine.
    pub(crate) fn new(engine: Arc<Engine>, config: Config) -> Api {
        let wanted = std::env::var("DOCKER_MIN_API_VERSION").ok().and_then(|text| ApiVersion::parse(&text));
        let headers = format!(
            "Api-Version: {MAX}\r\nDocker-Experimental: false\r\nOstype: linux\r\nServer: Docker/{SERVER_VERSION} (linux)\r\n"
        );
        Api {
            engine,
            config: RwLock::new(Arc::new(config)),
            minimum: wanted.filter(|version| (FLOOR..=MAX).contains(version)).unwrap_or(FLOOR),
            headers,
            ending: watch::Sender::new(false),
        }
    }

    /// The settings in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Takes over what a reload may change, and tells of it. What the sockets and the engine were opened with stays.
    ///
    /// # Errors
    /// For a registry or a mirror that cannot be; nothing has changed then.
    pub(crate) fn reload(&self, config: Config) -> Result<(), EngineError> {
        let new = config.reloadable;
        self.engine.reload(&registries(&new))?;
        let attributes = reload_attributes(&new);
        {
            let mut current = self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            *current = Arc::new(Config { reloadable: new, ..Config::clone(&current) });
        }
        self.engine.refresh_network();
        self.engine.daemon_event("reload", &self.engine.id(), attributes);
        Ok(())
    }

    /// Ends streams that would go on for ever.
    pub(crate) fn end(&self) {
        self.ending.send_replace(true);
    }

    /// Returns once the daemon ends.
    pub(crate) async fn ending(&self) {
        let mut receiver = self.ending.subscribe();
        let _ = receiver.wait_for(|ending| *ending).await;
    }

    async fn answer(self: Arc<Self>, request: Request) -> Reply {
        match self.dispatch(request).await {
            Ok(reply) => reply,
            Err(error) => {
                if error.status == 500 {
                    tracing::error!(status = error.status, error = error.message, "a request failed");
                } else {
                    tracing::debug!(status = error.status, error = error.message, "a request was refused");
                }
                error.reply()
            }
        }
    }

    async fn dispatch(self: Arc<Self>, request: Request) -> Answer {
        let Request { head, body, gone, from_network } = request;
        if from_network && head.headers.contains("origin") {
            // A web page's request: without client certificates nothing tells it from a person's (threats A4).
            return Err(ApiError::new(403, "requests of web pages are not accepted"));
        }
        if head.method == Method::Options && head.target == "*" {
            return Ok(Reply::empty(200));
        }
        let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
        let path = query::decode(path, false).ok_or_else(|| ApiError::invalid("malformed path"))?;
        let (asked, path) = version::split(&path);
        let asked = match asked {
            None => Asked(None),
            Some(text) => match self.check_version(text)? {
                Ok(version) => Asked(Some(version)),
                Err(refusal) => return Ok(refusal),
            },
        };
        tracing::debug!(method = ?head.method, path, "request");
        let (path, query) = (path.to_owned(), Query::parse(query)?);
        let call = Call { api: self, asked, query, head, body, gone };
        routes::dispatch(&path, call).await
    }

    /// Gives the version, or the plain text refusal that old clients understand.
    fn check_version(&self, text: &str) -> Result<Result<ApiVersion, Reply>, ApiError> {
        let version = ApiVersion::parse(text).ok_or_else(ApiError::page_not_found)?;
        if version > MAX {
            return Err(ApiError::invalid(format!(
                "client version {version} is too new. Maximum supported API version is {MAX}"
            )));
        }
        if version >= self.minimum {
            return Ok(Ok(version));
        }
        let refusal = format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
            self.minimum
        );
        if version >= FLOOR {
            return Err(ApiError::invalid(refusal));
        }
        Ok(Err(Reply::whole(400, "text/plain; charset=utf-8", refusal)))
    }
}

impl Service for Api {
    fn call(self: Arc<Self>, request: Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> {
        Box::pin(self.answer(request))
    }

    fn ending(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(Api::ending(self))
    }

    fn headers(&self) -> &str {
        &self.headers
    }

    fn refusal(&self, status: u16, message: &str) -> Reply {
        ApiError::new(status, message).reply()
    }
}

impl Call {
    /// The engine.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.api.engine
    }

    /// Reads a JSON body; an empty one is no document.
    pub(crate) async fn json(&mut self) -> Result<Option<Value>, ApiError> {
        let bytes = self.body.all(JSON_BYTES_MAX).await.map_err(|error| body_error(&error))?;
        let content_type = self.head.headers.get("content-type").unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if bytes.is_empty() && essence.is_empty() {
            return Ok(None);
        }
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::invalid(format!(
                "unsupported Content-Type header ({content_type}): must be 'application/json'"
            )));
        }
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        input::parse(&bytes).map(Some)
    }
}

/// A JSON answer.
pub(crate) fn json(status: u16, value: &impl Serialize) -> Answer {
    let mut bytes =
        serde_json::to_vec(value).map_err(|error| ApiError::new(500, format!("cannot write JSON: {error}")))?;
    bytes.push(b'\n');
    Ok(Reply::whole(status, "application/json", bytes))
}

fn registries(settings: &Reloadable) -> Registries {
    Registries {
        insecure_registries: settings.insecure_registries.clone(),
        registry_mirrors: settings.registry_mirrors.clone(),
        concurrent_downloads_max: settings.max_concurrent_downloads,
        download_attempts_max: settings.max_download_attempts,
    }
}

/// What dockerd tells of a reload, as far as it can change here.
fn reload_attributes(settings: &Reloadable) -> BTreeMap<String, String> {
    let list = |texts: &[String]| serde_json::Value::from(texts).to_string();
    [
        ("debug", settings.debug.to_string()),
        ("insecure-registries", list(&settings.insecure_registries)),
        ("labels", list(&settings.labels)),
        ("live-restore", settings.live_restore.to_string()),
        ("max-concurrent-downloads", settings.max_concurrent_downloads.to_string()),
        ("max-download-attempts", settings.max_download_attempts.to_string()),
        ("name", baleen_engine::hostname()),
        ("registry-mirrors", list(&settings.registry_mirrors)),
        ("shutdown-timeout", settings.shutdown_timeout.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}
