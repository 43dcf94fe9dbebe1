//! The documents at the root of an image archive: `manifest.json` of a docker-archive, `oci-layout` of an OCI layout.
//! (`index.json` is an [`Index`](crate::Index).)
//!
//! A1  A name in `manifest.json` only selects a member of the archive. It is relative, without `..`, and never used as
//!     a path outside the archive's own table of members (CVE-2014-9358).

use std::fmt;

use serde::Deserialize;

use crate::document::DocumentError;
use crate::json::{self, null_as_default};
use crate::limits::{
    ARCHIVE_IMAGES_MAX, ARCHIVE_MANIFEST_BYTES_MAX, LAYERS_MAX, MEMBER_NAME_BYTES_MAX, OCI_LAYOUT_BYTES_MAX,
};
use crate::reference::{Reference, ReferenceError};

/// The name of a member of an archive, in its shortest form: `a/b`, without `.`, `..` and empty parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(Box<str>);

/// One image of a docker-archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveManifestItem {
    /// The member that holds its configuration.
    pub config: MemberName,
    /// The names that it gets, as written and as understood.
    pub repo_tags: Vec<String>,
    /// The members that hold its layers, lowest first.
    pub layers: Vec<MemberName>,
}

impl ArchiveManifestItem {
    /// The names that the image gets.
    pub fn references(&self) -> impl Iterator<Item = Result<Reference, ReferenceError>> {
        self.repo_tags.iter().map(|tag| Reference::parse(tag))
    }
}

impl MemberName {
    /// The name in its shortest form; `None` if it is empty, absolute, too long, climbs with `..` or holds a NUL.
    pub fn parse(name: &str) -> Option<MemberName> {
        if name.is_empty() || name.len() > MEMBER_NAME_BYTES_MAX || name.starts_with('/') || name.contains('\0') {
            return None;
        }
        let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        match parts.is_empty() || parts.contains(&"..") {
            true => None,
            false => Some(MemberName(parts.join("/").into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses `manifest.json` of a docker-archive: at most 1 MiB and 1000 images.
pub fn parse_archive_manifest(bytes: &[u8]) -> Result<Vec<ArchiveManifestItem>, DocumentError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Raw {
        config: String,
        #[serde(default, deserialize_with = "null_as_default")]
        repo_tags: Vec<String>,
        #[serde(default, deserialize_with = "null_as_default")]
        layers: Vec<String>,
    }
    let unreadable = |source| DocumentError::Json { what: "archive's manifest.json", source };
    let items: Vec<Raw> = json::parse(bytes, ARCHIVE_MANIFEST_BYTES_MAX).map_err(unreadable)?;
    if items.len() > ARCHIVE_IMAGES_MAX {
        return Err(DocumentError::Limit { what: "an archive of more than 1000 images" });
    }
    let member = |name: String| MemberName::parse(&name).ok_or(DocumentError::MemberName { name });
    let item = |raw: Raw| {
        if raw.layers.len() > LAYERS_MAX {
            return Err(DocumentError::Limit { what: "more than 125 layers" });
        }
        let layers = raw.layers.into_iter().map(member).collect::<Result<_, _>>()?;
        Ok(ArchiveManifestItem { config: member(raw.config)?, repo_tags: raw.repo_tags, layers })
    };
    items.into_iter().map(item).collect()
}

/// Checks the file `oci-layout`: at most 1 MiB, version 1.
pub fn parse_oci_layout(bytes: &[u8]) -> Result<(), DocumentError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        image_layout_version: String,
    }
    let unreadable = |source| DocumentError::Json { what: "oci-layout file", source };
    let raw: Raw = json::parse(bytes, OCI_LAYOUT_BYTES_MAX).map_err(unreadable)?;
    match raw.image_layout_version.as_str() {
        "1.0.0" => Ok(()),
        version => Err(DocumentError::LayoutVersion { version: version.chars().take(64).collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_manifest_selects_members_by_name() {
        let text = br#"[{"Config":"./abc.json","RepoTags":["app:1"],"Layers":["x/layer.tar","blobs//sha256/y"],"LayerSources":{}},
                        {"Config":"def.json","RepoTags":null,"Layers":null}]"#;
        let items = parse_archive_manifest(text).unwrap();
        assert_eq!(items[0].config.as_str(), "abc.json");
        assert_eq!(items[0].layers[1].as_str(), "blobs/sha256/y");
        assert_eq!(items[0].references().next().unwrap().unwrap().familiar(), "app:1");
        assert!(items[1].repo_tags.is_empty() && items[1].layers.is_empty());
    }

    #[test]
    fn a_name_that_climbs_selects_nothing() {
        for name in ["../x", "a/../../x", "a/..", "/etc/passwd", "", ".", "./", "a\\u0000b"] {
            for text in [
                format!(r#"[{{"Config":"{name}","Layers":[]}}]"#),
                format!(r#"[{{"Config":"a","Layers":["{name}"]}}]"#),
            ] {
                let refused = parse_archive_manifest(text.as_bytes());
                assert!(matches!(refused, Err(DocumentError::MemberName { .. })), "{text}: {refused:?}");
            }
        }
    }

    #[test]
    fn archive_documents_are_limited() {
        let many = format!("[{}]", vec![r#"{"Config":"a"}"#; 1001].join(","));
        assert!(matches!(parse_archive_manifest(many.as_bytes()), Err(DocumentError::Limit { .. })));
        let large = format!("[{}]", " ".repeat(ARCHIVE_MANIFEST_BYTES_MAX));
        assert!(matches!(parse_archive_manifest(large.as_bytes()), Err(DocumentError::Json { .. })));
        parse_oci_layout(br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let newer = parse_oci_layout(br#"{"imageLayoutVersion":"2.0.0"}"#);
        assert!(matches!(newer, Err(DocumentError::LayoutVersion { .. })));
    }
}
