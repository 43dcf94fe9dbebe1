//! The state of an extraction that was cut, as bytes: docs/formats/partial.md, version 1.
//!
//! E1  Decoding takes any bytes and believes none: every length has its limit, every number its range, and what is left
//!     over is an error. The checksum around it belongs to the store.
//! E2  What can be had from the recipe is not in it: names, times of directories, the headers of the file in progress.

use baleen_oci::{Algorithm, DiffId, Digest, DigestHasher};
use baleen_store::CHECKPOINT_STATE_BYTES_MAX;
use baleen_store::recipe::{MOVES_MAX, Move};

use crate::decompress::Point;
use crate::gzip::{GzipPlace, GzipPoint};
use crate::limits::PATH_BYTES_MAX;
use crate::sys::{InflatePoint, WINDOW_BYTES};

const MAGIC: &[u8; 8] = b"BLNEXTRA";
const VERSION: u32 = 1;
/// Bytes of a file that wait for the rest of their page.
const CARRY_BYTES_MAX: usize = 4096;
/// Subtrees of a BLAKE3 stack: one for each bit of a length.
const STACK_MAX: usize = 64;

/// Everything that a cut extraction goes on from, beside the tree and the recipe.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) stream: StreamState,
    pub(crate) tree: TreeState,
}

/// The part of thread A.
#[derive(Debug, Clone)]
pub(crate) struct StreamState {
    /// What was expected, which must be expected still.
    pub(crate) blob: Option<Digest>,
    pub(crate) blob_size_bytes: Option<u64>,
    pub(crate) diff_id: Option<DiffId>,
    /// Cuts so far.
    pub(crate) cuts: u32,
    /// Bytes of the blob consumed: the next one is at this offset.
    pub(crate) blob_bytes: u64,
    pub(crate) blob_hasher: DigestHasher,
    pub(crate) tar_bytes: u64,
    pub(crate) tar_hasher: DigestHasher,
    pub(crate) point: Point,
}

/// The part of thread B.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TreeState {
    pub(crate) entries: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) recipe_bytes: u64,
    /// Zeros after the end of the archive that are not in the recipe yet.
    pub(crate) trailing_zeros: u64,
    /// More than zeros came after it.
    pub(crate) tail: bool,
    pub(crate) implied_directories: bool,
    /// The next name in `kept/`.
    pub(crate) kept_next: u64,
    pub(crate) moves: Vec<Move>,
    pub(crate) open: OpenState,
}

/// The payload in progress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum OpenState {
    /// None is.
    #[default]
    Nothing,
    /// A file of the tree.
    File { path: Vec<u8>, written: Written },
    /// A file in `kept/`.
    Kept { number: u64, written: Written },
}

/// How far a file is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) inode: u64,
    /// Payload taken; the last of it may be in `carry`.
    pub(crate) taken_bytes: u64,
    /// Payload that is not on the disk.
    pub(crate) carry: Vec<u8>,
    /// BLAKE3 of its closed groups.
    pub(crate) stack: Vec<[u8; 32]>,
}

/// Why bytes are no state.
pub(crate) type Problem = &'static str;

impl State {
    /// `None` if it is longer than a checkpoint may be.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(64 << 10);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        self.stream.put(&mut out);
        self.tree.put(&mut out);
        (out.len() <= CHECKPOINT_STATE_BYTES_MAX).then_some(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.len() > CHECKPOINT_STATE_BYTES_MAX {
            return Err("it is too long");
        }
        let mut fields = Fields(bytes);
        if fields.take(8)? != MAGIC {
            return Err("it does not begin as one");
        }
        if fields.short()? != VERSION {
            return Err("another version of this engine made it");
        }
        let state = State { stream: StreamState::get(&mut fields)?, tree: TreeState::get(&mut fields)? };
        if fields.0.is_empty() { Ok(state) } else { Err("it has more than it should") }
    }
}

