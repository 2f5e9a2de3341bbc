//! Far control transfers: JMP, CALL and RET between segments, call gates, IRET.
//!
//! Everything is read and checked before a register changes.

use super::Cpu;
use super::mode::bits::*;
use super::segment::{Descriptor, Stack, access, is_null, selector_error, system};
use crate::exception::{self, Exception};
use crate::interpret::op::Run;
use crate::memory::access::is_canonical;
use crate::state::{CS, DS, ES, FS, GS, RSP, SS, Segment};

/// A far pointer, and the size (2, 4 or 8) of the operands that came with it.
#[derive(Clone, Copy, Debug)]
pub struct FarPointer {
    pub selector: u16,
    pub offset: u64,
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

fn mask_of(size: u64) -> u64 {
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    }
}

impl Cpu {
    fn fault_with_selector<T>(&mut self, vector: u8, selector: u16) -> Run<T> {
        self.raise(Exception::with_code(vector, selector_error(selector)))
    }

    /// Whether RIP may become `offset` in a code segment.
    fn check_target(&mut self, code: &Segment, offset: u64) -> Run {
        let long = self.mode.long && code.access & access::LONG != 0;
        let inside = if long { is_canonical(offset) } else { offset <= code.limit as u64 };
        if inside { Ok(()) } else { self.general_protection(0) }
    }

    pub fn jump_far(&mut self, to: FarPointer, next: u64) -> Run {
        self.transfer(to, next, Kind::Jump)
    }

    /// `next`: where to return to.
    pub fn call_far(&mut self, to: FarPointer, next: u64) -> Run {
        self.transfer(to, next, Kind::Call)
    }

    fn transfer(&mut self, to: FarPointer, next: u64, kind: Kind) -> Run {
        if !self.mode.protected || self.mode.v86 {
            return self.transfer_real(to, next, kind);
        }
        if is_null(to.selector) {
            return self.general_protection(0);
        }
        let descriptor = self.read_descriptor(to.selector)?;
        if descriptor.is_system() {
            return self.transfer_system(to, descriptor, next, kind);
        }
        let code = self.direct_code(to.selector, descriptor)?;
        let offset = to.offset & mask_of(to.size);
        let mut stack = self.stack();
        if kind == Kind::Call {
            self.push_on(&mut stack, self.state.seg[CS].selector as u64, to.size)?;
            self.push_on(&mut stack, next & mask_of(to.size), to.size)?;
        }
        self.check_target(&code, offset)?;
        if kind == Kind::Call {
            self.set_stack_pointer(stack.pointer);
        }
        self.set_code_segment(code, self.mode.cpl);
        self.state.rip = offset;
        self.update_mode();
        Ok(())
    }

    fn transfer_real(&mut self, to: FarPointer, next: u64, kind: Kind) -> Run {
        let offset = to.offset & mask_of(to.size);
        if offset > self.state.seg[CS].limit as u64 {
            return self.general_protection(0);
        }
        if kind == Kind::Call {
            let mut stack = self.stack();
            self.push_on(&mut stack, self.state.seg[CS].selector as u64, to.size)?;
            self.push_on(&mut stack, next & mask_of(to.size), to.size)?;
            self.set_stack_pointer(stack.pointer);
        }
        self.load_real_segment(CS, to.selector);
        self.state.rip = offset;
        self.update_mode();
        Ok(())
    }

