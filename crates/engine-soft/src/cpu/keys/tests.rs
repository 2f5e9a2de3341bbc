use super::changed;

#[test]
fn only_keys_whose_bits_differ_have_changed() {
    assert_eq!(changed(0x5555_5554, 0x5555_5554), 0);
    assert_eq!(changed(0, 0x5555_5554), 0xfffe);
    assert_eq!(changed(0b10 << 6, 0b01 << 6), 1 << 3);
}
