//! A switch in user space, for the instances of one user, without root.
//!
//! One process runs the [`Switch`]; others connect to its socket, say who they are
//! ([`hello`]) and then exchange frames with it, a message each ([`client`]). The kernel's
//! sequenced packets keep frames whole and carry 64 KiB; segmentation and checksums that a
//! guest left to hardware go through as they are.
//!
//! [`fabric`] decides who gets a frame: it knows ports by MAC, VLAN and address, and
//! refuses frames that speak for somebody else ([`guard`]). The gateway is a
//! [`UserNetwork`] for each port, all with the same addresses: so one guest's
//! connections, and the memory that they take, are apart from the others'.

pub mod client;
pub mod fabric;
pub mod guard;
pub mod hello;
mod member;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
    sockopt,
};

use crate::frame::Reason;
use crate::header;
use crate::ipam::{Book, IpamError};
use crate::packet::Mac;
use crate::user::{Config, NetError, Policy, UserNetwork};
use crate::wire::LARGEST_FRAME;
use fabric::{Fabric, Own, To};
use hello::{Answer, Hello, Join, PortStatus};
use member::{Member, Phase};

/// Ports of one switch.
pub const MOST_PORTS: usize = 256;
/// How long a process that has connected may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
/// Frames of one port before the others have their turn.
const BATCH: usize = 32;
const LISTENER: u64 = 0;
const STOP: u64 = 1;
const FIRST: u64 = 2;

