use super::*;

#[test]
fn a_folder_is_made_once_and_is_no_link() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("upper");
    make_own(&folder).unwrap();
    fs::write(folder.join("kept"), "").unwrap();
    make_own(&folder).unwrap();
    assert!(folder.join("kept").exists());
    fs::rename(&folder, scratch.path().join("moved")).unwrap();
    for target in ["moved", "/etc", "/no/such"] {
        symlink(target, &folder).unwrap();
        let error = make_own(&folder).unwrap_err();
        assert!(error.to_string().contains("is not the folder"), "{error}");
        fs::remove_file(&folder).unwrap();
    }
    assert!(make_own(&scratch.path().join("no/such")).is_err());
}
