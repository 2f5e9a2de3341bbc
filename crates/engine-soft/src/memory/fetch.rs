//! Where instructions are fetched from: a small TLB of its own, under the context in
//! which the page was found executable.

use super::walk::Access;
use crate::cpu::Cpu;
use crate::interpret::op::Run;
use crate::memory::spaces::View;

const ENTRIES: usize = 256;

#[derive(Clone, Copy)]
struct Entry {
    page: u64,
    context: u64,
    host: *mut u8,
    global: bool,
}

const EMPTY: Entry = Entry { page: 1, context: 0, host: std::ptr::null_mut(), global: false };

pub struct FetchCache {
    entries: Box<[Entry; ENTRIES]>,
}

impl Default for FetchCache {
    fn default() -> Self {
        FetchCache { entries: Box::new([EMPTY; ENTRIES]) }
    }
}

impl FetchCache {
    fn place(address: u64) -> usize {
        (address >> 12) as usize % ENTRIES
    }

    pub fn forget(&mut self, address: u64) {
        self.entries[Self::place(address)] = EMPTY;
    }

    pub fn clear(&mut self) {
        self.entries.fill(EMPTY);
    }
}

/// What stands behind a linear address that is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Memory(*mut u8),
    /// No memory: the bytes come from a device, at this guest-physical address.
    Device(u64),
}

impl Cpu {
    /// Where the instruction bytes at a linear address are; #PF if they may not be
    /// executed.
    pub fn fetch_source(&mut self, linear: u64) -> Run<Source> {
        let page = linear & !0xfff;
        let offset = (linear & 0xfff) as usize;
        let entry = &self.fetch.entries[FetchCache::place(linear)];
        if entry.page == page && entry.context == self.context {
            return Ok(Source::Memory(entry.host.wrapping_add(offset)));
        }
        let view = if self.mode.cpl == 3 { View::User } else { View::SupervisorOnUser };
        let leaf = self.walk(linear, Access::Fetch, view)?;
        match self.map.find(leaf.frame) {
            Some(place) => {
                let host = place.host;
                self.fetch.entries[FetchCache::place(linear)] =
                    Entry { page, context: self.context, host, global: leaf.global };
                // So that INVLPG of another address in a large page finds this one.
                self.spaces.note_page(linear, leaf.page_shift);
                Ok(Source::Memory(host.wrapping_add(offset)))
            }
            None => Ok(Source::Device(leaf.frame + offset as u64)),
        }
    }

    /// Whether the page that `fetch_source` has found last for this address is global.
    pub fn is_fetch_global(&self, linear: u64) -> bool {
        let entry = &self.fetch.entries[FetchCache::place(linear)];
        entry.page == linear & !0xfff && entry.context == self.context && entry.global
    }
}
