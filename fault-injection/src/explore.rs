//! The harness: runs a workload once, then puts it through every cut, every error and every missing barrier.
//!
//! X1  A state is judged once for each set of acknowledgements: equal trees need no second look.
//! X2  Nothing is left out in silence: what was made, judged and skipped as equal is counted in the [`Report`].
//! X3  A conviction names a [`Replay`]; [`replay`] runs exactly that again.
//!
//! ```
//! use baleen_fault_injection::{Exploration, Journal, Scenario, SimulatedDisk, explore};
//! use baleen_store::{Access, Disk, read_file};
//!
//! /// Writes a greeting so that it is there whole once that was acknowledged, and otherwise not at all.
//! struct Greeting;
//!
//! impl Scenario for Greeting {
//!     type Ack = ();
//!     type Opened = Option<Vec<u8>>;
//!
//!     fn name(&self) -> String {
//!         "greeting".to_owned()
//!     }
//!
//!     fn prepare(&self, _: &SimulatedDisk) -> Result<(), String> {
//!         Ok(())
//!     }
//!
//!     fn workload(&self, disk: &SimulatedDisk, journal: &mut Journal<()>) -> Result<(), String> {
//!         let write = || -> std::io::Result<()> {
//!             let root = disk.root()?;
//!             let file = disk.create_file(&root, b"new", 0o600)?;
//!             disk.write_at(&file, b"hello", 0)?;
//!             disk.sync(&file)?; // Without it the name could be kept and the contents lost: convicted.
//!             disk.rename(&root, b"new", &root, b"greeting")?;
//!             disk.sync(&root)
//!         };
//!         write().map_err(|error| error.to_string())?;
//!         journal.acknowledge(());
//!         Ok(())
//!     }
//!
//!     fn recover(&self, disk: &SimulatedDisk) -> Result<Option<Vec<u8>>, String> {
//!         let root = disk.root().map_err(|error| error.to_string())?;
//!         match disk.open_file(&root, b"greeting", Access::Read) {
//!             Ok(file) => read_file(disk, &file, 100).map(Some).map_err(|error| error.to_string()),
//!             Err(_) => Ok(None),
//!         }
//!     }
//!
//!     fn judge(&self, _: &SimulatedDisk, greeting: &Option<Vec<u8>>, acks: &[()]) -> Result<(), String> {
//!         match greeting {
//!             Some(greeting) if greeting == b"hello" => Ok(()),
//!             None if acks.is_empty() => Ok(()),
//!             other => Err(format!("after {} acknowledgements the greeting is {other:?}", acks.len())),
//!         }
//!     }
//! }
//!
//! let report = explore(&Greeting, &Exploration::default());
//! println!("{report}");
//! report.assert_clean();
//! ```

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::change::{CrashState, Fate};
use crate::disk::SimulatedDisk;
use crate::fault::{Fault, When};
use crate::record::{Barrier, Recording, Subsets, Walk};
use crate::replay::{Mishap, Replay, Then};
use crate::report::{Conviction, Report};
use crate::scenario::{Journal, Scenario};
use crate::tree::Tree;

/// What is tried.
#[derive(Debug, Clone)]
pub struct Exploration {
    /// States of each cut of the workload.
    pub subsets: Subsets,
    /// States of each cut of a recovery; `None` cuts no recovery.
    pub recovery: Option<Subsets>,
    /// States of the cut that follows an error.
    pub after_error: Subsets,
    /// Each step of the workload fails once with each of these.
    pub errors: Vec<Errno>,
    /// Each call of the workload that changes nothing fails once with `EIO`: reads, looks, opens.
    pub read_errors: bool,
    /// The disk gets full at each step.
    pub full_disk: bool,
    /// The disk turns read-only at each step.
    pub read_only: bool,
    /// The process is killed at each step, and recovers in the same boot.
    pub kills: bool,
    /// Each call of a recovery fails once, for the recovery from the state in which all is kept.
    pub errors_in_recovery: bool,
    /// Each barrier is skipped once, which must be convicted.
    pub skip_barriers: bool,
    /// Barriers that may be skipped without harm: a part of [`Barrier::what`], and why it is there all the same.
    pub barriers_kept: Vec<(String, String)>,
    /// The disk is that of a kernel before 5.17: [`SimulatedDisk::lose_barrier_errors`].
    pub lose_barrier_errors: bool,
    /// Threads to use.
    pub threads: usize,
    /// Convictions after which it stops.
    pub convictions_max: usize,
}

