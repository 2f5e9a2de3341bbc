//! One TCP connection: this end towards the guest, a host socket behind it.
//!
//! The link to the guest loses nothing and keeps its order, so this end needs little of
//! TCP: it takes segments in order (others are answered with what it expects), and sends
//! again from the oldest unacknowledged byte when an answer is missing.
//!
//! Data towards the guest is peeked from the host socket straight into the guest's
//! buffer and stays in the socket until the guest acknowledges it; then it is thrown
//! away there without a copy. So nothing is buffered here, and sending again is peeking
//! again. Data from the guest is written to the socket at once; what does not fit waits
//! in [`Flow::waiting`], for which there is room because the window says so.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::poller::Ready;
use super::socket;
use crate::frame::{Interface, Receives};
use crate::packet::{ACK, FIN, Headers, IPV4, IPV6, PSH, RST, SYN, TCP, Tcp, TcpFields, tcp_frame};

/// Our window scale; with it the window reaches 8 MiB.
const SHIFT: u8 = 7;
/// Without an option a segment has at most this (RFC 9293).
const DEFAULT_MSS: u16 = 536;
/// Smaller segments would be more header than data.
const LEAST_MSS: u16 = 64;
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);
const LAST_TIMEOUT: Duration = Duration::from_secs(30);
/// After so many unanswered tries the guest is gone.
const TRIES: u32 = 12;
/// The largest IP packet.
const LARGEST: usize = 65_535;

/// The two ends of a connection, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest asked; the host's socket is still connecting.
    Connecting,
    /// The guest was answered, and has not acknowledged it.
    Answered,
    /// The guest was asked (a forwarded port).
    Asked,
    Open,
    /// To be removed, after a reset to the guest where that is so.
    Dead {
        reset: bool,
    },
}

pub struct Flow {
    pub key: Key,
    socket: OwnedFd,
    phase: Phase,

    /// From the guest: what comes next, and what the socket has not taken yet.
    receive_next: u32,
    waiting: VecDeque<u8>,
    guest_ended: bool,
    shut_down: bool,
    acknowledge: bool,
    window_told: u32,

    /// To the guest.
    unacknowledged: u32,
    send_next: u32,
    window: u32,
    guest_shift: u8,
    our_shift: u8,
    mss: u16,
    readable: bool,
    host_ended: bool,
    fin_sent: bool,
    fin_acknowledged: bool,
    /// The host's other end sends nothing more, and it may have been read all.
    hung_up: bool,
    /// Ask for the guest's window.
    probe: bool,
    duplicates: u32,
    /// The kernel keeps the place to peek at (Linux 6.9 and later).
    kernel_peeks: bool,

    /// Both directions are done.
    ended: bool,
    tries: u32,
    pub deadline: Option<Instant>,
}

/// What a flow may use.
pub struct Means<'a> {
    pub interface: &'a mut dyn Interface,
    pub headers: Headers,
    /// Room for data from the guest, this flow's and what is waiting included.
    pub buffer: usize,
    pub now: Instant,
    pub mtu: u16,
    /// Somewhere to put bytes that were peeked before, for older kernels.
    pub scratch: &'a mut Vec<u8>,
}

/// How sending went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing more to say for now.
    All,
    /// There is more, after others had their turn.
    More,
    /// The guest gives no buffers.
    NoRoom,
}

