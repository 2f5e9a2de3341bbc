//! The MC146818 real-time clock with its non-volatile memory.
//!
//! The time is the host's real time plus a difference, which changes when the guest
//! sets the clock. Nothing ticks: fields are worked out when they are read, and
//! periodic, alarm and update flags when register C is. Timers run only while the
//! guest has enabled the interrupt that they would raise.

mod calendar;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use self::calendar::DateTime;
use crate::bus::Device;
use crate::clock::{Clock, Timer};
use crate::irq::IrqLine;

/// Ports, which are the register offsets, too: index and data, twice.
pub const PORTS: u64 = 0x70;
pub const PORT_COUNT: u64 = 4;

/// Bytes in both banks together.
const MEMORY: usize = 256;
const SECOND: i64 = 1_000_000_000;
/// How far from 1970 a guest can set its clock: 285 years.
const FURTHEST: i64 = 9_000_000_000 * SECOND;
/// How far the clock runs, six years more, so that some days more fit into 64 bits.
const END: i64 = 9_200_000_000 * SECOND;

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const WEEKDAY: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const REGISTER_A: usize = 10;
const REGISTER_B: usize = 11;
const REGISTER_C: usize = 12;
const REGISTER_D: usize = 13;
/// The century's place, as the FADT says it.
pub const CENTURY: usize = 0x32;

/// Bit 7 of register A: the fields are about to change.
const UPDATING: u8 = 1 << 7;
/// How long before a change that bit is set.
const UPDATE_WARNING: i64 = 244_000;

/// Bits of register B.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Bits of registers B (enable) and C (flag).
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE_ENDED: u8 = 1 << 4;
/// Bit 7 of register C: one of the enabled flags is set.
const REQUEST: u8 = 1 << 7;

/// Alarm bytes from here on match everything.
const ANY: u8 = 0xc0;

/// Host real time in nanoseconds since 1970.
pub trait WallClock: Send + Sync {
    fn now(&self) -> i64;
}

/// The host's own.
pub struct HostWallClock;

impl WallClock for HostWallClock {
    fn now(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as i64)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    memory: Vec<u8>,
    index: u8,
    second_index: u8,
    /// What the guest's clock is ahead of real time.
    ahead: i64,
    /// The guest's time up to which flags have been worked out.
    seen: i64,
}

impl RtcState {
    fn new() -> Self {
        let mut memory = vec![0; MEMORY];
        // 32.768 kHz, 1024 Hz; 24 hours, decimal.
        memory[REGISTER_A] = 0x26;
        memory[REGISTER_B] = HOURS_24;
        memory[REGISTER_D] = 0x80;
        Self { memory, index: 0, second_index: 0, ahead: 0, seen: 0 }
    }

