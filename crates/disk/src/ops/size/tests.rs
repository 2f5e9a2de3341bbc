use super::parse_size;

#[test]
fn sizes_in_all_spellings() {
    for (text, size) in [
        ("0", 0),
        ("512", 512),
        ("64k", 65_536),
        ("64K", 65_536),
        ("1M", 1 << 20),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1MiB", 1 << 20),
        ("0x200", 512),
        ("100b", 100),
    ] {
        assert_eq!(parse_size(text).ok(), Some(size), "{text}");
    }
}

#[test]
fn what_is_no_size() {
    for text in ["", "x", "-1", "1Q", "9E", "99999999999999999999", "1k1", "nan", "1e400G"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}
