//! Reference counts and allocation of clusters.
//!
//! Blocks of counts are read when first needed and kept while they are dirty.
//! New blocks lie in the range that they count; the table moves to a larger
//! place when it is full. Nothing here decides *when* to write: see `meta`.

use std::collections::HashMap;

use super::header::{Header, read_table, refcount_get, refcount_set, table_bytes};
use crate::error::{Blame, Error, Result};
use crate::storage::{Storage, read_vec};

const BLOCK_MASK: u64 = !0x1ff;
/// Clean blocks beyond this many bytes are forgotten.
const CACHE_BYTES: u64 = 8 << 20;

struct Block {
    bytes: Vec<u8>,
    /// Range of bytes that the file does not have yet.
    dirty: Option<(usize, usize)>,
}

/// A stretch of clusters that was just taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub offset: u64,
    pub clusters: u64,
    /// Never used before: the file has a hole or ends there.
    pub virgin: bool,
}

/// The counts of all clusters in the file.
pub(super) struct Refcounts {
    order: u32,
    cluster_bits: u32,
    pub(super) table: Vec<u64>,
    pub(super) table_offset: u64,
    table_dirty: Option<(usize, usize)>,
    /// The table was moved: the header has to follow.
    moved_from: Option<(u64, u64)>,
    blocks: HashMap<u64, Block>,
    /// No free cluster is below this index.
    hint: u64,
    /// From this index on clusters were never handed out.
    virgin: u64,
}

impl Refcounts {
    pub(super) fn load(storage: &dyn Storage, header: &Header) -> Result<Self> {
        let entries = u64::from(header.reftable_clusters) << header.cluster_bits >> 3;
        Ok(Self {
            order: header.refcount_order,
            cluster_bits: header.cluster_bits,
            table: read_table(storage, header.reftable_offset, entries as usize)?,
            table_offset: header.reftable_offset,
            table_dirty: None,
            moved_from: None,
            blocks: HashMap::new(),
            hint: 0,
            virgin: storage.len()?.div_ceil(header.cluster_size()),
        })
    }

    /// Counts for a file that has only a header and this table, of one cluster.
    pub(super) fn empty(order: u32, cluster_bits: u32, table_offset: u64) -> Self {
        let entries = 1_usize << cluster_bits >> 3;
        Self {
            order,
            cluster_bits,
            table: vec![0; entries],
            table_offset,
            table_dirty: Some((0, entries)),
            moved_from: None,
            blocks: HashMap::new(),
            hint: 0,
            virgin: (table_offset >> cluster_bits) + 1,
        }
    }

    /// Counts to be filled for a file in use up to `end` (in clusters); the
    /// table finds its place when the first count is set.
    pub(super) fn relocated(order: u32, cluster_bits: u32, end: u64) -> Self {
        Self {
            order,
            cluster_bits,
            table: Vec::new(),
            table_offset: 0,
            table_dirty: None,
            moved_from: None,
            blocks: HashMap::new(),
            hint: 0,
            virgin: end,
        }
    }

    /// Where the blocks are.
    pub(super) fn block_offsets(&self) -> Vec<u64> {
        self.table.iter().map(|entry| entry & BLOCK_MASK).filter(|&offset| offset != 0).collect()
    }

    pub(super) fn has_block(&self, index: u64) -> bool {
        self.table.get(index as usize).is_some_and(|entry| entry & BLOCK_MASK != 0)
    }

    /// Takes a block that cannot be right out of the table.
    pub(super) fn drop_block(&mut self, index: u64) {
        self.blocks.remove(&index);
        self.table[index as usize] = 0;
        self.touch_table(index as usize);
    }

    /// Nothing below this cluster counts as never used.
    pub(super) fn reach(&mut self, end: u64) {
        self.virgin = self.virgin.max(end);
    }

