//! Sparse extents: a directory of tables of grains, in the three shapes that
//! VMware's products write.

use std::collections::HashMap;

use crate::bytes::{le16, le32, le64, put};
use crate::codec::Codec;
use crate::error::{Blame, Result};
use crate::formats::blocks::{NewBlock, Slot, Table};
use crate::storage::{Storage, read_vec};

pub(super) const SECTOR: u64 = 512;
pub(super) const GTES: u64 = 512;
pub(super) const HEADER_LEN: usize = 512;
const FLAG_NEWLINES: u32 = 1;
const FLAG_REDUNDANT: u32 = 2;
const FLAG_ZEROED: u32 = 4;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
pub(super) const GD_AT_END: u64 = u64::MAX;
/// Tables that stay in memory.
const CACHED_TABLES: usize = 4096;

/// How entries are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// 32-bit sector numbers.
    Words,
    /// 64-bit entries with a kind, relative to the area of grains.
    SeSparse { tables_at: u64, grains_at: u64 },
}

/// The header of a hosted sparse extent.
#[derive(Clone, Debug)]
pub(super) struct SparseHeader {
    pub version: u32,
    pub flags: u32,
    pub capacity: u64,
    pub grain: u64,
    pub descriptor: (u64, u64),
    pub gtes: u64,
    pub redundant_directory: u64,
    pub directory: u64,
    pub overhead: u64,
    pub compression: u16,
}

impl SparseHeader {
    pub(super) fn parse(bytes: &[u8], blame: &Blame) -> Result<Self> {
        if !bytes.starts_with(b"KDMV") {
            return Err(blame.corrupt("a sparse extent without its header"));
        }
        let header = Self {
            version: le32(bytes, 4),
            flags: le32(bytes, 8),
            capacity: le64(bytes, 12),
            grain: le64(bytes, 20),
            descriptor: (le64(bytes, 28), le64(bytes, 36)),
            gtes: u64::from(le32(bytes, 44)),
            redundant_directory: le64(bytes, 48),
            directory: le64(bytes, 56),
            overhead: le64(bytes, 64),
            compression: le16(bytes, 77),
        };
        if header.version > 3 {
            return Err(blame.unsupported(format!("version {}", header.version)));
        }
        if !header.grain.is_power_of_two() || !(1..=1 << 16).contains(&header.grain) {
            return Err(blame.corrupt(format!("grains of {} sectors", header.grain)));
        }
        if header.gtes == 0 || header.gtes > 4096 || header.capacity > i64::MAX as u64 / SECTOR {
            return Err(blame.corrupt("tables of an impossible size"));
        }
        // Far beyond any file, and near enough for sums not to overflow.
        let possible = |sector: u64| sector <= i64::MAX as u64 / (2 * SECTOR);
        let directories = [header.directory, header.redundant_directory];
        if !possible(header.overhead)
            || !possible(header.descriptor.0)
            || !directories.into_iter().all(|at| at == GD_AT_END || possible(at))
        {
            return Err(blame.corrupt("its parts are at impossible places"));
        }
        if header.flags & FLAG_NEWLINES != 0 && bytes[73..77] != *b"\n \r\n" {
            return Err(blame.corrupt("a transfer as text has changed its line ends"));
        }
        if header.flags & FLAG_COMPRESSED != 0 && header.compression != 1 {
            return Err(blame.unsupported(format!("compression {}", header.compression)));
        }
        Ok(header)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        put(&mut bytes, 0, b"KDMV");
        put(&mut bytes, 4, &self.version.to_le_bytes());
        put(&mut bytes, 8, &self.flags.to_le_bytes());
        put(&mut bytes, 12, &self.capacity.to_le_bytes());
        put(&mut bytes, 20, &self.grain.to_le_bytes());
        put(&mut bytes, 28, &self.descriptor.0.to_le_bytes());
        put(&mut bytes, 36, &self.descriptor.1.to_le_bytes());
        put(&mut bytes, 44, &(self.gtes as u32).to_le_bytes());
        put(&mut bytes, 48, &self.redundant_directory.to_le_bytes());
        put(&mut bytes, 56, &self.directory.to_le_bytes());
        put(&mut bytes, 64, &self.overhead.to_le_bytes());
        put(&mut bytes, 73, b"\n \r\n");
        put(&mut bytes, 77, &self.compression.to_le_bytes());
        bytes
    }

    /// Flags of a new extent.
    pub(super) fn flags(packed: bool, zeroed: bool) -> u32 {
        let mut flags = FLAG_NEWLINES;
        flags |= if packed { FLAG_COMPRESSED | FLAG_MARKERS } else { FLAG_REDUNDANT };
        if zeroed {
            flags |= FLAG_ZEROED;
        }
        flags
    }

    pub(super) fn packed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    pub(super) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * self.gtes)
    }
}

