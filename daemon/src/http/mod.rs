//! HTTP/1.1 as the Docker API needs it: requests in, replies out, and connections that become raw streams.
//!
//! Why not hyper's server: this API demands what it cannot give (docs/decisions/0500-own-http-server.md): a raw `200`
//! for clients that hijack without `Upgrade`, a refusal of `Content-Length` beside `Transfer-Encoding` instead of a
//! silent choice, JSON in every refusal, and a watch on clients that have gone while nothing is written.
//!
//! H1  A head is at most 64 KiB and 100 headers, and arrives within 30 s of its first byte.
//! H2  The length of a body is never in doubt: both `Content-Length` and `Transfer-Encoding`, two different lengths or
//!     an unknown coding are refused and the connection closed.
//! H3  The next request of a connection is read only after the body of the one before has been read or thrown away.
//! H4  Bytes after a hijack belong to the stream and are never taken for a request.
//! H5  A handler's panic is answered with 500 on its own connection and touches nothing else.
//! H6  Every task belongs to a connection and ends with it, but for handlers of verbs that go on without their client.
//!
//! Touches: the streams it is given. Knows nothing of routes, JSON or the engine.

mod body;
mod connection;
mod gone;
mod head;
mod hijack;
mod reply;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use body::Body;
pub(crate) use connection::{Service, serve};
pub(crate) use gone::Gone;
pub(crate) use head::{Framing, HEAD_BYTES_MAX, HEADERS_MAX, Head, Method, parse as parse_head};
pub(crate) use hijack::{HijackInput, Hijacked};
pub(crate) use reply::{Chunks, Reply, chunks};
pub(crate) use stream::Stream;

/// One request: its head, its body (not read yet) and the watch on its client.
pub(crate) struct Request {
    /// The request line and headers.
    pub(crate) head: Head,
    /// What follows the head.
    pub(crate) body: Body,
    /// Tells when the client has gone.
    pub(crate) gone: Gone,
    /// It came over the network, not from a socket in the file system.
    pub(crate) from_network: bool,
}