impl Default for Exploration {
    fn default() -> Self {
        Self {
            subsets: Subsets::default(),
            recovery: Some(Subsets::few(2)),
            after_error: Subsets { random: 8, ..Subsets::default() },
            errors: vec![Errno::IO],
            read_errors: true,
            full_disk: true,
            read_only: true,
            kills: true,
            errors_in_recovery: true,
            skip_barriers: true,
            barriers_kept: Vec::new(),
            lose_barrier_errors: false,
            threads: 2,
            convictions_max: 3,
        }
    }
}

impl Exploration {
    /// Only power cuts of the workload and of recovery.
    pub fn cuts_only() -> Self {
        Self {
            errors: Vec::new(),
            read_errors: false,
            full_disk: false,
            read_only: false,
            kills: false,
            errors_in_recovery: false,
            skip_barriers: false,
            ..Self::default()
        }
    }
}

/// Explores a scenario.
///
/// # Panics
/// If it fails without any mishap: then the test is broken, not the promise.
pub fn explore<S: Scenario>(scenario: &S, exploration: &Exploration) -> Report {
    let explorer = Explorer::new(scenario, exploration);
    let run = explorer.run(None);
    if let Err(error) = &run.result {
        panic!("{}: the workload fails without any mishap: {error}", scenario.name());
    }
    let mut report = Report {
        name: scenario.name(),
        steps: run.recording.steps(),
        barriers: run.recording.barriers(),
        acknowledgements: run.journal.acks.len(),
        ..Report::default()
    };
    explorer.cuts(&run);
    if !explorer.is_done() {
        explorer.mishaps(&run);
    }
    if exploration.errors_in_recovery && !explorer.is_done() {
        explorer.errors_in_recovery(&run);
    }
    if exploration.skip_barriers && !explorer.is_done() {
        explorer.skips(&run, &mut report);
    }
    let Explorer { counts, convictions, .. } = explorer;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    report.states = count(&counts.states);
    report.judged = count(&counts.judged);
    report.recovery_cuts = count(&counts.recovery_cuts);
    report.recovery_states = count(&counts.recovery_states);
    report.error_runs = count(&counts.error_runs);
    report.recovery_errors = count(&counts.recovery_errors);
    report.convictions = convictions.into_inner().unwrap_or_else(PoisonError::into_inner);
    report
}

