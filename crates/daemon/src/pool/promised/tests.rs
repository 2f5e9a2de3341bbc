use super::*;

fn instance(guise: Guise, disk: Option<u64>) -> Instance {
    let text = r#"{"id": "0", "name": "it", "created": "", "generation": 1, "spec": {}}"#;
    let mut instance: Instance = serde_json::from_str(text).unwrap();
    instance.status.guise = guise;
    instance.spec.resources.disk_bytes = disk;
    instance
}

/// An instance's folders, as they are made for it.
fn place() -> (tempfile::TempDir, Place) {
    let folder = tempfile::tempdir().unwrap();
    let place = Place { state: folder.path().join("state"), run: folder.path().join("run") };
    place.create().unwrap();
    (folder, place)
}

#[test]
fn what_has_not_run_is_promised_all() {
    let (_folder, place) = place();
    let to = |guise, disk| to(&instance(guise, disk), &place);
    assert_eq!(to(Guise::Container, None), 0);
    assert_eq!(to(Guise::Container, Some(5 << 20)), 5 << 20);
    assert_eq!(to(Guise::Microvm, None), DEFAULT_DISK);
    assert_eq!(to(Guise::Microvm, Some(1 << 30)), 1 << 30);
    assert_eq!(to(Guise::Vm, None), DEFAULT_DISK);
}

#[test]
fn what_is_written_is_promised_no_more() {
    let (_folder, used) = place();
    let machine = instance(Guise::Microvm, None);
    let disk = fs::File::create(used.kept().join(WRITES_DISK)).unwrap();
    disk.set_len(1 << 30).unwrap();
    assert_eq!(to(&machine, &used), 1 << 30);
    std::os::unix::fs::FileExt::write_all_at(&disk, &[1; 1 << 20], 0).unwrap();
    disk.sync_all().unwrap();
    let left = to(&machine, &used);
    assert!(((1 << 30) - (2 << 20)..=(1 << 30) - (1 << 20)).contains(&left), "{left}");
    // A container that was made without a file system of its own has no limit.
    let (_other, other) = place();
    fs::create_dir(other.state.join(UPPER)).unwrap();
    assert_eq!(to(&instance(Guise::Container, Some(1 << 30)), &other), 0);
}

#[test]
fn a_disk_can_be_filled_to_its_size() {
    let (_folder, used) = place();
    let machine = instance(Guise::Vm, None);
    let disk = used.kept().join(VM_DISK);
    let mut header = vec![0; 65536];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[24..32].copy_from_slice(&(3_u64 << 30).to_be_bytes());
    fs::write(&disk, &header).unwrap();
    let left = to(&machine, &used);
    assert!((3 << 30) - (1 << 20) < left && left <= 3 << 30, "{left}");
    // What is no disk, or no whole one, is as one that has not been made.
    for bad in [&b"QFI"[..], &[0; 64]] {
        fs::write(&disk, bad).unwrap();
        assert_eq!(to(&machine, &used), DEFAULT_DISK);
    }
}

#[test]
fn what_a_worker_left_in_place_of_a_disk_is_none() {
    let (_folder, used) = place();
    let machine = instance(Guise::Vm, None);
    let disk = used.kept().join(VM_DISK);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &disk,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(to(&machine, &used), DEFAULT_DISK, "and nobody waits for who writes to a pipe");
    fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &disk).unwrap();
    assert_eq!(to(&machine, &used), DEFAULT_DISK);
}
