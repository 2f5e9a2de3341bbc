//! Lets the fuzzer be a guest. The language of the bytes is that of
//! `tests/hostile/frames.rs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/hostile/frames.rs"]
mod hostile;

fuzz_target!(|program: &[u8]| {
    hostile::run(program);
});
