use super::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn short_names_have_no_host() {
    assert_eq!(name("debian").to_string(), "debian:latest");
    assert_eq!(name("debian"), name("debian:latest"));
    assert_eq!(name("debian:12").tag(), Some("12"));
    assert_eq!(name("team/app:1").host(), None);
    assert_eq!(name("team/app:1").path(), "team/app");
}

#[test]
fn hosts_are_told_from_paths() {
    for (text, host, path, tag) in [
        ("localhost/app", "localhost", "app", "latest"),
        ("localhost:5000/a/b:1", "localhost:5000", "a/b", "1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", "latest"),
        ("quay.io/org/app:v1.0_x-y", "quay.io", "org/app", "v1.0_x-y"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
    ] {
        let name = name(text);
        assert_eq!(name.host(), Some(host), "{text}");
        assert_eq!(name.path(), path, "{text}");
        assert_eq!(name.tag(), Some(tag), "{text}");
    }
}

#[test]
fn digests_replace_the_default_tag() {
    let digest = Digest::of(b"x");
    let by_digest = name(&format!("quay.io/a@{digest}"));
    assert_eq!(by_digest.tag(), None);
    assert_eq!(by_digest.reference(), digest.to_string());
    let both = name(&format!("quay.io/a:1@{digest}"));
    assert_eq!(both.tag(), Some("1"));
    assert_eq!(both.reference(), digest.to_string());
    assert_eq!(name(&both.to_string()), both);
}

#[test]
fn names_that_would_confuse_urls_or_paths_are_refused() {
    for text in [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "A",
        "a b",
        "a:",
        "a:-x",
        "a:b/c",
        "a@",
        "a@sha256:1",
        "a..b",
        "-a",
        "a-",
        "ho_st.x/a",
        "host:99999/a",
        "host:x/a",
        "a\n",
        "a?b",
        "[zz]:1/a",
        "[::1]x/a",
    ] {
        assert!(text.parse::<Name>().is_err(), "{text:?}");
    }
    assert!("a".repeat(256).parse::<Name>().is_err());
}
