//! Create: a request becomes a durable container.
//!
//! The answer is sent after the transaction: folder, configuration, upper directory and name are durable together.

use std::sync::Arc;

use baleen_oci::Platform;
use baleen_runtime::spec::check_target;
use baleen_store::{ContainerFact, Desired, ImageFact, StoreError};

use super::config::{CreateRequest, Created};
use super::stored::{CONFIG_NAME, StoredContainer};
use super::table::Container;
use super::{honour, merge, name, rootfs, signal, spec};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::EventType;
use crate::image::{self, store_error};
use crate::volume::{self, Prepared};

/// Made-up names that are tried before giving up.
const NAME_ATTEMPTS_MAX: u32 = 16;

impl Engine {
    /// Creates a container.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `NoSuchImage` if the image is missing (and for nothing else); `NameInUse`; `InvalidParameter`;
    /// `NotImplemented` for each field that is not honoured yet, by name.
    pub async fn create_container(self: &Arc<Self>, request: CreateRequest) -> Result<Created, EngineError> {
        let engine = Arc::clone(self);
        self.door.enter("create a container", move || engine.create(request)).await
    }

    fn create(&self, mut request: CreateRequest) -> Result<Created, EngineError> {
        let given_name = request.name.as_deref().map(name::check).transpose()?.map(str::to_owned);
        let mut warnings = honour::check(&mut request)?;
        // Until the record exists this keeps the image's layers from a removal that comes in between.
        let lease = self.store.lease();
        let image = image::find(&self.store, &request.config.image)?.image;
        for key in &image.layers {
            lease.layer(key);
        }
        let image_config = image::config(&self.store, &image.id)?;
        warnings.extend(self.check_platform(&request, &image_config.platform())?);

        let CreateRequest { mut config, mut host_config, .. } = request;
        let run_config = image_config.run_config();
        merge::merge(&mut config, run_config)?;
        if !config.stop_signal.is_empty() {
            signal::parse(&config.stop_signal)?;
        }
        let id = name::new_id()?;
        // One that does not exist is an error of the start, as in Docker: 404 here would mean the image.
        if let Some(other) = host_config.network_mode.strip_prefix("container:")
            && let Ok(other) = self.containers.find(other)
        {
            // By its ID from now on: a name may change hands. The names inside are the other's.
            config.hostname.clone_from(&other.stored().config.hostname);
            config.domainname.clone_from(&other.stored().config.domainname);
            host_config.network_mode = format!("container:{}", other.id());
        }
        for mode in [&mut host_config.pid_mode, &mut host_config.ipc_mode] {
            let donor = mode.strip_prefix("container:").and_then(|other| self.containers.find(other).ok());
            if let Some(donor) = donor {
                *mode = format!("container:{}", donor.id());
            }
        }
        if config.hostname.is_empty() {
            config.hostname = match host_config.network_mode.as_str() {
                "host" => crate::info::hostname(),
                _ => id[..12].to_owned(),
            };
        }
        let command = merge::command(&config);
        let prepared = self.prepare_mounts(&config, &host_config, given_name.as_deref(), &image)?;
        let stored = StoredContainer::new(
            id.clone(),
            image.id,
            &image.layers,
            &command,
            "linux".to_owned(),
            config,
            host_config,
            prepared.points().to_vec(),
        );
        // What the runtime would refuse anyway is refused now, while nothing is stored.
        let etc = super::files::EtcFiles::of(&self.config.exec_root, &id);
        spec::check_targets(&spec::container_spec(&stored, &etc, None, spec::Sources::Leave)?)?;
        let bytes = stored.to_bytes()?;
        let name = self.store_container(&stored, given_name, &bytes)?;
        drop(lease);
        let attributes = stored.event_attributes(&name);
        self.containers.insert(Container::new(stored, name, Desired::Created));
        prepared.keep();
        self.events.send(EventType::Container, "create", &id, attributes);
        Ok(Created { id, warnings })
    }

    /// Makes the volumes that a container is to have, once nothing else speaks against it.
    fn prepare_mounts(
        &self,
        config: &super::ContainerConfig,
        host: &super::HostConfig,
        given_name: Option<&str>,
        image: &ImageFact,
    ) -> Result<Prepared<'_>, EngineError> {
        let plan = volume::plan(&self.containers, config, host)?;
        for planned in &plan {
            let target = &planned.point.destination;
            check_target(target).map_err(|error| EngineError::invalid(error.to_string()))?;
        }
        let makes_volumes = plan.iter().any(|planned| planned.point.kind == "volume");
        if let (true, Some(name)) = (makes_volumes, given_name)
            && let Some(other) = self.store.containers().into_iter().find(|other| other.name == name)
        {
            return Err(EngineError::NameInUse { name: other.name, id: other.id });
        }
        self.prepare_volumes(plan, image)
    }

    /// Commits the container under its name, or under one that is made up and free.
    fn store_container(
        &self,
        stored: &StoredContainer,
        given_name: Option<String>,
        bytes: &[u8],
    ) -> Result<String, EngineError> {
        let mut attempt = 0;
        loop {
            let name = match &given_name {
                Some(name) => name.clone(),
                None => name::made_up(u64::from_le_bytes(name::random()?), attempt),
            };
            match self.commit_container(stored, &name, bytes) {
                Ok(()) => return Ok(name),
                Err(StoreError::NameTaken { .. }) if given_name.is_none() && attempt < NAME_ATTEMPTS_MAX => {
                    attempt += 1
                }
                Err(StoreError::NameTaken { name, container }) => {
                    return Err(EngineError::NameInUse { name, id: container });
                }
                // A failed barrier drops what is staged; the same again may do.
                Err(StoreError::StagingDropped) if attempt < NAME_ATTEMPTS_MAX => attempt += 1,
                Err(StoreError::ImageMissing { .. }) => {
                    return Err(EngineError::NoSuchImage { name: stored.config.image.clone() });
                }
                Err(error) => return Err(store_error("store the container")(error)),
            }
        }
    }

    fn commit_container(&self, stored: &StoredContainer, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let fact = ContainerFact {
            id: stored.id.clone(),
            name: name.to_owned(),
            image: stored.image_id,
            desired: Desired::Created,
        };
        // Asked before anything is staged: the usual case of a name that is taken costs no write.
        if let Some(other) = self.store.containers().into_iter().find(|other| other.name == name) {
            return Err(StoreError::NameTaken { name: other.name, container: other.id });
        }
        let mut txn = self.store.begin()?;
        txn.stage_container(fact, |staged| {
            staged.file(CONFIG_NAME, 0o600, bytes)?;
            rootfs::stage(&self.store, &stored.image_id, staged)
        })?;
        txn.commit()
    }

    fn check_platform(&self, request: &CreateRequest, image: &Platform) -> Result<Option<String>, EngineError> {
        let own = &self.config.platform;
        if image.os.is_empty() && image.architecture.is_empty() {
            return Ok(None);
        }
        match &request.platform {
            Some(asked) if asked.rank(image).is_none() => Err(EngineError::NotFound {
                text: format!(
                    "image with reference {} was found but its platform ({image}) does not match the specified platform ({asked})",
                    request.config.image
                ),
            }),
            None if own.rank(image).is_none() => Ok(Some(format!(
                "The requested image's platform ({image}) does not match the detected host platform ({own}) and no specific platform was requested"
            ))),
            _ => Ok(None),
        }
    }
}
