//! Changes the limits of a running container: the control files of its groups, in the order that the kernel accepts.
//!
//! L1  Only what is asked for is written; a limit that this kernel does not know is left out, as at the start.
//! L2  The first refusal of the kernel ends the change and is told with its file; what was written before stays.
//!
//! Touches: the container's cgroup directories, as its shim has recorded them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroup;
use crate::client;
use crate::error::RuntimeError;
use crate::spec::Resources;

/// The kernel's word for no limit, in cgroup v2.
const NONE_V2: &str = "max";
/// Billionths of a CPU in one period of this many microseconds.
const PERIOD_US: u64 = 100_000;

/// Changes limits of the running container of this run directory; what is `None` (or an empty text) stays. A memory limit comes with the
/// limit of memory and swap together.
///
/// # Errors
/// `ShimGone` if it does not run; `Io` with the control file that the kernel refused to change.
pub fn update_limits(dir: &Path, wanted: &Resources) -> Result<(), RuntimeError> {
    let left = client::left_behind(dir)?.ok_or_else(|| RuntimeError::ShimGone { dir: dir.to_owned() })?;
    let group = Cgroup::from_dirs(left.cgroup_dirs);
    let failed = |(path, source): (PathBuf, io::Error)| RuntimeError::io("change the limit in", path, source);
    let is_unified = group.dir_with("memory.max").is_some() || group.dir_with("cgroup.controllers").is_some();
    if is_unified { unified(&group, wanted) } else { legacy(&group, wanted) }.map_err(failed)
}

/// Host PIDs of the processes of the container of this run directory, lowest first.
///
/// # Errors
/// `ShimGone` if it does not run.
pub fn processes(dir: &Path) -> Result<Vec<i32>, RuntimeError> {
    let left = client::left_behind(dir)?.ok_or_else(|| RuntimeError::ShimGone { dir: dir.to_owned() })?;
    Ok(Cgroup::from_dirs(left.cgroup_dirs).members())
}

type Outcome = Result<(), (PathBuf, io::Error)>;

fn write(group: &Cgroup, file: &str, value: &str) -> Outcome {
    // A kernel without this control has no such file (L1).
    let Some(dir) = group.dir_with(file) else { return Ok(()) };
    let path = dir.join(file);
    fs::write(&path, value).map_err(|error| (path, error))
}

fn legacy(group: &Cgroup, wanted: &Resources) -> Outcome {
    if let Some(limit) = wanted.memory_bytes {
        let both = wanted.memory_swap_bytes.map_or(-1, |swap| if swap == 0 { limit.saturating_mul(2) } else { swap });
        let (memory, swap) = (("memory.limit_in_bytes", limit), ("memory.memsw.limit_in_bytes", both));
        // The sum may never be below the memory: when it grows it goes first.
        let now = group.dir_with(swap.0).and_then(|dir| fs::read_to_string(dir.join(swap.0)).ok());
        let now = now.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(i64::MAX);
        let ordered = if both == -1 || both > now { [swap, memory] } else { [memory, swap] };
        for (file, value) in ordered {
            write(group, file, &value.to_string())?;
        }
    } else if let Some(swap) = wanted.memory_swap_bytes {
        write(group, "memory.memsw.limit_in_bytes", &swap.to_string())?;
    }
    if let Some(reservation) = wanted.memory_reservation_bytes {
        write(group, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if let Some(shares) = wanted.cpu_shares {
        write(group, "cpu.shares", &shares.to_string())?;
    }
    let (quota, period) = quota_and_period(wanted);
    if let Some(period) = period {
        write(group, "cpu.cfs_period_us", &period.to_string())?;
    }
    if let Some(quota) = quota {
        write(group, "cpu.cfs_quota_us", &quota.to_string())?;
    }
    common(group, wanted)?;
    match wanted.blkio_weight {
        Some(weight) => write(group, "blkio.weight", &weight.to_string())
            .and_then(|()| write(group, "blkio.bfq.weight", &weight.to_string())),
        None => Ok(()),
    }
}

fn unified(group: &Cgroup, wanted: &Resources) -> Outcome {
    let bytes = |value: i64| if value < 0 { NONE_V2.to_owned() } else { value.to_string() };
    if let Some(swap) = wanted.memory_swap_bytes {
        // Here the swap has a limit of its own.
        let alone = match (swap, wanted.memory_bytes) {
            (swap, _) if swap < 0 => NONE_V2.to_owned(),
            (0, Some(limit)) => bytes(limit),
            (swap, limit) => bytes(swap.saturating_sub(limit.unwrap_or(0))),
        };
        write(group, "memory.swap.max", &alone)?;
    }
    if let Some(limit) = wanted.memory_bytes {
        write(group, "memory.max", &bytes(limit))?;
    }
    if let Some(reservation) = wanted.memory_reservation_bytes {
        write(group, "memory.low", &bytes(reservation))?;
    }
    if let Some(shares) = wanted.cpu_shares {
        write(group, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let (quota, period) = quota_and_period(wanted);
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|&quota| quota > 0).map_or(NONE_V2.to_owned(), |quota| quota.to_string());
        write(group, "cpu.max", &format!("{quota} {}", period.unwrap_or(PERIOD_US)))?;
    }
    common(group, wanted)?;
    match wanted.blkio_weight {
        Some(weight) => write(group, "io.bfq.weight", &weight.to_string()),
        None => Ok(()),
    }
}

/// What has the same files in both versions.
fn common(group: &Cgroup, wanted: &Resources) -> Outcome {
    for (file, list) in [("cpuset.cpus", &wanted.cpuset_cpus), ("cpuset.mems", &wanted.cpuset_mems)] {
        if !list.is_empty() {
            write(group, file, list)?;
        }
    }
    match wanted.pids_limit {
        Some(limit) if limit > 0 => write(group, "pids.max", &limit.to_string()),
        Some(_) => write(group, "pids.max", NONE_V2),
        None => Ok(()),
    }
}

fn quota_and_period(wanted: &Resources) -> (Option<i64>, Option<u64>) {
    match wanted.nano_cpus.filter(|&nano| nano > 0) {
        Some(nano) => (Some(nano.saturating_mul(PERIOD_US.cast_signed()) / 1_000_000_000), Some(PERIOD_US)),
        None => (wanted.cpu_quota_us, wanted.cpu_period_us),
    }
}

/// Shares of cgroup v1 (2 to 262144) as a weight of v2 (1 to 10000), as the OCI runtimes convert them.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_at_the_ends_and_between() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares), [1, 1, 39, 10_000, 10_000]);
    }

    #[test]
    fn cpus_are_a_quota_of_a_period() {
        let wanted = Resources { nano_cpus: Some(1_500_000_000), ..Resources::default() };
        assert_eq!(quota_and_period(&wanted), (Some(150_000), Some(100_000)));
    }
}
