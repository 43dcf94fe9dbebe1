//! The table of settings: one row each for `daemon.json` and the flags, so that neither knows what the other does not.

use std::collections::BTreeMap;

use super::SettingsError;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A flag may stand alone; in the file `true` or `false`.
    Bool,
    Text,
    Number,
    /// A flag may be repeated; in the file a list.
    List,
    /// A flag is repeated as `key=value`; in the file an object of texts.
    Map,
    /// In the file anything, kept as JSON text; as a flag text.
    Any,
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// `Config` has a field for it.
    Honoured,
    /// Only these values say what is done anyway; others are refused as not implemented.
    Only(&'static [&'static str]),
    /// It has no effect here and never will: a warning.
    NoEffect,
    /// Refused with this text.
    Excluded(&'static str),
}

/// A setting.
#[derive(Debug)]
pub(super) struct Row {
    /// In the file, and the long flag unless `flag` says otherwise.
    pub(super) key: &'static str,
    /// The long flag where it differs; empty: there is none.
    pub(super) flag: Option<&'static str>,
    pub(super) short: Option<char>,
    pub(super) form: Form,
    pub(super) fate: Fate,
}

const fn row(key: &'static str, form: Form, fate: Fate) -> Row {
    Row { key, flag: None, short: None, form, fate }
}

const fn flag(key: &'static str, flag: &'static str, short: Option<char>, form: Form, fate: Fate) -> Row {
    Row { key, flag: Some(flag), short, form, fate }
}

use Fate::{Excluded, Honoured, NoEffect, Only};
use Form::{Any, Bool, List, Map, Number, Text};

const NO: Fate = Only(&["false"]);
const ZERO: Fate = Only(&["0"]);
const NONE: Fate = Only(&[""]);

/// Every setting that a current or recent dockerd knows.
pub(super) const ROWS: &[Row] = &[
    // Sockets.
    flag("hosts", "host", Some('H'), List, Honoured),
    flag("group", "group", Some('G'), Text, Honoured),
    row("tls", Bool, Honoured),
    row("tlsverify", Bool, Honoured),
    row("tlscacert", Text, Honoured),
    row("tlscert", Text, Honoured),
    row("tlskey", Text, Honoured),
    // Places.
    row("data-root", Text, Honoured),
    flag("graph", "graph", Some('g'), Text, Honoured),
    row("exec-root", Text, Honoured),
    flag("pidfile", "pidfile", Some('p'), Text, Honoured),
    // Logs of the daemon.
    flag("debug", "debug", Some('D'), Bool, Honoured),
    flag("log-level", "log-level", Some('l'), Text, Honoured),
    row("log-format", Text, Only(&["text", ""])),
    row("raw-logs", Bool, Only(&["true", "false"])),
    // Storage.
    flag("storage-driver", "storage-driver", Some('s'), Text, Honoured),
    flag("storage-opts", "storage-opt", None, List, NONE),
    // Registries.
    flag("registry-mirrors", "registry-mirror", None, List, Honoured),
    flag("insecure-registries", "insecure-registry", None, List, Honoured),
    row("max-concurrent-downloads", Number, Honoured),
    // Not of dockerd: whether pulls look for deltas.
    row("deltas", Bool, Honoured),
    row("max-concurrent-uploads", Number, Only(&["5"])),
    row("max-download-attempts", Number, Honoured),
    row("max-upload-attempts", Number, Only(&["5"])),
    flag("proxies", "", None, Any, Only(&["{}"])),
    row("http-proxy", Text, NONE),
    row("https-proxy", Text, NONE),
    row("no-proxy", Text, NONE),
    // Containers.
    row("cgroup-parent", Text, Honoured),
    row("live-restore", Bool, Honoured),
    row("shutdown-timeout", Number, Honoured),
    row("log-driver", Text, Only(&["json-file", ""])),
    flag("log-opts", "log-opt", None, Map, Only(&[])),
    row("init", Bool, NO),
    row("init-path", Text, NONE),
    row("default-runtime", Text, Only(&["", "baleen"])),
    flag("runtimes", "add-runtime", None, Any, Only(&["{}"])),
    flag("exec-opts", "exec-opt", None, List, Only(&["native.cgroupdriver=cgroupfs"])),
    flag("default-ulimits", "default-ulimit", None, Any, Only(&["{}"])),
    row("default-shm-size", Any, Only(&["64M", "64m", "67108864", "64MiB"])),
    row("default-ipc-mode", Text, Only(&["private", ""])),
    row("default-cgroupns-mode", Text, Only(&["private", "host", ""])),
    row("no-new-privileges", Bool, NO),
    row("seccomp-profile", Text, Only(&["builtin", ""])),
    row("selinux-enabled", Bool, NO),
    row("userns-remap", Text, NONE),
    row("oom-score-adjust", Number, ZERO),
    // Networks.
    flag("bridge", "bridge", Some('b'), Text, Honoured),
    row("bip", Text, Honoured),
    row("bip6", Text, Honoured),
    row("fixed-cidr", Text, NONE),
    row("fixed-cidr-v6", Text, Honoured),
    row("default-gateway", Text, NONE),
    row("default-gateway-v6", Text, NONE),
    row("ipv6", Bool, Honoured),
    row("mtu", Number, Honoured),
    row("icc", Bool, Honoured),
    row("ip", Text, Honoured),
    row("ip-forward", Bool, Honoured),
    row("ip-forward-no-drop", Bool, NO),
    row("ip-masq", Bool, Honoured),
    row("iptables", Bool, Honoured),
    row("ip6tables", Bool, Only(&["true"])),
    row("userland-proxy", Bool, NoEffect),
    row("userland-proxy-path", Text, NoEffect),
    flag("default-address-pools", "default-address-pool", None, Any, NoEffect),
    flag("default-network-opts", "default-network-opt", None, Any, NoEffect),
    row("allow-direct-routing", Bool, NO),
    row("firewall-backend", Text, Only(&["iptables", ""])),
    row("dns", List, Honoured),
    flag("dns-opts", "dns-opt", None, List, Honoured),
    row("dns-search", List, Honoured),
    row("host-gateway-ip", Text, Honoured),
    flag("host-gateway-ips", "host-gateway-ips", None, List, NoEffect),
    // The daemon as seen by clients.
    flag("labels", "label", None, List, Honoured),
    row("experimental", Bool, NO),
    flag("features", "feature", None, Any, NoEffect),
    row("resolv-conf", Text, NONE),
    row("delta-data-root", Text, NONE),
    row("delta-storage-driver", Text, NONE),
    flag("delta-storage-opts", "delta-storage-opt", None, List, NONE),
    row("metrics-addr", Text, NONE),
    flag("cdi-spec-dirs", "cdi-spec-dir", None, List, NoEffect),
    row("cpu-rt-period", Number, ZERO),
    row("cpu-rt-runtime", Number, ZERO),
    row("rootless", Bool, NO),
    // Of other engines; files with them keep working.
    row("containerd", Text, NoEffect),
    row("containerd-namespace", Text, NoEffect),
    flag("containerd-plugin-namespace", "containerd-plugins-namespace", None, Text, NoEffect),
    row("cri-containerd", Bool, NoEffect),
    flag("builder", "", None, Any, NoEffect),
    flag("node-generic-resources", "node-generic-resource", None, List, NoEffect),
    row("network-control-plane-mtu", Number, NoEffect),
    row("network-diagnostic-port", Number, NoEffect),
    row("swarm-default-advertise-addr", Text, NoEffect),
    row("swarm-raft-heartbeat-tick", Number, NoEffect),
    row("swarm-raft-election-tick", Number, NoEffect),
    row("allow-nondistributable-artifacts", List, NoEffect),
    row("deprecated-key-path", Text, NoEffect),
    row("cluster-store", Text, NoEffect),
    row("cluster-advertise", Text, NoEffect),
    flag("cluster-store-opts", "cluster-store-opt", None, Map, NoEffect),
    row(
        "api-cors-header",
        Text,
        Excluded("api-cors-header is not supported by this engine: a web page must not reach the API; remove it"),
    ),
    flag(
        "authorization-plugins",
        "authorization-plugin",
        None,
        List,
        Excluded("authorization plugins are not supported by this engine"),
    ),
];

