//! The durable content-addressed store: the file port, the write-ahead log, objects, collection, opening.
//!
//! Bytes on disk: `docs/formats/`. The promises that this crate keeps: `docs/promises.md`.

mod disk;
mod sys;
mod system;

pub use disk::{
    Access, DirEntry, Disk, Handle, Metadata, NodeKind, Space, Timestamp, WriteBack, read_file, read_full_at,
};
pub use system::SystemDisk;