#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    #[error("{path} is a switch already, or another process listens there")]
    InUse { path: PathBuf },
    #[error("{path}: {source}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no switch answers at {path}; start one with 'guise switch {path}'")]
    Nobody { path: PathBuf },
    #[error("the switch refuses: {0}")]
    Refused(String),
    #[error("the switch at {path} speaks another language; is it another version of Guise?")]
    Language { path: PathBuf },
    #[error("cannot {doing}: {source}")]
    Host {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Addresses(#[from] IpamError),
    #[error(transparent)]
    Network(#[from] NetError),
}

fn host(doing: &'static str) -> impl Fn(Errno) -> SwitchError {
    move |error| SwitchError::Host { doing, source: error.into() }
}

/// What a switch's network is like.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    pub mtu: u16,
    pub policy: Policy,
    /// The host's resolvers; those of /etc/resolv.conf where it is empty.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// Users besides its own that may join, if they reach its socket.
    pub admitted: Option<RangeInclusive<u32>>,
}

/// Ends a running switch, from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    pub fn stop(&self) {
        // The counter being full would mean that it has been told before.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

pub struct Switch {
    path: PathBuf,
    listener: OwnedFd,
    epoll: OwnedFd,
    stop: Stopper,
    config: SwitchConfig,
    book: Book,
    fabric: Fabric,
    members: Vec<Option<Member>>,
    /// Members that may have more frames to read.
    turn: VecDeque<usize>,
    buffer: Vec<u8>,
}

impl Switch {
    /// Listens at `path`, for processes of the same user and those that are admitted.
    pub fn open(path: &Path, book: Book, config: SwitchConfig) -> Result<Switch, SwitchError> {
        let failed =
            |error: Errno| SwitchError::Socket { path: path.to_owned(), source: error.into() };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let probe = new().map_err(failed)?;
        match rustix::net::connect(&probe, &address) {
            Ok(()) | Err(Errno::AGAIN) => {
                return Err(SwitchError::InUse { path: path.to_owned() });
            }
            // Left behind by a process that was killed: nobody listens there.
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path)
                .map_err(|source| SwitchError::Socket { path: path.to_owned(), source })?,
            Err(_) => {}
        }
        let listener = new().map_err(failed)?;
        bind(&listener, &address).map_err(|error| match error {
            Errno::ADDRINUSE => SwitchError::InUse { path: path.to_owned() },
            _ => failed(error),
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|source| SwitchError::Socket { path: path.to_owned(), source })?;
        listen(&listener, 64).map_err(failed)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(host("watch sockets"))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = Stopper(Arc::new(stop.map_err(host("make an event"))?));
        for (descriptor, token) in [(listener.as_fd(), LISTENER), (stop.0.as_fd(), STOP)] {
            epoll::add(&epoll, descriptor, EventData::new_u64(token), EventFlags::IN)
                .map_err(host("watch sockets"))?;
        }
        let subnet = book.subnet();
        let own = Own {
            mac: book.router_mac(),
            addresses: vec![
                subnet.router().into(),
                subnet.resolver().into(),
                subnet.six(subnet.router()).into(),
                subnet.six(subnet.resolver()).into(),
            ],
        };
        Ok(Switch {
            path: path.to_owned(),
            listener,
            epoll,
            stop,
            config,
            book,
            fabric: Fabric::new(own),
            members: Vec::new(),
            turn: VecDeque::new(),
            buffer: vec![0; header::LENGTH + LARGEST_FRAME],
        })
    }

    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Serves until it is stopped.
    pub fn run(&mut self) -> Result<(), SwitchError> {
        let empty = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [empty; 64];
        loop {
            let timeout = self.timeout().and_then(|time| Timespec::try_from(time).ok());
            let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(error) => return Err(host("wait for sockets")(error)),
            };
            for event in &events[..count] {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    STOP => return Ok(()),
                    token => self.ready(((token - FIRST) / 2) as usize, token % 2, event.flags),
                }
            }
            for _ in 0..self.turn.len() {
                let Some(number) = self.turn.pop_front() else { break };
                self.read(number);
            }
            self.tend();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.turn.is_empty() {
            return Some(Duration::ZERO);
        }
        self.members.iter().flatten().filter_map(Member::timer).min()
    }

    fn accept(&mut self) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Ok(socket) = accept_with(&self.listener, flags) else { return };
            let own = rustix::process::geteuid();
            let may = sockopt::socket_peercred(&socket).is_ok_and(|peer| {
                let admitted = self.config.admitted.as_ref();
                peer.uid == own
                    || peer.uid.is_root()
                    || admitted.is_some_and(|users| users.contains(&peer.uid.as_raw()))
            });
            if !may {
                continue;
            }
            let number = self.members.iter().position(Option::is_none).unwrap_or_else(|| {
                self.members.push(None);
                self.members.len() - 1
            });
            if number >= MOST_PORTS {
                self.members.pop();
                let error = format!("all {MOST_PORTS} ports are taken");
                let _ = hello::send(&socket, &Answer::Refusal { error });
                continue;
            }
            // As much as the host's limit allows: a few large frames.
            let _ = sockopt::set_socket_send_buffer_size(&socket, 1 << 20);
            let token = EventData::new_u64(FIRST + 2 * number as u64);
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if epoll::add(&self.epoll, &socket, token, flags).is_ok() {
                self.members[number] = Some(Member::new(socket, Instant::now() + PATIENCE));
                self.turn.push_back(number);
            }
        }
    }

    /// Something happened to a member's socket, or to its gateway.
    fn ready(&mut self, number: usize, gateway: u64, flags: EventFlags) {
        let Some(Some(member)) = self.members.get_mut(number) else { return };
        if gateway == 1 {
            return member.look_at_gateway();
        }
        if flags.contains(EventFlags::OUT) {
            member.drain();
        }
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            member.phase = Phase::Gone;
        } else if flags.intersects(EventFlags::IN | EventFlags::RDHUP)
            && !self.turn.contains(&number)
        {
            self.turn.push_back(number);
        }
    }

    /// Takes frames of a member.
    fn read(&mut self, number: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..BATCH {
            let Some(Some(member)) = self.members.get_mut(number) else { break };
            match rustix::io::read(member.socket(), &mut buffer[..]) {
                Ok(0) => {
                    member.phase = Phase::Gone;
                    break;
                }
                Ok(size) if member.phase == Phase::Open => {
                    if let Err(reason) = self.forward(number, &buffer[..size]) {
                        self.drop_for(number, reason);
                    }
                }
                Ok(size) => self.greet(number, &buffer[..size]),
                Err(Errno::AGAIN) => {
                    self.buffer = buffer;
                    return;
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    member.phase = Phase::Gone;
                    break;
                }
            }
        }
        self.buffer = buffer;
        self.turn.push_back(number);
    }

    fn drop_for(&mut self, number: usize, reason: Reason) {
        if let Some(Some(member)) = self.members.get_mut(number) {
            member.counters.drop_for(reason);
        }
    }

    fn forward(&mut self, from: usize, message: &[u8]) -> Result<(), Reason> {
        let (head, frame) =
            message.split_first_chunk::<{ header::LENGTH }>().ok_or(Reason::Malformed)?;
        let Some(Some(member)) = self.members.get_mut(from) else { return Ok(()) };
        member.counters.frames_in += 1;
        member.counters.bytes_in += frame.len() as u64;
        let offload = header::parse(head, frame.len()).ok_or(Reason::Malformed)?;
        let verdict = self.fabric.input(from, frame, Instant::now())?;
        if verdict.gateway {
            member.pass_to_gateway(frame, offload);
        }
        let deliver = |member: &mut Option<Member>| {
            if let Some(member) = member {
                member.send(head, frame);
            }
        };
        match verdict.to {
            To::Nobody => {}
            To::One(to) => deliver(&mut self.members[to]),
            To::All => {
                for to in 0..self.members.len() {
                    if self.fabric.reaches(from, to) {
                        deliver(&mut self.members[to]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Lets gateways send, and removes who has gone.
    fn tend(&mut self) {
        let now = Instant::now();
        let mut left = false;
        for number in 0..self.members.len() {
            let Some(member) = &mut self.members[number] else { continue };
            member.tend(now);
            if member.phase == Phase::Gone {
                left |= self.remove(number);
            }
        }
        if left {
            self.tell_names();
        }
    }

    /// Whether a port has gone with it.
    fn remove(&mut self, number: usize) -> bool {
        self.members[number] = None;
        self.turn.retain(|waiting| *waiting != number);
        self.fabric.remove(number)
    }

    /// An instance that starts again is here before it was seen that it had gone.
    fn let_go(&mut self, name: &str) {
        let gone = |member: &Member| member.name == name && member.has_hung_up();
        let number = self.members.iter().position(|member| member.as_ref().is_some_and(gone));
        if number.is_some_and(|number| self.remove(number)) {
            self.tell_names();
        }
    }

    /// A member says who it is, or asks how things are.
    fn greet(&mut self, number: usize, message: &[u8]) {
        let answer = match hello::parse(message) {
            Ok(Hello::Join(join)) => match self.join(number, &join) {
                Ok(answer) => answer,
                Err(error) => Answer::Refusal { error: error.to_string() },
            },
            Ok(Hello::Status) => Answer::Status { ports: self.status() },
            Err(error) => Answer::Refusal { error },
        };
        let Some(Some(member)) = self.members.get_mut(number) else { return };
        let welcome = matches!(answer, Answer::Welcome { .. });
        if hello::send(member.socket(), &answer).is_err() || !welcome {
            member.phase = Phase::Gone;
        } else {
            member.phase = Phase::Open;
            self.tell_names();
        }
    }

    fn join(&mut self, number: usize, join: &Join) -> Result<Answer, SwitchError> {
        let refuse = |text: String| Err(SwitchError::Refused(text));
        if join.vlan > 4094 {
            return refuse(format!("there is no VLAN {}; they are 0 to 4094", join.vlan));
        }
        self.let_go(&join.name);
        let present: Vec<String> =
            self.members.iter().flatten().map(|member| member.name.clone()).collect();
        if present.contains(&join.name) {
            return refuse(format!("an instance named '{}' is on this switch already", join.name));
        }
        let lease = self
            .book
            .lease(&join.name, join.mac, |name| present.iter().any(|other| other == name))?;
        let subnet = self.book.subnet();
        let address6 = subnet.six(lease.address);
        let config = Config {
            guest4: lease.address,
            guest6: address6,
            router4: subnet.router(),
            router6: subnet.six(subnet.router()),
            dns4: subnet.resolver(),
            dns6: subnet.six(subnet.resolver()),
            prefix4: subnet.prefix(),
            prefix6: 64,
            guest_mac: lease.mac,
            router_mac: self.book.router_mac(),
            mtu: self.config.mtu,
            host_name: Some(join.name.clone()),
            resolvers: self.config.resolvers.clone(),
            policy: self.config.policy.clone(),
            ..Config::default()
        };
        let gateway = UserNetwork::new(config)?;
        let token = EventData::new_u64(FIRST + 2 * number as u64 + 1);
        epoll::add(&self.epoll, gateway.descriptor(), token, EventFlags::IN)
            .map_err(host("watch sockets"))?;
        let addresses = [IpAddr::V4(lease.address), IpAddr::V6(address6)];
        let port = fabric::Port::new(lease.mac, join.vlan, join.isolated, addresses);
        if !self.fabric.insert(number, port) {
            return refuse("another port has this MAC address".to_owned());
        }
        if let Some(Some(member)) = self.members.get_mut(number) {
            member.open(join.name.clone(), gateway);
        }
        let mtu = self.config.mtu;
        Ok(Answer::Welcome { mac: lease.mac, address4: lease.address, address6, mtu })
    }

    /// Everybody resolves the names on its own VLAN, to IPv4 addresses: whether an instance
    /// has the IPv6 address of its lease, or one that it made itself, is its own affair, and
    /// programs would wait for one that is not there.
    fn tell_names(&mut self) {
        let mut names: BTreeMap<u16, BTreeMap<String, Vec<IpAddr>>> = BTreeMap::new();
        for (number, member) in self.members.iter().enumerate() {
            if let (Some(member), Some(port)) = (member, self.fabric.port(number)) {
                let names = names.entry(port.vlan).or_default();
                let four = port.addresses.iter().copied().filter(IpAddr::is_ipv4);
                names.insert(member.name.clone(), four.collect());
            }
        }
        for (number, member) in self.members.iter_mut().enumerate() {
            if let (Some(member), Some(port)) = (member, self.fabric.port(number)) {
                member.set_names(names.get(&port.vlan).cloned().unwrap_or_default());
            }
        }
    }

    fn status(&self) -> Vec<PortStatus> {
        let mut ports = Vec::new();
        for (number, member) in self.members.iter().enumerate() {
            let (Some(member), Some(port)) = (member, self.fabric.port(number)) else { continue };
            ports.push(PortStatus {
                name: member.name.clone(),
                mac: port.mac,
                addresses: port.addresses.to_vec(),
                vlan: port.vlan,
                isolated: port.isolated,
                learned: port.learned,
                sent: [member.counters.frames_in, member.counters.bytes_in],
                received: [member.counters.frames_out, member.counters.bytes_out],
                drops: member.drops(),
                occupied: member.occupied(),
            });
        }
        // A message has an end.
        ports.truncate(hello::MOST_IN_STATUS);
        ports
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The MAC as people write it.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
