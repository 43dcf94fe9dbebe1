//! Manifests and indexes, as a registry, an archive or the store hands them over.
//!
//! M1  The type of a document is decided once: by the content type and the body's `mediaType`, which must agree if
//!     both are there, and by the fields; all that is said must say the same (CVE-2021-41190).
//! M2  A document with `manifests` and any of `config`, `layers`, `fsLayers` is refused. So is schema 1.
//! M3  `urls` and `data` of a descriptor are not read: content comes from the registry, under its digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::json::{self, JsonError, TopLevelKeys, null_as_default};
use crate::limits::{DOCUMENT_BYTES_MAX, INDEX_MANIFESTS_MAX, LAYERS_MAX};
use crate::media_type::{LayerFormat, MediaType};
use crate::platform::Platform;

/// What points to content: its type, digest and size (OCI image-spec, Content Descriptors).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// The name of the content.
    pub digest: Digest,
    /// Its length in bytes. A document's lies between 0 and `i64::MAX`, as for every other reader.
    pub size: u64,
    /// In an index: what the manifest was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free text by key.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The type of artifact that a manifest is, if it is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// A manifest or an index.
#[expect(clippy::large_enum_variant, reason = "a pull holds one or two, never a list of them")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A list of manifests, one a platform.
    Index(Index),
}

/// An image manifest: a configuration and layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The type that was decided.
    pub media_type: MediaType,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first; at most 125.
    pub layers: Vec<Descriptor>,
    /// The type of artifact, if it is no image.
    pub artifact_type: Option<String>,
    /// What it refers to, such as the image that it signs.
    pub subject: Option<Descriptor>,
    /// Free text by key.
    pub annotations: BTreeMap<String, String>,
}

/// An image index or manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The type that was decided.
    pub media_type: MediaType,
    /// The manifests in the order of the document; at most 1000.
    pub manifests: Vec<Descriptor>,
    /// Free text by key.
    pub annotations: BTreeMap<String, String>,
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is too large, no JSON, or has two readings.
    #[error("cannot read the {what}")]
    Json {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: JsonError,
    },
    /// It is a Docker schema 1 manifest.
    #[error("the manifest is of Docker's schema 1, which is not supported; push the image again with a current client")]
    Schema1,
    /// Its content type, `mediaType` and fields do not agree.
    #[error("the document is taken for two types at once: {first} and {second}; it is refused")]
    Mixed {
        /// One reading.
        first: String,
        /// The other.
        second: String,
    },
    /// It is neither a manifest nor an index that we know.
    #[error("the document's media type {media_type} is not supported; images are OCI or Docker manifests and indexes")]
    UnknownMediaType {
        /// What it says it is.
        media_type: String,
    },
    /// A manifest that is no image, or with a layer of a type that we cannot extract.
    #[error("the manifest's {what} has the media type {media_type}, which is not supported; it is no container image")]
    NotAnImage {
        /// `config` or `layer`.
        what: &'static str,
        /// The type found.
        media_type: String,
    },
    /// It lists more than allowed, or sizes that make no sense.
    #[error("the document is refused: {what}")]
    Limit {
        /// What is too much.
        what: &'static str,
    },
    /// An index without a manifest for the platform asked for.
    #[error("no matching manifest for {wanted} in the manifest list entries")]
    NoMatchingPlatform {
        /// What was wanted.
        wanted: Platform,
    },
    /// A name in an archive's manifest that selects no member.
    #[error("the archive's manifest names {name:?}, which is not the name of a member")]
    MemberName {
        /// The name.
        name: String,
    },
    /// An OCI layout of another version than 1.
    #[error("the archive is an OCI layout of version {version:?}; 1.0.0 is supported")]
    LayoutVersion {
        /// The version found.
        version: String,
    },
}

