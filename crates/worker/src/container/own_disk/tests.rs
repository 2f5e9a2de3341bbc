use super::*;

#[test]
fn only_what_was_made_whole_has_a_file_system() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join(OWN_DISK);
    assert!(open(&place).unwrap().is_none());
    for nothing in [0, 1 << 20] {
        File::create(&place).unwrap().set_len(nothing).unwrap();
        assert!(open(&place).unwrap().is_none(), "{nothing} bytes of nothing");
        make(&place, ext4::SMALLEST).unwrap();
        assert!(open(&place).unwrap().is_some());
        fs::remove_file(&place).unwrap();
    }
}

#[test]
fn a_file_has_one_device() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        match Loop::of(file.as_file()) {
            Ok(device) => held.push(device),
            Err(error) => {
                println!("not run: loop devices: this user has none here ({error})");
                return;
            }
        }
    }
    assert_eq!(held[0].path(), held[1].path());
    let other = tempfile::tempfile().unwrap();
    other.set_len(1 << 20).unwrap();
    assert_ne!(Loop::of(&other).unwrap().path(), held[0].path());
}
