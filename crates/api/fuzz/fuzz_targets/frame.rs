//! Frames of sessions as a client or a worker may send them.
#![no_main]

use guise_api::session::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(Frame::decode(&frame.encode()).as_ref(), Ok(&frame));
    }
    let mut stream = bytes;
    while let Ok(Some(_)) = Frame::read(&mut stream) {}
});