impl Document {
    /// Parses a manifest or an index and decides which it is (M1, M2).
    ///
    /// `content_type` is what the transport said: the header of a registry, the media type of the descriptor that led
    /// here. `application/json`, `text/plain`, `application/octet-stream` and the empty text count as absent.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, DocumentError> {
        let keys = json::check(bytes, DOCUMENT_BYTES_MAX).map_err(unreadable)?;
        if let Some(key) = keys.look_alike(KNOWN_KEYS) {
            let (first, second) = (format!("with the key {key:?}"), "without it".to_owned());
            return Err(DocumentError::Mixed { first, second });
        }
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(JsonError::Invalid).map_err(unreadable)?;
        let media_type = decide(&keys, &raw, content_type)?;
        match media_type.is_index() {
            true => Index::build(raw, media_type).map(Document::Index),
            false => Manifest::build(raw, media_type).map(Document::Manifest),
        }
    }

    /// The type that was decided.
    pub fn media_type(&self) -> &MediaType {
        match self {
            Document::Manifest(manifest) => &manifest.media_type,
            Document::Index(index) => &index.media_type,
        }
    }
}

impl Manifest {
    /// Parses a document that must be a manifest.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, DocumentError> {
        match Document::parse(bytes, content_type)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(index) => Err(DocumentError::UnknownMediaType { media_type: index.media_type.to_string() }),
        }
    }

    /// Checks that this is a container image: a configuration and layers of types that we know.
    ///
    /// # Errors
    /// `NotAnImage` names the first that is not.
    pub fn require_image(&self) -> Result<(), DocumentError> {
        let not_an_image = |what, found: &Descriptor| {
            Err(DocumentError::NotAnImage { what, media_type: found.media_type.to_string() })
        };
        if !self.config.media_type.is_config() {
            return not_an_image("config", &self.config);
        }
        match self.layers.iter().find(|layer| layer.media_type.layer().is_none()) {
            Some(layer) => not_an_image("layer", layer),
            None => Ok(()),
        }
    }

    /// The layers' compressed sizes together, in bytes.
    pub fn layers_size(&self) -> u64 {
        // Cannot overflow: `build` has added them up.
        self.layers.iter().map(|layer| layer.size).sum()
    }

    fn build(raw: RawDocument, media_type: MediaType) -> Result<Manifest, DocumentError> {
        let config = raw.config.ok_or(DocumentError::Limit { what: "a manifest without a config" })?;
        let layers = raw.layers.unwrap_or_default();
        if layers.len() > LAYERS_MAX {
            return Err(DocumentError::Limit { what: "more than 125 layers" });
        }
        if config.size > DOCUMENT_BYTES_MAX as u64 {
            return Err(DocumentError::Limit { what: "a config of more than 4 MiB" });
        }
        check_sizes(&layers)?;
        let RawDocument { artifact_type, subject, annotations, .. } = raw;
        Ok(Manifest { media_type, config, layers, artifact_type, subject, annotations })
    }
}

impl Index {
    /// Parses a document that must be an index, such as `index.json` of an OCI layout.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Index, DocumentError> {
        match Document::parse(bytes, content_type)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(manifest) => {
                Err(DocumentError::UnknownMediaType { media_type: manifest.media_type.to_string() })
            }
        }
    }

    /// The manifest that runs best on a machine of the platform `wanted`. Of equals the first.
    ///
    /// Attestations and other artifacts are passed over. A descriptor without a platform counts only if it is the
    /// single candidate: what it was built for is then told by its configuration.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, DocumentError> {
        let candidates: Vec<&Descriptor> = self.manifests.iter().filter(|found| found.may_be_image()).collect();
        if let [only] = candidates[..]
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let rank = |found: &&Descriptor| wanted.rank(found.platform.as_ref()?);
        let ranked = candidates.into_iter().filter_map(|found| Some((rank(&found)?, found)));
        let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, found)| found);
        best.ok_or_else(|| DocumentError::NoMatchingPlatform { wanted: wanted.clone() })
    }

    fn build(raw: RawDocument, media_type: MediaType) -> Result<Index, DocumentError> {
        let manifests = raw.manifests.unwrap_or_default();
        if manifests.len() > INDEX_MANIFESTS_MAX {
            return Err(DocumentError::Limit { what: "more than 1000 manifests" });
        }
        check_sizes(&manifests)?;
        Ok(Index { media_type, manifests, annotations: raw.annotations })
    }
}

impl Descriptor {
    /// What its media type says about a layer; `None` if it is no layer that we know.
    pub fn layer_format(&self) -> Option<LayerFormat> {
        self.media_type.layer()
    }

