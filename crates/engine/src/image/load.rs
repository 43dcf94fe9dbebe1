//! Load: images from an archive, by `docker save` (docker-archive, with `manifest.json`) or as an OCI layout in a tar.
//!
//! K1  An archive names its members in any order and tells last what they are, so it is spooled first: into a file
//!     without a name on the store's disk, gone with its descriptor.
//! K2  A member is found by its cleaned name in a table; no name of the archive is ever a path of ours (threats L3).
//! K3  Every layer goes through the same extraction as a pull's, verified by the diff ID in the image's configuration.
//! K4  An image is recorded with its names in one transaction; one that is refused leaves nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use baleen_oci::limits::{ARCHIVE_MANIFEST_BYTES_MAX, DOCUMENT_BYTES_MAX, OCI_LAYOUT_BYTES_MAX};
use baleen_oci::{
    Algorithm, Descriptor, Digest, DigestHasher, Document, ImageConfig, Index, Manifest, MemberName, Platform,
    Reference,
};
use baleen_snapshotter::decompress::Decompressor;
use baleen_snapshotter::extraction::BUFFER_BYTES;
use baleen_store::{Durability, ImageFact, Lease, Store, StoreError};
use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::{mpsc, oneshot};
use tokio::task;

use super::LoadRequest;
use super::lookup::store_error;
use super::remove::tag_fact;
use super::stack::{Below, Place};
use super::unpack::{self, LayerSource, Piece, UnpackError};
use crate::door::ended;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::progress::{LayerPhase, Progress, ProgressSender};

/// Members of an archive; an image of 125 layers in the oldest form has 378.
const MEMBERS_MAX: usize = 100_000;
/// Links between members that are followed.
const LINKS_MAX: usize = 8;
/// An index may list an index; one that goes deeper is nobody's image.
const INDEX_DEPTH_MAX: usize = 4;
/// Read at once.
const PIECE_BYTES: usize = 64 << 10;

impl Engine {
    /// Loads the images of an archive (docker-archive or OCI layout; plain, gzip or zstd), which arrives in pieces; `Err`
    /// from the channel ends the load. What was loaded is told by `progress`.
    ///
    /// # Durability
    /// An image is durable when `progress` tells of it.
    /// # Errors
    /// Of the archive's form and content; nothing of a refused image is stored.
    pub async fn load(
        self: &Arc<Self>,
        request: LoadRequest,
        archive: mpsc::Receiver<Result<Bytes, io::Error>>,
        progress: ProgressSender,
    ) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        // Waits for the client and for the extraction, so it has a thread of its own and does not stand in the door.
        let loading = task::spawn_blocking(move || {
            let spooled = spool(&engine.config.data_root, archive)?;
            let members = Members::scan(spooled)?;
            let platform = request.platform.clone().unwrap_or_else(|| engine.config.platform.clone());
            let loader = Loader { engine: &engine, members, platform, quiet: request.quiet, progress };
            loader.load()
        });
        loading.await.map_err(|error| ended("load an archive", &error))?
    }
}

fn refused(member: &str, reason: impl Into<String>) -> EngineError {
    EngineError::ImageRefused { reference: member.to_owned(), reason: reason.into() }
}

fn spool_error(source: io::Error) -> EngineError {
    EngineError::Io { action: "spool", path: "the archive".into(), source }
}

/// A file without a name on the store's disk, gone with its descriptor.
pub(crate) fn unnamed_file(data_root: &Path) -> Result<File, EngineError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, data_root, flags, Mode::RUSR | Mode::WUSR);
    Ok(File::from(file.map_err(|error| spool_error(error.into()))?))
}

/// Takes in the whole archive, decompressed (K1).
fn spool(data_root: &Path, mut archive: mpsc::Receiver<Result<Bytes, io::Error>>) -> Result<File, EngineError> {
    let mut file = unnamed_file(data_root)?;
    let full = |source: io::Error| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let what = "the archive, which is taken in whole before its layers are";
            EngineError::DiskFull { path: data_root.to_owned(), what, source }
        }
        _ => spool_error(source),
    };
    let mut decompressor = Decompressor::new(true);
    let damaged =
        |error: baleen_snapshotter::decompress::DecompressError| EngineError::part("decompress the archive", error);
    let mut plain = Vec::with_capacity(BUFFER_BYTES);
    while let Some(piece) = archive.blocking_recv() {
        let piece = piece.map_err(|error| EngineError::part("receive the archive", error))?;
        let mut rest = &piece[..];
        // As long as a full buffer stops it, there may be more to come out of what went in.
        loop {
            let consumed = decompressor.run(rest, &mut plain).map_err(damaged)?;
            rest = &rest[consumed..];
            let was_full = plain.len() >= BUFFER_BYTES;
            file.write_all(&plain).map_err(full)?;
            plain.clear();
            if rest.is_empty() && !was_full {
                break;
            }
        }
    }
    loop {
        let end = decompressor.finish(&mut plain).map_err(damaged)?;
        file.write_all(&plain).map_err(full)?;
        plain.clear();
        if end.is_some() {
            break;
        }
    }
    file.seek(SeekFrom::Start(0)).map_err(spool_error)?;
    Ok(file)
}

