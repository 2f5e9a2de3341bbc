//! The balloon: memory that the guest does not need goes back to the host.
//!
//! The host sets a target, and the guest's driver gives up so many pages. Free page
//! reporting works without a target: the guest tells which pages it has freed, and
//! takes them again, empty, by touching them. Statistics are the guest's own.

pub(crate) mod pages;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::pages::{PAGE, release, runs};
use crate::device::{DeviceState, Session, StartError, VirtioDevice};
use crate::queue::{Chain, Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Handler, Kick, Rest, Worker, Workers};

const KIND: u16 = 5;
const CLASS: u32 = 0x05_0000;
const QUEUE_SIZE: u16 = 128;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// Feature bits.
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;

/// Page numbers of one request: a driver sends at most 256.
const MOST_PAGES: u64 = 16 << 10;
/// The configuration's field that the driver writes: pages it has given up.
const ACTUAL: u64 = 4;

/// Names of statistics by their tags.
const NAMES: [&str; 10] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
];

/// What is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    target: u32,
    actual: u32,
}

/// A balloon.
#[derive(Default)]
pub struct Balloon {
    shared: Arc<Shared>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Shared {
    /// In pages.
    target: AtomicU32,
    actual: AtomicU32,
    reported: Mutex<BTreeMap<&'static str, u64>>,
    /// Somebody wants newer statistics.
    wanted: AtomicBool,
}

#[derive(Default)]
struct Running {
    workers: Workers,
    interrupt: Option<Arc<Interrupt>>,
    /// The statistics' queue, if the driver has one.
    statistics: Option<u16>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Balloon {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Asks the guest to give up so many bytes of its memory in all.
    pub fn set_target(&self, bytes: u64) {
        let pages = (bytes / PAGE).min(u64::from(u32::MAX)) as u32;
        self.shared.target.store(pages, Ordering::SeqCst);
        if let Some(interrupt) = &lock(&self.running).interrupt {
            interrupt.signal_configuration();
        }
    }

    /// Bytes that the guest was asked for, and that it has given up.
    pub fn size(&self) -> (u64, u64) {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::SeqCst)) * PAGE;
        (bytes(&self.shared.target), bytes(&self.shared.actual))
    }

    /// What the guest said of its memory when it was last asked; asks it again.
    pub fn statistics(&self) -> BTreeMap<&'static str, u64> {
        let running = lock(&self.running);
        if let Some(queue) = running.statistics {
            self.shared.wanted.store(true, Ordering::SeqCst);
            running.workers.ring(queue);
        }
        lock(&self.shared.reported).clone()
    }
}

/// Pages that the guest gives up, by number.
struct Inflate;

impl Handler for Inflate {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let mut reader = chain.reader(queue.memory());
            let length = reader.remaining().min(4 * MOST_PAGES) & !3;
            let mut numbers = vec![0; length as usize];
            reader.read(&mut numbers)?;
            let numbers = numbers.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            for (address, length) in runs(numbers.collect()) {
                release(queue.memory(), address, length);
            }
            queue.push(chain, 0)?;
        }
        Ok(Rest::Drained)
    }
}

/// Pages that the guest takes back. It needs only to touch them.
struct Deflate;

impl Handler for Deflate {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            queue.push(chain, 0)?;
        }
        Ok(Rest::Drained)
    }
}

/// Free pages, as buffers.
struct Reports;

impl Handler for Reports {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let writer = chain.writer(queue.memory());
            let length = writer.remaining();
            for segment in writer.into_pieces(length) {
                release(queue.memory(), segment.address, u64::from(segment.length));
            }
            queue.push(chain, 0)?;
        }
        Ok(Rest::Drained)
    }
}

/// The driver hands in a buffer with statistics, and gets it back when newer ones are
/// wanted.
struct Statistics {
    shared: Arc<Shared>,
    held: Option<Chain>,
}

