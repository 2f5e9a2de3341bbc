//! The 8254 interval timer, and port 0x61 beside it.
//!
//! Counters are not counted: what a counter would show follows from when it was
//! started. Channel 0's output is interrupt 0; channel 1 is unconnected; channel
//! 2's gate and output are bits of port 0x61, with which kernels measure other clocks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::Device;
use crate::clock::{Clock, Timer};
use crate::irq::IrqLine;

/// Ports, which are the register offsets, too.
pub const COUNTERS: u64 = 0x40;
pub const CONTROL: u64 = 0x61;

pub const FREQUENCY: u64 = 1_193_182;
const SECOND: u128 = 1_000_000_000;
/// Interrupts do not come faster than this: a guest cannot keep the host busy with a
/// counter that is as good as zero.
const LEAST_INTERVAL: u64 = 50_000;
/// How often the memory refresh bit changes.
const REFRESH: u64 = 15_085;

/// Which byte of a 16-bit count is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    #[default]
    Both,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    decimal: bool,
    access: Access,
    /// The count that was loaded, 1 to 65536.
    count: u32,
    /// When it began to count; none while it waits for a count or for its gate.
    started: Option<u64>,
    gate: bool,
    /// In modes 1 and 5, a count is loaded and waits for the gate.
    loaded: bool,
    low_written: Option<u8>,
    high_is_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            decimal: false,
            access: Access::Both,
            count: 0x1_0000,
            started: None,
            gate,
            loaded: false,
            low_written: None,
            high_is_next: false,
            latched: None,
            latched_status: None,
        }
    }

    fn ticks(&self, now: u64) -> Option<u64> {
        let passed = now.saturating_sub(self.started?);
        Some((u128::from(passed) * u128::from(FREQUENCY) / SECOND) as u64)
    }

    /// When so many ticks will have passed.
    fn time_of(&self, ticks: u64) -> Option<u64> {
        let nanoseconds = (u128::from(ticks) * SECOND).div_ceil(u128::from(FREQUENCY));
        self.started?.checked_add(u64::try_from(nanoseconds).ok()?)
    }

    fn output(&self, now: u64) -> bool {
        let Some(ticks) = self.ticks(now) else { return self.mode != 0 };
        let count = u64::from(self.count);
        match self.mode {
            0 | 1 => ticks >= count,
            2 => ticks % count != count - 1,
            3 => ticks % count < count.div_ceil(2),
            _ => ticks != count,
        }
    }

    /// What the counter shows.
    fn value(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let shown = match (self.ticks(now), self.mode) {
            (None, _) => count,
            (Some(ticks), 2) => count - ticks % count,
            // Steps of two, twice in each period.
            (Some(ticks), 3) => count - (2 * ticks) % count,
            (Some(ticks), _) if ticks <= count => count - ticks,
            (Some(ticks), _) => {
                let wrap = if self.decimal { 10_000 } else { 0x1_0000 };
                wrap - (ticks - count) % wrap
            }
        };
        if self.decimal { to_decimal(shown) } else { shown as u16 }
    }

    /// The next time after `now` at which the output rises.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let ticks = self.ticks(now)?;
        let count = u64::from(self.count);
        match self.mode {
            2 | 3 => self.time_of((ticks / count + 1) * count),
            4 | 5 if ticks <= count => self.time_of(count + 1),
            0 | 1 if ticks < count => self.time_of(count),
            _ => None,
        }
    }

    fn load(&mut self, value: u16, now: u64) {
        let count = if self.decimal { from_decimal(value) } else { u32::from(value) };
        self.count = match count {
            0 if self.decimal => 10_000,
            0 => 0x1_0000,
            count => count,
        };
        if self.mode == 1 || self.mode == 5 {
            self.loaded = true;
        } else {
            self.started = self.gate.then_some(now);
            self.loaded = !self.gate;
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rising = gate && !self.gate;
        self.gate = gate;
        match self.mode {
            // Counting stops here, and goes on there: from the count that it had.
            0 | 4 if !gate => {
                if let Some(ticks) = self.ticks(now) {
                    self.count = (u64::from(self.count).saturating_sub(ticks) as u32).max(1);
                    self.started = None;
                    self.loaded = true;
                }
            }
            2 | 3 if !gate => {
                self.loaded |= self.started.is_some();
                self.started = None;
            }
            _ if rising && self.loaded => {
                self.started = Some(now);
                // A one-shot can be triggered again and again.
                self.loaded = matches!(self.mode, 1 | 5);
            }
            _ => {}
        }
    }

    fn set_mode(&mut self, command: u8) {
        let mode = command >> 1 & 7;
        *self = Channel {
            // 6 and 7 are other names of 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            decimal: command & 1 != 0,
            access: match command >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            ..Channel::new(self.gate)
        };
    }

    fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let null_count = self.started.is_none();
        let status = u8::from(self.output(now)) << 7
            | u8::from(null_count) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.decimal);
        self.latched_status.get_or_insert(status);
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.value(now));
        let [low, high] = value.to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.high_is_next => (high, true),
            Access::Both => (low, false),
        };
        self.high_is_next = !last;
        if last {
            self.latched = None;
        }
        byte
    }

    /// Whether a whole count has been written.
    fn write(&mut self, byte: u8, now: u64) -> bool {
        let value = match (self.access, self.low_written) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::Both, None) => {
                self.low_written = Some(byte);
                return false;
            }
        };
        self.low_written = None;
        self.load(value, now);
        true
    }
}

