//! What was refused, and how the guest learns of it.
//!
//! Eight registers record faults, one after the other. A fault of a requester that has
//! one waiting there is not recorded again, or one broken device would fill them all. A
//! message goes out when the first fault waits, and no other until all have been taken.

use super::registers::{Effects, IommuState};

/// How many faults can wait to be looked at.
pub(super) const RECORDS: usize = 8;

/// Fault status bits.
pub(super) const OVERFLOW: u32 = 1 << 0;
pub(super) const PENDING: u32 = 1 << 1;
pub(super) const QUEUE_ERROR: u32 = 1 << 4;
/// What a message has been sent for already while any of it is set.
const CONDITIONS: u32 = OVERFLOW | PENDING | QUEUE_ERROR;
/// Where the status tells which record came first.
const FIRST_RECORD: u32 = 8;

/// In the upper half of a record.
pub(super) const RECORDED: u64 = 1 << 63;
const READ: u64 = 1 << 62;
const REASON: u32 = 32;

/// Why a request was refused, as the architecture numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    RootNotPresent = 0x01,
    ContextNotPresent = 0x02,
    ContextInvalid = 0x03,
    AddressTooLarge = 0x04,
    WriteForbidden = 0x05,
    ReadForbidden = 0x06,
    TableUnreachable = 0x07,
    RootUnreachable = 0x08,
    ContextUnreachable = 0x09,
    RootReserved = 0x0a,
    ContextReserved = 0x0b,
    TableReserved = 0x0c,
    RequestReserved = 0x20,
    IndexTooLarge = 0x21,
    RemapNotPresent = 0x22,
    RemapUnreachable = 0x23,
    RemapReserved = 0x24,
    CompatibilityBlocked = 0x25,
    SourceInvalid = 0x26,
}

/// A refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub reason: Reason,
    pub source: u16,
    /// The page of a DMA request; of an interrupt, its index in bits 48 to 63.
    pub information: u64,
    pub read: bool,
    /// Not to be recorded: the guest has said so in the entry.
    pub silent: bool,
}

impl IommuState {
    pub(super) fn record(&mut self, fault: Fault, effects: &mut Effects) {
        if fault.silent || self.fault_status & OVERFLOW != 0 {
            return;
        }
        let waiting =
            |record: &[u64; 2]| record[1] & RECORDED != 0 && record[1] as u16 == fault.source;
        if self.faults.iter().any(waiting) {
            return;
        }
        let index = usize::from(self.next_fault) % RECORDS;
        if self.faults[index][1] & RECORDED != 0 {
            return self.raise_fault(OVERFLOW, effects);
        }
        let read = if fault.read { READ } else { 0 };
        let reason = u64::from(fault.reason as u8) << REASON;
        self.faults[index] =
            [fault.information & !0xfff, RECORDED | read | reason | u64::from(fault.source)];
        self.next_fault = ((index + 1) % RECORDS) as u8;
        if self.fault_status & PENDING == 0 {
            self.fault_status &= !(0xff << FIRST_RECORD);
            self.fault_status |= (index as u32) << FIRST_RECORD;
        }
        self.raise_fault(PENDING, effects);
    }

    /// Notes a condition. It is told if nothing else waits to be looked at.
    pub(super) fn raise_fault(&mut self, condition: u32, effects: &mut Effects) {
        let told = self.fault_status & CONDITIONS != 0;
        self.fault_status |= condition;
        if !told {
            effects.send(self.fault_event.raise());
        }
    }

    /// The guest has taken the record's fault, or not.
    pub(super) fn clear_record(&mut self, index: usize) {
        self.faults[index][1] &= !RECORDED;
        if self.faults.iter().all(|record| record[1] & RECORDED == 0) {
            self.fault_status &= !PENDING;
            self.settle_fault_event();
        }
    }

    /// Clears conditions, except for records, which are cleared one by one.
    pub(super) fn clear_conditions(&mut self, conditions: u32) {
        self.fault_status &= !(conditions & (OVERFLOW | QUEUE_ERROR));
        self.settle_fault_event();
    }

    /// A message that was held back has no reason any more once all has been seen.
    fn settle_fault_event(&mut self) {
        if self.fault_status & CONDITIONS == 0 {
            self.fault_event.withdraw();
        }
    }
}
