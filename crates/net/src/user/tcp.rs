//! The guest's TCP connections: finding their flows, making and ending them, timers,
//! and whose turn it is to send.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::poller::{Ready, Token};
use super::tcp_flow::{Flow, Key, Means, Sent};
use super::{Context, Destination, socket};
use crate::frame::{Interface, Reason, Receives};
use crate::packet::{ACK, Headers, Packet, RST, SYN, Tcp, TcpFields, tcp_frame};

#[derive(Default)]
pub struct Flows {
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Flows that have something to say, and whether a flow is among them.
    turn: VecDeque<u32>,
    in_turn: Vec<bool>,
    timers: BTreeSet<(Instant, u32)>,
    armed: Vec<Option<Instant>>,
    /// Bytes from the guest that wait in all flows.
    waiting: usize,
    scratch: Vec<u8>,
    /// First sequence numbers are this and the clock, so that they do not repeat soon.
    secret: u32,
}

impl Flows {
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Bytes from the guest that wait in all flows.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Takes a segment of the guest.
    pub(super) fn input(
        &mut self,
        context: &mut Context,
        packet: &Packet<'_>,
        tcp: &Tcp<'_>,
    ) -> Result<(), Reason> {
        let key = Key {
            guest: SocketAddr::new(packet.source, tcp.source),
            remote: SocketAddr::new(packet.destination, tcp.destination),
        };
        let opens = tcp.has(SYN) && !tcp.has(ACK) && !tcp.has(RST);
        if let Some(&number) = self.by_key.get(&key) {
            let ending = self.flow(number).is_some_and(Flow::is_ending);
            if !(opens && ending) {
                self.with(context, number, |flow, room, now| flow.segment(tcp, room, now));
                return Ok(());
            }
            self.remove(number);
        }
        if tcp.has(RST) {
            return Ok(());
        }
        if !opens {
            refuse(context, &key, tcp);
            return Ok(());
        }
        let outcome = self.open(context, key, tcp);
        if outcome.is_err() {
            refuse(context, &key, tcp);
        }
        outcome
    }

    fn open(&mut self, context: &mut Context, key: Key, syn: &Tcp<'_>) -> Result<(), Reason> {
        let to = match context.config.destination(key.remote)? {
            Destination::Host(address) => address,
            Destination::Resolver => {
                *context.config.resolvers.first().ok_or(Reason::Unreachable)?
            }
        };
        if self.len() >= context.config.limits.tcp_flows {
            return Err(Reason::Limit);
        }
        let socket = socket::open(to.ip(), libc::SOCK_STREAM, 0).map_err(|_| Reason::Limit)?;
        let fd = std::os::fd::AsFd::as_fd(&socket);
        socket::connect(fd, to).map_err(|_| Reason::Unreachable)?;
        let first = self.first_sequence(context.now);
        let flow = Flow::asked_by_guest(key, socket, syn, first);
        self.insert(context, flow).map(drop)
    }

    /// The guest says that packets of a connection are too big for the path behind it.
    pub(super) fn too_big(&mut self, context: &mut Context, key: Key, mtu: u16) {
        if let Some(&number) = self.by_key.get(&key) {
            self.with(context, number, |flow, _, _| flow.too_big(mtu));
        }
    }

    /// Asks the guest for a connection, for one that was accepted at a forwarded port.
    pub(super) fn open_to_guest(
        &mut self,
        context: &mut Context,
        key: Key,
        socket: OwnedFd,
    ) -> Result<(), Reason> {
        if self.len() >= context.config.limits.tcp_flows || self.by_key.contains_key(&key) {
            return Err(Reason::Limit);
        }
        let first = self.first_sequence(context.now);
        let number = self.insert(context, Flow::to_guest(key, socket, first))?;
        self.take_turn(number);
        Ok(())
    }

    fn first_sequence(&mut self, now: Instant) -> u32 {
        if self.secret == 0 {
            use std::hash::{BuildHasher, RandomState};
            self.secret = RandomState::new().hash_one(now) as u32 | 1;
        }
        self.secret = self.secret.wrapping_mul(0x9e37_79b1).wrapping_add(64_021);
        self.secret
    }

