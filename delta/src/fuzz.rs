//! What fuzzers feed: a source layer and a delta, or the bare streams of one frame.

use std::io::{self, Write};

use baleen_oci::{DiffId, Digest};

use crate::decode::{Decoder, apply};
use crate::error::DeltaError;
use crate::frame::Streams;
use crate::header::{FrameFacts, Header};
use crate::limits::MEMORY_BYTES_MAX;
use crate::source::SourceLayer;
use crate::tar_layer::TarLayer;

/// Most that is written for one input.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
const WHOLE: u8 = 0;
const STREAMS: u8 = 1;

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        assert!(self.0 <= OUTPUT_BYTES_MAX, "more is written than the header says");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn source(tar: &[u8]) -> Option<TarLayer<Vec<u8>>> {
    TarLayer::open(DiffId(Digest::sha256_of(b"fuzz")), tar.to_vec()).ok()
}

/// Applies an input that [`inputs`] made, or any other.
pub fn feed(bytes: &[u8]) {
    let Some(([kind, low, high], rest)) = bytes.split_first_chunk::<3>() else { return };
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (tar, rest) = rest.split_at(length);
    let Some(layer) = source(tar) else { return };
    if *kind == WHOLE {
        let layers = vec![layer];
        let Ok(header) = Header::parse(rest) else { return };
        // Any diff ID is that of the source here.
        if header.output_bytes() > OUTPUT_BYTES_MAX || header.sources.len() > 1 {
            return;
        }
        let Ok(mut decoder) = Decoder::new(rest, &layers, MEMORY_BYTES_MAX) else { return };
        let mut output = Counting(0);
        while let Ok(Some(_)) = decoder.next_frame(&mut output) {}
        return;
    }
    let Some(([a, b, c], mut rest)) = rest.split_first_chunk::<3>() else { return };
    let output_bytes = u64::from(u32::from_le_bytes([*a, *b, *c, 0])).min(OUTPUT_BYTES_MAX);
    let mut streams = Streams::default();
    for stream in streams.all() {
        let Some(([low, high], more)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        *stream = more[..length].to_vec();
        rest = &more[length..];
    }
    let facts = FrameFacts {
        offset: 0,
        packed_bytes: 0,
        raw_bytes: streams.raw_bytes() as u32,
        output_bytes,
        tar_offset: 0,
        output_check: [0; 16],
        packed_check: [0; 8],
    };
    let sources: [&dyn SourceLayer; 1] = [&layer];
    let result = apply(0, &facts, &streams, &sources, &mut Counting(0));
    assert!(result.is_err(), "bytes have a hash of zeros");
}

/// Inputs from a delta that was made out of `tar`: itself, and the streams of each frame.
///
/// # Errors
/// Those of reading it.
pub fn inputs(tar: &[u8], delta: &[u8]) -> Result<Vec<Vec<u8>>, DeltaError> {
    let header = Header::parse(delta)?;
    let begin = |kind: u8| [&[kind][..], &(tar.len() as u16).to_le_bytes(), tar].concat();
    let mut inputs = vec![[&begin(WHOLE)[..], delta].concat()];
    for frame in &header.frames {
        let from = frame.offset as usize;
        let packed = delta.get(from..from + frame.packed_bytes as usize).ok_or(DeltaError::Truncated)?;
        let mut streams = Streams::unpack(packed, frame.raw_bytes as usize)?;
        let mut input = begin(STREAMS);
        input.extend_from_slice(&(frame.output_bytes as u32).to_le_bytes()[..3]);
        for stream in streams.all() {
            input.extend_from_slice(&(stream.len() as u16).to_le_bytes());
            input.extend_from_slice(stream);
        }
        inputs.push(input);
    }
    Ok(inputs)
}

/// The diff ID that stands for the source of every input.
pub fn source_diff_id() -> DiffId {
    DiffId(Digest::sha256_of(b"fuzz"))
}
