use super::*;

#[test]
fn sizes_have_units() {
    assert_eq!(human_size(999), "999 B");
    assert_eq!(human_size(1536 << 20), "1.5 GiB");
    assert_eq!(human_size(u64::MAX), "16777216.0 TiB");
}
