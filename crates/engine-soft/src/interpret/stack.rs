//! PUSH and POP in their forms, ENTER and LEAVE.

use super::int::Int;
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::cpu::mode::bits::*;
use crate::exception::{self, Exception};
use crate::interpret::int::STATUS;
use crate::memory::walk::Access;
use crate::state::{RBP, RSP, SS};

pub fn push_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.reg::<T>(op.a);
    cpu.push(value)?;
    Ok(Step::Next)
}

pub fn push_imm<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.push(T::new(op.immediate))?;
    Ok(Step::Next)
}

pub fn push_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.load::<T>(op)?;
    cpu.push(value)?;
    Ok(Step::Next)
}

pub fn push_segment<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.state.seg[op.small as usize].selector;
    cpu.push(T::new(selector as u64))?;
    Ok(Step::Next)
}

pub fn pop_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.peek::<T>(0)?;
    cpu.drop_stack(T::SIZE);
    cpu.set_reg(op.a, value);
    Ok(Step::Next)
}

/// The address is computed after RSP has moved.
pub fn pop_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.peek::<T>(0)?;
    let rsp = cpu.state.gpr[RSP];
    cpu.drop_stack(T::SIZE);
    let stored = cpu.store(op, value);
    if stored.is_err() {
        cpu.state.gpr[RSP] = rsp;
    }
    stored.map(|()| Step::Next)
}

pub fn pop_segment<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let selector = cpu.peek::<T>(0)?.get() as u16;
    let register = op.small as usize;
    let mask = cpu.mode.stack_mask;
    cpu.load_segment(register, selector)?;
    // The stack that was popped from is the one before, should SS have been loaded.
    let rsp = cpu.state.gpr[RSP];
    cpu.state.gpr[RSP] = rsp & !mask | rsp.wrapping_add(T::SIZE) & mask;
    if register == SS {
        cpu.events.mov_ss_shadow = true;
        cpu.shadow_interrupts();
    }
    cpu.state.rip = cpu.state.rip.wrapping_add(op.end()) & cpu.mode.ip_mask;
    Ok(Step::Jump)
}

/// All general registers, of 16 or 32 bits.
pub fn push_all<T: Int>(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    let mut stack = cpu.stack();
    for register in 0..8 {
        let value = T::new(cpu.state.gpr[register]).get();
        cpu.push_on(&mut stack, value, T::SIZE)?;
    }
    cpu.set_stack_pointer(stack.pointer);
    Ok(Step::Next)
}

pub fn pop_all<T: Int>(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    let mut stack = cpu.stack();
    let mut values = [0; 8];
    for value in values.iter_mut().rev() {
        *value = cpu.pop_from(&mut stack, T::SIZE)?;
    }
    for (register, value) in values.into_iter().enumerate() {
        if register != RSP {
            cpu.set_reg(Slot::gpr(register), T::new(value));
        }
    }
    cpu.set_stack_pointer(stack.pointer);
    Ok(Step::Next)
}

pub fn pushf<T: Int>(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    if cpu.mode.v86 && cpu.iopl() < 3 {
        return cpu.general_protection(0);
    }
    let flags = cpu.state.rflags & !(RF | VM);
    cpu.push(T::new(flags))?;
    Ok(Step::Next)
}

pub fn popf<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.mode.v86 && cpu.iopl() < 3 {
        return cpu.general_protection(0);
    }
    let flags = cpu.peek::<T>(0)?.get();
    cpu.drop_stack(T::SIZE);
    let mut mask = cpu.changeable_flags();
    if cpu.mode.v86 {
        mask &= !IOPL;
    }
    if T::SIZE == 2 {
        mask &= 0xffff;
    }
    cpu.state.rip = cpu.state.rip.wrapping_add(op.end()) & cpu.mode.ip_mask;
    cpu.state.rflags &= !RF;
    cpu.set_flags(flags, mask);
    Ok(Step::Jump)
}

pub fn leave<T: Int>(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    let mask = cpu.mode.stack_mask;
    let mut stack = cpu.stack();
    stack.pointer = stack.pointer & !mask | cpu.state.gpr[RBP] & mask;
    let value = cpu.pop_from(&mut stack, T::SIZE)?;
    cpu.set_stack_pointer(stack.pointer);
    cpu.set_reg(Slot::gpr(RBP), T::new(value));
    Ok(Step::Next)
}

/// `immediate`: the size of the frame; `small`: the nesting level.
pub fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let level = op.small & 31;
    let mask = cpu.mode.stack_mask;
    let mut stack = cpu.stack();
    let rbp = cpu.state.gpr[RBP];
    cpu.push_on(&mut stack, T::new(rbp).get(), T::SIZE)?;
    let frame = stack.pointer;
    if level > 0 {
        let mut outer = cpu.stack();
        for number in 1..level as u64 {
            outer.pointer = rbp.wrapping_sub(number * T::SIZE);
            let value = cpu.pop_from(&mut outer, T::SIZE)?;
            cpu.push_on(&mut stack, value, T::SIZE)?;
        }
        cpu.push_on(&mut stack, T::new(frame).get(), T::SIZE)?;
    }
    let end = stack.pointer.wrapping_sub(op.immediate) & mask;
    // The new top of the stack must be writable, or the next push could not be trusted.
    let linear = if stack.long { end } else { cpu.checked_linear(SS, end, T::SIZE, true)? };
    cpu.probe(linear, T::SIZE, Access::Write, stack.view)?;
    cpu.set_stack_pointer(end);
    let rbp_slot = Slot::gpr(RBP);
    let rbp = frame & mask | rbp & !mask;
    match T::SIZE {
        2 => cpu.set_reg(rbp_slot, rbp as u16),
        4 => cpu.set_reg(rbp_slot, rbp as u32),
        _ => cpu.set_reg(rbp_slot, rbp),
    }
    Ok(Step::Next)
}

pub fn lahf(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let flags = cpu.state.rflags as u8 & 0xd5 | 2;
    cpu.set_reg(op.a, flags);
    Ok(Step::Next)
}

pub fn sahf(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let mask = STATUS & 0xff;
    let flags = cpu.reg::<u8>(op.a) as u64;
    cpu.state.rflags = cpu.state.rflags & !mask | flags & mask;
    Ok(Step::Next)
}

/// BOUND of 16 or 32 bits.
pub fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE * 2, false)?;
    let low = cpu.read::<T>(linear)?.signed();
    let high = cpu.read::<T>(linear.wrapping_add(T::SIZE))?.signed();
    let index = cpu.reg::<T>(op.a).signed();
    if index < low || index > high {
        return cpu.raise(Exception::plain(exception::BOUND_RANGE));
    }
    Ok(Step::Next)
}
