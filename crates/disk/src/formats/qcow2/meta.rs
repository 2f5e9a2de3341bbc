//! The metadata of an open image in memory, and the order in which it reaches
//! the file.
//!
//! Changes stay in memory until a flush, or until there are too many. A commit
//! then writes in an order that leaves a sound image wherever it is cut:
//!
//! 1. reference count blocks, new L2 tables (nothing points to them yet);
//! 2. flush, which also makes the data stable that new entries point to;
//! 3. the count table and the header, if they changed, each with a flush;
//! 4. L2 entries in place and L1 entries;
//! 5. flush; only now what the old entries pointed to may be given up.
//!
//! A cut leaves counts that are too high (leaks), never one that is too low.
//! Clusters given up are used again when no request that may still read them
//! is under way; see `Epochs`.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bitmap::LiveBitmap;
use super::entry::{COPIED, Entry, OFFSET_MASK, Shape};
use super::header::Header;
use super::refcounts::Refcounts;
use super::snapshot::Snapshot;
use crate::bytes::{be64, put};
use crate::error::{Blame, Result};
use crate::storage::{Storage, read_vec};

/// L2 tables are kept up to this many bytes: enough for a 256 GiB disk.
const L2_CACHE_BYTES: usize = 32 << 20;
/// With so many clusters waiting to be given up, a commit is due.
const MANY_FREES: usize = 8192;

/// For tables by their offset, which every request looks up: an image that
/// makes them collide slows down its own user only.
#[derive(Default)]
struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 << 8 | u64::from(byte)));
    }

    fn write_u64(&mut self, offset: u64) {
        let product = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// An L2 table in memory.
struct Table {
    bytes: Vec<u8>,
    dirty: Option<(usize, usize)>,
    /// Nothing in the file points to it yet.
    fresh: bool,
    /// Its bytes are on the way to the file.
    writing: bool,
    used: u64,
}

/// A stretch of host bytes that lost one reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub offset: u64,
    pub len: u64,
}

/// Everything about the image that changes, under one lock.
pub(super) struct Meta {
    pub header: Header,
    pub l1: Vec<u64>,
    l1_dirty: Option<(usize, usize)>,
    tables: HashMap<u64, Table, BuildHasherDefault<OffsetHasher>>,
    clock: u64,
    pub refs: Refcounts,
    /// Lost a reference since the last commit.
    pub frees: Vec<Free>,
    /// Committed since the last generation of requests began.
    committed: Vec<Free>,
    /// Committed before that: free once the generation before it is gone.
    closed: Vec<Free>,
    /// Guest clusters that are being written for the first time.
    pub busy: HashSet<u64>,
    /// Where the next compressed cluster may go on, in the last one taken.
    pub packed_tail: u64,
    pub snapshots: Vec<Snapshot>,
    pub bitmaps: Vec<LiveBitmap>,
    /// The file says that its bitmaps lag behind.
    pub bitmaps_in_use: bool,
    /// What removed bitmaps occupied, until the directory is written.
    pub bitmap_frees: Vec<Free>,
    /// The file's flag for counts that lag behind is set.
    pub marked_dirty: bool,
    shape: Shape,
    blame: Blame,
}

/// What a commit writes after the first flush.
pub(super) struct Staged {
    l2: Vec<(u64, Vec<u8>, u64)>,
    l1: Option<(u64, Vec<u8>)>,
    refs: bool,
    frees: Vec<Free>,
}

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.l2.is_empty() && self.l1.is_none() && !self.refs && self.frees.is_empty()
    }

    pub(super) fn into_frees(self) -> Vec<Free> {
        self.frees
    }
}

impl Meta {
    pub(super) fn new(
        header: Header,
        l1: Vec<u64>,
        refs: Refcounts,
        snapshots: Vec<Snapshot>,
        blame: Blame,
    ) -> Self {
        let shape = Shape { cluster_bits: header.cluster_bits, extended: header.extended_l2() };
        Self {
            header,
            l1,
            l1_dirty: None,
            tables: HashMap::default(),
            clock: 0,
            refs,
            frees: Vec::new(),
            committed: Vec::new(),
            closed: Vec::new(),
            busy: HashSet::new(),
            packed_tail: 0,
            snapshots,
            bitmaps: Vec::new(),
            bitmaps_in_use: false,
            bitmap_frees: Vec::new(),
            marked_dirty: false,
            shape,
            blame,
        }
    }

