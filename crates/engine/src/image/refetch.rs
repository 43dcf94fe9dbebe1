//! A damaged layer, fetched again from where it came: for the repair of a store that no engine has open.
//!
//! R1  The layer is marked as damaged before the first byte is fetched, so that a repair that is cut leaves it to the next
//!     pull, and so that the store takes the new copy for it. It stays usable until then.
//! R2  Where it came from is what the names of its images say. Nobody has given credentials, so a registry that wants some
//!     refuses, and the layer waits for a pull that has them.
//! R3  It goes the way of any pulled layer: blob digest, size and diff ID are verified, and what comes is durable before it
//!     is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use baleen_oci::{Descriptor, Manifest, Reference, Repository};
use baleen_registry::{Client, Credentials};
use baleen_store::{ImageFact, LayerKey, Store, StoreError};

use super::download::{Downloads, Stage};
use super::lookup::store_error;
use super::stack::Place;
use crate::config::EngineConfig;
use crate::engine::client_config;
use crate::error::EngineError;

/// Attempts before a registry that has not sent a byte is given up: nobody waits for a repair as for a pull.
const ATTEMPTS_MAX: u32 = 2;
/// How often it is asked whether to go on.
const ASKED_EVERY: Duration = Duration::from_millis(200);

/// Fetches damaged layers of a store that no engine has open.
#[derive(Debug)]
pub struct LayerFetcher {
    client: Client,
    downloads: Arc<Downloads>,
    /// Last, so that what runs on it ends before.
    runtime: tokio::runtime::Runtime,
}

/// A place that a layer can be fetched from.
struct Origin {
    repository: Repository,
    image: ImageFact,
}

impl LayerFetcher {
    /// With the registries, mirrors and authorities of this configuration.
    ///
    /// # Errors
    /// `InvalidParameter` for addresses of registries that are none; `Io` if no event loop can be started.
    pub fn new(config: &EngineConfig) -> Result<Self, EngineError> {
        let mut settings = client_config(config)?;
        settings.download_attempts_max = settings.download_attempts_max.min(ATTEMPTS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| EngineError::Io { action: "start", path: "the event loop".into(), source })?;
        let clock = Arc::clone(&config.retry_clock);
        let downloads =
            Arc::new(Downloads::new(config.limits.concurrent_downloads_max, clock, config.checkpoint_intervals));
        Ok(Self { client: Client::new(settings), downloads, runtime })
    }

    /// Fetches a layer that no container has mounted and stores it in place of the damaged one, if there is one. `false`: no
    /// image that has it was pulled by a name. `stopped` is asked all the time whether to give up.
    ///
    /// # Blocking
    /// Until the layer has come: as long as bytes come, without a limit.
    /// # Durability
    /// The layer is durable on `Ok(true)`. Until then the damaged one stays, marked as such.
    /// # Errors
    /// `Registry`, `LayerRefused`, `NoSpace` and `Part`: those of the last place that was tried.
    pub fn fetch(&self, store: &Store, key: &LayerKey, stopped: &dyn Fn() -> bool) -> Result<bool, EngineError> {
        let origins = origins(store, key);
        if origins.is_empty() {
            return Ok(false);
        }
        match store.mark_suspect(std::slice::from_ref(key)) {
            // Lost altogether: there is nothing to be replaced.
            Ok(()) | Err(StoreError::LayerMissing { .. }) => {}
            Err(error) => return Err(store_error("mark the layer")(error)),
        }
        store.replace_unmounted(key);
        let mut last = None;
        for origin in &origins {
            match self.runtime.block_on(self.fetch_from(store, key, origin, stopped)) {
                Ok(()) => return Ok(true),
                Err(error) => {
                    tracing::warn!(repository = %origin.repository.familiar(), error = error.chain(), "a layer was not fetched");
                    last = Some(error);
                }
            }
            if stopped() {
                break;
            }
        }
        last.map_or(Ok(false), Err)
    }

    async fn fetch_from(
        &self,
        store: &Store,
        key: &LayerKey,
        origin: &Origin,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        let client = self.client.repository(&origin.repository, Credentials::Anonymous);
        let manifest = match self.kept_manifest(store, &origin.image) {
            Some(manifest) => manifest,
            None => {
                let digest = origin.image.manifest.ok_or_else(|| lost("its manifest is not known"))?;
                let asked = client.document(&origin.repository.with_digest(digest)).await;
                let document = asked.map_err(|error| EngineError::Registry(Box::new(error)))?;
                Manifest::parse(&document.bytes, None).map_err(|error| lost(&error.to_string()))?
            }
        };
        let number = origin.image.layers.iter().position(|layer| layer == key);
        let number = number.ok_or_else(|| lost("its image does not have it"))?;
        let descriptor: &Descriptor =
            manifest.layers.get(number).ok_or_else(|| lost("its manifest has fewer layers"))?;
        let diff_ids: Vec<_> = origin.image.layers.iter().map(|layer| layer.diff_id).collect();
        let places = &Place::all(&diff_ids)[..=number];
        let below = &places[..number];
        if key.parents.is_some() && below.iter().any(|place| place.find(&store.lease()).is_none()) {
            return Err(lost("a layer below it that it links into is damaged too; repair once more"));
        }
        let job = self.downloads.join(store, &client, descriptor, places, 0, None);
        let mut stage = job.stage.clone();
        loop {
            match &*stage.borrow_and_update() {
                Stage::Stored(_) => return Ok(()),
                Stage::Failed(error) => return Err(EngineError::shared(Arc::clone(error))),
                Stage::Waiting | Stage::Downloading(..) | Stage::Retrying(..) | Stage::Storing => {}
            }
            match tokio::time::timeout(ASKED_EVERY, stage.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(EngineError::Panicked { action: "fetching a layer" }),
                Err(_) if stopped() => {
                    drop(job);
                    self.downloads.settle(descriptor.digest, key.diff_id).await;
                    return Err(lost("the repair was stopped"));
                }
                Err(_) => {}
            }
        }
    }

    /// The manifest by which an image came, if the store has it whole.
    fn kept_manifest(&self, store: &Store, image: &ImageFact) -> Option<Manifest> {
        let bytes = store.read_blob(&image.manifest?).ok()?;
        Manifest::parse(&bytes, None).ok()
    }
}

fn lost(reason: &str) -> EngineError {
    EngineError::conflict(format!("the layer cannot be fetched: {reason}"))
}

/// The repositories that the names of its images speak of, each once for an image (R2).
fn origins(store: &Store, key: &LayerKey) -> Vec<Origin> {
    let tags = store.tags();
    let mut origins = Vec::new();
    for image in store.images().into_iter().filter(|image| image.manifest.is_some() && image.layers.contains(key)) {
        let mut seen = BTreeSet::new();
        for tag in tags.iter().filter(|tag| tag.image == image.id) {
            let Ok(reference) = Reference::parse(&tag.name) else { continue };
            let repository = reference.repository();
            if seen.insert(repository.familiar()) {
                origins.push(Origin { repository: repository.clone(), image: image.clone() });
            }
        }
    }
    origins
}
