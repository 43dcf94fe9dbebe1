//! zstd (RFC 8878): frames one after the other, skippable ones included.
//!
//! N1  The window is bounded ([`ZSTD_WINDOW_LOG_MAX`]), so memory is too; a frame that asks for more is refused by name.
//! N2  Only the end of a frame is a place to resume: libzstd gives out no other state.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use crate::decompress::DecompressError;
use crate::extraction::BUFFER_BYTES;
use crate::limits::ZSTD_WINDOW_LOG_MAX;
use crate::sys;

pub(crate) struct Zstandard {
    context: DCtx<'static>,
    in_frame: bool,
    /// The first bytes of the frame, to name the window that it asks for.
    frame_head: Vec<u8>,
}

/// The longest frame header.
const FRAME_HEADER_BYTES_MAX: usize = 18;

impl std::fmt::Debug for Zstandard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Zstandard").field("in_frame", &self.in_frame).finish_non_exhaustive()
    }
}

impl Zstandard {
    pub(crate) fn new() -> Result<Self, DecompressError> {
        let no_memory = DecompressError::NoMemory { format: "zstd" };
        let mut context = DCtx::try_create().ok_or_else(|| no_memory.clone())?;
        context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(|_| no_memory)?;
        Ok(Self { context, in_frame: false, frame_head: Vec::new() })
    }

    pub(crate) fn at_end(&self) -> bool {
        !self.in_frame
    }

    /// Takes `input`; with `to_point` up to the end of a frame (N2).
    pub(crate) fn run(&mut self, input: &[u8], output: &mut Vec<u8>, to_point: bool) -> Result<usize, DecompressError> {
        let mut source = InBuffer::around(input);
        while output.len() < BUFFER_BYTES && (source.pos() < input.len() || self.in_frame) {
            let (before, position) = (output.len(), source.pos());
            self.remember(&input[position..]);
            let result = {
                let mut target = OutBuffer::around_pos(output, before);
                self.context.decompress_stream(&mut target, &mut source)
            };
            match result {
                Ok(0) => {
                    self.in_frame = false;
                    self.frame_head.clear();
                    if to_point {
                        break;
                    }
                }
                Ok(_) => self.in_frame = true,
                Err(code) => return Err(self.explain(code)),
            }
            if output.len() == before && source.pos() == position {
                break;
            }
        }
        Ok(source.pos())
    }

    fn remember(&mut self, input: &[u8]) {
        let count = input.len().min(FRAME_HEADER_BYTES_MAX - self.frame_head.len());
        self.frame_head.extend_from_slice(&input[..count]);
    }

    fn explain(&self, code: usize) -> DecompressError {
        if sys::zstd_window_too_large(code) {
            return DecompressError::WindowTooLarge { window_bytes: window_bytes(&self.frame_head).unwrap_or(0) };
        }
        DecompressError::Corrupt { format: "zstd", problem: zstd::zstd_safe::get_error_name(code) }
    }
}

/// The window that a frame header asks for (RFC 8878, 3.1.1.1).
fn window_bytes(header: &[u8]) -> Option<u64> {
    let descriptor = *header.get(4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = *header.get(5)?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The content is the window: its size follows the dictionary's ID.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = header.get(5 + dictionary..5 + dictionary + size_bytes)?;
    let mut wide = [0; 8];
    wide[..size_bytes].copy_from_slice(field);
    Some(u64::from_le_bytes(wide) + if size_bytes == 2 { 256 } else { 0 })
}
