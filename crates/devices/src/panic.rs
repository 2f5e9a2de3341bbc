//! pvpanic: a port through which a guest's kernel says that it panicked.

use std::sync::Arc;

use crate::bus::Device;
use crate::power::{PowerRequest, PowerSink};

pub const PORT: u64 = 0x505;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The port. It has no state.
pub struct Pvpanic {
    power: Arc<dyn PowerSink>,
}

impl Pvpanic {
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { power })
    }
}

impl Device for Pvpanic {
    /// Reads as the events that there are.
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&self, _: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        // A kernel that has a crash kernel to go on with is not at its end.
        if events & CRASH_LOADED != 0 {
            self.power.request(PowerRequest::CrashLoaded);
        } else if events & PANICKED != 0 {
            self.power.request(PowerRequest::Panicked);
        }
    }
}

#[cfg(test)]
mod tests;
