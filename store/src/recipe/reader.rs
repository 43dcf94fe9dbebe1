//! Reading a recipe: as a whole, or for one path.

use super::bytes::Fields;
use super::*;

/// A finished recipe.
pub struct Recipe {
    disk: Arc<dyn Disk>,
    file: Handle,
    size_bytes: u64,
    summary: Summary,
    moves: Vec<Move>,
    frames: Vec<FrameFacts>,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recipe").field("summary", &self.summary).finish_non_exhaustive()
    }
}

impl Recipe {
    /// Opens the recipe in `layer_dir` and reads its index.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`], also for one that was not finished; [`RecipeError::Newer`]; [`RecipeError::Io`].
    pub fn open(disk: Arc<dyn Disk>, layer_dir: &Handle) -> Result<Self, RecipeError> {
        let file = disk.open_file(layer_dir, RECIPE_NAME, Access::Read).map_err(io_error("open"))?;
        let size_bytes = disk.metadata(&file).map_err(io_error("open"))?.size_bytes;
        read_header(&*disk, &file)?;
        let end = size_bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("it has no end"))?;
        let trailer: [u8; TRAILER_BYTES] = read_exact(&*disk, &file, end)?;
        if &trailer[24..] != END_MAGIC || blake3::hash(&trailer[..16]).as_bytes()[..8] != trailer[16..24] {
            return Err(damaged("it has no end"));
        }
        let (offset, rest) = trailer.split_at(8);
        let (length, _) = rest.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let (offset, length) = (number(offset), number(length));
        if offset.checked_add(length) != Some(end) {
            return Err(damaged("its index lies elsewhere"));
        }
        let (index, _) = read_frame(&*disk, &file, offset, end, INDEX_BYTES_MAX)?;
        let (summary, moves, frames) = parse_index(&index)?;
        Ok(Self { disk, file, size_bytes, summary, moves, frames })
    }

    /// What it says of the layer as a whole.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Its own size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// All items, in tar order.
    pub fn items(&self) -> Items<'_> {
        self.items_of(0)
    }

    /// The items of the frames from `offset` in the file on, and the number of file items before them.
    pub fn items_from(&self, offset: u64) -> (u64, Items<'_>) {
        let first = self.frames.iter().position(|frame| frame.offset >= offset).unwrap_or(self.frames.len());
        (self.frames[..first].iter().map(|frame| frame.files).sum(), self.items_of(first))
    }

    /// Number of its frames of items.
    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// The items of one frame; none past the last.
    pub fn items_of_frame(&self, number: usize) -> Items<'_> {
        let frames = number..self.frames.len().min(number.saturating_add(1));
        Items { recipe: self, frames, frame: Vec::new(), position: 0, failed: false }
    }

    fn items_of(&self, first: usize) -> Items<'_> {
        Items { recipe: self, frames: first..self.frames.len(), frame: Vec::new(), position: 0, failed: false }
    }

    /// Where the payload of the file lies that is the `ordinal`-th (from 0) of the recipe and had `path` then.
    pub fn location(&self, ordinal: u64, path: &[u8]) -> Location {
        locate(&self.moves, ordinal, path)
    }

    /// The file that is at `path` below `fs/` now. Reads only frames that can hold the path.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`]; [`RecipeError::Io`].
    pub fn find(&self, path: &[u8]) -> Result<Option<FileFacts>, RecipeError> {
        let key = cut(path);
        let mut files = self.frames.iter().map(|frame| frame.files).sum::<u64>();
        // The last entry of a path is the one in the tree.
        for (number, frame) in self.frames.iter().enumerate().rev() {
            files -= frame.files;
            let holds = frame.paths.as_ref().is_some_and(|(least, greatest)| key >= least && key <= greatest);
            if !holds {
                continue;
            }
            let mut ordinal = files;
            let mut found = None;
            let items =
                Items { recipe: self, frames: number..number + 1, frame: Vec::new(), position: 0, failed: false };
            for item in items {
                let (known, content, segments) = match item? {
                    Item::File { path, content, segments } => (path, content, segments),
                    Item::Copied(copied) => match copied.content {
                        Some(content) => (copied.path, content, None),
                        None => continue,
                    },
                    _ => continue,
                };
                if known == path && self.location(ordinal, path) == Location::Tree(path.to_vec()) {
                    found = Some(FileFacts { content, segments });
                }
                ordinal += 1;
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn frame(&self, number: usize) -> Result<Vec<u8>, RecipeError> {
        let facts = self.frames.get(number).ok_or_else(|| damaged("a frame is missing"))?;
        Ok(read_frame(&*self.disk, &self.file, facts.offset, self.size_bytes, FRAME_BYTES_MAX)?.0)
    }
}

/// The items of a recipe, one frame in memory at a time. Ends after the first error.
#[derive(Debug)]
pub struct Items<'a> {
    recipe: &'a Recipe,
    frames: std::ops::Range<usize>,
    frame: Vec<u8>,
    position: usize,
    failed: bool,
}

impl Items<'_> {
    fn read(&mut self) -> Result<Option<Item>, RecipeError> {
        while self.position == self.frame.len() {
            let Some(number) = self.frames.next() else { return Ok(None) };
            self.frame = self.recipe.frame(number)?;
            self.position = 0;
        }
        let mut fields = Fields(self.frame.get(self.position..).unwrap_or_default());
        let item = parse_item(&mut fields)?;
        self.position = self.frame.len() - fields.0.len();
        Ok(Some(item))
    }
}

