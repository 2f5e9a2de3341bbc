//! Jumps, branches, and the ways out of a region.
//!
//! Between regions flags travel in the frame, and only if they may matter. A direct
//! way out is a link: a jump to its stub at first, to the target's code once that is
//! known. A link to another page first looks whether the page that the target was
//! translated from is still the one at that address.
//!
//! A jump backwards looks at `attention`, so that no loop runs on unseen. Every
//! endless loop has one: it goes back by a jump or branch (looked at here), by an
//! indirect jump (looked at there), or by a return, which needs a call before it.

use iced_x86::{OpKind, Register};

use super::NO_ADDRESS;
use super::block::{Cold, Compiler, Guess, LinkSite};
use super::emit::{Alu, Emit, Fixup, Mem, RSP, cc};
use super::flags::Flags;
use super::frame::{self, JUMP_HASH, JUMP_SHIFT, JUMPS, Jump, S0, S1};
use super::memory::{EPOCH, TABLE_CODE};
use super::paths::BESIDE;
use super::registers::number_of;
use super::scan::{Step, Way};
use crate::tlb::{PAGE_SIZE, code_index};

const PUSH_S1: [u8; 2] = [0x41, 0x55];

pub(super) fn code_place(address: u64) -> i32 {
    TABLE_CODE + 4 * code_index(address) as i32
}

/// Goes to the address in S0 by way of the jump cache; to what is returned, with the address
/// still there, where that does not know it. The user's caches are for one epoch.
pub(super) fn look_up(emit: &mut Emit, supervisor: bool) -> Vec<Fixup> {
    emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
    let mut unknown = vec![emit.jcc(cc::NE)];
    emit.op_reg(false, &[0x69], S1, S0); // imul r13d, r14d, imm32
    emit.bytes(&JUMP_HASH.to_le_bytes());
    emit.shift_imm(false, 5, S1, JUMP_SHIFT - size_of::<Jump>().trailing_zeros() as u8);
    emit.alu_imm(false, Alu::And, S1, ((JUMPS - 1) * size_of::<Jump>()) as i32);
    emit.alu_mem(Alu::Add, S1, frame::jumps());
    emit.room_for_jump(9); // with the comparison
    emit.alu_mem(Alu::Cmp, S0, Mem::at(S1, 0));
    unknown.push(emit.jcc(cc::NE));
    let mut other = None;
    if supervisor {
        emit.load(S0, frame::bank());
        emit.load(S0, Mem::at(S0, EPOCH));
        emit.alu_mem(Alu::Cmp, S0, Mem::at(S1, 8));
        other = Some(emit.jcc(cc::NE));
    }
    emit.room_for_jump(4);
    emit.op_mem(false, &[0xff], 4, Mem::at(S1, 16)); // jmp [r13 + 16]
    if let Some(other) = other {
        emit.bind_here(other);
        emit.load(S0, Mem::at(S1, 0));
        unknown.push(emit.jmp());
    }
    unknown
}

