use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    (directory, tree)
}

#[test]
fn nothing_and_single_files_are_removed() {
    let (_directory, tree) = place();
    let file = tree.join("file");
    fs::write(&file, "text").unwrap();
    remove_tree(&file).unwrap();
    remove_tree(&file).unwrap();
    remove_tree(&tree.join("no/such/place")).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn links_lead_nowhere() {
    let (directory, tree) = place();
    let kept = directory.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "text").unwrap();
    symlink(&kept, tree.join("link")).unwrap();
    symlink("/no/such/place", tree.join("dangling")).unwrap();
    let to_tree = directory.path().join("to-tree");
    symlink(&tree, &to_tree).unwrap();
    remove_tree(&to_tree).unwrap();
    assert!(tree.join("link").exists() && !to_tree.is_symlink());
    remove_tree(&tree).unwrap();
    assert!(!tree.exists() && kept.join("file").exists());
}

#[test]
fn folders_closed_to_their_owner_are_opened() {
    let (_directory, tree) = place();
    for mode in [0o000, 0o100, 0o200, 0o400, 0o500] {
        let closed = tree.join(format!("{mode:o}/below"));
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("file"), "text").unwrap();
        for folder in [&*closed, closed.parent().unwrap()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o000)).unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

/// A guest makes folders in folders as long as it likes: nobody can open so many at once.
#[test]
fn depth_is_no_obstacle() {
    // Disks take their time for so many folders.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::tempdir_in(place).unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for name in ["removed-1", "removed-2"] {
        fs::write(tree.join(name), "in the way").unwrap();
    }
    let mut folder = open_folder(CWD, &tree).unwrap();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&folder, "beside", Mode::RWXU).unwrap();
        folder = open_folder(&folder, "d").unwrap();
    }
    drop(folder);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn what_is_not_asked_of_this_helper_is_for_others() {
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    for other in [&[][..], &["--remove"], &["state", "run"], &["--remove", "a", "b"]] {
        assert_eq!(helper(&words(other)), None);
    }
}
