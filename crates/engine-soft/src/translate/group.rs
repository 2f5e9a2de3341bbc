//! Groups: accesses near each other that one check covers.
//!
//! Pushes, pops, calls, returns and operands whose addresses differ by a constant are a
//! group if control goes from one to the next: they have the same base and index, to which
//! nothing but constants is added in between. The check before the first of them is for all
//! of their bytes. What it has found is in S0 and, where other instructions on the way need
//! S0, in the frame as well, from where it comes back before the next access.
//!
//! The check is made for what the first access and those surely behind it need. Beyond a
//! conditional branch a group only goes on as far as that makes it no write.
//!
//! Bytes of a group that are in two pages cannot be reached through one host address.
//! Control then goes to a *plain* translation of the same code, which checks each access
//! and is made when it is needed first.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::block::{Compiler, LinkSite};
use super::emit::{Alu, Mem, Reg, cc};
use super::frame::{self, DISPLACED, DISTANCES, S0, S1, STACK};
use super::memory::{AccessInfo, Form, operand_size};
use super::registers::{host_of, number_of};
use super::scan::{Step, Way, ends_region};
use super::select;

/// Instructions that a group spans, and bytes, at most.
const LONGEST: usize = 64;
const WIDEST: i32 = 1024;

/// The guest's stack pointer.
const RSP: Reg = 4;

/// What addresses of a group have in common: guest registers, and log2 of the scale.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    base: Reg,
    index: Option<(Reg, u8)>,
}

#[derive(Clone, Copy)]
struct Access {
    key: Key,
    offset: i32,
    size: i32,
    write: bool,
}

/// What an instruction is to groups.
#[derive(Clone, Copy)]
pub(super) struct Part {
    access: Option<Access>,
    /// The general registers that it changes, a bit each.
    changes: u16,
    /// The one of them to which it only adds a constant.
    adds: Option<(Reg, i32)>,
    /// It needs S0 for its access at most.
    calm: bool,
    /// No group spans it.
    ends: bool,
}

const END: Part = Part { access: None, changes: 0, adds: None, calm: false, ends: true };

/// A group whose check has been made.
pub(super) struct Group {
    number: usize,
    key: Key,
    /// Its instructions, and how far each one's operand is from what the key came to at the
    /// check.
    places: Vec<(usize, i32)>,
    /// Where in the frame the distance is; none if S0 keeps it.
    slot: Option<usize>,
    /// Where its first byte is, from what the key came to.
    low: i32,
}

impl Group {
    fn last(&self) -> usize {
        self.places.last().map_or(0, |&(place, _)| place)
    }
}

struct Plan {
    places: Vec<(usize, i32)>,
    low: i32,
    high: i32,
    write: bool,
    calm: bool,
}

/// What the code being translated knows of groups.
#[derive(Default)]
pub(super) struct Groups {
    parts: Vec<Part>,
    open: Vec<Group>,
    made: usize,
    /// The group whose distance is in S0, and whether it is nowhere else.
    kept: Option<(usize, bool)>,
    /// Where this instruction's access is, if a group's check was for it.
    form: Option<Form>,
}

impl Groups {
    pub(super) fn form(&self) -> Option<Form> {
        self.form
    }

    /// S0 must stay as it is.
    pub(super) fn needs_s0(&self) -> bool {
        self.kept.is_some_and(|(_, only)| only)
    }

    pub(super) fn lose_s0(&mut self) {
        self.kept = None;
    }

    pub(super) fn end_all(&mut self) {
        self.open.clear();
        self.kept = None;
        self.form = None;
    }
}

