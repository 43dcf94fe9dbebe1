//! Control groups: where they are mounted, and the group of one container.
//!
//! G1  Only directories that end in the container's own path are ever removed, frozen or killed: in the hybrid layout a process is
//!     also in groups that are not its own.
//! G2  A process is killed through a pidfd that was checked, after it was opened, to be of a member.
//!
//! Touches: `/proc/self/mountinfo`, the cgroup file systems.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// The group below which containers live when nothing else is asked for.
pub(crate) const PARENT_DEFAULT: &str = "/baleen";
/// Controllers of cgroup v1 that the runtime library puts a container into.
const V1_CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];
/// How long the kernel may take to empty a killed group. A process in an uninterruptible wait takes longer; then the error says so.
const EMPTY_WAIT_MAX: Duration = Duration::from_secs(10);
const EMPTY_POLL: Duration = Duration::from_millis(2);

type Failure = (PathBuf, io::Error);

/// The path of a container's group in each hierarchy.
pub(crate) fn path_of(parent: &str, id: &str) -> String {
    let parent = if parent.is_empty() { PARENT_DEFAULT } else { parent };
    format!("{}/{id}", parent.trim_end_matches('/'))
}

/// One hierarchy of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount_point: PathBuf,
    pub(crate) controllers: Vec<String>,
}

impl Hierarchy {
    /// The names by which programs look for it below `/sys/fs/cgroup`.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.mount_point.file_name().and_then(|name| name.to_str()).map(str::to_owned).into_iter().collect();
        for controller in &self.controllers {
            if !names.contains(controller) {
                names.push(controller.clone());
            }
        }
        names
    }
}

/// What is mounted on this host.
#[derive(Debug)]
pub(crate) struct Host {
    v1: Vec<Hierarchy>,
    v2: Option<PathBuf>,
}

impl Host {
    pub(crate) fn read() -> Result<Self, Failure> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|error| (path.to_owned(), error))?;
        let host = Self::parse(&text);
        if host.v1.is_empty() && host.v2.is_none() {
            let error = io::Error::new(
                io::ErrorKind::NotFound,
                "no cgroup file system is mounted; mount cgroup2 on /sys/fs/cgroup",
            );
            return Err((path.to_owned(), error));
        }
        Ok(host)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut host = Self { v1: Vec::new(), v2: None };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4).filter(|path| path.starts_with("/sys/fs/cgroup")) else {
                continue;
            };
            let mut right = right.split(' ');
            let (kind, super_options) = (right.next(), right.nth(1).unwrap_or_default());
            match kind {
                Some("cgroup2") if host.v2.is_none() => host.v2 = Some(mount_point.into()),
                Some("cgroup") => {
                    let controllers: Vec<String> = super_options
                        .split(',')
                        .filter(|option| V1_CONTROLLERS.contains(option))
                        .map(str::to_owned)
                        .collect();
                    if !controllers.is_empty() && host.v1.iter().all(|known| known.controllers != controllers) {
                        host.v1.push(Hierarchy { mount_point: mount_point.into(), controllers });
                    }
                }
                _ => {}
            }
        }
        host
    }

    /// Whether cgroup v2 alone is in charge.
    pub(crate) fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }

    pub(crate) fn v1_hierarchies(&self) -> &[Hierarchy] {
        &self.v1
    }

    /// Whether the kernel can limit swap (v1: needs `swapaccount`).
    pub(crate) fn has_swap_limit(&self) -> bool {
        match self.v1_dir("memory") {
            Some(dir) => dir.join("memory.memsw.limit_in_bytes").exists(),
            // The root group has no limits of its own: look at its children.
            None => self.v2.iter().any(|root| {
                let children = fs::read_dir(root).into_iter().flatten().flatten();
                children.take(64).any(|entry| entry.path().join("memory.swap.max").exists())
            }),
        }
    }

    fn v1_dir(&self, controller: &str) -> Option<&Path> {
        let has = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        self.v1.iter().find(has).map(|hierarchy| hierarchy.mount_point.as_path())
    }

    /// The existing directories of one group (G1).
    pub(crate) fn group(&self, path: &str) -> Cgroup {
        let relative = path.trim_start_matches('/');
        let mounts: Vec<&Path> = match &self.v2 {
            Some(mount) if self.is_unified() => vec![mount],
            _ => self.v1.iter().map(|hierarchy| hierarchy.mount_point.as_path()).collect(),
        };
        let dirs = mounts.into_iter().map(|mount| mount.join(relative)).filter(|dir| dir.is_dir()).collect();
        Cgroup { dirs }
    }
}

