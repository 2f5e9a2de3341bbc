//! Exceptions and interrupts on their way through the IDT.
//!
//! A fault during a delivery becomes the next thing to deliver, or a double fault, or
//! a shut-down, as the vendor's table of benign and contributory exceptions says.
//! A delivery changes registers only when all of its memory accesses have succeeded.

use super::mode::bits::*;
use super::segment::{Descriptor, Stack, access, is_null, selector_error, system};
use super::{Cpu, Raised};
use crate::exception::{self, Exception};
use crate::interpret::op::{Run, Trap};
use crate::memory::access::is_canonical;
use crate::memory::spaces::View;
use crate::state::{CS, DS, ES, FS, GS, RSP, SS, Segment};

/// What is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// RIP is where to return to.
    Exception(Exception),
    /// From outside; RIP is where to return to.
    Interrupt { vector: u8 },
    /// INT n, INT3, INTO, INT1: to return to the instruction behind. Only the gate's
    /// DPL is checked, and not even that for INT1.
    Software { vector: u8, return_to: u64, check_level: bool },
}

impl Event {
    fn vector(&self) -> u8 {
        match *self {
            Event::Exception(Exception { vector, .. })
            | Event::Interrupt { vector }
            | Event::Software { vector, .. } => vector,
        }
    }

    fn error_code(&self) -> Option<u32> {
        match self {
            Event::Exception(exception) => exception.error_code,
            _ => None,
        }
    }
}

fn is_contributory(vector: u8) -> bool {
    matches!(
        vector,
        exception::DIVIDE_ERROR
            | exception::INVALID_TSS
            | exception::SEGMENT_NOT_PRESENT
            | exception::STACK_FAULT
            | exception::GENERAL_PROTECTION
    )
}

/// What a fault in the delivery of another exception leads to; none: shut down.
fn combine(first: u8, second: Exception) -> Option<Exception> {
    let double = match first {
        exception::DOUBLE_FAULT => return None,
        exception::PAGE_FAULT => {
            second.vector == exception::PAGE_FAULT || is_contributory(second.vector)
        }
        first => is_contributory(first) && is_contributory(second.vector),
    };
    Some(if double { Exception::with_code(exception::DOUBLE_FAULT, 0) } else { second })
}

impl Cpu {
    /// Delivers an event and whatever comes of it. An error is a shut-down.
    pub fn deliver(&mut self, event: Event) -> Run {
        let mut event = event;
        loop {
            let level = self.mode.cpl;
            self.events.external = !matches!(event, Event::Software { .. });
            let result = self.deliver_once(&event);
            self.events.external = false;
            if result.is_ok() {
                return Ok(());
            }
            debug_assert_eq!(level, self.mode.cpl);
            let second = match self.raised {
                Raised::Exception(exception) => exception,
                Raised::NonCanonical => Exception::with_code(exception::STACK_FAULT, 0),
                Raised::Nothing | Raised::Shutdown => return Err(Trap),
            };
            let next = match event {
                Event::Exception(first) => combine(first.vector, second),
                _ => Some(second),
            };
            let Some(next) = next else {
                self.raised = Raised::Shutdown;
                return Err(Trap);
            };
            event = Event::Exception(next);
        }
    }

    fn deliver_once(&mut self, event: &Event) -> Run {
        match event {
            Event::Exception(exception) => {
                self.counters.exceptions += 1;
                if exception.vector == exception::PAGE_FAULT {
                    self.state.cr2 = exception.address;
                }
            }
            _ => self.counters.interrupts += 1,
        }
        if self.mode.protected { self.deliver_protected(event) } else { self.deliver_real(event) }
    }

