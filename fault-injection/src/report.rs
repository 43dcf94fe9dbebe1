//! What an exploration tried and found.

use std::fmt;

use crate::record::Barrier;
use crate::replay::Replay;

/// A state or an error in which a promise is broken.
#[derive(Debug, Clone)]
pub struct Conviction {
    /// Runs it again: [`replay`](crate::replay()).
    pub replay: Replay,
    /// What had happened, in words.
    pub circumstances: String,
    /// What is broken.
    pub complaint: String,
}

impl fmt::Display for Conviction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replay, circumstances, complaint } = self;
        write!(formatter, "{complaint}\n{circumstances}\nreplay: {replay}")
    }
}

/// What was tried and what was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The scenario.
    pub name: String,
    /// Steps of the workload; the power was cut before each and after the last.
    pub steps: u64,
    /// Its barriers.
    pub barriers: Vec<Barrier>,
    /// Acknowledgements.
    pub acknowledgements: usize,
    /// States made of these cuts.
    pub states: u64,
    /// Those that differed and were recovered and judged, here and after errors.
    pub judged: u64,
    /// Cuts of recoveries.
    pub recovery_cuts: u64,
    /// States made of those.
    pub recovery_states: u64,
    /// Runs with an error, a full or a read-only disk, or a killed process.
    pub error_runs: u64,
    /// Recoveries with an error.
    pub recovery_errors: u64,
    /// Barriers whose absence was convicted.
    pub barriers_needed: usize,
    /// Barriers whose absence nothing convicted and that no reason keeps.
    pub barriers_idle: Vec<Barrier>,
    /// Barriers whose absence nothing convicted, with the reason given.
    pub barriers_kept: Vec<(Barrier, String)>,
    /// What was found.
    pub convictions: Vec<Conviction>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {} steps, {} barriers ({} needed, {} kept with a reason), {} acknowledgements, {} states, {} recovery \
             cuts with {} states, {} different ones judged, {} runs with errors, {} recoveries with errors",
            self.name,
            self.steps,
            self.barriers.len(),
            self.barriers_needed,
            self.barriers_kept.len(),
            self.acknowledgements,
            self.states,
            self.recovery_cuts,
            self.recovery_states,
            self.judged,
            self.error_runs,
            self.recovery_errors,
        )
    }
}

impl Report {
    /// Panics with every conviction and every barrier that nothing needs.
    ///
    /// # Panics
    /// If there is one.
    pub fn assert_clean(&self) {
        let mut text = String::new();
        for conviction in &self.convictions {
            text.push_str(&format!("\n{}: {conviction}\n", self.name));
        }
        for barrier in &self.barriers_idle {
            let Barrier { number, step, what } = barrier;
            text.push_str(&format!(
                "\n{}: barrier {number} (step {step}, `{what}`) can be skipped without harm: drop it or say why it is \
                 kept\n",
                self.name
            ));
        }
        assert!(text.is_empty(), "{text}");
    }
}
