//! Multiplication and division, and the widening moves within RAX and RDX.

use super::int::{Int, STATUS};
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::exception::{self, Exception};
use crate::state::{RAX, RDX};

const A: Slot = Slot::gpr(RAX);
const D: Slot = Slot::gpr(RDX);

fn operand<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<T> {
    // `small` says that the operand is in memory.
    if op.small & 1 != 0 { cpu.load(op) } else { Ok(cpu.reg(op.a)) }
}

fn set_product<T: Int>(cpu: &mut Cpu, low: T, high: T, status: u64) {
    if T::SIZE == 1 {
        cpu.set_reg(A, (low.get() | high.get() << 8) as u16);
    } else {
        cpu.set_reg(A, low);
        cpu.set_reg(D, high);
    }
    cpu.state.rflags = cpu.state.rflags & !STATUS | status;
}

pub fn mul<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let b = operand::<T>(cpu, op)?;
    let (low, high, status) = cpu.reg::<T>(A).mul(b, cpu.state.rflags);
    set_product(cpu, low, high, status);
    Ok(Step::Next)
}

pub fn imul<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let b = operand::<T>(cpu, op)?;
    let (low, high, status) = cpu.reg::<T>(A).imul(b, cpu.state.rflags);
    set_product(cpu, low, high, status);
    Ok(Step::Next)
}

/// IMUL of two or three operands: `small` bit 0: one is in memory, bit 1: the other is
/// the immediate.
pub fn imul_to<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let there = if op.small & 1 != 0 { cpu.load::<T>(op)? } else { cpu.reg(op.b) };
    let other = if op.small & 2 != 0 { T::new(op.immediate) } else { cpu.reg(op.a) };
    let (low, _, status) = there.imul(other, cpu.state.rflags);
    cpu.set_reg(op.a, low);
    cpu.state.rflags = cpu.state.rflags & !STATUS | status;
    Ok(Step::Next)
}

fn dividend<T: Int>(cpu: &Cpu) -> u128 {
    if T::SIZE == 1 {
        cpu.reg::<u16>(A) as u128
    } else {
        cpu.reg::<T>(A).get() as u128 | (cpu.reg::<T>(D).get() as u128) << T::BITS
    }
}

fn set_quotient<T: Int>(cpu: &mut Cpu, quotient: u64, remainder: u64) {
    if T::SIZE == 1 {
        cpu.set_reg(A, (quotient & 0xff | (remainder & 0xff) << 8) as u16);
    } else {
        cpu.set_reg(A, T::new(quotient));
        cpu.set_reg(D, T::new(remainder));
    }
}

fn divide_error<T>(cpu: &mut Cpu) -> Run<T> {
    cpu.raise(Exception::plain(exception::DIVIDE_ERROR))
}

pub fn div<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let divisor = operand::<T>(cpu, op)?.get();
    let dividend = dividend::<T>(cpu);
    if divisor == 0 {
        return divide_error(cpu);
    }
    // Most dividends have an empty upper half, and 128-bit division is slow.
    let (quotient, remainder) = match u64::try_from(dividend) {
        Ok(dividend) => ((dividend / divisor) as u128, dividend % divisor),
        Err(_) => (dividend / divisor as u128, (dividend % divisor as u128) as u64),
    };
    if quotient >> T::BITS != 0 {
        return divide_error(cpu);
    }
    set_quotient::<T>(cpu, quotient as u64, remainder);
    Ok(Step::Next)
}

pub fn idiv<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let divisor = operand::<T>(cpu, op)?.signed() as i128;
    let bits = T::BITS * 2;
    let dividend = (dividend::<T>(cpu) << (128 - bits)) as i128 >> (128 - bits);
    let Some(quotient) = dividend.checked_div(divisor) else {
        return divide_error(cpu);
    };
    let remainder = dividend.wrapping_rem(divisor);
    if quotient != T::new(quotient as u64).signed() as i128 {
        return divide_error(cpu);
    }
    set_quotient::<T>(cpu, quotient as u64, remainder as u64);
    Ok(Step::Next)
}

/// CBW, CWDE, CDQE: `small` is the size of the result.
pub fn widen(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    match op.small {
        2 => cpu.set_reg(A, cpu.reg::<u8>(A) as i8 as u16),
        4 => cpu.set_reg(A, cpu.reg::<u16>(A) as i16 as u32),
        _ => cpu.set_reg(A, cpu.reg::<u32>(A) as i32 as u64),
    }
    Ok(Step::Next)
}

/// CWD, CDQ, CQO: the sign goes to the register of size `small`.
pub fn spread_sign(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    match op.small {
        2 => cpu.set_reg(D, (cpu.reg::<u16>(A) as i16 >> 15) as u16),
        4 => cpu.set_reg(D, (cpu.reg::<u32>(A) as i32 >> 31) as u32),
        _ => cpu.set_reg(D, (cpu.reg::<u64>(A) as i64 >> 63) as u64),
    }
    Ok(Step::Next)
}
