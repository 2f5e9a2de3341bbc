//! Network interfaces.
//!
//! One thread serves all queues of an interface together with what it is plugged into,
//! because a network is driven by one thread ([`guise_net::frame::Network`]); several
//! queue pairs spare the guest's processors their locks. Checksums and segmentation that
//! the driver left to hardware are passed on as they are, in both directions. A flow's
//! frames come in through the pair that its last frame went out by.

mod control;
mod receive;
mod server;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_net::frame::{Network, Receives};
use serde::{Deserialize, Serialize};

use self::control::Filter;
use self::server::Queues;
use crate::device::{DeviceState, Session, StartError, VirtioDevice};
use crate::queue::Queue;
use crate::rate::{Limiter, Rate};
use crate::transport::Interrupt;
use crate::worker::Thread;

const KIND: u16 = 1;
const CLASS: u32 = 0x02_0000;
const QUEUE_SIZE: u16 = 256;
const MOST_PAIRS: u16 = 16;

/// Feature bits.
const CHECKSUM: u64 = 1 << 0;
const GUEST_CHECKSUM: u64 = 1 << 1;
const CONTROL_OFFLOADS: u64 = 1 << 2;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TCP4: u64 = 1 << 7;
const GUEST_TCP6: u64 = 1 << 8;
const HOST_TCP4: u64 = 1 << 11;
const HOST_TCP6: u64 = 1 << 12;
const MERGEABLE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CONTROL: u64 = 1 << 17;
const CONTROL_RECEIVE: u64 = 1 << 18;
const CONTROL_VLAN: u64 = 1 << 19;
const MULTIPLE_QUEUES: u64 = 1 << 22;
const CONTROL_MAC: u64 = 1 << 23;

/// Of the offloads that the driver may switch at run time.
const OFFLOADS: u64 = GUEST_CHECKSUM | GUEST_TCP4 | GUEST_TCP6;

const LINK_UP: u16 = 1;

/// What an interface is.
#[derive(Clone, Debug)]
pub struct NetOptions {
    pub mac: [u8; 6],
    pub mtu: u16,
    /// Queue pairs.
    pub pairs: u16,
    /// In each direction.
    pub rate: Rate,
}

/// What changes while an interface runs, and is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    filter: Filter,
    /// Pairs that the driver uses.
    pairs: u16,
    /// Offloads towards the guest that are switched on.
    offloads: u64,
    link: bool,
}

/// A network interface.
pub struct Net {
    network: Arc<Mutex<dyn Network>>,
    options: NetOptions,
    shared: Arc<Mutex<NetState>>,
    running: Mutex<Option<(Thread<Queues>, Arc<Interrupt>)>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NetState {
    fn new(mac: [u8; 6]) -> Self {
        Self { filter: Filter::new(mac), pairs: 1, offloads: 0, link: true }
    }

    /// What the driver takes in a frame.
    fn receives(&self) -> Receives {
        let checksum = self.offloads & GUEST_CHECKSUM != 0;
        Receives {
            checksum,
            tcp4: checksum && self.offloads & GUEST_TCP4 != 0,
            tcp6: checksum && self.offloads & GUEST_TCP6 != 0,
        }
    }
}

impl Net {
    pub fn new(network: Arc<Mutex<dyn Network>>, options: NetOptions) -> Arc<Self> {
        let options = NetOptions { pairs: options.pairs.clamp(1, MOST_PAIRS), ..options };
        let shared = Arc::new(Mutex::new(NetState::new(options.mac)));
        Arc::new(Self { network, options, shared, running: Mutex::new(None) })
    }

    /// Plugs the cable in or pulls it.
    pub fn set_link(&self, up: bool) {
        lock(&self.shared).link = up;
        if let Some((worker, interrupt)) = &*lock(&self.running) {
            interrupt.signal_configuration();
            worker.ring();
        }
    }

