//! GUID partition tables: a header with a checksum behind the first sector, an
//! array of entries with another, and both once more at the disk's end.

use uuid::Uuid;

use super::{Partition, PartitionTable, Scheme, sector};
use crate::bytes::{le32, le64};
use crate::error::Result;
use crate::graph::Node;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_LEN: usize = 92;
const SMALLEST_ENTRY: usize = 128;
/// 128 entries of 128 bytes are usual.
const MAX_ARRAY: u64 = 1 << 20;

pub(super) fn read(disk: &dyn Node) -> Result<Option<PartitionTable>> {
    for unit in [512, 4096] {
        if let Some(table) = copy(disk, unit, unit)? {
            return Ok(Some(table));
        }
        let last = (disk.size() / unit).saturating_sub(1) * unit;
        if let Some(table) = copy(disk, unit, last)? {
            let damage = Some("the table at the disk's start is damaged");
            return Ok(Some(PartitionTable { damage, ..table }));
        }
    }
    Ok(None)
}

/// One of the two copies, if it is sound.
fn copy(disk: &dyn Node, unit: u64, at: u64) -> Result<Option<PartitionTable>> {
    let Some(header) = sector(disk, at, unit as usize)? else { return Ok(None) };
    let header_len = le32(&header, 12) as usize;
    if !header.starts_with(SIGNATURE) || !(HEADER_LEN..=unit as usize).contains(&header_len) {
        return Ok(None);
    }
    let mut summed = header[..header_len].to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != le32(&header, 16)
        || le64(&header, 24).checked_mul(unit) != Some(at)
    {
        return Ok(None);
    }
    let (count, size) = (u64::from(le32(&header, 80)), le32(&header, 84) as usize);
    let len = count.saturating_mul(size as u64);
    let Some(place) = le64(&header, 72).checked_mul(unit) else { return Ok(None) };
    if len > MAX_ARRAY || size < SMALLEST_ENTRY || !size.is_multiple_of(8) {
        return Ok(None);
    }
    let Some(array) = sector(disk, place, len as usize)? else { return Ok(None) };
    if crc32fast::hash(&array) != le32(&header, 88) {
        return Ok(None);
    }
    let mut table = PartitionTable {
        scheme: Scheme::Gpt,
        id: guid(&header[56..72]).to_string(),
        damage: None,
        partitions: Vec::new(),
    };
    for (number, entry) in (1..).zip(array.chunks_exact(size)) {
        if entry[..16].iter().all(|&byte| byte == 0) {
            continue;
        }
        match entry_of(entry, number, unit).filter(|new| ends_in(new, disk.size())) {
            Some(partition) => table.partitions.push(partition),
            None => table.damage = Some("a partition lies outside the disk"),
        }
    }
    Ok(Some(table))
}

fn ends_in(partition: &Partition, size: u64) -> bool {
    partition.start.checked_add(partition.length).is_some_and(|end| end <= size)
}

fn entry_of(entry: &[u8], number: u32, unit: u64) -> Option<Partition> {
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let letters = entry[56..128].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let letters = letters.take_while(|&letter| letter != 0);
    let name = char::decode_utf16(letters)
        .map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER))
        .map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter })
        .collect();
    Some(Partition {
        number,
        start: first.checked_mul(unit)?,
        length: sectors.checked_mul(unit)?,
        kind: kind_name(guid(&entry[..16])),
        name,
        bootable: le64(entry, 48) & 4 != 0,
    })
}

/// The first three fields are little-endian.
fn guid(bytes: &[u8]) -> Uuid {
    let mut all = [0; 16];
    all.copy_from_slice(&bytes[..16]);
    Uuid::from_bytes_le(all)
}

fn kind_name(kind: Uuid) -> String {
    let text = kind.to_string();
    let known = match text.as_str() {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root (x86-64)",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "Linux extended boot",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "Linux home",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "Linux RAID",
        "ca7d7ccb-63ed-4c53-861c-1742536059cc" => "LUKS",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Microsoft basic data",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "Microsoft reserved",
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "Windows recovery",
        "48465300-0000-11aa-aa11-00306543ecac" => "HFS+",
        "7c3457ef-0000-11aa-aa11-00306543ecac" => "APFS",
        _ => return text,
    };
    known.to_owned()
}
