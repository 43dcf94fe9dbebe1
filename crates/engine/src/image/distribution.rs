//! What a registry has, without pulling it: distribution inspect, and the tags of a pull of all tags.

use std::sync::Arc;

use baleen_oci::{Document, Platform, Reference, Repository};
use baleen_registry::{RegistryError, RepositoryClient};

use super::{PullRequest, Pulled, RegistryAuth};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::progress::ProgressSender;

/// What a reference stands for in its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Of the index or manifest.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size_bytes: u64,
    /// What there are images for.
    pub platforms: Vec<Platform>,
}

pub(super) fn registry_error(error: RegistryError) -> EngineError {
    EngineError::Registry(Box::new(error))
}

impl Engine {
    /// Asks the registry what a reference stands for. Stores nothing.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn distribution(
        self: &Arc<Self>,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<Distribution, EngineError> {
        let client = self.repository_client(reference.repository(), auth);
        let fetched = client.document(reference).await.map_err(registry_error)?;
        let platforms = match &fetched.document {
            Document::Index(index) => index.manifests.iter().filter_map(|manifest| manifest.platform.clone()).collect(),
            Document::Manifest(manifest) if manifest.require_image().is_ok() => {
                vec![client.config(&manifest.config).await.map_err(registry_error)?.platform()]
            }
            Document::Manifest(_) => Vec::new(),
        };
        Ok(Distribution {
            media_type: fetched.document.media_type().to_string(),
            digest: fetched.digest.to_string(),
            size_bytes: fetched.bytes.len() as u64,
            platforms,
        })
    }

    /// Pulls every tag of a repository, one after the other; at most 1,000.
    ///
    /// # Errors
    /// The first one of a tag, as [`Engine::pull`]; those that came before it stay.
    pub async fn pull_all_tags(
        self: &Arc<Self>,
        repository: &Repository,
        platform: Option<Platform>,
        auth: RegistryAuth,
        progress: ProgressSender,
    ) -> Result<Vec<Pulled>, EngineError> {
        let tags = self.repository_client(repository, &auth).tags().await.map_err(registry_error)?;
        let mut pulled = Vec::new();
        for tag in tags {
            let invalid = |source| EngineError::InvalidReference { text: tag.clone(), source };
            let reference = repository.with_tag(&tag).map_err(invalid)?;
            let request = PullRequest { reference, platform: platform.clone(), auth: auth.clone() };
            pulled.push(self.pull(request, progress.clone()).await?);
        }
        Ok(pulled)
    }

    /// A repository as the holder of these credentials sees it.
    pub(super) fn repository_client(&self, repository: &Repository, auth: &RegistryAuth) -> RepositoryClient {
        self.registry().repository(repository, auth.0.clone())
    }

    /// Finds out whether a registry, by its host or address, takes these credentials.
    ///
    /// # Errors
    /// Those of the registry; `Unauthorized` if it does not.
    pub async fn log_in(self: &Arc<Self>, server: &str, auth: &RegistryAuth) -> Result<(), EngineError> {
        self.registry().log_in(server, auth.0.clone()).await.map_err(registry_error)
    }
}
