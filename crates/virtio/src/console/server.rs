//! The thread of the control queues and of all ports but the terminal's. It sleeps until
//! the driver or a process at one of the sockets has something for it.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conversation::Conversation;
use super::port::{Arrived, Client, Port};
use crate::device::StartError;
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;
use crate::worker::{Kick, Thread};

/// The first queue that is this thread's, by number: to the driver, and from it.
pub const CONTROL: u16 = 2;
/// Chains that are taken from one queue before the others have a turn.
const BATCH: usize = 64;
/// Data are passed on in pieces of this size at most.
const PIECE: usize = 16 << 10;

/// The size of the window, which any thread may change: columns, and rows above them.
#[derive(Default)]
pub struct Window {
    size: AtomicU32,
    changed: AtomicBool,
}

impl Window {
    pub fn get(&self) -> (u16, u16) {
        let size = self.size.load(Ordering::SeqCst);
        (size as u16, (size >> 16) as u16)
    }

    /// Says whether it is another one.
    pub fn set(&self, columns: u16, rows: u16) -> bool {
        let size = u32::from(columns) | u32::from(rows) << 16;
        let changed = self.size.swap(size, Ordering::SeqCst) != size;
        self.changed.fetch_or(changed, Ordering::SeqCst);
        changed
    }
}

/// The queues of the control conversation and of the ports that have names.
pub struct Queues {
    pub to_driver: Queue,
    pub from_driver: Queue,
    /// To the guest, and from it.
    pub ports: Vec<(Queue, Queue)>,
}

impl Queues {
    /// In the order of their numbers, from [`CONTROL`] on.
    pub fn into_list(self) -> impl Iterator<Item = Queue> {
        let ports = self.ports.into_iter().flat_map(|(receive, transmit)| [receive, transmit]);
        [self.to_driver, self.from_driver].into_iter().chain(ports)
    }
}

pub fn start(
    queues: Queues,
    conversation: Conversation,
    ports: Vec<Arc<Port>>,
    window: Arc<Window>,
    interrupt: Arc<Interrupt>,
) -> Result<Thread<(Queues, Conversation)>, StartError> {
    let kick = Kick::new()?;
    let watch = vec![Watch::default(); ports.len()];
    let mut server =
        Server { queues, conversation, ports, window, interrupt, kick: kick.clone(), watch };
    Thread::start("console ports", "starting the thread of a console's ports", kick, move |stop| {
        if let Err(error) = server.serve(stop) {
            tracing::warn!(%error, "the driver broke a queue of its ports");
            server.interrupt.needs_reset();
        }
        (server.queues, server.conversation)
    })
}

/// What keeps a port from going on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Watch {
    /// The driver has given no buffer for what comes from the host.
    starved: bool,
    /// The process on the host does not read what comes from the guest.
    blocked: bool,
}

struct Server {
    queues: Queues,
    conversation: Conversation,
    ports: Vec<Arc<Port>>,
    window: Arc<Window>,
    interrupt: Arc<Interrupt>,
    kick: Kick,
    watch: Vec<Watch>,
}

impl Server {
    fn serve(&mut self, stopping: &AtomicBool) -> Result<(), QueueError> {
        while !stopping.load(Ordering::SeqCst) {
            self.queues.from_driver.disable_notification()?;
            self.queues.to_driver.disable_notification()?;
            let mut more = self.listen()?;
            for index in 0..self.ports.len() {
                more |= self.serve_port(index)?;
            }
            let unheard = self.tell()?;
            self.signal()?;
            more |= self.queues.from_driver.enable_notification()?;
            more |= unheard && self.queues.to_driver.enable_notification()?;
            for (watch, (receive, transmit)) in self.watch.iter().zip(&mut self.queues.ports) {
                more |= watch.starved && receive.enable_notification()?;
                more |= !watch.blocked && transmit.enable_notification()?;
            }
            self.sleep(!more);
        }
        Ok(())
    }

