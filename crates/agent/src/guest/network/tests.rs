use super::*;

#[test]
fn requests_are_laid_out_as_the_kernel_reads_them() {
    let bytes = new_address(2, "10.0.2.15".parse().unwrap(), 24).finish(9);
    assert_eq!(bytes.len(), 16 + 8 + 8 + 8);
    assert_eq!(bytes[0..4], 40u32.to_ne_bytes());
    assert_eq!(bytes[8..12], 9u32.to_ne_bytes());
    assert_eq!(bytes[16..20], [INET, 24, NO_DUPLICATE_DETECTION, 0]);
    assert_eq!(bytes[24..32], [8, 0, 2, 0, 10, 0, 2, 15]);
    let bytes = default_route(2, "fd00::2".parse().unwrap()).finish(1);
    assert_eq!(bytes.len(), 16 + 12 + 20 + 8);
}

#[test]
fn the_kernels_word_is_understood() {
    let word = |code: i32| {
        let mut bytes = vec![0; 36];
        bytes[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        bytes[16..20].copy_from_slice(&code.to_ne_bytes());
        bytes
    };
    assert!(answer(&word(0)).is_ok());
    assert_eq!(answer(&word(-1)).unwrap_err().raw_os_error(), Some(1));
    assert!(answer(&[]).is_err());
    assert!(answer(&[0; 20]).is_err());
}

/// The loopback is always there, and a plain user may not touch it.
#[test]
fn the_kernel_reads_what_is_sent() {
    let mut netlink = Netlink::open().unwrap();
    match netlink.ask(new_address(u32::MAX, "127.9.9.9".parse().unwrap(), 32)) {
        Ok(()) => panic!("there is no such interface"),
        Err(error) => assert!(error.to_string().starts_with("setting an address"), "{error}"),
    }
}
