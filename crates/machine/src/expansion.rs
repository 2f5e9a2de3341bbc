//! What a machine gets besides its board: virtio devices in slots of the PCI bus.
//!
//! The bus owns the functions; here is only remembered which of them are virtio's, so
//! that they can be saved. A guest that lets go of a slot therefore ends its device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use guise_devices::pci::host::SlotError;
use guise_devices::pci::hotplug::{HotplugState, PciHotplug};
use guise_devices::pci::{PciFunction as _, PciHost};
use guise_virtio::transport::VirtioPciState;
use guise_virtio::{VirtioDevice, VirtioPci};
use serde::{Deserialize, Serialize};

use crate::MachineError;
use crate::acpi;
use crate::upstream::Upstream;

/// Saved devices, by slot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ExpansionState {
    functions: BTreeMap<u8, VirtioPciState>,
    hotplug: HotplugState,
}

/// How often it is looked whether a guest has let go of a device.
const INTERVAL: Duration = Duration::from_millis(20);

pub(crate) struct Expansion {
    pci: Arc<PciHost>,
    hotplug: Arc<PciHotplug>,
    upstream: Upstream,
    functions: Mutex<BTreeMap<u8, Weak<VirtioPci>>>,
}

impl Expansion {
    pub fn new(pci: Arc<PciHost>, hotplug: Arc<PciHotplug>, upstream: Upstream) -> Self {
        Expansion { pci, hotplug, upstream, functions: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Weak<VirtioPci>>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a device into a free slot, which it returns.
    pub fn add(&self, device: Arc<dyn VirtioDevice>) -> Result<u8, MachineError> {
        self.fill(device, |slot, function| self.pci.add(slot, function))
    }

    /// The same while the guest runs, which is told.
    pub fn plug(&self, device: Arc<dyn VirtioDevice>) -> Result<u8, MachineError> {
        self.fill(device, |slot, function| self.hotplug.add(slot, function))
    }

    fn fill(
        &self,
        device: Arc<dyn VirtioDevice>,
        fill: impl FnOnce(u8, Arc<VirtioPci>) -> Result<(), SlotError>,
    ) -> Result<u8, MachineError> {
        let refused = |error: &dyn std::fmt::Display| MachineError::Device(error.to_string());
        let slot = self.pci.free_slot().map_err(|error| refused(&error))?;
        let line = self.pci.interrupt_line(slot);
        let (memory, messages) = (self.upstream.memory().clone(), self.upstream.messages(slot));
        let function =
            VirtioPci::new(device, memory, messages, line).map_err(|error| refused(&error))?;
        function.config().set_interrupt_line(acpi::interrupt_of(slot));
        fill(slot, function.clone()).map_err(|error| refused(&error))?;
        self.lock().insert(slot, Arc::downgrade(&function));
        Ok(slot)
    }

    /// Asks the guest to empty a slot, and waits. Says whether it has.
    pub fn unplug(&self, slot: u8, limit: Duration) -> bool {
        let present = || self.pci.occupied() >> slot & 1 != 0;
        let deadline = Instant::now() + limit;
        if present() {
            self.hotplug.request_removal(slot);
        }
        while present() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(INTERVAL);
        }
        true
    }

    /// Those that are still in their slots.
    fn present(&self) -> BTreeMap<u8, Arc<VirtioPci>> {
        let functions = self.lock();
        let present = functions
            .iter()
            .filter_map(|(&slot, function)| function.upgrade().map(|function| (slot, function)));
        present.collect()
    }

    pub fn state(&self) -> ExpansionState {
        let present = self.present();
        let functions = present.iter().map(|(&slot, function)| (slot, function.state())).collect();
        ExpansionState { functions, hotplug: self.hotplug.state() }
    }

    pub fn set_state(&self, state: &ExpansionState) -> Result<(), MachineError> {
        let present = self.present();
        if !present.keys().eq(state.functions.keys()) {
            let reason = "it has other devices; give the machine those that it was saved with";
            return Err(MachineError::Saved(reason.to_owned()));
        }
        for (slot, function) in &present {
            function
                .set_state(&state.functions[slot])
                .map_err(|error| MachineError::Saved(format!("PCI slot {slot}: {error}")))?;
        }
        self.hotplug.set_state(&state.hotplug);
        Ok(())
    }
}

impl Drop for Expansion {
    /// The bus and its devices hold each other; devices have threads and files.
    fn drop(&mut self) {
        let slots: Vec<u8> = self.lock().keys().copied().collect();
        for slot in slots {
            self.pci.remove(slot);
        }
    }
}
