//! Moves, exchanges, address computation, and the atomic read-modify-writes.

use super::alu::{Binary, Cmp};
use super::int::{Int, STATUS, ZF};
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::memory::spaces::View;
use crate::memory::walk::Access;
use crate::state::{RAX, RBX, RCX, RDX, SS};

pub fn reg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.reg::<T>(op.b);
    cpu.set_reg(op.a, value);
    Ok(Step::Next)
}

pub fn reg_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.set_reg(op.a, T::new(op.immediate));
    Ok(Step::Next)
}

pub fn reg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.load::<T>(op)?;
    cpu.set_reg(op.a, value);
    Ok(Step::Next)
}

pub fn mem_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.reg::<T>(op.b);
    cpu.store(op, value)?;
    Ok(Step::Next)
}

pub fn mem_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.store(op, T::new(op.immediate))?;
    Ok(Step::Next)
}

/// From `S` to a register of `D`.
pub fn movzx_reg<S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.reg::<S>(op.b).get();
    cpu.set_reg(op.a, D::new(value));
    Ok(Step::Next)
}

pub fn movzx_mem<S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.load::<S>(op)?.get();
    cpu.set_reg(op.a, D::new(value));
    Ok(Step::Next)
}

pub fn movsx_reg<S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.reg::<S>(op.b).signed();
    cpu.set_reg(op.a, D::new(value as u64));
    Ok(Step::Next)
}

pub fn movsx_mem<S: Int, D: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.load::<S>(op)?.signed();
    cpu.set_reg(op.a, D::new(value as u64));
    Ok(Step::Next)
}

pub fn lea<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let offset = cpu.offset(op);
    cpu.set_reg(op.a, T::new(offset));
    Ok(Step::Next)
}

/// XLAT: the index is AL, whatever the address size.
pub fn xlat(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let index = cpu.state.gpr[RAX] & 0xff;
    let base = cpu.reg::<u64>(op.address.base);
    let offset = base.wrapping_add(index) & op.address.mask;
    let linear = if op.address.checked {
        cpu.checked_linear(op.address.segment as usize, offset, 1, false)?
    } else {
        offset.wrapping_add(cpu.reg::<u64>(op.address.segment_base))
    };
    let value = cpu.read::<u8>(linear)?;
    cpu.set_reg(Slot::gpr(RAX), value);
    Ok(Step::Next)
}

pub fn xchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let (a, b) = (cpu.reg::<T>(op.a), cpu.reg::<T>(op.b));
    cpu.set_reg(op.a, b);
    cpu.set_reg(op.b, a);
    Ok(Step::Next)
}

/// Always locked.
pub fn xchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let new = cpu.reg::<T>(op.b);
    let mut old = new;
    cpu.modify_locked::<T>(linear, |_, there| {
        old = there;
        new
    })?;
    cpu.set_reg(op.b, old);
    Ok(Step::Next)
}

pub fn xadd_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let (a, b) = (cpu.reg::<T>(op.a), cpu.reg::<T>(op.b));
    let (sum, status) = a.add(b);
    cpu.set_reg(op.b, a);
    cpu.set_reg(op.a, sum);
    cpu.state.rflags = cpu.state.rflags & !STATUS | status;
    Ok(Step::Next)
}

/// Atomic with or without LOCK: nobody can tell.
pub fn xadd_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let b = cpu.reg::<T>(op.b);
    let (mut old, mut flags) = (b, 0);
    cpu.modify_locked::<T>(linear, |_, there| {
        let (sum, status) = there.add(b);
        (old, flags) = (there, status);
        sum
    })?;
    cpu.set_reg(op.b, old);
    cpu.state.rflags = cpu.state.rflags & !STATUS | flags;
    Ok(Step::Next)
}

pub fn cmpxchg_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let accumulator = Slot::gpr(RAX);
    let (expected, there, new) =
        (cpu.reg::<T>(accumulator), cpu.reg::<T>(op.a), cpu.reg::<T>(op.b));
    cpu.state.rflags = Cmp::apply(expected, there, cpu.state.rflags).1;
    if expected == there {
        cpu.set_reg(op.a, new);
    } else {
        // The destination keeps its upper half: Intel's processors do not write it.
        cpu.set_reg(accumulator, there);
    }
    Ok(Step::Next)
}

