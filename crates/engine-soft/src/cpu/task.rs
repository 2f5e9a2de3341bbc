//! Hardware task switches, by JMP, CALL, interrupts through task gates, and IRET.

use super::Cpu;
use super::mode::bits::*;
use super::segment::{Descriptor, access, is_null, selector_error, system};
use crate::exception::{self, Exception};
use crate::interpret::op::Run;
use crate::state::{CS, DS, ES, FS, GS, RSP, SS, Segment};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Jump,
    /// CALL or an interrupt: the new task points back.
    Nest,
    Return,
}

/// Registers in the order in which a TSS holds them.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    cr3: u64,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Where the fields of a TSS are, and how wide.
struct Layout {
    size: u64,
    rip: u64,
    flags: u64,
    gpr: u64,
    segments: u64,
    segment_step: u64,
    segment_count: usize,
    ldt: u64,
    last: u32,
}

const WIDE: Layout = Layout {
    size: 4,
    rip: 0x20,
    flags: 0x24,
    gpr: 0x28,
    segments: 0x48,
    segment_step: 4,
    segment_count: 6,
    ldt: 0x60,
    last: 0x67,
};

const NARROW: Layout = Layout {
    size: 2,
    rip: 0x0e,
    flags: 0x10,
    gpr: 0x12,
    segments: 0x22,
    segment_step: 2,
    segment_count: 4,
    ldt: 0x2a,
    last: 0x2b,
};

fn layout(wide: bool) -> &'static Layout {
    if wide { &WIDE } else { &NARROW }
}

impl Cpu {
    pub fn switch_by_transfer(&mut self, selector: u16, next: u64, call: bool) -> Run {
        let reason = if call { Reason::Nest } else { Reason::Jump };
        self.switch_task(selector, next, reason, exception::GENERAL_PROTECTION)
    }

    pub fn switch_by_interrupt(
        &mut self,
        selector: u16,
        return_to: u64,
        error_code: Option<u32>,
    ) -> Run {
        self.switch_task(selector, return_to, Reason::Nest, exception::GENERAL_PROTECTION)?;
        if let Some(error_code) = error_code {
            let size = if self.tss_is_wide() { 4 } else { 2 };
            let mut stack = self.stack();
            self.push_on(&mut stack, error_code as u64, size)?;
            self.set_stack_pointer(stack.pointer);
        }
        Ok(())
    }

    /// IRET with NT set.
    pub fn return_from_task(&mut self) -> Run {
        let link: u16 = self.read_system(self.state.tr.base)?;
        let rip = self.state.rip;
        self.switch_task(link, rip, Reason::Return, exception::INVALID_TSS)
    }

    fn switch_task(&mut self, selector: u16, next: u64, reason: Reason, vector: u8) -> Run {
        let error = selector_error(selector) | self.ext();
        if is_null(selector) || selector & 4 != 0 {
            return self.raise(Exception::with_code(vector, error));
        }
        let descriptor = self.read_descriptor(selector)?;
        let (free, busy) = (
            matches!(descriptor.kind(), system::TSS | system::TSS16),
            matches!(descriptor.kind(), system::TSS_BUSY | system::TSS16_BUSY),
        );
        let fits = if reason == Reason::Return { busy } else { free };
        if !descriptor.is_system() || !fits {
            return self.raise(Exception::with_code(vector, error));
        }
        if !descriptor.is_present() {
            return self.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
        }
        let new_layout = layout(descriptor.kind() & 8 != 0);
        if descriptor.limit() < new_layout.last {
            return self.raise(Exception::with_code(exception::INVALID_TSS, error));
        }
        let task = self.read_task(descriptor.base(), new_layout)?;
        self.leave_task(next, reason)?;
        if reason == Reason::Nest {
            let back = self.state.tr.selector;
            self.write_system(descriptor.base(), back)?;
        }
        if reason != Reason::Return {
            self.set_busy(selector, true)?;
        }
        self.enter_task(selector, descriptor, task, reason)
    }

    fn read_field(&mut self, at: u64, size: u64) -> Run<u64> {
        if size == 4 {
            Ok(self.read_system::<u32>(at)? as u64)
        } else {
            Ok(self.read_system::<u16>(at)? as u64)
        }
    }

    fn write_field(&mut self, at: u64, value: u64, size: u64) -> Run {
        if size == 4 {
            self.write_system(at, value as u32)
        } else {
            self.write_system(at, value as u16)
        }
    }

    fn read_task(&mut self, base: u64, layout: &Layout) -> Run<Task> {
        let mut task = Task::default();
        if layout.size == 4 {
            task.cr3 = self.read_field(base + 0x1c, 4)?;
            task.trap = self.read_field(base + 0x64, 2)? & 1 != 0;
        }
        task.rip = self.read_field(base + layout.rip, layout.size)?;
        task.flags = self.read_field(base + layout.flags, layout.size)?;
        for (number, value) in task.gpr.iter_mut().enumerate() {
            *value =
                self.read_field(base + layout.gpr + number as u64 * layout.size, layout.size)?;
        }
        for number in 0..layout.segment_count {
            let at = base + layout.segments + number as u64 * layout.segment_step;
            task.segments[number] = self.read_field(at, 2)? as u16;
        }
        task.ldt = self.read_field(base + layout.ldt, 2)? as u16;
        Ok(task)
    }

