//! One connected process: its socket, what waits for it, and its side of the gateway.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::hello;
use crate::frame::{Counters, Interface, Network, Occupied, Offload, Reason, Receives};
use crate::header;
use crate::outbox::{MOST_WAITING, Outbox};
use crate::user::UserNetwork;
use crate::wire::LARGEST_FRAME;

/// The gateway stops here, so that ports among themselves have room too.
const GATEWAY_STOPS: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Has connected, and not said who it is.
    Silent,
    Open,
    Gone,
}

pub struct Member {
    pub name: String,
    pub phase: Phase,
    pub counters: Counters,
    line: Line,
    gateway: Option<UserNetwork>,
    /// The gateway has something to do.
    due: bool,
    /// When a silent member has been silent for too long.
    patience: Instant,
}

/// The way to the process.
struct Line {
    socket: OwnedFd,
    outbox: Outbox,
    staging: Vec<u8>,
    frames: u64,
    bytes: u64,
    dropped: u64,
}

impl Member {
    pub fn new(socket: OwnedFd, patience: Instant) -> Member {
        let line = Line {
            socket,
            outbox: Outbox::default(),
            staging: Vec::new(),
            frames: 0,
            bytes: 0,
            dropped: 0,
        };
        Member {
            name: String::new(),
            phase: Phase::Silent,
            counters: Counters::default(),
            line,
            gateway: None,
            due: false,
            patience,
        }
    }

    pub fn open(&mut self, name: String, gateway: UserNetwork) {
        self.name = name;
        self.gateway = Some(gateway);
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.line.socket
    }

    pub fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.line.socket, PollFlags::RDHUP)];
        let at_once = Timespec::default();
        rustix::event::poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    pub fn set_names(&mut self, names: BTreeMap<String, Vec<IpAddr>>) {
        if let Some(gateway) = &mut self.gateway {
            gateway.set_names(names);
        }
    }

    pub fn timer(&self) -> Option<Duration> {
        let now = Instant::now();
        match (&self.gateway, self.phase) {
            (_, Phase::Silent) => Some(self.patience.saturating_duration_since(now)),
            (Some(gateway), _) => gateway.timer(),
            (None, _) => None,
        }
    }

    pub fn look_at_gateway(&mut self) {
        self.due = true;
    }

    pub fn pass_to_gateway(&mut self, frame: &[u8], offload: Offload) {
        if let Some(gateway) = &mut self.gateway {
            gateway.input(frame, offload);
            self.due = true;
        }
    }

    /// Sends a frame on, with its header as it came.
    pub fn send(&mut self, head: &[u8], frame: &[u8]) {
        if self.phase == Phase::Open {
            self.line.send(head, frame);
            self.take_counts();
        }
    }

    pub fn drain(&mut self) {
        if self.line.outbox.drain(&self.line.socket).is_err() {
            self.phase = Phase::Gone;
        }
        // The gateway may have waited for this.
        self.due = true;
    }

    /// Lets the gateway do what it has to do.
    pub fn tend(&mut self, now: Instant) {
        if self.phase == Phase::Silent && self.patience <= now {
            self.phase = Phase::Gone;
        }
        let Some(gateway) = &mut self.gateway else { return };
        if self.phase == Phase::Open
            && (self.due || gateway.timer().is_some_and(|time| time.is_zero()))
        {
            self.due = false;
            gateway.poll(&mut self.line);
            self.take_counts();
        }
    }

    fn take_counts(&mut self) {
        self.counters.frames_out += std::mem::take(&mut self.line.frames);
        self.counters.bytes_out += std::mem::take(&mut self.line.bytes);
        for _ in 0..std::mem::take(&mut self.line.dropped) {
            self.counters.drop_for(Reason::NoRoom);
        }
    }

    /// Drops by reason, the gateway's included, where there were any.
    pub fn drops(&self) -> Vec<(String, u64)> {
        let gateway = self.gateway.as_ref().map(Network::counters).unwrap_or_default();
        let all = Reason::ALL.into_iter();
        all.map(|reason| (reason, self.counters.drops(reason) + gateway.drops(reason)))
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .collect()
    }

    pub fn occupied(&self) -> Vec<(String, usize, usize)> {
        let mut all = self.gateway.as_ref().map(Network::occupied).unwrap_or_default();
        let (now, most) = (self.line.outbox.bytes(), MOST_WAITING);
        all.push(Occupied { what: "waiting-bytes", now, most });
        hello::occupied(all)
    }
}

impl Line {
    fn send(&mut self, head: &[u8], frame: &[u8]) {
        // An error that stays shows when the socket is read.
        if self.outbox.send(&self.socket, head, frame).is_err() {
            self.dropped += 1;
            return;
        }
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }
}

/// The gateway's way to the guest; the process at the other end cuts and sums what the
/// guest's driver does not.
impl Interface for Line {
    fn receives(&self) -> Receives {
        Receives { checksum: true, tcp4: true, tcp6: true }
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        if self.outbox.bytes() >= GATEWAY_STOPS || size > LARGEST_FRAME {
            return None;
        }
        if self.staging.len() < size {
            self.staging.resize(size, 0);
        }
        Some(&mut self.staging[..size])
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.staging[..size.min(self.staging.len())]
    }

    fn deliver(&mut self, size: usize, offload: Offload) {
        let staging = std::mem::take(&mut self.staging);
        if let Some(frame) = staging.get(..size) {
            self.send(&header::build(&offload, 0), frame);
        }
        self.staging = staging;
    }
}
