//! A registry's repository: its documents, and the way to its blobs.
//!
//! Q1  A document is at most 4 MiB. By digest its bytes are compared with it; by tag its digest is computed from the
//!     bytes, and what a header says about it is ignored.
//! Q2  A credential is shown to the registry's own origin only. Once a request was redirected elsewhere it is not shown
//!     again, not even to the registry.
//! Q3  Mirrors are asked first and anonymously. One that fails is passed over; the registry's own error is what counts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baleen_oci::limits::DOCUMENT_BYTES_MAX;
use baleen_oci::{
    Descriptor, Digest, Document, DocumentError, ImageConfig, Index, Manifest, MediaType, Platform, Reference,
    Repository,
};
use bytes::Bytes;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, LINK, RANGE,
};
use hyper::{Method, StatusCode};
use serde::Deserialize;

use crate::auth::{self, Authorizer, REDIRECTS_MAX, error_detail, redirect_target, too_many_redirects};
use crate::blob::{BlobEvent, BlobStream, VerifiedBlob};
use crate::config::ClientConfig;
use crate::connect::{Dialer, Trust};
use crate::credentials::Credentials;
use crate::error::{Missing, RegistryError};
use crate::exchange::{Answer, Request, Transport};
use crate::retry;
use crate::url::{Origin, Scheme, Url, percent_encode};

/// Where Docker's own registry is.
const DOCKER_IO_HOST: &str = "registry-1.docker.io";
/// How often a document is asked for when the network fails.
const DOCUMENT_ATTEMPTS_MAX: u32 = 3;
const DOCUMENT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Nothing is told of a wait for a document, so it is short, whatever the server tells.
const DOCUMENT_WAIT_MAX: Duration = Duration::from_secs(30);
/// An index may list an index; one that goes deeper is nobody's image.
const INDEX_DEPTH_MAX: usize = 4;
/// Tags of a pull of all tags, and the largest answer that lists some of them, in bytes.
const TAGS_MAX: usize = 1000;
const TAGS_BYTES_MAX: usize = 1 << 20;
/// Artifacts that refer to one manifest.
const REFERRERS_MAX: usize = 100;

/// A client for any number of registries. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    dialer: Arc<Dialer>,
}

/// One repository as one user sees it, for one pull: it keeps connections and tokens while it lives. Cheap to clone.
#[derive(Clone)]
pub struct RepositoryClient {
    shared: Arc<Shared>,
}

struct Shared {
    repository: Repository,
    credentials: Credentials,
    config: Arc<ClientConfig>,
    transport: Arc<Transport>,
    /// Mirrors first, the registry itself last.
    endpoints: Vec<Endpoint>,
    /// The endpoint that served the last document: its blobs are likely there too.
    preferred: AtomicUsize,
    /// Whether a byte of a layer has come: from then on a failing network is waited for (B3 of `blob`).
    has_delivered: AtomicBool,
    /// What a token is asked for.
    access: &'static str,
}

/// A server that may hold the repository.
pub(crate) struct Endpoint {
    /// Addresses of the same server, in the order to try them: `https`, then `http` where that is allowed.
    candidates: Vec<Origin>,
    /// Stands before `/v2/`; empty but for mirrors.
    path_prefix: String,
    is_mirror: bool,
    chosen: Mutex<Option<(Origin, Trust)>>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A document as it came, verified.
#[derive(Debug, Clone)]
pub struct FetchedDocument {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they are.
    pub document: Document,
}

impl FetchedDocument {
    /// The descriptor of these bytes.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.document.media_type().clone(),
            digest: self.digest,
            size: self.bytes.len() as u64,
            platform: None,
            annotations: Default::default(),
            artifact_type: None,
        }
    }
}

/// Everything of an image but its layers.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The digest that the tag stands for: of the index if there is one, else of the manifest. What Docker's clients show
    /// as `Digest:` and in `RepoDigests`.
    pub digest: Digest,
    /// The indexes that led to the manifest, outermost first; none if the tag names a manifest.
    pub indexes: Vec<FetchedDocument>,
    /// The manifest's bytes and digest.
    pub manifest_document: FetchedDocument,
    /// The manifest: an image, by its media types.
    pub manifest: Manifest,
    /// The configuration, with as many diff IDs as the manifest has layers.
    pub config: ImageConfig,
}

