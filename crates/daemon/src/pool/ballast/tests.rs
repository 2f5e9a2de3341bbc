use super::*;

#[test]
fn it_takes_space_once_and_gives_it_once() {
    let state = tempfile::tempdir().unwrap();
    let (ballast, space) = (Ballast::new(state.path()), Space::of(state.path()).unwrap());
    assert!(!ballast.throw_overboard());
    ballast.keep(&Space { free: 4 << 20, ..space });
    assert!(!ballast.throw_overboard(), "with little room there is none");
    ballast.keep(&space);
    ballast.keep(&space);
    let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&ballast.0).unwrap()) * 512;
    assert!(taken >= SIZE, "{taken}");
    assert!(ballast.throw_overboard() && !ballast.throw_overboard());
}
