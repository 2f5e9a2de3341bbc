//! Two- and one-operand arithmetic and logic, and conditions.

use super::int::{CF, Int, STATUS, condition};
use super::op::{Op, Run, Step};
use crate::cpu::Cpu;

/// An operation of two operands that sets all status flags. Flags go in and out as
/// RFLAGS.
pub trait Binary {
    const WRITES: bool = true;
    fn apply<T: Int>(a: T, b: T, flags: u64) -> (T, u64);
}

macro_rules! binary {
    ($name:ident, $method:ident, $writes:literal) => {
        pub struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply<T: Int>(a: T, b: T, flags: u64) -> (T, u64) {
                let (result, status) = a.$method(b);
                (result, flags & !STATUS | status)
            }
        }
    };
}

binary!(Add, add, true);
binary!(Sub, sub, true);
binary!(And, and, true);
binary!(Or, or, true);
binary!(Xor, xor, true);
binary!(Cmp, sub, false);
binary!(Test, and, false);

pub struct Adc;
impl Binary for Adc {
    #[inline(always)]
    fn apply<T: Int>(a: T, b: T, flags: u64) -> (T, u64) {
        let (result, status) = a.adc(b, flags);
        (result, flags & !STATUS | status)
    }
}

pub struct Sbb;
impl Binary for Sbb {
    #[inline(always)]
    fn apply<T: Int>(a: T, b: T, flags: u64) -> (T, u64) {
        let (result, status) = a.sbb(b, flags);
        (result, flags & !STATUS | status)
    }
}

impl Cpu {
    /// The effective address, without its segment.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        let address = &op.address;
        let base = self.reg::<u64>(address.base);
        let index = self.reg::<u64>(address.index) << address.scale;
        base.wrapping_add(index).wrapping_add(address.displacement) & address.mask
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub fn linear(&mut self, op: &Op, size: u64, write: bool) -> Run<u64> {
        let offset = self.offset(op);
        if op.address.checked {
            self.checked_linear(op.address.segment as usize, offset, size, write)
        } else {
            Ok(offset.wrapping_add(self.reg::<u64>(op.address.segment_base)))
        }
    }

    #[inline(always)]
    pub fn load<T: Int>(&mut self, op: &Op) -> Run<T> {
        let linear = self.linear(op, T::SIZE, false)?;
        self.read(linear)
    }

    #[inline(always)]
    pub fn store<T: Int>(&mut self, op: &Op, value: T) -> Run {
        let linear = self.linear(op, T::SIZE, true)?;
        self.write(linear, value)
    }
}

pub fn reg_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let (a, b) = (cpu.reg::<T>(op.a), cpu.reg::<T>(op.b));
    let (result, flags) = O::apply(a, b, cpu.state.rflags);
    cpu.state.rflags = flags;
    if O::WRITES {
        cpu.set_reg(op.a, result);
    }
    Ok(Step::Next)
}

pub fn reg_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let a = cpu.reg::<T>(op.a);
    let (result, flags) = O::apply(a, T::new(op.immediate), cpu.state.rflags);
    cpu.state.rflags = flags;
    if O::WRITES {
        cpu.set_reg(op.a, result);
    }
    Ok(Step::Next)
}

pub fn reg_mem<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let b = cpu.load::<T>(op)?;
    let (result, flags) = O::apply(cpu.reg::<T>(op.a), b, cpu.state.rflags);
    cpu.state.rflags = flags;
    if O::WRITES {
        cpu.set_reg(op.a, result);
    }
    Ok(Step::Next)
}

#[inline(always)]
fn to_memory<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Run<Step> {
    if O::WRITES {
        let linear = cpu.linear(op, T::SIZE, true)?;
        let mut flags = cpu.state.rflags;
        let old = flags;
        cpu.modify::<T>(linear, |_, a| {
            let (result, new) = O::apply(a, b, old);
            flags = new;
            result
        })?;
        cpu.state.rflags = flags;
    } else {
        let a = cpu.load::<T>(op)?;
        cpu.state.rflags = O::apply(a, b, cpu.state.rflags).1;
    }
    Ok(Step::Next)
}

