//! Random numbers from the host's kernel.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::device::{Session, StartError, VirtioDevice};
use crate::queue::{Queue, QueueError};
use crate::worker::{Handler, Kick, Rest, Worker, Workers};

const KIND: u16 = 4;
const CLASS: u32 = 0xff_0000;
const QUEUE_SIZE: u16 = 64;
/// A request is answered with so much at most: a driver gets as much as it wants, but
/// not all at once.
const LARGEST_ANSWER: u64 = 64 << 10;

/// An entropy source.
#[derive(Default)]
pub struct Rng {
    workers: Mutex<Workers>,
}

impl Rng {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Source;

impl Handler for Source {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let mut writer = chain.writer(queue.memory());
            let wanted = writer.remaining().min(LARGEST_ANSWER) as usize;
            let mut bytes = vec![0; wanted];
            let mut done = 0;
            while done < wanted {
                match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
                    Ok(more) => done += more,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the host gives no random numbers");
                        break;
                    }
                }
            }
            let written = writer.write(&bytes[..done])?;
            queue.push(chain, written as u32)?;
        }
        Ok(Rest::Drained)
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { mut queues, interrupt, .. } = session;
        let queue = queues.pop().flatten().ok_or(StartError::MissingQueue(0))?;
        let worker = Worker::serving("rng".to_owned(), Kick::new()?, 0, queue, interrupt, Source)?;
        self.lock().add(Some(worker));
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        self.lock().stop()
    }

    fn notify(&self, queue: u16) {
        self.lock().ring(queue);
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        self.lock().doorbell(queue)
    }
}

#[cfg(test)]
mod tests;
