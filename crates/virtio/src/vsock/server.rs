//! The thread of the device. It sleeps until the driver, a stream or this process has
//! something for it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::host::Host;
use super::switch::{Delivery, Switch};
use super::{EVENTS, RECEIVE, TRANSMIT};
use crate::device::StartError;
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Kick, Thread};

/// Packets of the guest that are taken before its streams have a turn.
const BATCH: usize = 64;
/// What the event says after which the driver's connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// What is watched besides streams, which are told by numbers from `STREAMS` on.
const KICK: u64 = 0;
const BELL: u64 = 1;
const SOCKET: u64 = 2;
const STREAMS: u64 = 3;

pub struct Queues {
    pub receive: Queue,
    pub transmit: Queue,
    pub events: Queue,
}

pub fn start(
    queues: Queues,
    switch: Switch,
    host: Arc<Host>,
    interrupt: Arc<Interrupt>,
) -> Result<Thread<(Queues, Switch)>, StartError> {
    let kick = Kick::new()?;
    let failed = |source: rustix::io::Errno| StartError::Host {
        doing: "watching sockets",
        source: source.into(),
    };
    let poll = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
    let watch = |fd: &dyn AsFd, token| {
        epoll::add(&poll, fd.as_fd(), EventData::new_u64(token), EventFlags::IN)
    };
    watch(kick.fd(), KICK).map_err(failed)?;
    watch(host.bell().fd(), BELL).map_err(failed)?;
    if let Some(socket) = host.socket() {
        watch(socket, SOCKET).map_err(failed)?;
    }
    let mut server = Server { queues, switch, host, interrupt, poll, kick: kick.clone() };
    server.watch_streams(true);
    Thread::start("vsock", "starting the thread of the sockets", kick, move |stop| server.run(stop))
}

struct Server {
    queues: Queues,
    switch: Switch,
    host: Arc<Host>,
    interrupt: Arc<Interrupt>,
    poll: OwnedFd,
    kick: Kick,
}

impl Server {
    fn run(mut self, stopping: &AtomicBool) -> (Queues, Switch) {
        if let Err(error) = self.serve(stopping) {
            tracing::warn!(%error, "the driver broke a queue of its sockets");
            self.interrupt.needs_reset();
        }
        (self.queues, self.switch)
    }

    /// Streams tell of every change once.
    fn watch_streams(&mut self, all: bool) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        for (token, stream) in self.switch.unwatched(all) {
            let data = EventData::new_u64(STREAMS + token);
            if let Err(error) = epoll::add(&self.poll, stream, data, flags) {
                tracing::error!(%error, "a socket is not watched, and stands still");
            }
        }
    }

    fn serve(&mut self, stopping: &AtomicBool) -> Result<(), QueueError> {
        while !stopping.load(Ordering::SeqCst) {
            self.queues.receive.disable_notification()?;
            self.queues.transmit.disable_notification()?;
            self.switch.admit();
            let more = self.take_packets()?;
            let delivery = self.switch.deliver(&mut self.queues.receive)?;
            self.announce()?;
            self.watch_streams(false);
            self.signal()?;
            if more || delivery == Delivery::More {
                self.look(false);
                continue;
            }
            let starved = delivery == Delivery::Starved;
            // What the driver gives is of no use before what it lacks has come.
            let congested = self.switch.is_congested();
            let came = (starved && self.queues.receive.enable_notification()?)
                || (!congested && self.queues.transmit.enable_notification()?)
                || (self.switch.announce_reset && self.queues.events.enable_notification()?);
            self.look(!came);
        }
        Ok(())
    }

    /// Takes packets from the guest. Says whether there may be more to take.
    fn take_packets(&mut self) -> Result<bool, QueueError> {
        let queue = &mut self.queues.transmit;
        for _ in 0..BATCH {
            if self.switch.is_congested() {
                return Ok(false);
            }
            let Some(chain) = queue.pop()? else { return Ok(false) };
            self.switch.take(&mut chain.reader(queue.memory()))?;
            queue.push(chain, 0)?;
        }
        Ok(true)
    }

    /// Tells a driver that was moved here that its connections are gone.
    fn announce(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.queues.events;
        if self.switch.announce_reset
            && let Some(chain) = queue.pop()?
        {
            let written = chain.writer(queue.memory()).write(&TRANSPORT_RESET.to_le_bytes())?;
            queue.push(chain, written as u32)?;
            self.switch.announce_reset = false;
        }
        Ok(())
    }

    fn signal(&mut self) -> Result<(), QueueError> {
        let Queues { receive, transmit, events } = &mut self.queues;
        for (queue, index) in [(receive, RECEIVE), (transmit, TRANSMIT), (events, EVENTS)] {
            if queue.needs_interrupt()? {
                self.interrupt.signal_queue(index);
            }
        }
        Ok(())
    }

    /// Sees what has happened, or waits until something has.
    fn look(&mut self, wait: bool) {
        let mut space = [const { MaybeUninit::<Event>::uninit() }; 64];
        let now = rustix::event::Timespec::default();
        let limit = if wait { None } else { Some(&now) };
        let events = match epoll::wait(&self.poll, &mut space, limit) {
            Ok((events, _)) => events,
            // A signal is as good as an event.
            Err(_) => return,
        };
        for event in events {
            // Copied out, because the kernel's structure is packed.
            let Event { flags, data } = *event;
            match data.u64() {
                KICK => self.kick.wait(),
                BELL => self.host.bell().wait(),
                SOCKET => {}
                stream => self.switch.event(stream - STREAMS, flags),
            }
        }
    }
}
