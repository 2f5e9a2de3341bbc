//! VDI, VirtualBox's format: a header, a table of 32-bit block numbers, blocks
//! of 1 MiB.

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use super::blocks::{Blocks, NewBlock, Slot, Table, WordTable, check_growth};
use super::raw;
use crate::bytes::{le32, le64, put};
use crate::error::{Blame, Error, Result};
use crate::format::{
    Below, CheckReport, Detail, Extent, Format, FormatKind, Preallocation, Repair, Run,
};
use crate::storage::{SharedStorage, Storage, read_vec};

const HEADER_LEN: usize = 512;
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
const UNALLOCATED: u32 = 0xffff_ffff;
/// Written before, given up since: reads as zeroes.
const DISCARDED: u32 = 0xffff_fffe;
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;
const BLOCK: u64 = 1 << 20;
const MAX_BLOCKS: u64 = 0x3fff_ffff;

/// A VDI image.
pub struct Vdi {
    storages: [SharedStorage; 1],
    blocks: Blocks<BlockMap>,
    size: AtomicU64,
    fixed: bool,
    /// Blocks that the table has room for.
    room: u64,
    blame: Blame,
}

struct BlockMap {
    table: WordTable,
    data_offset: u64,
    block: u64,
    allocated: u32,
    count_dirty: bool,
    blame: Blame,
}

impl Table for BlockMap {
    fn get(&mut self, _file: &dyn Storage, index: u64) -> Result<Slot> {
        Ok(match self.table.words.get(index as usize).copied().unwrap_or(UNALLOCATED) {
            UNALLOCATED => Slot::Unallocated,
            DISCARDED => Slot::Zero,
            number => Slot::At(self.data_offset + u64::from(number) * self.block),
        })
    }

    fn allocate(&mut self, file: &dyn Storage, _index: u64) -> Result<NewBlock> {
        if self.allocated >= DISCARDED - 1 {
            return Err(self.blame.unsupported("more blocks than the table can number"));
        }
        let offset = self.data_offset + u64::from(self.allocated) * self.block;
        let fresh = offset >= file.len()?;
        self.allocated += 1;
        self.count_dirty = true;
        Ok(NewBlock { offset, fresh })
    }

    fn set(&mut self, _file: &dyn Storage, index: u64, slot: Slot) -> Result<()> {
        let word = match slot {
            Slot::At(offset) => ((offset - self.data_offset) / self.block) as u32,
            _ => DISCARDED,
        };
        self.table.set(index as usize, word);
        Ok(())
    }

    fn has_zero(&self) -> bool {
        true
    }

    fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        // The count first: a block that is counted and not used is only lost.
        if self.count_dirty {
            file.write_at(388, &self.allocated.to_le_bytes())?;
            self.count_dirty = false;
        }
        self.table.commit(file)
    }

    fn is_dirty(&self) -> bool {
        self.count_dirty || self.table.is_dirty()
    }
}

impl Vdi {
    /// Opens an image.
    pub fn open(storage: SharedStorage, write: bool) -> Result<Self> {
        let blame = Blame::new("vdi", storage.name());
        let header = read_vec(&*storage, 0, HEADER_LEN)?;
        if le32(&header, 64) != SIGNATURE {
            return Err(blame.other_format());
        }
        if le32(&header, 68) != VERSION {
            return Err(blame.unsupported(format!("version {:#x}", le32(&header, 68))));
        }
        let kind = le32(&header, 76);
        if kind != DYNAMIC && kind != STATIC {
            return Err(blame.unsupported(format!("image type {kind} (snapshots of VirtualBox)")));
        }
        if header[440..472].iter().any(|&byte| byte != 0) {
            return Err(blame.unsupported("differencing images"));
        }
        let (map_at, data_at) = (u64::from(le32(&header, 340)), u64::from(le32(&header, 344)));
        let size = le64(&header, 368);
        let block = u64::from(le32(&header, 376));
        let entries = u64::from(le32(&header, 384));
        let file_len = storage.len()?;
        if block != BLOCK {
            return Err(blame.unsupported(format!("blocks of {block} bytes")));
        }
        if le32(&header, 360) != 512 {
            return Err(blame.unsupported(format!("sectors of {} bytes", le32(&header, 360))));
        }
        if entries > MAX_BLOCKS || size > entries * block {
            return Err(blame.corrupt(format!("{entries} blocks for a disk of {size} bytes")));
        }
        if map_at < HEADER_LEN as u64
            || map_at + entries * 4 > file_len
            || data_at < map_at + entries * 4
        {
            return Err(blame.corrupt("the block map lies outside the file"));
        }
        let table = WordTable::read(&*storage, map_at, entries as usize, false)?;
        let allocated = le32(&header, 388);
        if let Some(&word) = table.words.iter().find(|&&word| word < DISCARDED && word >= allocated)
        {
            return Err(blame.corrupt(format!("block {word} of {allocated} is referred to")));
        }
        let map = BlockMap {
            table,
            data_offset: data_at,
            block,
            allocated,
            count_dirty: false,
            blame: blame.clone(),
        };
        let blocks = Blocks::new(storage.clone(), 0, block, map, write, blame.clone());
        Ok(Self {
            storages: [storage],
            blocks,
            size: AtomicU64::new(size),
            fixed: kind == STATIC,
            room: ((data_at - map_at) / 4).min(MAX_BLOCKS),
            blame,
        })
    }

