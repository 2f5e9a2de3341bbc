//! Changes of an existing image as a whole: size, preallocation, options.

use std::sync::atomic::Ordering;

use super::Qcow2;
use super::entry::Entry;
use super::header::{AUTOCLEAR_RAW_DATA, COMPAT_LAZY, INCOMPAT_DIRTY, table_bytes};
use super::meta::Free;
use super::refcounts::Refcounts;
use crate::error::{Error, Result};
use crate::format::{BackingReference, Below, Bottom, Format, Preallocation};
use crate::formats::raw;

/// Options that can be changed; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct Amendment {
    pub version: Option<u32>,
    pub lazy_refcounts: Option<bool>,
    pub refcount_bits: Option<u32>,
    pub data_file_raw: Option<bool>,
    /// Another name of the data file: it was moved.
    pub data_file: Option<String>,
    /// `Some(None)` cuts the image loose from its backing file.
    pub backing: Option<Option<BackingReference>>,
}

impl Qcow2 {
    pub(super) fn change_size(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.check_writable()?;
        if size > i64::MAX as u64 - (2 << 20) {
            return Err(Error::option("size", "is too large"));
        }
        self.settle()?;
        let old = self.size();
        if size < old {
            if preallocation != Preallocation::Off {
                return Err(Error::option("preallocation", "is for growing only"));
            }
            self.cut(size)?;
        }
        self.fit_l1(size)?;
        let mut meta = self.meta.lock();
        meta.header.size = size;
        meta.write_header(self.file())?;
        meta.bitmaps.iter_mut().for_each(|bitmap| bitmap.fit(size));
        if !meta.bitmaps.is_empty() {
            self.mark_bitmaps_in_use(&mut meta)?;
        }
        drop(meta);
        self.size.store(size, Ordering::Release);
        if self.data != 0 {
            self.storages[1].set_len(size)?;
        }
        if size > old && preallocation != Preallocation::Off {
            let start = old.next_multiple_of(self.shape.cluster());
            self.preallocate(start, size, preallocation)?;
        }
        self.settle()
    }

    /// Empties what lies behind a new end, also in the last cluster: it must
    /// not come back when the disk grows again.
    fn cut(&self, size: u64) -> Result<()> {
        let old = self.size();
        let edge = size.next_multiple_of(self.shape.cluster()).min(old);
        if size < edge {
            // The entry is left alone: the cluster's first part may be what is below.
            self.write_zero_bytes(size, edge - size, &Bottom)?;
        }
        if edge < old {
            self.forget_range(edge, old - edge)?;
        }
        self.settle()
    }

    /// Moves the L1 table to a larger place if the disk needs it.
    fn fit_l1(&self, size: u64) -> Result<()> {
        let mut meta = self.meta.lock();
        let needed = size.div_ceil(meta.header.l2_coverage()) as usize;
        if needed <= meta.l1.len() {
            return Ok(());
        }
        if needed * 8 > 32 << 20 {
            return Err(Error::option("size", "is too large for this cluster size"));
        }
        let (old, old_len) = (meta.header.l1_offset, meta.l1.len() as u64 * 8);
        let mut l1 = meta.l1.clone();
        l1.resize(needed, 0);
        let clusters = (needed as u64 * 8).div_ceil(self.shape.cluster());
        let offset = meta.refs.take_all(self.file(), clusters, &self.blame)?;
        let mut bytes = table_bytes(&l1);
        bytes.resize((clusters * self.shape.cluster()) as usize, 0);
        self.file().write_at(offset, &bytes)?;
        drop(meta);
        self.commit_meta(true)?;
        let mut meta = self.meta.lock();
        meta.header.l1_offset = offset;
        meta.header.l1_entries = needed as u32;
        meta.write_header(self.file())?;
        self.file().flush()?;
        meta.replace_l1(l1);
        meta.frees.push(Free { offset: old, len: old_len.max(1) });
        Ok(())
    }

