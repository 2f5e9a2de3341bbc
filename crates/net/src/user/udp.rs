//! The guest's datagrams: each pair of addresses is a connected host socket for as long
//! as it is used, so that only the one that the guest wrote to can answer, and errors of
//! the host's network reach the flow that caused them. Of a resolver only answers to
//! questions that were asked go in.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::poller::Token;
use super::{Context, Destination, path_mtu, resolver, socket};
use crate::frame::{Interface, Reason};
use crate::packet::{
    ETHERNET, Headers, IPV4, IPV6, PROTOCOL_UDP, Packet, UDP, Udp, fragment, udp_frame,
};

const IDLE: Duration = Duration::from_secs(180);
/// A question and its answer.
const IDLE_RESOLVER: Duration = Duration::from_secs(15);
/// How often idle flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);
const LARGEST: usize = 65_507;
/// Questions to a resolver from one port that are open at one time.
const MOST_QUESTIONS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    remote: SocketAddr,
}

struct Flow {
    key: Key,
    via: Via,
    used: Instant,
    idle: Duration,
}

enum Via {
    /// A socket of the flow's own.
    Own {
        socket: OwnedFd,
        /// The guest forbids that its datagrams are cut.
        whole_only: bool,
    },
    /// The same to a resolver, and the questions that are open, by identifier.
    Resolver(OwnedFd, VecDeque<u16>),
    /// The socket of a forwarded port, and whom it talks to there.
    Forward(OwnedFd, SocketAddr),
}

#[derive(Default)]
pub struct Flows {
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    next_sweep: Option<Instant>,
    /// Flows whose datagrams wait for the guest's buffers.
    stalled: Vec<u32>,
    /// Of datagrams that are sent in fragments.
    identification: u32,
    /// Where the part of a datagram goes that the guest's link has no room for.
    rest: Vec<u8>,
}

impl Flows {
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub fn timer(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// Takes a datagram of the guest.
    pub(super) fn input(
        &mut self,
        context: &mut Context,
        packet: &Packet<'_>,
        udp: &Udp<'_>,
    ) -> Result<(), Reason> {
        let key = Key {
            guest: SocketAddr::new(packet.source, udp.source),
            remote: SocketAddr::new(packet.destination, udp.destination),
        };
        let number = match self.by_key.get(&key) {
            Some(&number) => number,
            None => match self.open(context, key, udp)? {
                Some(number) => number,
                None => return Ok(()),
            },
        };
        let flow = self.flows[number as usize].as_mut().expect("a flow in use");
        flow.used = context.now;
        let sent = match &mut flow.via {
            Via::Own { socket: own, whole_only } => {
                let wanted = path_mtu::is_whole_only(packet);
                if wanted != *whole_only {
                    let v4 = key.remote.is_ipv4();
                    // Where the host cannot, its path decides as it would for others.
                    let _ = socket::set_whole_only(own.as_fd(), v4, wanted);
                    *whole_only = wanted;
                }
                socket::send(own.as_fd(), udp.payload)
            }
            Via::Resolver(own, questions) => {
                if let Some(answer) = resolver::answer(&context.config, udp.payload) {
                    reply(context, &key, &answer);
                    return Ok(());
                }
                let question = resolver::identifier(udp.payload, resolver::Kind::Question);
                if questions.len() >= MOST_QUESTIONS {
                    questions.pop_front();
                }
                questions.push_back(question.ok_or(Reason::Malformed)?);
                socket::send(own.as_fd(), udp.payload)
            }
            Via::Forward(shared, peer) => socket::send_to(shared.as_fd(), udp.payload, *peer),
        };
        match sent {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                if let Via::Own { socket: own, .. } = &flow.via
                    && let Some(mtu) = socket::path_mtu(own.as_fd(), key.remote.is_ipv4())
                {
                    path_mtu::tell(context, packet, mtu);
                }
                Err(Reason::TooBig)
            }
            // A full buffer drops, as any router's does; an earlier refusal of the other
            // end is not this datagram's, and is forgotten by being read.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Reason::Limit),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(_) => Err(Reason::Unreachable),
        }
    }

