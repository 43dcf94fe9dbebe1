//! A delta in a registry: an OCI manifest with an artifact type of ours, one layer, and the target's manifest as its subject.
//! Definition: docs/deltas.md, In the registry. Pure: bytes in, bytes out.
//!
//! O1  The annotations stand in the manifest and in whatever lists it, so that one small answer is enough to choose.
//! O2  A list that is written again keeps every entry, and every field, that others have put there.

use std::collections::BTreeMap;

use baleen_oci::{Descriptor, DiffId, Digest, Manifest, MediaType};
use serde_json::{Value, json};

/// The type of artifact, and of its one layer.
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.baleen.delta.v1";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The configuration that is none.
pub(crate) const EMPTY: &[u8] = b"{}";
/// Entries of a fallback list; at more the oldest of ours make room.
const LIST_ENTRIES_MAX: usize = 1000;

const SOURCE_CONFIGS: &str = "io.baleen.delta.source.configs";
const SOURCE_LAYERS: &str = "io.baleen.delta.source.layers";
const TARGET_CONFIG: &str = "io.baleen.delta.target.config";
const TARGET_LAYERS: &str = "io.baleen.delta.target.layers";
const SIZE: &str = "io.baleen.delta.size";
const MEMORY: &str = "io.baleen.delta.memory";
const HEADER: &str = "io.baleen.delta.header";

/// What the annotations say of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaFacts {
    /// Configurations of the images that it was made from.
    pub source_configs: Vec<Digest>,
    /// Layers that it reads from.
    pub source_layers: Vec<DiffId>,
    /// Configuration of the image that it makes.
    pub target_config: Digest,
    /// Layers that it makes.
    pub target_layers: Vec<DiffId>,
    /// Its length.
    pub size_bytes: u64,
    /// What applying it takes.
    pub memory_bytes: u64,
    /// Length of its header.
    pub header_bytes: u64,
}

impl DeltaFacts {
    /// Reads them; `None` if one is missing or makes no sense.
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let text = |key: &str| annotations.get(key).map(String::as_str);
        let digests = |key: &str| -> Option<Vec<Digest>> {
            let list = text(key)?.split(',').filter(|part| !part.is_empty());
            list.map(|part| part.trim().parse().ok()).collect()
        };
        let layers = |key: &str| Some(digests(key)?.into_iter().map(DiffId).collect());
        let number = |key: &str| text(key)?.parse().ok();
        Some(Self {
            source_configs: digests(SOURCE_CONFIGS)?,
            source_layers: layers(SOURCE_LAYERS)?,
            target_config: text(TARGET_CONFIG)?.parse().ok()?,
            target_layers: layers(TARGET_LAYERS)?,
            size_bytes: number(SIZE)?,
            memory_bytes: number(MEMORY)?,
            header_bytes: number(HEADER)?,
        })
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let list = |digests: &[Digest]| digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(",");
        let layers = |layers: &[DiffId]| list(&layers.iter().map(|layer| layer.0).collect::<Vec<_>>());
        [
            (SOURCE_CONFIGS, list(&self.source_configs)),
            (SOURCE_LAYERS, layers(&self.source_layers)),
            (TARGET_CONFIG, self.target_config.to_string()),
            (TARGET_LAYERS, layers(&self.target_layers)),
            (SIZE, self.size_bytes.to_string()),
            (MEMORY, self.memory_bytes.to_string()),
            (HEADER, self.header_bytes.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// The manifest of a delta whose bytes are `blob`.
    pub(crate) fn manifest(&self, blob: &Digest, subject: &Descriptor) -> Vec<u8> {
        let subject = json!({ "mediaType": subject.media_type, "digest": subject.digest, "size": subject.size });
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OciManifest.as_str(),
            "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": EMPTY_TYPE, "digest": Digest::sha256_of(EMPTY), "size": EMPTY.len() },
            "layers": [{ "mediaType": ARTIFACT_TYPE, "digest": blob, "size": self.size_bytes }],
            "subject": subject,
            "annotations": self.annotations(),
        });
        document.to_string().into_bytes()
    }

    /// How the manifest is listed.
    pub(crate) fn entry(&self, manifest: &[u8]) -> Value {
        json!({
            "mediaType": MediaType::OciManifest.as_str(),
            "artifactType": ARTIFACT_TYPE,
            "digest": Digest::sha256_of(manifest),
            "size": manifest.len(),
            "annotations": self.annotations(),
        })
    }
}

/// The delta's bytes by its manifest, if that is one for this target.
pub(crate) fn blob_of(manifest: &Manifest, target: &Digest) -> Option<Descriptor> {
    let [blob] = &manifest.layers[..] else { return None };
    let is_ours = manifest.artifact_type.as_deref() == Some(ARTIFACT_TYPE)
        && blob.media_type == MediaType::from_name(ARTIFACT_TYPE)
        && manifest.subject.as_ref().is_some_and(|subject| subject.digest == *target);
    is_ours.then(|| blob.clone())
}

