//! Making a delta between two images that are here, and pushing it beside its target.
//!
//! K1  The tars of the target's layers are made into files without names on the store's disk, gone with their descriptors.
//! K2  The delta goes to the registry under a tag of its own before anything lists it: what collects garbage there keeps it,
//!     and who lists nothing finds it.
//! K3  The fallback list has no compare-and-swap. It is written with everything that is in it, and read again until the
//!     entry is seen twice, [`LIST_ATTEMPTS_MAX`] times; whoever loses an entry to another writer still has its own tag.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baleen_delta::source::FileBytes;
use baleen_delta::{Level, Options, Report, SourceLayer, StoredLayer, Target, encode};
use baleen_oci::{
    Algorithm, Descriptor, Digest, DigestHasher, Document, Manifest, MediaType, Platform, Reference, Repository,
};
use baleen_registry::{RegistryError, RepositoryClient};
use baleen_snapshotter::rebuild::rebuild;
use baleen_store::{ImageFact, LayerKey, Lease, Store};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task;

use super::artifact::{self, ARTIFACT_TYPE, DeltaFacts, EMPTY};
use crate::door::ended;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::image::RegistryAuth;
use crate::image::distribution::registry_error;
use crate::image::load::unnamed_file;
use crate::image::lookup::{self, store_error};
use crate::progress::{LayerPhase, Progress, ProgressSender};

const LIST_ATTEMPTS_MAX: u32 = 20;
/// Between two looks at the list; up to twice that.
const LIST_SPACING: Duration = Duration::from_millis(150);
const PIECE_BYTES: usize = 64 << 10;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeltaLevel {
    /// One way for each file.
    Fast,
    /// The smallest of several.
    #[default]
    Default,
}

/// What making a delta is asked for.
#[derive(Debug)]
pub struct MakeDelta {
    /// An image that is here: what devices have.
    pub source: String,
    /// An image that is here, by the manifest that a registry has: what they shall have.
    pub target: String,
    /// Where the delta goes; `None`: nowhere, or into `file` alone.
    pub push_to: Option<Repository>,
    /// A copy of the delta's bytes.
    pub file: Option<File>,
    /// How hard to try.
    pub level: DeltaLevel,
    /// The client's credentials.
    pub auth: RegistryAuth,
}

