//! Layers that a delta reads from: their payloads by number, and the rest of their tars.
//!
//! Two views of a tar, defined in docs/formats/delta.md:
//!
//! - *payload* k: the k-th (from 0) run of file data that is not empty, in tar order, by the rules of
//!   `snapshotter::tar` (its `Data` of one entry, or its `Tail`); of a sparse file without its holes. In a stored layer that is
//!   the k-th file, sparse file or kept item of the recipe whose size is not 0;
//! - *skeleton*: all other bytes up to the end of the archive, without the padding after each payload and without the zeros that
//!   follow the archive's end: whole blocks of 512 bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use baleen_oci::DiffId;

use crate::error::SourceError;

/// Bytes that can be read anywhere.
pub trait ReadAt: Send + Sync {
    /// Their number.
    fn size_bytes(&self) -> u64;

    /// Reads at most `buffer.len()` bytes at `offset`; 0 at the end. May read less.
    ///
    /// # Errors
    /// Those of the disk.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// Those of the disk, and `UnexpectedEof`.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
            }
        }
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// A file of known length: it is asked once.
#[derive(Debug)]
pub struct FileBytes {
    file: File,
    size_bytes: u64,
}

impl FileBytes {
    /// The contents of an open file.
    ///
    /// # Errors
    /// That of `fstat(2)`.
    pub fn new(file: File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        Ok(Self { file, size_bytes })
    }
}

impl ReadAt for FileBytes {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }
}

/// What is known of a payload without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadFacts {
    /// Its number in the layer.
    pub index: u64,
    /// Its path in the layer, without `./` and leading `/`; empty if it has none.
    pub path: Vec<u8>,
    /// Its length in bytes, as in the tar.
    pub size_bytes: u64,
    /// BLAKE3 of it.
    pub blake3: [u8; 32],
    /// Blocks of the skeleton before it: the last of them is its header.
    pub blocks_before: u64,
}

/// A layer that a delta may read from. Used by one thread at a time when a delta is applied, by several when one is made.
pub trait SourceLayer: Send + Sync {
    /// Its diff ID.
    fn diff_id(&self) -> DiffId;

    /// The bytes of a payload. Not verified: what a delta makes of them is, and then [`SourceLayer::facts`] tells
    /// whether they were to blame.
    ///
    /// # Errors
    /// [`SourceError`].
    fn open(&self, index: u64) -> Result<Box<dyn ReadAt + '_>, SourceError>;

    /// What is recorded of a payload.
    ///
    /// # Errors
    /// [`SourceError`].
    fn facts(&self, index: u64) -> Result<PayloadFacts, SourceError>;

    /// The skeleton of its tar. Read front to back, mostly.
    ///
    /// # Errors
    /// [`SourceError`].
    fn skeleton(&self) -> Result<Box<dyn ReadAt + '_>, SourceError>;

    /// Shows every payload, in tar order: for the encoder.
    ///
    /// # Errors
    /// [`SourceError`].
    fn for_each(&self, visit: &mut dyn FnMut(PayloadFacts)) -> Result<(), SourceError>;
}

/// The layers at hand. A delta is refused if one that it names is not among them.
pub trait Sources: Send + Sync {
    /// The layer of this diff ID, if it is here.
    fn layer(&self, diff_id: &DiffId) -> Option<&dyn SourceLayer>;
}

impl<L: SourceLayer> Sources for [L] {
    fn layer(&self, diff_id: &DiffId) -> Option<&dyn SourceLayer> {
        self.iter().find(|layer| layer.diff_id() == *diff_id).map(|layer| layer as &dyn SourceLayer)
    }
}

impl<L: SourceLayer> Sources for Vec<L> {
    fn layer(&self, diff_id: &DiffId) -> Option<&dyn SourceLayer> {
        self.as_slice().layer(diff_id)
    }
}
