//! Every Containerfile that fuzzing starts from or has found: read without a
//! panic, and judged as it should be.

use std::path::Path;

#[test]
fn the_corpus_is_judged() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/containerfile");
    let mut seen = 0;
    for entry in std::fs::read_dir(&directory).expect("the corpus is there") {
        let path = entry.expect("the corpus can be listed").path();
        let text = std::fs::read(&path).expect("the corpus can be read");
        let verdict = guise_build::probe_containerfile(&text);
        let good = matches!(path.file_stem().and_then(|s| s.to_str()), Some("full" | "escape"));
        assert_eq!(verdict.is_ok(), good, "{}: {verdict:?}", path.display());
        seen += 1;
    }
    assert!(seen >= 5);
}
