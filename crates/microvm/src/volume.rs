//! The files of an ext4 file system on a disk, to be read.
//!
//! Nothing is mounted: a guest wrote all of it, and no kernel of the host is to read that. What
//! is read is bounded: numbers are checked before anything is allocated by them, trees have a
//! depth, and of each disk no more than [`Stretch::MOST`] bytes are read in all, so that whatever
//! leads in a circle ends. A file system that was not unmounted is seen as its kernel would see
//! it, through its journal (`journal`); `map` finds the blocks of a file.

mod journal;
mod map;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guise_disk::bytes::{le16, le32};
use guise_disk::graph::Node;

use crate::files::{self, Files, Kind};
use journal::Journal;
use map::Run;

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
const ROOT: u32 = 2;
const EXTENTS: u32 = 0x8_0000;
const ENCRYPTED: u32 = 0x800;
const INLINE: u32 = 0x1000_0000;
/// Of the features that older kernels must not touch: file types in directories, a journal to
/// replay, extents, 64-bit numbers, protection from two mounts, groups in bunches, attributes in
/// inodes, a seed of checksums, large directories, contents in inodes, encryption, folded names.
const KNOWN: u32 = 0x2
    | 0x4
    | 0x40
    | 0x80
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const TO_REPLAY: u32 = 0x4;
const WIDE: u32 = 0x80;
/// No directory that is looked through is larger.
const LARGEST_DIRECTORY: u64 = 8 << 20;
const LONGEST_LINK: u64 = 4096;
/// So much is copied at a time.
const PIECE: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("its file system is damaged ({0})")]
    Damaged(&'static str),
    #[error("its file system is cut off: it has {claimed} MiB, and there are {there}")]
    CutOff { claimed: u64, there: u64 },
    #[error("its file system is of a kind that is not read ({0})")]
    Unknown(&'static str),
    #[error("{what} is larger than {} MiB", limit >> 20)]
    TooLarge { what: String, limit: u64 },
    #[error(transparent)]
    Disk(#[from] guise_disk::Error),
    #[error("keep what is read of it: {0}")]
    Keep(#[from] io::Error),
}

type Result<T> = std::result::Result<T, VolumeError>;

/// A stretch of a disk.
#[derive(Clone)]
pub struct Stretch {
    disk: Arc<dyn Node>,
    start: u64,
    length: u64,
    /// What may still be read, of the whole disk.
    left: Arc<AtomicU64>,
}

impl Stretch {
    /// More than this nobody reads of a disk to find what it boots: two files of half a GiB, and
    /// what leads to them.
    pub const MOST: u64 = 4 << 30;

    #[must_use]
    pub fn whole(disk: Arc<dyn Node>) -> Stretch {
        let length = disk.size();
        Stretch { disk, start: 0, length, left: Arc::new(AtomicU64::new(Self::MOST)) }
    }

    /// What of it lies in a part.
    #[must_use]
    pub fn part(&self, start: u64, length: u64) -> Stretch {
        let start = start.min(self.length);
        let length = length.min(self.length - start);
        Stretch { start: self.start + start, length, ..self.clone() }
    }

    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len() as u64;
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(VolumeError::Damaged("it leads outside of its partition"));
        }
        self.charge(length)?;
        Ok(self.disk.read(self.start + at, bytes)?)
    }

    /// Counts what is read, or made of nothing.
    fn charge(&self, length: u64) -> Result<()> {
        let less = |left: u64| left.checked_sub(length);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(VolumeError::Damaged("reading it does not come to an end")),
        }
    }
}

/// A file system.
pub struct Volume {
    stretch: Stretch,
    block_size: u64,
    blocks: u64,
    groups: u64,
    inodes_per_group: u32,
    inode_size: u64,
    descriptor_size: u64,
    uuid: [u8; 16],
    journal: Journal,
}

/// What an inode says of a file.
#[derive(Clone)]
pub struct Inode {
    kind: u16,
    size: u64,
    flags: u32,
    block: [u8; 60],
}

impl Inode {
    const DIRECTORY: u16 = 0x4000;
    const REGULAR: u16 = 0x8000;
    const LINK: u16 = 0xa000;

    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == Kind::File
    }

    fn kind(&self) -> Kind {
        match self.kind {
            Self::REGULAR => Kind::File,
            Self::DIRECTORY => Kind::Folder,
            Self::LINK => Kind::Link,
            _ => Kind::Other,
        }
    }
}

