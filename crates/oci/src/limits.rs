//! The maxima of what is parsed here, in one place so that callers bound their reads by the same numbers.

/// Largest manifest, index or image configuration, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Largest `manifest.json` of a docker-archive, in bytes.
pub const ARCHIVE_MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Largest `oci-layout` file, in bytes. (`index.json` is a document: [`DOCUMENT_BYTES_MAX`].)
pub const OCI_LAYOUT_BYTES_MAX: usize = 1 << 20;
/// How deep arrays and objects may nest in any document.
pub const DEPTH_MAX: usize = 128;
/// How many keys one JSON object may have.
pub const OBJECT_KEYS_MAX: usize = 16_384;
/// Layers of one image; overlayfs mounts no more with the options we use.
pub const LAYERS_MAX: usize = 125;
/// Manifests that one index may list.
pub const INDEX_MANIFESTS_MAX: usize = 1_000;
/// Entries of an image's history. Docker's builders write one per instruction, empty ones included.
pub const HISTORY_MAX: usize = 4_096;
/// Images that one docker-archive may hold.
pub const ARCHIVE_IMAGES_MAX: usize = 1_000;
/// Longest name of a member that an archive's manifest selects, in bytes.
pub const MEMBER_NAME_BYTES_MAX: usize = 4_096;
/// Longest repository name, domain included, in bytes.
pub const REPOSITORY_NAME_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 128;
/// Longest text that is looked at as a reference: name, tag, a `sha512` digest and separators.
pub const REFERENCE_BYTES_MAX: usize = REPOSITORY_NAME_BYTES_MAX + 1 + TAG_BYTES_MAX + 1 + "sha512:".len() + 128;
/// Longest media type, in bytes (RFC 6838 allows 127 on each side of the slash).
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
