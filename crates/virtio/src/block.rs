//! Disks.
//!
//! Each queue has a thread of its own, which takes requests and gives them back one
//! by one; interrupts are sent for batches. Data goes straight between the backend and
//! guest memory.

mod backend;
mod request;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use backend::{BlockBackend, Buffer, RawFile};

use self::request::execute;
use crate::device::{Session, StartError, VirtioDevice};
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Handler, Kick, Rest, Worker, Workers};

const KIND: u16 = 2;
const CLASS: u32 = 0x01_8000;
const QUEUE_SIZE: u16 = 256;

/// Unit of everything that the protocol counts.
pub const SECTOR: u64 = 512;

/// Feature bits.
const SEGMENTS_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const MULTIPLE_QUEUES: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// A request's data may have this many buffers: two of the queue's entries are for
/// header and status.
const LARGEST_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors of one discard or write-zeroes range, and how many ranges a request has.
const LARGEST_RANGE: u32 = 1 << 22;
const MOST_RANGES: u32 = 32;

/// What a disk is, besides its contents.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    pub queues: u16,
    pub read_only: bool,
    /// At most 20 bytes of it are told.
    pub serial: String,
    /// Bytes of a logical block: 512 to 4096, a power of two.
    pub block_size: u32,
    /// Bytes below which writes cost more than they should; a power of two.
    pub physical_block_size: u32,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            read_only: false,
            serial: String::new(),
            block_size: 512,
            physical_block_size: 4096,
        }
    }
}

/// A disk.
pub struct Block {
    backend: Arc<dyn BlockBackend>,
    options: BlockOptions,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    workers: Workers,
    interrupt: Option<Arc<Interrupt>>,
}

/// What a queue's thread needs.
struct Disk {
    backend: Arc<dyn BlockBackend>,
    read_only: bool,
    serial: [u8; 20],
    /// The driver cannot ask for flushes, so every write is followed by one.
    write_through: bool,
}

impl Handler for Disk {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let written = execute(self, &chain, queue.memory())?;
            queue.push(chain, written)?;
        }
        Ok(Rest::Drained)
    }
}

impl Block {
    pub fn new(backend: Arc<dyn BlockBackend>, options: BlockOptions) -> Arc<Self> {
        let options = BlockOptions { queues: options.queues.clamp(1, 64), ..options };
        Arc::new(Self { backend, options, running: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend's size has changed: tells the driver.
    pub fn size_changed(&self) {
        if let Some(interrupt) = &self.lock().interrupt {
            interrupt.signal_configuration();
        }
    }

    fn configuration(&self) -> [u8; 60] {
        let mut bytes = [0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let options = &self.options;
        let blocks = (options.physical_block_size / options.block_size.max(1)).max(1);
        put(0, &(self.backend.size() / SECTOR).to_le_bytes());
        put(12, &LARGEST_SEGMENTS.to_le_bytes());
        put(20, &options.block_size.to_le_bytes());
        // Physical blocks as a power of two; best transfer sizes in logical ones.
        put(24, &[blocks.ilog2() as u8, 0]);
        put(26, &(blocks as u16).to_le_bytes());
        put(34, &options.queues.to_le_bytes());
        put(36, &LARGEST_RANGE.to_le_bytes());
        put(40, &MOST_RANGES.to_le_bytes());
        put(44, &blocks.to_le_bytes());
        put(48, &LARGEST_RANGE.to_le_bytes());
        put(52, &MOST_RANGES.to_le_bytes());
        // Zeroed ranges may be unmapped.
        put(56, &[1]);
        bytes
    }

    fn serial(&self) -> [u8; 20] {
        let mut serial = [0; 20];
        let bytes = self.options.serial.as_bytes();
        let length = bytes.len().min(serial.len());
        serial[..length].copy_from_slice(&bytes[..length]);
        serial
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        let mut features = SEGMENTS_MAX | BLOCK_SIZE | FLUSH | TOPOLOGY;
        if self.options.queues > 1 {
            features |= MULTIPLE_QUEUES;
        }
        features | if self.options.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.options.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.configuration();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let mut workers = Workers::default();
        for (index, queue) in session.queues.into_iter().enumerate() {
            let Some(queue) = queue else {
                // Further queues are the driver's choice.
                if index == 0 {
                    return Err(StartError::MissingQueue(0));
                }
                workers.add(None);
                continue;
            };
            let disk = Disk {
                backend: self.backend.clone(),
                read_only: self.options.read_only,
                serial: self.serial(),
                write_through: session.features & FLUSH == 0,
            };
            let interrupt = session.interrupt.clone();
            let name = format!("disk {index}");
            let worker = Worker::start(name, Kick::new()?, index as u16, queue, interrupt, disk)?;
            workers.add(Some(worker));
        }
        *self.lock() = Running { workers, interrupt: Some(session.interrupt) };
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let mut running = std::mem::take(&mut *self.lock());
        running.workers.stop()
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
