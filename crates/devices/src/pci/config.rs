//! A type 0 configuration space: header, BARs, a chain of capabilities.
//!
//! The space is 4 KiB of bytes, a mask that says which bits the guest may change, and
//! a mask of those that it clears by writing ones. A BAR's mask makes sizing work by
//! itself: address bits below its size are not writable and read as zero.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::msix::Msix;

pub const CONFIG_SIZE: usize = 4096;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// I/O, memory, bus master, parity, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Error bits, cleared by writing ones.
const STATUS_CLEARABLE: u16 = 0xf900;

const CAPABILITY_MSIX: u8 = 0x11;

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub class: u32,
    pub revision: u8,
}

/// What a base address register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    Port,
    Memory32,
    /// Takes two registers.
    Memory64 {
        prefetchable: bool,
    },
}

/// What is wrong with how a function was put together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("BAR {index} of {size:#x} bytes: {reason}")]
    Bar { index: usize, size: u64, reason: &'static str },
    #[error("no room for a capability of {0} bytes")]
    CapabilityRoom(usize),
}

/// The part of a configuration space that the guest can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    pub bytes: Vec<u8>,
}

/// A state that is not one of this function.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the saved configuration space belongs to another PCI function")]
pub struct ForeignConfig;

/// A base address register as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5; a 64-bit BAR has the lower of its two numbers.
    pub index: usize,
    pub kind: BarKind,
    pub size: u64,
    /// Where it lies, if it has been placed.
    pub base: Option<u64>,
    /// Whether the command register lets it answer.
    pub decoded: bool,
}

struct Registers {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    clearable: [u8; CONFIG_SIZE],
}

impl Registers {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    fn bar_base(&self, index: usize, kind: BarKind) -> u64 {
        let low = u64::from(self.dword(BARS + 4 * index));
        match kind {
            BarKind::Port => low & !3,
            BarKind::Memory32 => low & !15,
            BarKind::Memory64 { .. } => {
                low & !15 | u64::from(self.dword(BARS + 4 * index + 4)) << 32
            }
        }
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

/// A configuration space, shared between the bridge and the function.
pub struct ConfigSpace {
    registers: Mutex<Box<Registers>>,
    /// Kind and size of what the function declared.
    bars: [Option<(BarKind, u64)>; 6],
    next_capability: usize,
    /// Where the pointer to the next capability is to be written.
    last_link: usize,
    msix: Option<(usize, Arc<Msix>)>,
}

impl ConfigSpace {
    pub fn new(identity: Identity) -> Self {
        let mut registers = Box::new(Registers {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            clearable: [0; CONFIG_SIZE],
        });
        registers.put(0x00, &identity.vendor.to_le_bytes());
        registers.put(0x02, &identity.device.to_le_bytes());
        registers.put(0x08, &[identity.revision]);
        registers.put(0x09, &identity.class.to_le_bytes()[..3]);
        registers.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        registers.put(0x2e, &identity.subsystem.to_le_bytes());
        registers.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        registers.clearable[STATUS..STATUS + 2].copy_from_slice(&STATUS_CLEARABLE.to_le_bytes());
        // Cache line size and the interrupt line are the guest's notebook.
        registers.allow(0x0c, &[0xff]);
        registers.allow(INTERRUPT_LINE, &[0xff]);
        Self {
            registers: Mutex::new(registers),
            bars: [const { None }; 6],
            next_capability: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
            msix: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<Registers>> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registers(&mut self) -> &mut Registers {
        self.registers.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the function uses INTA#.
    pub fn set_interrupt_pin(&mut self) {
        self.registers().put(INTERRUPT_PIN, &[1]);
    }

    /// Lets memory BARs answer, as firmware would.
    pub fn enable_memory(&self) {
        self.write(COMMAND as u16, &COMMAND_MEMORY.to_le_bytes());
    }

    /// Notes for the driver which interrupt INTA# is wired to, as firmware would.
    pub fn set_interrupt_line(&self, number: u8) {
        self.write(INTERRUPT_LINE as u16, &[number]);
    }

    /// Adds a base address register; `size` is a power of two.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) -> Result<(), ConfigError> {
        let refuse = |reason| Err(ConfigError::Bar { index, size, reason });
        let wide = matches!(kind, BarKind::Memory64 { .. });
        if !size.is_power_of_two() {
            return refuse("the size is not a power of two");
        }
        let (least, most) = match kind {
            BarKind::Port => (4, 256),
            BarKind::Memory32 => (16, 1 << 31),
            BarKind::Memory64 { .. } => (16, 1 << 62),
        };
        if size < least || size > most {
            return refuse("the size is outside of what this kind can have");
        }
        let after_wide = index > 0
            && matches!(self.bars.get(index - 1), Some(Some((BarKind::Memory64 { .. }, _))));
        let next_taken = wide && !matches!(self.bars.get(index + 1), Some(None));
        if !matches!(self.bars.get(index), Some(None)) || after_wide || next_taken {
            return refuse("the register is taken or does not exist");
        }
        self.bars[index] = Some((kind, size));
        let at = BARS + 4 * index;
        let flags: u32 = match kind {
            BarKind::Port => 1,
            BarKind::Memory32 => 0,
            BarKind::Memory64 { prefetchable } => 4 | u32::from(prefetchable) << 3,
        };
        let mask = !(size - 1);
        let registers = self.registers();
        registers.put(at, &flags.to_le_bytes());
        registers.allow(at, &(mask as u32).to_le_bytes());
        if wide {
            registers.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        Ok(())
    }

    /// Adds a capability: its bytes after id and next pointer, and which of their bits
    /// the guest may write. Returns where the capability begins.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        if end > 0x100 || writable.len() > body.len() {
            return Err(ConfigError::CapabilityRoom(body.len() + 2));
        }
        let link = self.last_link;
        let registers = self.registers();
        registers.put(link, &[at as u8]);
        registers.put(at, &[id, 0]);
        registers.put(at + 2, body);
        registers.allow(at + 2, writable);
        let status = registers.word(STATUS) | STATUS_CAPABILITIES;
        registers.put(STATUS, &status.to_le_bytes());
        self.last_link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        Ok(at as u16)
    }

    /// Adds the MSI-X capability, with table and pending bits in memory BAR `bar`,
    /// at these offsets of it.
    pub fn add_msix(
        &mut self,
        msix: Arc<Msix>,
        bar: usize,
        table_offset: u32,
        pending_offset: u32,
    ) -> Result<u16, ConfigError> {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(msix.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset & !7 | bar as u32).to_le_bytes());
        body[6..].copy_from_slice(&(pending_offset & !7 | bar as u32).to_le_bytes());
        // Enable and function mask.
        let at = self.add_capability(CAPABILITY_MSIX, &body, &[0x00, 0xc0])?;
        self.msix = Some((usize::from(at) + 2, msix));
        Ok(at)
    }

    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let registers = self.lock();
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = registers.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    pub fn write(&self, offset: u16, data: &[u8]) {
        let mut registers = self.lock();
        for (at, &byte) in (usize::from(offset)..).zip(data) {
            if at < CONFIG_SIZE {
                let (writable, clearable) = (registers.writable[at], registers.clearable[at]);
                let old = registers.bytes[at] & !(byte & clearable);
                registers.bytes[at] = old & !writable | byte & writable;
            }
        }
        let control = self.msix_control(&registers);
        drop(registers);
        self.apply_msix(control);
    }

