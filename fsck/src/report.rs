//! What a check has found, for people and for fleets.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::finding::{Finding, Outcome, Severity};

/// How thorough a check was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// What was in flight.
    Quick,
    /// Every byte.
    Deep,
}

/// All that a check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of this form: fields are added, never changed.
    pub version: u32,
    /// How thorough the check was.
    pub depth: Depth,
    /// Whether everything was checked.
    pub complete: bool,
    /// The last object that was checked, if the check was stopped: what `--after` takes.
    pub checked_through: Option<String>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Bytes on the disk by what they are used for, if that was asked for: all that `du` counts below the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<BTreeMap<&'static str, u64>>,
}

/// Exit code: nothing is wrong.
pub const EXIT_CLEAN: u8 = 0;
/// Exit code: something was wrong and is corrected.
pub const EXIT_CORRECTED: u8 = 1;
/// Exit code: something is wrong and was left.
pub const EXIT_UNCORRECTED: u8 = 4;
/// Exit code: the check could not be made, or not to its end.
pub const EXIT_OPERATIONAL: u8 = 8;
/// Exit code: the command line is wrong.
pub const EXIT_USAGE: u8 = 16;

impl Report {
    /// The exit code, as those of `e2fsck(8)`: the sum of what applies.
    pub fn exit_code(&self) -> u8 {
        let damage = || self.findings.iter().filter(|finding| finding.severity == Severity::Damage);
        let left = damage().any(|finding| !matches!(finding.outcome, Outcome::Corrected(_)));
        let corrected = damage().any(|finding| matches!(finding.outcome, Outcome::Corrected(_)));
        let mut code = EXIT_CLEAN;
        if corrected {
            code |= EXIT_CORRECTED;
        }
        if left {
            code |= EXIT_UNCORRECTED;
        }
        if !self.complete {
            code |= EXIT_OPERATIONAL;
        }
        code
    }

    /// Number of findings that are damage.
    pub fn damage(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage).count()
    }

    /// For people: a block a finding, and a last line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let Finding { code, severity, path, detail, touched, remedy, outcome } = finding;
            let severity = match severity {
                Severity::Note => "note",
                Severity::Damage => "damage",
            };
            let _ = writeln!(text, "{severity} {code}: {path}: {detail}");
            for image in &touched.images {
                let names = if image.tags.is_empty() { "no name".to_owned() } else { image.tags.join(", ") };
                let _ = writeln!(text, "    image {} ({names})", image.id);
            }
            for container in &touched.containers {
                let _ = writeln!(text, "    container {} ({})", container.id, container.name);
            }
            let _ = match outcome {
                Outcome::Found => writeln!(text, "    {remedy}"),
                Outcome::Corrected(what) => writeln!(text, "    corrected: {what}"),
                Outcome::Left(why) => writeln!(text, "    left as it is: {why}"),
            };
        }
        if let Some(usage) = &self.usage {
            let width = usage.keys().map(|class| class.len()).max().unwrap_or(0);
            for (class, bytes) in usage {
                let _ = writeln!(text, "{class:width$} {bytes:>16}");
            }
            let _ = writeln!(text, "{:width$} {:>16}", "sum", usage.values().sum::<u64>());
        }
        let damage = self.damage();
        let notes = self.findings.len() - damage;
        let is_corrected = |finding: &&Finding| {
            finding.severity == Severity::Damage && matches!(finding.outcome, Outcome::Corrected(_))
        };
        let corrected = self.findings.iter().filter(is_corrected).count();
        let _ = match damage {
            0 => write!(text, "clean"),
            damage => write!(text, "{damage} damaged, {corrected} corrected"),
        };
        if notes > 0 {
            let _ = write!(text, ", {notes} notes");
        }
        text.push('\n');
        if !self.complete {
            let after = self.checked_through.as_deref();
            let _ = match after {
                Some(after) => writeln!(text, "stopped; go on with --after {after}"),
                None => writeln!(text, "stopped before anything was checked whole"),
            };
        }
        text
    }

    /// For fleets: one JSON object on one line.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            exit_code: u8,
        }
        let whole = Whole { report: self, exit_code: self.exit_code() };
        // Strings, numbers and lists: nothing in it can fail to be written.
        serde_json::to_string(&whole).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}
