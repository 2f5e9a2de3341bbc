//! The user-mode network: what a guest sends goes to host sockets, without privileges.
//!
//! The guest sees an Ethernet with a router on it. The router answers ARP and neighbour
//! discovery, DHCP and router solicitations, and is the other end of every connection
//! that the guest makes: a TCP connection of the guest is one towards this code and one
//! of a host socket ([`tcp`]), a datagram's flow is a connected host socket ([`udp`]).
//!
//! One thread drives a [`UserNetwork`]: it hands in the guest's frames ([`input`]) and
//! calls [`poll`] when [`descriptor`] is readable, when [`timer`] has passed, and when
//! the guest has given new buffers. Nothing here blocks, and with nothing to do there
//! is no timer.
//!
//! Memory is bounded: tables have limits ([`Limits`]), data towards the guest stays in
//! the host's socket buffers until the guest has acknowledged it, and data from the
//! guest is taken only as far as there is room.
//!
//! [`input`]: UserNetwork::input
//! [`poll`]: UserNetwork::poll
//! [`descriptor`]: UserNetwork::descriptor
//! [`timer`]: UserNetwork::timer

mod address;
mod dhcp;
mod dhcpv6;
mod echo;
mod forward;
mod neighbour;
mod path_mtu;
mod poller;
mod queue;
mod reassembly;
mod resolver;
mod socket;
pub mod tcp;
mod tcp_flow;
pub mod udp;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

pub use address::{Destination, Policy};
pub use forward::{Forward, Transport};

use crate::frame::{Counters, Interface, Network, Occupied, Offload, Reason};
use crate::packet::{
    Ethernet, Mac, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, TYPE_ARP,
    extension,
};
use poller::{Poller, Token};

/// How the network looks to the guest.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's address, which DHCP gives it.
    pub guest4: Ipv4Addr,
    pub guest6: Ipv6Addr,
    /// The router, and where the host is when the policy lets the guest reach it.
    pub router4: Ipv4Addr,
    pub router6: Ipv6Addr,
    /// Where queries for names go.
    pub dns4: Ipv4Addr,
    pub dns6: Ipv6Addr,
    pub prefix4: u8,
    pub prefix6: u8,
    pub guest_mac: Mac,
    pub router_mac: Mac,
    pub mtu: u16,
    pub host_name: Option<String>,
    /// The host's resolvers; those of /etc/resolv.conf where it is empty.
    pub resolvers: Vec<SocketAddr>,
    /// Names that are answered here.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    pub policy: Policy,
    pub limits: Limits,
}

/// The largest MTU that an IPv4 packet can fill.
pub const MAX_MTU: u16 = 65_520;

impl Default for Config {
    fn default() -> Config {
        let six = |host| Ipv6Addr::new(0xfd00, 0x6775, 0x6973, 0x6500, 0, 0, 0, host);
        Config {
            guest4: Ipv4Addr::new(10, 0, 2, 15),
            guest6: six(15),
            router4: Ipv4Addr::new(10, 0, 2, 2),
            router6: six(2),
            dns4: Ipv4Addr::new(10, 0, 2, 3),
            dns6: six(3),
            prefix4: 24,
            prefix6: 64,
            guest_mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            router_mac: [0x52, 0x55, 10, 0, 2, 2],
            mtu: 1500,
            host_name: None,
            resolvers: Vec::new(),
            names: BTreeMap::new(),
            policy: Policy::default(),
            limits: Limits::default(),
        }
    }
}

/// What one guest may occupy of the host.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub tcp_flows: usize,
    pub udp_flows: usize,
    pub echo_flows: usize,
    /// Bytes from the guest that wait for a TCP connection's other end, each.
    pub tcp_buffer: usize,
    /// The same, all connections together.
    pub tcp_buffers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tcp_flows: 8192,
            udp_flows: 1024,
            echo_flows: 64,
            tcp_buffer: 1 << 20,
            tcp_buffers: 64 << 20,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot {doing}: {source}")]
    Host {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot forward {address}: {source}; choose another port or address")]
    Forward {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("nothing is forwarded from {0}")]
    NoForward(SocketAddr),
    #[error("the MTU is 576 to {MAX_MTU}, not {0}")]
    Mtu(u16),
}

/// What the parts of the network share.
struct Context {
    config: Config,
    poller: Poller,
    counters: Counters,
    /// Small frames of the router that wait for buffers.
    queue: queue::Queue,
    now: Instant,
}

