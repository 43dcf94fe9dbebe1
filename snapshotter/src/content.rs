//! BLAKE3 of a payload, with a state that can be stored: `blake3::Hasher` itself cannot be, a stack of chaining values can.
//!
//! C1  The input is cut into groups of [`GROUP_BYTES`]; a full group is closed only when more input follows, so that
//!     the last one can become the root.
//! C2  A state is taken between groups: on resume less than a group is read again.

use baleen_store::recipe::Content;
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a group: a power of two of BLAKE3's chunks, large enough for its widest vectors.
pub const GROUP_BYTES: u64 = 64 << 10;

/// The state between two groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentState {
    /// Groups closed.
    pub groups: u64,
    /// A subtree for each bit that is set in `groups`, the largest first.
    pub stack: Vec<[u8; 32]>,
}

/// A hash being computed.
#[derive(Debug, Default)]
pub struct ContentHasher {
    state: ContentState,
    group: Hasher,
    group_bytes: u64,
}

impl ContentHasher {
    /// A hasher that goes on after the groups of `state`; the bytes after them come next.
    pub fn resume(state: ContentState) -> Self {
        let mut group = Hasher::new();
        group.set_input_offset(state.groups * GROUP_BYTES);
        Self { state, group, group_bytes: 0 }
    }

    /// Groups closed so far; the bytes after them are not in it.
    pub fn state(&self) -> &ContentState {
        &self.state
    }

    /// Bytes taken so far, those before the state it went on from included.
    pub fn taken_bytes(&self) -> u64 {
        self.state.groups * GROUP_BYTES + self.group_bytes
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.group_bytes == GROUP_BYTES {
                self.close_group();
            }
            let room = (GROUP_BYTES - self.group_bytes) as usize;
            let (part, rest) = bytes.split_at(bytes.len().min(room));
            self.group.update(part);
            self.group_bytes += part.len() as u64;
            bytes = rest;
        }
    }

    /// Size and hash of everything taken.
    pub fn finish(self) -> Content {
        let size_bytes = self.taken_bytes();
        let mut stack = self.state.stack;
        let Some(last) = stack.pop() else {
            return Content { size_bytes, blake3: *self.group.finalize().as_bytes() };
        };
        let mut right = self.group.finalize_non_root();
        let mut left = last;
        while let Some(next) = stack.pop() {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
            left = next;
        }
        Content { size_bytes, blake3: *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes() }
    }

    fn close_group(&mut self) {
        let mut value: ChainingValue = self.group.finalize_non_root();
        self.state.groups += 1;
        // As in a binary counter: each even step merges two subtrees of one size.
        let mut groups = self.state.groups;
        while groups.is_multiple_of(2) {
            let Some(left) = self.state.stack.pop() else { break };
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
            groups /= 2;
        }
        self.state.stack.push(value);
        // Not `reset`, which keeps the old offset.
        self.group = Hasher::new();
        self.group.set_input_offset(self.state.groups * GROUP_BYTES);
        self.group_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_blake3_at_every_edge_and_after_every_resume() {
        let group = GROUP_BYTES as usize;
        let bytes: Vec<u8> = (0..9 * group + 77).map(|at| (at * 31 + at / 251) as u8).collect();
        for length in [
            0,
            1,
            1024,
            1025,
            group - 1,
            group,
            group + 1,
            2 * group,
            3 * group,
            4 * group,
            8 * group,
            9 * group,
            bytes.len(),
        ] {
            let input = &bytes[..length];
            let expected = Content { size_bytes: length as u64, blake3: *blake3::hash(input).as_bytes() };
            for part in [1000, group, 300_000] {
                let mut hasher = ContentHasher::default();
                for piece in input.chunks(part) {
                    hasher.update(piece);
                    let mut resumed = ContentHasher::resume(hasher.state().clone());
                    resumed.update(&input[(hasher.state().groups * GROUP_BYTES) as usize..]);
                    assert_eq!(resumed.finish(), expected, "{length} in parts of {part}");
                }
                assert_eq!(hasher.finish(), expected, "{length} in parts of {part}");
            }
        }
    }
}
