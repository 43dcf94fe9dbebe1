//! Capability names and the default set.

use super::SpecError;

/// Docker's default set, sorted.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All names, by number (`capability.h`).
pub(crate) const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The name of a capability as the specification writes it, from any of Docker's forms.
/// # Errors
/// `Capability` if there is none of that name.
pub fn parse_capability(name: &str) -> Result<&'static str, SpecError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter().find(|known| &known[4..] == bare).copied().ok_or_else(|| SpecError::Capability { name: name.to_owned() })
}

/// The set that a container gets: Docker's rules for add, drop and `ALL`, cut to what is available (as bits by number).
pub(crate) fn effective_set(
    privileged: bool,
    add: &[String],
    drop: &[String],
    available: u64,
) -> Result<Vec<&'static str>, SpecError> {
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let named = |names: &[String]| {
        names
            .iter()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
            .map(|name| parse_capability(name))
            .collect::<Result<Vec<_>, _>>()
    };
    let (added, dropped) = (named(add)?, named(drop)?);
    let known: Vec<_> =
        ALL.iter().enumerate().filter(|(number, _)| available >> number & 1 == 1).map(|(_, name)| *name).collect();
    if privileged {
        return Ok(known);
    }
    Ok(known
        .into_iter()
        .filter(|name| {
            let by_default = is_all(add) || (DEFAULT_CAPABILITIES.contains(name) && !is_all(drop));
            // With "drop ALL" and "add X" X stays; with "add ALL" and "drop X" X goes; else an explicit add wins over nothing.
            (by_default && !dropped.contains(name))
                || (added.contains(name) && !(is_all(add) && dropped.contains(name)))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut set = effective_set(false, &owned(add), &owned(drop), u64::MAX).unwrap();
        set.sort_unstable();
        set
    }

    #[test]
    fn the_default_set_is_dockers_fourteen() {
        assert_eq!(set(&[], &[]), DEFAULT_CAPABILITIES);
    }

    #[test]
    fn add_and_drop_follow_docker() {
        assert_eq!(set(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(set(&["ALL"], &[]).len(), 41);
        assert_eq!(set(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert!(!set(&[], &["mknod"]).contains(&"CAP_MKNOD"));
        assert!(effective_set(false, &["CAP_NOPE".to_owned()], &[], u64::MAX).is_err());
    }

    #[test]
    fn what_the_kernel_or_the_daemon_lacks_is_not_asked_for() {
        assert_eq!(effective_set(true, &[], &[], (1 << 38) - 1).unwrap().len(), 38);
        assert_eq!(effective_set(true, &[], &[], 0b101).unwrap(), ["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]);
    }
}
