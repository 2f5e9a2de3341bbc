//! The packed ring: one ring of descriptors that both sides write. Two flags, compared
//! with wrap counters that turn over with each round, say whose a descriptor is.

use std::sync::atomic::{Ordering, fence};

use guise_engine::GuestMemory;

use super::chain::{Chain, Descriptor, INDIRECT, NEXT, Spare, WRITE};
use super::{Position, QueueConfig, QueueError, load, passed, read, store, write};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Event suppression: always, never, or at one descriptor.
const EVENTS_ENABLE: u16 = 0;
const EVENTS_DISABLE: u16 = 1;
const EVENTS_DESCRIPTOR: u16 = 2;

pub struct Packed {
    config: QueueConfig,
    position: Position,
    /// How many places were given back since the last look at interrupts.
    unsignalled: u16,
}

impl Packed {
    pub fn new(config: QueueConfig, position: Position) -> Self {
        Self { config, position, unsignalled: 0 }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    fn place(&self, index: u16) -> u64 {
        self.config.descriptors + 16 * u64::from(index)
    }

    /// Whether the driver has made the next place available.
    pub fn available(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let at = self.place(self.position.next_available) + 14;
        let flags = load(memory, at, Ordering::Acquire)?;
        let wrap = self.position.available_wrap;
        Ok((flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap)
    }

    pub fn pop(
        &mut self,
        memory: &GuestMemory,
        spare: &mut Spare,
    ) -> Result<Option<Chain>, QueueError> {
        if !self.available(memory)? {
            return Ok(None);
        }
        let size = self.config.size;
        let mut chain = spare.chain(0);
        let mut index = self.position.next_available;
        let mut wrap = self.position.available_wrap;
        for places in 1..=size {
            let descriptor = Descriptor::packed(read(memory, self.place(index))?);
            if descriptor.flags & INDIRECT != 0 {
                chain.add_indirect(memory, descriptor, true, spare)?;
            } else {
                chain.add(memory, descriptor)?;
            }
            index += 1;
            if index == size {
                index = 0;
                wrap = !wrap;
            }
            if descriptor.flags & NEXT == 0 {
                // The id is that of the last descriptor.
                chain.id = descriptor.link;
                chain.places = places;
                self.position.next_available = index;
                self.position.available_wrap = wrap;
                return Ok(Some(chain));
            }
        }
        Err(QueueError::ChainLength)
    }

    pub fn push_all(
        &mut self,
        memory: &GuestMemory,
        chains: &[(Chain, u32)],
    ) -> Result<(), QueueError> {
        let mut first = None;
        for (chain, written) in chains {
            let place = self.place(self.position.next_used);
            let mut entry = [0; 6];
            entry[..4].copy_from_slice(&written.to_le_bytes());
            entry[4..].copy_from_slice(&chain.id.to_le_bytes());
            write(memory, place + 8, &entry)?;
            let mut flags = if self.position.used_wrap { AVAILABLE | USED } else { 0 };
            if *written > 0 {
                flags |= WRITE;
            }
            // The driver looks at the first before the others.
            match first {
                None => first = Some((place + 14, flags)),
                Some(_) => store(memory, place + 14, flags, Ordering::Release)?,
            }
            let next = u32::from(self.position.next_used) + u32::from(chain.places);
            self.position.used_wrap ^= next >= u32::from(self.config.size);
            self.position.next_used = (next % u32::from(self.config.size)) as u16;
            self.unsignalled = self.unsignalled.saturating_add(chain.places);
        }
        // The rest is visible before the flags that hand it over.
        match first {
            Some((at, flags)) => store(memory, at, flags, Ordering::Release),
            None => Ok(()),
        }
    }

    pub fn put_back(&mut self, chain: &Chain) {
        let size = u32::from(self.config.size);
        let (now, places) = (u32::from(self.position.next_available), u32::from(chain.places));
        self.position.available_wrap ^= places > now;
        self.position.next_available = ((now + size - places) % size) as u16;
    }

    pub fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let count = std::mem::take(&mut self.unsignalled);
        if count == 0 {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        let flags = load(memory, self.config.driver + 2, Ordering::Acquire)?;
        match flags & 3 {
            EVENTS_DISABLE => Ok(false),
            EVENTS_DESCRIPTOR if self.config.event_index => {
                let wish = load(memory, self.config.driver, Ordering::Relaxed)?;
                let (mut event, wrap) = (wish & 0x7fff, wish >> 15 != 0);
                // An index of the other round lies a whole ring behind.
                if wrap != self.position.used_wrap {
                    event = event.wrapping_sub(self.config.size);
                }
                let new = self.position.next_used;
                Ok(passed(event, new, new.wrapping_sub(count)))
            }
            _ => Ok(true),
        }
    }

    pub fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let flags = if self.config.event_index {
            let wrap = u16::from(self.position.available_wrap) << 15;
            let wish = self.position.next_available | wrap;
            store(memory, self.config.device, wish, Ordering::Relaxed)?;
            EVENTS_DESCRIPTOR
        } else {
            EVENTS_ENABLE
        };
        store(memory, self.config.device + 2, flags, Ordering::Release)?;
        fence(Ordering::SeqCst);
        self.available(memory)
    }

    pub fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        store(memory, self.config.device + 2, EVENTS_DISABLE, Ordering::Relaxed)
    }
}
