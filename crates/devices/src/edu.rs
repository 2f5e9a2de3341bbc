//! The "edu" device: a PCI function for those who learn to write drivers, and for test
//! suites that want a device which does DMA and interrupts on demand.
//!
//! It tells who it is, inverts a number, computes a factorial, raises interrupts that
//! the driver asks for, and copies between memory and a page of its own. Here all of
//! that is done within the access that asks for it, so no driver ever sees it busy. An
//! interrupt is the function's message if the driver has enabled MSI, else INTA#.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::{answer, value};
use crate::dma::Dma;
use crate::irq::{IrqLine, MsiSink};
use crate::pci::config::{ConfigError, ConfigState, ForeignConfig};
use crate::pci::{BarKind, ConfigSpace, Identity, MsiCapability, PciFunction};

const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x11e8;
const BAR_SIZE: u64 = 1 << 20;

/// Major and minor number of what is implemented, and "edu".
const IDENTIFICATION: u64 = 0x0100_00ed;

const IDENTITY: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_RAISE: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
/// From here on registers may be accessed 8 bytes at a time.
const WIDE: u64 = 0x80;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

/// In the status register: raise an interrupt for each factorial.
const STATUS_INTERRUPT: u32 = 0x80;
/// Causes that are not the driver's own.
const CAUSE_FACTORIAL: u32 = 0x001;
const CAUSE_DMA: u32 = 0x100;

const COMMAND_START: u64 = 1 << 0;
const COMMAND_TO_MEMORY: u64 = 1 << 1;
const COMMAND_INTERRUPT: u64 = 1 << 2;

/// The device's own page, as DMA addresses it.
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: usize = 4096;
/// Its address lines.
const DMA_MASK: u64 = (1 << 28) - 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupt: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    buffer: Vec<u8>,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            interrupt: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer: vec![0; BUFFER_SIZE],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EduState {
    config: ConfigState,
    registers: Registers,
}

/// The device.
pub struct Edu {
    config: ConfigSpace,
    msi: MsiCapability,
    memory: Arc<dyn Dma>,
    sink: Arc<dyn MsiSink>,
    line: Arc<dyn IrqLine>,
    registers: Mutex<Registers>,
}

impl Edu {
    /// `memory` is what it does DMA in, `line` its slot's INTA#.
    pub fn new(
        memory: Arc<dyn Dma>,
        sink: Arc<dyn MsiSink>,
        line: Arc<dyn IrqLine>,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0xff_0000,
            revision: 0x10,
        });
        config.set_interrupt_pin();
        config.add_bar(0, BarKind::Memory32, BAR_SIZE)?;
        let msi = MsiCapability::add(&mut config)?;
        Ok(Arc::new(Self { config, msi, memory, sink, line, registers: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the wire in line with the causes. The registers' lock orders what happens
    /// to it.
    fn drive_line(&self, registers: &Registers) {
        let asserted = registers.interrupt != 0 && self.msi.message(&self.config).is_none();
        self.line.set(self.config.set_interrupt_status(asserted));
    }

    fn raise(&self, registers: &mut Registers, cause: u32) {
        registers.interrupt |= cause;
        match self.msi.message(&self.config) {
            Some(message) if registers.interrupt != 0 => self.sink.signal(message),
            _ => self.drive_line(registers),
        }
    }

    fn compute_factorial(&self, registers: &mut Registers, of: u32) {
        // From 34! on all that fits into 32 bits is zero.
        registers.factorial = (1..=of.min(34)).fold(1, u32::wrapping_mul);
        if registers.status & STATUS_INTERRUPT != 0 {
            self.raise(registers, CAUSE_FACTORIAL);
        }
    }

    /// Copies as the registers say, if they make sense.
    fn transfer(&self, registers: &mut Registers) {
        let to_memory = registers.command & COMMAND_TO_MEMORY != 0;
        let (source, destination) = (registers.source, registers.destination);
        let (own, outside) = if to_memory { (source, destination) } else { (destination, source) };
        let own = own.checked_sub(BUFFER).and_then(|start| {
            let end = start.checked_add(registers.count)?;
            (end <= BUFFER_SIZE as u64).then_some(start as usize..end as usize)
        });
        if let Some(own) = own.filter(|_| self.config.bus_master()) {
            let outside = outside & DMA_MASK;
            if to_memory {
                // What reaches nothing is lost, and what comes from nowhere is all ones.
                _ = self.memory.write(outside, &registers.buffer[own]);
            } else if self.memory.read(outside, &mut registers.buffer[own.clone()]).is_err() {
                registers.buffer[own].fill(0xff);
            }
        }
        if registers.command & COMMAND_INTERRUPT != 0 {
            self.raise(registers, CAUSE_DMA);
        }
        registers.command &= !COMMAND_START;
    }

    pub fn state(&self) -> EduState {
        EduState { config: self.config.state(), registers: self.lock().clone() }
    }

    /// Refuses the state of another device.
    pub fn set_state(&self, state: &EduState) -> Result<(), ForeignConfig> {
        if state.registers.buffer.len() != BUFFER_SIZE {
            return Err(ForeignConfig);
        }
        let mut registers = self.lock();
        self.config.set_state(&state.config)?;
        registers.clone_from(&state.registers);
        self.drive_line(&registers);
        Ok(())
    }
}

/// Whether registers there can be accessed so.
fn fits(offset: u64, length: usize) -> bool {
    length == 4 || length == 8 && offset >= WIDE
}

impl PciFunction for Edu {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let registers = self.lock();
        self.config.write(offset, data);
        self.drive_line(&registers);
    }

    fn bar_read(&self, _: usize, offset: u64, data: &mut [u8]) {
        if !fits(offset, data.len()) {
            return data.fill(0xff);
        }
        let registers = self.lock();
        let register = match offset {
            IDENTITY => IDENTIFICATION,
            LIVENESS => u64::from(registers.liveness),
            FACTORIAL => u64::from(registers.factorial),
            STATUS => u64::from(registers.status),
            INTERRUPT_STATUS => u64::from(registers.interrupt),
            DMA_SOURCE => registers.source,
            DMA_DESTINATION => registers.destination,
            DMA_COUNT => registers.count,
            DMA_COMMAND => registers.command,
            _ => u64::MAX,
        };
        answer(data, register);
    }

    fn bar_write(&self, _: usize, offset: u64, data: &[u8]) {
        if !fits(offset, data.len()) {
            return;
        }
        let wide = value(data);
        let narrow = wide as u32;
        let mut registers = self.lock();
        match offset {
            LIVENESS => registers.liveness = !narrow,
            FACTORIAL => self.compute_factorial(&mut registers, narrow),
            STATUS => registers.status = narrow & STATUS_INTERRUPT,
            INTERRUPT_RAISE => self.raise(&mut registers, narrow),
            INTERRUPT_ACKNOWLEDGE => {
                registers.interrupt &= !narrow;
                self.drive_line(&registers);
            }
            DMA_SOURCE => registers.source = wide,
            DMA_DESTINATION => registers.destination = wide,
            DMA_COUNT => registers.count = wide,
            DMA_COMMAND => {
                registers.command = wide & (COMMAND_START | COMMAND_TO_MEMORY | COMMAND_INTERRUPT);
                if wide & COMMAND_START != 0 {
                    self.transfer(&mut registers);
                }
            }
            _ => {}
        }
    }

    fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers::default();
        self.config.reset();
        self.drive_line(&registers);
    }
}

#[cfg(test)]
mod tests;
