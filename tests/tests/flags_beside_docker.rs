//! Every flag of `docker run`, read by its effect inside the container, beside Debian's `dockerd` in the same run.
//!
//! The same client runs the same image under both engines. What the program finds (`probe.sh`) is put into lines without what differs
//! by nature (IDs, paths of the engines, numbers of interfaces) and compared line by line. What may differ is in [`ALLOWED`], each with
//! its reason; a reason that no case needs any more fails the test too. docs/runtime.md has the same list for readers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use baleen_tests::archive::Entry;
use baleen_tests::command::{Finished, run, succeed};
use baleen_tests::daemon::Daemon;
use baleen_tests::dockerd::Dockerd;
use baleen_tests::http;
use baleen_tests::image::{Image, Layer, busybox_entries};
use baleen_tests::needs_root;
use baleen_tests::network::Network;
use baleen_tests::scratch::Scratch;
use serde_json::Value;

/// Bridges of both engines have this address in their own networks.
const BRIDGE: &str = "172.29.0.1/16";

/// A difference that is meant: `only` in our lines or in Docker's.
struct Allowed {
    /// Start of a line, with its section; `*` stands for anything.
    line: &'static str,
    /// Whose.
    only: Side,
    /// Flags that the case must have; none for all cases.
    with: &'static str,
    /// Why.
    reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Docker,
}

const fn ours(line: &'static str, with: &'static str, reason: &'static str) -> Allowed {
    Allowed { line, only: Side::Ours, with, reason }
}

const fn dockers(line: &'static str, with: &'static str, reason: &'static str) -> Allowed {
    Allowed { line, only: Side::Docker, with, reason }
}

const SYSTEMD: &str =
    "hierarchies without controllers are the service manager's; the container stays in the daemon's group there";
const NEWER_MASKS: &str =
    "the lists of paths are those of newer versions of Docker, which hide interrupts and power readings too";
const LOOPBACK6: &str = "loopback has ::1 on networks without IPv6 too, as in newer versions of Docker";
const PRIVATE: &str = "what the host mounts below is not seen inside unless a bind asks for it";
const SOURCE_INSIDE: &str = "HOME is of the image's passwd: no file of a volume is asked for it";
const LABELS: &str = "SELinux labels are not implemented";
const CGROUP_V1: &str = "the folder itself is read-only too; its superblock's own options differ";
const NAMES_OF_CAPS: &str = "20.10 knows no capabilities after AUDIT_READ";

