//! How one payload is made: several ways are tried, the smallest is kept.

use crate::bytes::{put_number, put_signed};
use crate::catalog::Catalog;
use crate::encode::Level;
use crate::error::DeltaError;
use crate::frame::{Stream, Streams};
use crate::limits::FRAME_RAW_BYTES_MAX;
use crate::matcher::Index;
use crate::patch::{self, Finder, MATCHES_MAX, Match, Old, Plain, Predict};
use crate::payload::{Kind, Mode, PayloadAt, stamp_of};
use crate::program::Predictor;

/// Most bytes of streams of a part; a payload that has more becomes several.
pub(crate) const PART_RAW_BYTES_MAX: usize = (FRAME_RAW_BYTES_MAX as usize) * 3 / 4;
/// Longest part of new bytes.
const LITERAL_BYTES_MAX: usize = 2 << 20;
/// Longest source that is sorted at once: five times as much memory.
const SORTED_BYTES_MAX: usize = 80 << 20;
/// Longest part of a payload that is matched at once, if the source is longer.
const WINDOWED_BYTES: usize = 16 << 20;
/// Bytes between differences that are taken into one run.
const JOINED_BYTES_MAX: usize = 3;

/// A part of a payload, ready to be put into a frame.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) length: u64,
    pub(crate) mode: Mode,
    pub(crate) source: Option<PayloadAt>,
    pub(crate) stamp: Option<u32>,
    pub(crate) streams: Streams,
    /// Runs of bytes as predicted and others, and how many of the former come last.
    pub(crate) runs: Vec<(u64, u64)>,
    pub(crate) same_last: u64,
    /// Differences of references that are not as predicted, with how many are before each, and how many come last.
    pub(crate) references: Vec<(u64, u32)>,
    pub(crate) references_last: u64,
    pub(crate) matches: usize,
    /// What the report calls it.
    pub(crate) technique: &'static str,
}

impl Part {
    fn new(kind: Kind, length: usize, technique: &'static str) -> Self {
        Self {
            length: length as u64,
            mode: Mode::new(kind),
            source: None,
            stamp: None,
            streams: Streams::default(),
            runs: Vec::new(),
            same_last: 0,
            references: Vec::new(),
            references_last: 0,
            matches: 0,
            technique,
        }
    }

    pub(crate) fn raw_bytes(&self) -> usize {
        self.streams.raw_bytes() + 6 * self.runs.len() + 8 * self.references.len() + 64
    }

    /// A guess at what it costs.
    fn cost(&self) -> usize {
        let mut streams = self.streams.clone();
        for (same, other) in &self.runs {
            put_number(streams.at(Stream::Run), *same);
            put_number(streams.at(Stream::Run), *other);
        }
        for (same, difference) in &self.references {
            put_number(streams.at(Stream::ReferenceRun), *same);
            put_number(streams.at(Stream::ReferenceValue), u64::from(*difference));
        }
        streams.cost()
    }
}

/// Whether new bytes look like those of a program or another binary file.
fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(4096)].contains(&0)
}

/// A payload that is a source payload.
pub(crate) fn copy(source: PayloadAt, length: u64) -> Part {
    let mut part = Part::new(Kind::Copy, 0, "copy");
    part.length = length;
    part.source = Some(source);
    part
}

/// New bytes, in as many parts as needed.
pub(crate) fn literal(new: &[u8]) -> Vec<Part> {
    let is_binary = is_binary(new);
    let (kind, stream) = if is_binary { (Kind::Code, Stream::Code) } else { (Kind::Text, Stream::Text) };
    let parts = new.chunks(LITERAL_BYTES_MAX).map(|bytes| {
        let mut part = Part::new(kind, bytes.len(), "literal");
        part.streams.at(stream).extend_from_slice(bytes);
        part
    });
    parts.collect()
}

fn cost(parts: &[Part]) -> usize {
    parts.iter().map(Part::cost).sum()
}

