//! Image configurations.
#![no_main]

use guise_image::spec::{Config, chain_ids};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = Config::parse(bytes) {
        let ids = &config.rootfs.diff_ids;
        assert_eq!(chain_ids(ids).len(), ids.len());
    }
});
