//! The thread of an interface.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guise_net::frame::Network;
use guise_net::header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::receive::Receiver;
use super::{NetState, control, lock};
use crate::device::StartError;
use crate::queue::{Queue, QueueError};
use crate::rate::{Limiter, Wait};
use crate::transport::Interrupt;
use crate::worker::{Kick, Thread};

/// Frames that one queue sends before the others, and the host's side, have a turn.
const BATCH: usize = 64;
/// The largest frame: 64 KiB of IP packet, Ethernet and VLAN headers.
const LARGEST_FRAME: u64 = (64 << 10) + 18;

/// Queues by what they are for, with their numbers.
#[derive(Default)]
pub struct Queues {
    pub receive: Vec<(u16, Queue)>,
    pub transmit: Vec<(u16, Queue)>,
    pub control: Option<(u16, Queue)>,
}

/// What the thread works with besides queues.
pub struct Setup {
    pub network: Arc<Mutex<dyn Network>>,
    pub shared: Arc<Mutex<NetState>>,
    pub interrupt: Arc<Interrupt>,
    pub mergeable: bool,
    pub outgoing: Limiter,
    pub incoming: Limiter,
}

impl Queues {
    /// By number, of which there are `count`.
    pub fn into_numbered(self, count: usize) -> Vec<Option<Queue>> {
        let mut all: Vec<Option<Queue>> = (0..count).map(|_| None).collect();
        for (index, queue) in self.receive.into_iter().chain(self.transmit).chain(self.control) {
            all[usize::from(index)] = Some(queue);
        }
        all
    }
}

pub fn start(queues: Queues, setup: Setup) -> Result<Thread<Queues>, StartError> {
    let kick = Kick::new()?;
    let network = lock(&setup.network).descriptor().try_clone_to_owned();
    let network =
        network.map_err(|source| StartError::Host { doing: "watching a network", source })?;
    let server = Server {
        receiver: Receiver::new(
            queues.receive,
            setup.shared.clone(),
            setup.mergeable,
            setup.incoming,
        ),
        transmit: queues.transmit,
        control: queues.control,
        network: setup.network,
        shared: setup.shared,
        interrupt: setup.interrupt,
        outgoing: setup.outgoing,
        frame: Vec::new(),
    };
    let bell = kick.clone();
    Thread::start("net", "starting the thread of an interface", kick, move |stop| {
        server.run(&bell, &network, stop)
    })
}

struct Server {
    receiver: Receiver,
    transmit: Vec<(u16, Queue)>,
    control: Option<(u16, Queue)>,
    network: Arc<Mutex<dyn Network>>,
    shared: Arc<Mutex<NetState>>,
    interrupt: Arc<Interrupt>,
    outgoing: Limiter,
    frame: Vec<u8>,
}

/// What a round came to.
#[derive(Default)]
struct Round {
    /// Queues hold more frames.
    more: bool,
    /// Nothing more may be sent before so much time has passed.
    wait: Option<Duration>,
}

impl Server {
    fn run(mut self, kick: &Kick, network: &OwnedFd, stopping: &AtomicBool) -> Queues {
        if let Err(error) = self.serve(kick, network, stopping) {
            tracing::warn!(%error, "the driver broke a queue of an interface");
            self.interrupt.needs_reset();
        }
        Queues {
            receive: self.receiver.into_queues(),
            transmit: self.transmit,
            control: self.control,
        }
    }

    fn serve(
        &mut self,
        kick: &Kick,
        network: &OwnedFd,
        stopping: &AtomicBool,
    ) -> Result<(), QueueError> {
        while !stopping.load(Ordering::SeqCst) {
            self.quieten()?;
            self.answer_commands()?;
            let round = self.turn()?;
            self.signal()?;
            if round.more {
                continue;
            }
            if self.listen(round.wait.is_none())? {
                continue;
            }
            let timer = lock(&self.network).timer();
            let times = [timer, round.wait, self.receiver.wait];
            wait(kick, network, times.into_iter().flatten().min());
        }
        Ok(())
    }

