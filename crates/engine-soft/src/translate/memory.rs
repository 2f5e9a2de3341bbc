//! Memory operands: the check that stands before every access.
//!
//! ```text
//! lea  S0, [address]
//! rorx S1, S0, 8 ; and S1, 0x3ff0 ; add S1, gs:[bank]
//! sub  S0, [S1 + page]         S0 = offset in the page, if it is the right one
//! cmp  S0, 4096 - size ; ja    to the helper, out of line
//! add  S0, [S1 + host]         S0 = host address
//! ```
//!
//! The helper gets the address back by adding the page again. It returns with the
//! host address in S0, or it leaves generated code with the guest's state as it was
//! before the instruction.
//!
//! User code's accesses have [sites](super::site) instead. What S0 holds afterwards is
//! the check's [`Form`]: the distance from guest to host memory is best where the operand
//! is a register and a constant, because the processor then need not wait for the check.

use std::mem::offset_of;

use iced_x86::{Instruction, MemorySize, Mnemonic, OpAccess, OpKind, Register};

use super::block::{Cold, Compiler};
use super::emit::{Alu, Fixup, Mem, Reg, cc};
use super::frame::{self, DISPLACED, S0, S1, STACK};
use super::registers::{host_of, number_of, of_size};
use super::scan::Step;
use super::site::Failed;
use crate::state;
use crate::tlb::{Bank, Entry, index};

pub(super) const TABLE_READ: i32 = offset_of!(Bank, read) as i32;
pub(super) const TABLE_WRITE: i32 = offset_of!(Bank, write) as i32;
pub(super) const TABLE_CODE: i32 = offset_of!(Bank, code) as i32;
pub(super) const EPOCH: i32 = offset_of!(Bank, epoch) as i32;
pub(super) const ENTRY_HOST: i32 = offset_of!(Entry, host) as i32;
pub(super) const INDEX_MASK: i32 = ((crate::tlb::ENTRIES - 1) * size_of::<Entry>()) as i32;

/// What the helper is told of an access, in one word.
#[derive(Clone, Copy, Debug)]
pub struct AccessInfo {
    pub offset: u16,
    pub size: u32,
    pub write: bool,
}

impl AccessInfo {
    pub fn pack(self) -> u32 {
        u32::from(self.offset) | self.size << 12 | (self.write as u32) << 30
    }

    pub fn unpack(word: u32) -> AccessInfo {
        AccessInfo {
            offset: (word & 0xfff) as u16,
            size: word >> 12 & 0xffff,
            write: word >> 30 & 1 == 1,
        }
    }
}

/// What a check leaves in S0.
#[derive(Clone, Copy)]
pub enum Form {
    /// The host address of what was checked; the operand is so far behind it.
    Address { displacement: i32 },
    /// What is to be added to the operand's own address.
    Distance { base: Reg, displacement: i32 },
}

impl Form {
    /// Of a check for just the operand.
    pub const ADDRESS: Form = Form::Address { displacement: 0 };

    /// The host's operand.
    pub fn operand(self) -> Mem {
        match self {
            Form::Address { displacement } => Mem::at(S0, displacement),
            Form::Distance { base, displacement } => {
                Mem::parts(Some(base), Some((S0, 0)), displacement)
            }
        }
    }
}

