//! What a driver asks of a disk: header, data, room for a status.

use guise_engine::GuestMemory;

use super::{LARGEST_RANGE, MOST_RANGES, SECTOR};
use crate::queue::chain::Segment;
use crate::queue::{Chain, QueueError, Reader};

/// Kinds of requests.
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Bytes in front of the data.
const HEADER: usize = 16;

/// A range may be unmapped.
const UNMAP: u32 = 1;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
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

/// A request whose bounds have been checked. Offsets and lengths are in bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64 },
    Flush,
    Identify,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
    /// Its space may be given back.
    pub unmap: bool,
}

/// What a request's bounds are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub size: u64,
    pub read_only: bool,
}

impl Request {
    /// Bytes of data that it moves.
    pub fn bytes(&self) -> u64 {
        match self {
            Request::Read { length, .. } | Request::Write { length, .. } => *length,
            _ => 0,
        }
    }

    /// Reads a request. The outer error breaks the queue; the inner one is the
    /// request's status.
    pub fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        bounds: Bounds,
    ) -> Result<Result<Self, Failure>, QueueError> {
        let mut reader = chain.reader(memory);
        let header: [u8; HEADER] = reader.read_array()?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector));
        let room = data_room(chain, memory)?;
        Ok(match kind {
            READ => bounds.place(sector, room).map(|offset| Request::Read { offset, length: room }),
            WRITE => bounds.changes().and_then(|()| {
                let length = reader.remaining();
                let offset = bounds.place(sector, length)?;
                Ok(Request::Write { offset, length })
            }),
            FLUSH => Ok(Request::Flush),
            GET_ID => Ok(Request::Identify),
            DISCARD => bounds.ranges(&mut reader, 0).map(Request::Discard),
            WRITE_ZEROES => bounds.ranges(&mut reader, UNMAP).map(Request::WriteZeroes),
            _ => Err(Failure::Unsupported),
        })
    }
}

impl Bounds {
    fn changes(self) -> Result<(), Failure> {
        if self.read_only { Err(Failure::Io) } else { Ok(()) }
    }

    /// Where sectors are in bytes, if they are inside of the disk.
    fn place(self, sector: u64, length: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Io)?;
        let end = offset.checked_add(length).ok_or(Failure::Io)?;
        if end > self.size || !length.is_multiple_of(SECTOR) {
            return Err(Failure::Io);
        }
        Ok(offset)
    }

    /// Ranges of 16 bytes each, with only these flags.
    fn ranges(self, reader: &mut Reader<'_>, known: u32) -> Result<Vec<Range>, Failure> {
        self.changes()?;
        let count = reader.remaining() / 16;
        if !reader.remaining().is_multiple_of(16) || count > u64::from(MOST_RANGES) {
            return Err(Failure::Unsupported);
        }
        let mut ranges = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let range: [u8; 16] = reader.read_array().map_err(|_| Failure::Io)?;
            let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = range;
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let sectors = u32::from_le_bytes([i, j, k, l]);
            let flags = u32::from_le_bytes(flags);
            if flags & !known != 0 || sectors > LARGEST_RANGE {
                return Err(Failure::Unsupported);
            }
            let length = u64::from(sectors) * SECTOR;
            let offset = self.place(sector, length)?;
            if length > 0 {
                ranges.push(Range { offset, length, unmap: flags & UNMAP != 0 });
            }
        }
        Ok(ranges)
    }
}

/// The pieces of a read's data, of which there are so many bytes: room, up to the status.
pub fn room_of<'a>(
    chain: &'a Chain,
    memory: &'a GuestMemory,
    length: u64,
) -> impl Iterator<Item = Segment> + 'a {
    chain.writer(memory).into_pieces(length)
}

/// The pieces of a write's data, of which there are so many bytes: what follows the header.
pub fn data_of<'a>(
    chain: &'a Chain,
    memory: &'a GuestMemory,
    length: u64,
) -> impl Iterator<Item = Segment> + 'a {
    let mut reader = chain.reader(memory);
    reader.skip(HEADER as u64);
    reader.into_pieces(length)
}

/// Bytes that the device may write in front of the status, which is the last one.
fn data_room(chain: &Chain, memory: &GuestMemory) -> Result<u64, QueueError> {
    let room = chain.writer(memory).remaining().checked_sub(1);
    room.ok_or(QueueError::Request("it has no room for a status"))
}

/// Writes `answer` to the front of the room, and the status to its end. Returns how many
/// bytes of the chain are new; `outcome` says how many of the data are.
pub fn conclude(
    chain: &Chain,
    memory: &GuestMemory,
    answer: &[u8],
    outcome: Result<u64, Failure>,
) -> Result<u32, QueueError> {
    let room = data_room(chain, memory)?;
    let mut writer = chain.writer(memory);
    let answer = &answer[..answer.len().min(room as usize)];
    writer.write(answer)?;
    writer.skip(room - answer.len() as u64);
    writer.write(&[outcome.map_or_else(Failure::status, |_| 0)])?;
    let data = outcome.unwrap_or(0).max(answer.len() as u64).min(room);
    Ok(data as u32 + 1)
}
