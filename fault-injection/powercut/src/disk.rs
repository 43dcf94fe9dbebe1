//! The disk behind the device: an image that is only read, what was written over it, and the recording of that.
//!
//! D1  A write is in the recording before it is answered, in the order in which it was answered.
//! D2  What one state writes is gone with the state: the image under it never changes.
//! D3  A disk with a cache knows what each block was at the last flush, and what was written since: a cut of its power keeps
//!     any part of that. While it is dark it takes writes and forgets them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::contents::{BLOCK_BYTES, ContentId, Contents, ZEROS};
use crate::device::BlockStore;
use crate::fault::{Fault, Faults, Request};
use crate::record::{Piece, RecordError, Recorder, pieces};
use crate::state::{Kind, keep};
use crate::workload::Mark;

/// A block as it is now.
#[derive(Debug, Clone)]
enum Slot {
    Content(ContentId),
    Bytes(Box<[u8; BLOCK_BYTES]>),
}

/// A disk of blocks, copy-on-write.
#[derive(Debug)]
pub(crate) struct Disk {
    image: Arc<Vec<ContentId>>,
    contents: Arc<Contents>,
    over: HashMap<u32, Slot>,
    recorder: Option<Recorder>,
    /// The first failure of the recording: the disk fails from then on, and the rig says so.
    failure: Option<RecordError>,
    faults: Faults,
    cache: Option<Cache>,
}

/// What a disk has taken since its last flush (D3).
#[derive(Debug, Default)]
struct Cache {
    /// Each block that was written since, as it was then.
    before: HashMap<u32, Option<Slot>>,
    /// The writes, in order: offset and bytes.
    writes: Vec<(u64, Vec<u8>)>,
    flushes: u32,
    dark: bool,
}

/// What a cut of the power did with the writes since the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutWrites {
    /// Kept whole.
    pub kept: u32,
    /// Kept in part.
    pub torn: u32,
    /// Lost.
    pub lost: u32,
}

impl Disk {
    /// A disk that shows `image`.
    pub(crate) fn new(image: Arc<Vec<ContentId>>, contents: Arc<Contents>) -> Disk {
        Disk {
            image,
            contents,
            over: HashMap::new(),
            recorder: None,
            failure: None,
            faults: Faults::default(),
            cache: None,
        }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        (self.image.len() * BLOCK_BYTES) as u64
    }

    /// Puts contents over the image.
    pub(crate) fn lay(&mut self, blocks: HashMap<u32, ContentId>) {
        self.over.extend(blocks.into_iter().map(|(block, content)| (block, Slot::Content(content))));
    }

