//! A durable layer's small files, out of the page cache: what extraction left there (rule F3 of `tree`).

use std::sync::Arc;

use baleen_store::recipe::{Item, Location, Recipe};
use baleen_store::{Disk, Handle};

use crate::rebuild::{FileOpener, RebuildError, path_of};
use crate::tree::SMALL_FILE_BYTES;

/// Drops the pages of the layer's small files from the cache; gives the number of files. Call it after the barrier: pages
/// that are not clean stay. Nothing depends on it but other people's memory, so an error may be logged and forgotten.
///
/// # Blocking
/// For the look-ups of the files, which extraction has just made.
///
/// # Errors
/// [`RebuildError::Recipe`] if the recipe cannot be read.
pub fn release(disk: &Arc<dyn Disk>, layer_dir: &Handle) -> Result<u64, RebuildError> {
    let recipe = Recipe::open(Arc::clone(disk), layer_dir).map_err(RebuildError::Recipe)?;
    let mut opener = FileOpener::new(&**disk, layer_dir);
    let (mut files, mut released) = (0, 0);
    for item in recipe.items() {
        let (location, size_bytes) = match item.map_err(RebuildError::Recipe)? {
            Item::File { path, content, .. } => {
                files += 1;
                (recipe.location(files - 1, &path), content.size_bytes)
            }
            Item::Kept { number, content } => (Location::Kept { number, rest: Vec::new() }, content.size_bytes),
            Item::Copied(copied) => match copied.content {
                Some(content) => {
                    files += 1;
                    (recipe.location(files - 1, &copied.path), content.size_bytes)
                }
                None => continue,
            },
            Item::Literal(_) | Item::Zeros(_) | Item::LedTo(_) => continue,
        };
        if (1..SMALL_FILE_BYTES).contains(&size_bytes)
            && let Ok(file) = opener.open(&path_of(&location))
            && disk.drop_cache(&file, 0, 0).is_ok()
        {
            released += 1;
        }
    }
    Ok(released)
}
