//! A limit for operations that move much.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// Holds an operation to so many bytes per second; 0 is no limit.
pub(super) struct RateLimit {
    bytes_per_second: u64,
    start: Instant,
    spent: Cell<u64>,
}

impl RateLimit {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, start: Instant::now(), spent: Cell::new(0) }
    }

    /// Waits for as long as what was moved so far should have taken.
    pub(super) fn spent(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        self.spent.set(self.spent.get() + bytes);
        let due = self.spent.get() as f64 / self.bytes_per_second as f64;
        let ahead = due - self.start.elapsed().as_secs_f64();
        if ahead > 0.0 {
            thread::sleep(Duration::from_secs_f64(ahead));
        }
    }
}
