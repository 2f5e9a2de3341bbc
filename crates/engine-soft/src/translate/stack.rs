//! Pushes and pops. The guest's RSP changes after the access, so that a fault finds
//! it as it was: later, if instructions follow that neither see it nor can stop.

use iced_x86::OpKind;

use super::block::Compiler;
use super::emit::{Alu, Mem, RBP, RSP};
use super::frame::{self, ARITHMETIC, S0, S1, STACK};
use super::registers::{host_of, number_of};
use super::scan::Step;

impl Compiler<'_> {
    pub(super) fn push(&mut self, step: &Step) {
        let instruction = &step.instruction;
        if self.groups.form().is_none() {
            self.flags.put_aside(&mut self.emit, step.live_in != 0);
        }
        match instruction.op0_kind() {
            OpKind::Register => {
                let number = number_of(instruction.op0_register());
                let place = self.check_push(step);
                let source = self.value_of(number);
                self.emit.store(place, source);
            }
            OpKind::Memory => {
                let place = self.check_address(step, 8, false).operand();
                self.emit.load(S0, place);
                self.emit.store(frame::scratch(1), S0);
                let place = self.check_push(step);
                self.emit.load(S1, frame::scratch(1));
                self.emit.store(place, S1);
            }
            _ => {
                let place = self.check_push(step);
                self.emit.store_imm(place, instruction.immediate(0) as i32);
            }
        }
        self.stack_ahead -= 8;
    }

    /// Where the eight bytes below the stack pointer are, to be written.
    pub(super) fn check_push(&mut self, step: &Step) -> Mem {
        let form = self.groups.form();
        form.unwrap_or_else(|| self.check_based(step, (RSP, -8), 8, true)).operand()
    }

    /// Where the eight bytes at the stack pointer are, to be read.
    pub(super) fn check_pop(&mut self, step: &Step) -> Mem {
        let form = self.groups.form();
        form.unwrap_or_else(|| self.check_based(step, (RSP, 0), 8, false)).operand()
    }

    pub(super) fn pop(&mut self, step: &Step) {
        if self.groups.form().is_none() {
            self.flags.put_aside(&mut self.emit, step.live_in != 0);
        }
        let number = number_of(step.instruction.op0_register());
        let place = self.check_pop(step);
        match host_of(number) {
            Some(STACK) => return self.emit.load(STACK, place),
            Some(host) => self.emit.load(host, place),
            None => {
                self.emit.load(S1, place);
                self.keep_s1(number);
            }
        }
        self.stack_ahead += 8;
    }

    /// LEAVE: RSP from RBP, then RBP from the stack.
    pub(super) fn leave(&mut self, step: &Step) {
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        let place = self.check_based(step, (RBP, 0), 8, false).operand();
        self.emit.lea(STACK, Mem::at(RBP, 8));
        self.emit.load(RBP, place);
    }

    /// PUSHFQ: arithmetic flags from the frame, the others from the state.
    pub(super) fn push_flags(&mut self, step: &Step) {
        self.flags.put_aside(&mut self.emit, true);
        self.emit.load32(S0, frame::flags());
        self.emit.mov32(S1, S0);
        self.emit.shift_imm(false, 5, S0, 8);
        self.emit.alu_imm(false, Alu::And, S0, 0xd5);
        self.emit.alu_imm(false, Alu::And, S1, 1);
        self.emit.shift_imm(false, 4, S1, 11);
        self.emit.alu_reg(Alu::Or, S0, S1);
        self.emit.load32(S1, frame::rflags());
        // RF and VM are pushed as zeros.
        self.emit.alu_imm(false, Alu::And, S1, !(ARITHMETIC as i32 | 0x30000));
        self.emit.alu_reg(Alu::Or, S0, S1);
        self.emit.store(frame::scratch(1), S0);
        let place = self.check_push(step);
        self.emit.load(S1, frame::scratch(1));
        self.emit.store(place, S1);
        self.emit.lea(STACK, Mem::at(STACK, -8));
    }

    pub(super) fn clear_direction(&mut self, step: &Step) {
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        self.emit.alu_mem_imm32(Alu::And, frame::rflags(), !0x400);
    }
}
