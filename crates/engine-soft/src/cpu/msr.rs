//! Model-specific registers.
//!
//! Those that this engine acts on are here; those that only describe or configure are
//! the model's, those of the paravirtual interface are [`crate::paravirt`]'s, those of
//! the local APIC its own.

use std::collections::BTreeMap;

use super::Cpu;
use crate::interpret::op::Run;
use crate::memory::access::is_canonical;
use crate::paravirt::{Paravirt, PhysicalMemory};
use crate::state::{FS, GS};
use guise_engine::processor::PHYSICAL_BITS;
use guise_engine::processor::msr::IA32_PKRS;

pub mod number {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

use number::*;

#[derive(Default)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// What is added to the VM's TSC.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    /// Bits of CR4 that the model has.
    pub cr4_known: u64,
    /// Where the APIC's page is, while it has one.
    pub apic_page: Option<u64>,
    /// The model's registers that were written.
    pub plain: BTreeMap<u32, u64>,
    pub paravirt: Paravirt,
}

impl Msrs {
    #[inline]
    pub fn apic_covers(&self, address: u64) -> bool {
        self.apic_page == Some(address & !0xfff)
    }
}

/// Registers that are saved, besides the model's and the paravirtual ones.
pub const SAVED: [u32; 15] = [
    TSC,
    APIC_BASE,
    TSC_ADJUST,
    SYSENTER_CS,
    SYSENTER_ESP,
    SYSENTER_EIP,
    TSC_DEADLINE,
    EFER,
    STAR,
    LSTAR,
    CSTAR,
    SFMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    DEBUGCTL,
];

