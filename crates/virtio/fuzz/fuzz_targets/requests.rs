//! Hands the fuzzer's bytes to devices as requests, through rings that are in order. The
//! language of the bytes is that of `tests/hostile`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/hostile/mod.rs"]
mod hostile;

fuzz_target!(|program: &[u8]| {
    hostile::Hostile::requests(program);
});
