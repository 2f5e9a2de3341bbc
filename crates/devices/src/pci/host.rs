//! The host bridge: 32 slots of one function each on bus 0.
//!
//! Configuration space is reached through ports 0xcf8 and 0xcfc and through the
//! memory-mapped window (ECAM). Slots can be filled and emptied while the machine
//! runs. A function that is added gets addresses for its BARs, as firmware would have
//! given it; the guest may move them, and the bridge follows on the buses.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::{Bar, BarKind, ConfigSpace, Identity};
use super::function::PciFunction;
use crate::bus::{Bus, Device, answer, value};
use crate::irq::{IrqLine, SharedLine};
use crate::power::{PowerRequest, PowerSink};

pub const SLOTS: usize = 32;
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Bytes of ECAM for one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Added to offsets in the memory-mapped window, to tell them from ports.
const ECAM_OFFSET: u64 = 1 << 32;

const CONFIG_ENABLE: u32 = 1 << 31;

/// The chipset's reset control register: byte accesses inside of the address port.
const RESET_CONTROL: u64 = 0xcf9;
const RESET_CPU: u8 = 1 << 2;

/// Where BARs may lie. The board describes the same ranges in the DSDT.
#[derive(Clone, Debug)]
pub struct PciWindows {
    pub ports: Range<u64>,
    pub memory32: Range<u64>,
    pub memory64: Range<u64>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    #[error("PCI slot {0} is taken or does not exist")]
    Taken(u8),
    #[error("all PCI slots are taken")]
    Full,
    #[error("no address space left for BAR {bar} ({size:#x} bytes) of PCI slot {slot}")]
    NoSpace { slot: u8, bar: usize, size: u64 },
}

/// The bridge's own registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    config_address: u32,
    reset_control: u8,
}

struct Slot {
    function: Arc<dyn PciFunction>,
    /// What is on the buses for it now.
    mapped: Vec<Bar>,
}

#[derive(Default)]
struct Slots {
    functions: [Option<Slot>; SLOTS],
    config_address: u32,
    reset_control: u8,
}

/// The host bridge.
pub struct PciHost {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    windows: PciWindows,
    /// What INTA# of slots 0, 1, 2, 3, 4 (again the first), … is wired to.
    interrupts: Vec<Arc<SharedLine>>,
    power: Arc<dyn PowerSink>,
    slots: Mutex<Slots>,
    /// Held while BARs move on the buses, so that two writers do it one by one.
    moving: Mutex<()>,
}

/// One BAR of a function as a device on a bus.
struct BarDevice {
    function: Arc<dyn PciFunction>,
    index: usize,
}

impl Device for BarDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.index, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.index, offset, data);
    }
}

/// The bridge as a function of its own bus, in slot 0.
struct Bridge {
    config: ConfigSpace,
}

impl PciFunction for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn bar_read(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _: usize, _: u64, _: &[u8]) {}

    fn reset(&self) {
        self.config.reset();
    }
}

impl PciHost {
    /// A bridge that puts BARs on these buses. INTA# of slot `n` drives interrupt
    /// `n % interrupts.len()`; the board's _PRT says the same.
    pub fn new(
        ports: Arc<Bus>,
        memory: Arc<Bus>,
        windows: PciWindows,
        interrupts: Vec<Arc<dyn IrqLine>>,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        let bridge = Bridge {
            config: ConfigSpace::new(Identity {
                vendor: 0x1b36,
                device: 0x0008,
                subsystem_vendor: 0x1af4,
                subsystem: 0x1100,
                class: 0x06_0000,
                revision: 0,
            }),
        };
        let mut slots = Slots::default();
        slots.functions[0] = Some(Slot { function: Arc::new(bridge), mapped: Vec::new() });
        Arc::new(Self {
            ports,
            memory,
            windows,
            interrupts: interrupts.into_iter().map(SharedLine::new).collect(),
            power,
            slots: Mutex::new(slots),
            moving: Mutex::default(),
        })
    }

