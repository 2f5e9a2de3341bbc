use super::*;

fn of(pairs: &[(&str, &str)]) -> Result<Option<Landlock>> {
    let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Landlock::of(&annotations)
}

#[test]
fn annotations_are_read() {
    assert_eq!(of(&[("com.example", "x")]).unwrap(), None);
    let rules = of(&[
        ("org.guise.landlock.read", "/usr:/etc/hosts"),
        ("org.guise.landlock.bind", "80, 443"),
        ("org.guise.landlock.connect", ""),
    ])
    .unwrap()
    .unwrap();
    assert_eq!(rules.read.unwrap(), ["/usr", "/etc/hosts"]);
    assert_eq!(rules.write, None);
    assert_eq!(rules.bind.unwrap(), [80, 443]);
    assert!(rules.connect.unwrap().is_empty());
}

#[test]
fn what_is_not_understood_is_refused() {
    for (key, value) in [
        ("org.guise.landlock.reed", "/usr"),
        ("org.guise.landlock.read", "usr"),
        ("org.guise.landlock.bind", "http"),
        ("org.guise.landlock.connect", "65536"),
    ] {
        let error = of(&[(key, value)]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn rights_grow_with_versions() {
    assert_eq!(known(1), 0x1fff);
    assert_eq!(known(5), 0xffff);
    assert_eq!(known(99), 0xffff);
    assert_eq!(READ & ON_FILES, EXECUTE | READ_FILE);
}
