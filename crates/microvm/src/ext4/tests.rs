use std::process::Command;

use super::*;

/// e2fsprogs' own check, with every complaint an error.
fn check(path: &Path) {
    let output = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(path).output();
    let output = output.expect("e2fsck is part of e2fsprogs, which the tests need");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Sizes around the ends of groups, where the last one is odd.
#[test]
fn file_systems_of_all_sizes_are_sound() {
    let scratch = tempfile::tempdir().unwrap();
    let group = GROUP_BLOCKS * BLOCK;
    let sizes = [
        SMALLEST,
        SMALLEST + 5000,
        group - BLOCK,
        group,
        group + BLOCK,
        group + 400 * BLOCK,
        group + 700 * BLOCK,
        3 * group + 5 * BLOCK,
        (10 << 30) + 123 * BLOCK,
        50 << 30,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        let path = scratch.path().join(format!("{number}.img"));
        create(&path, size).unwrap();
        check(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        let used = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap()) * 512;
        assert!(used < 8 << 20, "{size} bytes take {used} on the disk");
    }
}

#[test]
fn what_is_there_is_left_alone_and_odd_sizes_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    assert_eq!(create(&path, 1000).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(create(&path, LARGEST + 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    create(&path, SMALLEST).unwrap();
    assert_eq!(create(&path, SMALLEST).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}
