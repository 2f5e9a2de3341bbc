use std::path::Path;

use super::*;

#[test]
fn names_tell_daemons_instances_and_lives_apart() {
    let name_of = |state: &str, id, life| name(Path::new(state), id, life);
    let first = name_of("/var/lib/guise/instances/0123456789ab", "0123456789ab", 3);
    assert!(first.starts_with("guise-") && first.ends_with("-0123456789ab-3"), "{first}");
    // Another instance of the same daemon begins alike, one of another daemon does not.
    let beginning = beginning(Path::new("/var/lib/guise/instances/x"));
    assert!(first.starts_with(&beginning));
    assert!(
        !name_of("/tmp/other/instances/0123456789ab", "0123456789ab", 3).starts_with(&beginning)
    );
    // A container's cgroup, which others take away, has another name.
    assert_ne!(first, "guise-0123456789ab");
}

#[test]
fn a_worker_gets_more_than_its_guest() {
    let bounds = Bounds { memory: Some(512 << 20), cpus: Some(1.5) };
    let asked = job::Resources { cpuset: Some("0".to_owned()), ..Default::default() };
    let limits = wanted(&asked, bounds).unwrap();
    assert_eq!(limits.memory.limit, Some((512 + 128 + 256) << 20));
    assert_eq!((limits.cpu.quota, limits.cpu.period), (Some(150_000), Some(PERIOD)));
    assert_eq!((limits.cpu.shares, limits.cpu.cpus.as_deref()), (None, Some("0")));
    // No limit stays none.
    let unbound = wanted(&job::Resources::default(), Bounds::default()).unwrap();
    assert_eq!((unbound.memory.limit, unbound.cpu.quota), (None, None));
    let most = Bounds { memory: Some(u64::MAX), cpus: None };
    assert_eq!(wanted(&asked, most).unwrap().memory.limit, Some(i64::MAX));
}
