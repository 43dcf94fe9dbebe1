//! Volumes: list, inspect and what `system df` adds.

use std::collections::BTreeMap;

use baleen_engine::{Timestamp, Volume};
use serde::Serialize;
use serde_json::{Value, json};

/// A volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct VolumeShape {
    created_at: Timestamp,
    driver: &'static str,
    labels: Option<BTreeMap<String, String>>,
    mountpoint: String,
    name: String,
    options: Option<BTreeMap<String, String>>,
    scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_data: Option<Value>,
}

impl From<Volume> for VolumeShape {
    fn from(volume: Volume) -> VolumeShape {
        let users = volume.users.len();
        VolumeShape {
            // To the second, as Docker writes it here.
            created_at: Timestamp { nanoseconds: 0, ..volume.created },
            driver: "local",
            labels: volume.labels,
            mountpoint: volume.mountpoint.display().to_string(),
            name: volume.name,
            options: volume.options,
            scope: "local",
            usage_data: volume.size_bytes.map(|size| json!({ "RefCount": users, "Size": size })),
        }
    }
}
