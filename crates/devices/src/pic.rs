//! The pair of 8259 interrupt controllers, with the chipset's edge/level registers.
//!
//! The slave's output is the master's input 2; the master's output is INTR. The
//! processor asks for the vector with [`Pic::acknowledge`], which is the two INTA
//! cycles in one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::Device;
use crate::irq::IrqLine;

/// Ports, which are the register offsets, too.
pub const MASTER: u64 = 0x20;
pub const SLAVE: u64 = 0xa0;
pub const EDGE_LEVEL: u64 = 0x4d0;

const CASCADE: u8 = 2;
/// Of interrupts 0 and 8.
const FIRMWARE_VECTORS: [u8; 2] = [0x08, 0x70];
/// Inputs that are edge-triggered whatever the registers say: timer, keyboard,
/// cascade; clock and coprocessor.
const EDGE_ONLY: [u8; 2] = [0b0000_0111, 0b0010_0001];

/// Which initialization word comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Initialization {
    #[default]
    Done,
    Vector,
    Cascade,
    Mode,
}

/// One 8259.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    request: u8,
    in_service: u8,
    mask: u8,
    /// Inputs' levels.
    levels: u8,
    level_triggered: u8,
    vector: u8,
    /// The input with the highest priority.
    first: u8,
    next: Initialization,
    wants_mode: bool,
    reads_in_service: bool,
    poll: bool,
    special_mask: bool,
    special_nesting: bool,
    automatic_end: bool,
    automatic_rotation: bool,
}

