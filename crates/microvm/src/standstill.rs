//! What holds a machine still: its user, and a host without space for what its guest writes.
//!
//! A guest that is told that its disk is broken makes the worst of it, although there may be
//! space again in a minute. So its requests wait (`WhenFull::Wait`), and while one does, its
//! processors do not run: nothing in the guest times out. Whether there is space is found out by
//! trying again now and then, because more than what a file system says of itself can be in the
//! way: quotas, pools below it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use guise_machine::{Machine, MachineError};
use guise_virtio::block::{Block, Shortage};

/// How soon it is tried again at first, and how late when there is only ever a little space.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(16);
/// What still has no space says so within this.
const ANSWER: Duration = Duration::from_millis(200);
/// Who had space for so long has had enough of it.
const GOOD_WHILE: Duration = Duration::from_secs(60);

/// Who is told that there is no space, or that there is again.
pub type Teller = Arc<dyn Fn(bool) + Send + Sync>;
/// What is to be done when the guest goes on by itself.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// One for all machines that a guest has, one after the other.
#[derive(Default)]
pub struct Standstill {
    /// Held while the machine is stopped or let go, never while a disk is asked for something.
    holds: Mutex<Holds>,
    waiting: Mutex<Waiting>,
    teller: Mutex<Option<Teller>>,
    waker: Mutex<Option<Waker>>,
}

/// Why the machine stands still.
#[derive(Default)]
struct Holds {
    machine: Weak<Machine>,
    by_user: bool,
    without_space: bool,
}

/// What waits for space.
#[derive(Default)]
struct Waiting {
    disks: Vec<Weak<Block>>,
    /// How often it was said that there is none.
    alarms: u64,
    /// There is a thread that tries again.
    attended: bool,
    /// When there was space again, and how late that was looked for.
    last: Option<(Instant, Duration)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Standstill {
    /// This is the machine now, with these disks. It is not started here.
    pub fn attend(self: &Arc<Self>, machine: &Arc<Machine>, disks: &[Arc<Block>]) {
        lock(&self.holds).machine = Arc::downgrade(machine);
        lock(&self.waiting).disks = disks.iter().map(Arc::downgrade).collect();
        for disk in disks {
            let weak = Arc::downgrade(self);
            disk.on_full(move |shortage| {
                if let Some(standstill) = weak.upgrade() {
                    standstill.alarm(&shortage);
                }
            });
        }
    }

    /// The machine has ended: nothing starts it again.
    pub fn leave(&self) {
        lock(&self.holds).machine = Weak::new();
    }

    /// Who is told from now on; at once, if there is no space.
    pub fn tell(&self, teller: Teller) {
        let mut place = lock(&self.teller);
        if self.is_without_space() {
            teller(true);
        }
        *place = Some(teller);
    }

    pub fn on_waking(&self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
    }

    /// Whether the guest waits for space.
    pub fn is_without_space(&self) -> bool {
        lock(&self.holds).without_space
    }

    /// Starts the machine, unless something holds it.
    pub fn start(&self) {
        lock(&self.holds).let_go();
    }

    pub fn pause(&self) -> Result<(), MachineError> {
        let mut holds = lock(&self.holds);
        if let Some(machine) = holds.machine.upgrade() {
            machine.pause()?;
        }
        holds.by_user = true;
        Ok(())
    }

    /// Whether it runs now, and was paused.
    pub fn resume(&self) -> bool {
        let mut holds = lock(&self.holds);
        std::mem::take(&mut holds.by_user) && holds.let_go()
    }

    /// Whether anything holds the machine, so that it answers nobody.
    pub fn is_still(&self) -> bool {
        let holds = lock(&self.holds);
        holds.by_user || holds.without_space
    }

    /// A disk has no space. Called by a thread of its, which must not be held up.
    fn alarm(self: &Arc<Self>, shortage: &Shortage) {
        // One of many requests that failed, and it has been tried again since.
        if !shortage.lasts() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        waiting.alarms += 1;
        if waiting.attended {
            return;
        }
        let weak = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("no space".to_owned());
        match thread.spawn(move || wait_for_space(&weak)) {
            Ok(_) => waiting.attended = true,
            Err(error) => tracing::error!(%error, "nobody looks when there is space again"),
        }
    }

    fn hold(&self) {
        let mut holds = lock(&self.holds);
        holds.without_space = true;
        if let Some(machine) = holds.machine.upgrade()
            && let Err(error) = machine.pause()
        {
            tracing::error!(%error, "a machine without space on the host is not paused");
        }
        drop(holds);
        self.say();
    }

    /// Tells how it is now, so that what is told last is so, whoever came first.
    fn say(&self) {
        if let Some(teller) = &*lock(&self.teller) {
            teller(self.is_without_space());
        }
    }

    /// Has the disks try what waits, once more. If nothing waits any longer, the guest goes on.
    fn try_again(&self, patience: Duration) -> bool {
        let (disks, alarms) = {
            let waiting = lock(&self.waiting);
            (waiting.disks.clone(), waiting.alarms)
        };
        for disk in disks.iter().filter_map(Weak::upgrade) {
            disk.retry();
        }
        std::thread::sleep(ANSWER);
        let mut waiting = lock(&self.waiting);
        if waiting.alarms != alarms {
            return false;
        }
        // Whoever has no space from here on is the next one's.
        waiting.attended = false;
        waiting.last = Some((Instant::now(), patience));
        let mut holds = lock(&self.holds);
        holds.without_space = false;
        holds.let_go();
        true
    }

    /// How long to wait before the first attempt.
    fn patience(&self) -> Duration {
        match lock(&self.waiting).last {
            Some((then, late)) if then.elapsed() < GOOD_WHILE => (late * 2).min(LAST),
            _ => FIRST,
        }
    }
}

impl Holds {
    /// Whether it runs now.
    fn let_go(&mut self) -> bool {
        let Some(machine) = self.machine.upgrade() else { return false };
        let runs = !self.by_user && !self.without_space;
        if runs {
            machine.resume();
        }
        runs
    }
}

/// The thread that waits with the guest. Nothing of the machine is held while it sleeps.
fn wait_for_space(weak: &Weak<Standstill>) {
    let Some(mut patience) = weak.upgrade().map(|standstill| {
        standstill.hold();
        standstill.patience()
    }) else {
        return;
    };
    loop {
        std::thread::sleep(patience);
        let Some(standstill) = weak.upgrade() else { return };
        if standstill.try_again(patience) {
            standstill.say();
            let waker = lock(&standstill.waker).clone();
            if let Some(waker) = waker.filter(|_| !standstill.is_still()) {
                waker();
            }
            return;
        }
        patience = (patience * 2).min(LAST);
    }
}
