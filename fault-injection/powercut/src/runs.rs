//! A run: workloads times file systems, each recorded if it has not been, and explored until enough states are judged.
//! Everything is kept below one folder by commit, so that the next run goes on.
//!
//! N1  The rig's own toys are judged first: a judge that misses one, or convicts a right one, judges nothing else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::engines;
use crate::explore::{Judged, Plan, explore};
use crate::external::External;
use crate::filesystem::FileSystem;
use crate::record::{RecordError, Recording};
use crate::results::{Results, ResultsError, Totals};
use crate::rig::{RecordOptions, RigError, Verdict, record};
use crate::stage::own_file;
use crate::toys::Toy;
use crate::workload::{Workload, WorkloadError};

/// Recordings of one workload on one file system in one run's folder.
const RECORDINGS_MAX: u32 = 1000;

/// States taken from one recording, for each epoch of it: past that there are no more of some kinds, and another
/// recording has other epochs.
const STATES_OF_AN_EPOCH: u64 = 5;

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The rig failed.
    #[error("cannot go on with {workload} on {filesystem}")]
    Rig {
        /// Which workload.
        workload: String,
        /// On which file system.
        filesystem: FileSystem,
        /// Why.
        #[source]
        source: RigError,
    },
    /// Results cannot be kept.
    #[error("cannot go on without results")]
    Results(#[source] ResultsError),
    /// No such workload.
    #[error("there is no workload {name:?}; `baleen-powercut workloads` lists them")]
    UnknownWorkload {
        /// The name.
        name: String,
    },
    /// A workload that cannot be made.
    #[error("cannot make the workload {name}")]
    Workload {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: WorkloadError,
    },
    /// The judge itself is wrong (N1).
    #[error("the rig judges its own toys wrongly on {filesystem}: {}; trust none of its verdicts here", .findings.join("; "))]
    JudgeIsWrong {
        /// Where.
        filesystem: FileSystem,
        /// Which toys.
        findings: Vec<String>,
    },
}

/// The names of all workloads.
pub fn workload_names() -> Vec<String> {
    let toys = Toy::WRONG.into_iter().chain(Toy::RIGHT).map(|toy| toy.name());
    let of = |word: &'static str, kind| engines::names(kind).into_iter().map(move |name| format!("{word}/{name}"));
    toys.chain(of("baleen", engines::Kind::Baleen)).chain(of("docker", engines::Kind::Docker)).collect()
}

/// The workload of a name; `program` is the engine's, or for `external` the program itself and its arguments.
///
/// # Errors
/// `UnknownWorkload`; `Workload`.
pub fn workload(name: &str, program: &[String]) -> Result<Box<dyn Workload>, RunError> {
    if let Some(toy) = name.strip_prefix("toy/").and_then(Toy::by_name) {
        return Ok(Box::new(toy));
    }
    if name == "external" && !program.is_empty() {
        return Ok(Box::new(External::new(program.iter().map(Into::into).collect())));
    }
    let program = program.first().map(PathBuf::from);
    match engines::named(name, program) {
        Ok(Some(engine)) => Ok(Box::new(engine)),
        Ok(None) => Err(RunError::UnknownWorkload { name: name.to_owned() }),
        Err(source) => Err(RunError::Workload { name: name.to_owned(), source }),
    }
}

/// Judges the judge: the toys on a file system; what it got wrong, nothing if all is well.
///
/// # Errors
/// Those of the rig.
pub fn judge_the_judge(filesystem: FileSystem, states: u64) -> Result<Vec<String>, RunError> {
    let mut findings = Vec::new();
    for mut toy in Toy::WRONG.into_iter().chain(Toy::RIGHT) {
        let wrong = Toy::WRONG.contains(&toy) && toy.shows_on(filesystem);
        let name = toy.name();
        let failed = |source| RunError::Rig { workload: name.clone(), filesystem, source };
        let out = own_file("toy");
        let recording = record(&RecordOptions::new(filesystem), &mut toy, &out).map_err(failed);
        let recording = recording.inspect_err(|_| drop(std::fs::remove_file(&out)))?;
        // A toy whose mistake shows in few states gets as many as it takes; right ones a fair number.
        let states_max = if wrong { states * 4 } else { states };
        let plan = Plan { states_max, convictions_max: 1, ..Plan::default() };
        let mut first = None;
        let mut each = |verdict: &Verdict| {
            if let Some(broken) = verdict.broken.first() {
                first = Some(format!("{} in state {}", broken, verdict.state));
            }
        };
        let explored = explore(&recording, &mut toy, &plan, &mut Judged::new(), &mut each).map_err(failed);
        let _ = std::fs::remove_file(&out);
        explored?;
        match (wrong, first) {
            (true, None) => findings.push(format!("{} was not convicted", toy.word())),
            (false, Some(what)) if !Toy::WRONG.contains(&toy) => {
                findings.push(format!("{} was convicted: {what}", toy.word()));
            }
            _ => {}
        }
    }
    Ok(findings)
}

