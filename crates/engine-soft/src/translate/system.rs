//! Instructions of the kernel that are too frequent to be left to the interpreter:
//! they read a selector, or change a bit of RFLAGS and what hangs on it.
//!
//! - While an interrupt waits for IF, the vCPU sets `waiting` in the frame; only then
//!   does STI need the interpreter, which knows about its shadow.
//! - AC chooses between the supervisor's two banks, so STAC and CLAC choose here.

use iced_x86::{Code, Register};

use super::block::{Cold, Compiler};
use super::emit::{Alu, cc};
use super::flags::Flags;
use super::frame::{self, S1};
use super::registers::{host_of, number_of};
use super::scan::Step;

const IF: i32 = 1 << 9;
const AC: i32 = 1 << 18;

impl Compiler<'_> {
    /// Whether it was such an instruction, in a mode where it raises nothing.
    pub(super) fn supervisor(&mut self, step: &Step) -> bool {
        let code = step.instruction.code();
        let known = matches!(code, Code::Cli | Code::Sti | Code::Stac | Code::Clac);
        if !known || !self.setting.supervisor || !self.setting.features.allow(code) {
            return false;
        }
        self.flags.put_aside(&mut self.emit, true);
        match code {
            Code::Cli => self.emit.alu_mem_imm32(Alu::And, frame::rflags(), !IF),
            Code::Sti => {
                self.emit.alu_mem_imm32(Alu::Cmp, frame::waiting(), 0);
                let enter = self.emit.jcc(cc::NE);
                self.emit.alu_mem_imm32(Alu::Or, frame::rflags(), IF);
                let (instruction, back) = (step.instruction, self.emit.here());
                self.cold.push(Cold::InPlace { enter, instruction, back });
            }
            Code::Stac => {
                self.emit.load(S1, frame::bank_with_ac());
                self.emit.store(frame::bank(), S1);
                self.emit.alu_mem_imm32(Alu::Or, frame::rflags(), AC);
            }
            _ => {
                self.emit.load(S1, frame::bank_without_ac());
                self.emit.store(frame::bank(), S1);
                self.emit.alu_mem_imm32(Alu::And, frame::rflags(), !AC);
            }
        }
        self.flags = Flags::SAVED;
        true
    }

    /// MOV of a selector to a register, zero-extended.
    pub(super) fn read_selector(&mut self, step: &Step) {
        let instruction = &step.instruction;
        let segment = instruction.op1_register() as usize - Register::ES as usize;
        let number = number_of(instruction.op0_register());
        let host = host_of(number).unwrap_or(S1);
        self.emit.op_mem(false, &[0x0f, 0xb7], host, frame::selector(segment)); // movzx
        if host_of(number).is_none() {
            self.emit.store(frame::gpr(number), S1);
        }
    }
}
