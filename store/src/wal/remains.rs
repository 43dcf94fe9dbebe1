//! What can be read of a log, whatever has happened to it: for `fsck`, and for an opening that finds damage.
//!
//! M1  Nothing is written, and files are opened for reading alone.
//! M2  A batch counts only if its checksum passes, and of one sequence only that in the latest segment (W5).
//! M3  Where the log is damaged, the second copy stands in for everything up to the record that it was made at.
//! M4  Records after a gap are applied: each states a fact by itself. Every gap, and every segment that is not as it was
//!     made, is named.

use std::collections::BTreeMap;

use super::*;
use crate::second_copy::SecondCopy;

/// A log as far as it can be read.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    /// The store that the log belongs to, as its segments say.
    pub(crate) store_id: Option<StoreId>,
    /// What all readable records add up to.
    pub(crate) facts: Facts,
    /// The sequence after the last readable record; 1 if there is none.
    pub(crate) next_sequence: u64,
    /// Whether the last record is `Closed` and nothing follows it.
    pub(crate) clean: bool,
    /// Whether bytes follow the last batch that were never acknowledged.
    pub(crate) torn: bool,
    /// Damage, each as path, position and what is wrong.
    pub(crate) damage: Vec<LogDamage>,
    /// The highest number of a segment, readable or not.
    pub(crate) last_segment: u64,
}

/// One place where the log is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDamage {
    /// The file, below the root.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// A segment, read whole.
struct Read {
    number: u64,
    bytes: Vec<u8>,
    header: Option<SegmentHeader>,
    batches: Vec<Found>,
    /// Blocks that are neither zero nor part of a valid batch.
    unreadable: Option<usize>,
}

struct Found {
    position: usize,
    batch: Batch,
    records: Vec<(u64, Record)>,
    synced_through: u64,
    /// Facts of a base, stated earlier than the segment was made.
    is_base: bool,
}

impl Remains {
    /// Reads every segment in `dir`. `store_id` is what `FORMAT` says, if that can be read; `copy` stands in for what the log
    /// has lost.
    ///
    /// # Errors
    /// `Io` if the directory cannot be listed; a segment that cannot be read is damage.
    pub(crate) fn read(
        disk: &dyn Disk,
        dir: &Handle,
        store_id: Option<StoreId>,
        copy: Option<SecondCopy>,
    ) -> Result<Self, StoreError> {
        let mut remains = Self { store_id, next_sequence: 1, ..Self::default() };
        let mut segments = Vec::new();
        for number in list_segments(disk, dir)? {
            remains.last_segment = number;
            match read_segment_file(disk, dir, number) {
                Ok(bytes) => {
                    remains.store_id = remains.store_id.or_else(|| store_id_of(number, &bytes));
                    segments.push((number, bytes));
                }
                Err(error) => remains.add_damage(number, format!("cannot be read: {}", cause_of(&error))),
            }
        }
        let Some(store_id) = remains.store_id else { return Ok(remains) };
        let segments: Vec<Read> = segments.into_iter().map(|(number, bytes)| scan(store_id, number, bytes)).collect();
        remains.replay(&segments, copy);
        Ok(remains)
    }

    fn add_damage(&mut self, number: u64, what: String) {
        self.damage.push(LogDamage { path: segment_path(number), what });
    }

