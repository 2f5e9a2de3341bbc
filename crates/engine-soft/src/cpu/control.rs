//! Control and debug registers, and the TLB flushes that go with them.

use super::mode::bits::*;
use super::segment::access;
use super::{Cpu, Raised};
use crate::exception::{self, Exception};
use crate::interpret::op::Run;
use crate::memory::access::is_canonical;
use crate::memory::walk::PHYSICAL_BITS;
use crate::state::CS;

/// Bits of CR0 that can be set.
const CR0_KNOWN: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;

const CR3_NO_FLUSH: u64 = 1 << 63;

/// Bits of DR6 and DR7.
pub const DR6_FIXED: u64 = 0xffff_0ff0;
pub const DR6_BD: u64 = 1 << 13;
pub const DR6_BS: u64 = 1 << 14;
pub const DR6_BT: u64 = 1 << 15;
pub const DR7_FIXED: u64 = 1 << 10;
const DR7_GD: u64 = 1 << 13;

impl Cpu {
    pub fn set_cr0(&mut self, value: u64) -> Run {
        let value = value & (CR0_KNOWN | !0xffff_ffff) | CR0_ET;
        if value >> 32 != 0
            || value & CR0_PG != 0 && value & CR0_PE == 0
            || value & CR0_NW != 0 && value & CR0_CD == 0
        {
            return self.general_protection(0);
        }
        let changed = value ^ self.state.cr0;
        if changed & CR0_PG != 0 {
            if value & CR0_PG != 0 {
                self.start_paging()?;
            } else {
                if self.mode.is_64() || self.state.cr4 & CR4_PCIDE != 0 {
                    return self.general_protection(0);
                }
                self.state.efer &= !EFER_LMA;
            }
        } else if value & CR0_PG != 0
            && self.state.efer & EFER_LMA == 0
            && self.state.cr4 & CR4_PAE != 0
            && changed & (CR0_CD | CR0_NW) != 0
        {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr0 = value;
        if changed & (CR0_PG | CR0_WP | CR0_PE) != 0 {
            self.flush_everything();
        }
        self.update_mode();
        Ok(())
    }

    fn start_paging(&mut self) -> Run {
        let pae = self.state.cr4 & CR4_PAE != 0;
        if self.state.efer & EFER_LME != 0 {
            let long_code = self.state.seg[CS].access & access::LONG != 0;
            let short_tss = matches!(self.state.tr.access & access::TYPE, 1 | 3);
            if !pae || long_code || short_tss {
                return self.general_protection(0);
            }
            self.state.efer |= EFER_LMA;
        } else if pae {
            self.load_pdptes(self.state.cr3)?;
        }
        Ok(())
    }

    pub fn set_cr3(&mut self, value: u64) -> Run {
        let pcide = self.state.cr4 & CR4_PCIDE != 0;
        let keep = pcide && value & CR3_NO_FLUSH != 0;
        let value = if pcide { value & !CR3_NO_FLUSH } else { value };
        if self.mode.long && value >> PHYSICAL_BITS != 0 {
            return self.general_protection(0);
        }
        if self.state.cr0 & CR0_PG != 0 && !self.mode.long && self.state.cr4 & CR4_PAE != 0 {
            self.load_pdptes(value)?;
        }
        self.state.cr3 = value;
        if pcide {
            self.spaces.switch((value & 0xfff) as u16);
        }
        if !keep {
            self.spaces.flush_current(true);
        }
        self.update_view();
        Ok(())
    }

    pub fn set_cr4(&mut self, value: u64) -> Run {
        let known = self.msr.cr4_known;
        let old = self.state.cr4;
        let changed = value ^ old;
        if value & !known != 0 || self.mode.long && value & CR4_PAE == 0 {
            return self.general_protection(0);
        }
        if changed & value & CR4_PCIDE != 0 && (!self.mode.long || self.state.cr3 & 0xfff != 0) {
            return self.general_protection(0);
        }
        let translation =
            CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_PKS;
        if self.state.cr0 & CR0_PG != 0
            && !self.mode.long
            && value & CR4_PAE != 0
            && changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP) != 0
        {
            self.state.cr4 = value;
            if let Err(trap) = self.load_pdptes(self.state.cr3) {
                self.state.cr4 = old;
                return Err(trap);
            }
        }
        self.state.cr4 = value;
        if changed & translation != 0 {
            if value & CR4_PCIDE == 0 {
                self.spaces.switch(0);
            }
            self.flush_everything();
        }
        self.update_mode();
        Ok(())
    }