/// The memory of a group that has a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryShortage {
    dir: PathBuf,
    limit_bytes: u64,
    used_bytes: u64,
    reclaimable_bytes: u64,
}

impl MemoryShortage {
    /// Reads the files of a group; `None` if it has no limit.
    fn read(dir: &Path) -> Option<Self> {
        let number = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        let is_v1 = dir.join("memory.usage_in_bytes").exists();
        let (limit, used) = if is_v1 { ("limit_in_bytes", "usage_in_bytes") } else { ("max", "current") };
        let limit_bytes = number(&format!("memory.{limit}")).filter(|limit| *limit < V1_UNLIMITED)?;
        let used_bytes = number(&format!("memory.{used}"))?;
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let count = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let mut reclaimable_bytes = match is_v1 {
            true => count("total_active_file") + count("total_inactive_file"),
            false => count("active_file") + count("inactive_file") + count("slab_reclaimable"),
        };
        // Anonymous memory can go to the swap as far as the group's limits and the host have some left.
        let swap_left = match is_v1 {
            true => number("memory.memsw.limit_in_bytes").zip(number("memory.memsw.usage_in_bytes")),
            false => {
                let limit = fs::read_to_string(dir.join("memory.swap.max")).ok();
                limit.map(|limit| limit.trim().parse().unwrap_or(u64::MAX)).zip(number("memory.swap.current"))
            }
        };
        let swap_left = swap_left.map_or(0, |(limit, used)| limit.saturating_sub(used)).min(host_swap_free_bytes());
        reclaimable_bytes = reclaimable_bytes.saturating_add(swap_left).min(used_bytes);
        Some(Self { dir: dir.to_owned(), limit_bytes, used_bytes, reclaimable_bytes })
    }

    fn room_bytes(&self) -> u64 {
        (self.limit_bytes.saturating_sub(self.used_bytes)).saturating_add(self.reclaimable_bytes)
    }
}

impl std::fmt::Display for MemoryShortage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dir, limit_bytes, used_bytes, .. } = self;
        write!(formatter, "{used_bytes} bytes of the limit of {limit_bytes} are used in {}", dir.display())
    }
}

/// Limits from here on mean none in cgroup v1.
pub(crate) const V1_UNLIMITED: u64 = 1 << 60;

fn host_swap_free_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("SwapFree:"));
    line.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The directory in which a further process of a container may be put: its own, unless that is one of cgroup v2 with groups below it,
/// which holds no processes; then the one of the container's first process.
pub(crate) fn dir_for_processes(dir: PathBuf, first_pid: i32) -> PathBuf {
    let is_inner =
        fs::read_to_string(dir.join("cgroup.subtree_control")).is_ok_and(|enabled| !enabled.trim().is_empty());
    if !is_inner {
        return dir;
    }
    let listed = fs::read_to_string(format!("/proc/{first_pid}/cgroup")).unwrap_or_default();
    let path = listed.lines().find_map(|line| line.strip_prefix("0::/"));
    let place = path.map(|path| Path::new("/sys/fs/cgroup").join(path));
    place.filter(|place| place.starts_with(&dir) && place.is_dir()).unwrap_or(dir)
}