struct GrainTable {
    entries: Vec<u64>,
    dirty: Option<(usize, usize)>,
}

/// The map of one sparse extent.
pub(super) struct Grains {
    shape: Shape,
    grain: u64,
    gtes: u64,
    /// Sectors of the tables; 0 for one that is not there.
    directory: Vec<u64>,
    redundant: Vec<u64>,
    tables: HashMap<u64, GrainTable>,
    zeroed: bool,
    packed: bool,
    /// Where the next grain goes.
    end: u64,
    blame: Blame,
}

impl Grains {
    /// The map of a hosted sparse extent, streamOptimized included.
    pub(super) fn hosted(file: &dyn Storage, header: &SparseHeader, blame: &Blame) -> Result<Self> {
        let count = header.tables();
        let directory = read_directory(file, header.directory, count, blame)?;
        let redundant = match header.flags & FLAG_REDUNDANT {
            0 => Vec::new(),
            _ => read_directory(file, header.redundant_directory, count, blame)?,
        };
        let end = file.len()?.next_multiple_of(SECTOR).max(header.overhead.saturating_mul(SECTOR));
        let end = if header.packed() { end } else { end.next_multiple_of(header.grain * SECTOR) };
        Ok(Self {
            shape: Shape::Words,
            grain: header.grain * SECTOR,
            gtes: header.gtes,
            directory,
            redundant,
            tables: HashMap::new(),
            zeroed: header.flags & FLAG_ZEROED != 0,
            packed: header.packed(),
            end,
            blame: blame.clone(),
        })
    }

    /// ESX 3 and later, `vmfsSparse`.
    pub(super) fn cowd(file: &dyn Storage, blame: &Blame) -> Result<(Self, u64)> {
        let header = read_vec(file, 0, HEADER_LEN)?;
        if !header.starts_with(b"COWD") {
            return Err(blame.corrupt("a vmfsSparse extent without its header"));
        }
        let sectors = u64::from(le32(&header, 12));
        let grain = u64::from(le32(&header, 16));
        let count = u64::from(le32(&header, 24));
        if !grain.is_power_of_two() || grain > 1 << 16 || sectors.div_ceil(grain * 4096) > count {
            return Err(blame.corrupt("tables of an impossible size"));
        }
        let directory = read_directory(file, u64::from(le32(&header, 20)), count, blame)?;
        let map = Self::read_only(Shape::Words, grain * SECTOR, 4096, directory, blame);
        Ok((map, sectors))
    }

    /// ESX 6.5 and later, `seSparse`.
    pub(super) fn sesparse(file: &dyn Storage, blame: &Blame) -> Result<(Self, u64)> {
        let header = read_vec(file, 0, HEADER_LEN)?;
        if le64(&header, 0) != 0xcafe_babe {
            return Err(blame.corrupt("a seSparse extent without its header"));
        }
        if le64(&header, 8) != 0x2_0000_0001 {
            return Err(blame.unsupported(format!("seSparse version {:#x}", le64(&header, 8))));
        }
        let field = |index: usize| le64(&header, index * 8);
        let (capacity, grain, table_sectors) = (field(2), field(3), field(4));
        let (directory_at, directory_len) = (field(16), field(17));
        let (tables_at, grains_at) = (field(18), field(24));
        if grain != 8 || table_sectors != 64 || capacity > i64::MAX as u64 / SECTOR {
            return Err(blame.unsupported("seSparse with another geometry than ESX writes"));
        }
        let gtes = table_sectors * SECTOR / 8;
        let count = capacity.div_ceil(grain * gtes);
        let file_len = file.len()?;
        let at = directory_at.checked_mul(SECTOR).filter(|at| *at < file_len);
        let Some(at) = at.filter(|at| {
            count * 8 <= file_len - at && count * 8 <= directory_len.saturating_mul(SECTOR)
        }) else {
            return Err(blame.corrupt("the grain directory lies outside the file"));
        };
        let bytes = read_vec(file, at, count as usize * 8)?;
        let mut directory = Vec::with_capacity(count as usize);
        for entry in bytes.chunks_exact(8) {
            directory.push(match le64(entry, 0) {
                0 => 0,
                // The number of the table, from one, as zero is none.
                word if word >> 32 == 0x1000_0000 => (word & 0xffff_ffff) + 1,
                word => return Err(blame.corrupt(format!("directory entry {word:#x}"))),
            });
        }
        let shape = Shape::SeSparse { tables_at, grains_at };
        Ok((Self::read_only(shape, grain * SECTOR, gtes, directory, blame), capacity))
    }

    fn read_only(shape: Shape, grain: u64, gtes: u64, directory: Vec<u64>, blame: &Blame) -> Self {
        Self {
            shape,
            grain,
            gtes,
            directory,
            redundant: Vec::new(),
            tables: HashMap::new(),
            zeroed: true,
            packed: false,
            end: 0,
            blame: blame.clone(),
        }
    }

