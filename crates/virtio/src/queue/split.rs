//! The split ring: a table of descriptors, a ring of what the driver offers, a ring of
//! what the device gives back.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use guise_engine::GuestMemory;

use super::chain::{Chain, Descriptor, INDIRECT, NEXT, Spare};
use super::{Position, QueueConfig, QueueError, load, passed, read, store, write};

/// Flags in both rings: the other side need not notify.
const NO_NOTIFICATION: u16 = 1;

pub struct Split {
    config: QueueConfig,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// How far used entries have been considered for an interrupt.
    signalled: Wrapping<u16>,
}

impl Split {
    pub fn new(config: QueueConfig, position: Position) -> Self {
        Self {
            config,
            next_available: Wrapping(position.next_available),
            next_used: Wrapping(position.next_used),
            signalled: Wrapping(position.next_used),
        }
    }

    pub fn position(&self) -> Position {
        Position {
            next_available: self.next_available.0,
            next_used: self.next_used.0,
            ..Position::default()
        }
    }

    fn slot(&self, index: Wrapping<u16>) -> u64 {
        u64::from(index.0 & (self.config.size - 1))
    }

    /// How many chains wait.
    pub fn available(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        let index = load(memory, self.config.driver + 2, Ordering::Acquire)?;
        let waiting = (Wrapping(index) - self.next_available).0;
        if waiting > self.config.size {
            return Err(QueueError::TooManyAvailable(waiting));
        }
        Ok(waiting)
    }

    pub fn pop(
        &mut self,
        memory: &GuestMemory,
        spare: &mut Spare,
    ) -> Result<Option<Chain>, QueueError> {
        if self.available(memory)? == 0 {
            return Ok(None);
        }
        let entry = self.config.driver + 4 + 2 * self.slot(self.next_available);
        let head = u16::from_le_bytes(read(memory, entry)?);
        let mut chain = spare.chain(head);
        let mut index = head;
        // A chain that is longer than the table has a loop.
        for _ in 0..self.config.size {
            if index >= self.config.size {
                return Err(QueueError::DescriptorIndex(index));
            }
            let address = self.config.descriptors + 16 * u64::from(index);
            let descriptor = Descriptor::split(read(memory, address)?);
            if descriptor.flags & INDIRECT != 0 {
                chain.add_indirect(memory, descriptor, false, spare)?;
            } else {
                chain.add(memory, descriptor)?;
            }
            if descriptor.flags & NEXT == 0 {
                self.next_available += 1;
                return Ok(Some(chain));
            }
            index = descriptor.link;
        }
        Err(QueueError::ChainLength)
    }

    pub fn push_all(
        &mut self,
        memory: &GuestMemory,
        chains: &[(Chain, u32)],
    ) -> Result<(), QueueError> {
        for (chain, written) in chains {
            let mut entry = [0; 8];
            entry[..2].copy_from_slice(&chain.id.to_le_bytes());
            entry[4..].copy_from_slice(&written.to_le_bytes());
            write(memory, self.config.device + 4 + 8 * self.slot(self.next_used), &entry)?;
            self.next_used += 1;
        }
        // The entries are visible before the index that covers them.
        store(memory, self.config.device + 2, self.next_used.0, Ordering::Release)
    }

    pub fn put_back(&mut self) {
        self.next_available -= 1;
    }

    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        if old == self.next_used {
            return Ok(false);
        }
        // The index is visible before the driver's wish is read; the driver does the
        // two in the other order.
        fence(Ordering::SeqCst);
        if self.config.event_index {
            let at = self.config.driver + 4 + 2 * u64::from(self.config.size);
            let event = load(memory, at, Ordering::Relaxed)?;
            return Ok(passed(event, self.next_used.0, old.0));
        }
        let flags = load(memory, self.config.driver, Ordering::Relaxed)?;
        Ok(flags & NO_NOTIFICATION == 0)
    }

    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if self.config.event_index {
            let at = self.config.device + 4 + 8 * u64::from(self.config.size);
            store(memory, at, self.next_available.0, Ordering::Relaxed)?;
        } else {
            store(memory, self.config.device, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.available(memory)? != 0)
    }

    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        // With event indices, an index that lies behind is as good as a flag.
        if self.config.event_index {
            return Ok(());
        }
        store(memory, self.config.device, NO_NOTIFICATION, Ordering::Relaxed)
    }
}