    fn deliver_real(&mut self, event: &Event) -> Run {
        let vector = event.vector() as u64;
        if vector * 4 + 3 > self.state.idtr.limit as u64 {
            return self.general_protection((vector * 8 + 2) as u32);
        }
        let entry: u32 = self.read_system(self.state.idtr.base.wrapping_add(vector * 4))?;
        let return_to = match *event {
            Event::Software { return_to, .. } => return_to,
            _ => self.state.rip,
        };
        let mut stack = self.stack();
        self.push_on(&mut stack, self.state.rflags & 0xffff, 2)?;
        self.push_on(&mut stack, self.state.seg[CS].selector as u64, 2)?;
        self.push_on(&mut stack, return_to & 0xffff, 2)?;
        self.set_stack_pointer(stack.pointer);
        self.load_real_segment(CS, (entry >> 16) as u16);
        self.state.rip = (entry & 0xffff) as u64;
        self.state.rflags &= !(IF | TF | AC | RF);
        self.update_mode();
        Ok(())
    }

    /// Reads and checks the gate of a vector.
    fn gate(&mut self, event: &Event) -> Run<(Descriptor, u64)> {
        let vector = event.vector();
        let bytes = if self.mode.long { 16 } else { 8 };
        let offset = vector as u64 * bytes;
        let error = vector as u32 * 8 + 2 + self.ext();
        if offset + bytes - 1 > self.state.idtr.limit as u64 {
            return self.general_protection(error);
        }
        let at = self.state.idtr.base.wrapping_add(offset);
        let gate = Descriptor(self.read_system(at)?);
        let upper = if self.mode.long { self.read_system::<u64>(at + 8)? } else { 0 };
        let known = match gate.kind() {
            system::INTERRUPT | system::TRAP => true,
            system::INTERRUPT16 | system::TRAP16 | system::TASK_GATE => !self.mode.long,
            _ => false,
        };
        if !known || !gate.is_system() {
            return self.general_protection(error);
        }
        if let Event::Software { check_level: true, .. } = event
            && self.mode.cpl > gate.dpl()
        {
            return self.general_protection(error);
        }
        if !gate.is_present() {
            return self.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
        }
        Ok((gate, upper))
    }

    /// The code segment that a gate leads to.
    fn gate_target(&mut self, gate: Descriptor) -> Run<(Segment, u8)> {
        let selector = gate.gate_selector();
        if is_null(selector) {
            let error = self.ext();
            return self.general_protection(error);
        }
        let code = self.read_descriptor(selector)?;
        let error = selector_error(selector) | self.ext();
        let long_is_wrong = self.mode.long && (!code.is_long() || code.is_big());
        if !code.is_code() || code.dpl() > self.mode.cpl || long_is_wrong {
            return self.general_protection(error);
        }
        if !code.is_present() {
            return self.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
        }
        let level = if code.is_conforming() { self.mode.cpl } else { code.dpl() };
        if self.mode.v86 && level != 0 {
            return self.general_protection(error);
        }
        Ok((self.mark_accessed(selector, code)?.segment(selector), level))
    }

    fn deliver_protected(&mut self, event: &Event) -> Run {
        let (gate, upper) = self.gate(event)?;
        let return_to = match *event {
            Event::Software { return_to, .. } => return_to,
            _ => self.state.rip,
        };
        if gate.kind() == system::TASK_GATE {
            return self.switch_by_interrupt(gate.gate_selector(), return_to, event.error_code());
        }
        let (code, level) = self.gate_target(gate)?;
        if self.mode.long {
            self.enter_long(event, gate, upper, code, level, return_to)
        } else {
            self.enter_legacy(event, gate, code, level, return_to)
        }
    }

    /// The flags that a handler finds on its stack.
    fn flags_to_push(&self, event: &Event) -> u64 {
        let mut flags = self.state.rflags;
        if !self.debug.is_active() {
            // An old one: see `write_debug_register`.
            flags &= !RF;
        }
        if let Event::Exception(exception) = event
            && !matches!(exception.vector, exception::DEBUG | exception::NMI)
        {
            flags |= RF;
        }
        flags
    }

    /// From whose view a stack of this level is written.
    fn stack_view(&self, level: u8) -> View {
        if level == 3 { View::User } else { self.system_view() }
    }

