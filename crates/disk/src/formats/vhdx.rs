//! VHDX (Hyper-V): fixed, dynamic and differencing disks with blocks of 1 to
//! 256 MiB.
//!
//! `layout` reads and writes the fixed structures, `log` replays and writes the
//! log; the table of blocks is here. All changes of the table go through the
//! log, so a crash leaves either the old or the new entries.

mod layout;
mod log;

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use self::layout::{Header, MB, Parameters, Regions};
use self::log::{Change, LogPlace, MAX_PAGES, PAGE, read_through};
use super::blocks::{Blocks, NewBlock, Slot, Table, check_growth};
use super::raw;
use crate::bytes::{le64, put};
use crate::error::{Blame, Error, Result};
use crate::format::{
    BackingReference, Below, CheckReport, Detail, Extent, Format, FormatKind, Preallocation,
    Repair, Run,
};
use crate::storage::{SharedStorage, Storage};

const MAX_SIZE: u64 = 64 << 40;
const STATE: u64 = 7;
const OFFSET: u64 = !0xf_ffff;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const PRESENT: u64 = 6;
const PARTIAL: u64 = 7;

/// What can be chosen for a new image.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    pub size: u64,
    /// 0 for one that suits the size.
    pub block: u64,
    pub log: u64,
    pub fixed: bool,
    pub preallocation: Preallocation,
    pub parent: Option<BackingReference>,
    /// The parent's identity, which the new image remembers.
    pub linkage: Option<Uuid>,
}

/// A VHDX image.
pub struct Vhdx {
    storages: [SharedStorage; 1],
    blocks: Blocks<Bat>,
    size: AtomicU64,
    parameters: Parameters,
    writable: bool,
}

struct Bat {
    header: Header,
    entries: Vec<u64>,
    bat_offset: u64,
    /// Entries that the table has room for.
    room: u64,
    /// Pages of the table that the file does not have yet.
    dirty: std::collections::BTreeSet<u64>,
    /// Payload blocks between two entries for bitmaps.
    ratio: u64,
    parameters: Parameters,
    end: u64,
    /// The file says that it is being written.
    marked: bool,
    log_at: u64,
    sequence: u64,
    /// Done already when reading, as the log could not be replayed.
    changes: Vec<Change>,
    blame: Blame,
}

impl Bat {
    fn index(&self, block: u64) -> usize {
        (block + block / self.ratio) as usize
    }

    fn note(&mut self, index: usize, entry: u64) {
        self.entries[index] = entry;
        self.dirty.insert(index as u64 * 8 / PAGE as u64);
    }

