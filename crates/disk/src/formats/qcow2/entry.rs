//! Entries of L2 tables, in one form for all kinds of them.
//!
//! A plain entry is seen as an extended one with a single subcluster, so that
//! reading, writing and zeroing have one code path.

use crate::error::{Blame, Result};

pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// What the shape of entries depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub cluster_bits: u32,
    pub extended: bool,
}

/// Where a compressed cluster's bytes are: neither end is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackedAt {
    pub offset: u64,
    /// Upper bound: up to the end of the last sector.
    pub len: u64,
}

/// One decoded entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The host cluster, 0 for none.
    pub host: u64,
    /// Whether the host cluster belongs to this entry alone.
    pub copied: bool,
    pub packed: Option<PackedAt>,
    /// A bit for each subcluster that has data here.
    pub alloc: u32,
    /// A bit for each subcluster that reads as zeroes.
    pub zero: u32,
}

/// The state of one subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sub {
    Unallocated,
    Zero,
    Data,
    Packed,
}

impl Shape {
    pub(super) fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Subclusters in a cluster.
    pub(super) fn subs(self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    pub(super) fn sub_bits(self) -> u32 {
        if self.extended { self.cluster_bits - 5 } else { self.cluster_bits }
    }

    pub(super) fn entry_len(self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// Entries in an L2 table.
    pub(super) fn entries(self) -> u64 {
        1 << self.entry_bits()
    }

    /// Of how many bits an index in an L2 table is.
    pub(super) fn entry_bits(self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Bits for subclusters `first..last`.
    pub(super) fn mask(self, first: u32, last: u32) -> u32 {
        (((1_u64 << last) - 1) & !((1_u64 << first) - 1)) as u32
    }

    pub(super) fn all(self) -> u32 {
        self.mask(0, self.subs())
    }

    /// The host cluster of a plain entry with data and nothing peculiar, and whether it
    /// belongs to the entry alone: what `decode` gives for most of them, in less time.
    pub(super) fn data_cluster(self, word: u64) -> Option<(u64, bool)> {
        let host = word & OFFSET_MASK;
        let plain = !self.extended && word & (COMPRESSED | ZERO) == 0;
        let sound = host != 0 && host & (self.cluster() - 1) == 0;
        (plain && sound).then_some((host, word & COPIED != 0))
    }

    /// Reads an entry; `index` is for the message only.
    pub(super) fn decode(self, word: u64, bits: u64, guest: u64, blame: &Blame) -> Result<Entry> {
        if word & COMPRESSED != 0 {
            let split = 62 - (self.cluster_bits - 8);
            let offset = word & ((1 << split) - 1);
            let sectors = (word & !(COPIED | COMPRESSED)) >> split;
            let len = (sectors + 1) * 512 - offset % 512;
            if offset == 0 || offset >= 1 << 56 {
                return Err(blame.corrupt(format!(
                    "compressed cluster for {guest:#x} at impossible offset {offset:#x}"
                )));
            }
            let packed = Some(PackedAt { offset, len });
            return Ok(Entry { packed, ..Entry::default() });
        }
        let host = word & OFFSET_MASK;
        if host & (self.cluster() - 1) != 0 {
            return Err(
                blame.corrupt(format!("data cluster for {guest:#x} at unaligned offset {host:#x}"))
            );
        }
        let copied = word & COPIED != 0;
        let (alloc, zero) = if self.extended {
            (bits as u32, (bits >> 32) as u32)
        } else if word & ZERO != 0 {
            (0, 1)
        } else {
            (u32::from(host != 0 || copied), 0)
        };
        if alloc & zero != 0 || (alloc != 0 && host == 0 && !copied) {
            return Err(
                blame.corrupt(format!("contradicting subcluster bits {bits:#x} for {guest:#x}"))
            );
        }
        Ok(Entry { host, copied, packed: None, alloc, zero })
    }

    /// The two words of an entry (the second for extended tables only).
    pub(super) fn encode(self, entry: Entry) -> (u64, u64) {
        if let Some(packed) = entry.packed {
            let split = 62 - (self.cluster_bits - 8);
            let last = (packed.offset + packed.len - 1) / 512;
            let sectors = last - packed.offset / 512;
            return (COMPRESSED | sectors << split | packed.offset, 0);
        }
        let mut word = entry.host;
        if entry.copied {
            word |= COPIED;
        }
        if self.extended {
            return (word, u64::from(entry.zero) << 32 | u64::from(entry.alloc));
        }
        if entry.zero != 0 {
            word |= ZERO;
        }
        (word, 0)
    }
}

impl Entry {
    pub(super) fn sub(&self, index: u32) -> Sub {
        if self.packed.is_some() {
            Sub::Packed
        } else if self.zero & 1 << index != 0 {
            Sub::Zero
        } else if self.alloc & 1 << index != 0 {
            Sub::Data
        } else {
            Sub::Unallocated
        }
    }

    /// Whether data may be written to the host cluster where it is. A data
    /// file's first cluster is at 0: there it is `copied` that counts.
    pub(super) fn owned(&self) -> bool {
        self.copied && self.packed.is_none()
    }

    /// Whether a host cluster belongs to the entry at all.
    pub(super) fn has_host(&self) -> bool {
        self.packed.is_none() && (self.host != 0 || self.copied)
    }
}
