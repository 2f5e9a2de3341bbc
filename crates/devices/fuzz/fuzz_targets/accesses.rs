//! Drives every device, wired as on a PC, with what the fuzzer thinks of. The
//! language of the bytes is that of `tests/board`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/board/mod.rs"]
mod board;

fuzz_target!(|program: &[u8]| {
    board::Board::new().run(program);
});
