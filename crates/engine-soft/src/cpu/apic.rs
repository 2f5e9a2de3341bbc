//! The vCPU's side of its local APIC: the page, the MSRs, what is pending.

use super::Cpu;
use super::mode::bits::*;
use crate::apic::{LocalApic, Pending};
use crate::interpret::op::Run;
use crate::vm::shared::attention;

impl Cpu {
    pub fn apic(&self) -> &LocalApic {
        self.shared.apics.apic(self.index)
    }

    /// The APIC's page may be elsewhere now.
    pub fn apic_moved(&mut self) {
        let page = self.apic().page();
        if page != self.msr.apic_page {
            self.msr.apic_page = page;
            self.flush_everything();
        }
        self.timer_changed();
    }

    pub fn apic_read(&mut self, address: u64, bytes: &mut [u8]) {
        let now = self.shared.time.now();
        self.apic().read(address & 0xfff, bytes, now);
    }

    pub fn apic_write(&mut self, address: u64, bytes: &[u8]) {
        let now = self.shared.time.now();
        let shared = self.shared.clone();
        let ended = shared.apics.write(self.index, address & 0xfff, bytes, now);
        self.after_apic_write(ended);
    }

    fn after_apic_write(&mut self, ended: Option<u8>) {
        if let Some(vector) = ended {
            self.platform().end_of_interrupt(vector);
        }
        if self.has_interrupt() {
            self.want(attention::INTERRUPT);
        }
        self.timer_changed();
    }

    pub fn read_apic_msr(&mut self, number: u32) -> Run<u64> {
        let now = self.shared.time.now();
        match self.apic().read_msr(number, now) {
            Ok(value) => Ok(value),
            Err(_) => self.general_protection(0),
        }
    }

    pub fn write_apic_msr(&mut self, number: u32, value: u64) -> Run {
        let now = self.shared.time.now();
        let shared = self.shared.clone();
        match shared.apics.write_msr(self.index, number, value, now) {
            Ok(ended) => {
                self.after_apic_write(ended);
                Ok(())
            }
            Err(_) => self.general_protection(0),
        }
    }

    pub fn apic_cr8(&self) -> u64 {
        self.apic().cr8()
    }

    pub fn apic_set_cr8(&mut self, value: u64) {
        self.apic().set_cr8(value);
        if self.has_interrupt() {
            self.want(attention::INTERRUPT);
        }
    }

    /// Whether an external interrupt waits for IF.
    pub fn has_interrupt(&self) -> bool {
        self.apic().pending().has(Pending::INTERRUPT | Pending::EXTERNAL)
    }

    /// IRET: an NMI that came meanwhile is next.
    pub fn unblock_nmis(&mut self) {
        if !std::mem::take(&mut self.events.nmi_blocked) {
            return;
        }
        if self.apic().pending().has(Pending::NMI) {
            self.apic().merge_nmis();
            self.want(attention::INTERRUPT);
        }
    }

    /// After a change of RFLAGS: a trap flag or an interrupt may want its turn.
    pub fn want_alone_or_interrupts(&self) {
        let flags = self.state.rflags;
        if flags & TF != 0 {
            self.want(attention::ALONE);
        }
        if flags & IF != 0 && self.has_interrupt() {
            self.want(attention::INTERRUPT);
        }
    }

    /// The APIC's timer may have a new deadline. One that is over fires at once.
    pub fn timer_changed(&self) {
        let Some(deadline) = self.apic().next_deadline() else { return };
        let now = self.shared.time.now();
        if deadline <= now && self.apic().expire(now) {
            self.want(attention::INTERRUPT);
        }
        if let Some(deadline) = self.apic().next_deadline() {
            self.shared.timer.arm(deadline);
        }
    }

    /// Wakes a vCPU from HLT, whatever its IF.
    pub fn kick_halted(&self, apic_id: u32) {
        for vcpu in self.shared.vcpus().filter(|vcpu| vcpu.index == apic_id) {
            vcpu.raise(attention::UNHALT);
        }
    }

    /// Sends an interrupt to APICs `first + n` for each bit n.
    pub fn send_ipis(&self, first: u32, targets: u128, icr: u32) -> i64 {
        let mut count = 0;
        for vcpu in 0..self.shared.config.vcpus {
            let bit = vcpu.wrapping_sub(first);
            if vcpu >= first && bit < 128 && targets >> bit & 1 != 0 {
                self.shared.apics.send_ipi(icr, vcpu);
                count += 1;
            }
        }
        count
    }
}
