use super::*;

#[test]
fn components() {
    for (pattern, name, expected) in [
        ("*.txt", "a.txt", true),
        ("*.txt", "a.txt.gz", false),
        ("a?c", "abc", true),
        ("[a-c]x", "bx", true),
        ("[^a-c]x", "bx", false),
        ("\\*", "*", true),
        ("*a*b*", "xxaxxbxx", true),
        ("", "", true),
        ("[", "[", true),
    ] {
        assert_eq!(component(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
    }
    let slow = "*a".repeat(50);
    assert!(!component(slow.as_bytes(), &[b'a'; 49]));
}

#[test]
fn paths() {
    let path: Vec<&[u8]> = vec![b"a", b"b", b"c.rs"];
    for (pattern, expected) in [
        (vec!["**"], true),
        (vec!["a", "**", "*.rs"], true),
        (vec!["**", "b", "c.rs"], true),
        (vec!["*", "*.rs"], false),
        (vec!["a", "b", "c.rs", "**"], true),
    ] {
        assert_eq!(matches(&pattern, &path), expected, "{pattern:?}");
    }
}
