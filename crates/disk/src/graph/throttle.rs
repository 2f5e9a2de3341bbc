//! A disk that is no faster than it may be.
//!
//! Requests are paced on a line of time: each takes its share of a second, and
//! starts when those before it have had theirs. What was not used of the last
//! tenth of a second may be caught up with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Node, Status};
use crate::error::Result;
use crate::storage::SharedStorage;

/// How much of unused time counts.
const BURST: Duration = Duration::from_millis(100);

/// What a disk may do in a second; 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub requests: u64,
    pub bytes: u64,
}

impl Limits {
    /// Whether there is anything to limit.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// The time that a request takes at this pace.
    fn time_of(self, bytes: u64) -> Duration {
        let share = |part: u64, rate: u64| match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(part as f64 / rate as f64),
        };
        share(1, self.requests).max(share(bytes, self.bytes))
    }
}

/// The line of time.
struct Pace {
    limits: Limits,
    /// When the next request may start, from the disk's opening on.
    free: Duration,
}

impl Pace {
    /// Enters a request at `now`; says how long it has to wait.
    fn enter(&mut self, now: Duration, bytes: u64) -> Duration {
        let start = self.free.max(now.saturating_sub(BURST));
        self.free = start.saturating_add(self.limits.time_of(bytes));
        start.saturating_sub(now)
    }
}

/// A disk with limits over another.
pub struct Throttle {
    node: Arc<dyn Node>,
    opened: Instant,
    pace: Mutex<Pace>,
}

impl Throttle {
    /// Puts limits on a disk.
    pub fn new(node: Arc<dyn Node>, limits: Limits) -> Self {
        let pace = Mutex::new(Pace { limits, free: Duration::ZERO });
        Self { node, opened: Instant::now(), pace }
    }

    fn wait(&self, bytes: u64) {
        let wait = self.pace.lock().enter(self.opened.elapsed(), bytes);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

impl Node for Throttle {
    fn size(&self) -> u64 {
        self.node.size()
    }

    fn writable(&self) -> bool {
        self.node.writable()
    }

    fn status(&self, offset: u64, len: u64) -> Result<Status> {
        self.node.status(offset, len)
    }

    fn storage(&self, offset: u64, status: &Status) -> Option<SharedStorage> {
        self.node.storage(offset, status)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.wait(buf.len() as u64);
        self.node.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.wait(data.len() as u64);
        self.node.write(offset, data)
    }

    // Zeroes and discards move no data: they count as requests.

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.wait(0);
        self.node.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.wait(0);
        self.node.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.node.flush()
    }

    fn pass(&self, write: bool, len: u64) -> bool {
        let passes = self.node.pass(write, len);
        if passes {
            self.wait(len);
        }
        passes
    }
}

#[cfg(test)]
mod tests;
