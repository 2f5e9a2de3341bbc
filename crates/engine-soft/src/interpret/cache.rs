//! Decoded blocks: how they are found, and forgotten when their bytes are written.
//!
//! A block is known by the place of its bytes in this process and by the mode it was
//! decoded for; a direct-mapped cache by linear address and context stands before
//! that. A forgotten block may still be linked to, looked up, or running: all of its
//! operations become one that says so, which costs those who run valid blocks nothing.
//! Its memory goes when the whole cache is emptied, between two blocks.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::op::{Block, Op, Run, Step};
use crate::cpu::Cpu;
use crate::vm::map::lines;
use crate::vm::shared::Request;

const PAGE: usize = 4096;

/// Entries for one page of linear addresses, and pages.
const SLOTS: usize = 64;
const PAGES: usize = 64;

/// The cache is emptied when it holds this many operations, living and dead.
const MOST_OPS: usize = 1 << 21;

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    context: u64,
    block: *const Block,
}

const NOWHERE: Jump = Jump { linear: 0, context: 0, block: std::ptr::null() };

/// Multiplies: keys are addresses.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte as u64);
        }
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

pub struct CodeCache {
    jumps: Box<[Jump; SLOTS * PAGES]>,
    blocks: AddressMap<Box<Block>>,
    /// The keys of blocks that have bytes in a page of host memory.
    pages: AddressMap<Vec<u64>>,
    /// Boxed, because operations that are running and links point at them.
    #[expect(clippy::vec_box, reason = "their addresses must not change")]
    dead: Vec<Box<Block>>,
    ops: usize,
    /// A block that runs once.
    pub single: Option<Box<Block>>,
}

impl Default for CodeCache {
    fn default() -> Self {
        CodeCache {
            jumps: Box::new([NOWHERE; SLOTS * PAGES]),
            blocks: AddressMap::default(),
            pages: AddressMap::default(),
            dead: Vec::new(),
            ops: 0,
            single: None,
        }
    }
}

/// What a block is known by: user addresses have 47 bits.
pub fn key(host: *const u8, mode: u64) -> u64 {
    host as u64 | mode << 56
}

#[inline(always)]
fn place(linear: u64) -> usize {
    let page = (linear >> 12 ^ linear >> 18) as usize % PAGES;
    let slot = (linear ^ linear >> 6) as usize % SLOTS;
    page * SLOTS + slot
}

impl CodeCache {
    #[inline(always)]
    pub fn jump(&self, linear: u64, context: u64) -> Option<*const Block> {
        let jump = &self.jumps[place(linear)];
        (jump.linear == linear && jump.context == context).then_some(jump.block)
    }

    pub fn remember(&mut self, linear: u64, context: u64, block: *const Block) {
        self.jumps[place(linear)] = Jump { linear, context, block };
    }

    /// A linear page, and what reaches into it from the one before, may now lead
    /// elsewhere.
    pub fn forget_page(&mut self, linear: u64) {
        for page in [linear, linear.wrapping_sub(PAGE as u64)] {
            let first = place(page & !0xfff) / SLOTS * SLOTS;
            self.jumps[first..first + SLOTS].fill(NOWHERE);
        }
    }

    pub fn get(&self, key: u64) -> Option<&Block> {
        self.blocks.get(&key).map(|block| &**block)
    }

    pub fn insert(&mut self, key: u64, block: Box<Block>) -> *const Block {
        let pointer = &raw const *block;
        self.ops += block.ops.len();
        let first = block.host as usize & !(PAGE - 1);
        self.pages.entry(first as u64).or_default().push(key);
        if let Some(second) = block.second_page {
            self.pages.entry(second as u64).or_default().push(key);
        }
        if let Some(old) = self.blocks.insert(key, block) {
            self.bury(old);
        }
        pointer
    }

    fn bury(&mut self, block: Box<Block>) {
        for op in &block.ops {
            op.run.set(stale);
        }
        self.dead.push(block);
    }

    pub fn is_full(&self) -> bool {
        self.ops > MOST_OPS
    }

    /// Forgets blocks that have bytes in `start..end`, which is in one page. The
    /// result: how many there were, and the lines of the page that still hold code.
    fn invalidate(&mut self, start: usize, end: usize) -> (u64, u64) {
        let page = start & !(PAGE - 1);
        let Some(keys) = self.pages.get_mut(&(page as u64)) else { return (0, 0) };
        let mut keys = std::mem::take(keys);
        let (mut count, mut left) = (0, 0);
        let mut others = Vec::new();
        keys.retain(|&key| {
            let Some(block) = self.blocks.get(&key) else { return false };
            let (from, to) = part_in_page(block, page);
            if from < end && start < to {
                count += 1;
                if let Some(block) = self.blocks.remove(&key) {
                    let first = block.host as usize & !(PAGE - 1);
                    let second = block.second_page.map_or(first, |page| page as usize);
                    others.push((if first == page { second } else { first }, key));
                    for op in &block.ops {
                        op.run.set(stale);
                    }
                    self.dead.push(block);
                }
                false
            } else {
                left |= lines(from, to - from);
                true
            }
        });
        for (other, key) in others {
            if other != page
                && let Some(list) = self.pages.get_mut(&(other as u64))
            {
                list.retain(|&k| k != key);
            }
        }
        if keys.is_empty() {
            self.pages.remove(&(page as u64));
        } else {
            self.pages.insert(page as u64, keys);
        }
        (count, left)
    }

