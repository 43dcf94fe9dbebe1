//! Applying a delta: frame after frame, from its bytes as they arrive.
//!
//! A1  A frame's bytes are checked before they are unpacked, what it writes once it is written.
//! A2  No frame writes more than its header declares, and none is done before it has written that much and used up its streams.

use std::io::{Read, Write};

use baleen_snapshotter::tar::BLOCK_BYTES;

use crate::blocks::{Block, BlockAt, BlockState, Skeletons, mode};
use crate::error::{DeltaError, SourceError, damaged};
use crate::frame::{Cursors, Stream, Streams};
use crate::header::{FrameFacts, Header, check};
use crate::patch::{self, MATCHES_MAX, Match, Old, Plain, Predict, Residual};
use crate::payload::{Kind, Mode, PayloadAt, Stamped};
use crate::program::Predictor;
use crate::source::{ReadAt, SourceLayer, Sources};
use crate::walk::payload_after;

/// Payloads of a frame that are looked at again if it came out wrong.
const SUSPECTS_MAX: usize = 4096;
const COPY_BYTES: usize = 128 << 10;

/// A frame that was written and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameDone {
    /// Its number in the delta.
    pub frame: usize,
    /// The layer that it belongs to, by its number in [`Header::layers`].
    pub layer: usize,
    /// Whether the layer's tar is complete with it.
    pub layer_complete: bool,
}

/// A delta being applied. Nothing is carried from frame to frame: after a cut, [`Decoder::resume`] with the number of the
/// first frame that is wanted goes on.
pub struct Decoder<'a, R> {
    header: Header,
    sources: Vec<&'a dyn SourceLayer>,
    delta: R,
    next: usize,
}

impl<R> std::fmt::Debug for Decoder<'_, R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Decoder").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<'a, R: Read> Decoder<'a, R> {
    /// Reads the header from the start of `delta`, and looks up the layers that it names. `memory_bytes_max` is what
    /// applying may take.
    ///
    /// # Errors
    /// Those of [`Header::read`]; [`DeltaError::SourceMissing`]; [`DeltaError::TooMuchMemory`].
    pub fn new(mut delta: R, sources: &'a dyn Sources, memory_bytes_max: u64) -> Result<Self, DeltaError> {
        let header = Header::read(&mut delta)?;
        Self::resume(header, delta, 0, sources, memory_bytes_max)
    }

    /// Goes on at a frame: `delta` begins at its [`offset`](crate::FrameFacts::offset).
    ///
    /// # Errors
    /// [`DeltaError::SourceMissing`]; [`DeltaError::TooMuchMemory`].
    pub fn resume(
        header: Header,
        delta: R,
        frame: usize,
        sources: &'a dyn Sources,
        memory_bytes_max: u64,
    ) -> Result<Self, DeltaError> {
        if header.memory_bytes > memory_bytes_max {
            return Err(DeltaError::TooMuchMemory {
                needed_bytes: header.memory_bytes,
                allowed_bytes: memory_bytes_max,
            });
        }
        let find = |diff_id| sources.layer(diff_id).ok_or(DeltaError::SourceMissing { layer: Box::new(*diff_id) });
        let sources = header.sources.iter().map(find).collect::<Result<_, _>>()?;
        Ok(Self { header, sources, delta, next: frame })
    }

    /// The delta's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Applies the next frame: its part of the tar goes to `tar`. `None` after the last one.
    ///
    /// `tar` receives bytes before the frame as a whole is checked, so what it made of them counts only once this has
    /// returned `Ok`, and the layer only once its diff ID is verified, which is the caller's to do. A layer without frames has
    /// an empty tar, and is not announced.
    ///
    /// # Errors
    /// [`DeltaError`]; the decoder is of no more use then. [`DeltaError::Truncated`] and [`DeltaError::Read`] are those of
    /// a connection that was cut: resume at this frame.
    pub fn next_frame(&mut self, tar: &mut dyn Write) -> Result<Option<FrameDone>, DeltaError> {
        let frame = self.next;
        let Some(facts) = self.header.frames.get(frame).copied() else { return Ok(None) };
        let mut packed = Vec::new();
        let length = u64::from(facts.packed_bytes);
        (&mut self.delta).take(length).read_to_end(&mut packed).map_err(DeltaError::Read)?;
        if (packed.len() as u64) < length {
            return Err(DeltaError::Truncated);
        }
        if check(&packed) != facts.packed_check {
            return Err(damaged("a frame does not match its checksum"));
        }
        let streams = Streams::unpack(&packed, facts.raw_bytes as usize)?;
        drop(packed);
        apply(frame, &facts, &streams, &self.sources, tar)?;
        self.next += 1;
        let owns = |layer: &crate::LayerFacts| frame < layer.first_frame + layer.frame_count;
        let layer = self.header.layers.iter().position(owns).unwrap_or_default();
        let layer_complete =
            self.header.layers.get(layer).is_some_and(|layer| layer.first_frame + layer.frame_count == frame + 1);
        Ok(Some(FrameDone { frame, layer, layer_complete }))
    }
}