impl StreamState {
    fn put(&self, out: &mut Vec<u8>) {
        put_digest(out, self.blob.as_ref());
        put_long(out, self.blob_size_bytes.map_or(u64::MAX, |size| size));
        put_digest(out, self.diff_id.map(|diff_id| diff_id.0).as_ref());
        put_short(out, self.cuts);
        put_long(out, self.blob_bytes);
        put_hasher(out, &self.blob_hasher);
        put_long(out, self.tar_bytes);
        put_hasher(out, &self.tar_hasher);
        match &self.point {
            Point::Plain => out.push(1),
            Point::Zstandard => out.push(2),
            Point::Gzip(GzipPoint { place, member_bytes, checksum }) => {
                out.push(match place {
                    GzipPlace::Block(_) => 3,
                    GzipPlace::Between => 4,
                    GzipPlace::Zeros => 5,
                });
                put_long(out, *member_bytes);
                out.push(u8::from(checksum.is_some()));
                put_short(out, checksum.unwrap_or(0));
                if let GzipPlace::Block(InflatePoint { bits, last_byte, window }) = place {
                    out.extend_from_slice(&[*bits, *last_byte]);
                    put_bytes(out, window);
                }
            }
        }
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Problem> {
        let blob = fields.digest()?;
        let blob_size_bytes = Some(fields.long()?).filter(|size| *size != u64::MAX);
        let diff_id = fields.digest()?.map(DiffId);
        let cuts = fields.short()?;
        let blob_bytes = fields.long()?;
        let blob_hasher = fields.hasher()?;
        let tar_bytes = fields.long()?;
        let tar_hasher = fields.hasher()?;
        let point = match fields.byte()? {
            1 => Point::Plain,
            2 => Point::Zstandard,
            kind @ 3..=5 => {
                let member_bytes = fields.long()?;
                let has_checksum = fields.flag()?;
                let checksum = Some(fields.short()?).filter(|_| has_checksum);
                let place = match kind {
                    3 => {
                        let (bits, last_byte) = (fields.byte()?, fields.byte()?);
                        if bits > 7 {
                            return Err("a byte has more than seven bits left");
                        }
                        GzipPlace::Block(InflatePoint { bits, last_byte, window: fields.bytes(WINDOW_BYTES)?.to_vec() })
                    }
                    4 => GzipPlace::Between,
                    _ => GzipPlace::Zeros,
                };
                Point::Gzip(GzipPoint { place, member_bytes, checksum })
            }
            _ => return Err("it stands at no known place"),
        };
        Ok(Self { blob, blob_size_bytes, diff_id, cuts, blob_bytes, blob_hasher, tar_bytes, tar_hasher, point })
    }
}

impl TreeState {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [self.entries, self.payload_bytes, self.recipe_bytes, self.trailing_zeros, self.kept_next] {
            put_long(out, number);
        }
        out.push(u8::from(self.tail) | u8::from(self.implied_directories) << 1);
        put_short(out, self.moves.len() as u32);
        for moved in &self.moves {
            put_long(out, moved.files_before);
            put_long(out, moved.number);
            put_bytes(out, &moved.path);
        }
        match &self.open {
            OpenState::Nothing => out.push(0),
            OpenState::File { path, written } => {
                out.push(1);
                put_bytes(out, path);
                written.put(out);
            }
            OpenState::Kept { number, written } => {
                out.push(2);
                put_long(out, *number);
                written.put(out);
            }
        }
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Problem> {
        let (entries, payload_bytes, recipe_bytes) = (fields.long()?, fields.long()?, fields.long()?);
        let (trailing_zeros, kept_next) = (fields.long()?, fields.long()?);
        let flags = fields.byte()?;
        if flags > 3 {
            return Err("it has unknown flags");
        }
        let count = fields.short()? as usize;
        if count > MOVES_MAX {
            return Err("it has too many moves");
        }
        let mut moves = Vec::new();
        for _ in 0..count {
            let (files_before, number) = (fields.long()?, fields.long()?);
            moves.push(Move { files_before, number, path: fields.bytes(PATH_BYTES_MAX)?.to_vec() });
        }
        let open = match fields.byte()? {
            0 => OpenState::Nothing,
            1 => OpenState::File { path: fields.bytes(PATH_BYTES_MAX)?.to_vec(), written: Written::get(fields)? },
            2 => OpenState::Kept { number: fields.long()?, written: Written::get(fields)? },
            _ => return Err("it has an unknown payload"),
        };
        let (tail, implied_directories) = (flags & 1 != 0, flags & 2 != 0);
        Ok(Self {
            entries,
            payload_bytes,
            recipe_bytes,
            trailing_zeros,
            tail,
            implied_directories,
            kept_next,
            moves,
            open,
        })
    }
}

impl Written {
    fn put(&self, out: &mut Vec<u8>) {
        put_long(out, self.inode);
        put_long(out, self.taken_bytes);
        put_bytes(out, &self.carry);
        put_short(out, self.stack.len() as u32);
        for value in &self.stack {
            out.extend_from_slice(value);
        }
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, Problem> {
        let (inode, taken_bytes) = (fields.long()?, fields.long()?);
        let carry = fields.bytes(CARRY_BYTES_MAX)?.to_vec();
        let count = fields.short()? as usize;
        if count > STACK_MAX {
            return Err("a hash has too many subtrees");
        }
        let mut stack = Vec::new();
        for _ in 0..count {
            let mut value = [0; 32];
            value.copy_from_slice(fields.take(32)?);
            stack.push(value);
        }
        if carry.len() as u64 > taken_bytes {
            return Err("a file has more waiting than was taken");
        }
        Ok(Self { inode, taken_bytes, carry, stack })
    }
}

fn put_short(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_long(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_short(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}

fn algorithm_number(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    }
}

fn put_digest(out: &mut Vec<u8>, digest: Option<&Digest>) {
    match digest {
        None => out.push(0),
        Some(digest) => {
            out.push(algorithm_number(digest.algorithm()));
            put_bytes(out, digest.as_bytes());
        }
    }
}

fn put_hasher(out: &mut Vec<u8>, hasher: &DigestHasher) {
    out.push(algorithm_number(hasher.algorithm()));
    put_bytes(out, &hasher.state());
}

/// Takes fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    fn flag(&mut self) -> Result<bool, Problem> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("it has unknown flags"),
        }
    }

