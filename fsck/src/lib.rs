//! Check and repair of a store: what is damaged, whom it touches, and how it is put right.
//!
//! K1  A check writes nothing. Only a repair does, and it says each thing that it did.
//! K2  A repair never makes it worse: what is overwritten was known to be wrong, what replaces it is verified first, and
//!     what nobody can explain goes to `quarantine/`.
//! K3  Volumes, and what containers have written, are never touched.
//! K4  Files are touched through [`baleen_store::Disk`] only.
//!
//! Codes, remedies and exit codes: `docs/fsck.md`.

#![forbid(unsafe_code)]

mod container;
mod deep;
mod expected;
mod finding;
mod layer;
mod quick;
mod repair;
mod report;
mod users;

use std::collections::BTreeMap;

use baleen_store::{Inspection, StoreError};

pub use deep::Progress;
pub use finding::{Code, Finding, Outcome, Severity, Touched, TouchedContainer, TouchedImage};
pub use repair::{Source, open, repair};
pub use report::{Depth, EXIT_CLEAN, EXIT_CORRECTED, EXIT_OPERATIONAL, EXIT_UNCORRECTED, EXIT_USAGE, Report};

/// The version of the report's form.
const REPORT_VERSION: u32 = 1;

/// Checks what was in flight: what an opening of the store would see and do.
///
/// # Errors
/// `Io` if names cannot be listed.
pub fn quick(inspection: &Inspection) -> Result<Report, StoreError> {
    let users = users::Users::of(inspection);
    let findings = quick::check(inspection, &users)?;
    let (depth, complete) = (Depth::Quick, true);
    Ok(Report { version: REPORT_VERSION, depth, complete, checked_through: None, findings, usage: None })
}

/// What the space below the root is used for: bytes by class, whose sum is what `du -x` says of the root.
///
/// # Blocking
/// Looks at every inode of the store.
/// # Errors
/// `Io`.
pub fn usage(inspection: &Inspection) -> Result<BTreeMap<&'static str, u64>, StoreError> {
    Ok(inspection.usage()?.into_iter().map(|(class, bytes)| (class.as_str(), bytes)).collect())
}

/// The report of a repair that ends with the opening of the store ([`open`]).
pub fn opened(findings: Vec<Finding>) -> Report {
    Report {
        version: REPORT_VERSION,
        depth: Depth::Quick,
        complete: true,
        checked_through: None,
        findings,
        usage: None,
    }
}

/// Checks every byte that the store owns: the quick check, then each blob, layer and container's configuration.
///
/// `after` is where an earlier check was stopped ([`Report::checked_through`]). `watch` is called often, and stops the
/// check by giving `true`.
///
/// # Blocking
/// For as long as it takes to read everything once.
/// # Errors
/// `Io` if names cannot be listed. What cannot be read below is a finding.
pub fn deep(
    inspection: &Inspection,
    after: Option<&str>,
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Report, StoreError> {
    let users = users::Users::of(inspection);
    let mut findings = quick::check(inspection, &users)?;
    let ended = deep::check(inspection, &users, after, &mut findings, watch);
    let (complete, checked_through) = match ended {
        deep::Ended::Complete => (true, None),
        deep::Ended::Interrupted(last) => (false, last),
    };
    Ok(Report { version: REPORT_VERSION, depth: Depth::Deep, complete, checked_through, findings, usage: None })
}
