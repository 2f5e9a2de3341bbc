//! Growth over what an extent's tables have room for, of each kind of disk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::format::{Bottom, Format, Preallocation, Repair};
use crate::formats::vmdk::{CreateOptions, Subformat, Vmdk};
use crate::storage::{MemoryStorage, SharedStorage};

/// The files of one disk.
#[derive(Default)]
struct Files(Mutex<HashMap<String, SharedStorage>>);

impl Files {
    fn file(&self, name: &str) -> Result<SharedStorage> {
        let mut files = self.0.lock().expect("nobody panicked");
        let file = files
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(MemoryStorage::new(name.to_owned())));
        Ok(Arc::clone(file))
    }

    fn create(subformat: Subformat, size: u64) -> Self {
        let files = Self::default();
        let options = CreateOptions { size, subformat, ..CreateOptions::default() };
        let disk = files.file("disk.vmdk").expect("a file");
        Vmdk::create(&disk, "disk.vmdk", &options, &mut |name| files.file(name)).expect("create");
        files
    }

    fn open(&self) -> Vmdk {
        let disk = self.file("disk.vmdk").expect("a file");
        Vmdk::open(disk, true, &|name| self.file(name)).expect("open")
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn disks_grow_and_keep_what_they_hold() {
    for subformat in Subformat::ALL {
        if subformat == Subformat::StreamOptimized {
            continue;
        }
        let files = Files::create(subformat, 5 * MIB);
        let mut written = vec![(4 * MIB, 1)];
        let disk = files.open();
        disk.write(4 * MIB, &[1; 4096], &Bottom).expect("write");
        // Within the tables, past them, and past them once more after opening again.
        let mut disk = Some(disk);
        for (number, size) in [(2, 9 * MIB), (3, 100 * MIB), (4, 1000 * MIB)] {
            let grown = disk.take().unwrap_or_else(|| files.open());
            let old = grown.size();
            grown.resize(size, Preallocation::Off).expect("resize");
            assert_eq!(grown.size(), size);
            let mut end = vec![7; 8192];
            grown.read(old - 4096, &mut end, &Bottom).expect("read over the old end");
            assert!(end[4096..].iter().all(|&byte| byte == 0), "{subformat:?}: new is zero");
            grown.write(size - 4096, &[number; 4096], &Bottom).expect("write at the end");
            written.push((size - 4096, number));
            grown.flush().expect("flush");
            drop(grown);
            let again = files.open();
            assert_eq!(again.size(), size, "{subformat:?}: opened again");
            for &(at, number) in &written {
                let mut data = [0; 4096];
                again.read(at, &mut data, &Bottom).expect("read");
                assert_eq!(data, [number; 4096], "{subformat:?} at {at}");
            }
            assert_eq!(again.check(Repair::Nothing).expect("check").corruptions, 0);
        }
        let text = files.file("disk.vmdk").expect("a file");
        let mut head = vec![0; 2048];
        text.read_at(0, &mut head).expect("read");
        let head = String::from_utf8_lossy(&head);
        assert!(head.contains("RW 2048000 "), "{subformat:?}: {head}");
        assert!(head.contains("ddb.geometry.cylinders = \"2032\""), "{subformat:?}: {head}");
    }
}

#[test]
fn what_cannot_grow_says_why() {
    let files = Files::create(Subformat::TwoGbMaxExtentSparse, 5 * MIB);
    let refused = |size, preallocation| {
        let told = files.open().resize(size, preallocation).expect_err("an error").to_string();
        assert!(!told.contains('\n'), "{told}");
        told
    };
    assert!(refused(4 * MIB, Preallocation::Off).contains("can only grow"));
    assert!(refused(3 << 30, Preallocation::Off).contains("convert it into a larger one"));
    assert!(refused(5 * MIB + 1, Preallocation::Off).contains("sectors"));
    assert!(refused(6 * MIB, Preallocation::Full).contains("reserved"));
    let files = Files::create(Subformat::StreamOptimized, 5 * MIB);
    let told = files.open().resize(6 * MIB, Preallocation::Off).expect_err("an error");
    assert!(told.to_string().contains("streams are written once"), "{told}");
}
