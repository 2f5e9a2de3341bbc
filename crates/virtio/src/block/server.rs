//! The thread of a disk's queue: requests go to a ring of the disk's own, come back in
//! any order, and wake the thread when they do.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guise_disk::device::{self as disk, BlockDevice};

use super::flusher::Flusher;
use super::request::{Bounds, Failure, Range, Request, conclude, data_of, room_of};
use super::space::Space;
use crate::queue::chain::Segment;
use crate::queue::host::{mark, stretches};
use crate::queue::{Chain, Queue, QueueError};
use crate::rate::{Limiter, Wait};
use crate::worker::{Handler, Kick, Rest};

/// Requests go to the ring, and back to the driver, so many at once. A longer batch would
/// cost fewer calls, but then it goes round as a whole: the disk has nothing to do while
/// the driver takes what is done and prepares the next, and the driver nothing while all of
/// them are at the disk. (Measured in `bench/io/results.md`.)
const AT_ONCE: usize = 4;

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
    flusher: Flusher,
    /// What is done, until the driver gets all of it at once: each time that it is told
    /// of something costs it and this thread a look at what the other has written.
    done: Vec<(Chain, u32)>,
    /// What the ring has given back, for their lists of pieces.
    lists: Vec<disk::Buffer>,
    space: Arc<Space>,
    /// Requests that wait for space on the host, and how much of the news of it they know.
    stalled: Vec<Chain>,
    news: u64,
}

/// A read or write that the ring has, or a flush that the flusher has.
struct Pending {
    chain: Chain,
    /// Bytes that a read puts into guest memory; of other requests none.
    read: u64,
}

