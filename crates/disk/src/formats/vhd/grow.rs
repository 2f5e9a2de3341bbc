//! Growing. The table of blocks has no room for more, so that of a dynamic
//! disk moves to the end of the file, where the footer was: the copy of the
//! footer at the start counts until the new one is there.

use std::sync::atomic::Ordering;

use super::{
    Body, DYNAMIC_LEN, FOOTER_LEN, MAX_SIZE, SECTOR, UNALLOCATED, Vhd, checksum, geometry,
};
use crate::bytes::{be64, put};
use crate::error::Result;
use crate::format::{Format, Preallocation};
use crate::formats::blocks::{Table, check_growth};
use crate::formats::raw;
use crate::storage::read_vec;

impl Vhd {
    pub(super) fn grow(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        let old = self.size();
        let fixed = matches!(self.body, Body::Fixed);
        let reserving = if fixed { Preallocation::Off } else { preallocation };
        check_growth(&self.blame, old, size, MAX_SIZE, reserving)?;
        if !size.is_multiple_of(SECTOR) {
            return Err(self.blame.cannot_resize("its size is in sectors of 512 bytes"));
        }
        match &self.body {
            Body::Fixed => {
                self.grow_fixed(old, size)?;
                raw::preallocate(&*self.storages[0], old, size - old, preallocation)?;
            }
            Body::Dynamic(_) => self.grow_dynamic(size)?,
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// The new footer first: the file is a disk of one size or the other.
    fn grow_fixed(&self, old: u64, size: u64) -> Result<()> {
        let file = &*self.storages[0];
        let at = file.len()?.saturating_sub(FOOTER_LEN as u64);
        let mut footer = read_vec(file, at, FOOTER_LEN)?;
        set_size(&mut footer, size);
        file.write_at(size, &footer)?;
        file.flush()?;
        let stale = (at + FOOTER_LEN as u64).min(size);
        file.write_zeroes(old, stale.saturating_sub(old), false)?;
        file.flush()
    }

    fn grow_dynamic(&self, size: u64) -> Result<()> {
        let Body::Dynamic(blocks) = &self.body else { return Ok(()) };
        blocks.before_growth(self.size())?;
        let file = blocks.file();
        let mut map = blocks.table();
        let entries = size.div_ceil(blocks.block());
        if entries > map.table.words.len() as u64 {
            let at = map.end;
            // Whole sectors, of entries that are not used yet.
            let room = (entries * 4).next_multiple_of(SECTOR);
            file.write_at(at, &vec![0xff; room as usize])?;
            map.table.move_to(at, entries as usize, UNALLOCATED);
            map.end = at + room;
            map.footer_dirty = true;
            map.commit(file)?;
            file.flush()?;
            let header_at = be64(&map.footer, 16);
            let mut header = read_vec(file, header_at, DYNAMIC_LEN)?;
            put(&mut header, 16, &at.to_be_bytes());
            put(&mut header, 28, &(entries as u32).to_be_bytes());
            let sum = checksum(&header, 36);
            put(&mut header, 36, &sum.to_be_bytes());
            file.write_at(header_at, &header)?;
            file.flush()?;
        }
        set_size(&mut map.footer, size);
        file.write_at(0, &map.footer)?;
        file.flush()?;
        map.footer_dirty = true;
        map.commit(file)?;
        file.flush()
    }
}

/// Puts a size into a footer, also for readers who mean the geometry.
fn set_size(footer: &mut [u8], size: u64) {
    let (cylinders, heads, sectors) = geometry(size / SECTOR);
    // Of a program whose size field counts.
    put(footer, 28, b"win ");
    put(footer, 48, &size.to_be_bytes());
    put(footer, 56, &cylinders.to_be_bytes());
    (footer[58], footer[59]) = (heads, sectors);
    let sum = checksum(footer, 64);
    put(footer, 64, &sum.to_be_bytes());
}