impl Compiler<'_> {
    /// Jcc.
    pub(super) fn branch(&mut self, position: usize, step: &Step) {
        self.flags.bring_back(&mut self.emit);
        // iced counts conditions as the processor does, from 1.
        let condition = (step.instruction.condition_code() as u8).wrapping_sub(1) & 15;
        let from = step.instruction.ip();
        match step.target {
            Way::Inside(target)
                if target as usize > position && !self.is_backward(from, target) =>
            {
                let fixup = self.emit.jcc(condition);
                self.reference(fixup, target);
            }
            Way::Inside(target) => {
                let skip = self.emit.jcc(condition ^ 1);
                let before = (self.flags, self.emit.held);
                self.poll_inside(target);
                (self.flags, self.emit.held) = before;
                self.emit.bind_here(skip);
            }
            Way::Outside(to) => {
                let enter = self.emit.jcc(condition);
                let (flags, setter, live) = (self.flags, self.setter, step.live_out != 0);
                self.cold.push(Cold::Edge { enter, from, to, flags, setter, live });
            }
            Way::Nowhere => {}
        }
    }

    fn is_backward(&self, from: u64, target: u16) -> bool {
        self.region.page + u64::from(self.region.steps[target as usize].offset) <= from
    }

    /// JMP to a known address.
    pub(super) fn jump(&mut self, step: &Step) {
        match step.target {
            Way::Inside(target) => self.jump_inside(step, target),
            Way::Outside(to) => self.leave_to(step.instruction.ip(), to, step.live_out != 0),
            Way::Nowhere => {}
        }
    }

    /// On to another step of this region.
    pub(super) fn jump_inside(&mut self, step: &Step, target: u16) {
        if self.is_backward(step.instruction.ip(), target) {
            return self.poll_inside(target);
        }
        if self.wants_flags(target as usize) {
            self.flags.bring_back(&mut self.emit);
        }
        let fixup = self.emit.jmp();
        self.reference(fixup, target);
    }

    /// A jump backwards in the region, unless something wants attention.
    fn poll_inside(&mut self, target: u16) {
        let to = &self.region.steps[target as usize];
        let rip = self.region.page + u64::from(to.offset);
        let live = to.live_in != 0;
        self.flags.put_aside(&mut self.emit, live);
        self.emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
        if !live {
            let calm = self.emit.jcc(cc::E);
            self.reference(calm, target);
            let enter = self.emit.jmp();
            return self.cold.push(Cold::Next { enter, rip });
        }
        let enter = self.emit.jcc(cc::NE);
        self.cold.push(Cold::Next { enter, rip });
        if self.wants_flags(target as usize) {
            self.flags.bring_back(&mut self.emit);
        }
        let fixup = self.emit.jmp();
        self.reference(fixup, target);
    }

    /// Out of the region to a known address.
    pub(super) fn leave_to(&mut self, from: u64, to: u64, live: bool) {
        self.defer_flags(live);
        if to <= from {
            self.emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
            let enter = self.emit.jcc(cc::NE);
            self.cold.push(Cold::Next { enter, rip: to });
        }
        let (expected, miss) = self.expect_page(to);
        let jump = self.emit.jmp();
        let link = self.first_link + self.out.links.len() as u32;
        if let Some(miss) = miss {
            self.emit.bind_here(miss);
        }
        self.emit.bind_here(jump);
        self.out.links.push(LinkSite { jump, expected, guess: None });
        self.leave_by_link(link, to);
        self.flags = Flags::SAVED;
    }

    /// For targets in other pages: looks whether the page is the one that the link was
    /// made for. None is, until it is made.
    fn expect_page(&mut self, to: u64) -> (Option<usize>, Option<Fixup>) {
        if to & !(PAGE_SIZE - 1) == self.region.page {
            return (None, None);
        }
        self.emit.load(S1, frame::bank());
        let place = self.emit.cmp_mem_patchable(Mem::at(S1, code_place(to)), u32::MAX);
        (Some(place), Some(self.emit.jcc(cc::NE)))
    }

    fn leave_by_link(&mut self, link: u32, to: u64) {
        self.emit.store32_imm(frame::argument(), link as i32);
        self.emit.mov_imm(S1, to);
        self.emit.store(frame::rip(), S1);
        self.emit.jmp_to(self.routines.leave_link);
    }

    /// CALL to a known address.
    pub(super) fn call(&mut self, step: &Step) {
        let target = step.instruction.near_branch_target();
        self.push_return(step);
        let from = step.instruction.ip();
        let mut enters = [None, None];
        if target <= from {
            self.emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
            enters[0] = Some(self.emit.jcc(cc::NE));
        }
        let (expected, miss) = self.expect_page(target);
        enters[1] = miss;
        let jump = self.emit.call();
        let link = self.first_link + self.out.links.len() as u32;
        self.out.links.push(LinkSite { jump, expected, guess: None });
        let after = self.emit.here();
        self.after_call(step);
        self.cold.push(Cold::CallLink { enters, jump, link, target, after });
    }

    /// CALL to an address in a register or in memory.
    pub(super) fn call_indirect(&mut self, step: &Step) {
        self.defer_flags(true);
        let instruction = &step.instruction;
        // RSP is another one once the return address is pushed.
        let register = (instruction.op0_kind() == OpKind::Register)
            .then(|| number_of(instruction.op0_register()))
            .filter(|&number| number != 4);
        if register.is_none() {
            self.target(step);
            self.emit.store(frame::scratch(1), S0);
        }
        self.push_return(step);
        match register {
            Some(number) => {
                let from = self.value_of(number);
                self.emit.mov(S0, from);
            }
            None => self.emit.load(S0, frame::scratch(1)),
        }
        let enter = self.emit.call();
        let link = self.add_link();
        self.cold.push(Cold::Indirect { enter, link });
        self.after_call(step);
    }

    /// JMP to an address in a register or in memory.
    pub(super) fn jump_indirect(&mut self, step: &Step) {
        self.defer_flags(true);
        self.target(step);
        // From the linkage table: always to the same place.
        if step.instruction.memory_base() == Register::RIP {
            let link = self.add_link();
            self.expect_target(link);
        } else {
            for unknown in look_up(&mut self.emit, self.setting.supervisor) {
                self.emit.bind_address(unknown, self.routines.leave_to_s0);
            }
        }
    }

    fn add_link(&mut self) -> u32 {
        self.out.links.push(LinkSite::default());
        self.first_link + self.out.links.len() as u32 - 1
    }

    /// Goes to the address in S0: directly if it is the one that this place went to first,
    /// and its page is the one from then. Places that go elsewhere, too, lose the guess.
    fn expect_target(&mut self, link: u32) {
        let start = self.emit.here();
        self.emit.bytes(&[0x49, 0xbd]); // mov r13, imm64
        let target = self.emit.here();
        self.emit.bytes(&NO_ADDRESS.to_le_bytes());
        self.emit.room_for_jump(9); // with the comparison
        self.emit.alu_reg(Alu::Cmp, S0, S1);
        let other = self.emit.jcc(cc::NE);
        // A jump backwards, perhaps.
        self.emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
        self.emit.jcc_to(cc::NE, self.routines.leave_to_s0);
        self.emit.load(S1, frame::bank());
        let expected = self.emit.cmp_mem_patchable(Mem::at(S1, code_place(0)), u32::MAX);
        let moved = self.emit.jcc(cc::NE);
        let jump = self.emit.jmp();
        self.emit.bind_here(jump);
        self.emit.bind_here(moved);
        self.emit.bind_here(other);
        // Until it is connected, it leaves to be.
        let first = self.emit.jmp();
        let rest = self.emit.here();
        for unknown in look_up(&mut self.emit, self.setting.supervisor) {
            self.emit.bind_here(unknown);
        }
        self.emit.bind_here(first);
        self.emit.store32_imm(frame::argument(), link as i32);
        self.emit.store(frame::rip(), S0);
        self.emit.jmp_to(self.routines.leave_link);
        let guess = Guess { start, target, first, rest };
        self.out.links[(link - self.first_link) as usize] =
            LinkSite { jump, expected: Some(expected), guess: Some(guess) };
    }

    /// Puts the target into S0. Flags have been put aside.
    fn target(&mut self, step: &Step) {
        let instruction = &step.instruction;
        if instruction.op0_kind() == OpKind::Memory {
            let place = self.check_address(step, 8, false).operand();
            return self.emit.load(S0, place);
        }
        let from = self.value_of(number_of(instruction.op0_register()));
        self.emit.mov(S0, from);
    }

    /// Pushes the return address on the guest's stack and on the shadow stack.
    fn push_return(&mut self, step: &Step) {
        let after = step.instruction.next_ip();
        self.defer_flags(step.live_in != 0);
        let place = self.check_push(step);
        self.emit.mov_imm(S1, after);
        self.emit.store(place, S1);
        self.stack_ahead -= 8;
        self.settle_stack();
        self.emit.store(Mem::at(RSP, BESIDE - 8), S1);
    }

    /// Where a return comes back to. The supervisor looks whether the page is still there.
    fn after_call(&mut self, step: &Step) {
        let next = step.instruction.next_ip();
        let after = (next - self.region.page) as u16;
        // `after` may be the next page's.
        self.out.returns.push((after, self.emit.here() as u32));
        if self.setting.supervisor {
            self.emit.load(S1, frame::bank());
            let place = Mem::at(S1, code_place(self.region.page));
            self.emit.cmp_mem_patchable(place, self.page_id);
            let enter = self.emit.jcc(cc::NE);
            self.cold.push(Cold::Next { enter, rip: next });
        }
        if matches!(step.next, Way::Inside(_)) {
            self.want_vectors();
        }
        self.flags = Flags::SAVED;
    }

    /// RET: to the caller by way of the shadow stack, if its entry is right.
    pub(super) fn ret(&mut self, step: &Step) {
        let instruction = &step.instruction;
        self.defer_flags(true);
        let place = self.check_pop(step);
        self.emit.load(S0, place);
        let extra =
            if instruction.op_count() == 1 { i32::from(instruction.immediate16()) } else { 0 };
        self.stack_ahead += 8 + extra;
        self.settle_stack();
        self.emit.room_for_jump(14); // with the comparison
        self.emit.alu_mem(Alu::Cmp, S0, Mem::at(RSP, BESIDE));
        let enter = self.emit.jcc(cc::NE);
        self.emit.room_for_jump(1);
        self.emit.bytes(&[0xc3]);
        self.cold.push(Cold::ReturnMiss { enter });
    }

    /// What was put off; emitting it may put off more.
    pub(super) fn emit_cold(&mut self) {
        while !self.cold.is_empty() {
            for cold in std::mem::take(&mut self.cold) {
                self.emit_one(cold);
            }
        }
    }

    fn emit_one(&mut self, cold: Cold) {
        match cold {
            Cold::Access { enter, back, entry, info, form } => {
                self.emit.bind_here(enter);
                self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, entry));
                self.emit.mov_imm(S1, u64::from(info.pack()));
                self.emit.call_to(self.routines.access);
                self.give_form(form);
                self.go_back(None, back);
            }
            Cold::Edge { enter, from, to, flags, setter, live } => {
                self.emit.bind_here(enter);
                (self.flags, self.setter) = (flags, setter);
                self.leave_to(from, to, live);
            }
            Cold::Deferred { place, setter } => self.emit_deferred(place, setter),
            Cold::Settle { enter, back } => {
                self.emit.bind_here(enter);
                self.emit.call_to(self.routines.settle);
                let jump = self.emit.jmp();
                self.emit.bind(jump, back);
            }
            Cold::Next { enter, rip } => {
                self.emit.bind_here(enter);
                self.emit.mov_imm(S1, rip);
                self.emit.store(frame::rip(), S1);
                self.emit.jmp_to(self.routines.leave_next);
            }
            Cold::CallLink { enters, jump, link, target, after } => {
                // Whoever comes here by the call itself has the return address already.
                let [poll, miss] = enters;
                for (enter, by_link) in [(poll, false), (miss, true)] {
                    let Some(enter) = enter else { continue };
                    self.emit.bind_here(enter);
                    // lea r13, [rip + after]
                    self.emit.bytes(&[0x4c, 0x8d, 0x2d, 0, 0, 0, 0]);
                    let place = Fixup(self.emit.here() - 4);
                    self.emit.bind(place, after);
                    self.emit.bytes(&PUSH_S1);
                    if by_link {
                        self.leave_by_link(link, target);
                    } else {
                        self.emit.mov_imm(S1, target);
                        self.emit.store(frame::rip(), S1);
                        self.emit.jmp_to(self.routines.leave_next);
                    }
                }
                self.emit.bind_here(jump);
                self.leave_by_link(link, target);
            }
            Cold::LoadVectors { enter, back } => {
                self.emit.bind_here(enter);
                self.emit.call_to(self.routines.load_vectors);
                let jump = self.emit.jmp();
                self.emit.bind(jump, back);
            }
            Cold::Group { enter, back, entry, info, form, group } => {
                self.emit.bind_here(enter);
                self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, entry));
                self.emit_group_slow(back, info, form, group, None);
            }
            Cold::Site { failed } => self.emit_site(failed),
            Cold::Indirect { enter, link } => {
                self.emit.bind_here(enter);
                self.expect_target(link);
            }
            Cold::ReturnMiss { enter } => {
                self.emit.bind_here(enter);
                let user = !self.setting.supervisor;
                self.emit.jmp_to(self.routines.return_miss[usize::from(user)]);
            }
            Cold::Interpret { enter, rip, instruction } => {
                self.emit.bind_here(enter);
                self.leave_to_interpreter(rip, &instruction);
            }
            Cold::InPlace { enter, instruction, back } => {
                self.emit.bind_here(enter);
                self.interpret_inline(&instruction);
                let jump = self.emit.jmp();
                self.emit.bind(jump, back);
            }
        }
    }
}
