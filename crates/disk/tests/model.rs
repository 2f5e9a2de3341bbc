//! Random sequences of operations over every writable format, each compared
//! with a plain array of bytes. A failure prints the format and the seed:
//! `GUISE_DISK_SEED=n GUISE_DISK_SEQUENCES=1 cargo test -p guise-disk --test model`
//! runs that one alone; a large GUISE_DISK_SEQUENCES makes a soak of it.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use common::{Kind, Random, memory, sequences};
use guise_disk::format::{BackingReference, Preallocation, Repair};
use guise_disk::formats::qcow2::Amendment;
use guise_disk::graph::{Image, Node};
use guise_disk::ops;
use guise_disk::storage::SharedStorage;

const SIZE: u64 = 1 << 20;

/// A disk under test, and what it should hold.
struct Pair {
    kind: Kind,
    storage: SharedStorage,
    below: Option<Arc<Image>>,
    image: Image,
    model: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    named: u64,
}

impl Pair {
    fn new(kind: Kind, below: Option<Arc<Image>>, size: u64) -> Self {
        let storage = memory();
        kind.create(&storage, size).expect("create");
        let mut model = vec![0; size as usize];
        if let Some(below) = &below {
            let len = below.size().min(size) as usize;
            below.read(0, &mut model[..len]).expect("read below");
        }
        let image = kind.image(&storage, below.as_ref()).expect("open");
        Self { kind, storage, below, image, model, snapshots: Vec::new(), named: 0 }
    }

    fn compare(&self, what: &str) {
        let mut all = vec![0x55; self.model.len()];
        self.image.read(0, &mut all).expect("read all");
        if let Some(at) = all.iter().zip(&self.model).position(|(a, b)| a != b) {
            panic!("{what}: byte {at:#x} is {:#x}, not {:#x}", all[at], self.model[at]);
        }
    }

    fn check(&self, what: &str) {
        if self.kind == Kind::Raw {
            return;
        }
        let report = self.image.format().check(Repair::Nothing).expect("check");
        assert_eq!(report.corruptions, 0, "{what}: {:?}", report.findings);
        if self.kind.is_qcow2() {
            assert_eq!(report.leaks, 0, "{what}: {:?}", report.findings);
        }
    }

    fn place(&self, random: &mut Random) -> (u64, u64) {
        let size = self.model.len() as u64;
        let offset = match random.below(4) {
            0 => random.below(size / 4096) * 4096,
            1 => random.below(size / 512) * 512,
            2 => random.below(size.min(70_000)),
            _ => random.below(size),
        };
        let longest = size - offset;
        let len = match random.below(4) {
            0 => 512,
            1 => 1 + random.below(5000),
            2 => 4096 << random.below(6),
            _ => 1 + random.below(300_000),
        };
        (offset, len.min(longest))
    }

    fn reopen(&mut self) {
        self.image.close().expect("close");
        self.image = self.kind.image(&self.storage, self.below.as_ref()).expect("open again");
    }

