//! The log of a VHDX file: changes of metadata are written here first, so that
//! a crash in between can be made good by doing them again.
//!
//! Each entry that this program writes is applied and stable before the next
//! one is begun, so an entry's tail is always the entry itself. Entries of
//! other programs may form a sequence; the newest complete one counts.

use uuid::Uuid;

use crate::bytes::{le32, le64, put};
use crate::error::{Blame, Result};
use crate::storage::{Storage, read_vec};

pub(super) const PAGE: usize = 4096;
const ENTRY_HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// A log is read whole; larger ones are refused.
const MAX_LOG: u64 = 256 << 20;
/// Pages in one entry: it has to fit twice into the smallest log.
pub(super) const MAX_PAGES: usize = 100;

/// What an entry says about one place of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Page(u64, Vec<u8>),
    Zero(u64, u64),
}

/// Where the log is.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogPlace {
    pub offset: u64,
    pub len: u64,
}

struct Found {
    at: usize,
    len: usize,
    tail: usize,
    sequence: u64,
    flushed: u64,
}

/// Changes that have to be done again, and the highest number used.
pub(super) fn pending(
    file: &dyn Storage,
    place: LogPlace,
    guid: Uuid,
    blame: &Blame,
) -> Result<(Vec<Change>, u64)> {
    if guid.is_nil() {
        return Ok((Vec::new(), 0));
    }
    let file_len = file.len()?;
    if place.len > MAX_LOG || place.offset.checked_add(place.len).is_none_or(|end| end > file_len) {
        return Err(blame.corrupt("the log lies outside the file"));
    }
    let mut log = read_vec(file, place.offset, place.len as usize)?;
    let size = log.len();
    // Entries wrap around the end: the log twice makes each of them whole.
    log.extend_from_within(..);
    let mut entries: Vec<Found> =
        (0..size / PAGE).filter_map(|page| entry_at(&log, page * PAGE, size, guid)).collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
    let mut effort = 1_000_000_u32;
    for head in &entries {
        let Some(sequence) = sequence_to(&entries, head, size, &mut effort) else { continue };
        if head.flushed > file_len {
            return Err(blame.corrupt("the file is shorter than its log says"));
        }
        let mut changes = Vec::new();
        for entry in sequence {
            read_changes(&log, entry, &mut changes, blame)?;
        }
        return Ok((changes, head.sequence));
    }
    Ok((Vec::new(), 0))
}

fn entry_at(log: &[u8], at: usize, size: usize, guid: Uuid) -> Option<Found> {
    if &log[at..at + 4] != b"loge" {
        return None;
    }
    let len = le32(log, at + 8) as usize;
    let tail = le32(log, at + 12) as usize;
    if len < PAGE
        || !len.is_multiple_of(PAGE)
        || len > size
        || tail >= size
        || !tail.is_multiple_of(PAGE)
    {
        return None;
    }
    if log[at + 32..at + 48] != guid.to_bytes_le() {
        return None;
    }
    let mut sum = crc32c::crc32c(&log[at..at + 4]);
    sum = crc32c::crc32c_append(sum, &[0; 4]);
    sum = crc32c::crc32c_append(sum, &log[at + 8..at + len]);
    (sum == le32(log, at + 4)).then(|| Found {
        at,
        len,
        tail,
        sequence: le64(log, at + 16),
        flushed: le64(log, at + 48),
    })
}

/// The entries from the tail that `head` names up to `head`, if all are there.
fn sequence_to<'a>(
    entries: &'a [Found],
    head: &'a Found,
    size: usize,
    effort: &mut u32,
) -> Option<Vec<&'a Found>> {
    let mut sequence = Vec::new();
    let mut at = head.tail;
    loop {
        *effort = effort.checked_sub(1)?;
        let entry = entries.iter().find(|entry| entry.at == at)?;
        if entry.sequence > head.sequence {
            return None;
        }
        if let Some(last) = sequence.last().map(|last: &&Found| last.sequence)
            && entry.sequence != last + 1
        {
            return None;
        }
        sequence.push(entry);
        if entry.at == head.at {
            return Some(sequence);
        }
        at = (at + entry.len) % size;
    }
}

