//! Write-ahead log: the only authority on which transactions happened.
//! Bytes on disk: `docs/formats/wal.md`, format 1.
//!
//! W1  A record is appended only after a barrier over every object it names (the caller's duty: `txn.rs`).
//! W2  Batch n+1 is written only after batch n is durable, and on fresh blocks. So only the last batch can be torn; a
//!     bad batch that a later one, or the next segment, calls durable is damage, and [`Wal::open`] says so.
//! W3  After a failed write or sync of the log it takes no more records until the store is opened again.
//! W4  A segment has its name only once its header and first batches are durable.
//! W5  An opening after an unclean end continues in a new segment, which begins with a copy of the last valid batch:
//!     of that one alone it is unknown whether it reached the disk, and the cache must not answer for it.
//! W6  One segment is preallocated beyond the one in use, so that a removal never meets a full disk. Records that
//!     add something are refused while that reserve cannot be made.
//!
//! Touches: the `wal` directory, through [`Disk`] only. Knows records, and nothing of images or snapshots.

mod remains;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::disk::{Access, Disk, Handle, read_full_at};
use crate::error::{IoContext, StoreError};
use crate::facts::{Facts, Record};
use crate::mutation::{self, Mutation};
use crate::record;

pub use remains::LogDamage;
pub(crate) use remains::Remains;

/// The unit in which the log is written: no write touches a block of an acknowledged batch.
const BLOCK: usize = 4096;
/// Size of an ordinary segment, header included.
pub(crate) const SEGMENT_BYTES: u64 = 256 * 1024;
/// The longest frame: what fits one ordinary segment beside its header and, after W5, a copied batch.
pub(crate) const FRAME_BYTES_MAX: usize = SEGMENT_BYTES as usize / 2 - BLOCK;
/// The largest base segment that is read: facts are limited to 8 MiB (DESIGN, Memory), and then the room to append.
const BASE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Ordinary segments after the base at which compaction is due.
const SEGMENTS_MAX: u64 = 16;

const SEGMENT_MAGIC: [u8; 8] = *b"BALEENWL";
const BATCH_MAGIC: [u8; 4] = *b"BLWB";
const VERSION: u32 = 1;
const HEADER_CHECKED: usize = 64;
const FRAME_HEADER: usize = 64;
const RECORD_HEADER: usize = 16;
const SPARE: &[u8] = b"spare";
const NEW: &[u8] = b"new";

const KIND_BASE: u32 = 1;
const KIND_CONTINUED: u32 = 2;

/// Identifies a store: salts every checksum, so that blocks of another store never pass.
pub(crate) type StoreId = [u8; 16];

/// What kind of change is appended, which decides about the reserve (W6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Adds something: never touches the reserve.
    Add,
    /// Removes something or notes an end: may use the reserve.
    Remove,
}

/// The open log.
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    dir: Handle,
    store_id: StoreId,
    segment: Segment,
    /// Number of the base segment that replay begins with.
    base: u64,
    next_sequence: u64,
    spare: Option<Handle>,
    stopped: bool,
}

/// The segment in use.
struct Segment {
    number: u64,
    file: Handle,
    /// Where the next batch goes: a multiple of [`BLOCK`].
    position: u64,
    size_bytes: u64,
}

/// What the log held at its opening.
pub(crate) struct Replayed {
    /// The facts that all records add up to.
    pub(crate) facts: Facts,
    /// Volumes whose removal is recorded and was perhaps not answered: nothing but removals follows.
    pub(crate) removed_volumes: BTreeSet<String>,
    /// Whether the store was closed in order, so that nothing can be in flight.
    pub(crate) clean: bool,
    /// The sequence of this opening's `Opened` record.
    pub(crate) opened: u64,
}

impl Wal {
    /// Writes the first segment of a new store: a base without facts.
    ///
    /// # Durability
    /// The segment and its name are durable on `Ok`.
    pub(crate) fn create(disk: &dyn Disk, dir: &Handle, store_id: StoreId) -> Result<(), StoreError> {
        let header = SegmentHeader { kind: KIND_BASE, number: 1, first_sequence: 1 };
        write_base(disk, dir, store_id, header, &Facts::default())?;
        Ok(())
    }

    /// Goes on after damage: with these facts in a new base segment, which replay begins with from now on.
    ///
    /// # Durability
    /// The segment and its name are durable on `Ok`.
    pub(crate) fn start_over(
        disk: &dyn Disk,
        dir: &Handle,
        store_id: StoreId,
        number: u64,
        first_sequence: u64,
        facts: &Facts,
    ) -> Result<(), StoreError> {
        let header = SegmentHeader { kind: KIND_BASE, number, first_sequence };
        write_base(disk, dir, store_id, header, facts).map(drop)
    }

