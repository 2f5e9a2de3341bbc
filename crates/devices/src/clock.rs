//! The machine's time, and timers on it.
//!
//! A [`Clock`] counts nanoseconds since the machine was made. It stands still while
//! the machine is paused, so that no device notices the pause, and it can be set
//! when a saved machine is loaded. One thread serves the timers of all devices; it
//! sleeps until the next deadline, and with no deadline it does not wake up at all.
//!
//! A timer's callback runs on that thread, with no lock of the clock held. It may
//! come late, and it may come once more after a `disarm` that raced with it, so a
//! device looks at its own state, under its own lock, to see what is due.
//!
//! A manual clock has no thread: time passes when [`Clock::advance`] says so, and
//! timers run inside that call. Tests and fuzzers of devices use it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

type Callback = Arc<dyn Fn(u64) + Send + Sync>;

/// The value of `frozen_at` while time passes.
const RUNNING: u64 = u64::MAX;

struct Shared {
    /// Time is this instant's age plus `offset`; a manual clock has none.
    origin: Option<Instant>,
    offset: AtomicU64,
    /// The time at which the clock stands, or [`RUNNING`].
    frozen_at: AtomicU64,
    timers: Mutex<Timers>,
    changed: Condvar,
    /// Told when the thread finished a callback.
    idle: Condvar,
}

#[derive(Default)]
struct Timers {
    by_deadline: BTreeSet<(u64, u64)>,
    entries: HashMap<u64, Entry>,
    next_id: u64,
    /// The thread that is inside a callback.
    running: Option<ThreadId>,
    paused: bool,
    stop: bool,
}

struct Entry {
    deadline: Option<u64>,
    callback: Callback,
}

impl Timers {
    fn arm(&mut self, id: u64, deadline: Option<u64>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(old) = entry.deadline.take() {
            self.by_deadline.remove(&(old, id));
        }
        entry.deadline = deadline;
        if let Some(deadline) = deadline {
            self.by_deadline.insert((deadline, id));
        }
    }

    /// Takes the first timer that is due at `now`; it is disarmed by that.
    fn take_due(&mut self, now: u64) -> Option<(u64, Callback)> {
        let &(deadline, id) = self.by_deadline.first()?;
        if deadline > now {
            return None;
        }
        self.by_deadline.pop_first();
        let entry = self.entries.get_mut(&id)?;
        entry.deadline = None;
        Some((deadline, entry.callback.clone()))
    }
}

impl Shared {
    fn now(&self) -> u64 {
        let frozen = self.frozen_at.load(Ordering::Acquire);
        if frozen != RUNNING {
            return frozen;
        }
        self.passing().wrapping_add(self.offset.load(Ordering::Acquire))
    }

