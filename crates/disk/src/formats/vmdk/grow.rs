//! Growing: the last extent becomes longer. A sparse one whose directory has no room for
//! more tables gets new directories behind its grains; its header, one sector, says which
//! count. The descriptor follows: as long as it tells the old size, a disk of several files
//! is one of the old size.

use std::sync::atomic::Ordering;

use super::create::{MAX_SIZE, SPLIT};
use super::grains::{Grains, HEADER_LEN, SECTOR, SparseHeader};
use super::{Body, MAX_LEN, Vmdk, descriptor, read_text};
use crate::bytes::put;
use crate::error::Result;
use crate::format::{Format, Preallocation};
use crate::formats::blocks::{Blocks, check_growth};
use crate::formats::raw;
use crate::storage::read_vec;

impl Vmdk {
    pub(super) fn grow(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        if self.stream.is_some() {
            let why = "streams are written once: convert it into a larger one";
            return Err(self.blame.cannot_resize(why));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(self.blame.cannot_resize("its size is in sectors of 512 bytes"));
        }
        let old = self.size();
        let Some(part) = self.parts.last() else { return Ok(()) };
        let split = self.descriptor.create_type.starts_with("twoGb");
        let room = if split { part.start + SPLIT * SECTOR } else { MAX_SIZE };
        let flat = matches!(part.body, Body::Flat { .. });
        let reserving = if flat { Preallocation::Off } else { preallocation };
        check_growth(&self.blame, old, size, room, reserving)?;
        if size == old {
            return Ok(());
        }
        self.touch()?;
        match &part.body {
            Body::Flat { file, offset } => {
                let file = &*self.storages[usize::from(*file)];
                let [from, to] = [old, size].map(|size| offset + size - part.start);
                let behind = file.len()?.min(to);
                if behind > from {
                    file.write_zeroes(from, behind - from, false)?;
                }
                file.set_len(file.len()?.max(to))?;
                raw::preallocate(file, from, to - from, preallocation)?;
                file.flush()?;
            }
            Body::Sparse(blocks) => grow_sparse(blocks, old - part.start, size - part.start)?,
            Body::Zero => return Err(self.blame.cannot_resize("its end is not in any file")),
        }
        self.describe((size - part.start) / SECTOR)?;
        part.len.store(size - part.start, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the descriptor with another length of the last extent.
    fn describe(&self, sectors: u64) -> Result<()> {
        let file = &*self.storages[0];
        let (at, room) = self.text_at;
        if room == 0 {
            return Ok(());
        }
        // Inside of an extent the text has a place of a certain size.
        let alone = at == 0;
        let room = if alone { file.len()?.min(MAX_LEN) } else { room };
        let (text, _) = read_text(file, at, room)?;
        if text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(self.blame.cannot_resize("its descriptor is not in UTF-8"));
        }
        let Some(text) = descriptor::with_last_extent(&text, sectors) else {
            return Err(self.blame.corrupt("the descriptor names no extent"));
        };
        let mut bytes = text.into_bytes();
        if alone {
            file.write_at(0, &bytes)?;
            file.set_len(bytes.len() as u64)?;
        } else if bytes.len() as u64 > room {
            return Err(self.blame.cannot_resize("its descriptor has no room for another size"));
        } else {
            bytes.resize(room as usize, 0);
            file.write_at(at, &bytes)?;
        }
        file.flush()
    }
}

fn grow_sparse(blocks: &Blocks<Grains>, old: u64, new: u64) -> Result<()> {
    blocks.before_growth(old)?;
    let file = blocks.file();
    let mut grains = blocks.table();
    let mut head = read_vec(file, 0, HEADER_LEN)?;
    let capacity = new / SECTOR;
    let header = SparseHeader { capacity, ..SparseHeader::parse(&head, grains.blame())? };
    put(&mut head, 12, &capacity.to_le_bytes());
    if let Some((redundant, directory)) = grains.grow(file, header.tables())? {
        file.flush()?;
        put(&mut head, 48, &redundant.to_le_bytes());
        put(&mut head, 56, &directory.to_le_bytes());
    }
    file.write_at(0, &head)?;
    file.flush()
}

#[cfg(test)]
mod tests;
