//! Volumes: users' data that outlives containers. Each is a folder of the store with a description and `_data`.
//!
//! VL1  A volume is durable before its creation is answered, and gone durably before its removal is (P1).
//! VL2  While a create holds a volume, or a container names it, it is not removed.
//! VL3  What an image has at the place of a fresh volume is in it whole or not at all (P2): `copy_up`.
//! VL4  Nothing here follows a link that a container or an image has made (threats T1, F3).

mod copy_up;
mod description;
mod plan;
mod prepare;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use baleen_store::{StoreError, VolumeFact};

use crate::container::{self, Container};
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::EventType;
use crate::image::{Pruned, store_error};

pub(crate) use description::Description;
pub(crate) use plan::{Planned, parse_bind, plan};
pub(crate) use prepare::{ImageRoot, Prepared, clean_up};
pub(crate) use table::Volumes;

/// Label of a volume that nobody named.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// A volume, as list and inspect show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its unique name.
    pub name: String,
    /// Where its files lie on the host.
    pub mountpoint: std::path::PathBuf,
    /// When it was created.
    pub created: crate::time::Timestamp,
    /// As given, with the mark of an anonymous one.
    pub labels: Option<BTreeMap<String, String>>,
    /// Options of the driver, as given.
    pub options: Option<BTreeMap<String, String>>,
    /// Containers in any state that have it among their mounts.
    pub users: Vec<String>,
    /// Bytes of its files; only where sizes were asked for.
    pub size_bytes: Option<u64>,
}

/// A volume to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Empty: one is made up, and the volume is anonymous.
    pub name: String,
    /// `local` or empty.
    pub driver: String,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
}

/// Which unused volumes a prune takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneVolumes {
    /// Named ones too, not only anonymous ones.
    pub all: bool,
    /// `key` or `key=value`: all must match.
    pub labels: Vec<String>,
    /// `key` or `key=value`: none may match.
    pub not_labels: Vec<String>,
}

impl Engine {
    /// All volumes, by name. Sizes are filled in if `sizes`.
    ///
    /// # Errors
    /// Of the store.
    pub async fn volumes(self: &Arc<Self>, sizes: bool) -> Result<Vec<Volume>, EngineError> {
        let engine = Arc::clone(self);
        let list = move || {
            let names = engine.volumes.names();
            Ok(names.iter().filter_map(|name| engine.look_at_volume(name, sizes)).collect())
        };
        self.door.enter("list volumes", list).await
    }