    /// Whether a commit should come soon, without being asked for.
    pub(super) fn is_full(&self) -> bool {
        self.frees.len() > MANY_FREES || self.dirty_tables() * 2 > self.capacity()
    }

    fn capacity(&self) -> usize {
        (L2_CACHE_BYTES >> self.shape.cluster_bits).max(8)
    }

    fn dirty_tables(&self) -> usize {
        if self.tables.len() * 2 <= self.capacity() {
            return 0;
        }
        self.tables.values().filter(|table| table.dirty.is_some()).count()
    }

    /// Where in L1 and L2 a guest address is.
    pub(super) fn split(&self, guest: u64) -> (usize, u64) {
        let index = guest >> self.shape.cluster_bits;
        let bits = self.shape.entry_bits();
        ((index >> bits) as usize, index & ((1 << bits) - 1))
    }

    fn load(&mut self, storage: &dyn Storage, offset: u64) -> Result<&mut Table> {
        self.clock += 1;
        let clock = self.clock;
        if !self.tables.contains_key(&offset) {
            if offset & (self.shape.cluster() - 1) != 0 {
                let what = format!("an L2 table at unaligned offset {offset:#x}");
                return Err(self.blame.corrupt(what));
            }
            self.make_room();
            let bytes = read_vec(storage, offset, self.shape.cluster() as usize)?;
            self.insert(offset, bytes, false);
        }
        let blame = &self.blame;
        let table = self.tables.get_mut(&offset).ok_or_else(|| blame.corrupt("lost a table"))?;
        table.used = clock;
        Ok(table)
    }

    fn insert(&mut self, offset: u64, bytes: Vec<u8>, fresh: bool) {
        let dirty = fresh.then_some((0, bytes.len()));
        let used = self.clock;
        self.tables.insert(offset, Table { bytes, dirty, fresh, writing: false, used });
    }

    /// Forgets the least used clean tables, some at a time.
    fn make_room(&mut self) {
        if self.tables.len() < self.capacity() {
            return;
        }
        let mut clean: Vec<(u64, u64)> = self
            .tables
            .iter()
            .filter(|(_, table)| table.dirty.is_none() && !table.writing)
            .map(|(&offset, table)| (table.used, offset))
            .collect();
        clean.sort_unstable();
        for (_, offset) in clean.into_iter().take(self.capacity() / 8 + 1) {
            self.tables.remove(&offset);
        }
    }

    /// The data cluster for a guest address if its table is in memory, and whether it
    /// belongs to this address alone.
    pub(super) fn data_cluster(&mut self, guest: u64) -> Option<(u64, bool)> {
        let (l1_index, index) = self.split(guest);
        let offset = self.l1.get(l1_index)? & OFFSET_MASK;
        let table = self.tables.get_mut(&offset)?;
        self.clock += 1;
        table.used = self.clock;
        self.shape.data_cluster(be64(&table.bytes, index as usize * self.shape.entry_len()))
    }

    /// The entry for a guest address, if there is a table for it.
    pub(super) fn entry(&mut self, storage: &dyn Storage, guest: u64) -> Result<Entry> {
        let (l1_index, index) = self.split(guest);
        let offset = self.l1.get(l1_index).copied().unwrap_or(0) & OFFSET_MASK;
        if offset == 0 {
            return Ok(Entry::default());
        }
        self.entry_in(storage, offset, index, guest)
    }

    /// An entry of the table at `offset`.
    pub(super) fn entry_in(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        index: u64,
        guest: u64,
    ) -> Result<Entry> {
        let shape = self.shape;
        let at = index as usize * shape.entry_len();
        let table = self.load(storage, offset)?;
        let word = be64(&table.bytes, at);
        let bits = if shape.extended { be64(&table.bytes, at + 8) } else { 0 };
        shape.decode(word, bits, guest, &self.blame)
    }

    /// Replaces an entry. The table must be writable: see `own_table`.
    pub(super) fn set_entry(
        &mut self,
        storage: &dyn Storage,
        guest: u64,
        entry: Entry,
    ) -> Result<()> {
        let offset = self.own_table(storage, guest)?;
        let (_, index) = self.split(guest);
        self.set_entry_in(storage, offset, index, entry)
    }

