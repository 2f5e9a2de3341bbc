//! What the tests share: random numbers with a seed that is printed, and empty
//! images of every writable format in memory.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::path::Path;
use std::sync::Arc;

use guise_disk::format::{Format, Preallocation};
use guise_disk::formats::parallels::Parallels;
use guise_disk::formats::qcow2::{self, Qcow2};
use guise_disk::formats::raw::Raw;
use guise_disk::formats::vdi::Vdi;
use guise_disk::formats::vhd::Vhd;
use guise_disk::formats::vhdx::{self, Vhdx};
use guise_disk::formats::vmdk::{self, Subformat, Vmdk};
use guise_disk::graph::Image;
use guise_disk::storage::{MemoryStorage, SharedStorage};
use guise_disk::{Error, Result};

/// xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How many sequences to run: more with an environment variable, for soaks.
pub fn sequences(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("GUISE_DISK_SEED").unwrap_or(1);
    let count = number("GUISE_DISK_SEQUENCES").unwrap_or(usual);
    first..first + count
}

/// The formats and variants that can be written at any place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Qcow2 { cluster: u64, v2: bool, extended: bool, lazy: bool, refcount_bits: u32 },
    Vdi,
    Parallels,
    Vhd,
    VhdFixed,
    Vhdx,
    VhdxFixed,
    VmdkSparse { zeroed: bool },
    VmdkStream,
}

const PLAIN: Kind =
    Kind::Qcow2 { cluster: 65_536, v2: false, extended: false, lazy: false, refcount_bits: 16 };

pub const QCOW2: [Kind; 7] = [
    PLAIN,
    Kind::Qcow2 { cluster: 512, v2: false, extended: false, lazy: false, refcount_bits: 16 },
    Kind::Qcow2 { cluster: 4096, v2: true, extended: false, lazy: false, refcount_bits: 16 },
    Kind::Qcow2 { cluster: 16_384, v2: false, extended: true, lazy: false, refcount_bits: 8 },
    Kind::Qcow2 { cluster: 65_536, v2: false, extended: true, lazy: true, refcount_bits: 16 },
    Kind::Qcow2 { cluster: 4096, v2: false, extended: false, lazy: true, refcount_bits: 64 },
    Kind::Qcow2 { cluster: 2048, v2: false, extended: false, lazy: false, refcount_bits: 32 },
];

pub const OTHERS: [Kind; 9] = [
    Kind::Raw,
    Kind::Vdi,
    Kind::Parallels,
    Kind::Vhd,
    Kind::VhdFixed,
    Kind::Vhdx,
    Kind::VhdxFixed,
    Kind::VmdkSparse { zeroed: false },
    Kind::VmdkSparse { zeroed: true },
];

pub fn all() -> Vec<Kind> {
    let mut all = QCOW2.to_vec();
    all.extend(OTHERS);
    all.push(Kind::VmdkStream);
    all
}

impl Kind {
    pub fn is_qcow2(self) -> bool {
        matches!(self, Self::Qcow2 { .. })
    }

    /// Whether a disk of this kind can become larger.
    pub fn can_grow(self) -> bool {
        !matches!(self, Self::VhdxFixed | Self::VmdkStream)
    }

    /// Writes an empty image.
    pub fn create(self, storage: &SharedStorage, size: u64) -> Result<()> {
        let off = Preallocation::Off;
        match self {
            Self::Raw => Raw::create(&**storage, size, off),
            Self::Qcow2 { cluster, v2, extended, lazy, refcount_bits } => {
                let mut options = qcow2::CreateOptions::new(size);
                options.cluster_size = cluster;
                options.version = if v2 { 2 } else { 3 };
                options.extended_l2 = extended;
                options.lazy_refcounts = lazy;
                options.refcount_bits = refcount_bits;
                Qcow2::create(storage, None, &options)
            }
            Self::Vdi => Vdi::create(&**storage, size, false, off),
            Self::Parallels => Parallels::create(&**storage, size, 64 << 10, off),
            Self::Vhd => Vhd::create(&**storage, size, false, off, None),
            Self::VhdFixed => Vhd::create(&**storage, size, true, off, None),
            Self::Vhdx | Self::VhdxFixed => {
                let fixed = self == Self::VhdxFixed;
                let options =
                    vhdx::CreateOptions { size, block: 1 << 20, fixed, ..Default::default() };
                Vhdx::create(&**storage, &options)
            }
            Self::VmdkSparse { .. } | Self::VmdkStream => {
                let options = vmdk::CreateOptions {
                    size,
                    subformat: match self {
                        Self::VmdkStream => Subformat::StreamOptimized,
                        _ => Subformat::MonolithicSparse,
                    },
                    zeroed_grain: self == Self::VmdkSparse { zeroed: true },
                    ..Default::default()
                };
                Vmdk::create(storage, "disk.vmdk", &options, &mut |name| no_sibling(name))
            }
        }
    }

    /// Opens an image for writing; `repair` also one that a crash left behind.
    pub fn open(self, storage: &SharedStorage) -> Result<Box<dyn Format>> {
        let storage = Arc::clone(storage);
        Ok(match self {
            Self::Raw => Box::new(Raw::open(storage)?),
            Self::Qcow2 { .. } => {
                let open = qcow2::Open { write: true, ..qcow2::Open::default() };
                Box::new(Qcow2::open(storage, open)?)
            }
            Self::Vdi => Box::new(Vdi::open(storage, true)?),
            Self::Parallels => Box::new(Parallels::open(storage, true)?),
            Self::Vhd | Self::VhdFixed => Box::new(Vhd::open(storage, true)?),
            Self::Vhdx | Self::VhdxFixed => Box::new(Vhdx::open(storage, true)?),
            Self::VmdkSparse { .. } | Self::VmdkStream => {
                Box::new(Vmdk::open(storage, true, &no_sibling)?)
            }
        })
    }

    /// As an image over another.
    pub fn image(self, storage: &SharedStorage, below: Option<&Arc<Image>>) -> Result<Image> {
        let format = self.open(storage)?;
        Ok(Image::new(format, below.cloned(), Path::new("memory"), true))
    }
}

fn no_sibling(name: &str) -> Result<SharedStorage> {
    Err(Error::Backing { name: name.to_owned(), why: "tests have one file".to_owned() })
}

pub fn memory() -> SharedStorage {
    Arc::new(MemoryStorage::new("memory"))
}
