//! A source layer as the store has it: extracted, with its recipe.
//!
//! O1  The recipe is gone through once, when the layer is opened; after that one frame of it at a time is in memory, or two.
//! O2  What is opened is told by the recipe, component by component, and no link is followed (`snapshotter::rebuild`).
//! O3  What was read leaves the page cache again.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use baleen_oci::DiffId;
use baleen_snapshotter::rebuild::{FileOpener, path_of};
use baleen_store::recipe::{Content, Item, Location, Recipe, Segment};
use baleen_store::{Disk, Handle};

use crate::error::SourceError;
use crate::source::{PayloadFacts, ReadAt, SourceLayer};

/// Frames of the recipe that stay in memory: where payloads and where headers are read, which may be two.
const FRAMES_KEPT: usize = 2;
const BLOCK_BYTES: u64 = 512;

/// A committed layer.
pub struct StoredLayer {
    disk: Arc<dyn Disk>,
    dir: Handle,
    recipe: Recipe,
    /// Where each frame of the recipe begins, and at the end where the last one ends.
    starts: Vec<Place>,
    frames: Mutex<VecDeque<(usize, Arc<Frame>)>>,
}

/// How far a recipe has come.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    files: u64,
    payloads: u64,
    skeleton_bytes: u64,
    /// Bytes of literals to come that pad a payload.
    padding: u64,
}

/// What a frame of the recipe tells.
#[derive(Debug, Default)]
struct Frame {
    payloads: Vec<Payload>,
    skeleton: Vec<u8>,
}

#[derive(Debug)]
struct Payload {
    path: Vec<u8>,
    location: Location,
    content: Content,
    segments: Option<Vec<Segment>>,
    blocks_before: u64,
}

impl std::fmt::Debug for StoredLayer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StoredLayer").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

impl StoredLayer {
    /// Opens the layer in `dir`, which has `fs/` and `recipe`.
    ///
    /// # Errors
    /// [`SourceError::Recipe`].
    pub fn open(disk: Arc<dyn Disk>, dir: Handle) -> Result<Self, SourceError> {
        let recipe = Recipe::open(Arc::clone(&disk), &dir).map_err(SourceError::Recipe)?;
        let mut layer = Self { disk, dir, recipe, starts: vec![Place::default()], frames: Mutex::default() };
        let mut place = Place::default();
        for number in 0..layer.recipe.frame_count() {
            layer.go_through(number, &mut place, None)?;
            layer.starts.push(place);
        }
        Ok(layer)
    }

    /// Goes through one frame of the recipe from `place` on; what it tells goes to `into`.
    fn go_through(&self, number: usize, place: &mut Place, mut into: Option<&mut Frame>) -> Result<(), SourceError> {
        for item in self.recipe.items_of_frame(number) {
            let (path, location, content, segments) = match item.map_err(SourceError::Recipe)? {
                Item::Literal(bytes) => {
                    let padding = place.padding.min(bytes.len() as u64);
                    place.padding -= padding;
                    let rest = &bytes[padding as usize..];
                    place.skeleton_bytes += rest.len() as u64;
                    if let Some(frame) = &mut into {
                        frame.skeleton.extend_from_slice(rest);
                    }
                    continue;
                }
                Item::Zeros(_) | Item::LedTo(_) => continue,
                Item::Copied(copied) => {
                    place.files += u64::from(copied.content.is_some());
                    continue;
                }
                Item::File { path, content, segments } => {
                    let location = self.recipe.location(place.files, &path);
                    place.files += 1;
                    (path, location, content, segments)
                }
                Item::Kept { number, content } => {
                    (Vec::new(), Location::Kept { number, rest: Vec::new() }, content, None)
                }
            };
            if content.size_bytes == 0 {
                continue;
            }
            place.payloads += 1;
            place.padding = (BLOCK_BYTES - content.size_bytes % BLOCK_BYTES) % BLOCK_BYTES;
            if let Some(frame) = &mut into {
                let blocks_before = place.skeleton_bytes / BLOCK_BYTES;
                frame.payloads.push(Payload { path, location, content, segments, blocks_before });
            }
        }
        Ok(())
    }

