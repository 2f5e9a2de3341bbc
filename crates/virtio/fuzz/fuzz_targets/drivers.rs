//! Lets the fuzzer be a driver. The language of the bytes is that of `tests/hostile`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/hostile/mod.rs"]
mod hostile;

fuzz_target!(|program: &[u8]| {
    hostile::Hostile::run(program);
});
