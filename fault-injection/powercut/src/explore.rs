//! Which states are judged, in which order, and what came of it.
//!
//! E1  A state counts once for each (epoch, set of kept writes), in one exploration and in all that went before.
//! E2  Epochs take turns, and so do the kinds of states: whenever it stops, what was judged is spread evenly.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use baleen_fault_injection::Random;

use crate::record::Recording;
use crate::rig::{Judge, RigError, Verdict, on_stage, record_recovery};
use crate::stage::own_file;
use crate::state::{Kind, State};
use crate::workload::Workload;

/// Rounds over all epochs that give no state not seen before, after which there are taken to be no more.
const EMPTY_ROUNDS_MAX: u64 = 6;

/// What is explored.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Only `none` and `all` of each epoch, all epochs.
    pub boundaries_only: bool,
    /// States of 512-byte tears too: more than a disk with sectors of 4096 bytes can do, so they are told apart.
    pub torn512: bool,
    /// Judge at most so many states that had not been judged before, those of second cuts not counted.
    pub states_max: u64,
    /// Begin no further state after this.
    pub budget: Option<Duration>,
    /// What chooses epochs and subsets.
    pub seed: u64,
    /// Cut the recovery of so many of the states, at every flush of it.
    pub second_cuts: u64,
    /// Stop after so many convictions.
    pub convictions_max: u64,
    /// Where the recording of a recovery is kept of which a state is convicted: this path, with the state that was cut first before
    /// its extension. Its states can be judged and replayed like any others, byte for byte.
    pub recoveries: Option<PathBuf>,
}

impl Plan {
    fn recovery_path(&self, state: State) -> PathBuf {
        let Some(path) = &self.recoveries else {
            return own_file("second");
        };
        let state = state.to_string().replace(':', "-");
        let extension = path.extension().map(|extension| extension.to_string_lossy().into_owned());
        path.with_extension(format!("after-{state}.{}", extension.as_deref().unwrap_or("powercut")))
    }
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            boundaries_only: false,
            torn512: false,
            states_max: 1000,
            budget: None,
            seed: 1,
            second_cuts: 0,
            convictions_max: u64::MAX,
            recoveries: None,
        }
    }
}

/// The sets of kept writes that have been judged, by epoch; of second cuts, with the state that was cut first.
pub type Judged = HashSet<(Option<String>, u32, String)>;

/// What came of an exploration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// States judged, each another one.
    pub judged: u64,
    /// Of which kinds.
    pub by_kind: BTreeMap<String, u64>,
    /// Different epochs among them.
    pub epochs: u64,
    /// States made and not judged, since they equal one that was.
    pub equal: u64,
    /// States that break a promise.
    pub convicted: u64,
    /// Recoveries that were cut.
    pub second_cuts: u64,
}

/// Judges states of a recording, each handed to `each` as it is done. What `judged` has is not judged again, and it
/// takes in what is.
///
/// # Errors
/// Those of the rig; a broken promise is no error but in the verdicts.
pub fn explore(
    recording: &Recording,
    workload: &mut dyn Workload,
    plan: &Plan,
    judged: &mut Judged,
    each: &mut (dyn FnMut(&Verdict) + Send),
) -> Result<Summary, RigError> {
    on_stage(|stage| {
        let begun = Instant::now();
        let judge = Judge::new(stage, recording)?;
        let states_max = plan.states_max;
        let summary = Summary::default();
        let mut course = Course { plan, states_max, begun, judged, each, summary, epochs: HashSet::new() };
        let first = course.states(recording, &judge, None, 0, workload)?;
        drop(judge);
        // Recoveries are cut last: each needs a recording of its own. Their states come on top.
        course.states_max = u64::MAX;
        let mut random = Random::new(plan.seed);
        let mut candidates = first;
        while course.summary.second_cuts < plan.second_cuts && !candidates.is_empty() && course.goes_on() {
            let state = candidates.swap_remove(random.below(candidates.len() as u64) as usize);
            let path = plan.recovery_path(state);
            let removed = Removed(&path);
            let convicted = course.summary.convicted;
            let chain = record_recovery(stage, recording, state, workload, &path)?;
            let judge = Judge::new(stage, &chain)?;
            course.states(&chain, &judge, Some(state), state.epoch + 1, workload)?;
            if plan.recoveries.is_some() && course.summary.convicted > convicted {
                std::mem::forget(removed);
            }
            course.summary.second_cuts += 1;
        }
        course.summary.epochs = course.epochs.len() as u64;
        Ok(course.summary)
    })
}

/// Removes a file on every path out.
struct Removed<'a>(&'a std::path::Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Judges one state.
///
/// # Errors
/// Those of the rig; `NoSuchState`.
pub fn judge(recording: &Recording, workload: &mut dyn Workload, state: State) -> Result<Verdict, RigError> {
    on_stage(|stage| Judge::new(stage, recording)?.judge(state, workload))
}