/// Runs one [`Replay`] of a scenario again and says what is broken, with the circumstances and the disk in words.
///
/// # Errors
/// The conviction, if there is one.
///
/// # Panics
/// If the replay is not of this scenario.
pub fn replay<S: Scenario>(scenario: &S, replay: &Replay) -> Result<(), Conviction> {
    let exploration = Exploration { lose_barrier_errors: replay.old_kernel, ..Exploration::default() };
    let explorer = Explorer::new(scenario, &exploration);
    let run = explorer.run(replay.mishap);
    let mut circumstances = String::new();
    let mut disk = run.disk.clone();
    let mut recording = run.recording.clone();
    let mut acks: &[S::Ack] = &run.journal.acks;
    let convict = |circumstances: String, complaint: String, disk: &SimulatedDisk| Conviction {
        replay: replay.clone(),
        circumstances: format!("{circumstances}\nthe disk then:\n{}", disk.describe()),
        complaint,
    };
    let mut seen: Option<Vec<String>> = None;
    for (at, then) in replay.then.iter().enumerate() {
        match then {
            Then::Cut(state) => {
                circumstances.push_str(&recording.describe(state));
                circumstances.push('\n');
                if at == 0 {
                    acks = run.journal.before(state.cut);
                }
                if state.cut < recording.steps() {
                    seen = None; // Cut before it was shown.
                }
                disk = recording.reboot(state);
            }
            Then::Reopen => circumstances.push_str("opened again in the same boot\n"),
            Then::ReopenCached => {
                circumstances.push_str("opened again in the same boot, and the cache drops nothing\n");
                disk.keep_cache(true);
            }
            Then::ErrorInRecovery(call) => {
                circumstances.push_str(&format!("call {call} of the recovery failed\n"));
                disk.inject(Fault { when: When::Call(*call), errno: Errno::IO });
                let _ = explorer.recover(&disk);
                disk.clear_faults();
            }
        }
        if let Some(Then::ErrorInRecovery(_)) = replay.then.get(at + 1) {
            continue; // That is the first recovery from here.
        }
        circumstances.push_str(&format!("the disk before recovery:\n{}", disk.describe()));
        if matches!(run.mishap, Some(Mishap::Full(_))) && matches!(then, Then::Cut(_)) {
            disk.set_capacity(Some(disk.used_bytes()));
            let _ = explorer.recover(&disk);
            disk.set_capacity(None);
        }
        match explorer.recover_and_judge(&disk, acks) {
            Ok(recovered) => {
                if let Some(seen) = seen.replace(recovered.facts.clone())
                    && seen != recovered.facts
                {
                    return Err(convict(circumstances, changed(&seen, &recovered.facts), &disk));
                }
                recording = recovered.recording;
            }
            Err(complaint) => return Err(convict(circumstances, complaint, &disk)),
        }
    }
    Ok(())
}

/// A run of the workload.
struct Run<A> {
    mishap: Option<Mishap>,
    disk: SimulatedDisk,
    recording: Recording,
    journal: Journal<A>,
    result: Result<(), String>,
    /// The numbers of the calls that were no steps.
    other_calls: Vec<u64>,
}

struct Recovered {
    recording: Recording,
    facts: Vec<String>,
}

#[derive(Default)]
struct Counts {
    states: AtomicU64,
    judged: AtomicU64,
    recovery_cuts: AtomicU64,
    recovery_states: AtomicU64,
    error_runs: AtomicU64,
    recovery_errors: AtomicU64,
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

struct Explorer<'a, S: Scenario> {
    scenario: &'a S,
    exploration: &'a Exploration,
    prepared: Tree,
    /// Trees and acknowledgements that were judged (X1), and what recovery showed of each, by their hashes.
    judged: Mutex<HashMap<(u64, u64), Option<u64>>>,
    counts: Counts,
    convictions: Mutex<Vec<Conviction>>,
}

impl<'a, S: Scenario> Explorer<'a, S> {
    fn new(scenario: &'a S, exploration: &'a Exploration) -> Self {
        let disk = SimulatedDisk::new();
        if let Err(error) = scenario.prepare(&disk) {
            panic!("{}: the preparation fails: {error}", scenario.name());
        }
        Self {
            scenario,
            exploration,
            prepared: disk.recording().tree_at_end(),
            judged: Mutex::default(),
            counts: Counts::default(),
            convictions: Mutex::default(),
        }
    }

    /// Runs the workload on a fresh copy of the prepared disk.
    fn run(&self, mishap: Option<Mishap>) -> Run<S::Ack> {
        let disk = self.disk(self.prepared.clone());
        match mishap {
            None => {}
            Some(Mishap::Error(step, errno)) => disk.fail_step(step, errno),
            Some(Mishap::Full(step)) => disk.full_from(step),
            Some(Mishap::ReadOnly(step)) => disk.read_only_from(step),
            Some(Mishap::Call(call)) => disk.inject(Fault { when: When::Call(call), errno: Errno::IO }),
            Some(Mishap::Killed(step)) => disk.cut_power_at(step),
            Some(Mishap::SkippedBarrier(number)) => disk.skip_barrier(number),
        }
        let mut journal = Journal::new(&disk);
        let result = caught(|| self.scenario.workload(&disk, &mut journal));
        let other_calls = disk.other_calls();
        disk.clear_faults();
        if let Some(Mishap::Killed(_)) = mishap {
            disk.restore_power(); // Only the process was gone.
        }
        Run { mishap, recording: disk.recording(), disk, journal, result, other_calls }
    }