    /// Replaces an entry of the table at `offset`.
    pub(super) fn set_entry_in(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        index: u64,
        entry: Entry,
    ) -> Result<()> {
        let shape = self.shape;
        let (word, bits) = shape.encode(entry);
        let at = index as usize * shape.entry_len();
        let table = self.load(storage, offset)?;
        put(&mut table.bytes, at, &word.to_be_bytes());
        if shape.extended {
            put(&mut table.bytes, at + 8, &bits.to_be_bytes());
        }
        let end = at + shape.entry_len();
        table.dirty = Some(match table.dirty {
            Some((from, to)) => (from.min(at), to.max(end)),
            None => (at, end),
        });
        Ok(())
    }

    /// The place of a table that may be changed: made new, or copied from one
    /// that snapshots share.
    pub(super) fn own_table(&mut self, storage: &dyn Storage, guest: u64) -> Result<u64> {
        let (l1_index, _) = self.split(guest);
        let Some(&old) = self.l1.get(l1_index) else {
            return Err(self.blame.corrupt("a write past the L1 table"));
        };
        if old & COPIED != 0 {
            return Ok(old & OFFSET_MASK);
        }
        let old = old & OFFSET_MASK;
        let bytes = if old == 0 {
            vec![0; self.shape.cluster() as usize]
        } else {
            self.load(storage, old)?.bytes.clone()
        };
        let offset = self.refs.take_all(storage, 1, &self.blame)?;
        self.make_room();
        self.insert(offset, bytes, true);
        self.set_l1(l1_index, offset | COPIED);
        if old != 0 {
            self.frees.push(Free { offset: old, len: self.shape.cluster() });
        }
        Ok(offset)
    }

    /// Changes an L1 entry in memory.
    pub(super) fn set_l1(&mut self, index: usize, value: u64) {
        self.l1[index] = value;
        self.l1_dirty = Some(match self.l1_dirty {
            Some((from, to)) => (from.min(index), to.max(index + 1)),
            None => (index, index + 1),
        });
    }

    /// Exchanges the whole L1 table (after its file copy was exchanged).
    pub(super) fn replace_l1(&mut self, l1: Vec<u64>) {
        self.l1 = l1;
        self.l1_dirty = None;
    }

    /// Forgets cached tables: their clusters changed behind the cache.
    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    /// First part of a commit: writes what nothing points to, and takes out
    /// what is to follow after a flush.
    pub(super) fn stage(&mut self, storage: &dyn Storage, counts: bool) -> Result<Staged> {
        let mut refs = false;
        if counts && self.refs.is_dirty() {
            self.refs.write_blocks(storage)?;
            refs = true;
        }
        for (&offset, table) in self.tables.iter_mut().filter(|(_, table)| table.fresh) {
            storage.write_at(offset, &table.bytes)?;
            table.fresh = false;
            table.dirty = None;
        }
        // Nothing may fail from here on: what is taken out is with the caller.
        let mut l2 = Vec::new();
        for (&offset, table) in &mut self.tables {
            let Some((from, to)) = table.dirty.take() else { continue };
            let (from, to) = (from & !511, to.next_multiple_of(512));
            l2.push((offset + from as u64, table.bytes[from..to].to_vec(), offset));
            table.writing = true;
        }
        l2.sort_unstable_by_key(|&(at, ..)| at);
        let l1 = self.l1_dirty.take().map(|(from, to)| {
            let (from, to) = (from & !63, to.next_multiple_of(64).min(self.l1.len()));
            let bytes = super::header::table_bytes(&self.l1[from..to]);
            (self.header.l1_offset + from as u64 * 8, bytes)
        });
        Ok(Staged { l2, l1, refs, frees: std::mem::take(&mut self.frees) })
    }

    /// Third part: the table of counts and the header that points to it,
    /// stable when this returns.
    pub(super) fn write_counts_table(&mut self, storage: &dyn Storage) -> Result<()> {
        if !self.refs.table_is_dirty() {
            return Ok(());
        }
        self.refs.write_table(storage)?;
        storage.flush()?;
        if let Some((old, clusters)) = self.refs.moved_from() {
            self.header.reftable_offset = self.refs.table_offset;
            self.header.reftable_clusters = self.refs.table_clusters() as u32;
            self.write_header(storage)?;
            storage.flush()?;
            self.refs.move_is_done();
            self.frees.push(Free { offset: old, len: clusters << self.shape.cluster_bits });
        }
        Ok(())
    }

