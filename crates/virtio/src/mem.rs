//! Memory that comes and goes while the guest runs.
//!
//! A stretch of the guest's address space is set apart for it, in blocks. The host says
//! how much of it the guest is to have; the driver plugs blocks, as many as it was
//! granted, and unplugs those that it can do without. A block that is unplugged is
//! forgotten at once and costs the host nothing any more.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_engine::GuestMemory;
use serde::{Deserialize, Serialize};

use crate::balloon::pages::release;
use crate::device::{DeviceState, Session, StartError, VirtioDevice};
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Handler, Kick, Rest, Worker, Workers};

const KIND: u16 = 24;
const CLASS: u32 = 0x05_8000;
const QUEUE_SIZE: u16 = 64;

/// The unit in which memory comes and goes.
pub const BLOCK: u64 = 2 << 20;

/// Requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const REQUEST: usize = 24;

/// Answers, and what they say of a stretch.
const DONE: u16 = 0;
const REFUSED: u16 = 1;
const WRONG: u16 = 3;
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// What is saved: how much the guest is to have, and a bit for each block that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    requested: u64,
    plugged: Vec<u64>,
}

impl MemState {
    fn new(blocks: u64) -> Self {
        Self { requested: 0, plugged: vec![0; blocks.div_ceil(64) as usize] }
    }

    fn has(&self, block: u64) -> bool {
        self.plugged[(block / 64) as usize] >> (block % 64) & 1 != 0
    }

    fn count(&self) -> u64 {
        self.plugged.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn set(&mut self, blocks: Range<u64>, plugged: bool) {
        for block in blocks {
            let (word, bit) = (&mut self.plugged[(block / 64) as usize], 1 << (block % 64));
            *word = if plugged { *word | bit } else { *word & !bit };
        }
    }
}

/// The part of the guest's memory that it may have more or less of.
pub struct Mem {
    shared: Arc<Shared>,
    running: Mutex<Running>,
}

struct Shared {
    memory: GuestMemory,
    region: Range<u64>,
    state: Mutex<MemState>,
}

#[derive(Default)]
struct Running {
    workers: Workers,
    interrupt: Option<Arc<Interrupt>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mem {
    /// `region` is a part of the memory, and a whole number of blocks at a multiple of a
    /// block.
    pub fn new(memory: GuestMemory, region: Range<u64>) -> Arc<Self> {
        let state = Mutex::new(MemState::new((region.end - region.start) / BLOCK));
        let shared = Arc::new(Shared { memory, region, state });
        Arc::new(Self { shared, running: Mutex::default() })
    }

    /// Says how many bytes of the region the guest is to have, in whole blocks and at most
    /// all of it.
    pub fn request(&self, bytes: u64) {
        let region = &self.shared.region;
        let bytes = (bytes / BLOCK * BLOCK).min(region.end - region.start);
        lock(&self.shared.state).requested = bytes;
        if let Some(interrupt) = &lock(&self.running).interrupt {
            interrupt.signal_configuration();
        }
    }

    /// Bytes that the guest is to have, and that it has.
    pub fn size(&self) -> (u64, u64) {
        let state = lock(&self.shared.state);
        (state.requested, state.count() * BLOCK)
    }
}

impl Shared {
    /// The blocks that a request is about.
    fn blocks(&self, address: u64, count: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.region.start)?;
        let (first, end) = (offset / BLOCK, offset / BLOCK + u64::from(count));
        let inside = end <= (self.region.end - self.region.start) / BLOCK;
        (offset.is_multiple_of(BLOCK) && count > 0 && inside).then_some(first..end)
    }

    /// Does what the driver asks for. Returns the answer and what it says of a stretch.
    fn answer(&self, request: [u8; REQUEST]) -> (u16, u16) {
        let half = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let address = u64::from_le_bytes(request[8..16].try_into().unwrap_or_default());
        let mut state = lock(&self.state);
        if half(0) == UNPLUG_ALL {
            state.plugged.fill(0);
            release(&self.memory, self.region.start, self.region.end - self.region.start);
            return (DONE, 0);
        }
        let Some(blocks) = self.blocks(address, half(16)) else { return (WRONG, 0) };
        let here = blocks.clone().filter(|block| state.has(*block)).count() as u64;
        let all = blocks.end - blocks.start;
        match half(0) {
            PLUG if here > 0 => (WRONG, 0),
            PLUG if (state.count() + all) * BLOCK > state.requested => (REFUSED, 0),
            PLUG => {
                state.set(blocks, true);
                (DONE, 0)
            }
            UNPLUG if here < all => (WRONG, 0),
            UNPLUG => {
                state.set(blocks, false);
                release(&self.memory, address, all * BLOCK);
                (DONE, 0)
            }
            STATE if here == all => (DONE, PLUGGED),
            STATE if here == 0 => (DONE, UNPLUGGED),
            STATE => (DONE, MIXED),
            _ => (WRONG, 0),
        }
    }
}

/// The driver's requests.
struct Requests(Arc<Shared>);

impl Handler for Requests {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        while !stopping.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop()? else { break };
            let request = chain.reader(queue.memory()).read_array()?;
            let (answer, about) = self.0.answer(request);
            let mut bytes = [0; 10];
            bytes[..2].copy_from_slice(&answer.to_le_bytes());
            bytes[8..].copy_from_slice(&about.to_le_bytes());
            let written = chain.writer(queue.memory()).write(&bytes)?;
            queue.push(chain, written as u32)?;
        }
        Ok(Rest::Drained)
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    /// Blocks that are not plugged can be read, as zeros, and so none are needed.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let region = &self.shared.region;
        let size = region.end - region.start;
        let (requested, plugged) = self.size();
        // All of the region can be used, and belongs to the first node.
        let fields = [BLOCK, 0, region.start, size, size, plugged, requested];
        let bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, interrupt, .. } = session;
        let queue = queues.into_iter().next().flatten().ok_or(StartError::MissingQueue(0))?;
        let handler = Requests(self.shared.clone());
        let name = "memory".to_owned();
        let worker = Worker::serving(name, Kick::new()?, 0, queue, interrupt.clone(), handler)?;
        let mut running = lock(&self.running);
        running.workers.add(Some(worker));
        running.interrupt = Some(interrupt);
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
        DeviceState::Mem(lock(&self.shared.state).clone())
    }

    fn set_state(&self, state: &DeviceState) -> bool {
        let DeviceState::Mem(saved) = state else { return false };
        let mut ours = lock(&self.shared.state);
        let fits = saved.plugged.len() == ours.plugged.len();
        if fits {
            *ours = saved.clone();
        }
        fits
    }
}

#[cfg(test)]
mod tests;
