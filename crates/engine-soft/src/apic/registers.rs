//! One APIC's registers: requests, priorities, local vector table.

use super::message::{DeliveryMode, LogicalId};
use super::timer::Timer;

/// Offsets in the register page; an MSR's number is 0x800 plus a sixteenth of them.
pub mod offset {
    pub const ID: u32 = 0x020;
    pub const VERSION: u32 = 0x030;
    pub const TASK_PRIORITY: u32 = 0x080;
    pub const ARBITRATION_PRIORITY: u32 = 0x090;
    pub const PROCESSOR_PRIORITY: u32 = 0x0a0;
    pub const END_OF_INTERRUPT: u32 = 0x0b0;
    pub const LOGICAL_DESTINATION: u32 = 0x0d0;
    pub const DESTINATION_FORMAT: u32 = 0x0e0;
    pub const SPURIOUS: u32 = 0x0f0;
    pub const IN_SERVICE: u32 = 0x100;
    pub const TRIGGER_MODE: u32 = 0x180;
    pub const REQUEST: u32 = 0x200;
    pub const ERROR_STATUS: u32 = 0x280;
    pub const COMMAND_LOW: u32 = 0x300;
    pub const COMMAND_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Version 0x14 with six local vectors.
pub const VERSION: u32 = 0x0005_0014;

/// Indices into the local vector table, in the order of their registers.
pub const TIMER: usize = 0;
pub const LINT0: usize = 3;
pub const ERROR: usize = 5;
pub const LVTS: usize = 6;

/// Bits that each local vector has: timer, thermal, performance, LINT0, LINT1, error.
pub const LVT_BITS: [u32; LVTS] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
pub const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;

pub const SPURIOUS_ENABLE: u32 = 1 << 8;

/// Bits of the error status register.
pub const ERROR_SEND_VECTOR: u32 = 1 << 5;
pub const ERROR_RECEIVE_VECTOR: u32 = 1 << 6;
pub const ERROR_ADDRESS: u32 = 1 << 7;

/// Bits of the APIC base MSR.
pub const BASE_BSP: u64 = 1 << 8;
pub const BASE_X2APIC: u64 = 1 << 10;
pub const BASE_ENABLE: u64 = 1 << 11;
pub const BASE_ADDRESS: u64 = 0xf_ffff_ffff_f000;
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// A bit for each vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors(pub [u32; 8]);

impl Vectors {
    pub fn set(&mut self, vector: u8, on: bool) {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        if on { *word |= bit } else { *word &= !bit }
    }

    pub fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}

#[derive(Debug)]
pub struct Registers {
    pub id: u32,
    /// The APIC base MSR.
    pub base: u64,
    pub task_priority: u8,
    /// Logical destination and destination format, as the memory-mapped page has them.
    pub logical: u32,
    pub format: u32,
    pub spurious: u32,
    pub in_service: Vectors,
    pub trigger: Vectors,
    pub request: Vectors,
    /// What the guest reads, and what has happened since it last wrote.
    pub error: u32,
    pub new_errors: u32,
    pub command: u64,
    pub lvt: [u32; LVTS],
    pub timer: Timer,
    /// The level of LINT0, to which the 8259 pair is wired.
    pub external: bool,
    /// NMIs that came: one that is about to be taken, and one more.
    pub nmis: u8,
    pub init: bool,
    pub start_up: Option<u8>,
}

impl Registers {
    pub fn new(id: u32) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut registers = Self {
            id,
            base: DEFAULT_BASE | BASE_ENABLE | bsp,
            task_priority: 0,
            logical: 0,
            format: 0,
            spurious: 0,
            in_service: Vectors::default(),
            trigger: Vectors::default(),
            request: Vectors::default(),
            error: 0,
            new_errors: 0,
            command: 0,
            lvt: [0; LVTS],
            timer: Timer::default(),
            external: false,
            nmis: 0,
            init: false,
            start_up: None,
        };
        registers.reset();
        registers
    }