    /// Takes what the driver says. Says whether there may be more.
    fn listen(&mut self) -> Result<bool, QueueError> {
        let queue = &mut self.queues.from_driver;
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { return Ok(false) };
            let message = chain.reader(queue.memory()).read_array()?;
            self.conversation.hear(message);
            queue.push(chain, 0)?;
        }
        Ok(true)
    }

    /// Tells the driver what there is to tell. Says whether it listens too little.
    fn tell(&mut self) -> Result<bool, QueueError> {
        if self.window.changed.swap(false, Ordering::SeqCst) {
            self.conversation.size_changed();
        }
        let queue = &mut self.queues.to_driver;
        while self.conversation.has_news() {
            let Some(chain) = queue.pop()? else { return Ok(true) };
            let ports = &self.ports;
            let name = |number: usize| ports.get(number.wrapping_sub(1)).map_or("", |p| p.name());
            let message = self.conversation.next(name, self.window.get()).unwrap_or_default();
            let written = chain.writer(queue.memory()).write(&message)?;
            queue.push(chain, written as u32)?;
        }
        Ok(false)
    }

    /// Moves data both ways. Says whether there may be more to move.
    fn serve_port(&mut self, index: usize) -> Result<bool, QueueError> {
        let number = index + 1;
        let port = self.ports[index].clone();
        let mut client = port.client();
        if client.is_none() && self.conversation.may_come(number) {
            *client = port.visitor();
        }
        let connected = client.is_some();
        if connected != self.conversation.ports[number].host_open {
            self.conversation.set_host_open(number, connected);
        }
        let (receive, transmit) = &mut self.queues.ports[index];
        receive.disable_notification()?;
        transmit.disable_notification()?;
        let state = &mut self.conversation.ports[number];
        let watch = &mut self.watch[index];
        *watch = Watch::default();

        // From the guest. What it writes while nobody is connected goes nowhere.
        let mut drained = false;
        let mut budget = BATCH;
        while budget > 0 && !watch.blocked {
            budget -= 1;
            let Some(chain) = transmit.pop()? else {
                drained = true;
                break;
            };
            if let Some(client) = client.as_mut() {
                let mut reader = chain.reader(transmit.memory());
                reader.skip(state.sent);
                let mut piece = vec![0; reader.remaining().min(PIECE as u64) as usize];
                while reader.remaining() > 0 && !client.hung_up && !watch.blocked && budget > 0 {
                    budget -= 1;
                    let length = reader.read(&mut piece)?;
                    let sent = client.write(&piece[..length]);
                    state.sent += sent as u64;
                    watch.blocked = sent < length && !client.hung_up;
                }
                if watch.blocked || reader.remaining() > 0 && !client.hung_up {
                    transmit.put_back(&chain);
                    break;
                }
            }
            state.sent = 0;
            transmit.push(chain, 0)?;
        }

        // To the guest, once one of its programs has opened the port.
        let mut buffer = [0; PIECE];
        for _ in 0..BATCH {
            let reading = |client: &&mut Client| state.guest_open && !client.input_ended;
            let Some(client) = client.as_mut().filter(reading) else { break };
            let Some(chain) = receive.pop()? else {
                watch.starved = true;
                break;
            };
            let mut writer = chain.writer(receive.memory());
            let arrived = match writer.remaining().min(PIECE as u64) as usize {
                // A buffer without room is no buffer.
                0 => Arrived::Data(0),
                room => client.read(&mut buffer[..room]),
            };
            let Arrived::Data(length) = arrived else {
                receive.put_back(&chain);
                break;
            };
            let written = writer.write(&buffer[..length])?;
            receive.push(chain, written as u32)?;
        }

        let ended = state.ending && drained;
        let gone = client.as_ref().is_some_and(|client| client.hung_up && client.input_ended);
        state.ending &= !ended;
        if client.is_some() && (ended || gone) {
            *client = None;
            self.conversation.set_host_open(number, false);
        }
        Ok(!drained && !watch.blocked)
    }

    fn signal(&mut self) -> Result<(), QueueError> {
        let Queues { to_driver, from_driver, ports } = &mut self.queues;
        let ports = ports.iter_mut().flat_map(|(receive, transmit)| [receive, transmit]);
        for (number, queue) in (CONTROL..).zip([to_driver, from_driver].into_iter().chain(ports)) {
            if queue.needs_interrupt()? {
                self.interrupt.signal_queue(number);
            }
        }
        Ok(())
    }

    /// Sees what has happened, or waits until something has. A connection on which nothing
    /// can be done is not looked at, because that it has ended would be told without end.
    fn sleep(&self, wait: bool) {
        let clients: Vec<_> = self.ports.iter().map(|port| port.client()).collect();
        let mut fds = vec![PollFd::new(self.kick.fd(), PollFlags::IN)];
        let mut whose = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            let (state, watch) = (&self.conversation.ports[index + 1], self.watch[index]);
            let Some(client) = &**client else {
                if self.conversation.may_come(index + 1) {
                    fds.push(PollFd::new(self.ports[index].listener(), PollFlags::IN));
                    whose.push(None);
                }
                continue;
            };
            let reads = state.guest_open && !client.input_ended && !watch.starved;
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, reads);
            wanted.set(PollFlags::OUT, watch.blocked);
            if !wanted.is_empty() || client.input_ended {
                fds.push(PollFd::from_borrowed_fd(client.stream.as_fd(), wanted));
                whose.push(Some(index));
            }
        }
        let now = Timespec::default();
        // A signal is as good as an event.
        let Ok(_) = poll(&mut fds, if wait { None } else { Some(&now) }) else { return };
        let happened: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        drop(clients);
        let (kicked, rest) = happened
            .split_first()
            .map_or((false, &[][..]), |(kick, rest)| (kick.contains(PollFlags::IN), rest));
        if kicked {
            self.kick.wait();
        }
        for (index, happened) in whose.iter().zip(rest) {
            if let Some(index) = index
                && happened.intersects(PollFlags::HUP | PollFlags::ERR)
                && let Some(client) = &mut *self.ports[*index].client()
            {
                client.hung_up = true;
            }
        }
    }
}
