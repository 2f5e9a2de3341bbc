//! The i8042 keyboard controller with a keyboard and a PS/2 mouse port.
//!
//! Enough of it for kernels to find it, use the keyboard, and reset the machine
//! through it. The mouse answers commands but never moves. The A20 gate can be
//! switched and does nothing: address line 20 is always on.

mod keyboard;
mod mouse;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::keyboard::{Keyboard, to_set_1, to_set_2};
use self::mouse::Mouse;
use crate::bus::Device;
use crate::irq::IrqLine;
use crate::power::{PowerRequest, PowerSink};

/// Ports, which are the register offsets, too.
pub const DATA: u64 = 0x60;
pub const COMMAND: u64 = 0x64;
/// The chipset's short cut to A20 and reset.
pub const SYSTEM_CONTROL: u64 = 0x92;

/// Bytes that wait, of each device. More are lost, as in a real keyboard.
const QUEUE: usize = 64;

/// Bits of the status register.
const OUTPUT_FULL: u8 = 1 << 0;
const SYSTEM_FLAG: u8 = 1 << 2;
const LAST_WAS_COMMAND: u8 = 1 << 3;
const NOT_LOCKED: u8 = 1 << 4;
const FROM_MOUSE: u8 = 1 << 5;

/// Bits of the command byte.
const INTERRUPT_KEYBOARD: u8 = 1 << 0;
const INTERRUPT_MOUSE: u8 = 1 << 1;
const DISABLE_KEYBOARD: u8 = 1 << 4;
const DISABLE_MOUSE: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

/// Bits of the output port.
const NOT_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// Where a byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Controller,
    Keyboard,
    Mouse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    command_byte: u8,
    output_port: u8,
    /// The command whose parameter is awaited.
    awaiting: Option<u8>,
    last_was_command: bool,
    /// The output buffer: one byte, and its source.
    output: Option<(u8, Source)>,
    /// What the controller itself has to say, before all else.
    answers: VecDeque<(u8, Source)>,
    keyboard: Keyboard,
    mouse: Mouse,
    /// The upper half of a scan code that is being translated.
    release: bool,
}

impl I8042State {
    fn new() -> Self {
        Self {
            command_byte: TRANSLATE | SYSTEM_FLAG | INTERRUPT_KEYBOARD,
            output_port: NOT_RESET | A20,
            awaiting: None,
            last_was_command: false,
            output: None,
            answers: VecDeque::new(),
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            release: false,
        }
    }

    fn answer(&mut self, byte: u8) {
        self.answers.push_back((byte, Source::Controller));
    }

    /// Fills the output buffer if it is empty.
    fn fill(&mut self) {
        while self.output.is_none() {
            if let Some(answer) = self.answers.pop_front() {
                self.output = Some(answer);
            } else if self.command_byte & DISABLE_KEYBOARD == 0 && !self.keyboard.queue.is_empty() {
                let code = self.keyboard.queue.pop_front().unwrap_or_default();
                self.output = self.translated(code).map(|code| (code, Source::Keyboard));
            } else if self.command_byte & DISABLE_MOUSE == 0 && !self.mouse.queue.is_empty() {
                self.output = self.mouse.queue.pop_front().map(|byte| (byte, Source::Mouse));
            } else {
                return;
            }
        }
    }

    /// Turns a byte of scan code set 2 into one of set 1, if the guest wants that. A
    /// release, which is two bytes in set 2, is one in set 1.
    fn translated(&mut self, code: u8) -> Option<u8> {
        if self.command_byte & TRANSLATE == 0 {
            return Some(code);
        }
        if code == 0xf0 {
            self.release = true;
            return None;
        }
        let release = if std::mem::take(&mut self.release) { 0x80 } else { 0 };
        Some(to_set_1(code) | release)
    }

    fn status(&self) -> u8 {
        let output = match self.output {
            Some((_, Source::Mouse)) => OUTPUT_FULL | FROM_MOUSE,
            Some(_) => OUTPUT_FULL,
            None => 0,
        };
        let command = if self.last_was_command { LAST_WAS_COMMAND } else { 0 };
        output | command | self.command_byte & SYSTEM_FLAG | NOT_LOCKED
    }

