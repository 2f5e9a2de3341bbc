//! The table of connections, and what packets do to it.
//!
//! Packets to the guest without data wait in a queue whose length is limited: while it is
//! full, nothing is taken from the guest, and nobody new is let in.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::net::{RecvFlags, recv};

use super::connection::{Arrived, Connection, Origin, Stage};
use super::host::{Host, LONGEST_GREETING, parse_greeting};
use super::packet::{
    CREDIT_REQUEST, CREDIT_UPDATE, DATA, HOST_CID, Header, LENGTH, NO_RECEIVE, NO_SEND, REQUEST,
    RESET, RESPONSE, SHUTDOWN, STREAM,
};
use crate::queue::{Queue, QueueError, Reader};

/// Connections at a time.
const MOST_CONNECTIONS: usize = 1024;
/// Packets without data that wait for the guest.
const MOST_PACKETS: usize = 256;
/// Connections to the guest come from ports from here on, far from those of services.
const FIRST_PORT: u32 = 1 << 30;
/// Data are copied in pieces of this size at most.
const PIECE: usize = 64 << 10;
/// Packets that one connection sends before the others have a turn.
const TURN: usize = 16;

pub struct Switch {
    cid: u64,
    host: Arc<Host>,
    connections: HashMap<u64, Connection>,
    /// By the host's and the guest's port.
    ports: HashMap<(u32, u32), u64>,
    packets: VecDeque<Header>,
    /// Connections that may have something for the guest.
    ready: VecDeque<u64>,
    /// Those that nobody watches yet.
    unwatched: Vec<u64>,
    next_token: u64,
    next_port: u32,
    scratch: Vec<u8>,
    /// The driver's connections are gone, and it is to be told.
    pub announce_reset: bool,
}

/// What delivering came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// There is nothing more for the guest.
    Done,
    /// There is, but the guest has given no buffers for it.
    Starved,
    /// Others should have a turn first.
    More,
}

impl Switch {
    pub fn new(cid: u64, host: Arc<Host>) -> Self {
        Self {
            cid,
            host,
            connections: HashMap::new(),
            ports: HashMap::new(),
            packets: VecDeque::new(),
            ready: VecDeque::new(),
            unwatched: Vec::new(),
            next_token: 0,
            next_port: FIRST_PORT,
            scratch: Vec::new(),
            announce_reset: false,
        }
    }

    /// Ends all connections; the guest knows of none.
    pub fn forget_all(&mut self) {
        self.connections.clear();
        self.ports.clear();
        self.packets.clear();
        self.ready.clear();
        self.unwatched.clear();
    }

    /// Whether nothing more can be taken from anybody before the guest has taken packets.
    pub fn is_congested(&self) -> bool {
        self.packets.len() >= MOST_PACKETS
    }

    /// Streams that came since the last call, or all for a new watcher.
    pub fn unwatched(&mut self, all: bool) -> impl Iterator<Item = (u64, &UnixStream)> {
        let mut tokens = std::mem::take(&mut self.unwatched);
        if all {
            tokens = self.connections.keys().copied().collect();
        }
        let connections = &self.connections;
        tokens.into_iter().filter_map(|token| Some((token, connections.get(&token)?.stream())))
    }

