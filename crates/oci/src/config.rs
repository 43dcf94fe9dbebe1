//! An image's configuration: what its layers are and how it wants to be run.
//!
//! C1  The bytes are kept as received; the image's ID is their SHA-256 and nothing else (O5).
//! C2  Of `config` only the fields of [`RunConfig`] are read: no image can say anything else about how it is run.
//! C3  There are as many diff IDs as history entries that are not empty, if there is a history at all. (Not refused:
//!     builders in the field get it wrong; who shows a history must cope.)

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::{ChainId, DiffId, Digest, ImageId};
use crate::document::DocumentError;
use crate::json::{self, null_as_default};
use crate::limits::{DOCUMENT_BYTES_MAX, HISTORY_MAX, LAYERS_MAX};
use crate::platform::Platform;

/// An image's configuration (OCI image-spec, Image Configuration; Docker's image spec v1.2 has the same fields).
#[derive(Debug, Clone)]
pub struct ImageConfig {
    id: ImageId,
    raw: Vec<u8>,
    fields: Fields,
}

/// What an image says about how it wants to be run: the part of Docker's container configuration that an image can set.
/// Written and read in Docker's form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub user: String,
    /// Ports that the image listens on, as `80/tcp`.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`, in order.
    #[serde(default, deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Default arguments, or the command if there is no entry point.
    #[serde(default, deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    /// Directories that become volumes.
    #[serde(default)]
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// The working directory; empty is `/`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// The command that is always run.
    #[serde(default, deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    /// Build steps for images based on this one.
    #[serde(default)]
    pub on_build: Option<Vec<String>>,
    /// Free text by key. Inert (threats M7).
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// The signal that asks the container to stop: `SIGTERM` or a number.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// How to find out whether the container works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell that runs commands in text form at build.
    #[serde(default, deserialize_with = "words", skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}

/// The value of a set written as an object: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health probe. Times are in nanoseconds; 0 is "inherit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]`, `["CMD-SHELL", line]`; empty is "inherit".
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two probes.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// How long a probe may take.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// After the start: failures do not count yet.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two probes in the start period.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// One step of the build that made an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Free text.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the step made no layer.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Fields {
    #[serde(default, deserialize_with = "null_as_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_as_default")]
    os: String,
    #[serde(default, deserialize_with = "null_as_default")]
    variant: String,
    #[serde(default, rename = "os.version", deserialize_with = "null_as_default")]
    os_version: String,
    #[serde(default)]
    created: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    author: String,
    #[serde(default, deserialize_with = "null_as_default")]
    comment: String,
    #[serde(default, deserialize_with = "null_as_default")]
    docker_version: String,
    #[serde(default, deserialize_with = "null_as_default")]
    config: RunConfig,
    rootfs: RootFs,
    #[serde(default, deserialize_with = "null_as_default")]
    history: Vec<HistoryEntry>,
}

#[derive(Debug, Clone, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<DiffId>,
}

impl ImageConfig {
    /// Parses a configuration and keeps its bytes (C1).
    ///
    /// # Errors
    /// `Json` if it is larger than 4 MiB, no JSON, repeats a key, or lacks `rootfs`; `Limit` for more than 125 layers or
    /// another kind of root file system than layers.
    pub fn parse(raw: Vec<u8>) -> Result<ImageConfig, DocumentError> {
        let unreadable = |source| DocumentError::Json { what: "image configuration", source };
        let fields: Fields = json::parse(&raw, DOCUMENT_BYTES_MAX).map_err(unreadable)?;
        if fields.rootfs.kind != "layers" {
            return Err(DocumentError::Limit { what: "a configuration whose rootfs is not of the type layers" });
        }
        if fields.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(DocumentError::Limit { what: "more than 125 layers" });
        }
        if fields.history.len() > HISTORY_MAX {
            return Err(DocumentError::Limit { what: "a history of more than 4096 entries" });
        }
        let id = ImageId(Digest::sha256_of(&raw));
        Ok(ImageConfig { id, raw, fields })
    }

    /// The image's ID: the SHA-256 digest of the bytes.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// The bytes as received.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The bytes as received.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    /// The layers' diff IDs, lowest first; at most 125.
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.fields.rootfs.diff_ids
    }

    /// The chain ID of all layers; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<ChainId> {
        ChainId::of(self.diff_ids())
    }

    /// How the image wants to be run.
    pub fn run_config(&self) -> &RunConfig {
        &self.fields.config
    }

    /// What the image was built for. An empty `os` or `architecture` stays empty.
    pub fn platform(&self) -> Platform {
        let Fields { os, architecture, variant, .. } = &self.fields;
        Platform { os: os.clone(), architecture: architecture.clone(), variant: variant.clone() }
    }

    /// The architecture as written.
    pub fn architecture(&self) -> &str {
        &self.fields.architecture
    }

    /// The operating system as written.
    pub fn os(&self) -> &str {
        &self.fields.os
    }

    /// The architecture's variant as written; empty if none.
    pub fn variant(&self) -> &str {
        &self.fields.variant
    }

    /// The operating system's version; empty if none.
    pub fn os_version(&self) -> &str {
        &self.fields.os_version
    }

    /// When the image was made, in RFC 3339 as written.
    pub fn created(&self) -> Option<&str> {
        self.fields.created.as_deref()
    }

    /// Who made it; empty if not said.
    pub fn author(&self) -> &str {
        &self.fields.author
    }

    /// Free text.
    pub fn comment(&self) -> &str {
        &self.fields.comment
    }

    /// The version of Docker that built it; empty if not said.
    pub fn docker_version(&self) -> &str {
        &self.fields.docker_version
    }

    /// The steps of its build, oldest first.
    pub fn history(&self) -> &[HistoryEntry] {
        &self.fields.history
    }
}

