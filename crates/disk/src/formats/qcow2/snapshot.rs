//! Internal snapshots: an L1 table of an earlier time, kept with all that it
//! refers to.
//!
//! Each operation first raises counts, then changes what the header points to,
//! then lowers counts, with a flush between, so that a cut only ever leaks.

use super::Qcow2;
use super::entry::{COPIED, Entry, OFFSET_MASK};
use super::header::{Header, read_table as read_words, table_bytes};
use super::meta::{Free, Meta};
use crate::bytes::{be16, be32, be64, put};
use crate::error::{Blame, Error, Result};
use crate::format::Format;
use crate::storage::{Storage, read_vec};

const FIXED: usize = 40;
/// Longer tables are refused, as every entry could claim a long name.
const MAX_TABLE: u64 = 64 << 20;

/// A snapshot as the table describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub info: SnapshotInfo,
    /// How many bytes of the extra data that is known here it has.
    known: usize,
    /// Extra data beyond that.
    extra: Vec<u8>,
}

/// State size, disk size, instruction count.
const KNOWN_EXTRA: usize = 24;

/// A snapshot as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub id: String,
    pub name: String,
    /// Seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
    pub vm_clock_ns: u64,
    pub vm_state_size: u64,
    pub disk_size: u64,
    pub icount: Option<u64>,
}

impl Snapshot {
    /// Bytes in the table.
    pub(super) fn encoded_len(&self) -> u64 {
        encode_table(std::slice::from_ref(self)).len() as u64
    }
}

/// Reads the table of snapshots.
pub(super) fn read_table(
    storage: &dyn Storage,
    header: &Header,
    blame: &Blame,
) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    let file_len = storage.len()?;
    for index in 0..header.snapshots {
        let bad = |what: &str| blame.corrupt(format!("snapshot {index}: {what}"));
        if at - header.snapshots_offset > MAX_TABLE || at >= file_len {
            return Err(bad("lies outside the table"));
        }
        let fixed = read_vec(storage, at, FIXED)?;
        let extra_len = be32(&fixed, 36) as usize;
        if extra_len > 1024 {
            return Err(bad("has too much extra data"));
        }
        let (id_len, name_len) = (usize::from(be16(&fixed, 12)), usize::from(be16(&fixed, 14)));
        let rest = read_vec(storage, at + FIXED as u64, extra_len + id_len + name_len)?;
        let (extra, names) = rest.split_at(extra_len);
        let l1_entries = be32(&fixed, 8);
        let l1_offset = be64(&fixed, 0);
        let l1_end = l1_offset.checked_add(u64::from(l1_entries) * 8);
        if l1_entries > 4 << 20
            || !l1_offset.is_multiple_of(header.cluster_size())
            || l1_end.is_none_or(|end| end > file_len.next_multiple_of(header.cluster_size()))
        {
            return Err(bad("has its L1 table outside the file"));
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let wide = |at: usize| (extra.len() >= at + 8).then(|| be64(extra, at));
        snapshots.push(Snapshot {
            l1_offset,
            l1_entries,
            info: SnapshotInfo {
                id: text(&names[..id_len]),
                name: text(&names[id_len..]),
                date: (be32(&fixed, 16), be32(&fixed, 20)),
                vm_clock_ns: be64(&fixed, 24),
                vm_state_size: wide(0).unwrap_or(u64::from(be32(&fixed, 32))),
                disk_size: wide(8).unwrap_or(header.size),
                icount: wide(16).filter(|&count| count != u64::MAX),
            },
            known: extra.len().min(KNOWN_EXTRA),
            extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
        });
        at += (FIXED + extra_len + id_len + name_len).next_multiple_of(8) as u64;
    }
    Ok(snapshots)
}

