//! Hot plug by ACPI: tells the guest which slots were filled and which are to be
//! emptied, and empties those that the guest lets go of.
//!
//! Three 32-bit registers with a bit for each slot: filled since the last read; to be
//! emptied; and, when written, eject. A change raises a general-purpose event, whose
//! method in the DSDT reads the registers and notifies the slots' devices.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::function::PciFunction;
use super::host::{PciHost, SLOTS, SlotError};
use crate::acpi::Acpi;
use crate::bus::{Device, answer, value};

/// The general-purpose event: method `_E01` of the DSDT.
pub const EVENT: u32 = 1;
/// Registers: slots that were filled, slots to be emptied, eject.
pub const ADDED: u64 = 0x0;
pub const REMOVING: u64 = 0x4;
pub const EJECT: u64 = 0x8;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    added: u32,
    removing: u32,
}

/// The hot-plug registers.
pub struct PciHotplug {
    host: Arc<PciHost>,
    acpi: Arc<Acpi>,
    state: Mutex<HotplugState>,
}

impl PciHotplug {
    pub const LENGTH: u64 = 0xc;

    pub fn new(host: Arc<PciHost>, acpi: Arc<Acpi>) -> Arc<Self> {
        Arc::new(Self { host, acpi, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HotplugState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills a slot while the guest runs, and tells it.
    pub fn add(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        self.host.add(slot, function)?;
        self.lock().added |= 1 << slot;
        self.acpi.raise_event(EVENT);
        Ok(())
    }

    /// Asks the guest to let go of a slot; it is emptied when the guest does. The
    /// bridge itself stays.
    pub fn request_removal(&self, slot: u8) {
        if slot == 0 || usize::from(slot) >= SLOTS {
            return;
        }
        self.lock().removing |= 1 << slot;
        self.acpi.raise_event(EVENT);
    }

    pub fn reset(&self) {
        *self.lock() = HotplugState::default();
    }

    pub fn state(&self) -> HotplugState {
        self.lock().clone()
    }

    pub fn set_state(&self, state: &HotplugState) {
        self.lock().clone_from(state);
    }
}

impl Device for PciHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        let register = match offset {
            ADDED => std::mem::take(&mut state.added),
            REMOVING => state.removing,
            // Every slot but the bridge's can be emptied.
            EJECT => !1,
            _ => u32::MAX,
        };
        answer(data, u64::from(register));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let slots = value(data) as u32 & !1;
        if offset != EJECT || slots == 0 {
            return;
        }
        self.lock().removing &= !slots;
        for slot in 1..SLOTS as u8 {
            if slots >> slot & 1 != 0 {
                self.host.remove(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests;
