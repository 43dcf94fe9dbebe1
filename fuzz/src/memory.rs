//! How much memory a parser asks for: what it asks for counts, used or not, so that a length which it believes is found.
//!
//! Counted is what the calling thread takes from Rust's allocator; what C libraries take for themselves is not.

use std::cell::Cell;

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

/// The most that `run` held at one time beyond what this thread held before, in bytes.
pub fn peak_bytes_of(run: impl FnOnce()) -> usize {
    let before = HELD_BYTES.get();
    PEAK_BYTES.set(before);
    run();
    usize::try_from(PEAK_BYTES.get() - before).unwrap_or(0)
}

pub(crate) fn grew(bytes: usize) {
    let held = HELD_BYTES.get().wrapping_add_unsigned(bytes);
    HELD_BYTES.set(held);
    PEAK_BYTES.set(PEAK_BYTES.get().max(held));
}

pub(crate) fn shrank(bytes: usize) {
    HELD_BYTES.set(HELD_BYTES.get().wrapping_sub_unsigned(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_asked_for_and_given_back_counts_and_memory_held_before_does_not() {
        let held = vec![0u8; 1 << 20];
        assert!(peak_bytes_of(|| drop(Vec::<u8>::with_capacity(3 << 20))) >= 3 << 20);
        assert!(peak_bytes_of(|| assert_eq!(held[7], 0)) < 1 << 16);
    }
}