/// What may differ, and why.
const ALLOWED: &[Allowed] = &[
    ours("groups :/", "", SYSTEMD),
    dockers("groups :PARENT", "", SYSTEMD),
    ours("groups name=systemd:/", "", SYSTEMD),
    dockers("groups name=systemd:PARENT", "", SYSTEMD),
    dockers("mounts /sys/fs/cgroup/systemd ", "", SYSTEMD),
    dockers("writable /sys/fs/cgroup/systemd ", "", SYSTEMD),
    ours("masked /proc/interrupts file of 0", "", NEWER_MASKS),
    dockers("masked /proc/interrupts file of 1", "", NEWER_MASKS),
    ours("mounts /proc/interrupts ", "", NEWER_MASKS),
    ours("inspect HostConfig.MaskedPaths ", "", NEWER_MASKS),
    dockers("inspect HostConfig.MaskedPaths ", "", NEWER_MASKS),
    dockers("inspect HostConfig.KernelMemory", "", "fields that API versions from 1.42 on no longer have"),
    dockers(
        "groups devices/devices.list c 10:200 rwm",
        "",
        "20.10 lets every container open /dev/net/tun; newer runc does not",
    ),
    ours("settings /proc/sys/net/ipv6/conf/all/disable_ipv6:0", "", LOOPBACK6),
    dockers("settings /proc/sys/net/ipv6/conf/all/disable_ipv6:1", "", LOOPBACK6),
    ours("settings /proc/sys/net/ipv6/conf/default/disable_ipv6:0", "", LOOPBACK6),
    dockers("settings /proc/sys/net/ipv6/conf/default/disable_ipv6:1", "", LOOPBACK6),
    ours("settings /proc/sys/net/ipv6/conf/lo/disable_ipv6:0", "", LOOPBACK6),
    dockers("settings /proc/sys/net/ipv6/conf/lo/disable_ipv6:1", "", LOOPBACK6),
    ours("links lo inet6 ::1/128", "", LOOPBACK6),
    ours(
        "settings /proc/sys/net/ipv6/conf/eth0/accept_ra:0",
        "",
        "router advertisements of other containers are not listened to",
    ),
    dockers(
        "settings /proc/sys/net/ipv6/conf/eth0/accept_ra:1",
        "",
        "router advertisements of other containers are not listened to",
    ),
    ours("mounts / ", "", PRIVATE),
    dockers("mounts / ", "", PRIVATE),
    ours("mounts /sys ro,nosuid,nodev,noexec,relatime [] sysfs sysfs / rw", "", CGROUP_V1),
    dockers("mounts /sys ro,nosuid,nodev,noexec,relatime [] sysfs sysfs / ro", "", CGROUP_V1),
    ours("inspect HostConfig.SecurityOpt null", "--pid host", LABELS),
    dockers("inspect HostConfig.SecurityOpt [\"label=disable\"]", "--pid host", LABELS),
    ours("inspect HostConfig.SecurityOpt null", "--ipc host", LABELS),
    dockers("inspect HostConfig.SecurityOpt [\"label=disable\"]", "--ipc host", LABELS),
    ours("inspect HostConfig.SecurityOpt null", "--privileged", LABELS),
    dockers("inspect HostConfig.SecurityOpt [\"label=disable\"]", "--privileged", LABELS),
    ours("process first ", "--pid host", "the first process of the host is another one's"),
    dockers("process first ", "--pid host", "the first process of the host is another one's"),
    ours("status CapBnd:", "-u 7", NAMES_OF_CAPS),
    dockers("status CapBnd:", "-u 7", NAMES_OF_CAPS),
    ours(
        "groups blkio/blkio.bfq.weight 300",
        "--blkio-weight",
        "20.10 does not know the file that kernels have for it",
    ),
    dockers(
        "groups blkio/blkio.bfq.weight 100",
        "--blkio-weight",
        "20.10 does not know the file that kernels have for it",
    ),
    ours(
        "inspect HostConfig.BlkioWeight 300",
        "--blkio-weight",
        "20.10 does not know the file that kernels have for it",
    ),
    dockers(
        "inspect HostConfig.BlkioWeight 0",
        "--blkio-weight",
        "20.10 does not know the file that kernels have for it",
    ),
    dockers(
        "warning: WARNING: Your kernel does not support Block I/O weight",
        "--blkio-weight",
        "20.10 does not know the file that kernels have for it",
    ),
    dockers(
        "mounts /sbin/docker-init ",
        "--init",
        "the init is the process that set the container up: nothing is mounted for it",
    ),
    ours("mounts /m/below ro,", ":ro", "a read-only bind is so all the way down, as from API version 1.44 on"),
    dockers("mounts /m/below rw,", ":ro", "a read-only bind is so all the way down, as from API version 1.44 on"),
    ours("mounts /m/below ro,", "readonly", "a read-only bind is so all the way down, as from API version 1.44 on"),
    dockers("mounts /m/below rw,", "readonly", "a read-only bind is so all the way down, as from API version 1.44 on"),
    ours("environment HOME=/root", "nocopy", SOURCE_INSIDE),
    dockers("environment HOME=/", "nocopy", SOURCE_INSIDE),
    ours("mounts /m/below ro,", ",ro", "a read-only bind is so all the way down, as from API version 1.44 on"),
    dockers("mounts /m/below rw,", ",ro", "a read-only bind is so all the way down, as from API version 1.44 on"),
    ours("mounts /m/below rw,relatime [] ", "tree:/m:private", PRIVATE),
    dockers("mounts /m/below rw,relatime [master] ", "tree:/m:private", PRIVATE),
    ours("mounts /sys/fs/cgroup ro,", "", "on version 1 the folder of the hierarchies is read-only itself too"),
    ours("mounts *[] ext4 *volume", "", PRIVATE),
    dockers("mounts *[master] ext4 *volume", "", PRIVATE),
];

/// Cases that this machine does not let Docker run, by what it says: then there is nothing to compare with.
const NOT_HERE: [&str; 3] = [
    "unable to apply caps: operation not permitted",
    "error setting rlimit type",
    "can't get final child's PID from pipe",
];

