//! References, digests and platforms, as a client could send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baleen_oci::fuzzing::names(bytes));
