use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::Store;

#[test]
fn a_folder_becomes_the_same_image_each_time() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path().join("store")).unwrap();
    let session = store.session().unwrap();
    let root = scratch.path().join("root");
    assert!(import_folder(&session, &root).unwrap_err().to_string().contains("no folder"));
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/program"), "text").unwrap();
    fs::set_permissions(root.join("bin/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("bin/program"), root.join("bin/other")).unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    let first = import_folder(&session, &root).unwrap();
    assert_eq!(import_folder(&session, &root).unwrap(), first);
    let image = store.image_of(&first, "it", None).unwrap();
    assert_eq!(image.config.config.as_ref().unwrap().env, [PATH]);
    let dirs =
        session.layer_dirs(&image, crate::Limits::default(), &crate::progress::Silent).unwrap();
    let [dir] = &dirs[..] else { panic!("{dirs:?}") };
    assert_eq!(fs::read_to_string(dir.join("bin/other")).unwrap(), "text");
    // What a link leads to is not looked at.
    assert_eq!(fs::read_link(dir.join("link")).unwrap().to_str(), Some("/etc/passwd"));
    fs::write(root.join("bin/program"), "other").unwrap();
    assert_ne!(import_folder(&session, &root).unwrap(), first);
}

#[test]
fn an_empty_folder_is_no_root() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path().join("store")).unwrap();
    let empty = scratch.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let refused = import_folder(&store.session().unwrap(), &empty).unwrap_err();
    assert!(refused.to_string().contains("it is empty"), "{refused}");
}