/// The group of one container, in all hierarchies.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    pub(crate) fn from_dirs(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The directory that has this control file.
    pub(crate) fn dir_with(&self, file: &str) -> Option<&Path> {
        self.dirs.iter().map(PathBuf::as_path).find(|dir| dir.join(file).exists())
    }

    /// How many processes of the group the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let count = |file: &str| {
            let text = fs::read_to_string(self.dir_with(file)?.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
        };
        count("memory.events").or_else(|| count("memory.oom_control")).unwrap_or(0)
    }

    /// The directory that accounts for memory.
    pub(crate) fn memory_dir(&self) -> Option<&Path> {
        self.dir_with("memory.usage_in_bytes").or_else(|| self.dir_with("memory.current"))
    }

    /// Where, in this group or in one above it, less memory than that is left, reclaimable file pages counted as left.
    pub(crate) fn memory_shortage(&self, needed_bytes: u64) -> Option<MemoryShortage> {
        let own = self.memory_dir()?;
        let groups =
            own.ancestors().take_while(|dir| *dir != Path::new("/sys/fs/cgroup") && dir.starts_with("/sys/fs/cgroup"));
        groups
            .filter_map(MemoryShortage::read)
            .filter(|found| found.room_bytes() < needed_bytes)
            .min_by_key(MemoryShortage::room_bytes)
    }

    /// Freezes or thaws all processes.
    pub(crate) fn set_frozen(&self, frozen: bool) -> Result<(), Failure> {
        let (dir, file, value) = if let Some(dir) = self.dir_with("cgroup.freeze") {
            (dir, "cgroup.freeze", if frozen { "1" } else { "0" })
        } else if let Some(dir) = self.dir_with("freezer.state") {
            (dir, "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        } else {
            return Err((PathBuf::from("freezer"), io::Error::from(io::ErrorKind::NotFound)));
        };
        let path = dir.join(file);
        fs::write(&path, value).map_err(|error| (path.clone(), error))?;
        if file == "freezer.state" && frozen {
            // The kernel answers FREEZING until every process has stopped; each read makes it try again.
            let begun = Instant::now();
            while fs::read_to_string(&path).is_ok_and(|state| state.trim() == "FREEZING")
                && begun.elapsed() < EMPTY_WAIT_MAX
            {
                std::thread::sleep(EMPTY_POLL);
            }
        }
        Ok(())
    }

    pub(crate) fn members(&self) -> Vec<i32> {
        let mut members: Vec<i32> = Vec::new();
        for dir in &self.dirs {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        members.sort_unstable();
        members.dedup();
        members.retain(|&pid| pid > 0);
        members
    }

    /// Sends SIGKILL to every process of the group, once; returns how many there were.
    pub(crate) fn kill_all(&self) -> usize {
        if self.dir_with("cgroup.kill").is_some_and(|dir| fs::write(dir.join("cgroup.kill"), "1").is_ok()) {
            return self.members().len();
        }
        let members = self.members();
        for &pid in &members {
            let Some(id) = Pid::from_raw(pid) else { continue };
            let Ok(pidfd) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else { continue };
            // The number may have been reused before the descriptor was opened, not after (G2).
            if self.members().contains(&pid) {
                // It may have ended meanwhile: then there is nothing to do.
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        members.len()
    }

    /// Kills every process of the group and removes its directories. Does nothing for what is already gone.
    pub(crate) fn kill_and_remove(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while self.kill_all() > 0 && begun.elapsed() < EMPTY_WAIT_MAX {
            // A frozen process of v1 dies only once it is thawed.
            if self.dir_with("freezer.state").is_some() {
                let _ = self.set_frozen(false);
            }
            std::thread::sleep(EMPTY_POLL);
        }
        let mut first = None;
        for dir in &self.dirs {
            if let Err(error) = remove_tree(dir, begun) {
                first.get_or_insert((dir.clone(), error));
            }
        }
        first.map_or(Ok(()), Err)
    }
}

/// Removes a group and the groups that the container made below it; the kernel says busy for a moment after the last exit.
fn remove_tree(dir: &Path, begun: Instant) -> io::Result<()> {
    const DEPTH_MAX: usize = 32;
    fn children_first(dir: &Path, depth: usize, begun: Instant) -> io::Result<()> {
        if depth < DEPTH_MAX {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    children_first(&entry.path(), depth + 1, begun)?;
                }
            }
        }
        loop {
            match fs::remove_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < EMPTY_WAIT_MAX => {
                    std::thread::sleep(EMPTY_POLL);
                }
                other => return other,
            }
        }
    }
    children_first(dir, 0, begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_layouts_are_told_apart() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let host = Host::parse(hybrid);
        assert!(!host.is_unified());
        assert_eq!(host.v1.len(), 2);
        assert_eq!(host.v1[0].names(), ["cpu,cpuacct", "cpu", "cpuacct"]);
        let unified = Host::parse("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(unified.is_unified());
    }

    #[test]
    fn a_container_has_a_group_below_its_parent() {
        assert_eq!(path_of("", "ab"), "/baleen/ab");
        assert_eq!(path_of("/", "ab"), "/ab");
        assert_eq!(path_of("/x/y", "ab"), "/x/y/ab");
    }
}
