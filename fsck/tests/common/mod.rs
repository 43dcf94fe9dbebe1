//! What the tests of this crate share: a store with layers of every kind, broken from outside.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test program uses its own part")]
#![allow(clippy::disallowed_methods, reason = "a test breaks the disk from outside")]

#[path = "../../../snapshotter/tests/common/archive.rs"]
pub mod archive;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use archive::{Archive, Block};
use baleen_fsck::{Code, Finding, Report};
use baleen_oci::{DiffId, Digest, ImageId};
use baleen_snapshotter::Limits;
use baleen_snapshotter::tree::TreeWriter;
use baleen_store::{
    ContainerFact, Desired, ImageFact, Inspection, LayerFact, LayerKey, Partial, Store, SystemDisk, TagFact, Txn,
};

/// A directory of its own that goes when the test ends, however it ends.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("baleen-fsck-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a scratch directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn disk(&self) -> Arc<SystemDisk> {
        Arc::new(SystemDisk::open(&self.0).expect("the scratch directory opens"))
    }

    pub fn open(&self) -> Store {
        Store::open(self.disk(), *b"a store of tests").expect("the store opens").0
    }

    pub fn inspection(&self) -> Inspection {
        Inspection::open(self.disk()).expect("the store is looked at")
    }

    pub fn quick(&self) -> Report {
        baleen_fsck::quick(&self.inspection()).expect("a report")
    }

    pub fn deep(&self) -> Report {
        baleen_fsck::deep(&self.inspection(), None, &mut |_| false).expect("a report")
    }

    /// The folder of a layer.
    pub fn layer(&self, key: &LayerKey) -> PathBuf {
        self.0.join("layers").join(key.folder())
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this process may make devices and owners. Reports the test as skipped if not.
pub fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} may not be skipped here: needs root");
    eprintln!("SKIPPED: {test}: needs root");
    false
}

/// Extracts `tar` into a partial layer of `store`; `None` if it is refused.
pub fn extract(store: &Store, tar: &[u8]) -> Option<(Partial, LayerFact)> {
    let blob = Digest::sha256_of(&[b"compressed ", tar].concat());
    let key = LayerKey::new(DiffId(Digest::sha256_of(tar)));
    let partial = store.begin_partial(&blob).expect("a partial layer");
    let mut tree = TreeWriter::create(store.disk().clone(), partial.dir(), Limits::default()).expect("an empty folder");
    let taken = tar.chunks(10_000).try_for_each(|part| tree.take(part));
    let summary = taken.and_then(|()| tree.finish(key.diff_id)).ok()?;
    let fact = LayerFact {
        key,
        blob,
        blob_size_bytes: tar.len() as u64,
        tar_size_bytes: summary.tar_size_bytes,
        unpacked_size_bytes: summary.unpacked_size_bytes,
        entries: summary.entries,
        recipe_size_bytes: summary.recipe_size_bytes,
        implied_directories: summary.implied_directories,
    };
    Some((partial, fact))
}

/// Extracts `tar` as a layer of a transaction.
pub fn stage_layer(store: &Store, txn: &mut Txn, tar: &[u8]) -> Option<LayerKey> {
    let (partial, fact) = extract(store, tar)?;
    let key = fact.key.clone();
    txn.stage_layer(partial, fact);
    Some(key)
}

/// An image of these archives, with a name.
pub fn add_image(store: &Store, name: &str, tars: &[Vec<u8>]) -> ImageFact {
    let mut txn = store.begin().expect("a transaction");
    let keys: Vec<LayerKey> = tars
        .iter()
        .map(|tar| {
            let key = LayerKey::new(DiffId(Digest::sha256_of(tar)));
            match txn.lease().layer(&key) {
                Some(_) => key,
                None => stage_layer(store, &mut txn, tar).expect("a layer that is accepted"),
            }
        })
        .collect();
    let diff_ids: Vec<String> = keys.iter().map(|key| format!("\"{}\"", key.diff_id)).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","name":"{name}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let id = Digest::sha256_of(config.as_bytes());
    let layers: Vec<String> = tars
        .iter()
        .map(|tar| {
            let blob = Digest::sha256_of(&[b"compressed ", &tar[..]].concat());
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            format!(r#"{{"mediaType":"{media_type}","digest":"{blob}","size":{}}}"#, tar.len())
        })
        .collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{id}","size":{}}},"layers":[{}]}}"#,
        config.len(),
        layers.join(",")
    );
    let manifest_digest = Digest::sha256_of(manifest.as_bytes());
    txn.stage_blob(&id, config.as_bytes()).expect("a config");
    txn.stage_blob(&manifest_digest, manifest.as_bytes()).expect("a manifest");
    let image = ImageFact { id: ImageId(id), manifest: Some(manifest_digest), layers: keys };
    txn.store_image(image.clone());
    txn.set_tag(TagFact { name: name.to_owned(), image: image.id, set_at_seconds: 7 }).expect("a tag");
    txn.commit().expect("a stored image");
    image
}