    fn disk(&self, tree: Tree) -> SimulatedDisk {
        let disk = SimulatedDisk::with_tree(tree);
        disk.lose_barrier_errors(self.exploration.lose_barrier_errors);
        disk
    }

    /// The replay of a run in which nothing has gone wrong yet.
    fn nothing_yet(&self) -> Replay {
        Replay { old_kernel: self.exploration.lose_barrier_errors, ..Replay::default() }
    }

    fn is_done(&self) -> bool {
        lock(&self.convictions).len() >= self.exploration.convictions_max
    }

    fn convict(&self, replay: Replay, circumstances: String, complaint: String) {
        lock(&self.convictions).push(Conviction { replay, circumstances, complaint });
    }

    fn key(&self, tree: &Tree, acks: &[S::Ack]) -> (u64, u64) {
        (tree.hash(), hash_of(acks))
    }

    /// Recovers from a tree and judges it, unless it was judged before with these acknowledgements (X1). `shown` is what
    /// must be seen then.
    ///
    /// # Errors
    /// What is broken.
    fn judge_tree(
        &self,
        tree: Tree,
        acks: &[S::Ack],
        shown: Option<&Vec<String>>,
    ) -> Result<Option<Recovered>, String> {
        let key = self.key(&tree, acks);
        match (lock(&self.judged).entry(key), shown) {
            (Entry::Vacant(entry), _) => drop(entry.insert(None)),
            (Entry::Occupied(_), None) => return Ok(None),
            (Entry::Occupied(entry), Some(shown)) if *entry.get() == Some(hash_of(shown)) => return Ok(None),
            (Entry::Occupied(_), Some(_)) => {}
        }
        let recovered = self.recover_and_judge(&self.disk(tree), acks)?;
        lock(&self.judged).insert(key, Some(hash_of(&recovered.facts)));
        match shown {
            Some(shown) if *shown != recovered.facts => Err(changed(shown, &recovered.facts)),
            _ => Ok(Some(recovered)),
        }
    }

    fn recover(&self, disk: &SimulatedDisk) -> Result<S::Opened, String> {
        caught(|| self.scenario.recover(disk))
    }

    /// Recovers, and tries again while old errors are told: each is told to one handle once, so there is an end.
    fn recover_once_more(&self, disk: &SimulatedDisk) -> Result<S::Opened, String> {
        for _ in 1..RECOVERIES_MAX {
            let told = disk.old_errors_told();
            match self.recover(disk) {
                Err(error) if disk.old_errors_told() > told && !error.starts_with(PANIC) => continue,
                other => return other,
            }
        }
        self.recover(disk)
    }

    fn recover_and_judge(&self, disk: &SimulatedDisk, acks: &[S::Ack]) -> Result<Recovered, String> {
        add(&self.counts.judged, 1);
        let opened = self.recover_once_more(disk).map_err(|error| format!("recovery fails: {error}"))?;
        let recording = disk.recording();
        let facts = caught(|| {
            self.scenario.judge(disk, &opened, acks)?;
            Ok(self.scenario.facts(disk, &opened))
        })?;
        Ok(Recovered { recording, facts })
    }

    /// Divides the numbers below `count` among the threads.
    fn in_parallel(&self, count: u64, work: impl Fn(&mut dyn Iterator<Item = u64>) + Sync) {
        let threads = self.exploration.threads.max(1) as u64;
        std::thread::scope(|scope| {
            for first in 0..threads {
                let work = &work;
                scope.spawn(move || {
                    let mut numbers = (first..count).step_by(threads as usize).take_while(|_| !self.is_done());
                    work(&mut numbers);
                });
            }
        });
    }

