//! String instructions with every prefix, restartable between any two elements.
//!
//! Repeated moves and fills go in pieces that stay within a page at both ends, with
//! the host's instruction of the same name, so that overlapping operands give what
//! they give on the processor. Registers are brought up to date after each piece or
//! element; an interrupt is looked for after each piece. Where instructions are traced
//! or watched, every element is a step.

use std::arch::asm;
use std::sync::atomic::Ordering;

use super::alu::{Binary, Cmp};
use super::int::{Int, ZF};
use super::op::{Op, Run, Slot, Step};
use crate::cpu::Cpu;
use crate::cpu::mode::bits::DF;
use crate::state::{ES, RAX, RCX, RDI, RDX, RSI};

/// Bits of `small`.
pub const REPEAT: u8 = 1;
/// With REPEAT: CMPS and SCAS go on while unequal.
pub const WHILE_NOT_EQUAL: u8 = 2;

const PAGE: u64 = 4096;

/// Elements between two looks at what wants attention, where they go one by one.
const PATIENCE: u32 = 1024;

impl Cpu {
    #[inline(always)]
    fn index(&self, register: usize, op: &Op) -> u64 {
        self.state.gpr[register] & op.address.mask
    }

    /// Writes RSI, RDI or RCX at the address size.
    #[inline(always)]
    fn set_index(&mut self, register: usize, value: u64, op: &Op) {
        let gpr = &mut self.state.gpr[register];
        *gpr = match op.address.mask {
            0xffff => *gpr & !0xffff | value & 0xffff,
            mask => value & mask,
        };
    }

    fn source_linear(&mut self, op: &Op, size: u64) -> Run<u64> {
        let offset = self.index(RSI, op);
        if op.address.checked {
            self.checked_linear(op.address.segment as usize, offset, size, false)
        } else {
            Ok(offset.wrapping_add(self.reg::<u64>(op.address.segment_base)))
        }
    }

    fn destination_linear(&mut self, op: &Op, size: u64, write: bool) -> Run<u64> {
        let offset = self.index(RDI, op);
        if self.mode.flat { Ok(offset) } else { self.checked_linear(ES, offset, size, write) }
    }

    fn step_of(&self, size: u64) -> u64 {
        if self.state.rflags & DF == 0 { size } else { size.wrapping_neg() }
    }

    fn advance(&mut self, register: usize, by: u64, op: &Op) {
        let value = self.state.gpr[register].wrapping_add(by);
        self.set_index(register, value, op);
    }

    fn wants_attention(&self) -> bool {
        self.state.attention.load(Ordering::Relaxed) != 0
    }
}

/// How many elements can be done at once, forwards: up to the end of the page and of
/// the index's range.
fn room(linear: u64, index: u64, mask: u64, size: u64) -> u64 {
    let in_page = (PAGE - linear % PAGE) / size;
    let in_range = (mask - index) / size;
    in_page.min(in_range)
}

/// Repeats `element` while RCX says so; `goes_on` after it decides, too.
fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    mut element: impl FnMut(&mut Cpu) -> Run,
    goes_on: impl Fn(&Cpu) -> bool,
) -> Run<Step> {
    if op.small & REPEAT == 0 {
        element(cpu)?;
        return Ok(Step::Next);
    }
    let mut patience = if cpu.wants_single_steps() { 1 } else { PATIENCE };
    loop {
        let count = cpu.index(RCX, op);
        if count == 0 {
            return Ok(Step::Next);
        }
        element(cpu)?;
        cpu.set_index(RCX, count - 1, op);
        if !goes_on(cpu) || count == 1 {
            return Ok(Step::Next);
        }
        patience -= 1;
        if patience == 0 || patience.is_multiple_of(16) && cpu.wants_attention() {
            return Ok(Step::Again);
        }
    }
}

fn always(_: &Cpu) -> bool {
    true
}