    /// Puts the bridge's ports on the port bus and its window at `ecam` on the
    /// memory bus.
    pub fn attach(self: &Arc<Self>, ecam: u64) -> Result<(), crate::bus::BusError> {
        self.ports.insert(CONFIG_PORTS, 8, CONFIG_PORTS, self.clone())?;
        self.memory.insert(ecam, ECAM_SIZE, ECAM_OFFSET, self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new source of the interrupt of a slot.
    pub fn interrupt_line(&self, slot: u8) -> Arc<dyn IrqLine> {
        match self.interrupts.len() {
            0 => Arc::new(|_: bool| ()),
            count => self.interrupts[usize::from(slot) % count].source(),
        }
    }

    /// The lowest slot without a function.
    pub fn free_slot(&self) -> Result<u8, SlotError> {
        let slots = self.lock();
        let free = slots.functions.iter().position(Option::is_none);
        free.map(|slot| slot as u8).ok_or(SlotError::Full)
    }

    /// Which slots hold a function, as a bit each.
    pub fn occupied(&self) -> u32 {
        let slots = self.lock();
        (0..SLOTS).filter(|&slot| slots.functions[slot].is_some()).fold(0, |all, n| all | 1 << n)
    }

    /// Fills a slot and gives the function's BARs addresses.
    pub fn add(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(self.lock().functions.get(usize::from(slot)), Some(None)) {
            return Err(SlotError::Taken(slot));
        }
        let mut taken = self.placed();
        for bar in function.config().bars().iter().filter(|bar| bar.base.is_none()) {
            let error = SlotError::NoSpace { slot, bar: bar.index, size: bar.size };
            let base = self.find_space(&taken, bar).ok_or(error)?;
            function.config().place_bar(bar.index, base);
            taken.push((bar.kind == BarKind::Port, base..base + bar.size));
        }
        self.lock().functions[usize::from(slot)] = Some(Slot { function, mapped: Vec::new() });
        self.move_bars(usize::from(slot));
        Ok(())
    }

    /// Empties a slot. Returns what was in it.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.lock().functions.get_mut(usize::from(slot))?.take()?;
        for bar in &removed.mapped {
            self.unmap(bar);
        }
        Some(removed.function)
    }

    /// All address ranges that BARs have, decoded or not: (ports?, range).
    fn placed(&self) -> Vec<(bool, Range<u64>)> {
        let functions: Vec<_> =
            self.lock().functions.iter().flatten().map(|slot| slot.function.clone()).collect();
        let bars = functions.iter().flat_map(|function| function.config().bars());
        bars.filter_map(|bar| {
            bar.base.map(|base| (bar.kind == BarKind::Port, base..base + bar.size))
        })
        .collect()
    }

    fn find_space(&self, taken: &[(bool, Range<u64>)], bar: &Bar) -> Option<u64> {
        let port = bar.kind == BarKind::Port;
        let windows: &[&Range<u64>] = match bar.kind {
            BarKind::Port => &[&self.windows.ports],
            BarKind::Memory32 => &[&self.windows.memory32],
            BarKind::Memory64 { .. } => &[&self.windows.memory64, &self.windows.memory32],
        };
        windows.iter().find_map(|window| {
            let mut base = window.start.max(bar.size).checked_next_multiple_of(bar.size)?;
            loop {
                let end = base.checked_add(bar.size)?;
                if end > window.end {
                    return None;
                }
                let clash = taken.iter().find(|(is_port, range)| {
                    *is_port == port && range.start < end && base < range.end
                });
                match clash {
                    None => return Some(base),
                    // Each step passes one range, so this ends.
                    Some((_, range)) => base = range.end.checked_next_multiple_of(bar.size)?,
                }
            }
        })
    }

    /// Brings the buses in line with what the function in a slot decodes. The caller
    /// holds `moving`.
    fn move_bars(&self, index: usize) {
        let (function, old) = {
            let mut slots = self.lock();
            let Some(slot) = &mut slots.functions[index] else { return };
            (slot.function.clone(), std::mem::take(&mut slot.mapped))
        };
        let mut wanted = function.config().bars();
        wanted.retain(|bar| bar.decoded && bar.base.is_some());
        for bar in old.iter().filter(|bar| !wanted.contains(bar)) {
            self.unmap(bar);
        }
        let mut mapped = Vec::with_capacity(wanted.len());
        for bar in wanted {
            if old.contains(&bar) || self.map(&function, &bar) {
                mapped.push(bar);
            }
        }
        if let Some(slot) = &mut self.lock().functions[index] {
            slot.mapped = mapped;
        }
    }

    fn bus(&self, bar: &Bar) -> &Bus {
        if bar.kind == BarKind::Port { &self.ports } else { &self.memory }
    }

    fn map(&self, function: &Arc<dyn PciFunction>, bar: &Bar) -> bool {
        let Some(base) = bar.base else { return false };
        let device = Arc::new(BarDevice { function: function.clone(), index: bar.index });
        let result = self.bus(bar).insert(base, bar.size, 0, device);
        if let Err(error) = &result {
            tracing::debug!(%error, bar = bar.index, "the guest put a BAR where it cannot be");
        }
        result.is_ok()
    }

    fn unmap(&self, bar: &Bar) {
        if let Some(base) = bar.base {
            self.bus(bar).remove(base);
        }
    }

    fn function(&self, slot: usize) -> Option<Arc<dyn PciFunction>> {
        self.lock().functions.get(slot)?.as_ref().map(|slot| slot.function.clone())
    }

    /// `address` as in the memory-mapped window: bus, device, function, register.
    fn config_read(&self, address: u32, data: &mut [u8]) {
        match target(address).and_then(|slot| self.function(slot)) {
            Some(function) => function.config_read((address & 0xfff) as u16, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, address: u32, data: &[u8]) {
        let Some(slot) = target(address) else { return };
        let Some(function) = self.function(slot) else { return };
        let register = (address & 0xfff) as u16;
        // Only the command register and the BARs move anything.
        if register < 0x28 && register + data.len() as u16 > 4 {
            let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
            function.config_write(register, data);
            self.move_bars(slot);
        } else {
            function.config_write(register, data);
        }
    }

    /// Where an access to the data port goes, if anywhere.
    fn data_address(&self, offset: u64) -> Option<u32> {
        let selected = self.lock().config_address;
        let address = selected & 0xff_ff00;
        // Bus, device and function lie 4 bits higher in the memory-mapped window. The lower
        // two bits count too, as on other virtual machines: some guests name bytes by them.
        (selected & CONFIG_ENABLE != 0)
            .then(|| address << 4 | selected & 0xff | (offset - 0xcfc) as u32 & 3)
    }

    /// Resets every function.
    pub fn reset(&self) {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock().config_address = 0;
        for slot in 0..SLOTS {
            if let Some(function) = self.function(slot) {
                function.reset();
                self.move_bars(slot);
            }
        }
    }

    /// The bridge's registers. Functions save themselves.
    pub fn state(&self) -> PciHostState {
        let slots = self.lock();
        PciHostState { config_address: slots.config_address, reset_control: slots.reset_control }
    }

    /// To be called after the functions have their states: it maps their BARs.
    pub fn set_state(&self, state: &PciHostState) {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut slots = self.lock();
            slots.config_address = state.config_address;
            slots.reset_control = state.reset_control;
        }
        for slot in 0..SLOTS {
            self.move_bars(slot);
        }
    }
}

/// The slot that a configuration address means: only function 0 on bus 0 exists.
fn target(address: u32) -> Option<usize> {
    let (bus, function) = (address >> 20, address >> 12 & 7);
    (bus == 0 && function == 0).then_some((address >> 15 & 0x1f) as usize)
}

impl Device for PciHost {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= ECAM_OFFSET {
            self.config_read((offset - ECAM_OFFSET) as u32, data);
        } else if offset >= 0xcfc {
            match self.data_address(offset) {
                Some(address) => self.config_read(address, data),
                None => data.fill(0xff),
            }
        } else if offset == CONFIG_PORTS && data.len() == 4 {
            answer(data, u64::from(self.lock().config_address));
        } else if offset == RESET_CONTROL && data.len() == 1 {
            answer(data, u64::from(self.lock().reset_control));
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= ECAM_OFFSET {
            self.config_write((offset - ECAM_OFFSET) as u32, data);
        } else if offset >= 0xcfc {
            if let Some(address) = self.data_address(offset) {
                self.config_write(address, data);
            }
        } else if offset == CONFIG_PORTS && data.len() == 4 {
            self.lock().config_address = value(data) as u32;
        } else if offset == RESET_CONTROL && data.len() == 1 {
            self.lock().reset_control = data[0] & !RESET_CPU;
            if data[0] & RESET_CPU != 0 {
                self.power.request(PowerRequest::Reset);
            }
        }
    }
}

#[cfg(test)]
mod tests;
