//! Large pages of the host for the guest's memory.
//!
//! Guest memory is files in memory, to which kernels give pages of 4 KiB. Where a guest
//! reaches over more of it than the host's processor has translations for, most of its time
//! goes into page walks, the more so if the host is a guest itself. `MADV_COLLAPSE` (Linux
//! 6.1) puts what lies in 2 MiB into one page.
//!
//! Only pieces of which every page is there are put together, so that a guest does not get
//! more memory by it, and what was given back stays given back. vCPU threads do it between
//! two instructions, a piece at a time with a pause after each.

use std::arch::x86_64::_rdtsc;
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::map::MemoryMap;

const PIECE: usize = 2 << 20;
const PAGE: usize = guise_engine::memory::PAGE_SIZE;
/// Ticks of the host's TSC between two looks: some 20 ms.
const PAUSE: u64 = 50_000_000;
/// Pieces that are looked at each time, at most.
const LOOKS: usize = 16;

#[derive(Default)]
pub struct LargePages {
    due: AtomicU64,
    made: AtomicU64,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The piece to look at next, counted over all slots.
    next: usize,
    /// Pieces that are put together, or cannot be, while they stay complete.
    settled: HashSet<usize>,
}

impl LargePages {
    /// Puts one piece together, if it is time and there is one.
    pub fn settle(&self, map: &MemoryMap) {
        // SAFETY: reads a counter.
        let now = unsafe { _rdtsc() };
        if now < self.due.load(Ordering::Relaxed) {
            return;
        }
        self.due.store(now.wrapping_add(PAUSE), Ordering::Relaxed);
        let Ok(mut progress) = self.progress.try_lock() else { return };
        if progress.look(map) {
            self.made.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were made since the last call.
    pub fn take_made(&self) -> u64 {
        self.made.swap(0, Ordering::Relaxed)
    }
}

impl Progress {
    /// Looks at the next few pieces until one can be put together. True if it was.
    fn look(&mut self, map: &MemoryMap) -> bool {
        let slots = map.slots().iter().filter(|slot| !slot.read_only);
        let spans = slots.map(|slot| {
            let first = (slot.host as usize).next_multiple_of(PIECE);
            let end = slot.host as usize + slot.size as usize;
            (first, end.saturating_sub(first) / PIECE)
        });
        let spans: Vec<(usize, usize)> = spans.collect();
        let total: usize = spans.iter().map(|&(_, count)| count).sum();
        for _ in 0..LOOKS.min(total) {
            let mut number = self.next % total;
            self.next = number + 1;
            let span = spans.iter().find(|&&(_, count)| {
                let here = number < count;
                number -= if here { 0 } else { count };
                here
            });
            let Some(&(first, _)) = span else { return false };
            let piece = first + number * PIECE;
            if !is_complete(piece) {
                self.settled.remove(&piece);
            } else if self.settled.insert(piece) {
                // SAFETY: the map keeps the memory mapped. Its contents stay what they are.
                return unsafe { libc::madvise(piece as *mut _, PIECE, libc::MADV_COLLAPSE) } == 0;
            }
        }
        false
    }
}

/// Whether all pages of a piece are there.
fn is_complete(piece: usize) -> bool {
    let mut pages = [0u8; PIECE / PAGE];
    // SAFETY: asks only, and there is room for the answer.
    let known = unsafe { libc::mincore(piece as *mut _, PIECE, pages.as_mut_ptr()) };
    known == 0 && pages.iter().all(|page| page & 1 == 1)
}

#[cfg(test)]
mod tests;
