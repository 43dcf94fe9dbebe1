//! The body of a request, read piece by piece, and what becomes of the rest of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, oneshot};

use super::head::Framing;
use super::stream::Stream;

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 32 * 1024;
/// Longest line that may announce a chunk, extensions included.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// All trailer lines after the last chunk.
const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// A body that nobody wants is thrown away up to here; beyond, the connection is closed.
const DRAIN_BYTES_MAX: u64 = 4 << 30;
/// ... and only while it keeps coming.
const DRAIN_IDLE: Duration = Duration::from_secs(10);

/// The reading side of a connection, with what was read too far.
pub(super) struct Reader {
    pub(super) io: ReadHalf<Stream>,
    pub(super) buffer: BytesMut,
}

impl Reader {
    /// Reads more into the buffer; 0 at the end of the stream.
    pub(super) async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.io.read_buf(&mut self.buffer).await
    }

    /// Gives the next bytes, whatever they mean; none at the end.
    pub(super) async fn any(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Ok(None);
        }
        Ok(Some(self.buffer.split().freeze()))
    }
}

/// The writing side, shared by the reply and the one interim answer that a body may owe.
pub(super) type Writer = Arc<Mutex<WriteHalf<Stream>>>;

/// What a client waits for before it sends its body.
pub(super) struct Continue {
    pub(super) writer: Writer,
    /// Set once the final answer has begun: an interim one must not follow.
    pub(super) answered: Arc<AtomicBool>,
}

enum State {
    /// So many bytes are still to come.
    Length(u64),
    /// The size line of a chunk comes next.
    ChunkSize,
    /// So many bytes of this chunk.
    Chunk(u64),
    /// The line end after a chunk. A state of its own, so that a cancelled read loses nothing.
    ChunkEnd,
    Done,
    /// The framing broke: where the next request would start is unknown.
    Broken,
}

/// A request's body. Dropping it hands the connection back, with what has not been read.
pub(crate) struct Body {
    reader: Option<Reader>,
    state: State,
    expects: Option<Continue>,
    back: Option<oneshot::Sender<Body>>,
}

impl Body {
    pub(super) fn new(reader: Reader, framing: Framing, expects: Option<Continue>) -> (Body, oneshot::Receiver<Body>) {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
        };
        let (sender, receiver) = oneshot::channel();
        (Body { reader: Some(reader), state, expects, back: Some(sender) }, receiver)
    }

    /// Tells whether nothing more can come.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Gives the next bytes; none at the end. A call that is cancelled loses nothing.
    ///
    /// # Errors
    /// `UnexpectedEof` if the client left in the middle, `InvalidData` if the chunks are malformed, and what the socket says.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if !self.is_done() {
            self.send_continue().await?;
        }
        let piece = self.next_piece().await;
        if piece.is_err() {
            self.state = State::Broken;
        }
        piece
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// As [`Body::chunk`]; `FileTooLarge` beyond `limit_bytes`.
    pub(crate) async fn all(&mut self, limit_bytes: usize) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.chunk().await? {
            if whole.len() + piece.len() > limit_bytes {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    async fn send_continue(&mut self) -> io::Result<()> {
        let Some(expects) = self.expects.take() else { return Ok(()) };
        let mut writer = expects.writer.lock().await;
        if !expects.answered.load(Ordering::Acquire) {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        Ok(())
    }

    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        loop {
            match self.state {
                State::Done => return Ok(None),
                State::Broken => return Err(io::ErrorKind::InvalidData.into()),
                State::Length(left) | State::Chunk(left) => {
                    if reader.buffer.is_empty() && reader.fill().await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(reader.buffer.len());
                    let piece = reader.buffer.split_to(take).freeze();
                    let left = left - take as u64;
                    self.state = match self.state {
                        State::Chunk(_) if left == 0 => State::ChunkEnd,
                        State::Chunk(_) => State::Chunk(left),
                        _ if left == 0 => State::Done,
                        _ => State::Length(left),
                    };
                    return Ok(Some(piece));
                }
                State::ChunkEnd => {
                    if !line(reader, 2).await?.is_empty() {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    self.state = State::ChunkSize;
                }
                State::ChunkSize => match chunk_size(&line(reader, CHUNK_LINE_BYTES_MAX).await?)? {
                    0 => {
                        trailers(reader).await?;
                        self.state = State::Done;
                    }
                    size => self.state = State::Chunk(size),
                },
            }
        }
    }

    /// Takes the connection back for the next request, throwing away what nobody read (rule 14 of the API: a client that
    /// writes first must get to its answer). None if the connection cannot be used again.
    pub(super) async fn into_reader(mut self) -> Option<Reader> {
        if self.expects.is_some() && !self.is_done() {
            // The client was never told to go on: it may or may not send the body.
            return None;
        }
        let mut left = DRAIN_BYTES_MAX;
        while !self.is_done() {
            let piece = tokio::time::timeout(DRAIN_IDLE, self.next_piece()).await.ok()?.ok()?;
            let Some(piece) = piece else { break };
            left = left.checked_sub(piece.len() as u64)?;
        }
        self.reader.take()
    }

    /// Takes the connection as a stream of its own: all bytes after the head, if there was no body or it has been read.
    pub(super) fn take_raw(&mut self) -> Option<Reader> {
        if self.is_done() { self.reader.take() } else { None }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(back) = self.back.take() else { return };
        let rest = Body {
            reader: self.reader.take(),
            state: std::mem::replace(&mut self.state, State::Done),
            expects: self.expects.take(),
            back: None,
        };
        // Nobody listens if the connection has ended already.
        let _ = back.send(rest);
    }
}

/// Reads a line without its end.
async fn line(reader: &mut Reader, limit_bytes: usize) -> io::Result<Bytes> {
    let mut searched = 0;
    loop {
        if let Some(at) = reader.buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = reader.buffer.split_to(searched + at).freeze();
            reader.buffer.advance(1);
            return line.strip_suffix(b"\r").map(|text| line.slice_ref(text)).ok_or(io::ErrorKind::InvalidData.into());
        }
        searched = reader.buffer.len();
        if searched > limit_bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if reader.fill().await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn trailers(reader: &mut Reader) -> io::Result<()> {
    let mut left = TRAILER_BYTES_MAX;
    loop {
        let line = line(reader, left).await?;
        if line.is_empty() {
            return Ok(());
        }
        left = left.checked_sub(line.len() + 2).ok_or(io::ErrorKind::InvalidData)?;
    }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    // At most 15 digits, so that no sum of sizes can overflow; `from_str_radix` alone would accept a sign.
    if digits.is_empty()
        || digits.len() > 15
        || !digits.iter().all(u8::is_ascii_hexdigit)
        || line.len() > CHUNK_LINE_BYTES_MAX
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| io::ErrorKind::InvalidData)?;
    u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_plain_hexadecimal() {
        assert_eq!(chunk_size(b"1a").expect("plain"), 26);
        assert_eq!(chunk_size(b"1A;name=value").expect("with extension"), 26);
        for bad in [&b""[..], b"+1", b"-1", b"0x1", b"g", b" 1", b"1 2", b"1234567890abcdef"] {
            assert!(chunk_size(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
