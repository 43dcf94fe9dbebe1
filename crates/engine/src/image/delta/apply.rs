//! One layer's tar out of a delta: its frames from the registry, through the decoder, to the extraction.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use baleen_delta::{Decoder, DeltaError, StoredLayer};
use baleen_registry::{BlobEvent, RepositoryClient};
use baleen_store::Store;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task;

use super::{DeltaSource, MEMORY_BYTES_MAX};
use crate::door::ended;
use crate::error::EngineError;
use crate::image::download::Received;
use crate::image::unpack::Piece;

/// Pieces of the delta between the network and the decoder.
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// What happens while a layer comes.
pub(crate) enum ApplyEvent {
    /// Bytes of the delta that have come, of how many.
    Fetched(u64, u64),
    /// The connection broke.
    Retrying(u64, Arc<str>),
    /// All of the layer is there.
    Complete,
}

/// A layer of a delta, and where its bytes and those that it reads from are.
pub(crate) struct Origin<'a> {
    pub(crate) delta: &'a Arc<DeltaSource>,
    /// The layer's number in the delta.
    pub(crate) number: usize,
    pub(crate) store: &'a Store,
    pub(crate) client: &'a RepositoryClient,
}

/// Feeds the tar of the layer from `offset` on. `Ok` as well when the extraction has failed, which then says why.
///
/// # Errors
/// Of the registry, or `Part` with what the decoder says.
pub(crate) async fn feed(
    origin: &Origin<'_>,
    offset: u64,
    pieces: mpsc::Sender<Piece>,
    on_event: Arc<dyn Fn(ApplyEvent) + Send + Sync>,
    received: &mut Received,
) -> Result<(), EngineError> {
    let &Origin { delta, number, store, client } = origin;
    let (begin, end) = delta.extent(number);
    let Some(frame) = delta.header.frame_at(number, offset) else {
        on_event(ApplyEvent::Complete);
        let _ = pieces.send(Piece::End).await;
        return Ok(());
    };
    let facts = delta.header.frames[frame];
    let (sender, taken) = mpsc::channel::<Bytes>(PIECES_MAX);
    let applying = {
        let (delta, store, on_event) = (Arc::clone(delta), store.clone(), Arc::clone(&on_event));
        let skip = offset - facts.tar_offset;
        task::spawn_blocking(move || {
            let reader = Arriving { pieces: taken, rest: Bytes::new() };
            let sink = Sink { pieces, skip, buffer: Vec::with_capacity(PIECE_BYTES), has_gone: false };
            apply(&delta, frame, &store, reader, sink, &|| on_event(ApplyEvent::Complete))
        })
    };
    let total = end - begin;
    on_event(ApplyEvent::Fetched(facts.offset - begin, total));
    received.resumed_bytes = facts.offset - begin;
    let fetched = match &delta.whole {
        Some(bytes) => {
            // The bytes were counted when they came.
            let _ = sender.send(bytes.slice(facts.offset as usize..end as usize)).await;
            Ok(())
        }
        None => {
            let told = Arc::clone(&on_event);
            let retrying = move |event| {
                if let BlobEvent::Retrying { seconds_left, error, .. } = event {
                    told(ApplyEvent::Retrying(seconds_left, error.into()));
                }
            };
            let mut stream = client.blob(&delta.blob, facts.offset, retrying).until(end);
            let outcome = loop {
                match stream.next_chunk().await {
                    Ok(Some(bytes)) => {
                        if sender.send(bytes).await.is_err() {
                            break Ok(()); // The decoder has ended and says why.
                        }
                        on_event(ApplyEvent::Fetched(stream.position() - begin, total));
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(EngineError::Registry(Box::new(error))),
                }
            };
            received.fetched_bytes += stream.fetched_bytes();
            delta.rest_bytes.fetch_add(stream.fetched_bytes(), Ordering::Relaxed);
            outcome
        }
    };
    drop(sender);
    let applied = applying.await.map_err(|error| ended("apply a delta", &error))?;
    match (fetched, applied) {
        // Then what the decoder lacks is only what did not come.
        (Err(error), Err(_)) => Err(error),
        (_, Ok(())) => Ok(()),
        (Ok(()), Err(error)) => Err(EngineError::part("apply the delta", error)),
    }
}

/// Runs the decoder over one layer. Blocking.
fn apply(
    delta: &DeltaSource,
    frame: usize,
    store: &Store,
    reader: Arriving,
    mut sink: Sink,
    complete: &dyn Fn(),
) -> Result<(), DeltaError> {
    let open = |key: &baleen_store::LayerKey| {
        let failed = |error: io::Error| DeltaError::Read(error);
        let dir = store.layer_dir(key).map_err(|error| failed(io::Error::other(error)))?;
        StoredLayer::open(Arc::clone(store.disk()), dir)
            .map_err(|source| DeltaError::Source { layer: Box::new(key.diff_id), source })
    };
    let layers: Vec<StoredLayer> = delta.sources.iter().map(open).collect::<Result<_, _>>()?;
    let mut decoder = Decoder::resume(delta.header.clone(), reader, frame, &layers, MEMORY_BYTES_MAX)?;
    loop {
        match decoder.next_frame(&mut sink) {
            Ok(Some(done)) if done.layer_complete => break,
            Ok(Some(_)) => {}
            Ok(None) => return Err(DeltaError::Truncated),
            // The extraction has ended and says why.
            Err(_) if sink.has_gone => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    if sink.flush().is_ok() {
        complete();
        let _ = sink.pieces.blocking_send(Piece::End);
    }
    Ok(())
}

/// The delta's bytes as they arrive.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// The tar on its way to the extraction, without what that has already.
struct Sink {
    pieces: mpsc::Sender<Piece>,
    skip: u64,
    buffer: Vec<u8>,
    has_gone: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE_BYTES);
        // At most `count`, which is a `usize`.
        let skipped = self.skip.min(count as u64) as usize;
        self.skip -= skipped as u64;
        self.buffer.extend_from_slice(&bytes[skipped..count]);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(Piece::Bytes(piece.into())).map_err(|_| {
            self.has_gone = true;
            io::ErrorKind::BrokenPipe.into()
        })
    }
}
