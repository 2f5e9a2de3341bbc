//! Virtqueues: two ring formats behind one interface.
//!
//! A device takes chains of buffers with [`Queue::pop`], gives them back with
//! [`Queue::push`], and asks [`Queue::needs_interrupt`] once for a batch. Before it
//! goes to sleep it calls [`Queue::enable_notification`], and looks again if that says
//! that more has come.

pub mod chain;
pub(crate) mod host;
mod packed;
mod split;

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use serde::{Deserialize, Serialize};

pub use chain::{Chain, Reader, Writer};

/// The largest queue.
pub const MAX_SIZE: u16 = 1024;
/// The most buffers of one chain, indirect ones included.
pub const MAX_SEGMENTS: usize = 1024;

/// What a driver did wrong. The device needs a reset after it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QueueError {
    #[error("a queue of {0} entries cannot be")]
    Size(u16),
    #[error("the ring at {address:#x} ({length:#x} bytes) is not in guest memory or not aligned")]
    Ring { address: u64, length: u64 },
    #[error("guest memory at {0:#x} cannot be accessed")]
    Memory(u64),
    #[error("the driver made {0} chains available at once, more than the queue holds")]
    TooManyAvailable(u16),
    #[error("descriptor {0} is outside of its table")]
    DescriptorIndex(u16),
    #[error("a buffer at {address:#x} ({length:#x} bytes) is not in guest memory")]
    Buffer { address: u64, length: u32 },
    #[error("a chain has a loop or more than {MAX_SEGMENTS} buffers")]
    ChainLength,
    #[error("an indirect table {0}")]
    Indirect(&'static str),
    #[error("a readable buffer follows a writable one")]
    Order,
    #[error("the request makes no sense: {0}")]
    Request(&'static str),
}

/// Where the driver put a queue, and what was negotiated for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueConfig {
    pub size: u16,
    /// Descriptor table, or packed ring.
    pub descriptors: u64,
    /// Available ring, or the driver's event suppression.
    pub driver: u64,
    /// Used ring, or the device's event suppression.
    pub device: u64,
    pub packed: bool,
    pub event_index: bool,
}

/// How far a device has come in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub next_available: u16,
    pub next_used: u16,
    /// Packed rings only: the wrap counters.
    pub available_wrap: bool,
    pub used_wrap: bool,
}

impl Default for Position {
    fn default() -> Self {
        Self { next_available: 0, next_used: 0, available_wrap: true, used_wrap: true }
    }
}

enum Ring {
    Split(split::Split),
    Packed(packed::Packed),
}

/// A virtqueue, from the device's side.
pub struct Queue {
    memory: GuestMemory,
    config: QueueConfig,
    ring: Ring,
    spare: chain::Spare,
    /// Chains that have been taken and not been given back.
    in_hand: usize,
}

