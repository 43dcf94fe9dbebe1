//! Deliberate faults, so that the judges can be judged: each one is a way to lose what was acknowledged.
//!
//! MU1  Only a build with the feature `mutations` has them; in any other [`is`] is `false` when it is compiled, and the name of
//!      the variable is not in the program.
//! MU2  A mutated store does its work as a right one does as long as no power is cut and no write fails.
//!
//! `docs/powercut.md` says which states convict which.

/// A fault; at most one is chosen for a process, by its name in `BALEEN_MUTATION` of a build that has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutations"), allow(dead_code, reason = "nobody chooses one in this build"))]
pub(crate) enum Mutation {
    /// Nothing is made durable before the record that names it.
    BarrierSkipped,
    /// The record is written first and what it names is made durable after it.
    RecordBeforeBarrier,
    /// Opening empties `staging/` and `partial/` before it looks for what live records name there.
    StagingWiped,
    /// A batch of the log is not synced.
    LogSyncSkipped,
    /// A checkpoint is written before the data that it answers for is durable.
    CheckpointBeforeData,
    /// Of a batch whose checksum does not pass, the records count that can be read.
    TornBatchAccepted,
    /// The descriptor of a barrier is opened after the writes that it answers for, so that it is told none of their errors.
    DescriptorLate,
}

/// Whether this process runs with that fault.
#[cfg(not(feature = "mutations"))]
pub(crate) const fn is(_: Mutation) -> bool {
    false
}

/// Whether this process runs with that fault.
///
/// # Panics
/// If the variable names none: a run that was to be mutated and is not would acquit its judge.
#[cfg(feature = "mutations")]
pub(crate) fn is(mutation: Mutation) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<Mutation>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("BALEEN_MUTATION").ok().filter(|name| !name.is_empty())?;
        let found = NAMES.iter().find(|(known, _)| *known == name);
        Some(found.unwrap_or_else(|| panic!("BALEEN_MUTATION names no mutation: {name}")).1)
    });
    *chosen == Some(mutation)
}

#[cfg(feature = "mutations")]
const NAMES: [(&str, Mutation); 7] = [
    ("barrier-skipped", Mutation::BarrierSkipped),
    ("record-before-barrier", Mutation::RecordBeforeBarrier),
    ("staging-wiped", Mutation::StagingWiped),
    ("log-sync-skipped", Mutation::LogSyncSkipped),
    ("checkpoint-before-data", Mutation::CheckpointBeforeData),
    ("torn-batch-accepted", Mutation::TornBatchAccepted),
    ("descriptor-late", Mutation::DescriptorLate),
];