impl Compiler<'_> {
    /// Puts the effective address of the memory operand, without a segment, into `to`.
    /// Flags stay. Takes S0 and S1. If the address is known now, it is returned instead.
    fn effective(&mut self, instruction: &Instruction, to: Reg) -> Option<u64> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let narrow = base.size() == 4 || index.size() == 4 || base == Register::EIP;
        let displacement = instruction.memory_displacement64();
        if base == Register::RIP || base == Register::EIP {
            return Some(if narrow { displacement & 0xffff_ffff } else { displacement });
        }
        if base == Register::None && index == Register::None {
            return Some(displacement);
        }
        let base = (base != Register::None).then(|| number_of(base));
        let scale = instruction.memory_index_scale().trailing_zeros() as u8;
        let index = (index != Register::None).then(|| (number_of(index), scale));
        let operand = self.sum(base, index, displacement as i32);
        self.emit.op_mem(!narrow, &[0x8d], to, operand);
        None
    }

    /// The host's form of an address that consists of guest registers. Takes S1 for one that
    /// has no host register, and S0 for another one.
    pub(super) fn sum(
        &mut self,
        base: Option<Reg>,
        index: Option<(Reg, u8)>,
        displacement: i32,
    ) -> Mem {
        let displaced = |register: Option<Reg>| register.filter(|&it| host_of(it).is_none());
        let (first, second) = (displaced(base), displaced(index.map(|(index, _)| index)));
        // S1 is for the one that it holds already, or for the base.
        let second = second.filter(|&it| first.is_some_and(|first| first != it));
        let in_s0 = if second == self.emit.held { first } else { second };
        let in_s0 = in_s0.filter(|_| second.is_some());
        let mut place = |register: Reg| {
            if in_s0 == Some(register) {
                self.emit.load(S0, frame::gpr(register));
                return S0;
            }
            self.value_of(register)
        };
        let base = base.map(&mut place);
        let index = index.map(|(index, scale)| (place(index), scale));
        Mem::parts(base, index, displacement)
    }

    /// Where the value of a guest register is: in S1 if it has no host register. Flags stay.
    pub(super) fn value_of(&mut self, register: Reg) -> Reg {
        if let Some(host) = host_of(register) {
            return host;
        }
        if self.emit.held != Some(register) {
            self.emit.load(S1, frame::gpr(register));
            self.emit.held = Some(register);
        }
        S1
    }

    /// A guest register that has no host register gets the value of S1.
    pub(super) fn keep_s1(&mut self, register: Reg) {
        self.emit.store(frame::gpr(register), S1);
        self.emit.held = Some(register);
    }

    /// LEA: the address itself is the result.
    pub(super) fn load_address(&mut self, step: &Step) {
        let instruction = &step.instruction;
        let to = instruction.op0_register();
        let number = number_of(to);
        let wide = to.size() == 8;
        if to.size() >= 4
            && let Some(host) = host_of(number)
        {
            match self.effective(instruction, host) {
                Some(address) if wide => self.emit.mov_imm(host, address),
                Some(address) => self.emit.mov_imm(host, address & 0xffff_ffff),
                None if !wide => self.emit.mov32(host, host),
                None => {}
            }
            return;
        }
        if let Some(address) = self.effective(instruction, S1) {
            self.emit.mov_imm(S1, address);
        }
        match host_of(number) {
            Some(host) => {
                self.emit.bytes(&[0x66]);
                self.emit.op_reg(false, &[0x8b], host, S1);
            }
            None if to.size() == 2 => {
                self.emit.bytes(&[0x66]);
                self.emit.op_mem(false, &[0x89], S1, frame::gpr(number));
            }
            None => {
                if !wide {
                    self.emit.mov32(S1, S1);
                }
                self.keep_s1(number);
            }
        }
    }

    /// Checks the explicit memory operand, if no group's check was for it, too.
    pub(super) fn check_operand(&mut self, step: &Step) -> Form {
        let instruction = step.instruction;
        if let Some(form) = self.groups.form() {
            return form;
        }
        let write = self.writes_memory(&instruction);
        let size = operand_size(&instruction);
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        self.check_address(step, size, write)
    }

    /// Computes the operand's linear address and checks `size` bytes there. Flags have
    /// been put aside.
    pub(super) fn check_address(&mut self, step: &Step, size: u32, write: bool) -> Form {
        let instruction = &step.instruction;
        let segment = match instruction.memory_segment() {
            Register::FS => Some(state::FS),
            Register::GS => Some(state::GS),
            _ => None,
        };
        let base = instruction.memory_base();
        if segment.is_none()
            && base.is_gpr64()
            && instruction.memory_index() == Register::None
            && !self.setting.supervisor
        {
            let displacement = instruction.memory_displacement64() as i32;
            return self.check_based(step, (number_of(base), displacement), size, write);
        }
        let known = self.effective(instruction, S0);
        match (known, segment) {
            (Some(address), None) => return self.check_known(step, address, size, write),
            (Some(address), Some(segment)) => {
                self.emit.mov_imm(S0, address);
                self.emit.alu_mem(Alu::Add, S0, frame::segment_base(segment));
            }
            (None, Some(segment)) => {
                self.emit.alu_mem(Alu::Add, S0, frame::segment_base(segment));
            }
            (None, None) => {}
        }
        self.check(step, size, write)
    }

    /// Checks an address that is a guest register and a constant.
    pub(super) fn check_based(
        &mut self,
        step: &Step,
        (base, displacement): (Reg, i32),
        size: u32,
        write: bool,
    ) -> Form {
        let form = match host_of(base) {
            Some(host) if !self.setting.supervisor => Form::Distance { base: host, displacement },
            _ => {
                let host = self.value_of(base);
                self.emit.lea(S0, Mem::at(host, displacement));
                Form::ADDRESS
            }
        };
        let info = AccessInfo { offset: step.offset, size, write };
        self.check_for(info, form, None)
    }

    /// Checks the linear address in S0.
    pub(super) fn check(&mut self, step: &Step, size: u32, write: bool) -> Form {
        let info = AccessInfo { offset: step.offset, size, write };
        self.check_for(info, Form::ADDRESS, None)
    }

    /// Checks an address for one access or for a group: that in S0, or the one that the
    /// form has.
    pub(super) fn check_for(
        &mut self,
        info: AccessInfo,
        form: Form,
        group: Option<(u64, u32, usize)>,
    ) -> Form {
        let table = if info.write { TABLE_WRITE } else { TABLE_READ };
        if !self.setting.supervisor {
            let failed = self.check_site(info, table, form);
            self.cold.push(Cold::Site { failed: Failed { group, ..failed } });
            return form;
        }
        if let Form::Distance { base, displacement } = form {
            self.emit.lea(S0, Mem::at(base, displacement));
        }
        let enter = self.look_up_page(info.size, table);
        match form {
            Form::Distance { .. } => {
                self.emit.load(S0, Mem::at(S1, table + ENTRY_HOST));
                self.emit.alu_mem(Alu::Sub, S0, Mem::at(S1, table));
            }
            Form::Address { .. } => {
                self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, table + ENTRY_HOST));
            }
        }
        let (back, entry) = (self.emit.here(), table);
        match group {
            None => self.cold.push(Cold::Access { enter, back, entry, info, form }),
            Some(group) => self.cold.push(Cold::Group { enter, back, entry, info, form, group }),
        }
        form
    }

    /// From the host address in S0 to what the form wants there. Takes S1.
    pub(super) fn give_form(&mut self, form: Form) {
        if let Form::Distance { base, displacement } = form {
            self.emit.lea(S1, Mem::at(base, displacement));
            self.emit.alu_reg(Alu::Sub, S0, S1);
        }
    }

    /// From the address in S0 to the host's by way of the software TLB: where it fails.
    /// S1 is the entry then, and S0 the offset in its page.
    pub(super) fn look_up_page(&mut self, size: u32, table: i32) -> Fixup {
        if self.setting.bmi2 {
            self.emit.held = None;
            self.emit.bytes(&[0xc4, 0x43, 0x7b, 0xf0, 0xee, 8]); // rorx r13d, r14d, 8
        } else {
            self.emit.mov32(S1, S0);
            self.emit.shift_imm(false, 5, S1, 8);
        }
        self.emit.alu_imm(false, Alu::And, S1, INDEX_MASK);
        self.emit.alu_mem(Alu::Add, S1, frame::bank());
        self.compare(table, size)
    }

    /// Checks an address that is known already.
    fn check_known(&mut self, step: &Step, address: u64, size: u32, write: bool) -> Form {
        self.emit.mov_imm(S0, address);
        if !self.setting.supervisor {
            return self.check(step, size, write);
        }
        self.emit.load(S1, frame::bank());
        let table = if write { TABLE_WRITE } else { TABLE_READ };
        let entry = table + (index(address) * size_of::<Entry>()) as i32;
        let enter = self.compare(entry, size);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, entry + ENTRY_HOST));
        let info = AccessInfo { offset: step.offset, size, write };
        let (back, form) = (self.emit.here(), Form::ADDRESS);
        self.cold.push(Cold::Access { enter, back, entry, info, form });
        form
    }

    fn compare(&mut self, entry: i32, size: u32) -> Fixup {
        self.emit.alu_mem(Alu::Sub, S0, Mem::at(S1, entry));
        self.emit.cmp_jcc(S0, 4096 - size as i32, cc::A)
    }

    /// The instruction with its memory operand where the check has found it, and other
    /// registers for displaced ones.
    pub(super) fn substituted(&mut self, step: &Step, operand: Option<Form>) {
        let mut instruction = step.instruction;
        let mut free: &[Reg] = match operand {
            Some(_) => &[S1],
            None if self.groups.needs_s0() => &[S1],
            None => &[S1, S0],
        };
        // S1 stays for the register that it holds already.
        let held = self.emit.held.filter(|&held| {
            (0..instruction.op_count()).any(|operand| {
                instruction.op_kind(operand) == OpKind::Register
                    && instruction.op_register(operand).is_gpr()
                    && !is_high_byte(instruction.op_register(operand))
                    && number_of(instruction.op_register(operand)) == held
            })
        });
        if held.is_some() {
            free = &free[1..];
        }
        let mut host = operand.map(Form::operand);
        let mut borrowed: Vec<(Reg, usize)> = Vec::new();
        let high = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register
                && matches!(
                    instruction.op_register(operand),
                    Register::AH | Register::CH | Register::DH | Register::BH
                )
        });
        if let Some(place) = host.as_mut().filter(|_| high) {
            // A high byte rules out a REX prefix, so the address moves to a register
            // that needs none.
            let free = self.free_register(&instruction, &[3, 5, 6, 7], &borrowed);
            borrowed.push((free, 0));
            self.emit.store(frame::scratch(0), free);
            self.emit.lea(free, *place);
            *place = Mem::at(free, 0);
        }
        let mut replaced: Vec<(Reg, Reg, bool)> = Vec::new();
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) != OpKind::Register {
                continue;
            }
            let register = instruction.op_register(operand);
            if !register.is_gpr() {
                continue;
            }
            let number = number_of(register);
            if number == 4 && !is_high_byte(register) {
                instruction.set_op_register(operand, of_size(register.size(), STACK));
                continue;
            }
            if !DISPLACED.contains(&number) {
                continue;
            }
            let access = self.info.info(&step.instruction).op_access(operand);
            let host = match replaced.iter().find(|entry| entry.0 == number) {
                Some(entry) => entry.1,
                None => {
                    let host = if held == Some(number) {
                        S1
                    } else if let Some((&host, rest)) = free.split_first() {
                        free = rest;
                        if host == S0 {
                            self.groups.lose_s0();
                        }
                        host
                    } else {
                        let host =
                            self.free_register(&instruction, &[5, 12, 10, 11, 8, 9], &borrowed);
                        let place = borrowed.len();
                        self.emit.store(frame::scratch(place), host);
                        borrowed.push((host, place));
                        host
                    };
                    let loaded = host == S1 && self.emit.held == Some(number);
                    if !loaded && !is_overwritten(&step.instruction, operand, access) {
                        self.emit.load(host, frame::gpr(number));
                    }
                    replaced.push((number, host, false));
                    host
                }
            };
            if !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                for entry in replaced.iter_mut().filter(|entry| entry.0 == number) {
                    entry.2 = true;
                }
            }
            instruction.set_op_register(operand, of_size(register.size(), host));
        }
        if let Some(place) = host {
            set_memory(&mut instruction, place);
        }
        self.origin(step);
        self.encode(&instruction);
        for &(number, host, written) in &replaced {
            if written {
                self.emit.store(frame::gpr(number), host);
            }
            if host == S1 {
                self.emit.held = Some(number);
            }
        }
        for &(host, place) in borrowed.iter().rev() {
            self.emit.load(host, frame::scratch(place));
        }
    }

    /// A host register among `candidates` that the instruction has nothing to do with.
    fn free_register(
        &self,
        instruction: &Instruction,
        candidates: &[Reg],
        borrowed: &[(Reg, usize)],
    ) -> Reg {
        let used = |candidate: Reg| {
            borrowed.iter().any(|&(host, _)| host == candidate)
                || (0..instruction.op_count()).any(|operand| {
                    instruction.op_kind(operand) == OpKind::Register && {
                        let register = instruction.op_register(operand);
                        register.is_gpr() && number_of(register) == candidate
                    }
                })
        };
        let free = candidates.iter().copied().find(|&candidate| !used(candidate));
        free.expect("an instruction has at most three general registers as operands")
    }

    /// BT and its kin with a bit offset in a register reach beyond their operand.
    pub(super) fn bit_string(&mut self, step: &Step) {
        let instruction = &step.instruction;
        let bits = instruction.op1_register();
        let size = bits.size() as u32;
        if size == 2 {
            return self.interpret(step);
        }
        let write = instruction.mnemonic() != Mnemonic::Bt;
        self.flags.put_aside(&mut self.emit, step.live_in != 0);
        if let Some(address) = self.effective(instruction, S0) {
            self.emit.mov_imm(S0, address);
        }
        let segment = match instruction.memory_segment() {
            Register::FS => Some(state::FS),
            Register::GS => Some(state::GS),
            _ => None,
        };
        if let Some(segment) = segment {
            self.emit.alu_mem(Alu::Add, S0, frame::segment_base(segment));
        }
        let source = match host_of(number_of(bits)) {
            Some(host) => {
                // movsxd or mov
                let opcode = if size == 8 { 0x8b } else { 0x63 };
                self.emit.op_reg(true, &[opcode], S1, host);
                Some(host)
            }
            None => {
                let opcode = if size == 8 { 0x8b } else { 0x63 };
                self.emit.op_mem(true, &[opcode], S1, frame::gpr(number_of(bits)));
                None
            }
        };
        let (shift, scale) = if size == 8 { (6, 3) } else { (5, 2) };
        self.emit.shift_imm(true, 7, S1, shift);
        self.emit.lea(S0, Mem::parts(Some(S0), Some((S1, scale)), 0));
        self.check(step, size, write);
        match source {
            Some(host) => self.emit.mov(S1, host),
            None => self.emit.load(S1, frame::gpr(number_of(bits))),
        }
        self.emit.alu_imm(false, Alu::And, S1, size as i32 * 8 - 1);
        // Only CF is written; the masking above has cost the others.
        if step.live_out & !step.writes != 0 && !self.flags.native && self.flags.saved {
            self.emit.store(frame::scratch(0), S1);
            self.flags.bring_back(&mut self.emit);
            self.emit.load(S1, frame::scratch(0));
        }
        let mut host = *instruction;
        set_memory(&mut host, Mem::at(S0, 0));
        host.set_op1_register(of_size(size as usize, S1));
        self.origin(step);
        self.encode(&host);
        self.flags.written();
    }

    pub(super) fn needs_other_registers(&self, instruction: &Instruction) -> bool {
        (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register && {
                let register = instruction.op_register(operand);
                let number = if register.is_gpr() { number_of(register) } else { 0 };
                register.is_gpr()
                    && !is_high_byte(register)
                    && (number == 4 || DISPLACED.contains(&number))
            }
        })
    }
}

/// Puts an operand of the host in the place of the guest's.
fn set_memory(instruction: &mut Instruction, place: Mem) {
    let register = |number: Option<Reg>| number.map_or(Register::None, |it| of_size(8, it));
    instruction.set_memory_base(register(place.base()));
    instruction.set_memory_index(register(place.index()));
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(place.displacement() as u64);
    instruction.set_memory_displ_size((place.displacement() != 0) as u32);
    instruction.set_segment_prefix(Register::None);
}

/// The operand's register needs no value before the instruction.
fn is_overwritten(instruction: &Instruction, operand: u32, access: OpAccess) -> bool {
    let register = instruction.op_register(operand);
    access == OpAccess::Write
        && register.size() >= 4
        && (0..instruction.op_count()).all(|other| {
            other == operand
                || instruction.op_kind(other) != OpKind::Register
                || instruction.op_register(other).full_register() != register.full_register()
        })
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Bytes that the memory operand covers.
pub(super) fn operand_size(instruction: &Instruction) -> u32 {
    match instruction.memory_size() {
        MemorySize::Unknown => 1,
        size => size.size().clamp(1, 64) as u32,
    }
}