/// Flags of one run each, separated by blanks. `S` is the folder of sources, `D` a container that runs, `B` a block device.
const CASES: &[&str] = &[
    "",
    "-m 64m",
    "-m 64m --memory-swap 100m",
    "-m 64m --memory-swap -1",
    "-m 64m --memory-swap 64m",
    "--memory-reservation 32m",
    "-m 64m --memory-reservation 32m",
    "--memory-swappiness 40",
    "--memory-swappiness 0",
    "-m 64m --oom-kill-disable",
    "--cpu-shares 512",
    "--cpu-period 50000 --cpu-quota 20000",
    "--cpu-quota 20000",
    "--cpus 0.5",
    "--cpuset-cpus 0",
    "--cpuset-mems 0",
    "--pids-limit 33",
    "--pids-limit -1",
    "--blkio-weight 300",
    "--device-read-bps B:1mb --device-write-bps B:2mb",
    "--device-read-iops B:100 --device-write-iops B:200",
    "--device /dev/full:/dev/mine:r",
    "--device /dev/full:/dev/mine",
    "--device /dev/loop-control",
    "--device-cgroup-rule c_42:*_rwm",
    "--device-cgroup-rule b_7:0_r",
    "--ulimit nofile=77:99 --ulimit nproc=50:60",
    "--ulimit core=0 --ulimit memlock=65536 --ulimit stack=1000000:2000000",
    "--ulimit cpu=100 --ulimit fsize=1000000000 --ulimit msgqueue=1000 --ulimit locks=9 --ulimit rss=9999999 --ulimit sigpending=90",
    "--ulimit memlock=-1",
    "--sysctl net.ipv4.ip_unprivileged_port_start=7 --sysctl net.ipv4.ip_forward=0",
    "--sysctl kernel.msgmax=9999 --sysctl kernel.shmmni=77 --sysctl fs.mqueue.msg_max=33",
    "--sysctl net.core.somaxconn=99",
    "--group-add 1234 --group-add user",
    "--group-add 1234 -u 7:8",
    "-u 7:8",
    "-u 7",
    "-u user",
    "-u user:1234",
    "-u 1000",
    "-u 0:0",
    "-u root",
    "--cap-add NET_ADMIN --cap-add CAP_SYS_TIME",
    "--cap-drop ALL",
    "--cap-drop ALL --cap-add CHOWN",
    "--cap-add ALL",
    "--cap-add ALL --cap-drop MKNOD",
    "--cap-add ALL -u 7",
    "--cap-add SYS_ADMIN",
    "--cap-drop mknod -u 7",
    "--cap-add NET_ADMIN -u 7",
    "--security-opt no-new-privileges",
    "--security-opt no-new-privileges:false",
    "--security-opt seccomp=unconfined",
    "--security-opt seccomp=S/profile.json",
    "--security-opt apparmor=unconfined",
    "--security-opt label=disable",
    "--security-opt systempaths=unconfined",
    "--privileged",
    "--privileged -u 7",
    "--privileged --pid host",
    "--pid host",
    "--pid container:D",
    "--ipc none",
    "--ipc private",
    "--ipc shareable",
    "--ipc host",
    "--ipc container:D",
    "--uts host",
    "--cgroupns host",
    "--cgroupns private",
    "--network none",
    "--network host",
    "--network container:D",
    "--userns host",
    "--shm-size 3m",
    "--oom-score-adj 321",
    "--oom-score-adj -500",
    "--hostname pebble",
    "--hostname pebble.beach.example",
    "--hostname pebble --domainname beach.example",
    "--domainname beach.example",
    "--add-host sea:192.0.2.7 --add-host gate:host-gateway",
    "--dns 192.0.2.8 --dns-search shore --dns-option ndots:3",
    "--dns 192.0.2.8 --dns 192.0.2.9",
    "--dns-search .",
    "--hostname pebble --add-host sea:192.0.2.7 --network none",
    "--init",
    "--init -u 7 --cap-drop ALL",
    "--read-only",
    "--read-only --tmpfs /tmp",
    "-v S/tree:/m",
    "-v S/tree:/m:ro",
    "-v S/tree/file:/m",
    "-v S/made:/m",
    "-v S/tree:/m:private",
    "-v S/tree:/m:shared",
    "-v S/tree:/m:rshared",
    "-v S/tree:/m:slave",
    "-v S/tree:/m:rslave,ro",
    "-v named:/m",
    "-v named:/m:ro",
    "-v named:/etc",
    "-v named2:/etc:nocopy",
    "-v /m",
    "--volumes-from D",
    "--volumes-from D:ro",
    "--mount type=bind,src=S/tree,dst=/m",
    "--mount type=bind,src=S/tree,dst=/m,readonly",
    "--mount type=bind,src=S/tree,dst=/m,bind-propagation=rslave",
    "--mount type=bind,src=S/tree,dst=/m,bind-nonrecursive",
    "--mount type=volume,src=third,dst=/m",
    "--mount type=volume,dst=/m",
    "--mount type=volume,dst=/m,readonly",
    "--mount type=volume,src=fourth,dst=/etc,volume-nocopy",
    "--mount type=tmpfs,dst=/m",
    "--mount type=tmpfs,dst=/m,tmpfs-size=1m,tmpfs-mode=700",
    "--tmpfs /m",
    "--tmpfs /m:size=1m,mode=700,exec",
    "--tmpfs /m:ro,uid=7,gid=8",
    "-w /made/here",
    "-w /tmp/../etc",
    "--entrypoint /bin/sh",
    "-e A=1 -e B= -e PATH=/bin:/sbin",
    "--env-file S/variables",
    "-e HOME=/x -u user",
    "-l one=1 -l two",
    "--stop-signal SIGUSR1 --stop-timeout 7",
    "-t",
    "-i",
    "-it",
    "--name other",
    "--expose 81",
    "-p 127.0.0.1:8081:81",
    "-P --expose 81/udp",
    "--restart on-failure:3",
    "--log-driver none",
    "--log-opt max-size=1m --log-opt max-file=2",
    "--no-healthcheck",
    "--health-cmd true --health-interval 5s --health-retries 2",
    "--runtime runc",
    "--cgroup-parent P/below",
];

