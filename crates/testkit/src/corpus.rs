//! What fuzzers found and what they started from, for the tests that run it again.

use std::fs;
use std::path::Path;

/// Runs each file of `fuzz/corpus/NAME` in a crate's folder. The file is named before it
/// runs, so that the last name is the one that did harm.
///
/// # Panics
///
/// If there is no such corpus, or nothing in it.
pub fn run_all(crate_folder: &str, name: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(crate_folder).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in fs::read_dir(corpus).expect("the corpus is there") {
        let path = entry.expect("the corpus can be listed").path();
        println!("{}", path.display());
        run(&fs::read(path).expect("the corpus can be read"));
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus {name} is empty");
}
