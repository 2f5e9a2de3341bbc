//! Any bytes as a VHDX: headers, log, regions, metadata, block table.

#![no_main]

use std::sync::Arc;

use guise_disk::format::{Bottom, Format, Repair};
use guise_disk::formats::vhdx::Vhdx;
use guise_disk::storage::{MemoryStorage, SharedStorage};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("fuzz", data));
    let Ok(image) = Vhdx::open(storage, true) else { return };
    let _checked = image.check(Repair::Nothing);
    let mut buf = [0; 8192];
    for at in [0, 1 << 16, image.size().saturating_sub(8192)] {
        let len = image.size().saturating_sub(at).min(8192) as usize;
        let _read = image.read(at, &mut buf[..len], &Bottom);
        let _written = image.write(at, &buf[..len], &Bottom);
    }
    let _closed = image.close();
});