    /// New identities and a log to use, before the first change.
    fn mark(&mut self, file: &dyn Storage) -> Result<()> {
        if !self.marked {
            self.header.file_write = Uuid::new_v4();
            self.header.data_write = Uuid::new_v4();
            self.header.log = Uuid::new_v4();
            self.header.write(file)?;
            self.marked = true;
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Vec<u8> {
        let first = number as usize * PAGE / 8;
        let mut page = vec![0; PAGE];
        let last = (first + PAGE / 8).min(self.entries.len());
        for (index, entry) in self.entries[first..last].iter().enumerate() {
            put(&mut page, index * 8, &entry.to_le_bytes());
        }
        page
    }
}

impl Table for Bat {
    fn get(&mut self, _file: &dyn Storage, index: u64) -> Result<Slot> {
        let entry = self.entries.get(self.index(index)).copied().unwrap_or(0);
        let offset = entry & OFFSET;
        Ok(match entry & STATE {
            PRESENT => Slot::At(offset),
            PARTIAL if self.parameters.parent.is_some() => Slot::Partial(offset),
            UNDEFINED | ZERO | UNMAPPED => Slot::Zero,
            0 => Slot::Unallocated,
            state => {
                return Err(self.blame.corrupt(format!("block {index} is in state {state}")));
            }
        })
    }

    fn allocate(&mut self, file: &dyn Storage, _index: u64) -> Result<NewBlock> {
        self.mark(file)?;
        let offset = self.end;
        let fresh = offset >= file.len()?;
        self.end += self.parameters.block;
        Ok(NewBlock { offset, fresh })
    }

    fn set(&mut self, file: &dyn Storage, index: u64, slot: Slot) -> Result<()> {
        self.mark(file)?;
        let entry = match slot {
            Slot::At(offset) => offset | PRESENT,
            _ => ZERO,
        };
        self.note(self.index(index), entry);
        Ok(())
    }

    fn has_zero(&self) -> bool {
        true
    }

    fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        while !self.dirty.is_empty() {
            let numbers: Vec<u64> = self.dirty.iter().copied().take(MAX_PAGES).collect();
            let pages: Vec<(u64, Vec<u8>)> = numbers
                .iter()
                .map(|&number| (self.bat_offset + number * PAGE as u64, self.page(number)))
                .collect();
            // The last page of the table may be shared with nothing else: the
            // region ends at a full megabyte.
            let len = ((pages.len() * 32 + 64).div_ceil(PAGE) + pages.len()) * PAGE;
            let place = self.header.log_place;
            if self.log_at + len as u64 > place.len {
                self.log_at = 0;
            }
            self.sequence += 1;
            let file_len = file.len()?;
            let entry = log::encode(&pages, self.log_at, self.sequence, self.header.log, file_len);
            file.write_at(place.offset + self.log_at, &entry)?;
            file.flush()?;
            for (offset, page) in &pages {
                file.write_at(*offset, page)?;
            }
            file.flush()?;
            self.log_at += entry.len() as u64;
            for number in numbers {
                self.dirty.remove(&number);
            }
        }
        Ok(())
    }

    fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    fn sectors(&mut self, file: &dyn Storage, index: u64) -> Result<Vec<bool>> {
        let chunk = index / self.ratio;
        let at = (chunk + 1) * (self.ratio + 1) - 1;
        let entry = self.entries.get(at as usize).copied().unwrap_or(0);
        if entry & STATE != PRESENT {
            return Err(self.blame.corrupt(format!("block {index} has no bitmap of its sectors")));
        }
        let per_block = self.parameters.block / self.parameters.sector;
        let first = index % self.ratio * per_block;
        let bytes = read_through(
            file,
            &self.changes,
            (entry & OFFSET) + first / 8,
            per_block.div_ceil(8) as usize,
        )?;
        let repeat = (self.parameters.sector / 512) as usize;
        Ok((0..per_block as usize)
            .map(|sector| bytes[sector / 8] & 1 << (sector % 8) != 0)
            .flat_map(|bit| std::iter::repeat_n(bit, repeat))
            .collect())
    }
}

impl Vhdx {
    /// Opens an image. A log that was left behind is replayed: in the file
    /// when it is written, in memory otherwise.
    pub fn open(storage: SharedStorage, write: bool) -> Result<Self> {
        let blame = Blame::new("vhdx", storage.name());
        let mut magic = [0; 8];
        storage.read_at(0, &mut magic)?;
        if &magic != b"vhdxfile" {
            return Err(blame.other_format());
        }
        let mut header = Header::read(&*storage, &blame)?;
        let place = header.log_place;
        if place.len < MB || !place.len.is_multiple_of(MB) || !place.offset.is_multiple_of(MB) {
            return Err(blame.corrupt("the log is at no possible place"));
        }
        let (mut changes, sequence) = log::pending(&*storage, place, header.log, &blame)?;
        if write && !header.log.is_nil() {
            log::apply(&*storage, &changes)?;
            changes.clear();
            header.log = Uuid::nil();
            header.write(&*storage)?;
        }
        let regions = Regions::read(&*storage, &changes, &blame)?;
        let parameters = Parameters::read(&*storage, &changes, regions.metadata, &blame)?;
        let ratio = ((1 << 23) * parameters.sector) / parameters.block;
        let data_blocks = parameters.size.div_ceil(parameters.block);
        let count = if parameters.parent.is_some() {
            data_blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            data_blocks + data_blocks.saturating_sub(1) / ratio
        };
        if count * 8 > regions.bat.1 {
            return Err(blame.corrupt("the block table is too small for the disk"));
        }
        let bytes = read_through(&*storage, &changes, regions.bat.0, count as usize * 8)?;
        let entries: Vec<u64> = bytes.chunks_exact(8).map(|entry| le64(entry, 0)).collect();
        let file_len = storage.len()?;
        for (index, entry) in entries.iter().enumerate() {
            if matches!(entry & STATE, PRESENT | PARTIAL)
                && ((entry & OFFSET) >= file_len || (entry & OFFSET) < MB)
            {
                return Err(blame.corrupt(format!("entry {index} points outside the file")));
            }
        }
        let bat = Bat {
            header,
            entries,
            bat_offset: regions.bat.0,
            room: regions.bat.1 / 8,
            dirty: Default::default(),
            ratio,
            parameters: parameters.clone(),
            end: file_len.next_multiple_of(MB),
            marked: false,
            log_at: 0,
            sequence,
            changes,
            blame: blame.clone(),
        };
        let size = AtomicU64::new(parameters.size);
        let blocks = Blocks::new(storage.clone(), 0, parameters.block, bat, write, blame);
        Ok(Self { storages: [storage], blocks, size, parameters, writable: write })
    }

