//! Writing a recipe while the tar arrives.

use zstd::zstd_safe::{CCtx, CParameter};

use super::bytes::{Fields, put_bytes, put_number};
use super::reader::{parse_item, read_frame, read_header};
use super::*;

/// A recipe being written.
pub struct RecipeWriter {
    disk: Arc<dyn Disk>,
    file: Handle,
    offset: u64,
    frame: Vec<u8>,
    /// Start of the literal at the end of `frame` that more bytes may still join.
    literal: Vec<u8>,
    files: u64,
    facts: FrameFacts,
    frames: Vec<FrameFacts>,
    moves: Vec<Move>,
    moved_path_bytes: usize,
    context: CCtx<'static>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for RecipeWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RecipeWriter").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl RecipeWriter {
    /// Creates the file `recipe` in `layer_dir`.
    ///
    /// # Errors
    /// [`RecipeError::Io`], with `EEXIST` if there is one.
    pub fn create(disk: Arc<dyn Disk>, layer_dir: &Handle) -> Result<Self, RecipeError> {
        let file = disk.create_file(layer_dir, RECIPE_NAME, 0o600).map_err(io_error("create"))?;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        disk.write_at(&file, &header, 0).map_err(io_error("write"))?;
        Self::new(disk, file, HEADER_BYTES as u64)
    }

    /// Goes on with the recipe in `layer_dir`, cut to its first `length_bytes`: what [`RecipeWriter::seal`] once gave,
    /// with the moves of that time. Gives each item in it to `visit`, in tar order.
    ///
    /// # Errors
    /// [`RecipeError::Damaged`] if those bytes are not the start of a recipe; [`RecipeError::Newer`];
    /// [`RecipeError::TooManyMoves`]; [`RecipeError::Io`]; whatever `visit` says.
    pub fn resume<E: From<RecipeError>>(
        disk: Arc<dyn Disk>,
        layer_dir: &Handle,
        length_bytes: u64,
        moves: Vec<Move>,
        mut visit: impl FnMut(Item) -> Result<(), E>,
    ) -> Result<Self, E> {
        let file = disk.open_file(layer_dir, RECIPE_NAME, Access::ReadWrite).map_err(io_error("open"))?;
        read_header(&*disk, &file)?;
        if disk.metadata(&file).map_err(io_error("open"))?.size_bytes < length_bytes {
            return Err(damaged("it ends early").into());
        }
        let mut writer = Self::new(disk, file, HEADER_BYTES as u64)?;
        while writer.offset < length_bytes {
            let (frame, next) = read_frame(&*writer.disk, &writer.file, writer.offset, length_bytes, FRAME_BYTES_MAX)?;
            let mut fields = Fields(&frame);
            while !fields.is_empty() {
                let item = parse_item(&mut fields)?;
                match &item {
                    Item::File { path, .. } => writer.count_file(path),
                    Item::Copied(copied) if copied.content.is_some() => writer.count_file(&copied.path),
                    _ => {}
                }
                visit(item)?;
            }
            writer.close_frame(next);
        }
        for moved in moves {
            writer.add_move(moved)?;
        }
        writer.disk.set_len(&writer.file, length_bytes).map_err(io_error("cut"))?;
        Ok(writer)
    }