    /// A code segment that is jumped to or called directly.
    fn direct_code(&mut self, selector: u16, descriptor: Descriptor) -> Run<Segment> {
        let rpl = (selector & 3) as u8;
        let cpl = self.mode.cpl;
        let dpl = descriptor.dpl();
        let allowed =
            if descriptor.is_conforming() { dpl <= cpl } else { rpl <= cpl && dpl == cpl };
        let both = self.mode.long && descriptor.is_long() && descriptor.is_big();
        if !descriptor.is_code() || !allowed || both {
            return self.fault_with_selector(exception::GENERAL_PROTECTION, selector);
        }
        if !descriptor.is_present() {
            return self.fault_with_selector(exception::SEGMENT_NOT_PRESENT, selector);
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    fn transfer_system(
        &mut self,
        to: FarPointer,
        descriptor: Descriptor,
        next: u64,
        kind: Kind,
    ) -> Run {
        let rpl = (to.selector & 3) as u8;
        let known = match descriptor.kind() {
            system::CALL => true,
            system::CALL16 | system::TASK_GATE | system::TSS | system::TSS16 => !self.mode.long,
            _ => false,
        };
        if !known || descriptor.dpl() < self.mode.cpl.max(rpl) {
            return self.fault_with_selector(exception::GENERAL_PROTECTION, to.selector);
        }
        if !descriptor.is_present() {
            return self.fault_with_selector(exception::SEGMENT_NOT_PRESENT, to.selector);
        }
        match descriptor.kind() {
            system::CALL | system::CALL16 => self.through_call_gate(to.selector, next, kind),
            system::TASK_GATE => {
                self.switch_by_transfer(descriptor.gate_selector(), next, kind == Kind::Call)
            }
            _ => self.switch_by_transfer(to.selector, next, kind == Kind::Call),
        }
    }

    fn through_call_gate(&mut self, gate_selector: u16, next: u64, kind: Kind) -> Run {
        let (gate, upper) = self.read_wide_descriptor(gate_selector)?;
        let selector = gate.gate_selector();
        if is_null(selector) {
            return self.general_protection(0);
        }
        let target = self.read_descriptor(selector)?;
        let cpl = self.mode.cpl;
        let conforming = target.is_conforming();
        let wrong_level = if kind == Kind::Jump && !conforming {
            target.dpl() != cpl
        } else {
            target.dpl() > cpl
        };
        let wrong_size = self.mode.long && (!target.is_long() || target.is_big());
        if !target.is_code() || wrong_level || wrong_size {
            return self.fault_with_selector(exception::GENERAL_PROTECTION, selector);
        }
        if !target.is_present() {
            return self.fault_with_selector(exception::SEGMENT_NOT_PRESENT, selector);
        }
        let code = target.segment(selector);
        let (size, mut offset) = match (self.mode.long, gate.kind()) {
            (true, _) => (8, gate.gate_offset() | upper << 32),
            (false, system::CALL) => (4, gate.gate_offset()),
            (false, _) => (2, gate.gate_offset()),
        };
        offset &= mask_of(size);
        let level = if conforming || kind == Kind::Jump { cpl } else { target.dpl() };
        let mut stack = self.stack();
        let old_stack = (self.state.seg[SS].selector as u64, self.state.gpr[RSP]);
        let return_to = [self.state.seg[CS].selector as u64, next & mask_of(size)];
        if kind == Kind::Call && level < cpl {
            let (ss, pointer) = self.stack_of_level(level)?;
            let view = self.system_view();
            if self.mode.long {
                let segment = self.null_stack(level);
                stack = Stack { segment, pointer, mask: !0, view, long: true };
            } else {
                let segment = self.stack_segment(ss, level, exception::INVALID_TSS)?;
                let mask = if segment.access & access::BIG != 0 { 0xffff_ffff } else { 0xffff };
                stack = Stack { segment, pointer, mask, view, long: false };
            }
            self.push_on(&mut stack, old_stack.0, size)?;
            self.push_on(&mut stack, old_stack.1, size)?;
            if !self.mode.long {
                self.copy_parameters(&mut stack, gate.0 >> 32 & 31, size)?;
            }
        }
        self.check_target(&code, offset)?;
        if kind == Kind::Call {
            for value in return_to {
                self.push_on(&mut stack, value, size)?;
            }
        }
        self.mark_accessed(selector, target)?;
        if kind == Kind::Call && level < cpl {
            self.state.seg[SS] = stack.segment;
            self.update_mode();
        }
        if kind == Kind::Call {
            if stack.long {
                self.state.gpr[RSP] = stack.pointer;
            } else {
                self.set_stack_pointer(stack.pointer);
            }
        }
        self.set_code_segment(code, level);
        self.state.rip = offset;
        self.set_level(level);
        Ok(())
    }

    /// Copies a call gate's parameters from the caller's stack.
    fn copy_parameters(&mut self, stack: &mut Stack, count: u64, size: u64) -> Run {
        let old = self.stack();
        for number in (0..count).rev() {
            let mut at = Stack { pointer: old.pointer.wrapping_add(number * size), ..old };
            let value = self.pop_from(&mut at, size)?;
            self.push_on(stack, value, size)?;
        }
        Ok(())
    }

    /// RETF, with `release` bytes of parameters.
    pub fn return_far(&mut self, size: u64, release: u64) -> Run {
        let mut stack = self.stack();
        let offset = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        if !self.mode.protected || self.mode.v86 {
            if offset > self.state.seg[CS].limit as u64 {
                return self.general_protection(0);
            }
            self.load_real_segment(CS, selector);
            self.state.rip = offset;
            self.set_stack_pointer(stack.pointer.wrapping_add(release));
            self.update_mode();
            return Ok(());
        }
        let code = self.return_target(selector)?;
        let level = (selector & 3) as u8;
        self.check_target(&code, offset)?;
        if level == self.mode.cpl {
            self.set_stack_pointer(stack.pointer.wrapping_add(release));
            self.set_code_segment(code, level);
            self.state.rip = offset;
            self.set_level(level);
            return Ok(());
        }
        stack.pointer =
            stack.pointer & !stack.mask | stack.pointer.wrapping_add(release) & stack.mask;
        let pointer = self.pop_from(&mut stack, size)?;
        let ss = self.pop_from(&mut stack, size)? as u16;
        let segment = self.outer_stack(ss, level, &code)?;
        self.enter_outer(code, offset, segment, level);
        self.set_stack_pointer(pointer.wrapping_add(release));
        Ok(())
    }

    /// The code segment that RETF or IRET goes to.
    fn return_target(&mut self, selector: u16) -> Run<Segment> {
        if is_null(selector) {
            return self.general_protection(0);
        }
        let descriptor = self.read_descriptor(selector)?;
        let rpl = (selector & 3) as u8;
        let dpl = descriptor.dpl();
        let allowed = rpl >= self.mode.cpl
            && if descriptor.is_conforming() { dpl <= rpl } else { dpl == rpl };
        let both = self.mode.long && descriptor.is_long() && descriptor.is_big();
        if !descriptor.is_code() || !allowed || both {
            return self.fault_with_selector(exception::GENERAL_PROTECTION, selector);
        }
        if !descriptor.is_present() {
            return self.fault_with_selector(exception::SEGMENT_NOT_PRESENT, selector);
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// The stack segment of a return to an outer level, or in 64-bit mode to any.
    fn outer_stack(&mut self, selector: u16, level: u8, code: &Segment) -> Run<Segment> {
        if is_null(selector) {
            let long = self.mode.long && code.access & access::LONG != 0;
            if long && level != 3 {
                return Ok(Segment { selector, ..self.null_stack(level) });
            }
            return self.general_protection(0);
        }
        self.stack_segment(selector, level, exception::GENERAL_PROTECTION)
    }

    fn enter_outer(&mut self, code: Segment, offset: u64, stack: Segment, level: u8) {
        let outer = level > self.mode.cpl;
        self.set_code_segment(code, level);
        self.state.seg[SS] = stack;
        self.state.rip = offset;
        self.set_level(level);
        if outer {
            self.drop_inner_segments(level);
        }
    }

    /// Empties data segment registers that an outer level must not keep.
    fn drop_inner_segments(&mut self, level: u8) {
        for register in [ES, DS, FS, GS] {
            let segment = &mut self.state.seg[register];
            let dpl = (segment.access >> access::DPL_SHIFT & 3) as u8;
            let conforming =
                segment.access & access::CODE != 0 && segment.access & access::DIRECTION != 0;
            if segment.access & access::UNUSABLE == 0 && dpl < level && !conforming {
                // 64-bit code goes on using the base.
                let base = segment.base;
                *segment = Segment { access: access::UNUSABLE, base, ..Segment::default() };
            }
        }
        self.update_mode();
    }

    pub fn return_from_interrupt(&mut self, size: u64) -> Run {
        if !self.mode.protected {
            return self.iret_real(size);
        }
        if self.mode.v86 {
            if self.iopl() < 3 {
                return self.general_protection(0);
            }
            return self.iret_real(size);
        }
        if self.state.rflags & NT != 0 {
            if self.mode.long {
                return self.general_protection(0);
            }
            return self.return_from_task();
        }
        self.iret_protected(size)
    }

    fn iret_real(&mut self, size: u64) -> Run {
        let mut stack = self.stack();
        let offset = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if offset > self.state.seg[CS].limit as u64 {
            return self.general_protection(0);
        }
        self.set_stack_pointer(stack.pointer);
        self.load_real_segment(CS, selector);
        self.state.rip = offset;
        let mut mask = self.changeable_flags() | IF | RF;
        if self.mode.v86 {
            mask &= !IOPL;
        }
        if size == 2 {
            mask &= 0xffff;
        }
        self.unblock_nmis();
        self.update_mode();
        self.set_flags(flags, mask);
        Ok(())
    }

    fn iret_protected(&mut self, size: u64) -> Run {
        let mut stack = self.stack();
        let offset = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        let flags = self.pop_from(&mut stack, size)?;
        if size == 4 && flags & VM != 0 && self.mode.cpl == 0 && !self.mode.long {
            return self.iret_to_v86(offset, selector, flags, stack);
        }
        let code = self.return_target(selector)?;
        let level = (selector & 3) as u8;
        let mut mask = self.changeable_flags() | RF;
        if size == 2 {
            mask &= 0xffff;
        }
        if self.mode.cpl == 0 && size != 2 {
            mask |= VIF | VIP;
        }
        // In 64-bit mode IRET always pops the stack, in others to an outer level only.
        if level != self.mode.cpl || self.mode.is_64() {
            let pointer = self.pop_from(&mut stack, size)?;
            let ss = self.pop_from(&mut stack, size)? as u16;
            let segment = self.outer_stack(ss, level, &code)?;
            self.check_target(&code, offset)?;
            let to_64 = code.access & access::LONG != 0 && self.mode.long;
            self.enter_outer(code, offset, segment, level);
            if to_64 || size == 8 && self.mode.stack_mask != 0xffff {
                self.state.gpr[RSP] = pointer & if to_64 { !0 } else { 0xffff_ffff };
            } else {
                self.set_stack_pointer(pointer);
            }
        } else {
            self.check_target(&code, offset)?;
            self.set_stack_pointer(stack.pointer);
            self.set_code_segment(code, level);
            self.state.rip = offset;
            self.set_level(level);
        }
        self.unblock_nmis();
        self.set_flags(flags, mask);
        Ok(())
    }

    fn iret_to_v86(&mut self, offset: u64, selector: u16, flags: u64, mut stack: Stack) -> Run {
        let mut popped = [0; 6];
        for value in &mut popped {
            *value = self.pop_from(&mut stack, 4)?;
        }
        let [pointer, ss, es, ds, fs, gs] = popped;
        self.state.rflags = flags & 0x3f_7fd5 | FIXED | VM;
        self.mode.v86 = true;
        for (register, value) in [(SS, ss), (ES, es), (DS, ds), (FS, fs), (GS, gs)] {
            self.load_real_segment(register, value as u16);
        }
        self.load_real_segment(CS, selector);
        self.state.rip = offset & 0xffff;
        self.state.gpr[RSP] = pointer & 0xffff_ffff;
        self.unblock_nmis();
        self.update_mode();
        self.set_flags(flags, IF | TF);
        Ok(())
    }
}
