//! Flags that are computed again if somebody wants them.
//!
//! Where control leaves a region, flags count as wanted, and they hardly ever are. If the
//! instruction that wrote them can be done again there, because its registers still have their
//! values, the frame does not get the flags but where the code is that computes them. Whoever
//! begins with flags that matter, and whoever leaves generated code or calls a helper, has
//! that code run first ([`Compiler::settle_flags`], [`emit_settle`]): registers are the same
//! then, or nobody wants the flags.
//!
//! The place is told in units of 16 bytes from the beginning of all code, around a bit of
//! [`Frame::flags`](super::frame::Frame::flags) that is always set where those are flags.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::block::{Cold, Compiler};
use super::emit::{Alu, Emit, Fixup, Reg, cc};
use super::flags::Flags;
use super::frame::{self, S0, S1};
use super::registers::{host_of, number_of};
use super::scan::Step;

/// The bit, and its place in the high byte.
const IS_FLAGS: u32 = 1 << 9;
const IN_HIGH_BYTE: u8 = 2;
const UNIT: u64 = 16;

#[derive(Clone, Copy)]
enum Again {
    /// As it is: it only compares.
    Same,
    /// On what its destination was.
    Undone(Alu),
    /// Its flags are those of its result.
    Result,
}

/// The instruction that wrote the flags last.
#[derive(Clone, Copy)]
pub(super) struct Setter {
    instruction: Instruction,
    again: Again,
    /// The registers that must stay as they are, a bit each.
    uses: u16,
}

impl Setter {
    fn of(instruction: &Instruction) -> Option<Setter> {
        let register = |operand| {
            let register = instruction.op_register(operand);
            (register.is_gpr() && matches!(register.size(), 4 | 8)).then(|| number_of(register))
        };
        let stays = |&number: &Reg| number != 4 && host_of(number) == Some(number);
        if instruction.op_count() != 2 || instruction.op0_kind() != OpKind::Register {
            return None;
        }
        let first = register(0).filter(stays)?;
        let second = match instruction.op1_kind() {
            OpKind::Register => Some(register(1).filter(stays)?),
            OpKind::Memory => return None,
            _ => None,
        };
        let both = 1 << first | second.map_or(0, |second| 1 << second);
        let (again, uses) = match instruction.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => (Again::Same, both),
            Mnemonic::Add if second != Some(first) => (Again::Undone(Alu::Add), both),
            Mnemonic::Sub if second != Some(first) => (Again::Undone(Alu::Sub), both),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => (Again::Result, 1 << first),
            _ => return None,
        };
        Some(Setter { instruction: *instruction, again, uses })
    }
}

impl Compiler<'_> {
    /// After an instruction: what the flags could be computed with.
    pub(super) fn note_setter(&mut self, step: &Step) {
        if step.modifies {
            self.setter = Setter::of(&step.instruction);
        } else if let Some(setter) = self.setter
            && self.changes(&step.instruction).0 & setter.uses != 0
        {
            self.setter = None;
        }
    }

    /// Before control leaves: flags that are in the host's get into the frame, or the place
    /// does that computes them.
    pub(super) fn defer_flags(&mut self, live: bool) {
        match self.setter {
            Some(setter) if live && self.flags.native && !self.flags.saved => {
                self.emit.store32_imm(frame::flags(), 0);
                let place = self.emit.here() - 4;
                self.cold.push(Cold::Deferred { place, setter });
                self.flags = Flags::SAVED;
            }
            _ => self.flags.put_aside(&mut self.emit, live),
        }
    }

    /// Has flags in the frame that come from elsewhere.
    pub(super) fn settle_flags(&mut self) {
        let enter = is_deferred(&mut self.emit);
        self.cold.push(Cold::Settle { enter, back: self.emit.here() });
    }

    /// The code that computes flags, whose place stands at `place`.
    pub(super) fn emit_deferred(&mut self, place: usize, setter: Setter) {
        while !(self.emit.origin + self.emit.here() as u64).is_multiple_of(UNIT) {
            self.emit.bytes(&[0xcc]);
        }
        let here = self.emit.origin + self.emit.here() as u64 - self.routines.enter;
        let unit = (here / UNIT) as u32;
        let told = unit & (IS_FLAGS - 1) | unit >> 9 << 10;
        self.emit.code[place..place + 4].copy_from_slice(&told.to_le_bytes());
        let Setter { instruction, again, .. } = setter;
        let number = number_of(instruction.op0_register());
        let wide = instruction.op0_register().size() == 8;
        match again {
            Again::Same => self.encode(&instruction),
            Again::Result => self.emit.op_reg(wide, &[0x85], number, number), // test
            Again::Undone(operation) => {
                self.emit.mov(S1, number);
                let back = if matches!(operation, Alu::Add) { Alu::Sub } else { Alu::Add };
                for operation in [back, operation] {
                    if instruction.op1_kind() == OpKind::Register {
                        let other = number_of(instruction.op1_register());
                        self.emit.op_reg(wide, &[(operation as u8) << 3 | 3], S1, other);
                    } else {
                        self.emit.alu_imm(wide, operation, S1, instruction.immediate(1) as i32);
                    }
                }
            }
        }
        let mut flags = Flags::NATIVE;
        flags.put_aside(&mut self.emit, true);
        self.emit.code.push(0xc3);
    }
}

/// Jumps if the frame has a place instead of flags. The host's flags are lost.
fn is_deferred(emit: &mut Emit) -> Fixup {
    emit.op_mem(false, &[0xf6], 0, frame::flags_high()); // test
    emit.bytes(&[IN_HIGH_BYTE]);
    emit.jcc(cc::E)
}

/// Calls the routine that computes flags if the frame has a place instead of them.
pub(super) fn emit_settle(emit: &mut Emit, routine: u64) {
    let deferred = is_deferred(emit);
    let settled = emit.jmp();
    emit.bind_here(deferred);
    emit.call_to(routine);
    emit.bind_here(settled);
}

/// The routine: computes flags where the frame tells a place from the beginning of all code.
/// Keeps all registers.
pub(super) fn emit_compute(emit: &mut Emit, beginning: u64) {
    emit.store(frame::scratch(2), S1);
    emit.store(frame::scratch(3), S0);
    emit.load32(S1, frame::flags());
    emit.mov32(S0, S1);
    emit.alu_imm(false, Alu::And, S0, IS_FLAGS as i32 - 1);
    emit.shift_imm(false, 5, S1, 10);
    emit.shift_imm(false, 4, S1, 9);
    emit.alu_reg(Alu::Or, S1, S0);
    emit.shift_imm(true, 4, S1, UNIT.trailing_zeros() as u8);
    emit.mov_imm(S0, beginning);
    emit.alu_reg(Alu::Add, S1, S0);
    emit.op_reg(false, &[0xff], 2, S1); // call r13
    emit.load(S0, frame::scratch(3));
    emit.load(S1, frame::scratch(2));
    emit.code.push(0xc3);
}

#[cfg(test)]
mod tests;