/// A delta that was made.
#[derive(Debug, Clone)]
pub struct MadeDelta {
    /// What it says of itself.
    pub facts: DeltaFacts,
    /// Digest of its manifest in the registry; none if it was not pushed.
    pub digest: Option<Digest>,
    /// Its own tag.
    pub tag: String,
    /// Bytes of the compressed layers that it makes.
    pub in_full_bytes: u64,
    /// How long it took to make.
    pub time: Duration,
    /// By technique: payloads, their bytes, and what they take before packing.
    pub shares: Vec<(&'static str, u64, u64, u64)>,
}

/// A delta that a registry has for an image.
#[derive(Debug, Clone)]
pub struct OfferedDelta {
    /// Digest of its manifest.
    pub digest: Digest,
    /// What it says of itself.
    pub facts: DeltaFacts,
}

/// The two images, looked up.
struct Pair {
    source: ImageFact,
    target: ImageFact,
    /// The target's manifest as the delta's subject.
    subject: Descriptor,
    /// Layers that the source lacks, with their compressed sizes.
    layers: Vec<(LayerKey, u64)>,
    lease: Arc<Lease>,
}

impl Engine {
    /// Makes a delta, and pushes it if it is told where.
    ///
    /// # Durability
    /// Stores nothing here.
    ///
    /// # Errors
    /// `NoSuchImage`; `Conflict` if there is nothing to make, or if the target did not come from a registry; those of the
    /// codec, the disk and the registry.
    pub async fn make_delta(
        self: &Arc<Self>,
        request: MakeDelta,
        progress: ProgressSender,
    ) -> Result<MadeDelta, EngineError> {
        let MakeDelta { source, target, push_to, file, level, auth } = request;
        let (store, names) = (self.store.clone(), (source, target));
        let pair =
            self.door.enter("look up what to make a delta of", move || look_up(&store, &names.0, &names.1)).await?;
        let pair = Arc::new(pair);
        for key in &pair.target.layers {
            let is_made = pair.layers.iter().any(|(made, _)| made.diff_id == key.diff_id);
            let phase = if is_made { LayerPhase::Waiting } else { LayerPhase::SkippingCommonLayer };
            progress.send(layer(key, phase)).await;
        }
        let began = Instant::now();
        let making = {
            let (engine, pair, progress) = (Arc::clone(self), Arc::clone(&pair), progress.clone());
            task::spawn_blocking(move || make(&engine, &pair, level, &progress))
        };
        let (mut delta, report) = making.await.map_err(|error| ended("make a delta", &error))??;
        let time = began.elapsed();
        if let Some(mut file) = file {
            let copied = task::spawn_blocking(move || -> io::Result<File> {
                delta.seek(SeekFrom::Start(0))?;
                io::copy(&mut delta, &mut file)?;
                file.sync_all()?;
                Ok(delta)
            });
            let copied = copied.await.map_err(|error| ended("copy a delta", &error))?;
            delta = copied.map_err(|error| EngineError::part("copy the delta", error))?;
        }
        let facts = DeltaFacts {
            source_configs: vec![*pair.source.id.digest()],
            source_layers: report.header.sources.clone(),
            target_config: *pair.target.id.digest(),
            target_layers: report.header.layers.iter().map(|layer| layer.diff_id).collect(),
            size_bytes: report.delta_bytes,
            memory_bytes: report.header.memory_bytes,
            header_bytes: report.header.header_bytes,
        };
        let tag = artifact::own_tag(&pair.subject.digest, pair.source.id.digest());
        let in_full_bytes = pair.layers.iter().map(|(_, size)| size).sum();
        let improvement = in_full_bytes as f64 / facts.size_bytes.max(1) as f64;
        let sizes =
            format!("Normal size: {in_full_bytes}, Delta size: {}, {improvement:.2}x improvement", facts.size_bytes);
        progress.send(Progress::Line(sizes)).await;
        let mut digest = None;
        if let Some(repository) = push_to {
            let client = self.registry().repository_to_push(&repository, auth.0);
            let pushed = push(&client, &pair.subject, &facts, &tag, delta, &progress).await?;
            progress.send(Progress::Line(format!("Created delta: {pushed}"))).await;
            let name = format!("{}:{tag}", repository.familiar());
            progress.send(Progress::Line(format!("Successfully tagged {name}"))).await;
            tracing::info!(reference = name, digest = %pushed, bytes = facts.size_bytes, in_full_bytes, "a delta was made");
            digest = Some(pushed);
        }
        let shares =
            report.shares.iter().map(|(name, share)| (*name, share.payloads, share.output_bytes, share.raw_bytes));
        Ok(MadeDelta { facts, digest, tag, in_full_bytes, time, shares: shares.collect() })
    }

