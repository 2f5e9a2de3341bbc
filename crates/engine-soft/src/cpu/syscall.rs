//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT.

use super::Cpu;
use super::control::DR6_BS;
use super::mode::bits::*;
use super::segment::access;
use crate::interpret::op::Run;
use crate::memory::access::is_canonical;
use crate::state::{CS, RCX, RDX, RSP, SS, Segment};

const R11: usize = 11;

/// A flat segment as these instructions make it, without a look at any table.
fn flat(selector: u16, kind: u32, dpl: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access: kind | access::S | access::PRESENT | access::GRANULAR | dpl << access::DPL_SHIFT,
    }
}

const CODE: u32 = access::CODE | access::RW | access::ACCESSED;
const DATA: u32 = access::RW | access::ACCESSED | access::BIG;

impl Cpu {
    fn enter_flat(&mut self, code: u16, stack: u16, long: bool, level: u32) {
        let size = if long { access::LONG } else { access::BIG };
        let rpl = level as u16;
        self.state.seg[CS] = flat(code & !3 | rpl, CODE | size, level);
        self.state.seg[SS] = flat(stack & !3 | rpl, DATA, level);
        self.update_mode();
    }

    /// `next`: the instruction behind.
    pub fn syscall(&mut self, next: u64) -> Run {
        // From compatibility mode it is AMD's alone. A kernel for Intel processors never
        // writes CSTAR, and must not be entered at 0.
        let target = if self.mode.is_64() { self.msr.lstar } else { self.msr.cstar };
        let has_target = self.mode.is_64() || self.mode.long && target != 0;
        if self.state.efer & EFER_SCE == 0 || !has_target {
            return self.invalid_opcode();
        }
        let selector = (self.msr.star >> 32) as u16 & !3;
        let flags = self.state.rflags;
        self.state.gpr[RCX] = next;
        self.state.gpr[R11] = flags & !RF;
        self.state.rip = target;
        self.state.rflags = flags & !(self.msr.sfmask | RF | VM) | FIXED;
        self.enter_flat(selector, selector.wrapping_add(8), true, 0);
        // The trap comes by TF as it is now: a kernel that masks it gets none.
        self.events.step_suppressed = self.state.rflags & TF == 0;
        Ok(())
    }

    /// `long`: the operand size is 64 bits.
    pub fn sysret(&mut self, long: bool) -> Run {
        if self.state.efer & EFER_SCE == 0 || !self.mode.is_64() {
            return self.invalid_opcode();
        }
        self.require_supervisor()?;
        let target = self.state.gpr[RCX];
        if long && !is_canonical(target) {
            return self.general_protection(0);
        }
        let selector = (self.msr.star >> 48) as u16;
        let flags = self.state.gpr[R11] & 0x3c_7fd7 | FIXED;
        self.state.rip = if long { target } else { target & 0xffff_ffff };
        self.state.rflags = flags & !(RF | VM);
        let code = if long { selector.wrapping_add(16) } else { selector };
        self.enter_flat(code, selector.wrapping_add(8), long, 3);
        self.set_flags(flags, IF | TF);
        if flags & TF != 0 {
            // Unlike after IRET, the trap comes before the next instruction.
            self.events.pending_debug |= DR6_BS;
        }
        Ok(())
    }

    pub fn sysenter(&mut self) -> Run {
        let selector = self.msr.sysenter_cs as u16;
        if !self.mode.protected || selector & !3 == 0 {
            return self.general_protection(0);
        }
        let long = self.mode.long;
        let width = if long { !0 } else { 0xffff_ffff };
        self.state.rflags &= !(VM | IF | RF);
        self.state.gpr[RSP] = self.msr.sysenter_esp & width;
        self.state.rip = self.msr.sysenter_eip & width;
        self.enter_flat(selector, selector.wrapping_add(8), long, 0);
        Ok(())
    }

    pub fn sysexit(&mut self, long: bool) -> Run {
        let selector = self.msr.sysenter_cs as u16;
        if !self.mode.protected || selector & !3 == 0 || self.mode.cpl != 0 {
            return self.general_protection(0);
        }
        let (rip, rsp) = (self.state.gpr[RDX], self.state.gpr[RCX]);
        if long && !(is_canonical(rip) && is_canonical(rsp)) {
            return self.general_protection(0);
        }
        let width = if long { !0 } else { 0xffff_ffff };
        self.state.rip = rip & width;
        self.state.gpr[RSP] = rsp & width;
        let code = selector.wrapping_add(if long { 32 } else { 16 });
        self.enter_flat(code, code.wrapping_add(8), long, 3);
        Ok(())
    }
}
