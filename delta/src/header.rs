//! The header of a delta: what it makes, from what, and what that costs.
//!
//! H1  A header is read whole or not at all: its length and its checksum come first, and both are checked before a field is.
//! H2  Frames lie one after the other behind it, without gaps; so a frame's place follows from the lengths before it.

use std::io::Read;

use baleen_oci::{Algorithm, DiffId, Digest};

use crate::bytes::{Fields, put_number};
use crate::error::{DeltaError, damaged};
use crate::limits::{
    FRAME_OUTPUT_BYTES_MAX, FRAME_PACKED_BYTES_MAX, FRAME_RAW_BYTES_MAX, FRAMES_MAX, HEADER_BYTES_MAX, LAYERS_MAX,
};

/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;
pub(crate) const MAGIC: &[u8; 8] = b"BLNDELTA";
/// Magic, version, length of the rest, checksum.
pub const FIXED_BYTES: usize = 24;

/// What a delta says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Digest of the target image's config.
    pub target_config: Digest,
    /// What applying takes at most, in bytes, without the receiver of the tars.
    pub memory_bytes: u64,
    /// Layers that are read from, and no other.
    pub sources: Vec<DiffId>,
    /// Layers that it makes, in the order of the image; those that the source image has too are not among them.
    pub layers: Vec<LayerFacts>,
    /// All frames, those of the first layer first.
    pub frames: Vec<FrameFacts>,
    /// Length of the header with its fixed part: the first frame begins there.
    pub header_bytes: u64,
}

/// A layer that a delta makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Length of its tar: the sum of what its frames write.
    pub tar_size_bytes: u64,
    /// Number of its first frame.
    pub first_frame: usize,
    /// Number of its frames; none only for an empty tar.
    pub frame_count: usize,
}

/// A frame of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFacts {
    /// Where it begins in the delta.
    pub offset: u64,
    /// Its length there.
    pub packed_bytes: u32,
    /// Length of its streams, unpacked.
    pub raw_bytes: u32,
    /// Bytes of the tar that it writes.
    pub output_bytes: u64,
    /// Where they begin in the tar of its layer.
    pub tar_offset: u64,
    /// First half of BLAKE3 of what it writes.
    pub output_check: [u8; 16],
    /// First bytes of BLAKE3 over the frame as it travels.
    pub packed_check: [u8; 8],
}

impl Header {
    /// Reads the header from the start of a delta.
    ///
    /// # Errors
    /// [`DeltaError::Damaged`]; [`DeltaError::Newer`]; [`DeltaError::Truncated`]; [`DeltaError::Read`].
    pub fn read(delta: &mut dyn Read) -> Result<Self, DeltaError> {
        let mut fixed = [0; FIXED_BYTES];
        read_exact(delta, &mut fixed)?;
        let length = Self::length(&fixed)?;
        let mut bytes = fixed.to_vec();
        bytes.resize(length, 0);
        read_exact(delta, &mut bytes[FIXED_BYTES..])?;
        Self::parse(&bytes)
    }

    /// Length of the whole header, from its first [`FIXED_BYTES`]: what to fetch before [`Header::parse`].
    ///
    /// # Errors
    /// [`DeltaError::Damaged`]; [`DeltaError::Newer`]; [`DeltaError::Truncated`] if `bytes` has fewer.
    pub fn length(bytes: &[u8]) -> Result<usize, DeltaError> {
        let fixed = bytes.get(..FIXED_BYTES).ok_or(DeltaError::Truncated)?;
        let mut fields = Fields(fixed);
        if fields.array()? != *MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        let version = u32::from_le_bytes(fields.array()?);
        if version != VERSION {
            return Err(DeltaError::Newer { version });
        }
        let rest = u32::from_le_bytes(fields.array()?) as usize;
        if rest > HEADER_BYTES_MAX - FIXED_BYTES {
            return Err(damaged("its header is too long"));
        }
        Ok(FIXED_BYTES + rest)
    }