fn from_decimal(value: u16) -> u32 {
    let digit = |shift: u32| u32::from(value >> shift & 15);
    (digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)).min(10_000)
}

fn to_decimal(value: u64) -> u16 {
    let digit = |place: u64| (value / place % 10) as u16;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    channels: [Channel; 3],
    /// Bits 1 to 3 of port 0x61.
    control: u8,
    /// When channel 0's output rises next, as the timer knows it.
    #[serde(skip)]
    due: Option<u64>,
}

impl PitState {
    fn new() -> Self {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        Self { channels, control: 0, due: None }
    }
}

/// The interval timer.
pub struct Pit {
    clock: Arc<Clock>,
    timer: Timer,
    interrupt: Arc<dyn IrqLine>,
    state: Mutex<PitState>,
}

impl Pit {
    pub fn new(clock: Arc<Clock>, interrupt: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let this = this.clone();
            let timer = clock.timer(move |now| {
                if let Some(pit) = this.upgrade() {
                    pit.expire(now);
                }
            });
            Self { clock, timer, interrupt, state: Mutex::new(PitState::new()) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, PitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expire(&self, now: u64) {
        let mut state = self.lock();
        if state.due.is_some_and(|due| due <= now) {
            // The output was low in between, however briefly. That it falls in the
            // middle of mode 3's period is left out: the request would go with it.
            self.interrupt.set(false);
            self.interrupt.set(true);
            self.arm(&mut state, now, now.saturating_add(LEAST_INTERVAL));
        }
    }

    /// Sees to it that the next rise of channel 0 is not missed.
    fn arm(&self, state: &mut PitState, now: u64, earliest: u64) {
        state.due = state.channels[0].next_rise(now).map(|rise| rise.max(earliest));
        self.timer.set(state.due);
    }

    /// Channel 0 was given a mode or a count.
    fn restart(&self, state: &mut PitState, now: u64) {
        self.interrupt.set(state.channels[0].output(now));
        self.arm(state, now, now);
    }

    fn write_command(&self, command: u8, now: u64) {
        let mut state = self.lock();
        if command >> 6 == 3 {
            for (index, channel) in state.channels.iter_mut().enumerate() {
                if command & 2 << index != 0 {
                    if command & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                    if command & 0x20 == 0 {
                        channel.latch(now);
                    }
                }
            }
            return;
        }
        let index = usize::from(command >> 6);
        let channel = &mut state.channels[index];
        if command & 0x30 == 0 {
            channel.latch(now);
            return;
        }
        channel.set_mode(command);
        if index == 0 {
            self.restart(&mut state, now);
        }
    }

    fn read_byte(&self, port: u64) -> u8 {
        let now = self.clock.now();
        let mut state = self.lock();
        match port {
            0x40..=0x42 => state.channels[(port - 0x40) as usize].read(now),
            CONTROL => {
                let channel = &state.channels[2];
                let refresh = ((now / REFRESH) & 1) as u8;
                u8::from(channel.gate)
                    | state.control
                    | refresh << 4
                    | u8::from(channel.output(now)) << 5
            }
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u64, value: u8) {
        let now = self.clock.now();
        match port {
            0x40..=0x42 => {
                let mut state = self.lock();
                let channel = &mut state.channels[(port - 0x40) as usize];
                if channel.write(value, now) && port == 0x40 {
                    self.restart(&mut state, now);
                }
            }
            0x43 => self.write_command(value, now),
            CONTROL => {
                let mut state = self.lock();
                state.channels[2].set_gate(value & 1 != 0, now);
                state.control = value & 0x0e;
            }
            _ => {}
        }
    }

    pub fn reset(&self) {
        *self.lock() = PitState::new();
        self.timer.disarm();
        self.interrupt.set(false);
    }

    pub fn state(&self) -> PitState {
        self.lock().clone()
    }

    /// The clock must have been set before.
    pub fn set_state(&self, saved: &PitState) {
        let now = self.clock.now();
        let mut state = self.lock();
        state.clone_from(saved);
        for channel in &mut state.channels {
            channel.count = channel.count.clamp(1, 0x1_0000);
            channel.mode = channel.mode.min(5);
        }
        self.arm(&mut state, now, now);
    }
}

impl Device for Pit {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.read_byte(port);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, &byte) in (offset..).zip(data) {
            self.write_byte(port, byte);
        }
    }
}

#[cfg(test)]
mod tests;