    /// Replays the log, and notes the opening in it. `known_through` is a record that must be in it (second copy, K2).
    ///
    /// # Durability
    /// On `Ok` every record that was replayed is durable, also one whose sync had failed in this boot (W5).
    /// # Errors
    /// `Damaged` if durable bytes are missing or changed (W2), and then nothing was written; `Io`, `FullDisk`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: Handle,
        store_id: StoreId,
        known_through: u64,
    ) -> Result<(Self, Replayed), StoreError> {
        let log = read_log(disk.as_ref(), &dir, store_id)?;
        if log.replay.next_sequence <= known_through {
            let ends = log.replay.next_sequence - 1;
            let what = format!("the log ends with record {ends}, and the second copy knows {known_through}");
            return Err(StoreError::Damaged { what });
        }
        let Replay { facts, removed_volumes, next_sequence, closed, torn, last_batch } = log.replay;
        let clean = closed && !torn;
        remove_if_there(disk.as_ref(), &dir, NEW)?;
        let spare = take_spare(disk.as_ref(), &dir)?;
        let segment =
            Segment { number: log.number, file: log.file, position: log.position, size_bytes: log.size_bytes };
        let opened = next_sequence;
        let mut wal = Self { disk, dir, store_id, segment, base: log.base, next_sequence, spare, stopped: false };
        let (_, note) = wal.frame_payload(&[Record::Opened])?;
        if clean || (last_batch.is_none() && !torn) {
            // A base alone was synced before it got its name, as everything was before `Closed`.
            wal.append(&[Record::Opened], Purpose::Remove)?;
        } else if wal.compaction_is_due() {
            wal.compact(&facts)?;
            wal.append(&[Record::Opened], Purpose::Remove)?;
        } else {
            let first_sequence = last_batch.as_ref().map_or(next_sequence, |batch| batch.first_sequence);
            let mut batches: Vec<Batch> = last_batch.into_iter().collect();
            batches.push(Batch { first_sequence: next_sequence, records: 1, payload: note });
            wal.start_segment(first_sequence, &batches, Purpose::Remove)?;
            wal.next_sequence = next_sequence + 1;
        }
        match wal.reserve(Purpose::Add) {
            Err(StoreError::LogFull) => tracing::warn!("the disk is full: the log has no reserve, removals only"),
            other => other?,
        }
        Ok((wal, Replayed { facts, removed_volumes, clean, opened }))
    }

    /// The store that the log belongs to.
    pub(crate) fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// The sequence of the last record that is durable.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Whether a failed write has stopped the log (W3).
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Stops the log as if a write had failed: the tree no longer follows it.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether enough was appended since the last base that a new one pays.
    pub(crate) fn compaction_is_due(&self) -> bool {
        self.segment.number - self.base >= SEGMENTS_MAX
    }

    /// Whether every record lies in the one segment that an empty store has.
    pub(crate) fn is_minimal(&self) -> Result<bool, StoreError> {
        Ok(list_segments(self.disk.as_ref(), &self.dir)?.len() == 1)
    }

    /// Appends `records` as one batch and makes it durable; gives the sequence of the first.
    ///
    /// # Durability
    /// Durable on `Ok`. After an `Io` error it is unknown whether they are, and the log is stopped (W3).
    /// # Errors
    /// `LogFull` if no reserve can be made (W6) and `TooLarge`: both before anything is written.
    pub(crate) fn append(&mut self, records: &[Record], purpose: Purpose) -> Result<u64, StoreError> {
        if self.stopped {
            return Err(StoreError::WritesStopped);
        }
        let first_sequence = self.next_sequence;
        let (count, payload) = self.frame_payload(records)?;
        let batch = Batch { first_sequence, records: count, payload };
        if batch.frame_bytes() > FRAME_BYTES_MAX {
            return Err(StoreError::TooLarge { what: "the transaction's record", limit_bytes: FRAME_BYTES_MAX });
        }
        if self.segment.position + batch.padded_bytes() as u64 > self.segment.size_bytes {
            self.start_segment(first_sequence, &[batch], purpose)?;
        } else {
            self.reserve(purpose)?;
            let frame = batch.encode(self.store_id, self.segment.number, first_sequence - 1);
            let written = self.disk.write_at(&self.segment.file, &frame, self.segment.position);
            // The segment was preallocated and its size synced, so that the data alone is enough.
            let sync = || match mutation::is(Mutation::LogSyncSkipped) {
                true => Ok(()),
                false => self.disk.sync_data(&self.segment.file),
            };
            let result = written.and_then(|()| sync());
            if let Err(source) = result {
                self.stopped = true; // W3: a second sync would answer for pages that the first one lost.
                return Err(StoreError::Io { action: "append to", path: segment_path(self.segment.number), source });
            }
            self.segment.position += frame.len() as u64;
        }
        self.next_sequence = first_sequence + u64::from(count);
        Ok(first_sequence)
    }

    /// Writes all facts into a new base segment, and drops the segments before the previous base.
    ///
    /// # Errors
    /// After `FullDisk` nothing has changed; after another error that hit the name the log is stopped (W3).
    pub(crate) fn compact(&mut self, facts: &Facts) -> Result<(), StoreError> {
        if self.stopped {
            return Err(StoreError::WritesStopped);
        }
        let header =
            SegmentHeader { kind: KIND_BASE, number: self.segment.number + 1, first_sequence: self.next_sequence };
        let written = write_base(self.disk.as_ref(), &self.dir, self.store_id, header, facts);
        let segment = written.inspect_err(|error| self.stopped |= !matches!(error, StoreError::FullDisk { .. }))?;
        let previous = std::mem::replace(&mut self.base, segment.number);
        self.segment = segment;
        // The previous base stays until the next compaction, for whoever has to mend a lost segment.
        let kept = if facts.is_empty() { self.base } else { previous };
        for number in list_segments(self.disk.as_ref(), &self.dir)?.into_iter().filter(|number| *number < kept) {
            let name = segment_name(number);
            self.disk.remove_file(&self.dir, &name).context("remove", || segment_path(number))?;
        }
        Ok(())
    }

    /// Makes sure that the reserve stands before something is added (W6).
    fn reserve(&mut self, purpose: Purpose) -> Result<(), StoreError> {
        if self.spare.is_none() && purpose == Purpose::Add {
            self.spare = Some(make_spare(self.disk.as_ref(), &self.dir, SPARE).map_err(log_full)?);
        }
        Ok(())
    }

    /// Continues in the spare segment, with these batches in it from the start (W4).
    fn start_segment(&mut self, first_sequence: u64, batches: &[Batch], purpose: Purpose) -> Result<(), StoreError> {
        let disk = self.disk.clone();
        let file = match self.spare.take() {
            Some(file) => file,
            None => make_spare(disk.as_ref(), &self.dir, SPARE).map_err(log_full)?,
        };
        let next_spare = match purpose {
            Purpose::Remove => None,
            Purpose::Add => match make_spare(disk.as_ref(), &self.dir, NEW) {
                Ok(next) => Some(next),
                Err(error) => {
                    self.spare = Some(file);
                    return Err(log_full(error));
                }
            },
        };
        let number = self.segment.number + 1;
        let header = SegmentHeader { kind: KIND_CONTINUED, number, first_sequence };
        let mut bytes = header.encode(self.store_id);
        for batch in batches {
            bytes.extend(batch.encode(self.store_id, number, first_sequence - 1));
        }
        let named = name_segment(disk.as_ref(), &self.dir, &file, SPARE, number, &bytes);
        self.stopped |= named.is_err();
        named?;
        if next_spare.is_some() {
            let renamed = disk.rename(&self.dir, NEW, &self.dir, SPARE);
            // Without its name the reserve still has its blocks; the next opening makes another.
            self.spare = next_spare.filter(|_| renamed.is_ok());
        }
        self.segment = Segment { number, file, position: bytes.len() as u64, size_bytes: SEGMENT_BYTES };
        Ok(())
    }

    /// Encodes records with sequences from the next one on; gives their number and bytes.
    fn frame_payload(&self, records: &[Record]) -> Result<(u32, Vec<u8>), StoreError> {
        let mut payload = Vec::new();
        for (index, record) in records.iter().enumerate() {
            encode_record(&mut payload, self.next_sequence + index as u64, record)?;
        }
        Ok((records.len() as u32, payload))
    }
}