    /// Sends and receives once. The network is locked for that time only.
    fn turn(&mut self) -> Result<Round, QueueError> {
        let network = self.network.clone();
        let mut network = lock(&network);
        let round = self.send(&mut *network)?;
        self.receiver.starved = false;
        self.receiver.wait = None;
        network.poll(&mut self.receiver);
        match self.receiver.broken.take() {
            Some(error) => Err(error),
            None => Ok(round),
        }
    }

    fn send(&mut self, network: &mut dyn Network) -> Result<Round, QueueError> {
        let link = lock(&self.shared).link;
        let mut round = Round::default();
        for (pair, (_, queue)) in self.transmit.iter_mut().enumerate() {
            for count in 0..=BATCH {
                if count == BATCH {
                    round.more = true;
                    break;
                }
                let Some(chain) = queue.pop()? else { break };
                let mut reader = chain.reader(queue.memory());
                let length = reader.remaining().saturating_sub(header::LENGTH as u64);
                if let Wait::For(time) = self.outgoing.admit(length) {
                    queue.put_back(&chain);
                    round.wait = Some(time);
                    break;
                }
                let header = reader.read_array()?;
                self.frame.resize(length.min(LARGEST_FRAME) as usize, 0);
                reader.read(&mut self.frame)?;
                queue.push(chain, 0)?;
                // What is too long or contradicts itself is lost, as on any cable.
                if link
                    && length <= LARGEST_FRAME
                    && let Some(offload) = header::parse(&header, self.frame.len())
                {
                    self.receiver.steer(&self.frame, pair);
                    network.input(&self.frame, offload);
                }
            }
        }
        Ok(round)
    }

    fn answer_commands(&mut self) -> Result<(), QueueError> {
        let pairs = self.receiver.rings.len() as u16;
        let Some((_, queue)) = &mut self.control else { return Ok(()) };
        while let Some(chain) = queue.pop()? {
            control::answer(queue, chain, &mut lock(&self.shared), pairs)?;
        }
        Ok(())
    }

    fn queues(&mut self) -> impl Iterator<Item = (u16, &mut Queue)> {
        let receive = self.receiver.rings.iter_mut().map(|ring| (ring.index, &mut ring.queue));
        let others = self.transmit.iter_mut().chain(&mut self.control);
        receive.chain(others.map(|(index, queue)| (*index, queue)))
    }

    /// The driver need not notify while this thread is awake.
    fn quieten(&mut self) -> Result<(), QueueError> {
        self.queues().try_for_each(|(_, queue)| queue.disable_notification())
    }

    fn signal(&mut self) -> Result<(), QueueError> {
        let interrupt = self.interrupt.clone();
        for (index, queue) in self.queues() {
            if queue.needs_interrupt()? {
                interrupt.signal_queue(index);
            }
        }
        Ok(())
    }

    /// Asks to be notified of what this thread waits for. Says whether something has
    /// come already.
    fn listen(&mut self, may_send: bool) -> Result<bool, QueueError> {
        let mut come = false;
        if let Some((_, queue)) = &mut self.control {
            come |= queue.enable_notification()?;
        }
        for (_, queue) in &mut self.transmit {
            if may_send {
                come |= queue.enable_notification()?;
            }
        }
        if self.receiver.starved {
            for ring in &mut self.receiver.rings {
                come |= ring.queue.enable_notification()?;
            }
        }
        Ok(come)
    }
}

/// Sleeps until the driver, the network or the clock has something.
fn wait(kick: &Kick, network: &OwnedFd, time: Option<Duration>) {
    let limit = time.and_then(|time| Timespec::try_from(time).ok());
    let mut fds = [
        PollFd::new(kick.fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(network.as_fd(), PollFlags::IN),
    ];
    if let Err(error) = poll(&mut fds, limit.as_ref())
        && error != rustix::io::Errno::INTR
    {
        tracing::error!(%error, "an interface cannot wait");
        // Better slow than at full speed.
        std::thread::sleep(Duration::from_millis(100));
    }
    if !fds[0].revents().is_empty() {
        kick.wait();
    }
}