/// The tag under which a registry without the referrers interface lists what refers to a manifest.
pub(crate) fn list_tag(target: &Digest) -> String {
    format!("{}-{}", target.algorithm().name(), target.hex()).chars().take(128).collect()
}

/// The delta's own tag: of the target's manifest, and of the source's configuration.
pub(crate) fn own_tag(target: &Digest, source_config: &Digest) -> String {
    format!("delta-{}-{}", target.short(), source_config.short())
}

/// A list with one more entry, or with it in place of one of the same digest (O2); `None` if it is there as it should be.
pub(crate) fn list_with(present: Option<&[u8]>, entry: &Value) -> Option<Vec<u8>> {
    let empty = || json!({ "schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": [] });
    let parsed = present.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok()).filter(Value::is_object);
    let mut list = parsed.unwrap_or_else(empty);
    if !list["manifests"].is_array() {
        list["manifests"] = json!([]);
    }
    let entries = list["manifests"].as_array_mut()?;
    if entries.iter().any(|known| known == entry) {
        return None;
    }
    entries.retain(|known| known["digest"] != entry["digest"]);
    entries.push(entry.clone());
    while entries.len() > LIST_ENTRIES_MAX {
        let oldest = entries.iter().position(|known| known["artifactType"] == ARTIFACT_TYPE).unwrap_or(0);
        entries.remove(oldest);
    }
    Some(list.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use baleen_oci::{Document, Index};

    use super::*;

    fn facts() -> DeltaFacts {
        let digest = |text: &str| Digest::sha256_of(text.as_bytes());
        DeltaFacts {
            source_configs: vec![digest("source")],
            source_layers: vec![DiffId(digest("a")), DiffId(digest("b"))],
            target_config: digest("target"),
            target_layers: vec![DiffId(digest("c"))],
            size_bytes: 77,
            memory_bytes: 5 << 20,
            header_bytes: 60,
        }
    }

    fn subject() -> Descriptor {
        Descriptor {
            media_type: MediaType::DockerManifest,
            digest: Digest::sha256_of(b"manifest"),
            size: 8,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }

    #[test]
    fn a_deltas_manifest_reads_back_and_serves_its_own_target_only() {
        let (facts, blob) = (facts(), Digest::sha256_of(b"delta"));
        let bytes = facts.manifest(&blob, &subject());
        let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, None) else { panic!("it is a manifest") };
        assert_eq!(DeltaFacts::of(&manifest.annotations), Some(facts));
        assert!(manifest.require_image().is_err(), "nobody must take it for an image");
        assert_eq!(blob_of(&manifest, &subject().digest).map(|found| (found.digest, found.size)), Some((blob, 77)));
        assert_eq!(blob_of(&manifest, &blob), None, "of another target");
        let mut other = manifest.annotations.clone();
        other.insert(SOURCE_LAYERS.to_owned(), "sha256:1".to_owned());
        assert_eq!(DeltaFacts::of(&other), None);
    }

    #[test]
    fn a_list_keeps_what_others_have_put_there() {
        let manifest = facts().manifest(&Digest::sha256_of(b"delta"), &subject());
        let entry = facts().entry(&manifest);
        let foreign = json!({ "mediaType": "m/x", "digest": Digest::sha256_of(b"sbom"), "size": 3, "data": "e30=" });
        let present = json!({ "schemaVersion": 2, "manifests": [foreign], "annotations": { "who": "else" } });
        let list = list_with(Some(present.to_string().as_bytes()), &entry).expect("it was not there");
        let read: Value = serde_json::from_slice(&list).expect("JSON");
        assert_eq!(read["manifests"][0], foreign);
        assert_eq!(read["annotations"]["who"], "else");
        assert_eq!(list_with(Some(&list), &entry), None, "it is there");
        let index = Index::parse(&list, None).expect("an index");
        assert_eq!(DeltaFacts::of(&index.manifests[1].annotations), Some(facts()));
        for odd in [None, Some(&b"<html>"[..]), Some(b"[]"), Some(br#"{"manifests":5}"#)] {
            let list = list_with(odd, &entry).expect("it was not there");
            assert_eq!(serde_json::from_slice::<Value>(&list).expect("JSON")["manifests"], json!([entry]));
        }
    }

    #[test]
    fn tags_are_ones_that_registries_take() {
        let (target, source) = (Digest::sha256_of(b"t"), Digest::sha256_of(b"s"));
        assert_eq!(list_tag(&target), format!("sha256-{}", target.hex()));
        assert_eq!(own_tag(&target, &source), format!("delta-{}-{}", &target.hex()[..12], &source.hex()[..12]));
    }
}
