//! What a further program in a running container gets.

use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;
use rustix::process::{Resource, Rlimit};

use super::generate::{self, check_texts, environment, own_capabilities};
use super::{ContainerSpec, SpecError, capabilities};
use crate::users::{self, ResolvedUser};

/// A further program's identity and bounds.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    pub(crate) user: ResolvedUser,
    /// Bits by number.
    pub(crate) capabilities: u64,
    pub(crate) environment: Vec<String>,
    pub(crate) rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) filter: Option<LinuxSeccomp>,
    pub(crate) no_new_privileges: bool,
    /// What the container's programs have; `None`: what this process has.
    pub(crate) oom_score_adj: Option<i32>,
}

/// Works out what a program gets in a container whose root can be reached at `rootfs`. `spec` is the container's, with the program's
/// own arguments, environment, directory and user in it.
///
/// # Errors
/// As the variants of [`SpecError`] say.
pub(crate) fn exec_process(spec: &ContainerSpec, privileged: bool, rootfs: &Path) -> Result<ExecProcess, SpecError> {
    check_texts(spec)?;
    let user = users::resolve(rootfs, &spec.user, &spec.group_add)?;
    let available = own_capabilities();
    let set = |privileged| capabilities::effective_set(privileged, &spec.cap_add, &spec.cap_drop, available);
    let own = set(spec.privileged)?;
    // The filter is the container's own also for a privileged program, as in Docker: it depends on the container's capabilities.
    let filter = generate::filter(spec, &own)?
        .map(|profile| {
            serde_json::from_value(profile).map_err(|error| SpecError::Seccomp { reason: error.to_string() })
        })
        .transpose()?;
    let given = if privileged { set(true)? } else { own };
    let bits = capabilities::ALL
        .iter()
        .enumerate()
        .filter(|(_, name)| given.contains(name))
        .fold(0, |bits, (number, _)| bits | 1 << number);
    Ok(ExecProcess {
        environment: environment(spec, &user),
        user,
        capabilities: bits,
        rlimits: rlimits(spec)?,
        filter,
        no_new_privileges: spec.no_new_privileges,
        oom_score_adj: spec.oom_score_adj.or_else(generate::default_oom_score_adj),
    })
}

fn rlimits(spec: &ContainerSpec) -> Result<Vec<(Resource, Rlimit)>, SpecError> {
    // The same checks as for the container's first program.
    generate::rlimits(spec)?;
    let bound = |value: i64| u64::try_from(value).ok();
    Ok(spec
        .ulimits
        .iter()
        .filter_map(|ulimit| {
            let limit = Rlimit { current: bound(ulimit.soft), maximum: bound(ulimit.hard) };
            resource(&ulimit.name).map(|resource| (resource, limit))
        })
        .collect())
}

/// The kernel's resource of a name that has been checked.
fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}
