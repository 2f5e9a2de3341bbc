//! Any bytes from an NBD client.

#![no_main]

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use guise_disk::device::BlockDevice;
use guise_disk::formats::raw::Raw;
use guise_disk::graph::Image;
use guise_disk::nbd::{Export, talk};
use guise_disk::storage::{MemoryStorage, SharedStorage};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("fuzz", &[7; 70_000]));
    let Ok(format) = Raw::open(storage) else { return };
    let image = Image::new(Box::new(format), None, Path::new("fuzz"), true);
    let export = Export {
        name: "disk".to_owned(),
        description: String::new(),
        device: BlockDevice::over(Arc::new(image)),
        readonly: false,
        bitmaps: Vec::new(),
    };
    let _ended = talk(Cursor::new(data.to_vec()), std::io::sink(), &[export]);
});