    /// Applies what was found, from the newest base on that is whole.
    fn replay(&mut self, segments: &[Read], copy: Option<SecondCopy>) {
        let start = segments.iter().rposition(Read::is_whole_base);
        let newest = segments.iter().rposition(Read::is_base);
        for segment in &segments[newest.unwrap_or(0)..] {
            self.judge(segment);
        }
        if start.is_none() {
            let what = "the log has no whole base segment: what was stored before it is known in parts at best";
            self.damage.push(LogDamage { path: "wal".to_owned(), what: what.to_owned() });
        }
        let chain = &segments[start.or(newest).unwrap_or(0)..];
        let numbers: Vec<u64> = segments[newest.unwrap_or(0)..].iter().map(|segment| segment.number).collect();
        for pair in numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1) {
            let what = format!("is missing, as is what follows up to {}", segment_path(pair[1]));
            self.add_damage(pair[0] + 1, what);
        }
        if let Some(first) = chain.first() {
            for (sequence, record) in
                first.batches.iter().filter(|found| found.is_base).flat_map(|found| &found.records)
            {
                self.facts.apply(*sequence, record.clone());
            }
        }
        // One batch a sequence, the latest (M2).
        let mut batches: BTreeMap<u64, (&Read, &Found)> = BTreeMap::new();
        for segment in chain {
            let begins = segment.header.as_ref().map(|header| header.first_sequence);
            let begins = begins.or_else(|| segment.batches.iter().find(|f| !f.is_base).map(|f| f.batch.first_sequence));
            if let Some(begins) = begins {
                batches.split_off(&begins);
            }
            for found in segment.batches.iter().filter(|found| !found.is_base) {
                batches.insert(found.batch.first_sequence, (segment, found));
            }
        }
        let base_sequence = chain.first().and_then(|base| base.header.as_ref()).map(|header| header.first_sequence);
        let mut next = base_sequence.or_else(|| batches.keys().next().copied()).unwrap_or(1);
        let mut last = None;
        for (first_sequence, (segment, found)) in batches {
            if first_sequence < next {
                continue;
            }
            if first_sequence > next {
                let what = format!(
                    "at byte {}: the records {next} to {} before it are lost",
                    found.position,
                    first_sequence - 1
                );
                self.add_damage(segment.number, what);
            }
            next = first_sequence;
            for (sequence, record) in &found.records {
                self.clean = *record == Record::Closed;
                self.facts.apply(*sequence, record.clone());
                next = sequence + 1;
            }
            last = Some((segment.number, found.position + found.batch.padded_bytes()));
        }
        self.next_sequence = next;
        self.judge_tail(segments, last);
        self.stand_in(copy, chain, start.and(base_sequence));
        self.clean &= !self.torn && self.damage.is_empty();
    }

    /// Takes the facts of the second copy, if the log is damaged, and the records after it (M3).
    fn stand_in(&mut self, copy: Option<SecondCopy>, chain: &[Read], base_sequence: Option<u64>) {
        let Some(SecondCopy { sequence, facts }) = copy else { return };
        if sequence >= self.next_sequence {
            let ends = self.next_sequence - 1;
            let what = format!("ends with record {ends}, and the second copy knows {sequence}");
            self.damage.push(LogDamage { path: "wal".to_owned(), what });
        }
        if self.damage.is_empty() || base_sequence.is_some_and(|base| sequence + 1 < base) {
            return;
        }
        self.facts = facts;
        let mut later: BTreeMap<u64, &Found> = BTreeMap::new();
        for found in chain.iter().flat_map(|segment| &segment.batches).filter(|found| !found.is_base) {
            later.insert(found.batch.first_sequence, found);
        }
        for (sequence, record) in later.range(sequence + 1..).flat_map(|(_, found)| &found.records) {
            self.facts.apply(*sequence, record.clone());
        }
        self.next_sequence = self.next_sequence.max(sequence + 1);
    }

    /// Names what is wrong with one segment by itself.
    fn judge(&mut self, segment: &Read) {
        if segment.header.is_none() {
            self.add_damage(segment.number, "its header is not valid".to_owned());
        }
        if segment.is_base() && !segment.is_whole_base() {
            self.add_damage(segment.number, "the base segment is not whole".to_owned());
        }
        let facts = segment.batches.iter().rfind(|found| found.is_base);
        let base_bytes = facts.map_or(0, |found| found.position + found.batch.padded_bytes()) as u64;
        let made_bytes = if segment.is_base() { base_bytes + SEGMENT_BYTES } else { SEGMENT_BYTES };
        let found_bytes = segment.bytes.len() as u64;
        if found_bytes < made_bytes {
            self.add_damage(segment.number, format!("has {found_bytes} bytes and was made with {made_bytes}"));
        }
    }

    /// Tells a torn tail from damage, as the strict replay does (W2): after the last batch of the last segment nothing
    /// was acknowledged, unless a later batch says so.
    fn judge_tail(&mut self, segments: &[Read], last: Option<(u64, usize)>) {
        let Some(segment) = segments.last() else { return };
        let durable = segment.batches.iter().map(|found| found.synced_through).max().unwrap_or(0);
        match (segment.unreadable, last) {
            (None, _) => {}
            (Some(position), Some((number, end))) if number == segment.number && position < end => {
                if !self.damage.iter().any(|damage| damage.path == segment_path(number)) {
                    let what = format!("at byte {position}: a batch is not valid that a later one calls durable");
                    self.add_damage(number, what);
                }
            }
            (Some(position), _) if durable >= self.next_sequence => {
                let what = format!("at byte {position}: a batch is not valid that a later one calls durable");
                self.add_damage(segment.number, what);
            }
            (Some(_), _) => self.torn = true,
        }
    }
}

