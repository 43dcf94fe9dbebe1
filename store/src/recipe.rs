//! The recipe of a layer: from it and the layer's tree the exact tar comes back, and every file can be verified.
//! Bytes on disk: docs/formats/recipe.md, version 1.
//!
//! R1  A recipe is append-only: frames of items in tar order, then the index, then a trailer. Truncated after any frame,
//!     what is left is the recipe of what came so far.
//! R2  Every byte of the tar is in exactly one item, as a literal, a run of zeros, or the payload of a file.
//! R3  Payload is not in the recipe: an item names the file under `fs/` or `kept/` that holds it, its size and BLAKE3.
//! R4  Memory is bounded: a frame holds at most [`FRAME_BYTES_MAX`] when unpacked, the index at most [`INDEX_BYTES_MAX`].
//!
//! Touches: the file `recipe` of a layer's directory, through `Disk` only.

use std::io;
use std::sync::Arc;

use baleen_oci::{DiffId, Digest};

use crate::disk::{Access, Disk, Handle, NodeKind, Timestamp, read_full_at};

mod bytes;
mod reader;
mod writer;

#[doc(hidden)]
pub use reader::parse_anything;
pub use reader::{Items, Recipe};
pub use writer::RecipeWriter;

/// Name of the recipe in a layer's directory.
pub const RECIPE_NAME: &[u8] = b"recipe";
/// Name of the layer's tree.
pub const TREE_NAME: &[u8] = b"fs";
/// Name of the directory of what the archive holds but the tree does not show.
pub const KEPT_NAME: &[u8] = b"kept";

/// Most bytes of a frame, unpacked.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Most bytes of the index, unpacked.
pub const INDEX_BYTES_MAX: usize = 16 << 20;
/// Most nodes of one layer that may be moved to `kept/` because a later entry replaced them.
pub const MOVES_MAX: usize = 16_384;
/// Most bytes of a path in an item.
pub const ITEM_PATH_BYTES_MAX: usize = 64 << 10;
/// Most parts of a sparse file.
pub const SEGMENTS_MAX: usize = 65_536;

/// A frame is closed once it holds this much.
const FRAME_BYTES_TARGET: usize = 512 << 10;
/// Longest literal item; longer ones are written as several.
const LITERAL_BYTES_MAX: usize = 64 << 10;
/// Paths in the index are cut to this length: enough to tell the frames apart.
const INDEX_PATH_BYTES: usize = 255;
const ZSTD_LEVEL: i32 = 1;

const MAGIC: &[u8; 8] = b"BLNRECIP";
const END_MAGIC: &[u8; 8] = b"BLNRCEND";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 16;
const TRAILER_BYTES: usize = 32;

const TAG_LITERAL: u8 = 1;
const TAG_ZEROS: u8 = 2;
const TAG_FILE: u8 = 3;
const TAG_SPARSE_FILE: u8 = 4;
const TAG_KEPT: u8 = 5;
const TAG_COPIED: u8 = 6;
const TAG_LED_TO: u8 = 7;
/// Most bytes of the attributes of a copied node, names and values.
const COPIED_XATTR_BYTES_MAX: usize = 128 << 10;
/// Most attributes of one.
const COPIED_XATTRS_MAX: u64 = 1024;

/// A part of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Size and hash of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Bytes of payload in the tar: for a sparse file without its holes.
    pub size_bytes: u64,
    /// BLAKE3 of the payload.
    pub blake3: [u8; 32],
}

/// One step of rebuilding the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// These bytes.
    Literal(Vec<u8>),
    /// This many zero bytes.
    Zeros(u64),
    /// The payload of a regular file.
    File {
        /// Its path below `fs/`, without links, unless a move says otherwise ([`Recipe::location`]).
        path: Vec<u8>,
        /// Size and hash of the payload.
        content: Content,
        /// Where the payload lies in the file, if it is sparse; else it is the whole file.
        segments: Option<Vec<Segment>>,
    },
    /// Payload that never had a place in the tree.
    Kept {
        /// The name of its file in `kept/`.
        number: u64,
        /// Size and hash.
        content: Content,
    },
    /// A node that is not from the tar: a hard link of this layer leads to it in a layer below, so it was copied up. No bytes
    /// of the tar. Directories on the way to it come first; it is a file of the recipe if it has contents.
    Copied(Box<Copied>),
    /// The hard link before this leads to this path of its own layer, through links of the layers below. No bytes of the tar.
    LedTo(Vec<u8>),
}

