//! Messages that the kernel does not take at once: they wait, up to a limit, so one slow
//! receiver costs a bounded piece of memory.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::frame::Reason;

/// Bytes that may wait to be sent.
pub const MOST_WAITING: usize = 4 << 20;

#[derive(Default)]
pub struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Outbox {
    /// How much waits.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends a message, or keeps it until the descriptor takes more.
    pub fn send(&mut self, to: impl AsFd, head: &[u8], frame: &[u8]) -> Result<(), Reason> {
        if self.waiting.is_empty() {
            match write(to, head, frame) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN | Errno::NOBUFS) => {}
                Err(_) => return Err(Reason::Unreachable),
            }
        }
        let length = head.len() + frame.len();
        if self.bytes + length > MOST_WAITING {
            return Err(Reason::NoRoom);
        }
        self.bytes += length;
        self.waiting.push_back([head, frame].concat());
        Ok(())
    }

    /// Sends what waits, as far as the descriptor takes it.
    pub fn drain(&mut self, to: impl AsFd) -> rustix::io::Result<()> {
        while let Some(message) = self.waiting.front() {
            match write(&to, message, &[]) {
                Ok(()) => {
                    self.bytes -= message.len();
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Writes a message in one piece.
pub fn write(to: impl AsFd, head: &[u8], frame: &[u8]) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| {
        rustix::io::writev(&to, &[IoSlice::new(head), IoSlice::new(frame)])
    })
    .map(drop)
}