    /// Saves the registers in the current TSS, and frees it unless it is nested in.
    fn leave_task(&mut self, next: u64, reason: Reason) -> Run {
        let tr = self.state.tr;
        let layout = layout(self.tss_is_wide());
        let mut flags = self.state.rflags;
        if reason == Reason::Return {
            flags &= !NT;
        }
        self.write_field(tr.base + layout.rip, next, layout.size)?;
        self.write_field(tr.base + layout.flags, flags, layout.size)?;
        for number in 0..8 {
            let value = self.state.gpr[number];
            let at = tr.base + layout.gpr + number as u64 * layout.size;
            self.write_field(at, value, layout.size)?;
        }
        for number in 0..layout.segment_count {
            let value = self.state.seg[number].selector as u64;
            let at = tr.base + layout.segments + number as u64 * layout.segment_step;
            self.write_field(at, value, 2)?;
        }
        if reason != Reason::Nest {
            self.set_busy(tr.selector, false)?;
        }
        Ok(())
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> Run {
        let at = self.descriptor_address(selector, 8)? + 5;
        let kind: u8 = self.read_system(at)?;
        self.write_system(at, if busy { kind | 2 } else { kind & !2 })
    }

    /// From here on faults belong to the new task.
    fn enter_task(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        task: Task,
        reason: Reason,
    ) -> Run {
        let mut tr = descriptor.segment(selector);
        tr.access |= 2;
        self.state.tr = tr;
        self.state.cr0 |= CR0_TS;
        if tr.access & 8 != 0 && self.state.cr0 & CR0_PG != 0 {
            self.set_cr3(task.cr3)?;
        }
        let mut flags = task.flags & 0x3f_7fd5 | FIXED;
        if reason == Reason::Nest {
            flags |= NT;
        }
        self.state.rflags = flags;
        self.state.rip = task.rip;
        for (number, value) in task.gpr.into_iter().enumerate() {
            self.state.gpr[number] = value;
        }
        self.state.dr7 &= !0x155;
        for (register, selector) in task.segments.into_iter().enumerate() {
            self.state.seg[register] =
                Segment { selector, access: access::UNUSABLE, ..Segment::default() };
        }
        self.state.ldtr =
            Segment { selector: task.ldt, access: access::UNUSABLE, ..Segment::default() };
        self.load_ldt(task.ldt).or_else(|_| self.invalid_tss(task.ldt))?;
        if flags & VM != 0 {
            self.mode.v86 = true;
            for (register, selector) in task.segments.into_iter().enumerate() {
                self.load_real_segment(register, selector);
            }
        } else {
            self.load_task_segments(&task)?;
        }
        self.update_mode();
        self.debug_registers_changed();
        self.set_flags(flags, IF | TF);
        if task.trap {
            self.events.pending_debug |= super::control::DR6_BT;
            self.want(crate::vm::shared::attention::ALONE);
        }
        Ok(())
    }

    fn invalid_tss<T>(&mut self, selector: u16) -> Run<T> {
        let error = selector_error(selector) | self.ext();
        self.raise(Exception::with_code(exception::INVALID_TSS, error))
    }

    fn load_task_segments(&mut self, task: &Task) -> Run {
        let cs = task.segments[CS];
        if is_null(cs) {
            return self.invalid_tss(cs);
        }
        let code = self.read_descriptor(cs).or_else(|_| self.invalid_tss(cs))?;
        let rpl = (cs & 3) as u8;
        let level_fits = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
        if !code.is_code() || !level_fits {
            return self.invalid_tss(cs);
        }
        if !code.is_present() {
            let error = selector_error(cs) | self.ext();
            return self.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
        }
        self.state.seg[CS] = self.mark_accessed(cs, code)?.segment(cs);
        self.state.seg[SS] = self.stack_segment(task.segments[SS], rpl, exception::INVALID_TSS)?;
        self.update_mode();
        for register in [ES, DS, FS, GS] {
            let selector = task.segments[register];
            self.load_segment(register, selector).or_else(|trap| {
                let not_present = super::Raised::Exception(Exception::with_code(
                    exception::SEGMENT_NOT_PRESENT,
                    selector_error(selector) | self.ext(),
                ));
                if self.raised == not_present { Err(trap) } else { self.invalid_tss(selector) }
            })?;
        }
        if self.state.rip > self.state.seg[CS].limit as u64 {
            return self.general_protection(0);
        }
        self.state.gpr[RSP] = task.gpr[RSP];
        Ok(())
    }
}