    /// Makes a flow; none where the datagram has been answered already.
    fn open(
        &mut self,
        context: &mut Context,
        key: Key,
        udp: &Udp<'_>,
    ) -> Result<Option<u32>, Reason> {
        let (to, asks) = match context.config.destination(key.remote)? {
            Destination::Host(address) => (address, false),
            Destination::Resolver => {
                if let Some(answer) = resolver::answer(&context.config, udp.payload) {
                    reply(context, &key, &answer);
                    return Ok(None);
                }
                let resolver = context.config.resolvers.first().ok_or(Reason::Unreachable)?;
                (*resolver, true)
            }
        };
        self.make_room(context)?;
        let own = socket::datagrams(to).map_err(|_| Reason::Unreachable)?;
        let (via, idle) = match asks {
            true => (Via::Resolver(own, VecDeque::new()), IDLE_RESOLVER),
            false => (Via::Own { socket: own, whole_only: false }, IDLE),
        };
        let flow = Flow { key, via, used: context.now, idle };
        self.insert(context, flow).map(Some)
    }

    /// Something came to a forwarded port: a flow for it, to be found by the guest's
    /// answers.
    pub(super) fn forwarded(
        &mut self,
        context: &mut Context,
        guest: SocketAddr,
        remote: SocketAddr,
        shared: &OwnedFd,
        peer: SocketAddr,
    ) -> Result<(), Reason> {
        let key = Key { guest, remote };
        if let Some(&number) = self.by_key.get(&key) {
            let flow = self.flows[number as usize].as_mut().expect("a flow in use");
            flow.used = context.now;
            return match &flow.via {
                Via::Forward(_, known) if *known == peer => Ok(()),
                _ => Err(Reason::Limit),
            };
        }
        self.make_room(context)?;
        let shared = shared.try_clone().map_err(|_| Reason::Limit)?;
        let flow = Flow { key, via: Via::Forward(shared, peer), used: context.now, idle: IDLE };
        self.insert(context, flow).map(drop)
    }

    fn insert(&mut self, context: &Context, flow: Flow) -> Result<u32, Reason> {
        let number = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        if let Via::Own { socket: own, .. } | Via::Resolver(own, _) = &flow.via
            && context.poller.add(own.as_fd(), Token::Udp(number)).is_err()
        {
            self.free.push(number);
            return Err(Reason::Limit);
        }
        self.by_key.insert(flow.key, number);
        self.flows[number as usize] = Some(flow);
        self.next_sweep.get_or_insert(context.now + SWEEP);
        Ok(number)
    }

    /// With the table full, the flow that was used longest ago goes.
    fn make_room(&mut self, context: &mut Context) -> Result<(), Reason> {
        if self.len() < context.config.limits.udp_flows {
            return Ok(());
        }
        let oldest = self
            .by_key
            .values()
            .copied()
            .min_by_key(|&number| self.flows[number as usize].as_ref().map(|flow| flow.used))
            .ok_or(Reason::Limit)?;
        context.counters.drop_for(Reason::Limit);
        self.remove(oldest);
        Ok(())
    }

    fn remove(&mut self, number: u32) {
        if let Some(flow) = self.flows[number as usize].take() {
            self.by_key.remove(&flow.key);
            self.free.push(number);
        }
    }

    pub(super) fn expire(&mut self, context: &mut Context) {
        if self.next_sweep.is_none_or(|at| at > context.now) {
            return;
        }
        for number in 0..self.flows.len() as u32 {
            let flow = &self.flows[number as usize];
            if flow.as_ref().is_some_and(|flow| flow.used + flow.idle <= context.now) {
                self.remove(number);
            }
        }
        self.next_sweep = (!self.by_key.is_empty()).then(|| context.now + SWEEP);
    }

    /// A flow's socket has datagrams for the guest.
    pub(super) fn ready(
        &mut self,
        context: &mut Context,
        number: u32,
        interface: &mut dyn Interface,
    ) {
        if !self.receive(context, number, interface) && !self.stalled.contains(&number) {
            self.stalled.push(number);
        }
    }

