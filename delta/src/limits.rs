//! What a delta may ask for (docs/formats/delta.md has the same numbers).

/// Most bytes of a header, with its fixed part.
pub const HEADER_BYTES_MAX: usize = 4 << 20;
/// Most layers that one delta makes, and most that it reads from.
pub const LAYERS_MAX: usize = 125;
/// Most frames of one delta.
pub const FRAMES_MAX: usize = 65_536;
/// Most bytes of a frame as it travels.
pub const FRAME_PACKED_BYTES_MAX: u32 = 8 << 20;
/// Most bytes of the streams of a frame, unpacked.
pub const FRAME_RAW_BYTES_MAX: u32 = 4 << 20;
/// Most bytes of a tar that one frame writes.
pub const FRAME_OUTPUT_BYTES_MAX: u64 = 1 << 40;
/// Most operations of one frame: blocks and payloads.
pub const FRAME_OPERATIONS_MAX: u64 = 1 << 20;
/// What applying a delta of this build's encoder takes at most.
pub const MEMORY_BYTES_MAX: u64 = 32 << 20;
