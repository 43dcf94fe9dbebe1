//! A connection that has stopped being HTTP: bytes in, bytes out, until one side has had enough.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::body::{Body, Reader, Writer};

/// What a hijacking handler does with the connection; the connection ends when it returns.
pub(super) type HijackRun = Box<dyn FnOnce(Hijacked) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Both directions of a hijacked connection.
pub(crate) struct Hijacked {
    /// What the client sends.
    pub(crate) input: HijackInput,
    /// What the client gets.
    pub(crate) output: HijackOutput,
}

/// The bytes that the client sends after the head.
pub(crate) struct HijackInput(pub(super) Input);

pub(super) enum Input {
    /// Everything on the connection.
    Raw(Reader),
    /// The request's body: a client that did not ask to upgrade may send its input that way.
    Body(Box<Body>),
}

impl HijackInput {
    /// Gives the next bytes; none once the client has closed its write side.
    ///
    /// # Errors
    /// What the socket says, or a body that ends too early.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        match &mut self.0 {
            Input::Raw(reader) => reader.any().await,
            Input::Body(body) => body.chunk().await,
        }
    }
}

/// The bytes that the client gets.
pub(crate) struct HijackOutput(pub(super) Writer);

impl HijackOutput {
    /// Writes all bytes.
    ///
    /// # Errors
    /// What the socket says: the client has gone.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().await.write_all(bytes).await
    }
}
