//! States that a power cut could have left: which of the writes not yet flushed are kept.
//!
//! A cut in epoch `e` keeps all that was written before the flush that began `e` (a flush covers what was completed
//! before it was received), nothing of what came after the flush that ends it, and of its own writes any part.
//!
//! S1  A state's name makes exactly that state from its recording, on every machine.
//! S2  States are told apart by what they keep, not by name: a subset that happens to keep all is `all`.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use baleen_fault_injection::Random;

use crate::contents::{BLOCK_BYTES, ContentId};
use crate::record::{Event, Piece, RecordError, Recording};

/// Which of the epoch's writes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// None of them.
    None,
    /// All of them.
    All,
    /// The first ones, so many.
    Prefix(u32),
    /// Any, by seed.
    Subset(u64),
    /// Any, by seed, and of writes of more than one block only some blocks.
    Torn(u64),
    /// Any, by seed, and of blocks only some sectors of 512 bytes: more than a disk with sectors of 4096 bytes can do.
    Torn512(u64),
}

impl Kind {
    /// The word for it in a state's name and in results.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::All => "all",
            Kind::Prefix(_) => "prefix",
            Kind::Subset(_) => "subset",
            Kind::Torn(_) => "torn",
            Kind::Torn512(_) => "torn512",
        }
    }
}

/// A state of a recording. Written `EPOCH:KIND:SEED`, for instance `17:subset:3`; `17:none` and `17:all` need no seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The flush after which the power went: 0 before the first, 1 after the first, and so on.
    pub epoch: u32,
    /// What of the later writes is kept.
    pub kind: Kind,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.epoch, self.kind.word())?;
        match self.kind {
            Kind::None | Kind::All => Ok(()),
            Kind::Prefix(count) => write!(formatter, ":{count}"),
            Kind::Subset(seed) | Kind::Torn(seed) | Kind::Torn512(seed) => write!(formatter, ":{seed}"),
        }
    }
}

/// A text that names no state.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} names no state; it is EPOCH:KIND:SEED with none, all, prefix, subset, torn or torn512")]
pub struct NotAState {
    /// The text.
    pub text: String,
}

impl FromStr for State {
    type Err = NotAState;

    fn from_str(text: &str) -> Result<State, NotAState> {
        let parse = || {
            let mut words = text.split(':');
            let epoch = words.next()?.parse().ok()?;
            let word = words.next()?;
            let seed = words.next().map(|seed| seed.parse::<u64>().ok());
            if words.next().is_some() {
                return None;
            }
            let kind = match (word, seed) {
                ("none", None) => Kind::None,
                ("all", None) => Kind::All,
                ("prefix", Some(Some(count))) => Kind::Prefix(u32::try_from(count).ok()?),
                ("subset", Some(Some(seed))) => Kind::Subset(seed),
                ("torn", Some(Some(seed))) => Kind::Torn(seed),
                ("torn512", Some(Some(seed))) => Kind::Torn512(seed),
                _ => return None,
            };
            Some(State { epoch, kind })
        };
        parse().ok_or_else(|| NotAState { text: text.to_owned() })
    }
}

/// A piece of a write that a state keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Which write of the epoch, from 0.
    pub(crate) write: u32,
    /// Which piece of it.
    pub(crate) piece: u32,
    /// Which of the block's eight sectors of 512 bytes.
    pub(crate) sectors: u8,
}

/// What a state keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSet {
    pub(crate) kept: Vec<Kept>,
    /// Writes kept whole, kept in part, and lost.
    pub counts: (u32, u32, u32),
}

impl KeptSet {
    /// The word for what the set is, whatever it was called: a subset that keeps all is `all` (S2).
    pub fn word(&self, kind: Kind) -> &'static str {
        match self.counts {
            (_, 0, 0) if !self.kept.is_empty() => "all",
            _ if self.kept.is_empty() => "none",
            _ => kind.word(),
        }
    }

    /// A name for the set within its epoch (S2).
    pub fn key(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for kept in &self.kept {
            hasher.update(&kept.write.to_le_bytes());
            hasher.update(&kept.piece.to_le_bytes());
            hasher.update(&[kept.sectors]);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        key
    }
}

/// The sectors that a piece touches.
fn touched(piece: &Piece) -> u8 {
    let sectors = usize::from(piece.start) / 512..(usize::from(piece.start) + usize::from(piece.length)).div_ceil(512);
    sectors.fold(0, |mask, sector| mask | 1 << sector)
}

