//! The register file. All registers are seen as words of 32 bits; a wider access is one
//! to the lower word and then one to the upper one, which is where the bits are that
//! start something.

use guise_engine::{GuestMemory, Msi};
use serde::{Deserialize, Serialize};

use super::ADDRESS_BITS;
use super::faults::{RECORDED, RECORDS};
use crate::bus::{answer, value};

const VERSION: u64 = 0x00;
const CAPABILITIES: u64 = 0x08;
const MORE_CAPABILITIES: u64 = 0x10;
const COMMAND: u64 = 0x18;
const STATUS: u64 = 0x1c;
const ROOT_TABLE: u64 = 0x20;
const CONTEXT_COMMAND: u64 = 0x28;
const FAULT_STATUS: u64 = 0x34;
/// Control, data, address; the upper half of the address is not there.
const FAULT_EVENT: u64 = 0x38;
const QUEUE_HEAD: u64 = 0x80;
const QUEUE_TAIL: u64 = 0x88;
const QUEUE_ADDRESS: u64 = 0x90;
const COMPLETION_STATUS: u64 = 0x9c;
const COMPLETION_EVENT: u64 = 0xa0;
const INTERRUPT_TABLE: u64 = 0xb8;
const INVALIDATE_ADDRESS: u64 = 0xf0;
const INVALIDATE_TLB: u64 = 0xf8;
const FAULT_RECORDS: u64 = 0x220;
const FAULT_RECORDS_END: u64 = FAULT_RECORDS + 16 * RECORDS as u64;

/// Version 1.0.
const VERSION_VALUE: u32 = 0x10;

/// The largest exponent of pages that one invalidation may name.
pub(super) const MAX_MASK: u64 = 18;
const CAPABILITIES_VALUE: u64 = {
    const DOMAINS_16_BITS: u64 = 6;
    const LEVELS_3_AND_4: u64 = 0b110 << 8;
    const WIDTH: u64 = (ADDRESS_BITS as u64 - 1) << 16;
    const RECORDS_AT: u64 = (FAULT_RECORDS / 16) << 24;
    const PAGES_2M_AND_1G: u64 = 0b11 << 34;
    const PAGE_SELECTIVE: u64 = 1 << 39;
    const RECORD_COUNT: u64 = (RECORDS as u64 - 1) << 40;
    DOMAINS_16_BITS
        | LEVELS_3_AND_4
        | WIDTH
        | RECORDS_AT
        | PAGES_2M_AND_1G
        | PAGE_SELECTIVE
        | RECORD_COUNT
        | MAX_MASK << 48
};
const MORE_CAPABILITIES_VALUE: u64 = {
    const COHERENT: u64 = 1 << 0;
    const QUEUE: u64 = 1 << 1;
    const REMAPPING: u64 = 1 << 3;
    const PASS_THROUGH: u64 = 1 << 6;
    const SNOOP: u64 = 1 << 7;
    const TLB_AT: u64 = (INVALIDATE_ADDRESS / 16) << 8;
    const MAX_HANDLE_MASK: u64 = 15 << 20;
    COHERENT | QUEUE | REMAPPING | PASS_THROUGH | SNOOP | TLB_AT | MAX_HANDLE_MASK
};

/// Bits of command and status.
pub(super) const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
pub(super) const QUEUE: u32 = 1 << 26;
pub(super) const REMAPPING: u32 = 1 << 25;
const SET_INTERRUPT_TABLE: u32 = 1 << 24;
pub(super) const COMPATIBILITY: u32 = 1 << 23;
/// Those that keep their value; the rest do something once.
const LASTING: u32 = TRANSLATION | QUEUE | REMAPPING | COMPATIBILITY;

/// In the upper words of both invalidation registers.
const INVALIDATE: u32 = 1 << 31;

const EVENT_MASKED: u32 = 1 << 31;
const EVENT_PENDING: u32 = 1 << 30;

