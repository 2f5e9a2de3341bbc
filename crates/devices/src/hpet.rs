//! The high-precision event timer: a 64-bit counter and three comparators.
//!
//! The counter runs at 100 MHz. Comparators interrupt through the I/O APIC; comparator
//! 0 can be periodic; comparators 0 and 1 can take the place of the interval timer and
//! of the real-time clock (legacy replacement).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::{Device, answer, value};
use crate::clock::{Clock, Timer};
use crate::irq::IrqLine;

pub const ADDRESS: u64 = 0xfed0_0000;
pub const LENGTH: u64 = 0x400;
const COMPARATORS: usize = 3;

/// Nanoseconds and femtoseconds for a count of one.
const TICK: u64 = 10;
const TICK_FEMTOSECONDS: u64 = 10_000_000;
/// Periodic interrupts do not come faster than this, in ticks.
const LEAST_PERIOD: u64 = 5_000;

/// Period; vendor; legacy replacement and a 64-bit counter; comparators; revision.
const CAPABILITIES: u64 =
    TICK_FEMTOSECONDS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (COMPARATORS as u64 - 1) << 8 | 1;

const CONFIGURATION: u64 = 0x010;
const INTERRUPT_STATUS: u64 = 0x020;
const COUNTER: u64 = 0x0f0;
const FIRST_COMPARATOR: u64 = 0x100;

const ENABLE: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;

const LEVEL: u64 = 1 << 1;
const INTERRUPTS: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const CAN_BE_PERIODIC: u64 = 1 << 4;
const IS_64_BIT: u64 = 1 << 5;
const SET_VALUE: u64 = 1 << 6;
const MODE_32_BIT: u64 = 1 << 8;
const COMPARATOR_WRITABLE: u64 = LEVEL | INTERRUPTS | PERIODIC | SET_VALUE | MODE_32_BIT | 0x3e00;
/// Pins 16 to 23 of the I/O APIC.
const ROUTES: u64 = 0x00ff_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Comparator {
    configuration: u64,
    value: u64,
    period: u64,
    /// The counter at which it matches next, extended to 64 bits.
    next: Option<u64>,
}

impl Default for Comparator {
    fn default() -> Self {
        Self { configuration: 0, value: u64::MAX, period: 0, next: None }
    }
}

impl Comparator {
    fn route(&self) -> usize {
        (self.configuration >> 9 & 0x1f) as usize
    }

    fn has(&self, bit: u64) -> bool {
        self.configuration & bit != 0
    }

    fn mask(&self) -> u64 {
        if self.has(MODE_32_BIT) { u64::from(u32::MAX) } else { u64::MAX }
    }