pub struct UserNetwork {
    context: Context,
    tcp: tcp::Flows,
    udp: udp::Flows,
    echo: echo::Flows,
    forwards: forward::Forwards,
    fragments: reassembly::Reassembly,
}

impl UserNetwork {
    pub fn new(config: Config) -> Result<UserNetwork, NetError> {
        if !(576..=MAX_MTU).contains(&config.mtu) {
            return Err(NetError::Mtu(config.mtu));
        }
        let mut config = config;
        if config.resolvers.is_empty() {
            config.resolvers = resolver::of_host();
        }
        let context = Context {
            config,
            poller: Poller::new()?,
            counters: Counters::default(),
            queue: queue::Queue::default(),
            now: Instant::now(),
        };
        Ok(UserNetwork {
            context,
            tcp: tcp::Flows::default(),
            udp: udp::Flows::default(),
            echo: echo::Flows::default(),
            forwards: forward::Forwards::default(),
            fragments: reassembly::Reassembly::default(),
        })
    }

    /// Readable when [`UserNetwork::poll`] has something to do.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.context.poller.descriptor()
    }

    pub fn counters(&self) -> Counters {
        self.context.counters
    }

    /// Flows by protocol: TCP, UDP, echo.
    pub fn flows(&self) -> (usize, usize, usize) {
        (self.tcp.len(), self.udp.len(), self.echo.len())
    }

    pub fn add_forward(&mut self, forward: Forward) -> Result<SocketAddr, NetError> {
        self.forwards.add(&mut self.context, forward)
    }

    pub fn remove_forward(&mut self, transport: Transport, at: SocketAddr) -> Result<(), NetError> {
        self.forwards.remove(&mut self.context, transport, at)
    }

    /// Names of other instances on this network, for its resolver.
    pub fn set_names(&mut self, names: BTreeMap<String, Vec<IpAddr>>) {
        self.context.config.names = names;
    }

    /// Takes a frame of the guest. Answers go out with [`UserNetwork::poll`], so that a
    /// batch of frames is acknowledged once.
    pub fn input(&mut self, frame: &[u8], offload: Offload) {
        self.context.counters.frames_in += 1;
        self.context.counters.bytes_in += frame.len() as u64;
        if let Err(reason) = self.take(frame, &offload) {
            self.context.counters.drop_for(reason);
        }
    }

    fn take(&mut self, frame: &[u8], offload: &Offload) -> Result<(), Reason> {
        let ethernet = Ethernet::parse(frame)?;
        if ethernet.source != self.context.config.guest_mac {
            return Err(Reason::Spoofed);
        }
        let ours = ethernet.destination == self.context.config.router_mac;
        if !ours && ethernet.destination[0] & 1 == 0 {
            return Err(Reason::Unreachable);
        }
        if ethernet.kind == TYPE_ARP {
            return neighbour::arp(&mut self.context, ethernet.payload);
        }
        let packet = Packet::parse(ethernet.kind, ethernet.payload)?;
        let (packet, fragment) = match packet.source {
            IpAddr::V4(_) => (packet, extension::fragment4(&packet)),
            IpAddr::V6(_) => {
                let upper = extension::upper(&packet)?;
                let (protocol, payload) = (upper.protocol, upper.payload);
                (Packet { protocol, payload, ..packet }, upper.fragment)
            }
        };
        let Some(fragment) = fragment else { return self.take_packet(&packet, offload, ours) };
        self.context.check_source(packet.source)?;
        let key = reassembly::Key {
            source: packet.source,
            destination: packet.destination,
            identification: fragment.identification,
            protocol: packet.source.is_ipv4().then_some(packet.protocol),
        };
        let now = self.context.now;
        let (protocol, payload) = (packet.protocol, packet.payload);
        match self.fragments.take(key, protocol, fragment, payload, now)? {
            // Neighbour discovery is never in fragments (RFC 6980).
            Some((PROTOCOL_ICMPV6, payload)) if payload.first().is_none_or(|kind| *kind > 129) => {
                Err(Reason::Spoofed)
            }
            Some((protocol, payload)) => {
                let packet = Packet { protocol, payload: &payload, fragment: false, ..packet };
                self.take_packet(&packet, &Offload::default(), ours)
            }
            None => Ok(()),
        }
    }

    /// Takes a packet that is whole. What went to all on the link need not be for the
    /// router.
    fn take_packet(
        &mut self,
        packet: &Packet<'_>,
        offload: &Offload,
        ours: bool,
    ) -> Result<(), Reason> {
        if packet.protocol == PROTOCOL_UDP
            && (dhcp::input(&mut self.context, packet, offload)? == dhcp::Handled::Yes
                || dhcpv6::input(&mut self.context, packet, offload)? == dhcp::Handled::Yes)
        {
            return Ok(());
        }
        if packet.protocol == PROTOCOL_ICMPV6
            && neighbour::icmpv6(&mut self.context, packet)? == neighbour::Handled::Yes
        {
            return Ok(());
        }
        self.context.check_source(packet.source)?;
        if !ours {
            return Ok(());
        }
        match packet.protocol {
            PROTOCOL_TCP => self.tcp.input(&mut self.context, packet, &packet.tcp(offload)?),
            PROTOCOL_UDP => self.udp.input(&mut self.context, packet, &packet.udp(offload)?),
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
                echo::check(packet)?;
                match path_mtu::heard(packet) {
                    Some((key, mtu)) => self.tcp.too_big(&mut self.context, key, mtu),
                    None => self.echo.input(&mut self.context, packet)?,
                }
                Ok(())
            }
            _ => Err(Reason::Unsupported),
        }
    }

    /// Sends what the frames taken so far have caused.
    fn flush(&mut self, interface: &mut dyn Interface) {
        self.context.queue.flush(&mut self.context.counters, interface);
        self.tcp.flush(&mut self.context, interface);
    }

    /// Looks at the host's sockets and the clock.
    pub fn poll(&mut self, interface: &mut dyn Interface) {
        self.poll_at(interface, Instant::now());
    }

    /// The same at a time of the caller's.
    pub fn poll_at(&mut self, interface: &mut dyn Interface, now: Instant) {
        self.context.now = now;
        self.udp.resume(&mut self.context, interface);
        while let Some(token) = self.context.poller.next() {
            match token {
                Token::Tcp(flow, ready) => self.tcp.ready(&mut self.context, flow, ready),
                Token::Udp(flow) => self.udp.ready(&mut self.context, flow, interface),
                Token::Echo(flow) => self.echo.ready(&mut self.context, flow),
                Token::Listener(number) => {
                    let Self { context, tcp, udp, forwards, .. } = self;
                    forwards.ready(context, number, tcp, udp, interface);
                }
            }
        }
        self.tcp.expire(&mut self.context);
        self.udp.expire(&mut self.context);
        self.echo.expire(&mut self.context);
        self.flush(interface);
    }

    /// When to call [`UserNetwork::poll`] if nothing else happens before.
    pub fn timer(&self) -> Option<Duration> {
        let next = [self.tcp.timer(), self.udp.timer(), self.echo.timer()];
        let next = next.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}

