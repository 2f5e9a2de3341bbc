//! Many requests under way from one thread.
//!
//! A read or write whose bytes lie in the file as they are is handed to the
//! kernel in an io_uring; everything else (allocation, compression, metadata)
//! is done at once, the synchronous way, and completes immediately. So are
//! small writes for which the kernel would wake a worker thread, which costs
//! several times what they do (`Storage::write_here`). While the kernel works
//! on a request the queue holds its buffer, and for all requests of a batch a
//! guard that keeps their clusters from being used for something else.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, types};

use crate::error::{Error, Result};
use crate::format::{FormatKind, Guard, Place, Run, State};
use crate::graph::{Image, Node};
use crate::storage::SharedStorage;

/// Pieces that one request may fall into on the ring.
const MAX_PIECES: usize = 16;

/// What the ring calls the bell of `wait_also_for`; no slot has this number.
const BELL: u64 = u64::MAX;

/// A write of up to so many bytes may be done on the calling thread.
const MOST_HERE: u64 = 64 << 10;

/// The memory of a request.
pub enum Buffer {
    /// Handed over, and back with the completion.
    Owned(Vec<u8>),
    /// Memory of somebody else, a guest's for instance.
    Borrowed(Borrowed),
}

/// Memory that stays valid elsewhere until the completion.
pub struct Borrowed(Vec<libc::iovec>);

// SAFETY: the pointers are only used by the queue, whose maker promised that
// they stay valid and unshared; they are not tied to a thread.
unsafe impl Send for Borrowed {}

impl Buffer {
    /// Memory that the caller keeps.
    ///
    /// # Safety
    ///
    /// All stretches must be valid for reading and writing until the request's
    /// completion was taken from the queue or the queue was dropped.
    pub unsafe fn borrowed(stretches: Vec<libc::iovec>) -> Self {
        Self::Borrowed(Borrowed(stretches))
    }

    /// The list of a borrowed one, whose memory can be used for another.
    pub fn into_list(self) -> Option<Vec<libc::iovec>> {
        match self {
            Self::Owned(_) => None,
            Self::Borrowed(Borrowed(stretches)) => Some(stretches),
        }
    }

    /// Bytes in total.
    pub fn len(&self) -> usize {
        match self {
            Self::Owned(bytes) => bytes.len(),
            Self::Borrowed(Borrowed(stretches)) => stretches.iter().map(|s| s.iov_len).sum(),
        }
    }

    /// Whether there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with_stretches<T>(&mut self, run: impl FnOnce(&[libc::iovec]) -> T) -> T {
        match self {
            Self::Owned(bytes) => {
                run(&[libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }])
            }
            Self::Borrowed(Borrowed(stretches)) => run(stretches),
        }
    }

    /// The stretches.
    pub(super) fn slices(&mut self) -> Vec<IoSliceMut<'_>> {
        match self {
            Self::Owned(bytes) => vec![IoSliceMut::new(bytes)],
            Self::Borrowed(Borrowed(stretches)) => {
                let slice = |stretch: &libc::iovec| {
                    // SAFETY: valid by the promise given to `borrowed`.
                    IoSliceMut::new(unsafe {
                        std::slice::from_raw_parts_mut(stretch.iov_base.cast(), stretch.iov_len)
                    })
                };
                stretches.iter().map(slice).collect()
            }
        }
    }

    /// Runs something on each stretch, with its position in the buffer.
    fn each(&mut self, mut run: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Owned(bytes) => run(0, bytes),
            Self::Borrowed(Borrowed(stretches)) => {
                let mut at = 0;
                for stretch in stretches.iter().filter(|stretch| stretch.iov_len > 0) {
                    // SAFETY: valid by the promise given to `borrowed`.
                    let bytes = unsafe {
                        std::slice::from_raw_parts_mut(stretch.iov_base.cast(), stretch.iov_len)
                    };
                    run(at, bytes)?;
                    at += stretch.iov_len as u64;
                }
                Ok(())
            }
        }
    }
}

