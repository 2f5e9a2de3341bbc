//! Port input and output.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use guise_engine::DoorbellAddress;

use super::int::Int;
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::state::{RAX, RDX};

impl Cpu {
    /// #GP(0) unless IOPL or the TSS's bitmap allow the access.
    pub fn check_port(&mut self, port: u16, size: u8) -> Run {
        if !self.mode.protected || !self.mode.v86 && self.mode.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = self.state.tr;
        let limit = tr.limit as u64;
        if !self.tss_is_wide() || limit < 0x67 {
            return self.general_protection(0);
        }
        let bitmap = self.read_system::<u16>(tr.base.wrapping_add(0x66))? as u64;
        let at = bitmap + port as u64 / 8;
        if at + 1 > limit {
            return self.general_protection(0);
        }
        let bits = self.read_system::<u16>(tr.base.wrapping_add(at))?;
        let wanted = ((1u16 << size) - 1) << (port % 8);
        if bits & wanted != 0 { self.general_protection(0) } else { Ok(()) }
    }

    pub fn port_read(&mut self, port: u16, size: usize) -> u64 {
        self.counters.port_accesses += 1;
        let mut bytes = [0; 8];
        self.events.pending_debug |= self.debug.port(port, size as u64);
        self.outside(|cpu| cpu.platform().port_read(port, &mut bytes[..size]));
        u64::from_le_bytes(bytes)
    }

    pub fn port_write(&mut self, port: u16, value: u64, size: usize) {
        self.counters.port_accesses += 1;
        self.events.pending_debug |= self.debug.port(port, size as u64);
        let bytes = value.to_le_bytes();
        if !self.ring_doorbell(DoorbellAddress::Port(port), &bytes[..size]) {
            self.outside(|cpu| cpu.platform().port_write(port, &bytes[..size]));
        }
    }

    /// Whether the write rang a doorbell instead.
    pub fn ring_doorbell(&self, address: DoorbellAddress, bytes: &[u8]) -> bool {
        if !self.shared.has_doorbells.load(Ordering::Relaxed) {
            return false;
        }
        let mut padded = [0; 8];
        let length = bytes.len().min(8);
        padded[..length].copy_from_slice(&bytes[..length]);
        let value = u64::from_le_bytes(padded);
        let doorbells = self.shared.doorbells.read().unwrap_or_else(PoisonError::into_inner);
        let fitting = doorbells.get(&address).into_iter().flatten().find(|doorbell| {
            (doorbell.length == 0 || doorbell.length as usize == bytes.len())
                && doorbell.value.is_none_or(|wanted| wanted == value)
        });
        if let Some(doorbell) = fitting {
            crate::vm::ring(&doorbell.eventfd);
        }
        fitting.is_some()
    }
}

const ACCUMULATOR: Slot = Slot::gpr(RAX);

/// IN and OUT: the port is the immediate, or DX where `small` is not 0.
fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.small != 0 { cpu.state.gpr[RDX] as u16 } else { op.immediate as u16 }
}

pub fn input<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let port = port(cpu, op);
    cpu.check_port(port, T::SIZE as u8)?;
    let value = T::new(cpu.port_read(port, T::SIZE as usize));
    cpu.set_reg(ACCUMULATOR, value);
    Ok(Step::Next)
}

pub fn output<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let port = port(cpu, op);
    cpu.check_port(port, T::SIZE as u8)?;
    let value = cpu.reg::<T>(ACCUMULATOR).get();
    cpu.port_write(port, value, T::SIZE as usize);
    // Device state may have changed under the processor's feet: an interrupt is taken
    // before the next instruction, as after a real OUT.
    cpu.state.rip = cpu.next_rip(op);
    Ok(Step::Jump)
}
