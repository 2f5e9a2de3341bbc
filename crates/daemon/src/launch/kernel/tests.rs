use super::*;

#[test]
fn what_is_made_of_a_kernel_is_its_own_and_where_it_can_be() {
    let place = tempfile::tempdir().unwrap();
    let (folder, own) = (place.path().join("kernel"), place.path().join("own"));
    fs::create_dir_all(folder.join("boot")).unwrap();
    let kernel = folder.join("boot/vmlinuz-6.1");
    fs::write(&kernel, "one").unwrap();
    let first = cache_of(&folder, &kernel, &own);
    assert!(first.starts_with(folder.join("guise")) && first.is_dir());
    assert_eq!(cache_of(&folder, &kernel, &own), first);
    fs::write(&kernel, "another").unwrap();
    let second = cache_of(&folder, &kernel, &own);
    assert_ne!(second, first, "of another kernel of that name");
    // Nothing can be made there.
    fs::remove_dir_all(folder.join("guise")).unwrap();
    fs::write(folder.join("guise"), "").unwrap();
    let elsewhere = cache_of(&folder, &kernel, &own);
    assert_eq!(elsewhere, own.join(second.file_name().unwrap()));
}
