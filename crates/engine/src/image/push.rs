//! Push: an image of the store to a registry, under a tag.
//!
//! Layers are stored extracted. What the registry may have already is asked for by the digest by which a layer came, and
//! the original manifest is pushed as it was if all of them are there. Otherwise the layer's exact tar is made from its
//! recipe and compressed anew: then the layer's digest, and so the manifest's, is another one; the image's ID is the same.
//!
//! G1  A tar is made twice: once to know the digest of its compressed form, and once more if the registry lacks it. The
//!     compressed form is the same each time, so nothing of it is kept on the disk.
//! G2  The lease keeps every layer until the push has ended.
//! G3  The manifest goes last; the name by its digest is recorded here once the registry has it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use baleen_oci::{
    Algorithm, Descriptor, DiffId, Digest, DigestHasher, Document, ImageId, Manifest, MediaType, Reference, Repository,
};
use baleen_registry::RepositoryClient;
use baleen_snapshotter::rebuild::rebuild;
use baleen_store::{ImageFact, LayerKey, Lease, Store};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task;

use super::RegistryAuth;
use super::distribution::registry_error;
use super::lookup::{Names, store_error};
use super::remove::tag_fact;
use crate::door::ended;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::progress::{LayerPhase, Progress, ProgressSender};

/// Digests of compressed layers that are remembered.
const REMEMBERED_MAX: usize = 4096;
/// Other repositories that are asked for a blob before it is sent.
const MOUNTS_MAX: usize = 4;
/// Pieces of up to 64 KiB between the compression and the network.
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

/// What a push is asked for.
#[derive(Debug)]
pub struct PushRequest {
    /// Where to.
    pub repository: Repository,
    /// `None`: every tag of the repository that there is.
    pub tag: Option<String>,
    /// The client's credentials.
    pub auth: RegistryAuth,
}

/// What layers are once they are compressed by us: digest and size.
#[derive(Debug, Default)]
pub(crate) struct Compressed(Mutex<HashMap<DiffId, (Digest, u64)>>);

impl Compressed {
    fn get(&self, diff_id: &DiffId) -> Option<(Digest, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id).copied()
    }

    fn remember(&self, diff_id: DiffId, what: (Digest, u64)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < REMEMBERED_MAX {
            known.insert(diff_id, what);
        }
    }
}

/// A layer in the registry.
enum There {
    Already,
    Mounted(Repository),
}

/// An image to push.
struct Local {
    tag: String,
    image: ImageFact,
    config: Vec<u8>,
    /// The manifest by which it came.
    original: Option<(Vec<u8>, Manifest)>,
    /// Other repositories of the registry that its layers may be in.
    elsewhere: Vec<Repository>,
    lease: Arc<Lease>,
}

impl Engine {
    /// Pushes an image, or every tag of a repository. An error before the first message to `progress` is a plain error of
    /// the request. Dropping the future cancels it; what is in the registry by then stays there, without a name.
    ///
    /// # Durability
    /// The registry's. That the image has a name by its digest is durable on `Ok`.
    ///
    /// # Errors
    /// `NotFound` in Docker's words if there is no such tag here; those of the registry and of the store.
    pub async fn push(self: &Arc<Self>, request: PushRequest, progress: ProgressSender) -> Result<(), EngineError> {
        let PushRequest { repository, tag, auth } = request;
        let (store, wanted) = (self.store.clone(), repository.clone());
        let images = self.door.enter("look up what to push", move || local(&store, &wanted, tag.as_deref())).await?;
        let name = format!("{}/{}", repository.domain(), repository.path());
        progress.send(Progress::PushingTo { repository: name }).await;
        let client = self.registry().repository_to_push(&repository, auth.0);
        for image in images {
            self.push_image(&client, &image, &progress).await?;
        }
        Ok(())
    }

    async fn push_image(
        self: &Arc<Self>,
        client: &RepositoryClient,
        image: &Local,
        progress: &ProgressSender,
    ) -> Result<(), EngineError> {
        for key in &image.image.layers {
            progress.send(told(key, LayerPhase::Preparing)).await;
        }
        let remote = remote_manifest(client, image).await;
        let mut layers = Vec::new();
        for (number, key) in image.image.layers.iter().enumerate() {
            layers.push(self.push_layer(client, image, number, key, remote.as_ref(), progress).await?);
        }
        let same_as = |known: &Option<(Vec<u8>, Manifest)>| {
            let (bytes, manifest) = known.as_ref()?;
            let is_same = manifest.layers.iter().map(|layer| layer.digest).eq(layers.iter().map(|layer| layer.digest));
            is_same.then(|| (bytes.clone(), manifest.media_type.clone(), manifest.config.clone()))
        };
        let known = same_as(&image.original).or_else(|| same_as(&remote));
        let (bytes, media_type, config) = known.unwrap_or_else(|| new_manifest(image, &layers));
        if client.find_blob(&config.digest).await.map_err(registry_error)?.is_none() {
            let (pieces, mut source) = mpsc::channel(1);
            let _ = pieces.send(Bytes::from(image.config.clone())).await;
            drop(pieces);
            let size = image.config.len() as u64;
            client.push_blob(&config.digest, size, &mut source, |_| {}).await.map_err(registry_error)?;
        }
        let size_bytes = bytes.len() as u64;
        let digest = client.push_document(&image.tag, &media_type, bytes).await.map_err(registry_error)?;
        self.name_by_digest(client.repository().with_digest(digest), image.image.id).await?;
        let pushed = Progress::Pushed { tag: image.tag.clone(), digest: digest.to_string(), size_bytes };
        progress.send(pushed).await;
        let name = format!("{}:{}", client.repository().familiar(), image.tag);
        self.image_event("push", &name, &client.repository().familiar());
        tracing::info!(reference = name, digest = %digest, "pushed");
        Ok(())
    }