    fn step(&mut self, random: &mut Random) {
        let (offset, len) = self.place(random);
        let range = offset as usize..(offset + len) as usize;
        let kinds = match self.kind {
            kind if kind.is_qcow2() => 22,
            kind if kind.can_grow() => 16,
            _ => 15,
        };
        match random.below(kinds) {
            0..=5 => {
                let fill = random.next() as u8;
                let mut data = vec![fill; len as usize];
                data.iter_mut().step_by(97).for_each(|byte| *byte = random.next() as u8);
                self.image.write(offset, &data).expect("write");
                self.model[range].copy_from_slice(&data);
            }
            6..=8 => {
                let mut data = vec![0x55; len as usize];
                self.image.read(offset, &mut data).expect("read");
                assert!(data == self.model[range], "read at {offset:#x} for {len:#x}");
            }
            9..=10 => {
                self.image.write_zeroes(offset, len, random.one_in(2)).expect("zero");
                self.model[range].fill(0);
            }
            11 => {
                self.image.discard(offset, len).expect("discard");
                let mut data = vec![0x55; len as usize];
                self.image.read(offset, &mut data).expect("read discarded");
                for (new, old) in data.iter().zip(&self.model[range.clone()]) {
                    assert!(*new == 0 || new == old, "discard made up contents");
                }
                self.model[range].copy_from_slice(&data);
            }
            12 | 13 => self.image.flush().expect("flush"),
            14 => {
                self.reopen();
                self.compare("opened again");
            }
            15 | 16 => self.resize(random),
            17 => {
                self.named += 1;
                let name = format!("snapshot {}", self.named);
                let qcow2 = self.image.format().as_qcow2().expect("qcow2");
                qcow2.create_snapshot(&name, (0, 0)).expect("create snapshot");
                self.snapshots.push((name, self.model.clone()));
            }
            18 if !self.snapshots.is_empty() => {
                let index = random.below(self.snapshots.len() as u64) as usize;
                let (name, model) = self.snapshots[index].clone();
                self.image
                    .format()
                    .as_qcow2()
                    .expect("qcow2")
                    .apply_snapshot(&name)
                    .expect("apply");
                self.model = model;
                self.compare("applied");
            }
            19 if !self.snapshots.is_empty() => {
                let index = random.below(self.snapshots.len() as u64) as usize;
                let (name, _) = self.snapshots.remove(index);
                self.image
                    .format()
                    .as_qcow2()
                    .expect("qcow2")
                    .delete_snapshot(&name)
                    .expect("delete");
            }
            20 => {
                // Fully rewritten clusters, packed.
                let cluster = self.image.format().cluster_size();
                let at = offset & !(cluster - 1);
                if at + cluster <= self.model.len() as u64 {
                    let data = vec![random.next() as u8; cluster as usize];
                    let codec = self.image.format().codec().expect("codec");
                    let mut packed = Vec::new();
                    if codec.encoder().pack(&data, data.len() - 1, &mut packed) {
                        self.image.write_packed(at, &packed).expect("write packed");
                        self.model[at as usize..(at + cluster) as usize].copy_from_slice(&data);
                    }
                }
            }
            _ => {
                self.check("in between");
            }
        }
    }

    fn resize(&mut self, random: &mut Random) {
        let v2 = matches!(self.kind, Kind::Qcow2 { v2: true, .. });
        if v2 && !self.snapshots.is_empty() {
            return;
        }
        let shrinks = self.kind.is_qcow2() || self.kind == Kind::Raw;
        let least = if shrinks { SIZE / 2 } else { self.model.len() as u64 };
        let size = (least + random.below(SIZE / 512) * 512).min(4 * SIZE).max(least);
        self.image.resize(size, Preallocation::Off).expect("resize");
        self.model.resize(size as usize, 0);
        self.compare("resized");
    }
}

fn run(kind: Kind, seed: u64, steps: u64) {
    let mut random = Random::new(seed);
    // Half of the qcow2 sequences have something below.
    let below = (kind.is_qcow2() && random.one_in(2)).then(|| {
        let base = Kind::Raw;
        let storage = memory();
        let size = SIZE / 2 + random.below(SIZE / 512) * 512;
        base.create(&storage, size).expect("create base");
        for _ in 0..10 {
            let at = random.below(size - 70_000);
            storage.write_at(at, &vec![random.next() as u8; 70_000]).expect("fill base");
        }
        Arc::new(base.image(&storage, None).expect("open base"))
    });
    let mut pair = Pair::new(kind, below, SIZE);
    pair.compare("new");
    for _ in 0..steps {
        pair.step(&mut random);
    }
    pair.compare("at the end");
    pair.check("at the end");
    pair.reopen();
    pair.compare("at the very end");
    pair.check("at the very end");
    if kind.is_qcow2() && pair.below.is_some() {
        detach(&mut pair);
    }
}