/// What one run does.
#[derive(Debug, Clone)]
pub struct Run {
    /// Below which folder results are kept.
    pub folder: PathBuf,
    /// The commit of what is tested: its results are kept apart.
    pub commit: String,
    /// On which file systems.
    pub filesystems: Vec<FileSystem>,
    /// Size of the disk, by default the file system's smallest.
    pub size_bytes: Option<u64>,
    /// States that shall have been judged of each workload on each file system, earlier runs included.
    pub states: u64,
    /// Recoveries to be cut of each recording that is explored.
    pub second_cuts: u64,
    /// How long all of it may take.
    pub budget: Option<Duration>,
    /// What chooses epochs and subsets.
    pub seed: u64,
    /// Judge states with 512-byte tears too.
    pub torn512: bool,
}

impl Run {
    fn path(&self, filesystem: FileSystem, workload: &str, number: u32, extension: &str) -> PathBuf {
        let name = workload.replace('/', "-");
        let commit = if self.commit.is_empty() { "unnamed" } else { &self.commit };
        self.folder.join(commit).join(filesystem.name()).join(format!("{name}.{number}.{extension}"))
    }

    /// Runs one workload on one file system until enough states have been judged: all verdicts, of earlier runs too.
    /// `begun` is when the whole run began.
    ///
    /// # Errors
    /// As their texts say.
    pub fn one(
        &self,
        filesystem: FileSystem,
        workload: &mut dyn Workload,
        begun: Instant,
        each: &mut (dyn FnMut(&Verdict) + Send),
    ) -> Result<Totals, RunError> {
        let name = workload.name();
        let failed = |source| RunError::Rig { workload: name.clone(), filesystem, source };
        let mut all: Vec<Verdict> = Vec::new();
        for number in 1..=RECORDINGS_MAX {
            let mut results =
                Results::open(&self.path(filesystem, &name, number, "jsonl")).map_err(RunError::Results)?;
            let before = results.verdicts().len() as u64;
            let wanted = self.states.saturating_sub(all.len() as u64 + before);
            if wanted > 0 && self.time_left(begun) {
                let recording = self.recording(filesystem, workload, number).map_err(failed)?;
                let most = STATES_OF_AN_EPOCH * u64::from(recording.epoch_count());
                let plan = Plan {
                    states_max: wanted.min(most.saturating_sub(before)),
                    budget: self.budget.map(|budget| budget.saturating_sub(begun.elapsed())),
                    second_cuts: self.second_cuts,
                    seed: self.seed,
                    torn512: self.torn512,
                    recoveries: Some(self.path(filesystem, &name, number, "powercut")),
                    ..Plan::default()
                };
                let mut judged = results.judged(recording.identity());
                let mut lost = None;
                let mut keep = |verdict: &Verdict| {
                    each(verdict);
                    if let Err(error) = results.keep(verdict) {
                        lost = Some(error);
                    }
                };
                let explored = explore(&recording, workload, &plan, &mut judged, &mut keep);
                if let Some(error) = lost {
                    return Err(RunError::Results(error));
                }
                explored.map_err(failed)?;
            }
            all.extend(results.verdicts().iter().cloned());
            if all.len() as u64 >= self.states || !self.time_left(begun) {
                break;
            }
        }
        Ok(Totals::of(&all))
    }

    fn time_left(&self, begun: Instant) -> bool {
        self.budget.is_none_or(|budget| begun.elapsed() < budget)
    }

    /// The recording of that number: the one that is there, or a new one.
    fn recording(
        &self,
        filesystem: FileSystem,
        workload: &mut dyn Workload,
        number: u32,
    ) -> Result<Recording, RigError> {
        let path = self.path(filesystem, &workload.name(), number, "powercut");
        match Recording::open(&path) {
            Ok(recording) => return Ok(recording),
            // An interrupted one is made again.
            Err(RecordError::Io { .. } | RecordError::Damaged { .. } | RecordError::NotQuiet { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        let mut options = RecordOptions::new(filesystem);
        options.size_bytes = self.size_bytes.map(|size| size.max(filesystem.size_bytes_min()));
        options.commit = self.commit.clone();
        record(&options, workload, &path)
    }
}

/// Removes what dead rigs left in the temporary folder.
pub fn reap() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("baleen-powercut.")) else { continue };
        let Some((process, _)) = rest.split_once('.') else { continue };
        let alive = process.parse::<u32>().map_or(true, |process| Path::new(&format!("/proc/{process}")).exists());
        if !alive {
            // It is a file of ours; if it cannot be removed, it only takes room.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
