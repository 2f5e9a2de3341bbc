use super::*;

#[test]
fn paths_stay_below_the_hierarchy() {
    let path = |p| relative_path(Some(p), "id").map(|p| p.display().to_string());
    assert_eq!(path("/a/b").unwrap(), "a/b");
    assert_eq!(path("machine.slice:libpod:x").unwrap(), "machine.slice/libpod-x.scope");
    assert_eq!(relative_path(None, "id").unwrap(), Path::new("guise-id"));
    for bad in ["/a/../../b", "/", "/./", "a\0b"] {
        assert!(path(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn shares_become_weights_with_the_defaults_and_ends_in_place() {
    assert_eq!(v2::weight_of_shares(1024), 100);
    assert_eq!(v2::weight_of_shares(2), 1);
    assert_eq!(v2::weight_of_shares(262_144), 10_000);
    assert!((2..=262_144).is_sorted_by_key(v2::weight_of_shares));
}

#[test]
fn every_weight_has_shares_that_become_it() {
    for weight in 1..=10_000 {
        assert_eq!(v2::weight_of_shares(shares_of_weight(weight)), weight);
    }
    assert_eq!((shares_of_weight(100), shares_of_weight(1)), (1024, 2));
}
