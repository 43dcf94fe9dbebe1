//! Layers that are known to be damaged: kept and usable until a pull brings them again.
//!
//! U1  A suspect layer stays where it is, so that what uses it goes on. A pull takes it for missing and fetches it; storing
//!     it again clears the mark.
//! U2  It is not replaced while a container that should run has it in its image: its files would go away below it. A repair
//!     without a daemon knows more: that nobody has it mounted, whatever should run.
//! U3  The mark is recorded only after a barrier over the layer's own name. So `partial/<blob>` is free for the next copy:
//!     nothing that stands there can be the layer that is marked.

use crate::error::{IoContext, StoreError};
use crate::facts::{Desired, Facts, LayerKey, Record};
use crate::layout::Object;
use crate::store::{Key, State, Store};
use crate::wal::Purpose;

impl State {
    /// Whether a pull may replace this layer (U1, U2).
    pub(crate) fn is_replaceable(&self, key: &LayerKey) -> bool {
        self.facts.suspects.contains_key(key) && (self.unmounted.contains(key) || !self.facts.should_run_on(key))
    }
}

impl Facts {
    fn should_run_on(&self, key: &LayerKey) -> bool {
        self.containers.values().any(|(stated, _)| {
            let image = self.images.get(&stated.fact.image);
            stated.fact.desired == Desired::Running && image.is_some_and(|image| image.fact.layers.contains(key))
        })
    }
}

impl Store {
    /// Marks layers as damaged, so that the next pull of an image that has them fetches them again.
    ///
    /// # Durability
    /// Durable on `Ok`.
    /// # Errors
    /// `LayerMissing`, `WritesStopped`, `Io`.
    pub fn mark_suspect(&self, keys: &[LayerKey]) -> Result<(), StoreError> {
        let objects = keys.iter().map(|key| Key::Object(Object::Layer(key.clone())));
        let _reservation = self.shared.reserve(objects.collect());
        let mut records = Vec::new();
        {
            let state = self.shared.state();
            for key in keys {
                if !state.facts.layers.contains_key(key) {
                    return Err(StoreError::LayerMissing { key: Box::new(key.clone()) });
                }
                if !state.facts.suspects.contains_key(key) {
                    records.push(Record::LayerSuspect(key.clone()));
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let shared = &self.shared;
        shared.disk.barrier(&shared.layout.root).context("sync", || "the data root".to_owned())?; // U3
        for batch in records.chunks(256) {
            shared.log.append(shared, batch.to_vec(), Purpose::Remove)?;
        }
        Ok(())
    }

    /// Lets a damaged layer be replaced by whoever stores it next, also below containers that should run: the caller knows
    /// that none of them has it mounted, and that none is started as long as this store is open.
    pub fn replace_unmounted(&self, key: &LayerKey) {
        self.shared.state().unmounted.insert(key.clone());
    }

    /// Layers that are marked as damaged.
    pub fn suspects(&self) -> Vec<LayerKey> {
        self.shared.state().facts.suspects.keys().cloned().collect()
    }
}