impl Volume {
    /// None where there is no such file system.
    pub fn open(stretch: Stretch) -> Result<Option<Volume>> {
        if stretch.length() < SUPERBLOCK + 1024 {
            return Ok(None);
        }
        let mut superblock = [0; 1024];
        stretch.read(SUPERBLOCK, &mut superblock)?;
        if le16(&superblock, 0x38) != MAGIC {
            return Ok(None);
        }
        let features = le32(&superblock, 0x60);
        if features & !KNOWN != 0 {
            return Err(VolumeError::Unknown("its features are others than those of ext4 today"));
        }
        let damaged = |why| Err(VolumeError::Damaged(why));
        let scale = le32(&superblock, 0x18);
        if scale > 6 {
            return damaged("the size of its blocks");
        }
        let block_size = 1024 << scale;
        let high = if features & WIDE != 0 { le32(&superblock, 0x150) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(le32(&superblock, 0x4));
        let first_block = u64::from(le32(&superblock, 0x14));
        let per_group = u64::from(le32(&superblock, 0x20));
        if blocks <= first_block || per_group == 0 {
            return damaged("how many blocks it has");
        }
        match blocks.checked_mul(block_size) {
            None => return damaged("how many blocks it has"),
            Some(claimed) if claimed > stretch.length() => {
                let there = stretch.length() >> 20;
                return Err(VolumeError::CutOff { claimed: claimed >> 20, there });
            }
            Some(_) => {}
        }
        // The oldest kind has no field for it.
        let is_oldest = le32(&superblock, 0x4c) == 0;
        let inode_size = if is_oldest { 128 } else { u64::from(le16(&superblock, 0x58)) };
        let inodes_per_group = le32(&superblock, 0x28);
        if inodes_per_group == 0 || !(128..=block_size).contains(&inode_size) {
            return damaged("its inodes");
        }
        let wide = features & WIDE != 0;
        let descriptor_size = if wide { u64::from(le16(&superblock, 0xfe)) } else { 32 };
        let least = if wide { 64 } else { 32 };
        if !(least..=block_size).contains(&descriptor_size) {
            return damaged("the descriptors of its groups");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&superblock[0x68..0x78]);
        let mut volume = Volume {
            stretch,
            block_size,
            blocks,
            groups: (blocks - first_block).div_ceil(per_group),
            inodes_per_group,
            inode_size,
            descriptor_size,
            uuid,
            journal: Journal::default(),
        };
        if features & TO_REPLAY != 0 {
            volume.journal = Journal::read(&volume, le32(&superblock, 0xe0))?;
        }
        Ok(Some(volume))
    }

    /// What it is called, as kernels and their helpers write it.
    #[must_use]
    pub fn uuid(&self) -> String {
        let text: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &text[part]);
        format!("{a}-{b}-{c}-{d}-{e}")
    }

    /// The file at an absolute path, through links. None where there is none.
    pub fn find(&self, path: &str) -> Result<Option<Inode>> {
        files::find(self, path)
    }

