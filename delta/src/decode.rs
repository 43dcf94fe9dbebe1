//! Applying a delta: frame after frame, from its bytes as they arrive.

use std::io::{Read, Write};

use crate::error::DeltaError;
use crate::header::Header;
use crate::source::{SourceLayer, Sources};

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
    /// returned `Ok`, and the layer only once its diff ID is verified, which is the caller's to do.
    ///
    /// # Errors
    /// [`DeltaError`]; the decoder is of no more use then. [`DeltaError::Truncated`] and [`DeltaError::Read`] are those of
    /// a connection that was cut: resume at this frame.
    pub fn next_frame(&mut self, tar: &mut dyn Write) -> Result<Option<FrameDone>, DeltaError> {
        if self.next >= self.header.frames.len() {
            return Ok(None);
        }
        let _ = (&self.sources, &mut self.delta, tar);
        Err(DeltaError::Damaged { problem: "frames are not implemented yet" })
    }
}
