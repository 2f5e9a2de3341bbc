//! A chain of buffers: what a driver hands over as one request.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{MAX_SEGMENTS, QueueError, read};

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A piece of guest memory, which exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub length: u32,
}

/// A request's buffers: first those to be read, then those to be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the ring knows it by.
    pub(super) id: u16,
    /// How many places it takes in a packed ring.
    pub(super) places: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

/// A descriptor, in either ring's format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    /// The next descriptor's index in a split ring; the chain's id in a packed one.
    pub link: u16,
}

impl Descriptor {
    pub fn split(bytes: [u8; 16]) -> Self {
        let [flags, link] = Self::halves(&bytes);
        Self { address: Self::address(&bytes), length: Self::length(&bytes), flags, link }
    }

    pub fn packed(bytes: [u8; 16]) -> Self {
        let [link, flags] = Self::halves(&bytes);
        Self { address: Self::address(&bytes), length: Self::length(&bytes), flags, link }
    }

    fn address(bytes: &[u8; 16]) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn length(bytes: &[u8; 16]) -> u32 {
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
    }

    fn halves(bytes: &[u8; 16]) -> [u16; 2] {
        [12, 14].map(|at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }
}

impl Chain {
    pub(super) fn with_id(id: u16) -> Self {
        Self { id, places: 1, ..Self::default() }
    }

    /// Adds a buffer.
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        descriptor: Descriptor,
    ) -> Result<(), QueueError> {
        let Descriptor { address, length, flags, .. } = descriptor;
        if self.readable.len() + self.writable.len() >= MAX_SEGMENTS {
            return Err(QueueError::ChainLength);
        }
        let (start, count) = (GuestAddress(address), length as usize);
        // Nearly all lie in one region, which is quickly found.
        if memory.get_slice(start, count).is_err() && !memory.check_range(start, count) {
            return Err(QueueError::Buffer { address, length });
        }
        let segment = Segment { address, length };
        if flags & WRITE != 0 {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }

    /// Adds the buffers of an indirect table. In the split format it is a chain, in
    /// the packed format simply a list.
    pub(super) fn add_indirect(
        &mut self,
        memory: &GuestMemory,
        table: Descriptor,
        packed: bool,
    ) -> Result<(), QueueError> {
        if table.flags & NEXT != 0 && !packed {
            return Err(QueueError::Indirect("is not the last of its chain"));
        }
        if table.length == 0 || !table.length.is_multiple_of(16) {
            return Err(QueueError::Indirect("is not a whole number of descriptors"));
        }
        let count = table.length / 16;
        if count as usize > MAX_SEGMENTS {
            return Err(QueueError::ChainLength);
        }
        let mut index = 0;
        for _ in 0..count {
            let offset = u64::from(index) * 16;
            let address = table.address.checked_add(offset).ok_or(QueueError::Memory(offset))?;
            let bytes = read(memory, address)?;
            let descriptor =
                if packed { Descriptor::packed(bytes) } else { Descriptor::split(bytes) };
            if descriptor.flags & INDIRECT != 0 {
                return Err(QueueError::Indirect("has an indirect table in it"));
            }
            self.add(memory, descriptor)?;
            if packed {
                index += 1;
            } else if descriptor.flags & NEXT == 0 {
                return Ok(());
            } else {
                index = u32::from(descriptor.link);
                if index >= count {
                    return Err(QueueError::DescriptorIndex(descriptor.link));
                }
            }
        }
        // A split table ends with a descriptor that says so.
        if packed { Ok(()) } else { Err(QueueError::ChainLength) }
    }

    /// What the driver wrote.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemory) -> Reader<'a> {
        Reader(Cursor::new(memory, &self.readable))
    }

    /// Where the device writes.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemory) -> Writer<'a> {
        Writer(Cursor::new(memory, &self.writable))
    }
}

/// A place in a list of segments.
struct Cursor<'a> {
    memory: &'a GuestMemory,
    segments: &'a [Segment],
    /// How much of the first segment is done with.
    offset: u32,
}

impl<'a> Cursor<'a> {
    fn new(memory: &'a GuestMemory, segments: &'a [Segment]) -> Self {
        Self { memory, segments, offset: 0 }
    }

    fn remaining(&self) -> u64 {
        let all: u64 = self.segments.iter().map(|segment| u64::from(segment.length)).sum();
        all - u64::from(self.offset)
    }

    /// Steps over at most `wanted` bytes of the first segment; returns the piece.
    fn step(&mut self, wanted: u64) -> Option<Segment> {
        loop {
            let segment = self.segments.first()?;
            let left = segment.length - self.offset;
            if left == 0 {
                self.segments = &self.segments[1..];
                self.offset = 0;
                continue;
            }
            let length = wanted.min(u64::from(left)) as u32;
            let piece = Segment { address: segment.address + u64::from(self.offset), length };
            self.offset += length;
            return Some(piece);
        }
    }

    /// Steps over so many bytes, as far as there are so many.
    fn skip(&mut self, mut length: u64) {
        while length > 0 {
            let Some(piece) = self.step(length) else { break };
            length -= u64::from(piece.length);
        }
    }

    /// The next `length` bytes as pieces, as far as there are so many.
    fn take(&mut self, length: u64) -> Vec<Segment> {
        let mut pieces = Vec::new();
        let mut left = length;
        while left > 0 {
            let Some(piece) = self.step(left) else { break };
            left -= u64::from(piece.length);
            pieces.push(piece);
        }
        pieces
    }
}

/// Reads the readable part of a chain, in order.
pub struct Reader<'a>(Cursor<'a>);

impl Reader<'_> {
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Fills the buffer as far as there is something; says how far.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while done < buffer.len() {
            let Some(piece) = self.0.step((buffer.len() - done) as u64) else { break };
            let end = done + piece.length as usize;
            let result =
                self.0.memory.read_slice(&mut buffer[done..end], GuestAddress(piece.address));
            result.map_err(|_| QueueError::Memory(piece.address))?;
            done = end;
        }
        Ok(done)
    }

    /// Exactly so many bytes.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], QueueError> {
        let mut bytes = [0; N];
        if self.read(&mut bytes)? < N {
            return Err(QueueError::Request("it is shorter than its header"));
        }
        Ok(bytes)
    }

    /// Leaves out the next bytes.
    pub fn skip(&mut self, length: u64) {
        self.0.skip(length);
    }

    /// The next bytes, without a copy.
    pub fn take(&mut self, length: u64) -> Vec<Segment> {
        self.0.take(length)
    }
}

/// Writes the writable part of a chain, in order.
pub struct Writer<'a>(Cursor<'a>);

impl Writer<'_> {
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Writes as far as there is room; says how far.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        while done < data.len() {
            let Some(piece) = self.0.step((data.len() - done) as u64) else { break };
            let end = done + piece.length as usize;
            let result = self.0.memory.write_slice(&data[done..end], GuestAddress(piece.address));
            result.map_err(|_| QueueError::Memory(piece.address))?;
            done = end;
        }
        Ok(done)
    }

    /// The next bytes, to be written by other means.
    pub fn take(&mut self, length: u64) -> Vec<Segment> {
        self.0.take(length)
    }

    /// Leaves the next bytes as they are.
    pub fn skip(&mut self, length: u64) {
        self.0.skip(length);
    }
}
