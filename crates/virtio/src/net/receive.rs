//! The guest's receive queues, as room for frames.
//!
//! Buffers are taken from a ring before there is a frame for them, because a network asks
//! for room first; a stopped device puts those that it did not use back. A frame is built
//! in one piece of memory and then laid into the guest's buffers, which are smaller than
//! the largest frames.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guise_net::frame::{Interface, Offload, Receives};
use guise_net::header;

use super::{NetState, lock};
use crate::queue::{Chain, Queue, QueueError};
use crate::rate::{Limiter, Wait};

/// Flows are told apart by so many values of a hash.
const STEPS: usize = 256;

pub struct Ring {
    pub index: u16,
    pub queue: Queue,
    /// Chains that have been taken, with the room in each.
    held: VecDeque<(Chain, u64)>,
    /// Those that a frame was laid into, until all of it is there.
    filled: Vec<(Chain, u32)>,
}

pub struct Receiver {
    pub rings: Vec<Ring>,
    shared: Arc<Mutex<NetState>>,
    mergeable: bool,
    limiter: Limiter,
    staging: Vec<u8>,
    /// Which ring a flow's frames go to.
    steering: [u8; STEPS],
    /// The driver has given too few buffers for what there is.
    pub starved: bool,
    /// Frames have to wait for the limit.
    pub wait: Option<Duration>,
    /// What the driver did wrong while somebody else was calling.
    pub broken: Option<QueueError>,
}

impl Ring {
    /// Takes chains until there is room for so many bytes. Says whether there is, or no
    /// more can come.
    fn fill(&mut self, wanted: u64, mergeable: bool) -> Result<bool, QueueError> {
        loop {
            let room: u64 = match mergeable {
                true => self.held.iter().map(|(_, room)| room).sum(),
                false if self.held.is_empty() => 0,
                // A frame that does not fit into its only buffer is lost.
                false => return Ok(true),
            };
            if room >= wanted || self.held.len() >= usize::from(self.queue.config().size) {
                return Ok(true);
            }
            let Some(chain) = self.queue.pop()? else { return Ok(false) };
            let room = chain.writer(self.queue.memory()).remaining();
            self.held.push_back((chain, room));
        }
    }

    /// Lays a frame into the chains that were taken for it.
    fn lay(&mut self, frame: &[u8], offload: &Offload, mergeable: bool) -> Result<(), QueueError> {
        let wanted = (header::LENGTH + frame.len()) as u64;
        let most = if mergeable { self.held.len() } else { 1 };
        let mut room = 0;
        let count = self.held.iter().take(most).position(|(_, length)| {
            room += length;
            room >= wanted
        });
        // More than all buffers of the ring hold.
        let Some(count) = count.map(|last| last + 1) else { return Ok(()) };
        let header = header::build(offload, count as u16);
        let mut rest = [&header[..], frame];
        for (chain, _) in self.held.drain(..count) {
            let mut writer = chain.writer(self.queue.memory());
            let mut written = 0;
            for part in &mut rest {
                let length = writer.write(part)?;
                *part = &part[length..];
                written += length;
                if !part.is_empty() {
                    break;
                }
            }
            self.filled.push((chain, written as u32));
        }
        // The driver must not see the first without the others.
        self.queue.push_all(&mut self.filled)
    }
}

impl Receiver {
    pub fn new(
        queues: Vec<(u16, Queue)>,
        shared: Arc<Mutex<NetState>>,
        mergeable: bool,
        limiter: Limiter,
    ) -> Self {
        let ring =
            |(index, queue)| Ring { index, queue, held: VecDeque::new(), filled: Vec::new() };
        Self {
            rings: queues.into_iter().map(ring).collect(),
            shared,
            mergeable,
            limiter,
            staging: Vec::new(),
            steering: [0; STEPS],
            starved: false,
            wait: None,
            broken: None,
        }
    }

    /// A frame of the guest went out by this pair.
    pub fn steer(&mut self, frame: &[u8], pair: usize) {
        self.steering[flow(frame)] = pair as u8;
    }

    fn active(&self) -> usize {
        usize::from(lock(&self.shared).pairs).clamp(1, self.rings.len().max(1))
    }

    fn try_room(&mut self, size: usize) -> Result<bool, QueueError> {
        let wanted = (header::LENGTH + size) as u64;
        let active = self.active();
        // Which ring the frame goes to is known when it stands.
        for ring in self.rings.iter_mut().take(active) {
            if !ring.fill(wanted, self.mergeable)? {
                self.starved = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts back what was taken and not used, and gives the queues back.
    pub fn into_queues(self) -> Vec<(u16, Queue)> {
        let back = self.rings.into_iter().map(|mut ring| {
            for (chain, _) in ring.held.drain(..).rev() {
                ring.queue.put_back(&chain);
            }
            (ring.index, ring.queue)
        });
        back.collect()
    }
}

impl Interface for Receiver {
    fn receives(&self) -> Receives {
        lock(&self.shared).receives()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        if self.broken.is_some() || !lock(&self.shared).link || self.wait.is_some() {
            return None;
        }
        match self.try_room(size) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                self.broken = Some(error);
                return None;
            }
        }
        if let Wait::For(time) = self.limiter.admit(size as u64) {
            self.wait = Some(time);
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
        let Some(frame) = self.staging.get(..size) else { return };
        if !lock(&self.shared).filter.passes(frame) {
            return;
        }
        let pair = usize::from(self.steering[flow(frame)]) % self.active();
        if let Some(ring) = self.rings.get_mut(pair)
            && let Err(error) = ring.lay(&self.staging[..size], &offload, self.mergeable)
        {
            self.broken = Some(error);
        }
    }
}

/// The same number for both directions of a flow.
fn flow(frame: &[u8]) -> usize {
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let fold = |from: usize, length: usize| (from..from + length).fold(0, |all, at| all ^ byte(at));
    let (ports, hash) = match [byte(12), byte(13)] {
        [0x08, 0x00] => (14 + usize::from(byte(14) & 15) * 4, fold(26, 8)),
        [0x86, 0xdd] => (54, fold(22, 32)),
        _ => return 0,
    };
    usize::from(hash ^ fold(ports, 4))
}
