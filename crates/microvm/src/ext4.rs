//! An empty ext4 file system in a sparse file.
//!
//! Made here and not by a tool, because hosts may have none, and because it takes a
//! millisecond: only what is not zero is written. There are no lazily made parts, no
//! checksums of metadata, and a journal, so that a guest whose worker is killed finds
//! its files whole.
//!
//! Layout of each group of 32768 blocks: in some groups a copy of superblock and group
//! descriptors; then the bitmaps of blocks and of inodes, the inodes, and data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const BLOCK: u64 = 4096;
const GROUP_BLOCKS: u64 = 32768;
const GROUP_INODES: u64 = 8192;
const INODE: u64 = 256;
const TABLE_BLOCKS: u64 = GROUP_INODES * INODE / BLOCK;
const DESCRIPTOR: u64 = 32;

const ROOT_INODE: u64 = 2;
const JOURNAL_INODE: u64 = 8;
/// The first one that is not reserved; `lost+found` has it.
const FIRST_INODE: u64 = 11;

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const USES_EXTENTS: u32 = 0x8_0000;

/// has_journal, ext_attr, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
/// filetype, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40;

pub const SMALLEST: u64 = 32 << 20;
pub const LARGEST: u64 = 8 << 40;

/// Makes a file of this many bytes with an empty file system in it. A file that is there
/// already is left alone, and an error.
pub fn create(path: &Path, size: u64) -> io::Result<()> {
    if !(SMALLEST..=LARGEST).contains(&size) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a file system has {SMALLEST} to {LARGEST} bytes, not {size}"),
        ));
    }
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    // As those of version 4 are.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec as u32;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size)?;
    Format::new(size, id, now).write(&file)
}

struct Format {
    blocks: u64,
    groups: u64,
    /// Blocks of group descriptors.
    descriptor_blocks: u64,
    journal_blocks: u64,
    id: [u8; 16],
    now: u32,
}

/// A structure of little-endian fields.
struct Record<'a>(&'a mut [u8]);

impl Record<'_> {
    fn put8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// What is used of one group.
struct Group {
    blocks: u64,
    used_blocks: u64,
    used_inodes: u64,
}

impl Format {
    fn new(size: u64, id: [u8; 16], now: u32) -> Self {
        let mut blocks = size / BLOCK;
        let descriptors = |blocks: u64| {
            let groups = blocks.div_ceil(GROUP_BLOCKS);
            (groups * DESCRIPTOR).div_ceil(BLOCK)
        };
        // A last group that has no room for more than its own tables is left out.
        let rest = blocks % GROUP_BLOCKS;
        if blocks > GROUP_BLOCKS && rest > 0 && rest < descriptors(blocks) + TABLE_BLOCKS + 64 {
            blocks -= rest;
        }
        let journal_blocks = match size {
            0..0x1000_0000 => 1024,
            0x1000_0000..0x4000_0000 => 4096,
            _ => 8192,
        };
        Format {
            blocks,
            groups: blocks.div_ceil(GROUP_BLOCKS),
            descriptor_blocks: descriptors(blocks),
            journal_blocks,
            id,
            now,
        }
    }

    /// Groups 0 and 1, and powers of 3, 5 and 7.
    fn has_copy(group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || is_power(3) || is_power(5) || is_power(7)
    }

    /// Blocks before a group's bitmaps.
    fn head(&self, group: u64) -> u64 {
        if Self::has_copy(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    /// The group's block bitmap; the inode bitmap and the inodes follow.
    fn bitmap(&self, group: u64) -> u64 {
        group * GROUP_BLOCKS + self.head(group)
    }

    /// What stands in the first group's data: the root directory, `lost+found`, the journal.
    fn first_data(&self) -> u64 {
        self.bitmap(0) + 2 + TABLE_BLOCKS
    }

    fn group(&self, group: u64) -> Group {
        let blocks = (self.blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS);
        let tables = self.head(group) + 2 + TABLE_BLOCKS;
        match group {
            0 => Group {
                blocks,
                used_blocks: tables + 2 + self.journal_blocks,
                used_inodes: FIRST_INODE,
            },
            _ => Group { blocks, used_blocks: tables, used_inodes: 0 },
        }
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let superblock = self.superblock();
        let descriptors = self.descriptors();
        for group in 0..self.groups {
            if Self::has_copy(group) {
                let start = group * GROUP_BLOCKS * BLOCK;
                let mut copy = superblock.clone();
                Record(&mut copy).put16(0x5a, group as u16);
                // The first one leaves room for a boot loader.
                let place = if group == 0 { 1024 } else { start };
                file.write_all_at(&copy, place)?;
                file.write_all_at(&descriptors, start + BLOCK)?;
            }
            file.write_all_at(&self.bitmaps(group), self.bitmap(group) * BLOCK)?;
        }
        self.write_inodes(file)?;
        self.write_directories(file)?;
        file.write_all_at(&self.journal(), (self.first_data() + 2) * BLOCK)?;
        Ok(())
    }

    fn superblock(&self) -> Vec<u8> {
        let groups = || (0..self.groups).map(|group| self.group(group));
        let free_blocks: u64 = groups().map(|group| group.blocks - group.used_blocks).sum();
        let free_inodes: u64 = groups().map(|group| GROUP_INODES - group.used_inodes).sum();
        let mut bytes = vec![0; 1024];
        let mut record = Record(&mut bytes);
        record.put32(0x00, (self.groups * GROUP_INODES) as u32);
        record.put32(0x04, self.blocks as u32);
        record.put32(0x0c, free_blocks as u32);
        record.put32(0x10, free_inodes as u32);
        // Block and cluster size: 1024 shifted by this.
        record.put32(0x18, 2);
        record.put32(0x1c, 2);
        record.put32(0x20, GROUP_BLOCKS as u32);
        record.put32(0x24, GROUP_BLOCKS as u32);
        record.put32(0x28, GROUP_INODES as u32);
        record.put32(0x30, self.now);
        // Never checked for having been mounted often.
        record.put16(0x36, u16::MAX);
        record.put16(0x38, 0xef53);
        // Clean; go on after errors; the current revision.
        record.put16(0x3a, 1);
        record.put16(0x3c, 1);
        record.put32(0x40, self.now);
        record.put32(0x4c, 1);
        record.put32(0x54, FIRST_INODE as u32);
        record.put16(0x58, INODE as u16);
        record.put32(0x5c, COMPATIBLE);
        record.put32(0x60, INCOMPATIBLE);
        record.put32(0x64, READ_ONLY_COMPATIBLE);
        record.put(0x68, &self.id);
        record.put32(0xe0, JOURNAL_INODE as u32);
        // Directory hashes: a seed, half of MD4, characters with a sign.
        record.put(0xec, &self.id);
        record.put8(0xfc, 1);
        record.put32(0x108, self.now);
        record.put16(0x15c, 32);
        record.put16(0x15e, 32);
        record.put32(0x160, 1);
        bytes
    }

    fn descriptors(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.descriptor_blocks * BLOCK) as usize];
        for (number, bytes) in (0..self.groups).zip(bytes.chunks_mut(DESCRIPTOR as usize)) {
            let (group, bitmap) = (self.group(number), self.bitmap(number) as u32);
            let mut record = Record(bytes);
            record.put32(0x0, bitmap);
            record.put32(0x4, bitmap + 1);
            record.put32(0x8, bitmap + 2);
            record.put16(0xc, (group.blocks - group.used_blocks) as u16);
            record.put16(0xe, (GROUP_INODES - group.used_inodes) as u16);
            record.put16(0x10, if number == 0 { 2 } else { 0 });
        }
        bytes
    }

