//! Segments: descriptors, loading of segment registers, limit and type checks, stacks.

use super::Cpu;
use super::mode::bits::*;
use crate::exception::{self, Exception};
use crate::interpret::int::Int;
use crate::interpret::op::Run;
use crate::memory::spaces::View;
use crate::state::{CS, RSP, SS, Segment};

/// Access rights in the format of [`guise_engine::state::SegmentState::access`].
pub mod access {
    pub const TYPE: u32 = 0xf;
    /// Code, not data.
    pub const CODE: u32 = 1 << 3;
    /// Conforming (code) or expand-down (data).
    pub const DIRECTION: u32 = 1 << 2;
    /// Readable (code) or writable (data).
    pub const RW: u32 = 1 << 1;
    pub const ACCESSED: u32 = 1;
    /// Code or data, not a system segment.
    pub const S: u32 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const PRESENT: u32 = 1 << 7;
    pub const LONG: u32 = 1 << 13;
    pub const BIG: u32 = 1 << 14;
    pub const GRANULAR: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

/// Types of system descriptors.
pub mod system {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT16: u32 = 6;
    pub const TRAP16: u32 = 7;
    pub const TSS: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const CALL: u32 = 12;
    pub const INTERRUPT: u32 = 14;
    pub const TRAP: u32 = 15;
}

/// Eight bytes of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    pub fn access(self) -> u32 {
        (self.0 >> 40 & 0xff) as u32 | ((self.0 >> 52 & 0xf) as u32) << 12
    }
    pub fn kind(self) -> u32 {
        self.access() & access::TYPE
    }
    pub fn is_system(self) -> bool {
        self.access() & access::S == 0
    }
    pub fn is_code(self) -> bool {
        !self.is_system() && self.access() & access::CODE != 0
    }
    pub fn is_data(self) -> bool {
        !self.is_system() && self.access() & access::CODE == 0
    }
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.access() & access::DIRECTION != 0
    }
    pub fn is_writable_data(self) -> bool {
        self.is_data() && self.access() & access::RW != 0
    }
    pub fn is_readable(self) -> bool {
        self.is_data() || self.is_code() && self.access() & access::RW != 0
    }
    pub fn is_present(self) -> bool {
        self.access() & access::PRESENT != 0
    }
    pub fn is_long(self) -> bool {
        self.access() & access::LONG != 0
    }
    pub fn is_big(self) -> bool {
        self.access() & access::BIG != 0
    }
    pub fn dpl(self) -> u8 {
        (self.access() >> access::DPL_SHIFT & 3) as u8
    }
    pub fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | (self.0 >> 56) << 24
    }
    pub fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.access() & access::GRANULAR != 0 { limit << 12 | 0xfff } else { limit }
    }
    /// Of a gate: selector and the low 32 bits of the offset.
    pub fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }
    pub fn gate_offset(self) -> u64 {
        self.0 & 0xffff | self.0 >> 32 & 0xffff_0000
    }

    pub fn segment(self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), access: self.access(), selector }
    }
}

pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// What an error code says of a selector.
pub fn selector_error(selector: u16) -> u32 {
    selector as u32 & 0xfffc
}

/// A stack that is being pushed to or popped from; the register follows at the end.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    pub segment: Segment,
    pub pointer: u64,
    pub mask: u64,
    pub view: View,
    /// 64-bit: neither base nor limit count.
    pub long: bool,
}

impl Cpu {
    /// The `EXT` bit of error codes.
    pub fn ext(&self) -> u32 {
        self.events.external as u32
    }

    /// Address of a descriptor in the GDT or the LDT, or #GP(selector).
    pub fn descriptor_address(&mut self, selector: u16, bytes: u64) -> Run<u64> {
        let offset = (selector & !7) as u64;
        let (base, limit, usable) = if selector & 4 == 0 {
            (self.state.gdtr.base, self.state.gdtr.limit as u64, true)
        } else {
            let ldt = &self.state.ldtr;
            let usable = ldt.access & access::UNUSABLE == 0 && !is_null(ldt.selector);
            (ldt.base, ldt.limit as u64, usable)
        };
        if !usable || offset + bytes - 1 > limit {
            let error = selector_error(selector) | self.ext();
            return self.general_protection(error);
        }
        Ok(base.wrapping_add(offset))
    }

    pub fn read_descriptor(&mut self, selector: u16) -> Run<Descriptor> {
        let address = self.descriptor_address(selector, 8)?;
        Ok(Descriptor(self.read_system(address)?))
    }

    /// A system descriptor with its upper half: in long mode they have 16 bytes.
    pub fn read_wide_descriptor(&mut self, selector: u16) -> Run<(Descriptor, u64)> {
        let bytes = if self.mode.long { 16 } else { 8 };
        let address = self.descriptor_address(selector, bytes)?;
        let descriptor = Descriptor(self.read_system(address)?);
        let upper = if self.mode.long { self.read_system::<u64>(address + 8)? } else { 0 };
        Ok((descriptor, upper))
    }

