//! Many requests under way from one thread.
//!
//! A read or write whose bytes lie in the file as they are is handed to the
//! kernel in an io_uring; everything else (allocation, compression, metadata)
//! is done at once, the synchronous way, and completes immediately. While the
//! kernel works on a request the queue holds its buffer and a guard that keeps
//! its clusters from being used for something else.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use crate::error::{Error, Result};
use crate::format::{FormatKind, Guard, State};
use crate::graph::{Image, Node};

/// Pieces that one request may fall into on the ring.
const MAX_PIECES: usize = 16;

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

    fn stretches(&mut self) -> Vec<libc::iovec> {
        match self {
            Self::Owned(bytes) => {
                vec![libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }]
            }
            Self::Borrowed(Borrowed(stretches)) => stretches.clone(),
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

/// A request that the kernel works on.
struct Pending {
    tag: u64,
    offset: u64,
    write: bool,
    buffer: Option<Buffer>,
    /// Read by the kernel while it works: must stay where it is.
    pieces: Vec<Piece>,
    left: usize,
    failed: Option<io::Error>,
    short: bool,
    _guard: Guard,
}

struct Piece {
    fd: RawFd,
    offset: u64,
    stretches: Vec<libc::iovec>,
    len: usize,
}

/// One thread's queue to a disk.
pub struct Queue {
    /// What requests go through.
    node: Arc<dyn Node>,
    /// The image under all nodes, for requests that may go past them.
    image: Arc<Image>,
    /// Not where the kernel or a sandbox has none: then all is synchronous.
    ring: Option<IoUring>,
    slots: Vec<Option<Box<Pending>>>,
    free: Vec<usize>,
    under_way: usize,
    done: VecDeque<Completion>,
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
            under_way: 0,
            done: VecDeque::new(),
        }
    }

    /// Whether requests go through a ring here.
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Lets the kernel signal completions on an event descriptor. All of them, also those
    /// that `submit` finds done when it returns: what the kernel calls asynchronous leaves
    /// out reads that wait for the page cache, which end in the thread that sleeps.
    pub fn signal(&self, event: RawFd) -> Result<()> {
        let Some(ring) = &self.ring else { return Ok(()) };
        ring.submitter()
            .register_eventfd(event)
            .map_err(|e| Error::io("register an event for", "io_uring", e))
    }

    /// Requests that are not completed yet.
    pub fn under_way(&self) -> usize {
        self.under_way + self.done.len()
    }

    /// Takes a request. Completions come from `take`; call `submit` after a
    /// batch.
    pub fn push(&mut self, tag: u64, request: Request) {
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
        let guard = self.image.format().guard();
        let pieces = match self.pieces(offset, &mut buffer, write) {
            Ok(Some(pieces)) if self.ring.is_some() => pieces,
            Ok(_) => {
                drop(guard);
                let result = at_once(&*self.image, offset, &mut buffer, write);
                return self.complete(tag, result, Some(buffer));
            }
            Err(error) => return self.complete(tag, Err(error), Some(buffer)),
        };
        let left = pieces.len();
        let pending = Box::new(Pending {
            tag,
            offset,
            write,
            buffer: Some(buffer),
            pieces,
            left,
            failed: None,
            short: false,
            _guard: guard,
        });
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.under_way += 1;
        for number in 0..pending.pieces.len() {
            let piece = &pending.pieces[number];
            let (fd, count) = (types::Fd(piece.fd), piece.stretches.len() as u32);
            let user = (slot as u64) << 8 | number as u64;
            let entry = if write {
                opcode::Writev::new(fd, piece.stretches.as_ptr(), count)
                    .offset(piece.offset)
                    .build()
            } else {
                opcode::Readv::new(fd, piece.stretches.as_ptr(), count).offset(piece.offset).build()
            };
            self.enqueue(&entry.user_data(user));
        }
        self.slots[slot] = Some(pending);
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

    /// Where the bytes of a request are in files, if they are so in all of it.
    fn pieces(&self, offset: u64, buffer: &mut Buffer, write: bool) -> Result<Option<Vec<Piece>>> {
        let len = buffer.len() as u64;
        let size = self.image.size();
        crate::graph::check_range(offset, len, size)?;
        if len == 0 || write && !self.image.writable() {
            return Ok(None);
        }
        let format = self.image.format();
        let mut places = Vec::new();
        if write {
            match format.write_in_place(offset, len)? {
                Some(found) => places = found,
                None => return Ok(None),
            }
        } else {
            let mut at = offset;
            while at < offset + len {
                let rest = offset + len - at;
                // A raw disk's bytes are where they are, holes included.
                if format.kind() == FormatKind::Raw {
                    places.push((crate::format::Place { file: 0, offset: at }, rest));
                    break;
                }
                let extent = format.map(at, rest)?;
                let State::Data { at: place } = extent.state else { return Ok(None) };
                places.push((place, extent.len));
                at += extent.len;
                if places.len() > MAX_PIECES {
                    return Ok(None);
                }
            }
        }
        if places.len() > MAX_PIECES {
            return Ok(None);
        }
        let mut stretches: VecDeque<libc::iovec> = buffer.stretches().into();
        let mut pieces = Vec::with_capacity(places.len());
        for (place, len) in places {
            let storage = &format.storages()[usize::from(place.file)];
            let Some(fd) = storage.fd() else { return Ok(None) };
            let mut piece = Piece {
                fd: fd.as_raw_fd(),
                offset: place.offset,
                stretches: Vec::new(),
                len: len as usize,
            };
            let mut wanted = len as usize;
            while wanted > 0 {
                let Some(stretch) = stretches.pop_front() else { return Ok(None) };
                let take = stretch.iov_len.min(wanted);
                piece.stretches.push(libc::iovec { iov_base: stretch.iov_base, iov_len: take });
                if take < stretch.iov_len {
                    let rest = stretch.iov_base.cast::<u8>().wrapping_add(take);
                    stretches.push_front(libc::iovec {
                        iov_base: rest.cast(),
                        iov_len: stretch.iov_len - take,
                    });
                }
                wanted -= take;
            }
            pieces.push(piece);
        }
        Ok(Some(pieces))
    }

    /// Hands everything to the kernel.
    pub fn submit(&mut self) -> Result<()> {
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

    fn reap(&mut self) {
        loop {
            let Some(ring) = &mut self.ring else { return };
            let Some(entry) = ring.completion().next() else { return };
            let (slot, number) =
                ((entry.user_data() >> 8) as usize, (entry.user_data() & 0xff) as usize);
            let Some(Some(pending)) = self.slots.get_mut(slot) else { continue };
            match usize::try_from(entry.result()) {
                Ok(moved) => pending.short |= moved < pending.pieces[number].len,
                Err(_) => {
                    pending.failed = Some(io::Error::from_raw_os_error(-entry.result()));
                }
            }
            pending.left -= 1;
            if pending.left == 0
                && let Some(pending) = self.slots[slot].take()
            {
                self.free.push(slot);
                self.under_way -= 1;
                self.finish(*pending);
            }
        }
    }

    fn finish(&mut self, mut pending: Pending) {
        let retry = pending.failed.as_ref().is_some_and(|error| {
            matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EINVAL))
        });
        let mut buffer = pending.buffer.take();
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
        self.complete(pending.tag, result, buffer);
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
                    break;
                }
            }
        }
    }
}