pub fn add_container(store: &Store, letter: char, name: &str, image: &ImageFact) -> String {
    let id: String = std::iter::repeat_n(letter, 64).collect();
    let fact = ContainerFact { id: id.clone(), name: name.to_owned(), image: image.id, desired: Desired::Created };
    let layers: Vec<String> = image.layers.iter().map(|key| format!("\"{}\"", key.folder())).collect();
    let body = format!(r#"{{"version":1,"id":"{id}","image_id":"{}","layers":[{}]}}"#, image.id, layers.join(","));
    let config = format!("{},\"digest\":\"{}\"}}", &body[..body.len() - 1], Digest::sha256_of(body.as_bytes()));
    let mut txn = store.begin().expect("a transaction");
    txn.stage_container(fact, |dir| {
        dir.file("config.json", 0o600, config.as_bytes())?;
        dir.dir("upper", 0o755, 0, 0)?;
        dir.dir("work", 0o700, 0, 0)?;
        dir.dir("merged", 0o755, 0, 0)
    })
    .expect("a container");
    txn.commit().expect("a stored container");
    id
}

/// Bytes that another file of the test has as well, so that they can be copied from there.
pub const SHARED: &[u8] = b"these bytes are in two files of two layers\n";

/// A layer with a node of every kind.
pub fn rich_layer() -> Vec<u8> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let owned = |mut block: Block, uid: u64, gid: u64| {
        block.octal(108, 8, uid);
        block.octal(116, 8, gid);
        block
    };
    let shared = Block::new(b"bin/shared", b'0', SHARED.len() as u64).mode(0o755);
    Archive::default()
        .dir("bin")
        .block(shared)
        .data(SHARED)
        .pax(b'x', &[("mtime", b"1500000000.123456789"), ("SCHILY.xattr.user.colour", b"blue")])
        .file("bin/program", &vec![7; 70_000])
        .pax(b'x', &[("SCHILY.xattr.security.capability", &capability)])
        .block(Block::new(b"bin/ping", b'0', 5).mode(0o755))
        .data(b"ping!")
        .block(owned(Block::new(b"bin/su", b'0', 3).mode(0o4755), 0, 42))
        .data(b"su!")
        .hard_link("bin/program-too", "bin/program")
        .symlink("bin/sh", "program")
        .block(Block::new(b"dev/null", b'3', 0).mode(0o666).device(1, 3))
        .block(Block::new(b"dev/disk", b'4', 0).mode(0o660).device(8, 1))
        .block(Block::new(b"run/pipe", b'6', 0).mode(0o622))
        .block(owned(Block::new(b"home", b'5', 0).mode(0o2775), 1000, 1000))
        .block(owned(Block::new(b"home/file", b'0', 4), 1000, 1000))
        .data(b"mine")
        .file("home/.wh.gone", b"")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("empty", b"")
        .file("replaced", b"the first")
        .file("replaced", b"the second")
        .dir("replaced-dir")
        .file("replaced-dir/inner", b"inner")
        .file("replaced-dir", b"no directory any more")
        .symlink("way", "home")
        .file("way/through", b"by a link")
        .block(
            Block::new(b"sparse", b'S', 8)
                .set(257, b"ustar  \0")
                .set(386, b"00000010000\x0000000000004\x0000000020000\x0000000000004\0")
                .set(483, b"00000040000\0"),
        )
        .data(b"holeHOLE")
        .end()
}

/// A second layer that has a file with the same bytes as one of [`rich_layer`].
pub fn other_layer() -> Vec<u8> {
    Archive::default().dir("usr").file("usr/copy", SHARED).file("usr/own", &vec![9; 5000]).symlink("lib", "usr").end()
}

/// A layer that both images of [`healthy`] have.
pub fn base_layer() -> Vec<u8> {
    Archive::default().dir("etc").file("etc/name", b"device\n").file("etc/long", &vec![b'x'; 300_000]).end()
}

/// A store with two images that share a layer, and a container of the first, closed in order.
pub struct Healthy {
    pub scratch: Scratch,
    pub app: ImageFact,
    pub tool: ImageFact,
    pub container: String,
}

pub fn healthy() -> Healthy {
    let scratch = Scratch::new();
    let store = scratch.open();
    let app = add_image(&store, "app:1", &[base_layer(), rich_layer()]);
    let tool = add_image(&store, "tool:1", &[base_layer(), other_layer()]);
    let container = add_container(&store, 'c', "web", &app);
    store.close().expect("closed");
    drop(store);
    Healthy { scratch, app, tool, container }
}

/// The damage in a report, each as code and path.
pub fn damage(report: &Report) -> Vec<(Code, String)> {
    let damage = report.findings.iter().filter(|finding| finding.severity == baleen_fsck::Severity::Damage);
    damage.map(|finding| (finding.code, finding.path.clone())).collect()
}

pub fn tags(finding: &Finding) -> Vec<String> {
    let mut tags: Vec<String> = finding.touched.images.iter().flat_map(|image| image.tags.clone()).collect();
    tags.sort();
    tags
}
