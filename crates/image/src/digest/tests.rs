use super::*;

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn digest_of_nothing_is_the_known_one() {
    assert_eq!(Digest::of(b"").to_string(), EMPTY);
    assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
}

#[test]
fn sha512_round_trips() {
    let mut hasher = Digest::Sha512([0; 64]).hasher();
    hasher.update(b"guise");
    let digest = hasher.finish();
    assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    assert_eq!(digest.hex().len(), 128);
}

#[test]
fn what_could_leave_the_blob_directory_is_no_digest() {
    for text in [
        "",
        "sha256:",
        "sha256:../../etc/passwd",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &EMPTY.to_uppercase(),
        &EMPTY[..70],
        &format!("{EMPTY}0"),
        "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ] {
        assert!(text.parse::<Digest>().is_err(), "{text:?}");
    }
}