    /// Sees to it that the registry has a layer; gives what it is there.
    async fn push_layer(
        self: &Arc<Self>,
        client: &RepositoryClient,
        image: &Local,
        number: usize,
        key: &LayerKey,
        remote: Option<&(Vec<u8>, Manifest)>,
        progress: &ProgressSender,
    ) -> Result<Descriptor, EngineError> {
        let known = [image.original.as_ref(), remote].into_iter().flatten();
        for candidate in known.filter_map(|(_, manifest)| manifest.layers.get(number)) {
            if let Some(there) = find(client, &candidate.digest, &image.elsewhere).await? {
                progress.send(told(key, phase(there))).await;
                return Ok(candidate.clone());
            }
        }
        let (digest, size) = match self.compressed.get(&key.diff_id) {
            Some(known) => known,
            None => {
                let (store, key) = (self.store.clone(), key.clone());
                let measured = task::spawn_blocking(move || measure(&store, &key)).await;
                measured.map_err(|error| ended("compress a layer", &error))??
            }
        };
        self.compressed.remember(key.diff_id, (digest, size));
        let descriptor = Descriptor {
            media_type: layer_type(&manifest_type(image)),
            digest,
            size,
            platform: None,
            annotations: Default::default(),
            artifact_type: None,
        };
        if let Some(there) = find(client, &digest, &image.elsewhere).await? {
            progress.send(told(key, phase(there))).await;
            return Ok(descriptor);
        }
        let (pieces, mut source) = mpsc::channel(PIECES_MAX);
        let (store, of, lease) = (self.store.clone(), key.clone(), Arc::clone(&image.lease));
        let compressing = task::spawn_blocking(move || {
            let _lease = lease;
            // Without its sink the source has ended.
            compress(&store, &of, Pieces { pieces, buffer: Vec::with_capacity(PIECE_BYTES) }).map(drop)
        });
        let (sender, of) = (progress.clone(), key.clone());
        let tell =
            move |current_bytes| sender.offer(told(&of, LayerPhase::Pushing { current_bytes, total_bytes: size }));
        tell(0);
        let pushed = client.push_blob(&digest, size, &mut source, tell).await;
        drop(source);
        let compressed = compressing.await.map_err(|error| ended("compress a layer", &error))?;
        match (pushed, compressed) {
            (Ok(_), _) => {}
            // The layer could not be read: that is why its bytes ended.
            (Err(baleen_registry::RegistryError::SourceEnded { .. }), Err(error)) => return Err(error),
            (Err(error), _) => return Err(registry_error(error)),
        }
        progress.send(told(key, LayerPhase::Pushed)).await;
        Ok(descriptor)
    }

    /// Records the name by which the registry knows the image (G3).
    async fn name_by_digest(self: &Arc<Self>, name: Reference, id: ImageId) -> Result<(), EngineError> {
        let store = self.store.clone();
        self.door
            .enter("name a pushed image", move || {
                let name_of = tag_fact(&name, id);
                if store.tag(&name_of.name).is_some_and(|tag| tag.image == id) || store.image(&id).is_none() {
                    return Ok(()); // It may have been removed meanwhile.
                }
                let mut txn = store.begin().map_err(store_error("name the pushed image"))?;
                txn.set_tag(name_of).map_err(store_error("name the pushed image"))?;
                txn.commit().map_err(store_error("name the pushed image"))
            })
            .await
    }
}

fn told(key: &LayerKey, phase: LayerPhase) -> Progress {
    Progress::Layer { id: key.diff_id.0.short().into(), phase }
}

fn phase(there: There) -> LayerPhase {
    match there {
        There::Already => LayerPhase::LayerAlreadyExists,
        There::Mounted(from) => LayerPhase::MountedFrom(from.path().to_owned()),
    }
}

