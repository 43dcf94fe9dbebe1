//! The durable content-addressed store: the file port, the write-ahead log, objects, collection, opening.
//!
//! Bytes on disk: `docs/formats/`. The promises that this crate keeps: `docs/promises.md`.

mod collect;
mod disk;
mod error;
mod facts;
mod format;
mod group;
mod inspect;
mod layout;
mod mutation;
mod opening;
mod owners;
mod partial;
mod record;
mod salvage;
mod second_copy;
mod store;
mod suspect;
mod sys;
mod system;
mod trash;
mod txn;
mod usage;
mod wal;

pub mod recipe;

pub use collect::Removed;
pub use disk::{
    Access, DirEntry, Disk, Handle, Metadata, NodeKind, Space, Timestamp, WriteBack, read_file, read_full_at,
};
pub use error::StoreError;
pub use facts::{
    BlobFact, ContainerFact, Desired, ImageFact, LayerFact, LayerKey, PullFact, PullLayer, TagFact, VolumeFact,
};
pub use inspect::{FormatState, Inspection, LogState, Stand, Standing, StoredObject};
pub use opening::{Opened, was_never_finished};
pub use owners::{Owned, Owner};
pub use partial::{CHECKPOINT_STATE_BYTES_MAX, Checkpoint, Checkpoints, Partial};
pub use store::{Lease, Store};
pub use system::SystemDisk;
pub use trash::Emptied;
pub use txn::{Durability, StagedDir, Txn};
pub use usage::Class;
pub use wal::LogDamage;
#[doc(hidden)]
pub use wal::fuzz_replay;
