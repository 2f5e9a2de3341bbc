//! The registers as the guest reaches them: as a page of memory (xAPIC) and as MSRs
//! (x2APIC). The page ignores what makes no sense and notes an error; an MSR refuses
//! it, which becomes a general protection fault.

use super::message::Message;
use super::registers::{
    BASE_ADDRESS, BASE_BSP, BASE_ENABLE, BASE_X2APIC, ERROR_ADDRESS, ERROR_SEND_VECTOR, LVT_BITS,
    LVTS, Registers, TIMER, VERSION, offset,
};

/// The access is a general protection fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What a write asks of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// A level-triggered vector ended: the I/O APICs want to know.
    EndOfInterrupt(u8),
    Send(Message),
}

impl From<Option<u8>> for Effect {
    fn from(ended: Option<u8>) -> Self {
        ended.map_or(Effect::None, Effect::EndOfInterrupt)
    }
}

/// Reserved bits of the 64-bit interrupt command register.
const COMMAND_RESERVED: u64 = 0xfff3_2000;
/// Delivery status reads as idle.
const COMMAND_BUSY: u32 = 1 << 12;

fn lvt_index(register: u32) -> Option<usize> {
    let in_table = (offset::LVT_TIMER..=offset::LVT_ERROR).contains(&register);
    in_table.then(|| ((register - offset::LVT_TIMER) >> 4) as usize)
}

impl Registers {
    /// What both ways of access read the same.
    fn read_common(&self, register: u32, now: u64) -> Option<u32> {
        let word = ((register & 0x7f) >> 4) as usize;
        Some(match register {
            offset::VERSION => VERSION,
            offset::TASK_PRIORITY => u32::from(self.task_priority),
            offset::PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
            offset::SPURIOUS => self.spurious,
            offset::IN_SERVICE..offset::TRIGGER_MODE => self.in_service.0[word],
            offset::TRIGGER_MODE..offset::REQUEST => self.trigger.0[word],
            offset::REQUEST..offset::ERROR_STATUS => self.request.0[word],
            offset::ERROR_STATUS => self.error,
            offset::INITIAL_COUNT => self.timer.initial,
            offset::CURRENT_COUNT => self.timer.current(now),
            offset::DIVIDE => self.timer.divide,
            _ => self.lvt[lvt_index(register)?],
        })
    }

    /// A read of the page. `register` is a multiple of 16.
    pub fn read_page(&mut self, register: u32, now: u64) -> u32 {
        match register {
            offset::ID => self.id << 24,
            offset::ARBITRATION_PRIORITY => u32::from(self.processor_priority()),
            offset::END_OF_INTERRUPT => 0,
            offset::LOGICAL_DESTINATION => self.logical,
            offset::DESTINATION_FORMAT => self.format,
            offset::COMMAND_LOW => self.command as u32,
            offset::COMMAND_HIGH => (self.command >> 32) as u32,
            _ => self.read_common(register, now).unwrap_or_else(|| {
                self.note_error(ERROR_ADDRESS);
                0
            }),
        }
    }

    pub fn write_page(&mut self, register: u32, value: u32, now: u64) -> Effect {
        match register {
            offset::TASK_PRIORITY => self.task_priority = value as u8,
            offset::END_OF_INTERRUPT => return self.end_of_interrupt().into(),
            offset::LOGICAL_DESTINATION => self.logical = value & 0xff00_0000,
            offset::DESTINATION_FORMAT => self.format = value | 0x0fff_ffff,
            offset::SPURIOUS => self.set_spurious(value),
            offset::ERROR_STATUS => self.latch_errors(),
            offset::COMMAND_HIGH => {
                let high = u64::from(value & 0xff00_0000) << 32;
                self.command = self.command & 0xffff_ffff | high;
            }
            offset::COMMAND_LOW => {
                let low = value & !(COMMAND_RESERVED as u32) & !COMMAND_BUSY;
                self.command = self.command & !0xffff_ffff | u64::from(low);
                let high = (self.command >> 32) as u32;
                return self.send(Message::from_xapic_icr(low, high));
            }
            offset::INITIAL_COUNT => self.timer.set_initial(value, now),
            offset::DIVIDE => self.timer.set_divide(value, now),
            // Read-only, and not worth an error on real processors either.
            offset::ID
            | offset::VERSION
            | offset::ARBITRATION_PRIORITY
            | offset::PROCESSOR_PRIORITY
            | offset::CURRENT_COUNT
            | offset::IN_SERVICE..offset::ERROR_STATUS => {}
            _ => match lvt_index(register) {
                Some(index) => self.set_lvt(index, value, now),
                None => self.note_error(ERROR_ADDRESS),
            },
        }
        Effect::None
    }