impl Iterator for Items<'_> {
    type Item = Result<Item, RecipeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.read().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

/// Reads every field of an unpacked frame, as an index and as items: what the fuzzer feeds.
#[doc(hidden)]
pub fn parse_anything(bytes: &[u8]) {
    let _ = parse_index(bytes);
    let mut fields = Fields(bytes);
    while !fields.is_empty() && parse_item(&mut fields).is_ok() {}
}

pub(super) fn parse_item(fields: &mut Fields<'_>) -> Result<Item, RecipeError> {
    match fields.byte()? {
        TAG_LITERAL => Ok(Item::Literal(fields.bytes(LITERAL_BYTES_MAX)?.to_vec())),
        TAG_ZEROS => Ok(Item::Zeros(fields.number()?)),
        tag @ (TAG_FILE | TAG_SPARSE_FILE) => {
            let path = fields.bytes(ITEM_PATH_BYTES_MAX)?.to_vec();
            let content = parse_content(fields)?;
            let segments = if tag == TAG_SPARSE_FILE { Some(parse_segments(fields, &content)?) } else { None };
            Ok(Item::File { path, content, segments })
        }
        TAG_COPIED => parse_copied(fields).map(|copied| Item::Copied(Box::new(copied))),
        TAG_LED_TO => Ok(Item::LedTo(fields.bytes(ITEM_PATH_BYTES_MAX)?.to_vec())),
        TAG_KEPT => Ok(Item::Kept { number: fields.number()?, content: parse_content(fields)? }),
        _ => Err(damaged("it has an unknown item")),
    }
}

fn parse_copied(fields: &mut Fields<'_>) -> Result<Copied, RecipeError> {
    let path = fields.bytes(ITEM_PATH_BYTES_MAX)?.to_vec();
    let kind = match fields.byte()? {
        0 => NodeKind::File,
        1 => NodeKind::Directory,
        2 => NodeKind::Symlink,
        3 => NodeKind::CharDevice,
        4 => NodeKind::BlockDevice,
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        _ => return Err(damaged("it has an unknown kind of node")),
    };
    let short = |fields: &mut Fields<'_>| {
        u32::try_from(fields.number()?).map_err(|_| damaged("a number of a node is too large"))
    };
    let (mode, uid, gid) = (short(fields)?, short(fields)?, short(fields)?);
    let device = (short(fields)?, short(fields)?);
    let mut seconds = [0; 8];
    seconds.copy_from_slice(fields.take(8)?);
    let modified = Timestamp { seconds: i64::from_le_bytes(seconds), nanoseconds: short(fields)? };
    let link = fields.bytes(ITEM_PATH_BYTES_MAX)?.to_vec();
    let count = fields.number()?;
    if mode > 0o7777 || modified.nanoseconds > 999_999_999 || count > COPIED_XATTRS_MAX {
        return Err(damaged("a number of a node is too large"));
    }
    let mut xattrs = Vec::new();
    for _ in 0..count {
        let name = fields.bytes(COPIED_XATTR_BYTES_MAX)?.to_vec();
        xattrs.push((name, fields.bytes(COPIED_XATTR_BYTES_MAX)?.to_vec()));
    }
    let content = if kind == NodeKind::File { Some(parse_content(fields)?) } else { None };
    Ok(Copied { path, kind, mode, uid, gid, modified, device, link, xattrs, content })
}

fn parse_content(fields: &mut Fields<'_>) -> Result<Content, RecipeError> {
    Ok(Content { size_bytes: fields.number()?, blake3: fields.hash()? })
}

fn parse_segments(fields: &mut Fields<'_>, content: &Content) -> Result<Vec<Segment>, RecipeError> {
    let count = fields.number()?;
    if count > SEGMENTS_MAX as u64 {
        return Err(damaged("a sparse file has too many parts"));
    }
    let mut segments = Vec::new();
    let (mut end, mut sum) = (0u64, 0u64);
    for _ in 0..count {
        let (gap, length) = (fields.number()?, fields.number()?);
        let offset = end.checked_add(gap).ok_or_else(|| damaged("a sparse file has no end"))?;
        end = offset.checked_add(length).ok_or_else(|| damaged("a sparse file has no end"))?;
        sum += length; // At most `end`.
        segments.push(Segment { offset, length });
    }
    if sum != content.size_bytes {
        return Err(damaged("a sparse file's parts do not make its payload"));
    }
    Ok(segments)
}