    /// Takes clusters for a stretch that has none yet.
    pub(super) fn preallocate(&self, from: u64, to: u64, how: Preallocation) -> Result<()> {
        let cluster = self.shape.cluster();
        let mut guest = from & !(cluster - 1);
        while guest < to {
            let mut meta = self.meta.lock();
            let old = meta.entry(self.file(), guest)?;
            if old != Entry::default() {
                guest += cluster;
                continue;
            }
            meta.own_table(self.file(), guest)?;
            let left = self.shape.entries() - meta.split(guest).1;
            let wanted = left.min((to - guest).div_ceil(cluster));
            let mut run = 1;
            while run < wanted && meta.entry(self.file(), guest + run * cluster)? == old {
                run += 1;
            }
            let host = if self.data != 0 {
                guest
            } else {
                let taken = meta.refs.take(self.file(), run, &self.blame)?;
                run = taken.clusters;
                if !taken.virgin {
                    self.file().write_zeroes(taken.offset, run * cluster, false)?;
                }
                taken.offset
            };
            for index in 0..run {
                let mut entry = Entry { host: host + index * cluster, copied: true, ..old };
                if self.shape.extended || self.cipher.is_some() {
                    // Without data yet: a backing file may show through, and
                    // unwritten sectors are no ciphertext.
                    entry.zero = if self.cipher.is_some() { self.shape.all() } else { 0 };
                    if !self.shape.extended {
                        entry.zero = 1;
                    }
                } else {
                    entry.alloc = self.shape.all();
                }
                meta.set_entry(self.file(), guest + index * cluster, entry)?;
            }
            drop(meta);
            let storage = &*self.storages[usize::from(self.data)];
            let len = run * cluster;
            if storage.len()? < host + len && self.data == 0 {
                storage.set_len(host + len)?;
            }
            raw::preallocate(storage, host, len.min(to.max(guest + cluster) - guest), how)?;
            guest += len;
            self.commit_if_full()?;
        }
        Ok(())
    }

    /// Changes options. `below` is what stands under the image.
    pub fn amend(&self, change: &Amendment, below: &dyn Below) -> Result<()> {
        self.check_writable()?;
        self.settle()?;
        if change.version == Some(3) {
            self.meta.lock().header.version = 3;
            self.rewrite_header()?;
        }
        if let Some(bits) = change.refcount_bits {
            self.change_refcount_bits(bits)?;
        }
        if let Some(lazy) = change.lazy_refcounts {
            let mut meta = self.meta.lock();
            if lazy && meta.header.version < 3 {
                return Err(Error::option("lazy_refcounts", "needs compat=v3"));
            }
            meta.header.compatible &= !COMPAT_LAZY;
            if lazy {
                meta.header.compatible |= COMPAT_LAZY;
            } else {
                meta.header.incompatible &= !INCOMPAT_DIRTY;
                meta.marked_dirty = false;
            }
            drop(meta);
            self.lazy.store(lazy, Ordering::Relaxed);
        }
        if let Some(raw) = change.data_file_raw {
            let mut meta = self.meta.lock();
            if raw && !meta.header.raw_external() {
                return Err(Error::option("data_file_raw", "can only be set for a new image"));
            }
            if !raw {
                meta.header.autoclear &= !AUTOCLEAR_RAW_DATA;
            }
        }
        if let Some(name) = &change.data_file {
            let mut meta = self.meta.lock();
            if !meta.header.external_data() {
                return Err(Error::option("data_file", "the image has none"));
            }
            meta.header.data_file = Some(name.clone());
        }
        if let Some(backing) = &change.backing {
            let mut meta = self.meta.lock();
            if backing.is_some() && meta.header.raw_external() {
                return Err(Error::option("backing_file", "does not go with data_file_raw"));
            }
            meta.header.backing = backing.as_ref().map(|b| b.name.clone());
            meta.header.backing_format = backing.as_ref().and_then(|b| b.format.clone());
        }
        self.rewrite_header()?;
        if change.version == Some(2) {
            self.downgrade(below)?;
        }
        Ok(())
    }

