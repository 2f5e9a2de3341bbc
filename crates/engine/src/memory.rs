//! Guest memory, with marks on its pages.
//!
//! Memory is `vm-memory`'s, so that the rust-vmm family of crates works on it.
//! Its bitmap hook, called after every write through it, is [`WriteTracker`]: it
//! notes dirty pages while somebody asks for them, and tells the engine of writes
//! to pages from which it holds decoded or translated code. Such pages are marked;
//! an unmarked page costs one relaxed load a write.
//!
//! Who writes guest memory past this hook (a system call that reads a file into
//! it, say) calls [`vm_memory::bitmap::Bitmap::mark_dirty`] afterwards itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

pub use vm_memory;

/// All of a machine's memory.
pub type GuestMemory = GuestMemoryMmap<WriteTracker>;
/// One piece of it.
pub type GuestRegion = GuestRegionMmap<WriteTracker>;

pub const PAGE_SIZE: usize = 4096;
const PAGE_SHIFT: u32 = 12;

/// Host memory that a guest sees at an address: a whole region, or a part of one.
#[derive(Clone, Debug)]
pub struct MemorySlot {
    pub guest_address: u64,
    pub region: Arc<GuestRegion>,
    /// Where in the region the slot begins, and how long it is; both are
    /// multiples of the page size.
    pub offset: u64,
    pub size: u64,
    /// Guest writes go to [`crate::Platform::memory_write`].
    pub read_only: bool,
}

/// Told of writes to pages that are marked as holding code.
pub trait CodeWatcher: Send + Sync {
    /// Bytes `offset..offset + length` of the region were written, by something
    /// other than a vCPU of this watcher's engine.
    fn code_written(&self, offset: usize, length: usize);
}

struct Marks {
    /// For each page: not 0 when the engine holds code from it.
    code: Box<[AtomicU8]>,
    dirty: Box<[AtomicU64]>,
    log_dirty: AtomicBool,
    watcher: RwLock<Option<Box<dyn CodeWatcher>>>,
}

/// The marks of one region's pages; clones and slices share them.
#[derive(Clone)]
pub struct WriteTracker {
    marks: Arc<Marks>,
    base: usize,
}

impl WriteTracker {
    /// Says who is told of writes to code from now on. It has read nothing yet, so no
    /// page is marked.
    pub fn set_watcher(&self, watcher: Box<dyn CodeWatcher>) {
        let mut current = self.marks.watcher.write().unwrap_or_else(PoisonError::into_inner);
        for mark in &self.marks.code {
            mark.store(0, Ordering::SeqCst);
        }
        *current = Some(watcher);
    }

    /// Marks the page as holding code, or not. Whoever marks a page reads its bytes
    /// afterwards: a write that came before the mark is then seen.
    pub fn set_code(&self, page: usize, holds_code: bool) {
        self.marks.code[page].store(holds_code as u8, Ordering::SeqCst);
    }

    pub fn holds_code(&self, page: usize) -> bool {
        self.marks.code[page].load(Ordering::SeqCst) != 0
    }

    pub fn pages(&self) -> usize {
        self.marks.code.len()
    }

    /// Starts or stops the dirty log. Starting clears it.
    pub fn log_dirty(&self, enable: bool) {
        if enable {
            for word in &self.marks.dirty {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.marks.log_dirty.store(enable, Ordering::SeqCst);
    }

    pub fn logs_dirty(&self) -> bool {
        self.marks.log_dirty.load(Ordering::Relaxed)
    }

    /// Notes that a page was written, for an engine that writes past this type.
    pub fn note_dirty(&self, page: usize) {
        self.marks.dirty[page / 64].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    /// The dirty pages as a bitmap, which is cleared.
    pub fn take_dirty(&self) -> Vec<u64> {
        self.marks.dirty.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }
}

impl Bitmap for WriteTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        // A write that is visible to a vCPU must not be overtaken by the look at the
        // mark, or both sides could miss each other.
        std::sync::atomic::fence(Ordering::SeqCst);
        let start = self.base + offset;
        let last = (start + len - 1) >> PAGE_SHIFT;
        let mut code = false;
        for page in (start >> PAGE_SHIFT)..=last.min(self.marks.code.len().saturating_sub(1)) {
            code |= self.marks.code[page].load(Ordering::Relaxed) != 0;
            if self.logs_dirty() {
                self.note_dirty(page);
            }
        }
        if code {
            let watcher = self.marks.watcher.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(watcher) = &*watcher {
                watcher.code_written(start, len);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.base + offset) >> PAGE_SHIFT;
        self.marks
            .dirty
            .get(page / 64)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> WriteTracker {
        WriteTracker { marks: self.marks.clone(), base: self.base + offset }
    }
}

impl WithBitmapSlice<'_> for WriteTracker {
    type S = WriteTracker;
}

impl BitmapSlice for WriteTracker {}

impl Default for WriteTracker {
    fn default() -> Self {
        Self::with_len(0)
    }
}

impl NewBitmap for WriteTracker {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(PAGE_SIZE);
        let marks = Marks {
            code: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            dirty: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            log_dirty: AtomicBool::new(false),
            watcher: RwLock::new(None),
        };
        WriteTracker { marks: Arc::new(marks), base: 0 }
    }
}

impl fmt::Debug for WriteTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTracker").field("pages", &self.pages()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
