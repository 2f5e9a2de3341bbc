use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_certificate_is_made_once_and_its_key_is_nobodys_elses() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tls");
    let address = "192.0.2.7".parse().unwrap();
    let first = load(None, &place, address).unwrap();
    assert_eq!(load(None, &place, address).unwrap().fingerprint, first.fingerprint);
    let mode = fs::metadata(place.join("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // The same files, given by name.
    let files = Files { certificate: place.join("cert.pem"), key: place.join("key.pem") };
    let given = load(Some(&files), Path::new("/nowhere"), address).unwrap();
    assert_eq!(given.fingerprint, first.fingerprint);
}

#[test]
fn files_that_are_no_certificate_are_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = Files { certificate: folder.path().join("c"), key: folder.path().join("k") };
    let told = |files: &Files| {
        load(Some(files), folder.path(), "::1".parse().unwrap()).err().unwrap().to_string()
    };
    assert!(told(&files).contains("/c"), "{}", told(&files));
    fs::write(&files.certificate, "nothing").unwrap();
    fs::write(&files.key, "nothing").unwrap();
    assert!(told(&files).contains("/c"), "{}", told(&files));
}