/// Where a member's content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    length: u64,
}

/// The members of a spooled archive, by cleaned name (K2).
struct Members {
    file: File,
    extents: HashMap<MemberName, Extent>,
    /// Old archives share layers by links between members.
    links: HashMap<MemberName, MemberName>,
}

impl Members {
    fn scan(file: File) -> Result<Self, EngineError> {
        let unreadable = |source| EngineError::part("read the archive", source);
        let mut members = Self { file, extents: HashMap::new(), links: HashMap::new() };
        let mut archive = tar::Archive::new(&members.file);
        let mut found = Vec::new();
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if found.len() == MEMBERS_MAX {
                return Err(refused("archive", format!("it has more than {MEMBERS_MAX} members")));
            }
            let path = entry.path().map_err(unreadable)?;
            // A name that climbs or is absolute is no member that a document could name.
            let Some(name) = path.to_str().and_then(MemberName::parse) else { continue };
            let kind = entry.header().entry_type();
            if kind.is_file() || kind.is_contiguous() {
                found.push((name, Ok(Extent { offset: entry.raw_file_position(), length: entry.size() })));
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name().map_err(unreadable)?;
                let target = target.as_deref().and_then(Path::to_str).and_then(|target| match kind.is_symlink() {
                    true => beside(&name, target),
                    false => MemberName::parse(target),
                });
                found.extend(target.map(|target| (name, Err(target))));
            }
        }
        for (name, what) in found {
            match what {
                // The last of several wins, as in an extraction.
                Ok(extent) => drop(members.extents.insert(name, extent)),
                Err(target) => drop(members.links.insert(name, target)),
            }
        }
        Ok(members)
    }

    fn find(&self, name: &MemberName) -> Option<Extent> {
        let mut name = name;
        for _ in 0..=LINKS_MAX {
            if let Some(extent) = self.extents.get(name) {
                return Some(*extent);
            }
            name = self.links.get(name)?;
        }
        None
    }

    fn named(&self, name: &str) -> Option<Extent> {
        self.find(&MemberName::parse(name)?)
    }

    fn require(&self, name: &MemberName) -> Result<Extent, EngineError> {
        self.find(name).ok_or_else(|| refused(name.as_str(), "the archive has no such member"))
    }

    /// A whole member of at most so many bytes.
    fn read(&self, name: &str, extent: Extent, bytes_max: usize) -> Result<Vec<u8>, EngineError> {
        if extent.length > bytes_max as u64 {
            return Err(refused(name, format!("it is larger than {bytes_max} bytes")));
        }
        let mut bytes = vec![0; extent.length as usize];
        self.file.read_exact_at(&mut bytes, extent.offset).map_err(spool_error)?;
        Ok(bytes)
    }

    /// A document of an OCI layout, verified.
    fn blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, EngineError> {
        let name = blob_name(digest);
        let extent = self.named(&name).ok_or_else(|| refused(&name, "the archive has no such member"))?;
        let bytes = self.read(&name, extent, DOCUMENT_BYTES_MAX)?;
        if bytes.len() as u64 != size || !digest.matches(&bytes) {
            return Err(refused(&name, "its content is not what its digest and size say"));
        }
        Ok(bytes)
    }

    fn digest_of(&self, extent: Extent) -> Result<Digest, EngineError> {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; PIECE_BYTES];
        let mut reader = Region { file: &self.file, extent };
        loop {
            match reader.read(&mut buffer).map_err(spool_error)? {
                0 => return Ok(hasher.finish()),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The member that a symbolic link beside others points to: `a/x/layer.tar` -> `../y/layer.tar` is `a/y/layer.tar`.
fn beside(link: &MemberName, target: &str) -> Option<MemberName> {
    let mut parts: Vec<&str> = link.as_str().split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    MemberName::parse(&parts.join("/"))
}

/// A part of a file, read from its own place.
struct Region<'a> {
    file: &'a File,
    extent: Extent,
}

impl Read for Region<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.extent.length).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.extent.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.extent.offset += count as u64;
        self.extent.length -= count as u64;
        Ok(count)
    }
}

