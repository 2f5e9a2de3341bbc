//! Interrupt remapping: from a message to the interrupt that it may be.
//!
//! A message in the remappable format is an index into a table of the guest's. One in
//! the format of old is let through or not, as the guest has chosen.

use guise_engine::{GuestMemory, Msi};

use super::entry;
use super::faults::{Fault, Reason};
use super::registers::{COMPATIBILITY, IommuState, REMAPPING};

/// In a message's address: which format it has, and whether its data has more of the index.
const REMAPPABLE: u64 = 1 << 4;
const HAS_SUBHANDLE: u64 = 1 << 3;

const PRESENT: u64 = 1 << 0;
const FAULTS_DISABLED: u64 = 1 << 1;
/// Bits that no entry may have: in the lower half also the posted format's, and those
/// of an APIC id beyond 8 bits.
const RESERVED: [u64; 2] = [0xffff_00ff_ff00_f000, !0xf_ffff];

impl IommuState {
    /// `requester` is who faults are laid to, and `source` who the entry has to name, if
    /// that is asked.
    pub(super) fn remap(
        &self,
        memory: &GuestMemory,
        requester: u16,
        source: Option<u16>,
        message: Msi,
    ) -> Result<Msi, Fault> {
        if self.status & REMAPPING == 0 {
            return Ok(message);
        }
        let fault = |reason, index: u32, silent| Fault {
            reason,
            source: requester,
            information: u64::from(index) << 48,
            read: false,
            silent,
        };
        let Msi { address, data } = message;
        if address >> 20 != 0xfee {
            // What is no message at all is a write to memory that is not there.
            return Err(fault(Reason::RequestReserved, 0, true));
        }
        if address & REMAPPABLE == 0 {
            let through = self.status & COMPATIBILITY != 0;
            return through.then_some(message).ok_or(fault(Reason::CompatibilityBlocked, 0, false));
        }
        let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u32;
        let index = match address & HAS_SUBHANDLE {
            0 => handle,
            _ if data >> 16 != 0 => return Err(fault(Reason::RequestReserved, handle, false)),
            _ => handle + data,
        };
        let table = self.interrupt_table_used;
        if index >= 2 << (table & 0xf) {
            return Err(fault(Reason::IndexTooLarge, index, false));
        }
        let at = (table & !0xfff).wrapping_add(16 * u64::from(index));
        let [low, high] =
            read_whole(memory, at).ok_or(fault(Reason::RemapUnreachable, index, false))?;
        let silent = low & FAULTS_DISABLED != 0;
        if low & PRESENT == 0 {
            return Err(fault(Reason::RemapNotPresent, index, silent));
        }
        let verification = high >> 18 & 3;
        if low & RESERVED[0] != 0 || high & RESERVED[1] != 0 || verification == 3 {
            return Err(fault(Reason::RemapReserved, index, silent));
        }
        if source.is_some_and(|source| !is_named(high, source)) {
            return Err(fault(Reason::SourceInvalid, index, silent));
        }
        Ok(interrupt(low))
    }
}

/// An entry as it was at one moment, even if the guest replaces it as a whole just now.
fn read_whole(memory: &GuestMemory, at: u64) -> Option<[u64; 2]> {
    let mut found = entry(memory, at)?;
    // A guest that does nothing but write entries gets one that it has written halves of.
    for _ in 0..4 {
        let again = entry(memory, at)?;
        if again == found {
            break;
        }
        found = again;
    }
    Some(found)
}

/// Whether the upper half of an entry is made out to this requester.
fn is_named(high: u64, source: u16) -> bool {
    let named = high as u16;
    match high >> 18 & 3 {
        0 => true,
        // Some bits of the function's number may be left out.
        1 => {
            let compared: u16 = [0xffff, 0xfffb, 0xfff9, 0xfff8][(high >> 16 & 3) as usize];
            (named ^ source) & compared == 0
        }
        _ => {
            let [first, last] = named.to_be_bytes();
            (first..=last).contains(&source.to_be_bytes()[0])
        }
    }
}

/// The message that the lower half of an entry stands for.
fn interrupt(low: u64) -> Msi {
    let bit = |at: u32| low >> at & 1;
    let (vector, delivery, destination) = (low >> 16 & 0xff, low >> 5 & 7, low >> 40 & 0xff);
    let (logical, hint, level) = (bit(2), bit(3), bit(4));
    Msi {
        address: 0xfee0_0000 | destination << 12 | hint << 3 | logical << 2,
        data: (vector | delivery << 8 | 1 << 14 | level << 15) as u32,
    }
}
