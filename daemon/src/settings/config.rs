//! The settings as the daemon uses them, and what of them a reload may change.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use baleen_engine::{Ipv6Net, NetworkConfig};

use super::flags::Invocation;
use super::host::Host;
use super::table::{self, Settings, parse_bool};
use super::{SettingsError, file};

/// Read if `--config-file` names no other.
const DEFAULT_FILE: &str = "/etc/docker/daemon.json";

/// What the daemon does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) hosts: Vec<Host>,
    /// Owner of Unix sockets, and whether it was named (a missing default group is no error).
    pub(crate) group: String,
    pub(crate) group_is_named: bool,
    pub(crate) data_root: PathBuf,
    pub(crate) exec_root: PathBuf,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) cgroup_parent: Option<String>,
    pub(crate) network: NetworkConfig,
    /// Pulls look for deltas.
    pub(crate) deltas: bool,
    /// What a SIGHUP may change.
    pub(crate) reloadable: Reloadable,
    /// What was accepted and does nothing.
    pub(crate) warnings: Vec<String>,
}

/// Settings that change without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloadable {
    pub(crate) debug: bool,
    pub(crate) log_level: tracing::Level,
    pub(crate) labels: Vec<String>,
    pub(crate) registry_mirrors: Vec<String>,
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) max_concurrent_downloads: usize,
    pub(crate) max_download_attempts: u32,
    /// Seconds; -1 is unlimited.
    pub(crate) shutdown_timeout: i64,
    /// Containers live on when the daemon ends.
    pub(crate) live_restore: bool,
}

impl Config {
    /// Joins flags and file (S1, S2).
    ///
    /// # Errors
    /// Each variant of [`SettingsError`] but those of the command line.
    pub(crate) fn load(invocation: &Invocation) -> Result<Config, SettingsError> {
        let named = invocation.config_file.is_some();
        let path = PathBuf::from(invocation.config_file.as_deref().unwrap_or(DEFAULT_FILE));
        Config::join(invocation.settings.clone(), file::read(&path, named)?)
    }

    fn join(mut settings: Settings, file: Settings) -> Result<Config, SettingsError> {
        let twice: Vec<String> = file
            .iter()
            .filter_map(|(key, in_file)| {
                let flag = settings.get(key)?;
                let (flag, in_file) = (flag.join(" "), in_file.join(" "));
                Some(format!("{key}: (from flag: {flag}, from file: {in_file})"))
            })
            .collect();
        if !twice.is_empty() {
            return Err(SettingsError::Conflict { directives: twice.join(", ") });
        }
        settings.extend(file);
        Reading(&settings).config()
    }
}

/// The settings with typed look-ups; all were checked for their form.
struct Reading<'a>(&'a Settings);

