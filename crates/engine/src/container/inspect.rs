//! List and inspect: what is known of containers at one moment.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use baleen_runtime::spec::{MASKED_PATHS, READONLY_PATHS};
use baleen_store::Store;
use rustix::fs::{AtFlags, CWD, Dir, FileType, statat};

use super::export::open_dir;
use super::files::EtcFiles;
use super::honour::{self, SecurityOption};
use super::host_config::HostConfig;
use super::rootfs;
use super::stored::StoredContainer;
use super::table::Container;
use super::view::ContainerDetails;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::image;
use crate::network::network_of;

/// How deep a container's tree is measured; deeper directories do not count.
const DEPTH_MAX: usize = 256;

impl Engine {
    /// All containers in any state, newest first. Sizes are filled in if `sizes`.
    ///
    /// # Errors
    /// Of the store.
    pub async fn containers(self: &Arc<Self>, sizes: bool) -> Result<Vec<ContainerDetails>, EngineError> {
        let engine = Arc::clone(self);
        self.door
            .enter("list containers", move || {
                Ok(engine.containers.all().iter().map(|container| engine.details(container, sizes)).collect())
            })
            .await
    }

    /// One container, by ID, name or unique prefix of an ID.
    ///
    /// # Errors
    /// `NoSuchContainer`, `AmbiguousPrefix`.
    pub async fn container(self: &Arc<Self>, name: &str, sizes: bool) -> Result<ContainerDetails, EngineError> {
        let container = self.containers.find(name)?;
        let engine = Arc::clone(self);
        self.door.enter("inspect a container", move || Ok(engine.details(&container, sizes))).await
    }

    fn details(&self, container: &Container, sizes: bool) -> ContainerDetails {
        let stored = &container.stored();
        let (name, state, restart_count, health) = {
            let live = container.live();
            (live.name.clone(), live.state.clone(), live.restarts.count, live.health.clone())
        };
        let etc = EtcFiles::of(&self.config.exec_root, &self.names_owner(stored));
        let size_rw_bytes = sizes.then(|| self.upper_bytes(container));
        ContainerDetails {
            id: stored.id.clone(),
            name,
            created: stored.created,
            path: stored.path.clone(),
            args: stored.args.clone(),
            image_id: stored.image_id.to_string(),
            image_shown: image_shown(&self.store, container),
            platform: stored.platform.clone(),
            state,
            restart_count,
            health,
            exec_ids: self.execs.running_in(container.id()),
            config: stored.config.clone(),
            host_config: shown_host_config(stored),
            graph_driver: rootfs::graph_driver(&self.store, &self.config.data_root, stored),
            mounts: stored.mounts.clone(),
            network: network_of(stored),
            endpoint: self.endpoint_of(container.id()),
            hosts_path: etc.hosts(),
            hostname_path: etc.hostname(),
            resolv_conf_path: etc.resolv_conf(),
            log_path: container.log_path(&self.config.data_root),
            apparmor_profile: String::new(),
            size_root_fs_bytes: size_rw_bytes.map(|own| own + image_bytes(&self.store, container)),
            size_rw_bytes,
        }
    }

    /// Bytes of the files in a container's upper directory.
    pub(crate) fn upper_bytes(&self, container: &Container) -> u64 {
        let upper: PathBuf = self.config.data_root.join("containers").join(container.id()).join("upper");
        open_dir(CWD, &upper).map_or(0, |upper| tree_bytes(&upper, DEPTH_MAX))
    }
}

/// Bytes of the files below a path of ours.
pub(crate) fn tree_bytes_at(path: &std::path::Path) -> u64 {
    open_dir(CWD, path).map_or(0, |dir| tree_bytes(&dir, DEPTH_MAX))
}

/// Sums the sizes of regular files. The tree belongs to the container, which may change it meanwhile: everything is
/// looked at from a held descriptor without following a link (threats T1), and what vanishes counts nothing.
fn tree_bytes(dir: &OwnedFd, depth: usize) -> u64 {
    let Ok(entries) = Dir::read_from(dir) else { return 0 };
    let mut bytes = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(facts) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::RegularFile => bytes += u64::try_from(facts.st_size).unwrap_or(0),
            FileType::Directory if depth > 0 => {
                bytes += open_dir(dir, name).map_or(0, |inner| tree_bytes(&inner, depth - 1));
            }
            _ => {}
        }
    }
    bytes
}

/// With the paths that are masked and read-only by default, which are not stored: a newer engine may know more of them.
fn shown_host_config(stored: &StoredContainer) -> HostConfig {
    let mut host = stored.host_config.clone();
    let unconfined =
        |option: &String| matches!(honour::security_option(option), Ok(SecurityOption::SystemPathsUnconfined));
    if host.security_opt.iter().flatten().any(unconfined) {
        (host.masked_paths, host.readonly_paths) = (Some(Vec::new()), Some(Vec::new()));
    } else if !host.privileged {
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        host.masked_paths.get_or_insert_with(|| owned(&MASKED_PATHS));
        host.readonly_paths.get_or_insert_with(|| owned(&READONLY_PATHS));
    }
    host
}

fn image_bytes(store: &Store, container: &Container) -> u64 {
    let layers = store.image(&container.stored().image_id).map(|image| image.layers).unwrap_or_default();
    layers.iter().filter_map(|key| store.layer(key)).map(|layer| layer.unpacked_size_bytes).sum()
}

/// The name given, or the image's ID when that name has moved or gone.
fn image_shown(store: &Store, container: &Container) -> String {
    let stored = &container.stored();
    match image::find(store, &stored.config.image) {
        Ok(found) if found.image.id == stored.image_id => stored.config.image.clone(),
        _ => stored.image_id.to_string(),
    }
}
