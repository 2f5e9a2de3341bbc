//! A local APIC to and from the neutral state.
//!
//! The page is laid out as in memory; in x2APIC mode the id register holds the 32-bit
//! id. Ids are never loaded: they follow from the vCPU's index. Pending INITs and
//! start-up IPIs are not saved, since a vCPU takes them before it stops.

use super::local::LocalApic;
use super::registers::{LVTS, Registers, Vectors, offset};
use super::timer::Mode;

/// Length of the page's used part.
pub const PAGE_LENGTH: usize = 0x400;

/// What the neutral state says about a local APIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedApic {
    /// [`guise_engine::VcpuState::lapic`].
    pub page: Vec<u8>,
    /// MSR 0x1b.
    pub base: u64,
    /// [`guise_engine::VcpuState::lapic_timer_ns`].
    pub timer_ns: Option<u64>,
    /// MSR 0x6e0.
    pub tsc_deadline: u64,
    /// [`guise_engine::state::EventState::nmi_pending`].
    pub nmi: bool,
}

/// The page is not 1 KiB long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a local APIC's page has {PAGE_LENGTH} bytes, not {0}")]
pub struct PageLength(usize);

fn vectors(page: &[u8], at: u32) -> Vectors {
    Vectors(std::array::from_fn(|word| get(page, at + 16 * word as u32)))
}

fn get(page: &[u8], at: u32) -> u32 {
    let at = at as usize;
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn put(page: &mut [u8], at: u32, value: u32) {
    page[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

impl LocalApic {
    pub fn save(&self, now: u64) -> SavedApic {
        let mut registers = self.lock();
        let mut page = vec![0; PAGE_LENGTH];
        for at in (0..PAGE_LENGTH as u32).step_by(16) {
            if is_register(at) {
                let value = registers.read_page(at, now);
                put(&mut page, at, value);
            }
        }
        if registers.x2apic() {
            put(&mut page, offset::ID, registers.id);
            let logical = (registers.id >> 4) << 16 | 1 << (registers.id & 15);
            put(&mut page, offset::LOGICAL_DESTINATION, logical);
        }
        let counting = registers.timer.mode != Mode::TscDeadline;
        let left = registers.timer.deadline.map(|deadline| deadline.saturating_sub(now));
        SavedApic {
            page,
            base: registers.base,
            timer_ns: left.filter(|_| counting),
            tsc_deadline: registers.timer.tsc,
            nmi: registers.nmis != 0,
        }
    }

    /// `tsc_deadline_at` is when the vCPU's TSC reaches the saved deadline. The level
    /// of the 8259 pair's line stays what it is.
    pub fn load(
        &self,
        saved: &SavedApic,
        now: u64,
        tsc_deadline_at: u64,
    ) -> Result<(), PageLength> {
        let page = &saved.page[..];
        if page.len() != PAGE_LENGTH {
            return Err(PageLength(page.len()));
        }
        let load = |registers: &mut Registers| {
            registers.reset();
            registers.base = saved.base;
            registers.task_priority = get(page, offset::TASK_PRIORITY) as u8;
            if !registers.x2apic() {
                registers.logical = get(page, offset::LOGICAL_DESTINATION) & 0xff00_0000;
            }
            registers.format = get(page, offset::DESTINATION_FORMAT) | 0x0fff_ffff;
            registers.spurious = get(page, offset::SPURIOUS) & 0x3ff;
            registers.in_service = vectors(page, offset::IN_SERVICE);
            registers.trigger = vectors(page, offset::TRIGGER_MODE);
            registers.request = vectors(page, offset::REQUEST);
            registers.error = get(page, offset::ERROR_STATUS);
            registers.command = u64::from(get(page, offset::COMMAND_LOW))
                | u64::from(get(page, offset::COMMAND_HIGH)) << 32;
            let lvts: [u32; LVTS] =
                std::array::from_fn(|index| get(page, offset::LVT_TIMER + 16 * index as u32));
            registers.load_lvts(lvts);
            registers.timer.divide = get(page, offset::DIVIDE) & 0xb;
            registers.timer.initial = get(page, offset::INITIAL_COUNT);
            if registers.timer.mode == Mode::TscDeadline {
                registers.timer.set_tsc_deadline(saved.tsc_deadline, tsc_deadline_at);
            } else {
                registers.timer.deadline = saved.timer_ns.map(|left| now.saturating_add(left));
            }
            registers.nmis = u8::from(saved.nmi);
            registers.init = false;
            registers.start_up = None;
        };
        self.change(load);
        Ok(())
    }
}

/// Reading any other offset would be noted as an error.
fn is_register(at: u32) -> bool {
    matches!(at,
        offset::ID | offset::VERSION
        | offset::TASK_PRIORITY..=offset::PROCESSOR_PRIORITY
        | offset::LOGICAL_DESTINATION..=offset::ERROR_STATUS
        | offset::COMMAND_LOW..=offset::CURRENT_COUNT
        | offset::DIVIDE)
}

#[cfg(test)]
mod tests;
