//! How far a task is, and the way to end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use guise_image::Digest;
use guise_image::progress::{Meter, Progress};

/// The meters of everything that a task has begun.
#[derive(Default)]
pub struct Meters {
    begun: Mutex<Begun>,
    cancelled: Arc<AtomicBool>,
}

#[derive(Default)]
struct Begun {
    meters: Vec<Meter>,
    total: u64,
    note: String,
}

impl Meters {
    /// Has everything end that counts what it reads.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        for meter in &self.begun.lock().unwrap_or_else(PoisonError::into_inner).meters {
            meter.cancel();
        }
    }

    /// Set when everything is to end.
    pub fn cancelled_flag(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// Bytes that are through, those that are known of, and what was said last.
    pub fn read(&self) -> (u64, u64, String) {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let done = begun.meters.iter().map(Meter::bytes).fold(0, u64::saturating_add);
        (done, begun.total, begun.note.clone())
    }
}

impl Progress for Meters {
    fn start(&self, what: &'static str, digest: Digest, bytes: u64) -> Meter {
        let meter = Meter::default();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.meters.push(meter.clone());
        begun.total = begun.total.saturating_add(bytes);
        begun.note = format!("{what} {} ({} KiB)", digest.short(), bytes >> 10);
        // Under the lock: who cancels has seen this meter, or is seen here.
        if self.cancelled() {
            meter.cancel();
        }
        meter
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn note(&self, line: &str) {
        line.clone_into(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner).note);
    }
}
