//! Random operations on two qcow2 images, one driven by Guise and one by
//! imago, an implementation with other authors. After some operations the two
//! change images, so each goes on with what the other has written. What either
//! reads has to be what was written, and Guise's check has to find no damage.
//!
//! A failure prints its seed: `GUISE_DISK_SEED=n GUISE_DISK_SEQUENCES=1
//! cargo test -p guise-disk --test imago` runs that sequence alone.

mod common;

use std::path::{Path, PathBuf};

use common::{Random, sequences};
use guise_disk::format::{BackingReference, FormatKind, Repair};
use guise_disk::graph::{Image, Node, OpenOptions};
use guise_disk::ops::{CreateRequest, create};
use imago::file::File;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};

const SIZE: u64 = 3 << 20;

/// What imago knows of qcow2: no extended L2, no zstd.
const VARIANTS: [&[(&str, &str)]; 6] = [
    &[],
    &[("cluster_size", "512")],
    &[("cluster_size", "4k"), ("compat", "v2")],
    &[("cluster_size", "2M")],
    &[("refcount_bits", "1")],
    &[("refcount_bits", "64"), ("lazy_refcounts", "on")],
];

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("guise-disk-imago-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("make a directory");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("remove the directory");
    }
}

type Other = FormatAccess<File>;

fn other(path: &Path) -> Other {
    let image = imago::qcow2::Qcow2::<File>::builder_path(path)
        .write(true)
        .open(PermissiveImplicitOpenGate::default())
        .expect("imago opens the image");
    FormatAccess::new(image)
}

fn ours(path: &Path) -> Image {
    Image::open(path, &OpenOptions::write(FormatKind::Qcow2)).expect("Guise opens the image")
}

/// Both implementations, each with one of the images.
struct Pair {
    paths: [PathBuf; 2],
    ours: Option<Image>,
    other: Option<Other>,
    model: Vec<u8>,
    v2: bool,
}

impl Pair {
    fn open(&mut self) {
        self.ours = Some(ours(&self.paths[0]));
        self.other = Some(other(&self.paths[1]));
    }

    /// Closes both images and lets each implementation have the other's.
    fn swap(&mut self) {
        self.close();
        self.paths.swap(0, 1);
        self.open();
        self.compare(0, self.model.len() as u64);
    }

    fn close(&mut self) {
        self.ours.take().expect("open").close().expect("close");
        self.other.take().expect("open").flush().expect("imago flushes");
        for path in &self.paths {
            let report = ours(path).format().check(Repair::Nothing).expect("check");
            assert_eq!(report.corruptions, 0, "{}: {:?}", path.display(), report.findings);
        }
    }

    fn compare(&self, offset: u64, len: u64) {
        let want = &self.model[offset as usize..(offset + len) as usize];
        let mut buf = vec![0x55; len as usize];
        self.ours.as_ref().expect("open").read(offset, &mut buf).expect("read");
        assert!(buf == want, "Guise reads something else at {offset:#x} for {len:#x}");
        buf.fill(0x55);
        self.other.as_ref().expect("open").read(&mut buf[..], offset).expect("imago reads");
        assert!(buf == want, "imago reads something else at {offset:#x} for {len:#x}");
    }

    fn step(&mut self, random: &mut Random) {
        let unit = [1, 512, 4096][random.below(3) as usize];
        let offset = random.below(SIZE / unit) * unit;
        let longest = if random.one_in(4) { 300_000 } else { 9000 };
        let len = (unit * (1 + random.below(longest) / unit)).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        let (ours, other) = (self.ours.as_ref().expect("open"), self.other.as_ref().expect("open"));
        match random.below(12) {
            0..=5 => {
                let mut data = vec![random.next() as u8; len as usize];
                data.iter_mut().step_by(61).for_each(|byte| *byte = random.next() as u8);
                ours.write(offset, &data).expect("write");
                other.write(&data[..], offset).expect("imago writes");
                self.model[range].copy_from_slice(&data);
            }
            6 | 7 => {
                ours.write_zeroes(offset, len, random.one_in(2)).expect("zero");
                if self.v2 {
                    // It zeroes by a flag only, which version 2 does not have.
                    other.write(&vec![0; len as usize][..], offset).expect("imago writes zeroes");
                } else {
                    other.write_zeroes(offset, len).expect("imago zeroes");
                }
                self.model[range].fill(0);
            }
            8 | 9 => self.compare(offset, len),
            10 => {
                ours.flush().expect("flush");
                other.flush().expect("imago flushes");
            }
            _ => self.swap(),
        }
    }
}

fn run(dir: &Path, variant: &[(&str, &str)], seed: u64) {
    let mut random = Random::new(seed);
    let mut model = vec![0; SIZE as usize];
    let backing = random.one_in(2).then(|| {
        for chunk in model.chunks_mut(50_000) {
            if random.one_in(2) {
                chunk.fill(random.next() as u8);
            }
        }
        std::fs::write(dir.join("base.raw"), &model).expect("write the base");
        BackingReference { name: "base.raw".to_owned(), format: Some("raw".to_owned()) }
    });
    let paths = ["first.qcow2", "second.qcow2"].map(|name| dir.join(name));
    for path in &paths {
        let mut request = CreateRequest::new(path, FormatKind::Qcow2, Some(SIZE));
        request.backing = backing.clone();
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        request.options = variant.iter().map(own).collect();
        create(&request).expect("create");
    }
    let v2 = variant.contains(&("compat", "v2"));
    let mut pair = Pair { paths, ours: None, other: None, model, v2 };
    pair.open();
    for _ in 0..40 {
        pair.step(&mut random);
    }
    pair.swap();
    pair.close();
}

#[test]
fn the_same_as_imago_in_random_sequences() {
    let dir = Scratch::new();
    for seed in sequences(50) {
        let variant = VARIANTS[(seed % VARIANTS.len() as u64) as usize];
        eprintln!("seed {seed}, {variant:?}");
        run(&dir.0, variant, seed);
    }
}