    fn stopped(&self) -> bool {
        self.memory[REGISTER_B] & SET != 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.memory[REGISTER_B] & BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.memory[REGISTER_B] & BINARY != 0 {
            value
        } else {
            (value >> 4).saturating_mul(10).saturating_add(value & 15)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.memory[REGISTER_B] & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.memory[REGISTER_B] & HOURS_24 != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Writes the time into the memory's fields.
    fn store(&mut self, guest: i64) {
        let time = DateTime::from_seconds(guest.div_euclid(SECOND));
        self.memory[SECONDS] = self.encode(time.second);
        self.memory[MINUTES] = self.encode(time.minute);
        self.memory[HOURS] = self.encode_hour(time.hour);
        self.memory[WEEKDAY] = self.encode(time.weekday());
        self.memory[DAY] = self.encode(time.day);
        self.memory[MONTH] = self.encode(time.month);
        self.memory[YEAR] = self.encode((time.year % 100) as u8);
        self.memory[CENTURY] = self.encode((time.year / 100) as u8);
    }

    /// The time that the memory's fields say.
    fn fields(&self) -> i64 {
        let field = |index: usize| self.decode(self.memory[index]);
        let time = DateTime {
            year: u16::from(field(CENTURY)) * 100 + u16::from(field(YEAR)),
            month: field(MONTH),
            day: field(DAY),
            hour: self.decode_hour(self.memory[HOURS]),
            minute: field(MINUTES),
            second: field(SECONDS),
        };
        time.to_seconds().saturating_mul(SECOND).clamp(-FURTHEST, FURTHEST)
    }

    /// Nanoseconds between periodic interrupts.
    fn period(&self) -> Option<i64> {
        let rate = self.memory[REGISTER_A] & 15;
        let shift = match rate {
            0 => return None,
            // The two fastest are the same as two slower ones.
            1 | 2 => rate + 7,
            _ => rate,
        };
        Some((SECOND << (shift - 1)) / 32_768)
    }

    fn alarm_matches(&self, index: usize, value: u8) -> bool {
        let alarm = self.memory[index];
        let wanted =
            if index == HOURS_ALARM { self.decode_hour(alarm) } else { self.decode(alarm) };
        alarm >= ANY || wanted == value
    }

    /// The first second after `guest` at which the alarm goes off. It is at most a day
    /// away, or never if the alarm's bytes are no time of day.
    fn next_alarm(&self, guest: i64) -> Option<i64> {
        let start = guest.div_euclid(SECOND) + 1;
        let mut at = start;
        while at <= start + 86_400 {
            let time = DateTime::from_seconds(at);
            if !self.alarm_matches(HOURS_ALARM, time.hour) {
                at += 3600 - at.rem_euclid(3600);
            } else if !self.alarm_matches(MINUTES_ALARM, time.minute) {
                at += 60 - at.rem_euclid(60);
            } else if !self.alarm_matches(SECONDS_ALARM, time.second) {
                at += 1;
            } else {
                return at.checked_mul(SECOND);
            }
        }
        None
    }

    /// Sets the flags of what happened since the last look.
    fn catch_up(&mut self, guest: i64) {
        let seen = std::mem::replace(&mut self.seen, guest);
        if guest <= seen {
            return;
        }
        let passed = |period: i64| guest.div_euclid(period) != seen.div_euclid(period);
        let mut flags = 0;
        if self.period().is_some_and(passed) {
            flags |= PERIODIC;
        }
        if !self.stopped() && passed(SECOND) {
            flags |= UPDATE_ENDED;
            if self.next_alarm(seen).is_some_and(|alarm| alarm <= guest) {
                flags |= ALARM;
            }
        }
        self.memory[REGISTER_C] |= flags;
    }

    fn requests(&self) -> bool {
        self.memory[REGISTER_C] & self.memory[REGISTER_B] & (PERIODIC | ALARM | UPDATE_ENDED) != 0
    }

    /// When an enabled interrupt comes next, in guest time.
    fn next_event(&self, guest: i64) -> Option<i64> {
        let enabled = self.memory[REGISTER_B];
        let next = |period: i64| (guest.div_euclid(period) + 1) * period;
        let periodic = self.period().filter(|_| enabled & PERIODIC != 0).map(next);
        let runs = !self.stopped();
        let update = (runs && enabled & UPDATE_ENDED != 0).then(|| next(SECOND));
        let alarm = if runs && enabled & ALARM != 0 { self.next_alarm(guest) } else { None };
        [periodic, update, alarm].into_iter().flatten().min()
    }
}

/// The real-time clock.
pub struct Rtc {
    clock: Arc<Clock>,
    wall: Box<dyn WallClock>,
    timer: Timer,
    interrupt: Arc<dyn IrqLine>,
    state: Mutex<RtcState>,
}

impl Rtc {
    pub fn new(
        clock: Arc<Clock>,
        wall: impl WallClock + 'static,
        interrupt: Arc<dyn IrqLine>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let this = this.clone();
            let timer = clock.timer(move |_| {
                if let Some(rtc) = this.upgrade() {
                    rtc.update(&mut rtc.lock());
                }
            });
            let mut state = RtcState::new();
            state.seen = wall.now();
            Self { clock, wall: Box::new(wall), timer, interrupt, state: Mutex::new(state) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, RtcState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guest_time(&self, state: &RtcState) -> i64 {
        self.wall.now().saturating_add(state.ahead).clamp(-END, END)
    }

    /// Brings flags, line and timer up to date.
    fn update(&self, state: &mut RtcState) {
        let guest = self.guest_time(state);
        state.catch_up(guest);
        let requests = state.requests();
        if requests {
            state.memory[REGISTER_C] |= REQUEST;
        }
        self.interrupt.set(requests);
        // While a request stands, nothing that comes can change the line.
        let next = if requests { None } else { state.next_event(guest) };
        let delay = next.map(|next| next.saturating_sub(guest).max(0) as u64);
        self.timer.set(delay.map(|delay| self.clock.now().saturating_add(delay)));
    }

    /// Puts a byte into the non-volatile memory, as firmware would have.
    pub fn set_memory(&self, index: u8, value: u8) {
        if usize::from(index) > REGISTER_D {
            self.lock().memory[usize::from(index)] = value;
        }
    }

    fn read_memory(&self, index: usize) -> u8 {
        let mut state = self.lock();
        let guest = self.guest_time(&state);
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                if !state.stopped() {
                    state.store(guest);
                }
                state.memory[index]
            }
            REGISTER_A => {
                let soon = SECOND - guest.rem_euclid(SECOND) <= UPDATE_WARNING;
                let updating = soon && !state.stopped();
                state.memory[REGISTER_A] | if updating { UPDATING } else { 0 }
            }
            REGISTER_C => {
                self.update(&mut state);
                let flags = std::mem::take(&mut state.memory[REGISTER_C]);
                self.update(&mut state);
                flags
            }
            _ => state.memory[index],
        }
    }

    fn write_memory(&self, index: usize, value: u8) {
        let mut state = self.lock();
        let guest = self.guest_time(&state);
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                if state.stopped() {
                    state.memory[index] = value;
                } else {
                    state.store(guest);
                    state.memory[index] = value;
                    self.set_time(&mut state, guest.rem_euclid(SECOND));
                }
            }
            REGISTER_A => state.memory[REGISTER_A] = value & !UPDATING,
            REGISTER_B => {
                let was_stopped = state.stopped();
                if value & SET != 0 && !was_stopped {
                    state.store(guest);
                }
                // The fields have to be read in the format in which they were written.
                if value & SET == 0 && was_stopped {
                    self.set_time(&mut state, 0);
                }
                // Setting stops update interrupts for good.
                state.memory[REGISTER_B] =
                    if value & SET != 0 { value & !UPDATE_ENDED } else { value };
            }
            REGISTER_C | REGISTER_D => {}
            _ => state.memory[index] = value,
        }
        self.update(&mut state);
    }