impl Client {
    /// A client by these settings. Does nothing yet.
    pub fn new(config: ClientConfig) -> Client {
        Client { dialer: Arc::new(Dialer::new(&config)), config: Arc::new(config) }
    }

    /// The settings.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// One repository as one user sees it. Does nothing yet.
    pub fn repository(&self, repository: &Repository, credentials: Credentials) -> RepositoryClient {
        self.repository_with(repository, credentials, "pull")
    }

    /// The same for somebody who may want to push to it.
    pub fn repository_to_push(&self, repository: &Repository, credentials: Credentials) -> RepositoryClient {
        self.repository_with(repository, credentials, "pull,push")
    }

    pub(crate) fn repository_with(
        &self,
        repository: &Repository,
        credentials: Credentials,
        access: &'static str,
    ) -> RepositoryClient {
        let mirrors = self.config.mirrors.iter().filter(|_| repository.is_docker_io());
        let mut endpoints: Vec<Endpoint> = mirrors.map(|mirror| Endpoint::of_mirror(&mirror.url)).collect();
        endpoints.push(Endpoint::of_registry(repository));
        let shared = Shared {
            repository: repository.clone(),
            credentials,
            config: self.config.clone(),
            transport: Arc::new(Transport::new(self.dialer.clone(), &self.config)),
            endpoints,
            preferred: AtomicUsize::new(0),
            has_delivered: AtomicBool::new(false),
            access,
        };
        RepositoryClient { shared: Arc::new(shared) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for RepositoryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RepositoryClient").field(&self.shared.repository).finish()
    }
}

impl Endpoint {
    fn of_registry(repository: &Repository) -> Endpoint {
        let domain = if repository.is_docker_io() { DOCKER_IO_HOST } else { repository.domain() };
        let origins = [Scheme::Https, Scheme::Http].map(|scheme| Origin::of_domain(scheme, domain));
        Endpoint::new(origins.into_iter().flatten().collect(), String::new(), false)
    }

    fn of_mirror(url: &Url) -> Endpoint {
        Endpoint::new(vec![url.origin.clone()], url.path.clone(), true)
    }

    fn new(candidates: Vec<Origin>, path_prefix: String, is_mirror: bool) -> Endpoint {
        Endpoint { candidates, path_prefix, is_mirror, chosen: Mutex::default(), authorization: Mutex::default() }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_authorization(&self, value: HeaderValue) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// The address to use and how far to trust it; found out once.
    async fn origin(&self, transport: &Arc<Transport>) -> Result<(Origin, Trust), RegistryError> {
        let known = self.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = self.find_origin(transport).await?;
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
        Ok(found)
    }

    async fn find_origin(&self, transport: &Arc<Transport>) -> Result<(Origin, Trust), RegistryError> {
        let mut first_error = None;
        for origin in &self.candidates {
            let trust = transport.dialer.trust(origin).await;
            if origin.scheme == Scheme::Http && trust == Trust::Verified {
                continue;
            }
            if trust == Trust::Verified || self.candidates.len() == 1 {
                return Ok((origin.clone(), trust));
            }
            // As Docker does for insecure registries: TLS if the server speaks it, else plain HTTP.
            match transport.warm(origin, &trust).await {
                Ok(()) => return Ok((origin.clone(), trust)),
                Err(error @ RegistryError::Resolve { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(registry = %origin, error = %error, "an insecure registry does not answer this way");
                    // A refused connection says more than "does not speak TLS" about a registry that is not there.
                    let replace = matches!(first_error, None | Some(RegistryError::Tls { .. }));
                    if replace {
                        first_error = Some(error);
                    }
                }
            }
        }
        let no_address = || RegistryError::Protocol { host: String::new(), what: "its name is not that of a host" };
        Err(first_error.unwrap_or_else(no_address))
    }
}

/// What a request is about, for the error if it fails.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    Manifest(&'a str),
    Blob,
    Tags,
    /// Something that is sent to it.
    Push,
    /// The referrers of a manifest.
    Referrers,
    /// The registry as such.
    Registry,
}

impl RepositoryClient {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.shared.repository
    }