/// All keys that were given, each with its values as text: as many as there were.
pub(super) type Settings = BTreeMap<&'static str, Vec<String>>;

/// The row of a key of the file.
pub(super) fn by_key(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

/// The row of a long flag.
pub(super) fn by_flag(name: &str) -> Option<&'static Row> {
    // Both spellings of a list are in use: `--label` and `--labels`.
    ROWS.iter().find(|row| row.flag.unwrap_or(row.key) == name && !name.is_empty())
}

/// The row of a short flag.
pub(super) fn by_short(letter: char) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.short == Some(letter))
}

impl Row {
    /// The flag's name for messages.
    pub(super) fn flag_name(&self) -> &'static str {
        self.flag.unwrap_or(self.key)
    }

    /// Checks the form of a text value.
    pub(super) fn check(&self, value: &str) -> Result<(), SettingsError> {
        let wrong = |reason: &str| {
            Err(SettingsError::Invalid { key: self.key.to_owned(), value: value.to_owned(), reason: reason.to_owned() })
        };
        match self.form {
            Bool if parse_bool(value).is_none() => wrong("expected true or false"),
            Number if value.parse::<i64>().is_err() => wrong("expected an integer"),
            Map if !value.contains('=') => wrong("expected key=value"),
            _ => Ok(()),
        }
    }

    /// Says what becomes of the values (S2): a warning, nothing, or a refusal.
    pub(super) fn judge(&self, values: &[String]) -> Result<Option<String>, SettingsError> {
        match self.fate {
            Honoured => Ok(None),
            NoEffect => Ok(Some(format!("setting {} has no effect in this engine", self.key))),
            Excluded(_) if values.iter().all(String::is_empty) => Ok(None),
            Excluded(text) => Err(SettingsError::Excluded { text: text.to_owned() }),
            Only(accepted) => {
                let normal = |value: &String| match self.form {
                    Bool => parse_bool(value).unwrap_or_default().to_string(),
                    _ => value.clone(),
                };
                match values.iter().find(|value| !accepted.contains(&normal(value).as_str())) {
                    None => Ok(None),
                    Some(value) => Err(SettingsError::NotImplemented {
                        key: self.key.to_owned(),
                        value: value.clone(),
                        remedy: match accepted {
                            [] | [""] => "remove it".to_owned(),
                            accepted => format!("remove it or use {:?}", accepted[0]),
                        },
                    }),
                }
            }
        }
    }
}

/// Go's idea of a boolean in flags.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