/// An exploration under way.
struct Course<'a> {
    plan: &'a Plan,
    states_max: u64,
    begun: Instant,
    judged: &'a mut Judged,
    each: &'a mut (dyn FnMut(&Verdict) + Send),
    summary: Summary,
    epochs: HashSet<u32>,
}

impl Course<'_> {
    fn goes_on(&self) -> bool {
        self.summary.judged < self.states_max
            && self.summary.convicted < self.plan.convictions_max
            && self.plan.budget.is_none_or(|budget| self.begun.elapsed() < budget)
    }

    /// Judges states of the epochs from `first` on; of a recovery that was cut, only the boundaries and one subset.
    fn states(
        &mut self,
        recording: &Recording,
        judge: &Judge<'_>,
        after: Option<State>,
        first: u32,
        workload: &mut dyn Workload,
    ) -> Result<Vec<State>, RigError> {
        let mut done = Vec::new();
        let (mut round, mut empty) = (0, 0);
        let epochs = turns(first..recording.epoch_count(), self.plan.seed);
        while empty < EMPTY_ROUNDS_MAX && self.goes_on() {
            let mut fresh = 0;
            for (turn, epoch) in epochs.iter().enumerate() {
                if !self.goes_on() {
                    return Ok(done);
                }
                let after = after.map(|state| state.to_string());
                let candidates = self.candidates(recording, *epoch, round, turn as u64, after.is_some());
                let Some(state) = candidates.into_iter().find(|state| {
                    let kept = recording.kept(*state).key();
                    let key = kept.iter().map(|byte| format!("{byte:02x}")).collect();
                    let fresh = self.judged.insert((after.clone(), *epoch, key));
                    self.summary.equal += u64::from(!fresh);
                    fresh
                }) else {
                    continue;
                };
                let mut verdict = judge.judge(state, workload)?;
                verdict.after = after;
                fresh += 1;
                self.summary.judged += 1;
                *self.summary.by_kind.entry(verdict.kind.clone()).or_default() += 1;
                self.summary.convicted += u64::from(!verdict.broken.is_empty());
                self.epochs.insert(*epoch);
                (self.each)(&verdict);
                done.push(state);
            }
            empty = if fresh == 0 { empty + 1 } else { 0 };
            round += 1;
        }
        Ok(done)
    }

    /// The state of an epoch in a round, and what stands in for it where it has been judged: there are few states of
    /// some kinds, and none of them shall be rare among those that are judged.
    fn candidates(&self, recording: &Recording, epoch: u32, round: u64, turn: u64, second: bool) -> Vec<State> {
        let mut candidates: Vec<State> = self.state(recording, epoch, round, turn, second).into_iter().collect();
        let writes = recording.write_count(epoch);
        if !candidates.is_empty() && !self.plan.boundaries_only && !second && writes > 1 {
            let mut stand_ins = [prefix(self.seed(round), epoch, writes), Kind::Subset(self.seed(round))];
            if (round + turn) % 2 == 1 {
                stand_ins.reverse();
            }
            candidates.extend(stand_ins.map(|kind| State { epoch, kind }));
        }
        candidates
    }

    fn seed(&self, round: u64) -> u64 {
        self.plan.seed.wrapping_mul(1_000_003).wrapping_add(round)
    }

    /// The state of an epoch in a round: kinds take turns, shifted from epoch to epoch.
    fn state(&self, recording: &Recording, epoch: u32, round: u64, turn: u64, second: bool) -> Option<State> {
        let writes = recording.write_count(epoch);
        let kinds: u64 = match (self.plan.boundaries_only, second, self.plan.torn512) {
            (true, ..) => 2,
            (_, true, _) => 3,
            (false, false, false) => 5,
            (false, false, true) => 6,
        };
        if (self.plan.boundaries_only || second) && round >= kinds || writes == 0 && round > 0 {
            return None;
        }
        if writes == 0 {
            return Some(State { epoch, kind: Kind::None });
        }
        let seed = self.seed(round);
        let kind = match (round + turn) % kinds {
            0 => Kind::None,
            1 => Kind::All,
            2 if second => Kind::Subset(seed),
            2 if writes > 1 => prefix(seed, epoch, writes),
            4 if recording.can_tear(epoch) => Kind::Torn(seed),
            5 => Kind::Torn512(seed),
            _ => Kind::Subset(seed),
        };
        Some(State { epoch, kind })
    }
}

/// A prefix that is neither none nor all; there are at least two writes.
fn prefix(seed: u64, epoch: u32, writes: u32) -> Kind {
    let choice = Random::new(seed ^ u64::from(epoch) << 32).below(u64::from(writes) - 1);
    Kind::Prefix(1 + choice as u32)
}

/// Epochs in an order that a seed gives, so that a part of them is spread over the whole.
fn turns(epochs: std::ops::Range<u32>, seed: u64) -> Vec<u32> {
    let mut epochs: Vec<u32> = epochs.collect();
    let mut random = Random::new(seed);
    for at in (1..epochs.len()).rev() {
        epochs.swap(at, random.below(at as u64 + 1) as usize);
    }
    epochs
}
