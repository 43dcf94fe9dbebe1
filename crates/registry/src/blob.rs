//! A blob as it arrives, across broken connections.
//!
//! B1  The bytes handed out are those from the start offset to the descriptor's size, each once and in order, whatever
//!     happened on the way. More than that is an error at once, fewer after the last attempt.
//! B2  After a break the next request asks for the rest. A server that ignores or refuses ranges, or answers with another
//!     than was asked for, is read again from its start, and what was handed out before is passed over and counted.
//! B3  As long as its pull has not received a byte of any layer, a fixed number of attempts is made. After that a
//!     network that fails is waited for without limit, as long as somebody asks for the next bytes. What would fetch
//!     the same bytes for ever has the fixed number throughout: a blob that ends early though its connection does not
//!     break, and a server without ranges that breaks before it gets as far as it was. Progress starts the count anew.
//! B4  Dropping the stream ends its connection.
//! B5  A stream of a part of the blob asks for no more than that part.

use std::fmt;
use std::time::Duration;

use baleen_oci::{Digest, DigestHasher};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::client::RepositoryClient;
use crate::error::RegistryError;
use crate::exchange::{Answer, Body};
use crate::retry;

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
        /// What went wrong, and so what is waited for.
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
    /// Where what is wanted ends: the blob's end, or before it (B5).
    stop: u64,
    /// Of an answer that starts before `position`: bytes yet to be passed over.
    to_skip: u64,
    body: Option<Body>,
    /// Attempts since the last progress that failed.
    failures: u32,
    /// Those of them that count whatever the pull has received (B3).
    vain_failures: u32,
    /// Bytes of this attempt were passed over, and none was new.
    passed_over: bool,
    /// Ranges are of no use with this server (B2).
    whole_only: bool,
    /// Whether a network that fails may be waited for without limit (B3).
    patient: bool,
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
            stop: size,
            to_skip: 0,
            body: None,
            failures: 0,
            vain_failures: 0,
            passed_over: false,
            whole_only: false,
            patient: true,
            turn: 0,
            end: if start_offset == size { End::Reached } else { End::Ahead },
            fetched_bytes: 0,
            on_event,
        }
    }

    /// Makes no more than the fixed number of attempts, and counts as no layer.
    pub fn impatient(mut self) -> BlobStream {
        self.patient = false;
        self
    }

    /// Ends at this offset instead of the blob's end (B5).
    ///
    /// # Panics
    /// If it lies beyond the blob's end, or before the start.
    pub fn until(mut self, stop: u64) -> BlobStream {
        assert!((self.position..=self.size).contains(&stop), "a part of a blob ends inside it");
        self.stop = stop;
        self.end = if self.position == stop { End::Reached } else { End::Ahead };
        self
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
    /// answers at once; what broke the connection after the last attempt, where attempts are limited (B3). After any
    /// other error than the first the stream may be asked again and then tries again.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match self.end {
                End::Reached => return Ok(None),
                End::Overrun { found } => return Err(self.wrong_size(found)),
                End::Ahead if self.position == self.stop => {
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
                    (self.failures, self.vain_failures, self.passed_over) = (0, 0, false);
                    if self.patient {
                        self.client.set_has_delivered();
                    }
                    return Ok(Some(chunk));
                }
                // The end came too early.
                Ok(Some(None)) => self.recover(self.too_short()).await?,
                Err(error) => self.recover(error).await?,
            }
        }
    }

    async fn open(&mut self) -> Result<(), RegistryError> {
        let last = (self.stop < self.size).then(|| self.stop - 1);
        let range = (!self.whole_only && (self.position > 0 || last.is_some())).then_some((self.position, last));
        let answered = self.client.open_blob(&self.digest, range, self.turn).await;
        let checked = answered.and_then(|answer| Ok((self.check_head(&answer)?, answer)));
        let (start, answer) = match checked {
            Err(error) if range.is_some() && refuses_ranges(&error) => {
                tracing::debug!(digest = %self.digest, error = %error, "a registry serves no ranges");
                self.whole_only = true;
                return Ok(());
            }
            other => other?,
        };
        self.to_skip = match start {
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
            StatusCode::PARTIAL_CONTENT if !self.whole_only => {
                let range = answer.header(CONTENT_RANGE).and_then(parse_content_range);
                let Some((first, last, total)) = range else {
                    return Err(RegistryError::Protocol { host: host(), what: "a partial answer without its range" });
                };
                if let Some(total) = total.filter(|&total| total != self.size) {
                    return Err(self.wrong_size(total));
                }
                if first != self.position || last != self.stop - 1 {
                    return Err(RegistryError::Protocol { host: host(), what: "another range than was asked for" });
                }
                (Start::AtPosition, self.stop - self.position)
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
        self.passed_over |= skipped > 0;
        // At most the chunk's length, which is a `usize`.
        let mut chunk = chunk.split_off(skipped as usize);
        let left = self.stop - self.position;
        if self.stop < self.size && chunk.len() as u64 > left {
            // A server without ranges sends the rest as well.
            chunk.truncate(left as usize);
        }
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
        let is_whole = self.stop == self.size;
        if let Some(body) = self.body.as_mut()
            // A server that breaks after the last byte has done its work.
            && let Ok(Some(more)) = body.chunk_within(END_WAIT).await
            && is_whole
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
                (self.turn, self.whole_only) = (self.turn + 1, false);
                return Ok(());
            }
            return Err(error);
        }
        let attempts_max = self.client.settings().download_attempts_max.max(1);
        self.failures = self.failures.saturating_add(1);
        self.vain_failures += u32::from(self.was_in_vain(&error));
        let is_limited = self.vain_failures >= attempts_max;
        let is_patient = self.patient && self.client.has_delivered();
        let has_another = self.turn + 1 < self.client.blob_turns();
        if self.failures.is_multiple_of(attempts_max) && has_another && !is_limited {
            // A mirror that is down must not hold up what the registry may serve.
            (self.turn, self.whole_only) = (self.turn + 1, false);
        } else if is_limited || (self.failures >= attempts_max && !is_patient) {
            (self.failures, self.vain_failures) = (0, 0);
            return Err(error);
        }
        self.passed_over = false;
        tracing::debug!(digest = %self.digest, error = %error, attempt = self.failures, "a download is tried again");
        self.wait(&error).await;
        Ok(())
    }

    /// Whether a failure would come again after the same bytes (B3).
    fn was_in_vain(&self, error: &RegistryError) -> bool {
        self.passed_over || matches!(error, RegistryError::SizeMismatch { .. })
    }

    async fn wait(&mut self, error: &RegistryError) {
        let settings = self.client.settings();
        let mut left = retry::delay(&settings.timeouts, self.failures, error.retry_after());
        let (clock, error) = (settings.clock.clone(), error.to_string());
        while !left.is_zero() {
            let seconds_left = left.as_millis().div_ceil(1000) as u64;
            let attempt = self.failures.saturating_add(1);
            (self.on_event)(BlobEvent::Retrying { seconds_left, attempt, error: error.clone() });
            let step = left.min(Duration::from_secs(1));
            clock.sleep(step).await;
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

/// Whether an answer to a request for a range says that the server has no use for ranges.
fn refuses_ranges(error: &RegistryError) -> bool {
    match error {
        RegistryError::Server { status, .. } => matches!(status, 400 | 405 | 412 | 416 | 501),
        RegistryError::Protocol { .. } => true,
        _ => false,
    }
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
