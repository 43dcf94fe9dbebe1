//! What must hold of every parser here, whatever bytes it gets: for the fuzz targets and the tests that replay their
//! corpus. Not for other use.

use crate::digest::Digest;
use crate::document::Document;
use crate::reference::Reference;
use crate::{ImageConfig, Platform, json, limits, parse_archive_manifest, parse_oci_layout};

/// Feeds bytes to every parser of a document.
///
/// # Panics
/// If an accepted document breaks one of the promises of its parser.
pub fn documents(bytes: &[u8]) {
    let is_strict = json::check(bytes, limits::DOCUMENT_BYTES_MAX).is_ok();
    if is_strict {
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).expect("what passes the check is JSON");
    }
    let oci = "application/vnd.oci.image.manifest.v1+json";
    for content_type in [None, Some("text/plain; charset=utf-8"), Some(oci)] {
        match Document::parse(bytes, content_type) {
            Err(error) => drop(error.to_string()),
            Ok(document) => {
                assert!(is_strict, "a document was accepted that has two readings");
                check_document(&document);
            }
        }
    }
    if let Ok(config) = ImageConfig::parse(bytes.to_vec()) {
        assert!(is_strict && config.raw() == bytes && config.id().0.matches(bytes));
        assert!(config.diff_ids().len() <= limits::LAYERS_MAX);
        assert_eq!(config.chain_id().is_none(), config.diff_ids().is_empty());
        let written = serde_json::to_vec(config.run_config()).expect("settings can be written");
        let read = serde_json::from_slice(&written).expect("and read again");
        assert_eq!(config.run_config(), &read);
    }
    for item in parse_archive_manifest(bytes).unwrap_or_default() {
        for member in item.layers.iter().chain([&item.config]) {
            assert!(!member.as_str().split('/').any(|part| matches!(part, "" | "." | "..")), "{member}");
        }
        item.references().for_each(drop);
    }
    let _ = parse_oci_layout(bytes);
}

fn check_document(document: &Document) {
    match document {
        Document::Manifest(manifest) => {
            assert!(manifest.media_type.is_manifest() && manifest.layers.len() <= limits::LAYERS_MAX);
            let _ = (manifest.require_image(), manifest.layers_size());
        }
        Document::Index(index) => {
            assert!(index.media_type.is_index() && index.manifests.len() <= limits::INDEX_MANIFESTS_MAX);
            for wanted in ["linux/amd64", "linux/arm/v7", "linux/arm64"] {
                let wanted: Platform = wanted.parse().expect("a platform");
                if let Ok(chosen) = index.choose(&wanted) {
                    assert!(chosen.platform.as_ref().is_none_or(|platform| wanted.rank(platform).is_some()));
                }
            }
        }
    }
}

/// Feeds bytes to every parser of a name.
///
/// # Panics
/// If an accepted name breaks one of the promises of its parser.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = Reference::parse(text) {
        let full = reference.to_string();
        assert!(
            full.len() <= limits::REFERENCE_BYTES_MAX && full.bytes().all(|byte| byte.is_ascii_graphic()),
            "{full}"
        );
        assert!(!full.split(['/', ':', '@']).any(|part| matches!(part, "." | "..")), "{full}");
        assert!(!full.contains("//"), "{full}");
        assert_eq!(Reference::parse(&full).as_ref(), Ok(&reference), "the full form is another reference");
        assert_eq!(Reference::parse(&reference.familiar()).as_ref(), Ok(&reference), "the short form is another");
        assert!(reference.tag().is_some() || reference.digest().is_some());
    }
    if let Some((image, tag)) = text.split_once('\n') {
        let _ = Reference::from_image_and_tag(image, Some(tag));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text, "a digest has one text");
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.normalised(), platform);
        assert_eq!(platform.to_string().parse(), Ok(platform.clone()));
        assert_eq!(platform.rank(&platform), Some(0));
    }
}
