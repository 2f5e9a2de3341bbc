//! Any bytes as a disk: MBR, logical partitions, GPT in both sector sizes.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use guise_disk::formats::raw::Raw;
use guise_disk::graph::Image;
use guise_disk::partitions::partitions;
use guise_disk::storage::{MemoryStorage, SharedStorage};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("fuzz", data));
    let Ok(format) = Raw::open(storage) else { return };
    let disk = Image::new(Box::new(format), None, Path::new("fuzz"), false);
    let Ok(Some(table)) = partitions(&disk) else { return };
    for partition in &table.partitions {
        assert!(partition.start + partition.length <= data.len() as u64);
    }
});
