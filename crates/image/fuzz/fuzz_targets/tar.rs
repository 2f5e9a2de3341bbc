//! Archives: whatever is in them, reading ends with entries or an error, and
//! what was read can be written and read again.
#![no_main]

use std::io::Read;

use guise_image::tar::{Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let mut writer = Writer::new(Vec::new());
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut data = Vec::new();
        if reader.read_to_end(&mut data).is_err() {
            break;
        }
        assert!(data.len() <= bytes.len());
        if writer.append(&entry, &data[..]).is_err() {
            break;
        }
        entries.push((entry, data));
    }
    let Ok(again) = writer.finish() else { return };
    let mut reader = Reader::new(&again[..]);
    for (entry, data) in entries {
        let back = reader.next_entry().expect("readable").expect("as many");
        assert_eq!(back.kind, entry.kind);
        assert_eq!(back.size, entry.size);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("readable");
        assert_eq!(read, data);
    }
});
