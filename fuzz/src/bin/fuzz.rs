//! libFuzzer around one target, which `BALEEN_FUZZ_TARGET` names. Built and run by `make fuzz` (scripts/fuzz).

#![no_main]

use std::sync::OnceLock;

use baleen_fuzz::Target;

static TARGET: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("BALEEN_FUZZ_TARGET").expect("BALEEN_FUZZ_TARGET names a target");
        TARGET.set(Target::named(&name).expect("a target of that name")).expect("called once");
    },
    |bytes: &[u8]| TARGET.get().expect("set at the start").feed(bytes)
);
