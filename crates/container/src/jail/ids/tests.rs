use super::{OTHER_COUNT, OTHERS, ROOTS, holds, root_of};

#[test]
fn a_jail_keeps_its_ids_and_they_are_nobody_elses() {
    let (one, other) = (root_of("one"), root_of("other"));
    assert_eq!(one, root_of("one"));
    assert!(holds(one, one) && one != other && !holds(one, other));
    // systemd's range for containers ends below, its foreign ids begin above.
    const { assert!(ROOTS > 1_879_048_191 && OTHERS + OTHER_COUNT <= 2_147_352_576) };
    for ours in [0, 1000, 65_534, 100_000] {
        assert!(!holds(one, ours), "{ours}");
    }
}
