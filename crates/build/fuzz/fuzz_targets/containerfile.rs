//! Containerfiles and ignore files as anybody may write them.
#![no_main]

use guise_build::probe_containerfile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = probe_containerfile(text);
});
