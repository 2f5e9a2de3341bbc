use super::*;

#[test]
fn only_what_was_made_whole_has_a_file_system() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join(OWN_DISK);
    assert!(!has_file_system(&file));
    for nothing in [0, 1 << 20] {
        fs::File::create(&file).unwrap().set_len(nothing).unwrap();
        assert!(!has_file_system(&file), "{nothing} bytes of nothing");
    }
    fs::remove_file(&file).unwrap();
    ext4::create(&file, ext4::SMALLEST).unwrap();
    assert!(has_file_system(&file));
}

#[test]
fn what_is_not_attached_is_held_by_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, [0; 4096]).unwrap();
    assert_eq!(Loop::holding(&file).unwrap(), None);
    await_release(&file).unwrap();
}
