use super::*;

fn blame() -> Blame {
    Blame::new("luks", "test")
}

#[test]
fn a_header_opens_with_its_passphrase_only() {
    let options = LuksOptions { rounds: Rounds::Number(1000), ..LuksOptions::default() };
    let (bytes, payload) = Luks::create(&options, b"passphrase").expect("create");
    assert!(payload >= bytes.len() as u64);
    let header = Luks::parse(&bytes, &blame()).expect("parse");
    assert_eq!(header.payload(), payload);
    assert_eq!(header.description(), ("aes-512-xts-plain64".to_owned(), "sha256", 1));
    let cipher = header.unlock(&bytes, b"passphrase", &blame()).expect("unlock");
    assert!(header.unlock(&bytes, b"Passphrase", &blame()).is_err());
    let mut data = [7; 1024];
    cipher.encrypt(5, &mut data);
    assert_ne!(data, [7; 1024]);
    assert_ne!(data[..512], data[512..], "sectors differ");
    let again = header.unlock(&bytes, b"passphrase", &blame()).expect("unlock again");
    again.decrypt(5, &mut data);
    assert_eq!(data, [7; 1024]);
}

#[test]
fn damaged_headers_are_errors() {
    let options = LuksOptions { rounds: Rounds::Number(1000), ..LuksOptions::default() };
    let (bytes, _) = Luks::create(&options, b"p").expect("create");
    for len in [0, 6, 100, HEADER_LEN - 1] {
        assert!(Luks::parse(&bytes[..len], &blame()).is_err());
    }
    // Without its key material a header cannot be unlocked.
    let header = Luks::parse(&bytes[..HEADER_LEN], &blame()).expect("parse");
    assert!(header.unlock(&bytes[..HEADER_LEN], b"p", &blame()).is_err());
    let mut rounds = bytes.clone();
    rounds[SLOT_AT + 4..SLOT_AT + 8].fill(0xff);
    assert!(Luks::parse(&rounds, &blame()).is_err(), "hours of key derivation");
}
