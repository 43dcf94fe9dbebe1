//! The exact tar of a committed layer, from its recipe and its tree.
//!
//! B1  What is written is verified: the BLAKE3 of every payload as it is read, the diff ID at the end. On an error some
//!     bytes have been written already, so whoever sends them on must not end the stream as if it were whole.
//! B2  Files are reached by opening one component after the other, following no link: the recipe's paths have none.
//! B3  This module alone knows where a file's bytes lie; whoever needs them (push, save, delta, fsck) asks it.

use std::io::{self, Write};
use std::sync::Arc;

use baleen_oci::{DiffId, DigestHasher};
use baleen_store::recipe::{Content, Item, KEPT_NAME, Location, Recipe, RecipeError, Segment, TREE_NAME};
use baleen_store::{Access, Disk, Handle};

use crate::content::ContentHasher;
use crate::error::shown;

/// Why a tar could not be rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// The recipe cannot be read.
    #[error("cannot read the layer's recipe")]
    Recipe(#[source] RecipeError),
    /// A file is not what it was.
    #[error("file {path:?} of layer {layer} is damaged; run fsck, which fetches the layer again")]
    Damaged {
        /// The layer.
        layer: DiffId,
        /// The file, below the layer's directory.
        path: String,
    },
    /// The tar as a whole is not what it was.
    #[error("layer {layer} is rebuilt as {found}; run fsck, which fetches the layer again")]
    Mismatch {
        /// The layer.
        layer: DiffId,
        /// The diff ID of what was rebuilt.
        found: Box<DiffId>,
    },
    /// A file cannot be read.
    #[error("cannot read file {path:?} of layer {layer}")]
    Read {
        /// The layer.
        layer: DiffId,
        /// The file, below the layer's directory.
        path: String,
        /// The error of the disk.
        #[source]
        source: io::Error,
    },
    /// The sink failed.
    #[error("cannot pass the layer on")]
    Write(#[source] io::Error),
}

const BUFFER_BYTES: usize = 256 << 10;

/// Writes the exact tar of the layer in `layer_dir` to `sink`; gives its diff ID.
///
/// # Errors
/// [`RebuildError`]: see B1 for what may have been written.
pub fn rebuild(disk: &Arc<dyn Disk>, layer_dir: &Handle, sink: &mut dyn Write) -> Result<DiffId, RebuildError> {
    let recipe = Recipe::open(Arc::clone(disk), layer_dir).map_err(RebuildError::Recipe)?;
    let layer = recipe.summary().diff_id;
    let hasher = DigestHasher::new(layer.0.algorithm());
    let mut output = Output { sink, hasher };
    let mut source =
        Source { disk: &**disk, opener: FileOpener::new(&**disk, layer_dir), layer, buffer: vec![0; BUFFER_BYTES] };
    let mut files = 0;
    for item in recipe.items() {
        match item.map_err(RebuildError::Recipe)? {
            Item::Literal(bytes) => output.write(&bytes)?,
            Item::Zeros(count) => output.zeros(count)?,
            Item::File { path, content, segments } => {
                let location = recipe.location(files, &path);
                files += 1;
                source.copy(&location, &content, segments.as_deref(), &mut output)?;
            }
            // Of a file below that a hard link leads to: verified there, and no part of this tar.
            Item::LedTo(_) => {}
            Item::Copied(copied) => files += u64::from(copied.content.is_some()),
            Item::Kept { number, content } => {
                let location = Location::Kept { number, rest: Vec::new() };
                source.copy(&location, &content, None, &mut output)?;
            }
        }
    }
    match DiffId(output.hasher.finish()) {
        found if found == layer => Ok(found),
        found => Err(RebuildError::Mismatch { layer, found: Box::new(found) }),
    }
}

struct Output<'a> {
    sink: &'a mut dyn Write,
    hasher: DigestHasher,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.hasher.update(bytes);
        self.sink.write_all(bytes).map_err(RebuildError::Write)
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), RebuildError> {
        let zeros = [0; 64 << 10];
        while count > 0 {
            let part = usize::try_from(count).map_or(zeros.len(), |count| count.min(zeros.len()));
            self.write(&zeros[..part])?;
            count -= part as u64;
        }
        Ok(())
    }
}