/// What there is to push under these names.
fn local(store: &Store, repository: &Repository, tag: Option<&str>) -> Result<Vec<Local>, EngineError> {
    let names = Names::of(store);
    let tags: Vec<String> = match tag {
        Some(tag) => vec![tag.to_owned()],
        None => {
            let all = store.tags().into_iter().filter_map(|fact| Reference::parse(&fact.name).ok());
            let own = all.filter(|name| name.repository() == repository && name.digest().is_none());
            own.filter_map(|name| name.tag().map(str::to_owned)).collect()
        }
    };
    let missing =
        |what: &str| EngineError::NotFound { text: format!("An image does not exist locally with the tag: {what}") };
    if tags.is_empty() {
        return Err(missing(&repository.familiar()));
    }
    let mut images = Vec::new();
    for tag in tags {
        let invalid = |source| EngineError::InvalidReference { text: tag.clone(), source };
        let name = repository.with_tag(&tag).map_err(invalid)?;
        let lease = Arc::new(store.lease());
        let fact = store.tag(&name.to_string()).and_then(|fact| store.image(&fact.image));
        let image = fact.ok_or_else(|| missing(&repository.familiar()))?;
        for key in &image.layers {
            if lease.layer(key).is_none() {
                let error = baleen_store::StoreError::LayerMissing { key: Box::new(key.clone()) };
                return Err(EngineError::part("push the image", error));
            }
        }
        let config = store.read_blob(image.id.digest()).map_err(store_error("read the image's configuration"))?;
        let original = image.manifest.and_then(|digest| {
            let bytes = store.read_blob(&digest).ok()?;
            let manifest = Manifest::parse(&bytes, None).ok()?;
            Some((bytes, manifest))
        });
        let known = names.repositories(&image.id).into_iter();
        let elsewhere = known.filter(|other| other.domain() == repository.domain() && other != repository);
        let elsewhere = elsewhere.take(MOUNTS_MAX).collect();
        images.push(Local { tag, image, config, original, elsewhere, lease });
    }
    Ok(images)
}

/// The manifest that the tag has in the registry, if it is one of the same image: its layers are known by their digests.
async fn remote_manifest(client: &RepositoryClient, image: &Local) -> Option<(Vec<u8>, Manifest)> {
    let reference = client.repository().with_tag(&image.tag).ok()?;
    // Whatever keeps it from being read is no obstacle to a push.
    let fetched = client.document(&reference).await.ok()?;
    match fetched.document {
        Document::Manifest(manifest)
            if manifest.config.digest == *image.image.id.digest()
                && manifest.layers.len() == image.image.layers.len()
                && manifest.require_image().is_ok() =>
        {
            Some((fetched.bytes, manifest))
        }
        _ => None,
    }
}

/// Looks for a blob in the repository, and then in others of the registry.
async fn find(
    client: &RepositoryClient,
    digest: &Digest,
    elsewhere: &[Repository],
) -> Result<Option<There>, EngineError> {
    if client.find_blob(digest).await.map_err(registry_error)?.is_some() {
        return Ok(Some(There::Already));
    }
    for other in elsewhere {
        if client.mount_blob(digest, other).await.map_err(registry_error)? {
            return Ok(Some(There::Mounted(other.clone())));
        }
    }
    Ok(None)
}

/// The type of a manifest that is made here: that of the original, so that its layers may be named in it.
fn manifest_type(image: &Local) -> MediaType {
    image.original.as_ref().map_or(MediaType::DockerManifest, |(_, manifest)| manifest.media_type.clone())
}

fn layer_type(manifest: &MediaType) -> MediaType {
    MediaType::from_name(match manifest {
        MediaType::OciManifest => "application/vnd.oci.image.layer.v1.tar+gzip",
        _ => "application/vnd.docker.image.rootfs.diff.tar.gzip",
    })
}

fn new_manifest(image: &Local, layers: &[Descriptor]) -> (Vec<u8>, MediaType, Descriptor) {
    let media_type = manifest_type(image);
    let config = Descriptor {
        media_type: if media_type == MediaType::OciManifest { MediaType::OciConfig } else { MediaType::DockerConfig },
        digest: *image.image.id.digest(),
        size: image.config.len() as u64,
        platform: None,
        annotations: Default::default(),
        artifact_type: None,
    };
    let document = json!({ "schemaVersion": 2, "mediaType": media_type.as_str(), "config": config, "layers": layers });
    (document.to_string().into_bytes(), media_type, config)
}

/// Digest and size of a layer's compressed tar. Blocking.
fn measure(store: &Store, key: &LayerKey) -> Result<(Digest, u64), EngineError> {
    struct Measure(DigestHasher, u64);
    impl Write for Measure {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            self.1 += bytes.len() as u64;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let Measure(hasher, size) = compress(store, key, Measure(DigestHasher::new(Algorithm::Sha256), 0))?;
    Ok((hasher.finish(), size))
}

/// Writes a layer's compressed tar, the same each time. Blocking.
fn compress<W: Write>(store: &Store, key: &LayerKey, sink: W) -> Result<W, EngineError> {
    let dir = store.layer_dir(key).map_err(store_error("open a layer"))?;
    let mut encoder = GzEncoder::new(sink, Compression::new(6));
    rebuild(store.disk(), &dir, &mut encoder).map_err(|error| EngineError::part("read a layer", error))?;
    encoder.finish().map_err(|error| EngineError::part("compress a layer", error))
}

/// Hands what is written on, in pieces.
struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        let gone = |_| io::ErrorKind::BrokenPipe.into();
        if piece.is_empty() { Ok(()) } else { self.pieces.blocking_send(piece.into()).map_err(gone) }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // After an error as well: what comes then is fewer bytes than were announced, and refused.
        let _ = self.flush();
    }
}
