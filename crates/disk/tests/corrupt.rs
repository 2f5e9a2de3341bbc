//! Damaged images: whatever the bytes are, opening, checking, reading and
//! writing end with a result, without panic, in a bounded time.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Kind, Random, memory, sequences};
use guise_disk::format::Repair;
use guise_disk::graph::{Image, Node};
use guise_disk::storage::{MemoryStorage, SharedStorage};

const SIZE: u64 = 1 << 20;

/// An image with some of everything in it.
fn sample(kind: Kind) -> Vec<u8> {
    let storage = memory();
    kind.create(&storage, SIZE).expect("create");
    let image = kind.image(&storage, None).expect("open");
    image.write(100_000, &[7; 100_000]).expect("write");
    image.write_zeroes(300_000, 200_000, true).expect("zero");
    if let Some(qcow2) = image.format().as_qcow2() {
        qcow2.create_snapshot("a snapshot", (0, 0)).expect("snapshot");
        if !matches!(kind, Kind::Qcow2 { v2: true, .. }) {
            qcow2.add_bitmap("a bitmap", 4096, true).expect("bitmap");
        }
    }
    image.write(120_000, &[8; 10_000]).expect("write");
    image.close().expect("close");
    let mut bytes = vec![0; storage.len().expect("length") as usize];
    storage.read_at(0, &mut bytes).expect("read");
    bytes
}

/// Places where a format keeps its structures: most damage goes there.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(6) {
        let len = bytes.len() as u64;
        let at = match random.below(6) {
            0 => random.below(len),
            1 => random.below(len.min(4096)),
            2 => len - 1 - random.below(len.min(1024)),
            3 => random.below(len / 65_536 + 1) * 65_536 + random.below(128),
            4 => random.below(len / 4096 + 1) * 4096 + random.below(64),
            _ => random.below(len.min(128)),
        };
        let at = at.min(len - 1) as usize;
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = 0xff,
            2 => bytes[at] = random.next() as u8,
            3 => {
                let end = (at + 8).min(bytes.len());
                let value = random.next().to_be_bytes();
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            _ if random.one_in(4) => bytes.truncate(at.max(1)),
            _ => bytes[at] = 0,
        }
    }
}

fn use_image(kind: Kind, storage: &SharedStorage) {
    let Ok(format) = kind.open(storage) else { return };
    let image = Image::new(format, None, Path::new("memory"), true);
    // Results may be errors: that they come is what counts.
    let _checked = image.format().check(Repair::Nothing);
    let mut buf = vec![0; 150_000];
    let size = image.size();
    let mut at = 0;
    while at < size.min(2 * SIZE) {
        let len = (size - at).min(buf.len() as u64) as usize;
        let _read = image.read(at, &mut buf[..len]);
        at += len as u64;
    }
    for (offset, len) in [(0, 5000), (110_000, 70_000), (SIZE - 5000, 5000)] {
        let _written = image.write(offset, &buf[..len]);
        let _zeroed = image.write_zeroes(offset, len as u64, true);
    }
    let _details = image.format().details();
    let _flushed = image.flush();
    if let Some(qcow2) = image.format().as_qcow2() {
        let _created = qcow2.create_snapshot("another", (0, 0));
        let _deleted = qcow2.delete_snapshot("a snapshot");
        let _stretches = qcow2.dirty_stretches("a bitmap");
        let _repaired = image.format().check(Repair::All);
    }
    let _closed = image.close();
}

#[test]
fn damaged_images_end_in_errors() {
    for kind in common::all() {
        if kind == Kind::Raw {
            continue;
        }
        let sound = sample(kind);
        for seed in sequences(60) {
            let mut random = Random::new(seed);
            let mut bytes = sound.clone();
            damage(&mut bytes, &mut random);
            let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("damaged", &bytes));
            use_image(kind, &storage);
        }
    }
}

/// What fuzzing has found: numbers at places of headers that overflow in sums.
#[test]
fn impossible_numbers_in_headers_are_refused() {
    for (kind, at) in [
        (Kind::VmdkSparse { zeroed: false }, 28),
        (Kind::VmdkSparse { zeroed: false }, 48),
        (Kind::VmdkSparse { zeroed: false }, 64),
    ] {
        for value in [u64::MAX, u64::MAX - 1, u64::MAX / 512, i64::MAX as u64] {
            let mut bytes = sample(kind);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("damaged", &bytes));
            use_image(kind, &storage);
            if at != 48 || value != u64::MAX {
                assert!(kind.open(&storage).is_err(), "{kind:?}: {value:#x} at {at}");
            }
        }
    }
}

#[test]
fn cut_images_end_in_errors() {
    for kind in common::all() {
        let sound = sample(kind);
        for len in [0, 1, 7, 64, 71, 104, 511, 512, 513, 1024, 4096, 65_536, 200_000] {
            let bytes = &sound[..sound.len().min(len)];
            let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("cut", bytes));
            use_image(kind, &storage);
        }
    }
}

#[test]
fn repair_mends_reference_counts() {
    for kind in common::QCOW2 {
        let sound = sample(kind);
        let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("sound", &sound));
        let want = {
            let image = kind.image(&storage, None).expect("open");
            let mut want = vec![0; SIZE as usize];
            image.read(0, &mut want).expect("read");
            want
        };
        // The first reference count block, all of it, at its place from the table.
        let word = |bytes: &[u8], at: usize| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        };
        let mut bytes = sound.clone();
        let table = word(&bytes, 48) as usize;
        let block = word(&bytes, table) as usize;
        bytes[block..block + 64].fill(0);
        let damaged: SharedStorage = Arc::new(MemoryStorage::from_bytes("damaged", &bytes));
        let image = kind.image(&damaged, None).expect("open");
        let report = image.format().check(Repair::All).expect("repair");
        assert!(report.corruptions > 0, "{kind:?}: the damage is seen");
        let report = image.format().check(Repair::Nothing).expect("check");
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{kind:?}: {:?}", report.findings);
        let mut have = vec![0; SIZE as usize];
        image.read(0, &mut have).expect("read");
        assert!(have == want, "{kind:?}: contents are kept");
    }
}
