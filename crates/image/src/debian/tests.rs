use super::*;

fn wanted(name: &str) -> Option<Wanted> {
    Wanted::of(&name.parse().unwrap()).unwrap()
}

#[test]
fn names_of_debian() {
    let suite = |text| Suite::find(text).unwrap();
    for (name, code_name, slim) in [
        ("debian", "trixie", false),
        ("debian:12", "bookworm", false),
        ("debian:bookworm", "bookworm", false),
        ("debian:12-slim", "bookworm", true),
        ("debian:slim", "trixie", true),
        ("bookworm", "bookworm", false),
        ("trixie", "trixie", false),
        ("debian:sid", "sid", false),
    ] {
        let expected = Wanted::RootFs { suite: suite(code_name), slim };
        assert_eq!(wanted(name), Some(expected), "{name}");
    }
    for (name, code_name, flavour) in [
        ("kernel:debian-12", "bookworm", Flavour::Cloud),
        ("kernel:debian-12-generic", "bookworm", Flavour::Generic),
        ("kernel:debian-trixie-cloud", "trixie", Flavour::Cloud),
        ("kernel:debian-13", "trixie", Flavour::Cloud),
    ] {
        let expected = Wanted::Kernel { suite: suite(code_name), flavour };
        assert_eq!(wanted(name), Some(expected), "{name}");
    }
}

#[test]
fn other_names_are_not_debians() {
    for name in
        ["alpine", "docker.io/library/debian:12", "localhost/debian", "team/debian:12", "trixie:1"]
    {
        assert_eq!(wanted(name), None, "{name}");
    }
    assert!(Wanted::of(&"debian:99".parse().unwrap()).is_err());
    assert!(Wanted::of(&"kernel:debian-99".parse().unwrap()).is_err());
}
