//! Images: what the store holds of them (`lookup`), how they come (`pull`, `delta`, `download`, `load`, `unpack`, `spool`, `stack`,
//! `commit`) and go (`push`, `remove`), and how a damaged layer comes again (`refetch`).

mod commit;
mod delta;
mod distribution;
mod download;
mod load;
mod lookup;
mod pull;
mod push;
mod refetch;
mod remove;
mod spool;
mod stack;
mod unpack;

use std::fmt;

use baleen_oci::{Platform, Reference, RunConfig};
use baleen_registry::Credentials;

pub(crate) use delta::Deltas;
pub use delta::{DeltaFacts, DeltaLevel, MadeDelta, MakeDelta, OfferedDelta};
pub use distribution::Distribution;
pub(crate) use download::Downloads;
pub(crate) use lookup::{config, find, layer_dirs, store_error};
pub(crate) use push::Compressed;
pub use push::PushRequest;
pub use refetch::LayerFetcher;

use crate::error::EngineError;
use crate::time::Timestamp;

/// What a pull is asked for.
#[derive(Debug)]
pub struct PullRequest {
    /// With a tag or a digest (no tag means `latest`; `Engine::pull_all_tags` pulls all of a repository).
    pub reference: Reference,
    /// `None`: the engine's own.
    pub platform: Option<Platform>,
    /// The client's credentials.
    pub auth: RegistryAuth,
}

/// The credentials of a request: never shown, stored or logged.
#[derive(Clone, Default)]
pub struct RegistryAuth(pub(crate) Credentials);

impl RegistryAuth {
    /// No credentials.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Takes the `X-Registry-Auth` header's value; undecodable ones count as anonymous.
    pub fn from_header(value: &str) -> Self {
        Self(Credentials::from_header_or_anonymous(value))
    }

    /// Takes the JSON that such a header holds.
    ///
    /// # Errors
    /// `InvalidParameter` if it is none.
    pub fn from_json(json: &[u8]) -> Result<Self, EngineError> {
        let invalid = |_| EngineError::invalid("the credentials are no JSON object; log in again");
        Credentials::from_json(json).map(Self).map_err(invalid)
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0 == Credentials::Anonymous {
            "RegistryAuth(anonymous)"
        } else {
            "RegistryAuth(given)"
        })
    }
}

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image's ID, `sha256:…`.
    pub image_id: String,
    /// The digest that the reference was resolved to.
    pub digest: String,
    /// Whether the tag was this image already.
    pub up_to_date: bool,
    /// Bytes of layers received from the registry by this pull, retries included.
    pub fetched_bytes: u64,
    /// Bytes of layers that an earlier pull had received before it was cut, and that were not fetched again.
    pub resumed_bytes: u64,
    /// Bytes that a delta has saved: what its layers have as blobs, less what was fetched of the delta.
    pub saved_bytes: u64,
}

/// An entry of the image list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// `sha256:…`.
    pub id: String,
    /// Familiar `name:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// Familiar `name@digest`, sorted.
    pub repo_digests: Vec<String>,
    /// When it was built, as its configuration says.
    pub created: Option<Timestamp>,
    /// Bytes of its layers, unpacked.
    pub size_bytes: u64,
    /// Labels of its configuration.
    pub labels: Option<std::collections::BTreeMap<String, String>>,
    /// Containers made from it.
    pub containers: u64,
}

/// What inspect tells of an image.
#[derive(Debug, Clone)]
pub struct ImageDetails {
    /// The entry of the list.
    pub summary: ImageSummary,
    /// As built.
    pub comment: String,
    /// As built.
    pub author: String,
    /// Of the engine that built it.
    pub docker_version: String,
    /// What a container of it is told.
    pub config: RunConfig,
    /// `amd64`.
    pub architecture: String,
    /// `v8`, or empty.
    pub variant: String,
    /// `linux`.
    pub os: String,
    /// Or empty.
    pub os_version: String,
    /// Where its layers lie.
    pub graph_driver: GraphDriver,
    /// `sha256:…`, bottom first.
    pub diff_ids: Vec<String>,
    /// When a tag of it last moved, if known.
    pub last_tagged: Option<Timestamp>,
}

/// overlay2's directories, as paths that `mount -t overlay` accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphDriver {
    /// `fs` of the lower layers, top first. (An image's own top layer is `upper_dir`, as in Docker.)
    pub lower_dirs: Vec<String>,
    /// The container's upper, or an image's top layer.
    pub upper_dir: Option<String>,
    /// The container's work directory.
    pub work_dir: Option<String>,
    /// Where the container's view is mounted while it runs.
    pub merged_dir: Option<String>,
}

/// A line of an image's history, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryItem {
    /// The image's ID for the newest, `None` (`<missing>`) for the rest.
    pub id: Option<String>,
    /// When.
    pub created: Option<Timestamp>,
    /// The step.
    pub created_by: String,
    /// Names of the image, for the newest.
    pub tags: Vec<String>,
    /// Bytes of its layer, 0 for a step without one.
    pub size_bytes: u64,
    /// Free text.
    pub comment: String,
}

/// How an image is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveImage {
    /// Also if stopped containers or several tags use it.
    pub force: bool,
    /// Keep untagged parents (nothing here has any).
    pub no_prune: bool,
}

/// One thing that a removal did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageDeletion {
    /// A tag or `name@digest` is gone.
    Untagged(String),
    /// An image is gone (`sha256:…`).
    Deleted(String),
}

/// What a prune did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned<T> {
    /// What is gone.
    pub deleted: Vec<T>,
    /// Bytes that are free now and were not before.
    pub reclaimed_bytes: u64,
}

impl<T> Default for Pruned<T> {
    fn default() -> Self {
        Self { deleted: Vec::new(), reclaimed_bytes: 0 }
    }
}

/// How an archive is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadRequest {
    /// No progress, only what was loaded.
    pub quiet: bool,
    /// `None`: the engine's own.
    pub platform: Option<Platform>,
}
