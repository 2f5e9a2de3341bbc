use super::*;

#[test]
fn later_rules_win() {
    let ignore = Ignore::parse("# comment\n*.log\n!keep.log\n/target\nsub/**/x\n\n!target/doc\n");
    for (path, excluded) in [
        ("a.log", true),
        ("keep.log", false),
        ("sub/a.log", false),
        ("target", true),
        ("target/debug/x", true),
        ("target/doc", false),
        ("target/doc/index", false),
        ("sub/a/b/x", true),
        ("sub/x", true),
        ("src/main.rs", false),
    ] {
        assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
    }
    assert!(ignore.has_exceptions());
    assert!(!Ignore::parse("*").has_exceptions());
}
