//! What an exploration came to: as text, as JSON, and as one page of HTML that needs nothing beside it.
//!
//! A run's folder has, for each workload and file system, `NAME.powercut` (the recording) and `NAME.jsonl` (the verdicts).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::record::{Event, RecordError, Recording};
use crate::results::{Results, ResultsError, Totals};
use crate::rig::Verdict;
use crate::workload::MarkKind;

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder could not be read.
    #[error("cannot read the results below {path}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of verdicts is no such thing.
    #[error("cannot report")]
    Results(#[source] ResultsError),
    /// A recording cannot be read.
    #[error("cannot report")]
    Record(#[source] RecordError),
    /// There is nothing to report.
    #[error("there are no results below {path}; run `baleen-powercut run` first")]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
}

/// One workload on one file system.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Of which workload.
    pub workload: String,
    /// On which file system.
    pub filesystem: String,
    /// Of which commit.
    pub commit: String,
    /// The kernel it was recorded on.
    pub kernel: String,
    /// Epochs of the recording.
    pub epochs_recorded: u32,
    /// Writes of the recording.
    pub writes: u64,
    /// Bytes of these writes.
    pub written_bytes: u64,
    /// What the verdicts come to.
    pub totals: Totals,
    /// The states that break a promise.
    pub convictions: Vec<Verdict>,
    #[serde(skip)]
    timeline: Vec<Moment>,
    #[serde(skip)]
    verdicts: Vec<Verdict>,
}

/// A run's results.
#[derive(Debug, Serialize)]
pub struct Report {
    /// By workload and file system.
    pub sections: Vec<Section>,
}

/// A point of the timeline.
#[derive(Debug)]
enum Moment {
    Write { bytes: u64 },
    Flush,
    Mark { kind: MarkKind, text: String },
    Cut { state: String },
}

impl Report {
    /// Reads the results below a folder.
    ///
    /// # Errors
    /// `Nothing` if there are none; the others as their texts say.
    pub fn of(folder: &Path) -> Result<Report, ReportError> {
        let mut files = Vec::new();
        find(folder, 0, &mut files).map_err(|source| ReportError::Io { path: folder.to_owned(), source })?;
        files.sort();
        let mut sections = Vec::new();
        for file in files {
            let all = Results::read(&file).map_err(ReportError::Results)?;
            if all.is_empty() {
                continue; // Nothing was judged, perhaps since the recording was interrupted.
            }
            let recording = Recording::open(&file.with_extension("powercut")).map_err(ReportError::Record)?;
            // Second cuts are of recordings that were made and thrown away; they name this one's state.
            let verdicts: Vec<Verdict> = all
                .into_iter()
                .filter(|verdict| verdict.recording == recording.identity() || verdict.after.is_some())
                .collect();
            sections.push(Section::of(&recording, verdicts));
        }
        if sections.is_empty() {
            return Err(ReportError::Nothing { path: folder.to_owned() });
        }
        Ok(Report { sections })
    }

    /// The totals of each workload on each file system, over all its recordings.
    pub fn summed(&self) -> BTreeMap<(&str, &str), Totals> {
        let mut verdicts: BTreeMap<(&str, &str), Vec<Verdict>> = BTreeMap::new();
        for section in &self.sections {
            let key = (section.workload.as_str(), section.filesystem.as_str());
            verdicts.entry(key).or_default().extend(section.verdicts.iter().cloned());
        }
        verdicts.into_iter().map(|(key, verdicts)| (key, Totals::of(&verdicts))).collect()
    }