/// What both engines have in common here.
struct Place {
    sources: String,
    disk: String,
}

/// One of the two engines, as the test drives it.
struct Engine {
    socket: PathBuf,
    client_folder: PathBuf,
    cgroup_parent: String,
    /// `ns` links of the daemon, by name.
    namespaces: BTreeMap<String, String>,
    donor: (String, BTreeMap<String, String>),
}

fn namespaces(pid: u32) -> BTreeMap<String, String> {
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).map(|link| link.display().to_string());
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), link(name).ok()?))).collect()
}

impl Engine {
    fn docker(&self, arguments: &[&str]) -> Result<Finished> {
        run(&mut client(&self.socket, &self.client_folder, arguments), None, Duration::from_secs(120))
    }

    /// Loads the image and starts the container that others join.
    fn prepare(&mut self, archive: &Path) -> Result<()> {
        self.docker(&["load", "-q", "-i", &archive.to_string_lossy()])?.ok()?;
        let donor = [
            "run",
            "-d",
            "--name",
            "donor",
            "--ipc",
            "shareable",
            "-v",
            "/given",
            "-h",
            "donor",
            "probe",
            "sleep",
            "10000",
        ];
        let id = self.docker(&donor)?.ok()?.stdout().trim().to_owned();
        // The machine's number of its first process: the one that its control group names.
        let group = format!("/sys/fs/cgroup/pids{}/{id}/cgroup.procs", self.cgroup_parent);
        let unified = format!("/sys/fs/cgroup{}/{id}/cgroup.procs", self.cgroup_parent);
        let procs = fs::read_to_string(&group).or_else(|_| fs::read_to_string(&unified)).context(group)?;
        let pid = procs.lines().next().and_then(|line| line.parse().ok()).context("no process in the donor")?;
        self.donor = (id, namespaces(pid));
        Ok(())
    }