    /// The deltas that a registry offers for an image.
    ///
    /// # Errors
    /// Those of the registry.
    pub async fn deltas_of(
        self: &Arc<Self>,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &RegistryAuth,
    ) -> Result<Vec<OfferedDelta>, EngineError> {
        let client = self.repository_client(reference.repository(), auth);
        let platform = platform.unwrap_or(&self.config.platform);
        let resolved = client.resolve(reference, platform).await.map_err(registry_error)?;
        let offers = self.offers(&client, &resolved).await.map_err(registry_error)?;
        let known = offers.into_iter().filter_map(|offer| {
            let facts = DeltaFacts::of(&offer.annotations)?;
            Some(OfferedDelta { digest: offer.digest, facts })
        });
        Ok(known.collect())
    }
}

fn layer(key: &LayerKey, phase: LayerPhase) -> Progress {
    Progress::Layer { id: key.diff_id.0.short().into(), phase }
}

fn look_up(store: &Store, source: &str, target: &str) -> Result<Pair, EngineError> {
    let (source, named) = (lookup::find(store, source)?.image, target);
    let target = lookup::find(store, target)?.image;
    let no_manifest = || {
        EngineError::conflict(format!(
            "{named} did not come from a registry, so no manifest can name it; pull it first"
        ))
    };
    let digest = target.manifest.ok_or_else(no_manifest)?;
    let bytes = store.read_blob(&digest).map_err(store_error("read the target's manifest"))?;
    let manifest =
        Manifest::parse(&bytes, None).map_err(|error| EngineError::part("read the target's manifest", error))?;
    let subject = Descriptor {
        media_type: manifest.media_type.clone(),
        digest,
        size: bytes.len() as u64,
        platform: None,
        annotations: Default::default(),
        artifact_type: None,
    };
    let lease = Arc::new(store.lease());
    for key in source.layers.iter().chain(&target.layers) {
        if lease.layer(key).is_none() {
            let error = baleen_store::StoreError::LayerMissing { key: Box::new(key.clone()) };
            return Err(EngineError::part("make the delta", error));
        }
    }
    let has = |key: &LayerKey| source.layers.iter().any(|other| other.diff_id == key.diff_id);
    let mut layers: Vec<(LayerKey, u64)> = Vec::new();
    for (key, descriptor) in target.layers.iter().zip(&manifest.layers) {
        if !has(key) && !layers.iter().any(|(other, _)| other.diff_id == key.diff_id) {
            layers.push((key.clone(), descriptor.size));
        }
    }
    if layers.is_empty() {
        return Err(EngineError::conflict(format!(
            "{named} has no layer that the other image lacks: it needs no delta"
        )));
    }
    Ok(Pair { source, target, subject, layers, lease })
}

/// Makes the delta into a file without a name. Blocking.
fn make(
    engine: &Engine,
    pair: &Pair,
    level: DeltaLevel,
    progress: &ProgressSender,
) -> Result<(File, Report), EngineError> {
    let (store, root) = (&engine.store, &engine.config.data_root);
    let _lease = &pair.lease;
    let failed = |error: baleen_delta::DeltaError| EngineError::part("make the delta", error);
    let open = |key: &LayerKey| -> Result<StoredLayer, EngineError> {
        let dir = store.layer_dir(key).map_err(store_error("open a layer"))?;
        let opened = StoredLayer::open(Arc::clone(store.disk()), dir);
        opened.map_err(|error| EngineError::part("open a layer", error))
    };
    let sources: Vec<StoredLayer> = pair.source.layers.iter().map(open).collect::<Result<_, _>>()?;
    let sources: Vec<&dyn SourceLayer> = sources.iter().map(|layer| layer as &dyn SourceLayer).collect();
    let mut tars = Vec::new();
    let mut ends = Vec::new();
    for (key, _) in &pair.layers {
        let tar = spool(store, root, key)?;
        let size = baleen_delta::source::ReadAt::size_bytes(&tar);
        ends.push(ends.last().copied().unwrap_or(0) + size);
        tars.push((key, tar));
    }
    let targets: Vec<Target<'_>> =
        tars.iter().map(|(key, tar)| Target { diff_id: key.diff_id, tar: tar as &dyn baleen_delta::ReadAt }).collect();
    let tell = |done: u64| {
        let number = ends.iter().position(|end| done < *end).unwrap_or(ends.len() - 1);
        let begin = number.checked_sub(1).map_or(0, |before| ends[before]);
        let (current_bytes, total_bytes) = (done.saturating_sub(begin), ends[number] - begin);
        progress.offer(layer(tars[number].0, LayerPhase::ComputingDelta { current_bytes, total_bytes }));
        !progress.has_gone()
    };
    tell(0);
    let level = match level {
        DeltaLevel::Fast => Level::Fast,
        DeltaLevel::Default => Level::Default,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options { level, threads, progress: &tell };
    let (mut scratch, mut delta) = (unnamed_file(root)?, unnamed_file(root)?);
    let config = pair.target.id.digest();
    let report = encode(config, &sources, &targets, &options, &mut scratch, &mut delta).map_err(failed)?;
    for (key, _) in &tars {
        progress.send_blocking(layer(key, LayerPhase::DeltaComplete));
    }
    Ok((delta, report))
}

/// A layer's tar in a file without a name (K1).
fn spool(store: &Store, root: &Path, key: &LayerKey) -> Result<FileBytes, EngineError> {
    let dir = store.layer_dir(key).map_err(store_error("open a layer"))?;
    let mut file = io::BufWriter::with_capacity(1 << 20, unnamed_file(root)?);
    rebuild(store.disk(), &dir, &mut file).map_err(|error| EngineError::part("read a layer", error))?;
    let file = file.into_inner().map_err(|error| EngineError::part("write a layer's tar", error.into_error()))?;
    FileBytes::new(file).map_err(|error| EngineError::part("read a layer's tar", error))
}

/// Puts a delta into the registry (K2, K3); gives the digest of its manifest.
async fn push(
    client: &RepositoryClient,
    subject: &Descriptor,
    facts: &DeltaFacts,
    tag: &str,
    delta: File,
    progress: &ProgressSender,
) -> Result<Digest, EngineError> {
    let hashing = task::spawn_blocking(move || digest_of(delta));
    let hashed = hashing.await.map_err(|error| ended("read a delta", &error))?;
    let (blob, delta) = hashed.map_err(|error| EngineError::part("read the delta", error))?;
    let (pieces, mut source) = mpsc::channel(4);
    let reading = task::spawn_blocking(move || send(delta, &pieces));
    let (id, total_bytes): (Arc<str>, u64) = (blob.short().into(), facts.size_bytes);
    let told = {
        let (progress, id) = (progress.clone(), Arc::clone(&id));
        move |current_bytes| {
            let phase = LayerPhase::Pushing { current_bytes, total_bytes };
            progress.offer(Progress::Layer { id: Arc::clone(&id), phase });
        }
    };
    let sent = client.push_blob(&blob, total_bytes, &mut source, told).await;
    drop(source);
    reading.await.map_err(|error| ended("read a delta", &error))?;
    let phase = if sent.map_err(registry_error)? { LayerPhase::Pushed } else { LayerPhase::LayerAlreadyExists };
    progress.send(Progress::Layer { id, phase }).await;
    let (pieces, mut source) = mpsc::channel(1);
    let _ = pieces.send(Bytes::from_static(EMPTY)).await;
    drop(pieces);
    let (config, size) = (Digest::sha256_of(EMPTY), EMPTY.len() as u64);
    client.push_blob(&config, size, &mut source, |_| {}).await.map_err(registry_error)?;
    let manifest = facts.manifest(&blob, subject);
    let entry = facts.entry(&manifest);
    let digest = client.push_document(tag, &MediaType::OciManifest, manifest).await.map_err(registry_error)?;
    let listed = client.referrers(&subject.digest, ARTIFACT_TYPE).await.map_err(registry_error)?;
    if listed.is_none_or(|listed| listed.iter().all(|known| known.digest != digest)) {
        list(client, &subject.digest, &entry).await?;
    }
    Ok(digest)
}

/// Enters a delta in the fallback list (K3).
async fn list(client: &RepositoryClient, target: &Digest, entry: &Value) -> Result<(), EngineError> {
    let tag = artifact::list_tag(target);
    let invalid = |source| EngineError::InvalidReference { text: tag.clone(), source };
    let reference = client.repository().with_tag(&tag).map_err(invalid)?;
    let mut seen = 0;
    for _ in 0..LIST_ATTEMPTS_MAX {
        let present = match client.document(&reference).await {
            Ok(fetched) if matches!(fetched.document, Document::Index(_)) => Some(fetched.bytes),
            Ok(_) | Err(RegistryError::NotFound { .. }) => None,
            Err(error) => return Err(registry_error(error)),
        };
        match artifact::list_with(present.as_deref(), entry) {
            None => seen += 1,
            Some(list) => {
                seen = 0;
                client.push_document(&tag, &MediaType::OciIndex, list).await.map_err(registry_error)?;
                continue;
            }
        }
        if seen == 2 {
            return Ok(());
        }
        let mut random = [0];
        // Without random numbers two writers may meet more often.
        let _ = getrandom::getrandom(&mut random);
        tokio::time::sleep(LIST_SPACING + LIST_SPACING * u32::from(random[0]) / 255).await;
    }
    Err(EngineError::conflict(format!(
        "others write the list {tag} all the time; the delta is in the registry under its own tag, try again to list it"
    )))
}

fn digest_of(mut file: File) -> io::Result<(Digest, File)> {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; PIECE_BYTES];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok((hasher.finish(), file))
}

fn send(mut file: File, pieces: &mpsc::Sender<Bytes>) {
    loop {
        let mut buffer = vec![0; PIECE_BYTES];
        match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                buffer.truncate(count);
                if pieces.blocking_send(buffer.into()).is_err() {
                    return; // It is in the registry already, or the push has failed and says why.
                }
            }
            Err(error) => return tracing::warn!(error = %error, "a delta cannot be read"),
        }
    }
}
