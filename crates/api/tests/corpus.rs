//! Every input that fuzzing starts from or has found: judged without a panic, and what is
//! a frame comes back as it was.

use std::path::Path;

use guise_api::session::Frame;

#[test]
fn the_corpus_of_frames_is_judged() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/frame");
    let mut good = 0;
    let mut bad = 0;
    for entry in std::fs::read_dir(&directory).expect("the corpus is there") {
        let bytes = std::fs::read(entry.expect("it can be listed").path()).expect("it can be read");
        match Frame::decode(&bytes) {
            Ok(frame) => {
                assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
                good += 1;
            }
            Err(_) => bad += 1,
        }
        let mut stream = bytes.as_slice();
        while let Ok(Some(_)) = Frame::read(&mut stream) {}
    }
    assert!(good >= 4 && bad >= 3, "{good} good, {bad} bad");
}