impl Queue {
    /// Checks that the rings are where they can be.
    pub fn new(
        memory: GuestMemory,
        config: QueueConfig,
        position: Position,
    ) -> Result<Self, QueueError> {
        let size = config.size;
        if size == 0 || size > MAX_SIZE || (!config.packed && !size.is_power_of_two()) {
            return Err(QueueError::Size(size));
        }
        let entries = u64::from(size);
        let areas = if config.packed {
            [(config.descriptors, 16 * entries, 16), (config.driver, 4, 4), (config.device, 4, 4)]
        } else {
            [
                (config.descriptors, 16 * entries, 16),
                (config.driver, 6 + 2 * entries, 2),
                (config.device, 6 + 8 * entries, 4),
            ]
        };
        for (address, length, alignment) in areas {
            let inside = memory.check_range(GuestAddress(address), length as usize);
            if address % alignment != 0 || !inside {
                return Err(QueueError::Ring { address, length });
            }
        }
        let ring = if config.packed {
            if position.next_available >= size || position.next_used >= size {
                return Err(QueueError::DescriptorIndex(position.next_available));
            }
            Ring::Packed(packed::Packed::new(config, position))
        } else {
            Ring::Split(split::Split::new(config, position))
        };
        Ok(Self { memory, config, ring, spare: chain::Spare::default(), in_hand: 0 })
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// To be saved, and given to [`Queue::new`] again.
    pub fn position(&self) -> Position {
        match &self.ring {
            Ring::Split(ring) => ring.position(),
            Ring::Packed(ring) => ring.position(),
        }
    }

    /// Takes the next chain that the driver made available. One that is broken stays.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let chain = match &mut self.ring {
            Ring::Split(ring) => ring.pop(&self.memory, &mut self.spare),
            Ring::Packed(ring) => ring.pop(&self.memory, &mut self.spare),
        }?;
        self.in_hand += usize::from(chain.is_some());
        Ok(chain)
    }

    /// How many chains have been taken and not been given back.
    pub fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// Gives a chain back; `written` bytes of its writable part are new.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), QueueError> {
        let chains = [(chain, written)];
        let result = self.give_back(&chains);
        let [(chain, _)] = chains;
        self.spare.keep(chain, self.config.size);
        result
    }

    /// Gives several chains back, of which the driver sees either none or all.
    pub fn push_all(&mut self, chains: &mut Vec<(Chain, u32)>) -> Result<(), QueueError> {
        if chains.is_empty() {
            return Ok(());
        }
        let result = self.give_back(chains);
        for (chain, _) in chains.drain(..) {
            self.spare.keep(chain, self.config.size);
        }
        result
    }

    fn give_back(&mut self, chains: &[(Chain, u32)]) -> Result<(), QueueError> {
        self.in_hand = self.in_hand.saturating_sub(chains.len());
        match &mut self.ring {
            Ring::Split(ring) => ring.push_all(&self.memory, chains),
            Ring::Packed(ring) => ring.push_all(&self.memory, chains),
        }
    }

    /// Undoes the last `pop`, whose chain this must be. Several are put back in the
    /// reverse order.
    pub fn put_back(&mut self, chain: &Chain) {
        self.in_hand = self.in_hand.saturating_sub(1);
        match &mut self.ring {
            Ring::Split(ring) => ring.put_back(),
            Ring::Packed(ring) => ring.put_back(chain),
        }
    }

    /// Whether the driver wants to be interrupted for what was given back since the
    /// last call.
    pub fn needs_interrupt(&mut self) -> Result<bool, QueueError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.needs_interrupt(&self.memory),
            Ring::Packed(ring) => ring.needs_interrupt(&self.memory),
        }
    }

    /// Whether there are chains to take.
    pub fn is_waiting(&self) -> Result<bool, QueueError> {
        match &self.ring {
            Ring::Split(ring) => Ok(ring.available(&self.memory)? != 0),
            Ring::Packed(ring) => ring.available(&self.memory),
        }
    }

    /// Asks the driver to notify of new chains. Says whether some have come already.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.enable_notification(&self.memory),
            Ring::Packed(ring) => ring.enable_notification(&self.memory),
        }
    }

    /// Tells the driver that notifications are of no use now.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.disable_notification(&self.memory),
            Ring::Packed(ring) => ring.disable_notification(&self.memory),
        }
    }
}

/// Whether an index lies among those passed on the way from `old` to `new`.
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn read<const N: usize>(memory: &GuestMemory, address: u64) -> Result<[u8; N], QueueError> {
    let mut bytes = [0; N];
    let result = memory.read_slice(&mut bytes, GuestAddress(address));
    result.map(|()| bytes).map_err(|_| QueueError::Memory(address))
}

fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), QueueError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| QueueError::Memory(address))
}

/// An atomic, and therefore ordered, load.
fn load(
    memory: &GuestMemory,
    address: u64,
    order: std::sync::atomic::Ordering,
) -> Result<u16, QueueError> {
    memory.load(GuestAddress(address), order).map_err(|_| QueueError::Memory(address))
}

fn store(
    memory: &GuestMemory,
    address: u64,
    value: u16,
    order: std::sync::atomic::Ordering,
) -> Result<(), QueueError> {
    memory.store(value, GuestAddress(address), order).map_err(|_| QueueError::Memory(address))
}

#[cfg(test)]
pub(crate) mod driver;
#[cfg(test)]
mod tests;
