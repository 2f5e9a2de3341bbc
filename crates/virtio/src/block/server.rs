//! The thread of a disk's queue: requests go to a ring of the disk's own, come back in
//! any order, and wake the thread when they do. Where the policy says so, requests for which
//! the host's disk has no room stay here and are tried again until it has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guise_disk::device::{self as disk, BlockDevice};
use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::bitmap::Bitmap;
use guise_engine::memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use super::request::{Bounds, Failure, Range, Request, conclude, total};
use crate::queue::chain::Segment;
use crate::queue::{Chain, Queue, QueueError};
use crate::rate::{Limiter, Wait};
use crate::worker::{Handler, Rest};

/// When requests are tried again that found no room.
const RETRY: Duration = Duration::from_millis(500);

/// What a queue's thread needs.
pub struct Server {
    pub device: BlockDevice,
    pub ring: disk::Queue,
    pub read_only: bool,
    pub serial: [u8; 20],
    /// The driver cannot ask for flushes, so every write is followed by one.
    pub write_through: bool,
    pub limiter: Limiter,
    /// Requests wait for room on the host's disk, rather than fail without it.
    pub wait_for_space: bool,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// A request that waits for the rate limit.
    held: Option<(Chain, Request)>,
    /// Requests that found no room, and when to try them again.
    without_space: Vec<(Chain, Request)>,
    retry_at: Instant,
}

/// A read or write that the ring has.
struct Pending {
    chain: Chain,
    request: Request,
}

impl Server {
    pub fn new(
        device: BlockDevice,
        ring: disk::Queue,
        serial: [u8; 20],
        write_through: bool,
        limiter: Limiter,
        wait_for_space: bool,
    ) -> Self {
        let read_only = !device.writable();
        Self {
            device,
            ring,
            read_only,
            serial,
            write_through,
            limiter,
            wait_for_space,
            pending: Vec::new(),
            free: Vec::new(),
            held: None,
            without_space: Vec::new(),
            retry_at: Instant::now(),
        }
    }

    /// Begins a request, and ends it if it needs no waiting.
    fn begin(
        &mut self,
        queue: &mut Queue,
        chain: Chain,
        request: Request,
    ) -> Result<(), QueueError> {
        let result = match &request {
            Request::Read { .. } | Request::Write { .. } => {
                return self.transfer(queue, Pending { chain, request });
            }
            Request::Identify => {
                let length = conclude(&chain, queue.memory(), &self.serial, Ok(0))?;
                return queue.push(chain, length);
            }
            Request::Flush => self.device.flush(),
            Request::Discard(ranges) => {
                self.each(ranges, |device, range| device.discard(range.offset, range.length))
            }
            Request::WriteZeroes(ranges) => self.each(ranges, |device, range| {
                device.write_zeroes(range.offset, range.length, range.unmap)
            }),
        };
        self.end(queue, chain, request, result.map(|()| 0))
    }

    /// Gives a request back, or keeps it until there is room for it.
    fn end(
        &mut self,
        queue: &mut Queue,
        chain: Chain,
        request: Request,
        result: guise_disk::Result<u64>,
    ) -> Result<(), QueueError> {
        if let Err(error) = &result
            && error.is_no_space()
            && self.wait_for_space
        {
            if self.without_space.is_empty() {
                tracing::warn!(%error, "the guest's requests wait until there is room");
                self.retry_at = Instant::now() + RETRY;
            }
            self.without_space.push((chain, request));
            return Ok(());
        }
        let length = conclude(&chain, queue.memory(), &[], result.map_err(failed))?;
        queue.push(chain, length)
    }

    /// Tries again what found no room.
    fn retry(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        for (chain, request) in std::mem::take(&mut self.without_space) {
            self.begin(queue, chain, request)?;
        }
        Ok(())
    }

    fn each(
        &self,
        ranges: &[Range],
        run: impl Fn(&BlockDevice, &Range) -> guise_disk::Result<()>,
    ) -> guise_disk::Result<()> {
        for range in ranges {
            run(&self.device, range)?;
        }
        if self.write_through {
            self.device.flush()?;
        }
        Ok(())
    }