    /// Records from here on.
    pub(crate) fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Puts a mark into the recording, if there is one.
    pub(crate) fn mark(&mut self, mark: &Mark) {
        let result = self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.mark(mark));
        self.keep_failure(result);
    }

    /// Cuts the power: what is written from here on is in no recording. The recording so far, to be ended.
    ///
    /// # Errors
    /// `Io` if any part of the recording could not be written.
    pub(crate) fn cut(&mut self) -> Result<Option<Recorder>, RecordError> {
        let recorder = self.recorder.take();
        self.failure.take().map_or(Ok(recorder), Err)
    }

    /// Sets the faults, counted from now.
    pub(crate) fn fail(&mut self, faults: Vec<Fault>) {
        self.faults.set(faults);
    }

    /// Reads, writes and flushes since the faults were set.
    pub(crate) fn counted(&self) -> (u64, u64, u64) {
        self.faults.counted()
    }

    /// Has a cache from here on, which a [`cut_power`](Self::cut_power) empties.
    pub(crate) fn cache_writes(&mut self) {
        self.cache = Some(Cache::default());
    }

    /// The power goes: of the writes since the last flush only what `kind` keeps is there from now on, and until
    /// [`cache_writes`](Self::cache_writes) whatever is written is forgotten (D3).
    ///
    /// # Errors
    /// Those of reading contents.
    pub(crate) fn cut_power(&mut self, kind: Kind) -> io::Result<CutWrites> {
        let Some(cache) = self.cache.as_mut() else { return Ok(CutWrites { kept: 0, torn: 0, lost: 0 }) };
        cache.dark = true;
        let (before, writes, epoch) =
            (std::mem::take(&mut cache.before), std::mem::take(&mut cache.writes), cache.flushes);
        for (block, slot) in before {
            match slot {
                Some(slot) => self.over.insert(block, slot),
                None => self.over.remove(&block),
            };
        }
        let piece = |(block, start, range): (u32, usize, std::ops::Range<usize>)| Piece {
            block,
            start: start as u16,
            length: range.len() as u16,
            content: ZEROS,
        };
        let parts: Vec<Vec<Piece>> =
            writes.iter().map(|(offset, data)| pieces(*offset, data.len()).map(piece).collect()).collect();
        let parts: Vec<&[Piece]> = parts.iter().map(Vec::as_slice).collect();
        let set = keep(kind, epoch, &parts);
        for kept in &set.kept {
            let (offset, data) = &writes[kept.write as usize];
            let Some((block, start, range)) = pieces(*offset, data.len()).nth(kept.piece as usize) else { continue };
            for sector in (0..8).filter(|sector| kept.sectors & 1 << sector != 0) {
                let begin = start.max(sector * 512);
                let end = (start + range.len()).min((sector + 1) * 512);
                self.put(block, begin, &data[range.start + begin - start..range.start + end - start])?;
            }
        }
        let (kept, torn, lost) = set.counts;
        Ok(CutWrites { kept, torn, lost })
    }

    /// Writes since the last flush, if there is a cache.
    pub(crate) fn cached_writes(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.writes.len())
    }

    /// Whether a block has never been written, so that it is zeros.
    pub(crate) fn is_untouched(&self, block: u32) -> bool {
        self.image.get(block as usize) == Some(&ZEROS) && !self.over.contains_key(&block)
    }

    /// The bytes of a block as it is now.
    pub(crate) fn block(&self, block: u32) -> io::Result<Box<[u8; BLOCK_BYTES]>> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        self.read_piece(block, 0, bytes.as_mut_slice())?;
        Ok(bytes)
    }

    /// Changes bits of a byte where it lies, as a failing disk does: nothing is recorded.
    pub(crate) fn rot(&mut self, offset: u64, bits: u8) -> io::Result<()> {
        let block = (offset / BLOCK_BYTES as u64) as u32;
        let mut bytes = self.block(block)?;
        bytes[(offset % BLOCK_BYTES as u64) as usize] ^= bits;
        self.over.insert(block, Slot::Bytes(bytes));
        Ok(())
    }

    fn read_piece(&self, block: u32, start: usize, bytes: &mut [u8]) -> io::Result<()> {
        match self.over.get(&block) {
            Some(Slot::Bytes(whole)) => {
                bytes.copy_from_slice(&whole[start..start + bytes.len()]);
                Ok(())
            }
            Some(Slot::Content(content)) => self.contents.read(*content, start, bytes),
            None => {
                let content = *self.image.get(block as usize).ok_or(io::ErrorKind::InvalidInput)?;
                self.contents.read(content, start, bytes)
            }
        }
    }

    fn put(&mut self, block: u32, start: usize, bytes: &[u8]) -> io::Result<()> {
        let mut whole = match self.over.remove(&block) {
            Some(Slot::Bytes(whole)) => whole,
            _ if bytes.len() == BLOCK_BYTES => Box::new([0; BLOCK_BYTES]),
            kept => {
                self.over.extend(kept.map(|kept| (block, kept)));
                self.block(block)?
            }
        };
        whole[start..start + bytes.len()].copy_from_slice(bytes);
        self.over.insert(block, Slot::Bytes(whole));
        Ok(())
    }

    fn keep_failure(&mut self, result: Result<(), RecordError>) {
        if let Err(error) = result
            && self.failure.is_none()
        {
            self.failure = Some(error);
        }
    }

    fn meet(&mut self, request: Request, fresh: bool) -> io::Result<()> {
        if self.failure.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.faults.meet(request, fresh).map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
    }

    fn recorded_or_failed(&mut self) -> io::Result<()> {
        if self.failure.is_some() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl BlockStore for Disk {
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.meet(Request::Read, false)?;
        for (block, start, range) in pieces(offset, bytes.len()) {
            self.read_piece(block, start, &mut bytes[range])?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let fresh = pieces(offset, data.len())
            .any(|(block, ..)| !self.over.contains_key(&block) && self.image[block as usize] == crate::contents::ZEROS);
        self.meet(Request::Write, fresh)?;
        if let Some(cache) = &mut self.cache {
            if cache.dark {
                return Ok(());
            }
            for (block, ..) in pieces(offset, data.len()) {
                cache.before.entry(block).or_insert_with(|| self.over.get(&block).cloned());
            }
            cache.writes.push((offset, data.to_vec()));
        }
        match self.recorder.as_mut().map(|recorder| recorder.write(offset, data)) {
            Some(Ok(written)) => {
                for (piece, (_, start, range)) in written.iter().zip(pieces(offset, data.len())) {
                    // Whole blocks lie in the recording already: memory stays small however much is written.
                    if range.len() == BLOCK_BYTES {
                        self.over.insert(piece.block, Slot::Content(piece.content));
                    } else {
                        self.put(piece.block, start, &data[range])?;
                    }
                }
            }
            Some(Err(error)) => self.keep_failure(Err(error)),
            None => {
                for (block, start, range) in pieces(offset, data.len()) {
                    self.put(block, start, &data[range])?;
                }
            }
        }
        self.recorded_or_failed()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.meet(Request::Flush, false)?;
        if !self.faults.flushes_lie() {
            let result = self.recorder.as_mut().map_or(Ok(()), Recorder::flush);
            self.keep_failure(result);
            if let Some(cache) = self.cache.as_mut().filter(|cache| !cache.dark) {
                cache.before.clear();
                cache.writes.clear();
                cache.flushes += 1;
            }
        }
        self.recorded_or_failed()
    }
}
