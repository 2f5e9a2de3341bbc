//! Any bytes as the description of a Parallels disk.

#![no_main]

use guise_disk::formats::parallels::bundle::Bundle;
use guise_disk::storage::MemoryStorage;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _parsed = Bundle::read(&MemoryStorage::from_bytes("fuzz", data));
});