    fn transfer(&mut self, queue: &mut Queue, pending: Pending) -> Result<(), QueueError> {
        let (offset, data, write) = match &pending.request {
            Request::Read { offset, data } => (*offset, data, false),
            Request::Write { offset, data } => (*offset, data, true),
            _ => return Ok(()),
        };
        let stretches = stretches(queue.memory(), data)?;
        // SAFETY: the stretches lie in guest memory, which this thread's queue holds for as
        // long as the ring lives: the ring is dropped with its handler, before the queue,
        // and waits for what is under way. The guest may write there meanwhile; what then
        // reaches the disk is the guest's own affair.
        let buffer = unsafe { disk::Buffer::borrowed(stretches) };
        let tag = self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        self.pending[tag] = Some(pending);
        let request = if write {
            disk::Request::Write { offset, buffer }
        } else {
            disk::Request::Read { offset, buffer }
        };
        self.ring.push(tag as u64, request);
        Ok(())
    }

    /// Gives back what the ring has done.
    fn collect(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some(completion) = self.ring.take() {
            let tag = completion.tag as usize;
            let Some(pending) = self.pending.get_mut(tag).and_then(Option::take) else { continue };
            self.free.push(tag);
            let Pending { chain, request } = pending;
            let mut result = completion.result;
            let mut written = 0;
            if let Request::Read { data, .. } = &request {
                mark(queue.memory(), data);
                written = total(data);
            } else if self.write_through && result.is_ok() {
                result = self.device.flush();
            }
            self.end(queue, chain, request, result.map(|()| written))?;
        }
        Ok(())
    }

    fn take(&mut self, queue: &mut Queue) -> Result<Option<(Chain, Request)>, QueueError> {
        loop {
            let Some(chain) = queue.pop()? else { return Ok(None) };
            let bounds = Bounds { size: self.device.size(), read_only: self.read_only };
            match Request::parse(&chain, queue.memory(), bounds)? {
                Ok(request) => return Ok(Some((chain, request))),
                Err(failure) => {
                    let length = conclude(&chain, queue.memory(), &[], Err(failure))?;
                    queue.push(chain, length)?;
                }
            }
        }
    }
}

impl Handler for Server {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        self.collect(queue)?;
        if !self.without_space.is_empty() && Instant::now() >= self.retry_at {
            self.retry(queue)?;
        }
        let mut rest = Rest::Drained;
        while !stopping.load(Ordering::Relaxed) {
            let next = match self.held.take() {
                Some(held) => Some(held),
                None => self.take(queue)?,
            };
            let Some((chain, request)) = next else { break };
            if let Wait::For(time) = self.limiter.admit(request.bytes()) {
                self.held = Some((chain, request));
                rest = Rest::Until(time);
                break;
            }
            self.begin(queue, chain, request)?;
        }
        if let Err(error) = self.ring.submit() {
            tracing::warn!(%error, "requests wait for the ring");
        }
        self.collect(queue)?;
        if !self.without_space.is_empty() {
            let left = self.retry_at.saturating_duration_since(Instant::now());
            rest = match rest {
                Rest::Until(time) => Rest::Until(time.min(left)),
                _ => Rest::Until(left),
            };
        }
        Ok(rest)
    }

    fn finish(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        // The last try: what has no room now fails.
        self.wait_for_space = false;
        self.retry(queue)?;
        if let Some((chain, request)) = self.held.take() {
            self.begin(queue, chain, request)?;
        }
        loop {
            match self.ring.wait() {
                Ok(true) => self.collect(queue)?,
                Ok(false) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "requests of a disk are lost");
                    return Ok(());
                }
            }
        }
    }
}

fn failed(error: guise_disk::Error) -> Failure {
    tracing::warn!(%error, "a disk request failed");
    Failure::Io
}

/// Segments as memory of this process.
fn stretches(memory: &GuestMemory, data: &[Segment]) -> Result<Vec<libc::iovec>, QueueError> {
    let mut stretches = Vec::with_capacity(data.len());
    for segment in data {
        for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
            let slice = slice.map_err(|_| QueueError::Memory(segment.address))?;
            let guard = slice.ptr_guard_mut();
            stretches.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
        }
    }
    Ok(stretches)
}

/// Tells whoever asks that the ring has written here.
fn mark(memory: &GuestMemory, data: &[Segment]) {
    for segment in data {
        for slice in memory.get_slices(GuestAddress(segment.address), segment.length as usize) {
            // They were there when the request began, and memory does not go.
            let Ok(slice) = slice else { continue };
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}
