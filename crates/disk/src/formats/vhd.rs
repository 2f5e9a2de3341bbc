//! VHD (Virtual PC): fixed, dynamic and differencing disks.
//!
//! A footer of 512 bytes at the end describes the disk; dynamic images have a
//! copy of it at the start, a second header and a table of blocks. Each block
//! starts with a bitmap of its sectors, which differencing images use to tell
//! their own sectors from those of the parent.

mod grow;
mod parent;

use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use super::blocks::{Blocks, NewBlock, Slot, Table, WordTable};
use super::raw;
use crate::bytes::{be16, be32, be64, put};
use crate::error::{Blame, Error, Result};
use crate::format::{
    BackingReference, Below, CheckReport, Detail, Extent, Format, FormatKind, Place, Preallocation,
    Repair, Run, State,
};
use crate::storage::{SharedStorage, Storage, read_vec};

const FOOTER_LEN: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
const DYNAMIC_LEN: usize = 1024;
const SECTOR: u64 = 512;
const UNALLOCATED: u32 = u32::MAX;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
const BLOCK: u64 = 2 << 20;
/// The format's own limit.
const MAX_SIZE: u64 = 2040 << 30;
/// Geometry that means "too large for geometry".
const MAX_CHS_SECTORS: u64 = 65_535 * 16 * 255;
/// Seconds between 1970 and 2000, from where the format counts.
const EPOCH: u64 = 946_684_800;

/// A VHD image.
pub struct Vhd {
    storages: [SharedStorage; 1],
    size: AtomicU64,
    body: Body,
    writable: bool,
    blame: Blame,
    parent: Option<BackingReference>,
}

enum Body {
    Fixed,
    Dynamic(Box<Blocks<BlockTable>>),
}

struct BlockTable {
    table: WordTable,
    block: u64,
    bitmap_len: u64,
    /// Where the footer is, and the next block will be.
    end: u64,
    footer: Vec<u8>,
    footer_dirty: bool,
    differencing: bool,
    /// The bitmap that was read last, by block.
    bitmap: Option<(u64, Vec<bool>)>,
}

impl Table for BlockTable {
    fn get(&mut self, file: &dyn Storage, index: u64) -> Result<Slot> {
        let word = self.table.words.get(index as usize).copied().unwrap_or(UNALLOCATED);
        if word == UNALLOCATED {
            return Ok(Slot::Unallocated);
        }
        let data = u64::from(word) * SECTOR + self.bitmap_len;
        if self.differencing && self.sectors(file, index)?.contains(&false) {
            return Ok(Slot::Partial(data));
        }
        Ok(Slot::At(data))
    }

    fn allocate(&mut self, file: &dyn Storage, _index: u64) -> Result<NewBlock> {
        let start = self.end;
        // The old footer is overwritten by the bitmap. The one at the start
        // counts until the new one is there.
        let fresh = start + SECTOR.max(self.bitmap_len) >= file.len()?;
        file.write_at(start, &vec![0xff; self.bitmap_len as usize])?;
        self.end = start + self.bitmap_len + self.block;
        self.footer_dirty = true;
        Ok(NewBlock { offset: start + self.bitmap_len, fresh })
    }

    fn set(&mut self, file: &dyn Storage, index: u64, slot: Slot) -> Result<()> {
        if let Slot::At(data) = slot {
            let start = data - self.bitmap_len;
            if u64::from(self.table.words[index as usize]) * SECTOR == start {
                // It was partial and is complete now.
                file.write_at(start, &vec![0xff; self.bitmap_len as usize])?;
            }
            self.bitmap = None;
            self.table.set(index as usize, (start / SECTOR) as u32);
        }
        Ok(())
    }

    fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        if self.footer_dirty {
            file.write_at(self.end, &self.footer)?;
            self.footer_dirty = false;
        }
        self.table.commit(file)
    }

    fn is_dirty(&self) -> bool {
        self.footer_dirty || self.table.is_dirty()
    }

    fn sectors(&mut self, file: &dyn Storage, index: u64) -> Result<Vec<bool>> {
        if let Some((_, bitmap)) = self.bitmap.as_ref().filter(|(block, _)| *block == index) {
            return Ok(bitmap.clone());
        }
        let word = self.table.words.get(index as usize).copied().unwrap_or(UNALLOCATED);
        let bytes = read_vec(file, u64::from(word) * SECTOR, self.bitmap_len as usize)?;
        let sectors = (self.block / SECTOR) as usize;
        let bits: Vec<bool> =
            (0..sectors).map(|sector| bytes[sector / 8] & 0x80 >> (sector % 8) != 0).collect();
        self.bitmap = Some((index, bits.clone()));
        Ok(bits)
    }
}

/// One's complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0_u32, |sum, &b| sum.wrapping_add(u32::from(b)));
    !(sum(bytes).wrapping_sub(sum(&bytes[at..at + 4])))
}

fn valid_footer(footer: &[u8]) -> bool {
    footer.starts_with(COOKIE) && be32(footer, 64) == checksum(footer, 64)
}

impl Vhd {
    /// Opens an image.
    pub fn open(storage: SharedStorage, write: bool) -> Result<Self> {
        let blame = Blame::new("vhd", storage.name());
        let file_len = storage.len()?;
        let tail_at =
            file_len.checked_sub(FOOTER_LEN as u64).ok_or_else(|| blame.other_format())?;
        let head = read_vec(&*storage, 0, FOOTER_LEN)?;
        let tail = read_vec(&*storage, tail_at, FOOTER_LEN)?;
        let footer = if valid_footer(&head) {
            head
        } else if valid_footer(&tail) {
            tail
        } else if head.starts_with(COOKIE) || tail.starts_with(COOKIE) {
            return Err(blame.corrupt("the footer's checksum is wrong"));
        } else {
            return Err(blame.other_format());
        };
        let kind = be32(&footer, 60);
        let size = disk_size(&footer);
        let (body, parent) = match kind {
            FIXED => {
                if size > tail_at {
                    return Err(blame.corrupt(format!("a disk of {size} bytes in a shorter file")));
                }
                (Body::Fixed, None)
            }
            DYNAMIC | DIFFERENCING => {
                let (blocks, parent) = open_dynamic(&storage, &footer, size, write, &blame)?;
                (Body::Dynamic(Box::new(blocks)), parent)
            }
            other => return Err(blame.unsupported(format!("disk type {other}"))),
        };
        let size = AtomicU64::new(size);
        Ok(Self { storages: [storage], size, body, writable: write, blame, parent })
    }

    /// Writes an empty image.
    pub fn create(
        storage: &dyn Storage,
        size: u64,
        fixed: bool,
        preallocation: Preallocation,
        parent: Option<&BackingReference>,
    ) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::option("size", "a VHD disk has at most 2040 GiB"));
        }
        if fixed && parent.is_some() {
            return Err(Error::option("backing_file", "fixed images cannot have one"));
        }
        let kind = match (fixed, parent) {
            (true, _) => FIXED,
            (false, None) => DYNAMIC,
            (false, Some(_)) => DIFFERENCING,
        };
        let footer = new_footer(size, kind);
        if fixed {
            storage.set_len(size)?;
            raw::preallocate(storage, 0, size, preallocation)?;
            storage.write_at(size, &footer)?;
            return storage.flush();
        }
        let entries = size.div_ceil(BLOCK);
        let table_at = FOOTER_LEN as u64 + DYNAMIC_LEN as u64;
        let table_len = (entries * 4).next_multiple_of(SECTOR);
        let mut header = vec![0; DYNAMIC_LEN];
        put(&mut header, 0, DYNAMIC_COOKIE);
        put(&mut header, 8, &u64::MAX.to_be_bytes());
        put(&mut header, 16, &table_at.to_be_bytes());
        put(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
        put(&mut header, 28, &(entries as u32).to_be_bytes());
        put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
        let mut end = table_at + table_len;
        if let Some(parent) = parent {
            let path = parent::encode(&parent.name, &mut header, end);
            storage.write_at(end, &path)?;
            end += path.len() as u64;
        }
        let sum = checksum(&header, 36);
        put(&mut header, 36, &sum.to_be_bytes());
        storage.write_at(table_at, &vec![0xff; table_len as usize])?;
        storage.write_at(FOOTER_LEN as u64, &header)?;
        storage.write_at(end, &footer)?;
        storage.write_at(0, &footer)?;
        storage.flush()
    }
}

