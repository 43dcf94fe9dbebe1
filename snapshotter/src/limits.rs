//! The maxima of everything that a layer may contain (threat L7).

/// Bytes of one PAX or GNU extension record, or of a sparse map.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a path and of a link's target.
pub const PATH_BYTES_MAX: usize = 4096;
/// Bytes of one component of a path.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Bytes of all extended attributes of one entry, names and values.
pub const XATTR_BYTES_MAX: usize = 64 << 10;
/// Parts of a sparse file.
pub const SPARSE_SEGMENTS_MAX: usize = 65_536;
/// Symbolic links followed for one path, as the kernel's own limit.
pub const LINKS_FOLLOWED_MAX: usize = 40;
/// Bytes of a gzip header: its name and comment have no limit of their own.
pub const GZIP_HEADER_BYTES_MAX: usize = 64 << 10;
/// Binary logarithm of the largest zstd window: 16 MiB. `zstd --ultra -22` uses 128 MiB, which no budget here holds.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 24;
/// Zero bytes after the end of the archive; writers pad to 10 KiB, some to 1 MiB.
pub const TRAILING_ZEROS_MAX: u64 = 1 << 30;

/// Output without a place to take the stream up again, after which it is said to have none.
pub const UNCHECKPOINTABLE_BYTES: u64 = 64 << 20;

/// What one layer may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive.
    pub entries_max: u64,
    /// Bytes of the uncompressed tar, which is close to what the layer takes on the disk. The caller bounds it by the
    /// space free less its reserve.
    pub tar_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries_max: 4_000_000, tar_bytes_max: 1 << 40 }
    }
}
