//! The short way of a read: the thread that notifies does it, while the queue's own sleeps.
//!
//! A guest that reads one thing after the other pays for four turns with each request: the
//! queue's thread is woken and falls asleep, and so does the guest's processor, and inside of
//! the guest the program that waits. Where the host has in memory what is asked for, all that is
//! longer than the reading, so the vCPU's thread does it in the middle of the notification. The
//! guest finds the answer when it comes to wait for it.
//!
//! Only what takes no waiting goes this way, and only from a queue that has nothing else to do:
//! everything else is put back for the queue's thread, and so is what is wrong.

use std::sync::{Arc, TryLockError};

use guise_disk::device::{self as disk, BlockDevice};

use super::request::{Bounds, Request, conclude, room_of};
use crate::queue::host::{mark, stretches};
use crate::queue::{Chain, Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::Shared;

/// Larger reads take longer than waking a thread, and hold up the vCPU for as long.
const MOST: u64 = 64 << 10;

/// The short way into one queue.
pub struct Shortcut {
    queue: Shared,
    index: u16,
    device: BlockDevice,
    interrupt: Arc<Interrupt>,
}

impl Shortcut {
    pub fn new(queue: Shared, index: u16, device: BlockDevice, interrupt: Arc<Interrupt>) -> Self {
        Self { queue, index, device, interrupt }
    }

    /// Does what the driver notifies of, if it can. `false`: the queue's thread is to look.
    pub fn serves(&self) -> bool {
        let mut held = match self.queue.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            // The thread is at work.
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(queue) = held.as_mut().filter(|queue| queue.in_hand() == 0) else { return false };
        self.serve(queue).unwrap_or(false)
    }

    fn serve(&self, queue: &mut Queue) -> Result<bool, QueueError> {
        let Some(chain) = queue.pop()? else { return Ok(true) };
        let length = match self.read(queue, &chain) {
            Ok(Some(length)) => length,
            other => {
                queue.put_back(&chain);
                return other.map(|_| false);
            }
        };
        queue.push(chain, length)?;
        if queue.needs_interrupt()? {
            self.interrupt.signal_queue(self.index);
        }
        // Something may have come meanwhile, from another vCPU.
        Ok(!queue.enable_notification()?)
    }

    /// Reads, if that is what is asked for, alone, and takes no waiting. Says how many bytes of
    /// the chain are new.
    fn read(&self, queue: &Queue, chain: &Chain) -> Result<Option<u32>, QueueError> {
        if queue.is_waiting()? {
            return Ok(None);
        }
        let memory = queue.memory();
        let bounds = Bounds { size: self.device.size(), read_only: true };
        let Ok(Request::Read { offset, length }) = Request::parse(chain, memory, bounds)? else {
            return Ok(None);
        };
        if length > MOST {
            return Ok(None);
        }
        let mut list = Vec::new();
        stretches(memory, room_of(chain, memory, length), &mut list)?;
        // SAFETY: the stretches lie in guest memory, which the queue holds, and the queue is
        // borrowed for longer than the buffer lives.
        let mut buffer = unsafe { disk::Buffer::borrowed(list) };
        if !self.device.read_at_hand(offset, &mut buffer).unwrap_or(false) {
            return Ok(None);
        }
        mark(memory, room_of(chain, memory, length));
        conclude(chain, memory, &[], Ok(length)).map(Some)
    }
}

#[cfg(test)]
mod tests;