    /// Sets the accessed bit of a code or data descriptor in its table.
    pub fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Run<Descriptor> {
        if descriptor.access() & access::ACCESSED != 0 {
            return Ok(descriptor);
        }
        let address = self.descriptor_address(selector, 8)?;
        let kind: u8 = self.read_system(address + 5)?;
        self.write_system(address + 5, kind | access::ACCESSED as u8)?;
        Ok(Descriptor(descriptor.0 | (access::ACCESSED as u64) << 40))
    }

    fn segment_fault<T>(&mut self, vector: u8, selector: u16) -> Run<T> {
        let error = selector_error(selector) | self.ext();
        self.raise(Exception::with_code(vector, error))
    }

    /// Loads a segment register as MOV and POP do (any but CS).
    pub fn load_segment(&mut self, register: usize, selector: u16) -> Run {
        if !self.mode.protected || self.mode.v86 {
            self.load_real_segment(register, selector);
            self.update_mode();
            return Ok(());
        }
        let loaded = if register == SS {
            self.stack_segment(selector, self.mode.cpl, exception::GENERAL_PROTECTION)?
        } else {
            self.data_segment(selector)?
        };
        self.state.seg[register] = loaded;
        self.update_mode();
        Ok(())
    }

    /// Real and virtual-8086 mode: the selector is the base.
    pub fn load_real_segment(&mut self, register: usize, selector: u16) {
        let segment = &mut self.state.seg[register];
        segment.selector = selector;
        segment.base = (selector as u64) << 4;
        if self.mode.v86 {
            segment.limit = 0xffff;
            segment.access = 0xf3;
        } else if segment.access & access::UNUSABLE != 0 {
            segment.access = 0x93;
        }
    }

