//! The numbers of a request: each has a range, and what lies outside is refused in Docker's words before anything is stored.

use super::host_config::HostConfig;
use crate::error::EngineError;

/// Smallest memory limit: below it the runtime itself cannot start a program.
const MEMORY_BYTES_MIN: i64 = 6 << 20;
/// Largest number of a CPU or memory node in a list: ranges beyond would only cost memory (threats A5).
const CPU_NUMBER_MAX: u32 = 8191;
/// Most entries of one list of a request.
pub(crate) const LIST_MAX: usize = 1024;

/// Checks every number of the resources.
///
/// # Errors
/// `InvalidParameter` in Docker's words.
pub(crate) fn check(host: &HostConfig) -> Result<(), EngineError> {
    let refuse = |text: &str| Err(EngineError::invalid(text));
    check_memory(host)?;
    check_cpu(host)?;
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        let value = host.oom_score_adj;
        return refuse(&format!("Invalid value {value}, range for oom score adj is [-1000, 1000]"));
    }
    if host.shm_size < 0 {
        return refuse("SHM size can not be less than 0");
    }
    if host.blkio_weight > 0 && !(10..=1000).contains(&host.blkio_weight) {
        return refuse("Range of blkio weight is from 10 to 1000");
    }
    let lists = [
        ("Binds", host.binds.as_ref().map_or(0, Vec::len)),
        ("Mounts", host.mounts.as_ref().map_or(0, Vec::len)),
        ("Devices", host.devices.as_ref().map_or(0, Vec::len)),
        ("DeviceCgroupRules", host.device_cgroup_rules.as_ref().map_or(0, Vec::len)),
        ("Ulimits", host.ulimits.as_ref().map_or(0, Vec::len)),
        ("ExtraHosts", host.extra_hosts.as_ref().map_or(0, Vec::len)),
        ("Dns", host.dns.as_ref().map_or(0, Vec::len)),
        ("GroupAdd", host.group_add.as_ref().map_or(0, Vec::len)),
    ];
    if let Some((field, count)) = lists.iter().find(|(_, count)| *count > LIST_MAX) {
        return refuse(&format!("HostConfig.{field} has {count} entries; at most {LIST_MAX} are allowed"));
    }
    Ok(())
}

fn check_memory(host: &HostConfig) -> Result<(), EngineError> {
    let refuse = |text: &str| Err(EngineError::invalid(text));
    let (memory, swap, reservation) = (host.memory, host.memory_swap, host.memory_reservation);
    if memory != 0 && memory < MEMORY_BYTES_MIN {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if swap < -1 {
        return refuse("memory and swap limit must be -1 (unlimited), 0 or more");
    }
    if swap > 0 && memory == 0 {
        return refuse("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if swap > 0 && swap < memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if reservation != 0 && reservation < MEMORY_BYTES_MIN {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if memory > 0 && reservation > memory {
        return refuse("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    match host.memory_swappiness {
        Some(value) if !(-1..=100).contains(&value) => {
            refuse(&format!("Invalid value: {value}, valid memory swappiness range is 0-100"))
        }
        _ => Ok(()),
    }
}

fn check_cpu(host: &HostConfig) -> Result<(), EngineError> {
    let refuse = |text: &str| Err(EngineError::invalid(text));
    if host.nano_cpus != 0 {
        if host.cpu_period != 0 {
            return refuse("Conflicting options: Nano CPUs and CPU Period cannot both be set");
        }
        if host.cpu_quota != 0 {
            return refuse("Conflicting options: Nano CPUs and CPU Quota cannot both be set");
        }
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as i64);
        if host.nano_cpus < 10_000_000 || host.nano_cpus > cpus * 1_000_000_000 {
            return refuse(&format!(
                "Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            ));
        }
    }
    if host.cpu_period != 0 && !(1_000..=1_000_000).contains(&host.cpu_period) {
        return refuse("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1_000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_shares < 0 {
        return refuse("shares can not be less than 0");
    }
    for (what, list) in [("cpuset cpus", &host.cpuset_cpus), ("cpuset mems", &host.cpuset_mems)] {
        if !list.is_empty() && !is_number_list(list) {
            return refuse(&format!("Invalid value {list} for {what}"));
        }
    }
    Ok(())
}

/// `0-3,7`: numbers and ranges that stay ranges.
fn is_number_list(list: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= CPU_NUMBER_MAX);
    list.split(',').all(|part| match part.trim().split_once('-') {
        Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
        None => number(part.trim()).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut HostConfig)) -> Result<(), String> {
        let mut host = HostConfig::default();
        change(&mut host);
        check(&host).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_in_their_ranges_pass() {
        checked(|host| {
            (host.memory, host.memory_swap, host.memory_reservation) = (64 << 20, -1, 32 << 20);
            (host.cpu_period, host.cpu_quota, host.cpu_shares) = (100_000, 50_000, 512);
            (host.cpuset_cpus, host.cpuset_mems) = ("0-3, 7".to_owned(), "0".to_owned());
            (host.oom_score_adj, host.blkio_weight, host.memory_swappiness) = (-1000, 10, Some(0));
        })
        .unwrap();
        checked(|host| host.nano_cpus = 500_000_000).unwrap();
    }

    #[test]
    fn numbers_outside_their_ranges_are_refused() {
        type Change = fn(&mut HostConfig);
        let cases: [Change; 14] = [
            |host| host.memory = 1,
            |host| host.memory = -5,
            |host| host.memory_swap = 64 << 20,
            |host| (host.memory, host.memory_swap) = (64 << 20, 32 << 20),
            |host| (host.memory, host.memory_reservation) = (64 << 20, 128 << 20),
            |host| host.memory_swappiness = Some(101),
            |host| (host.nano_cpus, host.cpu_quota) = (500_000_000, 5000),
            |host| host.nano_cpus = i64::MAX,
            |host| host.cpu_period = 10,
            |host| host.cpuset_cpus = "0-2147483647".to_owned(),
            |host| host.cpuset_cpus = "3-1".to_owned(),
            |host| host.oom_score_adj = 1001,
            |host| host.blkio_weight = 5,
            |host| host.shm_size = -1,
        ];
        for (number, change) in cases.into_iter().enumerate() {
            assert!(checked(change).is_err(), "case {number} passes");
        }
    }
}