    /// Every cut of the workload.
    fn cuts(&self, run: &Run<S::Ack>) {
        self.in_parallel(run.recording.steps() + 1, |cuts| {
            let mut walk = Walk::new(&run.recording, None);
            for cut in cuts {
                walk.advance(cut);
                let acks = run.journal.before(cut);
                let states = walk.states(&self.exploration.subsets);
                add(&self.counts.states, states.len());
                for state in states {
                    self.judge_cut(&walk, state, acks, &self.nothing_yet());
                }
            }
        });
    }

    /// Recovers from a state and judges it, and does so again from the states of every cut of that recovery.
    fn judge_cut(&self, walk: &Walk<'_>, state: CrashState, acks: &[S::Ack], before: &Replay) {
        if self.is_done() {
            return;
        }
        let circumstances = || format!("{}{}", in_words(before), walk.describe(&state));
        match self.judge_tree(walk.build(&state), acks, None) {
            Ok(None) => {}
            Ok(Some(recovered)) => {
                let before = before.and(Then::Cut(state.clone()));
                self.judge_recovery(&recovered, acks, &before, &circumstances);
            }
            Err(complaint) => self.convict(before.and(Then::Cut(state.clone())), circumstances(), complaint),
        }
    }

    fn judge_recovery(
        &self,
        recovered: &Recovered,
        acks: &[S::Ack],
        before: &Replay,
        circumstances: &dyn Fn() -> String,
    ) {
        let Some(subsets) = &self.exploration.recovery else { return };
        let recording = &recovered.recording;
        let mut walk = Walk::new(recording, None);
        for cut in 0..=recording.steps() {
            add(&self.counts.recovery_cuts, 1);
            walk.advance(cut);
            let states = walk.states(subsets);
            add(&self.counts.recovery_states, states.len());
            for state in states {
                if self.is_done() {
                    return;
                }
                // Cut before its end it had shown nothing.
                let shown = (cut == recording.steps()).then_some(&recovered.facts);
                let Err(complaint) = self.judge_tree(walk.build(&state), acks, shown) else { continue };
                let circumstances = format!("{}\nthen, in recovery, {}", circumstances(), walk.describe(&state));
                self.convict(before.and(Then::Cut(state)), circumstances, complaint);
            }
        }
    }

    /// Every step with an error, with a full disk, with a read-only disk, as the last before a kill; and failing reads.
    fn mishaps(&self, run: &Run<S::Ack>) {
        let Exploration { errors, full_disk, read_only, kills, .. } = self.exploration;
        let mut mishaps = Vec::new();
        for step in 0..run.recording.steps() {
            mishaps.extend(errors.iter().map(|errno| Mishap::Error(step, *errno)));
            mishaps.extend(full_disk.then_some(Mishap::Full(step)));
            mishaps.extend(read_only.then_some(Mishap::ReadOnly(step)));
            mishaps.extend(kills.then_some(Mishap::Killed(step)));
        }
        if self.exploration.read_errors {
            mishaps.extend(run.other_calls.iter().map(|call| Mishap::Call(*call)));
        }
        self.in_parallel(mishaps.len() as u64, |numbers| {
            for number in numbers {
                self.judge_mishap(mishaps[number as usize]);
            }
        });
    }

