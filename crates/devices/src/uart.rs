//! The 16550A serial port.
//!
//! What the guest transmits goes out at once, so the transmitter is always empty;
//! what comes in waits in a FIFO, and the host side is told how much fitted, so that
//! nothing is lost when a guest reads slowly.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bus::Device;
use crate::irq::IrqLine;

pub const PORT_COUNT: u64 = 8;
const FIFO: usize = 16;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
/// Read: identification. Write: FIFO control.
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_EMPTY: u8 = 1 << 1;
const ENABLE_LINE: u8 = 1 << 2;
const ENABLE_MODEM: u8 = 1 << 3;

const ID_MODEM: u8 = 0x00;
const ID_NONE: u8 = 0x01;
const ID_EMPTY: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;
const ID_LINE: u8 = 0x06;
const ID_TIMEOUT: u8 = 0x0c;
const ID_FIFO: u8 = 0xc0;

const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVED: u8 = 1 << 1;

const DIVISOR_ACCESS: u8 = 1 << 7;

const LOOPBACK: u8 = 1 << 4;
/// Opens the way for interrupts on a PC.
const OUT2: u8 = 1 << 3;

const STATUS_READY: u8 = 1 << 0;
const STATUS_OVERRUN: u8 = 1 << 1;
/// Holding register and transmitter are empty.
const STATUS_EMPTY: u8 = 0x60;

/// Carrier, data set ready, clear to send: somebody listens.
const MODEM_LINES: u8 = 0xb0;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    received: VecDeque<u8>,
    overrun: bool,
    interrupt_enable: u8,
    /// The transmitter became empty and the guest has not been told.
    empty_pending: bool,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    /// The lower half of the modem status: what changed.
    modem_changed: u8,
    scratch: u8,
    divisor: u16,
}

impl UartState {
    fn new() -> Self {
        Self {
            received: VecDeque::new(),
            overrun: false,
            interrupt_enable: 0,
            empty_pending: false,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            modem_changed: 0,
            scratch: 0,
            divisor: 12,
        }
    }

    fn fifo(&self) -> bool {
        self.fifo_control & FIFO_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo() { FIFO } else { 1 }
    }

    /// How many bytes make a received-data interrupt.
    fn trigger(&self) -> usize {
        if self.fifo() { [1, 4, 8, 14][usize::from(self.fifo_control >> 6)] } else { 1 }
    }

    fn loopback(&self) -> bool {
        self.modem_control & LOOPBACK != 0
    }

    /// The modem lines, which in loopback are the guest's own outputs.
    fn modem_lines(&self) -> u8 {
        if !self.loopback() {
            return MODEM_LINES;
        }
        let control = self.modem_control;
        // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (control & 2) << 3 | (control & 1) << 5 | (control & 4) << 4 | (control & 8) << 4
    }

    fn interrupt_id(&self) -> u8 {
        let enabled = |bit: u8| self.interrupt_enable & bit != 0;
        if enabled(ENABLE_LINE) && self.overrun {
            ID_LINE
        } else if enabled(ENABLE_RECEIVED) && !self.received.is_empty() {
            // Fewer bytes than the guest asked for time out at once.
            if self.received.len() >= self.trigger() { ID_RECEIVED } else { ID_TIMEOUT }
        } else if enabled(ENABLE_EMPTY) && self.empty_pending {
            ID_EMPTY
        } else if enabled(ENABLE_MODEM) && self.modem_changed != 0 {
            ID_MODEM
        } else {
            ID_NONE
        }
    }

    fn set_modem_control(&mut self, value: u8) {
        let old = self.modem_lines();
        self.modem_control = value & 0x1f;
        let changed = old ^ self.modem_lines();
        // The ring indicator counts when it falls.
        let fallen_ring = changed & old & 0x40;
        self.modem_changed |= (changed & 0xb0 | fallen_ring) >> 4;
    }

    fn receive(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
        }
    }
}

/// A serial port.
pub struct Uart {
    interrupt: Arc<dyn IrqLine>,
    state: Mutex<UartState>,
    output: Mutex<Box<dyn Write + Send>>,
    /// Told when the guest made room for input.
    room: Condvar,
}