    /// Reads the header at the start of `bytes`, which may go on.
    ///
    /// # Errors
    /// [`DeltaError::Damaged`]; [`DeltaError::Newer`]; [`DeltaError::Truncated`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DeltaError> {
        let length = Self::length(bytes)?;
        let rest = bytes.get(FIXED_BYTES..length).ok_or(DeltaError::Truncated)?;
        if check(rest) != bytes[16..FIXED_BYTES] {
            return Err(damaged("its header does not match its checksum"));
        }
        let mut fields = Fields(rest);
        let target_config = get_digest(&mut fields)?;
        let memory_bytes = fields.number()?;
        let mut sources = Vec::new();
        for _ in 0..fields.size(LAYERS_MAX)? {
            sources.push(DiffId(get_digest(&mut fields)?));
        }
        let (mut layers, mut frames) = (Vec::new(), Vec::new());
        let mut offset = length as u64;
        for _ in 0..fields.size(LAYERS_MAX)? {
            let diff_id = DiffId(get_digest(&mut fields)?);
            let first_frame = frames.len();
            let frame_count = fields.size(FRAMES_MAX - first_frame)?;
            let mut tar_size_bytes = 0u64;
            for _ in 0..frame_count {
                let packed_bytes = limited(&mut fields, u64::from(FRAME_PACKED_BYTES_MAX))? as u32;
                let raw_bytes = limited(&mut fields, u64::from(FRAME_RAW_BYTES_MAX))? as u32;
                let output_bytes = limited(&mut fields, FRAME_OUTPUT_BYTES_MAX)?;
                let (output_check, packed_check) = (fields.array()?, fields.array()?);
                let tar_offset = tar_size_bytes;
                // At most 2^16 frames of 2^40 bytes: no sum here overflows.
                tar_size_bytes += output_bytes;
                frames.push(FrameFacts {
                    offset,
                    packed_bytes,
                    raw_bytes,
                    output_bytes,
                    tar_offset,
                    output_check,
                    packed_check,
                });
                offset += u64::from(packed_bytes);
            }
            layers.push(LayerFacts { diff_id, tar_size_bytes, first_frame, frame_count });
        }
        if !fields.is_empty() {
            return Err(damaged("its header has more than it should"));
        }
        Ok(Self { target_config, memory_bytes, sources, layers, frames, header_bytes: length as u64 })
    }

    /// The header's bytes, fixed part included. Offsets follow from the rest and are not written.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        put_digest(&mut rest, &self.target_config);
        put_number(&mut rest, self.memory_bytes);
        put_number(&mut rest, self.sources.len() as u64);
        for source in &self.sources {
            put_digest(&mut rest, &source.0);
        }
        put_number(&mut rest, self.layers.len() as u64);
        for layer in &self.layers {
            put_digest(&mut rest, &layer.diff_id.0);
            put_number(&mut rest, layer.frame_count as u64);
            for frame in self.frames.iter().skip(layer.first_frame).take(layer.frame_count) {
                put_number(&mut rest, u64::from(frame.packed_bytes));
                put_number(&mut rest, u64::from(frame.raw_bytes));
                put_number(&mut rest, frame.output_bytes);
                rest.extend_from_slice(&frame.output_check);
                rest.extend_from_slice(&frame.packed_check);
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(rest.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&check(&rest));
        bytes.extend_from_slice(&rest);
        bytes
    }

    /// Length of the whole delta.
    pub fn delta_bytes(&self) -> u64 {
        self.frames.last().map_or(self.header_bytes, |frame| frame.offset + u64::from(frame.packed_bytes))
    }

    /// Bytes of all tars that it makes.
    pub fn output_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.tar_size_bytes).sum()
    }

    /// The frame that writes the byte at `tar_offset` of the tar of `layer`: where to go on after a cut, with the first
    /// `tar_offset - frame.tar_offset` bytes left out. `None` at the end of the tar or past it.
    pub fn frame_at(&self, layer: usize, tar_offset: u64) -> Option<usize> {
        let layer = self.layers.get(layer)?;
        let frames = self.frames.get(layer.first_frame..layer.first_frame + layer.frame_count)?;
        let inside = frames.partition_point(|frame| frame.tar_offset + frame.output_bytes <= tar_offset);
        (inside < frames.len()).then_some(layer.first_frame + inside)
    }
}

fn read_exact(delta: &mut dyn Read, buffer: &mut [u8]) -> Result<(), DeltaError> {
    delta.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => DeltaError::Truncated,
        _ => DeltaError::Read(error),
    })
}

pub(crate) fn check(bytes: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    check
}

fn limited(fields: &mut Fields<'_>, most: u64) -> Result<u64, DeltaError> {
    match fields.number()? {
        value if value <= most => Ok(value),
        _ => Err(damaged("a frame is too large")),
    }
}

fn put_digest(into: &mut Vec<u8>, digest: &Digest) {
    into.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    into.extend_from_slice(digest.as_bytes());
}

fn get_digest(fields: &mut Fields<'_>) -> Result<Digest, DeltaError> {
    let algorithm = match fields.byte()? {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return Err(damaged("a digest is of an unknown kind")),
    };
    Digest::from_bytes(algorithm, fields.take(algorithm.length_bytes())?).ok_or_else(|| damaged("a digest is wrong"))
}