    pub fn set_cr8(&mut self, value: u64) -> Run {
        if value & !15 != 0 {
            return self.general_protection(0);
        }
        self.apic_set_cr8(value);
        Ok(())
    }

    pub fn set_efer(&mut self, value: u64) -> Run {
        let known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
        let old = self.state.efer;
        if value & !known != 0 || (value ^ old) & EFER_LME != 0 && self.state.cr0 & CR0_PG != 0 {
            return self.general_protection(0);
        }
        self.state.efer = value & !EFER_LMA | old & EFER_LMA;
        if (value ^ old) & EFER_NXE != 0 {
            self.flush_everything();
        }
        self.update_mode();
        Ok(())
    }

    /// Forgets all translations.
    pub fn flush_everything(&mut self) {
        self.spaces.flush_all(false);
        self.fetch.clear();
        self.update_view();
    }

    pub fn invalidate_page(&mut self, linear: u64) {
        if self.mode.long && !is_canonical(linear) {
            return;
        }
        self.spaces.forget(linear);
        self.fetch.forget(linear);
        self.cache.forget_page(linear);
        self.update_view();
    }

    /// INVPCID with this descriptor.
    pub fn invalidate_pcid(&mut self, kind: u64, pcid: u64, linear: u64) -> Run {
        let pcide = self.state.cr4 & CR4_PCIDE != 0;
        let wrong = match kind {
            0 => pcid >> 12 != 0 || !pcide && pcid != 0 || !is_canonical(linear),
            1 => pcid >> 12 != 0 || !pcide && pcid != 0,
            2 | 3 => false,
            _ => true,
        };
        if wrong {
            return self.general_protection(0);
        }
        match kind {
            0 => {
                self.spaces.forget_in(pcid as u16, linear);
                self.fetch.forget(linear);
            }
            1 => self.spaces.flush_pcid(pcid as u16),
            2 => self.spaces.flush_all(false),
            _ => self.spaces.flush_all(true),
        }
        self.update_view();
        Ok(())
    }

    /// MOV from or to a debug register: which one it is, after the checks.
    pub fn debug_register(&mut self, number: usize) -> Run<usize> {
        if matches!(number, 4 | 5) && self.state.cr4 & CR4_DE != 0 || number > 7 {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        if self.state.dr7 & DR7_GD != 0 {
            self.state.dr7 &= !DR7_GD;
            self.state.dr6 |= DR6_BD;
            return self.raise(Exception::plain(exception::DEBUG));
        }
        Ok(match number {
            4 => 6,
            5 => 7,
            other => other,
        })
    }

    pub fn read_debug_register(&mut self, number: usize) -> Run<u64> {
        Ok(match self.debug_register(number)? {
            6 => self.state.dr6,
            7 => self.state.dr7,
            n => self.state.dr[n],
        })
    }

    pub fn write_debug_register(&mut self, number: usize, value: u64) -> Run {
        let number = self.debug_register(number)?;
        if number >= 6 && value >> 32 != 0 {
            return self.general_protection(0);
        }
        match number {
            6 => self.state.dr6 = value & 0xe00f | DR6_FIXED,
            7 => self.state.dr7 = value & 0xffff_2bff | DR7_FIXED,
            n => self.state.dr[n] = value,
        }
        // Each instruction clears it when it completes, but nobody looks at it while no
        // breakpoint is set: what stands there may be old.
        self.state.rflags &= !RF;
        self.debug_registers_changed();
        Ok(())
    }

    /// Sets bits of DR6 and raises #DB.
    pub fn raise_debug<T>(&mut self, bits: u64) -> Run<T> {
        self.state.dr6 = self.state.dr6 & !0xf | bits | DR6_FIXED;
        self.raised = Raised::Exception(Exception::plain(exception::DEBUG));
        Err(crate::interpret::op::Trap)
    }
}