    /// Forgets everything, and gives the pages that there was code from.
    fn bury_all(&mut self) -> Vec<u64> {
        self.jumps.fill(NOWHERE);
        for (_, block) in std::mem::take(&mut self.blocks) {
            self.bury(block);
        }
        self.pages.drain().map(|(page, _)| page).collect()
    }

    /// Frees what was forgotten. No block may be running.
    fn free_dead(&mut self) {
        self.dead.clear();
        self.ops = 0;
    }

    /// Forgets the stubs that operations hold, of dead blocks too: one may be running.
    pub fn forget_stubs(&mut self) {
        let blocks = self.blocks.values().chain(&self.dead).chain(&self.single);
        for extra in blocks.flat_map(|block| &block.ops).filter_map(|op| op.extra.as_ref()) {
            extra.stub.set(None);
        }
    }
}

/// Which bytes of a page a block has.
fn part_in_page(block: &Block, page: usize) -> (usize, usize) {
    let start = block.host as usize;
    let end = start + block.length as usize;
    let boundary = (start & !(PAGE - 1)) + PAGE;
    if start & !(PAGE - 1) == page {
        (start, end.min(boundary))
    } else {
        (page, page + end.saturating_sub(boundary))
    }
}

/// What the operations of a forgotten block do.
fn stale(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.state.rip = cpu.state.rip.wrapping_add(op.start as u64) & cpu.mode.ip_mask;
    Ok(Step::Stale)
}

impl Cpu {
    /// Announces that code is about to be decoded from these bytes of a page: after
    /// this, no write to them goes unseen. They are to be read afterwards.
    pub fn watch_code(&mut self, host: *const u8, length: usize) {
        let map = self.map.clone();
        let Some(region) = map.region_of(host) else { return };
        let page = region.page_of(host);
        let marks = region.marks(page);
        let wanted = lines(host as usize % PAGE, length);
        let me = self.bit();
        if marks.code.load(Ordering::SeqCst) & me == 0
            || marks.lines.load(Ordering::SeqCst) & wanted != wanted
        {
            let shared = self.shared.clone();
            let _guard = shared.code_lock.lock().unwrap_or_else(PoisonError::into_inner);
            marks.lines.fetch_or(wanted, Ordering::SeqCst);
            marks.code.fetch_or(me, Ordering::SeqCst);
            region.tracker().set_code(page, true);
        }
        let writers = marks.writers.load(Ordering::SeqCst);
        if writers == 0 {
            return;
        }
        let start = (host as usize & !(PAGE - 1)) as *mut u8;
        if writers & me != 0 {
            self.spaces.forget_writes_to(start);
        }
        if writers & !me != 0 {
            let shared = self.shared.clone();
            let request = Request::ForgetWrites { page: start };
            shared.ask_and_wait(writers & !me, request, || self.serve_requests());
        }
        marks.writers.fetch_and(!writers, Ordering::SeqCst);
    }

    /// Forgets what this vCPU decoded from these bytes.
    pub fn invalidate_code(&mut self, host: *mut u8, length: usize) {
        let (start, end) = (host as usize, host as usize + length);
        let mut from = start;
        while from < end {
            let to = end.min((from & !(PAGE - 1)) + PAGE);
            self.invalidate_in_page(from, to);
            from = to;
        }
    }

    fn invalidate_in_page(&mut self, start: usize, end: usize) {
        let (count, left) = self.cache.invalidate(start, end);
        let left = left | self.translated.written(start, end);
        if count == 0 && left != 0 {
            return;
        }
        self.counters.blocks_invalidated += count;
        let map = self.map.clone();
        let Some(region) = map.region_of(start as *const u8) else { return };
        let page = region.page_of(start as *const u8);
        let marks = region.marks(page);
        let shared = self.shared.clone();
        let _guard = shared.code_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let me = self.bit();
        if left == 0 {
            marks.code.fetch_and(!me, Ordering::SeqCst);
        }
        let holders = marks.code.load(Ordering::SeqCst);
        if holders & !me == 0 {
            marks.lines.store(left, Ordering::SeqCst);
        }
        if holders == 0 {
            region.tracker().set_code(page, false);
        }
    }

    /// Forgets all code and frees it. Between two blocks only.
    pub fn forget_all_code(&mut self) {
        self.bury_all_code();
        self.cache.free_dead();
    }

    /// Forgets all code; a block that runs ends after its current instruction.
    pub fn bury_all_code(&mut self) {
        let map = self.map.clone();
        let shared = self.shared.clone();
        let _guard = shared.code_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pages = self.cache.bury_all();
        pages.extend(self.translated.forget_all());
        for page in pages {
            let host = page as *const u8;
            let Some(region) = map.region_of(host) else { continue };
            let number = region.page_of(host);
            let marks = region.marks(number);
            if marks.code.fetch_and(!self.bit(), Ordering::SeqCst) & !self.bit() == 0 {
                marks.lines.store(0, Ordering::SeqCst);
                region.tracker().set_code(number, false);
            }
        }
    }
}
