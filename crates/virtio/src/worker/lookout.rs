//! Looking for the driver's next request for a moment, instead of sleeping at once.
//!
//! A driver that does nothing but ask puts its next request in the ring within a
//! microsecond of an answer. To sleep, to be notified and to wake up takes ten or more,
//! and costs the guest an exit. So a thread that has given requests back looks for a
//! moment, until it has as many in hand as before or no more come, and so does one with
//! nothing in hand whose sleep was cut short by the driver. What it has taken meanwhile
//! then goes to the host's kernel together. Moments in vain are paid for: after each one
//! twice as many short sleeps have to be seen before the next, so that a driver that takes
//! its time, or one that cannot run while this thread looks, costs next to nothing.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// How long it looks.
const MOMENT: Duration = Duration::from_micros(10);
/// A sleep that would better have been a moment. Most of it is falling asleep and waking up.
const SHORT: Duration = Duration::from_micros(50);
/// The most short sleeps that moments in vain make it wait for.
const MOST_OWED: u32 = 1 << 12;

#[derive(Debug, Default)]
pub struct Lookout {
    /// Short sleeps to be seen before it looks again.
    owed: u32,
    /// What the next moment in vain costs.
    price: u32,
    /// Whether the driver cut the last sleep short.
    short: bool,
    /// How many requests were in hand during the last sleep.
    in_hand: usize,
}

impl Lookout {
    /// Looks for a moment, if it is worth it. Says whether something is there.
    pub fn sees<E>(
        &mut self,
        in_hand: usize,
        is_there: impl Fn() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let expected = in_hand < self.in_hand || self.short && in_hand == 0;
        if !expected || self.owed > 0 {
            return is_there();
        }
        let begun = Instant::now();
        loop {
            if is_there()? {
                self.price = 0;
                return Ok(true);
            }
            if begun.elapsed() > MOMENT {
                self.price = (2 * self.price).clamp(1, MOST_OWED);
                self.owed = self.price;
                return Ok(false);
            }
            spin_loop();
        }
    }

    /// The thread has slept so long with so many requests in hand, until the driver woke
    /// it, or something else did.
    pub fn slept(&mut self, in_hand: usize, time: Duration, by_driver: bool) {
        self.in_hand = in_hand;
        self.short = by_driver && time < SHORT;
        if self.short {
            self.owed = self.owed.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