fn encode_table(snapshots: &[Snapshot]) -> Vec<u8> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        let info = &snapshot.info;
        let mut fixed = [0; FIXED];
        put(&mut fixed, 0, &snapshot.l1_offset.to_be_bytes());
        put(&mut fixed, 8, &snapshot.l1_entries.to_be_bytes());
        put(&mut fixed, 12, &(info.id.len() as u16).to_be_bytes());
        put(&mut fixed, 14, &(info.name.len() as u16).to_be_bytes());
        put(&mut fixed, 16, &info.date.0.to_be_bytes());
        put(&mut fixed, 20, &info.date.1.to_be_bytes());
        put(&mut fixed, 24, &info.vm_clock_ns.to_be_bytes());
        let narrow = u32::try_from(info.vm_state_size).unwrap_or(0);
        put(&mut fixed, 32, &narrow.to_be_bytes());
        put(&mut fixed, 36, &((snapshot.known + snapshot.extra.len()) as u32).to_be_bytes());
        table.extend(fixed);
        let mut known = info.vm_state_size.to_be_bytes().to_vec();
        known.extend(info.disk_size.to_be_bytes());
        known.extend(info.icount.unwrap_or(u64::MAX).to_be_bytes());
        table.extend(&known[..snapshot.known]);
        table.extend(&snapshot.extra);
        table.extend(info.id.as_bytes());
        table.extend(info.name.as_bytes());
        table.resize(table.len().next_multiple_of(8), 0);
    }
    table
}