/// A message of the unit's own, which the guest may hold back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    masked: bool,
    pending: bool,
    data: u32,
    address: u32,
}

impl Default for Event {
    fn default() -> Self {
        Self { masked: true, pending: false, data: 0, address: 0 }
    }
}

impl Event {
    fn message(&self) -> Msi {
        Msi { address: u64::from(self.address), data: self.data }
    }

    /// The message to send, unless it has to wait.
    pub fn raise(&mut self) -> Option<Msi> {
        self.pending = self.masked;
        (!self.masked).then(|| self.message())
    }

    pub fn withdraw(&mut self) {
        self.pending = false;
    }

    fn read(&self, word: u64) -> u32 {
        let bit = |set, bit| if set { bit } else { 0 };
        match word {
            0 => bit(self.masked, EVENT_MASKED) | bit(self.pending, EVENT_PENDING),
            4 => self.data,
            _ => self.address,
        }
    }

    fn write(&mut self, word: u64, value: u32) -> Option<Msi> {
        match word {
            0 => {
                self.masked = value & EVENT_MASKED != 0;
                return if self.pending { self.raise() } else { None };
            }
            4 => self.data = value & 0xffff,
            _ => self.address = value & !3,
        }
        None
    }
}

/// What there is to do once the registers are not locked any more.
#[derive(Default)]
pub(super) struct Effects {
    /// One of each kind at most: a second one would wait for the first to be seen.
    pub messages: [Option<Msi>; 2],
    pub remapping_changed: bool,
}

impl Effects {
    pub fn send(&mut self, message: Option<Msi>) {
        if let Some(place) = self.messages.iter_mut().find(|place| place.is_none()) {
            *place = message;
        }
    }
}

/// The registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuState {
    pub(super) status: u32,
    /// As the guest wrote them, and as it has put them to use.
    root_table: u64,
    pub(super) root_table_used: u64,
    interrupt_table: u64,
    pub(super) interrupt_table_used: u64,
    context_command: u64,
    invalidate_address: u64,
    invalidate_tlb: u64,
    pub(super) fault_status: u32,
    pub(super) fault_event: Event,
    pub(super) faults: [[u64; 2]; RECORDS],
    /// The record that the next fault goes to.
    pub(super) next_fault: u8,
    pub(super) queue_head: u64,
    pub(super) queue_tail: u64,
    pub(super) queue_address: u64,
    /// Whether a wait that asked for an interrupt is over.
    pub(super) completed: bool,
    pub(super) completion_event: Event,
}

/// The word of a wide register at an offset.
fn half(register: u64, at: u64) -> u32 {
    if at & 4 == 0 { register as u32 } else { (register >> 32) as u32 }
}