impl Chip {
    /// An edge is kept until it is acknowledged, even if the line falls before: what
    /// interrupts by pulses would lose them otherwise. A level is not.
    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rising = level && self.levels & bit == 0;
        if level {
            self.levels |= bit
        } else {
            self.levels &= !bit
        }
        if rising {
            self.request |= bit;
        } else if !level && self.level_triggered & bit != 0 {
            self.request &= !bit;
        }
    }

    /// How many steps an input is from the highest priority; 8 for no input.
    fn distance(&self, inputs: u8) -> u8 {
        inputs.rotate_right(u32::from(self.first)).trailing_zeros() as u8
    }

    fn at(&self, distance: u8) -> u8 {
        (self.first + distance) & 7
    }

    /// The input that is to be served now, if any.
    fn pending(&self, cascaded: bool) -> Option<u8> {
        let wanted = self.distance(self.request & !self.mask);
        let mut serving = self.in_service;
        if self.special_mask {
            serving &= !self.mask;
        }
        // In special fully nested mode a slave can interrupt its own handler.
        if self.special_nesting && cascaded {
            serving &= !(1 << CASCADE);
        }
        (wanted < self.distance(serving)).then(|| self.at(wanted))
    }

    fn begin(&mut self, input: u8) {
        let bit = 1 << input;
        if self.automatic_end {
            if self.automatic_rotation {
                self.first = (input + 1) & 7;
            }
        } else {
            self.in_service |= bit;
        }
        if self.level_triggered & bit == 0 {
            self.request &= !bit;
        }
    }

    fn end(&mut self, operation: u8) {
        let specific = operation & 7;
        let highest = {
            let distance = self.distance(self.in_service);
            (distance < 8).then(|| self.at(distance))
        };
        match operation >> 5 {
            0 => self.automatic_rotation = false,
            4 => self.automatic_rotation = true,
            code @ (1 | 5) => {
                if let Some(input) = highest {
                    self.in_service &= !(1 << input);
                    if code == 5 {
                        self.first = (input + 1) & 7;
                    }
                }
            }
            3 => self.in_service &= !(1 << specific),
            6 => self.first = (specific + 1) & 7,
            7 => {
                self.in_service &= !(1 << specific);
                self.first = (specific + 1) & 7;
            }
            _ => {}
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            let (levels, level_triggered) = (self.levels, self.level_triggered);
            *self = Chip {
                levels,
                level_triggered,
                request: levels & level_triggered,
                vector: self.vector,
                next: Initialization::Vector,
                wants_mode: value & 1 != 0,
                ..Chip::default()
            };
        } else if value & 0x08 != 0 {
            if value & 0x04 != 0 {
                self.poll = true;
            }
            if value & 0x02 != 0 {
                self.reads_in_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end(value);
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.next {
            Initialization::Done => self.mask = value,
            Initialization::Vector => {
                self.vector = value & 0xf8;
                self.next = Initialization::Cascade;
            }
            Initialization::Cascade => {
                self.next =
                    if self.wants_mode { Initialization::Mode } else { Initialization::Done };
            }
            Initialization::Mode => {
                self.special_nesting = value & 0x10 != 0;
                self.automatic_end = value & 0x02 != 0;
                self.next = Initialization::Done;
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    chips: [Chip; 2],
    /// The level of INTR as it was last told.
    #[serde(skip)]
    output: bool,
}

/// The pair.
pub struct Pic {
    interrupt: Arc<dyn IrqLine>,
    state: Mutex<PicState>,
}

struct Input {
    pic: Arc<Pic>,
    index: u8,
}

impl IrqLine for Input {
    fn set(&self, level: bool) {
        let mut state = self.pic.lock();
        state.chips[usize::from(self.index >> 3)].set_line(self.index & 7, level);
        self.pic.update(&mut state);
    }
}

impl PicState {
    /// Lets the slave's output reach the master; the input that the master would have
    /// served, if any.
    fn settle(&mut self) -> Option<u8> {
        let output = self.chips[1].pending(false).is_some();
        let cascade = &mut self.chips[0].request;
        *cascade = *cascade & !(1 << CASCADE) | u8::from(output) << CASCADE;
        self.chips[0].pending(output)
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.settle()?;
        self.chips[0].begin(input);
        if input != CASCADE {
            return Some(self.chips[0].vector + input);
        }
        let slave = &mut self.chips[1];
        let input = slave.pending(false)?;
        slave.begin(input);
        Some(slave.vector + input)
    }

    /// A poll command's answer: an acknowledge by the processor's own hand.
    fn poll(&mut self, chip: usize) -> u8 {
        self.settle();
        let cascaded = chip == 0 && self.chips[1].pending(false).is_some();
        self.chips[chip].poll = false;
        match self.chips[chip].pending(cascaded) {
            Some(input) => {
                self.chips[chip].begin(input);
                0x80 | input
            }
            None => 0,
        }
    }
}

impl Pic {
    /// `interrupt` is the INTR line. The vectors are those that firmware leaves, on which
    /// software for real mode counts.
    pub fn new(interrupt: Arc<dyn IrqLine>) -> Arc<Self> {
        let mut state = PicState::default();
        for (chip, vector) in state.chips.iter_mut().zip(FIRMWARE_VECTORS) {
            chip.vector = vector;
        }
        Arc::new(Self { interrupt, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, PicState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The wire into one of the 16 inputs. Input 2 is the slave's; a wire there leads
    /// nowhere.
    pub fn line(self: &Arc<Self>, input: u8) -> Arc<dyn IrqLine> {
        if input == CASCADE || input > 15 {
            return Arc::new(|_: bool| ());
        }
        Arc::new(Input { pic: self.clone(), index: input })
    }

    fn update(&self, state: &mut PicState) {
        let output = state.settle().is_some();
        if std::mem::replace(&mut state.output, output) != output {
            self.interrupt.set(output);
        }
    }

    /// The vector of the request that is served next, or none when it has gone away.
    pub fn acknowledge(&self) -> Option<u8> {
        let mut state = self.lock();
        let vector = state.acknowledge();
        self.update(&mut state);
        vector
    }

    pub fn reset(&self) {
        let mut state = self.lock();
        for chip in &mut state.chips {
            *chip = Chip { levels: chip.levels, ..Chip::default() };
        }
        self.update(&mut state);
    }

    pub fn state(&self) -> PicState {
        self.lock().clone()
    }

    /// Takes over a saved state, and sets INTR as it says.
    pub fn set_state(&self, saved: &PicState) {
        let mut state = self.lock();
        state.chips.clone_from(&saved.chips);
        for chip in &mut state.chips {
            // What a chip keeps in the range that it can count on.
            chip.first &= 7;
            chip.vector &= 0xf8;
        }
        self.update(&mut state);
    }

    fn read_byte(&self, port: u64) -> u8 {
        let mut state = self.lock();
        let index = usize::from(matches!(port, 0xa0 | 0xa1 | 0x4d1));
        let chip = &state.chips[index];
        match port {
            0x4d0 | 0x4d1 => chip.level_triggered,
            _ if chip.poll => {
                let answer = state.poll(index);
                self.update(&mut state);
                answer
            }
            0x21 | 0xa1 => chip.mask,
            0x20 | 0xa0 if chip.reads_in_service => chip.in_service,
            0x20 | 0xa0 => chip.request,
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u64, value: u8) {
        let mut state = self.lock();
        let index = usize::from(matches!(port, 0xa0 | 0xa1 | 0x4d1));
        let chip = &mut state.chips[index];
        match port {
            0x20 | 0xa0 => chip.write_command(value),
            0x21 | 0xa1 => chip.write_data(value),
            0x4d0 | 0x4d1 => {
                chip.level_triggered = value & !EDGE_ONLY[index];
                chip.request |= chip.levels & chip.level_triggered;
            }
            _ => {}
        }
        self.update(&mut state);
    }
}

impl Device for Pic {
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