    fn msix_control(&self, registers: &Registers) -> Option<u16> {
        self.msix.as_ref().map(|(at, _)| registers.word(*at))
    }

    fn apply_msix(&self, control: Option<u16>) {
        if let (Some(control), Some((_, msix))) = (control, &self.msix) {
            msix.set_control(control & 1 << 15 != 0, control & 1 << 14 != 0);
        }
    }

    /// Notes in the status register that INTx is asserted; says whether the line may
    /// be raised.
    pub fn set_interrupt_status(&self, asserted: bool) -> bool {
        let mut registers = self.lock();
        let status = registers.word(STATUS);
        let status = if asserted { status | STATUS_INTERRUPT } else { status & !STATUS_INTERRUPT };
        registers.put(STATUS, &status.to_le_bytes());
        asserted && registers.word(COMMAND) & COMMAND_INTX_DISABLE == 0
    }

    /// Whether the function may access memory by itself.
    pub fn bus_master(&self) -> bool {
        self.lock().word(COMMAND) & COMMAND_MASTER != 0
    }

    /// The base address registers as they are now.
    pub fn bars(&self) -> Vec<Bar> {
        let registers = self.lock();
        let command = registers.word(COMMAND);
        let declared = self.bars.iter().enumerate();
        declared
            .filter_map(|(index, bar)| {
                let (kind, size) = (*bar)?;
                let base = registers.bar_base(index, kind);
                let (enable, limit) = match kind {
                    BarKind::Port => (COMMAND_IO, 0xffff),
                    BarKind::Memory32 => (COMMAND_MEMORY, 0xffff_fffe),
                    BarKind::Memory64 { .. } => (COMMAND_MEMORY, (1 << 52) - 1),
                };
                // At 0 it has not been placed; near the end of the space it is being
                // sized.
                let end = base.checked_add(size - 1);
                let base = (base != 0 && end.is_some_and(|end| end <= limit)).then_some(base);
                Some(Bar { index, kind, size, base, decoded: command & enable != 0 })
            })
            .collect()
    }

    /// Gives a BAR an address, as firmware would.
    pub fn place_bar(&self, index: usize, base: u64) {
        let Some(Some((kind, _))) = self.bars.get(index) else { return };
        let at = (BARS + 4 * index) as u16;
        self.write(at, &(base as u32).to_le_bytes());
        if matches!(kind, BarKind::Memory64 { .. }) {
            self.write(at + 4, &((base >> 32) as u32).to_le_bytes());
        }
    }

    /// Everything as after power-on, except for BARs, which stay where the bridge
    /// placed them.
    pub fn reset(&self) {
        let mut registers = self.lock();
        let bars = BARS..BARS + 24;
        for at in (0..CONFIG_SIZE).filter(|at| !bars.contains(at)) {
            registers.bytes[at] &= !registers.writable[at];
        }
        let status = registers.word(STATUS) & !STATUS_INTERRUPT;
        registers.put(STATUS, &status.to_le_bytes());
        let control = self.msix_control(&registers);
        drop(registers);
        self.apply_msix(control);
    }

    pub fn state(&self) -> ConfigState {
        ConfigState { bytes: self.lock().bytes.to_vec() }
    }

    /// Takes over what the guest may change; the rest must be as it is here.
    pub fn set_state(&self, state: &ConfigState) -> Result<(), ForeignConfig> {
        let mut registers = self.lock();
        if state.bytes.len() != CONFIG_SIZE {
            return Err(ForeignConfig);
        }
        for (at, &byte) in state.bytes.iter().enumerate() {
            let volatile = if (STATUS..STATUS + 2).contains(&at) { 0xff } else { 0 };
            let fixed = !(registers.writable[at] | registers.clearable[at] | volatile);
            if (byte ^ registers.bytes[at]) & fixed != 0 {
                return Err(ForeignConfig);
            }
        }
        registers.bytes.copy_from_slice(&state.bytes);
        let control = self.msix_control(&registers);
        drop(registers);
        self.apply_msix(control);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
