//! Chooses handlers for arithmetic, logic, moves and strings.

use iced_x86::{Mnemonic, OpKind, Register};

use super::{Builder, Choice, ends, goes_on, segment_index, sized, wide};
use crate::interpret::alu::{self, Binary, Unary};
use crate::interpret::bits::{self, Change};
use crate::interpret::multiply;
use crate::interpret::op::{Handler, Slot};
use crate::interpret::shift::{self, Shift};
use crate::interpret::{moves, stack, strings, vector};
use crate::state::RAX;

impl Builder<'_> {
    pub(super) fn integer(&mut self) -> Option<Choice> {
        use Mnemonic::*;
        match self.mnemonic() {
            Add => self.binary::<alu::Add>(),
            Sub => self.binary::<alu::Sub>(),
            And => self.binary::<alu::And>(),
            Or => self.binary::<alu::Or>(),
            Xor => self.binary::<alu::Xor>(),
            Cmp => self.binary::<alu::Cmp>(),
            Test => self.binary::<alu::Test>(),
            Adc => self.binary::<alu::Adc>(),
            Sbb => self.binary::<alu::Sbb>(),
            Inc => self.unary::<alu::Inc>(),
            Dec => self.unary::<alu::Dec>(),
            Neg => self.unary::<alu::Neg>(),
            Not => self.unary::<alu::Not>(),
            Shl | Sal => self.shift::<shift::Shl>(),
            Shr => self.shift::<shift::Shr>(),
            Sar => self.shift::<shift::Sar>(),
            Rol => self.shift::<shift::Rol>(),
            Ror => self.shift::<shift::Ror>(),
            Rcl => self.shift::<shift::Rcl>(),
            Rcr => self.shift::<shift::Rcr>(),
            Shld => self.double_shift(1),
            Shrd => self.double_shift(0),
            Bt => self.bit::<bits::Keep>(),
            Bts => self.bit::<bits::Set>(),
            Btr => self.bit::<bits::Reset>(),
            Btc => self.bit::<bits::Complement>(),
            Bsf => self.scan(false),
            Bsr => self.scan(true),
            Mul | Imul | Div | Idiv => self.multiply(),
            Cbw | Cwde | Cdqe => {
                self.op.small = match self.mnemonic() {
                    Cbw => 2,
                    Cwde => 4,
                    _ => 8,
                };
                goes_on(multiply::widen)
            }
            Cwd | Cdq | Cqo => {
                self.op.small = match self.mnemonic() {
                    Cwd => 2,
                    Cdq => 4,
                    _ => 8,
                };
                goes_on(multiply::spread_sign)
            }
            Mov => self.mov(),
            Movzx => self.extend(false),
            Movsx | Movsxd => self.extend(true),
            Lea => {
                self.op.a = self.slot(0);
                goes_on(wide!(self.size(0), moves::lea))
            }
            Bswap => {
                self.op.a = self.slot(0);
                self.op.small = self.size(0) as u8;
                goes_on(shift::bswap)
            }
            Xlatb => goes_on(moves::xlat),
            Xchg => self.exchange(),
            Xadd => self.exchange_add(),
            Cmpxchg => self.compare_exchange(),
            Cmpxchg8b => goes_on(moves::cmpxchg8b),
            Cmpxchg16b => goes_on(moves::cmpxchg16b),
            Lds | Les | Lfs | Lgs | Lss => self.far_pointer(),
            Clc | Stc | Cmc | Cld | Std => self.flag(),
            Lahf => self.ah(stack::lahf),
            Sahf => self.ah(stack::sahf),
            Nop | Pause | Endbr32 | Endbr64 => goes_on(vector::hint),
            mnemonic => {
                if let Some(condition) = set_condition(mnemonic) {
                    self.op.small = condition;
                    if self.is_memory(0) {
                        return goes_on(alu::setcc_mem);
                    }
                    self.op.a = self.slot(0);
                    return goes_on(alu::setcc_reg);
                }
                if let Some(condition) = move_condition(mnemonic) {
                    self.op.small = condition;
                    self.op.a = self.slot(0);
                    if self.is_memory(1) {
                        return goes_on(wide!(self.size(0), alu::cmov_mem));
                    }
                    self.op.b = self.slot(1);
                    return goes_on(wide!(self.size(0), alu::cmov_reg));
                }
                self.string()
            }
        }
    }

    fn ah(&mut self, handler: Handler) -> Option<Choice> {
        self.op.a = Slot::of(Register::AH);
        goes_on(handler)
    }

    fn binary<O: Binary>(&mut self) -> Option<Choice> {
        let size = self.size(0);
        let source_is_immediate = !self.is_register(1) && !self.is_memory(1);
        if source_is_immediate {
            self.op.immediate = self.immediate(1);
        } else if self.is_register(1) {
            self.op.b = self.slot(1);
        }
        if self.is_memory(0) {
            let run: Handler = match (source_is_immediate, self.is_locked()) {
                (true, false) => sized!(size, alu::mem_imm, O),
                (true, true) => sized!(size, alu::locked_imm, O),
                (false, false) => sized!(size, alu::mem_reg, O),
                (false, true) => sized!(size, alu::locked_reg, O),
            };
            return goes_on(run);
        }
        self.op.a = self.slot(0);
        goes_on(if source_is_immediate {
            sized!(size, alu::reg_imm, O)
        } else if self.is_memory(1) {
            sized!(size, alu::reg_mem, O)
        } else {
            sized!(size, alu::reg_reg, O)
        })
    }

    fn unary<O: Unary>(&mut self) -> Option<Choice> {
        let size = self.size(0);
        if self.is_memory(0) {
            return goes_on(if self.is_locked() {
                sized!(size, alu::unary_locked, O)
            } else {
                sized!(size, alu::unary_mem, O)
            });
        }
        self.op.a = self.slot(0);
        goes_on(sized!(size, alu::unary_reg, O))
    }

    fn shift<O: Shift>(&mut self) -> Option<Choice> {
        let size = self.size(0);
        let by_cl = self.is_register(1);
        if !by_cl {
            self.op.immediate = self.immediate(1);
        }
        if self.is_memory(0) {
            return goes_on(if by_cl {
                sized!(size, shift::mem_cl, O)
            } else {
                sized!(size, shift::mem_imm, O)
            });
        }
        self.op.a = self.slot(0);
        goes_on(if by_cl {
            sized!(size, shift::reg_cl, O)
        } else {
            sized!(size, shift::reg_imm, O)
        })
    }

    fn double_shift(&mut self, left: u8) -> Option<Choice> {
        let size = self.size(1);
        self.op.b = self.slot(1);
        self.op.small = left;
        if self.is_register(2) {
            self.op.small |= 2;
        } else {
            self.op.immediate = self.immediate(2);
        }
        if self.is_memory(0) {
            return goes_on(wide!(size, shift::double_mem));
        }
        self.op.a = self.slot(0);
        goes_on(wide!(size, shift::double_reg))
    }

    fn bit<C: Change>(&mut self) -> Option<Choice> {
        let size = self.size(0);
        self.op.small = self.is_locked() as u8;
        let by_register = self.is_register(1);
        if by_register {
            self.op.b = self.slot(1);
        } else {
            self.op.immediate = self.immediate(1);
        }
        if self.is_memory(0) {
            return goes_on(if by_register {
                wide!(size, bits::mem_reg, C)
            } else {
                wide!(size, bits::mem_imm, C)
            });
        }
        self.op.a = self.slot(0);
        goes_on(if by_register {
            wide!(size, bits::reg_reg, C)
        } else {
            wide!(size, bits::reg_imm, C)
        })
    }

    fn scan(&mut self, reverse: bool) -> Option<Choice> {
        let size = self.size(0);
        self.op.a = self.slot(0);
        self.second_source();
        goes_on(if reverse {
            wide!(size, bits::scan_reverse)
        } else {
            wide!(size, bits::scan_forward)
        })
    }

    /// Operand 1 is a register, or memory, which `small` bit 0 says.
    fn second_source(&mut self) {
        if self.is_memory(1) {
            self.op.small |= 1;
        } else {
            self.op.b = self.slot(1);
        }
    }

    fn multiply(&mut self) -> Option<Choice> {
        let size = self.size(0);
        if self.instruction.op_count() > 1 {
            self.op.a = self.slot(0);
            self.second_source();
            if self.instruction.op_count() == 3 {
                self.op.small |= 2;
                self.op.immediate = self.immediate(2);
            }
            return goes_on(wide!(size, multiply::imul_to));
        }
        if self.is_memory(0) {
            self.op.small = 1;
        } else {
            self.op.a = self.slot(0);
        }
        goes_on(match self.mnemonic() {
            Mnemonic::Mul => sized!(size, multiply::mul),
            Mnemonic::Imul => sized!(size, multiply::imul),
            Mnemonic::Div => sized!(size, multiply::div),
            _ => sized!(size, multiply::idiv),
        })
    }

    fn mov(&mut self) -> Option<Choice> {
        let (to, from) = (self.register(0), self.register(1));
        if self.is_register(0) && to.is_segment_register() {
            if to == Register::CS {
                return None;
            }
            self.op.small = segment_index(to) as u8;
            if self.is_memory(1) {
                return ends(moves::to_segment_mem);
            }
            self.op.b = self.slot(1);
            return ends(moves::to_segment);
        }
        if self.is_register(1) && from.is_segment_register() {
            self.op.small = segment_index(from) as u8;
            if self.is_memory(0) {
                return goes_on(moves::from_segment_mem);
            }
            self.op.a = self.slot(0);
            return goes_on(wide!(to.size(), moves::from_segment));
        }
        let system = |r: Register| r.is_cr() || r.is_dr() || r.is_tr();
        if system(to) && self.is_register(0) || system(from) && self.is_register(1) {
            return None;
        }
        let size = self.size(0);
        if self.is_memory(0) {
            if self.is_register(1) {
                self.op.b = self.slot(1);
                return goes_on(sized!(size, moves::mem_reg));
            }
            self.op.immediate = self.immediate(1);
            return goes_on(sized!(size, moves::mem_imm));
        }
        self.op.a = self.slot(0);
        if self.is_memory(1) {
            return goes_on(sized!(size, moves::reg_mem));
        }
        if self.is_register(1) {
            self.op.b = self.slot(1);
            return goes_on(sized!(size, moves::reg_reg));
        }
        self.op.immediate = self.immediate(1);
        goes_on(sized!(size, moves::reg_imm))
    }

    fn extend(&mut self, signed: bool) -> Option<Choice> {
        let (to, from) = (self.size(0), self.size(1));
        self.op.a = self.slot(0);
        let memory = self.is_memory(1);
        if !memory {
            self.op.b = self.slot(1);
        }
        goes_on(match (signed, from, memory) {
            (false, 1, false) => wide!(to, moves::movzx_reg, u8),
            (false, 1, true) => wide!(to, moves::movzx_mem, u8),
            (false, _, false) => wide!(to, moves::movzx_reg, u16),
            (false, _, true) => wide!(to, moves::movzx_mem, u16),
            (true, 1, false) => wide!(to, moves::movsx_reg, u8),
            (true, 1, true) => wide!(to, moves::movsx_mem, u8),
            (true, 2, false) => wide!(to, moves::movsx_reg, u16),
            (true, 2, true) => wide!(to, moves::movsx_mem, u16),
            (true, _, false) => wide!(to, moves::movsx_reg, u32),
            (true, _, true) => wide!(to, moves::movsx_mem, u32),
        })
    }

    fn exchange(&mut self) -> Option<Choice> {
        let size = self.size(0);
        if self.is_memory(0) || self.is_memory(1) {
            self.op.b = if self.is_memory(0) { self.slot(1) } else { self.slot(0) };
            return goes_on(sized!(size, moves::xchg_mem));
        }
        self.op.a = self.slot(0);
        self.op.b = self.slot(1);
        goes_on(sized!(size, moves::xchg_reg))
    }

    fn exchange_add(&mut self) -> Option<Choice> {
        let size = self.size(1);
        self.op.b = self.slot(1);
        if self.is_memory(0) {
            return goes_on(sized!(size, moves::xadd_mem));
        }
        self.op.a = self.slot(0);
        goes_on(sized!(size, moves::xadd_reg))
    }

    fn compare_exchange(&mut self) -> Option<Choice> {
        let size = self.size(1);
        self.op.b = self.slot(1);
        if self.is_memory(0) {
            return goes_on(sized!(size, moves::cmpxchg_mem));
        }
        self.op.a = self.slot(0);
        goes_on(sized!(size, moves::cmpxchg_reg))
    }

    fn far_pointer(&mut self) -> Option<Choice> {
        use Mnemonic::*;
        let segment = match self.mnemonic() {
            Lds => Register::DS,
            Les => Register::ES,
            Lfs => Register::FS,
            Lgs => Register::GS,
            _ => Register::SS,
        };
        self.op.small = segment_index(segment) as u8;
        self.op.a = self.slot(0);
        ends(wide!(self.size(0), moves::load_far_pointer))
    }

    fn flag(&mut self) -> Option<Choice> {
        use crate::cpu::mode::bits::{CF, DF};
        use Mnemonic::*;
        (self.op.immediate, self.op.small) = match self.mnemonic() {
            Clc => (CF, 0),
            Stc => (CF, 1),
            Cmc => (CF, 2),
            Cld => (DF, 0),
            _ => (DF, 1),
        };
        goes_on(alu::change_flag)
    }

    fn string(&mut self) -> Option<Choice> {
        let code = self.instruction;
        let size = match self.mnemonic() {
            Mnemonic::Movsb
            | Mnemonic::Stosb
            | Mnemonic::Lodsb
            | Mnemonic::Scasb
            | Mnemonic::Cmpsb
            | Mnemonic::Insb
            | Mnemonic::Outsb => 1,
            Mnemonic::Movsw
            | Mnemonic::Stosw
            | Mnemonic::Lodsw
            | Mnemonic::Scasw
            | Mnemonic::Cmpsw
            | Mnemonic::Insw
            | Mnemonic::Outsw => 2,
            Mnemonic::Movsd
            | Mnemonic::Stosd
            | Mnemonic::Lodsd
            | Mnemonic::Scasd
            | Mnemonic::Cmpsd
            | Mnemonic::Insd
            | Mnemonic::Outsd => 4,
            Mnemonic::Movsq
            | Mnemonic::Stosq
            | Mnemonic::Lodsq
            | Mnemonic::Scasq
            | Mnemonic::Cmpsq => 8,
            _ => return None,
        };
        // MOVSD and CMPSD are names of vector instructions, too.
        let is_string = (0..code.op_count()).any(|n| {
            !matches!(code.op_kind(n), OpKind::Register | OpKind::Memory | OpKind::Immediate8)
        });
        if !is_string {
            return None;
        }
        if code.has_rep_prefix() || code.has_repne_prefix() {
            self.op.small |= strings::REPEAT;
        }
        if code.has_repne_prefix() {
            self.op.small |= strings::WHILE_NOT_EQUAL;
        }
        self.op.a = Slot::gpr(RAX);
        use Mnemonic::*;
        goes_on(match self.mnemonic() {
            Movsb | Movsw | Movsd | Movsq => sized!(size, strings::movs),
            Stosb | Stosw | Stosd | Stosq => sized!(size, strings::stos),
            Lodsb | Lodsw | Lodsd | Lodsq => sized!(size, strings::lods),
            Scasb | Scasw | Scasd | Scasq => sized!(size, strings::scas),
            Cmpsb | Cmpsw | Cmpsd | Cmpsq => sized!(size, strings::cmps),
            Insb | Insw | Insd => sized!(size, strings::ins),
            _ => sized!(size, strings::outs),
        })
    }
}

fn set_condition(mnemonic: Mnemonic) -> Option<u8> {
    use Mnemonic::*;
    Some(match mnemonic {
        Seto => 0,
        Setno => 1,
        Setb => 2,
        Setae => 3,
        Sete => 4,
        Setne => 5,
        Setbe => 6,
        Seta => 7,
        Sets => 8,
        Setns => 9,
        Setp => 10,
        Setnp => 11,
        Setl => 12,
        Setge => 13,
        Setle => 14,
        Setg => 15,
        _ => return None,
    })
}

fn move_condition(mnemonic: Mnemonic) -> Option<u8> {
    use Mnemonic::*;
    Some(match mnemonic {
        Cmovo => 0,
        Cmovno => 1,
        Cmovb => 2,
        Cmovae => 3,
        Cmove => 4,
        Cmovne => 5,
        Cmovbe => 6,
        Cmova => 7,
        Cmovs => 8,
        Cmovns => 9,
        Cmovp => 10,
        Cmovnp => 11,
        Cmovl => 12,
        Cmovge => 13,
        Cmovle => 14,
        Cmovg => 15,
        _ => return None,
    })
}