fn read_changes(log: &[u8], entry: &Found, changes: &mut Vec<Change>, blame: &Blame) -> Result<()> {
    let bytes = &log[entry.at..entry.at + entry.len];
    let count = le32(bytes, 24) as usize;
    let header_pages = (ENTRY_HEADER + count.saturating_mul(DESCRIPTOR)).div_ceil(PAGE);
    let mut data_at = header_pages * PAGE;
    if data_at > bytes.len() {
        return Err(blame.corrupt("a log entry with too many descriptors"));
    }
    for index in 0..count {
        let descriptor = &bytes[ENTRY_HEADER + index * DESCRIPTOR..][..DESCRIPTOR];
        let offset = le64(descriptor, 16);
        if le64(descriptor, 24) != entry.sequence || !offset.is_multiple_of(PAGE as u64) {
            return Err(blame.corrupt("a log descriptor that does not belong to its entry"));
        }
        match &descriptor[..4] {
            b"zero" => changes.push(Change::Zero(offset, le64(descriptor, 8))),
            b"desc" => {
                let Some(sector) = bytes.get(data_at..data_at + PAGE) else {
                    return Err(blame.corrupt("a log entry without its data"));
                };
                data_at += PAGE;
                let sequence = u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, PAGE - 4));
                if &sector[..4] != b"data" || sequence != entry.sequence {
                    return Err(blame.corrupt("a log sector that does not belong to its entry"));
                }
                let mut page = sector.to_vec();
                put(&mut page, 0, &descriptor[8..16]);
                put(&mut page, PAGE - 4, &descriptor[4..8]);
                changes.push(Change::Page(offset, page));
            }
            _ => return Err(blame.corrupt("a log descriptor of no known kind")),
        }
    }
    Ok(())
}

/// The bytes of an entry for these pages, which is to stand at `at`.
pub(super) fn encode(
    pages: &[(u64, Vec<u8>)],
    at: u64,
    sequence: u64,
    guid: Uuid,
    file_len: u64,
) -> Vec<u8> {
    let header_pages = (ENTRY_HEADER + pages.len() * DESCRIPTOR).div_ceil(PAGE);
    let len = (header_pages + pages.len()) * PAGE;
    let mut entry = vec![0; len];
    put(&mut entry, 0, b"loge");
    put(&mut entry, 8, &(len as u32).to_le_bytes());
    put(&mut entry, 12, &(at as u32).to_le_bytes());
    put(&mut entry, 16, &sequence.to_le_bytes());
    put(&mut entry, 24, &(pages.len() as u32).to_le_bytes());
    put(&mut entry, 32, &guid.to_bytes_le());
    put(&mut entry, 48, &file_len.to_le_bytes());
    put(&mut entry, 56, &file_len.to_le_bytes());
    for (index, (offset, page)) in pages.iter().enumerate() {
        let descriptor = ENTRY_HEADER + index * DESCRIPTOR;
        put(&mut entry, descriptor, b"desc");
        put(&mut entry, descriptor + 4, &page[PAGE - 4..]);
        put(&mut entry, descriptor + 8, &page[..8]);
        put(&mut entry, descriptor + 16, &offset.to_le_bytes());
        put(&mut entry, descriptor + 24, &sequence.to_le_bytes());
        let sector = (header_pages + index) * PAGE;
        put(&mut entry, sector, page);
        put(&mut entry, sector, b"data");
        put(&mut entry, sector + 4, &((sequence >> 32) as u32).to_le_bytes());
        put(&mut entry, sector + PAGE - 4, &(sequence as u32).to_le_bytes());
    }
    let sum = crc32c::crc32c(&entry);
    put(&mut entry, 4, &sum.to_le_bytes());
    entry
}

/// Does the changes to the file.
pub(super) fn apply(file: &dyn Storage, changes: &[Change]) -> Result<()> {
    for change in changes {
        match change {
            Change::Page(offset, page) => file.write_at(*offset, page)?,
            Change::Zero(offset, len) => file.write_zeroes(*offset, *len, false)?,
        }
    }
    file.flush()
}

/// Reads as if the changes were done: for images that are not written.
pub(super) fn read_through(
    file: &dyn Storage,
    changes: &[Change],
    offset: u64,
    len: usize,
) -> Result<Vec<u8>> {
    let mut bytes = read_vec(file, offset, len)?;
    let end = offset + len as u64;
    for change in changes {
        let (start, length) = match change {
            Change::Page(at, page) => (*at, page.len() as u64),
            Change::Zero(at, length) => (*at, *length),
        };
        let from = start.max(offset);
        let to = start.saturating_add(length).min(end);
        if from >= to {
            continue;
        }
        let into = &mut bytes[(from - offset) as usize..(to - offset) as usize];
        match change {
            Change::Page(at, page) => {
                into.copy_from_slice(&page[(from - at) as usize..(to - at) as usize]);
            }
            Change::Zero(..) => into.fill(0),
        }
    }
    Ok(bytes)
}
