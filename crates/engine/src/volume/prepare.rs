//! Before a container is stored: its volumes are made, and fresh ones are filled with what the image has there.
//!
//! A volume that is made for a container whose creation fails goes again if nobody named it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use baleen_snapshotter::overlay::{self, Overlay};
use baleen_store::{Handle, ImageFact};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::copy_up::{self, AtPath};
use super::table::Held;
use super::{CreateVolume, Planned};
use crate::container::{ContainerStatus, MountPoint, random};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::image::store_error;

/// Volumes that a create has made, and those that it holds until the container is known.
pub(crate) struct Prepared<'a> {
    engine: &'a Engine,
    held: Held<'a>,
    points: Vec<MountPoint>,
    /// Anonymous ones that were made now; they go when the create fails.
    made: Vec<String>,
}

impl Prepared<'_> {
    /// The mount points, with the names and places of their volumes.
    pub(crate) fn points(&self) -> &[MountPoint] {
        &self.points
    }

    /// The container has them now.
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        self.held.release();
        for name in std::mem::take(&mut self.made) {
            if let Err(error) = self.engine.unmake_volume(&name) {
                tracing::warn!(volume = name, error = error.chain(), "a volume of a failed create is left");
            }
        }
    }
}

/// Tries to take a volume that is being removed at the same time.
const ATTEMPTS_MAX: u32 = 1000;

impl Engine {
    /// Makes what a plan names. Blocking.
    pub(crate) fn prepare_volumes(&self, plan: Vec<Planned>, image: &ImageFact) -> Result<Prepared<'_>, EngineError> {
        let mut prepared = Prepared { engine: self, held: self.volumes.hold(), points: Vec::new(), made: Vec::new() };
        let mut root = None;
        for Planned { mut point, copy, labels } in plan {
            if point.kind == "volume" {
                let name = self.take_volume(&mut prepared, &point, labels)?;
                let data = self.volume_data(&name);
                point.device = self.volumes.get(&name).and_then(|volume| volume.device().map(str::to_owned));
                // A directory of the host's is as its owner wants it.
                if copy && point.device.is_none() {
                    self.copy_up(&name, &point.destination, image, &mut root)?;
                }
                point.source = data.to_string_lossy().into_owned();
                point.name = Some(name);
            }
            prepared.points.push(point);
        }
        Ok(prepared)
    }

    /// Makes or finds a volume and holds it.
    fn take_volume(
        &self,
        prepared: &mut Prepared<'_>,
        point: &MountPoint,
        labels: std::collections::BTreeMap<String, String>,
    ) -> Result<String, EngineError> {
        let request = CreateVolume { name: point.name.clone().unwrap_or_default(), labels, ..CreateVolume::default() };
        for _ in 0..ATTEMPTS_MAX {
            let made = self.make_volume(&request)?;
            if made.fresh && point.anonymous {
                prepared.made.push(made.name.clone());
            }
            if prepared.held.add(&made.name) && self.volumes.get(&made.name).is_some() {
                return Ok(made.name);
            }
            std::thread::yield_now(); // Its removal ends soon: one record.
        }
        let name = &request.name;
        Err(EngineError::conflict(format!("volume {name} is being removed; try again")))
    }

    /// Fills an empty volume with what the image has at `destination` (`copy_up`).
    fn copy_up(
        &self,
        name: &str,
        destination: &str,
        image: &ImageFact,
        root: &mut Option<ImageRoot>,
    ) -> Result<(), EngineError> {
        let failed =
            |source| EngineError::Io { action: "copy the image's files to", path: self.volume_data(name), source };
        let _turn = self.volumes.copying.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let data = self.volume_data(name);
        if !copy_up::is_empty(&data).map_err(failed)? {
            return Ok(());
        }
        let root = match root {
            Some(root) => root,
            None => root.insert(ImageRoot::open(self, image)?),
        };
        match copy_up::look_up(&root.dir, destination).map_err(failed)? {
            AtPath::Nothing => Ok(()),
            AtPath::Other => {
                Err(EngineError::invalid(format!("cannot mount volume over existing file, file exists {destination}")))
            }
            AtPath::Directory(_) if self.volume_is_mounted(name) => {
                tracing::debug!(volume = name, "an empty volume in use is not filled");
                Ok(())
            }
            AtPath::Directory(source) => {
                let folder = data.parent().unwrap_or(&data);
                copy_up::fill(folder, source).map_err(failed)
            }
        }
    }

    /// Whether a container that runs has it.
    fn volume_is_mounted(&self, name: &str) -> bool {
        self.volume_users(name).iter().any(|container| {
            !matches!(container.live().state.status, ContainerStatus::Created | ContainerStatus::Exited)
        })
    }
}