    /// A read of MSR 0x800 and up; `register` is the page offset that it stands for.
    pub fn read_msr(&mut self, register: u32, now: u64) -> Result<u64, Refused> {
        if !self.x2apic() {
            return Err(Refused);
        }
        match register {
            offset::ID => Ok(u64::from(self.id)),
            offset::LOGICAL_DESTINATION => {
                Ok(u64::from((self.id >> 4) << 16 | 1 << (self.id & 15)))
            }
            offset::COMMAND_LOW => Ok(self.command),
            _ => self.read_common(register, now).map(u64::from).ok_or(Refused),
        }
    }

    pub fn write_msr(&mut self, register: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        if !self.x2apic() {
            return Err(Refused);
        }
        if register == offset::COMMAND_LOW {
            if value & COMMAND_RESERVED != 0 {
                return Err(Refused);
            }
            self.command = value & !u64::from(COMMAND_BUSY);
            let (low, high) = (self.command as u32, (self.command >> 32) as u32);
            return Ok(self.send(Message::from_icr(low, high)));
        }
        let allowed = match register {
            offset::TASK_PRIORITY | offset::SELF_IPI => 0xff,
            offset::END_OF_INTERRUPT | offset::ERROR_STATUS => 0,
            offset::SPURIOUS => 0x3ff,
            offset::INITIAL_COUNT => 0xffff_ffff,
            offset::DIVIDE => 0xb,
            // Delivery status and remote IRR are read-only, not reserved.
            _ => u64::from(LVT_BITS[lvt_index(register).ok_or(Refused)?] | 0x5000),
        };
        if value & !allowed != 0 {
            return Err(Refused);
        }
        if register == offset::SELF_IPI {
            // Fixed, to itself.
            return Ok(self.send(Message::from_icr(1 << 18 | value as u32, 0)));
        }
        Ok(self.write_page(register, value as u32, now))
    }

    fn send(&mut self, message: Option<Message>) -> Effect {
        let Some(message) = message else { return Effect::None };
        use super::message::DeliveryMode::{Fixed, LowestPriority};
        if message.vector < 16 && matches!(message.mode, Fixed | LowestPriority) {
            self.note_error(ERROR_SEND_VECTOR);
            return Effect::None;
        }
        Effect::Send(message)
    }

    fn latch_errors(&mut self) {
        self.error = std::mem::take(&mut self.new_errors);
    }

    /// Writes the APIC base MSR. Only certain transitions between off, xAPIC and
    /// x2APIC are allowed; switching off forgets everything.
    pub fn set_base(&mut self, value: u64, address_bits: u32) -> Result<(), Refused> {
        const MODE: u64 = BASE_ENABLE | BASE_X2APIC;
        let address = BASE_ADDRESS & ((1 << address_bits.min(52)) - 1);
        if value & !(MODE | BASE_BSP | address) != 0 {
            return Err(Refused);
        }
        let (old, new) = (self.base & MODE, value & MODE);
        let refused = matches!((old, new), (_, BASE_X2APIC) | (0, MODE) | (MODE, BASE_ENABLE));
        if refused {
            return Err(Refused);
        }
        self.base = value;
        if new == 0 && old != 0 {
            self.reset();
        }
        Ok(())
    }

    /// The local vectors' masks and the timer's mode, as after a load of state.
    pub fn load_lvts(&mut self, values: [u32; LVTS]) {
        for (index, value) in values.into_iter().enumerate() {
            self.lvt[index] = value & LVT_BITS[index];
        }
        self.timer.mode = super::timer::Mode::of(self.lvt[TIMER]);
    }
}
