//! Parallels' expanding images: a header, a table of 32-bit places, clusters.
//! `bundle` reads the description of a disk that consists of several of them.

pub mod bundle;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::blocks::{Blocks, NewBlock, Slot, Table, WordTable, check_growth};
use super::raw;
use crate::bytes::{le32, le64, put};
use crate::error::{Blame, Error, Result};
use crate::format::{Below, CheckReport, Extent, Format, FormatKind, Preallocation, Repair, Run};
use crate::storage::{SharedStorage, Storage, read_vec};

const HEADER_LEN: usize = 64;
const OLD_MAGIC: &[u8; 16] = b"WithoutFreeSpace";
const NEW_MAGIC: &[u8; 16] = b"WithouFreSpacExt";
const VERSION: u32 = 2;
/// Says that the last user did not close the image.
const IN_USE: u32 = 0x746f_6e59;
const SECTOR: u64 = 512;
const MAX_ENTRIES: u64 = 0x2000_0000;

/// A Parallels image.
pub struct Parallels {
    storages: [SharedStorage; 1],
    blocks: Blocks<Allocation>,
    size: AtomicU64,
    marked: AtomicBool,
    writable: bool,
    /// Clusters that the table has room for.
    room: u64,
}

struct Allocation {
    table: WordTable,
    cluster: u64,
    /// Bytes that one unit of an entry stands for.
    unit: u64,
    end: u64,
    blame: Blame,
}

impl Table for Allocation {
    fn get(&mut self, _file: &dyn Storage, index: u64) -> Result<Slot> {
        Ok(match self.table.words.get(index as usize).copied().unwrap_or(0) {
            0 => Slot::Unallocated,
            place => Slot::At(u64::from(place) * self.unit),
        })
    }

    fn allocate(&mut self, file: &dyn Storage, _index: u64) -> Result<NewBlock> {
        let offset = self.end;
        if offset / self.unit > u64::from(u32::MAX) {
            return Err(self.blame.unsupported("a file larger than its table can address"));
        }
        let fresh = offset >= file.len()?;
        self.end += self.cluster;
        Ok(NewBlock { offset, fresh })
    }

    fn set(&mut self, _file: &dyn Storage, index: u64, slot: Slot) -> Result<()> {
        if let Slot::At(offset) = slot {
            self.table.set(index as usize, (offset / self.unit) as u32);
        }
        Ok(())
    }

    fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        self.table.commit(file)
    }

    fn is_dirty(&self) -> bool {
        self.table.is_dirty()
    }
}

impl Parallels {
    /// Opens an image.
    pub fn open(storage: SharedStorage, write: bool) -> Result<Self> {
        let blame = Blame::new("parallels", storage.name());
        let header = read_vec(&*storage, 0, HEADER_LEN)?;
        let unit_is_cluster = match &header[..16] {
            magic if magic == OLD_MAGIC => false,
            magic if magic == NEW_MAGIC => true,
            _ => return Err(blame.other_format()),
        };
        if le32(&header, 16) != VERSION {
            return Err(blame.unsupported(format!("version {}", le32(&header, 16))));
        }
        let sectors = u64::from(le32(&header, 28));
        if sectors == 0 || sectors > 1 << 21 {
            return Err(blame.corrupt(format!("clusters of {sectors} sectors")));
        }
        let cluster = sectors * SECTOR;
        let entries = u64::from(le32(&header, 32));
        let total = match unit_is_cluster {
            true => le64(&header, 36),
            false => u64::from(le32(&header, 36)),
        };
        let size = total.checked_mul(SECTOR).filter(|&size| size <= i64::MAX as u64);
        let file_len = storage.len()?;
        let Some(size) = size.filter(|&size| size.div_ceil(cluster) <= entries) else {
            return Err(blame.corrupt(format!("{entries} clusters for {total} sectors")));
        };
        if entries > MAX_ENTRIES || HEADER_LEN as u64 + entries * 4 > file_len {
            return Err(blame.corrupt("the table lies outside the file"));
        }
        if write && le64(&header, 56) != 0 {
            return Err(blame.unsupported("writing with a format extension (dirty bitmaps)"));
        }
        let table = WordTable::read(&*storage, HEADER_LEN as u64, entries as usize, false)?;
        let unit = if unit_is_cluster { cluster } else { SECTOR };
        let table_end = HEADER_LEN as u64 + entries * 4;
        let data_start = match u64::from(le32(&header, 48)) * SECTOR {
            0 => table_end.next_multiple_of(SECTOR),
            start => start,
        };
        let mut end = data_start.max(table_end.next_multiple_of(SECTOR));
        let mut first = end;
        for &word in table.words.iter().filter(|&&word| word != 0) {
            let place = u64::from(word) * unit;
            if place < table_end {
                return Err(blame.corrupt(format!("a cluster at {place:#x} is in the table")));
            }
            end = end.max(place.saturating_add(cluster));
            first = first.min(place);
        }
        let end = if unit_is_cluster { end.next_multiple_of(cluster) } else { end };
        let map = Allocation { table, cluster, unit, end, blame: blame.clone() };
        let blocks = Blocks::new(storage.clone(), 0, cluster, map, write, blame);
        Ok(Self {
            storages: [storage],
            blocks,
            size: AtomicU64::new(size),
            marked: AtomicBool::new(false),
            writable: write,
            room: ((first - HEADER_LEN as u64) / 4).min(MAX_ENTRIES),
        })
    }

