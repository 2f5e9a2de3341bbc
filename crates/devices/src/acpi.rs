//! The fixed hardware of ACPI: power management events and control, the PM timer,
//! general-purpose events, reset register.
//!
//! The registers lie in one block of ports; the constants here say where, for the
//! FADT. The machine is always in ACPI mode. A sleep state other than S5 does not
//! exist.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::{Device, answer, value};
use crate::clock::{Clock, Timer};
use crate::irq::IrqLine;
use crate::power::{PowerRequest, PowerSink};

/// Length of the block, and where in it the registers are.
pub const LENGTH: u64 = 0x20;
pub const PM1_EVENT: u64 = 0x00;
pub const PM1_CONTROL: u64 = 0x04;
pub const PM_TIMER: u64 = 0x08;
pub const RESET: u64 = 0x0c;
/// Status, then enable bits: 4 bytes each.
pub const GPE: u64 = 0x10;
pub const GPE_LENGTH: u64 = 8;

/// What written to the reset register resets the machine.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, for the DSDT.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Bits of PM1 status and enable.
const TIMER_CARRY: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const WAKE: u16 = 1 << 15;
const PM1_STATUS: u16 = TIMER_CARRY | GLOBAL | POWER_BUTTON | WAKE;
const PM1_ENABLE: u16 = TIMER_CARRY | GLOBAL | POWER_BUTTON;

/// Bits of PM1 control.
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;

const TIMER_FREQUENCY: u128 = 3_579_545;
/// The carry bit is set when the top bit of the 32-bit timer changes.
const TIMER_HALF: u64 = 1 << 31;
const SECOND: u128 = 1_000_000_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u32,
    gpe_enable: u32,
    /// How many times the timer's top bit had changed when it was last looked at.
    carries: u64,
}

impl AcpiState {
    fn requests(&self) -> bool {
        self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0
    }

    /// The registers as the bytes of the block.
    fn block(&self, now: u64) -> [u8; LENGTH as usize] {
        let mut block = [0; LENGTH as usize];
        let mut put = |at: u64, bytes: &[u8]| {
            block[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(PM1_EVENT, &self.status.to_le_bytes());
        put(PM1_EVENT + 2, &self.enable.to_le_bytes());
        put(PM1_CONTROL, &(self.control | SCI_ENABLE).to_le_bytes());
        put(PM_TIMER, &(ticks(now) as u32).to_le_bytes());
        put(GPE, &self.gpe_status.to_le_bytes());
        put(GPE + 4, &self.gpe_enable.to_le_bytes());
        block
    }

    fn write_byte(&mut self, offset: u64, byte: u8) -> Option<PowerRequest> {
        let shift = 8 * (offset & 3) as u32;
        let wide = u32::from(byte) << shift;
        let mask = 0xff << shift;
        match offset {
            // Status bits are cleared by writing ones.
            0..2 => self.status &= !(wide as u16),
            2..4 => {
                let bits = (wide >> 16) as u16;
                self.enable = (self.enable & !((mask >> 16) as u16) | bits) & PM1_ENABLE;
            }
            4..6 => {
                self.control = self.control & !(mask as u16) | wide as u16;
                let asleep = self.control & SLEEP_ENABLE != 0;
                self.control &= !SLEEP_ENABLE;
                if asleep && self.control >> 10 & 7 == u16::from(SLEEP_TYPE_S5) {
                    return Some(PowerRequest::PowerOff);
                }
            }
            RESET if byte == RESET_VALUE => return Some(PowerRequest::Reset),
            0x10..0x14 => self.gpe_status &= !wide,
            0x14..0x18 => self.gpe_enable = self.gpe_enable & !mask | wide,
            _ => {}
        }
        None
    }
}

fn ticks(now: u64) -> u64 {
    (u128::from(now) * TIMER_FREQUENCY / SECOND) as u64
}

/// ACPI's registers.
pub struct Acpi {
    clock: Arc<Clock>,
    timer: Timer,
    interrupt: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
    state: Mutex<AcpiState>,
}

impl Acpi {
    /// `interrupt` is the SCI, a level.
    pub fn new(
        clock: Arc<Clock>,
        interrupt: Arc<dyn IrqLine>,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let this = this.clone();
            let timer = clock.timer(move |now| {
                if let Some(acpi) = this.upgrade() {
                    acpi.update(&mut acpi.lock(), now);
                }
            });
            Self { clock, timer, interrupt, power, state: Mutex::default() }
        })
    }

    fn lock(&self) -> MutexGuard<'_, AcpiState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the carry bit, the line and the timer up to date.
    fn update(&self, state: &mut AcpiState, now: u64) {
        let carries = ticks(now) / TIMER_HALF;
        if carries != state.carries {
            state.carries = carries;
            state.status |= TIMER_CARRY;
        }
        self.interrupt.set(state.requests());
        let waits = state.enable & TIMER_CARRY != 0 && state.status & TIMER_CARRY == 0;
        let next = u128::from((carries + 1) * TIMER_HALF) * SECOND;
        self.timer.set(waits.then(|| next.div_ceil(TIMER_FREQUENCY) as u64));
    }

    /// The user presses the power button.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.update(&mut state, self.clock.now());
    }

    /// Raises a general-purpose event, 0 to 31.
    pub fn raise_event(&self, event: u32) {
        let mut state = self.lock();
        state.gpe_status |= 1 << (event & 31);
        self.update(&mut state, self.clock.now());
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        *state = AcpiState { carries: state.carries, ..AcpiState::default() };
        self.update(&mut state, self.clock.now());
    }

    pub fn state(&self) -> AcpiState {
        self.lock().clone()
    }

    /// The clock must have been set before.
    pub fn set_state(&self, saved: &AcpiState) {
        let mut state = self.lock();
        state.clone_from(saved);
        state.status &= PM1_STATUS;
        self.update(&mut state, self.clock.now());
    }
}

impl Device for Acpi {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        // The timer is read in tight loops and needs no lock.
        if offset == PM_TIMER {
            return answer(data, ticks(now) & 0xffff_ffff);
        }
        let mut state = self.lock();
        self.update(&mut state, now);
        let block = state.block(now);
        let bytes = block.get(offset as usize..).unwrap_or_default();
        let length = bytes.len().min(data.len());
        data.fill(0xff);
        data[..length].copy_from_slice(&bytes[..length]);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let value = value(data);
        let mut request = None;
        for at in 0..data.len().min(8) {
            let byte = (value >> (8 * at)) as u8;
            request = request.or(state.write_byte(offset.wrapping_add(at as u64), byte));
        }
        self.update(&mut state, self.clock.now());
        drop(state);
        if let Some(request) = request {
            self.power.request(request);
        }
    }
}

#[cfg(test)]
mod tests;
