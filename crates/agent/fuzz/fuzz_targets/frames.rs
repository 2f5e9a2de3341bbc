//! A stream of bytes in pieces of any size, from the guest and from the host.

#![no_main]

use guise_agent::protocol::{Decoder, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((step, bytes)) = input.split_first() else { return };
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(usize::from(*step).max(1)) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            if frame.kind == Kind::Control {
                let _ = (frame.message_to_guest(), frame.message_to_host());
            }
        }
    }
});