impl Network for UserNetwork {
    fn descriptor(&self) -> BorrowedFd<'_> {
        UserNetwork::descriptor(self)
    }

    fn timer(&self) -> Option<Duration> {
        UserNetwork::timer(self)
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        UserNetwork::input(self, frame, offload);
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        UserNetwork::poll(self, interface);
    }

    fn counters(&self) -> Counters {
        UserNetwork::counters(self)
    }

    fn close(&mut self) {
        self.forwards = forward::Forwards::default();
    }

    fn occupied(&self) -> Vec<Occupied> {
        let limits = &self.context.config.limits;
        let entry = |what, now, most| Occupied { what, now, most };
        vec![
            entry("tcp-flows", self.tcp.len(), limits.tcp_flows),
            entry("tcp-bytes", self.tcp.waiting(), limits.tcp_buffers),
            entry("udp-flows", self.udp.len(), limits.udp_flows),
            entry("echo-flows", self.echo.len(), limits.echo_flows),
            entry("fragments", self.fragments.len(), reassembly::MOST),
            entry("frames", self.context.queue.len(), queue::LIMIT),
        ]
    }
}

impl Context {
    /// A guest speaks for itself only.
    fn check_source(&self, source: IpAddr) -> Result<(), Reason> {
        let config = &self.config;
        let known = match source {
            IpAddr::V4(source) => source == config.guest4,
            // Any address in the prefix may be the guest's own choice (privacy
            // addresses), and so may its link-local one.
            IpAddr::V6(source) => {
                address::same_prefix(source, config.guest6, config.prefix6)
                    || source.is_unicast_link_local()
            }
        };
        if known { Ok(()) } else { Err(Reason::Spoofed) }
    }
}

#[cfg(test)]
mod tests;