/// A node that was copied up from the layers below, as it is in this layer's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Its path below `fs/`, without links.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub modified: Timestamp,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Target of a symbolic link.
    pub link: Vec<u8>,
    /// Attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Contents of a regular file, and of it alone.
    pub content: Option<Content>,
}

/// A file that a recipe knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Size and hash of its payload.
    pub content: Content,
    /// Where the payload lies in it, if it is sparse.
    pub segments: Option<Vec<Segment>>,
}

/// A node that a later entry of the same layer replaced: it went to `kept/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Files of the recipe that came before: only those can be meant.
    pub files_before: u64,
    /// Its name in `kept/`.
    pub number: u64,
    /// Where it was: a file, or a directory with all below it.
    pub path: Vec<u8>,
}

/// Where the payload of an item lies, relative to the layer's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// At this path below `fs/`.
    Tree(Vec<u8>),
    /// At `kept/<number>`, or below it.
    Kept {
        /// The name in `kept/`.
        number: u64,
        /// The path below it; empty for itself.
        rest: Vec<u8>,
    },
}

/// What a recipe says of the layer as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// Its length.
    pub tar_size_bytes: u64,
    /// Entries of the archive, without extension records.
    pub entries: u64,
    /// Bytes of payload, in the tree and kept.
    pub payload_bytes: u64,
    /// Directories that the archive implies but does not contain were made, as 0755 root.
    pub implied_directories: bool,
    /// Nodes were copied up from the layers below ([`Item::Copied`]): the layer belongs to its parents.
    pub depends_on_parents: bool,
}

/// Why a recipe cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file is no recipe, or a damaged one.
    #[error("recipe is damaged ({problem}); run fsck, which fetches the layer again")]
    Damaged {
        /// What is wrong.
        problem: &'static str,
    },
    /// A newer build wrote it.
    #[error(
        "recipe has version {version}, and this build reads {VERSION}; use the build that wrote it, or a newer one"
    )]
    Newer {
        /// The version found.
        version: u32,
    },
    /// The layer replaces its own files too often.
    #[error("layer replaces more than {MOVES_MAX} of its own files; build the image anew")]
    TooManyMoves,
    /// A file operation failed.
    #[error("cannot {action} the recipe")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The error of the disk.
        #[source]
        source: io::Error,
    },
}

fn damaged(problem: &'static str) -> RecipeError {
    RecipeError::Damaged { problem }
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> RecipeError {
    move |source| RecipeError::Io { action, source }
}

/// Finds what `moves` did to the file that was the `ordinal`-th (from 0) of the recipe and had `path` then.
fn locate(moves: &[Move], ordinal: u64, path: &[u8]) -> Location {
    for moved in moves.iter().filter(|moved| moved.files_before > ordinal) {
        if let Some(rest) = path.strip_prefix(moved.path.as_slice()) {
            if rest.is_empty() {
                return Location::Kept { number: moved.number, rest: Vec::new() };
            }
            if let Some(rest) = rest.strip_prefix(b"/") {
                return Location::Kept { number: moved.number, rest: rest.to_vec() };
            }
        }
    }
    Location::Tree(path.to_vec())
}

/// What a frame's header says of its contents: zstd's own checksum covers what is unpacked only.
fn frame_check(lengths: &[u8], packed: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(lengths).update(packed);
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}

fn cut(path: &[u8]) -> &[u8] {
    &path[..path.len().min(INDEX_PATH_BYTES)]
}

/// What the index knows of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FrameFacts {
    offset: u64,
    files: u64,
    /// The smallest and the greatest path of its files, cut to [`INDEX_PATH_BYTES`].
    paths: Option<(Vec<u8>, Vec<u8>)>,
}
