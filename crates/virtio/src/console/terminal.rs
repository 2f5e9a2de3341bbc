//! The terminal's port: what the user types, and what the guest prints.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::queue::{Queue, QueueError};
use crate::worker::{Handler, Rest};

/// Input that waits for the guest.
pub const LARGEST_BACKLOG: usize = 64 << 10;
/// Output is passed on in pieces of this size at most.
const PIECE: usize = 16 << 10;

/// Both directions of a terminal, as threads of its queues share them.
#[derive(Clone)]
pub struct Terminal {
    pub input: Arc<Input>,
    pub output: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Terminal {
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self { input: Arc::default(), output: Arc::new(Mutex::new(output)) }
    }
}

/// What the user typed and the guest has not read.
#[derive(Default)]
pub struct Input {
    waiting: Mutex<VecDeque<u8>>,
    room: Condvar,
}

impl Input {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes as many bytes as there is room for; says how many.
    pub fn add(&self, data: &[u8]) -> usize {
        let mut waiting = self.lock();
        let taken = data.len().min(LARGEST_BACKLOG - waiting.len().min(LARGEST_BACKLOG));
        waiting.extend(&data[..taken]);
        taken
    }

    /// Waits until the guest has read some input. Says whether there is room now.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let waiting = self.lock();
        let full = |waiting: &mut VecDeque<u8>| waiting.len() >= LARGEST_BACKLOG;
        let result = self.room.wait_timeout_while(waiting, timeout, full);
        let (waiting, _) = result.unwrap_or_else(PoisonError::into_inner);
        waiting.len() < LARGEST_BACKLOG
    }
}

/// The guest's input queue: chains are filled as there is input.
pub struct Receiver(pub Arc<Input>);

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
pub struct Transmitter(pub Arc<Mutex<Box<dyn Write + Send>>>);

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