    /// Works out the next match from the comparator's value.
    fn arm(&mut self, counter: u64) {
        let distance = self.value.wrapping_sub(counter) & self.mask();
        self.next = counter.checked_add(distance);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetState {
    configuration: u64,
    status: u64,
    /// The counter while it stands; while it runs, what it is ahead of the clock.
    counter: u64,
    comparators: [Comparator; COMPARATORS],
}

impl HpetState {
    fn running(&self) -> bool {
        self.configuration & ENABLE != 0
    }

    fn counter(&self, now: u64) -> u64 {
        if self.running() { self.counter.wrapping_add(now / TICK) } else { self.counter }
    }

    fn set_counter(&mut self, value: u64, now: u64) {
        self.counter = if self.running() { value.wrapping_sub(now / TICK) } else { value };
    }

    fn read(&self, register: u64, now: u64) -> u64 {
        match register {
            0 => CAPABILITIES,
            CONFIGURATION => self.configuration,
            INTERRUPT_STATUS => self.status,
            COUNTER => self.counter(now),
            _ => match self.comparator(register) {
                Some((index, 0)) => self.configuration_of(index),
                Some((index, 8)) => self.comparators[index].value & self.comparators[index].mask(),
                _ => 0,
            },
        }
    }

    fn configuration_of(&self, index: usize) -> u64 {
        let periodic = if index == 0 { CAN_BE_PERIODIC } else { 0 };
        self.comparators[index].configuration | IS_64_BIT | periodic | ROUTES << 32
    }

    /// The comparator that a register belongs to, and which of its registers it is.
    fn comparator(&self, register: u64) -> Option<(usize, u64)> {
        let offset = register.checked_sub(FIRST_COMPARATOR)?;
        let index = (offset / 0x20) as usize;
        (index < COMPARATORS).then_some((index, offset % 0x20))
    }

    fn arm_all(&mut self, now: u64) {
        let counter = self.counter(now);
        for comparator in &mut self.comparators {
            comparator.arm(counter);
        }
    }

    fn write(&mut self, register: u64, value: u64, now: u64) {
        match register {
            CONFIGURATION => {
                let counter = self.counter(now);
                self.configuration = value & (ENABLE | LEGACY);
                self.set_counter(counter, now);
                self.arm_all(now);
            }
            INTERRUPT_STATUS => self.status &= !value,
            COUNTER => {
                self.set_counter(value, now);
                self.arm_all(now);
            }
            _ => match self.comparator(register) {
                Some((index, 0)) => self.configure(index, value, now),
                Some((index, 8)) => self.set_comparator(index, value, now),
                _ => {}
            },
        }
    }

    fn configure(&mut self, index: usize, value: u64, now: u64) {
        let writable =
            if index == 0 { COMPARATOR_WRITABLE } else { COMPARATOR_WRITABLE & !PERIODIC };
        let counter = self.counter(now);
        let comparator = &mut self.comparators[index];
        comparator.configuration = value & writable;
        comparator.value &= comparator.mask();
        comparator.arm(counter);
        if value & LEVEL == 0 {
            self.status &= !(1 << index);
        }
    }

    fn set_comparator(&mut self, index: usize, value: u64, now: u64) {
        let counter = self.counter(now);
        let comparator = &mut self.comparators[index];
        let value = value & comparator.mask();
        if comparator.has(PERIODIC) {
            // The accumulator is written once after SET_VALUE, then the period.
            comparator.period = value;
        }
        if !comparator.has(PERIODIC) || comparator.has(SET_VALUE) {
            comparator.value = value;
            comparator.arm(counter);
        }
        comparator.configuration &= !SET_VALUE;
    }

    /// The comparators that matched up to now, a bit each.
    fn take_matches(&mut self, now: u64) -> usize {
        let counter = self.counter(now);
        let mut matched = 0;
        if !self.running() {
            return 0;
        }
        for (index, comparator) in self.comparators.iter_mut().enumerate() {
            let Some(next) = comparator.next.filter(|&next| next <= counter) else { continue };
            matched |= 1 << index;
            if comparator.has(PERIODIC) && comparator.period != 0 {
                let turns = (counter - next) / comparator.period + 1;
                let value = next.wrapping_add(turns.wrapping_mul(comparator.period));
                comparator.value = value & comparator.mask();
                comparator.next = Some(value.max(counter.saturating_add(LEAST_PERIOD)));
            } else {
                // Once more when the counter comes round.
                comparator.next =
                    next.checked_add(comparator.mask()).and_then(|n| n.checked_add(1));
            }
        }
        matched
    }

    /// When the next comparator that interrupts matches.
    fn next_match(&self, now: u64) -> Option<u64> {
        if !self.running() {
            return None;
        }
        let armed = self.comparators.iter().filter(|comparator| comparator.has(INTERRUPTS));
        let next = armed.filter_map(|comparator| comparator.next).min()?;
        let ticks = next.saturating_sub(self.counter(now));
        (now / TICK).checked_add(ticks)?.checked_mul(TICK)
    }
}

/// Where comparators' interrupts go.
pub struct HpetLines {
    /// Pins 16 to 23 of the I/O APIC.
    pub pins: Vec<Arc<dyn IrqLine>>,
    /// In legacy replacement, comparator 0 is interrupt 0 and comparator 1 is 8.
    pub legacy: [Arc<dyn IrqLine>; 2],
}

/// The timer block.
pub struct Hpet {
    clock: Arc<Clock>,
    timer: Timer,
    lines: HpetLines,
    state: Mutex<HpetState>,
}

impl Hpet {
    pub fn new(clock: Arc<Clock>, lines: HpetLines) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = clock.timer(move |now| {
                if let Some(hpet) = this.upgrade() {
                    hpet.update(&mut hpet.lock(), now);
                }
            });
            Self { clock, timer, lines, state: Mutex::default() }
        })
    }

    fn lock(&self) -> MutexGuard<'_, HpetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the interval timer's interrupt is this device's now.
    pub fn replaces_legacy(&self) -> bool {
        self.lock().configuration & LEGACY != 0
    }

    fn line(&self, state: &HpetState, index: usize) -> Option<&Arc<dyn IrqLine>> {
        if state.configuration & LEGACY != 0 && index < 2 {
            return Some(&self.lines.legacy[index]);
        }
        self.lines.pins.get(state.comparators[index].route().checked_sub(16)?)
    }

    /// Sends what is due, and arms the timer for what comes.
    fn update(&self, state: &mut HpetState, now: u64) {
        let matched = state.take_matches(now);
        for index in 0..COMPARATORS {
            let comparator = state.comparators[index];
            let Some(line) = self.line(state, index) else { continue };
            if matched & 1 << index != 0 && comparator.has(INTERRUPTS) && !comparator.has(LEVEL) {
                line.pulse();
            }
            if comparator.has(LEVEL) {
                if matched & 1 << index != 0 {
                    state.status |= 1 << index;
                }
                line.set(state.status & 1 << index != 0 && comparator.has(INTERRUPTS));
            }
        }
        self.timer.set(state.next_match(now));
    }

    /// Lets go of level lines before registers that route them change.
    fn release_lines(&self, state: &HpetState) {
        for index in 0..COMPARATORS {
            if state.comparators[index].has(LEVEL)
                && let Some(line) = self.line(state, index)
            {
                line.set(false);
            }
        }
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        self.release_lines(&state);
        *state = HpetState::default();
        self.timer.disarm();
    }

    pub fn state(&self) -> HpetState {
        self.lock().clone()
    }

    /// The clock must have been set before.
    pub fn set_state(&self, saved: &HpetState) {
        let mut state = self.lock();
        self.release_lines(&state);
        state.clone_from(saved);
        self.update(&mut state, self.clock.now());
    }
}

impl Device for Hpet {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        let mut state = self.lock();
        self.update(&mut state, now);
        let register = state.read(offset & !7, now);
        answer(data, register >> (8 * (offset & 7)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let now = self.clock.now();
        let mut state = self.lock();
        self.update(&mut state, now);
        // Half a register keeps its other half.
        let register = offset & !7;
        let shift = 8 * (offset & 7) as u32;
        let width = (8 * data.len() as u32).min(64 - shift);
        if width == 0 {
            return;
        }
        let mask = (u64::MAX >> (64 - width)) << shift;
        let old = if register == INTERRUPT_STATUS { 0 } else { state.read(register, now) };
        let merged = old & !mask | value(data) << shift & mask;
        self.release_lines(&state);
        state.write(register, merged, now);
        self.update(&mut state, now);
    }
}

#[cfg(test)]
mod tests;