fn log_full(error: StoreError) -> StoreError {
    if matches!(error, StoreError::FullDisk { .. }) { StoreError::LogFull } else { error }
}

/// The first block of a segment.
struct SegmentHeader {
    kind: u32,
    number: u64,
    first_sequence: u64,
}

impl SegmentHeader {
    fn encode(&self, store_id: StoreId) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.kind.to_le_bytes());
        block[16..24].copy_from_slice(&self.number.to_le_bytes());
        block[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        block[32..48].copy_from_slice(&store_id);
        let checksum = checksum(store_id, self.number, &[&block[..HEADER_CHECKED]]);
        block[HEADER_CHECKED..HEADER_CHECKED + 32].copy_from_slice(&checksum);
        block
    }

    fn decode(store_id: StoreId, number: u64, block: &[u8]) -> Option<Self> {
        let header = Self { kind: u32_at(block, 12)?, number: u64_at(block, 16)?, first_sequence: u64_at(block, 24)? };
        // Encoding it again checks every byte of the block at once.
        let known = header.number == number && matches!(header.kind, KIND_BASE | KIND_CONTINUED);
        (known && header.encode(store_id) == block).then_some(header)
    }
}

/// One frame: records that happened together.
struct Batch {
    first_sequence: u64,
    records: u32,
    payload: Vec<u8>,
}

