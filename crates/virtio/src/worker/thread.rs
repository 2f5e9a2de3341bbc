//! The thread of one queue or of several: started, rung and ended in one way.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Kick;
use crate::device::StartError;

/// A running thread, which ends with what it was given: its queues.
pub struct Thread<T> {
    kick: Kick,
    stopping: Arc<AtomicBool>,
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Thread<T> {
    /// `body` runs until the flag that it gets is true; each change of the flag comes with
    /// a ring of the kick.
    pub fn start(
        name: impl Into<String>,
        doing: &'static str,
        kick: Kick,
        body: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> Result<Self, StartError> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let handle = std::thread::Builder::new().name(name.into()).spawn(move || body(&stop));
        let handle = handle.map_err(|source| StartError::Host { doing, source })?;
        Ok(Self { kick, stopping, handle })
    }

    pub fn ring(&self) {
        self.kick.ring();
    }

    pub fn doorbell(&self) -> Arc<OwnedFd> {
        self.kick.fd().clone()
    }

    /// Tells it to end, and does not wait for it.
    pub fn tell_to_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.kick.ring();
    }

    /// Ends it. Nothing if it died, which is a bug that has been reported.
    pub fn stop(self) -> Option<T> {
        self.tell_to_stop();
        self.handle.join().ok()
    }
}
