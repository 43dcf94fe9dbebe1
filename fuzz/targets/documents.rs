//! Manifests, indexes, configurations and the documents of archives, as a registry could send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baleen_oci::fuzzing::documents(bytes));