/// What a state of this kind keeps of an epoch's writes.
pub(crate) fn keep(kind: Kind, epoch: u32, writes: &[&[Piece]]) -> KeptSet {
    let mut random = match kind {
        Kind::Subset(seed) | Kind::Torn(seed) | Kind::Torn512(seed) => {
            Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(epoch))
        }
        _ => Random::new(0),
    };
    // Few writes lost and few writes kept are both telling, and an even coin shows neither in a long epoch.
    let density = [1, 4, 7, 2, 6][random.below(5) as usize];
    // At least one write is torn, if one can be.
    let tearable = |pieces: &[Piece]| match kind {
        Kind::Torn(_) => pieces.len() > 1,
        Kind::Torn512(_) => pieces.len() > 1 || pieces.iter().any(|piece| touched(piece).count_ones() > 1),
        _ => false,
    };
    let candidates: Vec<usize> = (0..writes.len()).filter(|at| tearable(writes[*at])).collect();
    let victim = match candidates.len() {
        0 => None,
        count => Some(candidates[random.below(count as u64) as usize]),
    };
    let mut set = KeptSet { kept: Vec::new(), counts: (0, 0, 0) };
    for (at, pieces) in writes.iter().enumerate() {
        let whole = match kind {
            Kind::None => false,
            Kind::All => true,
            Kind::Prefix(count) => at < count as usize,
            Kind::Subset(_) | Kind::Torn(_) | Kind::Torn512(_) => random.chance(density, 8),
        };
        let torn = tearable(pieces) && (victim == Some(at) || random.chance(1, 8));
        let before = set.kept.len();
        if torn {
            tear(kind, at, pieces, &mut random, &mut set.kept);
            set.counts.1 += 1;
        } else if whole {
            let whole = |(piece, bytes): (usize, &Piece)| Kept {
                write: at as u32,
                piece: piece as u32,
                sectors: touched(bytes),
            };
            set.kept.extend(pieces.iter().enumerate().map(whole));
            set.counts.0 += 1;
        }
        if set.kept.len() == before && !torn {
            set.counts.2 += 1;
        }
    }
    set
}

/// Keeps some blocks, or some sectors, of a write, but neither none nor all of it.
fn tear(kind: Kind, write: usize, pieces: &[Piece], random: &mut Random, kept: &mut Vec<Kept>) {
    let begin = kept.len();
    let by_sector = matches!(kind, Kind::Torn512(_));
    let masks: Vec<u8> = pieces
        .iter()
        .map(|piece| match (by_sector, random.next()) {
            (true, bits) => bits as u8 & touched(piece),
            (false, bits) if bits & 1 == 1 => touched(piece),
            (false, _) => 0,
        })
        .collect();
    let all = masks.iter().zip(pieces).all(|(mask, piece)| *mask == touched(piece));
    let none = masks.iter().all(|mask| *mask == 0);
    for (at, (piece, mask)) in pieces.iter().zip(masks).enumerate() {
        // Where chance gave none or all: the first sector, or block, only.
        let mask = match (all || none, by_sector) {
            (false, _) => mask,
            (true, true) if at == 0 => 1 << touched(piece).trailing_zeros(),
            (true, false) if at == 0 => touched(piece),
            (true, _) => 0,
        };
        if mask != 0 {
            kept.push(Kept { write: write as u32, piece: at as u32, sectors: mask });
        }
    }
    debug_assert!(kept.len() > begin, "a torn write keeps something");
}

impl Recording {
    /// The writes of an epoch, in order.
    pub(crate) fn writes(&self, epoch: u32) -> Vec<&[Piece]> {
        let Some(epoch) = self.epochs.get(epoch as usize) else { return Vec::new() };
        let writes = self.events[epoch.begin..epoch.end].iter().filter_map(|event| match event {
            Event::Write(pieces) => Some(pieces.as_slice()),
            _ => None,
        });
        writes.collect()
    }

    /// How many writes an epoch has: all of these may be lost by a cut in it.
    pub fn write_count(&self, epoch: u32) -> u32 {
        self.writes(epoch).len() as u32
    }

    /// Whether a write of the epoch has more than one block, so that it can be torn.
    pub fn can_tear(&self, epoch: u32) -> bool {
        self.writes(epoch).iter().any(|pieces| pieces.len() > 1)
    }