struct Source<'a> {
    disk: &'a dyn Disk,
    opener: FileOpener<'a>,
    layer: DiffId,
    buffer: Vec<u8>,
}

impl Source<'_> {
    fn copy(
        &mut self,
        location: &Location,
        content: &Content,
        segments: Option<&[Segment]>,
        output: &mut Output<'_>,
    ) -> Result<(), RebuildError> {
        if content.size_bytes == 0 {
            return Ok(());
        }
        let layer = self.layer;
        let path = path_of(location);
        let damaged = || RebuildError::Damaged { layer, path: shown(&path) };
        let failed = |source: io::Error| match source.raw_os_error() {
            // Another kind of node, or none: the tree is not what it was.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EINVAL) => damaged(),
            _ => RebuildError::Read { layer, path: shown(&path), source },
        };
        let file = self.opener.open(&path).map_err(failed)?;
        let whole = [Segment { offset: 0, length: content.size_bytes }];
        let mut hasher = ContentHasher::default();
        for segment in segments.unwrap_or(&whole) {
            let (mut offset, mut left) = (segment.offset, segment.length);
            while left > 0 {
                let part = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
                let count = self.disk.read_at(&file, &mut self.buffer[..part], offset).map_err(failed)?;
                if count == 0 {
                    return Err(damaged());
                }
                let bytes = &self.buffer[..count];
                hasher.update(bytes);
                output.write(bytes)?;
                offset += count as u64;
                left -= count as u64;
            }
        }
        if hasher.finish() != *content {
            return Err(damaged());
        }
        // Reading a layer must not push the containers' pages out.
        let _ = self.disk.drop_cache(&file, 0, 0);
        Ok(())
    }
}

/// Opens files of a layer by their paths below its directory (B2).
pub struct FileOpener<'a> {
    disk: &'a dyn Disk,
    layer_dir: &'a Handle,
    /// The directory of the last file: the next is often in it.
    last: Option<(Vec<u8>, Handle)>,
}

impl std::fmt::Debug for FileOpener<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FileOpener").finish_non_exhaustive()
    }
}

impl<'a> FileOpener<'a> {
    /// Opens files of the layer in `layer_dir`.
    pub fn new(disk: &'a dyn Disk, layer_dir: &'a Handle) -> Self {
        Self { disk, layer_dir, last: None }
    }

    /// Opens the file at `path` for reading.
    ///
    /// # Errors
    /// Those of the disk; `ENOENT`, `ENOTDIR`, `ELOOP` or `EINVAL` if the tree is not what it was.
    pub fn open(&mut self, path: &[u8]) -> io::Result<Handle> {
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (parent, name) = (&path[..slash], path.get(slash + 1..).unwrap_or_default());
        if let Some((known, dir)) = &self.last
            && known == parent
        {
            return self.disk.open_file(dir, name, Access::Read);
        }
        let mut dir: Option<Handle> = None;
        for part in parent.split(|byte| *byte == b'/') {
            dir = Some(self.disk.open_dir(dir.as_ref().unwrap_or(self.layer_dir), part)?);
        }
        let dir = dir.ok_or(io::ErrorKind::NotFound)?;
        let file = self.disk.open_file(&dir, name, Access::Read)?;
        self.last = Some((parent.to_vec(), dir));
        Ok(file)
    }
}

/// The path below the layer's directory.
pub fn path_of(location: &Location) -> Vec<u8> {
    match location {
        Location::Tree(path) => [TREE_NAME, path].join(&b'/'),
        Location::Kept { number, rest } if rest.is_empty() => [KEPT_NAME, number.to_string().as_bytes()].join(&b'/'),
        Location::Kept { number, rest } => [KEPT_NAME, number.to_string().as_bytes(), rest].join(&b'/'),
    }
}
