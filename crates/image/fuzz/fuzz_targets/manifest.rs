//! Manifests and indexes, under every media type that could be claimed; and
//! image names, which travel with them.
#![no_main]

use guise_image::Name;
use guise_image::spec::{Document, media};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for media_type in ["", media::OCI_MANIFEST, media::OCI_INDEX, media::DOCKER_LIST] {
        let _ = Document::parse(bytes, media_type);
    }
    if let Some(name) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Name>().ok()) {
        assert_eq!(name.to_string().parse::<Name>().expect("its own text"), name);
    }
});
