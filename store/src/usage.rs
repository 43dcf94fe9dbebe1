//! What the space below the root is used for: every byte that `du` counts, by class.
//!
//! Z1  A class is decided by the place and by the log, down to the level where one owner has the rest. The sum of all classes is
//!     what `du -x` says of the root: each inode once, directories too, and nothing of other mounts.
//! Z2  A file of several names counts where it is met first: in the order of the classes' places, layers by their keys.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::{Disk, Handle, Metadata, NodeKind};
use crate::error::{IoContext, StoreError};
use crate::facts::LayerKey;
use crate::inspect::{Inspection, Standing, StoredObject};
use crate::layout::is_missing;
use crate::recipe::RECIPE_NAME;
use crate::second_copy::SLOTS;

/// What some space is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// `FORMAT`, `LOCK` and the store's own directories.
    Store,
    /// The write-ahead log, with its reserve.
    Log,
    /// The second copy of the facts.
    Index,
    /// Manifests, indexes and configs.
    Blobs,
    /// Trees of layers that one image has.
    Unique,
    /// Trees of layers that several images have.
    Shared,
    /// Trees of layers that no image has: what pulls have finished that were cut.
    Unused,
    /// Recipes of layers.
    Recipes,
    /// Layers under extraction, or cut and waiting for their pull.
    Partial,
    /// What containers have written.
    Uppers,
    /// Containers' logs.
    Logs,
    /// What else belongs to containers.
    Containers,
    /// Users' data.
    Volumes,
    /// Staged, recorded or not.
    Staging,
    /// In the place of an object, and recorded nowhere: the next opening throws it away.
    LeftOver,
    /// Waits for deletion.
    Trash,
    /// Waits for a person.
    Quarantine,
    /// Belongs to nothing that the store knows.
    Foreign,
}

impl Class {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Store => "store",
            Class::Log => "log",
            Class::Index => "index",
            Class::Blobs => "blobs",
            Class::Unique => "unique",
            Class::Shared => "shared",
            Class::Unused => "unused",
            Class::Recipes => "recipes",
            Class::Partial => "partial",
            Class::Uppers => "uppers",
            Class::Logs => "logs",
            Class::Containers => "containers",
            Class::Volumes => "volumes",
            Class::Staging => "staging",
            Class::LeftOver => "left-over",
            Class::Trash => "trash",
            Class::Quarantine => "quarantine",
            Class::Foreign => "foreign",
        }
    }
}

impl Inspection {
    /// The bytes of each class that has some (Z1).
    ///
    /// # Blocking
    /// Looks at every inode of the store.
    /// # Errors
    /// `Io`.
    pub fn usage(&self) -> Result<BTreeMap<Class, u64>, StoreError> {
        let root = self.disk().metadata(self.root()).context("look up", || "the data root".to_owned())?;
        let standings = self.stands()?.into_iter().map(|stand| (stand.path, stand.standing)).collect();
        let mut users: BTreeMap<LayerKey, usize> = BTreeMap::new();
        for key in self.images().into_iter().flat_map(|image| image.layers.into_iter().collect::<BTreeSet<_>>()) {
            *users.entry(key).or_default() += 1;
        }
        let mut counting = Counting {
            disk: self.disk().as_ref(),
            device: root.device,
            standings,
            users,
            seen: BTreeSet::new(),
            classes: BTreeMap::new(),
        };
        counting.add(Class::Store, &root);
        for (name, kind) in counting.names(self.root(), "")? {
            counting.top(self.root(), &name, kind)?;
        }
        Ok(counting.classes)
    }
}

struct Counting<'a> {
    disk: &'a dyn Disk,
    device: u64,
    /// By path: what the log says of it.
    standings: BTreeMap<String, Standing>,
    /// How many images have each layer.
    users: BTreeMap<LayerKey, usize>,
    /// Inodes of several names that were counted.
    seen: BTreeSet<u64>,
    classes: BTreeMap<Class, u64>,
}