impl Batch {
    fn frame_bytes(&self) -> usize {
        FRAME_HEADER + self.payload.len()
    }

    fn padded_bytes(&self) -> usize {
        self.frame_bytes().next_multiple_of(BLOCK)
    }

    fn encode(&self, store_id: StoreId, segment: u64, synced_through: u64) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.padded_bytes());
        frame.extend_from_slice(&BATCH_MAGIC);
        frame.extend_from_slice(&(self.frame_bytes() as u32).to_le_bytes());
        frame.extend_from_slice(&self.first_sequence.to_le_bytes());
        frame.extend_from_slice(&synced_through.to_le_bytes());
        frame.extend_from_slice(&self.records.to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        let checksum = checksum(store_id, segment, &[&frame, &self.payload]);
        frame.extend_from_slice(&checksum);
        frame.extend_from_slice(&self.payload);
        frame.resize(self.padded_bytes(), 0);
        frame
    }

    /// The batch at the start of `bytes`, with its `synced_through`, if all of it is as it was written.
    fn decode(store_id: StoreId, segment: u64, bytes: &[u8]) -> Option<(Self, u64)> {
        if bytes.get(..4)? != BATCH_MAGIC {
            return None;
        }
        let frame_bytes = u32_at(bytes, 4)? as usize;
        if !(FRAME_HEADER..=FRAME_BYTES_MAX).contains(&frame_bytes) {
            return None;
        }
        let frame = bytes.get(..frame_bytes)?;
        let payload = &frame[FRAME_HEADER..];
        let whole = checksum(store_id, segment, &[&frame[..32], payload]) == frame[32..FRAME_HEADER];
        let mut batch =
            Self { first_sequence: u64_at(frame, 8)?, records: u32_at(frame, 24)?, payload: payload.to_vec() };
        if !whole {
            if !mutation::is(Mutation::TornBatchAccepted) {
                return None;
            }
            batch.keep_readable();
        }
        Some((batch, u64_at(frame, 16)?))
    }

    /// Drops what cannot be read as a record, and all behind it: a deliberate fault, since a batch is one (W1).
    fn keep_readable(&mut self) {
        let (mut records, mut bytes) = (0, 0);
        while records < self.records {
            let rest = &self.payload[bytes..];
            let Some(length) = rest.get(..RECORD_HEADER).and_then(|header| u32_at(header, 12)) else { break };
            let end = RECORD_HEADER.saturating_add(length as usize);
            let expected = self.first_sequence + u64::from(records);
            let Some(record) = rest.get(..end) else { break };
            if !decode_records(record, 1).is_ok_and(|read| read.first().is_some_and(|(at, _)| *at == expected)) {
                break;
            }
            (records, bytes) = (records + 1, bytes + end);
        }
        self.payload.truncate(bytes);
        self.records = records;
    }

    /// The records with their sequences. The checksum has passed, so a fault here is a bug or a newer format.
    fn decode_records(&self) -> Result<Vec<(u64, Record)>, String> {
        decode_records(&self.payload, self.records.into())
    }
}

/// Records that were encoded one after the other, with their sequences.
pub(crate) fn decode_records(mut rest: &[u8], count: u64) -> Result<Vec<(u64, Record)>, String> {
    let mut records = Vec::new();
    for _ in 0..count {
        let header = rest.get(..RECORD_HEADER).ok_or("a record header ends early")?;
        let (Some(sequence), Some(length)) = (u64_at(header, 0), u32_at(header, 12)) else {
            return Err("a record header ends early".to_owned());
        };
        let kind = u16::from_le_bytes([header[8], header[9]]);
        let version = u16::from_le_bytes([header[10], header[11]]);
        let body = rest.get(RECORD_HEADER..RECORD_HEADER + length as usize).ok_or("a record ends early")?;
        let record = record::decode(kind, version, body).map_err(|error| error.to_string())?;
        records.push((sequence, record));
        rest = &rest[RECORD_HEADER + length as usize..];
    }
    if rest.is_empty() { Ok(records) } else { Err(format!("a batch has {} bytes too many", rest.len())) }
}

pub(crate) fn encode_record(payload: &mut Vec<u8>, sequence: u64, record: &Record) -> Result<(), StoreError> {
    let (kind, version, body) = record::encode(record);
    if body.len() > record::RECORD_BYTES_MAX {
        return Err(StoreError::TooLarge { what: "a record of the log", limit_bytes: record::RECORD_BYTES_MAX });
    }
    payload.extend_from_slice(&sequence.to_le_bytes());
    payload.extend_from_slice(&kind.to_le_bytes());
    payload.extend_from_slice(&version.to_le_bytes());
    payload.extend_from_slice(&(body.len() as u32).to_le_bytes());
    payload.extend_from_slice(&body);
    Ok(())
}

