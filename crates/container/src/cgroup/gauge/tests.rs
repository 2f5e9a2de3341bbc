use std::fs;

use super::*;

#[test]
fn files_of_both_versions_are_read_again_and_again() {
    let folder = std::env::temp_dir().join(format!("gauge-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let write = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
    write("memory.usage_in_bytes", "1000\n");
    write("memory.stat", "active_file 1\ntotal_active_file 20\ntotal_inactive_file 30\n");
    write("memory.current", "1000\n");
    let v1 = Memory::open(&folder, "memory.usage_in_bytes", "total_").unwrap();
    let v2 = Memory::open(&folder, "memory.current", "").unwrap();
    assert_eq!((v1.read(), v2.read()), (Some(950), Some(999)));
    // More is cached than is used: it changed between the two.
    write("memory.usage_in_bytes", "10\n");
    assert_eq!(v1.read(), Some(0));
    write("memory.usage_in_bytes", "nonsense\n");
    assert_eq!(v1.read(), None);
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn pressure_is_the_total_of_some() {
    let text = "some avg10=0.00 avg60=1.50 avg300=0.00 total=4321\nfull avg10=0.00 total=1\n";
    assert_eq!(waited(text), Some(4321));
    assert_eq!((waited(""), waited("some total=x")), (None, None));
}
