//! Groups: neighbouring accesses to the stack that one check covers.
//!
//! Pushes, pops, calls, returns and operands at `[rsp + n]` that follow each other reach
//! a few bytes around the stack pointer. The check before the first of them is for all of
//! these bytes; from there on S0 holds the distance from guest to host memory there, and no
//! other instruction of the group may need S0.
//!
//! Bytes of a group that are in two pages cannot be reached through one host address.
//! Control then goes to a *plain* translation of the same code, which checks each access
//! and is made when it is needed first.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::block::Compiler;
use super::emit::{Alu, cc};
use super::frame::{self, DISPLACED, S0, S1, STACK};
use super::memory::{AccessInfo, Form, operand_size};
use super::registers::number_of;
use super::scan::{Step, Way, ends_region};
use super::select;

/// Instructions that a group spans, and bytes, at most.
const LONGEST: usize = 40;
const WIDEST: i32 = 1024;

/// S0 holds the distance for the stack's bytes up to and including the instruction `last`.
#[derive(Clone, Copy)]
pub(super) struct Hold {
    last: usize,
}

struct Plan {
    last: usize,
    low: i32,
    high: i32,
    write: bool,
    accesses: usize,
}

/// What an instruction is to a group.
enum Part {
    /// It cannot be in one.
    Stranger,
    /// It only changes the stack pointer, by so much.
    Bystander { change: i32 },
    /// It reaches `size` bytes at `offset` from the stack pointer, and then changes that.
    Access { offset: i32, size: i32, write: bool, change: i32 },
}

const STRANGER: Part = Part::Stranger;
const BYSTANDER: Part = Part::Bystander { change: 0 };

