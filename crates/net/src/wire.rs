//! A network whose frames come and go through descriptors, each behind an
//! [`Offload`](crate::frame::Offload) as bytes ([`header`]): a port of a switch, or the
//! queues of a tap.
//!
//! What the driver does not take is cut and summed here ([`segment`]). Frames that the
//! kernel does not take at once wait, up to a limit; after that they are dropped and
//! counted, so one slow receiver costs a bounded piece of memory.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::frame::{Counters, Interface, Occupied, Offload, Reason};
use crate::outbox::{MOST_WAITING, Outbox};
use crate::{header, segment};

/// 64 KiB of IP packet and an Ethernet header with a VLAN tag.
pub const LARGEST_FRAME: usize = (64 << 10) + 18;
/// Frames that one call of `poll` takes at most, before the guest's have their turn.
const BATCH: usize = 256;

pub struct Wire {
    queues: Vec<Queue>,
    epoll: OwnedFd,
    counters: Counters,
    buffer: Vec<u8>,
    /// Frames for which the guest had no buffers; nothing is read while there are any.
    held: VecDeque<(Vec<u8>, Offload)>,
    /// The guest gives no buffers: waiting for it, not for the descriptors.
    starved: bool,
    hung_up: bool,
}

struct Queue {
    descriptor: OwnedFd,
    readable: bool,
    outbox: Outbox,
}