fn set_half(register: &mut u64, at: u64, value: u32) {
    let shift = if at & 4 == 0 { 0 } else { 32 };
    *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

impl IommuState {
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let aligned = offset & !3;
        let wide = u64::from(self.word(aligned)) | u64::from(self.word(aligned + 4)) << 32;
        answer(data, wide >> (8 * (offset & 3)));
    }

    fn word(&self, at: u64) -> u32 {
        match at & !4 {
            CAPABILITIES => half(CAPABILITIES_VALUE, at),
            MORE_CAPABILITIES => half(MORE_CAPABILITIES_VALUE, at),
            ROOT_TABLE => half(self.root_table, at),
            CONTEXT_COMMAND => half(self.context_command, at),
            QUEUE_HEAD => half(self.queue_head, at),
            QUEUE_TAIL => half(self.queue_tail, at),
            QUEUE_ADDRESS => half(self.queue_address, at),
            INTERRUPT_TABLE => half(self.interrupt_table, at),
            INVALIDATE_TLB => half(self.invalidate_tlb, at),
            FAULT_RECORDS..FAULT_RECORDS_END => {
                let record = self.faults[((at - FAULT_RECORDS) / 16) as usize];
                half(record[(at / 8 % 2) as usize], at)
            }
            _ => match at {
                VERSION => VERSION_VALUE,
                STATUS => self.status,
                FAULT_STATUS => self.fault_status,
                FAULT_EVENT..0x44 => self.fault_event.read(at - FAULT_EVENT),
                COMPLETION_STATUS => u32::from(self.completed),
                COMPLETION_EVENT..0xac => self.completion_event.read(at - COMPLETION_EVENT),
                _ => 0,
            },
        }
    }

    /// Whole words only, as the architecture demands.
    pub(super) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        memory: &GuestMemory,
        effects: &mut Effects,
    ) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            self.write_word(at, value(word) as u32, memory, effects);
        }
    }

    fn write_word(&mut self, at: u64, value: u32, memory: &GuestMemory, effects: &mut Effects) {
        match at & !4 {
            ROOT_TABLE => {
                set_half(&mut self.root_table, at, value);
                self.root_table &= !0xfff;
            }
            INTERRUPT_TABLE => {
                set_half(&mut self.interrupt_table, at, value);
                self.interrupt_table &= !0xff0;
            }
            CONTEXT_COMMAND => {
                set_half(&mut self.context_command, at, value);
                if at & 4 != 0 && value & INVALIDATE != 0 {
                    // Done, and as widely as was asked for.
                    let asked = self.context_command >> 61 & 3;
                    self.context_command &= !(1 << 63 | 3 << 59);
                    self.context_command |= asked << 59;
                }
            }
            INVALIDATE_ADDRESS => set_half(&mut self.invalidate_address, at, value),
            INVALIDATE_TLB => {
                set_half(&mut self.invalidate_tlb, at, value);
                if at & 4 != 0 && value & INVALIDATE != 0 {
                    let asked = self.invalidate_tlb >> 60 & 3;
                    self.invalidate_tlb &= !(1 << 63 | 3 << 57);
                    self.invalidate_tlb |= asked << 57;
                }
            }
            QUEUE_ADDRESS => {
                set_half(&mut self.queue_address, at, value);
                self.queue_address &= !0xff8;
            }
            QUEUE_TAIL if at == QUEUE_TAIL => {
                self.queue_tail = u64::from(value) & 0x7_fff0;
                self.run_queue(memory, effects);
            }
            FAULT_RECORDS..FAULT_RECORDS_END => {
                let clears = at % 16 == 12 && u64::from(value) << 32 & RECORDED != 0;
                if clears {
                    self.clear_record(((at - FAULT_RECORDS) / 16) as usize);
                }
            }
            _ => match at {
                COMMAND => self.command(value, memory, effects),
                FAULT_STATUS => {
                    self.clear_conditions(value);
                    // It may have waited for this.
                    self.run_queue(memory, effects);
                }
                FAULT_EVENT..0x44 => {
                    effects.send(self.fault_event.write(at - FAULT_EVENT, value));
                }
                COMPLETION_STATUS if value & 1 != 0 => {
                    self.completed = false;
                    self.completion_event.withdraw();
                }
                COMPLETION_EVENT..0xac => {
                    effects.send(self.completion_event.write(at - COMPLETION_EVENT, value));
                }
                _ => {}
            },
        }
    }

    fn command(&mut self, value: u32, memory: &GuestMemory, effects: &mut Effects) {
        if value & SET_ROOT != 0 {
            self.root_table_used = self.root_table;
            self.status |= SET_ROOT;
        }
        if value & SET_INTERRUPT_TABLE != 0 {
            self.interrupt_table_used = self.interrupt_table;
            self.status |= SET_INTERRUPT_TABLE;
            effects.remapping_changed = true;
        }
        let changed = (self.status ^ value) & LASTING;
        self.status ^= changed;
        if changed & QUEUE != 0 {
            self.queue_head = 0;
            self.run_queue(memory, effects);
        }
        effects.remapping_changed |= changed & (REMAPPING | COMPATIBILITY) != 0;
    }
}
