//! What goes to a registry: blobs in parts, and manifests; and whether somebody may log in.
//!
//! H1  A blob is sent in parts of [`PART_BYTES`]; one part is held in memory, so that it can be sent again. Where an upload
//!     stands after a break is asked of the registry, and what it has is not sent again.
//! H2  A blob that the registry has is not sent: it is asked first, by the digest.
//! H3  A manifest's digest is computed here; a registry that stores other bytes is an error.
//! H4  Uploads go to the registry itself, and where it says that they go on; the credential goes to the registry's own
//!     origin only (N2).

use baleen_oci::{Digest, MediaType, Repository};
use bytes::{Bytes, BytesMut};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, RANGE};
use hyper::{Method, StatusCode};
use tokio::sync::mpsc;

use crate::auth::redirect_target;
use crate::client::{Client, RepositoryClient, Subject};
use crate::credentials::Credentials;
use crate::error::RegistryError;
use crate::exchange::Answer;
use crate::retry;
use crate::url::{Url, percent_encode};

/// Sent with one request. Stores behind registries want 5 MiB at least for all parts but the last.
const PART_BYTES: usize = 5 << 20;
/// What a registry may ask for instead (`OCI-Chunk-Min-Length`).
const PART_BYTES_MAX: usize = 16 << 20;
const PART_MIN: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// A digest as the registry computed it.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where an upload goes on.
struct Upload {
    at: Url,
    /// Bytes that the registry has.
    offset: u64,
}

impl RepositoryClient {
    /// The size of a blob that the repository has; `None` if it has not.
    ///
    /// # Errors
    /// What keeps the registry from being asked.
    pub async fn find_blob(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let endpoint = self.registry();
        let url = self.url(endpoint, &format!("blobs/{digest}")).await?;
        let mut failures = 0;
        loop {
            match self.send(endpoint, Method::HEAD, url.clone(), Subject::Blob, &[], Bytes::new()).await {
                Ok(answer) => {
                    let length = answer.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
                    answer.body.discard().await;
                    return Ok(Some(length.unwrap_or(0)));
                }
                Err(RegistryError::NotFound { .. }) => return Ok(None),
                Err(error) => self.recover(&mut failures, error).await?,
            }
        }
    }

