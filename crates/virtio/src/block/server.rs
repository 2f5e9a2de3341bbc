//! The thread of a disk's queue: requests go to a ring of the disk's own, come back in
//! any order, and wake the thread when they do.

use std::sync::atomic::{AtomicBool, Ordering};

use guise_disk::device::{self as disk, BlockDevice};

use super::request::{Bounds, Failure, Range, Request, conclude, total};
use crate::queue::chain::Segment;
use crate::queue::host::{mark, stretches};
use crate::queue::{Chain, Queue, QueueError};
use crate::rate::{Limiter, Wait};
use crate::worker::{Handler, Rest};

/// What a queue's thread needs.
pub struct Server {
    pub device: BlockDevice,
    pub ring: disk::Queue,
    pub read_only: bool,
    pub serial: [u8; 20],
    /// The driver cannot ask for flushes, so every write is followed by one.
    pub write_through: bool,
    pub limiter: Limiter,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// A request that waits for the rate limit.
    held: Option<(Chain, Request)>,
}

/// A read or write that the ring has.
struct Pending {
    chain: Chain,
    /// Where a read's data went; empty for writes.
    read: Vec<Segment>,
    written: u64,
}

impl Server {
    pub fn new(
        device: BlockDevice,
        ring: disk::Queue,
        serial: [u8; 20],
        write_through: bool,
        limiter: Limiter,
    ) -> Self {
        let read_only = !device.writable();
        Self {
            device,
            ring,
            read_only,
            serial,
            write_through,
            limiter,
            pending: Vec::new(),
            free: Vec::new(),
            held: None,
        }
    }

    /// Begins a request, and ends it if it needs no waiting.
    fn begin(
        &mut self,
        queue: &mut Queue,
        chain: Chain,
        request: Request,
    ) -> Result<(), QueueError> {
        let done = |result: guise_disk::Result<()>| result.map(|()| 0).map_err(failed);
        let outcome = match request {
            Request::Read { offset, data } => {
                let pending = Pending { chain, written: total(&data), read: data.clone() };
                return self.transfer(queue, pending, offset, &data, false);
            }
            Request::Write { offset, data } => {
                let pending = Pending { chain, written: 0, read: Vec::new() };
                return self.transfer(queue, pending, offset, &data, true);
            }
            Request::Identify => {
                let length = conclude(&chain, queue.memory(), &self.serial, Ok(0))?;
                return queue.push(chain, length);
            }
            Request::Flush => done(self.device.flush()),
            Request::Discard(ranges) => {
                self.each(&ranges, |device, range| device.discard(range.offset, range.length))
            }
            Request::WriteZeroes(ranges) => self.each(&ranges, |device, range| {
                device.write_zeroes(range.offset, range.length, range.unmap)
            }),
        };
        let length = conclude(&chain, queue.memory(), &[], outcome)?;
        queue.push(chain, length)
    }

    fn each(
        &self,
        ranges: &[Range],
        run: impl Fn(&BlockDevice, &Range) -> guise_disk::Result<()>,
    ) -> Result<u64, Failure> {
        for range in ranges {
            run(&self.device, range).map_err(failed)?;
        }
        if self.write_through {
            self.device.flush().map_err(failed)?;
        }
        Ok(0)
    }

    fn transfer(
        &mut self,
        queue: &mut Queue,
        pending: Pending,
        offset: u64,
        data: &[Segment],
        write: bool,
    ) -> Result<(), QueueError> {
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
            let mut result = completion.result;
            if !pending.read.is_empty() {
                mark(queue.memory(), &pending.read);
            } else if self.write_through && result.is_ok() {
                result = self.device.flush();
            }
            let outcome = result.map(|()| pending.written).map_err(failed);
            let length = conclude(&pending.chain, queue.memory(), &[], outcome)?;
            queue.push(pending.chain, length)?;
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
        Ok(rest)
    }

    fn finish(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
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
