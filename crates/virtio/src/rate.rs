//! Limits on how much a guest may do in a second, with room for bursts.
//!
//! A bucket holds tokens for `burst` seconds; each operation takes one and each byte takes
//! one from its own bucket. Several queues of a device share one limiter.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a device may do in a second; nothing is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub operations: Option<u64>,
    pub bytes: Option<u64>,
    /// How long a guest that was idle may go at any speed, counted in what it may do
    /// then. At least a tenth of a second's worth always fits.
    pub burst: Duration,
}

/// Whether something may happen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    No,
    For(Duration),
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    most: f64,
    tokens: f64,
}

impl Bucket {
    fn new(per_second: u64, burst: Duration) -> Self {
        let per_second = per_second.max(1) as f64;
        let most = (per_second * burst.as_secs_f64().max(0.1)).max(1.0);
        Self { per_second, most, tokens: most }
    }

    fn fill(&mut self, passed: Duration) {
        self.tokens = (self.tokens + self.per_second * passed.as_secs_f64()).min(self.most);
    }

    /// How long until something of any size may begin: a bucket may go below zero, so
    /// that what is larger than the bucket can happen at all.
    fn wait(&self) -> Duration {
        if self.tokens > 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(((1.0 - self.tokens) / self.per_second).min(3600.0))
    }
}

#[derive(Debug)]
struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    filled: Instant,
}

/// A device's limiter; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Limiter(Option<Arc<Mutex<Buckets>>>);

impl Limiter {
    pub fn new(rate: Rate) -> Self {
        if rate.operations.is_none() && rate.bytes.is_none() {
            return Self(None);
        }
        let bucket = |limit: Option<u64>| limit.map(|limit| Bucket::new(limit, rate.burst));
        Self(Some(Arc::new(Mutex::new(Buckets {
            operations: bucket(rate.operations),
            bytes: bucket(rate.bytes),
            filled: Instant::now(),
        }))))
    }

    /// Whether there is no limit.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Asks for one operation with so many bytes; if it need not wait it has happened.
    pub fn admit(&self, bytes: u64) -> Wait {
        self.admit_at(bytes, Instant::now)
    }

    fn admit_at(&self, bytes: u64, now: impl FnOnce() -> Instant) -> Wait {
        let Some(buckets) = &self.0 else { return Wait::No };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { operations, bytes: volume, filled } = &mut *buckets;
        let now = now();
        let passed = now.saturating_duration_since(*filled);
        *filled = now;
        let mut wait = Duration::ZERO;
        for bucket in [&mut *operations, &mut *volume].into_iter().flatten() {
            bucket.fill(passed);
            wait = wait.max(bucket.wait());
        }
        if wait > Duration::ZERO {
            return Wait::For(wait);
        }
        if let Some(bucket) = operations {
            bucket.tokens -= 1.0;
        }
        if let Some(bucket) = volume {
            bucket.tokens -= bytes as f64;
        }
        Wait::No
    }
}

#[cfg(test)]
mod tests;