    fn data_segment(&mut self, selector: u16) -> Run<Segment> {
        if is_null(selector) {
            return Ok(Segment { selector, access: access::UNUSABLE, ..Segment::default() });
        }
        let descriptor = self.read_descriptor(selector)?;
        let rpl = (selector & 3) as u8;
        let conforming = descriptor.is_conforming();
        if !descriptor.is_readable() || !conforming && (rpl.max(self.mode.cpl) > descriptor.dpl()) {
            return self.segment_fault(exception::GENERAL_PROTECTION, selector);
        }
        if !descriptor.is_present() {
            return self.segment_fault(exception::SEGMENT_NOT_PRESENT, selector);
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// A stack segment for privilege `cpl`; what is wrong with it raises `vector`.
    pub fn stack_segment(&mut self, selector: u16, cpl: u8, vector: u8) -> Run<Segment> {
        let rpl = (selector & 3) as u8;
        if is_null(selector) {
            if self.mode.is_64() && cpl < 3 && rpl == cpl {
                return Ok(self.null_stack(cpl));
            }
            let error = self.ext();
            return self.raise(Exception::with_code(vector, error));
        }
        let descriptor = self.read_descriptor(selector).or_else(|trap| {
            // A selector beyond the table raises what other faults here raise.
            if vector != exception::GENERAL_PROTECTION
                && self.raised
                    == super::Raised::Exception(Exception::general_protection(
                        selector_error(selector) | self.ext(),
                    ))
            {
                return self.segment_fault(vector, selector);
            }
            Err(trap)
        })?;
        if rpl != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
            return self.segment_fault(vector, selector);
        }
        if !descriptor.is_present() {
            return self.segment_fault(exception::STACK_FAULT, selector);
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// SS after a change of privilege in 64-bit mode.
    pub fn null_stack(&self, cpl: u8) -> Segment {
        Segment {
            selector: cpl as u16,
            access: access::UNUSABLE | access::BIG | (cpl as u32) << access::DPL_SHIFT,
            ..Segment::default()
        }
    }

    /// Checks an access through a segment and gives its linear address; for code that
    /// is not 64-bit.
    pub fn checked_linear(
        &mut self,
        register: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Run<u64> {
        let segment = self.state.seg[register];
        self.check_segment(&segment, register == SS, offset, size, write)?;
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn check_segment(
        &mut self,
        segment: &Segment,
        is_stack: bool,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Run {
        let code = segment.access & access::CODE != 0;
        let writable_or_readable = segment.access & access::RW != 0;
        let real = !self.mode.protected;
        let allowed = segment.access & access::UNUSABLE == 0
            && (real
                || if write {
                    !code && writable_or_readable
                } else {
                    !code || writable_or_readable
                });
        let (limit, last) = (segment.limit as u64, offset + size - 1);
        let inside = if !code && segment.access & access::DIRECTION != 0 {
            let top = if segment.access & access::BIG != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        if allowed && inside {
            return Ok(());
        }
        let error = self.ext();
        let vector = if is_stack { exception::STACK_FAULT } else { exception::GENERAL_PROTECTION };
        self.raise(Exception::with_code(vector, error))
    }

    /// The current stack.
    pub fn stack(&self) -> Stack {
        Stack {
            segment: self.state.seg[SS],
            pointer: self.state.gpr[RSP],
            mask: self.mode.stack_mask,
            view: self.view(),
            long: self.mode.is_64(),
        }
    }

    fn stack_linear(&mut self, stack: &Stack, pointer: u64, size: u64, write: bool) -> Run<u64> {
        if stack.long {
            if !crate::memory::access::is_canonical(pointer) {
                let error = self.ext();
                return self.raise(Exception::with_code(exception::STACK_FAULT, error));
            }
            return Ok(pointer);
        }
        self.check_segment(&stack.segment, true, pointer, size, write)?;
        Ok(stack.segment.base.wrapping_add(pointer) & 0xffff_ffff)
    }

    /// Pushes `size` bytes on a stack; its pointer moves when it worked.
    pub fn push_on(&mut self, stack: &mut Stack, value: u64, size: u64) -> Run {
        let pointer = stack.pointer.wrapping_sub(size) & stack.mask;
        let linear = self.stack_linear(stack, pointer, size, true)?;
        self.write_bytes_in(linear, &value.to_le_bytes()[..size as usize], stack.view)?;
        stack.pointer = stack.pointer & !stack.mask | pointer;
        Ok(())
    }

    pub fn pop_from(&mut self, stack: &mut Stack, size: u64) -> Run<u64> {
        let pointer = stack.pointer & stack.mask;
        let linear = self.stack_linear(stack, pointer, size, false)?;
        let mut bytes = [0; 8];
        self.read_bytes_in(linear, &mut bytes[..size as usize], stack.view)?;
        let next = pointer.wrapping_add(size) & stack.mask;
        stack.pointer = stack.pointer & !stack.mask | next;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Moves RSP's part that is the stack pointer.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, pointer: u64) {
        let rsp = &mut self.state.gpr[RSP];
        *rsp = match self.mode.stack_mask {
            0xffff => *rsp & !0xffff | pointer & 0xffff,
            mask => pointer & mask,
        };
    }

    /// Pushes on the current stack.
    #[inline(always)]
    pub fn push<T: Int>(&mut self, value: T) -> Run {
        let mask = self.mode.stack_mask;
        let pointer = self.state.gpr[RSP].wrapping_sub(T::SIZE) & mask;
        let linear =
            if self.mode.flat { pointer } else { self.checked_linear(SS, pointer, T::SIZE, true)? };
        self.write(linear, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// What is on top of the current stack, `skip` bytes down; RSP stays.
    #[inline(always)]
    pub fn peek<T: Int>(&mut self, skip: u64) -> Run<T> {
        let pointer = self.state.gpr[RSP].wrapping_add(skip) & self.mode.stack_mask;
        let linear = if self.mode.flat {
            pointer
        } else {
            self.checked_linear(SS, pointer, T::SIZE, false)?
        };
        self.read(linear)
    }

    /// Moves RSP up.
    #[inline(always)]
    pub fn drop_stack(&mut self, bytes: u64) {
        let pointer = self.state.gpr[RSP].wrapping_add(bytes);
        self.set_stack_pointer(pointer);
    }

    /// The privilege of the code segment's selector follows the level.
    pub fn set_code_segment(&mut self, mut segment: Segment, cpl: u8) {
        segment.selector = segment.selector & !3 | cpl as u16;
        self.state.seg[CS] = segment;
    }

    /// Makes SS say what the level is. Everything that changes the level ends here.
    pub fn set_level(&mut self, cpl: u8) {
        let ss = &mut self.state.seg[SS];
        ss.access = ss.access & !(3 << access::DPL_SHIFT) | (cpl as u32) << access::DPL_SHIFT;
        self.update_mode();
    }

    /// Whether TR is a 32- or 64-bit TSS.
    pub fn tss_is_wide(&self) -> bool {
        self.state.tr.access & access::TYPE & 8 != 0
    }

    /// The stack that the TSS holds for a level: SS (0 in long mode) and RSP.
    pub fn stack_of_level(&mut self, level: u8) -> Run<(u16, u64)> {
        let tr = self.state.tr;
        let level = level as u64;
        let (offset, size) = match (self.mode.long, self.tss_is_wide()) {
            (true, _) => (4 + level * 8, 8),
            (false, true) => (4 + level * 8, 8),
            (false, false) => (2 + level * 4, 4),
        };
        if offset + size - 1 > tr.limit as u64 {
            let error = selector_error(tr.selector) | self.ext();
            return self.raise(Exception::with_code(exception::INVALID_TSS, error));
        }
        let at = tr.base.wrapping_add(offset);
        if self.mode.long {
            Ok((0, self.read_system::<u64>(at)?))
        } else if self.tss_is_wide() {
            let esp = self.read_system::<u32>(at)? as u64;
            Ok((self.read_system::<u16>(at + 4)?, esp))
        } else {
            let sp = self.read_system::<u16>(at)? as u64;
            Ok((self.read_system::<u16>(at + 2)?, sp))
        }
    }

    /// Bits of RFLAGS that POPF and IRET may change at the current level.
    pub fn changeable_flags(&self) -> u64 {
        let mut mask = crate::interpret::int::STATUS | TF | DF | NT | AC | ID;
        if self.mode.cpl == 0 {
            mask |= IOPL;
        }
        if self.mode.cpl <= self.iopl() {
            mask |= IF;
        }
        mask
    }
}
