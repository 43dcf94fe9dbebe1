//! The networks that exist without being made.

use std::collections::BTreeMap;

use baleen_engine::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

/// An entry of `/networks`, and `/networks/{id}`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) id: &'static str,
    created: Timestamp,
    scope: &'static str,
    pub(crate) driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Value,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: Value,
    config_only: bool,
    containers: BTreeMap<String, Value>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

// Fixed, since a network that is not made anew has no reason to change its ID.
const NONE_ID: &str = "62616c65656e2d6e6574776f726b2d6e6f6e650000000000000000000000006e";
const HOST_ID: &str = "62616c65656e2d6e6574776f726b2d686f737400000000000000000000000068";

/// The ID of `none` or `host`.
pub(super) fn predefined_id(name: &str) -> Option<&'static str> {
    match name {
        "none" => Some(NONE_ID),
        "host" => Some(HOST_ID),
        _ => None,
    }
}

impl Network {
    /// `none` and `host`.
    pub(crate) fn predefined() -> [Network; 2] {
        let network = |name, id, driver| Network {
            name,
            id,
            created: Timestamp::ZERO,
            scope: "local",
            driver,
            enable_ipv6: false,
            ipam: json!({ "Driver": "default", "Options": null, "Config": [] }),
            internal: false,
            attachable: false,
            ingress: false,
            config_from: json!({ "Network": "" }),
            config_only: false,
            containers: BTreeMap::new(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        [network("none", NONE_ID, "null"), network("host", HOST_ID, "host")]
    }
}