/// Applies the streams of one frame.
pub(crate) fn apply(
    number: usize,
    facts: &FrameFacts,
    streams: &Streams,
    sources: &[&dyn SourceLayer],
    tar: &mut dyn Write,
) -> Result<(), DeltaError> {
    let mut frame = Frame {
        sources,
        cursors: Cursors::new(streams),
        blocks: BlockState::default(),
        next: PayloadAt::default(),
        corrections: Corrections::default(),
        skeleton: SkeletonReader { sources, open: None },
        suspects: Vec::new(),
        output: Output { tar, hasher: blake3::Hasher::new(), left: facts.output_bytes, offset: facts.tar_offset },
    };
    while frame.output.left > 0 {
        frame.step()?;
    }
    if !frame.cursors.are_used_up() {
        return Err(damaged("a frame has more than it needs"));
    }
    if frame.output.hasher.finalize().as_bytes()[..16] == facts.output_check {
        return Ok(());
    }
    let suspects = std::mem::take(&mut frame.suspects);
    drop(frame);
    match blame(sources, &suspects) {
        Some((layer, index)) => Err(DeltaError::SourceDamaged { layer: Box::new(layer), index }),
        None => Err(DeltaError::FrameMismatch { frame: number }),
    }
}

/// The first of the payloads that is not what its layer records.
fn blame(sources: &[&dyn SourceLayer], suspects: &[PayloadAt]) -> Option<(baleen_oci::DiffId, u64)> {
    let is_damaged = |at: &&PayloadAt| {
        let Some(layer) = sources.get(at.layer) else { return false };
        let (Ok(facts), Ok(payload)) = (layer.facts(at.index), layer.open(at.index)) else { return true };
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < facts.size_bytes {
            let part = (facts.size_bytes - offset).min(COPY_BYTES as u64) as usize;
            if payload.read_exact_at(&mut buffer[..part], offset).is_err() {
                return true;
            }
            hasher.update(&buffer[..part]);
            offset += part as u64;
        }
        *hasher.finalize().as_bytes() != facts.blake3
    };
    let found = suspects.iter().find(is_damaged)?;
    sources.get(found.layer).map(|layer| (layer.diff_id(), found.index))
}

/// Where the tar goes, counted and hashed.
struct Output<'a> {
    tar: &'a mut dyn Write,
    hasher: blake3::Hasher,
    left: u64,
    /// In the tar of the layer.
    offset: u64,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), DeltaError> {
        let count = bytes.len() as u64;
        self.left = self.left.checked_sub(count).ok_or_else(|| damaged("a frame writes more than it says"))?;
        self.offset += count;
        self.hasher.update(bytes);
        self.tar.write_all(bytes).map_err(DeltaError::Write)
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), DeltaError> {
        let zeros = [0; 16 << 10];
        while count > 0 {
            let part = count.min(zeros.len() as u64) as usize;
            self.write(&zeros[..part])?;
            count -= part as u64;
        }
        Ok(())
    }
}