impl Read {
    fn is_base(&self) -> bool {
        match &self.header {
            Some(header) => header.kind == KIND_BASE,
            None => self.batches.iter().any(|found| found.is_base),
        }
    }

    /// Whether every fact that the base was made with is there.
    fn is_whole_base(&self) -> bool {
        let mut facts = 0;
        let records = self.batches.iter().filter(|found| found.is_base).flat_map(|found| &found.records);
        for (_, record) in records {
            match record {
                Record::BaseEnd(expected) => return *expected == facts,
                _ => facts += 1,
            }
        }
        false
    }
}

/// Finds every valid batch of a segment.
fn scan(store_id: StoreId, number: u64, bytes: Vec<u8>) -> Read {
    let header = bytes.get(..BLOCK).and_then(|block| SegmentHeader::decode(store_id, number, block));
    let (mut batches, mut unreadable) = (Vec::new(), None);
    let mut position = BLOCK;
    while position < bytes.len() {
        let rest = &bytes[position..];
        let decoded = Batch::decode(store_id, number, rest)
            .and_then(|(batch, synced_through)| Some((batch.decode_records().ok()?, batch, synced_through)));
        let Some((records, batch, synced_through)) = decoded else {
            let block = &rest[..rest.len().min(BLOCK)];
            if unreadable.is_none() && block.iter().any(|byte| *byte != 0) {
                unreadable = Some(position);
            }
            position += BLOCK;
            continue;
        };
        let next = position + batch.padded_bytes();
        batches.push(Found { position, batch, records, synced_through, is_base: false });
        position = next;
    }
    // The facts of a base end with its `BaseEnd`; if that is lost, they are what was stated before the batch's own place.
    let end =
        batches.iter().position(|found| found.records.iter().any(|(_, record)| matches!(record, Record::BaseEnd(_))));
    let known_base = header.as_ref().is_some_and(|header| header.kind == KIND_BASE);
    for (index, found) in batches.iter_mut().enumerate() {
        let restated = found.records.first().is_some_and(|(sequence, _)| *sequence != found.batch.first_sequence);
        found.is_base = end.is_some_and(|end| index <= end) || (end.is_none() && known_base && restated);
    }
    Read { number, bytes, header, batches, unreadable }
}

/// The store that a segment belongs to: its header names it, and is believed if its checksum over that name passes.
fn store_id_of(number: u64, bytes: &[u8]) -> Option<StoreId> {
    let block = bytes.get(..BLOCK)?;
    let store_id: StoreId = block.get(32..48)?.try_into().ok()?;
    SegmentHeader::decode(store_id, number, block).map(|_| store_id)
}

fn read_segment_file(disk: &dyn Disk, dir: &Handle, number: u64) -> Result<Vec<u8>, StoreError> {
    let path = || segment_path(number);
    let file = disk.open_file(dir, &segment_name(number), Access::Read).context("open", path)?;
    disk.drop_cache(&file, 0, 0).context("read", path)?;
    read_segment(disk, &file, number)
}

fn cause_of(error: &StoreError) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| cause.to_string())
}