    fn may_be_image(&self) -> bool {
        let is_attestation = self.annotations.contains_key("vnd.docker.reference.type");
        let is_unknown = |platform: &Platform| platform.os == "unknown" || platform.architecture == "unknown";
        let is_document = self.media_type.is_manifest() || self.media_type.is_index();
        is_document
            && !is_attestation
            && self.artifact_type.is_none()
            && !self.platform.as_ref().is_some_and(is_unknown)
    }
}

/// Fields that decide what a document is: none may come in a spelling that another parser would take for it.
const KNOWN_KEYS: &[&str] =
    &["schemaVersion", "mediaType", "manifests", "config", "layers", "fsLayers", "history", "signatures", "subject"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<i64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    artifact_type: Option<String>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_as_default")]
    annotations: BTreeMap<String, String>,
}

/// Decides the type of a document from everything that says something about it (M1, M2).
fn decide(keys: &TopLevelKeys<'_>, raw: &RawDocument, content_type: Option<&str>) -> Result<MediaType, DocumentError> {
    let said_outside = content_type.and_then(meaningful).map(MediaType::from_name);
    let said_inside = raw.media_type.as_deref().filter(|text| !text.is_empty()).map(MediaType::from_name);
    let has_index_fields = keys.has("manifests");
    let has_manifest_fields = keys.has("config") || keys.has("layers");
    if has_index_fields && (has_manifest_fields || keys.has("fsLayers")) {
        return Err(DocumentError::Mixed { first: "manifest".into(), second: "index".into() });
    }
    let is_schema1 = |said: &Option<MediaType>| *said == Some(MediaType::DockerSchema1);
    if is_schema1(&said_outside) || is_schema1(&said_inside) || keys.has("fsLayers") || raw.schema_version == Some(1) {
        return Err(DocumentError::Schema1);
    }
    if raw.schema_version.is_some_and(|version| version != 2) {
        return Err(DocumentError::Limit { what: "a schemaVersion other than 2" });
    }
    let said = match (said_outside, said_inside) {
        (Some(outside), Some(inside)) if outside != inside => {
            return Err(DocumentError::Mixed { first: outside.to_string(), second: inside.to_string() });
        }
        (Some(said), _) | (None, Some(said)) => said,
        // Nothing said: OCI leaves `mediaType` optional, and the fields are enough.
        (None, None) if has_index_fields => MediaType::OciIndex,
        (None, None) if keys.has("config") => MediaType::OciManifest,
        (None, None) => return Err(DocumentError::UnknownMediaType { media_type: "none".into() }),
    };
    match (said.is_index(), said.is_manifest()) {
        (true, _) if has_manifest_fields || !has_index_fields => Err(DocumentError::Mixed {
            first: said.to_string(),
            second: "a document with the fields of a manifest".into(),
        }),
        (_, true) if has_index_fields => Err(DocumentError::Mixed {
            first: said.to_string(),
            second: "a document with the fields of an index".into(),
        }),
        (false, false) => Err(DocumentError::UnknownMediaType { media_type: said.to_string() }),
        _ => Ok(said),
    }
}

/// The content type without its parameters, if it says anything.
fn meaningful(content_type: &str) -> Option<&str> {
    let name = content_type.split(';').next().unwrap_or("").trim();
    match name {
        "" | "application/json" | "text/plain" | "application/octet-stream" => None,
        said => Some(said),
    }
}

fn check_sizes(descriptors: &[Descriptor]) -> Result<(), DocumentError> {
    let mut total: u64 = 0;
    for descriptor in descriptors {
        total = total
            .checked_add(descriptor.size)
            .filter(|&total| total <= i64::MAX as u64)
            .ok_or(DocumentError::Limit { what: "sizes that add up to more than a disk can hold" })?;
    }
    Ok(())
}