    fn configuration(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        let state = lock(&self.shared);
        bytes[..6].copy_from_slice(&state.filter.mac);
        bytes[6..8].copy_from_slice(&(u16::from(state.link) * LINK_UP).to_le_bytes());
        bytes[8..10].copy_from_slice(&self.options.pairs.to_le_bytes());
        bytes[10..].copy_from_slice(&self.options.mtu.to_le_bytes());
        bytes
    }

    /// The driver's queues by what they are for. Without several pairs the control
    /// queue is the third.
    fn sort(&self, mut queues: Vec<Option<Queue>>, features: u64) -> Result<Queues, StartError> {
        let pairs = if features & MULTIPLE_QUEUES != 0 { self.options.pairs } else { 1 };
        let mut take = |index: u16| {
            queues.get_mut(usize::from(index)).and_then(Option::take).map(|queue| (index, queue))
        };
        let mut sorted = Queues::default();
        for pair in 0..pairs {
            let (receive, transmit) = (take(2 * pair), take(2 * pair + 1));
            match (receive, transmit) {
                (Some(receive), Some(transmit)) => {
                    sorted.receive.push(receive);
                    sorted.transmit.push(transmit);
                }
                // Further pairs are the driver's choice.
                _ if pair > 0 => break,
                (None, _) => return Err(StartError::MissingQueue(0)),
                (_, None) => return Err(StartError::MissingQueue(1)),
            }
        }
        if features & CONTROL != 0 {
            sorted.control = take(2 * pairs);
        }
        Ok(sorted)
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u16 {
        KIND
    }

    fn class(&self) -> u32 {
        CLASS
    }

    fn features(&self) -> u64 {
        let control = CONTROL | CONTROL_RECEIVE | CONTROL_VLAN | CONTROL_MAC | CONTROL_OFFLOADS;
        let offloads = CHECKSUM | HOST_TCP4 | HOST_TCP6 | OFFLOADS;
        let pairs = if self.options.pairs > 1 { MULTIPLE_QUEUES } else { 0 };
        control | offloads | pairs | MTU | MAC | MERGEABLE | STATUS
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2 * usize::from(self.options.pairs) + 1]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.configuration();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        let Session { queues, features, interrupt } = session;
        let queues = self.sort(queues, features)?;
        let worker = server::start(
            queues,
            server::Setup {
                network: self.network.clone(),
                shared: self.shared.clone(),
                interrupt: interrupt.clone(),
                mergeable: features & MERGEABLE != 0,
                outgoing: Limiter::new(self.options.rate),
                incoming: Limiter::new(self.options.rate),
            },
        )?;
        *lock(&self.running) = Some((worker, interrupt));
        Ok(())
    }

    fn begin(&self, features: u64) {
        let mut state = lock(&self.shared);
        *state = NetState { link: state.link, ..NetState::new(self.options.mac) };
        state.offloads = features & OFFLOADS;
        // Without the control queue nothing can be filtered.
        state.filter.set_promiscuous(features & CONTROL_RECEIVE == 0);
    }

    fn stop(&self) -> Vec<Option<Queue>> {
        let running = lock(&self.running).take();
        let count = self.queue_sizes().len();
        running.map_or(Vec::new(), |(worker, _)| {
            worker.stop().unwrap_or_default().into_numbered(count)
        })
    }

    fn notify(&self, _: u16) {
        if let Some((worker, _)) = &*lock(&self.running) {
            worker.ring();
        }
    }

    fn doorbell(&self, _: u16) -> Option<Arc<OwnedFd>> {
        lock(&self.running).as_ref().map(|(worker, _)| worker.doorbell())
    }

    fn state(&self) -> DeviceState {
        DeviceState::Net(lock(&self.shared).clone())
    }

    fn set_state(&self, state: &DeviceState) -> bool {
        let DeviceState::Net(saved) = state else { return false };
        if saved.pairs == 0 || saved.pairs > self.options.pairs {
            return false;
        }
        lock(&self.shared).clone_from(saved);
        true
    }
}

#[cfg(test)]
mod tests;
