//! streamOptimized extents: packed grains one after the other, then the tables,
//! then a footer. Written once, front to back; what is written again is packed
//! anew and appended.

use std::collections::BTreeMap;

use super::grains::{GD_AT_END, GTES, Grains, SECTOR, SparseHeader};
use crate::bytes::put;
use crate::codec::Codec;
use crate::error::{Blame, Result};
use crate::storage::Storage;

const MARKER_END: u32 = 0;
const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

/// The writing side of a stream.
pub(super) struct Stream {
    header: SparseHeader,
    /// Where the next grain goes.
    end: u64,
    /// Tables of what is in the stream.
    tables: BTreeMap<u64, Vec<u32>>,
    dirty: bool,
}

fn marker(sectors: u64, kind: u32) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR as usize];
    put(&mut bytes, 0, &sectors.to_le_bytes());
    put(&mut bytes, 12, &kind.to_le_bytes());
    bytes
}

impl Stream {
    /// Takes over what is in the stream so far.
    pub(super) fn new(
        file: &dyn Storage,
        header: SparseHeader,
        grains: &mut Grains,
    ) -> Result<Self> {
        let mut stream =
            Self { end: header.overhead * SECTOR, header, tables: BTreeMap::new(), dirty: false };
        for grain in 0..stream.header.capacity.div_ceil(stream.header.grain) {
            let entry = grains.entry(file, grain)?;
            if entry != 0 {
                stream.note(grain, entry as u32);
                // Behind everything: the old tables stay until there are new.
                stream.end = file.len()?.next_multiple_of(SECTOR);
            }
        }
        stream.dirty = false;
        Ok(stream)
    }

    fn note(&mut self, grain: u64, sector: u32) {
        let table = self.tables.entry(grain / GTES).or_insert_with(|| vec![0; GTES as usize]);
        table[(grain % GTES) as usize] = sector;
        self.dirty = true;
    }

    /// Appends one packed grain.
    pub(super) fn append(
        &mut self,
        file: &dyn Storage,
        grains: &mut Grains,
        grain: u64,
        packed: &[u8],
        blame: &Blame,
    ) -> Result<()> {
        let Ok(sector) = u32::try_from(self.end / SECTOR) else {
            return Err(blame.unsupported("a stream of more than 2 TiB"));
        };
        let mut bytes = (grain * self.header.grain).to_le_bytes().to_vec();
        bytes.extend((packed.len() as u32).to_le_bytes());
        bytes.extend(packed);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        file.write_at(self.end, &bytes)?;
        self.end += bytes.len() as u64;
        self.note(grain, sector);
        grains.set_entry(file, grain, u64::from(sector))
    }

    /// Packs a grain that may be written unpacked by the caller.
    pub(super) fn pack(data: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        Codec::Zlib.encoder().pack(data, data.len() + data.len() / 8 + 1024, &mut packed);
        packed
    }

    /// Writes tables, directory and footer behind the grains.
    pub(super) fn finish(&mut self, file: &dyn Storage) -> Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let mut tail = Vec::new();
        let mut directory = vec![0_u32; self.header.tables() as usize];
        for (&number, table) in &self.tables {
            tail.extend(marker(GTES * 4 / SECTOR, MARKER_TABLE));
            directory[number as usize] = ((self.end + tail.len() as u64) / SECTOR) as u32;
            tail.extend(table.iter().flat_map(|word| word.to_le_bytes()));
        }
        let directory_sectors = (directory.len() as u64 * 4).div_ceil(SECTOR);
        tail.extend(marker(directory_sectors, MARKER_DIRECTORY));
        let directory_at = (self.end + tail.len() as u64) / SECTOR;
        tail.extend(directory.iter().flat_map(|word| word.to_le_bytes()));
        tail.resize(tail.len().next_multiple_of(SECTOR as usize), 0);
        tail.extend(marker(1, MARKER_FOOTER));
        let footer = SparseHeader { directory: directory_at, ..self.header.clone() };
        tail.extend(footer.encode());
        tail.extend(marker(0, MARKER_END));
        file.write_at(self.end, &tail)?;
        file.set_len(self.end + tail.len() as u64)?;
        file.flush()?;
        self.dirty = false;
        Ok(())
    }

    /// An empty stream's bytes after the header and the descriptor.
    pub(super) fn create(file: &dyn Storage, header: SparseHeader) -> Result<()> {
        let end = header.overhead * SECTOR;
        let mut stream = Self { end, header, tables: BTreeMap::new(), dirty: true };
        stream.header.directory = GD_AT_END;
        file.write_at(0, &stream.header.encode())?;
        stream.finish(file)
    }
}
