//! What a container uses: processes, memory, processor time, block devices, network; read from its control groups.
//!
//! U1  What a kernel does not count is absent, never 0.
//! U2  Nothing of the container runs for it, and nothing in it can change what is read but by using it.
//!
//! Touches: the group's files, `/proc/<pid>/net/dev`, `/proc/<pid>/ns/net`, `/proc/stat`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cgroup::{Cgroup, V1_UNLIMITED};
use crate::client::left_behind;
use crate::error::RuntimeError;

/// Ticks of a second in which the kernel shows times to programs, and the nanoseconds of one.
const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;
/// Interfaces that are listed.
const INTERFACES_MAX: usize = 256;

/// What a container uses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whether the numbers are those of cgroup version 2.
    pub unified: bool,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// How many it may have.
    pub pids_limit: Option<u64>,
    /// Memory.
    pub memory: MemoryUsage,
    /// Processor time.
    pub cpu: CpuUsage,
    /// Bytes, by block device and direction.
    pub block_bytes: Vec<BlockUsage>,
    /// Operations, by block device and direction.
    pub block_operations: Vec<BlockUsage>,
    /// Interfaces of its own network; `None` on the host's.
    pub networks: Option<BTreeMap<String, NetworkUsage>>,
}

/// Bytes, unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Charged now, page cache included.
    pub used: Option<u64>,
    /// The most that ever was.
    pub peak: Option<u64>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// How often the limit was hit (cgroup v1).
    pub failures: Option<u64>,
    /// The kernel's own names and numbers.
    pub details: BTreeMap<String, u64>,
}

/// Nanoseconds, unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// In programs.
    pub user: u64,
    /// By processor (cgroup v1).
    pub by_processor: Option<Vec<u64>>,
    /// Periods of a quota that have passed.
    pub periods: u64,
    /// Those in which it was held up.
    pub throttled_periods: u64,
    /// For how long.
    pub throttled: u64,
}

/// One number of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// Of the device.
    pub major: u64,
    /// Of the device.
    pub minor: u64,
    /// `Read`, `Write`, ... (v1), `read`, `write` (v2).
    pub operation: String,
    /// The number.
    pub value: u64,
}

/// Counts of one interface, as the container sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the kernel's (`/proc/net/dev`).
pub struct NetworkUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// What the machine has spent on all programs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineTime {
    /// Nanoseconds of all processors, idle ones included.
    pub total: u64,
    /// Processors that are on.
    pub processors: u32,
}

/// What the container of this run directory uses; `None` if it does not run.
/// # Errors
/// `Io` if its record cannot be read.
pub fn usage(dir: &Path) -> Result<Option<Usage>, RuntimeError> {
    let Some(left) = left_behind(dir)? else { return Ok(None) };
    let group = Cgroup::from_dirs(left.cgroup_dirs);
    if group.dirs().iter().all(|dir| !dir.is_dir()) {
        return Ok(None);
    }
    let mut usage = if group.dir_with("cgroup.controllers").is_some() { of_v2(&group) } else { of_v1(&group) };
    usage.pids = number(&group, "pids.current");
    usage.pids_limit = number(&group, "pids.max");
    usage.networks = networks(left.pid);
    Ok(Some(usage))
}

/// The machine's own clock of processor time.
#[must_use]
pub fn machine_time() -> MachineTime {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut time = MachineTime::default();
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(' ') else { continue };
        if name == "cpu" {
            // Guests' time is part of users'.
            let ticks: u64 = numbers.split_whitespace().take(8).filter_map(|number| number.parse::<u64>().ok()).sum();
            time.total = ticks.saturating_mul(NANOSECONDS_PER_TICK);
        } else if name.strip_prefix("cpu").is_some_and(|rest| rest.parse::<u32>().is_ok()) {
            time.processors += 1;
        }
    }
    time
}

fn text(group: &Cgroup, file: &str) -> Option<String> {
    fs::read_to_string(group.dir_with(file)?.join(file)).ok()
}

fn number(group: &Cgroup, file: &str) -> Option<u64> {
    text(group, file)?.trim().parse().ok()
}

