//! When a guest has had so little to do, for so long, that code which was made for its last
//! work is better given back: a booted system that waits, for instance, uses little of what
//! it took to boot. Code that is wanted again is made again.

use std::time::{Duration, Instant};

/// How long a vCPU has to be calm.
const SPELL: Duration = Duration::from_secs(2);
/// Work that takes longer than this ends the calm.
const STIR: Duration = Duration::from_millis(20);
/// So much code may stay.
pub const KEPT: usize = 8 << 20;

#[derive(Debug)]
pub struct Calm {
    since: Instant,
    /// When the vCPU last went on.
    woke: Instant,
}

impl Calm {
    pub fn new() -> Self {
        let now = Instant::now();
        Calm { since: now, woke: now }
    }

    pub fn begin_to_wait(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.woke) > STIR {
            self.since = now;
        }
    }

    pub fn go_on(&mut self) {
        self.woke = Instant::now();
    }

    /// How much longer it has to last.
    pub fn left(&self) -> Duration {
        SPELL.saturating_sub(self.since.elapsed())
    }
}