    fn insert(&mut self, context: &Context, flow: Flow) -> Result<u32, Reason> {
        let number = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.in_turn.push(false);
            self.armed.push(None);
            self.flows.len() as u32 - 1
        });
        let token = Token::Tcp(number, Ready::default());
        if context.poller.add(flow.socket(), token).is_err() {
            self.free.push(number);
            return Err(Reason::Limit);
        }
        self.by_key.insert(flow.key, number);
        self.flows[number as usize] = Some(flow);
        self.rearm(number);
        Ok(number)
    }

    fn remove(&mut self, number: u32) {
        if let Some(flow) = self.flows[number as usize].take() {
            self.by_key.remove(&flow.key);
            self.waiting -= flow.waiting();
            self.rearm(number);
            self.free.push(number);
        }
    }

    fn flow(&self, number: u32) -> Option<&Flow> {
        self.flows.get(number as usize)?.as_ref()
    }

    /// Lets something happen to a flow, and sees to all that follows from it.
    fn with(
        &mut self,
        context: &Context,
        number: u32,
        happens: impl FnOnce(&mut Flow, usize, Instant),
    ) {
        let limits = &context.config.limits;
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        let before = flow.waiting();
        let others = self.waiting - before;
        let room = limits.tcp_buffer.min(limits.tcp_buffers.saturating_sub(others));
        happens(flow, room, context.now);
        self.waiting = others + flow.waiting();
        self.rearm(number);
        self.take_turn(number);
    }

    fn take_turn(&mut self, number: u32) {
        if !std::mem::replace(&mut self.in_turn[number as usize], true) {
            self.turn.push_back(number);
        }
    }

    /// Makes the timer of a flow what the flow wants it to be.
    fn rearm(&mut self, number: u32) {
        let wanted = self.flow(number).and_then(|flow| flow.deadline);
        let armed = &mut self.armed[number as usize];
        if *armed != wanted {
            if let Some(at) = armed.take() {
                self.timers.remove(&(at, number));
            }
            if let Some(at) = wanted {
                self.timers.insert((at, number));
            }
            *armed = wanted;
        }
    }

    pub(super) fn ready(&mut self, context: &mut Context, number: u32, ready: Ready) {
        self.with(context, number, |flow, room, now| flow.ready(ready, room, now));
    }

    pub(super) fn expire(&mut self, context: &mut Context) {
        while let Some(&(at, number)) = self.timers.first()
            && at <= context.now
        {
            self.timers.pop_first();
            self.armed[number as usize] = None;
            self.with(context, number, |flow, _, now| flow.timed_out(now));
        }
    }

    /// Lets flows send, in turn, as long as the guest gives buffers.
    pub(super) fn flush(&mut self, context: &mut Context, interface: &mut dyn Interface) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut counted = Counted { interface, frames: 0, bytes: 0 };
        while let Some(number) = self.turn.pop_front() {
            self.in_turn[number as usize] = false;
            let mut sent = Sent::All;
            self.with_means(context, number, &mut counted, &mut scratch, &mut sent);
            let dead = self.flow(number).is_some_and(Flow::is_dead);
            match sent {
                Sent::All if dead => self.remove(number),
                Sent::All => {}
                Sent::More => self.take_turn(number),
                Sent::NoRoom => {
                    self.in_turn[number as usize] = true;
                    self.turn.push_front(number);
                    break;
                }
            }
        }
        context.counters.frames_out += counted.frames;
        context.counters.bytes_out += counted.bytes;
        self.scratch = scratch;
    }

    fn with_means(
        &mut self,
        context: &Context,
        number: u32,
        interface: &mut dyn Interface,
        scratch: &mut Vec<u8>,
        sent: &mut Sent,
    ) {
        let limits = &context.config.limits;
        let waiting = self.waiting;
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        let others = waiting - flow.waiting();
        let mut means = Means {
            interface,
            headers: headers(context, &flow.key),
            buffer: limits.tcp_buffer.min(limits.tcp_buffers.saturating_sub(others)),
            now: context.now,
            mtu: context.config.mtu,
            scratch,
        };
        *sent = flow.send(&mut means);
        self.rearm(number);
    }
}

fn headers(context: &Context, key: &Key) -> Headers {
    Headers {
        to_mac: context.config.guest_mac,
        from_mac: context.config.router_mac,
        source: key.remote.ip(),
        destination: key.guest.ip(),
    }
}

/// Answers a segment that belongs to no connection with a reset.
fn refuse(context: &mut Context, key: &Key, tcp: &Tcp<'_>) {
    let (flags, sequence, acknowledgement) = if tcp.has(ACK) {
        (RST, tcp.acknowledgement, 0)
    } else {
        (RST | ACK, 0, tcp.sequence.wrapping_add(tcp.length()))
    };
    let fields = TcpFields {
        source: key.remote.port(),
        destination: key.guest.port(),
        sequence,
        acknowledgement,
        flags,
        window: 0,
        options: None,
    };
    let headers = headers(context, key);
    let mut frame = vec![0; fields.payload_at(&headers)];
    tcp_frame(&mut frame, &headers, &fields, 0, u16::MAX, Receives::default());
    context.queue.push(&mut context.counters, frame);
}

/// Counts what goes to the guest.
struct Counted<'a> {
    interface: &'a mut dyn Interface,
    frames: u64,
    bytes: u64,
}

impl Interface for Counted<'_> {
    fn receives(&self) -> Receives {
        self.interface.receives()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.interface.room(size)
    }

    fn filled(&self, size: usize) -> &[u8] {
        self.interface.filled(size)
    }

    fn deliver(&mut self, size: usize, offload: crate::frame::Offload) {
        self.frames += 1;
        self.bytes += size as u64;
        self.interface.deliver(size, offload);
    }
}
