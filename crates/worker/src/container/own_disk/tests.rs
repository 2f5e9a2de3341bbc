use super::*;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn only_what_was_made_whole_has_a_file_system() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join(OWN_DISK);
    assert!(open(&place).unwrap().is_none());
    if !is_root() {
        assert!(make(&place, ext4::SMALLEST).is_err(), "only root can give files away");
        return;
    }
    for nothing in [0, 1 << 20] {
        File::create(&place).unwrap().set_len(nothing).unwrap();
        lchown(&place, Some(OWNER), Some(OWNER)).unwrap();
        assert!(open(&place).unwrap().is_none(), "{nothing} bytes of nothing");
        assert_eq!(make(&place, ext4::SMALLEST).unwrap().metadata().unwrap().uid(), OWNER);
        assert!(open(&place).unwrap().is_some());
        fs::remove_file(&place).unwrap();
    }
}

#[test]
fn what_a_worker_put_in_its_place_is_not_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let (place, other) = (scratch.path().join(OWN_DISK), scratch.path().join("other"));
    ext4::create(&other, ext4::SMALLEST).unwrap();
    fs::rename(&other, &place).unwrap();
    let error = open(&place).unwrap_err();
    assert!(error.to_string().contains("not the disk"), "{error}");
    fs::remove_file(&place).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &place).unwrap();
    assert_eq!(open(&place).unwrap_err().raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn what_is_not_attached_is_held_by_nobody() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(Loop::holding(&file).unwrap(), None);
    await_release(&file).unwrap();
}
