//! What the registers say about how to execute: the mode of the code, the privilege,
//! and from whose view memory is seen.
//!
//! [`Cpu::update_mode`] is called by whoever changes a register that matters here; it
//! also chooses the TLB bank and the context under which code is looked up.

use super::Cpu;
use crate::memory::spaces::View;
use crate::state::{CS, DS, ES, SS, Segment};

pub mod bits {
    pub const CR0_PE: u64 = 1;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;

    pub const CR4_VME: u64 = 1;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const CR4_PKE: u64 = 1 << 22;
    pub const CR4_PKS: u64 = 1 << 24;

    pub const EFER_SCE: u64 = 1;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;

    pub const CF: u64 = 1;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// Always 1.
    pub const FIXED: u64 = 2;
}

use bits::*;

/// A digest of the registers, for quick questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// 16, 32 or 64: default operand and address size.
    pub code_bits: u8,
    pub cpl: u8,
    pub protected: bool,
    pub v86: bool,
    /// EFER.LMA.
    pub long: bool,
    /// All segments that code uses without a prefix span the address space, and may
    /// be written: their checks can be left out.
    pub flat: bool,
    /// What of RSP is the stack pointer.
    pub stack_mask: u64,
    /// What of RIP is the instruction pointer.
    pub ip_mask: u64,
}

impl Mode {
    pub const REAL: Mode = Mode {
        code_bits: 16,
        cpl: 0,
        protected: false,
        v86: false,
        long: false,
        flat: false,
        stack_mask: 0xffff,
        ip_mask: 0xffff_ffff,
    };

    pub fn is_64(&self) -> bool {
        self.code_bits == 64
    }

    /// What decoding depends on, in four bits.
    pub fn key(&self) -> u64 {
        let size = match self.code_bits {
            16 => 0,
            32 => 1,
            _ => 2,
        };
        size | ((self.stack_mask == 0xffff) as u64 * 4) | (self.flat as u64 * 8)
    }
}

fn spans_everything(segment: &Segment) -> bool {
    segment.base == 0
        && segment.limit == u32::MAX
        && segment.access & access::UNUSABLE == 0
        && segment.access & access::PRESENT != 0
}

use super::segment::access;

impl Cpu {
    /// Makes what is derived from registers fit them again.
    pub fn update_mode(&mut self) {
        let state = &self.state;
        let protected = state.cr0 & CR0_PE != 0;
        let v86 = protected && state.rflags & VM != 0;
        let long = state.efer & EFER_LMA != 0;
        let (cs, ss) = (&state.seg[CS], &state.seg[SS]);
        let is_64 = long && !v86 && cs.access & access::LONG != 0;
        let code_bits = match () {
            () if is_64 => 64,
            () if cs.access & access::BIG != 0 => 32,
            () => 16,
        };
        let cpl = match () {
            () if !protected => 0,
            () if v86 => 3,
            () => (ss.access >> access::DPL_SHIFT & 3) as u8,
        };
        let writable =
            |s: &Segment| spans_everything(s) && s.access & access::TYPE & 0b1110 == 0b0010;
        let flat = is_64
            || protected
                && !v86
                && spans_everything(cs)
                && [DS, ES, SS].iter().all(|&n| writable(&state.seg[n]));
        let stack_mask = match () {
            () if is_64 => !0,
            () if ss.access & access::BIG != 0 => 0xffff_ffff,
            () => 0xffff,
        };
        let ip_mask = if is_64 { !0 } else { 0xffff_ffff };
        self.mode = Mode { code_bits, cpl, protected, v86, long, flat, stack_mask, ip_mask };
        self.update_view();
    }

    /// The view of explicit accesses.
    pub fn view(&self) -> View {
        if self.mode.cpl == 3 {
            View::User
        } else if self.state.cr4 & CR4_SMAP != 0 && self.state.rflags & AC == 0 {
            View::Supervisor
        } else {
            View::SupervisorOnUser
        }
    }

    /// Whether data accesses that are not aligned are #AC.
    pub fn checks_alignment(&self) -> bool {
        self.mode.cpl == 3 && self.state.cr0 & CR0_AM != 0 && self.state.rflags & AC != 0
    }

    /// The view of accesses that the processor makes by itself, as to its tables.
    pub fn system_view(&self) -> View {
        if self.state.cr4 & CR4_SMAP != 0 { View::Supervisor } else { View::SupervisorOnUser }
    }

    /// Chooses the bank and the context: after a change of privilege, AC, or the
    /// address space.
    pub fn update_view(&mut self) {
        let view = self.view();
        let checked = self.checks_alignment();
        self.state.bank = if checked { self.spaces.empty_bank() } else { self.spaces.bank(view) };
        if view != View::User {
            let smap = self.state.cr4 & CR4_SMAP != 0;
            let without = if smap { View::Supervisor } else { View::SupervisorOnUser };
            self.state.generated.bank_without_ac = self.spaces.bank(without) as u64;
            self.state.generated.bank_with_ac = self.spaces.bank(View::SupervisorOnUser) as u64;
        }
        let user = (self.mode.cpl == 3) as u64;
        self.context = self.spaces.generation() << 8 | self.mode.key() << 1 | user;
    }

    /// Replaces bits of RFLAGS, and what depends on them.
    pub fn set_flags(&mut self, value: u64, mask: u64) {
        let old = self.state.rflags;
        let new = old & !mask | value & mask | FIXED;
        self.state.rflags = new;
        let changed = old ^ new;
        if changed & VM != 0 {
            self.update_mode();
        } else if changed & AC != 0 {
            self.update_view();
        }
        if new & TF != 0 || changed & IF != 0 && new & IF != 0 {
            self.want_alone_or_interrupts();
        }
    }

    /// IOPL as a privilege level.
    pub fn iopl(&self) -> u8 {
        (self.state.rflags >> 12 & 3) as u8
    }
}
