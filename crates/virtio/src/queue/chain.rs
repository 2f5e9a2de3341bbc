//! A chain of buffers: what a driver hands over as one request.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{MAX_SEGMENTS, QueueError};

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
    segments: Vec<Segment>,
    /// How many of the segments are to be read; they are the first.
    readable: usize,
}

/// Memory of chains that have been given back, for those to come: a queue that is in use
/// asks the allocator for nothing.
#[derive(Default)]
pub(super) struct Spare {
    lists: Vec<Vec<Segment>>,
    /// The indirect table that is being read.
    table: Vec<u8>,
}

impl Spare {
    /// An empty chain.
    pub fn chain(&mut self, id: u16) -> Chain {
        let segments = self.lists.pop().unwrap_or_default();
        Chain { id, places: 1, segments, readable: 0 }
    }

    /// A chain is done with. So many are kept at the most.
    pub fn keep(&mut self, chain: Chain, most: u16) {
        if self.lists.len() < usize::from(most) {
            let mut segments = chain.segments;
            segments.clear();
            self.lists.push(segments);
        }
    }
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
    /// Adds a buffer.
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        descriptor: Descriptor,
    ) -> Result<(), QueueError> {
        let Descriptor { address, length, flags, .. } = descriptor;
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(QueueError::ChainLength);
        }
        if !is_inside(memory, address, length) {
            return Err(QueueError::Buffer { address, length });
        }
        if flags & WRITE == 0 {
            if self.readable < self.segments.len() {
                return Err(QueueError::Order);
            }
            self.readable += 1;
        }
        self.segments.push(Segment { address, length });
        Ok(())
    }

    /// Adds the buffers of an indirect table. In the split format it is a chain, in
    /// the packed format simply a list.
    pub(super) fn add_indirect(
        &mut self,
        memory: &GuestMemory,
        table: Descriptor,
        packed: bool,
        spare: &mut Spare,
    ) -> Result<(), QueueError> {
        if table.flags & NEXT != 0 && !packed {
            return Err(QueueError::Indirect("is not the last of its chain"));
        }
        if table.length == 0 || !table.length.is_multiple_of(16) {
            return Err(QueueError::Indirect("is not a whole number of descriptors"));
        }
        if table.length as usize / 16 > MAX_SEGMENTS {
            return Err(QueueError::ChainLength);
        }
        spare.table.resize(table.length as usize, 0);
        let read = memory.read_slice(&mut spare.table, GuestAddress(table.address));
        read.map_err(|_| QueueError::Memory(table.address))?;
        let (entries, _) = spare.table.as_chunks::<16>();
        let mut index = 0;
        for _ in entries {
            let bytes = *entries.get(index).ok_or(QueueError::DescriptorIndex(index as u16))?;
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
                index = usize::from(descriptor.link);
            }
        }
        // A split table ends with a descriptor that says so.
        if packed { Ok(()) } else { Err(QueueError::ChainLength) }
    }

    /// What the driver wrote.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemory) -> Reader<'a> {
        Reader(Cursor::new(memory, &self.segments[..self.readable]))
    }

    /// Where the device writes.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemory) -> Writer<'a> {
        Writer(Cursor::new(memory, &self.segments[self.readable..]))
    }
}

/// Whether a buffer lies in guest memory.
fn is_inside(memory: &GuestMemory, address: u64, length: u32) -> bool {
    // Nearly all lie in one region, which is quickly found.
    let region = memory.to_region_addr(GuestAddress(address));
    region.is_some_and(|(region, at)| region.len() - at.0 >= u64::from(length))
        || memory.check_range(GuestAddress(address), length as usize)
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
    fn into_pieces(mut self, length: u64) -> impl Iterator<Item = Segment> + 'a {
        let mut left = length;
        std::iter::from_fn(move || {
            let piece = if left > 0 { self.step(left) } else { None }?;
            left -= u64::from(piece.length);
            Some(piece)
        })
    }
}

/// Reads the readable part of a chain, in order.
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
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
    pub fn into_pieces(self, length: u64) -> impl Iterator<Item = Segment> + 'a {
        self.0.into_pieces(length)
    }
}

/// Writes the writable part of a chain, in order.
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
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
    pub fn into_pieces(self, length: u64) -> impl Iterator<Item = Segment> + 'a {
        self.0.into_pieces(length)
    }

    /// Leaves the next bytes as they are.
    pub fn skip(&mut self, length: u64) {
        self.0.skip(length);
    }
}
