use std::sync::Arc;

use super::*;
use crate::format::Bottom;
use crate::storage::MemoryStorage;

fn image(options: &CreateOptions) -> SharedStorage {
    let storage: SharedStorage = Arc::new(MemoryStorage::new("memory"));
    Qcow2::create(&storage, None, options).expect("create");
    storage
}

fn open(storage: &SharedStorage, write: bool) -> Result<Qcow2> {
    Qcow2::open(Arc::clone(storage), Open { write, ..Open::default() })
}

#[test]
fn unknown_features_are_refused_by_name() {
    let storage = image(&CreateOptions::new(1 << 20));
    storage.write_at(72, &(1_u64 << 40).to_be_bytes()).expect("set a bit");
    let error = open(&storage, false).err().expect("refused").to_string();
    assert!(error.contains("bit 40"), "{error}");
}

#[test]
fn unknown_autoclear_bits_are_cleared_by_a_writer_only() {
    let storage = image(&CreateOptions::new(1 << 20));
    storage.write_at(88, &(1_u64 << 40).to_be_bytes()).expect("set a bit");
    let bits = || {
        let mut bits = [0; 8];
        storage.read_at(88, &mut bits).expect("read");
        u64::from_be_bytes(bits)
    };
    drop(open(&storage, false).expect("open"));
    assert_eq!(bits(), 1 << 40);
    drop(open(&storage, true).expect("open"));
    assert_eq!(bits(), 0);
}

#[test]
fn a_damaged_image_is_not_written() {
    let storage = image(&CreateOptions::new(1 << 20));
    storage.write_at(72, &INCOMPAT_CORRUPT.to_be_bytes()).expect("set the bit");
    assert!(open(&storage, true).is_err());
    let read = open(&storage, false).expect("open");
    assert!(read.write(0, &[1], &Bottom).is_err());
}

#[test]
fn counts_that_lag_behind_are_made_good() {
    let mut options = CreateOptions::new(1 << 20);
    options.lazy_refcounts = true;
    let storage = image(&options);
    let first = open(&storage, true).expect("open");
    first.write(0, &[7; 200_000], &Bottom).expect("write");
    first.flush().expect("flush");
    assert!(first.is_dirty());
    // Never closed, as after a crash.
    std::mem::forget(first);
    let again = open(&storage, true).expect("open again");
    assert!(!again.is_dirty());
    let report = again.check(Repair::Nothing).expect("check");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
    let mut buf = [0; 1000];
    again.read(199_000, &mut buf, &Bottom).expect("read");
    assert_eq!(buf, [7; 1000]);
}

#[test]
fn discarded_space_is_used_again() {
    let storage = image(&CreateOptions::new(16 << 20));
    let image = open(&storage, true).expect("open");
    for _ in 0..10 {
        image.write(0, &[7; 8 << 20], &Bottom).expect("write");
        image.discard(0, 8 << 20, &Bottom).expect("discard");
        image.flush().expect("flush");
        image.flush().expect("flush");
    }
    image.close().expect("close");
    let len = storage.len().expect("len");
    assert!(len < 30 << 20, "{len} bytes for 8 MiB that come and go");
}

#[test]
fn a_bitmap_in_use_is_inconsistent_after_a_crash() {
    let storage = image(&CreateOptions::new(1 << 20));
    let first = open(&storage, true).expect("open");
    first.add_bitmap("b", 65_536, true).expect("add");
    first.close().expect("close");
    drop(first);
    let second = open(&storage, true).expect("open");
    second.write(0, &[1], &Bottom).expect("write");
    std::mem::forget(second);
    let third = open(&storage, true).expect("open");
    assert!(third.bitmaps().expect("bitmaps")[0].in_use);
    assert!(third.dirty_stretches("b").is_err());
    third.remove_bitmap("b").expect("remove");
    third.close().expect("close");
    assert!(open(&storage, false).expect("open").bitmaps().expect("bitmaps").is_empty());
}

#[test]
fn options_that_do_not_go_together() {
    let storage: SharedStorage = Arc::new(MemoryStorage::new("memory"));
    let mut wrong = Vec::new();
    let mut with = |change: fn(&mut CreateOptions)| {
        let mut options = CreateOptions::new(1 << 20);
        change(&mut options);
        wrong.push(options);
    };
    with(|o| o.cluster_size = 1000);
    with(|o| o.cluster_size = 4 << 20);
    with(|o| o.refcount_bits = 3);
    with(|o| (o.extended_l2, o.cluster_size) = (true, 4096));
    with(|o| (o.version, o.zstd) = (2, true));
    with(|o| o.data_file_raw = true);
    with(|o| o.size = u64::MAX);
    for options in wrong {
        assert!(Qcow2::create(&storage, None, &options).is_err(), "{options:?}");
        assert_eq!(storage.len().expect("len"), 0, "nothing was written");
    }
}
