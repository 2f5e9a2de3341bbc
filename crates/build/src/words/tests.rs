use super::*;

fn of(text: &str) -> Result<String, String> {
    expand(text, '\\', &|name| match name {
        "A" => Some("a b".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    })
}

#[test]
fn splitting_keeps_quotes() {
    assert_eq!(split(r#"a  "b c" d\ e 'f "g'"#), ["a", r#""b c""#, r"d\ e", r#"'f "g'"#]);
}

#[test]
fn variables() {
    for (text, value) in [
        ("$A/${A}x", "a b/a bx"),
        ("$NONE|${NONE:-d}|${NONE-d}", "|d|d"),
        ("${EMPTY:-d}|${EMPTY-d}", "d|"),
        ("${A:+yes}|${NONE:+yes}", "yes|"),
        ("${NONE:-${A}!}", "a b!"),
        (r#""$A" '$A' \$A"#, "a b $A $A"),
        ("100$", "100$"),
    ] {
        assert_eq!(of(text).unwrap(), value, "{text}");
    }
}

#[test]
fn mistakes_are_told() {
    for text in ["${A", "${}", "${A!}", "'open", "\"open", "${NONE:?missing}"] {
        assert!(of(text).is_err(), "{text}");
    }
    let deep = "${N:-".repeat(40) + &"}".repeat(40);
    assert!(of(&deep).is_err());
}