/// Plans a payload that no source payload equals.
pub(crate) fn plan(catalog: &Catalog<'_>, path: &[u8], new: &[u8], level: Level) -> Result<Vec<Part>, DeltaError> {
    let stamp = if path.ends_with(b".pyc") { stamp_of(new) } else { None };
    let mut best: Option<(usize, Vec<Part>)> = None;
    let alike = catalog.alike(path, new.len() as u64);
    let tries = if level == Level::Fast { 1 } else { 2 };
    for source in alike.into_iter().take(tries) {
        if catalog.size_bytes(source)? > i32::MAX as u64 {
            continue;
        }
        let mut old = catalog.read(source)?;
        let stamp = stamp.filter(|_| stamp_of(&old).is_some());
        if let Some(stamp) = stamp {
            old[8..12].copy_from_slice(&stamp.to_le_bytes());
            if old == new {
                let mut part = copy(source, new.len() as u64);
                part.mode.has_stamp = true;
                part.stamp = Some(stamp);
                return Ok(vec![part]);
            }
        }
        let parts = matched(&old, new, source, stamp, level)?;
        let cost = cost(&parts);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, parts));
        }
        // Another source is worth a look only if this one is a poor one.
        if best.as_ref().is_some_and(|(least, _)| *least * 4 < new.len()) {
            break;
        }
    }
    let plain = literal(new);
    match best {
        Some((least, parts)) if least < cost(&plain) => Ok(parts),
        _ => Ok(plain),
    }
}

/// The parts of `new` as matches with `old`, window by window if they are long.
fn matched(
    old: &[u8],
    new: &[u8],
    source: PayloadAt,
    stamp: Option<u32>,
    level: Level,
) -> Result<Vec<Part>, DeltaError> {
    if old.len() <= SORTED_BYTES_MAX {
        return in_window(old, 0, old, new, source, stamp, level);
    }
    let mut parts = Vec::new();
    for (number, piece) in new.chunks(WINDOWED_BYTES).enumerate() {
        // The same share of the way through the source, with as much on both sides as fits.
        let middle = (number * WINDOWED_BYTES + piece.len() / 2) as u128 * old.len() as u128 / new.len() as u128;
        let from = (middle as usize).saturating_sub(SORTED_BYTES_MAX / 2).min(old.len() - SORTED_BYTES_MAX);
        let window = &old[from..from + SORTED_BYTES_MAX];
        parts.extend(in_window(window, from as u64, old, piece, source, stamp, level)?);
    }
    Ok(parts)
}

fn in_window(
    window: &[u8],
    from: u64,
    old: &[u8],
    new: &[u8],
    source: PayloadAt,
    stamp: Option<u32>,
    level: Level,
) -> Result<Vec<Part>, DeltaError> {
    let index = Index::new(window);
    let thresholds: &[usize] = match (level, is_binary(new)) {
        (Level::Fast, true) => &[8],
        (Level::Fast, false) => &[14],
        (Level::Default, true) => &[8, 14],
        (Level::Default, false) => &[14, 24, 8],
    };
    let mut best: Option<(usize, Vec<Part>)> = None;
    for threshold in thresholds {
        let mut parts = Vec::new();
        let mut matches = index.matches(new, *threshold);
        for found in &mut matches {
            found.old += from;
        }
        split(old, new, &matches, source, stamp, &mut parts)?;
        let cost = cost(&parts);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, parts));
        }
    }
    Ok(best.map(|(_, parts)| parts).unwrap_or_default())
}

