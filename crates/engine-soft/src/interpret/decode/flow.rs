//! Chooses handlers for the stack and for branches.

use iced_x86::{Code, ConditionCode, Mnemonic, OpKind, Register};

use super::{Builder, Choice, ends, goes_on, segment_index, wide};
use crate::interpret::op::Handler;
use crate::interpret::{branch, stack};

/// Handlers of JO, JNO, JB and so on.
const JUMPS: [Handler; 16] = [
    branch::jump_if::<0>,
    branch::jump_if::<1>,
    branch::jump_if::<2>,
    branch::jump_if::<3>,
    branch::jump_if::<4>,
    branch::jump_if::<5>,
    branch::jump_if::<6>,
    branch::jump_if::<7>,
    branch::jump_if::<8>,
    branch::jump_if::<9>,
    branch::jump_if::<10>,
    branch::jump_if::<11>,
    branch::jump_if::<12>,
    branch::jump_if::<13>,
    branch::jump_if::<14>,
    branch::jump_if::<15>,
];

fn encoding(condition: ConditionCode) -> Option<usize> {
    use ConditionCode::*;
    Some(match condition {
        o => 0,
        no => 1,
        b => 2,
        ae => 3,
        e => 4,
        ne => 5,
        be => 6,
        a => 7,
        s => 8,
        ns => 9,
        p => 10,
        np => 11,
        l => 12,
        ge => 13,
        le => 14,
        g => 15,
        None => return Option::None,
    })
}