type Index = (Summary, Vec<Move>, Vec<FrameFacts>);

fn parse_index(bytes: &[u8]) -> Result<Index, RecipeError> {
    let mut fields = Fields(bytes);
    let digest = match fields.byte()? {
        1 => Digest::from_bytes(baleen_oci::Algorithm::Sha256, fields.take(32)?),
        2 => Digest::from_bytes(baleen_oci::Algorithm::Sha512, fields.take(64)?),
        _ => None,
    };
    let diff_id = DiffId(digest.ok_or_else(|| damaged("its diff ID is unknown"))?);
    let (tar_size_bytes, entries, payload_bytes) = (fields.number()?, fields.number()?, fields.number()?);
    let flags = fields.number()?;
    if flags > 3 {
        return Err(damaged("it has unknown flags"));
    }
    let (implied_directories, depends_on_parents) = (flags & 1 != 0, flags & 2 != 0);
    let mut moves = Vec::new();
    for _ in 0..fields.number()? {
        let (files_before, number) = (fields.number()?, fields.number()?);
        moves.push(Move { files_before, number, path: fields.bytes(ITEM_PATH_BYTES_MAX)?.to_vec() });
    }
    let mut frames = Vec::new();
    for _ in 0..fields.number()? {
        let (offset, files) = (fields.number()?, fields.number()?);
        let paths = match files {
            0 => None,
            _ => Some((fields.bytes(INDEX_PATH_BYTES)?.to_vec(), fields.bytes(INDEX_PATH_BYTES)?.to_vec())),
        };
        frames.push(FrameFacts { offset, files, paths });
    }
    if !fields.is_empty() {
        return Err(damaged("its index has more than it should"));
    }
    frames
        .iter()
        .try_fold(0u64, |sum, frame| sum.checked_add(frame.files))
        .ok_or_else(|| damaged("it has too many files"))?;
    let summary = Summary { diff_id, tar_size_bytes, entries, payload_bytes, implied_directories, depends_on_parents };
    Ok((summary, moves, frames))
}

fn read_exact<const N: usize>(disk: &dyn Disk, file: &Handle, offset: u64) -> Result<[u8; N], RecipeError> {
    let mut bytes = [0; N];
    match read_full_at(disk, file, &mut bytes, offset).map_err(io_error("read"))? {
        count if count == N => Ok(bytes),
        _ => Err(damaged("it ends early")),
    }
}

/// Checks that the file begins as a recipe of this version.
pub(super) fn read_header(disk: &dyn Disk, file: &Handle) -> Result<(), RecipeError> {
    let header: [u8; HEADER_BYTES] = read_exact(disk, file, 0)?;
    if &header[..8] != MAGIC {
        return Err(damaged("it does not begin as one"));
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        return Err(RecipeError::Newer { version });
    }
    if header[12..] != [0; 4] {
        return Err(damaged("it has unknown features"));
    }
    Ok(())
}

/// Reads the frame at `offset`, which ends before `end`; gives it unpacked, and the offset after it.
pub(super) fn read_frame(
    disk: &dyn Disk,
    file: &Handle,
    offset: u64,
    end: u64,
    limit: usize,
) -> Result<(Vec<u8>, u64), RecipeError> {
    let header: [u8; FRAME_HEADER_BYTES] = read_exact(disk, file, offset)?;
    let length = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let (plain_length, packed_length) = (length(0), length(4));
    let next = offset + (FRAME_HEADER_BYTES + packed_length) as u64;
    if plain_length > limit || packed_length > zstd::zstd_safe::compress_bound(limit) || next > end {
        return Err(damaged("a frame is too long"));
    }
    let mut packed = vec![0; packed_length];
    let count = read_full_at(disk, file, &mut packed, offset + FRAME_HEADER_BYTES as u64).map_err(io_error("read"))?;
    if count != packed_length {
        return Err(damaged("it ends early"));
    }
    if frame_check(&header[..8], &packed) != header[8..] {
        return Err(damaged("a frame's checksum differs"));
    }
    let mut plain = Vec::with_capacity(plain_length);
    // One frame exactly: its own checksum is verified with it.
    let unpacked =
        zstd::zstd_safe::decompress(&mut plain, &packed).map_err(|_| damaged("a frame's checksum differs"))?;
    if unpacked != plain_length {
        return Err(damaged("a frame is not as long as it says"));
    }
    Ok((plain, next))
}
