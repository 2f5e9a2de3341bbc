//! One request: header, data, status.

use std::io;

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Buffer, Disk, LARGEST_RANGE, MOST_RANGES, SECTOR};
use crate::queue::chain::Segment;
use crate::queue::{Chain, QueueError, Reader, Writer};

/// Kinds of requests.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A range may be unmapped.
const UNMAP: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The host could not do it, or the request is out of bounds.
    Io,
    Unsupported,
}

impl Failure {
    fn status(self) -> u8 {
        match self {
            Failure::Io => 1,
            Failure::Unsupported => 2,
        }
    }
}

/// Executes a request and writes its status. Returns how many bytes were written to
/// the chain. An error is one of the queue; the disk's become the status.
pub fn execute(disk: &Disk, chain: &Chain, memory: &GuestMemory) -> Result<u32, QueueError> {
    let (mut reader, mut writer) = (chain.reader(memory), chain.writer(memory));
    let header: [u8; 16] = reader.read_array()?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
    // The last byte that can be written is the status.
    let room = writer.remaining().checked_sub(1);
    let room = room.ok_or(QueueError::Request("it has no room for a status"))?;
    let outcome = match kind {
        READ => read(disk, memory, sector, &writer.take(room)).map(|()| room),
        WRITE => write(disk, memory, sector, &mut reader).map(|()| 0),
        FLUSH => finish(disk.backend.flush()).map(|()| 0),
        GET_ID => identify(disk, &mut writer, room),
        DISCARD | WRITE_ZEROES => ranges(disk, kind, &mut reader).map(|()| 0),
        _ => Err(Failure::Unsupported),
    };
    // What was not used of the room lies before the status.
    let unused = writer.remaining() - 1;
    writer.take(unused);
    let status = outcome.map_or_else(Failure::status, |_| 0);
    writer.write(&[status])?;
    Ok(outcome.unwrap_or(0) as u32 + 1)
}

fn finish(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| {
        tracing::warn!(%error, "a disk request failed");
        Failure::Io
    })
}

/// Where a request's sectors are in bytes, if they are inside of the disk.
fn place(disk: &Disk, sector: u64, length: u64) -> Result<u64, Failure> {
    let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
    let end = offset.checked_add(length).ok_or(Failure::Io)?;
    if end > disk.backend.size() || !length.is_multiple_of(SECTOR) {
        return Err(Failure::Io);
    }
    Ok(offset)
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

/// The segments as memory of this process.
fn buffers<'a>(memory: &'a GuestMemory, segments: &[Segment]) -> Result<Vec<Buffer<'a>>, Failure> {
    let mut buffers = Vec::with_capacity(segments.len());
    for segment in segments {
        let address = GuestAddress(segment.address);
        for slice in memory.get_slices(address, segment.length as usize) {
            buffers.push(slice.map_err(|_| Failure::Io)?);
        }
    }
    Ok(buffers)
}

fn read(
    disk: &Disk,
    memory: &GuestMemory,
    sector: u64,
    segments: &[Segment],
) -> Result<(), Failure> {
    let offset = place(disk, sector, total(segments))?;
    finish(disk.backend.read(offset, &buffers(memory, segments)?))
}

fn write(
    disk: &Disk,
    memory: &GuestMemory,
    sector: u64,
    reader: &mut Reader<'_>,
) -> Result<(), Failure> {
    if disk.read_only {
        return Err(Failure::Io);
    }
    let segments = reader.take(reader.remaining());
    let offset = place(disk, sector, total(&segments))?;
    finish(disk.backend.write(offset, &buffers(memory, &segments)?))?;
    if disk.write_through { finish(disk.backend.flush()) } else { Ok(()) }
}

fn identify(disk: &Disk, writer: &mut Writer<'_>, room: u64) -> Result<u64, Failure> {
    let length = (disk.serial.len() as u64).min(room) as usize;
    let written = writer.write(&disk.serial[..length]).map_err(|_| Failure::Io)?;
    Ok(written as u64)
}

/// Discards or zeroes ranges, 16 bytes of data each.
fn ranges(disk: &Disk, kind: u32, reader: &mut Reader<'_>) -> Result<(), Failure> {
    if disk.read_only {
        return Err(Failure::Io);
    }
    let count = reader.remaining() / 16;
    if !reader.remaining().is_multiple_of(16) || count > u64::from(MOST_RANGES) {
        return Err(Failure::Unsupported);
    }
    for _ in 0..count {
        let range: [u8; 16] = reader.read_array().map_err(|_| Failure::Io)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = range;
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let sectors = u32::from_le_bytes([i, j, k, l]);
        let flags = u32::from_le_bytes(flags);
        // Discarding has no flags.
        let known = if kind == WRITE_ZEROES { UNMAP } else { 0 };
        if flags & !known != 0 || sectors > LARGEST_RANGE {
            return Err(Failure::Unsupported);
        }
        let length = u64::from(sectors) * SECTOR;
        let offset = place(disk, sector, length)?;
        if length == 0 {
            continue;
        }
        finish(match kind {
            DISCARD => disk.backend.discard(offset, length),
            _ => disk.backend.write_zeroes(offset, length, flags & UNMAP != 0),
        })?;
    }
    if disk.write_through { finish(disk.backend.flush()) } else { Ok(()) }
}
