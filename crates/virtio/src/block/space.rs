//! What becomes of requests for which the host has no space: an error for the guest, or
//! patience. Those that wait are begun again when somebody says that there is space.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk does when the host has no space for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The guest gets an error.
    #[default]
    Report,
    /// Requests wait until there is space, and whoever runs the machine is told.
    Wait,
}

type Alarm = Box<dyn Fn(Shortage) + Send + Sync>;

/// That a request waits for space.
pub struct Shortage {
    space: Arc<Space>,
    seen: u64,
}

impl Shortage {
    /// Whether nobody has said since the request was tried that there is space again.
    pub fn lasts(&self) -> bool {
        self.space.news() == self.seen
    }
}

/// What the queues of a disk share.
pub struct Space {
    policy: WhenFull,
    alarm: Mutex<Option<Alarm>>,
    /// How often somebody has said that there is space again.
    news: AtomicU64,
}

impl Space {
    pub fn new(policy: WhenFull) -> Self {
        Self { policy, alarm: Mutex::new(None), news: AtomicU64::new(0) }
    }

    fn alarm(&self) -> MutexGuard<'_, Option<Alarm>> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_alarm(&self, alarm: Alarm) {
        *self.alarm() = Some(alarm);
    }

    pub fn announce(&self) {
        self.news.fetch_add(1, Ordering::SeqCst);
    }

    pub fn news(&self) -> u64 {
        self.news.load(Ordering::SeqCst)
    }

    /// Whether a request that failed so is to wait, after news of this number. If so,
    /// somebody is told.
    pub fn is_waited_for(self: &Arc<Self>, error: &guise_disk::Error, seen: u64) -> bool {
        if self.policy == WhenFull::Report || !error.is_no_space() {
            return false;
        }
        if let Some(alarm) = &*self.alarm() {
            alarm(Shortage { space: Arc::clone(self), seen });
        }
        true
    }
}
