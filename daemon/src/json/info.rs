//! `/version` and `/info`.

use std::collections::BTreeMap;

use baleen_engine::{EngineInfo, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use crate::settings::Config;

/// Docker Hub's key in clients' credential stores.
const INDEX_SERVER: &str = "https://index.docker.io/v1/";

/// `/version`: once by component, once flat.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version<'a> {
    platform: Value,
    components: [Value; 1],
    engine: &'a str,
    version: &'a str,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    min_api_version: String,
    git_commit: &'a str,
    go_version: &'a str,
    os: &'a str,
    arch: &'a str,
    kernel_version: String,
    build_time: &'a str,
}

impl<'a> Version<'a> {
    /// The versions of this build, speaking the API between two versions.
    pub(crate) fn new(version: &'a str, api: String, minimum: String) -> Version<'a> {
        let uname = rustix::system::uname();
        let kernel_version = uname.release().to_string_lossy().into_owned();
        let arch = go_arch(&uname.machine().to_string_lossy());
        let (commit, built, compiler) = (env!("BALEEN_COMMIT"), env!("BALEEN_BUILD_TIME"), env!("BALEEN_COMPILER"));
        Version {
            platform: json!({ "Name": concat!("baleen ", env!("CARGO_PKG_VERSION")) }),
            components: [json!({
                "Name": "Engine",
                "Version": version,
                "Details": {
                    "ApiVersion": api, "MinAPIVersion": minimum, "GitCommit": commit, "GoVersion": compiler, "Os": "linux",
                    "Arch": arch, "KernelVersion": kernel_version, "BuildTime": built, "Experimental": "false",
                },
            })],
            engine: "baleen",
            version,
            api_version: api,
            min_api_version: minimum,
            git_commit: commit,
            go_version: compiler,
            os: "linux",
            arch,
            kernel_version,
            build_time: built,
        }
    }
}

/// Go's name of a machine.
fn go_arch(machine: &str) -> &'static str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i586" | "i686" => "386",
        "riscv64" => "riscv64",
        "ppc64le" => "ppc64le",
        "s390x" => "s390x",
        machine if machine.starts_with("arm") => "arm",
        _ => "unknown",
    }
}

/// `/info`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Info {
    #[serde(rename = "ID")]
    id: String,
    containers: u64,
    containers_running: u64,
    containers_paused: u64,
    containers_stopped: u64,
    images: u64,
    driver: &'static str,
    driver_status: Vec<(String, String)>,
    plugins: Value,
    memory_limit: bool,
    swap_limit: bool,
    cpu_cfs_period: bool,
    cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    cpu_set: bool,
    pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    ipv4_forwarding: bool,
    bridge_nf_iptables: bool,
    bridge_nf_ip6tables: bool,
    debug: bool,
    n_fd: usize,
    oom_kill_disable: bool,
    n_goroutines: usize,
    system_time: Timestamp,
    logging_driver: &'static str,
    cgroup_driver: &'static str,
    cgroup_version: String,
    n_events_listener: u64,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSVersion")]
    os_version: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    index_server_address: &'static str,
    registry_config: Value,
    #[serde(rename = "NCPU")]
    ncpu: u64,
    mem_total: u64,
    generic_resources: Option<()>,
    docker_root_dir: String,
    http_proxy: &'static str,
    https_proxy: &'static str,
    no_proxy: &'static str,
    name: String,
    labels: Vec<String>,
    experimental_build: bool,
    server_version: &'static str,
    runtimes: BTreeMap<&'static str, Value>,
    default_runtime: &'static str,
    swarm: Value,
    live_restore_enabled: bool,
    isolation: &'static str,
    init_binary: &'static str,
    containerd_commit: Value,
    runc_commit: Value,
    init_commit: Value,
    security_options: Vec<String>,
    #[serde(rename = "CDISpecDirs")]
    cdi_spec_dirs: [(); 0],
    warnings: Vec<String>,
}