impl Wire {
    pub fn new(descriptors: Vec<OwnedFd>) -> rustix::io::Result<Wire> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut wire = Wire {
            queues: Vec::new(),
            epoll,
            counters: Counters::default(),
            buffer: vec![0; header::LENGTH + LARGEST_FRAME],
            held: VecDeque::new(),
            starved: false,
            hung_up: false,
        };
        wire.replace(descriptors)?;
        Ok(wire)
    }

    /// Goes on with other descriptors.
    pub fn replace(&mut self, descriptors: Vec<OwnedFd>) -> rustix::io::Result<()> {
        self.queues.clear();
        for (number, descriptor) in descriptors.into_iter().enumerate() {
            rustix::io::ioctl_fionbio(&descriptor, true)?;
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&self.epoll, &descriptor, EventData::new_u64(number as u64), flags)?;
            let queue = Queue { descriptor, readable: true, outbox: Outbox::default() };
            self.queues.push(queue);
        }
        self.hung_up = self.queues.is_empty();
        Ok(())
    }

    /// Whether the other end has gone.
    pub fn is_down(&self) -> bool {
        self.hung_up
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// At once, where a batch ended before the frames did.
    pub fn timer(&self) -> Option<Duration> {
        let more = !self.starved && self.queues.iter().any(|queue| queue.readable);
        more.then_some(Duration::ZERO)
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub fn occupied(&self) -> Vec<Occupied> {
        let waiting = self.queues.iter().map(|queue| queue.outbox.bytes()).sum();
        let most = MOST_WAITING * self.queues.len().max(1);
        vec![Occupied { what: "waiting-bytes", now: waiting, most }]
    }

    pub fn count_drop(&mut self, reason: Reason) {
        self.counters.drop_for(reason);
    }

    /// Takes a frame of the guest.
    pub fn input(&mut self, frame: &[u8], offload: Offload) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        if frame.len() > LARGEST_FRAME {
            return self.counters.drop_for(Reason::Malformed);
        }
        let number = if self.queues.len() > 1 { steer(frame, self.queues.len()) } else { 0 };
        let sent = match self.queues.get_mut(number) {
            Some(Queue { descriptor, outbox, .. }) if !self.hung_up => {
                outbox.send(descriptor, &header::build(&offload, 0), frame)
            }
            _ => Err(Reason::Unreachable),
        };
        if let Err(reason) = sent {
            self.counters.drop_for(reason);
        }
    }

    pub fn poll(&mut self, interface: &mut dyn Interface) {
        self.look();
        self.starved = false;
        while let Some((frame, offload)) = self.held.pop_front() {
            if !hand_over(&mut self.counters, interface, &frame, offload) {
                self.held.push_front((frame, offload));
                self.starved = true;
                return;
            }
        }
        let mut left = BATCH;
        for number in 0..self.queues.len() {
            while self.queues[number].readable && left > 0 && !self.starved && !self.hung_up {
                left -= 1;
                self.receive(number, interface);
            }
        }
    }

    /// What has happened to the descriptors.
    fn look(&mut self) {
        let mut events =
            [const { epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) } };
                16];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(count) = epoll::wait(&self.epoll, &mut events, Some(&now)) else { return };
        for event in &events[..count] {
            let (flags, number) = (event.flags, event.data.u64() as usize);
            let Some(queue) = self.queues.get_mut(number) else { continue };
            queue.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP);
            if flags.contains(EventFlags::OUT) && queue.outbox.drain(&queue.descriptor).is_err() {
                self.hung_up = true;
            }
            self.hung_up |= flags.intersects(EventFlags::HUP | EventFlags::ERR);
        }
    }

    /// Takes one frame in, straight into the guest's room where it takes it as it is.
    fn receive(&mut self, number: usize, interface: &mut dyn Interface) {
        let receives = interface.receives();
        let whole = receives.checksum && receives.tcp4 && receives.tcp6;
        let queue = &mut self.queues[number];
        let mut head = [0; header::LENGTH];
        let result = if whole {
            let Some(room) = interface.room(LARGEST_FRAME) else {
                self.starved = true;
                return;
            };
            let parts = &mut [IoSliceMut::new(&mut head), IoSliceMut::new(room)];
            rustix::io::readv(&queue.descriptor, parts)
        } else {
            let body = &mut self.buffer[..LARGEST_FRAME];
            let parts = &mut [IoSliceMut::new(&mut head), IoSliceMut::new(body)];
            rustix::io::readv(&queue.descriptor, parts)
        };
        let size = match result {
            Ok(0) => {
                self.hung_up = true;
                return;
            }
            Ok(size) => size.saturating_sub(header::LENGTH),
            Err(Errno::AGAIN) => {
                queue.readable = false;
                return;
            }
            Err(Errno::INTR) => return,
            Err(_) => {
                queue.readable = false;
                self.hung_up = true;
                return;
            }
        };
        let Some(offload) = header::parse(&head, size) else {
            return self.counters.drop_for(Reason::Malformed);
        };
        if whole {
            interface.deliver(size, offload);
            self.counters.frames_out += 1;
            self.counters.bytes_out += size as u64;
            return;
        }
        let (counters, held) = (&mut self.counters, &mut self.held);
        let adapted =
            segment::adapt(&mut self.buffer[..size], offload, receives, |frame, offload| {
                if !held.is_empty() || !hand_over(counters, interface, frame, offload) {
                    held.push_back((frame.to_vec(), offload));
                }
            });
        self.starved = !self.held.is_empty();
        if let Err(reason) = adapted {
            self.counters.drop_for(reason);
        }
    }
}

/// False when the guest has no buffers for the frame.
fn hand_over(
    counters: &mut Counters,
    interface: &mut dyn Interface,
    frame: &[u8],
    offload: Offload,
) -> bool {
    let Some(room) = interface.room(frame.len()) else { return false };
    room[..frame.len()].copy_from_slice(frame);
    interface.deliver(frame.len(), offload);
    counters.frames_out += 1;
    counters.bytes_out += frame.len() as u64;
    true
}

/// Frames of one flow keep to one queue.
fn steer(frame: &[u8], queues: usize) -> usize {
    let byte = |at: usize| usize::from(frame.get(at).copied().unwrap_or(0));
    let (from, to) = match [byte(12), byte(13)] {
        [0x08, 0x00] => (26, 38),
        [0x86, 0xdd] => (22, 58),
        _ => return 0,
    };
    (from..to).fold(0, |all: usize, at| all.wrapping_mul(31).wrapping_add(byte(at))) % queues
}