    /// What a state keeps of its epoch's writes.
    pub fn kept(&self, state: State) -> KeptSet {
        keep(state.kind, state.epoch, &self.writes(state.epoch))
    }

    /// The blocks in which a state differs from the disk at the begin of its epoch.
    ///
    /// # Errors
    /// `Io` where parts of blocks have to be put together.
    pub(crate) fn changed_blocks(
        &self,
        image: &[ContentId],
        state: State,
    ) -> Result<HashMap<u32, ContentId>, RecordError> {
        let writes = self.writes(state.epoch);
        let mut changed: HashMap<u32, ContentId> = HashMap::new();
        for kept in keep(state.kind, state.epoch, &writes).kept {
            let piece = &writes[kept.write as usize][kept.piece as usize];
            let old = changed.get(&piece.block).copied().unwrap_or(image[piece.block as usize]);
            // A mask of all that the piece touches is the whole piece, also where it covers a part of the block.
            let mask = if kept.sectors == touched(piece) { 0xff } else { kept.sectors };
            let new = self.patched(old, piece, mask)?;
            changed.insert(piece.block, new);
        }
        Ok(changed)
    }
}

const _: () = assert!(BLOCK_BYTES == 8 * 512, "a mask of sectors has eight bits");

#[cfg(test)]
mod tests {
    use super::*;

    fn writes() -> Vec<Vec<Piece>> {
        let piece = |block| Piece { block, start: 0, length: 4096, content: 1 };
        vec![vec![piece(1)], vec![piece(2), piece(3), piece(4)], vec![piece(5)], vec![piece(6), piece(7)]]
    }

    fn kept(kind: Kind) -> KeptSet {
        let writes = writes();
        let writes: Vec<&[Piece]> = writes.iter().map(Vec::as_slice).collect();
        keep(kind, 9, &writes)
    }

    #[test]
    fn the_name_of_a_state_gives_the_state_again() {
        let kinds = [Kind::None, Kind::All, Kind::Prefix(3), Kind::Subset(u64::MAX), Kind::Torn(0), Kind::Torn512(12)];
        for kind in kinds {
            let state = State { epoch: 7, kind };
            assert_eq!(state.to_string().parse::<State>().unwrap(), state);
        }
        for wrong in ["", "7", "7:", "7:none:1", "x:none", "7:subset", "7:subset:", "7:torn:1:2", "7:half:1"] {
            assert!(wrong.parse::<State>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn none_keeps_nothing_and_all_keeps_every_write() {
        assert_eq!(kept(Kind::None).counts, (0, 0, 4));
        assert_eq!(kept(Kind::All).counts, (4, 0, 0));
        assert_eq!(kept(Kind::Prefix(2)).counts, (2, 0, 2));
        assert_eq!(kept(Kind::Prefix(4)).key(), kept(Kind::All).key());
        assert_eq!(kept(Kind::Prefix(0)).key(), kept(Kind::None).key());
        assert_eq!(kept(Kind::Prefix(4)).word(Kind::Prefix(4)), "all");
        assert_eq!(kept(Kind::Prefix(0)).word(Kind::Prefix(0)), "none");
        assert_eq!(kept(Kind::Prefix(1)).word(Kind::Prefix(1)), "prefix");
    }

    #[test]
    fn a_seed_gives_the_same_subset_each_time_and_seeds_give_many() {
        let keys: std::collections::HashSet<_> = (0..64).map(|seed| kept(Kind::Subset(seed)).key()).collect();
        assert!(keys.len() > 10, "64 seeds gave {} of 16 subsets", keys.len());
        assert_eq!(kept(Kind::Subset(5)), kept(Kind::Subset(5)));
    }

    #[test]
    fn a_torn_state_keeps_some_blocks_of_a_write_and_not_others() {
        for seed in 0..64 {
            let set = kept(Kind::Torn(seed));
            let torn = |write: u32, of: usize| {
                let pieces = set.kept.iter().filter(|kept| kept.write == write).count();
                pieces > 0 && pieces < of
            };
            assert!(torn(1, 3) || torn(3, 2), "seed {seed}: {set:?}");
            assert!(set.kept.iter().all(|kept| kept.sectors == 0xff), "seed {seed}");
            let sectors = kept(Kind::Torn512(seed));
            assert!(sectors.kept.iter().any(|kept| kept.sectors != 0xff), "seed {seed}: {sectors:?}");
        }
    }
}