    /// The age of the origin.
    fn passing(&self) -> u64 {
        self.origin.map_or(0, |origin| origin.elapsed().as_nanos() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut timers = self.lock();
        while !timers.stop {
            if timers.paused {
                timers = self.changed.wait(timers).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = self.now();
            if let Some((_, callback)) = timers.take_due(now) {
                timers = self.call(timers, callback, now);
                continue;
            }
            timers = match timers.by_deadline.first() {
                None => self.changed.wait(timers).unwrap_or_else(PoisonError::into_inner),
                Some(&(deadline, _)) => {
                    let sleep = Duration::from_nanos(deadline - now);
                    self.changed
                        .wait_timeout(timers, sleep)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn call<'a>(
        &'a self,
        mut timers: MutexGuard<'a, Timers>,
        callback: Callback,
        now: u64,
    ) -> MutexGuard<'a, Timers> {
        timers.running = Some(thread::current().id());
        drop(timers);
        callback(now);
        // The callback may hold the last reference to a device with timers.
        drop(callback);
        let mut timers = self.lock();
        timers.running = None;
        self.idle.notify_all();
        timers
    }
}

/// A machine's time.
pub struct Clock {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Clock {
    /// A clock at 0 that runs with the host's monotonic clock.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Self::shared(Some(Instant::now())));
        let server = shared.clone();
        let thread =
            thread::Builder::new().name("timers".to_owned()).spawn(move || server.serve())?;
        Ok(Arc::new(Self { shared, thread: Some(thread) }))
    }

    /// A clock at 0 that moves only by [`Clock::advance`].
    pub fn manual() -> Arc<Self> {
        let shared = Self::shared(None);
        shared.frozen_at.store(0, Ordering::Release);
        Arc::new(Self { shared: Arc::new(shared), thread: None })
    }

    fn shared(origin: Option<Instant>) -> Shared {
        Shared {
            origin,
            offset: AtomicU64::new(0),
            frozen_at: AtomicU64::new(RUNNING),
            timers: Mutex::default(),
            changed: Condvar::new(),
            idle: Condvar::new(),
        }
    }

    /// Nanoseconds of machine time.
    pub fn now(&self) -> u64 {
        self.shared.now()
    }

    /// Stops time. No callback runs any more when this returns.
    pub fn pause(&self) {
        let mut timers = self.shared.lock();
        timers.paused = true;
        self.shared.frozen_at.store(self.shared.now(), Ordering::Release);
        self.shared.changed.notify_all();
        let me = thread::current().id();
        while timers.running.is_some_and(|thread| thread != me) {
            timers = self.shared.idle.wait(timers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets time go on from where it was stopped.
    pub fn resume(&self) {
        let mut timers = self.shared.lock();
        timers.paused = false;
        let frozen = self.shared.frozen_at.load(Ordering::Acquire);
        if self.shared.origin.is_some() && frozen != RUNNING {
            let offset = frozen.wrapping_sub(self.shared.passing());
            self.shared.offset.store(offset, Ordering::Release);
            self.shared.frozen_at.store(RUNNING, Ordering::Release);
        }
        self.shared.changed.notify_all();
    }

    /// Sets a stopped clock, as part of loading a saved machine. Deadlines stay as
    /// they are: devices arm their timers anew from their own states.
    pub fn set(&self, now: u64) {
        let _timers = self.shared.lock();
        self.shared.frozen_at.store(now.min(RUNNING - 1), Ordering::Release);
    }

    /// Moves a manual clock forward and runs the timers that come due on the way,
    /// each at its own time. Timers that are armed again without end run
    /// once a nanosecond at the most.
    pub fn advance(&self, nanoseconds: u64) {
        let end = self.now().saturating_add(nanoseconds).min(RUNNING - 1);
        let mut timers = self.shared.lock();
        let mut earliest = self.now();
        while let Some((deadline, callback)) = timers.take_due(end) {
            let at = deadline.clamp(earliest, end);
            self.shared.frozen_at.store(at, Ordering::Release);
            timers = self.shared.call(timers, callback, at);
            earliest = at.saturating_add(1).min(end);
            if earliest == end && at == end {
                break;
            }
        }
        self.shared.frozen_at.store(end, Ordering::Release);
    }

    /// A timer that is not armed. `callback` gets the time at which it runs; it
    /// must not keep what owns the timer alive.
    pub fn timer(&self, callback: impl Fn(u64) + Send + Sync + 'static) -> Timer {
        let mut timers = self.shared.lock();
        let id = timers.next_id;
        timers.next_id += 1;
        timers.entries.insert(id, Entry { deadline: None, callback: Arc::new(callback) });
        Timer { shared: self.shared.clone(), id }
    }

    /// How many timers wait for their deadlines.
    pub fn armed(&self) -> usize {
        self.shared.lock().by_deadline.len()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the timer thread ended with a panic");
        }
    }
}

/// A deadline that a device may set. It fires once each time it is armed.
pub struct Timer {
    shared: Arc<Shared>,
    id: u64,
}

impl Timer {
    /// Fires at `deadline`, or as soon as possible when that has passed. An earlier
    /// deadline is forgotten.
    pub fn arm(&self, deadline: u64) {
        self.set(Some(deadline));
    }

    pub fn disarm(&self) {
        self.set(None);
    }

    /// Arms or disarms.
    pub fn set(&self, deadline: Option<u64>) {
        let mut timers = self.shared.lock();
        let first = timers.by_deadline.first().copied();
        timers.arm(self.id, deadline);
        // The thread need not wake up for what comes after its next deadline.
        let earlier = match (timers.by_deadline.first(), first) {
            (Some(new), Some(old)) => *new < old,
            (new, _) => new.is_some(),
        };
        drop(timers);
        if earlier {
            self.shared.changed.notify_one();
        }
    }

    pub fn deadline(&self) -> Option<u64> {
        self.shared.lock().entries.get(&self.id).and_then(|entry| entry.deadline)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut timers = self.shared.lock();
        timers.arm(self.id, None);
        let entry = timers.entries.remove(&self.id);
        drop(timers);
        drop(entry);
    }
}

#[cfg(test)]
mod tests;