impl Qcow2 {
    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.meta.lock().snapshots.iter().map(|snapshot| snapshot.info.clone()).collect()
    }

    fn find_snapshot(&self, meta: &Meta, name: &str) -> Result<usize> {
        let by_id = meta.snapshots.iter().position(|s| s.info.id == name);
        let by_name = || meta.snapshots.iter().position(|s| s.info.name == name);
        by_name().or(by_id).ok_or_else(|| Error::Named {
            what: "snapshot",
            name: name.to_owned(),
            problem: "does not exist in this image",
        })
    }

    /// Keeps the present contents under a name.
    pub fn create_snapshot(&self, name: &str, date: (u32, u32)) -> Result<SnapshotInfo> {
        self.check_writable()?;
        if self.data != 0 {
            let what = "snapshots with an external data file";
            return Err(self.blame.unsupported(what));
        }
        if name.len() > usize::from(u16::MAX) {
            return Err(Error::option("snapshot", "the name is too long"));
        }
        self.settle()?;
        let mut meta = self.meta.lock();
        let highest = meta.snapshots.iter().filter_map(|s| s.info.id.parse::<u64>().ok()).max();
        let info = SnapshotInfo {
            id: (highest.unwrap_or(0) + 1).to_string(),
            name: name.to_owned(),
            date,
            vm_clock_ns: 0,
            vm_state_size: 0,
            disk_size: self.size(),
            // As QEMU's tools record it for images that no machine has open.
            icount: Some(0),
        };
        let l1 = meta.l1.clone();
        let clusters = (l1.len() as u64 * 8).div_ceil(self.shape.cluster()).max(1);
        let l1_offset = meta.refs.take_all(self.file(), clusters, &self.blame)?;
        self.raise(&mut meta, &l1)?;
        // What is shared now must not be written in place any more.
        let shared: Vec<u64> = l1.iter().map(|entry| entry & !COPIED).collect();
        self.file().write_at(l1_offset, &table_bytes(&shared))?;
        self.unown(&mut meta, &l1)?;
        for (index, &entry) in shared.iter().enumerate() {
            meta.set_l1(index, entry);
        }
        let snapshot = Snapshot {
            l1_offset,
            l1_entries: l1.len() as u32,
            info: info.clone(),
            known: KNOWN_EXTRA,
            extra: Vec::new(),
        };
        drop(meta);
        self.commit_meta(true)?;
        let mut snapshots = self.meta.lock().snapshots.clone();
        snapshots.push(snapshot);
        self.exchange_table(snapshots)?;
        self.settle()?;
        Ok(info)
    }

    /// Removes a snapshot and what only it referred to.
    pub fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.settle()?;
        let mut snapshots = self.meta.lock().snapshots.clone();
        let index = self.find_snapshot(&self.meta.lock(), name)?;
        let gone = snapshots.remove(index);
        let l1 = read_words(self.file(), gone.l1_offset, gone.l1_entries as usize)?;
        self.exchange_table(snapshots)?;
        let mut meta = self.meta.lock();
        self.lower(&mut meta, &l1)?;
        meta.frees.push(Free { offset: gone.l1_offset, len: (l1.len() as u64 * 8).max(1) });
        drop(meta);
        self.settle()?;
        self.reown()
    }

    /// Goes back to a snapshot; the present contents are given up.
    pub fn apply_snapshot(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        self.settle()?;
        let mut meta = self.meta.lock();
        let index = self.find_snapshot(&meta, name)?;
        let snapshot = meta.snapshots[index].clone();
        let old = meta.l1.clone();
        let (old_offset, old_len) = (meta.header.l1_offset, old.len() as u64 * 8);
        let mut l1 = read_words(self.file(), snapshot.l1_offset, snapshot.l1_entries as usize)?;
        let needed = snapshot.info.disk_size.div_ceil(meta.header.l2_coverage()) as usize;
        if needed > 4 << 20 {
            return Err(self.blame.corrupt("a snapshot of an impossible size"));
        }
        l1.resize(l1.len().max(needed), 0);
        let clusters = (l1.len() as u64 * 8).div_ceil(self.shape.cluster()).max(1);
        let place = meta.refs.take_all(self.file(), clusters, &self.blame)?;
        self.raise(&mut meta, &l1)?;
        let shared: Vec<u64> = l1.iter().map(|entry| entry & !COPIED).collect();
        let mut bytes = table_bytes(&shared);
        bytes.resize((clusters << self.shape.cluster_bits) as usize, 0);
        self.file().write_at(place, &bytes)?;
        drop(meta);
        self.commit_meta(true)?;
        let mut meta = self.meta.lock();
        meta.header.l1_offset = place;
        meta.header.l1_entries = shared.len() as u32;
        meta.header.size = snapshot.info.disk_size;
        meta.write_header(self.file())?;
        self.file().flush()?;
        self.size.store(snapshot.info.disk_size, std::sync::atomic::Ordering::Release);
        meta.replace_l1(shared);
        self.lower(&mut meta, &old)?;
        meta.frees.push(Free { offset: old_offset, len: old_len.max(1) });
        drop(meta);
        self.settle()?;
        self.meta.lock().forget_tables();
        self.reown()
    }

    /// Replaces the table of snapshots and the header's reference to it.
    fn exchange_table(&self, snapshots: Vec<Snapshot>) -> Result<()> {
        let bytes = encode_table(&snapshots);
        let mut meta = self.meta.lock();
        let (old, old_len) =
            (meta.header.snapshots_offset, encode_table(&meta.snapshots).len() as u64);
        let mut offset = 0;
        if !bytes.is_empty() {
            let clusters = (bytes.len() as u64).div_ceil(self.shape.cluster());
            offset = meta.refs.take_all(self.file(), clusters, &self.blame)?;
            self.file().write_at(offset, &bytes)?;
        }
        drop(meta);
        self.commit_meta(true)?;
        let mut meta = self.meta.lock();
        if !meta.snapshots.is_empty() {
            meta.frees.push(Free { offset: old, len: old_len });
        }
        meta.header.snapshots_offset = offset;
        meta.header.snapshots = snapshots.len() as u32;
        meta.snapshots = snapshots;
        meta.write_header(self.file())?;
        self.file().flush()
    }

    /// Entries of a table that is not part of the active ones.
    fn each_entry(
        &self,
        meta: &mut Meta,
        l1: &[u64],
        mut visit: impl FnMut(&mut Meta, u64, u64, Entry) -> Result<()>,
    ) -> Result<()> {
        for (l1_index, &word) in l1.iter().enumerate() {
            let table = word & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            for index in 0..self.shape.entries() {
                let guest =
                    (l1_index as u64 * self.shape.entries() + index) << self.shape.cluster_bits;
                let entry = meta.entry_in(self.file(), table, index, guest)?;
                visit(meta, table, index, entry)?;
            }
        }
        Ok(())
    }

    fn extent_of(&self, entry: &Entry) -> Option<(u64, u64)> {
        match entry.packed {
            Some(packed) => Some((packed.offset, packed.len)),
            None if entry.host != 0 => Some((entry.host, self.shape.cluster())),
            None => None,
        }
    }

    /// One reference more for all that a table refers to.
    fn raise(&self, meta: &mut Meta, l1: &[u64]) -> Result<()> {
        for &word in l1.iter().filter(|&&word| word & OFFSET_MASK != 0) {
            let table = word & OFFSET_MASK;
            meta.refs.add(self.file(), table, self.shape.cluster(), &self.blame)?;
        }
        self.each_entry(meta, l1, |meta, _, _, entry| {
            let Some((offset, len)) = self.extent_of(&entry) else { return Ok(()) };
            meta.refs.add(self.file(), offset, len, &self.blame)
        })
    }

    /// One reference less, once the present state is in the file.
    fn lower(&self, meta: &mut Meta, l1: &[u64]) -> Result<()> {
        self.each_entry(meta, l1, |meta, _, _, entry| {
            if let Some((offset, len)) = self.extent_of(&entry) {
                meta.frees.push(Free { offset, len });
            }
            Ok(())
        })?;
        for &word in l1.iter().filter(|&&word| word & OFFSET_MASK != 0) {
            meta.frees.push(Free { offset: word & OFFSET_MASK, len: self.shape.cluster() });
        }
        Ok(())
    }

    /// Takes the mark of sole ownership off all entries.
    fn unown(&self, meta: &mut Meta, l1: &[u64]) -> Result<()> {
        self.each_entry(meta, l1, |meta, table, index, entry| {
            if !entry.copied {
                return Ok(());
            }
            let entry = Entry { copied: false, ..entry };
            meta.set_entry_in(self.file(), table, index, entry)
        })
    }

    /// Marks as owned what has one reference left.
    pub(super) fn reown(&self) -> Result<()> {
        let mut meta = self.meta.lock();
        let l1 = meta.l1.clone();
        for (index, &word) in l1.iter().enumerate() {
            let table = word & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            let count =
                meta.refs.get(self.file(), table >> self.shape.cluster_bits, &self.blame)?;
            let owned = if count == 1 { table | COPIED } else { table };
            if owned != word {
                meta.set_l1(index, owned);
            }
        }
        self.each_entry(&mut meta, &l1, |meta, table, index, entry| {
            if entry.packed.is_some() || entry.host == 0 {
                return Ok(());
            }
            let cluster = entry.host >> self.shape.cluster_bits;
            let owned = meta.refs.get(self.file(), cluster, &self.blame)? == 1;
            if owned == entry.copied {
                return Ok(());
            }
            meta.set_entry_in(self.file(), table, index, Entry { copied: owned, ..entry })
        })?;
        drop(meta);
        self.commit_meta(true)
    }

    /// The map of a snapshot in the place of the present one, for reading.
    pub fn view_snapshot(&self, name: &str) -> Result<()> {
        if self.writable {
            return Err(Error::option("snapshot", "an image is read at a snapshot, not written"));
        }
        let mut meta = self.meta.lock();
        let index = self.find_snapshot(&meta, name)?;
        let snapshot = meta.snapshots[index].clone();
        let mut l1 = read_words(self.file(), snapshot.l1_offset, snapshot.l1_entries as usize)?;
        let needed = snapshot.info.disk_size.div_ceil(meta.header.l2_coverage()) as usize;
        l1.resize(l1.len().max(needed.min(4 << 20)), 0);
        self.size.store(snapshot.info.disk_size, std::sync::atomic::Ordering::Release);
        meta.replace_l1(l1);
        meta.forget_tables();
        Ok(())
    }
}
