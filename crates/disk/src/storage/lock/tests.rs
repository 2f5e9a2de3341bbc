use super::*;

#[test]
fn a_lock_goes_with_its_image_even_if_a_child_still_has_the_file() {
    let path = std::env::temp_dir().join(format!("guise-lock-{}", std::process::id()));
    let [file, again] = [(); 2].map(|()| {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(&path).expect("open")
    });
    std::fs::remove_file(&path).expect("remove the name");
    let lock = FileLock::take(&file, "image", true).expect("lock");
    // As a child has it between fork and exec.
    let child = lock.holder.try_clone().expect("duplicate");
    assert!(matches!(FileLock::take(&again, "image", true), Err(Error::Locked { .. })));
    drop(lock);
    FileLock::take(&again, "image", true).expect("the image is free");
    drop(child);
}