    /// Bytes of a grain.
    pub(super) fn grain(&self) -> u64 {
        self.grain
    }

    /// Where errors point.
    pub(super) fn blame(&self) -> &Blame {
        &self.blame
    }

    /// The entry for a grain, as it stands in its table.
    pub(super) fn entry(&mut self, file: &dyn Storage, grain: u64) -> Result<u64> {
        let (table, index) = (grain / self.gtes, (grain % self.gtes) as usize);
        let place = self.directory.get(table as usize).copied().unwrap_or(0);
        if place == 0 && !self.tables.contains_key(&table) {
            return Ok(0);
        }
        Ok(self.table(file, table)?.entries[index])
    }

    fn table(&mut self, file: &dyn Storage, table: u64) -> Result<&mut GrainTable> {
        if !self.tables.contains_key(&table) {
            if self.tables.len() >= CACHED_TABLES {
                self.tables.retain(|_, table| table.dirty.is_some());
            }
            let place = self.directory[table as usize];
            let width = if self.shape == Shape::Words { 4 } else { 8 };
            let sector = match self.shape {
                Shape::Words => place,
                Shape::SeSparse { tables_at, .. } => {
                    tables_at.saturating_add((place - 1) * self.gtes * 8 / SECTOR)
                }
            };
            let entries = if place == 0 {
                vec![0; self.gtes as usize]
            } else {
                let at = sector.checked_mul(SECTOR).filter(|&at| file.len().is_ok_and(|l| at < l));
                let at = at.ok_or_else(|| self.blame.corrupt("a grain table outside the file"))?;
                let bytes = read_vec(file, at, self.gtes as usize * width)?;
                match self.shape {
                    Shape::Words => {
                        bytes.chunks_exact(4).map(|word| u64::from(le32(word, 0))).collect()
                    }
                    Shape::SeSparse { .. } => {
                        bytes.chunks_exact(8).map(|word| le64(word, 0)).collect()
                    }
                }
            };
            self.tables.insert(table, GrainTable { entries, dirty: None });
        }
        let blame = &self.blame;
        self.tables.get_mut(&table).ok_or_else(|| blame.corrupt("lost a grain table"))
    }

    /// Changes an entry in memory.
    pub(super) fn set_entry(&mut self, file: &dyn Storage, grain: u64, entry: u64) -> Result<()> {
        let (table, index) = (grain / self.gtes, (grain % self.gtes) as usize);
        let table = self.table(file, table)?;
        table.entries[index] = entry;
        table.dirty = Some(match table.dirty {
            Some((from, to)) => (from.min(index), to.max(index + 1)),
            None => (index, index + 1),
        });
        Ok(())
    }

    /// Room for more tables: directories behind everything, the redundant one first, each
    /// with the tables that were there and new ones of its own. Gives their sectors, which
    /// are for the header; `None` if there are as many tables already.
    pub(super) fn grow(&mut self, file: &dyn Storage, count: u64) -> Result<Option<(u64, u64)>> {
        if count <= self.directory.len() as u64 {
            return Ok(None);
        }
        let mut at = file.len()?.max(self.end).div_ceil(SECTOR);
        let redundant_at = at;
        let mut redundant = Vec::new();
        if !self.redundant.is_empty() {
            redundant = self.longer(file, &self.redundant, count, &mut at)?;
        }
        let directory_at = at;
        let directory = self.longer(file, &self.directory, count, &mut at)?;
        (self.redundant, self.directory) = (redundant, directory);
        self.end = (at * SECTOR).next_multiple_of(self.grain);
        let redundant_at = if self.redundant.is_empty() { 0 } else { redundant_at };
        Ok(Some((redundant_at, directory_at)))
    }

    /// Writes a longer directory and its new tables, empty, from sector `at` on.
    fn longer(
        &self,
        file: &dyn Storage,
        old: &[u64],
        count: u64,
        at: &mut u64,
    ) -> Result<Vec<u64>> {
        let table_sectors = (self.gtes * 4).div_ceil(SECTOR);
        let first = *at + (count * 4).div_ceil(SECTOR);
        let end = first + (count - old.len() as u64) * table_sectors;
        if end > u64::from(u32::MAX) {
            return Err(self.blame.unsupported("an extent larger than its tables can address"));
        }
        let mut directory = old.to_vec();
        directory.extend((first..end).step_by(table_sectors as usize));
        let bytes: Vec<u8> =
            directory.iter().flat_map(|&sector| (sector as u32).to_le_bytes()).collect();
        file.write_at(*at * SECTOR, &bytes)?;
        // Tables without grains are zeroes.
        file.set_len(end * SECTOR)?;
        *at = end;
        Ok(directory)
    }

