//! The I/O APIC: 24 wires in, messages out.
//!
//! A redirection entry says which message a pin sends. An edge sends one; a level
//! sends one and then, with its remote IRR bit set, waits for the end of interrupt,
//! after which it sends the next if the wire is still high. Edges that come while a
//! pin is masked are lost, as on the real part.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use guise_engine::Msi;
use serde::{Deserialize, Serialize};

use crate::bus::{Device, answer, value};
use crate::irq::{IrqLine, MsiSink};

pub const PINS: usize = 24;
/// Where a PC's first I/O APIC is, and how long its page is.
pub const ADDRESS: u64 = 0xfec0_0000;
pub const LENGTH: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

/// 24 pins; 0x20 is the version with an end-of-interrupt register.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, modes, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
/// Besides these, where interrupts are remapped: the format, and the rest of the handle
/// that takes the destination's place.
const WRITABLE_REMAPPABLE: u64 = 0x00ff_0000_0000_0000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    /// The levels of the wires, a bit each.
    levels: u32,
}

impl Default for IoApicState {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS], levels: 0 }
    }
}

/// Told what a pin sends from now on; nothing while it is masked.
type RouteWatcher = Box<dyn Fn(u32, Option<Msi>) + Send + Sync>;

/// An I/O APIC.
pub struct IoApic {
    sink: Arc<dyn MsiSink>,
    routes: OnceLock<RouteWatcher>,
    /// The bits of an entry that the guest can change.
    writable: u64,
    state: Mutex<IoApicState>,
}

struct Pin {
    controller: Arc<IoApic>,
    index: usize,
}

impl IrqLine for Pin {
    fn set(&self, level: bool) {
        self.controller.set_line(self.index, level);
    }
}

/// The message of a redirection entry. In the remappable format its upper bits are a
/// handle with the format's bit below, and the mode's bit is the handle's last one: all of
/// them go to the same places of the address.
fn message(entry: u64) -> Msi {
    let (destination, logical) = (entry >> 48, entry >> 11 & 1);
    Msi {
        address: 0xfee0_0000 | destination << 4 | logical << 2,
        // Vector and delivery mode; asserted; trigger mode.
        data: (entry & 0x7ff | 1 << 14 | entry & LEVEL_TRIGGERED) as u32,
    }
}

impl IoApic {
    pub fn new(sink: Arc<dyn MsiSink>) -> Arc<Self> {
        Self::with_writable(sink, WRITABLE)
    }

    /// One whose messages an IOMMU may remap.
    pub fn remappable(sink: Arc<dyn MsiSink>) -> Arc<Self> {
        Self::with_writable(sink, WRITABLE | WRITABLE_REMAPPABLE)
    }

    fn with_writable(sink: Arc<dyn MsiSink>, writable: u64) -> Arc<Self> {
        Arc::new(Self { sink, routes: OnceLock::new(), writable, state: Mutex::default() })
    }

    /// Tells the watcher of all routes anew: what its messages mean has changed.
    pub fn refresh_routes(&self) {
        self.tell_routes(&self.lock(), 0..PINS);
    }

    /// Has `watcher` told of each change to a route. The first one stays.
    pub fn watch_routes(&self, watcher: impl Fn(u32, Option<Msi>) + Send + Sync + 'static) {
        if self.routes.set(Box::new(watcher)).is_ok() {
            self.tell_routes(&self.lock(), 0..PINS);
        }
    }

    fn tell_routes(&self, state: &IoApicState, pins: std::ops::Range<usize>) {
        if let Some(watcher) = self.routes.get() {
            for pin in pins {
                let entry = state.entries[pin];
                watcher(pin as u32, (entry & MASKED == 0).then(|| message(entry)));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, IoApicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wire into a pin; pins that do not exist have wires to nowhere.
    pub fn line(self: &Arc<Self>, pin: usize) -> Arc<dyn IrqLine> {
        Arc::new(Pin { controller: self.clone(), index: pin })
    }

    fn set_line(&self, pin: usize, level: bool) {
        if pin >= PINS {
            return;
        }
        let mut state = self.lock();
        let old = state.levels >> pin & 1 != 0;
        state.levels = state.levels & !(1 << pin) | u32::from(level) << pin;
        if !level || old {
            return;
        }
        let entry = state.entries[pin];
        if entry & LEVEL_TRIGGERED != 0 {
            self.service_level(&mut state, pin);
        } else if entry & MASKED == 0 {
            self.sink.signal(message(entry));
        }
    }

    /// Sends a level's message if it is due.
    fn service_level(&self, state: &mut IoApicState, pin: usize) {
        let entry = state.entries[pin];
        let waiting = entry & (MASKED | REMOTE_IRR | LEVEL_TRIGGERED) == LEVEL_TRIGGERED;
        if waiting && state.levels >> pin & 1 != 0 {
            state.entries[pin] |= REMOTE_IRR;
            self.sink.signal(message(entry));
        }
    }

    /// A local APIC finished a level-triggered vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.lock();
        for pin in 0..PINS {
            let entry = state.entries[pin];
            let ours = entry & (LEVEL_TRIGGERED | REMOTE_IRR) == LEVEL_TRIGGERED | REMOTE_IRR;
            if ours && entry as u8 == vector {
                state.entries[pin] &= !REMOTE_IRR;
                self.service_level(&mut state, pin);
            }
        }
    }

    fn read_register(&self, state: &IoApicState) -> u32 {
        match state.select {
            0 | 2 => u32::from(state.id) << 24,
            1 => VERSION,
            select => match state.entries.get(usize::from(select.wrapping_sub(0x10) / 2)) {
                Some(entry) if select >= 0x10 => (entry >> (32 * (select & 1))) as u32,
                _ => 0,
            },
        }
    }

    fn write_register(&self, state: &mut IoApicState, value: u32) {
        let select = state.select;
        if select == 0 {
            state.id = (value >> 24) as u8 & 0x0f;
            return;
        }
        let pin = usize::from(select.wrapping_sub(0x10) / 2);
        if select < 0x10 || pin >= PINS {
            return;
        }
        let old = state.entries[pin];
        let shift = 32 * (select & 1);
        let merged = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
        let mut entry = merged & self.writable | old & REMOTE_IRR;
        if entry & LEVEL_TRIGGERED == 0 {
            entry &= !REMOTE_IRR;
        }
        state.entries[pin] = entry;
        self.tell_routes(state, pin..pin + 1);
        self.service_level(state, pin);
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        *state = IoApicState { levels: state.levels, ..IoApicState::default() };
        self.tell_routes(&state, 0..PINS);
    }

    pub fn state(&self) -> IoApicState {
        self.lock().clone()
    }

    pub fn set_state(&self, state: &IoApicState) {
        let mut current = self.lock();
        current.clone_from(state);
        self.tell_routes(&current, 0..PINS);
    }
}

impl Device for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let register = match offset {
            SELECT => u32::from(state.select),
            WINDOW => self.read_register(&state),
            _ => 0,
        };
        answer(data, u64::from(register));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let value = value(data) as u32;
        match offset {
            SELECT => self.lock().select = value as u8,
            WINDOW => self.write_register(&mut self.lock(), value),
            END_OF_INTERRUPT => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
