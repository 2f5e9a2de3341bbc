//! What a program takes of the host's memory, and where that ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// Counts all linear memories and tables of a program together.
#[derive(Debug)]
pub struct Meter {
    limit: u64,
    used: AtomicU64,
    refused: AtomicBool,
}

impl Meter {
    pub fn new(limit: Option<u64>) -> Meter {
        let limit = limit.unwrap_or(u64::MAX);
        Meter { limit, used: AtomicU64::new(0), refused: AtomicBool::new(false) }
    }

    /// Whether the program wanted more than it may have.
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether so much more may be taken; then it is. Only the program's thread asks.
    fn take(&self, more: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed).saturating_add(more);
        if used > self.limit {
            self.refused.store(true, Ordering::Relaxed);
            return false;
        }
        self.used.store(used, Ordering::Relaxed);
        true
    }
}

/// Asks the meter on the program's behalf.
pub struct Limits(pub Arc<Meter>);

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // More than its own maximum it does not get, whatever is said here.
        let possible = maximum.is_none_or(|maximum| desired <= maximum);
        Ok(possible && self.0.take(desired.saturating_sub(current) as u64))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let possible = maximum.is_none_or(|maximum| desired <= maximum);
        let elements = desired.saturating_sub(current);
        Ok(possible && self.0.take(elements.saturating_mul(size_of::<usize>()) as u64))
    }
}
