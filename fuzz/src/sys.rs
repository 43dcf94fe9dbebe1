//! The allocator that counts what a thread holds.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::memory;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to `System` unchanged and its result is returned unchanged, so `System`'s keeping of the
// contract is ours. The counters are thread-locals without a destructor that are initialised by a constant: touching
// them neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        memory::grew(layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        memory::grew(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        memory::shrank(layout.size());
        // SAFETY: `pointer` came from a method of this allocator with this `layout`, hence from `System` with the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        memory::grew(new_size);
        memory::shrank(layout.size());
        // SAFETY: as in `dealloc`; that `new_size` is not zero and does not overflow is the caller's promise.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
