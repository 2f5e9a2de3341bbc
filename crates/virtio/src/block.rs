//! Disks.
//!
//! Each queue has a thread of its own with a ring of the host's kernel, so many requests
//! are under way at once and come back in any order; interrupts are sent for batches. Data
//! goes straight between the image and guest memory. A single read of what the host has in
//! memory needs none of that (`shortcut`).

mod flusher;
mod request;
mod server;
mod shortcut;
mod space;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_disk::device::BlockDevice;

use self::flusher::Flusher;
use self::server::Server;
use self::shortcut::Shortcut;
use self::space::Space;
pub use self::space::{Shortage, WhenFull};
use crate::device::{Session, StartError, VirtioDevice};
use crate::queue::Queue;
use crate::rate::{Limiter, Rate};
use crate::transport::Interrupt;
use crate::worker::{Kick, Worker, Workers};

const KIND: u16 = 2;
const CLASS: u32 = 0x01_8000;
/// With room for a megabyte of single pages in one request.
const QUEUE_SIZE: u16 = 512;

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
    /// At most 20 bytes of it are told.
    pub serial: String,
    /// Bytes of a logical block: 512 to 4096, a power of two.
    pub block_size: u32,
    /// Bytes below which writes cost more than they should; a power of two.
    pub physical_block_size: u32,
    pub rate: Rate,
    pub when_full: WhenFull,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            serial: String::new(),
            block_size: 512,
            physical_block_size: 4096,
            rate: Rate::default(),
            when_full: WhenFull::default(),
        }
    }
}

/// A disk.
pub struct Block {
    device: BlockDevice,
    options: BlockOptions,
    limiter: Limiter,
    space: Arc<Space>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    workers: Workers,
    /// By queue.
    shortcuts: Vec<Option<Arc<Shortcut>>>,
    interrupt: Option<Arc<Interrupt>>,
}

impl Block {
    /// A disk that cannot be written is read-only for the guest.
    pub fn new(device: BlockDevice, options: BlockOptions) -> Arc<Self> {
        let options = BlockOptions { queues: options.queues.clamp(1, 64), ..options };
        let limiter = Limiter::new(options.rate);
        let space = Arc::new(Space::new(options.when_full));
        Arc::new(Self { device, options, limiter, space, running: Mutex::default() })
    }

    /// What is behind it.
    pub fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// With [`WhenFull::Wait`]: what is to happen when a request begins to wait for space.
    /// It is called by a queue's thread, which must not be held up.
    pub fn on_full(&self, alarm: impl Fn(Shortage) + Send + Sync + 'static) {
        self.space.set_alarm(Box::new(alarm));
    }

    /// There may be space again: what waits for it is tried once more.
    pub fn retry(&self) {
        self.space.announce();
        self.lock().workers.ring_all();
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's size has changed: tells the driver.
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
        put(0, &(self.device.size() / SECTOR).to_le_bytes());
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
        features | if self.device.writable() { DISCARD | WRITE_ZEROES } else { READ_ONLY }
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
        let mut shortcuts = Vec::new();
        for (index, queue) in session.queues.into_iter().enumerate() {
            let Some(queue) = queue else {
                // Further queues are the driver's choice.
                if index == 0 {
                    return Err(StartError::MissingQueue(0));
                }
                workers.add(None);
                shortcuts.push(None);
                continue;
            };
            let kick = Kick::new()?;
            let ring = self.device.queue(u32::from(QUEUE_SIZE));
            let server = Server::new(
                self.device.clone(),
                ring,
                self.serial(),
                session.features & FLUSH == 0,
                self.limiter.clone(),
                Flusher::new(self.device.clone(), kick.clone()),
                self.space.clone(),
            );
            let interrupt = session.interrupt.clone();
            let name = format!("disk {index}");
            let worker = Worker::serving(name, kick, index as u16, queue, interrupt, server)?;
            shortcuts.push(self.limiter.is_none().then(|| {
                let (queue, interrupt) = (worker.queue().clone(), session.interrupt.clone());
                Arc::new(Shortcut::new(queue, index as u16, self.device.clone(), interrupt))
            }));
            workers.add(Some(worker));
        }
        *self.lock() = Running { workers, shortcuts, interrupt: Some(session.interrupt) };
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let mut running = std::mem::take(&mut *self.lock());
        running.workers.stop()
    }

    fn notify(&self, queue: u16) {
        let shortcut = self.lock().shortcuts.get(usize::from(queue)).cloned().flatten();
        if shortcut.is_some_and(|shortcut| shortcut.serves()) {
            return;
        }
        self.lock().workers.ring(queue);
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        self.lock().workers.doorbell(queue)
    }
}

#[cfg(test)]
mod tests;