struct Frame<'a, 's> {
    sources: &'a [&'a dyn SourceLayer],
    cursors: Cursors<'s>,
    blocks: BlockState,
    next: PayloadAt,
    corrections: Corrections,
    skeleton: SkeletonReader<'a>,
    suspects: Vec<PayloadAt>,
    output: Output<'a>,
}

impl Frame<'_, '_> {
    /// A block and the payload that follows it, or what stands in their place.
    fn step(&mut self) -> Result<(), DeltaError> {
        let how = self.cursors.at(Stream::BlockMode).byte()?;
        let is_exception = how & mode::EXCEPTION != 0;
        let length = match how & !mode::EXCEPTION {
            mode::JUMP => return self.blocks.decode_jump(&mut self.cursors, self.sources.len()),
            mode::ZEROS => {
                let count = self.cursors.at(Stream::PayloadNumber).number()?;
                return self.output.zeros(count.min(self.output.left.saturating_add(1)));
            }
            mode::PAYLOAD => Some(self.cursors.at(Stream::PayloadNumber).number()?),
            how => {
                let block = self.blocks.decode(how, &mut self.cursors, &mut self.skeleton)?;
                self.output.write(&block)?;
                payload_after(&block)
            }
        };
        let length = if is_exception {
            Some(self.cursors.at(Stream::PayloadNumber).number()?).filter(|length| *length > 0)
        } else {
            length
        };
        length.map_or(Ok(()), |length| self.payload(length))
    }

    fn payload(&mut self, length: u64) -> Result<(), DeltaError> {
        if length > self.output.left {
            return Err(damaged("a frame writes more than it says"));
        }
        let payload_mode = Mode::parse(self.cursors.at(Stream::PayloadMode).byte()?)?;
        match payload_mode.kind {
            Kind::Text | Kind::Code => self.literal(payload_mode.kind, length)?,
            Kind::Copy | Kind::Match => self.derived(payload_mode, length)?,
        }
        if payload_mode.has_padding {
            let count = self.cursors.at(Stream::PayloadNumber).size(BLOCK_BYTES)?;
            let padding = self.cursors.at(Stream::BlockBytes).take(count)?;
            return self.output.write(padding);
        }
        let block = BLOCK_BYTES as u64;
        let padding = (block - self.output.offset % block) % block;
        self.output.zeros(padding.min(self.output.left))
    }

    fn literal(&mut self, kind: Kind, length: u64) -> Result<(), DeltaError> {
        let stream = if kind == Kind::Code { Stream::Code } else { Stream::Text };
        let length = usize::try_from(length).map_err(|_| damaged("a payload is too long"))?;
        let bytes = self.cursors.at(stream).take(length)?;
        self.output.write(bytes)
    }