impl Reading<'_> {
    fn config(&self) -> Result<Config, SettingsError> {
        let mut warnings = Vec::new();
        for (key, values) in self.0 {
            if let Some(row) = table::by_key(key) {
                warnings.extend(row.judge(values)?);
            }
        }
        if self.0.contains_key("graph") {
            warnings.push("setting graph is an old name; use data-root".to_owned());
        }
        let data_root = self.text("data-root").or(self.text("graph")).unwrap_or("/var/lib/baleen");
        let exec_root = self.text("exec-root").unwrap_or("/run/baleen");
        let config = Config {
            hosts: self.hosts()?,
            group: self.text("group").unwrap_or("docker").to_owned(),
            group_is_named: self.text("group").is_some(),
            data_root: self.absolute("data-root", data_root)?,
            exec_root: self.absolute("exec-root", exec_root)?,
            pidfile: Some(match self.text("pidfile") {
                Some(path) => self.absolute("pidfile", path)?,
                None => self.absolute("exec-root", exec_root)?.join("baleen.pid"),
            }),
            cgroup_parent: self.text("cgroup-parent").map(str::to_owned),
            network: self.network(&self.absolute("exec-root", exec_root)?)?,
            deltas: self.flag("deltas", true),
            reloadable: self.reloadable()?,
            warnings,
        };
        match self.text("storage-driver") {
            None | Some("overlay2") => Ok(config),
            Some(other) => Err(invalid("storage-driver", other, "this engine has only overlay2")),
        }
    }

    fn reloadable(&self) -> Result<Reloadable, SettingsError> {
        let level = self.text("log-level").unwrap_or("info");
        let labels = self.list("labels");
        if let Some(label) = labels.iter().find(|label| !label.contains('=')) {
            return Err(invalid("labels", label, "expected key=value"));
        }
        for mirror in self.list("registry-mirrors") {
            let rest = mirror.strip_prefix("http://").or_else(|| mirror.strip_prefix("https://"));
            if rest.is_none_or(|host| host.is_empty() || host.contains(['?', '#', '@'])) {
                return Err(invalid(
                    "registry-mirrors",
                    &mirror,
                    "expected http://HOST or https://HOST, without user, query or fragment",
                ));
            }
        }
        for host in self.list("insecure-registries") {
            if host.contains("://") || host.is_empty() {
                return Err(invalid(
                    "insecure-registries",
                    &host,
                    "expected HOST[:PORT] or a network, without a scheme",
                ));
            }
        }
        Ok(Reloadable {
            debug: self.flag("debug", false),
            log_level: match level {
                "trace" => tracing::Level::TRACE,
                "debug" => tracing::Level::DEBUG,
                "info" => tracing::Level::INFO,
                "warn" | "warning" => tracing::Level::WARN,
                "error" | "fatal" | "panic" => tracing::Level::ERROR,
                other => return Err(invalid("log-level", other, "expected debug, info, warn, error or fatal")),
            },
            labels,
            registry_mirrors: self.list("registry-mirrors"),
            insecure_registries: self.list("insecure-registries"),
            max_concurrent_downloads: self.number("max-concurrent-downloads", 3, 1, 64)?,
            max_download_attempts: self.number("max-download-attempts", 5, 1, 1000)?,
            shutdown_timeout: self.number("shutdown-timeout", 15, -1, 86_400)?,
            live_restore: self.flag("live-restore", true),
        })
    }

    fn network(&self, exec_root: &Path) -> Result<NetworkConfig, SettingsError> {
        let mut network = NetworkConfig::at(exec_root);
        let address =
            |key: &str, text: &str| text.parse::<IpAddr>().map_err(|_| invalid(key, text, "expected an IP address"));
        network.dns = self.list("dns");
        for server in &network.dns {
            address("dns", server)?;
        }
        network.dns_search = self.list("dns-search");
        network.dns_options = self.list("dns-opts");
        network.host_gateway = self.text("host-gateway-ip").map(|text| address("host-gateway-ip", text)).transpose()?;
        let Some(bridge) = &mut network.bridge else { return Ok(network) };
        match self.text("bridge") {
            Some("none") => network.bridge = None,
            Some(name) if name.len() > 15 || name.contains(['/', ' ', ':']) || name.starts_with('.') => {
                return Err(invalid("bridge", name, "expected the name of a link: at most 15 bytes"));
            }
            name => {
                if let Some(name) = name {
                    name.clone_into(&mut bridge.name);
                }
                let subnet = |text: &str| {
                    text.parse().map_err(|_| invalid("bip", text, "expected ADDRESS/PREFIX, such as 172.20.0.1/16"))
                };
                bridge.address = self.text("bip").map(subnet).transpose()?;
                bridge.address6 = self.ipv6_address()?;
                bridge.mtu = self.number("mtu", 1500, 0, 65_535)?;
                if bridge.mtu == 0 {
                    bridge.mtu = 1500;
                }
                bridge.between_containers = self.flag("icc", true);
                bridge.masquerade = self.flag("ip-masq", true);
                bridge.firewall = self.flag("iptables", true);
                bridge.forwarding = self.flag("ip-forward", true);
                bridge.default_host_address = match self.text("ip") {
                    None | Some("0.0.0.0") => None,
                    Some(text) => Some(address("ip", text)?),
                };
            }
        }
        Ok(network)
    }

    /// The bridge's own IPv6 address, where there is to be one: `bip6`, else the first of `fixed-cidr-v6`.
    fn ipv6_address(&self) -> Result<Option<Ipv6Net>, SettingsError> {
        if !self.flag("ipv6", false) {
            return Ok(None);
        }
        let read = |key: &str, text: &str| {
            text.parse::<Ipv6Net>().map_err(|_| {
                invalid(key, text, "expected ADDRESS/PREFIX with a prefix of 48 to 104, such as fd00:1::/64")
            })
        };
        match (self.text("bip6"), self.text("fixed-cidr-v6")) {
            (Some(own), _) => read("bip6", own).map(Some),
            (None, Some(subnet)) => {
                let subnet = read("fixed-cidr-v6", subnet)?;
                let first = Ipv6Addr::from_bits(subnet.address.to_bits() | 1);
                Ok(Some(Ipv6Net { address: first, ..subnet }))
            }
            (None, None) => Err(invalid("ipv6", "true", "it needs fixed-cidr-v6 (or bip6) beside it")),
        }
    }

    fn hosts(&self) -> Result<Vec<Host>, SettingsError> {
        let tls = self.flag("tls", false) || self.flag("tlsverify", false);
        let mut hosts = Vec::new();
        for text in self.list("hosts") {
            let host = Host::parse(text.trim(), tls)?;
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        if hosts.is_empty() {
            hosts.push(Host::parse("", tls)?);
        }
        let tcp = hosts.iter().find_map(|host| match host {
            Host::Tcp(address) => Some(address),
            _ => None,
        });
        if let Some(key) =
            ["tlscacert", "tlscert", "tlskey"].into_iter().find(|key| self.text(key).is_some()).or(tls.then_some("tls"))
        {
            return Err(SettingsError::NotImplemented {
                key: key.to_owned(),
                value: self.text(key).unwrap_or_default().to_owned(),
                remedy: "listen on a Unix socket and reach it by ssh (`docker -H ssh://`)".to_owned(),
            });
        }
        let plain = ["tls", "tlsverify"].iter().any(|key| self.0.contains_key(key));
        match tcp {
            // Whoever reaches the API is root on this machine.
            Some(address) if !plain => Err(SettingsError::Excluded {
                text: format!(
                    "tcp://{address} without client certificates gives root to everyone who can reach it; use a Unix socket, or say --tls=false if the address is protected otherwise"
                ),
            }),
            _ => Ok(hosts),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|values| values.last()).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn list(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.text(key).and_then(parse_bool).unwrap_or(default)
    }

    fn number<T: TryFrom<i64>>(&self, key: &str, default: i64, least: i64, most: i64) -> Result<T, SettingsError> {
        let number = self.text(key).map_or(Ok(default), str::parse).unwrap_or(least - 1);
        let number = if (least..=most).contains(&number) { T::try_from(number).ok() } else { None };
        number.ok_or_else(|| invalid(key, self.text(key).unwrap_or_default(), &format!("expected {least} to {most}")))
    }

    fn absolute(&self, key: &str, path: &str) -> Result<PathBuf, SettingsError> {
        std::path::absolute(path).map_err(|error| invalid(key, path, &error.to_string()))
    }
}

fn invalid(key: &str, value: &str, reason: &str) -> SettingsError {
    SettingsError::Invalid { key: key.to_owned(), value: value.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str], json: &str) -> Result<Config, SettingsError> {
        let invocation = Invocation::parse(arguments.iter().map(|text| (*text).to_owned()))?;
        Config::join(invocation.settings, file::parse(json.as_bytes())?)
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = load(&[], "").expect("nothing given");
        assert_eq!(config.hosts, [Host::Unix("/run/docker.sock".into())]);
        assert_eq!((config.group.as_str(), config.group_is_named), ("docker", false));
        assert_eq!(config.data_root, PathBuf::from("/var/lib/baleen"));
        assert_eq!(config.exec_root, PathBuf::from("/run/baleen"));
        assert!(config.reloadable.live_restore && config.warnings.is_empty());
        assert_eq!(config.reloadable.max_concurrent_downloads, 3);
    }

    #[test]
    fn flags_are_read_in_every_form_that_dockerd_reads() {
        let arguments = [
            "-H",
            "unix:///a.sock",
            "-Hunix:///b.sock",
            "--host=unix:///a.sock",
            "-D",
            "-l=debug",
            "--data-root",
            "/d",
            "--exec-root=/e",
            "-p",
            "/p.pid",
            "-Gwheel",
            "--insecure-registry",
            "r:5000",
            "--insecure-registry=10.0.0.0/8",
            "--registry-mirror=https://m.example/",
            "--live-restore=false",
            "--storage-driver",
            "overlay2",
            "--cgroup-parent",
            "/x",
            "--bip",
            "10.9.0.1/24",
            "--label=a=b",
        ];
        let config = load(&arguments, "{}").expect("all known");
        assert_eq!(config.hosts, [Host::Unix("/a.sock".into()), Host::Unix("/b.sock".into())]);
        assert_eq!((config.group.as_str(), config.group_is_named), ("wheel", true));
        assert_eq!((config.data_root, config.exec_root), ("/d".into(), "/e".into()));
        assert_eq!(config.pidfile, Some("/p.pid".into()));
        assert_eq!(config.reloadable.insecure_registries, ["r:5000", "10.0.0.0/8"]);
        assert_eq!(config.reloadable.labels, ["a=b"]);
        assert!(config.reloadable.debug && !config.reloadable.live_restore);
        assert_eq!(config.network.bridge.and_then(|bridge| bridge.address), "10.9.0.1/24".parse().ok());
    }

    #[test]
    fn the_bridge_is_as_it_was_asked_for_or_is_refused() {
        let text = r#"{"bridge":"br7","mtu":1400,"icc":false,"ip-masq":false,"ip":"127.0.0.1","ipv6":true,"fixed-cidr-v6":"fd00:1::/64","dns":["10.0.0.1"]}"#;
        let network = load(&[], text).expect("all known").network;
        let bridge = network.bridge.expect("it is not switched off");
        assert_eq!((bridge.name.as_str(), bridge.mtu, bridge.between_containers), ("br7", 1400, false));
        assert_eq!(bridge.address6.map(|net| net.to_string()).as_deref(), Some("fd00:1::1/64"));
        assert_eq!((bridge.masquerade, bridge.firewall, bridge.forwarding), (false, true, true));
        assert_eq!((network.dns, bridge.default_host_address), (vec!["10.0.0.1".to_owned()], "127.0.0.1".parse().ok()));
        assert_eq!(load(&["--bridge=none"], "{}").expect("all known").network.bridge, None);
        for bad in [
            r#"{"bip":"10.9.0.1"}"#,
            r#"{"ipv6":true}"#,
            r#"{"dns":["x"]}"#,
            r#"{"bridge":"a/b"}"#,
            r#"{"fixed-cidr":"10.0.0.0/8"}"#,
            r#"{"mtu":-1}"#,
        ] {
            assert!(load(&[], bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_given_twice_is_refused_with_both_values() {
        let error =
            load(&["--data-root=/a", "-H", "unix:///a.sock"], r#"{"data-root":"/b","hosts":["unix:///b.sock"]}"#);
        let text = error.expect_err("twice").to_string();
        assert!(
            text.starts_with("the following directives are specified both as a flag and in the configuration file: ")
        );
        assert!(text.contains("data-root: (from flag: /a, from file: /b)"), "{text}");
        assert!(text.contains("hosts: (from flag: unix:///a.sock, from file: unix:///b.sock)"), "{text}");
    }

    #[test]
    fn unknown_keys_and_flags_are_refused_by_name() {
        let text = load(&[], r#"{"data-rot":"/b","debug":true,"x":1}"#).expect_err("unknown").to_string();
        assert_eq!(text, "the following directives don't match any configuration option: data-rot, x");
        assert!(
            matches!(load(&["--data-rot=/b"], ""), Err(SettingsError::UnknownFlag { flag }) if flag == "--data-rot")
        );
        assert!(matches!(load(&["-x"], ""), Err(SettingsError::UnknownFlag { flag }) if flag == "-x"));
        assert!(matches!(load(&["--data-root"], ""), Err(SettingsError::MissingValue { .. })));
        assert!(matches!(load(&["start"], ""), Err(SettingsError::Argument { .. })));
    }

    #[test]
    fn what_is_not_honoured_is_refused_or_warned_about_never_ignored() {
        for (json, key) in [
            (r#"{"userns-remap":"default"}"#, "userns-remap"),
            (r#"{"selinux-enabled":true}"#, "selinux-enabled"),
            (r#"{"log-driver":"journald"}"#, "log-driver"),
            (r#"{"log-opts":{"max-size":"1m"}}"#, "log-opts"),
            (r#"{"default-ulimits":{"nofile":{"Name":"nofile","Hard":1,"Soft":1}}}"#, "default-ulimits"),
            (r#"{"allow-direct-routing":true}"#, "allow-direct-routing"),
            (r#"{"seccomp-profile":"unconfined"}"#, "seccomp-profile"),
        ] {
            let error = load(&[], json).expect_err(json);
            assert!(
                matches!(&error, SettingsError::NotImplemented { key: named, .. } if named == key),
                "{json}: {error}"
            );
        }
        let harmless = r#"{"userns-remap":"","selinux-enabled":false,"log-driver":"json-file","log-opts":{},"features":{"buildkit":true},"containerd":"/x","iptables":false}"#;
        let config = load(&[], harmless).expect("each says what is done anyway");
        assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    }

    #[test]
    fn what_weakens_the_machine_is_refused() {
        for json in
            [r#"{"authorization-plugins":["x"]}"#, r#"{"api-cors-header":"*"}"#, r#"{"hosts":["tcp://0.0.0.0:2375"]}"#]
        {
            assert!(matches!(load(&[], json), Err(SettingsError::Excluded { .. })), "{json}");
        }
        assert!(load(&["--tls=false", "-H", "tcp://127.0.0.1:2375"], "").is_ok());
        assert!(load(&["--tlsverify=false", "-H", "tcp://127.0.0.1:2375"], "").is_ok());
        assert!(matches!(load(&["--tlsverify", "-H", "tcp://0.0.0.0"], ""), Err(SettingsError::NotImplemented { .. })));
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused() {
        for json in [
            r#"{"debug":"true"}"#,
            r#"{"hosts":"unix:///x"}"#,
            r#"{"data-root":7}"#,
            r#"{"shutdown-timeout":"15"}"#,
            r#"{"log-opts":{"max-size":1}}"#,
            r#"{"log-level":"loud"}"#,
            r#"{"max-concurrent-downloads":0}"#,
            r#"{"labels":["x"]}"#,
            r#"{"registry-mirrors":["mirror"]}"#,
            r#"{"insecure-registries":["http://r"]}"#,
            r#"{"storage-driver":"aufs"}"#,
            r#"{"hosts":["http://x"]}"#,
            r#"{"hosts":["unix://relative"]}"#,
            "[]",
            "{",
            "{} {}",
        ] {
            assert!(load(&[], json).is_err(), "{json}");
        }
        assert!(load(&[], "\u{feff}{\"debug\":true}").expect("with a byte order mark").reloadable.debug);
        assert!(load(&["--debug=maybe"], "").is_err());
    }
}
