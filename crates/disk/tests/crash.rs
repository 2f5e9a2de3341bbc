//! Power failures: storage that records writes and flushes, and for many cut
//! points images in which any subset of what came after the last flush has
//! reached the disk, in pieces of a sector. Such an image has to open, `check`
//! may find leaks at most, and each sector has to hold what was flushed last or
//! something written since.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Kind, Random, memory, sequences};
use guise_disk::format::Repair;
use guise_disk::graph::{Image, Node};
use guise_disk::storage::{MemoryStorage, Operation, RecordingStorage, SharedStorage, Storage};

const SECTORS: u64 = 2048;
const SECTOR: u64 = 512;

/// What the disk's user did, and when in terms of storage operations.
enum Event {
    /// Sectors got a value, which the disk may hold from `since` on.
    Wrote { since: usize, sectors: std::ops::Range<u64>, value: u64 },
    /// Sectors may read as zeroes from then on, or go on as they were.
    Discarded { since: usize, sectors: std::ops::Range<u64> },
    /// Everything before was acknowledged as stable.
    Flushed { until: usize },
}

fn sector(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat((SECTOR / 8) as usize)
}

/// Runs one sequence; gives the first image, the operations and the events.
fn record(
    kind: Kind,
    random: &mut Random,
    below: Option<&Arc<Image>>,
) -> (MemoryStorage, Vec<Operation>, Vec<Event>) {
    let start = MemoryStorage::new("memory");
    let shared: SharedStorage = Arc::new(start.duplicate());
    kind.create(&shared, SECTORS * SECTOR).expect("create");
    let mut image_bytes = vec![0; shared.len().expect("length") as usize];
    shared.read_at(0, &mut image_bytes).expect("read");
    let start = MemoryStorage::from_bytes("memory", &image_bytes);
    start.set_len(image_bytes.len() as u64).expect("size");
    let recording = Arc::new(RecordingStorage::new(start.duplicate()));
    let storage: SharedStorage = recording.clone();
    let image =
        Image::new(kind.open(&storage).expect("open"), below.cloned(), Path::new("memory"), true);
    let mut events = Vec::new();
    let mut names = 0;
    for _ in 0..40 {
        let first = random.below(SECTORS);
        let count = match random.below(3) {
            0 => 1,
            1 => 8,
            _ => 1 + random.below(300),
        };
        let sectors = first..(first + count).min(SECTORS);
        let (offset, len) = (first * SECTOR, (sectors.end - first) * SECTOR);
        let since = recording.recorded();
        match random.below(10) {
            0..=4 => {
                let value = random.next() | 1;
                events.push(Event::Wrote { since, sectors, value });
                let data = sector(value).repeat((len / SECTOR) as usize);
                image.write(offset, &data).expect("write");
            }
            5 => {
                events.push(Event::Wrote { since, sectors, value: 0 });
                image.write_zeroes(offset, len, random.one_in(2)).expect("zero");
            }
            6 => {
                events.push(Event::Discarded { since, sectors });
                image.discard(offset, len).expect("discard");
            }
            7 if kind.is_qcow2() && random.one_in(2) => {
                let qcow2 = image.format().as_qcow2().expect("qcow2");
                names += 1;
                qcow2.create_snapshot(&names.to_string(), (0, 0)).expect("create snapshot");
            }
            8 if names > 0 && random.one_in(2) => {
                let qcow2 = image.format().as_qcow2().expect("qcow2");
                qcow2.delete_snapshot(&names.to_string()).expect("delete snapshot");
                names -= 1;
            }
            _ => {
                image.flush().expect("flush");
                events.push(Event::Flushed { until: recording.recorded() });
            }
        }
    }
    let operations = recording.operations();
    // What a clean close would still write is of no interest here.
    std::mem::forget(image);
    (start, operations, events)
}