    /// A command to the controller. Says whether it resets the machine.
    fn command(&mut self, command: u8) -> bool {
        self.awaiting = None;
        match command {
            0x20 => self.answer(self.command_byte),
            0x60 | 0xd1..=0xd4 => self.awaiting = Some(command),
            0xa7 => self.command_byte |= DISABLE_MOUSE,
            0xa8 => self.command_byte &= !DISABLE_MOUSE,
            0xad => self.command_byte |= DISABLE_KEYBOARD,
            0xae => self.command_byte &= !DISABLE_KEYBOARD,
            // Tests of the ports and of itself.
            0xa9 | 0xab => self.answer(0x00),
            0xaa => {
                self.command_byte |= SYSTEM_FLAG;
                self.answer(0x55);
            }
            // The input port: no jumpers, nothing locked.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port | if self.output.is_some() { 0x10 } else { 0 }),
            0xdd => self.output_port &= !A20,
            0xdf => self.output_port |= A20,
            // Pulses the output port's low bits that are 0 in the command.
            0xf0..=0xff => return command & NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// A byte to the data port. Says whether it resets the machine.
    fn data(&mut self, byte: u8) -> bool {
        match self.awaiting.take() {
            Some(0x60) => self.command_byte = byte,
            Some(0xd1) => {
                self.output_port = byte | NOT_RESET;
                return byte & NOT_RESET == 0;
            }
            Some(0xd2) => self.answers.push_back((byte, Source::Keyboard)),
            Some(0xd3) => self.answers.push_back((byte, Source::Mouse)),
            Some(0xd4) => {
                self.command_byte &= !DISABLE_MOUSE;
                self.mouse.command(byte);
            }
            _ => {
                // Talking to the keyboard enables it.
                self.command_byte &= !DISABLE_KEYBOARD;
                self.keyboard.command(byte);
            }
        }
        false
    }
}

/// The controller.
pub struct I8042 {
    keyboard_interrupt: Arc<dyn IrqLine>,
    mouse_interrupt: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
    state: Mutex<I8042State>,
}

impl I8042 {
    /// Interrupts 1 and 12.
    pub fn new(
        keyboard_interrupt: Arc<dyn IrqLine>,
        mouse_interrupt: Arc<dyn IrqLine>,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        let state = Mutex::new(I8042State::new());
        Arc::new(Self { keyboard_interrupt, mouse_interrupt, power, state })
    }

    fn lock(&self) -> MutexGuard<'_, I8042State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses or releases a key, named by its scan code of set 1; `extended` ones
    /// have the prefix 0xe0.
    pub fn key(&self, code: u8, extended: bool, pressed: bool) {
        let Some(code) = to_set_2(code) else { return };
        let mut state = self.lock();
        let mut bytes = Vec::with_capacity(3);
        if extended {
            bytes.push(0xe0);
        }
        if !pressed {
            bytes.push(0xf0);
        }
        bytes.push(code);
        state.keyboard.press(&bytes);
        self.update(&mut state);
    }

    fn update(&self, state: &mut I8042State) {
        state.fill();
        let source = state.output.map(|(_, source)| source);
        let keyboard = matches!(source, Some(Source::Keyboard | Source::Controller));
        let enabled = state.command_byte;
        self.keyboard_interrupt.set(keyboard && enabled & INTERRUPT_KEYBOARD != 0);
        self.mouse_interrupt.set(source == Some(Source::Mouse) && enabled & INTERRUPT_MOUSE != 0);
    }

    fn read_byte(&self, port: u64) -> u8 {
        let mut state = self.lock();
        match port {
            DATA => {
                let byte = state.output.take().map_or(0, |(byte, _)| byte);
                // The lines fall before the next byte raises them.
                self.keyboard_interrupt.set(false);
                self.mouse_interrupt.set(false);
                self.update(&mut state);
                byte
            }
            COMMAND => state.status(),
            SYSTEM_CONTROL => state.output_port & A20,
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u64, byte: u8) {
        let mut state = self.lock();
        let reset = match port {
            DATA => {
                state.last_was_command = false;
                state.data(byte)
            }
            COMMAND => {
                state.last_was_command = true;
                state.command(byte)
            }
            SYSTEM_CONTROL => {
                state.output_port = state.output_port & !A20 | byte & A20;
                byte & 1 != 0
            }
            _ => false,
        };
        // A guest that never reads gets nothing more.
        state.answers.truncate(QUEUE);
        self.update(&mut state);
        drop(state);
        if reset {
            self.power.request(PowerRequest::Reset);
        }
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        *state = I8042State::new();
        self.update(&mut state);
    }

    pub fn state(&self) -> I8042State {
        self.lock().clone()
    }

    pub fn set_state(&self, saved: &I8042State) {
        let mut state = self.lock();
        state.clone_from(saved);
        state.answers.truncate(QUEUE);
        state.keyboard.queue.truncate(QUEUE);
        state.mouse.queue.truncate(QUEUE);
        self.update(&mut state);
    }
}

impl Device for I8042 {
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