/// Most programs mean the size field; Virtual PC and QEMU mean the geometry.
fn disk_size(footer: &[u8]) -> u64 {
    let geometry = u64::from(be16(footer, 56)) * u64::from(footer[58]) * u64::from(footer[59]);
    let by_geometry = matches!(&footer[28..32], b"vpc " | b"qemu");
    if by_geometry && geometry != MAX_CHS_SECTORS && geometry != 0 {
        geometry * SECTOR
    } else {
        be64(footer, 48)
    }
}

fn new_footer(size: u64, kind: u32) -> Vec<u8> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs().saturating_sub(EPOCH));
    let (cylinders, heads, sectors) = geometry(size / SECTOR);
    let mut footer = vec![0; FOOTER_LEN];
    put(&mut footer, 0, COOKIE);
    put(&mut footer, 8, &2_u32.to_be_bytes());
    put(&mut footer, 12, &0x0001_0000_u32.to_be_bytes());
    let header_at = if kind == FIXED { u64::MAX } else { FOOTER_LEN as u64 };
    put(&mut footer, 16, &header_at.to_be_bytes());
    put(&mut footer, 24, &(now as u32).to_be_bytes());
    // The mark by which readers take the size field and not the geometry.
    put(&mut footer, 28, b"win ");
    put(&mut footer, 32, &0x000a_0000_u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    footer[58] = heads;
    footer[59] = sectors;
    put(&mut footer, 60, &kind.to_be_bytes());
    put(&mut footer, 68, Uuid::new_v4().as_bytes());
    let sum = checksum(&footer, 64);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

/// Cylinders, heads and sectors as the specification calculates them.
fn geometry(total: u64) -> (u16, u8, u8) {
    let total = total.min(65_535 * 16 * 255);
    if total >= 65_535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let mut sectors = 17;
    let mut by_heads = total / sectors;
    let mut heads = by_heads.div_ceil(1024).max(4);
    if by_heads >= heads * 1024 || heads > 16 {
        (sectors, heads) = (31, 16);
        by_heads = total / sectors;
    }
    if by_heads >= heads * 1024 {
        (sectors, heads) = (63, 16);
        by_heads = total / sectors;
    }
    ((by_heads / heads) as u16, heads as u8, sectors as u8)
}

fn open_dynamic(
    storage: &SharedStorage,
    footer: &[u8],
    size: u64,
    write: bool,
    blame: &Blame,
) -> Result<(Blocks<BlockTable>, Option<BackingReference>)> {
    let file_len = storage.len()?;
    let header_at = be64(footer, 16);
    if header_at > file_len {
        return Err(blame.corrupt("the second header lies outside the file"));
    }
    let header = read_vec(&**storage, header_at, DYNAMIC_LEN)?;
    if !header.starts_with(DYNAMIC_COOKIE) || be32(&header, 36) != checksum(&header, 36) {
        return Err(blame.corrupt("the second header is damaged"));
    }
    let block = u64::from(be32(&header, 32));
    let entries = u64::from(be32(&header, 28));
    let table_at = be64(&header, 16);
    if !block.is_power_of_two() || !(SECTOR * 8..=256 << 20).contains(&block) {
        return Err(blame.corrupt(format!("blocks of {block} bytes")));
    }
    if size.div_ceil(block) > entries {
        return Err(blame.corrupt(format!("{entries} blocks for a disk of {size} bytes")));
    }
    if table_at.checked_add(entries * 4).is_none_or(|end| end > file_len) {
        return Err(blame.corrupt("the block table lies outside the file"));
    }
    let table = WordTable::read(&**storage, table_at, entries as usize, true)?;
    let bitmap_len = (block / SECTOR / 8).next_multiple_of(SECTOR);
    let mut end = (table_at + entries * 4).max(header_at + DYNAMIC_LEN as u64);
    for &word in table.words.iter().filter(|&&word| word != UNALLOCATED) {
        let place = u64::from(word) * SECTOR;
        if place >= file_len {
            return Err(blame.corrupt(format!("a block at {place:#x} lies outside the file")));
        }
        end = end.max(place + bitmap_len + block);
    }
    let differencing = be32(footer, 60) == DIFFERENCING;
    let parent = match differencing {
        true => Some(parent::decode(&**storage, &header, blame)?),
        false => None,
    };
    // What lies between the last block and the footer (parent locators, or
    // what another program put there) stays.
    let footer_at = (file_len.saturating_sub(FOOTER_LEN as u64)).next_multiple_of(SECTOR);
    let end = end.next_multiple_of(SECTOR).max(footer_at);
    let map = BlockTable {
        table,
        block,
        bitmap_len,
        end,
        footer: footer.to_vec(),
        footer_dirty: false,
        differencing,
        bitmap: None,
    };
    let blocks = Blocks::new(storage.clone(), 0, block, map, write, blame.clone());
    Ok((blocks, parent))
}

impl Format for Vhd {
    fn kind(&self) -> FormatKind {
        FormatKind::Vhd
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn cluster_size(&self) -> u64 {
        match &self.body {
            Body::Fixed => 4096,
            Body::Dynamic(blocks) => blocks.block(),
        }
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        match &self.body {
            Body::Fixed => {
                let run = self.storages[0].run_at(offset)?;
                let at = Place { file: 0, offset };
                let state = if run.data || run.len == 0 {
                    State::Data { at }
                } else {
                    State::Zero { at: Some(at) }
                };
                let run_len = if run.len == 0 { len } else { run.len };
                Ok(Extent { len: run_len.min(len), state })
            }
            Body::Dynamic(blocks) => blocks.map(offset, len),
        }
    }

    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        match &self.body {
            Body::Fixed if !self.writable => Err(self.blame.read_only()),
            Body::Fixed => self.storages[0].write_at(offset, data),
            Body::Dynamic(blocks) => blocks.write(offset, data, below),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        match &self.body {
            Body::Fixed => self.storages[0].write_zeroes(offset, len, unmap),
            Body::Dynamic(blocks) => blocks.zero(offset, len, unmap, below),
        }
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.write_zeroes(offset, len, true, below)
    }

    fn flush(&self) -> Result<()> {
        match &self.body {
            Body::Fixed => self.storages[0].flush(),
            Body::Dynamic(blocks) => blocks.flush(),
        }
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.grow(size, preallocation)
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        match &self.body {
            Body::Fixed => {
                to.push((Place { file: 0, offset }, len));
                Ok(true)
            }
            Body::Dynamic(blocks) => blocks.in_place(offset, len, to),
        }
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        if repair != Repair::Nothing {
            return Err(Error::NoSuchOperation { format: "vhd", what: "repair" });
        }
        let mut report = CheckReport::default();
        let Body::Dynamic(blocks) = &self.body else { return Ok(report) };
        let map = blocks.table();
        report.total_clusters = map.table.words.len() as u64;
        let mut used = std::collections::HashSet::new();
        for (index, &word) in map.table.words.iter().enumerate() {
            if word != UNALLOCATED {
                report.allocated_clusters += 1;
                if !used.insert(word) {
                    report.corrupt(format!("block {index} shares its place with another"));
                }
            }
        }
        report.image_end = Some(map.end + FOOTER_LEN as u64);
        let tail = read_vec(blocks.file(), map.end, FOOTER_LEN)?;
        if !valid_footer(&tail) {
            report.leak("the footer at the end is missing; the copy at the start is used");
        }
        Ok(report)
    }

    fn backing(&self) -> Option<BackingReference> {
        self.parent.clone()
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let kind = match (&self.body, &self.parent) {
            (Body::Fixed, _) => "fixed",
            (Body::Dynamic(_), None) => "dynamic",
            (Body::Dynamic(_), Some(_)) => "differencing",
        };
        vec![("subformat".to_owned(), Detail::text(kind))]
    }
}