/// What a disk may hold when the power fails before operation `cut`.
fn after_crash(
    start: &MemoryStorage,
    operations: &[Operation],
    cut: usize,
    random: &mut Random,
) -> MemoryStorage {
    let disk = start.duplicate();
    let flushed = operations[..cut]
        .iter()
        .rposition(|operation| matches!(operation, Operation::Flush))
        .map_or(0, |at| at + 1);
    for operation in &operations[..flushed] {
        operation.replay(&disk).expect("replay");
    }
    let mut late: Vec<Operation> = Vec::new();
    for operation in &operations[flushed..cut] {
        match operation {
            Operation::Write { offset, bytes } => {
                // Torn at sector boundaries.
                let mut at = 0;
                while at < bytes.len() {
                    let step = (SECTOR - (offset + at as u64) % SECTOR) as usize;
                    let end = (at + step).min(bytes.len());
                    late.push(Operation::Write {
                        offset: offset + at as u64,
                        bytes: bytes[at..end].to_vec(),
                    });
                    at = end;
                }
            }
            // The length is metadata of the file system, which keeps order.
            Operation::SetLen(_) => operation.replay(&disk).expect("replay"),
            other => late.push(other.clone()),
        }
    }
    let keep = random.below(4);
    for operation in late {
        let kept = match keep {
            0 => false,
            1 => random.one_in(2),
            2 => !random.one_in(8),
            _ => random.one_in(8),
        };
        if kept {
            operation.replay(&disk).expect("replay");
        }
    }
    disk
}

/// For each sector, the values it may have.
fn allowed(events: &[Event], cut: usize, base: &[u64]) -> Vec<Vec<u64>> {
    // Values with whether they surely took the place of those before.
    let mut values: Vec<Vec<(u64, bool)>> = base.iter().map(|&value| vec![(value, true)]).collect();
    for event in events {
        match event {
            Event::Wrote { since, sectors, value } if *since <= cut => {
                for sector in sectors.clone() {
                    values[sector as usize].push((*value, true));
                }
            }
            Event::Discarded { since, sectors } if *since <= cut => {
                for sector in sectors.clone() {
                    values[sector as usize].push((0, false));
                }
            }
            Event::Flushed { until } if *until <= cut => {
                for values in &mut values {
                    let sure = values.iter().rposition(|&(_, sure)| sure).unwrap_or(0);
                    values.drain(..sure);
                }
            }
            _ => {}
        }
    }
    values.into_iter().map(|values| values.into_iter().map(|(value, _)| value).collect()).collect()
}

fn run(kind: Kind, seed: u64, cuts: u64) {
    let mut random = Random::new(seed);
    let mut base = vec![0; SECTORS as usize];
    let below = (kind.is_qcow2() && random.one_in(2)).then(|| {
        let storage = memory();
        for (index, value) in base.iter_mut().enumerate() {
            *value = 0x1000 + index as u64;
            storage.write_at(index as u64 * SECTOR, &sector(*value)).expect("fill");
        }
        Arc::new(Kind::Raw.image(&storage, None).expect("open base"))
    });
    let (start, operations, events) = record(kind, &mut random, below.as_ref());
    for _ in 0..cuts {
        let cut = random.below(operations.len() as u64 + 1) as usize;
        let told = format!("{kind:?}, seed {seed}, cut {cut} of {}", operations.len());
        let disk: SharedStorage = Arc::new(after_crash(&start, &operations, cut, &mut random));
        let image = match kind.image(&disk, below.as_ref()) {
            Ok(image) => image,
            Err(error) => panic!("{told}: {error}"),
        };
        if kind != Kind::Raw {
            let report = image.format().check(Repair::Nothing).expect("check");
            assert_eq!(report.corruptions, 0, "{told}: {:?}", report.findings);
        }
        let mut all = vec![0; (SECTORS * SECTOR) as usize];
        image.read(0, &mut all).unwrap_or_else(|error| panic!("{told}: {error}"));
        let allowed = allowed(&events, cut, &base);
        for (index, bytes) in all.chunks_exact(SECTOR as usize).enumerate() {
            let fits = allowed[index].iter().any(|&value| bytes == sector(value));
            assert!(
                fits,
                "{told}: sector {index} holds {:x?}, allowed are {:x?}",
                &bytes[..8],
                allowed[index]
            );
        }
    }
}

#[test]
fn qcow2_survives_power_failures() {
    for seed in sequences(60) {
        for &kind in &common::QCOW2 {
            run(kind, seed, 12);
        }
    }
}

#[test]
fn other_formats_survive_power_failures() {
    for seed in sequences(25) {
        for kind in [
            Kind::Vdi,
            Kind::Parallels,
            Kind::Vhd,
            Kind::Vhdx,
            Kind::VmdkSparse { zeroed: false },
            Kind::VmdkSparse { zeroed: true },
        ] {
            run(kind, seed, 10);
        }
    }
}