/// `name value` lines.
fn numbers(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn of_v1(group: &Cgroup) -> Usage {
    let ticks = numbers(&text(group, "cpuacct.stat").unwrap_or_default());
    let quota = numbers(&text(group, "cpu.stat").unwrap_or_default());
    let of = |map: &BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let by_processor = text(group, "cpuacct.usage_percpu")
        .map(|text| text.split_whitespace().filter_map(|number| number.parse().ok()).collect());
    let block = |name: &str| {
        let recursive = text(group, &format!("blkio.throttle.{name}_recursive"));
        recursive
            .or_else(|| text(group, &format!("blkio.throttle.{name}")))
            .map(|text| block_v1(&text))
            .unwrap_or_default()
    };
    Usage {
        memory: MemoryUsage {
            used: number(group, "memory.usage_in_bytes"),
            peak: number(group, "memory.max_usage_in_bytes"),
            limit: number(group, "memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
            failures: number(group, "memory.failcnt"),
            details: numbers(&text(group, "memory.stat").unwrap_or_default()),
        },
        cpu: CpuUsage {
            total: number(group, "cpuacct.usage").unwrap_or(0),
            kernel: of(&ticks, "system").saturating_mul(NANOSECONDS_PER_TICK),
            user: of(&ticks, "user").saturating_mul(NANOSECONDS_PER_TICK),
            by_processor,
            periods: of(&quota, "nr_periods"),
            throttled_periods: of(&quota, "nr_throttled"),
            throttled: of(&quota, "throttled_time"),
        },
        block_bytes: block("io_service_bytes"),
        block_operations: block("io_serviced"),
        ..Usage::default()
    }
}

fn of_v2(group: &Cgroup) -> Usage {
    let time = numbers(&text(group, "cpu.stat").unwrap_or_default());
    let nanoseconds = |name: &str| time.get(name).copied().unwrap_or(0).saturating_mul(1000);
    let count = |name: &str| time.get(name).copied().unwrap_or(0);
    let (block_bytes, block_operations) = block_v2(&text(group, "io.stat").unwrap_or_default());
    Usage {
        unified: true,
        memory: MemoryUsage {
            used: number(group, "memory.current"),
            peak: number(group, "memory.peak"),
            limit: number(group, "memory.max"),
            failures: None,
            details: numbers(&text(group, "memory.stat").unwrap_or_default()),
        },
        cpu: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            by_processor: None,
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled: nanoseconds("throttled_usec"),
        },
        block_bytes,
        block_operations,
        ..Usage::default()
    }
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 Read 4096` lines; the one without a device is a sum.
fn block_v1(text: &str) -> Vec<BlockUsage> {
    let one = |line: &str| {
        let mut fields = line.split(' ');
        let (major, minor) = device(fields.next()?)?;
        Some(BlockUsage { major, minor, operation: fields.next()?.to_owned(), value: fields.next()?.parse().ok()? })
    };
    text.lines().filter_map(one).collect()
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 ...` lines: bytes and operations.
fn block_v2(text: &str) -> (Vec<BlockUsage>, Vec<BlockUsage>) {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.split(' ');
        let Some((major, minor)) = fields.next().and_then(device) else { continue };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (list, operation) = match name {
                "rbytes" => (&mut bytes, "read"),
                "wbytes" => (&mut bytes, "write"),
                "rios" => (&mut operations, "read"),
                "wios" => (&mut operations, "write"),
                _ => continue,
            };
            list.push(BlockUsage { major, minor, operation: operation.to_owned(), value });
        }
    }
    (bytes, operations)
}

/// The interfaces of a process's network, unless that is ours.
fn networks(pid: i32) -> Option<BTreeMap<String, NetworkUsage>> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let its = space(&pid.to_string())?;
    if space("self") == Some(its) {
        return None;
    }
    Some(interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

fn interfaces(text: &str) -> BTreeMap<String, NetworkUsage> {
    let one = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        let counts = NetworkUsage {
            rx_bytes: at(0)?,
            rx_packets: at(1)?,
            rx_errors: at(2)?,
            rx_dropped: at(3)?,
            tx_bytes: at(8)?,
            tx_packets: at(9)?,
            tx_errors: at(10)?,
            tx_dropped: at(11)?,
        };
        Some((name.trim().to_owned(), counts))
    };
    text.lines().filter_map(one).filter(|(name, _)| name != "lo").take(INTERFACES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                   eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let found = interfaces(dev);
        assert_eq!(found.len(), 1);
        assert_eq!((found["eth0"].rx_bytes, found["eth0"].tx_bytes, found["eth0"].tx_dropped), (10, 50, 8));
        let v1 = block_v1("8:0 Read 4096\n8:0 Write 0\nTotal 4096\n");
        assert_eq!((v1.len(), v1[0].value, v1[0].operation.as_str()), (2, 4096, "Read"));
        let (bytes, operations) = block_v2("8:16 rbytes=7 wbytes=8 rios=1 wios=2 dbytes=0 dios=0\n\n");
        assert_eq!((bytes[1].value, bytes[1].minor, operations[0].value), (8, 16, 1));
        assert_eq!(numbers("a 1\nb x\nc 3\n"), BTreeMap::from([("a".to_owned(), 1), ("c".to_owned(), 3)]));
    }

    #[test]
    fn the_machine_has_processors_and_has_spent_time() {
        let first = machine_time();
        assert!(first.processors > 0 && first.total > 0);
    }
}