impl Compiler<'_> {
    /// Before the first instruction.
    pub(super) fn prepare_groups(&mut self) {
        let region = self.region;
        if !self.setting.plain {
            self.groups.parts = region.steps.iter().map(|step| self.part(step)).collect();
        }
    }

    /// Before an instruction: begins a group, or brings back what is known of one. The
    /// guest's stack pointer is exact afterwards unless the instruction can do without.
    pub(super) fn before_group(&mut self, index: usize, step: &Step) {
        self.groups.form = None;
        if self.setting.plain {
            return self.settle_stack();
        }
        self.groups.open.retain(|group| group.last() >= index);
        let access = self.groups.parts[index].access;
        let known = access
            .and_then(|access| self.groups.open.iter().position(|open| open.key == access.key));
        let on_stack = access.is_some_and(|access| access.key == Key { base: RSP, index: None });
        if !self.stack_can_wait(index, step, known.is_some() && on_stack) {
            self.settle_stack();
        }
        let Some(access) = access else { return };
        let position = match known {
            Some(position) => position,
            None => {
                let Some(plan) = self.plan(index, access.key) else { return };
                let slot = (0..DISTANCES)
                    .find(|&slot| self.groups.open.iter().all(|group| group.slot != Some(slot)));
                if !plan.calm && slot.is_none() {
                    return;
                }
                self.open_group(step, access.key, plan, slot);
                self.groups.open.len() - 1
            }
        };
        self.groups.form = self.form_of(position, index, access);
    }

    /// After an instruction.
    pub(super) fn after_group(&mut self, index: usize) {
        let Some(part) = self.groups.parts.get(index) else { return };
        if !part.calm || part.access.is_some() && self.groups.form.is_none() {
            self.groups.kept = None;
        }
        self.groups.form = None;
    }

    /// The check for all of a group.
    fn open_group(&mut self, step: &Step, key: Key, plan: Plan, slot: Option<usize>) {
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        let info = AccessInfo {
            offset: step.offset,
            size: (plan.high - plan.low) as u32,
            write: plan.write,
        };
        let link = self.first_link + self.out.links.len() as u32;
        self.out.links.push(LinkSite::default());
        let site = self.out.links.len() - 1;
        let rip = step.instruction.ip();
        let displacement = plan.low;
        let form = match (key.index, host_of(key.base)) {
            (None, Some(base)) => Form::Distance { base, displacement },
            (index, _) => {
                let sum = self.sum(Some(key.base), index, displacement);
                self.emit.lea(S0, sum);
                Form::ADDRESS
            }
        };
        self.check_for(info, form, Some((rip, link, site)));
        let slot = slot.filter(|_| !plan.calm);
        if let Some(slot) = slot {
            self.emit.store(frame::distance(slot), S0);
        }
        let number = self.groups.made;
        self.groups.made += 1;
        self.groups.kept = Some((number, slot.is_none()));
        self.groups.open.push(Group { number, key, places: plan.places, slot, low: plan.low });
    }

    /// Where an instruction of an open group has its operand; S0 is made to fit.
    fn form_of(&mut self, position: usize, index: usize, access: Access) -> Option<Form> {
        let group = &self.groups.open[position];
        let &(_, offset) = group.places.iter().find(|&&(place, _)| place == index)?;
        let low = group.low;
        if let Some(slot) = group.slot
            && self.groups.kept.is_none_or(|(kept, _)| kept != group.number)
        {
            self.emit.load(S0, frame::distance(slot));
            self.groups.kept = Some((group.number, false));
        }
        Some(match (access.key.index, host_of(access.key.base)) {
            (None, Some(STACK)) => {
                Form::Distance { base: STACK, displacement: access.offset + self.stack_ahead }
            }
            (None, Some(base)) => Form::Distance { base, displacement: access.offset },
            _ => Form::Address { displacement: offset - low },
        })
    }

    /// Which accesses from this one on have a check in common.
    fn plan(&self, index: usize, key: Key) -> Option<Plan> {
        let steps = &self.region.steps;
        let mut plan = Plan { places: Vec::new(), low: 0, high: 0, write: false, calm: true };
        let (mut moved, mut calm, mut branched) = (0i32, true, false);
        for (place, step) in steps.iter().enumerate().skip(index).take(LONGEST) {
            let part = &self.groups.parts[place];
            if place > index && step.leader || part.ends {
                break;
            }
            match part.access.filter(|access| access.key == key) {
                Some(access) => {
                    let from = moved + access.offset;
                    let (mut low, mut high) = (from, from + access.size);
                    if !plan.places.is_empty() {
                        (low, high) = (low.min(plan.low), high.max(plan.high));
                    }
                    let write = plan.write || access.write;
                    if high - low > WIDEST || branched && write != plan.write {
                        break;
                    }
                    plan.places.push((place, from));
                    plan = Plan { low, high, write, calm, ..plan };
                }
                None => calm &= part.access.is_none(),
            }
            calm &= part.calm;
            let Some(by) = key.moved_by(part) else { break };
            moved += by;
            match step.instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => branched = true,
                _ => break,
            }
            if !matches!(step.next, Way::Inside(next) if next as usize == place + 1)
                || moved.abs() > WIDEST
            {
                break;
            }
        }
        (plan.places.len() >= 2).then_some(plan)
    }

    fn part(&mut self, step: &Step) -> Part {
        let instruction = &step.instruction;
        if step.cut
            || step.crosses
            || step.level.is_none_or(|level| level > self.setting.vectors)
            || !self.setting.features.allow(instruction.code())
            || ends_region(instruction)
        {
            return END;
        }
        let stack = |offset, write| {
            let key = Key { base: RSP, index: None };
            Some(Access { key, offset, size: 8, write })
        };
        let quiet = Part { access: None, changes: 0, adds: None, calm: true, ends: false };
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch => return quiet,
            FlowControl::Call => {
                return Part { access: stack(-8, true), changes: 1 << RSP, ..quiet };
            }
            FlowControl::Return => {
                return Part { access: stack(0, false), changes: 1 << RSP, ..quiet };
            }
            _ => return END,
        }
        if select::is_nothing(instruction) {
            return quiet;
        }
        let (changes, write) = self.changes(instruction);
        let part = Part { changes, adds: addition(instruction), ..quiet };
        match instruction.mnemonic() {
            Mnemonic::Push if instruction.op0_kind() != OpKind::Memory => {
                Part { access: stack(-8, true), ..part }
            }
            Mnemonic::Pop => Part { access: stack(0, false), ..part },
            Mnemonic::Lea => Part { calm: lea_is_calm(instruction), ..part },
            Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Leave => Part { calm: false, ..part },
            Mnemonic::Cld | Mnemonic::Rdtsc | Mnemonic::Rdtscp => END,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op0_kind() == OpKind::Memory
                    && instruction.op1_kind() == OpKind::Register =>
            {
                END
            }
            _ if select::is_selector_read(instruction) => part,
            _ if instruction.is_string_instruction() => END,
            _ if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) => part,
            _ => {
                let access = key_of(instruction).and_then(|key| {
                    let offset = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
                    let size = operand_size(instruction) as i32;
                    // A sum with what is added in between must not overflow.
                    (offset.abs() < i32::MAX / 4).then_some(Access { key, offset, size, write })
                });
                Part { access, calm: access.is_some(), ..part }
            }
        }
    }

    /// The general registers that an instruction changes, and whether it writes its operand
    /// in memory.
    pub(super) fn changes(&mut self, instruction: &Instruction) -> (u16, bool) {
        let info = self.info.info(instruction);
        let writes = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead);
        let mut changes = 0;
        for used in info.used_registers() {
            if used.register().is_gpr() && writes(used.access()) {
                changes |= 1 << number_of(used.register());
            }
        }
        let write = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Memory && writes(info.op_access(operand))
        });
        (changes, write)
    }

    pub(super) fn writes_memory(&mut self, instruction: &Instruction) -> bool {
        self.changes(instruction).1
    }

    /// The check of a group has failed, for want of an entry or because its bytes are in
    /// two pages. Their address is in S0.
    pub(super) fn emit_group_slow(
        &mut self,
        back: usize,
        info: AccessInfo,
        form: Form,
        (rip, link, site): (u64, u32, usize),
        held: Option<Reg>,
    ) {
        self.emit.mov32(S1, S0);
        self.emit.alu_imm(false, Alu::And, S1, 4095);
        self.emit.alu_imm(false, Alu::Cmp, S1, 4096 - info.size as i32);
        let split = self.emit.jcc(cc::A);
        self.emit.mov_imm(S1, u64::from(info.pack()));
        self.emit.call_to(self.routines.access);
        self.give_form(form);
        self.go_back(held, back);
        self.emit.bind_here(split);
        let jump = self.emit.jmp();
        self.emit.bind_here(jump);
        self.out.links[site].jump = jump;
        self.emit.store32_imm(frame::argument(), link as i32);
        self.emit.mov_imm(S1, rip);
        self.emit.store(frame::rip(), S1);
        self.emit.jmp_to(self.routines.leave_plain);
    }

    /// Whether an instruction neither sees the guest's stack pointer, but for an access that
    /// is `known`, nor can stop.
    fn stack_can_wait(&self, index: usize, step: &Step, known: bool) -> bool {
        use Mnemonic as M;
        let instruction = &step.instruction;
        if self.fused != 0 || self.groups.parts[index].ends {
            return false;
        }
        let waits = match instruction.mnemonic() {
            M::Call | M::Ret | M::Push | M::Pop => known,
            M::Lea => instruction.memory_base() != Register::RSP,
            M::Mov | M::Xor | M::And | M::Or | M::Add | M::Sub | M::Movzx | M::Movsxd => true,
            _ => false,
        };
        waits
            && instruction.op_kinds().enumerate().all(|(operand, kind)| match kind {
                OpKind::Memory => known || instruction.mnemonic() == M::Lea,
                OpKind::Register => {
                    let register = instruction.op_register(operand as u32);
                    register.is_gpr() && register.full_register() != Register::RSP
                }
                _ => true,
            })
    }

    /// Adds what the guest's stack pointer is behind by.
    pub(super) fn settle_stack(&mut self) {
        let ahead = std::mem::take(&mut self.stack_ahead);
        if ahead != 0 {
            self.emit.lea(STACK, Mem::at(STACK, ahead));
        }
    }
}