    /// Has a blob of another repository of the registry appear in this one; gives whether it did.
    ///
    /// # Errors
    /// What keeps the registry from being asked; a refusal is none.
    pub async fn mount_blob(&self, digest: &Digest, from: &Repository) -> Result<bool, RegistryError> {
        let endpoint = self.registry();
        let from = percent_encode(from.path());
        let url = self.url(endpoint, &format!("blobs/uploads/?mount={digest}&from={from}")).await?;
        match self.send(endpoint, Method::POST, url, Subject::Push, &[], Bytes::new()).await {
            Ok(answer) => {
                let is_mounted = answer.status == StatusCode::CREATED;
                // Otherwise an upload has begun, which is given up.
                let upload = if is_mounted { None } else { redirect_target(self.transport(), &answer).await.ok() };
                answer.body.discard().await;
                if let Some(at) = upload {
                    // The registry forgets it by itself if this fails.
                    let _ = self.send(endpoint, Method::DELETE, at, Subject::Push, &[], Bytes::new()).await;
                }
                Ok(is_mounted)
            }
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                tracing::debug!(digest = %digest, error = %error, "a registry mounts no blob");
                Ok(false)
            }
        }
    }

    /// Sends a blob of `size` bytes, as they come from `source`; `on_progress` hears how many the registry has. Nothing is
    /// sent if the repository has it; gives whether it was sent.
    ///
    /// # Errors
    /// `SourceEnded` if there are fewer bytes than `size`; `NotFound` with `PushDenied`, `Unauthorized`; what broke the
    /// connection after the last attempt; `Server` if the registry refuses, as it does bytes of another digest.
    pub async fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        source: &mut mpsc::Receiver<Bytes>,
        mut on_progress: impl FnMut(u64) + Send,
    ) -> Result<bool, RegistryError> {
        if self.find_blob(digest).await?.is_some() {
            return Ok(false);
        }
        let (mut upload, part_bytes) = self.begin_upload().await?;
        let mut rest = Bytes::new();
        let mut taken = 0;
        loop {
            let part = read_part(source, &mut rest, part_bytes).await;
            taken += part.len() as u64;
            if taken > size || (part.len() < part_bytes && taken < size) {
                return Err(RegistryError::SourceEnded { digest: *digest, found: taken });
            }
            if taken == size {
                self.end_upload(upload, digest, part, taken).await?;
                on_progress(taken);
                return Ok(true);
            }
            upload = self.send_part(upload, part, taken).await?;
            on_progress(taken);
        }
    }

    async fn begin_upload(&self) -> Result<(Upload, usize), RegistryError> {
        let endpoint = self.registry();
        let mut failures = 0;
        let answer = loop {
            let url = self.url(endpoint, "blobs/uploads/").await?;
            match self.send(endpoint, Method::POST, url, Subject::Push, &[], Bytes::new()).await {
                Ok(answer) => break answer,
                Err(error) => self.recover(&mut failures, error).await?,
            }
        };
        let asked: Option<usize> = answer.header(PART_MIN).and_then(|text| text.parse().ok());
        let part_bytes = asked.unwrap_or(0).clamp(PART_BYTES, PART_BYTES_MAX);
        let at = self.place(&answer).await?;
        answer.body.discard().await;
        Ok((Upload { at, offset: 0 }, part_bytes))
    }

    /// Where the registry wants what comes next.
    async fn place(&self, answer: &Answer) -> Result<Url, RegistryError> {
        redirect_target(self.transport(), answer).await
    }

    /// Sends a part, which ends at `end`, and gives where the next one goes.
    async fn send_part(&self, upload: Upload, part: Bytes, end: u64) -> Result<Upload, RegistryError> {
        let endpoint = self.registry();
        let start = end - part.len() as u64;
        let (mut at, mut offset, mut failures) = (upload.at, upload.offset, 0);
        loop {
            // At most a part's length, which is a `usize`.
            let unsent = part.slice((offset - start) as usize..);
            let headers = [
                (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
                (CONTENT_RANGE, header(&format!("{offset}-{}", end - 1))),
            ];
            match self.send(endpoint, Method::PATCH, at.clone(), Subject::Push, &headers, unsent).await {
                Ok(answer) => {
                    let at = self.place(&answer).await?;
                    answer.body.discard().await;
                    return Ok(Upload { at, offset: end });
                }
                Err(error) => {
                    tracing::debug!(error = %error, "a part of a blob is sent again");
                    self.pass_over(&mut failures, error).await?;
                    let stands = self.ask_upload(&at, start, end).await?;
                    (at, offset) = (stands.at, stands.offset);
                    if offset == end {
                        return Ok(Upload { at, offset });
                    }
                }
            }
        }
    }

    /// Sends the last part and has the blob stored under its name.
    async fn end_upload(&self, upload: Upload, digest: &Digest, part: Bytes, end: u64) -> Result<(), RegistryError> {
        let endpoint = self.registry();
        let start = end - part.len() as u64;
        let (mut at, mut offset, mut failures) = (upload.at, upload.offset, 0);
        loop {
            let unsent = part.slice((offset - start) as usize..);
            let separator = if at.path.contains('?') { '&' } else { '?' };
            let name = percent_encode(&digest.to_string());
            let url = Url { origin: at.origin.clone(), path: format!("{}{separator}digest={name}", at.path) };
            let mut headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
            if offset > 0 && !unsent.is_empty() {
                headers.push((CONTENT_RANGE, header(&format!("{offset}-{}", end - 1))));
            }
            match self.send(endpoint, Method::PUT, url, Subject::Push, &headers, unsent).await {
                Ok(answer) => {
                    answer.body.discard().await;
                    return Ok(());
                }
                Err(error) => {
                    tracing::debug!(digest = %digest, error = %error, "the end of a blob is sent again");
                    self.pass_over(&mut failures, error).await?;
                    // The answer to the last attempt may have been all that was lost.
                    if self.find_blob(digest).await?.is_some() {
                        return Ok(());
                    }
                    let stands = self.ask_upload(&at, start, end).await?;
                    (at, offset) = (stands.at, stands.offset);
                }
            }
        }
    }

    /// Asks how far an upload is (OCI distribution-spec, Pushing a blob in chunks).
    async fn ask_upload(&self, at: &Url, start: u64, end: u64) -> Result<Upload, RegistryError> {
        let endpoint = self.registry();
        let mut failures = 0;
        let answer = loop {
            match self.send(endpoint, Method::GET, at.clone(), Subject::Push, &[], Bytes::new()).await {
                Ok(answer) => break answer,
                Err(error) => self.recover(&mut failures, error).await?,
            }
        };
        let last = answer.header(RANGE).and_then(|text| text.rsplit_once('-')).and_then(|(_, last)| last.parse().ok());
        let at = self.place(&answer).await.unwrap_or_else(|_| at.clone());
        let host = answer.url.origin.authority();
        answer.body.discard().await;
        // `0-0` is nothing or one byte; to send that byte again would be wrong, so it counts as nothing only at the start.
        let offset = match last {
            None | Some(0) => 0,
            Some(last) => u64::saturating_add(last, 1),
        };
        match offset {
            offset if (start..=end).contains(&offset) => Ok(Upload { at, offset }),
            _ => Err(RegistryError::Protocol { host, what: "an upload has lost what was sent before; push again" }),
        }
    }

    /// As `recover`, but a registry that has more of an upload than we know of (416) is asked where it stands, once.
    async fn pass_over(&self, failures: &mut u32, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Server { status: 416, .. }) && *failures == 0 {
            *failures += 1;
            return Ok(());
        }
        self.recover(failures, error).await
    }

    /// Waits before the next attempt, or gives the error back after the last.
    async fn recover(&self, failures: &mut u32, error: RegistryError) -> Result<(), RegistryError> {
        *failures += 1;
        let settings = self.settings();
        if !error.is_transient() || *failures >= settings.download_attempts_max.max(1) {
            return Err(error);
        }
        settings.clock.sleep(retry::delay(&settings.timeouts, *failures, error.retry_after())).await;
        Ok(())
    }

    /// Stores a manifest or an index under a tag or its own digest; gives its digest.
    ///
    /// # Errors
    /// As [`RepositoryClient::push_blob`]; `DigestMismatch` if the registry says that it stored other bytes.
    pub async fn push_document(
        &self,
        tag_or_digest: &str,
        media_type: &MediaType,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let endpoint = self.registry();
        let digest = Digest::sha256_of(&bytes);
        let body = Bytes::from(bytes);
        let headers = [(CONTENT_TYPE, header(media_type.as_str()))];
        let mut failures = 0;
        loop {
            let url = self.url(endpoint, &format!("manifests/{tag_or_digest}")).await?;
            match self.send(endpoint, Method::PUT, url, Subject::Push, &headers, body.clone()).await {
                Ok(answer) => {
                    let said = answer.header(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
                    answer.body.discard().await;
                    return match said {
                        Some(found) if found != digest => {
                            let (expected, found) = (Box::new(digest), Box::new(found));
                            Err(RegistryError::DigestMismatch { expected, found })
                        }
                        _ => Ok(digest),
                    };
                }
                Err(error) => self.recover(&mut failures, error).await?,
            }
        }
    }

    /// Removes a manifest by its digest.
    ///
    /// # Errors
    /// What the registry says; many refuse (405).
    pub async fn delete_document(&self, digest: &Digest) -> Result<(), RegistryError> {
        let endpoint = self.registry();
        let url = self.url(endpoint, &format!("manifests/{digest}")).await?;
        let answer = self.send(endpoint, Method::DELETE, url, Subject::Push, &[], Bytes::new()).await?;
        answer.body.discard().await;
        Ok(())
    }
}

