//! Images: list, inspect, history and removal.

use std::collections::BTreeMap;

use baleen_engine::{GraphDriver, HistoryItem, ImageDeletion, ImageDetails, ImageSummary, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::Asked;

/// An entry of `/images/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageListItem {
    id: String,
    parent_id: &'static str,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    created: i64,
    size: u64,
    shared_size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    labels: Option<BTreeMap<String, String>>,
    containers: i64,
}

impl ImageListItem {
    /// Renders a summary for a version.
    pub(crate) fn new(summary: ImageSummary, asked: Asked) -> ImageListItem {
        // Docker wrote a name for the nameless before 1.43.
        let named = |names: Vec<String>, placeholder: &str| match names.is_empty() && asked.before(43) {
            true => vec![placeholder.to_owned()],
            false => names,
        };
        ImageListItem {
            id: summary.id,
            parent_id: "",
            repo_tags: named(summary.repo_tags, "<none>:<none>"),
            repo_digests: named(summary.repo_digests, "<none>@<none>"),
            created: summary.created.map_or(0, |created| created.seconds),
            size: summary.size_bytes,
            shared_size: -1,
            virtual_size: asked.until(44).then_some(summary.size_bytes),
            labels: summary.labels,
            containers: -1,
        }
    }
}

impl ImageListItem {
    /// Renders a summary for `/system/df`, which counts what the list does not.
    pub(crate) fn for_usage(summary: ImageSummary, asked: Asked) -> ImageListItem {
        let containers = i64::try_from(summary.containers).unwrap_or(i64::MAX);
        ImageListItem { containers, ..ImageListItem::new(summary, asked) }
    }
}

/// `/images/{name}/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageInspect {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: &'static str,
    comment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_config: Option<Value>,
    docker_version: String,
    author: String,
    config: Value,
    architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    os_version: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    graph_driver: Value,
    #[serde(rename = "RootFS")]
    root_fs: Value,
    metadata: Value,
}

impl ImageInspect {
    /// Renders details for a version.
    pub(crate) fn new(details: ImageDetails, asked: Asked) -> ImageInspect {
        let summary = details.summary;
        let config = serde_json::to_value(&details.config).unwrap_or_default();
        ImageInspect {
            id: summary.id,
            repo_tags: summary.repo_tags,
            repo_digests: summary.repo_digests,
            parent: "",
            comment: details.comment,
            // Before 1.44 an unset time was written as year 1.
            created: summary.created.or(asked.until(44).then_some(Timestamp::ZERO)),
            container: asked.until(45).then_some(""),
            container_config: asked.until(45).then(|| with_container_keys(json!({}))),
            docker_version: details.docker_version,
            author: details.author,
            config: with_container_keys(config),
            architecture: details.architecture,
            variant: details.variant,
            os: details.os,
            os_version: details.os_version,
            size: summary.size_bytes,
            virtual_size: asked.until(44).then_some(summary.size_bytes),
            graph_driver: graph_driver(&details.graph_driver),
            root_fs: json!({ "Type": "layers", "Layers": details.diff_ids }),
            metadata: json!({ "LastTagTime": details.last_tagged.unwrap_or(Timestamp::ZERO) }),
        }
    }
}

/// Adds the keys that only containers have, with zero values: images carry them before 1.50.
fn with_container_keys(config: Value) -> Value {
    let mut all = Map::from_iter(
        [
            ("Hostname", json!("")),
            ("Domainname", json!("")),
            ("User", json!("")),
            ("AttachStdin", json!(false)),
            ("AttachStdout", json!(false)),
            ("AttachStderr", json!(false)),
            ("Tty", json!(false)),
            ("OpenStdin", json!(false)),
            ("StdinOnce", json!(false)),
            ("Env", Value::Null),
            ("Cmd", Value::Null),
            ("Image", json!("")),
            ("Volumes", Value::Null),
            ("WorkingDir", json!("")),
            ("Entrypoint", Value::Null),
            ("OnBuild", Value::Null),
            ("Labels", Value::Null),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Value::Object(given) = config {
        all.extend(given);
    }
    Value::Object(all)
}

/// `GraphDriver` of images and containers.
pub(super) fn graph_driver(driver: &GraphDriver) -> Value {
    let mut data = Map::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            data.insert(key.to_owned(), Value::String(value));
        }
    };
    put("LowerDir", (!driver.lower_dirs.is_empty()).then(|| driver.lower_dirs.join(":")));
    put("UpperDir", driver.upper_dir.clone());
    put("WorkDir", driver.work_dir.clone());
    put("MergedDir", driver.merged_dir.clone());
    json!({ "Name": "overlay2", "Data": data })
}

/// A line of `/images/{name}/history`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct History {
    id: String,
    created: i64,
    created_by: String,
    tags: Option<Vec<String>>,
    size: u64,
    comment: String,
}

impl From<HistoryItem> for History {
    fn from(item: HistoryItem) -> History {
        History {
            id: item.id.unwrap_or_else(|| "<missing>".to_owned()),
            created: item.created.map_or(0, |created| created.seconds),
            created_by: item.created_by,
            tags: (!item.tags.is_empty()).then_some(item.tags),
            size: item.size_bytes,
            comment: item.comment,
        }
    }
}

/// One step of a removal.
#[derive(Debug, Serialize)]
pub(crate) enum Deletion {
    Untagged(String),
    Deleted(String),
}

impl From<ImageDeletion> for Deletion {
    fn from(deletion: ImageDeletion) -> Deletion {
        match deletion {
            ImageDeletion::Untagged(name) => Deletion::Untagged(name),
            ImageDeletion::Deleted(id) => Deletion::Deleted(id),
        }
    }
}
