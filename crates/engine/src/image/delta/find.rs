//! Looking for a delta before the layers of a pull are fetched. Nothing here fails a pull.
//!
//! F1  Asked are: the referrers of the target's manifest; if the registry has no such interface, the list under the fallback
//!     tag; if there is none, the tags that deltas from images of this repository would have, [`PROBES_MAX`] at most.
//! F2  A delta is worth its bytes if it is smaller than the compressed layers that it makes; the one that saves most is taken.
//! F3  All of it has [`SEARCH_MAX`]: a registry that is slow to say no must not hold up a pull.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use baleen_delta::Header;
use baleen_oci::{Descriptor, DiffId, Digest, Document};
use baleen_registry::{RegistryError, RepositoryClient, ResolvedImage};
use baleen_store::{ImageFact, Lease, Store};
use bytes::Bytes;

use super::artifact::{self, ARTIFACT_TYPE, DeltaFacts};
use super::{DeltaSource, MEMORY_BYTES_MAX, stored};
use crate::engine::Engine;
use crate::image::lookup::Names;

/// A pull that fetches less is not worth the questions.
const WORTH_BYTES_MIN: u64 = 8 << 10;
const PROBES_MAX: usize = 3;
const SEARCH_MAX: Duration = Duration::from_secs(60);
/// A delta that is no larger is fetched at once.
const WHOLE_BYTES_MAX: usize = 256 << 10;
/// As the codec has it.
const HEADER_BYTES_MAX: u64 = 4 << 20;

/// A layer that is missing, with what it takes to fetch it in full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MissingLayer {
    pub(crate) diff_id: DiffId,
    pub(crate) size_bytes: u64,
}

/// What came of the search.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) delta: Option<Arc<DeltaSource>>,
    /// A line for the user, if there is something to say.
    pub(crate) line: Option<String>,
}

impl Engine {
    /// Looks for a delta that makes some of the missing layers.
    pub(crate) async fn find_delta(
        self: &Arc<Self>,
        client: &RepositoryClient,
        resolved: &ResolvedImage,
        missing: &[MissingLayer],
    ) -> Search {
        let full_bytes: u64 = missing.iter().map(|layer| layer.size_bytes).fold(0, u64::saturating_add);
        if !self.config.deltas || full_bytes < WORTH_BYTES_MIN || self.store.layers().is_empty() {
            return Search::default();
        }
        match tokio::time::timeout(SEARCH_MAX, self.search(client, resolved, missing)).await {
            Ok(search) => search,
            Err(_) => {
                tracing::warn!(digest = %resolved.manifest_document.digest, "the search for a delta took too long");
                Search::default()
            }
        }
    }

    async fn search(
        self: &Arc<Self>,
        client: &RepositoryClient,
        resolved: &ResolvedImage,
        missing: &[MissingLayer],
    ) -> Search {
        let offers = match self.offers(client, resolved).await {
            Ok(offers) => offers,
            Err(error) => {
                tracing::debug!(error = %error, "deltas cannot be looked for");
                return Search::default();
            }
        };
        let (offered, store, layers) = (offers.len(), self.store.clone(), missing.to_vec());
        let target = *resolved.config.id().digest();
        let choosing = tokio::task::spawn_blocking(move || choose(&store, offers, &target, &layers));
        let Ok(Some((entry, facts, lease))) = choosing.await else {
            if offered > 0 {
                tracing::debug!(offered, "no delta of the registry is of use here");
            }
            return Search::default();
        };
        match self.open_delta(client, resolved, &entry, &facts, lease).await {
            Ok(delta) => {
                let made = missing.iter().filter(|layer| delta.layer(&layer.diff_id).is_some());
                let (layers, full) = made.fold((0, 0), |(count, sum), layer| (count + 1, sum + layer.size_bytes));
                let (short, bytes) = (delta.short.clone(), delta.header.delta_bytes());
                tracing::info!(digest = %entry.digest, bytes, in_full_bytes = full, layers, "a delta is used");
                let plural = if layers == 1 { "layer" } else { "layers" };
                let line = format!("Delta {short}: {bytes} bytes make {layers} {plural} of {full} bytes");
                Search { delta: Some(Arc::new(delta)), line: Some(line) }
            }
            Err(reason) => {
                tracing::warn!(digest = %entry.digest, error = reason, "a delta cannot be used; the layers are fetched in full");
                let line = format!("Delta {} is not used: {reason}; fetching the layers in full", entry.digest.short());
                Search { delta: None, line: Some(line) }
            }
        }
    }

    /// What the registry has for the target (F1).
    pub(super) async fn offers(
        self: &Arc<Self>,
        client: &RepositoryClient,
        resolved: &ResolvedImage,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let (target, registry) = (&resolved.manifest_document.digest, client.repository().domain());
        if !self.deltas.lacks_referrers(registry) {
            match client.referrers(target, ARTIFACT_TYPE).await? {
                Some(offers) => return Ok(offers),
                None => self.deltas.note_lack(registry),
            }
        }
        let list = self.tagged(client, &artifact::list_tag(target)).await?;
        if let Some((Document::Index(index), _)) = list {
            let is_ours = |found: &Descriptor| found.artifact_type.as_deref() == Some(ARTIFACT_TYPE);
            let offers: Vec<Descriptor> = index.manifests.into_iter().filter(is_ours).collect();
            if !offers.is_empty() {
                return Ok(offers);
            }
        }
        let mut offers = Vec::new();
        for source in self.likely_sources(client) {
            if let Some((Document::Manifest(manifest), descriptor)) =
                self.tagged(client, &artifact::own_tag(target, &source)).await?
                && artifact::blob_of(&manifest, target).is_some()
            {
                offers.push(Descriptor { annotations: manifest.annotations, ..descriptor });
            }
        }
        Ok(offers)
    }