impl Client {
    /// Finds out whether a registry takes these credentials. `server` is its host, or an address as Docker's clients keep
    /// them (`https://index.docker.io/v1/`).
    ///
    /// # Errors
    /// `Unauthorized` if not; or what keeps the registry from being asked.
    pub async fn log_in(&self, server: &str, credentials: Credentials) -> Result<(), RegistryError> {
        let host = server.trim().trim_start_matches("https://").trim_start_matches("http://");
        let host = match host.split('/').next().unwrap_or_default() {
            "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        };
        // Any repository of it leads there.
        let no_host = |_| RegistryError::Protocol { host: host.to_owned(), what: "its name is not that of a host" };
        let repository = Repository::parse(&format!("{host}/library/login")).map_err(no_host)?;
        if repository.domain() != host {
            return Err(RegistryError::Protocol { host: host.to_owned(), what: "its name is not that of a host" });
        }
        let client = self.repository_with(&repository, credentials, "");
        let endpoint = client.registry();
        let mut url = client.url(endpoint, "").await?;
        "/v2/".clone_into(&mut url.path);
        let answer = client.send(endpoint, Method::GET, url, Subject::Registry, &[], Bytes::new()).await?;
        answer.body.discard().await;
        Ok(())
    }
}

/// Reads up to `part_bytes`; fewer at the end.
async fn read_part(source: &mut mpsc::Receiver<Bytes>, rest: &mut Bytes, part_bytes: usize) -> Bytes {
    let mut part = BytesMut::new();
    while part.len() < part_bytes {
        if rest.is_empty() {
            match source.recv().await {
                Some(bytes) => *rest = bytes,
                None => break,
            }
        }
        let count = rest.len().min(part_bytes - part.len());
        part.extend_from_slice(&rest.split_to(count));
    }
    part.freeze()
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("application/octet-stream"))
}