    fn judge_mishap(&self, mishap: Mishap) {
        add(&self.counts.error_runs, 1);
        let before = Replay { mishap: Some(mishap), ..self.nothing_yet() };
        let run = self.run(Some(mishap));
        let acks = &run.journal.acks;
        if let Err(error) = &run.result
            && error.starts_with(PANIC)
        {
            self.convict(before, in_words(&Replay { mishap: Some(mishap), ..self.nothing_yet() }), error.clone());
            return;
        }
        // The power goes. With a process that was killed before it, that is a cut like any other.
        let mut walk = Walk::new(&run.recording, None);
        walk.advance(run.recording.steps());
        let is_cut = matches!(mishap, Mishap::Killed(_));
        let states = if is_cut { Vec::new() } else { walk.states(&self.exploration.after_error) };
        for state in states {
            if let Mishap::Full(_) = mishap {
                self.judge_cut_while_full(&walk, state, acks, &before);
            } else {
                self.judge_cut(&walk, state, acks, &before);
            }
        }
        // Or only the process ends, and the page cache stays.
        self.judge_reopened(&run, &before, Then::Reopen);
        self.judge_reopened(&self.run(Some(mishap)), &before, Then::ReopenCached);
    }

    /// Recovery on the disk as it lives, and then every cut of it.
    fn judge_reopened(&self, run: &Run<S::Ack>, before: &Replay, how: Then) {
        if self.is_done() {
            return;
        }
        let acks = &run.journal.acks;
        run.disk.keep_cache(how == Then::ReopenCached);
        let before = before.and(how);
        let recovered = match self.recover_and_judge(&run.disk, acks) {
            Ok(recovered) => recovered,
            Err(complaint) => return self.convict(before.clone(), in_words(&before), complaint),
        };
        // The record goes on through the reopening, so all cuts in it and after it follow from it.
        let steps = recovered.recording.steps();
        let mut walk = Walk::new(&recovered.recording, None);
        for cut in run.recording.steps()..=steps {
            walk.advance(cut);
            let was_shown = cut == steps;
            let subsets = match &self.exploration.recovery {
                _ if was_shown => &self.exploration.after_error,
                Some(subsets) => subsets,
                None => continue,
            };
            for state in walk.states(subsets) {
                if self.is_done() {
                    return;
                }
                let shown = was_shown.then_some(&recovered.facts);
                let Err(complaint) = self.judge_tree(walk.build(&state), acks, shown) else { continue };
                let circumstances = format!("{}{}", in_words(&before), walk.describe(&state));
                return self.convict(before.and(Then::Cut(state)), circumstances, complaint);
            }
        }
    }

    /// As [`Explorer::judge_cut`], but the disk is still full at the first recovery, which may say so.
    fn judge_cut_while_full(&self, walk: &Walk<'_>, state: CrashState, acks: &[S::Ack], before: &Replay) {
        let tree = walk.build(&state);
        if self.is_done() {
            return;
        }
        let disk = self.disk(tree);
        disk.set_capacity(Some(disk.used_bytes()));
        let first = self.recover(&disk).map(drop);
        disk.set_capacity(None);
        let complaint = match first {
            Err(error) if error.starts_with(PANIC) => error,
            _ => match self.recover_and_judge(&disk, acks) {
                Err(complaint) => complaint,
                Ok(_) => return,
            },
        };
        let circumstances = format!("{}{}", in_words(before), walk.describe(&state));
        self.convict(before.and(Then::Cut(state)), circumstances, complaint);
    }

    /// Each call of the recovery from the end of the workload, nothing lost or everything lost, fails once.
    fn errors_in_recovery(&self, run: &Run<S::Ack>) {
        let mut walk = Walk::new(&run.recording, None);
        walk.advance(run.recording.steps());
        let acks = &run.journal.acks;
        let count = walk.states(&Subsets::few(0)).first().map_or(0, |state| state.fates.len());
        for fate in [Fate::Kept, Fate::Lost] {
            let state = CrashState { cut: run.recording.steps(), fates: vec![fate; count] };
            let tree = walk.build(&state);
            let clean = self.disk(tree.clone());
            let _ = self.recover(&clean);
            self.in_parallel(clean.calls(), |calls| {
                for call in calls {
                    add(&self.counts.recovery_errors, 1);
                    let disk = self.disk(tree.clone());
                    disk.inject(Fault { when: When::Call(call), errno: Errno::IO });
                    let first = self.recover(&disk).map(drop);
                    disk.clear_faults();
                    let complaint = match first {
                        Err(error) if error.starts_with(PANIC) => error,
                        _ => match self.recover_and_judge(&disk, acks) {
                            Err(complaint) => complaint,
                            Ok(_) => continue,
                        },
                    };
                    let replay = self.nothing_yet().and(Then::Cut(state.clone())).and(Then::ErrorInRecovery(call));
                    let circumstances = format!("{}\nthen call {call} of recovery failed", walk.describe(&state));
                    self.convict(replay, circumstances, complaint);
                }
            });
        }
    }