impl Compiler<'_> {
    /// What a group's check has found for the bytes at `offset` from the stack pointer.
    pub(super) fn held_at(&self, offset: i32) -> Option<Form> {
        self.hold.map(|_| Form::Distance { base: STACK, displacement: offset })
    }

    /// What a group's check has found for an instruction's operand.
    pub(super) fn held(&self, instruction: &Instruction) -> Option<Form> {
        self.held_at(instruction.memory_displacement64() as i32)
            .filter(|_| is_on_stack(instruction))
    }

    /// Before an instruction: ends a group, or begins one.
    pub(super) fn before_group(&mut self, index: usize, step: &Step) {
        if self.hold.is_some_and(|hold| index > hold.last) {
            self.hold = None;
        }
        if self.hold.is_some() || self.setting.plain {
            return;
        }
        let Some(plan) = self.plan(index) else { return };
        let size = (plan.high - plan.low) as u32;
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        let info = AccessInfo { offset: step.offset, size, write: plan.write };
        let link = self.first_link + self.out.links.len() as u32;
        self.out.links.push(super::block::LinkSite::default());
        let site = self.out.links.len() - 1;
        let rip = step.instruction.ip();
        let form = Form::Distance { base: STACK, displacement: plan.low };
        self.check_for(info, form, Some((rip, link, site)));
        self.hold = Some(Hold { last: plan.last });
    }

    fn plan(&mut self, index: usize) -> Option<Plan> {
        let region = self.region;
        let steps = &region.steps;
        if !matches!(self.part(&steps[index]), Part::Access { .. }) {
            return None;
        }
        let mut plan = Plan { last: index, low: 0, high: 0, write: false, accesses: 0 };
        let mut moved = 0;
        for (place, step) in steps.iter().enumerate().skip(index).take(LONGEST) {
            if place > index && step.leader {
                break;
            }
            let change = match self.part(step) {
                Part::Stranger => break,
                Part::Bystander { change } => change,
                Part::Access { offset, size, write, change } => {
                    let first = plan.accesses == 0;
                    let (from, to) = (moved + offset, moved + offset + size);
                    let low = if first { from } else { plan.low.min(from) };
                    let high = if first { to } else { plan.high.max(to) };
                    if high - low > WIDEST {
                        break;
                    }
                    let (accesses, write) = (plan.accesses + 1, plan.write | write);
                    plan = Plan { last: place, low, high, write, accesses };
                    change
                }
            };
            moved += change;
            if !matches!(step.next, Way::Inside(next) if next as usize == place + 1)
                || step.instruction.flow_control() != FlowControl::Next
                || moved.abs() > WIDEST
            {
                break;
            }
        }
        (plan.accesses >= 2).then_some(plan)
    }

    fn part(&mut self, step: &Step) -> Part {
        let instruction = &step.instruction;
        if step.cut
            || step.crosses
            || step.level.is_none_or(|level| level > self.setting.vectors)
            || !self.setting.features.allow(instruction.code())
            || ends_region(instruction)
        {
            return STRANGER;
        }
        match instruction.flow_control() {
            FlowControl::Next => self.plain_part(instruction),
            FlowControl::Call => Part::Access { offset: -8, size: 8, write: true, change: 0 },
            FlowControl::Return => Part::Access { offset: 0, size: 8, write: false, change: 0 },
            _ => STRANGER,
        }
    }

    fn plain_part(&mut self, instruction: &Instruction) -> Part {
        if select::is_nothing(instruction) {
            return BYSTANDER;
        }
        match instruction.mnemonic() {
            Mnemonic::Push if instruction.op0_kind() != OpKind::Memory => {
                Part::Access { offset: -8, size: 8, write: true, change: -8 }
            }
            Mnemonic::Pop if instruction.op0_register() != Register::RSP => {
                Part::Access { offset: 0, size: 8, write: false, change: 8 }
            }
            Mnemonic::Lea => lea_part(instruction),
            Mnemonic::Push
            | Mnemonic::Pop
            | Mnemonic::Pushfq
            | Mnemonic::Leave
            | Mnemonic::Cld
            | Mnemonic::Rdtsc
            | Mnemonic::Rdtscp => STRANGER,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op0_kind() == OpKind::Memory =>
            {
                STRANGER
            }
            _ if select::is_selector_read(instruction) => STRANGER,
            _ if instruction.is_string_instruction() => STRANGER,
            _ => self.general_part(instruction),
        }
    }

    fn general_part(&mut self, instruction: &Instruction) -> Part {
        let memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        let stack = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register
                && instruction.op_register(operand).full_register() == Register::RSP
        });
        if memory {
            if stack || !is_on_stack(instruction) {
                return STRANGER;
            }
            let offset = instruction.memory_displacement64() as i64;
            let Some(offset) = i32::try_from(offset).ok().filter(|n| n.abs() < WIDEST) else {
                return STRANGER;
            };
            let size = operand_size(instruction) as i32;
            let write = self.writes_memory(instruction);
            return Part::Access { offset, size, write, change: 0 };
        }
        if !stack {
            return BYSTANDER;
        }
        if instruction.op0_kind() != OpKind::Register
            || instruction.op0_register().full_register() != Register::RSP
        {
            // It only reads it, or exchanges it.
            return if instruction.mnemonic() == Mnemonic::Mov { BYSTANDER } else { STRANGER };
        }
        let sign = match instruction.mnemonic() {
            Mnemonic::Add => 1,
            Mnemonic::Sub => -1,
            Mnemonic::Cmp | Mnemonic::Test => 0,
            _ => return STRANGER,
        };
        if sign == 0 {
            return BYSTANDER;
        }
        let by = match instruction.op1_kind() {
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => instruction.immediate(1) as i64,
            _ => return STRANGER,
        };
        match i32::try_from(by * sign) {
            Ok(change) if change.abs() <= WIDEST => Part::Bystander { change },
            _ => STRANGER,
        }
    }

    pub(super) fn writes_memory(&mut self, instruction: &Instruction) -> bool {
        let info = self.info.info(instruction);
        (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Memory
                && !matches!(info.op_access(operand), OpAccess::Read | OpAccess::CondRead)
        })
    }

    /// The check of a group has failed, for want of an entry or because its bytes are in
    /// two pages. Their address is in S0.
    pub(super) fn emit_group_slow(
        &mut self,
        back: usize,
        info: AccessInfo,
        form: Form,
        (rip, link, site): (u64, u32, usize),
    ) {
        self.emit.mov32(S1, S0);
        self.emit.alu_imm(false, Alu::And, S1, 4095);
        self.emit.alu_imm(false, Alu::Cmp, S1, 4096 - info.size as i32);
        let split = self.emit.jcc(cc::A);
        self.emit.mov_imm(S1, u64::from(info.pack()));
        self.emit.call_to(self.routines.access);
        self.give_form(form);
        let jump = self.emit.jmp();
        self.emit.bind(jump, back);
        self.emit.bind_here(split);
        let jump = self.emit.jmp();
        self.emit.bind_here(jump);
        self.out.links[site].jump = jump;
        self.emit.store32_imm(frame::argument(), link as i32);
        self.emit.mov_imm(S1, rip);
        self.emit.store(frame::rip(), S1);
        self.emit.jmp_to(self.routines.leave_plain);
    }
}

fn is_on_stack(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS)
}

fn lea_part(instruction: &Instruction) -> Part {
    let involved =
        [instruction.op0_register(), instruction.memory_base(), instruction.memory_index()];
    let displaced = |register: Register| {
        register.is_gpr() && DISPLACED.contains(&number_of(register)) && register != Register::None
    };
    if involved.into_iter().any(displaced) || instruction.op0_register().size() < 4 {
        return STRANGER;
    }
    if instruction.op0_register().full_register() != Register::RSP {
        return BYSTANDER;
    }
    let change = instruction.memory_displacement64() as i64;
    match i32::try_from(change) {
        Ok(change)
            if is_on_stack(instruction)
                && instruction.op0_register() == Register::RSP
                && change.abs() <= WIDEST =>
        {
            Part::Bystander { change }
        }
        _ => STRANGER,
    }
}
