use std::path::{Path, PathBuf};

use super::*;
use crate::error::Error;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("guise-storage-{name}-{}", std::process::id())))
    }

    fn open(&self, options: FileOptions) -> Result<FileStorage> {
        FileStorage::open(&self.0, options)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A test that never made the file has nothing to remove.
        let _absent = std::fs::remove_file(&self.0);
    }
}

fn behaves(storage: &dyn Storage) {
    storage.write_at(10_000, &[7; 5000]).expect("write");
    assert_eq!(storage.len().expect("len"), 15_000);
    let mut buf = [1; 6000];
    storage.read_at(9500, &mut buf).expect("read");
    assert!(buf[..500] == [0; 500] && buf[500..5500] == [7; 5000] && buf[5500..] == [0; 500]);
    storage.write_zeroes(11_000, 100, true).expect("zero");
    storage.write_zeroes(20_000, 100, true).expect("zero past the end");
    assert_eq!(storage.len().expect("len"), 20_100);
    storage.read_at(10_999, &mut buf[..102]).expect("read");
    assert!(buf[0] == 7 && buf[1..101] == [0; 100] && buf[101] == 7);
    storage.set_len(12_000).expect("cut");
    storage.set_len(16_000).expect("grow");
    storage.read_at(11_999, &mut buf[..3]).expect("read");
    assert_eq!(buf[..3], [7, 0, 0], "what was cut off does not come back");
    storage.flush().expect("flush");
}

#[test]
fn memory_and_files_behave_alike() {
    behaves(&MemoryStorage::new("memory"));
    let file = Scratch::new("alike");
    behaves(&file.open(FileOptions::create()).expect("create"));
}

#[test]
fn a_file_that_lost_its_end_is_an_error() {
    let file = Scratch::new("truncated");
    let storage = file.open(FileOptions::create()).expect("create");
    storage.write_at(0, &[1; 10_000]).expect("write");
    let outside = std::fs::OpenOptions::new().write(true).open(&file.0).expect("open");
    outside.set_len(5000).expect("truncate");
    let error = storage.read_at(6000, &mut [0; 100]).expect_err("the end is gone");
    assert!(matches!(error, Error::Truncated { before: 10_000, now: 5000, .. }), "{error}");
}

#[test]
fn writers_exclude_each_other() {
    let file = Scratch::new("locks");
    let writer = file.open(FileOptions::create()).expect("create");
    assert!(matches!(file.open(FileOptions::write()), Err(Error::Locked { .. })));
    assert!(matches!(file.open(FileOptions::read()), Err(Error::Locked { .. })));
    let freely = FileOptions { share: Share::Freely, ..FileOptions::read() };
    file.open(freely).expect("without a lock");
    drop(writer);
    let reader = file.open(FileOptions::read()).expect("read");
    file.open(FileOptions::read()).expect("two readers");
    assert!(matches!(file.open(FileOptions::write()), Err(Error::Locked { .. })));
    drop(reader);
    file.open(FileOptions::write()).expect("free again");
}

#[test]
fn a_locked_file_is_not_emptied() {
    let file = Scratch::new("emptied");
    let writer = file.open(FileOptions::create()).expect("create");
    writer.write_at(0, b"precious").expect("write");
    assert!(matches!(file.open(FileOptions::create()), Err(Error::Locked { .. })));
    assert_eq!(std::fs::read(&file.0).expect("read"), b"precious");
}

#[test]
fn a_full_disk_is_told_as_such() {
    let full = FileStorage::open(
        Path::new("/dev/full"),
        FileOptions { share: Share::Freely, ..FileOptions::write() },
    )
    .expect("open");
    let error = full.write_at(0, &[1; 100]).expect_err("it is full");
    assert!(error.is_no_space(), "{error}");
    assert_eq!(error.to_string(), "write to '/dev/full': No space left on device");
}

#[test]
fn memory_runs() {
    let memory = MemoryStorage::new("memory");
    memory.write_at(8192, &[1; 4096]).expect("write");
    memory.set_len(100_000).expect("grow");
    assert_eq!(memory.run_at(0).expect("run"), StorageRun { len: 8192, data: false });
    assert_eq!(memory.run_at(9000).expect("run"), StorageRun { len: 3288, data: true });
    assert_eq!(memory.run_at(12_288).expect("run"), StorageRun { len: 87_712, data: false });
}

#[test]
fn places_that_no_file_has_are_refused() {
    let storage = MemoryStorage::from_bytes("memory", &[1; 4096]);
    let mut buf = [9; 100];
    storage.read_at(u64::MAX - 10, &mut buf).expect("nothing is there");
    assert_eq!(buf, [0; 100]);
    for offset in [u64::MAX, u64::MAX - 10, i64::MAX as u64] {
        assert!(storage.write_at(offset, &buf).is_err());
        assert!(storage.write_zeroes(offset, 100, true).is_err());
        assert!(storage.allocate(offset, 100).is_err());
    }
    assert_eq!(storage.len().expect("len"), 4096);
    assert_eq!(storage.run_at(u64::MAX).expect("run").len, 0);
}

#[test]
fn what_the_page_cache_has_is_at_hand() {
    let file = Scratch::new("at-hand");
    let storage = file.open(FileOptions::create()).expect("create");
    storage.write_at(0, &[5; 8192]).expect("write");
    let (mut first, mut second) = ([0; 4096], [0; 512]);
    let read = |offset, pieces: &mut [IoSliceMut<'_>]| storage.read_at_hand(offset, pieces);
    let at_hand = read(512, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]);
    match at_hand.expect("read") {
        true => assert!(first == [5; 4096] && second == [5; 512]),
        false => {
            let plain = std::fs::File::open(&file.0).expect("open");
            let mut pieces = [IoSliceMut::new(&mut first)];
            let how = rustix::io::ReadWriteFlags::NOWAIT;
            let answer = rustix::io::preadv2(plain, &mut pieces, 0, how);
            assert_eq!(answer, Err(rustix::io::Errno::OPNOTSUPP), "only such a file system");
        }
    }
    let past = read(8000, &mut [IoSliceMut::new(&mut first)]).expect("read");
    assert!(!past, "what is past the end has to be made up");
    let direct = FileOptions { direct: true, share: Share::Freely, ..FileOptions::read() };
    let direct = file.open(direct).expect("open");
    assert!(!direct.read_at_hand(0, &mut [IoSliceMut::new(&mut first)]).expect("read"));
}
