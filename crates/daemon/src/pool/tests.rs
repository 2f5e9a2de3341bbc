use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn space(total: u64, free: u64) -> Space {
    Space { total, used: total - free, free, inodes: None }
}

#[test]
fn a_part_is_kept_and_no_more_than_that_is_refused() {
    let rules = Rules::default();
    // A twentieth, and of a large one no more than 2 GiB.
    assert_eq!(rules.kept(&space(20 * GIB, GIB)), GIB);
    assert_eq!(rules.kept(&space(1000 * GIB, GIB)), 2 * GIB);
    let admit = |rules: Rules, space: &Space| rules.admit("x is not made", Path::new("/p"), space);
    assert!(admit(rules, &space(20 * GIB, GIB)).is_ok());
    let refused = admit(rules, &space(20 * GIB, GIB - 1)).unwrap_err();
    assert_eq!((refused.code, refused.exit_code), (Code::Exhausted, Some(125)));
    let told = refused.to_string();
    assert!(
        told.starts_with("x is not made: /p has 1.0 GiB left of 20.0 GiB, and 1.0 GiB are kept; "),
        "{told}"
    );
    assert!(told.contains("guise image gc") && told.contains("GUISE_KEEP_DISK="), "{told}");
    assert!(admit(Rules { kept: Some(0) }, &space(20 * GIB, 0)).is_ok());
    assert!(admit(Rules { kept: Some(30 * GIB) }, &space(20 * GIB, 20 * GIB)).is_err());
}

#[test]
fn files_run_out_too() {
    let mut space = space(20 * GIB, 19 * GIB);
    space.inodes = Some((100_000, 1000));
    let rules = Rules::default();
    assert!(rules.admit("x", Path::new("/"), &space).is_ok());
    assert_eq!(rules.level(&space, PoolLevel::HasRoom), PoolLevel::NearlyFull);
    space.inodes = Some((100_000, 999));
    let told = rules.admit("x", Path::new("/"), &space).unwrap_err().message;
    assert!(told.contains("999 files of 100000"), "{told}");
    assert_eq!(rules.level(&space, PoolLevel::HasRoom), PoolLevel::Full);
    assert!(Rules { kept: Some(0) }.admit("x", Path::new("/"), &space).is_ok());
}

#[test]
fn levels_rise_at_once_and_fall_a_little_later() {
    let rules = Rules::default();
    let mut level = PoolLevel::HasRoom;
    let mut steps = Vec::new();
    for used in [79, 80, 79, 78, 77, 90, 89, 88, 87, 96, 95, 90, 50] {
        level = rules.level(&space(100 * MIB, (100 - used) * MIB), level);
        steps.push(level);
    }
    use PoolLevel::{Filling, Full, HasRoom, NearlyFull};
    assert_eq!(
        steps,
        [
            HasRoom, Filling, Filling, Filling, HasRoom, NearlyFull, NearlyFull, NearlyFull,
            Filling, Full, NearlyFull, NearlyFull, HasRoom
        ]
    );
}

#[test]
fn what_root_may_write_besides_is_not_counted() {
    let space = Space { total: 100, used: 40, free: 10, inodes: None };
    assert_eq!(space.used_percent(), 80);
    // Sizes that no disk has do no harm.
    let huge = Space { total: u64::MAX, used: u64::MAX, free: u64::MAX, inodes: Some((0, 9)) };
    assert_eq!(huge.used_percent(), 100);
    assert_eq!(Space::default().used_percent(), 0);
}

#[test]
fn a_folder_that_is_not_there_yet_is_where_it_will_be() {
    let scratch = tempfile::tempdir().unwrap();
    let there = Space::of(scratch.path()).unwrap();
    assert_eq!(Space::of(&scratch.path().join("not/yet")).unwrap().total, there.total);
}