impl Cpu {
    /// This vCPU's TSC.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.shared.time.tsc().wrapping_add(self.msr.tsc_offset)
    }

    /// What is added to the host's TSC to make this vCPU's, if it runs as fast.
    pub fn tsc_offset_from_host(&self) -> Option<u64> {
        let time = &self.shared.time;
        time.offset_from_host().map(|offset| offset.wrapping_add(self.msr.tsc_offset))
    }

    fn set_tsc(&mut self, value: u64) {
        let delta = value.wrapping_sub(self.tsc());
        self.msr.tsc_adjust = self.msr.tsc_adjust.wrapping_add(delta);
        self.set_tsc_offset(self.msr.tsc_offset.wrapping_add(delta));
        self.renew_tsc_deadline();
    }

    /// Sets by how much this vCPU's TSC is ahead of the VM's.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.msr.tsc_offset = offset;
        let mut paravirt = std::mem::take(&mut self.msr.paravirt);
        let shared = self.shared.clone();
        paravirt.set_tsc_offset(offset, &shared.clock, self);
        self.msr.paravirt = paravirt;
    }

    fn renew_tsc_deadline(&mut self) {
        let deadline = self.apic().tsc_deadline();
        if deadline != 0 {
            self.set_tsc_deadline(deadline);
        }
    }

    /// When this vCPU's TSC has a value: now if it is past it, also where it was past it
    /// before this VM's own counter began.
    pub fn when_tsc_is(&self, value: u64) -> u64 {
        let time = &self.shared.time;
        match value.checked_sub(time.tsc().wrapping_add(self.msr.tsc_offset)) {
            None | Some(0) => time.now(),
            Some(left) => time.now().saturating_add(time.nanoseconds(left)),
        }
    }

    fn set_tsc_deadline(&mut self, deadline: u64) {
        let at = self.when_tsc_is(deadline);
        self.apic().set_tsc_deadline(deadline, at);
        self.timer_changed();
    }

    pub fn read_msr(&mut self, number: u32) -> Run<u64> {
        let value = match number {
            TSC => self.tsc(),
            APIC_BASE => self.apic().base(),
            TSC_ADJUST => self.msr.tsc_adjust,
            SYSENTER_CS => self.msr.sysenter_cs,
            SYSENTER_ESP => self.msr.sysenter_esp,
            SYSENTER_EIP => self.msr.sysenter_eip,
            TSC_DEADLINE => self.apic().tsc_deadline(),
            0x800..0x900 => return self.read_apic_msr(number),
            EFER => self.state.efer,
            STAR => self.msr.star,
            LSTAR => self.msr.lstar,
            CSTAR => self.msr.cstar,
            SFMASK => self.msr.sfmask,
            FS_BASE => self.state.seg[FS].base,
            GS_BASE => self.state.seg[GS].base,
            KERNEL_GS_BASE => self.state.kernel_gs_base,
            TSC_AUX => self.msr.tsc_aux,
            DEBUGCTL => 0,
            _ => {
                if let Some(value) = self.msr.paravirt.read_msr(number) {
                    return Ok(value);
                }
                match self.shared.model.msr(number) {
                    Some(kind) if kind.can_read() => {
                        self.msr.plain.get(&number).copied().unwrap_or(kind.initial())
                    }
                    _ => return self.general_protection(0),
                }
            }
        };
        Ok(value)
    }

    pub fn write_msr(&mut self, number: u32, value: u64) -> Run {
        let address = matches!(
            number,
            SYSENTER_ESP | SYSENTER_EIP | LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE
        );
        if address && !is_canonical(value) {
            return self.general_protection(0);
        }
        match number {
            TSC => self.set_tsc(value),
            APIC_BASE => {
                if self.apic().set_base(value, PHYSICAL_BITS).is_err() {
                    return self.general_protection(0);
                }
                self.apic_moved();
            }
            TSC_ADJUST => {
                let delta = value.wrapping_sub(self.msr.tsc_adjust);
                self.msr.tsc_adjust = value;
                self.set_tsc_offset(self.msr.tsc_offset.wrapping_add(delta));
                self.renew_tsc_deadline();
            }
            SYSENTER_CS => self.msr.sysenter_cs = value & 0xffff,
            SYSENTER_ESP => self.msr.sysenter_esp = value,
            SYSENTER_EIP => self.msr.sysenter_eip = value,
            TSC_DEADLINE => self.set_tsc_deadline(value),
            0x800..0x900 => return self.write_apic_msr(number, value),
            EFER => return self.set_efer(value),
            STAR => self.msr.star = value,
            LSTAR => self.msr.lstar = value,
            CSTAR => self.msr.cstar = value,
            SFMASK => self.msr.sfmask = value & 0xffff_ffff,
            FS_BASE => self.state.seg[FS].base = value,
            GS_BASE => self.state.seg[GS].base = value,
            KERNEL_GS_BASE => self.state.kernel_gs_base = value,
            TSC_AUX if value >> 32 != 0 => return self.general_protection(0),
            TSC_AUX => self.msr.tsc_aux = value,
            // Last-branch records and branch stepping do not exist.
            DEBUGCTL if value != 0 => return self.general_protection(0),
            DEBUGCTL => {}
            _ => return self.write_other_msr(number, value),
        }
        Ok(())
    }

    fn write_other_msr(&mut self, number: u32, value: u64) -> Run {
        let mut paravirt = std::mem::take(&mut self.msr.paravirt);
        let shared = self.shared.clone();
        let result = paravirt.write_msr(number, value, &shared.clock, self);
        self.msr.paravirt = paravirt;
        match result {
            Some(true) => return Ok(()),
            Some(false) => return self.general_protection(0),
            None => {}
        }
        match self.shared.model.msr(number).and_then(|kind| kind.write(value)) {
            Some(kept) => {
                if kept {
                    let old = self.msr.plain.insert(number, value).unwrap_or(0);
                    if number == IA32_PKRS {
                        self.key_register_changed(false, old as u32);
                    }
                }
                Ok(())
            }
            None => self.general_protection(0),
        }
    }
}

impl PhysicalMemory for Cpu {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let found = self.map.find(address).is_some();
        if found {
            self.read_physical(address, bytes);
        }
        found
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let found = self.map.find(address).is_some_and(|place| !place.slot.read_only);
        if found {
            self.write_physical(address, bytes);
        }
        found
    }
}