    fn write_table(&self, file: &dyn Storage, at: u64, table: &GrainTable) -> Result<()> {
        let Some((from, to)) = table.dirty else { return Ok(()) };
        let bytes: Vec<u8> =
            table.entries[from..to].iter().flat_map(|&word| (word as u32).to_le_bytes()).collect();
        file.write_at(at * SECTOR + from as u64 * 4, &bytes)
    }
}

fn read_directory(file: &dyn Storage, at: u64, count: u64, blame: &Blame) -> Result<Vec<u64>> {
    let len = count * 4;
    let file_len = file.len()?;
    let inside = at.checked_mul(SECTOR).and_then(|at| at.checked_add(len));
    if inside.is_none_or(|end| end > file_len) || at == 0 {
        return Err(blame.corrupt("the grain directory lies outside the file"));
    }
    let bytes = read_vec(file, at * SECTOR, len as usize)?;
    Ok(bytes.chunks_exact(4).map(|word| u64::from(le32(word, 0))).collect())
}

impl Table for Grains {
    fn get(&mut self, file: &dyn Storage, index: u64) -> Result<Slot> {
        let entry = self.entry(file, index)?;
        if let Shape::SeSparse { grains_at, .. } = self.shape {
            return Ok(match entry >> 60 {
                0 if entry == 0 => Slot::Unallocated,
                1 => Slot::Unallocated,
                2 => Slot::Zero,
                3 => {
                    let number = (entry >> 48 & 0xfff) | (entry & 0xffff_ffff_ffff) << 12;
                    let offset = number.checked_mul(self.grain / SECTOR);
                    let sector = offset.and_then(|offset| offset.checked_add(grains_at));
                    let at = sector.and_then(|sector| sector.checked_mul(SECTOR));
                    Slot::At(at.ok_or_else(|| self.blame.corrupt("a grain outside the file"))?)
                }
                _ => return Err(self.blame.corrupt(format!("grain entry {entry:#x}"))),
            });
        }
        Ok(match entry {
            0 => Slot::Unallocated,
            1 if self.zeroed => Slot::Zero,
            sector if self.packed => Slot::Packed(sector * SECTOR),
            sector => Slot::At(sector * SECTOR),
        })
    }

    fn allocate(&mut self, file: &dyn Storage, index: u64) -> Result<NewBlock> {
        let table = (index / self.gtes) as usize;
        if self.directory.get(table).copied().unwrap_or(0) == 0 {
            return Err(self.blame.unsupported("writing where there is no grain table"));
        }
        let offset = self.end;
        if offset / SECTOR > u64::from(u32::MAX) {
            return Err(self.blame.unsupported("an extent larger than its tables can address"));
        }
        let fresh = offset >= file.len()?;
        self.end += self.grain;
        Ok(NewBlock { offset, fresh })
    }

    fn set(&mut self, file: &dyn Storage, index: u64, slot: Slot) -> Result<()> {
        let entry = match slot {
            Slot::At(offset) | Slot::Packed(offset) => offset / SECTOR,
            _ => 1,
        };
        self.set_entry(file, index, entry)
    }

    fn has_zero(&self) -> bool {
        self.zeroed
    }

    fn commit(&mut self, file: &dyn Storage) -> Result<()> {
        let mut dirty: Vec<u64> = self
            .tables
            .iter()
            .filter(|(_, table)| table.dirty.is_some())
            .map(|(&number, _)| number)
            .collect();
        dirty.sort_unstable();
        // The redundant tables first: they are for when the others are lost.
        for &number in &dirty {
            if let (Some(&at), Some(table)) =
                (self.redundant.get(number as usize), self.tables.get(&number))
            {
                self.write_table(file, at, table)?;
            }
        }
        for &number in &dirty {
            if let Some(table) = self.tables.get(&number) {
                self.write_table(file, self.directory[number as usize], table)?;
            }
        }
        for number in dirty {
            if let Some(table) = self.tables.get_mut(&number) {
                table.dirty = None;
            }
        }
        Ok(())
    }

    fn is_dirty(&self) -> bool {
        self.tables.values().any(|table| table.dirty.is_some())
    }

    fn unpack(&mut self, file: &dyn Storage, at: u64, block: &mut [u8]) -> Result<()> {
        let marker = read_vec(file, at, 12)?;
        let len = le32(&marker, 8) as usize;
        // Incompressible data grows, but not without a bound.
        if len == 0 || len > block.len() * 2 + 1024 {
            return Err(self.blame.corrupt(format!("a packed grain of {len} bytes")));
        }
        let packed = read_vec(file, at + 12, len)?;
        if !Codec::Zlib.unpack(&packed, block) {
            return Err(self.blame.corrupt(format!("the packed grain at {at:#x} is broken")));
        }
        Ok(())
    }
}