    /// Each barrier skipped, until a state convicts that.
    fn skips(&self, run: &Run<S::Ack>, report: &mut Report) {
        let needed = Mutex::new(vec![false; report.barriers.len()]);
        self.in_parallel(report.barriers.len() as u64, |numbers| {
            for number in numbers {
                let is_needed = self.is_needed(run, &report.barriers[number as usize]);
                lock(&needed)[number as usize] = is_needed;
            }
        });
        let needed = needed.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (barrier, is_needed) in report.barriers.iter().zip(needed) {
            let reason = self.exploration.barriers_kept.iter().find(|(what, _)| barrier.what.contains(what));
            match (is_needed, reason) {
                (true, _) => report.barriers_needed += 1,
                (false, Some((_, reason))) => report.barriers_kept.push((barrier.clone(), reason.clone())),
                (false, None) => report.barriers_idle.push(barrier.clone()),
            }
        }
    }

    fn is_needed(&self, run: &Run<S::Ack>, barrier: &Barrier) -> bool {
        let mut walk = Walk::new(&run.recording, Some(barrier.number));
        let mut seen = HashSet::new();
        for cut in barrier.step + 1..=run.recording.steps() {
            walk.advance(cut);
            let acks = run.journal.before(cut);
            for state in walk.states(&self.exploration.subsets) {
                let tree = walk.build(&state);
                // What an honest run can leave was judged already.
                if !seen.insert((tree.hash(), acks.len())) || lock(&self.judged).contains_key(&self.key(&tree, acks)) {
                    continue;
                }
                if self.recover_and_judge(&self.disk(tree), acks).is_err() {
                    return true;
                }
            }
        }
        false
    }
}

/// Recoveries in one boot before an error that is still told is a conviction.
const RECOVERIES_MAX: usize = 4;
const PANIC: &str = "panicked: ";

/// Runs it, and makes of a panic an error: an assertion that a state breaks is a finding about that state.
fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("with something that is no text");
        Err(format!("{PANIC}{text}"))
    })
}

fn hash_of<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_words(before: &Replay) -> String {
    let mut text = match before.mishap {
        None => String::new(),
        Some(Mishap::Error(step, errno)) => format!("step {step} failed with {errno:?}\n"),
        Some(Mishap::Full(step)) => format!("the disk was full from step {step} on\n"),
        Some(Mishap::ReadOnly(step)) => format!("the disk was read-only from step {step} on\n"),
        Some(Mishap::Call(call)) => format!("call {call} of the workload failed with EIO\n"),
        Some(Mishap::Killed(step)) => format!("the process was killed before step {step}\n"),
        Some(Mishap::SkippedBarrier(number)) => format!("barrier {number} was skipped\n"),
    };
    for then in &before.then {
        text.push_str(match then {
            Then::Reopen => "opened again in the same boot\n",
            Then::ReopenCached => "opened again in the same boot, and the cache drops nothing\n",
            _ => "",
        });
    }
    text
}

fn changed(seen: &[String], now: &[String]) -> String {
    let lost: Vec<&String> = seen.iter().filter(|fact| !now.contains(fact)).collect();
    let new: Vec<&String> = now.iter().filter(|fact| !seen.contains(fact)).collect();
    format!("what recovery had shown is different after a cut and the next recovery: gone {lost:?}, new {new:?}")
}
