//! Stream sockets between the guest and the host.
//!
//! The guest has an address of its own (its CID), the host is number 2. What the guest
//! connects to on the host, and who connects to the guest, is the [`Host`]'s affair:
//! other processes through Unix sockets, or the machine's own process. One thread serves
//! the device. It reads from a stream only what the guest has room for, and takes from
//! the guest only what it has promised to keep, so that neither side can make the other
//! hold more than a fixed amount.
//!
//! Connections belong to the device and not to its thread: they live on when the device
//! is stopped for a moment to be saved. A machine that is restored elsewhere has none,
//! and its driver is told to forget its own.

mod connection;
mod host;
mod packet;
mod server;
mod switch;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::host::{Host, HostError, Listener};
use self::server::Queues;
use self::switch::Switch;
use crate::device::{DeviceState, Session, StartError, VirtioDevice};
use crate::queue::Queue;
use crate::worker::Thread;

const KIND: u16 = 19;
const CLASS: u32 = 0x02_8000;
const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENTS: u16 = 2;

/// The first address that a guest may have: the lower ones mean the host and the like.
pub const FIRST_CID: u32 = 3;

/// The guest's end of a machine's sockets.
pub struct Vsock {
    cid: u32,
    host: Arc<Host>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Here while the device is stopped; its thread has it otherwise.
    switch: Option<Switch>,
    worker: Option<Thread<(Queues, Switch)>>,
}

impl Vsock {
    /// `cid` is at least [`FIRST_CID`] and not all ones.
    pub fn new(cid: u32, host: Arc<Host>) -> Arc<Self> {
        let switch = Some(Switch::new(u64::from(cid), host.clone()));
        Arc::new(Self { cid, host, inner: Mutex::new(Inner { switch, worker: None }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    /// Without any of its own feature bits it has stream sockets.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = u64::from(self.cid).to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn begin(&self, _: u64) {
        if let Some(switch) = &mut self.lock().switch {
            switch.forget_all();
        }
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, interrupt, .. } = session;
        let mut queues = queues.into_iter();
        let mut next = |index: u16| {
            queues.next().flatten().ok_or(StartError::MissingQueue(usize::from(index)))
        };
        let queues =
            Queues { receive: next(RECEIVE)?, transmit: next(TRANSMIT)?, events: next(EVENTS)? };
        let mut inner = self.lock();
        let switch = inner.switch.take();
        let switch = switch.unwrap_or_else(|| Switch::new(u64::from(self.cid), self.host.clone()));
        inner.worker = Some(server::start(queues, switch, self.host.clone(), interrupt)?);
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let Some(worker) = self.lock().worker.take() else { return Vec::new() };
        let Some((queues, switch)) = worker.stop() else { return Vec::new() };
        self.lock().switch = Some(switch);
        [queues.receive, queues.transmit, queues.events].map(Some).into()
    }

    fn notify(&self, _: u16) {
        if let Some(worker) = &self.lock().worker {
            worker.ring();
        }
    }

    fn doorbell(&self, _: u16) -> Option<Arc<OwnedFd>> {
        self.lock().worker.as_ref().map(Thread::doorbell)
    }

    /// Connections cannot be taken elsewhere, so all that is to be loaded is that there
    /// were some.
    fn set_state(&self, state: &DeviceState) -> bool {
        if let Some(switch) = &mut self.lock().switch {
            switch.forget_all();
            switch.announce_reset = true;
        }
        *state == DeviceState::None
    }
}

#[cfg(test)]
mod tests;