pub fn mem_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let b = cpu.reg::<T>(op.b);
    to_memory::<O, T>(cpu, op, b)
}

pub fn mem_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    to_memory::<O, T>(cpu, op, T::new(op.immediate))
}

fn locked<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op, b: T) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = cpu.state.rflags;
    let mut flags = old;
    cpu.modify_locked::<T>(linear, |_, a| {
        let (result, new) = O::apply(a, b, old);
        flags = new;
        result
    })?;
    cpu.state.rflags = flags;
    Ok(Step::Next)
}

pub fn locked_reg<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let b = cpu.reg::<T>(op.b);
    locked::<O, T>(cpu, op, b)
}

pub fn locked_imm<O: Binary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    locked::<O, T>(cpu, op, T::new(op.immediate))
}

/// An operation of one operand.
pub trait Unary {
    fn apply<T: Int>(a: T, flags: u64) -> (T, u64);
}

pub struct Inc;
impl Unary for Inc {
    #[inline(always)]
    fn apply<T: Int>(a: T, flags: u64) -> (T, u64) {
        let (result, status) = a.add(T::new(1));
        (result, flags & !(STATUS & !CF) | status & !CF)
    }
}

pub struct Dec;
impl Unary for Dec {
    #[inline(always)]
    fn apply<T: Int>(a: T, flags: u64) -> (T, u64) {
        let (result, status) = a.sub(T::new(1));
        (result, flags & !(STATUS & !CF) | status & !CF)
    }
}

pub struct Neg;
impl Unary for Neg {
    #[inline(always)]
    fn apply<T: Int>(a: T, flags: u64) -> (T, u64) {
        let (result, status) = T::new(0).sub(a);
        (result, flags & !STATUS | status)
    }
}

pub struct Not;
impl Unary for Not {
    #[inline(always)]
    fn apply<T: Int>(a: T, flags: u64) -> (T, u64) {
        (T::new(!a.get()), flags)
    }
}

pub fn unary_reg<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let (result, flags) = O::apply(cpu.reg::<T>(op.a), cpu.state.rflags);
    cpu.state.rflags = flags;
    cpu.set_reg(op.a, result);
    Ok(Step::Next)
}

pub fn unary_mem<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = cpu.state.rflags;
    let mut flags = old;
    cpu.modify::<T>(linear, |_, a| {
        let (result, new) = O::apply(a, old);
        flags = new;
        result
    })?;
    cpu.state.rflags = flags;
    Ok(Step::Next)
}

pub fn unary_locked<O: Unary, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = cpu.state.rflags;
    let mut flags = old;
    cpu.modify_locked::<T>(linear, |_, a| {
        let (result, new) = O::apply(a, old);
        flags = new;
        result
    })?;
    cpu.state.rflags = flags;
    Ok(Step::Next)
}

pub fn setcc_reg(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let holds = condition(op.small, cpu.state.rflags);
    cpu.set_reg(op.a, holds as u8);
    Ok(Step::Next)
}

pub fn setcc_mem(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let holds = condition(op.small, cpu.state.rflags);
    cpu.store(op, holds as u8)?;
    Ok(Step::Next)
}

pub fn cmov_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let from = if condition(op.small, cpu.state.rflags) { op.b } else { op.a };
    let value = cpu.reg::<T>(from);
    cpu.set_reg(op.a, value);
    Ok(Step::Next)
}

pub fn cmov_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let there = cpu.load::<T>(op)?;
    let here = cpu.reg::<T>(op.a);
    cpu.set_reg(op.a, if condition(op.small, cpu.state.rflags) { there } else { here });
    Ok(Step::Next)
}

/// CLC, STC, CMC, CLD and STD: `immediate` is the bit, `small` what happens to it.
pub fn change_flag(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let flags = cpu.state.rflags;
    cpu.state.rflags = match op.small {
        0 => flags & !op.immediate,
        1 => flags | op.immediate,
        _ => flags ^ op.immediate,
    };
    Ok(Step::Next)
}
