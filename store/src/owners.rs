//! Who owns which path: every name that may stand below the root, and the bytes of each class.

use std::collections::BTreeSet;

use baleen_oci::Algorithm;

use crate::disk::{Disk, Handle, NodeKind};
use crate::error::{IoContext, StoreError};
use crate::layout::{DIRECTORIES, Object, partial_blob};
use crate::store::Store;

/// Whom a path below the root belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Owner {
    /// The store itself: `FORMAT`, `LOCK` and its directories.
    Store,
    /// The write-ahead log.
    Log,
    /// A recorded blob, layer or container.
    Recorded,
    /// A layer under extraction, or cut and waiting for its pull to go on.
    Partial,
    /// A transaction under way.
    Staging,
    /// Waits for deletion.
    Trash,
    /// Waits for a person.
    Quarantine,
    /// A volume: users' data.
    Volume,
    /// Nobody: a leak.
    Nobody,
}

/// One path with its owner. What lies below it belongs to the same owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Below the root, with `/`.
    pub path: String,
    /// Whose it is.
    pub owner: Owner,
}

impl Store {
    /// Names the owner of everything below the root, down to the level where one owner has the whole rest.
    ///
    /// # Errors
    /// `Io`.
    pub fn owners(&self) -> Result<Vec<Owned>, StoreError> {
        let (disk, layout) = (&self.shared.disk, &self.shared.layout);
        let mut owned = Vec::new();
        let mut list = |dir, prefix: &str, owner: &dyn Fn(&[u8]) -> Owner| -> Result<(), StoreError> {
            for entry in disk.read_dir(dir).context("list", || prefix.to_owned())? {
                let name = String::from_utf8_lossy(&entry.name);
                let path = if prefix.is_empty() { name.into_owned() } else { format!("{prefix}/{name}") };
                owned.push(Owned { path, owner: owner(&entry.name) });
            }
            Ok(())
        };
        let known = |name: &[u8]| {
            let ours = DIRECTORIES.iter().any(|(directory, _)| *directory == name);
            if ours || matches!(name, b"FORMAT" | b"LOCK" | b"index-0" | b"index-1" | b"lost+found") {
                Owner::Store
            } else {
                Owner::Nobody
            }
        };
        list(&layout.root, "", &known)?;
        list(&layout.blobs, "blobs", &|name| match name {
            b"sha256" | b"sha512" => Owner::Store,
            _ => Owner::Nobody,
        })?;
        let live = |objects: Vec<Object>| {
            let names: Vec<Vec<u8>> = objects.iter().map(|object| layout.place(object).1).collect();
            move |name: &[u8]| if names.iter().any(|live| live == name) { Owner::Recorded } else { Owner::Nobody }
        };
        for (algorithm, dir) in [(Algorithm::Sha256, &layout.blobs_sha256), (Algorithm::Sha512, &layout.blobs_sha512)] {
            let of = self.blobs().into_iter().map(|blob| blob.digest).filter(|digest| digest.algorithm() == algorithm);
            list(dir, &format!("blobs/{}", algorithm.name()), &live(of.map(Object::Blob).collect()))?;
        }
        list(&layout.layers, "layers", &live(self.layers().into_iter().map(|fact| Object::Layer(fact.key)).collect()))?;
        let containers = self.containers().into_iter().map(|fact| Object::Container(fact.id)).collect();
        list(&layout.containers, "containers", &live(containers))?;
        list(&layout.wal, "wal", &|name| match name {
            b"spare" | b"new" => Owner::Log,
            segment if segment.len() == 16 && segment.iter().all(u8::is_ascii_hexdigit) => Owner::Log,
            _ => Owner::Nobody,
        })?;
        let extracted = {
            let state = self.shared.state();
            let mut extracted = state.facts.reachable().partials;
            extracted.extend(state.partials.iter().copied());
            extracted
        };
        list(&layout.partial, "partial", &|name| match partial_blob(name) {
            Some(blob) if extracted.contains(&blob) => Owner::Partial,
            _ => Owner::Nobody,
        })?;
        let opened = format!("{:x}-", self.shared.opened);
        list(&layout.staging, "staging", &|name| match name.starts_with(opened.as_bytes()) {
            true => Owner::Staging,
            false => Owner::Nobody,
        })?;
        list(&layout.trash, "trash", &|_| Owner::Trash)?;
        list(&layout.quarantine, "quarantine", &|_| Owner::Quarantine)?;
        list(&layout.volumes, "volumes", &|_| Owner::Volume)?;
        Ok(owned)
    }

    /// Bytes that the file tree of one directory handle occupies: files, links and directories, each inode once.
    ///
    /// # Errors
    /// `Io`.
    pub fn occupied_bytes(&self, dir: &Handle) -> Result<u64, StoreError> {
        let disk = self.shared.disk.as_ref();
        let own = disk.metadata(dir).context("read", path_of_tree)?.allocated_bytes;
        Ok(own + occupied_below(disk, dir, &mut BTreeSet::new())?)
    }
}

fn path_of_tree() -> String {
    "a directory of the store".to_owned()
}

/// One open directory a level: a path has at most 2,048 components.
fn occupied_below(disk: &dyn Disk, dir: &Handle, seen: &mut BTreeSet<u64>) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for entry in disk.read_dir(dir).context("list", path_of_tree)? {
        let metadata = disk.metadata_at(dir, &entry.name).context("look up", path_of_tree)?;
        if metadata.links < 2 || entry.kind == NodeKind::Directory || seen.insert(metadata.inode) {
            bytes += metadata.allocated_bytes;
        }
        if entry.kind == NodeKind::Directory {
            let inner = disk.open_dir(dir, &entry.name).context("open", path_of_tree)?;
            bytes += occupied_below(disk, &inner, seen)?;
        }
    }
    Ok(bytes)
}
