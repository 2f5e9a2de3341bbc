//! The table of four in the first sector, and the chain of logical partitions
//! in an extended one.

use super::{Partition, PartitionTable, Scheme, sector};
use crate::bytes::le32;
use crate::error::Result;
use crate::graph::Node;

const SECTOR: u64 = 512;
const ENTRIES: usize = 446;
const PROTECTIVE: u8 = 0xee;
/// More links than any tool makes: a chain may be a circle.
const MAX_LOGICAL: u32 = 128;

#[derive(Clone, Copy)]
struct Entry {
    bootable: bool,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Entry {
    /// `None`: not an entry that any tool writes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let entry = Self {
            bootable: bytes[0] == 0x80,
            kind: bytes[4],
            start: u64::from(le32(bytes, 8)),
            sectors: u64::from(le32(bytes, 12)),
        };
        matches!(bytes[0], 0 | 0x80).then_some(entry)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            start: (base + self.start) * SECTOR,
            length: self.sectors * SECTOR,
            kind: kind_name(self.kind),
            name: String::new(),
            bootable: self.bootable,
        }
    }
}

fn entries(sector: &[u8]) -> Option<Vec<Entry>> {
    sector[ENTRIES..510].chunks_exact(16).map(Entry::parse).collect()
}

/// Whether the sector only keeps old tools away from a GPT.
pub(super) fn is_protective(first: &[u8]) -> bool {
    entries(first).is_some_and(|all| all.iter().any(|entry| entry.kind == PROTECTIVE))
}

pub(super) fn read(disk: &dyn Node, first: &[u8]) -> Result<Option<PartitionTable>> {
    let sectors = disk.size() / SECTOR;
    let inside =
        |entry: &Entry, base: u64| entry.start > 0 && base + entry.start + entry.sectors <= sectors;
    // File systems have the same mark at the sector's end, and code before it.
    let Some(primary) = entries(first) else { return Ok(None) };
    if !primary.iter().any(|entry| entry.is_used()) {
        return Ok(None);
    }
    let mut table = PartitionTable {
        scheme: Scheme::Mbr,
        id: format!("{:08x}", le32(first, 440)),
        damage: None,
        partitions: Vec::new(),
    };
    for (number, entry) in (1..).zip(&primary) {
        if !entry.is_used() {
            continue;
        }
        if !inside(entry, 0) {
            table.damage = Some("a partition lies outside the disk");
            continue;
        }
        table.partitions.push(entry.partition(number, 0));
    }
    let extended = primary.iter().find(|entry| entry.is_used() && entry.is_extended());
    if let Some(extended) = extended.filter(|entry| inside(entry, 0)) {
        logical(disk, extended.start, &mut table, inside)?;
    }
    Ok((!table.partitions.is_empty()).then_some(table))
}

/// Each link has one partition and the place of the next link.
fn logical(
    disk: &dyn Node,
    base: u64,
    table: &mut PartitionTable,
    inside: impl Fn(&Entry, u64) -> bool,
) -> Result<()> {
    let mut link = base;
    for number in 5..5 + MAX_LOGICAL {
        let bytes = sector(disk, link * SECTOR, 512)?;
        let Some(all) =
            bytes.filter(|bytes| bytes.ends_with(&[0x55, 0xaa])).and_then(|bytes| entries(&bytes))
        else {
            table.damage = Some("the chain of logical partitions is broken");
            return Ok(());
        };
        if all[0].is_used() {
            if inside(&all[0], link) {
                table.partitions.push(all[0].partition(number, link));
            } else {
                table.damage = Some("a partition lies outside the disk");
            }
        }
        if !all[1].is_used() {
            return Ok(());
        }
        link = base + all[1].start;
    }
    table.damage = Some("the chain of logical partitions does not end");
    Ok(())
}

fn kind_name(kind: u8) -> String {
    let known = match kind {
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0e => "FAT16",
        0x05 | 0x0f | 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x27 => "Windows recovery",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa9 => "NetBSD",
        0xaf => "HFS",
        PROTECTIVE => "GPT protective",
        0xef => "EFI system",
        0xfd => "Linux RAID",
        _ => return format!("{kind:#04x}"),
    };
    known.to_owned()
}
