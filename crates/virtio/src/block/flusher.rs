//! Flushes, on a thread of their own: they take long, and a queue's other requests go on
//! meanwhile. Flushes that wait together are one.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use guise_disk::device::BlockDevice;

use crate::worker::Kick;

type Done = (usize, guise_disk::Result<()>);

/// A queue's flushes. The thread begins with the first one.
pub struct Flusher {
    device: BlockDevice,
    kick: Kick,
    running: Option<Running>,
    under_way: usize,
}

struct Running {
    orders: Sender<usize>,
    results: Receiver<Done>,
    thread: JoinHandle<()>,
}

impl Flusher {
    /// `kick` is rung when a flush is done.
    pub fn new(device: BlockDevice, kick: Kick) -> Self {
        Self { device, kick, running: None, under_way: 0 }
    }

    /// Begins a flush that is known by this number. Returns its result at once where there
    /// can be no thread.
    pub fn begin(&mut self, tag: usize) -> Option<guise_disk::Result<()>> {
        if self.running.is_none() {
            self.running = spawn(self.device.clone(), self.kick.clone());
        }
        let begun = self.running.as_ref().is_some_and(|running| running.orders.send(tag).is_ok());
        if !begun {
            return Some(self.device.flush());
        }
        self.under_way += 1;
        None
    }

    /// A flush that is done.
    pub fn take(&mut self) -> Option<Done> {
        let done = self.running.as_ref()?.results.try_recv().ok()?;
        self.under_way -= 1;
        Some(done)
    }

    /// Waits for the next one; nothing if there is none under way.
    pub fn wait(&mut self) -> Option<Done> {
        if self.under_way == 0 {
            return None;
        }
        let done = self.running.as_ref()?.results.recv().ok()?;
        self.under_way -= 1;
        Some(done)
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        if let Some(Running { orders, results, thread }) = self.running.take() {
            drop((orders, results));
            if thread.join().is_err() {
                tracing::error!("the thread for flushes ended with a panic");
            }
        }
    }
}

fn spawn(device: BlockDevice, kick: Kick) -> Option<Running> {
    let (orders, wanted) = mpsc::channel();
    let (done, results) = mpsc::channel();
    let body = move || {
        while let Ok(first) = wanted.recv() {
            // What has come by now was complete before this flush begins.
            let tags: Vec<usize> = std::iter::once(first).chain(wanted.try_iter()).collect();
            let mut result = device.flush();
            for tag in tags {
                // An error is one of its own for everybody who asked.
                let next = if result.is_ok() { Ok(()) } else { device.flush() };
                if done.send((tag, std::mem::replace(&mut result, next))).is_err() {
                    return;
                }
            }
            kick.ring();
        }
    };
    let thread = thread::Builder::new().name("disk flush".to_owned()).spawn(body);
    match thread {
        Ok(thread) => Some(Running { orders, results, thread }),
        Err(error) => {
            tracing::warn!(%error, "flushes of a disk hold up its other requests");
            None
        }
    }
}