impl Counting<'_> {
    fn add(&mut self, class: Class, found: &Metadata) {
        if found.kind == NodeKind::Directory || found.links < 2 || self.seen.insert(found.inode) {
            *self.classes.entry(class).or_default() += found.allocated_bytes;
        }
    }

    fn names(&self, dir: &Handle, path: &str) -> Result<Vec<(Vec<u8>, NodeKind)>, StoreError> {
        let mut entries = self.disk.read_dir(dir).context("list", || path.to_owned())?;
        entries.sort();
        Ok(entries.into_iter().map(|entry| (entry.name, entry.kind)).collect())
    }

    /// A name directly below the root.
    fn top(&mut self, root: &Handle, name: &[u8], kind: NodeKind) -> Result<(), StoreError> {
        let path = String::from_utf8_lossy(name).into_owned();
        let whole = match name {
            b"FORMAT" | b"FORMAT.new" | b"LOCK" | b"lost+found" => Some(Class::Store),
            name if SLOTS.contains(&name) => Some(Class::Index),
            b"wal" => Some(Class::Log),
            b"volumes" => Some(Class::Volumes),
            b"partial" => Some(Class::Partial),
            b"staging" => Some(Class::Staging),
            b"trash" => Some(Class::Trash),
            b"quarantine" => Some(Class::Quarantine),
            b"blobs" | b"layers" | b"containers" => None,
            _ => Some(Class::Foreign),
        };
        match whole {
            Some(Class::Foreign) => self.tree(root, name, &path, Class::Foreign),
            // The directory itself is the store's.
            Some(class) => self.directory(root, name, &path, &|_, _| class),
            None if kind != NodeKind::Directory => self.tree(root, name, &path, Class::Foreign),
            None if name == b"blobs" => self.directory(root, name, &path, &|this, path| match path {
                "blobs/sha256" | "blobs/sha512" => Class::Store,
                path => this.object(path, Class::Blobs),
            }),
            None => {
                let Some(dir) = self.enter(root, name, &path, Class::Store)? else { return Ok(()) };
                for (inner, _) in self.names(&dir, &path)? {
                    let path = format!("{path}/{}", String::from_utf8_lossy(&inner));
                    match self.standings.get(&path) {
                        Some(Standing::Recorded(StoredObject::Layer(key))) => {
                            let class = match self.users.get(key) {
                                None => Class::Unused,
                                Some(1) => Class::Unique,
                                Some(_) => Class::Shared,
                            };
                            self.parts(&dir, &inner, &path, class, &|name| {
                                if name == RECIPE_NAME { Class::Recipes } else { class }
                            })?;
                        }
                        Some(Standing::Recorded(_)) => {
                            self.parts(&dir, &inner, &path, Class::Containers, &|name| match name {
                                b"upper" => Class::Uppers,
                                name if is_log(name) => Class::Logs,
                                _ => Class::Containers,
                            })?;
                        }
                        _ => self.tree(&dir, &inner, &path, Class::LeftOver)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// The class of an object's path: its own if it is recorded.
    fn object(&self, path: &str, class: Class) -> Class {
        match self.standings.get(path) {
            Some(Standing::Recorded(_)) => class,
            Some(Standing::Foreign) => Class::Foreign,
            _ => Class::LeftOver,
        }
    }

    /// A directory of the store: itself, and each name in it by its own class. Directories of class `Store` are gone into.
    fn directory(
        &mut self,
        at: &Handle,
        name: &[u8],
        path: &str,
        class: &dyn Fn(&Self, &str) -> Class,
    ) -> Result<(), StoreError> {
        let Some(dir) = self.enter(at, name, path, Class::Store)? else { return Ok(()) };
        for (inner, kind) in self.names(&dir, path)? {
            let path = format!("{path}/{}", String::from_utf8_lossy(&inner));
            match class(self, &path) {
                Class::Store if kind == NodeKind::Directory => self.directory(&dir, &inner, &path, class)?,
                own => self.tree(&dir, &inner, &path, own)?,
            }
        }
        Ok(())
    }

    /// An object's folder: its own inode as `own`, and each name in it as `class` says.
    fn parts(
        &mut self,
        at: &Handle,
        name: &[u8],
        path: &str,
        own: Class,
        class: &dyn Fn(&[u8]) -> Class,
    ) -> Result<(), StoreError> {
        let Some(dir) = self.enter(at, name, path, own)? else { return Ok(()) };
        for (inner, _) in self.names(&dir, path)? {
            self.tree(&dir, &inner, path, class(&inner))?;
        }
        Ok(())
    }

    /// A node and everything below it.
    fn tree(&mut self, at: &Handle, name: &[u8], path: &str, class: Class) -> Result<(), StoreError> {
        let Some(dir) = self.enter(at, name, path, class)? else { return Ok(()) };
        for (inner, _) in self.names(&dir, path)? {
            self.tree(&dir, &inner, path, class)?;
        }
        Ok(())
    }

    /// Counts a node, and opens it if it is a directory of this mount.
    fn enter(&mut self, at: &Handle, name: &[u8], path: &str, class: Class) -> Result<Option<Handle>, StoreError> {
        let found = match self.disk.metadata_at(at, name) {
            Err(error) if is_missing(&error) => return Ok(None),
            other => other.context("look up", || path.to_owned())?,
        };
        if found.device != self.device {
            return Ok(None);
        }
        self.add(class, &found);
        if found.kind != NodeKind::Directory {
            return Ok(None);
        }
        self.disk.open_dir(at, name).context("open", || path.to_owned()).map(Some)
    }
}

/// Whether a file of a container's folder is its log, or an older part of it.
fn is_log(name: &[u8]) -> bool {
    name.windows(4).any(|part| part == b".log")
}