    /// The document that a reference of this repository stands for: by its digest if it has one, else by its tag.
    ///
    /// # Errors
    /// `NotFound`, `Unauthorized`; `DigestMismatch` if the bytes are others; `Document` if they are refused;
    /// `TooLarge` beyond 4 MiB; or what keeps the registry from being reached.
    pub async fn document(&self, reference: &Reference) -> Result<FetchedDocument, RegistryError> {
        assert!(reference.repository() == &self.shared.repository, "a reference of another repository");
        let name = reference.familiar();
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => self.fetch_document(&digest.to_string(), &name, Some(digest), None).await,
            (None, tag) => self.fetch_document(tag.unwrap_or("latest"), &name, None, None).await,
        }
    }

    /// The document that a descriptor points to, verified by its digest, size and media type.
    pub async fn document_of(&self, descriptor: &Descriptor) -> Result<FetchedDocument, RegistryError> {
        let name = self.shared.repository.with_digest(descriptor.digest).familiar();
        let (digest, media_type) = (&descriptor.digest, &descriptor.media_type);
        let fetched = self.fetch_document(&digest.to_string(), &name, Some(digest), Some(media_type)).await?;
        match fetched.bytes.len() as u64 {
            found if found == descriptor.size => Ok(fetched),
            found => Err(RegistryError::SizeMismatch { digest: *digest, expected: descriptor.size, found }),
        }
    }