    fn touch_table(&mut self, at: usize) {
        self.table_dirty = Some(match self.table_dirty {
            Some((from, to)) => (from.min(at), to.max(at + 1)),
            None => (at, at + 1),
        });
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts in one block.
    pub(super) fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    pub(super) fn max(&self) -> u64 {
        if self.order == 6 { u64::MAX } else { (1 << (1 << self.order)) - 1 }
    }

    /// Clusters that the table occupies.
    pub(super) fn table_clusters(&self) -> u64 {
        (self.table.len() as u64 * 8).div_ceil(self.cluster())
    }

    /// The end of what has ever been used, in clusters.
    pub(super) fn end(&self) -> u64 {
        self.virgin
    }

    fn block(
        &mut self,
        storage: &dyn Storage,
        index: u64,
        blame: &Blame,
    ) -> Result<Option<&mut Block>> {
        let offset = self.table.get(index as usize).copied().unwrap_or(0) & BLOCK_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if !self.blocks.contains_key(&index) {
            if offset & (self.cluster() - 1) != 0 {
                return Err(blame.corrupt(format!(
                    "reference count block {index} at unaligned offset {offset:#x}"
                )));
            }
            self.forget_clean();
            let bytes = read_vec(storage, offset, self.cluster() as usize)?;
            self.blocks.insert(index, Block { bytes, dirty: None });
        }
        Ok(self.blocks.get_mut(&index))
    }

    fn forget_clean(&mut self) {
        if self.blocks.len() as u64 * self.cluster() >= CACHE_BYTES {
            self.blocks.retain(|_, block| block.dirty.is_some());
        }
    }

    /// The count of a cluster.
    pub(super) fn get(&mut self, storage: &dyn Storage, index: u64, blame: &Blame) -> Result<u64> {
        let (order, per) = (self.order, self.per_block());
        Ok(match self.block(storage, index / per, blame)? {
            Some(block) => refcount_get(&block.bytes, order, (index % per) as usize),
            None => 0,
        })
    }

    /// Stores a count, making the block for it if there is none.
    pub(super) fn set(
        &mut self,
        storage: &dyn Storage,
        index: u64,
        value: u64,
        blame: &Blame,
    ) -> Result<()> {
        if value > self.max() {
            return Err(blame.unsupported(format!(
                "more than {} references to a cluster; use a larger refcount_bits",
                self.max()
            )));
        }
        let (order, per) = (self.order, self.per_block());
        if self.block(storage, index / per, blame)?.is_none() {
            self.make_block(storage, index / per, blame)?;
        }
        let Some(block) = self.block(storage, index / per, blame)? else {
            return Err(blame.corrupt("a reference count block vanished"));
        };
        let at = (index % per) as usize;
        refcount_set(&mut block.bytes, order, at, value);
        let first = (at << order) / 8;
        let last = ((at + 1) << order).div_ceil(8).max(first + 1);
        block.dirty = Some(match block.dirty {
            Some((from, to)) => (from.min(first), to.max(last)),
            None => (first, last),
        });
        if value == 0 {
            self.hint = self.hint.min(index);
        }
        Ok(())
    }

    fn make_block(&mut self, storage: &dyn Storage, index: u64, blame: &Blame) -> Result<()> {
        if index as usize >= self.table.len() {
            self.grow_table(storage, index, blame)?;
            if self.table[index as usize] & BLOCK_MASK != 0 {
                return Ok(());
            }
        }
        // In its own range everything counts as free: the first cluster that
        // was never used is the natural place.
        let first = index * self.per_block();
        let place = if self.virgin > first && self.virgin < first + self.per_block() {
            self.virgin
        } else if self.virgin <= first {
            first
        } else {
            // The range was used before without counts (a damaged image):
            // nothing may be overwritten, so the block goes to the end.
            let place = self.virgin;
            self.virgin += 1;
            self.install_block(index, place);
            return self.set(storage, place, 1, blame);
        };
        self.virgin = self.virgin.max(place + 1);
        self.install_block(index, place);
        self.set(storage, place, 1, blame)
    }

    fn install_block(&mut self, index: u64, place: u64) {
        let cluster = self.cluster() as usize;
        self.blocks.insert(index, Block { bytes: vec![0; cluster], dirty: Some((0, cluster)) });
        self.table[index as usize] = place << self.cluster_bits;
        self.touch_table(index as usize);
    }

    fn grow_table(&mut self, storage: &dyn Storage, index: u64, blame: &Blame) -> Result<()> {
        let old = (self.table_offset, self.table_clusters());
        let per_cluster = self.cluster() / 8;
        let wanted = ((index + 1) * 3 / 2 + 2).next_multiple_of(per_cluster);
        if wanted * 8 > 8 << 20 {
            return Err(Error::io(
                "grow",
                &blame.name,
                std::io::Error::from_raw_os_error(libc::EFBIG),
            ));
        }
        self.table.resize(wanted as usize, 0);
        let start = self.virgin;
        let clusters = wanted / per_cluster;
        self.virgin += clusters;
        self.table_offset = start << self.cluster_bits;
        self.table_dirty = Some((0, self.table.len()));
        // Several moves before a commit: only the first place is on disk.
        if self.moved_from.is_none() && old.1 > 0 {
            self.moved_from = Some(old);
        }
        for cluster in start..start + clusters {
            self.set(storage, cluster, 1, blame)?;
        }
        Ok(())
    }

    /// Takes up to `wanted` clusters that lie side by side, at least one.
    pub(super) fn take(
        &mut self,
        storage: &dyn Storage,
        wanted: u64,
        blame: &Blame,
    ) -> Result<Taken> {
        self.take_run(storage, wanted, 1, blame)
    }

    /// Takes exactly so many clusters side by side.
    pub(super) fn take_all(
        &mut self,
        storage: &dyn Storage,
        wanted: u64,
        blame: &Blame,
    ) -> Result<u64> {
        Ok(self.take_run(storage, wanted, wanted, blame)?.offset)
    }

    fn take_run(
        &mut self,
        storage: &dyn Storage,
        wanted: u64,
        at_least: u64,
        blame: &Blame,
    ) -> Result<Taken> {
        let per = self.per_block();
        loop {
            let (start, found) = self.find(storage, wanted, at_least, blame)?;
            // Blocks first: making one may use a cluster of the stretch.
            let blocks_before = self.virgin;
            for index in start / per..=(start + found - 1) / per {
                if self.block(storage, index, blame)?.is_none() {
                    self.make_block(storage, index, blame)?;
                }
            }
            if self.virgin != blocks_before && start + found > blocks_before {
                continue;
            }
            for index in start..start + found {
                self.set(storage, index, 1, blame)?;
            }
            if at_least == 1 {
                self.hint = self.hint.max(start + found);
            }
            let virgin = start >= self.virgin;
            self.virgin = self.virgin.max(start + found);
            return Ok(Taken { offset: start << self.cluster_bits, clusters: found, virgin });
        }
    }

    /// The first stretch of free clusters that is long enough, cut where it
    /// changes between used-before and never used.
    fn find(
        &mut self,
        storage: &dyn Storage,
        wanted: u64,
        at_least: u64,
        blame: &Blame,
    ) -> Result<(u64, u64)> {
        let mut start = self.hint.min(self.virgin);
        let mut at = start;
        while at < self.virgin {
            if self.get(storage, at, blame)? != 0 {
                start = at + 1;
            } else if at + 1 - start >= wanted {
                return Ok((start, wanted));
            }
            at += 1;
        }
        if at_least == 1 {
            self.hint = start;
            if start < self.virgin {
                return Ok((start, self.virgin - start));
            }
        }
        Ok((self.virgin, wanted))
    }

    /// One reference more for each cluster that a stretch of bytes touches.
    pub(super) fn add(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        len: u64,
        blame: &Blame,
    ) -> Result<()> {
        for index in clusters_of(offset, len, self.cluster_bits) {
            let count = self.get(storage, index, blame)?;
            self.set(storage, index, count.saturating_add(1), blame)?;
        }
        Ok(())
    }

    /// One reference less; says which clusters became free.
    pub(super) fn remove(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        len: u64,
        blame: &Blame,
    ) -> Result<Vec<u64>> {
        let mut free = Vec::new();
        for index in clusters_of(offset, len, self.cluster_bits) {
            let count = self.get(storage, index, blame)?;
            if count == 0 {
                return Err(blame.corrupt(format!(
                    "cluster at {:#x} is in use and has no reference count; run a repair",
                    index << self.cluster_bits
                )));
            }
            self.set(storage, index, count - 1, blame)?;
            if count == 1 {
                free.push(index << self.cluster_bits);
            }
        }
        Ok(free)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.table_is_dirty() || self.blocks.values().any(|block| block.dirty.is_some())
    }

    /// Whether the table, or the header that points to it, has to be written.
    pub(super) fn table_is_dirty(&self) -> bool {
        self.table_dirty.is_some() || self.moved_from.is_some()
    }

    /// The place and clusters of the table that the header still points to,
    /// if that is not this one.
    pub(super) fn moved_from(&self) -> Option<(u64, u64)> {
        self.moved_from
    }

    /// The header points to this table.
    pub(super) fn move_is_done(&mut self) {
        self.moved_from = None;
    }

    /// Writes dirty blocks. The table has to follow, after a flush.
    pub(super) fn write_blocks(&mut self, storage: &dyn Storage) -> Result<()> {
        let mut dirty: Vec<u64> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.dirty.is_some())
            .map(|(&index, _)| index)
            .collect();
        dirty.sort_unstable();
        for index in dirty {
            let place = self.table[index as usize] & BLOCK_MASK;
            if let Some(block) = self.blocks.get_mut(&index)
                && let Some((from, to)) = block.dirty
            {
                let (from, to) = (from & !511, to.next_multiple_of(512).min(block.bytes.len()));
                storage.write_at(place + from as u64, &block.bytes[from..to])?;
                block.dirty = None;
            }
        }
        Ok(())
    }

    /// Writes the table. If it has moved, the header has to follow.
    pub(super) fn write_table(&mut self, storage: &dyn Storage) -> Result<()> {
        if let Some((from, to)) = self.table_dirty {
            let bytes = table_bytes(&self.table[from..to]);
            storage.write_at(self.table_offset + from as u64 * 8, &bytes)?;
            self.table_dirty = None;
        }
        Ok(())
    }
}

/// The indices of the clusters that a stretch of bytes touches.
pub(super) fn clusters_of(offset: u64, len: u64, cluster_bits: u32) -> std::ops::Range<u64> {
    let first = offset >> cluster_bits;
    let last = if len == 0 { first } else { ((offset + len - 1) >> cluster_bits) + 1 };
    first..last
}