impl Key {
    /// By how much an instruction moves the addresses; none if by nobody knows what.
    fn moved_by(self, part: &Part) -> Option<i32> {
        let index = self.index;
        let mut by = 0;
        for (register, scale) in [Some((self.base, 0)), index].into_iter().flatten() {
            if part.changes >> register & 1 == 1 {
                let (changed, constant) = part.adds?;
                if changed != register {
                    return None;
                }
                by += constant << scale;
            }
        }
        Some(by)
    }
}

/// The register to which an instruction adds a small constant, if that is what it does to it.
fn addition(instruction: &Instruction) -> Option<(Reg, i32)> {
    let constant = match instruction.mnemonic() {
        Mnemonic::Push => return Some((RSP, -8)),
        Mnemonic::Pop if instruction.op0_register() == Register::RSP => return None,
        Mnemonic::Pop => return Some((RSP, 8)),
        Mnemonic::Pushfq => return Some((RSP, -8)),
        _ if instruction.op_count() == 0
            || instruction.op0_kind() != OpKind::Register
            || !instruction.op0_register().is_gpr64() =>
        {
            return None;
        }
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Add | Mnemonic::Sub => {
            let constant = match instruction.op1_kind() {
                OpKind::Immediate8to64 | OpKind::Immediate32to64 => instruction.immediate(1) as i64,
                _ => return None,
            };
            if instruction.mnemonic() == Mnemonic::Add { constant } else { -constant }
        }
        Mnemonic::Lea
            if instruction.memory_base() == instruction.op0_register()
                && instruction.memory_index() == Register::None =>
        {
            instruction.memory_displacement64() as i64
        }
        _ => return None,
    };
    let constant = i32::try_from(constant).ok().filter(|constant| constant.abs() <= WIDEST)?;
    Some((number_of(instruction.op0_register()), constant))
}

/// The registers of an address that groups know.
fn key_of(instruction: &Instruction) -> Option<Key> {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if !base.is_gpr64()
        || index != Register::None && !index.is_gpr64()
        || matches!(instruction.memory_segment(), Register::FS | Register::GS)
    {
        return None;
    }
    let scale = instruction.memory_index_scale().trailing_zeros() as u8;
    let index = (index != Register::None).then(|| (number_of(index), scale));
    Some(Key { base: number_of(base), index })
}

/// LEA computes in S0 if a register is not in the host's.
fn lea_is_calm(instruction: &Instruction) -> bool {
    let involved =
        [instruction.op0_register(), instruction.memory_base(), instruction.memory_index()];
    let displaced =
        |register: Register| register.is_gpr() && DISPLACED.contains(&number_of(register));
    !involved.into_iter().any(displaced) && instruction.op0_register().size() >= 4
}