    /// What the program finds with these flags, and what inspect says of them; or the refusal.
    fn probe(&self, case: &str, place: &Place) -> Result<BTreeSet<String>> {
        let flags: Vec<String> = case
            .split_whitespace()
            .map(|word| {
                let word = word
                    .replace("S/", &format!("{}/", place.sources))
                    .replace("P/", &format!("{}/", self.cgroup_parent));
                let word = if word == "D" || word.starts_with("D:") { word.replacen('D', "donor", 1) } else { word };
                let word = word
                    .replace("container:D", "container:donor")
                    .replace('_', if word.starts_with(['b', 'c']) { " " } else { "_" });
                if word.starts_with("B:") { word.replacen('B', &place.disk, 1) } else { word }
            })
            .collect();
        let named = flags.iter().any(|flag| flag == "--name");
        let name = if named { "other" } else { "one" };
        // With an input that is kept open the client would want a terminal of its own.
        let typed = flags.iter().any(|flag| flag == "-it");
        let mut arguments: Vec<&str> = vec![if typed { "create" } else { "run" }];
        if !named {
            arguments.extend(["--name", name]);
        }
        arguments.extend(flags.iter().map(String::as_str));
        arguments.push("probe");
        if case.contains("entrypoint") {
            arguments.push("/probe");
        }
        let mut lines = BTreeSet::new();
        let mut ended = self.docker(&arguments)?;
        if typed && ended.code == 0 {
            ended = self.docker(&["start", "-a", name])?;
        }
        let inspected = http::request(&self.socket, "GET", &format!("/containers/{name}/json"), None)?;
        if inspected.status == 404 {
            lines.insert(format!("refused by create: {}", ended.output().trim()));
            return Ok(lines);
        }
        let inspected = inspected.json()?;
        let id = inspected["Id"].as_str().context("no ID")?.to_owned();
        let warnings = ended.stderr.lines().filter(|line| line.starts_with("WARNING"));
        lines.extend(warnings.map(|line| format!("warning: {line}")));
        for part in ["Config", "HostConfig"] {
            for (key, value) in inspected[part].as_object().context("no object")? {
                let mut value = value.clone();
                if let (true, Some(list)) = (matches!(key.as_str(), "Env" | "MaskedPaths"), value.as_array_mut()) {
                    list.sort_by_key(Value::to_string);
                }
                lines.insert(self.plain(&format!("inspect {part}.{key} {value}"), &id, place));
            }
        }
        if ended.stdout().is_empty() && !case.contains("log-driver none") {
            lines.insert(self.plain(&format!("refused by start: {}", ended.stderr.trim()), &id, place));
        }
        let mut section = "";
        for line in ended.stdout().lines() {
            match line.trim_end_matches('\r').strip_prefix('#') {
                Some(name) => section = sections(name),
                None => lines.extend(self.line(section, line.trim_end_matches('\r'), &id, place)),
            }
        }
        if !matches!(section, "" | "end") {
            lines.insert(format!("cut in section {section}: {}", ended.stderr.trim()));
        }
        let removed = http::request(&self.socket, "DELETE", &format!("/containers/{name}?force=1&v=1"), None)?.status;
        anyhow::ensure!(removed == 204, "the removal is answered with {removed}");
        Ok(lines)
    }

    /// A line without what differs by nature.
    fn plain(&self, line: &str, id: &str, place: &Place) -> String {
        line.replace(id, "ID")
            .replace(&id[..12], "ID12")
            .replace(&self.donor.0, "DONOR")
            .replace(&self.donor.0[..12], "DONOR12")
            .replace(&self.cgroup_parent, "PARENT")
            .replace(&place.sources, "SOURCES")
    }

    fn line(&self, section: &str, line: &str, id: &str, place: &Place) -> Option<String> {
        let line = line.trim();
        if line.is_empty() {
            return None;
        }
        let text = match section {
            "namespaces" => {
                let (name, link) = line.split_once(' ')?;
                let whose = if self.namespaces.get(name).is_some_and(|own| own == link) {
                    "the daemon's"
                } else if self.donor.1.get(name).is_some_and(|own| own == link) {
                    "the donor's"
                } else {
                    "its own"
                };
                format!("{name} {whose}")
            }
            "mounts" => mount_line(line)?,
            "links" => {
                // `2: eth0    inet 172.29.0.2/16 ...`: the number and those of the pair differ.
                if ["baleen0", "docker0", "veth"].iter().any(|name| line.contains(name)) {
                    return None;
                }
                let text = line
                    .split_once(": ")
                    .filter(|(number, _)| number.parse::<u32>().is_ok())
                    .map_or(line, |(_, rest)| rest);
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            }
            // The engines' own links, on the host's network.
            "settings" if ["baleen0", "docker0"].iter().any(|name| line.contains(name)) => return None,
            "settings" if line.contains("/bv") || line.contains("/veth") => return None,
            "limits" => line.split_whitespace().collect::<Vec<_>>().join(" "),
            _ => line.to_owned(),
        };
        Some(self.plain(&format!("{section} {text}"), id, place))
    }
}