impl Builder<'_> {
    /// Bytes that the instruction moves the stack pointer by.
    fn stack_size(&self) -> i32 {
        self.instruction.stack_pointer_increment().abs()
    }

    pub(super) fn flow(&mut self) -> Option<Choice> {
        use Mnemonic::*;
        match self.mnemonic() {
            Push => self.push(),
            Pop => self.pop(),
            Pusha => goes_on(stack::push_all::<u16>),
            Pushad => goes_on(stack::push_all::<u32>),
            Popa => goes_on(stack::pop_all::<u16>),
            Popad => goes_on(stack::pop_all::<u32>),
            Pushf => goes_on(stack::pushf::<u16>),
            Pushfd => goes_on(stack::pushf::<u32>),
            Pushfq => goes_on(stack::pushf::<u64>),
            Popf => ends(stack::popf::<u16>),
            Popfd => ends(stack::popf::<u32>),
            Popfq => ends(stack::popf::<u64>),
            Leave => goes_on(match self.instruction.code() {
                Code::Leavew => stack::leave::<u16>,
                Code::Leaved => stack::leave::<u32>,
                _ => stack::leave::<u64>,
            }),
            Enter => {
                self.op.immediate = self.instruction.immediate16() as u64;
                self.op.small = self.instruction.immediate8_2nd();
                goes_on(match self.instruction.code() {
                    Code::Enterw_imm16_imm8 => stack::enter::<u16>,
                    Code::Enterd_imm16_imm8 => stack::enter::<u32>,
                    _ => stack::enter::<u64>,
                })
            }
            Bound => {
                self.op.a = self.slot(0);
                goes_on(match self.size(0) {
                    2 => stack::bound::<u16>,
                    _ => stack::bound::<u32>,
                })
            }
            Jmp => self.jump(),
            Call => self.call(),
            Ret => self.ret(),
            Retf => {
                self.release();
                ends(match self.instruction.code() {
                    Code::Retfw | Code::Retfw_imm16 => branch::far_return::<u16>,
                    Code::Retfd | Code::Retfd_imm16 => branch::far_return::<u32>,
                    _ => branch::far_return::<u64>,
                })
            }
            Iret => ends(branch::iret::<u16>),
            Iretd => ends(branch::iret::<u32>),
            Iretq => ends(branch::iret::<u64>),
            Int => self.interrupt(0, self.instruction.immediate8()),
            Int3 => self.interrupt(3, 3),
            Int1 => self.interrupt(1, 1),
            Into => self.interrupt(4, 4),
            Jcxz | Jecxz | Jrcxz | Loop | Loope | Loopne => self.counted(),
            _ => {
                let condition = encoding(self.instruction.condition_code())?;
                if !self.instruction.is_jcc_short_or_near() {
                    return None;
                }
                self.target();
                ends(JUMPS[condition])
            }
        }
    }

    fn push(&mut self) -> Option<Choice> {
        let size = self.stack_size();
        match self.instruction.op_kind(0) {
            OpKind::Register if self.register(0).is_segment_register() => {
                self.op.small = segment_index(self.register(0)) as u8;
                goes_on(wide!(size, stack::push_segment))
            }
            OpKind::Register => {
                self.op.a = self.slot(0);
                goes_on(wide!(size, stack::push_reg))
            }
            OpKind::Memory => goes_on(wide!(size, stack::push_mem)),
            _ => {
                self.op.immediate = self.immediate(0);
                goes_on(wide!(size, stack::push_imm))
            }
        }
        .inspect(|_| {
            // An implicit operand: its faults are the stack's.
            if !self.is_memory(0) {
                self.op.address.segment = crate::state::SS as u8;
            }
        })
    }

    fn pop(&mut self) -> Option<Choice> {
        let size = self.stack_size();
        if self.is_memory(0) {
            return goes_on(wide!(size, stack::pop_mem));
        }
        self.op.address.segment = crate::state::SS as u8;
        let register = self.register(0);
        if register.is_segment_register() {
            self.op.small = segment_index(register) as u8;
            return ends(wide!(size, stack::pop_segment));
        }
        self.op.a = self.slot(0);
        goes_on(wide!(size, stack::pop_reg))
    }

    /// A direct target, and what the operand size leaves of it.
    fn target(&mut self) {
        let i = self.instruction;
        (self.op.immediate, self.op.address.mask) = match i.op_kind(0) {
            OpKind::NearBranch16 => (i.near_branch16() as u64, 0xffff),
            OpKind::NearBranch32 => (i.near_branch32() as u64, 0xffff_ffff),
            _ => (i.near_branch64(), !0),
        };
    }

    fn far_target(&mut self) {
        let i = self.instruction;
        let (selector, offset) = match i.op_kind(0) {
            OpKind::FarBranch16 => (i.far_branch_selector(), i.far_branch16() as u32),
            _ => (i.far_branch_selector(), i.far_branch32()),
        };
        self.op.immediate = (selector as u64) << 32 | offset as u64;
    }

    fn is_far_memory(&self) -> Option<usize> {
        Some(match self.instruction.code() {
            Code::Jmp_m1616 | Code::Call_m1616 => 2,
            Code::Jmp_m1632 | Code::Call_m1632 => 4,
            Code::Jmp_m1664 | Code::Call_m1664 => 8,
            _ => return None,
        })
    }

    fn jump(&mut self) -> Option<Choice> {
        match self.instruction.op_kind(0) {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                self.target();
                ends(branch::jump)
            }
            OpKind::FarBranch16 => {
                self.far_target();
                ends(branch::far_direct::<u16>)
            }
            OpKind::FarBranch32 => {
                self.far_target();
                ends(branch::far_direct::<u32>)
            }
            OpKind::Register => {
                self.op.a = self.slot(0);
                ends(wide!(self.size(0), branch::jump_reg))
            }
            _ => match self.is_far_memory() {
                Some(size) => ends(wide!(size, branch::far_mem)),
                None => ends(wide!(self.size(0), branch::jump_mem)),
            },
        }
    }

    fn call(&mut self) -> Option<Choice> {
        let implicit_stack = !self.is_memory(0);
        let choice = match self.instruction.op_kind(0) {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                self.target();
                ends(wide!(self.stack_size(), branch::call))
            }
            OpKind::FarBranch16 => {
                self.far_target();
                self.op.small = 1;
                ends(branch::far_direct::<u16>)
            }
            OpKind::FarBranch32 => {
                self.far_target();
                self.op.small = 1;
                ends(branch::far_direct::<u32>)
            }
            OpKind::Register => {
                self.op.a = self.slot(0);
                ends(wide!(self.size(0), branch::call_reg))
            }
            _ => match self.is_far_memory() {
                Some(size) => {
                    self.op.small = 1;
                    ends(wide!(size, branch::far_mem))
                }
                None => ends(wide!(self.size(0), branch::call_mem)),
            },
        };
        if implicit_stack {
            self.op.address.segment = crate::state::SS as u8;
        }
        choice
    }

    fn release(&mut self) {
        if self.instruction.op_count() > 0 {
            self.op.immediate = self.instruction.immediate16() as u64;
        }
        self.op.address.segment = crate::state::SS as u8;
    }

    fn ret(&mut self) -> Option<Choice> {
        self.release();
        ends(match self.instruction.code() {
            Code::Retnw | Code::Retnw_imm16 => branch::ret::<u16>,
            Code::Retnd | Code::Retnd_imm16 => branch::ret::<u32>,
            _ => branch::ret::<u64>,
        })
    }

    fn interrupt(&mut self, form: u8, vector: u8) -> Option<Choice> {
        self.op.small = form;
        self.op.immediate = vector as u64;
        // INTO may fall through to the next instruction.
        if form == 4 {
            goes_on(branch::software_interrupt)
        } else {
            ends(branch::software_interrupt)
        }
    }

    fn counted(&mut self) -> Option<Choice> {
        use Mnemonic::*;
        self.target();
        let count = match self.instruction.code() {
            Code::Jcxz_rel8_16
            | Code::Jcxz_rel8_32
            | Code::Loop_rel8_16_CX
            | Code::Loop_rel8_32_CX
            | Code::Loope_rel8_16_CX
            | Code::Loope_rel8_32_CX
            | Code::Loopne_rel8_16_CX
            | Code::Loopne_rel8_32_CX => Register::CX,
            Code::Jecxz_rel8_16
            | Code::Jecxz_rel8_32
            | Code::Jecxz_rel8_64
            | Code::Loop_rel8_16_ECX
            | Code::Loop_rel8_32_ECX
            | Code::Loop_rel8_64_ECX
            | Code::Loope_rel8_16_ECX
            | Code::Loope_rel8_32_ECX
            | Code::Loope_rel8_64_ECX
            | Code::Loopne_rel8_16_ECX
            | Code::Loopne_rel8_32_ECX
            | Code::Loopne_rel8_64_ECX => Register::ECX,
            _ => Register::RCX,
        };
        self.op.small = (count.size() as u8) << 4;
        match self.mnemonic() {
            Jcxz | Jecxz | Jrcxz => ends(branch::jump_if_no_count),
            Loop => ends(branch::loop_count),
            Loope => {
                self.op.small |= 1;
                ends(branch::loop_count)
            }
            _ => {
                self.op.small |= 2;
                ends(branch::loop_count)
            }
        }
    }
}