/// Whether `a` comes after `b` in sequence space.
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Flow {
    /// The guest asks for a connection; `socket` is being connected.
    pub fn asked_by_guest(key: Key, socket: OwnedFd, syn: &Tcp<'_>, first: u32) -> Flow {
        let mut flow = Flow::new(key, socket, first, Phase::Connecting);
        flow.receive_next = syn.sequence.wrapping_add(1);
        flow.take_options(syn);
        flow
    }

    /// `socket` was accepted from a forwarded port; the guest is to be asked.
    pub fn to_guest(key: Key, socket: OwnedFd, first: u32) -> Flow {
        let mut flow = Flow::new(key, socket, first, Phase::Asked);
        flow.our_shift = SHIFT;
        flow
    }

    fn new(key: Key, socket: OwnedFd, first: u32, phase: Phase) -> Flow {
        let _ = socket::set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let kernel_peeks =
            socket::set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).is_ok();
        Flow {
            key,
            socket,
            phase,
            receive_next: 0,
            waiting: VecDeque::new(),
            guest_ended: false,
            shut_down: false,
            acknowledge: false,
            window_told: 0,
            unacknowledged: first,
            send_next: first,
            window: 0,
            guest_shift: 0,
            our_shift: 0,
            mss: DEFAULT_MSS,
            readable: false,
            host_ended: false,
            fin_sent: false,
            fin_acknowledged: false,
            hung_up: false,
            probe: false,
            duplicates: 0,
            kernel_peeks,
            ended: false,
            tries: 0,
            deadline: None,
        }
    }

    pub fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead { .. })
    }

    /// Whether a new SYN may take this flow's place.
    pub fn is_ending(&self) -> bool {
        self.is_dead() || (self.guest_ended && self.fin_sent)
    }

    fn take_options(&mut self, syn: &Tcp<'_>) {
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).max(LEAST_MSS);
        match syn.window_shift {
            Some(shift) => (self.guest_shift, self.our_shift) = (shift, SHIFT),
            None => (self.guest_shift, self.our_shift) = (0, 0),
        }
        // The window of a SYN is never scaled.
        self.window = u32::from(syn.window);
    }

    fn die(&mut self, reset: bool) {
        self.phase = Phase::Dead { reset };
        self.deadline = None;
        socket::reset_on_close(self.socket.as_fd());
    }

    /// Data bytes that the guest has not acknowledged.
    fn in_flight(&self) -> u32 {
        let fin = self.fin_sent && !self.fin_acknowledged;
        self.send_next.wrapping_sub(self.unacknowledged) - u32::from(fin)
    }

    /// Takes a segment of the guest. `room` is what may wait.
    pub fn segment(&mut self, tcp: &Tcp<'_>, room: usize, now: Instant) {
        if self.is_dead() {
            return;
        }
        if tcp.has(RST) {
            // Only a reset that is exactly in place counts (RFC 5961).
            let answers_syn = self.phase == Phase::Asked && tcp.acknowledgement == self.send_next;
            if answers_syn || tcp.sequence == self.receive_next {
                self.die(false);
            }
            return;
        }
        match self.phase {
            Phase::Asked => return self.answer_of_guest(tcp, now),
            Phase::Connecting => return,
            _ if tcp.has(SYN) => {
                // The answer to it was lost, or it is not for this connection.
                self.acknowledge = true;
                return;
            }
            _ => {}
        }
        if !tcp.has(ACK) {
            return;
        }
        self.acknowledged(tcp, now);
        if self.phase == Phase::Open {
            self.data(tcp, room);
        }
    }

    fn answer_of_guest(&mut self, tcp: &Tcp<'_>, now: Instant) {
        if !tcp.has(SYN) || !tcp.has(ACK) || tcp.acknowledgement != self.send_next {
            return;
        }
        self.take_options(tcp);
        self.receive_next = tcp.sequence.wrapping_add(1);
        self.unacknowledged = self.send_next;
        self.phase = Phase::Open;
        self.acknowledge = true;
        self.readable = true;
        self.progress(now);
    }

    /// The guest answered something: timeouts start anew.
    fn progress(&mut self, now: Instant) {
        self.tries = 0;
        self.duplicates = 0;
        self.arm(now);
    }

    fn arm(&mut self, now: Instant) {
        let asking = matches!(self.phase, Phase::Answered | Phase::Asked);
        let unanswered = self.send_next != self.unacknowledged;
        let stalled = self.phase == Phase::Open && self.window == 0 && self.readable;
        self.deadline = (asking || unanswered || stalled)
            .then(|| now + FIRST_TIMEOUT.saturating_mul(1 << self.tries.min(10)).min(LAST_TIMEOUT));
    }

    fn acknowledged(&mut self, tcp: &Tcp<'_>, now: Instant) {
        let acknowledged = tcp.acknowledgement;
        if after(acknowledged, self.send_next) {
            self.acknowledge = true;
            return;
        }
        let window = u32::from(tcp.window) << self.guest_shift;
        if self.phase == Phase::Answered {
            if acknowledged != self.send_next {
                return;
            }
            self.phase = Phase::Open;
            self.unacknowledged = acknowledged;
            self.readable = true;
            self.window = window;
            self.progress(now);
            return;
        }
        if after(acknowledged, self.unacknowledged) {
            let count = acknowledged.wrapping_sub(self.unacknowledged);
            let of_fin = u32::from(self.fin_sent && acknowledged == self.send_next);
            self.forget(count - of_fin);
            self.unacknowledged = acknowledged;
            self.window = window;
            self.progress(now);
            if of_fin == 1 {
                self.fin_acknowledged = true;
                self.finish();
            }
        } else if acknowledged == self.unacknowledged {
            let same = window == self.window && tcp.length() == 0 && self.in_flight() > 0;
            self.window = window;
            if same {
                self.duplicates += 1;
                if self.duplicates == 3 {
                    self.send_again();
                }
            } else {
                self.arm(now);
            }
        }
    }

    /// Throws acknowledged bytes away, in the host's socket.
    fn forget(&mut self, count: u32) {
        let mut left = count as usize;
        while left > 0 {
            match socket::discard(self.socket.as_fd(), left) {
                Ok(0) => break,
                Ok(done) => left -= done,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.die(true);
                    break;
                }
            }
        }
    }

    /// Both directions may have come to their end, and been told so.
    fn finish(&mut self) {
        if self.shut_down && self.fin_acknowledged && !self.is_dead() {
            self.ended = true;
        }
    }

    /// Goes back to the oldest byte that is not acknowledged.
    fn send_again(&mut self) {
        if self.send_next == self.unacknowledged {
            return;
        }
        self.send_next = self.unacknowledged;
        self.fin_sent = false;
        self.readable = true;
        self.duplicates = 0;
        if self.kernel_peeks {
            let _ = socket::set(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0);
        }
    }

    fn data(&mut self, tcp: &Tcp<'_>, room: usize) {
        if tcp.length() == 0 {
            return;
        }
        self.acknowledge = true;
        let early = self.receive_next.wrapping_sub(tcp.sequence);
        // Older than what was taken: cut that off. Newer, or all of it taken: say so.
        if (early as i32) < 0 || early >= tcp.length() || self.guest_ended {
            return;
        }
        let payload = &tcp.payload[(early as usize).min(tcp.payload.len())..];
        let taken = self.write(payload, room);
        self.receive_next = self.receive_next.wrapping_add(taken as u32);
        if tcp.has(FIN) && taken == payload.len() && !self.is_dead() {
            self.receive_next = self.receive_next.wrapping_add(1);
            self.guest_ended = true;
            self.drain();
        }
    }

    /// Writes to the host's socket, and keeps as much of the rest as there is room for.
    fn write(&mut self, payload: &[u8], room: usize) -> usize {
        let mut written = 0;
        if self.waiting.is_empty() {
            while written < payload.len() {
                match socket::send(self.socket.as_fd(), &payload[written..]) {
                    Ok(count) => written += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.die(true);
                        return written;
                    }
                }
            }
        }
        let rest = &payload[written..];
        let kept = rest.len().min(room.saturating_sub(self.waiting.len()));
        self.waiting.extend(&rest[..kept]);
        written + kept
    }

    /// Writes what waits, and the guest's end of data after it.
    fn drain(&mut self) {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match socket::send(self.socket.as_fd(), front) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.die(true),
            }
        }
        if self.guest_ended && !self.shut_down {
            socket::shut_down_writing(self.socket.as_fd());
            self.shut_down = true;
            self.finish();
        }
    }

    /// The host's socket has something to say.
    pub fn ready(&mut self, ready: Ready, buffer: usize, now: Instant) {
        if self.is_dead() {
            return;
        }
        if self.phase == Phase::Connecting {
            if !ready.writable && !ready.failed {
                return;
            }
            if socket::take_error(self.socket.as_fd()).is_some() {
                return self.die(true);
            }
            self.phase = Phase::Answered;
            self.arm(now);
            return;
        }
        if ready.failed && socket::take_error(self.socket.as_fd()).is_some() {
            return self.die(true);
        }
        self.hung_up |= ready.hung_up;
        if (ready.readable || ready.hung_up) && !self.fin_acknowledged {
            self.readable = true;
        }
        if ready.writable && (!self.waiting.is_empty() || self.guest_ended) {
            self.drain();
            // Tell of room once there is much of it, not of each little piece.
            let room = buffer.saturating_sub(self.waiting.len()) as u32;
            if self.window_told < room / 2 {
                self.acknowledge = true;
            }
        }
    }

    /// Packets to the guest must be no larger; those under way are lost.
    pub fn too_big(&mut self, mtu: u16) {
        let headers = if self.key.guest.is_ipv4() { IPV4 } else { IPV6 } + TCP;
        let mss = mtu.saturating_sub(headers as u16).max(LEAST_MSS);
        if mss < self.mss && self.phase == Phase::Open {
            self.mss = mss;
            self.send_again();
        }
    }

    /// An answer of the guest is overdue.
    pub fn timed_out(&mut self, now: Instant) {
        self.tries += 1;
        if self.tries > TRIES && self.send_next != self.unacknowledged {
            return self.die(true);
        }
        match self.phase {
            Phase::Answered | Phase::Asked => self.send_next = self.unacknowledged,
            _ if self.send_next == self.unacknowledged => self.probe = true,
            _ => self.send_again(),
        }
        self.arm(now);
    }

    /// Says what is to be said, for a few frames.
    pub fn send(&mut self, means: &mut Means<'_>) -> Sent {
        match self.phase {
            Phase::Connecting | Phase::Dead { reset: false } => Sent::All,
            Phase::Dead { reset: true } => {
                let sent = self.control(means, RST | ACK, None);
                if sent == Sent::All {
                    self.phase = Phase::Dead { reset: false };
                }
                sent
            }
            Phase::Asked | Phase::Answered => self.send_syn(means),
            Phase::Open => self.send_data(means),
        }
    }

    fn send_syn(&mut self, means: &mut Means<'_>) -> Sent {
        if self.send_next != self.unacknowledged && !self.acknowledge {
            return Sent::All;
        }
        let headers = if self.key.guest.is_ipv4() { IPV4 } else { IPV6 } + TCP;
        let mss = means.mtu - headers as u16;
        self.send_next = self.unacknowledged;
        let answer = self.phase == Phase::Answered;
        let flags = if answer { SYN | ACK } else { SYN };
        let shift = (self.our_shift != 0).then_some(self.our_shift);
        let sent = self.control(means, flags, Some((mss, shift)));
        if sent == Sent::All {
            self.send_next = self.unacknowledged.wrapping_add(1);
            self.arm(means.now);
        }
        sent
    }

    fn fields(
        &mut self,
        flags: u8,
        buffer: usize,
        options: Option<(u16, Option<u8>)>,
    ) -> TcpFields {
        let room = buffer.saturating_sub(self.waiting.len()) as u32;
        let shift = if flags & SYN != 0 { 0 } else { self.our_shift };
        let window = (room >> shift).min(65_535);
        if flags & ACK != 0 {
            self.window_told = window << shift;
            self.acknowledge = false;
        }
        TcpFields {
            source: self.key.remote.port(),
            destination: self.key.guest.port(),
            sequence: self.send_next,
            acknowledgement: self.receive_next,
            flags,
            window: window as u16,
            options,
        }
    }

    /// A segment without data.
    fn control(
        &mut self,
        means: &mut Means<'_>,
        flags: u8,
        options: Option<(u16, Option<u8>)>,
    ) -> Sent {
        let receives = means.interface.receives();
        let Some(room) = means.interface.room(128) else { return Sent::NoRoom };
        let fields = self.fields(flags, means.buffer, options);
        let (size, offload) = tcp_frame(room, &means.headers, &fields, 0, self.mss, receives);
        means.interface.deliver(size, offload);
        Sent::All
    }

    fn send_data(&mut self, means: &mut Means<'_>) -> Sent {
        const TURNS: usize = 8;
        for _ in 0..TURNS {
            match self.send_piece(means) {
                Ok(true) => {}
                Ok(false) => return self.send_rest(means),
                Err(sent) => return sent,
            }
        }
        Sent::More
    }

    /// Sends one frame of data; false when there is none to send now.
    fn send_piece(&mut self, means: &mut Means<'_>) -> Result<bool, Sent> {
        let open = self.window.saturating_sub(self.in_flight());
        if !self.readable || self.fin_sent || open == 0 {
            return Ok(false);
        }
        let receives = means.interface.receives();
        let payload_at = means.headers.size() + TCP;
        let limit = self.frame_payload(receives, means).min(open as usize);
        let room = means.interface.room(payload_at + limit).ok_or(Sent::NoRoom)?;
        let mss = self.mss_for(means.mtu);
        match self.peek(&mut room[payload_at..payload_at + limit], means.scratch) {
            Ok(0) => {
                self.host_ended = true;
                self.readable = false;
                Ok(false)
            }
            Ok(count) => {
                let push = if count < limit { PSH } else { 0 };
                let fields = self.fields(ACK | push, means.buffer, None);
                let headers = &means.headers;
                let (size, offload) = tcp_frame(room, headers, &fields, count, mss, receives);
                means.interface.deliver(size, offload);
                self.send_next = self.send_next.wrapping_add(count as u32);
                if self.deadline.is_none() {
                    self.arm(means.now);
                }
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(_) => {
                self.die(true);
                Err(Sent::More)
            }
        }
    }

    fn mss_for(&self, mtu: u16) -> u16 {
        let headers = if self.key.guest.is_ipv4() { IPV4 } else { IPV6 } + TCP;
        self.mss.min(mtu - headers as u16)
    }

    /// How much data one frame carries: many segments where the driver cuts them.
    fn frame_payload(&self, receives: Receives, means: &Means<'_>) -> usize {
        let v4 = self.key.guest.is_ipv4();
        let cuts = receives.checksum && if v4 { receives.tcp4 } else { receives.tcp6 };
        if cuts {
            // IPv4 counts its header in, IPv6 does not.
            LARGEST - TCP - if v4 { IPV4 } else { 0 }
        } else {
            usize::from(self.mss_for(means.mtu))
        }
    }

    /// Bytes of the host's socket that have not been sent to the guest.
    fn peek(&self, into: &mut [u8], scratch: &mut Vec<u8>) -> io::Result<usize> {
        let socket = self.socket.as_fd();
        if self.kernel_peeks {
            return socket::receive(socket, into, libc::MSG_PEEK);
        }
        let skip = self.in_flight() as usize;
        if scratch.len() < skip {
            scratch.resize(skip, 0);
        }
        let got = socket::peek_after(socket, &mut scratch[..skip], into)?;
        if got == skip && skip > 0 && !self.hung_up {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(got.saturating_sub(skip))
    }

    /// After the data: the end of it, or an acknowledgement that is due.
    fn send_rest(&mut self, means: &mut Means<'_>) -> Sent {
        if self.host_ended && !self.fin_sent && !self.readable {
            let sent = self.control(means, FIN | ACK, None);
            if sent == Sent::All {
                self.fin_sent = true;
                self.send_next = self.send_next.wrapping_add(1);
                self.arm(means.now);
            }
            return sent;
        }
        if self.deadline.is_none() && self.readable && self.window == 0 {
            self.arm(means.now);
        }
        if self.probe {
            // A byte from before: the guest answers with what it expects, and its window.
            self.probe = false;
            self.send_next = self.send_next.wrapping_sub(1);
            let sent = self.control(means, ACK, None);
            self.send_next = self.send_next.wrapping_add(1);
            return sent;
        }
        if !self.acknowledge {
            self.settle();
            return Sent::All;
        }
        let sent = self.control(means, ACK, None);
        if sent == Sent::All {
            self.settle();
        }
        sent
    }

    /// An ended flow goes once the guest's end has been acknowledged too.
    fn settle(&mut self) {
        if self.ended {
            self.phase = Phase::Dead { reset: false };
            self.deadline = None;
        }
    }
}