    /// Bits of what is used, and of what does not exist.
    fn bitmaps(&self, number: u64) -> Vec<u8> {
        let group = self.group(number);
        let mut bytes = vec![0; 2 * BLOCK as usize];
        let (blocks, inodes) = bytes.split_at_mut(BLOCK as usize);
        set_bits(blocks, 0, group.used_blocks);
        set_bits(blocks, group.blocks, BLOCK * 8);
        set_bits(inodes, 0, group.used_inodes);
        set_bits(inodes, GROUP_INODES, BLOCK * 8);
        bytes
    }

    fn write_inodes(&self, file: &File) -> io::Result<()> {
        let data = self.first_data();
        let directory = |mode| DIRECTORY | mode;
        let inodes = [
            (ROOT_INODE, directory(0o755), 3, data, 1),
            (JOURNAL_INODE, REGULAR | 0o600, 1, data + 2, self.journal_blocks),
            (FIRST_INODE, directory(0o700), 2, data + 1, 1),
        ];
        for (number, mode, links, start, blocks) in inodes {
            let mut bytes = [0; INODE as usize];
            let mut record = Record(&mut bytes);
            record.put16(0x00, mode);
            record.put32(0x04, (blocks * BLOCK) as u32);
            for time in [0x08, 0x0c, 0x10, 0x90] {
                record.put32(time, self.now);
            }
            record.put16(0x1a, links);
            record.put32(0x1c, (blocks * BLOCK / 512) as u32);
            record.put32(0x20, USES_EXTENTS);
            // One extent, of room for four.
            record.put16(0x28, 0xf30a);
            record.put16(0x2a, 1);
            record.put16(0x2c, 4);
            record.put16(0x38, blocks as u16);
            record.put32(0x3c, start as u32);
            record.put16(0x80, 32);
            let place = (self.bitmap(0) + 2) * BLOCK + (number - 1) * INODE;
            file.write_all_at(&bytes, place)?;
        }
        Ok(())
    }

    fn write_directories(&self, file: &File) -> io::Result<()> {
        let root = [(ROOT_INODE, "."), (ROOT_INODE, ".."), (FIRST_INODE, "lost+found")];
        let lost = [(FIRST_INODE, "."), (ROOT_INODE, "..")];
        file.write_all_at(&directory_block(&root), self.first_data() * BLOCK)?;
        file.write_all_at(&directory_block(&lost), (self.first_data() + 1) * BLOCK)
    }

    /// The journal's own superblock, which is big-endian: nothing is in it.
    fn journal(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        for (at, value) in [
            (0x00, 0xc03b_3998),
            (0x04, 4),
            (0x0c, BLOCK as u32),
            (0x10, self.journal_blocks as u32),
            (0x14, 1),
            (0x18, 1),
            (0x40, 1),
        ] {
            bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        bytes[0x30..0x40].copy_from_slice(&self.id);
        bytes
    }
}

fn set_bits(bytes: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bytes[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

/// One block of a directory. The last entry reaches to its end.
fn directory_block(entries: &[(u64, &str)]) -> Vec<u8> {
    const KIND_DIRECTORY: u8 = 2;
    let mut bytes = vec![0; BLOCK as usize];
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let length = match index + 1 == entries.len() {
            true => BLOCK as usize - at,
            false => (8 + name.len()).next_multiple_of(4),
        };
        let mut record = Record(&mut bytes[at..]);
        record.put32(0, *inode as u32);
        record.put16(4, length as u16);
        record.put8(6, name.len() as u8);
        record.put8(7, KIND_DIRECTORY);
        record.put(8, name.as_bytes());
        at += length;
    }
    bytes
}

#[cfg(test)]
mod tests;
