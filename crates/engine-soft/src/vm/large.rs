//! Large pages of the host for the guest's memory.
//!
//! Guest memory is files in memory, to which kernels give pages of 4 KiB. Where a guest
//! reaches over more of it than the host's processor has translations for, most of its time
//! goes into page walks, the more so if the host is a guest itself. `MADV_COLLAPSE` (Linux
//! 6.1) puts what lies in 2 MiB into one page.
//!
//! That takes a millisecond, so it is for pieces of which many pages are in use: those that
//! the vCPU's software TLB knows a good part of. And only pieces of which every page is there
//! are put together, so that a guest does not get more memory by it, and what was given back
//! stays given back. vCPU threads do it between two instructions, a piece at a time, and a
//! small part of their time at most.

use std::arch::x86_64::_rdtsc;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::map::MemoryMap;
use crate::tlb::Bank;

const PIECE: usize = 2 << 20;
const PAGE: usize = guise_engine::memory::PAGE_SIZE;
/// Ticks of the host's TSC between two looks: some 20 ms.
const PAUSE: u64 = 50_000_000;
/// How much longer than a piece took the pause after it is.
const REST: u64 = 20;
/// Pages of a piece that the software TLB knows if it is worth it.
const ENOUGH: usize = 64;

#[derive(Default)]
pub struct LargePages {
    due: AtomicU64,
    made: AtomicU64,
    settled: Mutex<HashSet<usize>>,
}

impl LargePages {
    /// Puts a piece together, if it is time and there is one.
    pub fn settle(&self, map: &MemoryMap, bank: &Bank) {
        // SAFETY: reads a counter.
        let now = || unsafe { _rdtsc() };
        let start = now();
        if start < self.due.load(Ordering::Relaxed) {
            return;
        }
        self.due.store(start.wrapping_add(PAUSE), Ordering::Relaxed);
        let Ok(mut settled) = self.settled.try_lock() else { return };
        if look(map, bank, &mut settled) {
            self.made.fetch_add(1, Ordering::Relaxed);
            let end = now();
            let pause = end.saturating_sub(start).saturating_mul(REST).max(PAUSE);
            self.due.store(end.saturating_add(pause), Ordering::Relaxed);
        }
    }

    /// How many were made since the last call.
    pub fn take_made(&self) -> u64 {
        self.made.swap(0, Ordering::Relaxed)
    }
}

/// Puts the piece together that the bank knows most pages of; `settled` are those that have
/// been, or cannot be, while they stay complete. True if there was one.
fn look(map: &MemoryMap, bank: &Bank, settled: &mut HashSet<usize>) -> bool {
    let mut known: HashMap<usize, usize> = HashMap::new();
    for entry in bank.read.iter().filter(|entry| !entry.host.is_null()) {
        *known.entry(entry.host as usize & !(PIECE - 1)).or_default() += 1;
    }
    let mut pieces: Vec<(usize, usize)> =
        known.into_iter().filter(|&(_, pages)| pages >= ENOUGH).collect();
    pieces.sort_unstable_by_key(|&(piece, pages)| (std::cmp::Reverse(pages), piece));
    for (piece, _) in pieces {
        if !is_memory(map, piece) || !is_complete(piece) {
            settled.remove(&piece);
        } else if settled.insert(piece) {
            // SAFETY: the map keeps the memory mapped. Its contents stay what they are.
            unsafe { libc::madvise(piece as *mut _, PIECE, libc::MADV_COLLAPSE) };
            return true;
        }
    }
    false
}

/// Whether all of a piece is the guest's RAM.
fn is_memory(map: &MemoryMap, piece: usize) -> bool {
    map.slots().iter().filter(|slot| !slot.read_only).any(|slot| {
        let start = slot.host as usize;
        start <= piece && piece + PIECE <= start + slot.size as usize
    })
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
