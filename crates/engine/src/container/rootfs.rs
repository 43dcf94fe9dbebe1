//! A container's root file system: its image's layers below its own `upper`, mounted on `merged` while it runs.
//!
//! O1  Mounted only between a start and the end of that run (or during an export); never twice.
//! O2  Lower directories are passed by descriptor, from the store's own folders.

use std::path::{Path, PathBuf};

use baleen_oci::ImageId;
use baleen_snapshotter::active;
use baleen_snapshotter::overlay::{self, Overlay};
use baleen_store::{Handle, StagedDir, Store, StoreError};

use super::stored::StoredContainer;
use crate::error::EngineError;
use crate::image::{layer_dirs, store_error};

/// Path of the mounted root.
pub(crate) fn merged_path(data_root: &Path, id: &str) -> PathBuf {
    data_root.join("containers").join(id).join("merged")
}

/// Makes the directories of a new container in its staged folder; the upper one looks like the image's own root.
pub(crate) fn stage(store: &Store, image: &ImageId, staged: &mut StagedDir<'_>) -> Result<(), StoreError> {
    let top = store.image(image).and_then(|image| image.layers.last().cloned());
    let (mut mode, mut uid, mut gid) = (0o755, 0, 0);
    if let Some(key) = &top {
        let disk = store.disk();
        let folder = store.layer_dir(key)?;
        let read = disk.open_dir(&folder, b"fs").and_then(|root| disk.metadata(&root));
        let facts =
            read.map_err(|source| StoreError::Io { action: "read", path: format!("layers/{key}/fs"), source })?;
        (mode, uid, gid) = (facts.mode, facts.uid, facts.gid);
    }
    staged.dir("upper", mode, uid, gid)?;
    staged.dir("work", 0o700, 0, 0)?;
    staged.dir("merged", 0o755, 0, 0)?;
    if top.is_none() {
        staged.dir("empty", 0o755, 0, 0)?;
    }
    Ok(())
}

/// Mounts a container's root and gives its path.
pub(crate) fn mount(store: &Store, data_root: &Path, stored: &StoredContainer) -> Result<PathBuf, EngineError> {
    let id = &stored.id;
    let folder = store.container_dir(id).map_err(store_error("open the container's folder"))?;
    unmount_in(&folder)?;
    let io = |action, name: &str| {
        let path = format!("containers/{id}/{name}").into();
        move |source| EngineError::Io { action, path, source }
    };
    let disk = store.disk();
    active::empty_work(disk.as_ref(), &folder).map_err(io("empty", "work"))?;
    let open = |name: &str| disk.open_dir(&folder, name.as_bytes()).map_err(io("open", name));
    let image = store.image(&stored.image_id).ok_or_else(|| {
        EngineError::part(
            "mount the container's image",
            StoreError::ImageMissing { image: stored.image_id.to_string() },
        )
    })?;
    let mut lowers: Vec<Handle> = Vec::new();
    for key in image.layers.iter().rev() {
        let layer = store.layer_dir(key).map_err(store_error("open a layer of the container's image"))?;
        let root = disk.open_dir(&layer, b"fs").map_err(|source| EngineError::Io {
            action: "open",
            path: format!("layers/{key}/fs").into(),
            source,
        })?;
        lowers.push(root);
    }
    if lowers.is_empty() {
        lowers.push(open("empty")?);
    }
    let (upper, work, merged) = (open("upper")?, open("work")?, open("merged")?);
    let no_fd = || EngineError::part("mount the container", "its store is not on a file system of the kernel");
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.fd().ok_or_else(no_fd)).collect::<Result<_, _>>()?;
    let writable = Some((upper.fd().ok_or_else(no_fd)?, work.fd().ok_or_else(no_fd)?));
    Overlay { lowers: &lowers, writable }
        .mount(merged.fd().ok_or_else(no_fd)?)
        .map_err(|error| EngineError::part("mount the container's root file system", error))?;
    Ok(merged_path(data_root, id))
}

/// Takes a container's root away if it is mounted.
pub(crate) fn unmount(store: &Store, id: &str) -> Result<(), EngineError> {
    let folder = store.container_dir(id).map_err(store_error("open the container's folder"))?;
    unmount_in(&folder)
}

fn unmount_in(folder: &Handle) -> Result<(), EngineError> {
    let Some(fd) = folder.fd() else { return Ok(()) };
    // More than once only after somebody else has mounted on it too.
    while overlay::unmount(fd, "merged")
        .map_err(|error| EngineError::part("unmount the container's root file system", error))?
    {}
    Ok(())
}

/// overlay2's directories of a container, as plain paths.
pub(crate) fn graph_driver(store: &Store, data_root: &Path, stored: &StoredContainer) -> crate::image::GraphDriver {
    let folder = data_root.join("containers").join(&stored.id);
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let layers = store.image(&stored.image_id).map(|image| image.layers).unwrap_or_default();
    let lower_dirs = if layers.is_empty() { vec![path("empty")] } else { layer_dirs(data_root, &layers) };
    crate::image::GraphDriver {
        lower_dirs,
        upper_dir: Some(path("upper")),
        work_dir: Some(path("work")),
        merged_dir: Some(path("merged")),
    }
}
