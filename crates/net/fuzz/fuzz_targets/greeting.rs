//! Lets the fuzzer be a process at a switch's socket.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/hostile/greeting.rs"]
mod hostile;

fuzz_target!(|program: &[u8]| {
    hostile::run(program);
});
