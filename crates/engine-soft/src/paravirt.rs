//! The paravirtual interface that stock kernels know from KVM.
//!
//! What CPUID tells of it is in [`guise_engine::processor::paravirt`].
//!
//! | advertised | why |
//! |---|---|
//! | kvm-clock, old and new MSRs, stable | time without calibration and without a device |
//! | no I/O delay | a kernel then leaves port 0x80 alone |
//! | send-IPI hypercall | one call in place of one APIC write for each target |
//! | unhalt | waiters for a spin lock sleep in HLT when vCPUs outnumber processors |
//! | steal time | a guest's accounting knows of time that the host took |
//!
//! PV EOI is not: an EOI leaves no guest here, so there is nothing to save.
//! Asynchronous page faults are not: guest memory is not paged by the engine. A guest
//! that was told of them elsewhere and moved here keeps their MSRs: what they allow, a
//! host may do and need not.

pub mod clock;
pub mod hypercall;
pub mod steal;

pub use clock::{Clock, VcpuClock};
pub use hypercall::Hypercall;
pub use steal::StealTime;

use std::collections::BTreeMap;

/// Guest-physical memory. What is not there is not read and not written.
pub trait PhysicalMemory {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool;
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool;
}

pub const MSR_WALL_CLOCK: u32 = 0x11;
pub const MSR_SYSTEM_TIME: u32 = 0x12;
pub const MSR_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
pub const MSR_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
pub const MSR_STEAL_TIME: u32 = 0x4b56_4d03;
/// Asynchronous page faults, their interrupt and its acknowledgement; end of interrupt;
/// polling before a halt.
const ALLOWANCES: [u32; 5] = [0x4b56_4d02, 0x4b56_4d06, 0x4b56_4d07, 0x4b56_4d04, 0x4b56_4d05];

/// One vCPU's part: what it wrote into these MSRs, and what follows from it.
#[derive(Debug, Default)]
pub struct Paravirt {
    clock: VcpuClock,
    steal: StealTime,
    wall_clock: u64,
    /// Those of [`ALLOWANCES`] that came with the guest from another engine.
    allowances: BTreeMap<u32, u64>,
}

impl Paravirt {
    /// MSRs to save and restore. Restoring them publishes the clock again.
    pub fn stateful_msrs() -> impl Iterator<Item = u32> {
        [MSR_WALL_CLOCK_NEW, MSR_SYSTEM_TIME_NEW, MSR_STEAL_TIME].into_iter().chain(ALLOWANCES)
    }

    /// None where it is not one of these MSRs.
    pub fn read_msr(&self, number: u32) -> Option<u64> {
        Some(match number {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_NEW => self.wall_clock,
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_NEW => self.clock.msr(),
            MSR_STEAL_TIME => self.steal.msr(),
            _ => return self.allowances.get(&number).copied(),
        })
    }

    /// None where it is not one of these MSRs; whether the value is acceptable else.
    pub fn write_msr(
        &mut self,
        number: u32,
        value: u64,
        clock: &Clock,
        memory: &mut dyn PhysicalMemory,
    ) -> Option<bool> {
        match number {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_NEW => {
                self.wall_clock = value;
                clock.publish_wall_clock(value, memory);
                Some(true)
            }
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_NEW => {
                self.clock.set_msr(value, clock, memory);
                Some(true)
            }
            MSR_STEAL_TIME => Some(self.steal.set_msr(value, memory)),
            _ => {
                *self.allowances.get_mut(&number)? = value;
                Some(true)
            }
        }
    }

    /// As [`Paravirt::write_msr`] when state is loaded: the wall clock stays what the
    /// guest has read long ago.
    pub fn restore_msr(
        &mut self,
        number: u32,
        value: u64,
        clock: &Clock,
        memory: &mut dyn PhysicalMemory,
    ) -> Option<bool> {
        if matches!(number, MSR_WALL_CLOCK | MSR_WALL_CLOCK_NEW) {
            self.wall_clock = value;
            return Some(true);
        }
        if ALLOWANCES.contains(&number) {
            self.allowances.insert(number, value);
        }
        self.write_msr(number, value, clock, memory)
    }

    /// The vCPU's TSC has been set: so far ahead of the VM's.
    pub fn set_tsc_offset(&mut self, offset: u64, clock: &Clock, memory: &mut dyn PhysicalMemory) {
        self.clock.set_tsc_offset(offset, clock, memory);
    }

    /// Called now and then on the vCPU's thread, a few hundred times a second at the
    /// most: tells the guest how long it had to wait for a processor.
    pub fn tick(&mut self, memory: &mut dyn PhysicalMemory) {
        self.steal.update(memory);
    }
}

#[cfg(test)]
mod tests;
