use super::*;

#[test]
fn control_a_x_leaves_even_when_the_keys_come_apart() {
    let mut escape = Escape::default();
    assert_eq!(escape.filter(b"ls\x01"), (b"ls".to_vec(), false));
    assert_eq!(escape.filter(b"x"), (vec![], true));
}

#[test]
fn other_keys_after_control_a_reach_the_guest() {
    let mut escape = Escape::default();
    assert_eq!(escape.filter(b"\x01a\x01\x01b"), (b"\x01a\x01b".to_vec(), false));
}