    fn short(&mut self) -> Result<u32, Problem> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| "it ends early")
    }

    fn long(&mut self) -> Result<u64, Problem> {
        self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| "it ends early")
    }

    fn bytes(&mut self, limit: usize) -> Result<&'a [u8], Problem> {
        let length = self.short()? as usize;
        if length > limit { Err("a field is too long") } else { self.take(length) }
    }

    fn algorithm(&mut self) -> Result<Option<Algorithm>, Problem> {
        match self.byte()? {
            0 => Ok(None),
            1 => Ok(Some(Algorithm::Sha256)),
            2 => Ok(Some(Algorithm::Sha512)),
            _ => Err("it has an unknown digest"),
        }
    }

    fn digest(&mut self) -> Result<Option<Digest>, Problem> {
        let Some(algorithm) = self.algorithm()? else { return Ok(None) };
        Digest::from_bytes(algorithm, self.bytes(64)?).map(Some).ok_or("it has an unknown digest")
    }

    fn hasher(&mut self) -> Result<DigestHasher, Problem> {
        let algorithm = self.algorithm()?.ok_or("it has an unknown digest")?;
        DigestHasher::resume(algorithm, self.bytes(256)?).ok_or("a hash has no such state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        hasher.update(b"some");
        let block = InflatePoint { bits: 3, last_byte: 0xe0, window: vec![7; 1000] };
        let point = GzipPoint { place: GzipPlace::Block(block), member_bytes: 99, checksum: Some(5) };
        let written = Written { inode: 12, taken_bytes: 1 << 40, carry: vec![1; 4095], stack: vec![[9; 32]; 3] };
        State {
            stream: StreamState {
                blob: Some(Digest::sha256_of(b"blob")),
                blob_size_bytes: Some(1 << 33),
                diff_id: Some(DiffId(Digest::of(Algorithm::Sha512, b"tar"))),
                cuts: 4,
                blob_bytes: 1234,
                blob_hasher: hasher.clone(),
                tar_bytes: 5678,
                tar_hasher: hasher,
                point: Point::Gzip(point),
            },
            tree: TreeState {
                entries: 10,
                recipe_bytes: 16,
                moves: vec![Move { files_before: 1, number: 0, path: b"a/b".to_vec() }],
                open: OpenState::File { path: b"large".to_vec(), written },
                ..TreeState::default()
            },
        }
    }

    #[test]
    fn a_state_comes_back_and_a_cut_or_longer_one_is_refused() {
        let state = sample();
        let bytes = state.encode().unwrap();
        let decoded = State::decode(&bytes).unwrap();
        assert_eq!(decoded.tree, state.tree);
        assert_eq!(decoded.encode().unwrap(), bytes);
        for length in 0..bytes.len() {
            assert!(State::decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        assert!(State::decode(&[&bytes[..], &[0]].concat()).is_err());
        let mut newer = bytes;
        newer[8] = 2;
        assert!(State::decode(&newer).is_err());
    }
}