/// The root of an image, read-only, for as long as this lives.
pub(crate) struct ImageRoot {
    dir: OwnedFd,
    mounted: Option<PathBuf>,
}

impl ImageRoot {
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    pub(crate) fn open(engine: &Engine, image: &ImageFact) -> Result<Self, EngineError> {
        let disk = engine.store.disk();
        let mut lowers: Vec<Handle> = Vec::new();
        for key in image.layers.iter().rev() {
            let layer = engine.store.layer_dir(key).map_err(store_error("open a layer of the image"))?;
            let root = disk.open_dir(&layer, b"fs").map_err(|source| EngineError::Io {
                action: "open",
                path: format!("layers/{key}/fs").into(),
                source,
            })?;
            lowers.push(root);
        }
        let no_fd = || EngineError::part("look into the image", "its store is not on a file system of the kernel");
        let descriptors: Vec<_> = lowers.iter().map(|lower| lower.fd().ok_or_else(no_fd)).collect::<Result<_, _>>()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let suffix: [u8; 8] = random()?;
        let place = engine.config.exec_root.join("copy-up").join(format!("{:016x}", u64::from_le_bytes(suffix)));
        let io = |action| {
            let path = place.clone();
            move |source: std::io::Error| EngineError::Io { action, path, source }
        };
        // One layer is a tree by itself (an overlay without an upper needs two), none is an empty one.
        if let [only] = descriptors[..] {
            let dir = openat(only, ".", flags, Mode::empty()).map_err(|error| io("open")(error.into()))?;
            return Ok(Self { dir, mounted: None });
        }
        crate::engine::make_private_dir(&place)?;
        let target = openat(CWD, &place, flags, Mode::empty()).map_err(|error| io("open")(error.into()))?;
        let mut root = Self { dir: target, mounted: None };
        if descriptors.is_empty() {
            root.mounted = Some(place);
            return Ok(root);
        }
        use std::os::fd::AsFd;
        Overlay { lowers: &descriptors, writable: None }
            .mount(root.dir.as_fd())
            .map_err(|error| EngineError::part("mount the image", error))?;
        root.mounted = Some(place.clone());
        root.dir = openat(CWD, &place, flags, Mode::empty()).map_err(|error| io("open")(error.into()))?;
        Ok(root)
    }
}

impl Drop for ImageRoot {
    fn drop(&mut self) {
        let Some(place) = self.mounted.take() else { return };
        if let Err(error) = unmount_and_remove(&place) {
            tracing::warn!(path = %place.display(), error = error.chain(), "a mounted image is left until the next start");
        }
    }
}

fn unmount_and_remove(place: &std::path::Path) -> Result<(), EngineError> {
    use std::os::fd::AsFd;
    let io = |source| EngineError::Io { action: "remove", path: place.to_owned(), source };
    let (Some(parent), Some(name)) = (place.parent(), place.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let parent = std::fs::File::open(parent).map_err(io)?;
    while overlay::unmount(parent.as_fd(), name).map_err(|error| EngineError::part("unmount the image", error))? {}
    std::fs::remove_dir(place).map_err(io)
}

/// Takes away mounted images that an engine left when it was killed.
pub(crate) fn clean_up(exec_root: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(exec_root.join("copy-up")) else { return };
    for entry in entries.flatten() {
        if let Err(error) = unmount_and_remove(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), error = error.chain(), "cannot take away a mounted image");
        }
    }
}
