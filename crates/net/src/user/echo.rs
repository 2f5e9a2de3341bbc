//! Echo requests ("ping"): the router answers its own, and passes others on with the
//! kernel's ping sockets, which need no privilege where the host allows them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::poller::Token;
use super::{Context, Destination, socket};
use crate::frame::Reason;
use crate::packet::{Headers, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Packet, checksum, with_headers};

const IDLE: Duration = Duration::from_secs(30);
const HEADER: usize = 8;

/// The numbers of both versions: request, reply.
fn types(v4: bool) -> (u8, u8) {
    if v4 { (8, 0) } else { (128, 129) }
}

struct Flow {
    guest: IpAddr,
    remote: IpAddr,
    identifier: [u8; 2],
    socket: OwnedFd,
    used: Instant,
}

#[derive(Default)]
pub struct Flows {
    flows: Vec<Option<Flow>>,
}

impl Flows {
    pub fn len(&self) -> usize {
        self.flows.iter().flatten().count()
    }

    pub fn timer(&self) -> Option<Instant> {
        self.flows.iter().flatten().map(|flow| flow.used + IDLE).min()
    }

    /// Takes an ICMP message of the guest, which has been checked.
    pub(super) fn input(
        &mut self,
        context: &mut Context,
        packet: &Packet<'_>,
    ) -> Result<(), Reason> {
        let v4 = packet.source.is_ipv4();
        let message = packet.payload;
        if message[0] != types(v4).0 || message[1] != 0 {
            return Err(Reason::Unsupported);
        }
        let config = &context.config;
        let own =
            [config.router4.into(), config.dns4.into(), config.router6.into(), config.dns6.into()];
        if own.contains(&packet.destination) {
            answer(context, packet.destination, packet.source, message);
            return Ok(());
        }
        self.pass_on(context, packet)
    }

    fn pass_on(&mut self, context: &mut Context, packet: &Packet<'_>) -> Result<(), Reason> {
        let to = SocketAddr::new(packet.destination, 0);
        let Destination::Host(to) = context.config.destination(to)? else {
            return Err(Reason::Policy);
        };
        let message = packet.payload;
        let identifier = [message[4], message[5]];
        let known = self.flows.iter_mut().flatten().find(|flow| {
            flow.guest == packet.source
                && flow.remote == packet.destination
                && flow.identifier == identifier
        });
        if let Some(flow) = known {
            flow.used = context.now;
            return send(flow, message);
        }
        if self.len() >= context.config.limits.echo_flows {
            return Err(Reason::Limit);
        }
        let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        let socket =
            socket::open(to.ip(), libc::SOCK_DGRAM, protocol).map_err(|_| Reason::Unreachable)?;
        socket::connect(socket.as_fd(), to).map_err(|_| Reason::Unreachable)?;
        let number = self.flows.iter().position(Option::is_none).unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        context
            .poller
            .add(socket.as_fd(), Token::Echo(number as u32))
            .map_err(|_| Reason::Limit)?;
        let flow = Flow {
            guest: packet.source,
            remote: packet.destination,
            identifier,
            socket,
            used: context.now,
        };
        let sent = send(&flow, message);
        self.flows[number] = Some(flow);
        sent
    }

    /// Answers have come.
    pub(super) fn ready(&mut self, context: &mut Context, number: u32) {
        let Some(Some(flow)) = self.flows.get(number as usize) else { return };
        let mut message = vec![0; usize::from(context.config.mtu)];
        while let Ok(got) = socket::receive(flow.socket.as_fd(), &mut message, 0) {
            let v4 = flow.guest.is_ipv4();
            if got < HEADER || message[0] != types(v4).1 {
                continue;
            }
            // The kernel's sockets have identifiers of their own.
            message[4..6].copy_from_slice(&flow.identifier);
            let (from, to) = (flow.remote, flow.guest);
            answer(context, from, to, &message[..got]);
        }
    }

    pub(super) fn expire(&mut self, context: &mut Context) {
        for slot in &mut self.flows {
            if slot.as_ref().is_some_and(|flow| flow.used + IDLE <= context.now) {
                *slot = None;
            }
        }
    }
}

/// Whether an ICMP message is whole.
pub fn check(packet: &Packet<'_>) -> Result<(), Reason> {
    let v4 = packet.source.is_ipv4();
    let message = packet.payload;
    if message.len() < HEADER || v4 != (packet.protocol == PROTOCOL_ICMP) {
        return Err(Reason::Malformed);
    }
    let sum = if v4 {
        checksum::of(message)
    } else {
        checksum::transport(packet.source, packet.destination, PROTOCOL_ICMPV6, message)
    };
    if sum == 0 { Ok(()) } else { Err(Reason::Malformed) }
}

fn send(flow: &Flow, message: &[u8]) -> Result<(), Reason> {
    let sent = socket::send(flow.socket.as_fd(), message);
    sent.map(drop).map_err(|_| Reason::Unreachable)
}

/// Sends an echo reply with the contents of `message`.
fn answer(context: &mut Context, from: IpAddr, to: IpAddr, message: &[u8]) {
    let v4 = from.is_ipv4();
    let protocol = if v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    let mut reply = message.to_vec();
    reply[0] = types(v4).1;
    reply[2..4].fill(0);
    let sum =
        if v4 { checksum::of(&reply) } else { checksum::transport(from, to, protocol, &reply) };
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers {
        to_mac: context.config.guest_mac,
        from_mac: context.config.router_mac,
        source: from,
        destination: to,
    };
    let frame = with_headers(&headers, protocol, &reply);
    context.queue.push(&mut context.counters, frame);
}