    /// Writes an empty image.
    pub fn create(
        storage: &dyn Storage,
        size: u64,
        cluster: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        if !cluster.is_multiple_of(SECTOR) || !(SECTOR..=1 << 30).contains(&cluster) {
            return Err(Error::option("cluster_size", "takes sectors up to 1 GiB"));
        }
        let entries = size.div_ceil(cluster);
        if entries > MAX_ENTRIES {
            return Err(Error::option("size", "is too large for this cluster_size"));
        }
        let table_end = HEADER_LEN as u64 + entries * 4;
        let data = table_end.next_multiple_of(cluster);
        let cylinders = (size / SECTOR).div_ceil(16 * 32);
        let mut header = vec![0; HEADER_LEN];
        put(&mut header, 0, NEW_MAGIC);
        put(&mut header, 16, &VERSION.to_le_bytes());
        put(&mut header, 20, &16_u32.to_le_bytes());
        put(&mut header, 24, &u32::try_from(cylinders).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut header, 28, &((cluster / SECTOR) as u32).to_le_bytes());
        put(&mut header, 32, &(entries as u32).to_le_bytes());
        put(&mut header, 36, &(size / SECTOR).to_le_bytes());
        put(&mut header, 48, &((data / SECTOR) as u32).to_le_bytes());
        storage.write_zeroes(0, data, false)?;
        if preallocation == Preallocation::Falloc || preallocation == Preallocation::Full {
            raw::preallocate(storage, data, entries * cluster, preallocation)?;
        }
        storage.write_at(0, &header)?;
        storage.flush()
    }

    /// Says in the file that it is being written.
    fn mark(&self) -> Result<()> {
        if self.writable && !self.marked.swap(true, Ordering::AcqRel) {
            self.storages[0].write_at(44, &IN_USE.to_le_bytes())?;
            self.storages[0].flush()?;
        }
        Ok(())
    }
}

impl Format for Parallels {
    fn kind(&self) -> FormatKind {
        FormatKind::Parallels
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn cluster_size(&self) -> u64 {
        self.blocks.block()
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.blocks.map(offset, len)
    }

    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        self.mark()?;
        self.blocks.write(offset, data, below)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.mark()?;
        self.blocks.zero(offset, len, unmap, below)
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.write_zeroes(offset, len, true, below)
    }

    fn flush(&self) -> Result<()> {
        self.blocks.flush()
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        self.blocks.in_place(offset, len, to)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let cluster = self.blocks.block();
        self.mark()?;
        let file = self.blocks.file();
        let map = self.blocks.table();
        // The older magic counts sectors with 32 bits.
        let most = if map.unit == SECTOR { u64::from(u32::MAX) * SECTOR } else { u64::MAX };
        let room = self.room.saturating_mul(cluster).min(most);
        check_growth(&map.blame, self.size(), size, room, preallocation)?;
        drop(map);
        self.blocks.before_growth(self.size())?;
        let mut map = self.blocks.table();
        let entries = size.div_ceil(cluster);
        map.table.grow(entries as usize, 0);
        map.commit(file)?;
        file.flush()?;
        // Size and number of entries are in one sector: both are there or none.
        let mut facts = read_vec(file, 0, HEADER_LEN)?;
        put(&mut facts, 32, &(entries as u32).to_le_bytes());
        let sectors = (size / SECTOR).to_le_bytes();
        put(&mut facts, 36, if map.unit == SECTOR { &sectors[..4] } else { &sectors });
        file.write_at(0, &facts)?;
        file.flush()?;
        self.size.store(size / SECTOR * SECTOR, Ordering::Relaxed);
        Ok(())
    }

    /// Repairs give back what lies behind the last cluster, and forget places
    /// outside the file.
    fn check(&self, repair: Repair) -> Result<CheckReport> {
        let mut map = self.blocks.table();
        let file = self.blocks.file();
        let mut report =
            CheckReport { total_clusters: map.table.words.len() as u64, ..CheckReport::default() };
        let file_len = file.len()?;
        let mut used = std::collections::HashSet::new();
        let mut outside = Vec::new();
        let mut end = map.end.min(file_len);
        for (index, &word) in map.table.words.iter().enumerate().filter(|(_, word)| **word != 0) {
            report.allocated_clusters += 1;
            if u64::from(word) * map.unit >= file_len {
                report.corrupt(format!("cluster {index} lies outside the file"));
                outside.push(index);
            } else if !used.insert(word) {
                report.corrupt(format!("cluster {index} shares its place with another"));
            }
        }
        if !outside.is_empty() {
            let inside = used.iter().map(|&word| u64::from(word) * map.unit + map.cluster).max();
            end = inside.unwrap_or(0).max(HEADER_LEN as u64 + map.table.words.len() as u64 * 4);
        }
        report.leaks = file_len.saturating_sub(end) / map.cluster;
        if repair == Repair::All && !outside.is_empty() {
            for &index in &outside {
                map.table.set(index, 0);
            }
            map.commit(file)?;
            map.end = end.next_multiple_of(map.unit);
            report.corruptions_fixed = outside.len() as u64;
        }
        if repair != Repair::Nothing && report.leaks > 0 {
            file.set_len(end)?;
            report.leaks_fixed = report.leaks;
        }
        if repair != Repair::Nothing {
            file.flush()?;
        }
        report.image_end = Some(end);
        Ok(report)
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.flush()?;
        if self.marked.swap(false, Ordering::AcqRel) {
            self.storages[0].write_at(44, &0_u32.to_le_bytes())?;
            self.storages[0].flush()?;
        }
        Ok(())
    }
}