    fn frame(&self, number: usize) -> Result<Arc<Frame>, SourceError> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = frames.iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(frame));
        }
        let mut frame = Frame::default();
        let mut place = self.starts[number];
        self.go_through(number, &mut place, Some(&mut frame))?;
        let frame = Arc::new(frame);
        if frames.len() == FRAMES_KEPT {
            frames.pop_front();
        }
        frames.push_back((number, Arc::clone(&frame)));
        Ok(frame)
    }

    /// The frame that has a payload, and its number there.
    fn payload(&self, index: u64) -> Result<(Arc<Frame>, usize), SourceError> {
        let missing = SourceError::NoPayload { index };
        let after = self.starts.partition_point(|start| start.payloads <= index);
        // Of the starts at or before it the last; the last of all is the end.
        let Some(number) = after.checked_sub(1).filter(|_| after < self.starts.len()) else { return Err(missing) };
        let frame = self.frame(number)?;
        let inside = (index - self.starts[number].payloads) as usize;
        if inside < frame.payloads.len() { Ok((frame, inside)) } else { Err(missing) }
    }
}

fn facts_of(payload: &Payload, index: u64) -> PayloadFacts {
    PayloadFacts {
        index,
        path: payload.path.clone(),
        size_bytes: payload.content.size_bytes,
        blake3: payload.content.blake3,
        blocks_before: payload.blocks_before,
    }
}

impl SourceLayer for StoredLayer {
    fn diff_id(&self) -> DiffId {
        self.recipe.summary().diff_id
    }

    fn open(&self, index: u64) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        let (frame, inside) = self.payload(index)?;
        let payload = &frame.payloads[inside];
        let path = path_of(&payload.location);
        let file = FileOpener::new(&*self.disk, &self.dir).open(&path).map_err(|source| SourceError::Io {
            action: "open",
            what: String::from_utf8_lossy(&path).escape_default().to_string(),
            source,
        })?;
        let size_bytes = payload.content.size_bytes;
        let segments = payload.segments.clone().unwrap_or_else(|| vec![Segment { offset: 0, length: size_bytes }]);
        Ok(Box::new(StoredPayload { disk: &*self.disk, file, size_bytes, segments }))
    }

    fn facts(&self, index: u64) -> Result<PayloadFacts, SourceError> {
        self.payload(index).map(|(frame, inside)| facts_of(&frame.payloads[inside], index))
    }

    fn skeleton(&self) -> Result<Box<dyn ReadAt + '_>, SourceError> {
        Ok(Box::new(Skeleton(self)))
    }

    fn for_each(&self, visit: &mut dyn FnMut(PayloadFacts)) -> Result<(), SourceError> {
        let mut place = Place::default();
        for number in 0..self.recipe.frame_count() {
            let (mut frame, before) = (Frame::default(), place.payloads);
            self.go_through(number, &mut place, Some(&mut frame))?;
            for (index, payload) in frame.payloads.iter().enumerate() {
                visit(facts_of(payload, before + index as u64));
            }
        }
        Ok(())
    }
}

struct StoredPayload<'a> {
    disk: &'a dyn Disk,
    file: Handle,
    size_bytes: u64,
    segments: Vec<Segment>,
}

impl ReadAt for StoredPayload<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut before = 0;
        for segment in &self.segments {
            if offset < before + segment.length {
                let inside = offset - before;
                let count = (segment.length - inside).min(buffer.len() as u64) as usize;
                return self.disk.read_at(&self.file, &mut buffer[..count], segment.offset + inside);
            }
            before += segment.length;
        }
        Ok(0)
    }
}

impl Drop for StoredPayload<'_> {
    fn drop(&mut self) {
        // Reading a layer must not push the containers' pages out.
        let _ = self.disk.drop_cache(&self.file, 0, 0);
    }
}

struct Skeleton<'a>(&'a StoredLayer);

impl ReadAt for Skeleton<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.starts.last().map_or(0, |end| end.skeleton_bytes) / BLOCK_BYTES * BLOCK_BYTES
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.size_bytes() {
            return Ok(0);
        }
        let after = self.0.starts.partition_point(|start| start.skeleton_bytes <= offset);
        let number = after.saturating_sub(1);
        let frame = self.0.frame(number).map_err(io::Error::other)?;
        let inside = (offset - self.0.starts[number].skeleton_bytes) as usize;
        let rest = frame.skeleton.get(inside..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}