impl Info {
    /// What the engine, the settings and the process have to tell.
    pub(crate) fn new(engine: EngineInfo, config: &Config, server_version: &'static str) -> Info {
        let settings = &config.reloadable;
        let no_commit = json!({ "ID": "N/A", "Expected": "N/A" });
        let v2 = engine.cgroup_version == "2";
        Info {
            id: engine.id,
            containers: engine.containers,
            containers_running: engine.running,
            containers_paused: engine.paused,
            containers_stopped: engine.stopped,
            images: engine.images,
            driver: "overlay2",
            driver_status: engine.driver_status,
            plugins: json!({
                "Volume": ["local"], "Network": ["bridge", "host", "null"], "Authorization": null, "Log": ["json-file", "none"],
            }),
            memory_limit: true,
            swap_limit: true,
            cpu_cfs_period: true,
            cpu_cfs_quota: true,
            cpu_shares: true,
            cpu_set: true,
            pids_limit: true,
            ipv4_forwarding: reads_one("/proc/sys/net/ipv4/ip_forward"),
            bridge_nf_iptables: reads_one("/proc/sys/net/bridge/bridge-nf-call-iptables"),
            bridge_nf_ip6tables: reads_one("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
            debug: settings.debug,
            n_fd: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            oom_kill_disable: !v2,
            n_goroutines: std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count),
            system_time: Timestamp::now(),
            logging_driver: "json-file",
            cgroup_driver: "cgroupfs",
            cgroup_version: engine.cgroup_version,
            n_events_listener: engine.event_listeners,
            kernel_version: engine.kernel_version,
            operating_system: engine.operating_system,
            os_version: engine.os_version,
            os_type: "linux",
            architecture: engine.machine,
            index_server_address: INDEX_SERVER,
            registry_config: registry_config(config),
            ncpu: engine.cpus,
            mem_total: engine.memory_bytes,
            generic_resources: None,
            docker_root_dir: config.data_root.display().to_string(),
            http_proxy: "",
            https_proxy: "",
            no_proxy: "",
            name: engine.hostname,
            labels: settings.labels.clone(),
            experimental_build: false,
            server_version,
            runtimes: BTreeMap::from([("baleen", json!({ "path": "baleen" }))]),
            default_runtime: "baleen",
            swarm: json!({
                "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
                "RemoteManagers": null,
            }),
            live_restore_enabled: settings.live_restore,
            isolation: "",
            init_binary: "",
            containerd_commit: no_commit.clone(),
            runc_commit: no_commit.clone(),
            init_commit: no_commit,
            security_options: engine.security_options,
            cdi_spec_dirs: [],
            warnings: engine.warnings,
        }
    }
}

/// Docker's split of `insecure-registries`: networks on one side, hosts on the other.
fn registry_config(config: &Config) -> Value {
    let settings = &config.reloadable;
    let network = |text: &str| {
        text.split_once('/')
            .is_some_and(|(address, bits)| address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok())
    };
    let (mut networks, hosts): (Vec<_>, Vec<_>) =
        settings.insecure_registries.iter().cloned().partition(|text| network(text));
    networks.push("127.0.0.0/8".to_owned());
    let entry = |name: &str, secure: bool, official: bool, mirrors: &[String]| json!({ "Name": name, "Mirrors": mirrors, "Secure": secure, "Official": official });
    let mut index_configs: BTreeMap<String, Value> =
        hosts.iter().map(|host| (host.clone(), entry(host, false, false, &[]))).collect();
    index_configs.insert("docker.io".to_owned(), entry("docker.io", true, true, &settings.registry_mirrors));
    json!({ "InsecureRegistryCIDRs": networks, "IndexConfigs": index_configs, "Mirrors": settings.registry_mirrors })
}

fn reads_one(path: &str) -> bool {
    std::fs::read(path).is_ok_and(|text| text.trim_ascii() == b"1")
}
