use std::fs;

use guise_container::rootfs::path::open_host;

use super::*;

fn image() -> (tempfile::TempDir, RootDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(
        dir.path().join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:10:20::/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::write(dir.path().join("etc/group"), "root:x:0:\napp:x:20:\nlog:x:30:other,app\n").unwrap();
    let root = RootDir::new(open_host(dir.path()).unwrap());
    (dir, root)
}

#[test]
fn users_by_name_and_number() {
    let (_dir, root) = image();
    let of = |text| identity(&root, text).unwrap();
    assert_eq!(of("").home, "/root");
    let app = of("app");
    assert_eq!(
        (app.uid, app.gid, &app.groups[..], &app.home[..]),
        (10, 20, &[30][..], "/home/app")
    );
    assert_eq!(of("10"), app);
    assert_eq!((of("app:log").gid, of("77:5").uid, of("77:5").gid), (30, 77, 5));
    assert!(identity(&root, "nobody-here").is_err());
    assert!(identity(&root, "app:nobody-here").is_err());
}

#[test]
fn owners() {
    let (_dir, root) = image();
    assert_eq!(owner(&root, "app").unwrap(), (10, 20));
    assert_eq!(owner(&root, "5").unwrap(), (5, 5));
    assert_eq!(owner(&root, "5:log").unwrap(), (5, 30));
}

#[test]
fn an_image_without_the_files_knows_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootDir::new(open_host(dir.path()).unwrap());
    assert_eq!(identity(&root, "3:4").unwrap().gid, 4);
    assert!(identity(&root, "app").is_err());
}