    fn enter_long(
        &mut self,
        event: &Event,
        gate: Descriptor,
        upper: u64,
        code: Segment,
        level: u8,
        return_to: u64,
    ) -> Run {
        let offset = gate.gate_offset() | upper << 32;
        if !is_canonical(offset) {
            let error = self.ext();
            return self.general_protection(error);
        }
        let ist = (gate.0 >> 32 & 7) as u8;
        let change = level < self.mode.cpl;
        let pointer = match () {
            // IST 1 is at 0x24, where the stack of "level 4" would be.
            () if ist != 0 => self.stack_of_level(ist + 3)?.1,
            () if change => self.stack_of_level(level)?.1,
            () => self.state.gpr[RSP],
        };
        let mut stack = Stack {
            segment: self.state.seg[SS],
            pointer: pointer & !15,
            mask: !0,
            view: self.stack_view(level),
            long: true,
        };
        let frame = [
            self.state.seg[SS].selector as u64,
            self.state.gpr[RSP],
            self.flags_to_push(event),
            self.state.seg[CS].selector as u64,
            return_to,
        ];
        for value in frame {
            self.push_on(&mut stack, value, 8)?;
        }
        if let Some(error_code) = event.error_code() {
            self.push_on(&mut stack, error_code as u64, 8)?;
        }
        if change {
            self.state.seg[SS] = self.null_stack(level);
        }
        self.state.gpr[RSP] = stack.pointer;
        self.finish_entry(gate, code, level, offset);
        Ok(())
    }

    fn finish_entry(&mut self, gate: Descriptor, code: Segment, level: u8, offset: u64) {
        self.set_code_segment(code, level);
        self.state.rip = offset;
        self.state.rflags &= !(TF | NT | RF | VM);
        if gate.kind() & 1 == 0 {
            self.state.rflags &= !IF;
        }
        self.set_level(level);
    }

    fn enter_legacy(
        &mut self,
        event: &Event,
        gate: Descriptor,
        code: Segment,
        level: u8,
        return_to: u64,
    ) -> Run {
        let size = if gate.kind() & 8 != 0 { 4 } else { 2 };
        let mut offset = gate.gate_offset();
        if size == 2 {
            offset &= 0xffff;
        }
        if offset > code.limit as u64 {
            let error = self.ext();
            return self.general_protection(error);
        }
        let change = level < self.mode.cpl;
        let mut stack = self.stack();
        let mut flags = self.flags_to_push(event);
        if change {
            let (selector, pointer) = self.stack_of_level(level)?;
            let segment = self.stack_segment(selector, level, exception::INVALID_TSS)?;
            let mask = if segment.access & access::BIG != 0 { 0xffff_ffff } else { 0xffff };
            let view = self.stack_view(level);
            stack = Stack { segment, pointer, mask, view, long: false };
            if self.mode.v86 {
                for register in [GS, FS, DS, ES] {
                    let selector = self.state.seg[register].selector as u64;
                    self.push_on(&mut stack, selector, size)?;
                }
            }
            let old = (self.state.seg[SS].selector as u64, self.state.gpr[RSP]);
            self.push_on(&mut stack, old.0, size)?;
            self.push_on(&mut stack, old.1, size)?;
        }
        if size == 2 {
            flags &= 0xffff;
        }
        self.push_on(&mut stack, flags, size)?;
        self.push_on(&mut stack, self.state.seg[CS].selector as u64, size)?;
        self.push_on(&mut stack, return_to, size)?;
        if let Some(error_code) = event.error_code() {
            self.push_on(&mut stack, error_code as u64, size)?;
        }
        if change {
            if self.mode.v86 {
                for register in [GS, FS, DS, ES] {
                    self.state.seg[register] =
                        Segment { access: access::UNUSABLE, ..Segment::default() };
                }
                self.state.rflags &= !VM;
            }
            self.state.seg[SS] = stack.segment;
            self.update_mode();
        }
        self.set_stack_pointer(stack.pointer);
        self.finish_entry(gate, code, level, offset);
        Ok(())
    }
}
