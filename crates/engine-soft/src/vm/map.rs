//! Guest-physical memory as an engine thread sees it, and the marks on its pages.
//!
//! A page is known by where it stands in this process, not by its guest address: the
//! same memory may be mapped at several addresses, and code must be forgotten
//! whichever of them is written. [`PageMarks`] say who may write a page without being
//! seen (vCPUs with a write entry in their TLB) and who holds code from it; the two
//! are checked against each other by whoever adds himself to either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use guise_engine::memory::{PAGE_SIZE, WriteTracker};
use guise_engine::{EngineError, GuestRegion, MemorySlot};

/// A piece of a page that code is looked for in: 64 pieces, a bit each.
const LINE_SHIFT: usize = 6;

/// What is known of one page of host memory. Masks have a bit for each vCPU.
#[derive(Debug, Default)]
pub struct PageMarks {
    /// vCPUs that may hold a TLB entry with which to write this page.
    pub writers: AtomicU8,
    /// vCPUs that may hold code from this page.
    pub code: AtomicU8,
    /// Which 64-byte pieces of the page that code comes from.
    pub lines: AtomicU64,
}

impl PageMarks {
    /// Whether code may stand in these bytes of the page.
    pub fn code_in(&self, offset: usize, length: usize) -> bool {
        self.code.load(Ordering::SeqCst) != 0
            && self.lines.load(Ordering::SeqCst) & lines(offset, length) != 0
    }
}

/// The pieces of a page that bytes `offset..offset + length` touch.
pub fn lines(offset: usize, length: usize) -> u64 {
    let first = (offset % PAGE_SIZE) >> LINE_SHIFT;
    let last = ((offset % PAGE_SIZE) + length.max(1) - 1).min(PAGE_SIZE - 1) >> LINE_SHIFT;
    (!0u64 << first) & (!0u64 >> (63 - last))
}

/// A region of host memory with the marks of its pages; slots share it.
pub struct Region {
    pub memory: Arc<GuestRegion>,
    start: *mut u8,
    marks: Box<[PageMarks]>,
}

// SAFETY: `start` points into `memory`, which is kept alive and is shared memory that
// any thread may access; the marks are atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub fn new(memory: Arc<GuestRegion>) -> Region {
        let start = memory.as_ptr();
        let pages = memory.size() / PAGE_SIZE;
        Region { memory, start, marks: (0..pages).map(|_| PageMarks::default()).collect() }
    }

    pub fn contains(&self, host: *const u8) -> bool {
        (host as usize).wrapping_sub(self.start as usize) < self.marks.len() * PAGE_SIZE
    }

    /// The number of the page that a pointer into this region points to.
    pub fn page_of(&self, host: *const u8) -> usize {
        (host as usize - self.start as usize) / PAGE_SIZE
    }

    pub fn marks(&self, page: usize) -> &PageMarks {
        &self.marks[page]
    }

    pub fn tracker(&self) -> &WriteTracker {
        self.memory.bitmap()
    }

    /// Where byte `offset` of the region is in this process.
    pub fn host(&self, offset: usize) -> *mut u8 {
        self.start.wrapping_add(offset)
    }
}

/// Host memory at a guest-physical address.
#[derive(Clone)]
pub struct Slot {
    pub number: u32,
    pub guest: u64,
    pub size: u64,
    pub host: *mut u8,
    pub read_only: bool,
    pub region: Arc<Region>,
}

// SAFETY: `host` points into `region`, which is shared memory and kept alive.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

/// All slots, in the order of their guest addresses, without overlaps.
#[derive(Clone, Default)]
pub struct MemoryMap {
    slots: Vec<Slot>,
}

/// A guest-physical address that has memory behind it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub host: *mut u8,
    pub slot: &'a Slot,
}

impl Place<'_> {
    pub fn page(&self) -> usize {
        self.slot.region.page_of(self.host)
    }

    pub fn marks(&self) -> &PageMarks {
        self.slot.region.marks(self.page())
    }
}

impl MemoryMap {
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    #[inline]
    pub fn find(&self, address: u64) -> Option<Place<'_>> {
        for slot in &self.slots {
            let offset = address.wrapping_sub(slot.guest);
            if offset < slot.size {
                return Some(Place { host: slot.host.wrapping_add(offset as usize), slot });
            }
        }
        None
    }

    /// Which region a host address belongs to.
    pub fn region_of(&self, host: *const u8) -> Option<&Arc<Region>> {
        self.slots.iter().map(|slot| &slot.region).find(|region| region.contains(host))
    }

    pub fn remove(&mut self, number: u32) -> bool {
        let before = self.slots.len();
        self.slots.retain(|slot| slot.number != number);
        before != self.slots.len()
    }

    /// Adds a slot, or replaces the one of the same number. `region` is the wrapper of
    /// the slot's memory if it is known already.
    pub fn insert(
        &mut self,
        number: u32,
        memory: &MemorySlot,
        region: Arc<Region>,
    ) -> Result<(), EngineError> {
        let wrong = |reason| EngineError::Memory {
            address: memory.guest_address,
            end: memory.guest_address.wrapping_add(memory.size),
            reason,
        };
        let page = PAGE_SIZE as u64;
        if memory.size == 0 {
            return Err(wrong("the slot is empty"));
        }
        if [memory.guest_address, memory.size, memory.offset].iter().any(|x| x % page != 0) {
            return Err(wrong("not on page boundaries"));
        }
        let Some(end) = memory.guest_address.checked_add(memory.size) else {
            return Err(wrong("past the end of the address space"));
        };
        let inside = memory.offset.checked_add(memory.size);
        if inside.is_none_or(|end| end > region.memory.size() as u64) {
            return Err(wrong("longer than the memory behind it"));
        }
        let others = self.slots.iter().filter(|slot| slot.number != number);
        if others.clone().any(|s| s.guest < end && memory.guest_address < s.guest + s.size) {
            return Err(wrong("overlaps another slot"));
        }
        self.remove(number);
        self.slots.push(Slot {
            number,
            guest: memory.guest_address,
            size: memory.size,
            host: region.host(memory.offset as usize),
            read_only: memory.read_only,
            region,
        });
        self.slots.sort_by_key(|slot| std::cmp::Reverse(slot.size));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