    /// The names in a directory; none of what is no directory.
    pub fn names(&self, path: &str) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if let Some(inode) = self.find(path)?.filter(|inode| inode.kind == Inode::DIRECTORY) {
            self.entries(&inode, |name, _| {
                names.push(name.to_vec());
                false
            })?;
        }
        Ok(names)
    }

    /// A small file.
    pub fn read(&self, inode: &Inode, what: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.copy(inode, what, limit, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes what is in a file somewhere else.
    pub fn copy(&self, inode: &Inode, what: &str, limit: u64, to: &mut dyn Write) -> Result<()> {
        if inode.size > limit {
            return Err(VolumeError::TooLarge { what: what.to_owned(), limit });
        }
        if inode.flags & ENCRYPTED != 0 {
            return Err(VolumeError::Unknown("its files are encrypted"));
        }
        if inode.flags & INLINE != 0 {
            return self.copy_inline(inode, to);
        }
        let runs = self.map(inode)?;
        let mut piece = vec![0; PIECE.min(inode.size as usize)];
        let mut at = 0;
        let mut runs = runs.iter().peekable();
        while at < inode.size {
            let block = at / self.block_size;
            while runs.next_if(|run| run.first + run.count <= block).is_some() {}
            let coming = runs.peek();
            let run = coming.filter(|run| run.first <= block);
            // Up to its end, or that of the hole.
            let next = match (run, coming) {
                (Some(run), _) => run.first + run.count,
                (None, Some(next)) => next.first,
                (None, None) => u64::MAX / self.block_size,
            };
            let end = inode.size.min(next * self.block_size);
            let length = (end - at).min(PIECE as u64) as usize;
            let bytes = &mut piece[..length];
            match run {
                Some(run) => self.read_blocks(run.start + (block - run.first), bytes)?,
                None => {
                    self.stretch.charge(length as u64)?;
                    bytes.fill(0);
                }
            }
            to.write_all(bytes)?;
            at += length as u64;
        }
        Ok(())
    }

    /// What is so short that it is where the blocks would be told.
    fn copy_inline(&self, inode: &Inode, to: &mut dyn Write) -> Result<()> {
        match inode.block.get(..inode.size as usize) {
            Some(bytes) => Ok(to.write_all(bytes)?),
            None => Err(VolumeError::Unknown("files among its inodes")),
        }
    }

    fn map(&self, inode: &Inode) -> Result<Vec<Run>> {
        map::of(self, inode)
    }

    /// Goes through a directory until it is told that this is enough. Indexed ones are no
    /// others: the index is in what looks like removed entries.
    fn entries(&self, directory: &Inode, mut enough: impl FnMut(&[u8], u32) -> bool) -> Result<()> {
        if directory.flags & INLINE != 0 {
            return Err(VolumeError::Unknown("directories among its inodes"));
        }
        let bytes = self.read(directory, "a directory", LARGEST_DIRECTORY)?;
        for block in bytes.chunks(self.block_size as usize) {
            let mut rest = block;
            while rest.len() >= 8 {
                let (number, length) = (le32(rest, 0), usize::from(le16(rest, 4)));
                // The largest blocks do not fit into the field.
                let length = if matches!(length, 0 | 0xffff) { 1 << 16 } else { length };
                let name = 8..8 + usize::from(rest[6]);
                if length < 8 || length > rest.len() || name.end > length {
                    return Err(VolumeError::Damaged("a directory"));
                }
                if number != 0 && enough(&rest[name], number) {
                    return Ok(());
                }
                rest = &rest[length..];
            }
        }
        Ok(())
    }

    fn inode(&self, number: u32) -> Result<Inode> {
        let damaged = VolumeError::Damaged("the number of an inode");
        let Some(index) = number.checked_sub(1) else { return Err(damaged) };
        let (group, index) = (index / self.inodes_per_group, index % self.inodes_per_group);
        if u64::from(group) >= self.groups {
            return Err(damaged);
        }
        let mut descriptor = vec![0; self.descriptor_size as usize];
        let per_block = self.block_size / self.descriptor_size;
        // They follow the superblock.
        let block = SUPERBLOCK / self.block_size + 1 + u64::from(group) / per_block;
        let at = u64::from(group) % per_block * self.descriptor_size;
        self.read_in_block(block, at, &mut descriptor)?;
        let high = if descriptor.len() >= 64 { le32(&descriptor, 0x28) } else { 0 };
        let table = u64::from(high) << 32 | u64::from(le32(&descriptor, 0x8));
        let per_block = self.block_size / self.inode_size;
        let block = table.checked_add(u64::from(index) / per_block).ok_or(damaged)?;
        let mut inode = [0; 128];
        self.read_in_block(block, u64::from(index) % per_block * self.inode_size, &mut inode)?;
        let mut pointers = [0; 60];
        pointers.copy_from_slice(&inode[0x28..0x64]);
        Ok(Inode {
            kind: le16(&inode, 0) & 0xf000,
            size: u64::from(le32(&inode, 0x6c)) << 32 | u64::from(le32(&inode, 0x4)),
            flags: le32(&inode, 0x20),
            block: pointers,
        })
    }

    /// Reads in one block.
    fn read_in_block(&self, block: u64, at: u64, bytes: &mut [u8]) -> Result<()> {
        let mut whole = vec![0; self.block_size as usize];
        self.read_blocks(block, &mut whole)?;
        let at = at as usize;
        let part = whole.get(at..at + bytes.len());
        bytes.copy_from_slice(part.ok_or(VolumeError::Damaged("a table"))?);
        Ok(())
    }

    /// Reads from the beginning of a block on, as the journal has it.
    fn read_blocks(&self, first: u64, bytes: &mut [u8]) -> Result<()> {
        let count = (bytes.len() as u64).div_ceil(self.block_size);
        if first == 0 || first.checked_add(count).is_none_or(|end| end > self.blocks) {
            return Err(VolumeError::Damaged("the number of a block"));
        }
        self.stretch.read(first * self.block_size, bytes)?;
        for (block, newer) in self.journal.of(first..first + count) {
            let at = ((block - first) * self.block_size) as usize;
            let end = bytes.len().min(at + self.block_size as usize);
            let bytes = &mut bytes[at..end];
            self.stretch.read(newer.block * self.block_size, bytes)?;
            if newer.is_escaped
                && let Some(start) = bytes.get_mut(..4)
            {
                start.copy_from_slice(&journal::MAGIC.to_be_bytes());
            }
        }
        Ok(())
    }
}

impl Files for Volume {
    type Inode = Inode;

    fn root(&self) -> Result<Inode> {
        self.inode(ROOT)
    }

    fn kind(&self, inode: &Inode) -> Kind {
        inode.kind()
    }

    fn look_up(&self, directory: &Inode, wanted: &[u8]) -> Result<Option<Inode>> {
        let mut found = None;
        self.entries(directory, |name, number| {
            if name == wanted {
                found = Some(number);
            }
            found.is_some()
        })?;
        found.map(|number| self.inode(number)).transpose()
    }

    fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        let there = link.block.get(..link.size as usize);
        match there.filter(|target| target.len() < link.block.len()) {
            Some(target) if link.flags & EXTENTS == 0 => Ok(target.to_vec()),
            _ => self.read(link, "a link", LONGEST_LINK),
        }
    }

    fn list(&self, directory: &Inode) -> Result<Vec<(Vec<u8>, Kind)>> {
        let mut entries = Vec::new();
        self.entries(directory, |name, number| {
            if !matches!(name, b"." | b"..") {
                entries.push((name.to_vec(), number));
            }
            false
        })?;
        let entry = |(name, number)| Ok((name, self.inode(number)?.kind()));
        entries.into_iter().map(entry).collect()
    }

    fn copy(&self, file: &Inode, what: &str, limit: u64, to: &mut dyn Write) -> Result<()> {
        Volume::copy(self, file, what, limit, to)
    }
}

#[cfg(test)]
mod tests;
