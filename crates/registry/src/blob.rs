//! A blob as it arrives, across broken connections.
//!
//! B1  The bytes handed out are those from the start offset to the descriptor's size, each once and in order, whatever
//!     happened on the way. More than that is an error at once, fewer after the last attempt.
//! B2  After a break the next request asks for the rest. An answer with another range is an error. A server that ignores
//!     ranges is read again from its start, and what was handed out before is passed over and counted.
//! B3  An attempt that gets further starts the count of attempts anew; a fixed number without progress is an error.
//! B4  Dropping the stream ends its connection.

use std::fmt;
use std::time::Duration;

use baleen_oci::{Digest, DigestHasher};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::client::RepositoryClient;
use crate::error::RegistryError;
use crate::exchange::{Answer, Body};

/// What a blob's reader may tell its user.
#[derive(Debug)]
#[non_exhaustive]
pub enum BlobEvent {
    /// The connection broke or could not be made; it is tried again. Comes once a second until then.
    Retrying {
        /// Until the next attempt, in whole seconds.
        seconds_left: u64,
        /// The attempt that comes, counted since the last progress, from 2 on.
        attempt: u32,
        /// What went wrong.
        error: String,
    },
    /// The blob goes on.
    Resumed {
        /// From which byte.
        offset: u64,
    },
}

/// The bytes of a blob as they arrive.
pub struct BlobStream {
    client: RepositoryClient,
    digest: Digest,
    size: u64,
    /// Everything before it has been handed out.
    position: u64,
    /// Of an answer that starts before `position`: bytes yet to be passed over.
    to_skip: u64,
    body: Option<Body>,
    /// Attempts since the last progress that failed.
    failures: u32,
    /// Which endpoint serves: 0 is the one that served the documents.
    turn: usize,
    end: End,
    fetched_bytes: u64,
    on_event: Box<dyn FnMut(BlobEvent) + Send>,
}

/// After the last byte a server has so long to say that it was the last.
const END_WAIT: Duration = Duration::from_secs(5);

impl BlobStream {
    pub(crate) fn new(
        client: RepositoryClient,
        digest: Digest,
        size: u64,
        start_offset: u64,
        on_event: Box<dyn FnMut(BlobEvent) + Send>,
    ) -> BlobStream {
        assert!(start_offset <= size, "a blob cannot be resumed beyond its end");
        BlobStream {
            client,
            digest,
            size,
            position: start_offset,
            to_skip: 0,
            body: None,
            failures: 0,
            turn: 0,
            end: if start_offset == size { End::Reached } else { End::Ahead },
            fetched_bytes: 0,
            on_event,
        }
    }

