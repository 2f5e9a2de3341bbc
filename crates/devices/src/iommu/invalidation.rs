//! The queue of commands in memory.
//!
//! Since nothing is cached, a command is done when it has been understood; what is left
//! are waits, which write a word or ask for an interrupt. A command that makes no sense
//! stops the queue until the guest has looked at it.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};

use super::entry;
use super::faults::QUEUE_ERROR;
use super::registers::{Effects, IommuState, MAX_MASK, QUEUE};

const CONTEXT: u64 = 1;
const TLB: u64 = 2;
const INTERRUPTS: u64 = 4;
const WAIT: u64 = 5;

/// Of a wait.
const INTERRUPT: u64 = 1 << 4;
const WRITE: u64 = 1 << 5;

const PAGE_SELECTIVE: u64 = 3;

impl IommuState {
    /// Works through the queue up to its tail. It has 32,768 places at the most, and
    /// each is passed once.
    pub(super) fn run_queue(&mut self, memory: &GuestMemory, effects: &mut Effects) {
        let size = 4096_u64 << (self.queue_address & 7);
        let base = self.queue_address & !0xfff;
        let tail = self.queue_tail & !0xf;
        while self.status & QUEUE != 0 && self.fault_status & QUEUE_ERROR == 0 {
            self.queue_head = (self.queue_head % size) & !0xf;
            if self.queue_head == tail {
                return;
            }
            let command = entry(memory, base.wrapping_add(self.queue_head));
            let understood = tail < size
                && command.is_some_and(|command| self.execute(command, memory, effects));
            if !understood {
                return self.raise_fault(QUEUE_ERROR, effects);
            }
            self.queue_head = (self.queue_head + 16) % size;
        }
    }

    /// Says whether the command makes sense.
    fn execute(
        &mut self,
        [low, high]: [u64; 2],
        memory: &GuestMemory,
        effects: &mut Effects,
    ) -> bool {
        // The type's upper bits are elsewhere, and belong to types that there are none of.
        if low & 0xe00 != 0 {
            return false;
        }
        let granularity = low >> 4 & 3;
        match low & 0xf {
            CONTEXT => granularity != 0 && high == 0,
            TLB if granularity == PAGE_SELECTIVE => high & 0x3f <= MAX_MASK,
            TLB => granularity != 0,
            INTERRUPTS => {
                effects.remapping_changed = true;
                high == 0
            }
            WAIT => {
                if low & WRITE != 0 {
                    let data = (low >> 32) as u32;
                    // What is written to nowhere is lost.
                    _ = memory.store(
                        data,
                        GuestAddress(high & !3),
                        std::sync::atomic::Ordering::Release,
                    );
                }
                if low & INTERRUPT != 0 && !self.completed {
                    self.completed = true;
                    effects.send(self.completion_event.raise());
                }
                true
            }
            _ => false,
        }
    }
}
