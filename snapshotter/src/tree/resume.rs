//! Going on with a tree that a cut left: the recipe is read again, the tree swept, the file in progress taken up.

use baleen_store::recipe::{RecipeError, RecipeWriter};
use baleen_store::{Access, NodeKind};

use super::replay::Replay;
use super::sweep::{open_path, sweep};
use super::*;

impl TreeWriter {
    /// Goes on in `layer_dir` from `state`, where the tar was `tar_bytes` long.
    ///
    /// # Errors
    /// [`ExtractError::NotResumable`] if state, recipe and tree do not belong together; the errors of the disk.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        layer_dir: &Handle,
        limits: Limits,
        state: TreeState,
        tar_bytes: u64,
    ) -> Result<Self, ExtractError> {
        let mut replay = Replay::new();
        let (recipe_bytes, moves) = (state.recipe_bytes, state.moves.clone());
        let recipe = RecipeWriter::resume(Arc::clone(&disk), layer_dir, recipe_bytes, moves, |item| replay.take(item))
            .map_err(refused)?;
        let in_progress = take_up(&mut replay, &state)?;
        let belongs = replay.entries == state.entries
            && replay.payload_bytes.checked_add(in_progress) == Some(state.payload_bytes)
            && replay.parser.offset() == tar_bytes;
        if !belongs {
            return Err(ExtractError::NotResumable { problem: "its recipe is another one" });
        }
        let entry = replay.entry.take();
        let (parser, known) = replay.known();
        sweep(&*disk, layer_dir, &known, state.kept_next)?;
        drop(known);
        let open = open(&*disk, layer_dir, &state, entry)?;
        let failed = |source| io_error("open", TREE_NAME, source);
        let tree = disk.open_dir(layer_dir, TREE_NAME).map_err(failed)?;
        let directories = Directories::resume(&*disk, tree, state.implied_directories).map_err(failed)?;
        let own_dir = disk.open_dir_in_root(layer_dir, std::path::Path::new(".")).map_err(failed)?;
        let kept_dir = match state.kept_next {
            0 => None,
            _ => Some(disk.open_dir(layer_dir, KEPT_NAME).map_err(|source| io_error("open", KEPT_NAME, source))?),
        };
        Ok(Self {
            disk,
            parser,
            directories,
            recipe,
            kept: Kept { layer_dir: own_dir, dir: kept_dir, next: state.kept_next },
            ring: WriteBackRing::default(),
            open,
            limits,
            entries: state.entries,
            payload_bytes: state.payload_bytes,
            trailing_zeros: state.trailing_zeros,
            tail: state.tail,
            guard: Guard::default(),
            below: None,
            copied_bytes: 0,
            depends_on_parents: false,
            resumed_at: Some(recipe_bytes),
        })
    }
}

/// What is damaged in a layer that is not finished is no damage of the store.
fn refused(error: ExtractError) -> ExtractError {
    match error {
        ExtractError::Recipe(RecipeError::Damaged { problem }) => ExtractError::NotResumable { problem },
        ExtractError::Recipe(RecipeError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
            ExtractError::NotResumable { problem: "it has no recipe" }
        }
        ExtractError::Tar(_) => ExtractError::NotResumable { problem: "its recipe is no archive's" },
        other => other,
    }
}

/// Brings the parser past what the recipe does not tell yet; gives the bytes of payload in that.
fn take_up(replay: &mut Replay, state: &TreeState) -> Result<u64, ExtractError> {
    let differs = Err(ExtractError::NotResumable { problem: "its recipe has another payload in progress" });
    let (path, written) = match &state.open {
        OpenState::Nothing if replay.entry.is_none() && !state.tail => {
            replay.skip(state.trailing_zeros, false)?;
            return Ok(0);
        }
        OpenState::Nothing => return differs,
        OpenState::File { path, written } => (Some(path), written),
        OpenState::Kept { written, .. } => (None, written),
    };
    let taken_bytes = written.taken_bytes;
    let fits = match &replay.entry {
        Some(entry) => !state.tail && taken_bytes < entry.data_bytes && replay.file.as_ref() == path,
        None => state.tail && path.is_none() && taken_bytes > 0,
    };
    if !fits || state.trailing_zeros > 0 {
        return differs;
    }
    replay.skip(taken_bytes, state.tail)?;
    Ok(taken_bytes)
}

/// Opens the file in progress, the one inode that is written to again: the same one, with one name.
fn open(
    disk: &dyn Disk,
    layer_dir: &Handle,
    state: &TreeState,
    entry: Option<Box<Entry>>,
) -> Result<Option<Open>, ExtractError> {
    let lost = ExtractError::NotResumable { problem: "the file in progress is another one" };
    let payload_bytes = entry.as_ref().map_or(u64::MAX, |entry| entry.data_bytes);
    let (place, written) = match &state.open {
        OpenState::Nothing => return Ok(None),
        OpenState::File { path, written } => ([TREE_NAME, path].join(&b'/'), written),
        OpenState::Kept { number, written } => ([KEPT_NAME, number.to_string().as_bytes()].join(&b'/'), written),
    };
    let failed = |source| io_error("open", &place, source);
    let slash = place.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let (parents, name) = (&place[..slash], &place[slash + 1..]);
    let dir = open_path(disk, layer_dir, parents).map_err(failed)?;
    let dir = dir.as_ref().unwrap_or(layer_dir);
    let there = disk.metadata_at(dir, name).map_err(failed)?;
    if there.kind != NodeKind::File {
        return Err(lost);
    }
    let file = disk.open_file(dir, name, Access::ReadWrite).map_err(failed)?;
    let facts = disk.metadata(&file).map_err(failed)?;
    if facts.inode != written.inode || facts.links != 1 {
        return Err(lost);
    }
    let written: Written = written.clone();
    match (&state.open, entry) {
        (OpenState::File { path, .. }, Some(mut entry)) => {
            let segments = entry.segments.take();
            let writer = FileWriter::resume(disk, file, payload_bytes, segments, written).map_err(failed)?;
            let writer = writer.ok_or(lost)?;
            Ok(Some(Open::File { writer, path: path.clone(), entry, has_owner: false }))
        }
        (OpenState::Kept { number, .. }, _) => {
            let writer = FileWriter::resume(disk, file, payload_bytes, None, written).map_err(failed)?;
            Ok(Some(Open::Kept { writer: writer.ok_or(lost)?, number: *number }))
        }
        _ => Err(lost),
    }
}