    fn derived(&mut self, payload_mode: Mode, length: u64) -> Result<(), DeltaError> {
        if payload_mode.has_jump {
            self.next.jump(self.cursors.at(Stream::PayloadNumber), self.sources.len())?;
        }
        let at = self.next;
        self.next.index += 1;
        let layer = *self.sources.get(at.layer).ok_or_else(|| damaged("it names no source"))?;
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.push(at);
        }
        let payload = open(layer, at.index)?;
        let stamp = if payload_mode.has_stamp {
            let relative = self.cursors.at(Stream::Stamp).signed()?;
            Some((self.blocks.last_time() as u32).wrapping_add(relative as u32))
        } else {
            None
        };
        let payload = Stamped { payload: &*payload, stamp };
        let diff_id = layer.diff_id();
        let failed = |error| read_failed(diff_id, at.index, error);
        let old = Old { bytes: &payload, failed: &failed };
        if payload_mode.kind == Kind::Copy {
            return self.copy(&old, length);
        }
        let matches = self.matches(length)?;
        let mut predictor;
        let predict: &mut dyn Predict = if payload_mode.is_program {
            predictor =
                Predictor::decode(self.cursors.at(Stream::Program), &payload, &matches).map_err(
                    |error| match error {
                        crate::program::ProgramError::Delta(error) => error,
                        crate::program::ProgramError::Read(error) => failed(error),
                    },
                )?;
            &mut predictor
        } else {
            &mut Plain
        };
        let gaps = if payload_mode.gaps_are_code { Stream::Code } else { Stream::Text };
        let mut residual = Corrector { cursors: &mut self.cursors, state: &mut self.corrections, gaps };
        let output = &mut self.output;
        patch::run(&old, &matches, length, predict, &mut residual, &mut |bytes| output.write(bytes))
    }

    fn copy(&mut self, old: &Old<'_>, length: u64) -> Result<(), DeltaError> {
        if old.bytes.size_bytes() != length {
            return Err(damaged("a payload is not as long as its source"));
        }
        let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(buffer.len() as u64) as usize;
            old.bytes.read_exact_at(&mut buffer[..part], done).map_err(old.failed)?;
            self.output.write(&buffer[..part])?;
            done += part as u64;
        }
        Ok(())
    }

    fn matches(&mut self, length: u64) -> Result<Vec<Match>, DeltaError> {
        let count = self.cursors.at(Stream::PayloadNumber).size(MATCHES_MAX)?;
        let mut matches = Vec::new();
        let (mut new, mut old) = (0u64, 0u64);
        let outside = || damaged("a match is outside its payload");
        for _ in 0..count {
            let gap = self.cursors.at(Stream::GapLength).number()?;
            let length_of = self.cursors.at(Stream::MatchLength).number()?;
            let jump = self.cursors.at(Stream::Jump).signed()?;
            new = new.checked_add(gap).filter(|new| *new <= length).ok_or_else(outside)?;
            old = old.checked_add(gap).and_then(|old| old.checked_add_signed(jump)).ok_or_else(outside)?;
            matches.push(Match { new, old, length: length_of });
            new = new.checked_add(length_of).filter(|new| *new <= length).ok_or_else(outside)?;
            old = old.checked_add(length_of).filter(|old| *old <= i64::MAX as u64).ok_or_else(outside)?;
        }
        Ok(matches)
    }
}

fn open(layer: &dyn SourceLayer, index: u64) -> Result<Box<dyn ReadAt + '_>, DeltaError> {
    layer.open(index).map_err(|source| match source {
        SourceError::NoPayload { .. } => damaged("it names a payload that its source has not"),
        source => DeltaError::Source { layer: Box::new(layer.diff_id()), source },
    })
}

fn read_failed(diff_id: baleen_oci::DiffId, index: u64, error: std::io::Error) -> DeltaError {
    let layer = Box::new(diff_id);
    match error.kind() {
        // It was longer when its recipe was written.
        std::io::ErrorKind::UnexpectedEof => DeltaError::SourceDamaged { layer, index },
        _ => {
            let source = SourceError::Io { action: "read", what: format!("payload {index}"), source: error };
            DeltaError::Source { layer, source }
        }
    }
}

/// Where the runs of differences stand: they go on over the payloads of a frame. When their stream has ended, all is as predicted.
#[derive(Debug, Default)]
struct Corrections {
    same_left: u64,
    other_left: u64,
    references_same_left: u64,
    reference_is_next: bool,
}

struct Corrector<'a, 's> {
    cursors: &'a mut Cursors<'s>,
    state: &'a mut Corrections,
    gaps: Stream,
}

