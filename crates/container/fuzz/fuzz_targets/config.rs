//! Configurations as anybody may write them: read, checked, and everything of
//! them compiled that is compiled before a container exists.
#![no_main]

use guise_container::probe_config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = probe_config(text);
});