/// What to do.
pub enum Request {
    Read { offset: u64, buffer: Buffer },
    Write { offset: u64, buffer: Buffer },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// A request that is done.
pub struct Completion {
    /// What the caller named it.
    pub tag: u64,
    pub result: Result<()>,
    /// The buffer of a read or a write.
    pub buffer: Option<Buffer>,
}

/// A request that the kernel works on. Its lists keep their memory for the
/// requests after it.
#[derive(Default)]
struct Pending {
    tag: u64,
    offset: u64,
    write: bool,
    buffer: Option<Buffer>,
    /// Read by the kernel while it works: must stay where they are.
    stretches: Vec<libc::iovec>,
    pieces: Vec<Piece>,
    left: usize,
    failed: Option<io::Error>,
    short: bool,
    /// Which of the queue's batches it belongs to.
    batch: usize,
}

/// Requests between two calls of `submit`, whose clusters one guard keeps.
#[derive(Default)]
struct Batch {
    guard: Guard,
    requests: usize,
}

/// What goes to one place of a file.
struct Piece {
    fd: RawFd,
    offset: u64,
    /// Which of the request's stretches.
    first: usize,
    count: usize,
    len: usize,
}

impl Pending {
    /// Cuts the buffer into pieces for the places. `false`: not for a ring.
    fn lay_out(&mut self, mut buffer: Buffer, runs: &[Run], files: &[SharedStorage]) -> bool {
        self.stretches.clear();
        self.pieces.clear();
        let (mut next, mut used) = (0, 0);
        let fits = buffer.with_stretches(|stretches| {
            for &(place, len) in runs {
                let Some(fd) = files[usize::from(place.file)].fd() else { return false };
                let (len, first) = (len as usize, self.stretches.len());
                let mut wanted = len;
                while wanted > 0 {
                    let Some(stretch) = stretches.get(next) else { return false };
                    let take = (stretch.iov_len - used).min(wanted);
                    let start = stretch.iov_base.cast::<u8>().wrapping_add(used);
                    self.stretches.push(libc::iovec { iov_base: start.cast(), iov_len: take });
                    wanted -= take;
                    used += take;
                    if used == stretch.iov_len {
                        (next, used) = (next + 1, 0);
                    }
                }
                let (fd, count) = (fd.as_raw_fd(), self.stretches.len() - first);
                self.pieces.push(Piece { fd, offset: place.offset, first, count, len });
            }
            true
        });
        self.buffer = Some(buffer);
        fits
    }

    /// A piece as the ring takes it.
    fn entry(&self, piece: &Piece) -> io_uring::squeue::Entry {
        let fd = types::Fd(piece.fd);
        let stretches = &self.stretches[piece.first..][..piece.count];
        let (list, count) = (stretches.as_ptr(), piece.count as u32);
        match (stretches, self.write) {
            ([one], true) => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                .offset(piece.offset)
                .build(),
            ([one], false) => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
                .offset(piece.offset)
                .build(),
            (_, true) => opcode::Writev::new(fd, list, count).offset(piece.offset).build(),
            (_, false) => opcode::Readv::new(fd, list, count).offset(piece.offset).build(),
        }
    }
}

/// One thread's queue to a disk.
pub struct Queue {
    /// What requests go through.
    node: Arc<dyn Node>,
    /// The image under all nodes, for requests that may go past them.
    image: Arc<Image>,
    /// Not where the kernel or a sandbox has none: then all is synchronous.
    ring: Option<IoUring>,
    slots: Vec<Pending>,
    free: Vec<usize>,
    /// Where the request that is being taken goes.
    runs: Vec<Run>,
    batches: Vec<Batch>,
    free_batches: Vec<usize>,
    /// The batch that takes requests.
    batch: Option<usize>,
    under_way: usize,
    done: VecDeque<Completion>,
    bell: Bell,
    /// It rang, and the caller has not been told.
    bell_rang: bool,
}

/// What the kernel does about the bell of `wait_also_for`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bell {
    Unknown,
    Watched,
    /// It cannot tell of more than one ring.
    Refused,
}

// SAFETY: the ring and the pointers in pending requests belong to the queue
// alone; a queue can move to another thread between calls.
unsafe impl Send for Queue {}