impl Residual for Corrector<'_, '_> {
    fn bytes(&mut self, _new: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        let mut at = 0;
        while at < buffer.len() {
            let left = buffer.len() - at;
            if self.state.same_left > 0 {
                let count = left.min(usize::try_from(self.state.same_left).unwrap_or(left));
                self.state.same_left -= count as u64;
                at += count;
            } else if self.state.other_left > 0 {
                let count = left.min(usize::try_from(self.state.other_left).unwrap_or(left));
                let differences = self.cursors.at(Stream::Difference).take(count)?;
                for (byte, difference) in buffer[at..at + count].iter_mut().zip(differences) {
                    *byte = byte.wrapping_add(*difference);
                }
                self.state.other_left -= count as u64;
                at += count;
            } else if self.cursors.at(Stream::Run).is_empty() {
                return Ok(());
            } else {
                let runs = self.cursors.at(Stream::Run);
                (self.state.same_left, self.state.other_left) = (runs.number()?, runs.number()?);
            }
        }
        Ok(())
    }

    fn reference(&mut self, _new: u64, predicted: u32) -> Result<u32, DeltaError> {
        if !self.state.reference_is_next {
            let runs = self.cursors.at(Stream::ReferenceRun);
            if runs.is_empty() {
                return Ok(predicted);
            }
            self.state.references_same_left = runs.number()?;
            self.state.reference_is_next = true;
        }
        if self.state.references_same_left > 0 {
            self.state.references_same_left -= 1;
            return Ok(predicted);
        }
        self.state.reference_is_next = false;
        let difference = self.cursors.at(Stream::ReferenceValue).number()?;
        let difference = u32::try_from(difference).map_err(|_| damaged("a difference is too large"))?;
        Ok(patch::real(predicted, difference))
    }

    fn gap(&mut self, _new: u64, buffer: &mut [u8]) -> Result<(), DeltaError> {
        buffer.copy_from_slice(self.cursors.at(self.gaps).take(buffer.len())?);
        Ok(())
    }
}

/// Reads blocks of skeletons through a buffer: they are read in order, mostly.
struct SkeletonReader<'a> {
    sources: &'a [&'a dyn SourceLayer],
    open: Option<OpenSkeleton<'a>>,
}

struct OpenSkeleton<'a> {
    layer: usize,
    bytes: Box<dyn ReadAt + 'a>,
    buffer: Vec<u8>,
    from: u64,
}

impl Skeletons for SkeletonReader<'_> {
    fn block(&mut self, at: BlockAt) -> Result<Block, DeltaError> {
        let layer = *self.sources.get(at.layer).ok_or_else(|| damaged("it names no source"))?;
        let failed = |source| DeltaError::Source { layer: Box::new(layer.diff_id()), source };
        let open = match &mut self.open {
            Some(open) if open.layer == at.layer => open,
            open => {
                let bytes = layer.skeleton().map_err(failed)?;
                open.insert(OpenSkeleton { layer: at.layer, bytes, buffer: Vec::new(), from: 0 })
            }
        };
        let outside = || damaged("a block is outside its source");
        let offset = at.index.checked_mul(BLOCK_BYTES as u64).ok_or_else(outside)?;
        let mut block = [0; BLOCK_BYTES];
        let inside = offset.checked_sub(open.from).and_then(|from| usize::try_from(from).ok());
        if let Some(found) = inside.and_then(|from| open.buffer.get(from..from.checked_add(BLOCK_BYTES)?)) {
            block.copy_from_slice(found);
            return Ok(block);
        }
        let left = open.bytes.size_bytes().checked_sub(offset).filter(|left| *left >= BLOCK_BYTES as u64);
        let count = left.ok_or_else(outside)?.min(SKELETON_BUFFER_BYTES as u64) as usize;
        open.buffer.resize(count, 0);
        open.from = offset;
        let read = open.bytes.read_exact_at(&mut open.buffer, offset);
        read.map_err(|source| failed(SourceError::Io { action: "read", what: "the skeleton".to_owned(), source }))?;
        block.copy_from_slice(&open.buffer[..BLOCK_BYTES]);
        Ok(block)
    }
}

const SKELETON_BUFFER_BYTES: usize = 32 << 10;
