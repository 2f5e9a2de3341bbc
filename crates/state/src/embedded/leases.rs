//! The thread that ends leases which nobody keeps alive.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Core, tables};
use crate::{LeaseId, StateError};

/// After a failure to end a lease (a full disk, say), how long until the next try.
const RETRY: Duration = Duration::from_secs(1);

pub struct Reaper {
    core: Arc<Core>,
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Signal {
    stop: Mutex<bool>,
    changed: Condvar,
}

impl Reaper {
    pub fn start(core: Arc<Core>) -> Result<Reaper, StateError> {
        let signal = Arc::new(Signal::default());
        let (their_core, their_signal) = (core.clone(), signal.clone());
        let thread = std::thread::Builder::new()
            .name("leases".to_owned())
            .spawn(move || reap(&their_core, &their_signal))
            .map_err(|source| StateError::Io {
                doing: "start a thread for",
                path: core.path.clone(),
                source,
            })?;
        Ok(Reaper { core, signal, thread: Some(thread) })
    }

    /// Ends this lease in time.
    pub fn track(&self, lease: LeaseId, ttl: Duration) {
        let stop = self.signal.stop.lock().unwrap_or_else(|error| error.into_inner());
        self.core
            .deadlines
            .lock()
            .unwrap_or_else(|error| error.into_inner())
            .insert(lease, (Instant::now() + ttl, ttl));
        drop(stop);
        self.signal.changed.notify_all();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        *self.signal.stop.lock().unwrap_or_else(|error| error.into_inner()) = true;
        self.signal.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reap(core: &Core, signal: &Signal) {
    let mut stop = signal.stop.lock().unwrap_or_else(|error| error.into_inner());
    while !*stop {
        let next = core
            .deadlines
            .lock()
            .unwrap_or_else(|error| error.into_inner())
            .iter()
            .map(|(lease, (deadline, _))| (*deadline, *lease))
            .min();
        let now = Instant::now();
        stop = match next {
            Some((deadline, lease)) if deadline <= now => {
                drop(stop);
                let wait = if core.end_lease(lease).is_ok() { None } else { Some(RETRY) };
                let mut deadlines =
                    core.deadlines.lock().unwrap_or_else(|error| error.into_inner());
                match (wait, deadlines.get_mut(&lease)) {
                    (None, _) => drop(deadlines.remove(&lease)),
                    (Some(wait), Some(kept)) => kept.0 = now + wait,
                    (Some(_), None) => {}
                }
                drop(deadlines);
                signal.stop.lock().unwrap_or_else(|error| error.into_inner())
            }
            Some((deadline, _)) => {
                let left = deadline - now;
                let waited = signal.changed.wait_timeout(stop, left);
                waited.unwrap_or_else(|error| error.into_inner()).0
            }
            None => signal.changed.wait(stop).unwrap_or_else(|error| error.into_inner()),
        };
    }
}

impl Core {
    /// Removes the lease and its keys, in one commit.
    pub(super) fn end_lease(&self, lease: LeaseId) -> Result<(), StateError> {
        let revision = self.with(|path, database| tables::end_lease(path, database, lease))?;
        self.announce(revision);
        Ok(())
    }
}