impl Queue {
    pub(super) fn new(node: Arc<dyn Node>, image: Arc<Image>, depth: u32) -> Self {
        let depth = depth.clamp(1, 4096).next_power_of_two();
        let entries = depth * 2;
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))
            .ok();
        Self {
            node,
            image,
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            runs: Vec::new(),
            batches: Vec::new(),
            free_batches: Vec::new(),
            batch: None,
            under_way: 0,
            done: VecDeque::new(),
            bell: Bell::Unknown,
            bell_rang: false,
        }
    }

    /// Whether requests go through a ring here.
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Readable while the kernel has completions that were not taken. An event descriptor
    /// would not do: for what is done by the time `submit` returns it would be rung in
    /// vain, and one that is only rung for what the kernel's own threads have done misses a
    /// read that waited for a page of the cache and ended in the submitter's name.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring, and so its descriptor, lives as long as `self` is borrowed.
        self.ring.as_ref().map(|ring| unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) })
    }

    /// Requests that are not completed yet.
    pub fn under_way(&self) -> usize {
        self.under_way + self.done.len()
    }

    /// Takes a request. Completions come from `take`; call `submit` after a
    /// batch.
    pub fn push(&mut self, tag: u64, request: Request) {
        if !matches!(request, Request::Read { .. } | Request::Write { .. }) {
            self.close_batch();
        }
        match request {
            Request::Read { offset, buffer } => self.transfer(tag, offset, buffer, false),
            Request::Write { offset, buffer } => self.transfer(tag, offset, buffer, true),
            Request::Flush => {
                let result = self.node.flush();
                self.complete(tag, result, None);
            }
            Request::Discard { offset, len } => {
                let result = self.node.discard(offset, len);
                self.complete(tag, result, None);
            }
            Request::WriteZeroes { offset, len, unmap } => {
                let result = self.node.write_zeroes(offset, len, unmap);
                self.complete(tag, result, None);
            }
        }
    }

    fn complete(&mut self, tag: u64, result: Result<()>, buffer: Option<Buffer>) {
        self.done.push_back(Completion { tag, result, buffer });
    }

    fn transfer(&mut self, tag: u64, offset: u64, mut buffer: Buffer, write: bool) {
        if !self.node.pass(write, buffer.len() as u64) {
            let result = at_once(&*self.node, offset, &mut buffer, write);
            return self.complete(tag, result, Some(buffer));
        }
        let batch = self.open_batch();
        let placed = self.place(offset, buffer.len() as u64, write);
        let result = match placed {
            Ok(true) if self.ring.is_some() => match self.write_here(&mut buffer, write) {
                Ok(false) => return self.hand_over(tag, offset, buffer, write, batch),
                result => result.map(drop),
            },
            Ok(_) => {
                self.close_batch();
                at_once(&*self.image, offset, &mut buffer, write)
            }
            Err(error) => Err(error),
        };
        self.complete(tag, result, Some(buffer));
    }

    /// Finds where the bytes of a request are in files, if they are so in all
    /// of it.
    fn place(&mut self, offset: u64, len: u64, write: bool) -> Result<bool> {
        crate::graph::check_range(offset, len, self.image.size())?;
        self.runs.clear();
        if len == 0 || write && !self.image.writable() {
            return Ok(false);
        }
        let format = self.image.format();
        if write {
            return Ok(format.write_in_place(offset, len, &mut self.runs)?
                && self.runs.len() <= MAX_PIECES);
        }
        // A raw disk's bytes are where they are, holes included.
        if format.kind() == FormatKind::Raw {
            self.runs.push((Place { file: 0, offset }, len));
            return Ok(true);
        }
        let mut at = offset;
        while at < offset + len {
            let extent = format.map(at, offset + len - at)?;
            let State::Data { at: place } = extent.state else { return Ok(false) };
            if self.runs.len() == MAX_PIECES {
                return Ok(false);
            }
            self.runs.push((place, extent.len));
            at += extent.len;
        }
        Ok(true)
    }

    /// Does a small write on this thread where a ring would be the long way.
    fn write_here(&self, buffer: &mut Buffer, write: bool) -> Result<bool> {
        let &[(place, len)] = &*self.runs else { return Ok(false) };
        if !write || len > MOST_HERE {
            return Ok(false);
        }
        let storage = &self.image.format().storages()[usize::from(place.file)];
        let mut all = true;
        buffer.each(|at, bytes| {
            all = all && storage.write_here(place.offset + at, bytes)?;
            Ok(())
        })?;
        Ok(all)
    }

    /// The batch for the next request. Its guard is there before places are
    /// asked for.
    fn open_batch(&mut self) -> usize {
        if let Some(batch) = self.batch {
            return batch;
        }
        let batch = self.free_batches.pop().unwrap_or_else(|| {
            self.batches.push(Batch::default());
            self.batches.len() - 1
        });
        self.batches[batch].guard = self.image.format().guard();
        self.batch = Some(batch);
        batch
    }

    /// No more requests come to the batch.
    fn close_batch(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.end_batch(batch);
        }
    }

    /// Lets the clusters go when the last request of a closed batch is done.
    fn end_batch(&mut self, batch: usize) {
        if self.batches[batch].requests == 0 {
            self.batches[batch].guard = Guard::default();
            self.free_batches.push(batch);
        }
    }

    /// Gives a request to the ring.
    fn hand_over(&mut self, tag: u64, offset: u64, buffer: Buffer, write: bool, batch: usize) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Pending::default());
            self.slots.len() - 1
        });
        let pending = &mut self.slots[slot];
        let fits = pending.lay_out(buffer, &self.runs, self.image.format().storages());
        if !fits {
            self.free.push(slot);
            let Some(mut buffer) = pending.buffer.take() else { return };
            self.close_batch();
            let result = at_once(&*self.image, offset, &mut buffer, write);
            return self.complete(tag, result, Some(buffer));
        }
        (pending.tag, pending.offset, pending.write) = (tag, offset, write);
        (pending.left, pending.failed, pending.short) = (pending.pieces.len(), None, false);
        pending.batch = batch;
        self.batches[batch].requests += 1;
        self.under_way += 1;
        for number in 0..self.slots[slot].pieces.len() {
            let pending = &self.slots[slot];
            let entry = pending.entry(&pending.pieces[number]);
            self.enqueue(&entry.user_data((slot as u64) << 8 | number as u64));
        }
    }

    fn enqueue(&mut self, entry: &io_uring::squeue::Entry) {
        let Some(ring) = &mut self.ring else { return };
        // SAFETY: the entry's stretches are in a box in `slots`, and the
        // memory they point to is held or promised, until the completion;
        // dropping the queue waits for all of them.
        while unsafe { ring.submission().push(entry) }.is_err() {
            // Full: handing over what is there makes room.
            if ring.submit().is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// Hands everything to the kernel.
    pub fn submit(&mut self) -> Result<()> {
        self.close_batch();
        let Some(first) = self.submit_once() else { return Ok(()) };
        let full = |error: &std::io::Error| {
            matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
        };
        let result = match first {
            Err(error) if full(&error) => {
                // The kernel takes more once its completions have been taken.
                self.reap();
                self.submit_once().unwrap_or(Ok(()))
            }
            result => result,
        };
        result.map_err(|e| Error::io("submit to", "io_uring", e))
    }

    /// One system call, if there is something to hand over.
    fn submit_once(&mut self) -> Option<std::io::Result<()>> {
        let ring = self.ring.as_mut()?;
        let something = !ring.submission().is_empty();
        something.then(|| ring.submit().map(drop))
    }

    /// The next completion, if there is one.
    pub fn take(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.reap();
        }
        self.done.pop_front()
    }

    /// Waits until there is a completion to take. `false`: nothing is under way.
    pub fn wait(&mut self) -> Result<bool> {
        self.close_batch();
        loop {
            self.reap();
            if !self.done.is_empty() {
                return Ok(true);
            }
            if self.under_way == 0 {
                return Ok(false);
            }
            let Some(ring) = &mut self.ring else { return Ok(false) };
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(Error::io("wait for", "io_uring", e)),
            }
        }
    }

    /// Whether `wait_also_for` can be used here.
    pub fn can_watch(&self) -> bool {
        self.ring.is_some() && self.bell != Bell::Refused
    }

    /// Hands everything to the kernel, and waits until there is a completion to take or
    /// `bell`, an event descriptor, has been rung. Says whether it may have rung. It is to
    /// be the same bell each time, and nobody has to read it: the kernel tells of each time
    /// that it is rung. So a wait is one system call; beside the ring's descriptor it would
    /// be three.
    pub fn wait_also_for(&mut self, bell: BorrowedFd<'_>) -> Result<bool> {
        self.close_batch();
        let failed = |error| Error::io("wait for", "io_uring", error);
        loop {
            self.reap();
            if !self.done.is_empty() || self.bell_rang {
                self.submit()?;
                return Ok(std::mem::take(&mut self.bell_rang));
            }
            let Some(ring) = &mut self.ring else { return Ok(true) };
            if self.bell == Bell::Unknown {
                let watch = opcode::PollAdd::new(types::Fd(bell.as_raw_fd()), libc::POLLIN as u32);
                let watch = watch.multi(true).build().user_data(BELL);
                // SAFETY: the entry leads to no memory.
                if unsafe { ring.submission().push(&watch) }.is_err() {
                    ring.submit().map_err(failed)?;
                    continue;
                }
                self.bell = Bell::Watched;
            }
            match ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let Some(ring) = &mut self.ring else { return };
            let Some(entry) = ring.completion().next() else { return };
            if entry.user_data() == BELL {
                self.bell_rang = true;
                if entry.result() < 0 {
                    self.bell = Bell::Refused;
                } else if !cqueue::more(entry.flags()) {
                    self.bell = Bell::Unknown;
                }
                continue;
            }
            let (slot, number) =
                ((entry.user_data() >> 8) as usize, (entry.user_data() & 0xff) as usize);
            let Some(pending) = self.slots.get_mut(slot) else { continue };
            match usize::try_from(entry.result()) {
                Ok(moved) => pending.short |= moved < pending.pieces[number].len,
                Err(_) => {
                    pending.failed = Some(io::Error::from_raw_os_error(-entry.result()));
                }
            }
            pending.left -= 1;
            if pending.left == 0 {
                self.under_way -= 1;
                self.finish(slot);
                self.free.push(slot);
            }
        }
    }

    fn finish(&mut self, slot: usize) {
        let pending = &mut self.slots[slot];
        let batch = pending.batch;
        let retry = pending.failed.as_ref().is_some_and(|error| {
            matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EINVAL))
        });
        let (tag, mut buffer) = (pending.tag, pending.buffer.take());
        let result = match (&mut buffer, pending.failed.take()) {
            // The end of the file, or memory that is not aligned for O_DIRECT:
            // the synchronous way knows what to do.
            (Some(buffer), _) if pending.short || retry => {
                at_once(&*self.image, pending.offset, buffer, pending.write)
            }
            (_, Some(error)) => {
                let action = if pending.write { "write to" } else { "read" };
                Err(Error::io(action, self.image.path().display().to_string(), error))
            }
            _ => Ok(()),
        };
        self.batches[batch].requests -= 1;
        if self.batch != Some(batch) {
            self.end_batch(batch);
        }
        self.complete(tag, result, buffer);
    }
}

/// The synchronous way.
fn at_once(node: &dyn Node, offset: u64, buffer: &mut Buffer, write: bool) -> Result<()> {
    buffer.each(
        |at, bytes| {
            if write { node.write(offset + at, bytes) } else { node.read(offset + at, bytes) }
        },
    )
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The kernel must not write to memory that is gone.
        while self.under_way > 0 {
            match self.wait() {
                Ok(true) => self.done.clear(),
                Ok(false) => break,
                // Closing the ring cancels what is left, and leaking its
                // memory keeps that sound.
                Err(_) => {
                    std::mem::forget(std::mem::take(&mut self.slots));
                    std::mem::forget(std::mem::take(&mut self.batches));
                    break;
                }
            }
        }
    }
}
