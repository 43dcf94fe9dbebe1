//! Planned payloads and blocks put together to frames.
//!
//! M1  A frame ends where the tar has whole blocks, so that padding follows from the place in the tar.
//! M2  Layers of the source are numbered as they are first used: what no frame reads is not in the header.

use std::io::Write;

use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::tar::BLOCK_BYTES;

use crate::blocks::{Block, BlockAt, BlockState, mode};
use crate::bytes::{put_number, put_signed};
use crate::catalog::{Catalog, Grouping};
use crate::encode::{Level, Share};
use crate::error::DeltaError;
use crate::frame::{PackLevel, Stream, Streams};
use crate::header::{FrameFacts, Header, LayerFacts, check};
use crate::limits::{FRAME_PACKED_BYTES_MAX, FRAME_RAW_BYTES_MAX, FRAMES_MAX};
use crate::payload::PayloadAt;
use crate::plan::Part;
use crate::program::PREDICTOR_BYTES;
use crate::source::ReadAt;
use crate::walk::payload_after;

/// A frame takes no more once it has this much; leaves room for what a block or a payload adds beside its streams.
const RAW_BYTES_TARGET: usize = FRAME_RAW_BYTES_MAX as usize - (64 << 10);
/// A frame takes no more once it writes this much: what is applied again after a cut.
const OUTPUT_BYTES_TARGET: u64 = 128 << 20;
/// What applying takes beside the frame: buffers, files that are open, models of the unpacker.
const FIXED_MEMORY_BYTES: u64 = 2 << 20;
const READ_BYTES: usize = 256 << 10;