impl Statistics {
    fn read(&self, queue: &Queue, chain: &Chain) -> Result<(), QueueError> {
        let mut reader = chain.reader(queue.memory());
        let mut entry = [0; 10];
        let mut reported = lock(&self.shared.reported);
        // There is one of each kind.
        for _ in 0..2 * NAMES.len() {
            if reader.read(&mut entry)? < entry.len() {
                break;
            }
            let [a, b, value @ ..] = entry;
            if let Some(name) = NAMES.get(usize::from(u16::from_le_bytes([a, b]))) {
                reported.insert(name, u64::from_le_bytes(value));
            }
        }
        Ok(())
    }
}

impl Handler for Statistics {
    fn process(&mut self, queue: &mut Queue, _: &AtomicBool) -> Result<Rest, QueueError> {
        while let Some(chain) = queue.pop()? {
            self.read(queue, &chain)?;
            if let Some(older) = self.held.replace(chain) {
                queue.push(older, 0)?;
            }
        }
        if self.shared.wanted.swap(false, Ordering::SeqCst)
            && let Some(chain) = self.held.take()
        {
            queue.push(chain, 0)?;
        }
        Ok(Rest::Drained)
    }

    fn finish(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        if let Some(chain) = self.held.take() {
            queue.put_back(&chain);
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        STATISTICS | DEFLATE_ON_OOM | REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.shared.target.load(Ordering::SeqCst).to_le_bytes());
        bytes[4..].copy_from_slice(&self.shared.actual.load(Ordering::SeqCst).to_le_bytes());
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if offset == ACTUAL
            && let Ok(bytes) = data.try_into()
        {
            self.shared.actual.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        }
    }

    fn begin(&self, _: u64) {
        self.shared.actual.store(0, Ordering::SeqCst);
        lock(&self.shared.reported).clear();
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, features, interrupt } = session;
        // Queues of what was not negotiated are left out, and the others move up.
        let statistics = (features & STATISTICS != 0).then_some(2);
        let reports = (features & REPORTING != 0).then_some(2 + usize::from(statistics.is_some()));
        let mut running =
            Running { statistics: statistics.map(|queue| queue as u16), ..Running::default() };
        for (index, queue) in queues.into_iter().enumerate() {
            let Some(queue) = queue else {
                if index <= DEFLATE {
                    return Err(StartError::MissingQueue(index));
                }
                running.workers.add(None);
                continue;
            };
            let (number, interrupt) = (index as u16, interrupt.clone());
            let name = format!("balloon {index}");
            let kick = Kick::new()?;
            let worker = if index == INFLATE {
                Worker::serving(name, kick, number, queue, interrupt, Inflate)?
            } else if Some(index) == statistics {
                let handler = Statistics { shared: self.shared.clone(), held: None };
                Worker::serving(name, kick, number, queue, interrupt, handler)?
            } else if Some(index) == reports {
                Worker::serving(name, kick, number, queue, interrupt, Reports)?
            } else {
                Worker::serving(name, kick, number, queue, interrupt, Deflate)?
            };
            running.workers.add(Some(worker));
        }
        running.interrupt = Some(interrupt);
        *lock(&self.running) = running;
        Ok(())
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let mut running = std::mem::take(&mut *lock(&self.running));
        running.workers.stop()
    }

    fn notify(&self, queue: u16) {
        lock(&self.running).workers.ring(queue);
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        lock(&self.running).workers.doorbell(queue)
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            target: self.shared.target.load(Ordering::SeqCst),
            actual: self.shared.actual.load(Ordering::SeqCst),
        })
    }

    fn set_state(&self, state: &DeviceState) -> bool {
        let DeviceState::Balloon(saved) = state else { return false };
        self.shared.target.store(saved.target, Ordering::SeqCst);
        self.shared.actual.store(saved.actual, Ordering::SeqCst);
        true
    }
}

#[cfg(test)]
mod tests;