/// BLAKE3 keyed with the store and the segment, so that stale blocks of either never pass.
fn checksum(store_id: StoreId, segment: u64, parts: &[&[u8]]) -> [u8; 32] {
    let mut salt = [0; 24];
    salt[..16].copy_from_slice(&store_id);
    salt[16..].copy_from_slice(&segment.to_le_bytes());
    let mut hasher = blake3::Hasher::new_derive_key("baleen write-ahead log, format 1");
    hasher.update(&salt);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// All that reading the log gives.
struct Log {
    base: u64,
    number: u64,
    file: Handle,
    position: u64,
    size_bytes: u64,
    replay: Replay,
}

/// What replay knows so far.
#[derive(Default)]
struct Replay {
    facts: Facts,
    removed_volumes: BTreeSet<String>,
    next_sequence: u64,
    /// Whether the last valid record is `Closed`.
    closed: bool,
    /// Whether bytes follow the last valid batch: one that was cut before it was acknowledged.
    torn: bool,
    /// The last batch after the base, of which alone durability is unknown.
    last_batch: Option<Batch>,
}

impl Replay {
    /// A volume's removal holds everything reserved until its name is durably free, so any record but a removal's says that
    /// it is.
    fn note_removed_volumes(&mut self, record: &Record) {
        match record {
            Record::VolumeRemoved(name) => drop(self.removed_volumes.insert(name.clone())),
            Record::Opened
            | Record::BlobRemoved(_)
            | Record::LayerRemoved(_)
            | Record::ImageRemoved(_)
            | Record::TagRemoved(_)
            | Record::PullEnded(_)
            | Record::ContainerRemoved(_) => {}
            _ => self.removed_volumes.clear(),
        }
    }
}

/// Replays every segment from the newest base on. Writes nothing.
fn read_log(disk: &dyn Disk, dir: &Handle, store_id: StoreId) -> Result<Log, StoreError> {
    let broken = |what: String| StoreError::Damaged { what };
    // From the newest segment back to the newest base: what is older is kept for repairs, and may be damaged.
    let mut headers = Vec::new();
    for number in list_segments(disk, dir)?.into_iter().rev() {
        let file = open_segment(disk, dir, number)?;
        let mut block = vec![0; BLOCK];
        read_full_at(disk, &file, &mut block, 0).context("read", || segment_path(number))?;
        let header = SegmentHeader::decode(store_id, number, &block)
            .ok_or_else(|| broken(format!("the header of {} is not valid", segment_path(number))))?;
        let is_base = header.kind == KIND_BASE;
        headers.insert(0, header);
        if is_base {
            break;
        }
    }
    if headers.first().is_none_or(|header| header.kind != KIND_BASE) {
        return Err(broken("the log has no base segment".to_owned()));
    }
    let base = headers[0].number;
    let mut replay = Replay { next_sequence: headers[0].first_sequence, ..Replay::default() };
    for (index, header) in headers.iter().enumerate() {
        if header.number != base + index as u64 {
            return Err(broken(format!("{} is missing", segment_path(base + index as u64))));
        }
        let file = open_segment(disk, dir, header.number)?;
        let bytes = read_segment(disk, &file, header.number)?;
        // Preallocated and synced before it got its name (W4): one that is shorter has lost its end, and nothing else tells.
        if (bytes.len() as u64) < SEGMENT_BYTES {
            return Err(damaged(header.number, bytes.len(), "the segment ends early"));
        }
        let until = headers.get(index + 1).map(|next| next.first_sequence);
        let position = replay_segment(store_id, header, &bytes, until, &mut replay)? as u64;
        if index + 1 == headers.len() {
            let size_bytes = bytes.len() as u64;
            return Ok(Log { base, number: header.number, file, position, size_bytes, replay });
        }
    }
    Err(broken("the log has no segment".to_owned()))
}

/// Applies the batches of one segment; gives the position after the last. `until` is where the next segment begins:
/// what stands here from that sequence on is superseded (W5).
fn replay_segment(
    store_id: StoreId,
    header: &SegmentHeader,
    bytes: &[u8],
    until: Option<u64>,
    replay: &mut Replay,
) -> Result<usize, StoreError> {
    let mut position = BLOCK;
    if header.kind == KIND_BASE {
        position = replay_base(store_id, header.number, bytes, replay)?;
    }
    while until != Some(replay.next_sequence) {
        let rest = bytes.get(position..).unwrap_or_default();
        let Some((batch, _)) = Batch::decode(store_id, header.number, rest) else {
            if until.is_some() {
                let what = "a batch is missing that the next segment calls durable";
                return Err(damaged(header.number, position, what));
            }
            check_tail(store_id, header.number, position, rest, replay)?;
            return Ok(position);
        };
        if batch.first_sequence != replay.next_sequence {
            return Err(damaged(header.number, position, "a batch has another sequence than its place"));
        }
        for (sequence, record) in batch.decode_records().map_err(|what| damaged(header.number, position, &what))? {
            if sequence != replay.next_sequence {
                return Err(damaged(header.number, position, "a record has another sequence than its place"));
            }
            replay.next_sequence += 1;
            replay.closed = record == Record::Closed;
            replay.note_removed_volumes(&record);
            replay.facts.apply(sequence, record);
        }
        position += batch.padded_bytes();
        replay.last_batch = Some(batch);
    }
    Ok(position)
}

/// Applies the facts of a base segment; gives the position after its last batch. A base has its name only once it is
/// whole (W4), so anything else is damage.
fn replay_base(store_id: StoreId, number: u64, bytes: &[u8], replay: &mut Replay) -> Result<usize, StoreError> {
    let mut position = BLOCK;
    let mut applied = 0;
    loop {
        let rest = bytes.get(position..).unwrap_or_default();
        let (batch, _) = Batch::decode(store_id, number, rest)
            .ok_or_else(|| damaged(number, position, "the base segment is not whole"))?;
        for (sequence, record) in batch.decode_records().map_err(|what| damaged(number, position, &what))? {
            match record {
                Record::BaseEnd(expected) if expected == applied => return Ok(position + batch.padded_bytes()),
                Record::BaseEnd(_) => return Err(damaged(number, position, "the base segment lacks records")),
                record => replay.facts.apply(sequence, record),
            }
            applied += 1;
        }
        position += batch.padded_bytes();
    }
}

/// Tells a torn tail from damage (W2): `rest` begins where no valid batch stands.
fn check_tail(
    store_id: StoreId,
    number: u64,
    position: usize,
    rest: &[u8],
    replay: &mut Replay,
) -> Result<(), StoreError> {
    for offset in (BLOCK..rest.len()).step_by(BLOCK) {
        if let Some((_, synced_through)) = Batch::decode(store_id, number, &rest[offset..])
            && synced_through >= replay.next_sequence
        {
            return Err(damaged(number, position, "a batch is not valid that a later one calls durable"));
        }
    }
    replay.torn = rest.iter().any(|byte| *byte != 0);
    Ok(())
}

fn damaged(segment: u64, position: usize, what: &str) -> StoreError {
    StoreError::Damaged { what: format!("{} at byte {position}: {what}", segment_path(segment)) }
}

// The files of the log.

fn segment_name(number: u64) -> Vec<u8> {
    format!("{number:016x}").into_bytes()
}

fn segment_path(number: u64) -> String {
    format!("wal/{number:016x}")
}

/// The numbers of all segments, ascending.
fn list_segments(disk: &dyn Disk, dir: &Handle) -> Result<Vec<u64>, StoreError> {
    let mut numbers = Vec::new();
    for entry in disk.read_dir(dir).context("list", || "wal".to_owned())? {
        let number = std::str::from_utf8(&entry.name).ok().and_then(|name| u64::from_str_radix(name, 16).ok());
        numbers.extend(number.filter(|number| segment_name(*number) == entry.name));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn open_segment(disk: &dyn Disk, dir: &Handle, number: u64) -> Result<Handle, StoreError> {
    let file = disk.open_file(dir, &segment_name(number), Access::ReadWrite);
    let file = file.context("open", || segment_path(number))?;
    // After a failed sync the cache may hold bytes that never reached the disk (W5).
    disk.drop_cache(&file, 0, 0).context("read", || segment_path(number))?;
    Ok(file)
}

fn read_segment(disk: &dyn Disk, file: &Handle, number: u64) -> Result<Vec<u8>, StoreError> {
    crate::disk::read_file(disk, file, BASE_BYTES_MAX).context("read", || segment_path(number))
}

/// Opens the spare that an earlier opening left, if it is whole; removes it otherwise.
fn take_spare(disk: &dyn Disk, dir: &Handle) -> Result<Option<Handle>, StoreError> {
    let path = || "wal/spare".to_owned();
    let spare = match disk.open_file(dir, SPARE, Access::ReadWrite) {
        Ok(spare) => spare,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    let metadata = disk.metadata(&spare).context("read", path)?;
    let bytes = crate::disk::read_file(disk, &spare, SEGMENT_BYTES).unwrap_or_default();
    let zeros = bytes.len() as u64 == SEGMENT_BYTES && bytes.iter().all(|byte| *byte == 0);
    if zeros && metadata.allocated_bytes >= SEGMENT_BYTES {
        return Ok(Some(spare));
    }
    remove_if_there(disk, dir, SPARE)?;
    Ok(None)
}

/// Makes a segment's worth of zeros under `name`. It needs no sync: it gets one with its first batches (W4).
fn make_spare(disk: &dyn Disk, dir: &Handle, name: &[u8]) -> Result<Handle, StoreError> {
    let path = || format!("wal/{}", String::from_utf8_lossy(name));
    remove_if_there(disk, dir, name)?;
    let file = disk.create_file(dir, name, 0o600).context("create", path)?;
    match disk.write_at(&file, &vec![0; SEGMENT_BYTES as usize], 0) {
        Ok(()) => Ok(file),
        Err(error) => {
            // Half a reserve is none, and its blocks are needed. A failure here hides nothing: the next opening tries.
            let _ = disk.remove_file(dir, name);
            Err(error).context("write", path)
        }
    }
}

fn remove_if_there(disk: &dyn Disk, dir: &Handle, name: &[u8]) -> Result<(), StoreError> {
    match disk.remove_file(dir, name) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(error).context("remove", || format!("wal/{}", String::from_utf8_lossy(name)))
        }
        _ => Ok(()),
    }
}

/// Writes the first blocks of a segment into `file`, makes them durable, then gives it its name (W4).
fn name_segment(
    disk: &dyn Disk,
    dir: &Handle,
    file: &Handle,
    name: &[u8],
    number: u64,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let path = || segment_path(number);
    disk.write_at(file, bytes, 0).context("write", path)?;
    disk.sync(file).context("sync", path)?;
    // Never `FullDisk` from here on: the name may stand, and the caller must not go on as if nothing had happened.
    let named = |action, result: std::io::Result<()>| {
        result.map_err(|source| StoreError::Io { action, path: segment_path(number), source })
    };
    named("rename", disk.rename(dir, name, dir, &segment_name(number)))?;
    named("sync the name of", disk.sync(dir))
}

/// Writes a base segment with room to append, and gives it its name.
fn write_base(
    disk: &dyn Disk,
    dir: &Handle,
    store_id: StoreId,
    header: SegmentHeader,
    facts: &Facts,
) -> Result<Segment, StoreError> {
    let number = header.number;
    let mut bytes = header.encode(store_id);
    let mut batch = Batch { first_sequence: header.first_sequence, records: 0, payload: Vec::new() };
    let mut records = facts.records();
    records.push((header.first_sequence, Record::BaseEnd(records.len() as u64)));
    let synced_through = header.first_sequence - 1;
    for (sequence, record) in &records {
        if batch.frame_bytes() + RECORD_HEADER + record::RECORD_BYTES_MAX > FRAME_BYTES_MAX {
            bytes.extend(batch.encode(store_id, number, synced_through));
            batch = Batch { records: 0, payload: Vec::new(), ..batch };
        }
        encode_record(&mut batch.payload, *sequence, record)?;
        batch.records += 1;
    }
    bytes.extend(batch.encode(store_id, number, synced_through));
    let position = bytes.len() as u64;
    let size_bytes = position + SEGMENT_BYTES;
    remove_if_there(disk, dir, NEW)?;
    let file = disk.create_file(dir, NEW, 0o600).context("create", || segment_path(number))?;
    // Zeros for what will be appended, so that an append changes no size (and cannot meet a full disk).
    let room = disk.write_at(&file, &vec![0; SEGMENT_BYTES as usize], position);
    let named = room
        .context("write", || segment_path(number))
        .and_then(|()| name_segment(disk, dir, &file, NEW, number, &bytes));
    match named {
        Ok(()) => Ok(Segment { number, file, position, size_bytes }),
        Err(error) => {
            let _ = disk.remove_file(dir, NEW); // Its blocks are needed; the first error is the one to report.
            Err(error)
        }
    }
}

/// Replays `body` as what follows the header of a segment, after giving each batch in it the checksum that it lacks: so a
/// fuzzer reaches what the checksum guards. Every record that is accepted must encode to the bytes it came from.
///
/// # Panics
/// If it does not.
#[doc(hidden)]
pub fn fuzz_replay(body: &[u8]) -> Result<usize, StoreError> {
    let (store_id, number) = ([7; 16], 1);
    let kind = if body.first().is_some_and(|byte| byte & 1 == 1) { KIND_BASE } else { KIND_CONTINUED };
    let header = SegmentHeader { kind, number, first_sequence: 1 };
    let mut bytes = header.encode(store_id);
    assert!(SegmentHeader::decode(store_id, number, &bytes).is_some(), "a header reads back");
    bytes.extend_from_slice(body.get(1..).unwrap_or_default());
    for position in (BLOCK..bytes.len()).step_by(BLOCK) {
        let Some(length) = u32_at(&bytes, position + 4).map(|length| length as usize) else { continue };
        let Some(frame) = bytes.get_mut(position..).and_then(|rest| rest.get_mut(..length)) else { continue };
        if frame.len() >= FRAME_HEADER {
            let sum = checksum(store_id, number, &[&frame[..32], &frame[FRAME_HEADER..]]);
            frame[32..FRAME_HEADER].copy_from_slice(&sum);
        }
    }
    let mut replay = Replay { next_sequence: 1, ..Replay::default() };
    let result = replay_segment(store_id, &header, &bytes, None, &mut replay);
    for (sequence, record) in replay.facts.records() {
        let mut payload = Vec::new();
        if encode_record(&mut payload, sequence, &record).is_ok() {
            let batch = Batch { first_sequence: sequence, records: 1, payload };
            assert_eq!(batch.decode_records(), Ok(vec![(sequence, record)]), "a fact reads back");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments are read as they lie: no disk is needed to judge them.
    fn segment(batches: &[Batch]) -> Vec<u8> {
        let mut bytes = SegmentHeader { kind: KIND_CONTINUED, number: 1, first_sequence: 1 }.encode([7; 16]);
        for batch in batches {
            bytes.extend(batch.encode([7; 16], 1, batch.first_sequence - 1));
        }
        bytes.resize(bytes.len() + 4 * BLOCK, 0);
        bytes
    }

    fn tag(sequence: u64, records: u64) -> Batch {
        let mut payload = Vec::new();
        for index in 0..records {
            let record = Record::TagRemoved(format!("app:{}", sequence + index));
            encode_record(&mut payload, sequence + index, &record).expect("a short record");
        }
        Batch { first_sequence: sequence, records: records as u32, payload }
    }

    fn replay(bytes: &[u8]) -> Result<Replay, StoreError> {
        let header = SegmentHeader { kind: KIND_CONTINUED, number: 1, first_sequence: 1 };
        let mut replay = Replay { next_sequence: 1, ..Replay::default() };
        replay_segment([7; 16], &header, bytes, None, &mut replay).map(|_| replay)
    }

    #[test]
    fn a_changed_byte_is_damage_but_in_the_last_batch_where_it_is_a_torn_tail() {
        let bytes = segment(&[tag(1, 1), tag(2, 200), tag(202, 1)]);
        let whole = replay(&bytes).expect("a whole segment");
        assert_eq!((whole.next_sequence, whole.torn), (203, false));
        let last = bytes.len() - 5 * BLOCK;
        let padding = |index: usize| {
            let frames = [(BLOCK, tag(1, 1)), (2 * BLOCK, tag(2, 200)), (last, tag(202, 1))];
            frames
                .iter()
                .any(|(start, batch)| (start + batch.frame_bytes()..start + batch.padded_bytes()).contains(&index))
        };
        for index in (BLOCK..last + BLOCK).step_by(7).filter(|index| !padding(*index)) {
            let mut changed = bytes.clone();
            changed[index] ^= 0x10;
            match replay(&changed) {
                Ok(torn) => assert!(index >= last && torn.torn && torn.next_sequence == 202, "byte {index}"),
                Err(error) => assert!(index < last && matches!(error, StoreError::Damaged { .. }), "byte {index}"),
            }
        }
    }

    #[test]
    fn a_batch_of_another_segment_or_store_never_passes() {
        let mut bytes = segment(&[tag(1, 1)]);
        let stale = tag(2, 1).encode([7; 16], 2, 1);
        bytes[2 * BLOCK..3 * BLOCK].copy_from_slice(&stale);
        assert_eq!(replay(&bytes).expect("a torn tail").next_sequence, 2);
        let foreign = tag(2, 1).encode([8; 16], 1, 1);
        bytes[2 * BLOCK..3 * BLOCK].copy_from_slice(&foreign);
        assert_eq!(replay(&bytes).expect("a torn tail").next_sequence, 2);
    }

    #[test]
    fn a_lost_batch_before_a_valid_one_is_damage() {
        let bytes = segment(&[tag(1, 1), tag(2, 1), tag(3, 1)]);
        let mut lost = bytes.clone();
        lost[2 * BLOCK..3 * BLOCK].fill(0);
        assert!(matches!(replay(&lost), Err(StoreError::Damaged { .. })));
        let mut cut = bytes;
        cut[3 * BLOCK..].fill(0);
        assert_eq!(replay(&cut).expect("a shorter log").next_sequence, 3);
    }

    #[test]
    fn the_fuzzer_s_way_in_reaches_the_records() {
        let mut body = vec![0];
        body.extend_from_slice(&segment(&[tag(1, 3)])[BLOCK..]);
        assert_eq!(fuzz_replay(&body).expect("a segment"), 2 * BLOCK);
    }
}