    /// One volume, by its name.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume(self: &Arc<Self>, name: &str) -> Result<Volume, EngineError> {
        self.look_at_volume(name, false)
            .ok_or_else(|| EngineError::NotFound { text: format!("get {name}: no such volume") })
    }

    /// Makes a volume, or gives the one that has the name.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `InvalidParameter` for a name or an option, `NotFound` for a driver that does not exist.
    pub async fn create_volume(self: &Arc<Self>, request: CreateVolume) -> Result<Volume, EngineError> {
        let engine = Arc::clone(self);
        self.door
            .enter("create a volume", move || {
                let name = engine.make_volume(&request)?.name;
                engine.look_at_volume(&name, false).ok_or_else(|| no_such_volume("create", &name))
            })
            .await
    }

    /// Removes a volume that no container has.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `NotFound` unless `force`; `Conflict` if a container has it.
    pub async fn remove_volume(self: &Arc<Self>, name: &str, force: bool) -> Result<(), EngineError> {
        let (engine, name) = (Arc::clone(self), name.to_owned());
        to_its_end("remove a volume", async move {
            let worker = Arc::clone(&engine);
            let removed = engine.door.enter("remove a volume", move || worker.unmake_volume(&name)).await;
            engine.empty_trash_later();
            match removed {
                Err(EngineError::NotFound { .. }) if force => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// Removes volumes that no container has; gives their names.
    ///
    /// # Errors
    /// Of the store.
    pub async fn prune_volumes(self: &Arc<Self>, filter: PruneVolumes) -> Result<Pruned<String>, EngineError> {
        let engine = Arc::clone(self);
        to_its_end("prune volumes", async move {
            let worker = Arc::clone(&engine);
            let pruned = engine.door.enter("prune volumes", move || worker.prune_unused(&filter)).await?;
            let attributes = BTreeMap::from([("reclaimed".to_owned(), pruned.reclaimed_bytes.to_string())]);
            engine.events.send(EventType::Volume, "prune", "", attributes);
            engine.empty_trash_later();
            Ok(pruned)
        })
        .await
    }

    fn prune_unused(&self, filter: &PruneVolumes) -> Result<Pruned<String>, EngineError> {
        let labels = container::PruneFilter {
            labels: filter.labels.clone(),
            not_labels: filter.not_labels.clone(),
            ..container::PruneFilter::default()
        };
        let mut pruned = Pruned::default();
        for name in self.volumes.names() {
            let Some(volume) = self.look_at_volume(&name, true) else { continue };
            let own = volume.labels.clone().unwrap_or_default();
            // One with options stands for something that is not here: Docker leaves it, too.
            let wanted = volume.options.is_none() && (filter.all || own.contains_key(ANONYMOUS));
            if !wanted || !volume.users.is_empty() || !labels.lets_pass(volume.created, &own) {
                continue;
            }
            match self.unmake_volume(&name) {
                Ok(()) => {
                    pruned.reclaimed_bytes += volume.size_bytes.unwrap_or(0);
                    pruned.deleted.push(name);
                }
                // Somebody took it, or removed it, meanwhile.
                Err(EngineError::Conflict { .. } | EngineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    fn look_at_volume(&self, name: &str, sizes: bool) -> Option<Volume> {
        let description = self.volumes.get(name)?;
        let mountpoint = self.volume_data(name);
        Some(Volume {
            size_bytes: sizes.then(|| container::tree_bytes_at(&mountpoint)),
            users: self.volume_users(name).iter().map(|container| container.id().to_owned()).collect(),
            name: description.name.clone(),
            mountpoint,
            created: description.created,
            labels: description.labels.clone(),
            options: description.options.clone(),
        })
    }

    /// Where a volume's files lie.
    pub(crate) fn volume_data(&self, name: &str) -> std::path::PathBuf {
        self.config.data_root.join("volumes").join(name).join("_data")
    }

    /// Says where the volumes of a stored container lie: the data root may have moved since it was created.
    pub(crate) fn place_volumes(&self, mounts: &mut [container::MountPoint]) {
        for mount in mounts.iter_mut().filter(|mount| mount.kind == "volume") {
            mount.source = self.volume_data(mount.name.as_deref().unwrap_or_default()).to_string_lossy().into_owned();
        }
    }

    fn volume_users(&self, name: &str) -> Vec<Arc<Container>> {
        let mut users = self.containers.all();
        users.retain(|container| {
            container.stored().mounts.iter().any(|mount| mount.kind == "volume" && mount.name.as_deref() == Some(name))
        });
        users
    }

    /// Makes a volume unless there is one of that name. Blocking.
    pub(crate) fn make_volume(&self, request: &CreateVolume) -> Result<Made, EngineError> {
        let description = Description::new(request)?;
        let name = description.name.clone();
        if self.volumes.get(&name).is_some() {
            return Ok(Made { name, fresh: false });
        }
        let bytes = description.to_bytes()?;
        let fact = VolumeFact { name: name.clone() };
        let commit = || {
            let mut txn = self.store.begin()?;
            txn.stage_volume(fact.clone(), &bytes)?;
            txn.commit()
        };
        let committed = match commit() {
            // A failed barrier drops what is staged; the same again may do.
            Err(StoreError::StagingDropped) => commit(),
            other => other,
        };
        match committed {
            Ok(()) => {}
            Err(StoreError::VolumeExists { .. }) => return Ok(Made { name, fresh: false }),
            Err(error) => return Err(store_error("store the volume")(error)),
        }
        self.volumes.insert(description);
        self.volume_event("create", &name, &[]);
        Ok(Made { name, fresh: true })
    }

    /// Removes a volume that is not in use. Blocking.
    pub(crate) fn unmake_volume(&self, name: &str) -> Result<(), EngineError> {
        // From here on no create can take it, and whoever has it is known (VL2).
        let Some(_removal) = self.volumes.begin_removal(name) else {
            return match self.volumes.get(name) {
                Some(_) => Err(EngineError::conflict(format!("remove {name}: volume is in use - []"))),
                None => Err(no_such_volume("get", name)),
            };
        };
        let users: Vec<String> = self.volume_users(name).iter().map(|container| container.id().to_owned()).collect();
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(EngineError::conflict(format!("remove {name}: volume is in use - [{users}]")));
        }
        match self.store.remove_volume(name) {
            Ok(()) => {}
            Err(StoreError::VolumeMissing { .. }) => return Err(no_such_volume("get", name)),
            Err(error) => return Err(store_error("remove the volume")(error)),
        }
        self.volumes.remove(name);
        self.volume_event("destroy", name, &[]);
        Ok(())
    }

    /// Removes the anonymous volumes of a container that is gone. What another container has stays.
    pub(crate) async fn remove_anonymous_volumes(self: &Arc<Self>, container: &Container) -> Result<(), EngineError> {
        let stored = container.stored();
        let mounts = stored.mounts.iter().filter(|mount| mount.anonymous);
        let names: Vec<String> = mounts.filter_map(|mount| mount.name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(self);
        let remove = move || {
            for name in names {
                match engine.unmake_volume(&name) {
                    Ok(()) | Err(EngineError::Conflict { .. } | EngineError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.door.enter("remove anonymous volumes", remove).await
    }

    pub(crate) fn volume_event(&self, action: &str, name: &str, extra: &[(&str, String)]) {
        let mut attributes = BTreeMap::from([("driver".to_owned(), "local".to_owned())]);
        attributes.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.send(EventType::Volume, action, name, attributes);
    }

    /// Tells that the volumes of a container are mounted, or no longer.
    pub(crate) fn mount_events(&self, container: &Container, action: &str) {
        for mount in container.stored().mounts.iter().filter(|mount| mount.kind == "volume") {
            let mut extra = vec![("container", container.id().to_owned())];
            if action == "mount" {
                extra.push(("destination", mount.destination.clone()));
                extra.push(("read/write", mount.writable.to_string()));
                extra.push(("propagation", mount.propagation.clone()));
            }
            self.volume_event(action, mount.name.as_deref().unwrap_or_default(), &extra);
        }
    }
}

/// What a request for a volume gave.
pub(crate) struct Made {
    pub(crate) name: String,
    /// Whether it was made now.
    pub(crate) fresh: bool,
}

fn no_such_volume(verb: &str, name: &str) -> EngineError {
    EngineError::NotFound { text: format!("{verb} {name}: no such volume") }
}