    /// Writes an empty image; a `fixed` one has all its blocks.
    pub fn create(
        storage: &dyn Storage,
        size: u64,
        fixed: bool,
        preallocation: Preallocation,
    ) -> Result<()> {
        let entries = size.div_ceil(BLOCK);
        if entries > MAX_BLOCKS {
            return Err(Error::option("size", "a VDI disk has less than 1 PiB"));
        }
        if preallocation == Preallocation::Full || preallocation == Preallocation::Falloc {
            return Err(Error::option("preallocation", "takes off or metadata"));
        }
        let fixed = fixed || preallocation == Preallocation::Metadata;
        // Blocks at multiples of their size, and room for the map to grow.
        let data_at = (HEADER_LEN as u64 + entries * 4).next_multiple_of(BLOCK);
        let mut header = vec![0; HEADER_LEN];
        put(&mut header, 0, b"<<< Guise VM Virtual Disk Image >>>\n");
        put(&mut header, 64, &SIGNATURE.to_le_bytes());
        put(&mut header, 68, &VERSION.to_le_bytes());
        put(&mut header, 72, &0x180_u32.to_le_bytes());
        put(&mut header, 76, &if fixed { STATIC } else { DYNAMIC }.to_le_bytes());
        put(&mut header, 340, &(HEADER_LEN as u32).to_le_bytes());
        put(&mut header, 344, &(data_at as u32).to_le_bytes());
        put(&mut header, 360, &512_u32.to_le_bytes());
        put(&mut header, 368, &size.to_le_bytes());
        put(&mut header, 376, &(BLOCK as u32).to_le_bytes());
        put(&mut header, 384, &(entries as u32).to_le_bytes());
        if fixed {
            put(&mut header, 388, &(entries as u32).to_le_bytes());
        }
        put(&mut header, 392, Uuid::new_v4().as_bytes());
        put(&mut header, 408, Uuid::new_v4().as_bytes());
        let mut map = Vec::with_capacity(entries as usize * 4);
        for index in 0..entries as u32 {
            map.extend(if fixed { index } else { UNALLOCATED }.to_le_bytes());
        }
        storage.write_at(HEADER_LEN as u64, &map)?;
        if fixed {
            storage.set_len(data_at + entries * BLOCK)?;
            raw::preallocate(storage, data_at, entries * BLOCK, preallocation)?;
        }
        storage.write_at(0, &header)?;
        storage.flush()
    }
}

impl Format for Vdi {
    fn kind(&self) -> FormatKind {
        FormatKind::Vdi
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
        self.blocks.write(offset, data, below)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.blocks.zero(offset, len, unmap, below)
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.blocks.zero(offset, len, true, below)
    }

    fn flush(&self) -> Result<()> {
        self.blocks.flush()
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        self.blocks.in_place(offset, len, to)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.fixed {
            return Err(self.blame.cannot_resize("static images have all their blocks"));
        }
        let block = self.blocks.block();
        let room = self.room.saturating_mul(block);
        check_growth(&self.blame, self.size(), size, room, preallocation)?;
        let entries = size.div_ceil(block);
        self.blocks.before_growth(self.size())?;
        let file = self.blocks.file();
        let mut map = self.blocks.table();
        map.table.grow(entries as usize, UNALLOCATED);
        map.commit(file)?;
        file.flush()?;
        // Size and number of entries are in one sector: both are there or none.
        let mut facts = read_vec(file, 0, HEADER_LEN)?;
        put(&mut facts, 368, &size.to_le_bytes());
        put(&mut facts, 384, &(entries as u32).to_le_bytes());
        file.write_at(0, &facts)?;
        file.flush()?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        if repair != Repair::Nothing {
            return Err(Error::NoSuchOperation { format: "vdi", what: "repair" });
        }
        let map = self.blocks.table();
        let mut report =
            CheckReport { total_clusters: map.table.words.len() as u64, ..CheckReport::default() };
        let mut used = std::collections::HashSet::new();
        for (index, &word) in map.table.words.iter().enumerate() {
            if word < DISCARDED {
                report.allocated_clusters += 1;
                if !used.insert(word) {
                    report.corrupt(format!("block {index} shares its place {word} with another"));
                }
            }
        }
        report.leaks = u64::from(map.allocated).saturating_sub(used.len() as u64);
        Ok(report)
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let kind = if self.fixed { "static" } else { "dynamic" };
        vec![("subformat".to_owned(), Detail::text(kind))]
    }
}
