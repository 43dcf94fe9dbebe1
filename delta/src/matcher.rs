//! Matches of a payload with its source: bsdiff's scan over a suffix array, with a threshold of our own.
//!
//! The scan looks, at each place of the new bytes, for the longest string of the old ones; it leaves the match that it is in only for one
//! that is `threshold` bytes better. Matches are then extended both ways as long as half of the bytes agree.

use crate::patch::Match;

/// Longest string that is compared in the suffix array; longer ones are followed byte by byte.
const COMPARED_BYTES_MAX: usize = 32 << 10;

/// The old bytes, sorted.
pub(crate) struct Index<'a> {
    old: &'a [u8],
    suffixes: Vec<i32>,
    /// One bit for each hash of [`SHORTEST_BYTES`] bytes: what is not among them has no match that counts.
    present: Vec<u64>,
}

/// No shorter match is ever worth a jump.
const SHORTEST_BYTES: usize = 8;

impl<'a> Index<'a> {
    /// Sorts `old`: five times its length in memory, less than 2 GiB long.
    pub(crate) fn new(old: &'a [u8]) -> Self {
        let mut suffixes = vec![0; old.len()];
        divsufsort::sort_in_place(old, &mut suffixes);
        // Eight bits a byte: one in eight of the strings that are not there seems to be.
        let mut present = vec![0; (old.len() / 8).next_power_of_two().max(1)];
        for window in old.windows(SHORTEST_BYTES) {
            let hash = hash(window, present.len());
            present[hash / 64] |= 1 << (hash % 64);
        }
        Self { old, suffixes, present }
    }

    fn may_have(&self, new: &[u8]) -> bool {
        let Some(window) = new.get(..SHORTEST_BYTES) else { return true };
        let hash = hash(window, self.present.len());
        self.present[hash / 64] >> (hash % 64) & 1 != 0
    }

    /// The longest string of `old` that `new` begins with: where, and how long.
    fn longest(&self, new: &[u8]) -> (usize, usize) {
        let new = &new[..new.len().min(COMPARED_BYTES_MAX)];
        if self.suffixes.is_empty() || new.is_empty() || !self.may_have(new) {
            return (0, 0);
        }
        // All before `low` sort before `new`, all from `high` on after it; the common lengths at both ends bound those between.
        let (mut low, mut high) = (0, self.suffixes.len());
        let (mut common_low, mut common_high) = (0, 0);
        let mut best = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.suffixes[middle] as usize;
            let skip = common_low.min(common_high);
            let suffix = &self.old[at..];
            let length = skip + common(&suffix[skip.min(suffix.len())..], &new[skip..]);
            if length > best.1 {
                best = (at, length);
            }
            if length == new.len() {
                return best;
            }
            if suffix.get(length).is_none_or(|byte| *byte < new[length]) {
                (low, common_low) = (middle + 1, length);
            } else {
                (high, common_high) = (middle, length);
            }
        }
        best
    }

    /// The matches of `new`, in order.
    pub(crate) fn matches(&self, new: &[u8], threshold: usize) -> Vec<Match> {
        let old = self.old;
        let mut found = Vec::new();
        let (mut scan, mut length, mut position) = (0usize, 0usize, 0usize);
        let (mut last_scan, mut last_position, mut last_offset) = (0usize, 0usize, 0isize);
        let agrees = |at: usize, offset: isize| {
            at.checked_add_signed(offset).and_then(|at| old.get(at)).is_some_and(|byte| *byte == new[at])
        };
        while scan < new.len() {
            let mut old_score = 0usize;
            scan += length;
            let mut scored = scan;
            length = 0;
            while scan < new.len() {
                (position, length) = self.longest(&new[scan..]);
                while scored < scan + length {
                    old_score += usize::from(agrees(scored, last_offset));
                    scored += 1;
                }
                if (length == old_score && length != 0) || length > old_score + threshold {
                    break;
                }
                old_score -= usize::from(scored > scan && agrees(scan, last_offset));
                scan += 1;
                scored = scored.max(scan);
            }
            if length != old_score || scan >= new.len() {
                scan = scan.min(new.len());
                let mut forward = extend_forward(&old[last_position.min(old.len())..], &new[last_scan..scan]);
                let mut backward = 0;
                if scan < new.len() {
                    backward = extend_backward(&old[..position], &new[last_scan..scan]);
                }
                if last_scan + forward > scan - backward {
                    let overlap = last_scan + forward - (scan - backward);
                    let (mut score, mut best, mut keep) = (0isize, 0isize, 0usize);
                    for step in 0..overlap {
                        let at_forward = forward - overlap + step;
                        score += isize::from(new[last_scan + at_forward] == old[last_position + at_forward]);
                        score -= isize::from(new[scan - backward + step] == old[position - backward + step]);
                        if score > best {
                            (best, keep) = (score, step + 1);
                        }
                    }
                    forward = forward - overlap + keep;
                    backward -= keep;
                }
                if forward > 0 {
                    found.push(Match { new: last_scan as u64, old: last_position as u64, length: forward as u64 });
                }
                last_scan = scan - backward;
                last_position = position - backward.min(position);
                last_offset = position as isize - scan as isize;
            }
        }
        found
    }
}

/// The number of a bit among so many words.
fn hash(window: &[u8], words: usize) -> usize {
    let value = window.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24) as usize % (words * 64)
}

fn common(left: &[u8], right: &[u8]) -> usize {
    let length = left.len().min(right.len());
    let (mut at, words) = (0, length / 8 * 8);
    while at < words {
        if left[at..at + 8] != right[at..at + 8] {
            break;
        }
        at += 8;
    }
    at + left[at..length].iter().zip(&right[at..length]).take_while(|(left, right)| left == right).count()
}

/// How far the match goes on forwards, while half of the bytes agree.
fn extend_forward(old: &[u8], new: &[u8]) -> usize {
    let (mut score, mut best, mut length) = (0isize, 0isize, 0usize);
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        score += if old == new { 1 } else { -1 };
        if score > best {
            (best, length) = (score, at + 1);
        }
    }
    length
}

fn extend_backward(old: &[u8], new: &[u8]) -> usize {
    let (mut score, mut best, mut length) = (0isize, 0isize, 0usize);
    for (at, (old, new)) in old.iter().rev().zip(new.iter().rev()).enumerate() {
        score += if old == new { 1 } else { -1 };
        if score > best {
            (best, length) = (score, at + 1);
        }
    }
    length
}
