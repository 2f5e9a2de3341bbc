//! A terminal with the size of its window, and ports with names that lead to Unix sockets
//! of the host.
//!
//! Queues 0 and 1 are the terminal's, with a thread each, because a user's terminal may
//! stand still for as long as the user likes. A driver that knows of ports has the rest:
//! two control queues and two queues for each port, which share a thread (`server`).
//! What both sides have told each other (`conversation`) belongs to the device, is saved
//! with it, and goes back and forth between device and thread.

mod conversation;
mod port;
mod server;
mod terminal;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::conversation::Conversation;
pub use self::port::{LONGEST_NAME, Port};
use self::server::{CONTROL, Queues, Window};
use self::terminal::{Receiver, Terminal, Transmitter};
use crate::device::{DeviceState, Session, StartError, VirtioDevice};
use crate::queue::Queue;
use crate::transport::Interrupt;
use crate::worker::{Kick, Thread, Worker, Workers};

const KIND: u16 = 3;
const CLASS: u32 = 0x07_8000;
const QUEUE_SIZE: u16 = 64;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Feature: the size of the window is known.
const SIZE: u64 = 1 << 0;
/// Feature: there may be several ports.
const PORTS: u64 = 1 << 1;

/// The most ports with names.
pub const MOST_PORTS: usize = 30;

/// What is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState(Conversation);

/// A terminal, or ports, or both.
pub struct Console {
    terminal: Option<Terminal>,
    ports: Vec<Arc<Port>>,
    window: Arc<Window>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Here while the device is stopped, and while its driver knows of no ports; the
    /// thread of the ports has it otherwise.
    conversation: Option<Conversation>,
    workers: Workers,
    server: Option<Thread<(Queues, Conversation)>>,
    /// The terminal's queues where there is no terminal.
    unused: Vec<Option<Queue>>,
    /// For a driver that reads the window's size from the configuration.
    interrupt: Option<Arc<Interrupt>>,
}

impl Console {
    /// `output` gets what the guest writes to its terminal; without one there are only the
    /// ports. There are at most [`MOST_PORTS`].
    pub fn new(output: Option<Box<dyn Write + Send>>, ports: Vec<Arc<Port>>) -> Arc<Self> {
        let terminal = output.map(Terminal::new);
        let conversation = Some(Conversation::new(terminal.is_some(), ports.len()));
        let inner = Mutex::new(Inner { conversation, ..Inner::default() });
        Arc::new(Self { terminal, ports, window: Arc::default(), inner })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the guest's terminal input. Returns how many bytes there was room for.
    pub fn input(&self, data: &[u8]) -> usize {
        let Some(terminal) = &self.terminal else { return 0 };
        let taken = terminal.input.add(data);
        self.notify(RECEIVE);
        taken
    }

    /// Waits until the guest has read some input. Says whether there is room now.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        self.terminal.as_ref().is_some_and(|terminal| terminal.input.wait_for_room(timeout))
    }

    /// The user's window has changed.
    pub fn set_size(&self, columns: u16, rows: u16) {
        if !self.window.set(columns, rows) {
            return;
        }
        let inner = self.lock();
        match (&inner.server, &inner.interrupt) {
            (Some(server), _) => server.ring(),
            (None, Some(interrupt)) => interrupt.signal_configuration(),
            (None, None) => {}
        }
    }

    fn fresh(&self) -> Conversation {
        Conversation::new(self.terminal.is_some(), self.ports.len())
    }

    /// The guest has forgotten its ports. Whoever talked with one of its programs is told
    /// by the end of the connection; who still waits for one goes on waiting.
    fn forget(&self) {
        let fresh = self.fresh();
        let old = self.lock().conversation.replace(fresh);
        for (port, state) in self.ports.iter().zip(old.iter().flat_map(|it| &it.ports[1..])) {
            if state.guest_open || state.ending {
                *port.client() = None;
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.stop();
        self.forget();
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        SIZE | PORTS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4 + 2 * self.ports.len()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = self.window.get();
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&columns.to_le_bytes());
        bytes[2..4].copy_from_slice(&rows.to_le_bytes());
        bytes[4..].copy_from_slice(&(1 + self.ports.len() as u32).to_le_bytes());
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn begin(&self, _: u64) {
        self.forget();
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, features, interrupt } = session;
        let mut queues = queues.into_iter().enumerate();
        let mut inner = Inner::default();
        if let Some(terminal) = &self.terminal {
            let mut next = || match queues.next() {
                Some((_, Some(queue))) => Ok(queue),
                other => Err(StartError::MissingQueue(other.map_or(0, |(index, _)| index))),
            };
            let (receive, transmit) = (next()?, next()?);
            let receiver = Receiver(terminal.input.clone());
            let transmitter = Transmitter(terminal.output.clone());
            let (kick, theirs) = (Kick::new()?, interrupt.clone());
            let name = "console in".to_owned();
            let worker = Worker::serving(name, kick, RECEIVE, receive, theirs, receiver)?;
            inner.workers.add(Some(worker));
            let (kick, theirs) = (Kick::new()?, interrupt.clone());
            let name = "console out".to_owned();
            let worker = Worker::serving(name, kick, TRANSMIT, transmit, theirs, transmitter)?;
            inner.workers.add(Some(worker));
        } else {
            inner.unused = queues.by_ref().take(2).map(|(_, queue)| queue).collect();
        }
        let conversation = self.lock().conversation.take().unwrap_or_else(|| self.fresh());
        if features & PORTS != 0 {
            let mut next = || match queues.next() {
                Some((_, Some(queue))) => Ok(queue),
                other => Err(StartError::MissingQueue(other.map_or(0, |(index, _)| index))),
            };
            let (to_driver, from_driver) = (next()?, next()?);
            let mut named = Vec::new();
            for _ in &self.ports {
                named.push((next()?, next()?));
            }
            let queues = Queues { to_driver, from_driver, ports: named };
            let (ports, window) = (self.ports.clone(), self.window.clone());
            inner.server =
                Some(server::start(queues, conversation, ports, window, interrupt.clone())?);
        } else {
            inner.conversation = Some(conversation);
        }
        inner.interrupt = Some(interrupt);
        *self.lock() = inner;
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let (mut workers, server, mut queues) = {
            let mut inner = self.lock();
            inner.interrupt = None;
            let unused = std::mem::take(&mut inner.unused);
            (std::mem::take(&mut inner.workers), inner.server.take(), unused)
        };
        queues.extend(workers.stop());
        if let Some((theirs, conversation)) = server.and_then(Thread::stop) {
            queues.extend(theirs.into_list().map(Some));
            self.lock().conversation = Some(conversation);
        }
        queues
    }

    fn notify(&self, queue: u16) {
        let inner = self.lock();
        if queue >= CONTROL {
            inner.server.iter().for_each(Thread::ring);
        } else {
            inner.workers.ring(queue);
        }
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        let inner = self.lock();
        if queue >= CONTROL {
            return inner.server.as_ref().map(Thread::doorbell);
        }
        inner.workers.doorbell(queue)
    }

    fn state(&self) -> DeviceState {
        let conversation = self.lock().conversation.clone();
        DeviceState::Console(ConsoleState(conversation.unwrap_or_else(|| self.fresh())))
    }

    fn set_state(&self, state: &DeviceState) -> bool {
        let DeviceState::Console(ConsoleState(saved)) = state else { return false };
        let fits = saved.fits(&self.fresh());
        if fits {
            self.lock().conversation = Some(saved.clone());
        }
        fits
    }
}

#[cfg(test)]
mod tests;
