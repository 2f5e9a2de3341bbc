//! The loop that executes blocks.
//!
//! RIP stays at a block's first instruction while it runs. At a block's end its
//! successor is found through a link (same page, so valid as long as the block is),
//! else by linear address and context, else by where the code stands in memory.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::cache::key;
use super::decode::{self, Decoded};
use super::op::{Block, Run, Step, Trap};
use crate::cpu::{Cpu, Raised};
use crate::exception::{self, Exception};
use crate::memory::access::is_canonical;
use crate::memory::fetch::Source;
use crate::state::{CS, SS};

/// Tells blocks of one instruction from others, among the bits of a mode.
const SINGLE: u64 = 1 << 4;
/// The longest instruction.
const LONGEST: usize = 15;

impl Cpu {
    /// Where RIP points to in linear memory.
    #[inline(always)]
    pub fn linear_rip(&self) -> u64 {
        if self.mode.is_64() {
            self.state.rip
        } else {
            self.state.seg[CS].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Executes until something wants attention, or an exception was raised: RIP is
    /// then at the instruction that raised it.
    pub fn execute(&mut self) -> Run {
        let mut block = self.find_block()?;
        // Where the current block was reached from, to break a link to a stale one.
        let mut link: Option<(*const Block, usize)> = None;
        loop {
            let step = self.run_block(block)?;
            match step {
                Step::Fall | Step::Taken => {
                    if self.state.attention.load(Ordering::Relaxed) != 0 {
                        return Ok(());
                    }
                    let number = (step == Step::Taken) as usize;
                    // SAFETY: blocks live until the cache is emptied, in `find_block`;
                    // `block` is not used after that.
                    let next = unsafe { (*block).links[number].get() };
                    if !next.is_null() {
                        link = Some((block, number));
                        block = next;
                        continue;
                    }
                    let full = self.cache.is_full();
                    let from = block;
                    block = self.find_block()?;
                    if !full {
                        self.link(from, number, block);
                    }
                    link = None;
                }
                Step::Jump | Step::Next => {
                    if self.state.attention.load(Ordering::Relaxed) != 0 {
                        return Ok(());
                    }
                    block = self.find_block()?;
                    link = None;
                }
                Step::Again => return Ok(()),
                Step::Stale => {
                    if let Some((from, number)) = link.take() {
                        // SAFETY: as above: nothing was freed since it ran.
                        unsafe { (*from).links[number].set(std::ptr::null()) };
                    }
                    if self.state.attention.load(Ordering::Relaxed) != 0 {
                        return Ok(());
                    }
                    // Not by the short way, which may still lead to the stale block.
                    block = self.look_for_block(self.linear_rip())?;
                }
            }
        }
    }

    /// Executes one instruction, whatever wants attention. The result says if it was
    /// completed (a repeated string instruction may not be).
    pub fn execute_one(&mut self) -> Run<bool> {
        let block = self.decode_single()?;
        let step = self.run_block(block)?;
        Ok(step != Step::Again)
    }

    /// Executes the instruction at RIP, which stays decoded. For the translator, which
    /// has the same few done again and again. The result is that of
    /// [`Cpu::execute_one`].
    pub fn step_cached(&mut self) -> Run<bool> {
        let linear = self.linear_rip();
        if self.cache.is_full() {
            self.forget_all_code();
        }
        let left = (0x1000 - (linear & 0xfff) as usize).min(LONGEST);
        if self.mode.is_64()
            && is_canonical(linear)
            && let Source::Memory(host) = self.fetch_source(linear)?
        {
            let key = key(host, self.mode.key() | SINGLE);
            if let Some(block) = self.cache.get(key) {
                let block = std::ptr::from_ref(block);
                return self.run_block(block).map(|step| step != Step::Again);
            }
            self.watch_code(host, left);
            let mut bytes = [0u8; LONGEST];
            // SAFETY: within a page of guest memory.
            unsafe { copy_code(host, &mut bytes[..left]) };
            if let Decoded::Ops { ops, length } = decode::single(&bytes[..left], self.decoding()) {
                let block = self.cache.insert(key, new_block(host, length, None, ops));
                return self.run_block(block).map(|step| step != Step::Again);
            }
        }
        self.execute_one()
    }

    #[inline(always)]
    fn run_block(&mut self, block: *const Block) -> Run<Step> {
        // SAFETY: the block lives (see `execute`), and its last operation does not
        // answer `Next`, so the pointer stays inside.
        unsafe {
            let mut op = (*block).ops.as_ptr();
            loop {
                match ((*op).run.get())(self, &*op) {
                    Ok(Step::Next) => op = op.add(1),
                    Ok(Step::Again) => {
                        self.state.rip = self.state.rip.wrapping_add((*op).start as u64);
                        return Ok(Step::Again);
                    }
                    Ok(step) => return Ok(step),
                    Err(Trap) => {
                        self.abandon((*op).start as u64, (*op).address.segment as usize);
                        return Err(Trap);
                    }
                }
            }
        }
    }

    /// RIP goes to the instruction that raised something.
    #[cold]
    fn abandon(&mut self, start: u64, segment: usize) {
        self.state.rip = self.state.rip.wrapping_add(start) & self.mode.ip_mask;
        if self.raised == Raised::NonCanonical {
            let vector = match segment {
                SS => exception::STACK_FAULT,
                _ => exception::GENERAL_PROTECTION,
            };
            self.raised = Raised::Exception(Exception::with_code(vector, 0));
        }
    }

    /// Remembers a successor if it stays one as long as both blocks are valid: it
    /// stands in the same page, at the distance that RIP says.
    fn link(&mut self, from: *const Block, number: usize, to: *const Block) {
        // SAFETY: both live: nothing was freed since `from` ran.
        let (from, to) = unsafe { (&*from, &*to) };
        let same_page = from.host as usize >> 12 == to.host as usize >> 12;
        if same_page
            && !from.host.is_null()
            && from.second_page.is_none()
            && to.second_page.is_none()
        {
            from.links[number].set(to);
        }
    }

    #[inline(always)]
    fn find_block(&mut self) -> Run<*const Block> {
        let linear = self.linear_rip();
        if self.mode.flat
            && let Some(block) = self.cache.jump(linear, self.context)
        {
            return Ok(block);
        }
        self.look_for_block(linear)
    }

    #[inline(never)]
    fn look_for_block(&mut self, linear: u64) -> Run<*const Block> {
        self.counters.lookups += 1;
        if self.cache.is_full() {
            self.forget_all_code();
        }
        if self.mode.long && !is_canonical(linear) {
            return self.general_protection(0);
        }
        let Source::Memory(host) = self.fetch_source(linear)? else {
            return self.decode_single();
        };
        let key = key(host, self.mode.key());
        let mut found = None;
        if let Some(block) = self.cache.get(key) {
            let pointer = std::ptr::from_ref(block);
            let length = block.length as u64;
            match block.second_page {
                None => found = Some((pointer, length)),
                Some(second) => {
                    let next = (linear & !0xfff).wrapping_add(0x1000);
                    if self.fetch_source(next)? == Source::Memory(second.cast_mut()) {
                        found = Some((pointer, length));
                    }
                }
            }
        }
        let (block, length) = match found {
            Some(found) => found,
            None => match self.decode_block(linear, host, key)? {
                Some(found) => found,
                None => return self.decode_single(),
            },
        };
        if !self.mode.flat {
            // The code segment's limit may end within the block.
            let last = self.state.rip.wrapping_add(length).wrapping_sub(1);
            if last > self.state.seg[CS].limit as u64 {
                return self.decode_single();
            }
        }
        self.cache.remember(linear, self.context, block);
        Ok(block)
    }

    /// Decodes a block and keeps it; none where it cannot be kept.
    fn decode_block(
        &mut self,
        linear: u64,
        host: *mut u8,
        key: u64,
    ) -> Run<Option<(*const Block, u64)>> {
        let left = 0x1000 - (linear & 0xfff) as usize;
        self.watch_code(host, left);
        let mut bytes = [0u8; 0x1000];
        // SAFETY: the rest of a page of guest memory.
        unsafe { copy_code(host, &mut bytes[..left]) };
        if let Decoded::Ops { ops, length } = decode::block(&bytes[..left], self.decoding()) {
            self.counters.blocks_decoded += 1;
            self.counters.instructions_decoded += ops.len() as u64;
            let block = new_block(host, length, None, ops);
            return Ok(Some((self.cache.insert(key, block), length as u64)));
        }
        // The first instruction reaches into the next page.
        let next = (linear & !0xfff).wrapping_add(0x1000);
        let next = if self.mode.is_64() { next } else { next & 0xffff_ffff };
        let Source::Memory(second) = self.fetch_source(next)? else { return Ok(None) };
        self.watch_code(second, LONGEST);
        let total = left + LONGEST;
        // SAFETY: the beginning of a page of guest memory.
        unsafe { copy_code(second, &mut bytes[left..total]) };
        let Decoded::Ops { ops, length } = decode::single(&bytes[..total], self.decoding()) else {
            return Ok(None);
        };
        self.counters.blocks_decoded += 1;
        self.counters.instructions_decoded += 1;
        let block = new_block(host, length, Some(second), ops);
        Ok(Some((self.cache.insert(key, block), length as u64)))
    }

    /// Decodes the instruction at RIP into a block that is not kept.
    fn decode_single(&mut self) -> Run<*const Block> {
        let mut bytes = [0u8; LONGEST];
        let mut have = 0;
        let limit = self.state.seg[CS].limit as u64;
        while have < LONGEST {
            let offset = self.state.rip.wrapping_add(have as u64);
            if !self.mode.is_64() && offset > limit {
                break;
            }
            let linear = if self.mode.is_64() {
                offset
            } else {
                self.state.seg[CS].base.wrapping_add(offset) & 0xffff_ffff
            };
            if self.mode.long && !is_canonical(linear) {
                break;
            }
            let to_page_end = 0x1000 - (linear & 0xfff) as usize;
            let to_limit = if self.mode.is_64() { LONGEST as u64 } else { limit - offset + 1 };
            let count = (LONGEST - have).min(to_page_end).min(to_limit as usize);
            // A fault of the second page counts only if the instruction reaches it.
            let source = match self.fetch_source(linear) {
                Ok(source) => source,
                Err(trap) => {
                    if have > 0
                        && let Decoded::Ops { ops, length } =
                            decode::single(&bytes[..have], self.decoding())
                    {
                        return Ok(self.keep_single(ops, length));
                    }
                    return Err(trap);
                }
            };
            match source {
                // SAFETY: within a page of guest memory.
                Source::Memory(host) => unsafe {
                    copy_code(host, &mut bytes[have..have + count]);
                },
                Source::Device(address) => {
                    self.platform().memory_read(address, &mut bytes[have..have + count]);
                }
            }
            have += count;
        }
        match decode::single(&bytes[..have], self.decoding()) {
            Decoded::Ops { ops, length } => Ok(self.keep_single(ops, length)),
            // Cut off by the segment's limit or the end of the canonical addresses.
            Decoded::TooShort => self.general_protection(0),
        }
    }

    fn decoding(&self) -> decode::Context<'_> {
        decode::Context { mode: &self.mode, features: self.stubs.features() }
    }

    fn keep_single(&mut self, ops: Vec<super::op::Op>, length: u32) -> *const Block {
        let block = new_block(std::ptr::null(), length, None, ops);
        &raw const **self.cache.single.insert(block)
    }
}

fn new_block(
    host: *const u8,
    length: u32,
    second_page: Option<*mut u8>,
    ops: Vec<super::op::Op>,
) -> Box<Block> {
    Box::new(Block {
        host,
        length,
        second_page: second_page.map(<*mut u8>::cast_const),
        ops: ops.into_boxed_slice(),
        links: [const { Cell::new(std::ptr::null()) }; 2],
    })
}

/// Copies code out of guest memory, which others may be writing.
///
/// # Safety
///
/// As many bytes as `to` has can be read at `from`.
unsafe fn copy_code(from: *const u8, to: &mut [u8]) {
    // SAFETY: the caller vouches for the bytes; the host's instruction copes with
    // concurrent writes.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") to.len() => _,
            inout("rsi") from => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags)
        );
    }
}