    /// What INIT and disabling the APIC do: all registers but the id and the base.
    pub fn reset(&mut self) {
        self.task_priority = 0;
        self.logical = 0;
        self.format = u32::MAX;
        self.spurious = 0xff;
        self.in_service = Vectors::default();
        self.trigger = Vectors::default();
        self.request = Vectors::default();
        self.error = 0;
        self.new_errors = 0;
        self.command = 0;
        self.lvt = [LVT_MASKED; LVTS];
        self.timer = Timer::default();
        if self.base & BASE_BSP != 0 {
            // Firmware leaves the boot processor in virtual wire mode, with the 8259
            // pair behind LINT0. There is no firmware that would do it here.
            self.lvt[LINT0] = 7 << 8;
        }
    }

    pub fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    pub fn x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC
    }

    /// Enabled by the spurious vector register too.
    pub fn accepts_fixed(&self) -> bool {
        self.enabled() && self.spurious & SPURIOUS_ENABLE != 0
    }

    pub fn logical_id(&self) -> LogicalId {
        if self.x2apic() {
            return LogicalId::x2(self.id);
        }
        let id = (self.logical >> 24) as u8;
        if self.format >> 28 == 0xf { LogicalId::Flat(id) } else { LogicalId::Cluster(id) }
    }

    pub fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 {
            self.task_priority
        } else {
            in_service & 0xf0
        }
    }

    /// The vector that would be delivered now.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.request.highest()?;
        (self.enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Whether the 8259 pair's request reaches the processor.
    pub fn external_pending(&self) -> bool {
        let lint0 = self.lvt[LINT0];
        let wired = lint0 & LVT_MASKED == 0 && DeliveryMode::of(lint0) == DeliveryMode::External;
        self.external && (!self.enabled() || wired)
    }

    /// Pends a fixed interrupt.
    pub fn pend(&mut self, vector: u8, level_triggered: bool) {
        if vector < 16 {
            self.note_error(ERROR_RECEIVE_VECTOR);
        } else if self.accepts_fixed() {
            self.request.set(vector, true);
            self.trigger.set(vector, level_triggered);
        }
    }

    pub fn pend_nmi(&mut self) {
        self.nmis = (self.nmis + 1).min(2);
    }

    /// A local source fired.
    pub fn local(&mut self, index: usize) {
        let lvt = self.lvt[index];
        if lvt & LVT_MASKED != 0 {
            return;
        }
        let mode = if index == TIMER || index == ERROR {
            DeliveryMode::Fixed
        } else {
            DeliveryMode::of(lvt)
        };
        match mode {
            // Only LINT0 can be level-triggered: LINT1 always is edge.
            DeliveryMode::Fixed => {
                self.pend(lvt as u8, index == LINT0 && lvt & LVT_LEVEL != 0);
            }
            DeliveryMode::Nmi => self.pend_nmi(),
            _ => {}
        }
    }

    pub fn note_error(&mut self, error: u32) {
        let is_new = self.new_errors & error == 0;
        self.new_errors |= error;
        // The error vector may itself be an illegal one, which is no new error.
        if is_new && self.lvt[ERROR] as u8 >= 16 {
            self.local(ERROR);
        }
    }

    /// The 8259 pair's line changed.
    pub fn set_external(&mut self, level: bool) {
        let rising = level && !self.external;
        self.external = level;
        if rising && self.enabled() {
            self.local(LINT0);
        }
    }

    /// Moves the deliverable vector into service.
    pub fn accept(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.request.set(vector, false);
        self.in_service.set(vector, true);
        Some(vector)
    }

    /// Ends the highest vector in service. Returns it if it was level-triggered.
    pub fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = self.in_service.highest()?;
        self.in_service.set(vector, false);
        self.trigger.has(vector).then_some(vector)
    }

    /// The spurious vector register. A disabled APIC has all its local vectors masked.
    pub fn set_spurious(&mut self, value: u32) {
        self.spurious = value & 0x3ff;
        if self.spurious & SPURIOUS_ENABLE == 0 {
            for lvt in &mut self.lvt {
                *lvt |= LVT_MASKED;
            }
        }
    }

    pub fn set_lvt(&mut self, index: usize, value: u32, now: u64) {
        let mut value = value & LVT_BITS[index];
        if self.spurious & SPURIOUS_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == TIMER {
            // A count that has ended is not started again by a change of mode.
            if self.timer.expire(now) {
                self.local(TIMER);
            }
            self.timer.set_mode(value, now);
        }
        self.lvt[index] = value;
    }
}
