use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

#[test]
fn a_tree_goes_out_and_comes_in_as_it_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = from.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    let long = "n".repeat(200);
    fs::write(tree.join("a").join(&long), vec![7; 100_000]).unwrap();
    fs::write(tree.join("a/b/program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("a/b/program"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("b/program", tree.join("a/link")).unwrap();
    let mut archive = Vec::new();
    export_to(&tree, &mut archive).unwrap();
    import_from(to.path(), &archive[..]).unwrap();
    let copy = to.path().join("tree/a");
    assert_eq!(fs::read(copy.join(&long)).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("b/program"));
    let mode = fs::metadata(copy.join("b/program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o751);
}

#[test]
fn a_file_alone_keeps_its_name() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("file"), "content").unwrap();
    let mut archive = Vec::new();
    export_to(&from.path().join("file"), &mut archive).unwrap();
    import_from(to.path(), &archive[..]).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("file")).unwrap(), "content");
}

#[test]
fn what_is_missing_or_broken_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let error = export_to(Path::new("/nowhere/at/all"), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    assert!(import_from(scratch.path(), &[0xff; 2000][..]).is_err());
}

#[test]
fn what_is_new_gets_the_name_and_what_has_it_is_replaced() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("file"), "content").unwrap();
    let mut archive = Vec::new();
    export_to(&from.path().join("file"), &mut archive).unwrap();
    let target = to.path().join("elsewhere");
    fs::write(&target, "untouched").unwrap();
    symlink(&target, to.path().join("name")).unwrap();
    import_as(&to.path().join("name"), to.path(), &archive[..]).unwrap();
    assert_eq!(fs::read_to_string(to.path().join("name")).unwrap(), "content");
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
}
