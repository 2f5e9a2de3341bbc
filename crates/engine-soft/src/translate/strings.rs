//! REP MOVS and REP STOS: a call to the routine that does them in page-sized pieces.

use iced_x86::{Mnemonic, OpKind};

use super::block::{Cold, Compiler};
use super::emit::cc;
use super::flags::Flags;
use super::frame::S0;
use super::scan::Step;

impl Compiler<'_> {
    pub(super) fn bulk_string(&mut self, step: &Step) {
        let instruction = &step.instruction;
        self.flags.put_aside(&mut self.emit, true);
        let log2 = match instruction.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Stosb => 0,
            Mnemonic::Movsw | Mnemonic::Stosw => 1,
            Mnemonic::Movsd | Mnemonic::Stosd => 2,
            _ => 3,
        };
        let moves = instruction.op1_kind() == OpKind::MemorySegRSI;
        let routine = if moves { self.routines.movs } else { self.routines.stos }[log2];
        self.emit.call_to(routine);
        self.emit.op_reg(false, &[0x85], S0, S0); // test r10d, r10d
        let enter = self.emit.jcc(cc::NE);
        let (instruction, back) = (*instruction, self.back_in_place());
        self.cold.push(Cold::InPlace { enter, instruction, back });
        self.flags = Flags::SAVED;
    }
}