pub fn cmpxchg_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let accumulator = Slot::gpr(RAX);
    let (expected, new) = (cpu.reg::<T>(accumulator), cpu.reg::<T>(op.b));
    let mut found = expected;
    cpu.modify_locked::<T>(linear, |_, there| {
        found = there;
        if there == expected { new } else { there }
    })?;
    cpu.state.rflags = Cmp::apply(expected, found, cpu.state.rflags).1;
    if found != expected {
        cpu.set_reg(accumulator, found);
    }
    Ok(Step::Next)
}

pub fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, 8, true)?;
    let pair = |low: u64, high: u64| low & 0xffff_ffff | high << 32;
    let gpr = &cpu.state.gpr;
    let (expected, new) = (pair(gpr[RAX], gpr[RDX]), pair(gpr[RBX], gpr[RCX]));
    let mut found = expected;
    cpu.modify_locked::<u64>(linear, |_, there| {
        found = there;
        if there == expected { new } else { there }
    })?;
    if found == expected {
        cpu.state.rflags |= ZF;
    } else {
        cpu.state.rflags &= !ZF;
        cpu.state.gpr[RAX] = found & 0xffff_ffff;
        cpu.state.gpr[RDX] = found >> 32;
    }
    Ok(Step::Next)
}

/// The host's CMPXCHG16B; gives what stood there.
///
/// # Safety
///
/// 16 bytes at `at`, aligned to 16, can be written.
unsafe fn exchange16(at: *mut u8, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller vouches for the bytes. RBX cannot be an operand, so it is
    // swapped in and out.
    unsafe {
        std::arch::asm!(
            "xchg {b}, rbx",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {b}",
            b = inout(reg) new as u64 => _,
            p = in(reg) at,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    low as u128 | (high as u128) << 64
}

pub fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, 16, true)?;
    if linear & 15 != 0 {
        return cpu.general_protection(0);
    }
    let gpr = &cpu.state.gpr;
    let pair = |low: usize, high: usize| gpr[low] as u128 | (gpr[high] as u128) << 64;
    let (expected, new) = (pair(RAX, RDX), pair(RBX, RCX));
    let view: View = cpu.view();
    // Aligned, so it is in one page.
    let (spot, _) = cpu.spots(linear, 16, Access::Write, view)?;
    use crate::memory::access::Spot;
    let found = match spot {
        Spot::Memory(host) | Spot::Code(host) => {
            // SAFETY: translated for writing; alignment carries over from the address.
            let found = unsafe { exchange16(host, expected, new) };
            if let Spot::Code(_) = spot {
                cpu.code_written(host, 16);
            }
            found
        }
        Spot::Device(_) => {
            let mut bytes = [0; 16];
            cpu.read_bytes(linear, &mut bytes)?;
            let found = u128::from_le_bytes(bytes);
            let value = if found == expected { new } else { found };
            cpu.write_bytes(linear, &value.to_le_bytes())?;
            found
        }
    };
    if found == expected {
        cpu.state.rflags |= ZF;
    } else {
        cpu.state.rflags &= !ZF;
        cpu.state.gpr[RAX] = found as u64;
        cpu.state.gpr[RDX] = (found >> 64) as u64;
    }
    Ok(Step::Next)
}

/// MOV from a segment register (`small`): to a register of the operand's size.
pub fn from_segment<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.state.seg[op.small as usize].selector;
    cpu.set_reg(op.a, T::new(selector as u64));
    Ok(Step::Next)
}

pub fn from_segment_mem(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.state.seg[op.small as usize].selector;
    cpu.store(op, selector)?;
    Ok(Step::Next)
}

pub fn to_segment(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.reg::<u16>(op.b);
    set_segment(cpu, op, selector)
}

pub fn to_segment_mem(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.load::<u16>(op)?;
    set_segment(cpu, op, selector)
}

fn set_segment(cpu: &mut Cpu, op: &Op, selector: u16) -> Run<Step> {
    let register = op.small as usize;
    cpu.load_segment(register, selector)?;
    if register == SS {
        cpu.events.mov_ss_shadow = true;
        cpu.shadow_interrupts();
    }
    cpu.state.rip = cpu.state.rip.wrapping_add(op.end()) & cpu.mode.ip_mask;
    Ok(Step::Jump)
}

/// LDS, LES, LFS, LGS, LSS: `small` is the segment.
pub fn load_far_pointer<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE + 2, false)?;
    let offset = cpu.read::<T>(linear)?;
    let selector = cpu.read::<u16>(linear.wrapping_add(T::SIZE))?;
    cpu.load_segment(op.small as usize, selector)?;
    cpu.set_reg(op.a, offset);
    cpu.state.rip = cpu.state.rip.wrapping_add(op.end()) & cpu.mode.ip_mask;
    Ok(Step::Jump)
}
