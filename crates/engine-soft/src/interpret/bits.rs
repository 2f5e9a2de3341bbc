//! Bit tests (register offsets reach beyond the operand in memory), and scans.

use super::int::{CF, Int, STATUS, scan_status};
use super::op::{Op, Run, Step};
use crate::cpu::Cpu;

/// What happens to the bit after it was copied to CF.
pub trait Change {
    const CHANGES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

pub struct Keep;
impl Change for Keep {
    const CHANGES: bool = false;
    fn apply(value: u64, _bit: u64) -> u64 {
        value
    }
}

pub struct Set;
impl Change for Set {
    fn apply(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

pub struct Reset;
impl Change for Reset {
    fn apply(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

pub struct Complement;
impl Change for Complement {
    fn apply(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.state.rflags = cpu.state.rflags & !CF | carry as u64;
}

fn in_register<C: Change, T: Int>(cpu: &mut Cpu, op: &Op, number: u64) -> Run<Step> {
    let bit = 1u64 << (number % T::BITS as u64);
    let value = cpu.reg::<T>(op.a).get();
    set_carry(cpu, value & bit != 0);
    if C::CHANGES {
        cpu.set_reg(op.a, T::new(C::apply(value, bit)));
    }
    Ok(Step::Next)
}

pub fn reg_reg<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let number = cpu.reg::<T>(op.b).get();
    in_register::<C, T>(cpu, op, number)
}

pub fn reg_imm<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    in_register::<C, T>(cpu, op, op.immediate)
}

/// `small` bit 0: LOCK.
fn in_memory<C: Change, T: Int>(cpu: &mut Cpu, op: &Op, skip: i64, number: u64) -> Run<Step> {
    let offset = cpu.offset(op).wrapping_add(skip as u64) & op.address.mask;
    let linear = if op.address.checked {
        let segment = op.address.segment as usize;
        cpu.checked_linear(segment, offset, T::SIZE, C::CHANGES)?
    } else {
        offset.wrapping_add(cpu.reg::<u64>(op.address.segment_base))
    };
    let bit = 1u64 << (number % T::BITS as u64);
    let mut carry = false;
    if !C::CHANGES {
        carry = cpu.read::<T>(linear)?.get() & bit != 0;
    } else {
        let change = |_: &mut Cpu, value: T| {
            carry = value.get() & bit != 0;
            T::new(C::apply(value.get(), bit))
        };
        if op.small & 1 != 0 {
            cpu.modify_locked(linear, change)?;
        } else {
            cpu.modify(linear, change)?;
        }
    }
    set_carry(cpu, carry);
    Ok(Step::Next)
}

pub fn mem_reg<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let number = cpu.reg::<T>(op.b).signed();
    let skip = (number >> T::BITS.trailing_zeros()) * T::SIZE as i64;
    in_memory::<C, T>(cpu, op, skip, number as u64)
}

pub fn mem_imm<C: Change, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    in_memory::<C, T>(cpu, op, 0, op.immediate)
}

fn source<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<T> {
    if op.small & 1 != 0 { cpu.load(op) } else { Ok(cpu.reg(op.b)) }
}

/// BSF: a source of 0 leaves the destination as it is.
pub fn scan_forward<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = source::<T>(cpu, op)?.get();
    scan(cpu, op, T::new(value.trailing_zeros() as u64), value, true)
}

pub fn scan_reverse<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = source::<T>(cpu, op)?.get();
    scan(cpu, op, T::new(63u64.wrapping_sub(value.leading_zeros() as u64)), value, false)
}

fn scan<T: Int>(cpu: &mut Cpu, op: &Op, result: T, value: u64, forward: bool) -> Run<Step> {
    let flags = cpu.state.rflags;
    cpu.state.rflags = flags & !STATUS | scan_status(value, forward, flags);
    if value != 0 {
        cpu.set_reg(op.a, result);
    }
    Ok(Step::Next)
}