/// Payloads by technique.
pub(crate) type Shares = Vec<(&'static str, Share)>;
/// Bytes by stream, unpacked and packed.
pub(crate) type StreamShares = Vec<(&'static str, u64, u64)>;

pub(crate) struct Assembly<'a, S> {
    catalog: &'a Catalog<'a>,
    level: Level,
    scratch: &'a mut S,
    layers: Vec<LayerFacts>,
    frames: Vec<FrameFacts>,
    /// For each source layer its number in the header, once it has one.
    numbers: Vec<Option<usize>>,
    sources: Vec<DiffId>,
    frame: Frame,
    memory_bytes: u64,
    shares: Shares,
    stream_shares: StreamShares,
}

/// The open frame.
#[derive(Default)]
struct Frame {
    streams: Streams,
    blocks: BlockState,
    next: PayloadAt,
    same: u64,
    references_same: u64,
    from: u64,
    output_bytes: u64,
    matches: usize,
    has_program: bool,
}

impl<'a, S: Write> Assembly<'a, S> {
    pub(crate) fn new(catalog: &'a Catalog<'a>, level: Level, scratch: &'a mut S) -> Self {
        Self {
            catalog,
            level,
            scratch,
            layers: Vec::new(),
            frames: Vec::new(),
            numbers: vec![None; catalog.layers.len()],
            sources: Vec::new(),
            frame: Frame::default(),
            memory_bytes: 0,
            shares: Vec::new(),
            stream_shares: Vec::new(),
        }
    }

    /// Begins a layer.
    pub(crate) fn begin(&mut self, diff_id: DiffId) {
        let first_frame = self.frames.len();
        self.layers.push(LayerFacts { diff_id, tar_size_bytes: 0, first_frame, frame_count: 0 });
        self.frame = Frame::default();
    }

    /// Ends the layer.
    pub(crate) fn end(&mut self, tar: &dyn ReadAt) -> Result<(), DeltaError> {
        self.close(tar)?;
        let frames = self.frames.len();
        if let Some(layer) = self.layers.last_mut() {
            layer.frame_count = frames - layer.first_frame;
            layer.tar_size_bytes = tar.size_bytes();
        }
        Ok(())
    }

    /// Adds blocks. `next` are the parts of the payload that follows the last of them.
    pub(crate) fn blocks(&mut self, blocks: &[u8], next: Option<&[Part]>, tar: &dyn ReadAt) -> Result<(), DeltaError> {
        let blocks = blocks.as_chunks::<BLOCK_BYTES>().0;
        let references = self.references(blocks);
        for (number, (block, reference)) in blocks.iter().zip(references).enumerate() {
            let follows = if number + 1 == blocks.len() { next } else { None };
            let first = follows.and_then(<[Part]>::first);
            self.make_room(first.map_or(0, Part::raw_bytes) + 2048, tar)?;
            let reference =
                reference.map(|(at, block)| (BlockAt { layer: self.number(at.layer), index: at.index }, block));
            let mut how = self.frame.blocks.encode(block, reference, &mut self.frame.streams);
            let expected = payload_after(block);
            let length = first.map(|part| part.length);
            if expected != length {
                how |= mode::EXCEPTION;
                put_number(self.frame.streams.at(Stream::PayloadNumber), length.unwrap_or(0));
            }
            self.frame.streams.at(Stream::BlockMode).push(how);
            self.frame.output_bytes += BLOCK_BYTES as u64;
        }
        Ok(())
    }

    /// The source block for each block: that at the same place in the group of the same name; without a name, the one after the
    /// last.
    fn references(&self, blocks: &[Block]) -> Vec<Option<(BlockAt, Block)>> {
        let mut references: Vec<Option<BlockAt>> = vec![None; blocks.len()];
        let mut grouping = Grouping::default();
        let mut after: Option<BlockAt> = None;
        for (number, block) in blocks.iter().enumerate() {
            let Some((key, count)) = grouping.next(block) else {
                references[number] = after.map(|at| BlockAt { layer: at.layer, index: at.index + 1 });
                after = references[number];
                continue;
            };
            let group = self.catalog.group(key);
            for back in 0..count {
                let found = group.filter(|group| back < group.count).map(|group| BlockAt {
                    layer: group.first.layer,
                    index: group.first.index + group.count - 1 - back,
                });
                references[number - back as usize] = found;
            }
            after = references[number];
        }
        let with_bytes = |at: Option<BlockAt>| at.and_then(|at| self.catalog.block(at).map(|block| (at, block)));
        references.into_iter().map(with_bytes).collect()
    }

    /// Adds a payload and its padding. `has_header`: the block before it has announced its first part.
    pub(crate) fn payload(
        &mut self,
        parts: Vec<Part>,
        has_header: bool,
        padding: &[u8],
        tar: &dyn ReadAt,
    ) -> Result<(), DeltaError> {
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            if number > 0 || !has_header {
                self.make_room(part.raw_bytes() + 1024, tar)?;
                self.frame.streams.at(Stream::BlockMode).push(mode::PAYLOAD);
                put_number(self.frame.streams.at(Stream::PayloadNumber), part.length);
            }
            let is_last = number + 1 == count;
            self.part(part, if is_last { padding } else { &[] });
        }
        Ok(())
    }

    fn part(&mut self, mut part: Part, padding: &[u8]) {
        self.note(&part);
        let mut how = part.mode;
        let source = part.source.map(|at| PayloadAt { layer: self.number(at.layer), index: at.index });
        let frame = &mut self.frame;
        let block = BLOCK_BYTES as u64;
        let end = frame.from + frame.output_bytes + part.length;
        let usual = (block - end % block) % block;
        how.has_padding = padding.len() as u64 != usual || padding.iter().any(|byte| *byte != 0);
        if let Some(at) = source {
            if at != frame.next {
                how.has_jump = true;
                frame.next.put_jump(at, frame.streams.at(Stream::PayloadNumber));
            }
            frame.next = PayloadAt { layer: at.layer, index: at.index + 1 };
        }
        frame.streams.at(Stream::PayloadMode).push(how.byte());
        if let Some(stamp) = part.stamp {
            let relative = stamp.wrapping_sub(frame.blocks.last_time() as u32) as i32;
            put_signed(frame.streams.at(Stream::Stamp), i64::from(relative));
        }
        for (same, other) in part.runs.drain(..) {
            put_number(frame.streams.at(Stream::Run), std::mem::take(&mut frame.same) + same);
            put_number(frame.streams.at(Stream::Run), other);
        }
        frame.same += part.same_last;
        for (same, difference) in part.references.drain(..) {
            put_number(frame.streams.at(Stream::ReferenceRun), std::mem::take(&mut frame.references_same) + same);
            put_number(frame.streams.at(Stream::ReferenceValue), u64::from(difference));
        }
        frame.references_same += part.references_last;
        frame.streams.append(&part.streams);
        if how.has_padding {
            put_number(frame.streams.at(Stream::PayloadNumber), padding.len() as u64);
            frame.streams.at(Stream::BlockBytes).extend_from_slice(padding);
        }
        frame.output_bytes += part.length + padding.len() as u64;
        frame.matches = frame.matches.max(part.matches);
        frame.has_program |= how.is_program;
    }

    /// Adds zeros.
    pub(crate) fn zeros(&mut self, count: u64, tar: &dyn ReadAt) -> Result<(), DeltaError> {
        self.make_room(1024, tar)?;
        self.frame.streams.at(Stream::BlockMode).push(mode::ZEROS);
        put_number(self.frame.streams.at(Stream::PayloadNumber), count);
        self.frame.output_bytes += count;
        Ok(())
    }

    fn note(&mut self, part: &Part) {
        let at = match self.shares.iter().position(|(name, _)| *name == part.technique) {
            Some(at) => at,
            None => {
                self.shares.push((part.technique, Share::default()));
                self.shares.len() - 1
            }
        };
        let share = &mut self.shares[at].1;
        share.payloads += 1;
        share.output_bytes += part.length;
        share.raw_bytes += part.streams.raw_bytes() as u64;
    }

    fn number(&mut self, layer: usize) -> usize {
        if let Some(number) = self.numbers[layer] {
            return number;
        }
        let number = self.sources.len();
        self.sources.push(self.catalog.layers[layer].diff_id());
        self.numbers[layer] = Some(number);
        number
    }

    /// Closes the frame if it cannot take so many more bytes of streams.
    fn make_room(&mut self, raw_bytes: usize, tar: &dyn ReadAt) -> Result<(), DeltaError> {
        let is_full = self.frame.streams.raw_bytes() + raw_bytes > RAW_BYTES_TARGET;
        if is_full || self.frame.output_bytes > OUTPUT_BYTES_TARGET { self.close(tar) } else { Ok(()) }
    }

    fn close(&mut self, tar: &dyn ReadAt) -> Result<(), DeltaError> {
        let frame = std::mem::take(&mut self.frame);
        let (from, output_bytes) = (frame.from, frame.output_bytes);
        self.frame.from = from + output_bytes;
        if output_bytes == 0 {
            return Ok(());
        }
        if self.frames.len() == FRAMES_MAX {
            return Err(DeltaError::TooLarge { problem: "it has too many frames" });
        }
        let raw_bytes = frame.streams.raw_bytes();
        assert!(raw_bytes <= FRAME_RAW_BYTES_MAX as usize, "a frame has {raw_bytes} bytes of streams");
        let level = if self.level == Level::Fast { PackLevel::Fast } else { PackLevel::Best };
        let stream_shares = &mut self.stream_shares;
        let packed = frame.streams.pack(level, &mut |name, raw, packed| match stream_shares
            .iter_mut()
            .find(|(known, ..)| *known == name)
        {
            Some(share) => (share.1, share.2) = (share.1 + raw, share.2 + packed),
            None => stream_shares.push((name, raw, packed)),
        });
        assert!(packed.len() <= FRAME_PACKED_BYTES_MAX as usize, "a frame has {} bytes", packed.len());
        self.scratch.write_all(&packed).map_err(DeltaError::Write)?;
        let mut output_check = [0; 16];
        output_check.copy_from_slice(&self.hash(tar, from, output_bytes)?.as_bytes()[..16]);
        // The packed frame and the dictionary of one stream are there while the streams are made; the matches after that.
        let matches = (frame.matches * 2 * size_of::<crate::patch::Match>()) as u64;
        let program = if frame.has_program { PREDICTOR_BYTES } else { 0 };
        let work = (packed.len() as u64 + frame.streams.longest() as u64).max(matches + program);
        self.memory_bytes = self.memory_bytes.max(FIXED_MEMORY_BYTES + raw_bytes as u64 + work);
        self.frames.push(FrameFacts {
            offset: 0,
            packed_bytes: packed.len() as u32,
            raw_bytes: raw_bytes as u32,
            output_bytes,
            tar_offset: from,
            output_check,
            packed_check: check(&packed),
        });
        Ok(())
    }

    fn hash(&self, tar: &dyn ReadAt, from: u64, length: u64) -> Result<blake3::Hash, DeltaError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(READ_BYTES as u64) as usize;
            let diff_id = self.layers.last().map(|layer| layer.diff_id);
            tar.read_exact_at(&mut buffer[..count], from + done).map_err(|source| match diff_id {
                Some(diff_id) => DeltaError::Target { layer: Box::new(diff_id), source },
                None => DeltaError::Read(source),
            })?;
            hasher.update(&buffer[..count]);
            done += count as u64;
        }
        Ok(hasher.finalize())
    }

    /// The header, and what the delta consists of.
    pub(crate) fn finish(self, config: &Digest) -> Result<(Header, Shares, StreamShares), DeltaError> {
        let header = Header {
            target_config: *config,
            // To a multiple, so that the number does not tell more than it knows.
            memory_bytes: self.memory_bytes.next_multiple_of(64 << 10),
            sources: self.sources,
            layers: self.layers,
            frames: self.frames,
            header_bytes: 0,
        };
        // Its offsets follow from its bytes.
        let header = Header::parse(&header.write())?;
        Ok((header, self.shares, self.stream_shares))
    }
}
