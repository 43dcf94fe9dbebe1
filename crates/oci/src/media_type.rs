//! Media types of images, Docker's and OCI's.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The bytes are the tar.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more Zstandard frames.
    Zstd,
}

/// What a layer's media type says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerFormat {
    /// How the tar is compressed.
    pub compression: Compression,
    /// Whether the registry may lack it ("foreign", "nondistributable").
    pub foreign: bool,
}

/// A media type that documents here may name. Unknown ones are kept as text, so that errors can say them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MediaType {
    /// OCI image manifest.
    OciManifest,
    /// OCI image index.
    OciIndex,
    /// Docker manifest, schema 2.
    DockerManifest,
    /// Docker manifest list.
    DockerManifestList,
    /// Docker manifest, schema 1, signed or not: refused by name.
    DockerSchema1,
    /// OCI image configuration.
    OciConfig,
    /// Docker image configuration.
    DockerConfig,
    /// OCI layer.
    OciLayer(LayerFormat),
    /// Docker layer.
    DockerLayer(LayerFormat),
    /// Anything else.
    Other(Box<str>),
}

const PLAIN: LayerFormat = LayerFormat { compression: Compression::None, foreign: false };
const GZIP: LayerFormat = LayerFormat { compression: Compression::Gzip, foreign: false };
const ZSTD: LayerFormat = LayerFormat { compression: Compression::Zstd, foreign: false };
const FOREIGN_PLAIN: LayerFormat = LayerFormat { compression: Compression::None, foreign: true };
const FOREIGN_GZIP: LayerFormat = LayerFormat { compression: Compression::Gzip, foreign: true };
const FOREIGN_ZSTD: LayerFormat = LayerFormat { compression: Compression::Zstd, foreign: true };

/// Every known name. The first row of a type is how it is written.
const NAMES: &[(&str, MediaType)] = &[
    ("application/vnd.oci.image.manifest.v1+json", MediaType::OciManifest),
    ("application/vnd.oci.image.index.v1+json", MediaType::OciIndex),
    ("application/vnd.docker.distribution.manifest.v2+json", MediaType::DockerManifest),
    ("application/vnd.docker.distribution.manifest.list.v2+json", MediaType::DockerManifestList),
    ("application/vnd.docker.distribution.manifest.v1+prettyjws", MediaType::DockerSchema1),
    ("application/vnd.docker.distribution.manifest.v1+json", MediaType::DockerSchema1),
    ("application/vnd.oci.image.config.v1+json", MediaType::OciConfig),
    ("application/vnd.docker.container.image.v1+json", MediaType::DockerConfig),
    ("application/vnd.oci.image.layer.v1.tar", MediaType::OciLayer(PLAIN)),
    ("application/vnd.oci.image.layer.v1.tar+gzip", MediaType::OciLayer(GZIP)),
    ("application/vnd.oci.image.layer.v1.tar+zstd", MediaType::OciLayer(ZSTD)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", MediaType::OciLayer(FOREIGN_PLAIN)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", MediaType::OciLayer(FOREIGN_GZIP)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", MediaType::OciLayer(FOREIGN_ZSTD)),
    ("application/vnd.docker.image.rootfs.diff.tar", MediaType::DockerLayer(PLAIN)),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", MediaType::DockerLayer(GZIP)),
    // What BuildKit writes for a Docker manifest with zstd layers.
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", MediaType::DockerLayer(ZSTD)),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", MediaType::DockerLayer(FOREIGN_PLAIN)),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", MediaType::DockerLayer(FOREIGN_GZIP)),
];

impl MediaType {
    /// The type that `text` names, by its exact name. Parameters (`; charset=utf-8`) are for the caller to cut off.
    pub fn from_name(text: &str) -> MediaType {
        match NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, known)) => known.clone(),
            None => MediaType::Other(text.into()),
        }
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        if let MediaType::Other(name) = self {
            return name;
        }
        let row = NAMES.iter().find(|(_, known)| known == self);
        row.map_or("application/octet-stream", |(name, _)| name)
    }

    /// Whether it names an image manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(self, MediaType::OciManifest | MediaType::DockerManifest)
    }

    /// Whether it names an index or manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self, MediaType::OciIndex | MediaType::DockerManifestList)
    }

    /// Whether it names an image configuration.
    pub fn is_config(&self) -> bool {
        matches!(self, MediaType::OciConfig | MediaType::DockerConfig)
    }

    /// What it says about a layer; `None` if it names none that we know.
    pub fn layer(&self) -> Option<LayerFormat> {
        match self {
            MediaType::OciLayer(format) | MediaType::DockerLayer(format) => Some(*format),
            _ => None,
        }
    }

    /// The types of documents that a registry may be asked for, in the order of an `Accept` header.
    pub fn acceptable_documents() -> [&'static str; 4] {
        [NAMES[0].0, NAMES[1].0, NAMES[2].0, NAMES[3].0]
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for MediaType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > crate::limits::MEDIA_TYPE_BYTES_MAX {
            return Err(serde::de::Error::custom("media type is too long"));
        }
        Ok(MediaType::from_name(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_type_is_found_by_its_name_and_written_as_known() {
        for (name, media_type) in NAMES {
            assert_eq!(&MediaType::from_name(name), media_type);
            assert_eq!(&MediaType::from_name(media_type.as_str()), media_type);
        }
        assert_eq!(MediaType::from_name("application/x").as_str(), "application/x");
        assert!(
            MediaType::acceptable_documents().map(MediaType::from_name).iter().all(|t| t.is_manifest() || t.is_index())
        );
    }
}
