//! Drives the IOMMU with what the fuzzer thinks of: tables, queues of commands,
//! registers, requests. The language of the bytes is that of `tests/unit`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/unit/mod.rs"]
mod unit;

fuzz_target!(|program: &[u8]| {
    unit::Unit::new().run(program);
});
