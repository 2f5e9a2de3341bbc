//! The driver's side of a queue, for tests: both ring formats, in a guest memory of
//! its own.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};

use super::{Position, Queue, QueueConfig};

pub const MEMORY_SIZE: usize = 4 << 20;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0xc000;
/// Where buffers of tests begin.
pub const BUFFERS: u64 = 0x10_0000;

/// A buffer: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

pub struct Driver {
    pub memory: GuestMemory,
    pub config: QueueConfig,
    /// Split: the next free descriptor. Packed: the next free place.
    next: u16,
    wrap: bool,
    offered: u16,
    seen: u16,
    seen_wrap: bool,
    /// Packed: places of the chains that are out, by id.
    places: Vec<u16>,
}

impl Driver {
    pub fn new(size: u16, packed: bool, event_index: bool) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("memory");
        Self::at(memory, 0, size, packed, event_index)
    }

    /// Several queues in one memory: number `index` has its rings after the others'.
    pub fn at(memory: GuestMemory, index: u64, size: u16, packed: bool, event_index: bool) -> Self {
        let base = index * 0x1_0000;
        let config = QueueConfig {
            size,
            descriptors: base + DESCRIPTORS,
            driver: base + DRIVER,
            device: base + DEVICE,
            packed,
            event_index,
        };
        // Rings of an earlier driver are gone.
        memory.write_slice(&[0; 0xf000], GuestAddress(base + DESCRIPTORS)).expect("inside");
        Self {
            memory,
            config,
            next: 0,
            wrap: true,
            offered: 0,
            seen: 0,
            seen_wrap: true,
            places: vec![0; usize::from(size)],
        }
    }

    pub fn queue(&self) -> Queue {
        Queue::new(self.memory.clone(), self.config, Position::default()).expect("queue")
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("inside");
    }

    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("inside");
        bytes
    }

    fn get16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address))
    }

    pub fn raw(&self, index: u16, address: u64, length: u32, halves: [u16; 2]) {
        self.raw_at(self.config.descriptors + 16 * u64::from(index), address, length, halves);
    }

    pub fn raw_at(&self, at: u64, address: u64, length: u32, halves: [u16; 2]) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &halves[0].to_le_bytes());
        self.put(at + 14, &halves[1].to_le_bytes());
    }

    /// Makes a split ring's chain available that begins at this descriptor.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.config.size);
        self.put(self.config.driver + 4 + 2 * slot, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.put(self.config.driver + 2, &self.offered.to_le_bytes());
    }

    /// Makes a chain available. Returns its id.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let size = self.config.size;
        let first = self.next;
        let (mut head_at, mut head_flags) = (0, 0);
        for (number, &(address, length, writable)) in buffers.iter().enumerate() {
            let last = number + 1 == buffers.len();
            let mut flags = u16::from(!last) | u16::from(writable) << 1;
            let place = self.next;
            self.next = (self.next + 1) % size;
            if self.config.packed {
                flags |= if self.wrap { 1 << 7 } else { 1 << 15 };
                if number == 0 {
                    head_at = self.config.descriptors + 16 * u64::from(place) + 14;
                    head_flags = flags;
                    // Not available before the whole chain is there.
                    flags ^= 1 << 7 | 1 << 15;
                }
                self.raw(place, address, length, [first, flags]);
                self.wrap ^= self.next == 0;
            } else {
                self.raw(place, address, length, [flags, self.next]);
            }
        }
        if self.config.packed {
            self.places[usize::from(first)] = buffers.len() as u16;
            self.put(head_at, &head_flags.to_le_bytes());
        } else {
            self.offer(first);
        }
        first
    }

    /// The next chain that came back: id and length written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.config.packed {
            let at = self.config.descriptors + 16 * u64::from(self.seen);
            let flags = self.get16(at + 14);
            let (available, used) = (flags >> 7 & 1 != 0, flags >> 15 != 0);
            if available != used || used != self.seen_wrap {
                return None;
            }
            let id = self.get16(at + 12);
            let length = u32::from_le_bytes(self.get(at + 8));
            let next = self.seen + self.places[usize::from(id)];
            self.seen_wrap ^= next >= self.config.size;
            self.seen = next % self.config.size;
            return Some((id, length));
        }
        if self.get16(self.config.device + 2) == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.config.size);
        let at = self.config.device + 4 + 8 * slot;
        self.seen = self.seen.wrapping_add(1);
        let length = u32::from_le_bytes(self.get(at + 4));
        Some((self.get16(at), length))
    }

    /// Waits for the next chain to come back.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(std::time::Instant::now() < deadline, "nothing came back");
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Asks for no interrupts at all, or for all.
    pub fn want_interrupts(&self, wanted: bool) {
        let at = if self.config.packed { self.config.driver + 2 } else { self.config.driver };
        self.put(at, &u16::from(!wanted).to_le_bytes());
    }

    /// Asks for an interrupt when the chain after next one comes back.
    pub fn want_interrupt_at(&self, index: u16, wrap: bool) {
        if self.config.packed {
            self.put(self.config.driver, &(index | u16::from(wrap) << 15).to_le_bytes());
            self.put(self.config.driver + 2, &2_u16.to_le_bytes());
        } else {
            let at = self.config.driver + 4 + 2 * u64::from(self.config.size);
            self.put(at, &index.to_le_bytes());
        }
    }
}