/// Parts of at most [`PART_RAW_BYTES_MAX`]: halves of halves.
fn split(
    old: &[u8],
    new: &[u8],
    matches: &[Match],
    source: PayloadAt,
    stamp: Option<u32>,
    parts: &mut Vec<Part>,
) -> Result<(), DeltaError> {
    if matches.len() <= MATCHES_MAX {
        let mut part = from_matches(old, new, matches, source, stamp, &mut Plain, "match")?;
        if let Some(predicted) = predicted(old, new, matches, source, stamp)?
            && predicted.cost() < part.cost()
        {
            part = predicted;
        }
        if part.raw_bytes() <= PART_RAW_BYTES_MAX {
            parts.push(part);
            return Ok(());
        }
    }
    // Parts but the last end with a block: so none needs padding.
    let half = (new.len() / 2).next_multiple_of(512);
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for found in matches {
        let inside = (half as u64).saturating_sub(found.new).min(found.length);
        if inside > 0 {
            before.push(Match { length: inside, ..*found });
        }
        if inside < found.length {
            let (new, old) = (found.new + inside - half as u64, found.old + inside);
            after.push(Match { new, old, length: found.length - inside });
        }
    }
    split(old, &new[..half], &before, source, stamp, parts)?;
    split(old, &new[half..], &after, source, stamp, parts)
}

/// The part with its references predicted, if it is a program.
fn predicted(
    old: &[u8],
    new: &[u8],
    matches: &[Match],
    source: PayloadAt,
    stamp: Option<u32>,
) -> Result<Option<Part>, DeltaError> {
    let mut segments = Vec::new();
    let predictor = Predictor::encode(&old, &new, matches, &mut segments).map_err(DeltaError::Read)?;
    let Some(mut predictor) = predictor else { return Ok(None) };
    let mut part = from_matches(old, new, matches, source, stamp, &mut predictor, "program")?;
    part.mode.is_program = true;
    part.streams.at(Stream::Program).extend_from_slice(&segments);
    Ok(Some(part))
}

/// A part from its matches.
pub(crate) fn from_matches(
    old: &[u8],
    new: &[u8],
    matches: &[Match],
    source: PayloadAt,
    stamp: Option<u32>,
    predict: &mut dyn Predict,
    technique: &'static str,
) -> Result<Part, DeltaError> {
    let mut part = Part::new(Kind::Match, new.len(), technique);
    part.source = Some(source);
    part.stamp = stamp;
    part.mode.has_stamp = stamp.is_some();
    part.mode.gaps_are_code = is_binary(new);
    part.matches = matches.len();
    put_number(part.streams.at(Stream::PayloadNumber), matches.len() as u64);
    let (mut new_at, mut old_at) = (0, 0);
    for found in matches {
        let gap = found.new - new_at;
        put_number(part.streams.at(Stream::GapLength), gap);
        put_number(part.streams.at(Stream::MatchLength), found.length);
        put_signed(part.streams.at(Stream::Jump), found.old.wrapping_sub(old_at + gap) as i64);
        (new_at, old_at) = (found.new + found.length, found.old + found.length);
    }
    let mut finder = Finder::new(new);
    let failed = DeltaError::Read;
    let old = Old { bytes: &old, failed: &failed };
    patch::run(&old, matches, new.len() as u64, predict, &mut finder, &mut |_| Ok(()))?;
    let gaps = if part.mode.gaps_are_code { Stream::Code } else { Stream::Text };
    part.streams.at(gaps).extend_from_slice(&finder.gaps);
    (part.runs, part.same_last) = runs(&finder.differences, part.streams.at(Stream::Difference));
    let mut same = 0;
    for difference in finder.references {
        if difference == 0 {
            same += 1;
        } else {
            part.references.push((same, difference));
            same = 0;
        }
    }
    part.references_last = same;
    Ok(part)
}

/// Runs of zeros and of what is between them, which goes to `others`.
fn runs(differences: &[u8], others: &mut Vec<u8>) -> (Vec<(u64, u64)>, u64) {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let same = differences[at..].iter().take_while(|byte| **byte == 0).count();
        let from = at + same;
        if from == differences.len() {
            return (runs, same as u64);
        }
        let (mut end, mut zeros) = (from, 0);
        for (number, byte) in differences.iter().enumerate().skip(from) {
            if *byte != 0 {
                (end, zeros) = (number + 1, 0);
            } else {
                zeros += 1;
                if zeros > JOINED_BYTES_MAX {
                    break;
                }
            }
        }
        others.extend_from_slice(&differences[from..end]);
        runs.push((same as u64, (end - from) as u64));
        at = end;
    }
}
