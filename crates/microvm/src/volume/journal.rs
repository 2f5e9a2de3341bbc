//! What a file system that was not unmounted has in its journal: newer contents of its blocks.
//!
//! The journal is a file of blocks: a superblock, then a ring of transactions. One has blocks
//! that name places (with the contents for these after them), blocks that revoke what earlier
//! transactions have for places, and a block with which it is complete. The fields are
//! big-endian.

use std::collections::BTreeMap;
use std::ops::Range;

use guise_disk::bytes::be32;

use super::map::Run;
use super::{Result, Volume, VolumeError};

pub const MAGIC: u32 = 0xc03b_3998;
const HEADER: usize = 12;
/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;
/// Features: 64-bit numbers, checksums of version 2 and 3.
const WIDE: u32 = 0x2;
const SUMS_2: u32 = 0x8;
const SUMS_3: u32 = 0x10;
const KNOWN: u32 = 0x1 | WIDE | 0x4 | SUMS_2 | SUMS_3 | 0x20;
/// Flags of a place.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
const UUID: usize = 16;
/// No journal has more.
const MOST_BLOCKS: u64 = 1 << 20;
const MOST_REVOKED: usize = 1 << 20;

/// Newer contents of blocks.
#[derive(Default)]
pub struct Journal {
    blocks: BTreeMap<u64, Newer>,
}

/// Where a block's newer contents are.
#[derive(Clone, Copy)]
pub struct Newer {
    pub block: u64,
    /// It begins like a block of a journal, but for that.
    pub is_escaped: bool,
}

impl Journal {
    pub fn read(volume: &Volume, inode: u32) -> Result<Journal> {
        let file = volume.inode(inode)?;
        if file.size / volume.block_size > MOST_BLOCKS {
            return Err(VolumeError::Damaged("the size of its journal"));
        }
        let runs = volume.map(&file)?;
        let mut first = vec![0; volume.block_size as usize];
        volume.read_blocks(place(&runs, 0)?, &mut first)?;
        let (kind, version) = (be32(&first, 0), be32(&first, 4));
        let features = if version == 4 { be32(&first, 0x28) } else { 0 };
        if kind != MAGIC || !matches!(version, 3 | 4) {
            return Err(damaged());
        }
        if features & !KNOWN != 0 {
            return Err(VolumeError::Unknown("its journal has features of its own"));
        }
        let ring = be32(&first, 0x14)..be32(&first, 0x10);
        let start = be32(&first, 0x1c);
        if start == 0 {
            return Ok(Journal::default());
        }
        if u64::from(be32(&first, 0xc)) != volume.block_size || ring.start == 0 {
            return Err(damaged());
        }
        if !ring.contains(&start) || u64::from(ring.end) > MOST_BLOCKS {
            return Err(damaged());
        }
        let log = Log {
            volume,
            runs,
            at: start,
            left: ring.end - ring.start,
            ring,
            features,
            sequence: be32(&first, 0x18),
        };
        log.replay()
    }

    /// What it has of a range.
    pub fn of(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, Newer)> {
        self.blocks.range(blocks).map(|(block, newer)| (*block, *newer))
    }
}

fn damaged() -> VolumeError {
    VolumeError::Damaged("its journal")
}

/// Where a block of the journal is on the disk.
fn place(runs: &[Run], block: u64) -> Result<u64> {
    let index = runs.partition_point(|run| run.first + run.count <= block);
    let run = runs.get(index).filter(|run| run.first <= block).ok_or_else(damaged)?;
    Ok(run.start + (block - run.first))
}

/// The ring, while it is read.
struct Log<'v> {
    volume: &'v Volume,
    runs: Vec<Run>,
    ring: Range<u32>,
    /// The next block of it.
    at: u32,
    /// Blocks that were not read yet.
    left: u32,
    features: u32,
    /// Of the transaction that comes.
    sequence: u32,
}