/// Moves everything into the image itself: the contents stay.
fn detach(pair: &mut Pair) {
    ops::rebase(&pair.image, None, None, &ops::Quiet).expect("rebase");
    pair.below = None;
    pair.reopen();
    pair.compare("rebased onto nothing");
    let change = Amendment { refcount_bits: Some(16), ..Amendment::default() };
    let qcow2 = pair.image.format().as_qcow2().expect("qcow2");
    if !matches!(pair.kind, Kind::Qcow2 { v2: true, .. }) {
        qcow2.amend(&change, &pair.image.below()).expect("amend");
        pair.compare("amended");
    }
    pair.check("rebased and amended");
}

fn run_all(kinds: &[Kind], usual: u64, steps: u64) {
    for seed in sequences(usual) {
        for &kind in kinds {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(kind, seed, steps))) {
                eprintln!("failed: {kind:?}, seed {seed}");
                resume_unwind(panic);
            }
        }
    }
}

#[test]
fn qcow2_in_random_sequences() {
    run_all(&common::QCOW2, 160, 40);
}

#[test]
fn other_formats_in_random_sequences() {
    run_all(&common::OTHERS, 120, 30);
}

#[test]
fn streams_in_random_sequences() {
    run_all(&[Kind::VmdkStream], 10, 15);
}

/// Stretches of random bytes all over a disk.
fn fill(image: &Image, random: &mut Random) {
    for _ in 0..6 {
        let at = random.below(SIZE - 200_000);
        image.write(at, &vec![random.next() as u8; 200_000]).expect("write");
    }
}

fn write_at_random(pair: &mut Pair, random: &mut Random) {
    for _ in 0..15 {
        let (offset, len) = pair.place(random);
        let data = vec![random.next() as u8; len as usize];
        pair.image.write(offset, &data).expect("write");
        pair.model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    }
}

/// An image of any kind with random contents, closed and opened again.
fn filled(kind: Kind, random: &mut Random) -> Arc<Image> {
    let storage = memory();
    kind.create(&storage, SIZE).expect("create");
    let image = kind.image(&storage, None).expect("open");
    fill(&image, random);
    image.close().expect("close");
    drop(image);
    Arc::new(kind.image(&storage, None).expect("open again"))
}

fn bases() -> Vec<Kind> {
    common::QCOW2.into_iter().chain(common::OTHERS).collect()
}

#[test]
fn commit_moves_a_layer_down() {
    for seed in sequences(64) {
        let mut random = Random::new(seed);
        let kind = common::QCOW2[(seed % 7) as usize];
        let below = bases()[(seed % 16) as usize];
        eprintln!("seed {seed}: {kind:?} over {below:?}");
        let base = filled(below, &mut random);
        let mut top = Pair::new(kind, Some(Arc::clone(&base)), SIZE);
        write_at_random(&mut top, &mut random);
        let options = ops::CommitOptions { depth: 1, empty: true, rate_limit: 0 };
        ops::commit(&top.image, &base, &options, &ops::Quiet).expect("commit");
        let mut all = vec![0x55; SIZE as usize];
        base.read(0, &mut all).expect("read base");
        assert!(all == top.model, "the base has the contents");
        top.compare("after the commit");
        top.check("after the commit");
        if below != Kind::Raw {
            let report = base.format().check(Repair::Nothing).expect("check");
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
        }
    }
}

#[test]
fn rebase_keeps_the_contents() {
    for seed in sequences(64) {
        let mut random = Random::new(seed);
        let kind = common::QCOW2[(seed % 7) as usize];
        let [from, to] = [seed % 16, (seed / 7) % 16].map(|index| bases()[index as usize]);
        eprintln!("seed {seed}: {kind:?} from {from:?} to {to:?}");
        let mut top = Pair::new(kind, Some(filled(from, &mut random)), SIZE);
        write_at_random(&mut top, &mut random);
        let new = filled(to, &mut random);
        let reference = BackingReference { name: "new".to_owned(), format: None };
        ops::rebase(&top.image, Some(&*new), Some(reference), &ops::Quiet).expect("rebase");
        top.below = Some(new);
        top.reopen();
        top.compare("rebased");
        top.check("rebased");
    }
}
