//! An IOMMU: Intel's VT-d, between PCI functions and the rest of the machine.
//!
//! A function has a [`Requester`] in the place of memory and of the interrupt
//! controllers. Once the guest has switched translation on, an address that the
//! function uses goes through tables that the guest wrote for it ([`translation`]), and
//! each of its messages through an entry that says which interrupt it may be
//! ([`remapping`]). What the tables do not allow is noted, and the guest is told
//! ([`faults`]). [`registers`] holds the register file, [`invalidation`] the queue of
//! commands in memory.
//!
//! Nothing that was read from a table is kept, so a change in one takes effect at once
//! and invalidations have nothing to forget. Only a route of the I/O APIC, of which an
//! engine has been told, depends on what a table held earlier; [`Iommu::watch`] tells
//! when routes are to be looked at again.
//!
//! What it claims: 3 and 4 levels (39 and 48 bits) with 2 MiB and 1 GiB pages,
//! pass-through, both ways to invalidate, interrupt remapping with 8-bit APIC ids. What it does
//! not: device TLBs, PASIDs, posted interrupts, protected ranges, the advanced fault log.

mod faults;
mod invalidation;
mod registers;
mod remapping;
mod translation;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use guise_engine::memory::vm_memory::{Bytes, GuestAddress};
use guise_engine::{GuestMemory, Msi};

pub use registers::IommuState;

use self::faults::Fault;
use self::registers::Effects;
use crate::bus::Device;
use crate::dma::{Dma, Unreachable};
use crate::irq::MsiSink;

/// Where its registers are, and how many bytes of them there are.
pub const ADDRESS: u64 = 0xfed9_0000;
pub const LENGTH: u64 = 0x1000;

/// Who the I/O APIC is among requesters: a place of its own, on a bus without functions.
pub const IO_APIC: RequesterId = RequesterId { bus: 0xff, device: 31, function: 0 };

/// The bits of an address that its tables may have, and that a function may use.
const ADDRESS_BITS: u32 = 48;

/// Writes there are messages, not memory.
const MESSAGES: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// A PCI function as its requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequesterId {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl RequesterId {
    /// The function in a slot of the root bus.
    pub fn in_slot(slot: u8) -> Self {
        Self { bus: 0, device: slot, function: 0 }
    }

    fn number(self) -> u16 {
        u16::from_be_bytes([self.bus, self.device << 3 | self.function & 7])
    }
}

/// The unit. There is one for all functions of a machine.
pub struct Iommu {
    memory: GuestMemory,
    /// Where messages go that were let through, and its own.
    sink: Arc<dyn MsiSink>,
    /// Called when messages may mean something else than before.
    watcher: OnceLock<Box<dyn Fn() + Send + Sync>>,
    state: Mutex<IommuState>,
}

impl Iommu {
    pub fn new(memory: GuestMemory, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        Arc::new(Self { memory, sink, watcher: OnceLock::new(), state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, IommuState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `watcher` called after each change of what messages mean. The first one stays.
    pub fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        _ = self.watcher.set(Box::new(watcher));
    }

    /// A function's way to memory and to interrupt controllers.
    pub fn requester(self: &Arc<Self>, id: RequesterId) -> Arc<Requester> {
        Arc::new(Requester { iommu: self.clone(), id: id.number(), trusted: false })
    }

    /// The I/O APIC's way. Its messages are what the guest's own redirection entries say,
    /// and no function can forge them: they are not asked who they are from, which allows
    /// entries that were made for the function behind the pin.
    pub fn io_apic(self: &Arc<Self>) -> Arc<Requester> {
        Arc::new(Requester { iommu: self.clone(), id: IO_APIC.number(), trusted: true })
    }

    /// Does what a locked piece of work has left to be done without the lock: nobody
    /// who is called here finds it taken.
    fn carry_out(&self, effects: Effects) {
        for message in effects.messages.into_iter().flatten() {
            self.sink.signal(message);
        }
        if effects.remapping_changed
            && let Some(watcher) = self.watcher.get()
        {
            watcher();
        }
    }

    fn report(&self, fault: Fault) {
        tracing::debug!(?fault, "the IOMMU refused a request");
        let mut effects = Effects::default();
        self.lock().record(fault, &mut effects);
        self.carry_out(effects);
    }

    pub fn reset(&self) {
        *self.lock() = IommuState::default();
        self.carry_out(Effects { remapping_changed: true, ..Effects::default() });
    }

    pub fn state(&self) -> IommuState {
        self.lock().clone()
    }

    /// Loads what was saved. Guest memory, with the tables in it, must be there already.
    pub fn set_state(&self, state: &IommuState) {
        self.lock().clone_from(state);
        self.carry_out(Effects { remapping_changed: true, ..Effects::default() });
    }
}

impl Device for Iommu {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut effects = Effects::default();
        self.lock().write(offset, data, &self.memory, &mut effects);
        self.carry_out(effects);
    }
}

/// What a function has in the place of memory and of the interrupt controllers.
pub struct Requester {
    iommu: Arc<Iommu>,
    id: u16,
    trusted: bool,
}

impl Requester {
    /// What a message of this requester would come to now. Nothing is reported.
    pub fn preview(&self, message: Msi) -> Option<Msi> {
        let source = (!self.trusted).then_some(self.id);
        self.iommu.lock().remap(&self.iommu.memory, self.id, source, message).ok()
    }

    /// Splits an access at the ends of pages and does the parts.
    fn access(
        &self,
        address: u64,
        length: usize,
        write: bool,
        mut part: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), Unreachable>,
    ) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < length {
            let at = address.checked_add(done as u64).ok_or(Unreachable(address))?;
            if MESSAGES.contains(&at) {
                return Err(Unreachable(at));
            }
            // The lock is held for the look at the tables only.
            let found = self.iommu.lock().translate(&self.iommu.memory, self.id, at, write);
            let found = found.map_err(|fault| {
                self.iommu.report(fault);
                Unreachable(at)
            })?;
            let end = length.min(done.saturating_add(found.length as usize));
            part(found.address, done..end)?;
            done = end;
        }
        Ok(())
    }
}

impl Dma for Requester {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Unreachable> {
        self.access(address, data.len(), false, |at, part| {
            Dma::read(&self.iommu.memory, at, &mut data[part])
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Unreachable> {
        self.access(address, data.len(), true, |at, part| {
            Dma::write(&self.iommu.memory, at, &data[part])
        })
    }
}

impl MsiSink for Requester {
    fn signal(&self, message: Msi) {
        let source = (!self.trusted).then_some(self.id);
        let remapped = self.iommu.lock().remap(&self.iommu.memory, self.id, source, message);
        match remapped {
            Ok(message) => self.iommu.sink.signal(message),
            Err(fault) => self.iommu.report(fault),
        }
    }
}

/// A table's entry of 16 bytes, whose halves are each read in one piece; nothing where
/// there is no memory.
fn entry(memory: &GuestMemory, address: u64) -> Option<[u64; 2]> {
    let half = |at| memory.load(GuestAddress(at), std::sync::atomic::Ordering::Acquire).ok();
    Some([half(address)?, half(address.checked_add(8)?)?])
}

#[cfg(test)]
mod tests;
