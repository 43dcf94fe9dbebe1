//! What was written after a cut, read back before the layer may be committed.

use super::*;
use crate::content::ContentHasher;
use crate::rebuild::{FileOpener, path_of};
use baleen_store::recipe::{Item, Location, Recipe};

const BUFFER_BYTES: usize = 256 << 10;

/// Compares every file whose item is in the recipe from `offset` on with what that says.
pub(super) fn reread(disk: &Arc<dyn Disk>, layer_dir: &Handle, offset: u64) -> Result<(), ExtractError> {
    let recipe = Recipe::open(Arc::clone(disk), layer_dir).map_err(ExtractError::Recipe)?;
    let mut opener = FileOpener::new(&**disk, layer_dir);
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut files, items) = recipe.items_from(offset);
    for item in items {
        let (location, content, segments) = match item.map_err(ExtractError::Recipe)? {
            Item::File { path, content, segments } => {
                files += 1;
                (recipe.location(files - 1, &path), content, segments)
            }
            Item::Kept { number, content } => (Location::Kept { number, rest: Vec::new() }, content, None),
            Item::Copied(copied) => match copied.content {
                Some(content) => {
                    files += 1;
                    (recipe.location(files - 1, &copied.path), content, None)
                }
                None => continue,
            },
            Item::Literal(_) | Item::Zeros(_) | Item::LedTo(_) => continue,
        };
        let path = path_of(&location);
        let file = opener.open(&path).map_err(|source| io_error("read back", &path, source))?;
        let whole = [Segment { offset: 0, length: content.size_bytes }];
        let mut hasher = ContentHasher::default();
        for segment in segments.as_deref().unwrap_or(&whole) {
            let (mut at, mut left) = (segment.offset, segment.length);
            while left > 0 {
                let part = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                let read = disk.read_at(&file, &mut buffer[..part], at);
                let count = read.map_err(|source| io_error("read back", &path, source))?;
                if count == 0 {
                    return Err(ExtractError::ReadBack { path: shown(&path) });
                }
                hasher.update(&buffer[..count]);
                at += count as u64;
                left -= count as u64;
            }
        }
        if hasher.finish() != content {
            return Err(ExtractError::ReadBack { path: shown(&path) });
        }
        // Its pages are the containers' memory again; those that are not clean yet stay.
        let _ = disk.drop_cache(&file, 0, 0);
    }
    Ok(())
}