/// The name of a section as a static text.
fn sections(name: &str) -> &'static str {
    const NAMES: [&str; 20] = [
        "arguments",
        "status",
        "limits",
        "process",
        "descriptors",
        "environment",
        "namespaces",
        "mounts",
        "settings",
        "groups",
        "hosts",
        "resolver",
        "names",
        "devices",
        "masked",
        "writable",
        "opened",
        "files",
        "links",
        "end",
    ];
    NAMES.into_iter().find(|known| *known == name).unwrap_or("unknown")
}

/// Target, options, propagation, type, source and options of the file system, without numbers and paths of the engine.
fn mount_line(line: &str) -> Option<String> {
    let (mount, system) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let system: Vec<&str> = system.split(' ').collect();
    let (root, target, options) = (*mount.get(3)?, *mount.get(4)?, *mount.get(5)?);
    let (kind, source, more) = (*system.first()?, *system.get(1)?, *system.get(2)?);
    let propagation: Vec<&str> = mount.get(6..)?.iter().filter_map(|field| field.split(':').next()).collect();
    let root = match kind {
        "overlay" | "tmpfs" | "proc" | "sysfs" | "devpts" | "mqueue" => {
            if kind == "tmpfs" && root != "/" {
                "part"
            } else {
                root
            }
        }
        _ if root.contains("/volumes/") => "volume",
        _ if target.starts_with("/etc/") => root.rsplit('/').next()?,
        _ => root,
    };
    let more = if kind == "overlay" { "" } else { more };
    let source = if kind == "overlay" { "overlay" } else { source };
    Some(format!("{target} {options} [{}] {kind} {source} {root} {more}", propagation.join(" ")))
}

