//! Attach: a client's hold on a container's streams.
//!
//! A1  Who attached before the start is connected before the program runs: no byte is lost.
//! A2  Each direction has one bounded queue; a client that does not read holds its container up, as a pipe would.
//! A3  The shim's frames end with the program's last byte; so does the client's output.

use std::io;
use std::sync::Arc;

use baleen_runtime::AttachOptions;
use baleen_runtime::protocol::{self, StreamKind};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::run::runtime_error;
use super::streams::{
    AttachRequest, Attachment, AttachmentInput, AttachmentOutput, LogsRequest, OutputFrame, OutputStream,
};
use super::table::{Attaching, Container};
use super::view::ContainerStatus;
use crate::engine::Engine;
use crate::error::EngineError;

/// Pieces of up to 64 KiB that wait in each direction.
pub(crate) const QUEUE_MAX: usize = 4;
/// The longest frame that a shim may send; it writes what one read of a pipe gives.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Clients that wait for the start of one container; more are refused.
const ATTACHING_MAX: usize = 64;

impl Engine {
    /// Connects to a container's streams; one that has not been started yet may be attached to, and loses no byte.
    ///
    /// # Errors
    /// `Conflict` if it is paused or restarting.
    pub async fn attach_container(
        self: &Arc<Self>,
        name: &str,
        request: AttachRequest,
    ) -> Result<Attachment, EngineError> {
        let container = self.containers.find(name)?;
        let config = &container.stored().config;
        let options = AttachOptions {
            stdin: request.stdin && config.open_stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            // A terminal outlives its clients: who detaches may come back and type on.
            close_stdin: config.stdin_once && !config.tty,
        };
        let stream = if request.stream { Some(self.stream(&container, options).await?) } else { None };
        self.container_event(&container, "attach", &[]);

        let (to_client, output) = mpsc::channel(QUEUE_MAX);
        let (input, from_client) = mpsc::channel(QUEUE_MAX);
        let past = match request.logs {
            true => {
                let (stdout, stderr) = (request.stdout, request.stderr);
                Some(self.container_logs(name, LogsRequest { stdout, stderr, ..LogsRequest::default() }).await?)
            }
            false => None,
        };
        let takes_input = options.stdin;
        drop(tokio::spawn(async move {
            if let Some(mut past) = past {
                while let Some(Ok(line)) = past.next().await {
                    if to_client.send(OutputFrame { stream: line.stream, bytes: line.bytes }).await.is_err() {
                        return;
                    }
                }
            }
            if let Some(Source { stream, pending }) = stream {
                let stream = match (stream, pending) {
                    (Some(stream), _) => Some(stream),
                    // The start has not come; without one, or when it fails, the client's streams end.
                    (None, Some(pending)) => pending.await.ok(),
                    (None, None) => None,
                };
                if let Some(stream) = stream
                    && let Err(error) = pump(stream, takes_input, from_client, to_client).await
                {
                    tracing::debug!(error = %error, "an attached stream ended early");
                }
            }
        }));
        Ok(Attachment {
            tty: config.tty,
            input: takes_input.then_some(AttachmentInput(input)),
            output: AttachmentOutput(output),
        })
    }

    async fn stream(
        self: &Arc<Self>,
        container: &Arc<Container>,
        options: AttachOptions,
    ) -> Result<Source, EngineError> {
        let shim = {
            let mut live = container.live();
            match live.state.status {
                ContainerStatus::Paused => {
                    let id = container.id();
                    let text = format!("container {id} is paused, unpause the container before attach");
                    return Err(EngineError::conflict(text));
                }
                ContainerStatus::Restarting => {
                    let text =
                        format!("container {} is restarting, wait until the container is running", container.id());
                    return Err(EngineError::conflict(text));
                }
                _ => {}
            }
            match live.shim.clone() {
                Some(shim) => shim,
                None => {
                    live.attaching.retain(|waiting| !waiting.stream.is_closed());
                    if live.attaching.len() >= ATTACHING_MAX {
                        return Err(EngineError::conflict(format!("{ATTACHING_MAX} clients are attached already")));
                    }
                    let (stream, pending) = oneshot::channel();
                    live.attaching.push(Attaching { options, stream });
                    return Ok(Source { stream: None, pending: Some(pending) });
                }
            }
        };
        let attached = self.door.enter("attach to a container", move || match shim.attach(options) {
            Ok(stream) => Ok(Some(stream)),
            // It has just ended.
            Err(baleen_runtime::RuntimeError::ShimGone { .. }) => Ok(None),
            Err(error) => Err(runtime_error("attach to the container", error)),
        });
        Ok(Source { stream: attached.await?, pending: None })
    }
}

/// Where a client's stream comes from: it is there, or a start will bring it.
struct Source {
    stream: Option<std::os::unix::net::UnixStream>,
    pending: Option<oneshot::Receiver<std::os::unix::net::UnixStream>>,
}

/// Carries frames both ways until the shim's end is reached or the client has gone.
pub(crate) async fn pump(
    stream: std::os::unix::net::UnixStream,
    takes_input: bool,
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<OutputFrame>,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(stream)?.into_split();
    let input = if takes_input { Some(tokio::spawn(send_input(writer, from_client))) } else { None };
    let outcome = tokio::select! {
        outcome = receive_output(reader, &to_client) => outcome,
        // A client that has gone must not hold the container up (A2).
        () = to_client.closed() => Ok(()),
    };
    if let Some(input) = input {
        input.abort();
    }
    outcome
}

async fn send_input(mut writer: OwnedWriteHalf, mut from_client: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(bytes) = from_client.recv().await {
        for piece in bytes.chunks(protocol::STREAM_BYTES_MAX) {
            writer.write_all(&protocol::stream_header(StreamKind::Stdin, piece.len() as u32)).await?;
            writer.write_all(piece).await?;
        }
    }
    // This client's input has ended; what that means to the program is the shim's business (StdinOnce).
    writer.write_all(&protocol::stream_header(StreamKind::Stdin, 0)).await
}

async fn receive_output(mut reader: OwnedReadHalf, to_client: &mpsc::Sender<OutputFrame>) -> io::Result<()> {
    loop {
        let mut header = [0; protocol::STREAM_HEADER_BYTES];
        match reader.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
        let (kind, length) = protocol::parse_stream_header(header, FRAME_BYTES_MAX).map_err(invalid)?;
        let mut bytes = BytesMut::zeroed(length);
        reader.read_exact(&mut bytes).await?;
        let stream = match kind {
            StreamKind::Stderr => OutputStream::Stderr,
            _ => OutputStream::Stdout,
        };
        if to_client.send(OutputFrame { stream, bytes: bytes.freeze() }).await.is_err() {
            return Ok(());
        }
    }
}