fn unreadable(source: JsonError) -> DocumentError {
    DocumentError::Json { what: "manifest", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

    fn descriptor(media_type: &str, size: u64, more: &str) -> String {
        let digest = Digest::sha256_of(more.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{more}}}"#)
    }

    fn manifest(more: &str) -> String {
        let (config, layer) = (descriptor(OCI_CONFIG, 2, ""), descriptor(LAYER, 3, ""));
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{more}}}"#)
    }

    fn index(entries: &[String]) -> Index {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        Index::parse(text.as_bytes(), Some(INDEX)).unwrap()
    }

    fn entry(platform: &str, more: &str) -> String {
        let platform: Platform = platform.parse().unwrap();
        let platform = serde_json::to_string(&platform).unwrap();
        descriptor(MANIFEST, 1, &format!(r#","platform":{platform}{more}"#))
    }

    fn chosen(index: &Index, wanted: &str) -> String {
        match index.choose(&wanted.parse().unwrap()) {
            Ok(found) => found.platform.as_ref().map_or("none".into(), Platform::to_string),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_manifest_is_read_with_or_without_its_type_said() {
        let inside = manifest(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#));
        for (text, content_type, expected) in [
            (manifest(""), Some(MANIFEST), MediaType::OciManifest),
            (manifest(""), Some(DOCKER_MANIFEST), MediaType::DockerManifest),
            (manifest(""), Some("application/json; charset=utf-8"), MediaType::OciManifest),
            (manifest(""), None, MediaType::OciManifest),
            (inside.clone(), Some("text/plain"), MediaType::DockerManifest),
            (inside, None, MediaType::DockerManifest),
        ] {
            let read = Manifest::parse(text.as_bytes(), content_type).unwrap();
            assert_eq!(read.media_type, expected);
            assert_eq!((read.config.size, read.layers_size()), (2, 3));
            read.require_image().unwrap();
        }
    }

    #[test]
    fn a_document_with_two_readings_is_refused() {
        let list = descriptor(MANIFEST, 1, "");
        for (text, content_type) in [
            (manifest(&format!(r#","manifests":[{list}]"#)), Some(MANIFEST)),
            (manifest(&format!(r#","manifests":[{list}]"#)), Some(INDEX)),
            (manifest(r#","manifests":null"#), None),
            (format!(r#"{{"schemaVersion":2,"manifests":[{list}],"layers":[]}}"#), None),
            (format!(r#"{{"schemaVersion":2,"manifests":[{list}],"fsLayers":[]}}"#), Some(INDEX)),
            (manifest(&format!(r#","mediaType":"{INDEX}""#)), Some(MANIFEST)),
            (manifest(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#)), Some(MANIFEST)),
            (manifest(""), Some(INDEX)),
            (format!(r#"{{"schemaVersion":2,"manifests":[{list}]}}"#), Some(MANIFEST)),
            (manifest(r#","Manifests":[]"#), Some(MANIFEST)),
            (manifest(r#","MEDIATYPE":"x""#), Some(MANIFEST)),
        ] {
            let refused = Document::parse(text.as_bytes(), content_type);
            assert!(matches!(refused, Err(DocumentError::Mixed { .. })), "{text}: {refused:?}");
        }
        let twice = manifest(r#","layers":[]"#);
        assert!(matches!(Document::parse(twice.as_bytes(), None), Err(DocumentError::Json { .. })));
    }

    #[test]
    fn schema_1_is_refused_by_name() {
        let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        for (text, content_type) in [
            (r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#.to_owned(), None),
            (r#"{"schemaVersion":1,"name":"a"}"#.to_owned(), Some("application/json")),
            (manifest(""), Some(v1)),
            (manifest(&format!(r#","mediaType":"{v1}""#)), None),
        ] {
            let refused = Document::parse(text.as_bytes(), content_type);
            assert!(matches!(refused, Err(DocumentError::Schema1)), "{text}: {refused:?}");
        }
    }

    #[test]
    fn a_type_that_is_no_image_is_named() {
        let error = Document::parse(b"{}", Some("text/html; charset=utf-8")).unwrap_err();
        assert!(matches!(&error, DocumentError::UnknownMediaType { media_type } if media_type == "text/html"));
        assert!(matches!(Document::parse(b"{}", None), Err(DocumentError::UnknownMediaType { .. })));
        let helm = manifest("").replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        let refused = Manifest::parse(helm.as_bytes(), None).unwrap().require_image();
        assert!(matches!(refused, Err(DocumentError::NotAnImage { what: "config", .. })));
        let odd = manifest("").replace(LAYER, "application/vnd.oci.image.layer.v1.tar+xz");
        let refused = Manifest::parse(odd.as_bytes(), None).unwrap().require_image();
        assert!(matches!(refused, Err(DocumentError::NotAnImage { what: "layer", .. })));
    }

    #[test]
    fn documents_out_of_bounds_are_refused() {
        let config = descriptor(OCI_CONFIG, 2, "");
        let with_layers = |count: usize, size: u64| {
            let list = vec![descriptor(LAYER, size, ""); count].join(",");
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{list}]}}"#)
        };
        let parse = |text: String| Document::parse(text.as_bytes(), None);
        parse(with_layers(125, 1)).unwrap();
        assert!(matches!(parse(with_layers(126, 1)), Err(DocumentError::Limit { .. })));
        assert!(matches!(parse(with_layers(3, i64::MAX as u64 / 2)), Err(DocumentError::Limit { .. })));
        assert!(matches!(parse(with_layers(1, 1).replace(":1}", ":-1}")), Err(DocumentError::Json { .. })));
        let large_config = manifest("").replace("\"size\":2", "\"size\":4194305");
        assert!(matches!(parse(large_config), Err(DocumentError::Limit { .. })));
        let many = vec![descriptor(MANIFEST, 1, ""); 1001].join(",");
        assert!(matches!(parse(format!(r#"{{"manifests":[{many}]}}"#)), Err(DocumentError::Limit { .. })));
        assert!(matches!(parse(manifest(&" ".repeat(DOCUMENT_BYTES_MAX))), Err(DocumentError::Json { .. })));
        let deep = format!(r#","x":{}{}"#, "[".repeat(200), "]".repeat(200));
        assert!(matches!(parse(manifest(&deep)), Err(DocumentError::Json { .. })));
        assert!(matches!(
            parse(manifest(r#","schemaVersion2":1"#).replace(":2,", ":3,")),
            Err(DocumentError::Limit { .. })
        ));
        assert!(parse(manifest(r#","x":1"#).replace("sha256:", "sha256:../../")).is_err());
    }

    #[test]
    fn the_best_platform_of_an_index_is_chosen() {
        let all = index(&[
            entry("linux/amd64", ""),
            entry("linux/arm/v5", ""),
            entry("linux/arm/v7", ""),
            entry("linux/arm64", ""),
            entry("windows/amd64", ""),
        ]);
        for (wanted, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm/v8", "linux/arm/v7"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v5"),
            ("linux/arm64", "linux/arm64"),
            ("linux/s390x", "no matching manifest for linux/s390x in the manifest list entries"),
        ] {
            assert_eq!(chosen(&all, wanted), expected);
        }
        let text = format!(r#"{{"manifests":[{}]}}"#, entry("linux/amd64", ""));
        assert_eq!(
            Document::parse(text.as_bytes(), Some(DOCKER_LIST)).unwrap().media_type(),
            &MediaType::DockerManifestList
        );
    }

    #[test]
    fn attestations_are_never_chosen() {
        let attestation =
            entry("linux/amd64", r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#);
        let unknown = descriptor(MANIFEST, 1, r#","platform":{"os":"unknown","architecture":"unknown"}"#);
        let plain = descriptor(MANIFEST, 1, r#","annotations":null"#);
        let found = index(&[attestation.clone(), unknown.clone(), entry("linux/amd64", "")]);
        assert_eq!(found.choose(&"linux/amd64".parse().unwrap()).unwrap(), &found.manifests[2]);
        assert!(chosen(&index(&[attestation.clone(), unknown]), "linux/amd64").starts_with("no matching"));
        assert_eq!(
            chosen(&index(&[plain, attestation]), "linux/amd64"),
            "none",
            "a single candidate needs no platform"
        );
    }

    #[test]
    fn descriptors_are_written_as_they_are_read() {
        let text = descriptor(LAYER, 7, r#","annotations":{"a":"b"}"#);
        let read: Descriptor = serde_json::from_str(&text).unwrap();
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Descriptor>(&written).unwrap(), read);
        assert!(!written.contains("platform"));
    }
}