/// What a transaction has, before it is known to be complete.
#[derive(Default)]
struct Transaction {
    written: Vec<(u64, Newer)>,
    revoked: Vec<u64>,
}

impl Log<'_> {
    /// All complete transactions, the older before the newer.
    fn replay(mut self) -> Result<Journal> {
        let mut written: Vec<(u64, Newer, u32)> = Vec::new();
        let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
        let mut now = Transaction::default();
        let mut block = vec![0; self.volume.block_size as usize];
        while let Some(place) = self.step()? {
            self.volume.read_blocks(place, &mut block)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence {
                break;
            }
            match be32(&block, 4) {
                DESCRIPTOR => self.describe(&block, &mut now)?,
                REVOKE => self.revoke(&block, &mut now)?,
                COMMIT => {
                    let done = std::mem::take(&mut now);
                    let sequence = self.sequence;
                    written.extend(done.written.into_iter().map(|(at, new)| (at, new, sequence)));
                    revoked.extend(done.revoked.into_iter().map(|at| (at, sequence)));
                    if revoked.len() > MOST_REVOKED {
                        return Err(damaged());
                    }
                    self.sequence = self.sequence.wrapping_add(1);
                }
                _ => break,
            }
        }
        // What is revoked holds for the transactions up to that one. They count round.
        let holds = |at: &u64, sequence: u32| {
            revoked.get(at).is_none_or(|until| sequence.wrapping_sub(*until).cast_signed() > 0)
        };
        let held = written.into_iter().filter(|(at, _, sequence)| holds(at, *sequence));
        Ok(Journal { blocks: held.map(|(at, new, _)| (at, new)).collect() })
    }

    /// The next block's place; none when all were seen.
    fn step(&mut self) -> Result<Option<u64>> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let at = self.at;
        self.at = if at + 1 == self.ring.end { self.ring.start } else { at + 1 };
        let place = place(&self.runs, at.into())?;
        if place >= self.volume.blocks {
            return Err(damaged());
        }
        Ok(Some(place))
    }

    /// Places, whose contents follow.
    fn describe(&mut self, block: &[u8], now: &mut Transaction) -> Result<()> {
        let has = |feature: u32| self.features & feature != 0;
        let (sums_3, wide) = (has(SUMS_3), has(WIDE));
        let length = match (sums_3, wide, has(SUMS_2)) {
            (true, ..) => 16,
            (false, true, true) => 14,
            (false, true, false) => 12,
            (false, false, true) => 10,
            (false, false, false) => 8,
        };
        let end = block.len() - if has(SUMS_2 | SUMS_3) { 4 } else { 0 };
        let mut rest = &block[HEADER..end];
        while let Some((tag, more)) = rest.split_at_checked(length) {
            let flags = if sums_3 { be32(tag, 4) } else { be32(tag, 4) & 0xffff };
            let high = if wide { be32(tag, 8) } else { 0 };
            let at = u64::from(high) << 32 | u64::from(be32(tag, 0));
            let Some(block) = self.step()? else { return Ok(()) };
            now.written.push((at, Newer { block, is_escaped: flags & ESCAPED != 0 }));
            if flags & LAST != 0 {
                break;
            }
            let name = if flags & SAME_UUID != 0 { 0 } else { UUID };
            rest = more.get(name..).unwrap_or_default();
        }
        Ok(())
    }

    fn revoke(&self, block: &[u8], now: &mut Transaction) -> Result<()> {
        let (wide, used) = (self.features & WIDE != 0, be32(block, HEADER) as usize);
        let entries = block.get(HEADER + 4..used).ok_or_else(damaged)?;
        let entry = |bytes: &[u8]| match wide {
            true => u64::from(be32(bytes, 0)) << 32 | u64::from(be32(bytes, 4)),
            false => be32(bytes, 0).into(),
        };
        now.revoked.extend(entries.chunks_exact(if wide { 8 } else { 4 }).map(entry));
        if now.revoked.len() > MOST_REVOKED {
            return Err(damaged());
        }
        Ok(())
    }
}