    /// The digest of the whole blob. The stream does not verify it; see [`VerifiedBlob`].
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The size of the whole blob in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The offset of the next byte that is handed out.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the blob that came over the network, those included that were passed over (B2).
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes
    }

    /// The next bytes, at most 64 KiB; `None` at the end. Waits, and tries again, as the settings say.
    ///
    /// A future of it that is dropped loses no byte; a wait before an attempt is cut short by the next call.
    ///
    /// # Errors
    /// `SizeMismatch` if the blob is longer or shorter than its descriptor says; `NotFound`, `Unauthorized` and other
    /// answers at once; what broke the connection after the last attempt without progress. After any other error than
    /// the first the stream may be asked again and then tries again.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match self.end {
                End::Reached => return Ok(None),
                End::Overrun { found } => return Err(self.wrong_size(found)),
                End::Ahead if self.position == self.size => {
                    self.finish().await;
                    continue;
                }
                End::Ahead => {}
            }
            let read = match self.body.as_mut() {
                None => self.open().await.map(|()| None),
                Some(body) => body.chunk().await.map(Some),
            };
            match read {
                Ok(None) => {}
                Ok(Some(Some(chunk))) => {
                    let chunk = self.take(chunk)?;
                    if chunk.is_empty() {
                        continue;
                    }
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                // The end came too early.
                Ok(Some(None)) => self.recover(self.too_short()).await?,
                Err(error) => self.recover(error).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<(), RegistryError> {
        let answer = self.client.open_blob(&self.digest, self.position, self.turn).await?;
        self.to_skip = match self.check_head(&answer)? {
            Start::AtPosition => 0,
            Start::AtZero => self.position,
        };
        self.body = Some(answer.body);
        if self.failures > 0 {
            (self.on_event)(BlobEvent::Resumed { offset: self.position });
        }
        Ok(())
    }

    /// Checks what an answer announces (B2).
    fn check_head(&self, answer: &Answer) -> Result<Start, RegistryError> {
        let host = || answer.url.origin.authority();
        let length: Option<u64> = answer.header(CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let (start, expected) = match answer.status {
            StatusCode::OK => (Start::AtZero, self.size),
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(CONTENT_RANGE).and_then(parse_content_range);
                let Some((first, last, total)) = range else {
                    return Err(RegistryError::Protocol { host: host(), what: "a partial answer without its range" });
                };
                if let Some(total) = total.filter(|&total| total != self.size) {
                    return Err(self.wrong_size(total));
                }
                if first != self.position || last != self.size - 1 {
                    return Err(RegistryError::Protocol { host: host(), what: "another range than was asked for" });
                }
                (Start::AtPosition, self.size - self.position)
            }
            _ => {
                return Err(RegistryError::Protocol { host: host(), what: "a status that is no answer to a download" });
            }
        };
        match length {
            Some(length) if length != expected => Err(self.wrong_size(length + (self.size - expected))),
            _ => Ok(start),
        }
    }

    /// Accounts for bytes that came, and passes over those that were handed out before.
    fn take(&mut self, mut chunk: Bytes) -> Result<Bytes, RegistryError> {
        self.fetched_bytes += chunk.len() as u64;
        let skipped = self.to_skip.min(chunk.len() as u64);
        self.to_skip -= skipped;
        // At most the chunk's length, which is a `usize`.
        let chunk = chunk.split_off(skipped as usize);
        let left = self.size - self.position;
        if chunk.len() as u64 > left {
            let found = self.position + chunk.len() as u64;
            (self.body, self.end) = (None, End::Overrun { found });
            return Err(self.wrong_size(found));
        }
        self.position += chunk.len() as u64;
        Ok(chunk)
    }

    /// All bytes are there: makes sure that no more come, and lets the connection be used again.
    async fn finish(&mut self) {
        let mut found = self.size;
        if let Some(body) = self.body.as_mut()
            // A server that breaks after the last byte has done its work.
            && let Ok(Some(more)) = body.chunk_within(END_WAIT).await
        {
            found += more.len() as u64;
        }
        self.body = None;
        self.end = if found == self.size { End::Reached } else { End::Overrun { found } };
    }

    /// Decides what follows a failure, and waits if it is another attempt (B3).
    async fn recover(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        if !may_retry(&error) {
            // A mirror that has the manifest may lack a blob.
            if self.turn + 1 < self.client.blob_turns() {
                tracing::warn!(digest = %self.digest, error = %error, "a mirror does not serve a blob");
                self.turn += 1;
                return Ok(());
            }
            return Err(error);
        }
        self.failures += 1;
        if self.failures >= self.client.settings().download_attempts_max.max(1) {
            self.failures = 0;
            return Err(error);
        }
        tracing::debug!(digest = %self.digest, error = %error, attempt = self.failures, "a download is tried again");
        self.wait(error.to_string()).await;
        Ok(())
    }

    async fn wait(&mut self, error: String) {
        let timeouts = &self.client.settings().timeouts;
        let factor = 1_u32 << (self.failures - 1).min(16);
        let mut left = timeouts.retry_first.saturating_mul(factor).min(timeouts.retry_max);
        while !left.is_zero() {
            let seconds_left = left.as_millis().div_ceil(1000) as u64;
            (self.on_event)(BlobEvent::Retrying { seconds_left, attempt: self.failures + 1, error: error.clone() });
            let step = left.min(Duration::from_secs(1));
            tokio::time::sleep(step).await;
            left -= step;
        }
    }

    fn wrong_size(&self, found: u64) -> RegistryError {
        RegistryError::SizeMismatch { digest: self.digest, expected: self.size, found }
    }

    fn too_short(&self) -> RegistryError {
        self.wrong_size(self.position)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlobStream { digest, size, position, .. } = self;
        f.debug_struct("BlobStream")
            .field("digest", digest)
            .field("size", size)
            .field("position", position)
            .finish_non_exhaustive()
    }
}

/// How the stream stands to the blob's end.
enum End {
    Ahead,
    Reached,
    /// The registry sent more than the descriptor says: nothing of it can be trusted.
    Overrun {
        found: u64,
    },
}

/// Where an answer starts.
enum Start {
    AtPosition,
    AtZero,
}

/// Whether another attempt may help. An answer that ended early without an error may have been cut by a proxy.
fn may_retry(error: &RegistryError) -> bool {
    match error {
        RegistryError::SizeMismatch { expected, found, .. } => found < expected,
        // The name servers of a network that has just gone say what they like.
        RegistryError::Resolve { .. } => true,
        error => error.is_transient(),
    }
}

/// First byte, last byte and, if said, length of the whole, of a `Content-Range` header (RFC 9110, section 14.4).
pub fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let number = |digits: &str| -> Option<u64> {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { digits.parse().ok() } else { None }
    };
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    match first <= last && total.is_none_or(|total| last < total) {
        true => Some((first, last, total)),
        false => None,
    }
}

/// A blob whose digest is checked at its end.
#[derive(Debug)]
pub struct VerifiedBlob {
    stream: BlobStream,
    hasher: Option<DigestHasher>,
}

impl VerifiedBlob {
    /// Verifies a stream that starts at offset 0.
    ///
    /// # Panics
    /// If it starts later: the bytes before are not known here.
    pub fn new(stream: BlobStream) -> VerifiedBlob {
        assert!(stream.position() == 0, "a digest covers a blob from its first byte");
        let hasher = Some(DigestHasher::new(stream.digest().algorithm()));
        VerifiedBlob { stream, hasher }
    }

    /// The next bytes; `None` at the end, if they were those that the digest names. Until then they are not verified.
    ///
    /// # Errors
    /// `DigestMismatch` at the end; else as [`BlobStream::next_chunk`].
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let chunk = self.stream.next_chunk().await?;
        match (&chunk, &mut self.hasher) {
            (Some(bytes), Some(hasher)) => hasher.update(bytes),
            (None, hasher) => {
                if let Some(hasher) = hasher.take() {
                    let (expected, found) = (*self.stream.digest(), hasher.finish());
                    if expected != found {
                        return Err(RegistryError::DigestMismatch {
                            expected: Box::new(expected),
                            found: Box::new(found),
                        });
                    }
                }
            }
            (Some(_), None) => unreachable!("the end of a stream stays its end"),
        }
        Ok(chunk)
    }

    /// The stream below.
    pub fn stream(&self) -> &BlobStream {
        &self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_exactly() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, 0, None)));
        for text in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "items 5-9/10",
            "bytes 5-9",
            "bytes 5-99999999999999999999/*",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}