    /// Makes the fields the time.
    fn set_time(&self, state: &mut RtcState, fraction: i64) {
        let guest = state.fields() + fraction;
        state.ahead = guest.saturating_sub(self.wall.now());
        state.seen = guest;
    }

    /// Only interrupts are reset; the clock has a battery.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.memory[REGISTER_B] &= !(PERIODIC | ALARM | UPDATE_ENDED);
        state.memory[REGISTER_C] = 0;
        self.update(&mut state);
    }

    pub fn state(&self) -> RtcState {
        self.lock().clone()
    }

    /// Refuses a memory of another size.
    pub fn set_state(&self, saved: &RtcState) -> Result<(), MemorySize> {
        if saved.memory.len() != MEMORY {
            return Err(MemorySize(saved.memory.len()));
        }
        let mut state = self.lock();
        state.clone_from(saved);
        self.update(&mut state);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the saved real-time clock has {0} bytes of memory, not {MEMORY}")]
pub struct MemorySize(usize);

impl Device for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            let (first, second) = {
                let state = self.lock();
                (usize::from(state.index), usize::from(state.second_index))
            };
            *byte = match port {
                0x71 => self.read_memory(first),
                0x72 => second as u8,
                0x73 => self.read_memory(second | 0x80),
                // The index cannot be read back.
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, &byte) in (offset..).zip(data) {
            let (first, second) = {
                let mut state = self.lock();
                match port {
                    // Bit 7 masks NMIs, of which there are none.
                    0x70 => state.index = byte & 0x7f,
                    0x72 => state.second_index = byte & 0x7f,
                    _ => {}
                }
                (usize::from(state.index), usize::from(state.second_index))
            };
            match port {
                0x71 => self.write_memory(first, byte),
                0x73 => self.write_memory(second | 0x80, byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