/// An image of the archive, described.
struct Described {
    config: ImageConfig,
    /// Digest and bytes, of an OCI layout.
    manifest: Option<(Digest, Vec<u8>)>,
    layers: Vec<(LayerSource, Extent)>,
    names: Vec<Reference>,
}

struct Loader<'a> {
    engine: &'a Arc<Engine>,
    members: Members,
    platform: Platform,
    quiet: bool,
    progress: ProgressSender,
}

impl Loader<'_> {
    fn load(&self) -> Result<(), EngineError> {
        let described = match (self.members.named("manifest.json"), self.members.named("oci-layout")) {
            (Some(extent), _) => self.describe_docker_archive(extent)?,
            (None, Some(extent)) => self.describe_layout(extent)?,
            (None, None) => {
                return Err(refused(
                    "archive",
                    "it has neither manifest.json nor oci-layout; save images with 'docker save'",
                ));
            }
        };
        for image in described {
            self.store(&image)?;
        }
        Ok(())
    }

    fn describe_docker_archive(&self, extent: Extent) -> Result<Vec<Described>, EngineError> {
        let bytes = self.members.read("manifest.json", extent, ARCHIVE_MANIFEST_BYTES_MAX)?;
        let items = baleen_oci::parse_archive_manifest(&bytes)
            .map_err(|error| EngineError::part("read the archive's manifest.json", error))?;
        let mut described = Vec::new();
        for item in items {
            let bytes =
                self.members.read(item.config.as_str(), self.members.require(&item.config)?, DOCUMENT_BYTES_MAX)?;
            let config = parse_config(item.config.as_str(), bytes)?;
            check_count(item.config.as_str(), item.layers.len(), &config)?;
            let mut layers = Vec::new();
            for (member, place) in item.layers.iter().zip(Place::all(config.diff_ids())) {
                let extent = self.members.require(member)?;
                layers.push((self.layer_source(extent, place)?, extent));
            }
            let names = item.references().collect::<Result<Vec<_>, _>>();
            let names =
                names.map_err(|source| EngineError::InvalidReference { text: item.repo_tags.join(", "), source })?;
            described.push(Described { config, manifest: None, layers, names });
        }
        Ok(described)
    }

    /// What is known of a layer of a docker-archive: it is a plain tar, so that its digest is the diff ID, unless it was
    /// compressed by another tool; then it is read once more to know it.
    fn layer_source(&self, extent: Extent, place: Place) -> Result<LayerSource, EngineError> {
        let Place { diff_id, parents } = place;
        let mut magic = [0; 4];
        let length = usize::try_from(extent.length.min(4)).unwrap_or(4);
        self.members.file.read_exact_at(&mut magic[..length], extent.offset).map_err(spool_error)?;
        let is_compressed = magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd];
        let blob = if is_compressed { self.members.digest_of(extent)? } else { *diff_id.digest() };
        Ok(LayerSource {
            blob,
            blob_is_known: true,
            size_bytes: Some(extent.length),
            media_type: None,
            diff_id,
            tar_bytes: None,
            parents,
        })
    }

    fn describe_layout(&self, extent: Extent) -> Result<Vec<Described>, EngineError> {
        let unreadable = |what: &'static str| move |error: baleen_oci::DocumentError| EngineError::part(what, error);
        let bytes = self.members.read("oci-layout", extent, OCI_LAYOUT_BYTES_MAX)?;
        baleen_oci::parse_oci_layout(&bytes).map_err(unreadable("read the archive's oci-layout"))?;
        let extent =
            self.members.named("index.json").ok_or_else(|| refused("index.json", "the archive has no such member"))?;
        let bytes = self.members.read("index.json", extent, DOCUMENT_BYTES_MAX)?;
        let index = Index::parse(&bytes, None).map_err(unreadable("read the archive's index.json"))?;
        let mut described = Vec::new();
        for descriptor in &index.manifests {
            let names = layout_names(descriptor)?;
            if let Some((digest, bytes, manifest)) = self.layout_manifest(descriptor)? {
                described.push(self.describe_manifest(digest, bytes, &manifest, names)?);
            }
        }
        Ok(described)
    }

    /// The manifest that an entry of the layout's index leads to; none if it is no image (an attestation).
    fn layout_manifest(&self, descriptor: &Descriptor) -> Result<Option<(Digest, Vec<u8>, Manifest)>, EngineError> {
        let mut descriptor = descriptor.clone();
        for _ in 0..=INDEX_DEPTH_MAX {
            let bytes = self.members.blob(&descriptor.digest, descriptor.size)?;
            let document = Document::parse(&bytes, Some(descriptor.media_type.as_str()));
            match document.map_err(|error| EngineError::part("read a document of the archive", error))? {
                Document::Manifest(manifest) => {
                    let is_image = manifest.require_image().is_ok();
                    return Ok(is_image.then_some((descriptor.digest, bytes, manifest)));
                }
                Document::Index(index) => {
                    let chosen = index.choose(&self.platform);
                    descriptor =
                        chosen.map_err(|error| EngineError::part("choose an image of the archive", error))?.clone();
                }
            }
        }
        Err(refused("index.json", "it has indexes nested more than four deep"))
    }

    fn describe_manifest(
        &self,
        digest: Digest,
        bytes: Vec<u8>,
        manifest: &Manifest,
        names: Vec<Reference>,
    ) -> Result<Described, EngineError> {
        let name = blob_name(&manifest.config.digest);
        let config = parse_config(&name, self.members.blob(&manifest.config.digest, manifest.config.size)?)?;
        check_count(&name, manifest.layers.len(), &config)?;
        let mut layers = Vec::new();
        for (descriptor, place) in manifest.layers.iter().zip(Place::all(config.diff_ids())) {
            let name = blob_name(&descriptor.digest);
            let extent = self.members.named(&name).ok_or_else(|| refused(&name, "the archive has no such member"))?;
            let source = LayerSource {
                blob: descriptor.digest,
                blob_is_known: true,
                size_bytes: Some(descriptor.size),
                media_type: Some(descriptor.media_type.clone()),
                diff_id: place.diff_id,
                tar_bytes: None,
                parents: place.parents,
            };
            layers.push((source, extent));
        }
        Ok(Described { config, manifest: Some((digest, bytes)), layers, names })
    }

    fn store(&self, image: &Described) -> Result<(), EngineError> {
        let store = &self.engine.store;
        // Keeps every layer, found or stored, until the image's record does.
        let lease = Arc::new(store.lease());
        let mut below = Vec::new();
        for (source, extent) in &image.layers {
            if source.place().find(&lease).is_none() {
                self.store_layer(&lease, &below, source, *extent)?;
            }
            below.push(source.place());
        }
        match commit(store, &lease, image) {
            Err(StoreError::StagingDropped) => commit(store, &lease, image),
            other => other,
        }
        .map_err(store_error("store the image"))?;
        drop(lease);
        let id = image.config.id().to_string();
        self.engine.image_event("load", &id, &id);
        for name in &image.names {
            self.tell(Progress::Line(format!("Loaded image: {}\n", name.familiar())));
        }
        if image.names.is_empty() {
            self.tell(Progress::Line(format!("Loaded image ID: {id}\n")));
        }
        Ok(())
    }

    fn store_layer(
        &self,
        lease: &Arc<Lease>,
        places: &[Place],
        source: &LayerSource,
        extent: Extent,
    ) -> Result<(), EngineError> {
        let store = &self.engine.store;
        let place = source.place();
        // All of it is stored, since layers come bottom first: nothing is waited for.
        let below = (!places.is_empty()).then(|| Below {
            store: store.clone(),
            places: places.into(),
            arrivals: Arc::default(),
            wants: Arc::default(),
            lease: Arc::clone(lease),
        });
        for durability in [Durability::Cheapest, Durability::EachFile] {
            // A pull of the same blob has its turn first, and may then have stored it.
            let turn = self.engine.downloads.turn(&source.blob);
            let turn = turn.blocking_acquire();
            if place.find(lease).is_some() {
                return Ok(());
            }
            let unpacked = self.unpack(store, source, below.as_ref(), extent, durability);
            drop(turn);
            match unpacked {
                // Collection may run between the layer's transaction and the look-up; then it is stored again.
                Ok(()) if place.find(lease).is_some() => return Ok(()),
                Ok(()) => {}
                Err(UnpackError::Again(error, _)) if durability == Durability::Cheapest => {
                    tracing::warn!(digest = %source.blob, error = error.chain(), "a layer is unpacked again");
                }
                Err(UnpackError::Abandoned) => return Err(EngineError::ShuttingDown),
                Err(UnpackError::Again(error, _) | UnpackError::Failed(error)) => return Err(error),
            }
        }
        Err(refused(&source.blob.short(), "it was collected twice while it was loaded; try again"))
    }

    /// Feeds a member to the extraction, from a thread beside the one that unpacks.
    fn unpack(
        &self,
        store: &Store,
        source: &LayerSource,
        below: Option<&Below>,
        extent: Extent,
        durability: Durability,
    ) -> Result<(), UnpackError> {
        let (pieces, mut received) = mpsc::channel(4);
        let short: Arc<str> = source.diff_id.digest().short().into();
        let (begins, _at_the_start) = oneshot::channel();
        let (partial, fact) = std::thread::scope(|scope| {
            scope.spawn(|| self.feed(extent, &short, pieces));
            // An archive is at hand: what a cut pull left of the layer is not worth going on with.
            let unpacked = unpack::unpack(store, source, below, None, begins, &mut received);
            // The feeder learns from this that nobody takes its pieces.
            drop(received);
            unpacked
        })?;
        unpack::store(store, partial, &fact, durability)
    }

    fn feed(&self, extent: Extent, short: &Arc<str>, pieces: mpsc::Sender<Piece>) {
        let mut reader = Region { file: &self.members.file, extent };
        let total_bytes = extent.length;
        loop {
            let mut buffer = vec![0; PIECE_BYTES];
            match reader.read(&mut buffer) {
                Ok(0) => {
                    let _ = pieces.blocking_send(Piece::End);
                    return;
                }
                Ok(count) => {
                    buffer.truncate(count);
                    if pieces.blocking_send(Piece::Bytes(buffer.into())).is_err() {
                        return; // The extraction has failed and says why.
                    }
                    if !self.quiet {
                        let current_bytes = total_bytes - reader.extent.length;
                        let phase = LayerPhase::Loading { current_bytes, total_bytes };
                        self.progress.offer(Progress::Layer { id: Arc::clone(short), phase });
                    }
                }
                Err(error) => {
                    // The channel closes without an end: the layer is given up.
                    tracing::warn!(error = %error, "the spooled archive cannot be read");
                    return;
                }
            }
        }
    }

    fn tell(&self, progress: Progress) {
        self.progress.send_blocking(progress);
    }
}