    /// Everything of an image but its layers: the document of `reference`, the manifest for `platform` if that is an
    /// index, and the configuration.
    ///
    /// # Errors
    /// As [`RepositoryClient::document`]; `Document` also if there is nothing for the platform or it is no image;
    /// `LayerCount` if manifest and configuration do not fit together.
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<ResolvedImage, RegistryError> {
        let name = reference.familiar();
        let refused = |what, source| RegistryError::Document { what, name: name.clone(), source };
        let mut fetched = self.document(reference).await?;
        let digest = fetched.digest;
        let mut indexes = Vec::new();
        let manifest = loop {
            match &fetched.document {
                Document::Manifest(manifest) => break manifest.clone(),
                Document::Index(_) if indexes.len() == INDEX_DEPTH_MAX => {
                    return Err(refused("index", DocumentError::Limit { what: "indexes nested more than four deep" }));
                }
                Document::Index(index) => {
                    let chosen = index.choose(platform).map_err(|source| refused("index", source))?;
                    let next = self.document_of(chosen).await?;
                    indexes.push(std::mem::replace(&mut fetched, next));
                }
            }
        };
        manifest.require_image().map_err(|source| refused("manifest", source))?;
        let config = self.config(&manifest.config).await?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids().len());
        if layers != diff_ids {
            return Err(RegistryError::LayerCount { name, layers, diff_ids });
        }
        Ok(ResolvedImage { digest, indexes, manifest_document: fetched, manifest, config })
    }

    /// An image's configuration, verified by digest and size.
    pub async fn config(&self, descriptor: &Descriptor) -> Result<ImageConfig, RegistryError> {
        let bytes = self.bytes(descriptor, DOCUMENT_BYTES_MAX).await?;
        let refused = |source| {
            let name = self.shared.repository.familiar();
            RegistryError::Document { what: "image configuration", name, source }
        };
        ImageConfig::parse(bytes).map_err(refused)
    }

    /// A whole blob of at most `bytes_max` bytes, verified by digest and size.
    pub async fn bytes(&self, descriptor: &Descriptor, bytes_max: usize) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > bytes_max as u64 {
            let host = self.shared.repository.domain().to_owned();
            return Err(RegistryError::TooLarge { host, what: "a blob", bytes_max: bytes_max as u64 });
        }
        let mut bytes = Vec::new();
        let mut blob = VerifiedBlob::new(self.blob(descriptor, 0, |_| {}).impatient());
        while let Some(chunk) = blob.next_chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// A blob from `start_offset` on. Does nothing until it is asked for its first chunk.
    ///
    /// `on_event` hears of waits before further attempts. It must not block.
    ///
    /// # Panics
    /// If `start_offset` lies beyond the blob's end.
    pub fn blob(
        &self,
        descriptor: &Descriptor,
        start_offset: u64,
        on_event: impl FnMut(BlobEvent) + Send + 'static,
    ) -> BlobStream {
        BlobStream::new(self.clone(), descriptor.digest, descriptor.size, start_offset, Box::new(on_event))
    }

    /// The tags of the repository; at most 1000.
    pub async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        let endpoint = self.registry();
        let mut path = "tags/list".to_owned();
        let mut all = Vec::new();
        loop {
            let mut answer = self.get(endpoint, &path, Subject::Tags, &[]).await?;
            let next = answer.header(LINK).and_then(|link| self.next_page(link));
            let host = answer.url.origin.authority();
            let body = answer.body.read("the list of tags", TAGS_BYTES_MAX).await?;
            let not_understood = |_| RegistryError::Protocol { host: host.clone(), what: "its list of tags" };
            let page: Tags = serde_json::from_slice(&body).map_err(not_understood)?;
            all.extend(page.tags.unwrap_or_default());
            if all.len() > TAGS_MAX {
                return Err(RegistryError::Protocol { host, what: "it has more than 1000 tags; pull them by name" });
            }
            match next {
                // Each page must bring something, or the list would never end.
                Some(next) if next != path => path = next,
                _ => return Ok(all),
            }
        }
    }

    /// The path of the next page by a `Link` header, as long as it is one of this repository's list.
    fn next_page(&self, link: &str) -> Option<String> {
        let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
        let prefix = format!("/v2/{}/", self.shared.repository.path());
        let at = target.find(&prefix)?;
        let is_next = rest.contains("rel=\"next\"") || rest.contains("rel=next");
        let path = &target[at + prefix.len()..];
        (is_next && path.starts_with("tags/list?")).then(|| path.to_owned())
    }

    async fn fetch_document(
        &self,
        tag_or_digest: &str,
        name: &str,
        expected: Option<&Digest>,
        media_type: Option<&MediaType>,
    ) -> Result<FetchedDocument, RegistryError> {
        let mut attempt = 1;
        loop {
            match self.fetch_document_once(tag_or_digest, name, expected, media_type).await {
                Err(error) if error.is_transient() && attempt < DOCUMENT_ATTEMPTS_MAX => {
                    tracing::debug!(reference = name, error = %error, "asks for a document again");
                    let told = error.retry_after().unwrap_or(Duration::ZERO).min(DOCUMENT_WAIT_MAX);
                    self.settings().clock.sleep(told.max(DOCUMENT_RETRY_DELAY * attempt)).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// Asks the mirrors, then the registry (Q3).
    async fn fetch_document_once(
        &self,
        tag_or_digest: &str,
        name: &str,
        expected: Option<&Digest>,
        media_type: Option<&MediaType>,
    ) -> Result<FetchedDocument, RegistryError> {
        let path = format!("manifests/{tag_or_digest}");
        let accepted = MediaType::acceptable_documents().join(", ");
        let accepted = HeaderValue::from_str(&accepted).expect("media types are plain text");
        for (number, endpoint) in self.shared.endpoints.iter().enumerate() {
            let fetched = async {
                let headers = [(ACCEPT, accepted.clone())];
                let answer = self.get(endpoint, &path, Subject::Manifest(name), &headers).await?;
                read_document(answer, name, expected, media_type).await
            };
            match fetched.await {
                Ok(document) => {
                    self.shared.preferred.store(number, Ordering::Relaxed);
                    return Ok(document);
                }
                Err(error) if endpoint.is_mirror => {
                    tracing::warn!(reference = name, error = %error, "a mirror does not serve it");
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the registry itself is the last endpoint")
    }

    /// Opens a blob, or its bytes from a first to a last one, at the endpoint that is `turn` places after the one that
    /// served the documents.
    pub(crate) async fn open_blob(
        &self,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
        turn: usize,
    ) -> Result<Answer, RegistryError> {
        let path = format!("blobs/{digest}");
        let mut headers = Vec::new();
        if let Some((first, last)) = range {
            // No `If-Range`: a blob's bytes are named by its digest and cannot change, whatever an entity tag says; a
            // store that tags them differently on each of its servers would only make us start again.
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            let range = HeaderValue::from_str(&format!("bytes={first}-{last}")).expect("digits are plain text");
            headers.push((RANGE, range));
        }
        let first = self.shared.preferred.load(Ordering::Relaxed);
        let number = (first + turn).min(self.shared.endpoints.len() - 1);
        self.get(&self.shared.endpoints[number], &path, Subject::Blob, &headers).await
    }

    /// How many endpoints a blob may be asked from.
    pub(crate) fn blob_turns(&self) -> usize {
        self.shared.endpoints.len() - self.shared.preferred.load(Ordering::Relaxed)
    }

    pub(crate) fn has_delivered(&self) -> bool {
        self.shared.has_delivered.load(Ordering::Relaxed)
    }

    pub(crate) fn set_has_delivered(&self) {
        self.shared.has_delivered.store(true, Ordering::Relaxed);
    }

    pub(crate) fn settings(&self) -> &ClientConfig {
        &self.shared.config
    }

    /// What refers to a manifest, of one type of artifact: at most 100. `None` if the registry has no such
    /// interface (OCI distribution-spec, Listing Referrers), whatever it answers instead.
    ///
    /// # Errors
    /// What keeps the registry from being asked.
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let path = format!("referrers/{digest}?artifactType={}", percent_encode(artifact_type));
        let headers = [(ACCEPT, HeaderValue::from_static("application/vnd.oci.image.index.v1+json"))];
        let mut answer = match self.get(self.registry(), &path, Subject::Referrers, &headers).await {
            Ok(answer) => answer,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tracing::debug!(digest = %digest, error = %error, "a registry does not list referrers");
                return Ok(None);
            }
        };
        let bytes = answer.body.read("the list of referrers", DOCUMENT_BYTES_MAX).await?;
        // Some answer an unknown path with a page for people, and status 200.
        let Ok(index) = Index::parse(&bytes, answer.header(CONTENT_TYPE)) else { return Ok(None) };
        let wanted = index.manifests.into_iter().filter(|found| found.artifact_type.as_deref() == Some(artifact_type));
        Ok(Some(wanted.take(REFERRERS_MAX).collect()))
    }

    /// Sends a GET for something of the repository, answers the challenge, follows redirects; returns a success.
    async fn get(
        &self,
        endpoint: &Endpoint,
        path: &str,
        subject: Subject<'_>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Answer, RegistryError> {
        let url = self.url(endpoint, path).await?;
        let answer = self.send(endpoint, Method::GET, url, subject, headers, Bytes::new()).await?;
        let coding = answer.header(CONTENT_ENCODING).unwrap_or("identity");
        if !coding.eq_ignore_ascii_case("identity") {
            let host = answer.url.origin.authority();
            return Err(RegistryError::Protocol { host, what: "it compresses what must come as it is" });
        }
        Ok(answer)
    }

    /// The registry itself: what is pushed goes there, never to a mirror.
    pub(crate) fn registry(&self) -> &Endpoint {
        self.shared.endpoints.last().expect("the registry itself is always there")
    }

    pub(crate) fn transport(&self) -> &Arc<Transport> {
        &self.shared.transport
    }

    /// The address of something of the repository.
    pub(crate) async fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, RegistryError> {
        let (origin, _) = endpoint.origin(&self.shared.transport).await?;
        let path = format!("{}/v2/{}/{path}", endpoint.path_prefix, self.shared.repository.path());
        Ok(Url { origin, path })
    }

    /// Sends a request, answers the challenge, follows redirects; returns a success. A request that changes something is
    /// sent elsewhere only by a redirect that keeps its method.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        method: Method,
        start: Url,
        subject: Subject<'_>,
        headers: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, RegistryError> {
        let transport = &self.shared.transport;
        let (registry, trust) = endpoint.origin(transport).await?;
        let is_read = method == Method::GET || method == Method::HEAD;
        // An upload may have been given an address elsewhere (Q2).
        let is_elsewhere = start.origin != registry;
        let (mut url, mut redirects, mut was_challenged, mut left_registry) = (start.clone(), 0, false, is_elsewhere);
        loop {
            let authorization = if left_registry { None } else { endpoint.authorization() };
            let mut all = headers.to_vec();
            if is_read {
                // Compressed transfer would change the bytes that offsets and digests speak of.
                all.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
            }
            all.extend(authorization.map(|value| (AUTHORIZATION, value)));
            let request = Request { method: method.clone(), url: &url, headers: all, body: body.clone() };
            let answer = match url.origin == registry {
                true => transport.send_trusting(&request, trust.clone()).await?,
                false => transport.send(&request).await?,
            };
            match answer.status {
                StatusCode::UNAUTHORIZED if !was_challenged && !left_registry => {
                    let challenges = auth::challenges(&answer.headers);
                    let Some(value) = self.authorize(endpoint, &registry, &trust, &challenges).await? else {
                        return Err(self.failure(answer, subject).await);
                    };
                    answer.body.discard().await;
                    endpoint.set_authorization(value);
                    (url, was_challenged) = (start.clone(), true);
                }
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER if !is_read => {
                    return Err(self.failure(answer, subject).await);
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        return Err(too_many_redirects(&url));
                    }
                    url = redirect_target(transport, &answer).await?;
                    answer.body.discard().await;
                    left_registry |= url.origin != registry;
                }
                status if status.is_success() => return Ok(answer),
                _ => return Err(self.failure(answer, subject).await),
            }
        }
    }

    async fn authorize(
        &self,
        endpoint: &Endpoint,
        registry: &Origin,
        trust: &Trust,
        challenges: &[auth::Challenge],
    ) -> Result<Option<HeaderValue>, RegistryError> {
        // A mirror is somebody else: it gets no credential, but an anonymous token may do (Q3).
        let credentials = if endpoint.is_mirror { &Credentials::Anonymous } else { &self.shared.credentials };
        let scope = match self.shared.access {
            "" => String::new(),
            access => format!("repository:{}:{access}", self.shared.repository.path()),
        };
        let authorizer = Authorizer { transport: &self.shared.transport, registry, trust, credentials, scope };
        authorizer.answer(challenges).await
    }

    /// The error that an answer stands for.
    async fn failure(&self, mut answer: Answer, subject: Subject<'_>) -> RegistryError {
        let lacks_scope = auth::challenges(&answer.headers)
            .iter()
            .any(|challenge| challenge.parameter("error") == Some("insufficient_scope"));
        let detail = error_detail(&mut answer).await;
        let (host, status) = (answer.url.origin.authority(), answer.status);
        let repository = self.shared.repository.familiar();
        let text = detail.text_or(status);
        let retry_after = retry::told(&answer.headers);
        let denied = if matches!(subject, Subject::Push) { Missing::PushDenied } else { Missing::AccessDenied };
        let not_found =
            |missing, name: &str| RegistryError::NotFound { missing, name: name.to_owned(), detail: text.clone() };
        match (status, detail.code.as_str()) {
            // How token registries say that a token does not reach this repository, if it exists at all.
            (StatusCode::UNAUTHORIZED, _) if lacks_scope => RegistryError::NotFound {
                missing: denied,
                name: repository,
                detail: "denied: requested access to the resource is denied".into(),
            },
            (StatusCode::UNAUTHORIZED, _) => RegistryError::Unauthorized { registry: host, detail: text },
            (_, "DENIED") | (StatusCode::FORBIDDEN, _) => not_found(denied, &repository),
            (_, "NAME_UNKNOWN") => not_found(Missing::Repository, &repository),
            (StatusCode::NOT_FOUND, _) => match subject {
                Subject::Manifest(name) => not_found(Missing::Manifest, name),
                Subject::Blob => not_found(Missing::Blob, &repository),
                Subject::Tags => not_found(Missing::Repository, &repository),
                Subject::Referrers => not_found(Missing::Manifest, &repository),
                Subject::Push | Subject::Registry => {
                    RegistryError::Server { host, status: status.as_u16(), detail: text, retry_after }
                }
            },
            _ => RegistryError::Server { host, status: status.as_u16(), detail: text, retry_after },
        }
    }
}

/// Reads a document and verifies it (Q1).
async fn read_document(
    mut answer: Answer,
    name: &str,
    expected: Option<&Digest>,
    media_type: Option<&MediaType>,
) -> Result<FetchedDocument, RegistryError> {
    let bytes = answer.body.read("the manifest", DOCUMENT_BYTES_MAX).await?;
    let digest = match expected {
        None => Digest::sha256_of(&bytes),
        Some(expected) if expected.matches(&bytes) => *expected,
        Some(expected) => {
            let found = Digest::of(expected.algorithm(), &bytes);
            return Err(RegistryError::DigestMismatch { expected: Box::new(*expected), found: Box::new(found) });
        }
    };
    let refused = |source| RegistryError::Document { what: "manifest", name: name.to_owned(), source };
    let document = Document::parse(&bytes, answer.header(CONTENT_TYPE)).map_err(refused)?;
    match media_type {
        Some(said) if said != document.media_type() => {
            let (first, second) = (said.to_string(), document.media_type().to_string());
            Err(refused(DocumentError::Mixed { first, second }))
        }
        _ => Ok(FetchedDocument { bytes, digest, document }),
    }
}
