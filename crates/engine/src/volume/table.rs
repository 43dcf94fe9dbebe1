//! The volumes that exist, and who holds one while it is being given to a container.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baleen_store::Store;

use super::description::Description;

/// All volumes, by name.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    inner: Mutex<Inner>,
    /// Held by whoever copies an image's files into a volume: one at a time, so that none sees another's half.
    pub(crate) copying: Mutex<()>,
}

#[derive(Debug, Default)]
struct Inner {
    descriptions: BTreeMap<String, Arc<Description>>,
    /// Creates that are about to give the volume to a container.
    held: BTreeMap<String, u32>,
    removing: BTreeSet<String>,
}

/// Keeps volumes from removal while it lives.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    volumes: &'a Volumes,
    names: Vec<String>,
}

/// A volume that is being removed: no create can hold it.
pub(crate) struct Removal<'a> {
    volumes: &'a Volumes,
    name: String,
}

impl Volumes {
    /// Reads the descriptions of all stored volumes. One that cannot be read must not keep the others from being served.
    pub(crate) fn load(&self, store: &Store) {
        for fact in store.volumes() {
            match Description::load(store, &fact.name) {
                Ok(description) => self.insert(description),
                Err(error) => {
                    tracing::error!(
                        volume = fact.name,
                        error = error.chain(),
                        "a volume cannot be loaded; run `baleen fsck`"
                    );
                }
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change under this lock is one step.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.inner().descriptions.keys().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Description>> {
        self.inner().descriptions.get(name).cloned()
    }

    pub(crate) fn insert(&self, description: Description) {
        self.inner().descriptions.insert(description.name.clone(), Arc::new(description));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.inner().descriptions.remove(name);
    }

    /// Begins to hold volumes for a container that is being created.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held { volumes: self, names: Vec::new() }
    }

    /// Begins a removal, unless a create holds the volume or it is being removed already.
    pub(crate) fn begin_removal(&self, name: &str) -> Option<Removal<'_>> {
        let mut inner = self.inner();
        if inner.held.contains_key(name) || !inner.descriptions.contains_key(name) {
            return None;
        }
        inner.removing.insert(name.to_owned()).then(|| Removal { volumes: self, name: name.to_owned() })
    }
}

impl Held<'_> {
    /// Holds one more; false while it is being removed.
    pub(crate) fn add(&mut self, name: &str) -> bool {
        let mut inner = self.volumes.inner();
        if inner.removing.contains(name) {
            return false;
        }
        *inner.held.entry(name.to_owned()).or_default() += 1;
        self.names.push(name.to_owned());
        true
    }

    /// Holds nothing any more.
    pub(crate) fn release(&mut self) {
        let mut inner = self.volumes.inner();
        for name in self.names.drain(..) {
            if let Some(count) = inner.held.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    inner.held.remove(&name);
                }
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.volumes.inner().removing.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::CreateVolume;
    use super::*;

    #[test]
    fn a_volume_is_held_or_removed_and_never_both() {
        let volumes = Volumes::default();
        let request = CreateVolume { name: "data".to_owned(), ..CreateVolume::default() };
        volumes.insert(Description::new(&request).unwrap());
        let mut held = volumes.hold();
        assert!(held.add("data") && held.add("data"));
        assert!(volumes.begin_removal("data").is_none());
        drop(held);
        let removal = volumes.begin_removal("data").expect("nobody holds it");
        assert!(volumes.begin_removal("data").is_none());
        assert!(!volumes.hold().add("data"));
        drop(removal);
        assert!(volumes.hold().add("data"));
        assert!(volumes.begin_removal("other").is_none());
    }
}