fn move_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Run {
    let from = cpu.source_linear(op, T::SIZE)?;
    let value = cpu.read::<T>(from)?;
    let to = cpu.destination_linear(op, T::SIZE, true)?;
    cpu.write(to, value)?;
    let step = cpu.step_of(T::SIZE);
    cpu.advance(RSI, step, op);
    cpu.advance(RDI, step, op);
    Ok(())
}

/// MOVS.
pub fn movs<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if op.small & REPEAT == 0 {
        move_one::<T>(cpu, op)?;
        return Ok(Step::Next);
    }
    let single = cpu.wants_single_steps();
    loop {
        let count = cpu.index(RCX, op);
        if count == 0 {
            return Ok(Step::Next);
        }
        let done = move_piece::<T>(cpu, op, if single { 1 } else { count })?;
        cpu.set_index(RCX, count - done, op);
        if count != done && (single || cpu.wants_attention()) {
            return Ok(Step::Again);
        }
    }
}

fn move_piece<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Run<u64> {
    let forwards = cpu.state.rflags & DF == 0;
    if forwards && cpu.mode.flat && !op.address.checked {
        let from = cpu.source_linear(op, T::SIZE)?;
        let to = cpu.destination_linear(op, T::SIZE, true)?;
        let mask = op.address.mask;
        let piece = count.min(room(from, cpu.index(RSI, op), mask, T::SIZE)).min(room(
            to,
            cpu.index(RDI, op),
            mask,
            T::SIZE,
        ));
        let bytes = piece * T::SIZE;
        // SAFETY: the bank belongs to `spaces`; what it finds may be accessed for as
        // many bytes as were asked for.
        unsafe {
            let bank = &*cpu.state.bank;
            if piece > 1
                && let Some(source) = bank.find_read(from, bytes)
                && let Some(destination) = bank.find_write(to, bytes)
            {
                copy_elements::<T>(source, destination, piece);
                cpu.advance(RSI, bytes, op);
                cpu.advance(RDI, bytes, op);
                return Ok(piece);
            }
        }
    }
    move_one::<T>(cpu, op)?;
    Ok(1)
}

/// # Safety
///
/// The elements at both places are accessible.
unsafe fn copy_elements<T: Int>(from: *const u8, to: *mut u8, count: u64) {
    macro_rules! copy {
        ($insn:literal) => {
            // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
            unsafe {
                asm!($insn, inout("rcx") count => _, inout("rsi") from => _,
                    inout("rdi") to => _, options(nostack, preserves_flags))
            }
        };
    }
    match T::SIZE {
        1 => copy!("rep movsb"),
        2 => copy!("rep movsw"),
        4 => copy!("rep movsd"),
        _ => copy!("rep movsq"),
    }
}

fn store_one<T: Int>(cpu: &mut Cpu, op: &Op) -> Run {
    let to = cpu.destination_linear(op, T::SIZE, true)?;
    let value = cpu.reg::<T>(Slot::gpr(RAX));
    cpu.write(to, value)?;
    let step = cpu.step_of(T::SIZE);
    cpu.advance(RDI, step, op);
    Ok(())
}

/// STOS.
pub fn stos<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if op.small & REPEAT == 0 {
        store_one::<T>(cpu, op)?;
        return Ok(Step::Next);
    }
    let single = cpu.wants_single_steps();
    loop {
        let count = cpu.index(RCX, op);
        if count == 0 {
            return Ok(Step::Next);
        }
        let done = store_piece::<T>(cpu, op, if single { 1 } else { count })?;
        cpu.set_index(RCX, count - done, op);
        if count != done && (single || cpu.wants_attention()) {
            return Ok(Step::Again);
        }
    }
}

fn store_piece<T: Int>(cpu: &mut Cpu, op: &Op, count: u64) -> Run<u64> {
    if cpu.state.rflags & DF == 0 && cpu.mode.flat {
        let to = cpu.destination_linear(op, T::SIZE, true)?;
        let piece = count.min(room(to, cpu.index(RDI, op), op.address.mask, T::SIZE));
        let bytes = piece * T::SIZE;
        let value = cpu.state.gpr[RAX];
        // SAFETY: as in `move_piece`.
        unsafe {
            if piece > 1
                && let Some(destination) = (*cpu.state.bank).find_write(to, bytes)
            {
                fill_elements::<T>(destination, value, piece);
                cpu.advance(RDI, bytes, op);
                return Ok(piece);
            }
        }
    }
    store_one::<T>(cpu, op)?;
    Ok(1)
}