    fn new(disk: Arc<dyn Disk>, file: Handle, offset: u64) -> Result<Self, RecipeError> {
        let mut context = CCtx::create();
        let prepared = context.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL));
        prepared.map_err(|_| damaged("the compressor takes no level"))?;
        let facts = FrameFacts { offset, files: 0, paths: None };
        Ok(Self {
            disk,
            file,
            offset,
            frame: Vec::new(),
            literal: Vec::new(),
            files: 0,
            facts,
            frames: Vec::new(),
            moves: Vec::new(),
            moved_path_bytes: 0,
            context,
            packed: Vec::new(),
        })
    }

    /// Adds bytes of the tar that are no payload.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn literal(&mut self, mut bytes: &[u8]) -> Result<(), RecipeError> {
        while !bytes.is_empty() {
            let count = bytes.len().min(LITERAL_BYTES_MAX - self.literal.len());
            self.literal.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.literal.len() == LITERAL_BYTES_MAX {
                self.end_item()?;
            }
        }
        Ok(())
    }

    /// Adds a run of zeros.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn zeros(&mut self, count: u64) -> Result<(), RecipeError> {
        self.join_literal();
        self.frame.push(TAG_ZEROS);
        put_number(&mut self.frame, count);
        self.end_item()
    }

    /// Adds the payload of the file that was written at `path` below `fs/`, a path without links.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn file(&mut self, path: &[u8], content: &Content, sparse: Option<&[Segment]>) -> Result<(), RecipeError> {
        self.join_literal();
        self.frame.push(if sparse.is_some() { TAG_SPARSE_FILE } else { TAG_FILE });
        put_bytes(&mut self.frame, path);
        self.put_content(content);
        if let Some(segments) = sparse {
            assert!(segments.len() <= SEGMENTS_MAX, "the parser of the archive has the same limit");
            put_number(&mut self.frame, segments.len() as u64);
            let mut end = 0;
            for segment in segments {
                put_number(&mut self.frame, segment.offset - end);
                put_number(&mut self.frame, segment.length);
                end = segment.offset + segment.length;
            }
        }
        self.count_file(path);
        self.end_item()
    }

    fn count_file(&mut self, path: &[u8]) {
        self.files += 1;
        self.facts.files += 1;
        let path = cut(path);
        match &mut self.facts.paths {
            None => self.facts.paths = Some((path.to_vec(), path.to_vec())),
            Some((least, _)) if path < least.as_slice() => *least = path.to_vec(),
            Some((_, greatest)) if path > greatest.as_slice() => *greatest = path.to_vec(),
            Some(_) => {}
        }
    }

    /// Adds a node that was copied up from the layers below.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn copied(&mut self, copied: &Copied) -> Result<(), RecipeError> {
        self.join_literal();
        self.frame.push(TAG_COPIED);
        put_bytes(&mut self.frame, &copied.path);
        self.frame.push(match copied.kind {
            NodeKind::File => 0,
            NodeKind::Directory => 1,
            NodeKind::Symlink => 2,
            NodeKind::CharDevice => 3,
            NodeKind::BlockDevice => 4,
            NodeKind::Fifo => 5,
            NodeKind::Socket => 6,
        });
        for number in [copied.mode, copied.uid, copied.gid, copied.device.0, copied.device.1] {
            put_number(&mut self.frame, number.into());
        }
        self.frame.extend_from_slice(&copied.modified.seconds.to_le_bytes());
        put_number(&mut self.frame, copied.modified.nanoseconds.into());
        put_bytes(&mut self.frame, &copied.link);
        put_number(&mut self.frame, copied.xattrs.len() as u64);
        for (name, value) in &copied.xattrs {
            put_bytes(&mut self.frame, name);
            put_bytes(&mut self.frame, value);
        }
        if let Some(content) = &copied.content {
            self.put_content(content);
            self.count_file(&copied.path);
        }
        self.end_item()
    }

    /// Adds where a hard link leads that goes through links of the layers below.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn led_to(&mut self, path: &[u8]) -> Result<(), RecipeError> {
        self.join_literal();
        self.frame.push(TAG_LED_TO);
        put_bytes(&mut self.frame, path);
        self.end_item()
    }

    /// Adds payload that lies in `kept/<number>`.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn kept(&mut self, number: u64, content: &Content) -> Result<(), RecipeError> {
        self.join_literal();
        self.frame.push(TAG_KEPT);
        put_number(&mut self.frame, number);
        self.put_content(content);
        self.end_item()
    }

    /// Notes that what was at `path` is now at `kept/<number>`, for all files recorded before.
    ///
    /// # Errors
    /// [`RecipeError::TooManyMoves`].
    pub fn moved(&mut self, path: &[u8], number: u64) -> Result<(), RecipeError> {
        self.add_move(Move { files_before: self.files, number, path: path.to_vec() })
    }

    fn add_move(&mut self, moved: Move) -> Result<(), RecipeError> {
        self.moved_path_bytes += moved.path.len();
        if self.moves.len() >= MOVES_MAX || self.moved_path_bytes > INDEX_BYTES_MAX / 4 {
            return Err(RecipeError::TooManyMoves);
        }
        self.moves.push(moved);
        Ok(())
    }

    /// All moves so far.
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Closes the frame, so that everything added so far is in the file: where a checkpoint can cut it. Gives the length
    /// of the file now.
    ///
    /// # Errors
    /// [`RecipeError::Io`].
    pub fn seal(&mut self) -> Result<u64, RecipeError> {
        self.join_literal();
        if !self.frame.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            self.write_frame(&frame)?;
            self.frame = frame;
            self.frame.clear();
            self.close_frame(self.offset);
        }
        Ok(self.offset)
    }

    /// Notes the frame that ends at `offset`, and begins the next there.
    fn close_frame(&mut self, offset: u64) {
        self.offset = offset;
        let facts = FrameFacts { offset, files: 0, paths: None };
        self.frames.push(std::mem::replace(&mut self.facts, facts));
    }

    /// Writes the index and the trailer; gives the size of the recipe in bytes.
    ///
    /// # Errors
    /// [`RecipeError::Io`]; [`RecipeError::TooManyMoves`] if the index grew too large.
    pub fn finish(mut self, summary: &Summary) -> Result<u64, RecipeError> {
        self.seal()?;
        let index = self.index(summary);
        if index.len() > INDEX_BYTES_MAX {
            return Err(RecipeError::TooManyMoves);
        }
        let index_offset = self.offset;
        self.write_frame(&index)?;
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..8].copy_from_slice(&index_offset.to_le_bytes());
        trailer[8..16].copy_from_slice(&(self.offset - index_offset).to_le_bytes());
        let check = blake3::hash(&trailer[..16]);
        trailer[16..24].copy_from_slice(&check.as_bytes()[..8]);
        trailer[24..].copy_from_slice(END_MAGIC);
        self.disk.write_at(&self.file, &trailer, self.offset).map_err(io_error("write"))?;
        // The pages leave the cache soon: a recipe is read again by push and fsck only.
        let _ = self.disk.write_back(&self.file, 0, 0, crate::WriteBack::Start);
        Ok(self.offset + TRAILER_BYTES as u64)
    }

    fn index(&self, summary: &Summary) -> Vec<u8> {
        let mut index = Vec::new();
        let digest = summary.diff_id.0;
        index.push(match digest {
            Digest::Sha256(_) => 1,
            Digest::Sha512(_) => 2,
        });
        index.extend_from_slice(digest.as_bytes());
        put_number(&mut index, summary.tar_size_bytes);
        put_number(&mut index, summary.entries);
        put_number(&mut index, summary.payload_bytes);
        put_number(&mut index, u64::from(summary.implied_directories) | u64::from(summary.depends_on_parents) << 1);
        put_number(&mut index, self.moves.len() as u64);
        for moved in &self.moves {
            put_number(&mut index, moved.files_before);
            put_number(&mut index, moved.number);
            put_bytes(&mut index, &moved.path);
        }
        put_number(&mut index, self.frames.len() as u64);
        for frame in &self.frames {
            put_number(&mut index, frame.offset);
            put_number(&mut index, frame.files);
            if let Some((least, greatest)) = &frame.paths {
                put_bytes(&mut index, least);
                put_bytes(&mut index, greatest);
            }
        }
        index
    }

    fn put_content(&mut self, content: &Content) {
        put_number(&mut self.frame, content.size_bytes);
        self.frame.extend_from_slice(&content.blake3);
    }

    fn join_literal(&mut self) {
        if !self.literal.is_empty() {
            self.frame.push(TAG_LITERAL);
            put_bytes(&mut self.frame, &self.literal);
            self.literal.clear();
        }
    }

    fn end_item(&mut self) -> Result<(), RecipeError> {
        self.join_literal();
        if self.frame.len() >= FRAME_BYTES_TARGET { self.seal().map(drop) } else { Ok(()) }
    }

    fn write_frame(&mut self, plain: &[u8]) -> Result<(), RecipeError> {
        assert!(plain.len() <= FRAME_BYTES_MAX.max(INDEX_BYTES_MAX), "no item is that long");
        let bound = zstd::zstd_safe::compress_bound(plain.len());
        self.packed.clear();
        self.packed.reserve(bound);
        self.context.compress2(&mut self.packed, plain).map_err(|_| damaged("it cannot be compressed"))?;
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..4].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(self.packed.len() as u32).to_le_bytes());
        let check = frame_check(&header[..8], &self.packed);
        header[8..].copy_from_slice(&check);
        self.packed.splice(0..0, header);
        self.disk.write_at(&self.file, &self.packed, self.offset).map_err(io_error("write"))?;
        self.offset += self.packed.len() as u64;
        Ok(())
    }
}
