//! Instructions of the kernel that are too frequent to be left to the interpreter:
//! they read a selector, a segment's base or the TSC, swap GS, or change a bit of RFLAGS and what hangs on it.
//!
//! - While an interrupt waits for IF, the vCPU sets `waiting` in the frame; only then
//!   does STI need the interpreter, which knows about its shadow.
//! - AC chooses between the supervisor's two banks, so STAC and CLAC choose here.

use iced_x86::{Code, Mnemonic, Register};

use super::block::{Cold, Compiler};
use super::emit::{Alu, RAX, RCX, RDX, cc};
use super::flags::Flags;
use super::frame::{self, S0, S1};
use super::registers::{host_of, number_of};
use super::scan::Step;
use crate::state::{FS, GS};

const IF: i32 = 1 << 9;
const AC: i32 = 1 << 18;
/// In CR4.
const FSGSBASE: u32 = 1 << 16;

impl Compiler<'_> {
    /// Whether it was such an instruction, in a mode where it raises nothing.
    pub(super) fn supervisor(&mut self, step: &Step) -> bool {
        let code = step.instruction.code();
        if matches!(
            step.instruction.mnemonic(),
            Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase
        ) && self.setting.features.allow(code)
        {
            self.segment_base(step);
            return true;
        }
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
                let (instruction, back) = (step.instruction, self.back_in_place());
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

    /// RDFSBASE and its kin, where CR4 allows them.
    fn segment_base(&mut self, step: &Step) {
        let instruction = step.instruction;
        let register = instruction.op0_register();
        let (number, wide) = (number_of(register), register.size() == 8);
        let (segment, write) = match instruction.mnemonic() {
            Mnemonic::Rdfsbase => (FS, false),
            Mnemonic::Rdgsbase => (GS, false),
            Mnemonic::Wrfsbase => (FS, true),
            _ => (GS, true),
        };
        self.flags.put_aside(&mut self.emit, true);
        self.emit.op_mem(false, &[0xf7], 0, frame::cr4()); // test
        self.emit.bytes(&FSGSBASE.to_le_bytes());
        let mut enters = vec![self.emit.jcc(cc::E)];
        if write {
            match host_of(number) {
                Some(host) if wide => self.emit.mov(S0, host),
                Some(host) => self.emit.mov32(S0, host),
                None if wide => self.emit.load(S0, frame::gpr(number)),
                None => self.emit.load32(S0, frame::gpr(number)),
            }
            // Not canonical: an exception.
            self.emit.mov(S1, S0);
            self.emit.shift_imm(true, 4, S1, 16);
            self.emit.shift_imm(true, 7, S1, 16);
            self.emit.alu_reg(Alu::Cmp, S1, S0);
            enters.push(self.emit.jcc(cc::NE));
            self.emit.store(frame::segment_base(segment), S0);
        } else {
            let host = host_of(number).unwrap_or(S0);
            if wide {
                self.emit.load(host, frame::segment_base(segment));
            } else {
                self.emit.load32(host, frame::segment_base(segment));
            }
            if host_of(number).is_none() {
                self.emit.store(frame::gpr(number), S0);
            }
        }
        let back = self.back_in_place();
        for enter in enters {
            self.cold.push(Cold::InPlace { enter, instruction, back });
        }
        self.flags = Flags::SAVED;
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
        let back = self.back_in_place();
        self.cold.push(Cold::InPlace { enter, instruction, back });
    }
}