/// A list of words that may also come as one word in text form, as Docker's `StrSlice`.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        List(Vec<String>),
        One(String),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::List(list) => list,
        Words::One(word) => vec![word],
    }))
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageConfig, DocumentError> {
        ImageConfig::parse(text.as_bytes().to_vec())
    }

    #[test]
    fn the_id_is_the_digest_of_the_bytes_as_received() {
        let text = "{ \"rootfs\" : {\"type\":\"layers\",\"diff_ids\":null}, \"os\":\"linux\", \"unknown\": [1, 2] }\n";
        let config = parse(text).unwrap();
        assert_eq!(config.id().0, Digest::sha256_of(text.as_bytes()));
        assert_eq!(config.raw(), text.as_bytes());
        assert_eq!((config.diff_ids(), config.chain_id(), config.os()), (&[][..], None, "linux"));
    }

    #[test]
    fn run_settings_are_read_in_docker_s_forms_and_written_back() {
        let diff_id = Digest::sha256_of(b"layer");
        let text = format!(
            r#"{{"architecture":"arm","variant":"v7","os":"linux","created":"2024-01-02T03:04:05Z","author":null,
            "config":{{"User":"1000:100","Env":["PATH=/bin","A="],"Entrypoint":["/bin/sh","-c"],"Cmd":"true","Volumes":{{"/data":{{}}}},
            "ExposedPorts":{{"80/tcp":{{}}}},"WorkingDir":"/srv","Labels":{{"b":"2","a":"1"}},"StopSignal":"SIGINT","OnBuild":null,
            "Healthcheck":{{"Test":["CMD","true"],"Interval":30000000000}},"HostConfig":{{"Privileged":true}}}},
            "history":[{{"created_by":"ADD x"}},{{"created_by":"ENV","empty_layer":true}}],
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
        );
        let config = parse(&text).unwrap();
        let run = config.run_config();
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
        assert_eq!(run.cmd.as_deref(), Some(&["true".to_owned()][..]));
        assert_eq!(run.healthcheck.as_ref().unwrap().interval, 30_000_000_000);
        assert_eq!((config.history().len(), config.history()[1].empty_layer), (2, true));
        assert_eq!(config.chain_id(), Some(ChainId(diff_id)));
        let written = serde_json::to_string(run).unwrap();
        assert!(!written.contains("Privileged"), "an image cannot say how the host runs it");
        assert_eq!(&serde_json::from_str::<RunConfig>(&written).unwrap(), run);
    }

    #[test]
    fn configurations_out_of_bounds_are_refused() {
        let digest = Digest::sha256_of(b"");
        let layers = |count: usize| {
            let list = vec![format!("\"{digest}\""); count].join(",");
            format!("{{\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{list}]}}}}")
        };
        assert_eq!(parse(&layers(125)).unwrap().diff_ids().len(), 125);
        assert!(matches!(parse(&layers(126)), Err(DocumentError::Limit { .. })));
        assert!(matches!(parse(r#"{"rootfs":{"type":"magic"}}"#), Err(DocumentError::Limit { .. })));
        for text in [
            "",
            "[]",
            "{}",
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
            r#"{"os":"a","os":"b","rootfs":{"type":"layers"}}"#,
        ] {
            assert!(matches!(parse(text), Err(DocumentError::Json { .. })), "{text}");
        }
        let padded = format!("{}{}", layers(1), " ".repeat(DOCUMENT_BYTES_MAX));
        assert!(matches!(parse(&padded), Err(DocumentError::Json { .. })));
    }
}