    pub(super) fn write_header(&self, storage: &dyn Storage) -> Result<()> {
        storage.write_at(0, &self.header.to_cluster(&self.blame)?)
    }

    /// Last part: what was being written is in the file.
    pub(super) fn written(&mut self, staged: &Staged) {
        for (_, _, table) in &staged.l2 {
            if let Some(table) = self.tables.get_mut(table) {
                table.writing = false;
            }
        }
    }

    /// A commit failed: all of it is dirty again.
    pub(super) fn put_back(&mut self, staged: Staged) {
        for (at, bytes, offset) in &staged.l2 {
            if let Some(table) = self.tables.get_mut(offset) {
                let from = (at - offset) as usize;
                let to = from + bytes.len();
                table.writing = false;
                table.dirty = Some(match table.dirty {
                    Some((f, t)) => (f.min(from), t.max(to)),
                    None => (from, to),
                });
            }
        }
        if staged.l1.is_some() && !self.l1.is_empty() {
            self.l1_dirty = Some((0, self.l1.len()));
        }
        let mut frees = staged.frees;
        frees.append(&mut self.frees);
        self.frees = frees;
    }

    /// Gives up what no request can be reading any more, and queues the next.
    pub(super) fn release(
        &mut self,
        storage: &dyn Storage,
        frees: Vec<Free>,
        epochs: &Epochs,
        punch: bool,
    ) -> Result<()> {
        self.committed.extend(frees);
        if !epochs.advance() {
            return Ok(());
        }
        let committed = std::mem::take(&mut self.committed);
        let now = std::mem::replace(&mut self.closed, committed);
        self.give_up(storage, now, punch)
    }

    /// Gives up everything that waits; no request may be under way.
    pub(super) fn release_all(&mut self, storage: &dyn Storage, punch: bool) -> Result<()> {
        let mut all = std::mem::take(&mut self.closed);
        all.append(&mut self.committed);
        all.append(&mut self.frees);
        self.give_up(storage, all, punch)
    }

    fn give_up(&mut self, storage: &dyn Storage, frees: Vec<Free>, punch: bool) -> Result<()> {
        for free in frees {
            for cluster in self.refs.remove(storage, free.offset, free.len, &self.blame)? {
                self.tables.remove(&cluster);
                if self.packed_tail & !(self.shape.cluster() - 1) == cluster {
                    self.packed_tail = 0;
                }
                if punch {
                    storage.discard(cluster, self.shape.cluster())?;
                }
            }
        }
        Ok(())
    }
}

/// Writes the second half of a commit: entries in place.
pub(super) fn write_staged(storage: &dyn Storage, staged: &Staged) -> Result<()> {
    for (at, bytes, _) in &staged.l2 {
        storage.write_at(*at, bytes)?;
    }
    if let Some((at, bytes)) = &staged.l1 {
        storage.write_at(*at, bytes)?;
    }
    Ok(())
}

/// Tells when requests that began before some moment have all ended.
///
/// Requests count themselves in the current of two generations. What was
/// given up in one generation is free for use when that generation has ended
/// and its requests are gone.
#[derive(Default)]
pub(crate) struct Epochs {
    current: AtomicU64,
    under_way: [AtomicU64; 2],
}

/// Held for as long as a request may touch host clusters.
pub(crate) struct Ticket {
    epochs: Arc<Epochs>,
    slot: usize,
}

impl Epochs {
    pub(super) fn enter(self: &Arc<Self>) -> Ticket {
        loop {
            let now = self.current.load(Ordering::SeqCst);
            let slot = (now & 1) as usize;
            self.under_way[slot].fetch_add(1, Ordering::SeqCst);
            if self.current.load(Ordering::SeqCst) == now {
                return Ticket { epochs: Arc::clone(self), slot };
            }
            self.under_way[slot].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Starts a new generation, if the one before the current is gone.
    fn advance(&self) -> bool {
        let now = self.current.load(Ordering::SeqCst);
        let before = ((now + 1) & 1) as usize;
        if self.under_way[before].load(Ordering::SeqCst) != 0 {
            return false;
        }
        self.current.store(now + 1, Ordering::SeqCst);
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.epochs.under_way[self.slot].fetch_sub(1, Ordering::SeqCst);
    }
}
