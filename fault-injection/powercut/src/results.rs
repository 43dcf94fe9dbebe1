//! Verdicts on disk: one JSON object a line, kept by commit, so that a later run goes on where the last one stopped.
//!
//! U1  A line is written whole before the next state is judged; a torn last line is dropped on reading.
//! U2  Verdicts are of one recording each: those of another are kept, and count for nothing when going on.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::explore::Judged;
use crate::rig::Verdict;

/// Longest line that is read, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// Results that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// The file could not be used.
    #[error("cannot {action} results {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A line that is no verdict, before the last.
    #[error("line {line} of results {path} is no verdict; move the file away to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A file of verdicts that is appended to.
#[derive(Debug)]
pub struct Results {
    path: PathBuf,
    file: File,
    verdicts: Vec<Verdict>,
}

impl Results {
    /// Opens or makes a file of verdicts, and reads those that it has.
    ///
    /// # Errors
    /// `Io`; `Damaged` for a line that is no verdict.
    pub fn open(path: &Path) -> Result<Results, ResultsError> {
        let io = |action| move |source| ResultsError::Io { action, path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io("make the folder of"))?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io("open"))?;
        let (verdicts, whole) = read(path, &file)?;
        file.set_len(whole).map_err(io("drop the torn end of"))?;
        Ok(Results { path: path.to_owned(), file, verdicts })
    }

    /// Reads the verdicts of a file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(path: &Path) -> Result<Vec<Verdict>, ResultsError> {
        let opened = File::open(path);
        let file = opened.map_err(|source| ResultsError::Io { action: "open", path: path.to_owned(), source })?;
        Ok(read(path, &file)?.0)
    }

    /// Appends a verdict.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep(&mut self, verdict: &Verdict) -> Result<(), ResultsError> {
        let line = serde_json::to_string(verdict).map_err(io::Error::from);
        let written = line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|source| ResultsError::Io { action: "append to", path: self.path.clone(), source })?;
        self.verdicts.push(verdict.clone());
        Ok(())
    }

    /// The verdicts so far.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// What has been judged of a recording.
    pub fn judged(&self, recording: &str) -> Judged {
        let of_it = self.verdicts.iter().filter(|verdict| verdict.recording == recording);
        of_it.map(|verdict| (verdict.after.clone(), verdict.epoch, verdict.kept.clone())).collect()
    }
}

/// The verdicts of a file, and the length of its whole lines.
fn read(path: &Path, file: &File) -> Result<(Vec<Verdict>, u64), ResultsError> {
    let mut input = BufReader::new(file);
    let (mut verdicts, mut whole) = (Vec::new(), 0);
    for line in 1.. {
        let mut text = Vec::new();
        let length = (&mut input).take(LINE_MAX).read_until(b'\n', &mut text).map_err(|source| ResultsError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        if text.last() != Some(&b'\n') {
            break; // The end, or a line that was cut.
        }
        let verdict = serde_json::from_slice(&text).map_err(|source| ResultsError::Damaged {
            path: path.to_owned(),
            line,
            source,
        })?;
        verdicts.push(verdict);
        whole += length as u64;
    }
    Ok((verdicts, whole))
}

/// What the verdicts of one workload come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// States judged.
    pub states: u64,
    /// By kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Different epochs of their recordings.
    pub epochs: u64,
    /// States of cuts during recovery.
    pub second_cuts: u64,
    /// States that break a promise, but for those with 512-byte tears.
    pub convicted: u64,
    /// States with 512-byte tears that break one: told apart, since a disk with sectors of 4096 bytes cannot leave them.
    pub convicted_torn512: u64,
    /// Broken promises, by promise.
    pub broken: BTreeMap<String, u64>,
    /// Time spent, in milliseconds.
    pub milliseconds: u64,
}

impl Totals {
    /// Adds up verdicts.
    pub fn of(verdicts: &[Verdict]) -> Totals {
        let mut totals = Totals::default();
        let mut epochs = std::collections::HashSet::new();
        for verdict in verdicts {
            totals.states += 1;
            *totals.by_kind.entry(verdict.kind.clone()).or_default() += 1;
            epochs.insert((&verdict.recording, verdict.epoch));
            totals.second_cuts += u64::from(verdict.after.is_some());
            totals.milliseconds += verdict.milliseconds;
            if !verdict.broken.is_empty() {
                match verdict.kind.as_str() {
                    "torn512" => totals.convicted_torn512 += 1,
                    _ => totals.convicted += 1,
                }
            }
            let promises: std::collections::BTreeSet<&str> =
                verdict.broken.iter().map(|broken| broken.promise.as_str()).collect();
            for promise in promises {
                *totals.broken.entry(promise.to_owned()).or_default() += 1;
            }
        }
        totals.epochs = epochs.len() as u64;
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Broken;

    fn verdict(epoch: u32) -> Verdict {
        Verdict {
            recording: "r".to_owned(),
            state: format!("{epoch}:none"),
            epoch,
            kind: "none".to_owned(),
            kept: format!("{epoch:032x}"),
            writes: (0, 0, 3),
            acknowledged: 1,
            in_flight: 1,
            broken: vec![Broken::new("P1", "gone")],
            milliseconds: 5,
            after: None,
        }
    }

    #[test]
    fn results_go_on_after_a_line_that_was_cut() {
        let path = std::env::temp_dir().join(format!("powercut-results.{}", std::process::id()));
        let mut results = Results::open(&path).unwrap();
        results.keep(&verdict(1)).unwrap();
        results.keep(&verdict(2)).unwrap();
        drop(results);
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
        let mut results = Results::open(&path).unwrap();
        assert_eq!(results.verdicts(), [verdict(1)]);
        results.keep(&verdict(3)).unwrap();
        assert_eq!(Results::read(&path).unwrap(), [verdict(1), verdict(3)]);
        assert_eq!(results.judged("r").len(), 2);
        assert!(results.judged("another").is_empty());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn totals_tell_512_byte_tears_apart() {
        let torn = Verdict { kind: "torn512".to_owned(), ..verdict(2) };
        let totals = Totals::of(&[verdict(1), torn]);
        assert_eq!((totals.states, totals.convicted, totals.convicted_torn512, totals.epochs), (2, 1, 1, 2));
        assert_eq!(totals.broken["P1"], 2);
    }
}