/// # Safety
///
/// The elements are writable.
unsafe fn fill_elements<T: Int>(to: *mut u8, value: u64, count: u64) {
    macro_rules! fill {
        ($insn:literal) => {
            // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
            unsafe {
                asm!($insn, inout("rcx") count => _, in("rax") value,
                    inout("rdi") to => _, options(nostack, preserves_flags))
            }
        };
    }
    match T::SIZE {
        1 => fill!("rep stosb"),
        2 => fill!("rep stosw"),
        4 => fill!("rep stosd"),
        _ => fill!("rep stosq"),
    }
}

/// LODS.
pub fn lods<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    repeat(
        cpu,
        op,
        |cpu| {
            let from = cpu.source_linear(op, T::SIZE)?;
            let value = cpu.read::<T>(from)?;
            cpu.set_reg(Slot::gpr(RAX), value);
            let step = cpu.step_of(T::SIZE);
            cpu.advance(RSI, step, op);
            Ok(())
        },
        always,
    )
}

fn goes_on(op: &Op) -> impl Fn(&Cpu) -> bool + use<> {
    let wanted = op.small & WHILE_NOT_EQUAL == 0;
    move |cpu: &Cpu| (cpu.state.rflags & ZF != 0) == wanted
}

/// SCAS.
pub fn scas<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    repeat(
        cpu,
        op,
        |cpu| {
            let at = cpu.destination_linear(op, T::SIZE, false)?;
            let there = cpu.read::<T>(at)?;
            let here = cpu.reg::<T>(Slot::gpr(RAX));
            cpu.state.rflags = Cmp::apply(here, there, cpu.state.rflags).1;
            let step = cpu.step_of(T::SIZE);
            cpu.advance(RDI, step, op);
            Ok(())
        },
        goes_on(op),
    )
}

/// CMPS.
pub fn cmps<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    repeat(
        cpu,
        op,
        |cpu| {
            let from = cpu.source_linear(op, T::SIZE)?;
            let a = cpu.read::<T>(from)?;
            let at = cpu.destination_linear(op, T::SIZE, false)?;
            let b = cpu.read::<T>(at)?;
            cpu.state.rflags = Cmp::apply(a, b, cpu.state.rflags).1;
            let step = cpu.step_of(T::SIZE);
            cpu.advance(RSI, step, op);
            cpu.advance(RDI, step, op);
            Ok(())
        },
        goes_on(op),
    )
}

/// INS. Where the element goes is checked before the port is read.
pub fn ins<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let port = cpu.state.gpr[RDX] as u16;
    cpu.check_port(port, T::SIZE as u8)?;
    repeat(
        cpu,
        op,
        |cpu| {
            let to = cpu.destination_linear(op, T::SIZE, true)?;
            let view = cpu.view();
            cpu.probe(to, T::SIZE, crate::memory::walk::Access::Write, view)?;
            let value = T::new(cpu.port_read(port, T::SIZE as usize));
            cpu.write(to, value)?;
            let step = cpu.step_of(T::SIZE);
            cpu.advance(RDI, step, op);
            Ok(())
        },
        always,
    )
}

/// OUTS.
pub fn outs<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let port = cpu.state.gpr[RDX] as u16;
    cpu.check_port(port, T::SIZE as u8)?;
    repeat(
        cpu,
        op,
        |cpu| {
            let from = cpu.source_linear(op, T::SIZE)?;
            let value = cpu.read::<T>(from)?;
            cpu.port_write(port, value.get(), T::SIZE as usize);
            let step = cpu.step_of(T::SIZE);
            cpu.advance(RSI, step, op);
            Ok(())
        },
        always,
    )
}