/// The difference of a case, in lines of a side.
fn differences(ours: &BTreeSet<String>, dockers: &BTreeSet<String>) -> Vec<(Side, String)> {
    let ours_only = ours.difference(dockers).map(|line| (Side::Ours, line.clone()));
    // Of what inspect says ours may say more, never less or otherwise.
    let key = |line: &str| line.strip_prefix("inspect ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
    let keys: BTreeSet<String> = dockers.iter().filter_map(|line| key(line)).collect();
    let ours_only = ours_only.filter(|(_, line)| key(line).is_none_or(|key| keys.contains(&key)));
    ours_only.chain(dockers.difference(ours).map(|line| (Side::Docker, line.clone()))).collect()
}

#[test]
fn every_flag_of_run_has_the_effect_inside_that_it_has_with_docker_s_engine() -> Result<()> {
    needs_root!("every_flag_of_run_has_the_effect_inside_that_it_has_with_docker_s_engine");
    let scratch = Scratch::new("beside")?;
    let mut entries = busybox_entries()?;
    entries.push(Entry::file("probe", include_str!("probe.sh")).mode(0o755));
    let image = Image::new(vec![Layer::of(&entries)?], &["/probe"]);
    let archive = scratch.join("image.tar");
    fs::write(&archive, image.docker_archive("probe:latest"))?;
    let place = sources(&scratch)?;

    let networks = [Network::new()?, Network::new()?];
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&networks[0]).argument("--bip").argument(BRIDGE).run()?;
    let shared = [PathBuf::from(&place.sources).join("tree")];
    let dockerd = Dockerd::start(&scratch, &networks[1], &["--bip", BRIDGE], &shared)?;
    let mut ours = Engine {
        socket: daemon.socket(),
        client_folder: daemon.client_folder(),
        cgroup_parent: daemon.cgroup_parent().to_owned(),
        namespaces: namespaces(daemon.pid().context("no daemon")?),
        donor: Default::default(),
    };
    let mut dockers = Engine {
        socket: dockerd.socket(),
        client_folder: dockerd.client_folder(),
        cgroup_parent: dockerd.cgroup_parent().to_owned(),
        namespaces: namespaces(dockerd.pid().context("no daemon")?),
        donor: Default::default(),
    };
    ours.prepare(&archive)?;
    dockers.prepare(&archive)?;

    let only = std::env::var("BALEEN_CASE").ok();
    let cases = || CASES.iter().filter(|case| only.as_ref().is_none_or(|only| *case == only));
    // Both at once: neither knows of the other.
    let (found, expected) = std::thread::scope(|scope| {
        let all = |engine: Engine| -> Result<Vec<BTreeSet<String>>> {
            cases().map(|case| engine.probe(case, &place).with_context(|| format!("{case:?}"))).collect()
        };
        let theirs = scope.spawn(move || all(dockers));
        (all(ours), theirs.join().expect("the thread of dockerd"))
    });
    let (found, expected) = (found?, expected?);

    let mut used = vec![false; ALLOWED.len()];
    let mut failures = Vec::new();
    let mut lines = 0;
    for ((case, ours), dockers) in cases().zip(&found).zip(&expected) {
        lines += dockers.len();
        if dockers
            .iter()
            .any(|line| line.starts_with("refused by start") && NOT_HERE.iter().any(|text| line.contains(text)))
        {
            println!("not compared, since the machine withholds a capability from dockerd: {case}");
            continue;
        }
        if let Some(refusal) = dockers.iter().find(|line| line.starts_with("refused")) {
            // A refusal is compared as such: the texts of the runtimes below differ.
            if ours.iter().any(|line| line.starts_with("refused")) {
                println!("refused by both: {case:?}: {refusal}");
            } else {
                failures.push(format!("{case:?}: only docker refuses: {refusal}"));
            }
            continue;
        }
        if let Some(refusal) = ours.iter().find(|line| line.starts_with("refused")) {
            failures.push(format!("{case:?}: only ours refuses: {refusal}"));
            continue;
        }
        for (side, line) in differences(ours, dockers) {
            let allowed = ALLOWED.iter().position(|allowed| {
                allowed.only == side
                    && begins(&line, allowed.line)
                    && (allowed.with.is_empty() || case.contains(allowed.with))
            });
            match allowed {
                Some(index) => used[index] = true,
                None => failures.push(format!("{case:?}: only {side:?}: {line}")),
            }
        }
    }
    println!("{} cases, {lines} lines of dockerd's compared", cases().count());
    for (allowed, _) in ALLOWED.iter().zip(&used).filter(|(_, used)| !**used && only.is_none()) {
        failures.push(format!("no case needs it any more: {:?} {:?}: {}", allowed.only, allowed.line, allowed.reason));
    }
    if !failures.is_empty() {
        bail!("{} differences\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

/// Whether a line begins as the pattern says.
fn begins(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// The `docker` client of one of the two.
fn client(socket: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env("DOCKER_CONFIG", folder)
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_API_VERSION");
    command
}

/// A shared mount with files and another mount below it, a seccomp profile, variables; and a block device of the machine.
fn sources(scratch: &Scratch) -> Result<Place> {
    let sources = scratch.join("sources");
    let tree = sources.join("tree");
    fs::create_dir_all(&tree)?;
    fs::write(sources.join("variables"), "FROM_FILE=1\nOTHER=a b\n")?;
    fs::write(
        sources.join("profile.json"),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )?;
    let tree_text = tree.to_string_lossy().into_owned();
    succeed("mount", &["-t", "tmpfs", "-o", "size=1m", "tree", &tree_text])?;
    succeed("mount", &["--make-shared", &tree_text])?;
    fs::write(tree.join("file"), "kept\n")?;
    fs::create_dir(tree.join("below"))?;
    succeed("mount", &["-t", "tmpfs", "-o", "size=1m", "below", &tree.join("below").to_string_lossy()])?;
    fs::write(tree.join("below/deeper"), "kept\n")?;
    let disks = fs::read_dir("/sys/block")?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let disk = disks.filter(|name| Path::new("/dev").join(name).exists()).min().context("no block device")?;
    Ok(Place { sources: sources.to_string_lossy().into_owned(), disk: format!("/dev/{disk}") })
}
