//! Shifts and rotates.

use super::int::{CF, Int, OF, STATUS};
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::state::RCX;

/// `count` is masked by the operand's width already.
pub trait Shift {
    fn apply<T: Int>(a: T, count: u8, flags: u64) -> (T, u64);
}

macro_rules! shift {
    ($name:ident, $method:ident) => {
        pub struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Int>(a: T, count: u8, flags: u64) -> (T, u64) {
                if count == 0 {
                    return (a, flags);
                }
                let (result, status) = a.$method(count);
                (result, flags & !STATUS | status)
            }
        }
    };
}

shift!(Shl, shl);
shift!(Shr, shr);
shift!(Sar, sar);

/// Rotates change CF and OF only.
macro_rules! rotate {
    ($name:ident, $method:ident $(, $carry:ident)?) => {
        pub struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Int>(a: T, count: u8, flags: u64) -> (T, u64) {
                if count == 0 {
                    return (a, flags);
                }
                $(let $carry = flags;)?
                let (result, status) = a.$method(count $(, $carry)?);
                (result, flags & !(CF | OF) | status & (CF | OF))
            }
        }
    };
}

rotate!(Rol, rol);
rotate!(Ror, ror);
rotate!(Rcl, rcl, carry);
rotate!(Rcr, rcr, carry);

#[inline(always)]
fn masked<T: Int>(count: u8) -> u8 {
    count & if T::SIZE == 8 { 63 } else { 31 }
}

fn cl(cpu: &Cpu) -> u8 {
    cpu.state.gpr[RCX] as u8
}

#[inline(always)]
fn in_reg<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u8) -> Run<Step> {
    let a = cpu.reg::<T>(op.a);
    let (result, flags) = O::apply(a, masked::<T>(count), cpu.state.rflags);
    cpu.state.rflags = flags;
    cpu.set_reg(op.a, result);
    Ok(Step::Next)
}

fn in_memory<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op, count: u8) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = cpu.state.rflags;
    let mut flags = old;
    cpu.modify::<T>(linear, |_, a| {
        let (result, new) = O::apply(a, masked::<T>(count), old);
        flags = new;
        result
    })?;
    cpu.state.rflags = flags;
    Ok(Step::Next)
}

pub fn reg_imm<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    in_reg::<O, T>(cpu, op, op.immediate as u8)
}

pub fn reg_cl<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let count = cl(cpu);
    in_reg::<O, T>(cpu, op, count)
}

pub fn mem_imm<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    in_memory::<O, T>(cpu, op, op.immediate as u8)
}

pub fn mem_cl<O: Shift, T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let count = cl(cpu);
    in_memory::<O, T>(cpu, op, count)
}

/// SHLD and SHRD through the host's instructions, for 16, 32 and 64 bits.
pub trait Double: Int {
    fn shld(self, from: Self, count: u8) -> (Self, u64);
    fn shrd(self, from: Self, count: u8) -> (Self, u64);
}

macro_rules! double {
    ($t:ty, $m:literal) => {
        impl Double for $t {
            double!(@ shld, "shld", $t, $m);
            double!(@ shrd, "shrd", $t, $m);
        }
    };
    (@ $name:ident, $insn:literal, $t:ty, $m:literal) => {
        fn $name(self, from: Self, count: u8) -> (Self, u64) {
            let mut r = self;
            let ax: u16;
            // SAFETY: arithmetic on registers.
            unsafe {
                std::arch::asm!(
                    concat!($insn, " {r", $m, "}, {f", $m, "}, cl"),
                    "seto al",
                    "lahf",
                    r = inout(reg) r, f = in(reg) from, in("cl") count, out("ax") ax,
                    options(pure, nomem, nostack)
                );
            }
            let ax = ax as u64;
            (r, (ax >> 8) & (STATUS & 0xff) | (ax & 1) << 11)
        }
    };
}

double!(u16, ":x");
double!(u32, ":e");
double!(u64, ":r");

#[inline(always)]
fn doubled<T: Double>(a: T, b: T, left: bool, count: u8, flags: u64) -> (T, u64) {
    let count = masked::<T>(count);
    if count == 0 {
        return (a, flags);
    }
    let (result, status) = if left { a.shld(b, count) } else { a.shrd(b, count) };
    (result, flags & !STATUS | status)
}

/// `small`: bit 0 left, bit 1 count in CL; else the count is `immediate`.
fn double_count(cpu: &Cpu, op: &Op) -> u8 {
    if op.small & 2 != 0 { cl(cpu) } else { op.immediate as u8 }
}

pub fn double_reg<T: Double>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let count = double_count(cpu, op);
    let (a, b) = (cpu.reg::<T>(op.a), cpu.reg::<T>(op.b));
    let (result, flags) = doubled(a, b, op.small & 1 != 0, count, cpu.state.rflags);
    cpu.state.rflags = flags;
    cpu.set_reg(op.a, result);
    Ok(Step::Next)
}

pub fn double_mem<T: Double>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let count = double_count(cpu, op);
    let b = cpu.reg::<T>(op.b);
    let linear = cpu.linear(op, T::SIZE, true)?;
    let old = cpu.state.rflags;
    let mut flags = old;
    cpu.modify::<T>(linear, |_, a| {
        let (result, new) = doubled(a, b, op.small & 1 != 0, count, old);
        flags = new;
        result
    })?;
    cpu.state.rflags = flags;
    Ok(Step::Next)
}

/// BSWAP; of 16 bits it gives 0 on the processors that we know.
pub fn bswap(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    swap(cpu, op.a, op.small)
}

fn swap(cpu: &mut Cpu, slot: Slot, size: u8) -> Run<Step> {
    match size {
        8 => cpu.set_reg(slot, cpu.reg::<u64>(slot).swap_bytes()),
        4 => cpu.set_reg(slot, cpu.reg::<u32>(slot).swap_bytes()),
        _ => cpu.set_reg(slot, 0u16),
    }
    Ok(Step::Next)
}