    /// For people: a table, and each conviction.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let heads =
            ["workload", "fs", "states", "epochs", "none", "all", "prefix", "subset", "torn", "2nd cut", "broken"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for ((workload, filesystem), totals) in self.summed() {
            let kind = |word: &str| totals.by_kind.get(word).copied().unwrap_or(0).to_string();
            rows.push(vec![
                workload.to_owned(),
                filesystem.to_owned(),
                totals.states.to_string(),
                totals.epochs.to_string(),
                kind("none"),
                kind("all"),
                kind("prefix"),
                kind("subset"),
                kind("torn"),
                totals.second_cuts.to_string(),
                totals.convicted.to_string(),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heads.len()).map(width).collect();
        for row in &rows {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = if column < 2 { write!(text, "{cell:<width$}  ") } else { write!(text, "{cell:>width$}  ") };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        for section in &self.sections {
            for verdict in &section.convictions {
                let name = state_name(verdict);
                let _ = writeln!(text, "\n{} on {}, state {name}:", section.workload, section.filesystem);
                for broken in &verdict.broken {
                    let _ = writeln!(text, "  {broken}");
                }
            }
        }
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// None that can happen with these types; passed on all the same.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// For people who look: one page, nothing else needed.
    pub fn html(&self) -> String {
        let mut page = String::from(HEAD);
        page.push_str("<h1>baleen-powercut</h1>\n<table><tr><th>workload<th>fs<th>states<th>epochs<th>none<th>all<th>prefix<th>subset<th>torn<th>torn512<th>second cuts<th>broken</tr>\n");
        for ((workload, filesystem), totals) in self.summed() {
            let kind = |word: &str| totals.by_kind.get(word).copied().unwrap_or(0);
            let class = if totals.convicted == 0 { "good" } else { "bad" };
            let _ = writeln!(
                page,
                "<tr><td><a href=\"#{anchor}\">{workload}</a><td>{filesystem}<td>{states}<td>{epochs}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td class=\"{class}\">{}</tr>",
                kind("none"),
                kind("all"),
                kind("prefix"),
                kind("subset"),
                kind("torn"),
                kind("torn512"),
                totals.second_cuts,
                totals.convicted,
                anchor = escaped(&format!("{workload}-{filesystem}")),
                workload = escaped(workload),
                filesystem = escaped(filesystem),
                states = totals.states,
                epochs = totals.epochs,
            );
        }
        page.push_str("</table>\n");
        for section in &self.sections {
            section.put_html(&mut page);
        }
        page.push_str("</body></html>\n");
        page
    }
}

/// Folders below each other that are looked into.
const DEPTH_MAX: u32 = 8;

fn find(folder: &Path, depth: u32, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && depth < DEPTH_MAX {
            find(&path, depth + 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "jsonl")
            && path.with_extension("powercut").exists()
        {
            files.push(path);
        }
    }
    Ok(())
}

fn state_name(verdict: &Verdict) -> String {
    match &verdict.after {
        Some(first) => format!("{} of the recovery from {first}", verdict.state),
        None => verdict.state.clone(),
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter if letter.is_control() => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

impl Section {
    fn of(recording: &Recording, verdicts: Vec<Verdict>) -> Section {
        let (writes, written_bytes) = recording.written();
        let moment = |event: &Event| match event {
            Event::Write(pieces) => Moment::Write { bytes: pieces.iter().map(|piece| u64::from(piece.length)).sum() },
            Event::Flush => Moment::Flush,
            Event::Mark(mark) => Moment::Mark { kind: mark.kind, text: mark.text.clone() },
            Event::Cut { state, .. } => Moment::Cut { state: state.clone() },
        };
        Section {
            workload: recording.description.workload.clone(),
            filesystem: recording.description.filesystem.clone(),
            commit: recording.description.commit.clone(),
            kernel: recording.description.kernel.clone(),
            epochs_recorded: recording.epoch_count(),
            writes,
            written_bytes,
            totals: Totals::of(&verdicts),
            convictions: verdicts.iter().filter(|verdict| !verdict.broken.is_empty()).cloned().collect(),
            timeline: recording.events.iter().map(moment).collect(),
            verdicts,
        }
    }

    fn anchor(&self) -> String {
        format!("{}-{}", self.workload, self.filesystem)
    }

    fn put_html(&self, page: &mut String) {
        let _ = writeln!(
            page,
            "<h2 id=\"{}\">{} on {}</h2>\n<p>{} writes of {} KiB in {} epochs; commit {}; Linux {}</p>",
            escaped(&self.anchor()),
            escaped(&self.workload),
            escaped(&self.filesystem),
            self.writes,
            self.written_bytes / 1024,
            self.epochs_recorded,
            escaped(if self.commit.is_empty() { "not given" } else { &self.commit }),
            escaped(&self.kernel),
        );
        self.put_timeline(page);
        if !self.convictions.is_empty() {
            page.push_str("<table><tr><th>state<th>promise<th>what is broken</tr>\n");
            // A page stays readable, and its size bounded: the text report has all.
            for verdict in self.convictions.iter().take(CONVICTIONS_SHOWN_MAX) {
                for broken in &verdict.broken {
                    let (state, promise) = (escaped(&state_name(verdict)), escaped(&broken.promise));
                    let _ = writeln!(page, "<tr><td>{state}<td>{promise}<td>{}</tr>", escaped(&broken.what));
                }
            }
            page.push_str("</table>\n");
        }
    }

    /// Writes as bars, flushes as lines, marks above, and below each epoch its verdicts, one row a kind.
    fn put_timeline(&self, page: &mut String) {
        // Long recordings are drawn closer; every event keeps a place of its own.
        let step = (2400.0 / self.timeline.len().max(1) as f64).clamp(0.5, 6.0);
        let width = (self.timeline.len() as f64 * step).ceil() + 90.0;
        let height = 120 + 14 * KINDS.len();
        let _ = writeln!(page, "<div class=\"line\"><svg width=\"{width}\" height=\"{height}\">");
        for (row, kind) in KINDS.iter().enumerate() {
            let y = 128 + 14 * row;
            let _ = writeln!(page, "<text x=\"2\" y=\"{y}\">{kind}</text>");
        }
        let mut rows: BTreeMap<u32, Vec<&Verdict>> = BTreeMap::new();
        for verdict in self.verdicts.iter().filter(|verdict| verdict.after.is_none()) {
            rows.entry(verdict.epoch).or_default().push(verdict);
        }
        let (mut epoch, mut x, mut begin) = (0, 64.0, 64.0);
        for moment in &self.timeline {
            match moment {
                Moment::Write { bytes } => {
                    let bar = ((*bytes as f64 / 512.0).log2().max(0.0) * 5.0 + 3.0).min(70.0);
                    let _ = writeln!(
                        page,
                        "<rect class=\"w\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{bar:.1}\"><title>write of {bytes} bytes, epoch {epoch}</title></rect>",
                        110.0 - bar,
                        (step * 0.8).max(0.4),
                    );
                }
                Moment::Flush | Moment::Cut { .. } => {
                    put_verdicts(page, rows.get(&epoch), begin, x);
                    let (class, title) = match moment {
                        Moment::Cut { state } => ("c", format!("cut to {state}")),
                        _ => ("f", format!("flush {}", epoch + 1)),
                    };
                    let _ = writeln!(
                        page,
                        "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"30\" y2=\"{}\"><title>{}</title></line>",
                        height - 4,
                        escaped(&title)
                    );
                    epoch += 1;
                    begin = x;
                }
                Moment::Mark { kind, text } => {
                    let (class, word) = match kind {
                        MarkKind::Begun => ("b", "begun"),
                        MarkKind::Acknowledged => ("a", "acknowledged"),
                        MarkKind::Note => ("n", "note"),
                    };
                    let _ = writeln!(
                        page,
                        "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{}\" r=\"4\"><title>{word}: {}</title></circle>",
                        if *kind == MarkKind::Acknowledged { 12 } else { 22 },
                        escaped(text)
                    );
                }
            }
            x += step;
        }
        put_verdicts(page, rows.get(&epoch), begin, x);
        page.push_str("</svg></div>\n");
    }
}

/// Convictions that the page shows of a section.
const CONVICTIONS_SHOWN_MAX: usize = 200;
/// Rows of the timeline.
const KINDS: [&str; 6] = ["none", "all", "prefix", "subset", "torn", "torn512"];

/// The verdicts of an epoch, between its flushes: one cell a kind, bad if any is.
fn put_verdicts(page: &mut String, verdicts: Option<&Vec<&Verdict>>, begin: f64, end: f64) {
    for (row, kind) in KINDS.iter().enumerate() {
        let of_kind = verdicts.into_iter().flatten().filter(|verdict| verdict.kind == *kind);
        let (mut count, mut bad) = (0, None);
        for verdict in of_kind {
            count += 1;
            if let Some(broken) = verdict.broken.first() {
                bad = Some((verdict, broken));
            }
        }
        if count == 0 {
            continue;
        }
        let (class, title) = match bad {
            Some((verdict, broken)) => ("bad", format!("{}: {broken}", verdict.state)),
            None => ("good", format!("{count} judged")),
        };
        let _ = writeln!(
            page,
            "<rect class=\"{class}\" x=\"{begin:.1}\" y=\"{}\" width=\"{:.1}\" height=\"10\"><title>{}</title></rect>",
            119 + 14 * row,
            (end - begin).max(1.0),
            escaped(&title)
        );
    }
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>baleen-powercut</title><style>
body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}
td.good{color:#176b2c}td.bad{color:#b00020;font-weight:bold}
.line{overflow-x:auto;border:1px solid #ddd}svg text{font-size:10px;fill:#666}
.w{fill:#4a7db5}.f{stroke:#999;stroke-width:.6}.c{stroke:#b00020;stroke-width:2}
.b{fill:#bbb}.a{fill:#176b2c}.n{fill:#d9a400}rect.good{fill:#8fce9f}rect.bad{fill:#d9304f}
</style></head><body>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_a_workload_cannot_become_markup() {
        assert_eq!(escaped("<a href=\"x\">&'\u{1}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;\u{fffd}");
    }
}
