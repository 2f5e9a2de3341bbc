//! A terminal: one port, with the size of its window.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::device::{Session, StartError, VirtioDevice};
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Handler, Kick, Rest, Worker, Workers};

const KIND: u16 = 3;
const CLASS: u32 = 0x07_8000;
const QUEUE_SIZE: u16 = 64;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Feature: the size of the window is known.
const SIZE: u64 = 1 << 0;

/// Input that waits for the guest.
const LARGEST_BACKLOG: usize = 64 << 10;
/// Output is passed on in pieces of this size at most.
const PIECE: usize = 16 << 10;

/// A terminal.
pub struct Console {
    input: Arc<Input>,
    output: Arc<Mutex<Box<dyn Write + Send>>>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    workers: Workers,
    interrupt: Option<Arc<Interrupt>>,
    columns: u16,
    rows: u16,
}

/// What the user typed and the guest has not read.
#[derive(Default)]
struct Input {
    waiting: Mutex<VecDeque<u8>>,
    room: Condvar,
}

impl Input {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// `output` gets what the guest writes.
    pub fn new(output: Box<dyn Write + Send>) -> Arc<Self> {
        let output = Arc::new(Mutex::new(output));
        Arc::new(Self { input: Arc::default(), output, running: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the guest input. Returns how many bytes there was room for.
    pub fn input(&self, data: &[u8]) -> usize {
        let mut waiting = self.input.lock();
        let taken = data.len().min(LARGEST_BACKLOG - waiting.len().min(LARGEST_BACKLOG));
        waiting.extend(&data[..taken]);
        drop(waiting);
        self.notify(RECEIVE);
        taken
    }

    /// Waits until the guest has read some input. Says whether there is room now.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let waiting = self.input.lock();
        let full = |waiting: &mut VecDeque<u8>| waiting.len() >= LARGEST_BACKLOG;
        let result = self.input.room.wait_timeout_while(waiting, timeout, full);
        let (waiting, _) = result.unwrap_or_else(PoisonError::into_inner);
        waiting.len() < LARGEST_BACKLOG
    }

    /// The user's window has changed.
    pub fn set_size(&self, columns: u16, rows: u16) {
        let mut running = self.lock();
        if (running.columns, running.rows) == (columns, rows) {
            return;
        }
        (running.columns, running.rows) = (columns, rows);
        if let Some(interrupt) = &running.interrupt {
            interrupt.signal_configuration();
        }
    }
}

/// The guest's input queue: chains are filled as there is input.
struct Receiver(Arc<Input>);

impl Handler for Receiver {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            if self.0.lock().is_empty() {
                return Ok(Rest::WaitingForHost);
            }
            let Some(chain) = queue.pop()? else { break };
            let mut writer = chain.writer(queue.memory());
            let mut waiting = self.0.lock();
            let length = (waiting.len() as u64).min(writer.remaining()) as usize;
            let bytes: Vec<u8> = waiting.drain(..length).collect();
            drop(waiting);
            self.0.room.notify_all();
            let written = writer.write(&bytes)?;
            queue.push(chain, written as u32)?;
        }
        Ok(Rest::Drained)
    }
}

/// The guest's output queue.
struct Transmitter(Arc<Mutex<Box<dyn Write + Send>>>);

impl Handler for Transmitter {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let mut reader = chain.reader(queue.memory());
            let mut piece = vec![0; reader.remaining().min(PIECE as u64) as usize];
            // A chain is long, but not endless: it is at most 1024 buffers of 4 GiB,
            // and a device that is stopped drops the rest.
            while reader.remaining() > 0 && !stopping.load(Ordering::Relaxed) {
                let length = reader.read(&mut piece)?;
                if let Err(error) = output.write_all(&piece[..length]) {
                    tracing::debug!(%error, "output of the console is lost");
                    break;
                }
            }
            queue.push(chain, 0)?;
        }
        if let Err(error) = output.flush() {
            tracing::debug!(%error, "output of the console is lost");
        }
        Ok(Rest::Drained)
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
        SIZE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let running = self.lock();
        let [a, b] = running.columns.to_le_bytes();
        let [c, d] = running.rows.to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = [a, b, c, d].get(at).copied().unwrap_or(0);
        }
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, interrupt, .. } = session;
        let mut queues = queues.into_iter();
        let mut next = |index: u16| {
            queues.next().flatten().ok_or(StartError::MissingQueue(usize::from(index)))
        };
        let (receive, transmit) = (next(RECEIVE)?, next(TRANSMIT)?);
        let mut workers = Workers::default();
        let receiver = Receiver(self.input.clone());
        let name = |way: &str| format!("console {way}");
        workers.add(Some(Worker::start(
            name("in"),
            Kick::new()?,
            RECEIVE,
            receive,
            interrupt.clone(),
            receiver,
        )?));
        workers.add(Some(Worker::start(
            name("out"),
            Kick::new()?,
            TRANSMIT,
            transmit,
            interrupt.clone(),
            Transmitter(self.output.clone()),
        )?));
        let mut running = self.lock();
        running.workers = workers;
        running.interrupt = Some(interrupt);
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let mut workers = {
            let mut running = self.lock();
            running.interrupt = None;
            std::mem::take(&mut running.workers)
        };
        workers.stop()
    }

    fn notify(&self, queue: u16) {
        if let Some(kick) = self.lock().workers.kick(queue) {
            kick.ring();
        }
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        self.lock().workers.kick(queue).map(|kick| kick.fd().clone())
    }
}

#[cfg(test)]
mod tests;
