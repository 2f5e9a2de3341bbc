//! Where the blocks of a file are: a tree of extents, or the older map of single blocks.

use guise_disk::bytes::{le16, le32};

use super::{EXTENTS, Inode, Result, Volume, VolumeError};

const NODE: u16 = 0xf30a;
const ENTRY: usize = 12;
const DEEPEST: u16 = 5;
/// A longer extent is one whose blocks were never written.
const LONGEST: u64 = 32768;
/// Blocks that the older map names without a detour.
const DIRECT: usize = 12;

/// Blocks in a row.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// In the file.
    pub first: u64,
    pub count: u64,
    /// On the disk.
    pub start: u64,
}

/// The runs of a file, as they follow each other; what lies between them is zero.
pub fn of(volume: &Volume, inode: &Inode) -> Result<Vec<Run>> {
    let blocks = inode.size.div_ceil(volume.block_size);
    let mut map = Map { volume, blocks, runs: Vec::new(), next: 0 };
    if inode.flags & EXTENTS != 0 {
        map.node(&inode.block, DEEPEST + 1)?;
    } else {
        for (index, pointer) in inode.block.chunks_exact(4).enumerate() {
            map.pointer(le32(pointer, 0), index.saturating_sub(DIRECT - 1))?;
        }
    }
    Ok(map.runs)
}

struct Map<'v> {
    volume: &'v Volume,
    /// Of the file.
    blocks: u64,
    runs: Vec<Run>,
    /// What comes next in the file has this number at the least.
    next: u64,
}

impl Map<'_> {
    /// A node of the tree, and what is below: each level is one less deep.
    fn node(&mut self, node: &[u8], above: u16) -> Result<()> {
        let damaged = || VolumeError::Damaged("where the blocks of a file are");
        let (magic, entries, depth) = (le16(node, 0), le16(node, 2), le16(node, 6));
        let entries = node.get(ENTRY..ENTRY * (1 + usize::from(entries))).ok_or_else(damaged)?;
        if magic != NODE || depth >= above {
            return Err(damaged());
        }
        for entry in entries.chunks_exact(ENTRY) {
            if self.next >= self.blocks {
                return Ok(());
            }
            let first = u64::from(le32(entry, 0));
            if depth > 0 {
                let below = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
                let mut block = vec![0; self.volume.block_size as usize];
                self.volume.read_blocks(below, &mut block)?;
                self.node(&block, depth)?;
                continue;
            }
            let count = u64::from(le16(entry, 4));
            let start = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
            let written = count <= LONGEST;
            let count = if written { count } else { count - LONGEST };
            if count == 0 || first < self.next {
                return Err(damaged());
            }
            self.next = first + count;
            // Room may be kept beyond the end.
            let count = count.min(self.blocks.saturating_sub(first));
            if written && count > 0 {
                self.runs.push(Run { first, count, start });
            }
        }
        Ok(())
    }

    /// A block of the older map, or so many levels of blocks that name others.
    fn pointer(&mut self, block: u32, level: usize) -> Result<()> {
        if self.next >= self.blocks {
            return Ok(());
        }
        let fan = self.volume.block_size / 4;
        if block == 0 {
            self.next += fan.pow(level as u32);
            return Ok(());
        }
        if level > 0 {
            let mut pointers = vec![0; self.volume.block_size as usize];
            self.volume.read_blocks(block.into(), &mut pointers)?;
            return pointers
                .chunks_exact(4)
                .try_for_each(|at| self.pointer(le32(at, 0), level - 1));
        }
        let (first, start) = (self.next, u64::from(block));
        self.next += 1;
        match self.runs.last_mut() {
            Some(run) if run.first + run.count == first && run.start + run.count == start => {
                run.count += 1;
            }
            _ => self.runs.push(Run { first, count: 1, start }),
        }
        Ok(())
    }
}