    fn rewrite_header(&self) -> Result<()> {
        self.meta.lock().write_header(self.file())?;
        self.file().flush()
    }

    /// To version 2, which has no zero flag and none of the features.
    fn downgrade(&self, below: &dyn Below) -> Result<()> {
        let meta = self.meta.lock();
        let header = &meta.header;
        if header.version == 2 {
            return Ok(());
        }
        let obstacle = if header.incompatible & !INCOMPAT_DIRTY != 0 {
            Some("features that version 2 does not have")
        } else if header.refcount_order != 4 {
            Some("refcount_bits other than 16")
        } else if !meta.snapshots.is_empty() {
            Some("snapshots, which may have zero clusters")
        } else if header.bitmaps.is_some() {
            Some("bitmaps")
        } else {
            None
        };
        drop(meta);
        if let Some(obstacle) = obstacle {
            return Err(Error::option(
                "compat",
                format!("cannot be lowered: there are {obstacle}"),
            ));
        }
        self.expand_zeroes(below)?;
        self.settle()?;
        let mut meta = self.meta.lock();
        meta.header.version = 2;
        (meta.header.compatible, meta.header.incompatible, meta.header.autoclear) = (0, 0, 0);
        drop(meta);
        self.lazy.store(false, Ordering::Relaxed);
        self.rewrite_header()
    }

    /// Turns zero flags into what version 2 can say.
    fn expand_zeroes(&self, below: &dyn Below) -> Result<()> {
        let cluster = self.shape.cluster();
        let mut guest = 0;
        while guest < self.size() {
            let mut meta = self.meta.lock();
            let (l1_index, index) = meta.split(guest);
            if meta.l1[l1_index] == 0 {
                guest += (self.shape.entries() - index) * cluster;
                continue;
            }
            let old = meta.entry(self.file(), guest)?;
            if old.zero != 0 {
                let mut entry = Entry::default();
                if !below.is_zero(guest, cluster)? {
                    let taken = meta.refs.take(self.file(), 1, &self.blame)?;
                    self.file().write_zeroes(taken.offset, cluster, false)?;
                    entry = Entry { host: taken.offset, copied: true, alloc: 1, ..entry };
                }
                meta.set_entry(self.file(), guest, entry)?;
                self.drop_content(&mut meta, &old);
            }
            guest += cluster;
        }
        Ok(())
    }

    /// Writes all counts anew in another width.
    fn change_refcount_bits(&self, bits: u32) -> Result<()> {
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Error::option("refcount_bits", "takes a power of two up to 64"));
        }
        let mut meta = self.meta.lock();
        let order = bits.trailing_zeros();
        if order == meta.header.refcount_order {
            return Ok(());
        }
        if meta.header.version < 3 {
            return Err(Error::option("refcount_bits", "needs compat=v3"));
        }
        let end = meta.refs.end();
        let mut wide = Refcounts::relocated(order, self.shape.cluster_bits, end);
        let old_blocks: Vec<u64> = meta.refs.block_offsets();
        for index in 0..end {
            let count = meta.refs.get(self.file(), index, &self.blame)?;
            if count > 0 {
                wide.set(self.file(), index, count, &self.blame)?;
            }
        }
        wide.write_blocks(self.file())?;
        wide.write_table(self.file())?;
        self.file().flush()?;
        let (old_table, old_len) =
            (meta.refs.table_offset, meta.refs.table_clusters() << self.shape.cluster_bits);
        meta.header.refcount_order = order;
        meta.header.reftable_offset = wide.table_offset;
        meta.header.reftable_clusters = wide.table_clusters() as u32;
        meta.write_header(self.file())?;
        self.file().flush()?;
        meta.refs = wide;
        let cluster = self.shape.cluster();
        meta.frees.push(Free { offset: old_table, len: old_len });
        meta.frees.extend(old_blocks.into_iter().map(|offset| Free { offset, len: cluster }));
        drop(meta);
        self.settle()
    }
}
