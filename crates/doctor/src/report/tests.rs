use super::*;

fn report() -> Report {
    let findings = vec![
        Finding::found("one", "it is there", "Guise uses it"),
        Finding::missing(
            "two",
            "there is no such file as /dev/a/rather/long/name",
            "Guise does without, more slowly than it would with it",
            "load the module that makes it, or ask whoever runs the machine",
        ),
    ];
    Report { groups: vec![Group { name: "Things", findings }] }
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for width in [60, 80, 100] {
        let text = report().table(width, false);
        assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
    }
}

#[test]
fn a_missing_thing_says_what_to_change() {
    let text = report().table(80, false);
    assert!(text.contains("  - two"), "{text}");
    assert!(text.contains("it: load the module"), "{text}");
    assert!(text.ends_with("1 found, 0 limited, 1 missing.\n"), "{text}");
}

#[test]
fn words_are_kept_whole() {
    assert_eq!(wrap("a bb ccc dddddddd e", 5), ["a bb", "ccc", "dddddddd", "e"]);
}
