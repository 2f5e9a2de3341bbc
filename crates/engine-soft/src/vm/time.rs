//! The host's time: its TSC, the guest's TSC that follows from it, and the thread that
//! lets APIC timers fire.

use std::arch::x86_64::_rdtsc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Nanoseconds of the monotonic clock.
pub fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and the result is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[inline(always)]
fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has it, and Linux lets user code use it.
    unsafe { _rdtsc() }
}

/// The host's TSC and its clock at the same moment.
fn both() -> (u64, u64) {
    // The closest of a few readings: a preemption between the two would spoil one.
    (0..8)
        .map(|_| {
            let before = host_tsc();
            let time = monotonic();
            let after = host_tsc();
            (after - before, before + (after - before) / 2, time)
        })
        .min()
        .map_or((0, 0), |(_, tsc, time)| (tsc, time))
}

/// Frequency of the host's TSC in kHz, measured once for the process.
pub fn host_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (tsc, time) = both();
        std::thread::sleep(Duration::from_millis(30));
        let (tsc2, time2) = both();
        let ns = (time2 - time).max(1) as u128;
        (((tsc2 - tsc) as u128 * 1_000_000 + ns / 2) / ns) as u64
    })
}

/// The VM's TSC: the host's, scaled to the guest's frequency, from 0 at the VM's start.
pub struct Time {
    pub khz: u64,
    start: u64,
    host_khz: u64,
}

impl Time {
    pub fn new(khz: Option<u64>) -> Time {
        let host_khz = host_khz();
        Time { khz: khz.unwrap_or(host_khz), start: host_tsc(), host_khz }
    }

    #[inline]
    pub fn tsc(&self) -> u64 {
        let ticks = host_tsc().wrapping_sub(self.start);
        if self.khz == self.host_khz {
            ticks
        } else {
            (ticks as u128 * self.khz as u128 / self.host_khz as u128) as u64
        }
    }

    /// What is added to the host's TSC to make the VM's, if that runs as fast.
    pub fn offset_from_host(&self) -> Option<u64> {
        (self.khz == self.host_khz).then(|| self.start.wrapping_neg())
    }

    /// Nanoseconds, on the clock that deadlines are given in.
    pub fn now(&self) -> u64 {
        monotonic()
    }

    /// How long the VM's TSC takes for so many ticks, rounded up.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        let ns = (ticks as u128 * 1_000_000).div_ceil(self.khz.max(1) as u128);
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

/// When the timer thread looks again.
pub struct Timer {
    armed: AtomicU64,
    stop: AtomicBool,
    changed: Mutex<bool>,
    bell: Condvar,
}

impl Default for Timer {
    fn default() -> Self {
        Timer {
            armed: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            changed: Mutex::new(false),
            bell: Condvar::new(),
        }
    }
}

impl Timer {
    /// Makes sure that the thread looks at this time or before.
    pub fn arm(&self, deadline: u64) {
        if self.armed.load(Ordering::SeqCst) > deadline {
            self.ring();
        }
    }

    fn ring(&self) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// The thread's work: `fire` lets due timers fire and gives the next deadline.
    pub fn run(&self, fire: impl Fn(u64) -> Option<u64>) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.stop.load(Ordering::SeqCst) {
            *changed = false;
            drop(changed);
            let now = monotonic();
            // Deadlines set from here on ring, until the next one is known.
            self.armed.store(u64::MAX, Ordering::SeqCst);
            let next = fire(now).unwrap_or(u64::MAX);
            self.armed.fetch_min(next, Ordering::SeqCst);
            changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
            if *changed {
                continue;
            }
            changed = if next == u64::MAX {
                self.bell.wait(changed).unwrap_or_else(PoisonError::into_inner)
            } else {
                let left = next.saturating_sub(monotonic());
                let (guard, _) = self
                    .bell
                    .wait_timeout(changed, Duration::from_nanos(left))
                    .unwrap_or_else(PoisonError::into_inner);
                guard
            };
        }
    }
}
