//! What a client asks a container to be: Docker's `Config`, with the names that it has in the API and in `config.json`.
//!
//! A front end gives it with keys in exactly this spelling and without nulls (the API's looser reading is its own).

use std::collections::BTreeMap;

use baleen_oci::Platform;
use baleen_oci::config::Empty;
use serde::{Deserialize, Serialize};

use super::host_config::HostConfig;

/// A health probe; times in nanoseconds (`baleen_oci`'s form is the API's).
pub type HealthConfig = baleen_oci::Healthcheck;

/// Everything that `create` is given.
#[derive(Debug, Clone, Default)]
pub struct CreateRequest {
    /// Without or with one leading slash; `None`: the engine makes one up.
    pub name: Option<String>,
    /// `platform=` of the request.
    pub platform: Option<Platform>,
    /// What runs.
    pub config: ContainerConfig,
    /// How it runs.
    pub host_config: HostConfig,
    /// Names of `NetworkingConfig.EndpointsConfig` with their settings, unread: the engine refuses what it cannot honour.
    pub endpoints: BTreeMap<String, serde_json::Value>,
}

/// The answer of `create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// 64 hex digits.
    pub id: String,
    /// What was ignored or could not be had; never fatal.
    pub warnings: Vec<String>,
}

/// Docker's `Config`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Empty: the first 12 digits of the ID.
    pub hostname: String,
    /// NIS domain.
    pub domainname: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// `docker run` sets it; only shown.
    pub attach_stdin: bool,
    /// Only shown.
    pub attach_stdout: bool,
    /// Only shown.
    pub attach_stderr: bool,
    /// `80/tcp`: {}.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Standard input stays open without a client.
    pub open_stdin: bool,
    /// Standard input closes when the first client does.
    pub stdin_once: bool,
    /// `K=V`; `K` alone drops an image's `K`.
    pub env: Vec<String>,
    /// Arguments, or the command.
    pub cmd: Option<Vec<String>>,
    /// Health probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    /// Windows only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// As the client named it.
    pub image: String,
    /// Anonymous volumes: `/p`: {}.
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// Absolute.
    pub working_dir: String,
    /// The command that is always run.
    pub entrypoint: Option<Vec<String>>,
    /// No network at all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub network_disabled: bool,
    /// Old place of the endpoint's address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    /// From the image; only shown.
    pub on_build: Option<Vec<String>>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// Name or number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// From the image; only shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
}
