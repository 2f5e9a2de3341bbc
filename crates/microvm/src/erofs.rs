//! The files of an EROFS file system, to be read: what images are for machines.
//!
//! The image store has written it, but what is in it, and how much, is somebody else's: places
//! are checked, and what is read is bounded as for other file systems (`Stretch`). Files that are
//! compressed or in chunks are not read; the store makes none.

use std::io::Write;
use std::sync::Arc;

use guise_disk::bytes::{le16, le32, le64};
use guise_disk::graph::Node;

use crate::files::{Files, Kind};
use crate::volume::{Stretch, VolumeError};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
const BLOCK_BITS: u8 = 12;
const BLOCK: u64 = 1 << BLOCK_BITS;
/// Numbers of inodes count these.
const SLOT: u64 = 32;
const ENTRY: usize = 12;
/// The header in front of attributes.
const ATTRIBUTES: u64 = 12;
/// No directory that is looked through is larger.
const LARGEST_DIRECTORY: u64 = 8 << 20;
const LONGEST_LINK: u64 = 4096;
/// So much is copied at a time.
const PIECE: u64 = 1 << 20;

type Result<T> = std::result::Result<T, VolumeError>;

pub struct Erofs {
    stretch: Stretch,
    /// Where the inodes are.
    inodes: u64,
    root: u64,
}

/// What an inode says of a file.
#[derive(Clone)]
pub struct Inode {
    kind: Kind,
    size: u64,
    /// Of its whole blocks.
    start: u64,
    /// Where the rest of it is, if that follows the inode.
    tail: Option<u64>,
}

impl Erofs {
    /// None where there is no such file system.
    pub fn open(disk: Arc<dyn Node>) -> Result<Option<Erofs>> {
        let stretch = Stretch::whole(disk);
        if stretch.length() < SUPERBLOCK + 128 {
            return Ok(None);
        }
        let mut superblock = [0; 128];
        stretch.read(SUPERBLOCK, &mut superblock)?;
        if le32(&superblock, 0) != MAGIC {
            return Ok(None);
        }
        if superblock[12] != BLOCK_BITS || le32(&superblock, 80) != 0 {
            return Err(VolumeError::Unknown("an EROFS as the image store makes none"));
        }
        let inodes = u64::from(le32(&superblock, 40)) * BLOCK;
        Ok(Some(Erofs { stretch, inodes, root: u64::from(le16(&superblock, 14)) }))
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let damaged = || VolumeError::Damaged("the number of an inode");
        let place = number.checked_mul(SLOT).and_then(|at| at.checked_add(self.inodes));
        let place = place.ok_or_else(damaged)?;
        let mut bytes = [0; 32];
        self.stretch.read(place, &mut bytes)?;
        let format = le16(&bytes, 0);
        let is_long = format & 1 != 0;
        let (size, length) = match is_long {
            true => (le64(&bytes, 8), 64),
            false => (u64::from(le32(&bytes, 8)), 32),
        };
        let attributes = match le16(&bytes, 2) {
            0 => 0,
            count => ATTRIBUTES + 4 * (u64::from(count) - 1),
        };
        let kind = match le16(&bytes, 4) & 0xf000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Folder,
            0xa000 => Kind::Link,
            _ => Kind::Other,
        };
        let tail = match format >> 1 {
            0 => None,
            2 => Some(place.checked_add(length + attributes).ok_or_else(damaged)?),
            _ if kind == Kind::Other => None,
            _ => return Err(VolumeError::Unknown("its files are compressed or in chunks")),
        };
        Ok(Inode { kind, size, start: u64::from(le32(&bytes, 16)) * BLOCK, tail })
    }

    /// Reads a part of a file that lies in it.
    fn read_at(&self, inode: &Inode, at: u64, bytes: &mut [u8]) -> Result<()> {
        let whole = match inode.tail {
            Some(_) => inode.size / BLOCK * BLOCK,
            None => inode.size,
        };
        let in_blocks = whole.saturating_sub(at).min(bytes.len() as u64);
        let (blocks, rest) = bytes.split_at_mut(in_blocks as usize);
        let outside = || VolumeError::Damaged("a file that leads outside of it");
        if !blocks.is_empty() {
            self.stretch.read(inode.start.checked_add(at).ok_or_else(outside)?, blocks)?;
        }
        if let (Some(tail), false) = (inode.tail, rest.is_empty()) {
            let at = (at + in_blocks - whole).checked_add(tail).ok_or_else(outside)?;
            self.stretch.read(at, rest)?;
        }
        Ok(())
    }

    fn read(&self, inode: &Inode, what: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy(inode, what, limit, &mut bytes)?;
        Ok(bytes)
    }

    /// Goes through a directory until it is told that this is enough.
    fn entries(
        &self,
        folder: &Inode,
        mut enough: impl FnMut(&[u8], u64, Kind) -> bool,
    ) -> Result<()> {
        let damaged = || VolumeError::Damaged("a directory");
        let bytes = self.read(folder, "a directory", LARGEST_DIRECTORY)?;
        for block in bytes.chunks(BLOCK as usize) {
            let place = |index: usize| {
                let entry = block.get(index * ENTRY..(index + 1) * ENTRY).ok_or_else(damaged)?;
                Ok::<_, VolumeError>((entry, usize::from(le16(entry, 8))))
            };
            // The first name follows the last entry.
            let count = place(0)?.1 / ENTRY;
            for index in 0..count {
                let (entry, start) = place(index)?;
                let end = match index + 1 < count {
                    true => place(index + 1)?.1,
                    false => block.len(),
                };
                let name = block.get(start..end).ok_or_else(damaged)?;
                let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
                let kind = match entry[10] {
                    1 => Kind::File,
                    2 => Kind::Folder,
                    7 => Kind::Link,
                    _ => Kind::Other,
                };
                if enough(&name[..length], le64(entry, 0), kind) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Files for Erofs {
    type Inode = Inode;

    fn root(&self) -> Result<Inode> {
        self.inode(self.root)
    }

    fn kind(&self, inode: &Inode) -> Kind {
        inode.kind
    }

    fn look_up(&self, folder: &Inode, wanted: &[u8]) -> Result<Option<Inode>> {
        let mut found = None;
        self.entries(folder, |name, number, _| {
            if name == wanted {
                found = Some(number);
            }
            found.is_some()
        })?;
        found.map(|number| self.inode(number)).transpose()
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        self.read(link, "a link", LONGEST_LINK)
    }

    fn list(&self, folder: &Inode) -> Result<Vec<(Vec<u8>, Kind)>> {
        let mut entries = Vec::new();
        self.entries(folder, |name, _, kind| {
            if !matches!(name, b"." | b"..") {
                entries.push((name.to_vec(), kind));
            }
            false
        })?;
        Ok(entries)
    }

    fn copy(&self, file: &Inode, what: &str, limit: u64, to: &mut dyn Write) -> Result<()> {
        if file.size > limit {
            return Err(VolumeError::TooLarge { what: what.to_owned(), limit });
        }
        let mut piece = vec![0; PIECE.min(file.size) as usize];
        let mut at = 0;
        while at < file.size {
            let length = PIECE.min(file.size - at);
            let bytes = &mut piece[..length as usize];
            self.read_at(file, at, bytes)?;
            to.write_all(bytes)?;
            at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