impl Uart {
    /// `output` gets what the guest transmits.
    pub fn new(interrupt: Arc<dyn IrqLine>, output: Box<dyn Write + Send>) -> Arc<Self> {
        Arc::new(Self {
            interrupt,
            state: Mutex::new(UartState::new()),
            output: Mutex::new(output),
            room: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, UartState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, state: &UartState) {
        let wanted = state.interrupt_id() != ID_NONE;
        self.interrupt.set(wanted && state.modem_control & (OUT2 | LOOPBACK) == OUT2);
    }

    /// Gives the guest input. Returns how many bytes there was room for; in loopback
    /// the wire is cut, and there is none.
    pub fn input(&self, data: &[u8]) -> usize {
        let mut state = self.lock();
        if state.loopback() {
            return 0;
        }
        let room = state.capacity() - state.received.len().min(state.capacity());
        let taken = room.min(data.len());
        state.received.extend(&data[..taken]);
        self.update(&state);
        taken
    }

    /// Waits until the guest has read some input. Says whether there is room now.
    pub fn wait_for_room(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if !state.loopback() && state.received.len() < state.capacity() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.room.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn transmit(&self, byte: u8) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let result = output.write_all(&[byte]).and_then(|()| output.flush());
        if let Err(error) = result {
            tracing::debug!(%error, "output of the serial port is lost");
        }
    }

    fn read_register(&self, register: u64) -> u8 {
        let mut state = self.lock();
        let divisor = state.line_control & DIVISOR_ACCESS != 0;
        let value = match register {
            DATA if divisor => state.divisor as u8,
            INTERRUPT_ENABLE if divisor => (state.divisor >> 8) as u8,
            DATA => {
                let byte = state.received.pop_front().unwrap_or(0);
                self.room.notify_all();
                byte
            }
            INTERRUPT_ENABLE => state.interrupt_enable,
            INTERRUPT_ID => {
                let id = state.interrupt_id();
                if id == ID_EMPTY {
                    state.empty_pending = false;
                }
                id | if state.fifo() { ID_FIFO } else { 0 }
            }
            LINE_CONTROL => state.line_control,
            MODEM_CONTROL => state.modem_control,
            LINE_STATUS => {
                let ready = if state.received.is_empty() { 0 } else { STATUS_READY };
                let overrun = if std::mem::take(&mut state.overrun) { STATUS_OVERRUN } else { 0 };
                STATUS_EMPTY | ready | overrun
            }
            MODEM_STATUS => state.modem_lines() | std::mem::take(&mut state.modem_changed),
            SCRATCH => state.scratch,
            _ => 0xff,
        };
        self.update(&state);
        value
    }

    fn write_register(&self, register: u64, value: u8) {
        let mut state = self.lock();
        let divisor = state.line_control & DIVISOR_ACCESS != 0;
        let mut transmitted = None;
        match register {
            DATA if divisor => state.divisor = state.divisor & 0xff00 | u16::from(value),
            INTERRUPT_ENABLE if divisor => {
                state.divisor = state.divisor & 0x00ff | u16::from(value) << 8;
            }
            DATA => {
                state.empty_pending = true;
                if state.loopback() {
                    state.receive(value);
                } else {
                    transmitted = Some(value);
                }
            }
            INTERRUPT_ENABLE => {
                let old = state.interrupt_enable;
                state.interrupt_enable = value & 0x0f;
                if value & !old & ENABLE_EMPTY != 0 {
                    state.empty_pending = true;
                }
            }
            INTERRUPT_ID => {
                // Switching FIFOs on or off empties them.
                let switched = (state.fifo_control ^ value) & FIFO_ENABLE != 0;
                if switched || value & FIFO_CLEAR_RECEIVED != 0 {
                    state.received.clear();
                    self.room.notify_all();
                }
                state.fifo_control = if value & FIFO_ENABLE != 0 { value & 0xc9 } else { 0 };
            }
            LINE_CONTROL => state.line_control = value,
            MODEM_CONTROL => {
                state.set_modem_control(value);
                self.room.notify_all();
            }
            SCRATCH => state.scratch = value,
            _ => {}
        }
        self.update(&state);
        drop(state);
        if let Some(byte) = transmitted {
            self.transmit(byte);
        }
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        *state = UartState::new();
        self.update(&state);
        self.room.notify_all();
    }

    pub fn state(&self) -> UartState {
        self.lock().clone()
    }

    pub fn set_state(&self, saved: &UartState) {
        let mut state = self.lock();
        state.clone_from(saved);
        state.received.truncate(FIFO);
        self.update(&state);
    }
}

impl Device for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset..).zip(data) {
            self.write_register(register, byte);
        }
    }
}

#[cfg(test)]
mod tests;