    /// A document by its tag; none if the registry has none that can be read.
    async fn tagged(
        &self,
        client: &RepositoryClient,
        tag: &str,
    ) -> Result<Option<(Document, Descriptor)>, RegistryError> {
        let Ok(reference) = client.repository().with_tag(tag) else { return Ok(None) };
        match client.document(&reference).await {
            Ok(fetched) => {
                let descriptor = fetched.descriptor();
                Ok(Some((fetched.document, descriptor)))
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Configurations of images of this repository that are here, those with a newer name first.
    fn likely_sources(&self, client: &RepositoryClient) -> Vec<Digest> {
        let names = Names::of(&self.store);
        let is_of_it = |image: &ImageFact| names.repositories(&image.id).contains(client.repository());
        let mut images: Vec<ImageFact> = self.store.images().into_iter().filter(is_of_it).collect();
        images.sort_by_key(|image| std::cmp::Reverse(names.last_set_seconds(&image.id)));
        images.into_iter().take(PROBES_MAX).map(|image| *image.id.digest()).collect()
    }

    /// Fetches what is needed before the first layer, and checks it (D3).
    async fn open_delta(
        self: &Arc<Self>,
        client: &RepositoryClient,
        resolved: &ResolvedImage,
        entry: &Descriptor,
        facts: &DeltaFacts,
        lease: Lease,
    ) -> Result<DeltaSource, String> {
        let told = |error: RegistryError| crate::error::chain(&error);
        let plain = Descriptor { annotations: Default::default(), ..entry.clone() };
        let document = client.document_of(&plain).await.map_err(told)?;
        let Document::Manifest(manifest) = &document.document else { return Err("it is no manifest".to_owned()) };
        let target = &resolved.manifest_document.digest;
        let blob = artifact::blob_of(manifest, target).ok_or("its manifest is of something else")?;
        if blob.size != facts.size_bytes {
            return Err("its size is not what was said".to_owned());
        }
        let is_small = blob.size <= WHOLE_BYTES_MAX as u64;
        let (begin, begin_bytes) = match is_small {
            true => (Bytes::from(client.bytes(&blob, WHOLE_BYTES_MAX).await.map_err(told)?), blob.size),
            false => {
                let header_bytes = facts.header_bytes.min(HEADER_BYTES_MAX).min(blob.size);
                let mut stream = client.blob(&blob, 0, |_| {}).impatient().until(header_bytes);
                let mut begin = Vec::new();
                while let Some(chunk) = stream.next_chunk().await.map_err(told)? {
                    begin.extend_from_slice(&chunk);
                }
                (begin.into(), stream.fetched_bytes())
            }
        };
        let header = Header::parse(&begin).map_err(|error| crate::error::chain(&error))?;
        if header.target_config != *resolved.config.id().digest() {
            return Err("it makes another image".to_owned());
        }
        if header.delta_bytes() != blob.size {
            return Err("its size is not what its header says".to_owned());
        }
        if header.memory_bytes > MEMORY_BYTES_MAX {
            return Err(format!("applying it takes {} bytes of memory", header.memory_bytes));
        }
        let keys = header.sources.iter().map(|diff_id| {
            stored(&self.store, &lease, diff_id).ok_or_else(|| format!("layer {} is not here", diff_id.0.short()))
        });
        let sources = keys.collect::<Result<_, String>>()?;
        Ok(DeltaSource {
            short: blob.digest.short(),
            blob,
            header,
            whole: is_small.then_some(begin),
            sources,
            _lease: Arc::new(lease),
            begin_bytes,
            rest_bytes: AtomicU64::new(0),
            given_up: Mutex::default(),
            is_told: AtomicBool::new(false),
        })
    }
}

/// The delta that saves most, with a lease on what it reads from (F2). Blocking.
fn choose(
    store: &Store,
    offers: Vec<Descriptor>,
    target: &Digest,
    missing: &[MissingLayer],
) -> Option<(Descriptor, DeltaFacts, Lease)> {
    let lease = store.lease();
    let mut best: Option<(u64, Descriptor, DeltaFacts)> = None;
    for offer in offers {
        let Some(facts) = DeltaFacts::of(&offer.annotations) else { continue };
        let of_interest = facts.target_config == *target
            && facts.memory_bytes <= MEMORY_BYTES_MAX
            && facts.source_layers.iter().all(|diff_id| stored(store, &lease, diff_id).is_some());
        if !of_interest {
            continue;
        }
        let made = missing.iter().filter(|layer| facts.target_layers.contains(&layer.diff_id));
        let full_bytes = made.map(|layer| layer.size_bytes).fold(0, u64::saturating_add);
        let saved = full_bytes.saturating_sub(facts.size_bytes);
        if saved > best.as_ref().map_or(0, |(most, _, _)| *most) {
            best = Some((saved, offer, facts));
        }
    }
    best.map(|(_, offer, facts)| (offer, facts, lease))
}
