//! Instructions of the kernel that are too frequent to be left to the interpreter:
//! they read a selector or the TSC, swap GS, or change a bit of RFLAGS and what hangs on it.
//!
//! - While an interrupt waits for IF, the vCPU sets `waiting` in the frame; only then
//!   does STI need the interpreter, which knows about its shadow.
//! - AC chooses between the supervisor's two banks, so STAC and CLAC choose here.

use iced_x86::{Code, Register};

use super::block::{Cold, Compiler};
use super::emit::{Alu, RAX, RCX, RDX, cc};
use super::flags::Flags;
use super::frame::{self, S0, S1};
use super::registers::{host_of, number_of};
use super::scan::Step;
use crate::state::GS;

const IF: i32 = 1 << 9;
const AC: i32 = 1 << 18;

impl Compiler<'_> {
    /// Whether it was such an instruction, in a mode where it raises nothing.
    pub(super) fn supervisor(&mut self, step: &Step) -> bool {
        let code = step.instruction.code();
        let known = matches!(code, Code::Cli | Code::Sti | Code::Stac | Code::Clac | Code::Swapgs);
        if !known || !self.setting.supervisor || !self.setting.features.allow(code) {
            return false;
        }
        if code == Code::Swapgs {
            self.emit.load(S0, frame::segment_base(GS));
            self.emit.load(S1, frame::kernel_gs_base());
            self.emit.store(frame::segment_base(GS), S1);
            self.emit.store(frame::kernel_gs_base(), S0);
            return true;
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

    /// RDTSC and RDTSCP: the host's counter and the guest's offset.
    pub(super) fn read_tsc(&mut self, step: &Step) {
        if self.setting.counted {
            // Twice is not the same.
            return self.interpret(step);
        }
        let instruction = step.instruction;
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        self.emit.alu_mem_imm32(Alu::Cmp, frame::tsc_usable(), 0);
        let enter = self.emit.jcc(cc::E);
        if instruction.code() == Code::Rdtscp {
            self.emit.bytes(&[0x0f, 0x01, 0xf9]);
            self.emit.load(RCX, frame::tsc_aux());
        } else {
            self.emit.bytes(&[0x0f, 0x31]);
        }
        self.emit.shift_imm(true, 4, RDX, 32);
        self.emit.alu_reg(Alu::Or, RDX, RAX);
        self.emit.alu_mem(Alu::Add, RDX, frame::tsc_offset());
        self.emit.mov32(RAX, RDX);
        self.emit.shift_imm(true, 5, RDX, 32);
        let back = self.emit.here();
        self.cold.push(Cold::InPlace { enter, instruction, back });
    }
}
