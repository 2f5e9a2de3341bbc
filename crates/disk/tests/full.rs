//! Disks that run out of space: at any write of a random sequence, the request
//! ends in an error that says so, what was acknowledged before is kept, and when
//! there is room again the image goes on as if nothing had been.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Kind, Random, memory, sequences};
use guise_disk::format::Repair;
use guise_disk::graph::{Image, Node};
use guise_disk::storage::{FailingStorage, SharedStorage};

const SIZE: u64 = 2 << 20;
const SECTOR: u64 = 512;

/// What a sector may hold: one value, or after a failure either of two.
#[derive(Clone, Copy)]
struct Sector {
    value: u8,
    or: u8,
}

struct Disk {
    kind: Kind,
    failing: Arc<FailingStorage>,
    storage: SharedStorage,
    image: Image,
    model: Vec<Sector>,
}

impl Disk {
    fn new(kind: Kind) -> Self {
        let memory = memory();
        kind.create(&memory, SIZE).expect("create");
        let failing = Arc::new(FailingStorage::new(memory));
        let storage: SharedStorage = failing.clone();
        let image = kind.image(&storage, None).expect("open");
        let model = vec![Sector { value: 0, or: 0 }; (SIZE / SECTOR) as usize];
        Self { kind, failing, storage, image, model }
    }

    fn change(&mut self, random: &mut Random) {
        let first = random.below(SIZE / SECTOR);
        let count = (1 + random.below(400)).min(SIZE / SECTOR - first);
        let value = if random.one_in(4) { 0 } else { random.next() as u8 };
        let (offset, len) = (first * SECTOR, count * SECTOR);
        let result = if value == 0 {
            self.image.write_zeroes(offset, len, random.one_in(2))
        } else {
            self.image.write(offset, &vec![value; len as usize])
        };
        for sector in &mut self.model[first as usize..(first + count) as usize] {
            match &result {
                Ok(()) => *sector = Sector { value, or: value },
                Err(error) => {
                    assert!(error.is_no_space(), "another error: {error}");
                    // Sectors that were unsure before stay with what was seen.
                    sector.or = value;
                }
            }
        }
        if result.is_err() {
            self.settle();
        }
    }

    /// Looks which of two values the sectors have that may have either.
    fn settle(&mut self) {
        let mut all = vec![0; SIZE as usize];
        self.image.read(0, &mut all).expect("read");
        for (index, bytes) in all.chunks_exact(SECTOR as usize).enumerate() {
            let Sector { value, or } = self.model[index];
            let have = bytes[0];
            assert!(bytes.iter().all(|&byte| byte == have), "sector {index} is torn");
            assert!(have == value || have == or, "sector {index}: {have}, not {value} or {or}");
            self.model[index] = Sector { value: have, or: have };
        }
    }

    fn check(&self) {
        if self.kind != Kind::Raw {
            let report = self.image.format().check(Repair::Nothing).expect("check");
            assert_eq!(report.corruptions, 0, "{:?}", report.findings);
        }
    }
}

fn run(kind: Kind, seed: u64) {
    let mut random = Random::new(seed);
    let mut disk = Disk::new(kind);
    for _ in 0..6 {
        for _ in 0..4 {
            disk.change(&mut random);
        }
        disk.failing.leave_room_for(random.below(12));
        for _ in 0..4 {
            disk.change(&mut random);
            if let Err(error) = disk.image.flush() {
                assert!(error.is_no_space(), "another error: {error}");
            }
        }
        disk.failing.leave_room_for(u64::MAX);
        disk.image.flush().expect("there is room again");
        disk.settle();
        disk.check();
    }
    disk.image.close().expect("close");
    disk.image = kind.image(&disk.storage, None).expect("open again");
    disk.settle();
    disk.check();
}

#[test]
fn a_full_disk_costs_nothing_that_was_acknowledged() {
    let kinds: Vec<Kind> = common::QCOW2.into_iter().chain(common::OTHERS).collect();
    for seed in sequences(12) {
        for &kind in &kinds {
            let result = std::panic::catch_unwind(|| run(kind, seed));
            if let Err(panic) = result {
                eprintln!("failed: {kind:?}, seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn a_full_disk_is_told_in_one_line() {
    let failing = Arc::new(FailingStorage::new(memory()));
    let storage: SharedStorage = failing.clone();
    let kind = common::QCOW2[0];
    kind.create(&storage, SIZE).expect("create");
    let image = Image::new(kind.open(&storage).expect("open"), None, Path::new("disk"), true);
    failing.leave_room_for(0);
    let told = image.write(0, &[1; 512]).expect_err("no room").to_string();
    assert_eq!(told, "write to 'memory': No space left on device");
}
