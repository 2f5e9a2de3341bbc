//! Undoing writes, for the comparison of the two tiers.
//!
//! While there is a journal, every page is copied before the first write to it; that
//! is where a write entry of the TLB is made, so a journal begins by forgetting all of
//! those. What a second execution of the same instructions leaves in these pages can
//! then be compared with what the first one left. Device memory has no entries and no
//! journal: instructions that reach it are executed once.

use crate::cpu::Cpu;
use crate::tlb::PAGE_SIZE;

type Bytes = Box<[u8; PAGE_SIZE as usize]>;

struct Page {
    host: *mut u8,
    before: Bytes,
    first: Option<Bytes>,
}

#[derive(Default)]
pub struct Journal {
    pages: Vec<Page>,
}

fn read(host: *const u8) -> Bytes {
    // SAFETY: whole pages of guest memory come here, mapped as long as the VM.
    Box::new(unsafe { host.cast::<[u8; PAGE_SIZE as usize]>().read_volatile() })
}

impl Journal {
    /// A write to this byte of guest memory may follow.
    pub fn note(&mut self, host: *mut u8) {
        let host = host.wrapping_sub(host as usize % PAGE_SIZE as usize);
        if !self.pages.iter().any(|page| page.host == host) {
            self.pages.push(Page { host, before: read(host), first: None });
        }
    }

    /// Takes all writes back, and remembers what they were.
    pub fn rewind(&mut self) {
        for page in &mut self.pages {
            page.first = Some(read(page.host));
            // SAFETY: as in `read`.
            unsafe { page.host.cast::<[u8; PAGE_SIZE as usize]>().write_volatile(*page.before) };
        }
    }

    /// The first byte that is not what it was before the rewind: its place in this
    /// process, what it was, and what it is.
    pub fn difference(&self) -> Option<(*const u8, u8, u8)> {
        self.pages.iter().find_map(|page| {
            let (now, first) = (read(page.host), page.first.as_ref().unwrap_or(&page.before));
            let at = (0..now.len()).find(|&at| now[at] != first[at])?;
            Some((page.host.wrapping_add(at).cast_const(), first[at], now[at]))
        })
    }
}

impl Cpu {
    /// Starts a journal: from now on writes are seen.
    pub fn start_journal(&mut self) {
        self.spaces.forget_all_writes();
        self.journal = Some(Journal::default());
    }
}
