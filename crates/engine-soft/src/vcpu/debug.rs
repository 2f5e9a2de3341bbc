//! Breakpoints, watchpoints and single steps: the guest's debug registers, and what a
//! debugger outside asks for.
//!
//! While any of this is active, instructions run one at a time. Pages with watched
//! bytes get no TLB entries, so every access to them takes the slow path, which looks
//! here.

use guise_engine::{DebugControl, DebugStop, Exit};

use crate::cpu::Cpu;
use crate::cpu::mode::bits::*;
use crate::vm::shared::attention;

/// What a debug register watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    address: u64,
    length: u64,
    /// 0 instruction, 1 write, 2 port, 3 read or write.
    kind: u64,
    /// Its bit of DR6.
    bit: u64,
}

impl Register {
    fn overlaps(&self, address: u64, length: u64) -> bool {
        let start = self.address & !(self.length - 1);
        address < start.wrapping_add(self.length) && start < address.wrapping_add(length)
    }
}

#[derive(Default)]
pub struct Debug {
    pub control: DebugControl,
    registers: Vec<Register>,
    /// What a debugger's watchpoint found in the current instruction.
    hit: Option<u64>,
    /// The breakpoint that stopped the vCPU last: the next run passes it.
    passed: Option<u64>,
}

impl Debug {
    pub fn is_active(&self) -> bool {
        !self.registers.is_empty()
            || self.control.single_step
            || !self.control.breakpoints.is_empty()
            || !self.control.watchpoints.is_empty()
    }

    /// DR6 bits of instruction breakpoints at this address.
    pub fn instruction_at(&self, linear: u64) -> u64 {
        self.registers
            .iter()
            .filter(|r| r.kind == 0 && r.address == linear)
            .fold(0, |bits, r| bits | r.bit)
    }

    /// Whether anything in this page is watched.
    #[inline]
    pub fn watches(&self, page: u64) -> bool {
        if self.registers.is_empty() && self.control.watchpoints.is_empty() {
            return false;
        }
        let page = page & !0xfff;
        self.registers.iter().any(|r| matches!(r.kind, 1 | 3) && r.overlaps(page, 4096))
            || self.control.watchpoints.iter().any(|w| {
                w.address < page.saturating_add(4096) && page < w.address.saturating_add(w.length)
            })
    }

    /// DR6 bits of data breakpoints that this access meets.
    pub fn access(&mut self, address: u64, length: u64, write: bool) -> u64 {
        for watch in &self.control.watchpoints {
            let wanted = if write { watch.on_write } else { watch.on_read };
            if wanted
                && watch.address < address.saturating_add(length)
                && address < watch.address.saturating_add(watch.length)
            {
                self.hit = Some(address);
            }
        }
        self.registers
            .iter()
            .filter(|r| (r.kind == 3 || r.kind == 1 && write) && r.overlaps(address, length))
            .fold(0, |bits, r| bits | r.bit)
    }

    /// DR6 bits of port breakpoints.
    pub fn port(&self, port: u16, length: u64) -> u64 {
        self.registers
            .iter()
            .filter(|r| r.kind == 2 && r.overlaps(port as u64, length))
            .fold(0, |bits, r| bits | r.bit)
    }
}

impl Cpu {
    /// Takes over the debug registers and what the debugger wants.
    pub fn debug_registers_changed(&mut self) {
        let dr7 = self.state.dr7;
        self.debug.registers.clear();
        for number in 0..4 {
            if dr7 >> (number * 2) & 3 == 0 {
                continue;
            }
            let kind = dr7 >> (16 + number * 4) & 3;
            if kind == 2 && self.state.cr4 & CR4_DE == 0 {
                continue;
            }
            let length = match dr7 >> (18 + number * 4) & 3 {
                0 => 1,
                1 => 2,
                2 => 8,
                _ => 4,
            };
            let address = self.state.dr[number];
            self.debug.registers.push(Register { address, length, kind, bit: 1 << number });
        }
        self.flush_everything();
        if self.debug.is_active() {
            self.want(attention::ALONE);
        }
    }

    /// Whether the next instruction, too, runs alone.
    pub fn wants_single_steps(&self) -> bool {
        self.state.rflags & TF != 0 || self.debug.is_active()
    }

    /// Notes what an access to watched bytes triggers.
    pub fn note_access(&mut self, address: u64, length: u64, write: bool) {
        let bits = self.debug.access(address, length, write);
        self.events.pending_debug |= bits;
    }

    pub fn debugger_stops_before(&mut self) -> Option<Exit> {
        if self.debug.control.breakpoints.is_empty() {
            return None;
        }
        let rip = self.linear_rip();
        if self.debug.passed.take() == Some(rip) || !self.debug.control.breakpoints.contains(&rip) {
            return None;
        }
        self.debug.passed = Some(rip);
        self.want(attention::ALONE);
        Some(Exit::Debug(DebugStop::Breakpoint { rip }))
    }

    pub fn debugger_stops_after(&mut self) -> Option<Exit> {
        let rip = self.linear_rip();
        if let Some(address) = self.debug.hit.take() {
            return Some(Exit::Debug(DebugStop::Watchpoint { rip, address }));
        }
        self.debug.control.single_step.then_some(Exit::Debug(DebugStop::Step { rip }))
    }
}