fn parse_config(member: &str, bytes: Vec<u8>) -> Result<ImageConfig, EngineError> {
    ImageConfig::parse(bytes)
        .map_err(|error| EngineError::part(format!("read the image configuration {member}"), error))
}

fn check_count(member: &str, layers: usize, config: &ImageConfig) -> Result<(), EngineError> {
    match config.diff_ids().len() {
        diff_ids if diff_ids == layers => Ok(()),
        diff_ids => Err(refused(member, format!("it names {diff_ids} layers, the archive {layers}"))),
    }
}

/// The full name that `docker save` writes, else a reference name that is more than a bare tag.
fn layout_names(descriptor: &Descriptor) -> Result<Vec<Reference>, EngineError> {
    let annotations = &descriptor.annotations;
    if let Some(name) = annotations.get("io.containerd.image.name") {
        let reference = Reference::parse(name);
        return Ok(vec![reference.map_err(|source| EngineError::InvalidReference { text: name.clone(), source })?]);
    }
    let name = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    Ok(name.and_then(|name| Reference::parse(name).ok()).into_iter().collect())
}

fn commit(store: &Store, lease: &Lease, image: &Described) -> Result<(), StoreError> {
    let id = image.config.id();
    let mut txn = store.begin()?;
    txn.stage_blob(id.digest(), image.config.raw())?;
    if let Some((digest, bytes)) = &image.manifest {
        txn.stage_blob(digest, bytes)?;
    }
    // What a pull has recorded of the same image is kept: its manifest is known from there.
    let known = store.image(&id).and_then(|image| image.manifest);
    let manifest = image.manifest.as_ref().map(|(digest, _)| *digest).or(known);
    let key = |(source, _): &(LayerSource, Extent)| {
        let place = source.place();
        let missing = || StoreError::LayerMissing { key: Box::new(place.plain()) };
        place.find(lease).map(|layer| layer.key).ok_or_else(missing)
    };
    let layers = image.layers.iter().map(key).collect::<Result<_, _>>()?;
    txn.store_image(ImageFact { id, manifest, layers });
    for name in &image.names {
        txn.set_tag(tag_fact(name, id))?;
    }
    txn.commit()
}