    /// Writes an empty image.
    pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
        let block = match options.block {
            0 if options.size > 100 << 30 => 32 * MB,
            0 => 8 * MB,
            block => block,
        };
        if !block.is_power_of_two() || !(MB..=256 * MB).contains(&block) {
            return Err(Error::option("block_size", "takes a power of two from 1 MiB to 256 MiB"));
        }
        if options.size > MAX_SIZE {
            return Err(Error::option("size", "a VHDX disk has at most 64 TiB"));
        }
        if options.fixed && options.parent.is_some() {
            return Err(Error::option("backing_file", "fixed images cannot have one"));
        }
        let log_len = options.log.max(MB).next_multiple_of(MB);
        if log_len > 1 << 30 {
            return Err(Error::option("log_size", "takes at most 1 GiB"));
        }
        let parameters = Parameters {
            block,
            fixed: options.fixed,
            size: options.size.next_multiple_of(512),
            size_at: 0,
            sector: 512,
            parent: options.parent.clone(),
        };
        let ratio = ((1 << 23) * 512) / block;
        let data_blocks = parameters.size.div_ceil(block);
        let count = if parameters.parent.is_some() {
            data_blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            data_blocks + data_blocks.saturating_sub(1) / ratio
        };
        let bat_len = (count * 8).next_multiple_of(MB).max(MB);
        let metadata = MB + log_len;
        let bat = metadata + MB;
        let data = bat + bat_len;
        storage.set_len(data)?;
        if options.fixed {
            storage.set_len(data + data_blocks * block)?;
            raw::preallocate(storage, data, data_blocks * block, options.preallocation)?;
            let mut table = vec![0; (count * 8) as usize];
            for index in 0..data_blocks {
                let entry = (data + index * block) | PRESENT;
                put(&mut table, ((index + index / ratio) * 8) as usize, &entry.to_le_bytes());
            }
            storage.write_at(bat, &table)?;
        }
        parameters.write(storage, metadata, options.linkage)?;
        Regions { bat: (bat, bat_len), metadata: (metadata, MB) }.write(storage)?;
        let mut header = Header {
            sequence: 0,
            file_write: Uuid::new_v4(),
            data_write: Uuid::new_v4(),
            log: Uuid::nil(),
            log_place: LogPlace { offset: MB, len: log_len },
            slot: 1,
        };
        header.write(storage)?;
        let mut start = b"vhdxfile".to_vec();
        start.extend("Guise".encode_utf16().flat_map(u16::to_le_bytes));
        start.resize(4096, 0);
        storage.write_at(0, &start)?;
        storage.flush()
    }

    /// The identity of the disk's contents, which children remember.
    pub fn data_identity(&self) -> Uuid {
        self.blocks.table().header.data_write
    }
}

impl Format for Vhdx {
    fn kind(&self) -> FormatKind {
        FormatKind::Vhdx
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
        self.blocks.table().mark(&*self.storages[0])?;
        self.blocks.write(offset, data, below)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.blocks.table().mark(&*self.storages[0])?;
        self.blocks.zero(offset, len, unmap, below)
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.write_zeroes(offset, len, true, below)
    }

    fn flush(&self) -> Result<()> {
        self.blocks.flush()
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        if !self.blocks.table().marked {
            return Ok(false);
        }
        self.blocks.in_place(offset, len, to)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let mut bat = self.blocks.table();
        let blame = bat.blame.clone();
        if self.parameters.fixed || self.parameters.parent.is_some() {
            return Err(blame.cannot_resize("only dynamic images without a parent can grow"));
        }
        if !size.is_multiple_of(self.parameters.sector) || size > MAX_SIZE {
            return Err(blame.cannot_resize("the size takes whole sectors up to 64 TiB"));
        }
        let blocks = bat.room - bat.room / (bat.ratio + 1);
        let room = blocks.saturating_mul(self.parameters.block);
        check_growth(&blame, self.size(), size, room, preallocation)?;
        let file = self.blocks.file();
        bat.mark(file)?;
        drop(bat);
        self.blocks.before_growth(self.size())?;
        let mut bat = self.blocks.table();
        let blocks = size.div_ceil(self.parameters.block);
        let entries = (blocks + blocks.saturating_sub(1) / bat.ratio) as usize;
        for index in bat.entries.len()..entries {
            bat.entries.push(0);
            bat.note(index, 0);
        }
        bat.commit(file)?;
        // Eight bytes of one sector: the old size or the new one.
        file.write_at(self.parameters.size_at, &size.to_le_bytes())?;
        file.flush()?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn check(&self, _repair: Repair) -> Result<CheckReport> {
        // What can be repaired is what the log has: that is done on opening.
        let bat = self.blocks.table();
        let mut report = CheckReport {
            total_clusters: self.size().div_ceil(self.parameters.block),
            ..CheckReport::default()
        };
        let mut used = std::collections::HashSet::new();
        let mut end = 0;
        for (index, entry) in bat.entries.iter().enumerate() {
            if matches!(entry & STATE, PRESENT | PARTIAL) {
                report.allocated_clusters += 1;
                end = end.max((entry & OFFSET) + self.parameters.block);
                if !used.insert(entry & OFFSET) {
                    report.corrupt(format!("entry {index} shares its place with another"));
                }
            }
        }
        if !bat.changes.is_empty() {
            report.leak("the log has changes that are not done in the file yet");
        }
        report.image_end = Some(end);
        Ok(report)
    }

    fn backing(&self) -> Option<BackingReference> {
        self.parameters.parent.clone()
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let kind = match (&self.parameters.parent, self.parameters.fixed) {
            (Some(_), _) => "differencing",
            (None, true) => "fixed",
            (None, false) => "dynamic",
        };
        vec![("subformat".to_owned(), Detail::text(kind))]
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.flush()?;
        let mut bat = self.blocks.table();
        if bat.marked {
            bat.header.log = Uuid::nil();
            let file = &*self.storages[0];
            bat.header.write(file)?;
            bat.marked = false;
        }
        Ok(())
    }
}