impl Server {
    pub fn new(
        device: BlockDevice,
        ring: disk::Queue,
        serial: [u8; 20],
        write_through: bool,
        limiter: Limiter,
        flusher: Flusher,
        space: Arc<Space>,
    ) -> Self {
        let (read_only, news) = (!device.writable(), space.news());
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
            flusher,
            done: Vec::new(),
            lists: Vec::new(),
            space,
            stalled: Vec::new(),
            news,
        }
    }

    /// Begins a request, and ends it if it needs no waiting.
    fn begin(&mut self, queue: &Queue, chain: Chain, request: Request) -> Result<(), QueueError> {
        let result = match request {
            Request::Read { offset, length } => {
                let buffer = self.buffer(queue, room_of(&chain, queue.memory(), length))?;
                let tag = self.keep(Pending { chain, read: length }) as u64;
                self.ring.push(tag, disk::Request::Read { offset, buffer });
                return Ok(());
            }
            Request::Write { offset, length } => {
                let buffer = self.buffer(queue, data_of(&chain, queue.memory(), length))?;
                let tag = self.keep(Pending { chain, read: 0 }) as u64;
                self.ring.push(tag, disk::Request::Write { offset, buffer });
                return Ok(());
            }
            Request::Identify => {
                let length = conclude(&chain, queue.memory(), &self.serial, Ok(0))?;
                self.done.push((chain, length));
                return Ok(());
            }
            Request::Flush => {
                let tag = self.keep(Pending { chain, read: 0 });
                return match self.flusher.begin(tag) {
                    Some(result) => self.complete(queue, tag, result, false),
                    None => Ok(()),
                };
            }
            Request::Discard(ranges) => {
                self.each(&ranges, |device, range| device.discard(range.offset, range.length))
            }
            Request::WriteZeroes(ranges) => self.each(&ranges, |device, range| {
                device.write_zeroes(range.offset, range.length, range.unmap)
            }),
        };
        self.settle(queue, chain, result.map(|()| 0))
    }

    /// Gives a request back, unless it is to wait for space.
    fn settle(
        &mut self,
        queue: &Queue,
        chain: Chain,
        result: guise_disk::Result<u64>,
    ) -> Result<(), QueueError> {
        let outcome = match result {
            Err(error) if self.space.is_waited_for(&error, self.news) => {
                self.stalled.push(chain);
                return Ok(());
            }
            result => result.map_err(failed),
        };
        self.give_back(queue, chain, outcome)
    }

    /// The driver gets the request with the others that are done.
    fn give_back(
        &mut self,
        queue: &Queue,
        chain: Chain,
        outcome: Result<u64, Failure>,
    ) -> Result<(), QueueError> {
        let length = conclude(&chain, queue.memory(), &[], outcome)?;
        self.done.push((chain, length));
        Ok(())
    }

    /// Begins what waits for space once more, if there is news.
    fn retry(&mut self, queue: &Queue) -> Result<(), QueueError> {
        let news = self.space.news();
        if std::mem::replace(&mut self.news, news) == news {
            return Ok(());
        }
        for chain in std::mem::take(&mut self.stalled) {
            if let Some((chain, request)) = self.parse(queue, chain)? {
                self.begin(queue, chain, request)?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, pending: Pending) -> usize {
        let tag = self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        self.pending[tag] = Some(pending);
        tag
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

    /// Guest memory for the ring.
    fn buffer(
        &mut self,
        queue: &Queue,
        data: impl Iterator<Item = Segment>,
    ) -> Result<disk::Buffer, QueueError> {
        let list = self.lists.pop().and_then(disk::Buffer::into_list);
        let mut list = list.unwrap_or_default();
        list.clear();
        stretches(queue.memory(), data, &mut list)?;
        // SAFETY: the stretches lie in guest memory, which this thread's queue holds for as
        // long as the ring lives: the ring is dropped with its handler, before the queue,
        // and waits for what is under way. The guest may write there meanwhile; what then
        // reaches the disk is the guest's own affair.
        Ok(unsafe { disk::Buffer::borrowed(list) })
    }

    /// The disk begins with what the ring has got.
    fn hand_over(&mut self) {
        if let Err(error) = self.ring.submit() {
            tracing::warn!(%error, "requests wait for the ring");
        }
    }

    /// Gives back what the ring has done.
    fn collect(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        while let Some(completion) = self.ring.take() {
            self.lists.extend(completion.buffer);
            self.complete(queue, completion.tag as usize, completion.result, true)?;
            if self.done.len() >= AT_ONCE {
                queue.push_all(&mut self.done)?;
            }
        }
        while let Some((tag, result)) = self.flusher.take() {
            self.complete(queue, tag, result, false)?;
        }
        queue.push_all(&mut self.done)
    }

    fn complete(
        &mut self,
        queue: &Queue,
        tag: usize,
        mut result: guise_disk::Result<()>,
        moved_data: bool,
    ) -> Result<(), QueueError> {
        let Some(pending) = self.pending.get_mut(tag).and_then(Option::take) else { return Ok(()) };
        self.free.push(tag);
        if pending.read > 0 {
            let memory = queue.memory();
            mark(memory, room_of(&pending.chain, memory, pending.read));
        } else if moved_data && self.write_through && result.is_ok() {
            result = self.device.flush();
        }
        self.settle(queue, pending.chain, result.map(|()| pending.read))
    }

    fn take(&mut self, queue: &mut Queue) -> Result<Option<(Chain, Request)>, QueueError> {
        loop {
            let Some(chain) = queue.pop()? else { return Ok(None) };
            if let Some(found) = self.parse(queue, chain)? {
                return Ok(Some(found));
            }
        }
    }

    /// Reads a chain. One that asks for what cannot be is given back at once.
    fn parse(
        &mut self,
        queue: &Queue,
        chain: Chain,
    ) -> Result<Option<(Chain, Request)>, QueueError> {
        let bounds = Bounds { size: self.device.size(), read_only: self.read_only };
        match Request::parse(&chain, queue.memory(), bounds)? {
            Ok(request) => Ok(Some((chain, request))),
            Err(failure) => {
                self.give_back(queue, chain, Err(failure))?;
                Ok(None)
            }
        }
    }
}

impl Handler for Server {
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError> {
        self.collect(queue)?;
        self.retry(queue)?;
        let mut rest = Rest::Drained;
        let mut begun = 0;
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
            begun += 1;
            if begun % AT_ONCE == 0 {
                self.hand_over();
            }
        }
        self.collect(queue)?;
        Ok(rest)
    }

    /// Hands requests over and waits in the ring, for what is under way and for the kick.
    fn wait(&mut self, kick: &Kick, time: Option<Duration>) -> bool {
        if time.is_none() && self.ring.can_watch() {
            match self.ring.wait_also_for(kick.fd().as_fd()) {
                Ok(rung) => return rung,
                Err(error) => tracing::warn!(%error, "requests are waited for beside the ring"),
            }
        }
        self.hand_over();
        kick.wait_also_for(self.ring.descriptor(), time)
    }

    fn finish(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        if let Some((chain, request)) = self.held.take() {
            self.begin(queue, chain, request)?;
        }
        while let Some((tag, result)) = self.flusher.wait() {
            self.complete(queue, tag, result, false)?;
        }
        loop {
            match self.ring.wait() {
                Ok(true) => self.collect(queue)?,
                Ok(false) => break,
                Err(error) => {
                    tracing::error!(%error, "requests of a disk are lost");
                    break;
                }
            }
        }
        // They cannot be put back, and there is nobody left to wait.
        for chain in std::mem::take(&mut self.stalled) {
            self.give_back(queue, chain, Err(Failure::Io))?;
        }
        queue.push_all(&mut self.done)
    }
}

fn failed(error: guise_disk::Error) -> Failure {
    tracing::warn!(%error, "a disk request failed");
    Failure::Io
}