    /// Sends a datagram that is larger than the guest's link.
    pub(super) fn send_fragments(
        &mut self,
        context: &mut Context,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) {
        self.identification = self.identification.wrapping_add(1);
        fragments(context, from, to, payload, self.identification);
    }

    /// Goes on with flows for which the guest had no buffers.
    pub(super) fn resume(&mut self, context: &mut Context, interface: &mut dyn Interface) {
        for number in std::mem::take(&mut self.stalled) {
            self.ready(context, number, interface);
        }
    }

    /// Hands over what a socket has; false when the guest has no buffers for it.
    fn receive(
        &mut self,
        context: &mut Context,
        number: u32,
        interface: &mut dyn Interface,
    ) -> bool {
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return true };
        let (own, mut questions) = match &mut flow.via {
            Via::Own { socket, .. } => (socket, None),
            Via::Resolver(socket, questions) => (socket, Some(questions)),
            Via::Forward(..) => return true,
        };
        let headers = ETHERNET + if flow.key.guest.is_ipv4() { IPV4 } else { IPV6 } + UDP;
        let largest = usize::from(context.config.mtu) + ETHERNET;
        let mac = (context.config.guest_mac, context.config.router_mac);
        let (remote, guest) = (flow.key.remote, flow.key.guest);
        loop {
            let receives = interface.receives();
            let Some(room) = interface.room(largest.min(headers + LARGEST)) else { return false };
            // What is larger than the link goes on into `rest`, and out in fragments.
            let space = &mut room[headers..largest.min(headers + LARGEST)];
            let size = space.len();
            self.rest.resize(LARGEST.saturating_sub(size), 0);
            let parts = &mut [IoSliceMut::new(space), IoSliceMut::new(&mut self.rest)];
            let got = match rustix::io::readv(&*own, parts) {
                Ok(got) => got,
                // Refusals and the like: the guest's own time-outs see to it.
                Err(_) => return true,
            };
            if let Some(questions) = &mut questions {
                let start = &room[headers..headers + got.min(size)];
                let answer = resolver::identifier(start, resolver::Kind::Answer);
                match questions.iter().position(|open| Some(*open) == answer) {
                    Some(place) => drop(questions.remove(place)),
                    None => {
                        context.counters.drop_for(Reason::Spoofed);
                        continue;
                    }
                }
            }
            flow.used = context.now;
            if got > size {
                let whole = [&room[headers..headers + size], &self.rest[..got - size]].concat();
                self.identification = self.identification.wrapping_add(1);
                fragments(context, remote, guest, &whole, self.identification);
                continue;
            }
            let (size, offload) = udp_frame(room, mac, remote, guest, got, receives);
            interface.deliver(size, offload);
            context.counters.frames_out += 1;
            context.counters.bytes_out += size as u64;
        }
    }
}

/// Sends a datagram that is larger than the guest's link.
fn fragments(
    context: &mut Context,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    identification: u32,
) {
    let config = &context.config;
    let headers = Headers {
        to_mac: config.guest_mac,
        from_mac: config.router_mac,
        source: from.ip(),
        destination: to.ip(),
    };
    let start = headers.size();
    let mut frame = vec![0; start + UDP + payload.len()];
    frame[start + UDP..].copy_from_slice(payload);
    let mac = (config.guest_mac, config.router_mac);
    udp_frame(&mut frame, mac, from, to, payload.len(), crate::frame::Receives::default());
    let mtu = config.mtu;
    for frame in fragment::frames(&headers, PROTOCOL_UDP, &frame[start..], mtu, identification) {
        context.queue.push(&mut context.counters, frame);
    }
}

/// Sends the guest an answer of the network's own.
fn reply(context: &mut Context, key: &Key, payload: &[u8]) {
    let headers = ETHERNET + if key.guest.is_ipv4() { IPV4 } else { IPV6 } + UDP;
    let mut frame = vec![0; headers + payload.len()];
    frame[headers..].copy_from_slice(payload);
    let mac = (context.config.guest_mac, context.config.router_mac);
    let receives = crate::frame::Receives::default();
    udp_frame(&mut frame, mac, key.remote, key.guest, payload.len(), receives);
    context.queue.push(&mut context.counters, frame);
}
