//! Strict, limited parsing of OCI and Docker documents into types that cannot be wrong.
//!
//! O1  Nothing here does I/O: every parser takes bytes or text and is a pure function of them.
//! O2  Every input has a stated maximum (`limits`), checked before anything is built from it.
//! O3  A document has one reading: its type is decided once, and what two parsers could read differently is
//!     refused (repeated keys, keys that differ from ours in case only, a manifest that is an index too).
//! O4  A digest is `sha256` or `sha512`, of exact length, in lower-case hex. Paths and URLs are built from it
//!     only, never from the text that it was parsed from.
//! O5  An identity is a digest over the exact bytes received. Nothing is serialised again to compute one.

#![forbid(unsafe_code)]

pub mod archive;
pub mod config;
pub mod digest;
pub mod document;
#[doc(hidden)]
pub mod fuzzing;
pub mod json;
pub mod limits;
pub mod media_type;
pub mod platform;
pub mod reference;

pub use archive::{ArchiveManifestItem, MemberName, parse_archive_manifest, parse_oci_layout};
pub use config::{Healthcheck, HistoryEntry, ImageConfig, RunConfig};
pub use digest::{Algorithm, ChainId, DiffId, Digest, DigestError, DigestHasher, ImageId};
pub use document::{Descriptor, Document, DocumentError, Index, Manifest};
pub use media_type::{Compression, LayerFormat, MediaType};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, Repository};