    fn insert(&mut self, connection: Connection) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.connections.insert(token, connection);
        self.unwatched.push(token);
        token
    }

    /// Takes in who has come to the Unix socket, and what this process wants.
    pub fn admit(&mut self) {
        while let Some(stream) = self.host.visitor() {
            if !self.is_full() {
                self.insert(Connection::new(stream, Stage::Greeting, 0, 0));
            }
        }
        for order in self.host.take_orders() {
            // Who is not let in learns it by its order being dropped.
            if !self.is_full() {
                let stage = Stage::Requested(Origin::Process(order.done));
                let token = self.insert(Connection::new(order.stream, stage, 0, 0));
                self.request(token, order.port);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() >= MOST_CONNECTIONS || self.is_congested()
    }

    /// Asks the guest for a connection to one of its ports.
    fn request(&mut self, token: u64, guest_port: u32) {
        while self.ports.contains_key(&(self.next_port, guest_port)) {
            self.advance_port();
        }
        let host_port = self.next_port;
        self.advance_port();
        let Some(connection) = self.connections.get_mut(&token) else { return };
        (connection.host_port, connection.guest_port) = (host_port, guest_port);
        self.ports.insert((host_port, guest_port), token);
        self.packets.push_back(connection.header(self.cid, REQUEST));
    }

    fn advance_port(&mut self) {
        self.next_port =
            if self.next_port >= u32::MAX - 1 { FIRST_PORT } else { self.next_port + 1 };
    }

    /// Something has happened to a stream.
    pub fn event(&mut self, token: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        connection.readable |= gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        connection.hung_up |= gone;
        match connection.stage {
            Stage::Greeting => self.greet(token),
            Stage::Requested(_) if gone => self.reset(token),
            Stage::Requested(_) => {}
            Stage::Open => {
                let writable = flags.intersects(EventFlags::OUT);
                let broken = writable && connection.drain().is_err();
                if broken || (gone && !connection.may_deliver() && !connection.host_sends) {
                    self.reset(token);
                }
            }
            Stage::Draining => {
                if connection.drain().is_err() || connection.is_drained() {
                    self.connections.remove(&token);
                }
            }
        }
        self.follow_up(token);
    }

    /// Reads what a process at the Unix socket wants.
    fn greet(&mut self, token: u64) {
        let Some(connection) = self.connections.get(&token) else { return };
        // Data may follow the line, and stay in the stream.
        let mut line = [0; LONGEST_GREETING];
        let seen = recv(connection.stream(), &mut line, RecvFlags::DONTWAIT | RecvFlags::PEEK);
        let seen = match seen {
            Ok((_, length)) if length > 0 => parse_greeting(&line[..length]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            _ => Some(Err(())),
        };
        match seen {
            None => {}
            Some(Ok((port, length))) => {
                let stream = connection.stream();
                let taken = recv(stream, &mut line[..length], RecvFlags::DONTWAIT);
                if taken.is_ok_and(|(_, taken)| taken == length) && !self.is_congested() {
                    if let Some(connection) = self.connections.get_mut(&token) {
                        connection.stage = Stage::Requested(Origin::Unix);
                    }
                    self.request(token, port);
                } else {
                    self.connections.remove(&token);
                }
            }
            Some(Err(())) => _ = self.connections.remove(&token),
        }
    }

    /// A packet of the guest. What is wrong with a packet is its sender's problem, not the
    /// queue's; only a chain that cannot be read is.
    pub fn take(&mut self, reader: &mut Reader<'_>) -> Result<(), QueueError> {
        let header = Header::parse(&reader.read_array::<LENGTH>()?);
        if header.source_cid != self.cid {
            // Whoever that is could not be answered.
            return Ok(());
        }
        let fits = u64::from(header.length) <= reader.remaining();
        if header.destination_cid != HOST_CID || header.kind != STREAM || !fits {
            self.refuse(&header);
            return Ok(());
        }
        let ports = (header.destination_port, header.source_port);
        match (self.ports.get(&ports).copied(), header.operation) {
            (None, REQUEST) => self.accept(&header),
            (None, _) => self.refuse(&header),
            (Some(token), RESET) => self.end(token),
            (Some(token), _) => {
                if !self.continue_with(token, &header, reader)? {
                    self.reset(token);
                }
                self.follow_up(token);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, header: &Header) {
        if header.operation != RESET {
            self.packets.push_back(header.refusal());
        }
    }

    /// The guest wants to connect.
    fn accept(&mut self, header: &Header) {
        let full = self.connections.len() >= MOST_CONNECTIONS;
        let stream = if full { None } else { self.host.reach(header.destination_port) };
        let Some(stream) = stream else { return self.refuse(header) };
        let (host_port, guest_port) = (header.destination_port, header.source_port);
        let mut connection = Connection::new(stream, Stage::Open, host_port, guest_port);
        connection.learn(header);
        self.packets.push_back(connection.header(self.cid, RESPONSE));
        let token = self.insert(connection);
        self.ports.insert((host_port, guest_port), token);
        self.follow_up(token);
    }

    /// A packet for a connection that there is. Says whether it makes sense.
    fn continue_with(
        &mut self,
        token: u64,
        header: &Header,
        reader: &mut Reader<'_>,
    ) -> Result<bool, QueueError> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(false) };
        connection.learn(header);
        if header.operation == RESPONSE {
            return Ok(self.answered(token));
        }
        if !matches!(connection.stage, Stage::Open) {
            return Ok(false);
        }
        match header.operation {
            DATA if header.length <= connection.room() => {
                let mut left = header.length as usize;
                while left > 0 {
                    self.scratch.resize(left.min(PIECE), 0);
                    reader.read(&mut self.scratch)?;
                    left -= self.scratch.len();
                    if connection.accept(&self.scratch).is_err() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            SHUTDOWN => {
                let (no_receive, no_send) =
                    (header.flags & NO_RECEIVE != 0, header.flags & NO_SEND != 0);
                if connection.close(no_receive, no_send) {
                    // The guest waits for this before it forgets the connection.
                    self.refuse(header);
                    self.end(token);
                }
                Ok(true)
            }
            CREDIT_UPDATE => Ok(true),
            CREDIT_REQUEST => {
                if !connection.telling {
                    self.packets.push_back(connection.header(self.cid, CREDIT_UPDATE));
                    connection.telling = true;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The guest has accepted a connection. Says whether it was asked to, and somebody
    /// still wants it.
    fn answered(&mut self, token: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return false };
        let stage = std::mem::replace(&mut connection.stage, Stage::Open);
        match stage {
            Stage::Requested(Origin::Unix) => {
                connection.say(&format!("OK {}\n", connection.host_port)).is_ok()
            }
            Stage::Requested(Origin::Process(done)) => done.try_send(()).is_ok(),
            _ => false,
        }
    }

    /// What a change of a connection brings with it.
    fn follow_up(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.owes_credit() {
            self.packets.push_back(connection.header(self.cid, CREDIT_UPDATE));
            connection.telling = true;
        }
        if connection.may_deliver() && !self.ready.contains(&token) {
            self.ready.push_back(token);
        }
    }

    /// Ends a connection that the guest believes in.
    fn reset(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if self.ports.contains_key(&(connection.host_port, connection.guest_port)) {
            self.packets.push_back(connection.header(self.cid, RESET));
        }
        self.end(token);
    }

    /// Ends a connection that the guest has forgotten. What it sent before still arrives.
    fn end(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.ports.remove(&(connection.host_port, connection.guest_port));
        if matches!(connection.stage, Stage::Open) && !connection.is_drained() {
            connection.stage = Stage::Draining;
            connection.close(true, true);
        } else {
            self.connections.remove(&token);
        }
    }

    /// Fills the guest's buffers with what there is for it.
    pub fn deliver(&mut self, queue: &mut Queue) -> Result<Delivery, QueueError> {
        while let Some(header) = self.packets.front() {
            let Some(chain) = queue.pop()? else { return Ok(Delivery::Starved) };
            let header = self.refresh(*header);
            self.packets.pop_front();
            let written = chain.writer(queue.memory()).write(&header.bytes())?;
            queue.push(chain, written as u32)?;
        }
        // As many turns as there are connections now; those that come meanwhile wait.
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { break };
            match self.deliver_from(token, queue)? {
                Delivery::Done => {}
                Delivery::Starved => {
                    self.ready.push_front(token);
                    return Ok(Delivery::Starved);
                }
                Delivery::More => self.ready.push_back(token),
            }
        }
        let more = !self.ready.is_empty() || !self.packets.is_empty();
        Ok(if more { Delivery::More } else { Delivery::Done })
    }

    /// A packet that has waited tells what is true now.
    fn refresh(&mut self, header: Header) -> Header {
        let ports = (header.source_port, header.destination_port);
        let token = if header.operation == RESET { None } else { self.ports.get(&ports) };
        match token.and_then(|token| self.connections.get_mut(token)) {
            Some(connection) => {
                Header { flags: header.flags, ..connection.header(self.cid, header.operation) }
            }
            None => header,
        }
    }

    fn deliver_from(&mut self, token: u64, queue: &mut Queue) -> Result<Delivery, QueueError> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(Delivery::Done) };
        for _ in 0..TURN {
            if !connection.may_deliver() {
                return Ok(Delivery::Done);
            }
            let Some(chain) = queue.pop()? else { return Ok(Delivery::Starved) };
            let mut writer = chain.writer(queue.memory());
            let room = writer.remaining().saturating_sub(LENGTH as u64).min(PIECE as u64);
            if room == 0 {
                return Err(QueueError::Request("a buffer has no room for data"));
            }
            self.scratch.resize(room as usize, 0);
            match connection.read(&mut self.scratch) {
                Arrived::Data(length) => {
                    let header =
                        Header { length: length as u32, ..connection.header(self.cid, DATA) };
                    writer.write(&header.bytes())?;
                    writer.write(&self.scratch[..length])?;
                    queue.push(chain, (LENGTH + length) as u32)?;
                }
                Arrived::Nothing => queue.put_back(&chain),
                Arrived::End => {
                    queue.put_back(&chain);
                    let flags = if connection.hung_up { NO_RECEIVE | NO_SEND } else { NO_SEND };
                    let header = Header { flags, ..connection.header(self.cid, SHUTDOWN) };
                    self.packets.push_back(header);
                    return Ok(Delivery::Done);
                }
                Arrived::Broken => {
                    queue.put_back(&chain);
                    self.reset(token);
                    return Ok(Delivery::Done);
                }
            }
        }
        Ok(Delivery::More)
    }
}
