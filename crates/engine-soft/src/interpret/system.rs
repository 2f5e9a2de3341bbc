//! System instructions: descriptor tables, control registers, flags, segment bases.

use super::int::ZF;
use super::op::{Op, Run, Slot, Step};
use crate::apic::Pending;
use crate::cpu::Cpu;
use crate::cpu::mode::bits::*;
use crate::cpu::segment::{Descriptor, access, is_null, selector_error, system};
use crate::exception::{self, Exception};
use crate::memory::access::is_canonical;
use crate::state::{FS, GS, Segment, Table};

pub fn cli(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    if cpu.mode.protected && cpu.mode.cpl > cpu.iopl() {
        return cpu.general_protection(0);
    }
    cpu.state.rflags &= !IF;
    Ok(Step::Next)
}

/// `small` is 1 where another instruction of the block follows.
pub fn sti(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.mode.protected && cpu.mode.cpl > cpu.iopl() {
        return cpu.general_protection(0);
    }
    if cpu.state.rflags & IF != 0 {
        return Ok(Step::Next);
    }
    cpu.state.rflags |= IF;
    // Interrupts wait for one more instruction. Where that is in this block, it runs
    // before anybody looks for interrupts that come from now on.
    if op.small != 0 && !cpu.has_interrupt() && !cpu.apic().pending().has(Pending::NMI) {
        return Ok(Step::Next);
    }
    cpu.events.sti_shadow = true;
    cpu.state.rip = cpu.next_rip(op);
    cpu.shadow_interrupts();
    cpu.want_alone_or_interrupts();
    Ok(Step::Jump)
}

pub fn clac(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    set_ac(cpu, 0)
}

pub fn stac(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    set_ac(cpu, AC)
}

fn set_ac(cpu: &mut Cpu, value: u64) -> Run<Step> {
    if cpu.mode.cpl != 0 || cpu.msr.cr4_known & CR4_SMAP == 0 {
        return cpu.invalid_opcode();
    }
    cpu.state.rflags = cpu.state.rflags & !AC | value;
    cpu.update_view();
    Ok(Step::Next)
}

pub fn clts(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.require_supervisor()?;
    cpu.state.cr0 &= !CR0_TS;
    Ok(Step::Next)
}

pub fn read_control(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = match op.small {
        0 => cpu.state.cr0,
        2 => cpu.state.cr2,
        3 => cpu.state.cr3,
        4 => cpu.state.cr4,
        8 => cpu.apic_cr8(),
        _ => return cpu.invalid_opcode(),
    };
    cpu.require_supervisor()?;
    write_native(cpu, op.a, value);
    Ok(Step::Next)
}

/// A register of 64 bits in 64-bit mode, of 32 else.
fn write_native(cpu: &mut Cpu, slot: Slot, value: u64) {
    if cpu.mode.is_64() {
        cpu.set_reg(slot, value);
    } else {
        cpu.set_reg(slot, value as u32);
    }
}

fn read_native(cpu: &Cpu, slot: Slot) -> u64 {
    if cpu.mode.is_64() { cpu.reg::<u64>(slot) } else { cpu.reg::<u32>(slot) as u64 }
}

/// RIP moves on before the mode may change.
fn finish(cpu: &mut Cpu, next: u64) -> Run<Step> {
    cpu.state.rip = next;
    Ok(Step::Jump)
}

pub fn write_control(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = read_native(cpu, op.b);
    if !matches!(op.small, 0 | 2 | 3 | 4 | 8) {
        return cpu.invalid_opcode();
    }
    cpu.require_supervisor()?;
    let next = cpu.next_rip(op);
    match op.small {
        0 => cpu.set_cr0(value)?,
        2 => cpu.state.cr2 = value,
        3 => cpu.set_cr3(value)?,
        4 => cpu.set_cr4(value)?,
        _ => cpu.set_cr8(value)?,
    }
    finish(cpu, next)
}

pub fn read_debug(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = cpu.read_debug_register(op.small as usize)?;
    write_native(cpu, op.a, value);
    Ok(Step::Next)
}

pub fn write_debug(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let value = read_native(cpu, op.b);
    let next = cpu.next_rip(op);
    cpu.write_debug_register(op.small as usize, value)?;
    finish(cpu, next)
}

/// LGDT and LIDT.
pub fn load_table(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.mode.v86 {
        return cpu.general_protection(0);
    }
    cpu.require_supervisor()?;
    let base_size = if op.immediate == 8 { 8 } else { 4 };
    let linear = cpu.linear(op, 2 + base_size, false)?;
    let mut bytes = [0; 10];
    cpu.read_bytes(linear, &mut bytes[..2 + base_size as usize])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = [0; 8];
    base[..base_size as usize].copy_from_slice(&bytes[2..2 + base_size as usize]);
    let mut base = u64::from_le_bytes(base);
    if op.immediate == 2 {
        base &= 0xff_ffff;
    }
    if base_size == 8 && !is_canonical(base) {
        return cpu.general_protection(0);
    }
    let table = Table { base, limit };
    if op.small != 0 {
        cpu.state.idtr = table;
    } else {
        cpu.state.gdtr = table;
    }
    Ok(Step::Next)
}

/// #GP(0) where UMIP hides system state from users.
fn check_umip(cpu: &mut Cpu) -> Run {
    if cpu.mode.cpl > 0 && cpu.state.cr4 & CR4_UMIP != 0 {
        return cpu.general_protection(0);
    }
    Ok(())
}

/// SGDT and SIDT.
pub fn store_table(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    check_umip(cpu)?;
    let table = if op.small != 0 { cpu.state.idtr } else { cpu.state.gdtr };
    let base_size = if op.immediate == 8 { 8 } else { 4 };
    let linear = cpu.linear(op, 2 + base_size, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(linear, &bytes[..2 + base_size as usize])?;
    Ok(Step::Next)
}

fn selector(cpu: &mut Cpu, op: &Op) -> Run<u16> {
    if op.small != 0 { cpu.load::<u16>(op) } else { Ok(cpu.reg::<u16>(op.a)) }
}

fn require_protected(cpu: &mut Cpu) -> Run {
    if !cpu.mode.protected || cpu.mode.v86 { cpu.invalid_opcode() } else { Ok(()) }
}

pub fn lldt(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    cpu.require_supervisor()?;
    let selector = selector(cpu, op)?;
    cpu.load_ldt(selector)?;
    Ok(Step::Next)
}

pub fn ltr(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    cpu.require_supervisor()?;
    let selector = selector(cpu, op)?;
    if is_null(selector) {
        return cpu.general_protection(0);
    }
    if selector & 4 != 0 {
        return cpu.general_protection(selector_error(selector));
    }
    let (descriptor, upper) = cpu.read_wide_descriptor(selector)?;
    let kind = descriptor.kind();
    let fits = kind == system::TSS || kind == system::TSS16 && !cpu.mode.long;
    if !descriptor.is_system() || !fits {
        return cpu.general_protection(selector_error(selector));
    }
    if !descriptor.is_present() {
        let error = selector_error(selector);
        return cpu.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
    }
    let base = descriptor.segment(selector).base | upper << 32;
    if cpu.mode.long && !is_canonical(base) {
        return cpu.general_protection(selector_error(selector));
    }
    let at = cpu.descriptor_address(selector, 8)?;
    let busy: u8 = cpu.read_system(at + 5)?;
    cpu.write_system(at + 5, busy | 2)?;
    let mut segment = descriptor.segment(selector);
    segment.access |= 2;
    segment.base = base;
    cpu.state.tr = segment;
    Ok(Step::Next)
}

impl Cpu {
    pub fn load_ldt(&mut self, selector: u16) -> Run {
        if is_null(selector) {
            self.state.ldtr = Segment { selector, access: access::UNUSABLE, ..Segment::default() };
            return Ok(());
        }
        let error = selector_error(selector);
        if selector & 4 != 0 {
            return self.general_protection(error);
        }
        let (descriptor, upper) = self.read_wide_descriptor(selector)?;
        if !descriptor.is_system() || descriptor.kind() != system::LDT {
            return self.general_protection(error);
        }
        if !descriptor.is_present() {
            return self.raise(Exception::with_code(exception::SEGMENT_NOT_PRESENT, error));
        }
        let mut segment = descriptor.segment(selector);
        segment.base |= upper << 32;
        if self.mode.long && !is_canonical(segment.base) {
            return self.general_protection(error);
        }
        self.state.ldtr = segment;
        Ok(())
    }
}

/// SLDT, STR and SMSW: where a value goes.
fn put(cpu: &mut Cpu, op: &Op, value: u64) -> Run<Step> {
    if op.small != 0 {
        cpu.store(op, value as u16)?;
    } else {
        match op.immediate {
            2 => cpu.set_reg(op.a, value as u16),
            4 => cpu.set_reg(op.a, value as u32),
            _ => cpu.set_reg(op.a, value),
        }
    }
    Ok(Step::Next)
}

pub fn sldt(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    check_umip(cpu)?;
    let selector = cpu.state.ldtr.selector as u64;
    put(cpu, op, selector)
}

pub fn str(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    check_umip(cpu)?;
    let selector = cpu.state.tr.selector as u64;
    put(cpu, op, selector)
}

pub fn smsw(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    check_umip(cpu)?;
    let value = cpu.state.cr0;
    put(cpu, op, value)
}

pub fn lmsw(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.require_supervisor()?;
    let value = selector(cpu, op)? as u64;
    let cr0 = cpu.state.cr0;
    // PE can be set, not cleared.
    let next = cpu.next_rip(op);
    cpu.set_cr0(cr0 & !0xe | value & 0xf | cr0 & CR0_PE)?;
    finish(cpu, next)
}

/// The descriptor that LAR and its like ask about, if the level may see it.
fn visible(cpu: &mut Cpu, selector: u16) -> Run<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Ok(descriptor) = cpu.read_descriptor(selector) else {
        // Beyond the table is an answer; a page fault is not.
        return match cpu.raised {
            crate::cpu::Raised::Exception(Exception {
                vector: exception::GENERAL_PROTECTION,
                ..
            }) => Ok(None),
            _ => Err(super::op::Trap),
        };
    };
    let level = cpu.mode.cpl.max((selector & 3) as u8);
    let seen = descriptor.is_conforming() || descriptor.dpl() >= level;
    Ok(seen.then_some(descriptor))
}

fn answer(cpu: &mut Cpu, yes: bool) -> Run<Step> {
    if yes {
        cpu.state.rflags |= ZF;
    } else {
        cpu.state.rflags &= !ZF;
    }
    Ok(Step::Next)
}

fn asked_selector(cpu: &mut Cpu, op: &Op) -> Run<u16> {
    if op.small != 0 { cpu.load::<u16>(op) } else { Ok(cpu.reg::<u16>(op.b)) }
}

fn set_sized(cpu: &mut Cpu, op: &Op, value: u64) {
    match op.immediate {
        2 => cpu.set_reg(op.a, value as u16),
        4 => cpu.set_reg(op.a, value as u32),
        _ => cpu.set_reg(op.a, value),
    }
}

pub fn lar(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    let selector = asked_selector(cpu, op)?;
    let Some(descriptor) = visible(cpu, selector)? else { return answer(cpu, false) };
    if descriptor.is_system() {
        let known = match descriptor.kind() {
            system::LDT | system::TSS | system::TSS_BUSY | system::CALL => true,
            system::TSS16 | system::TSS16_BUSY | system::CALL16 | system::TASK_GATE => {
                !cpu.mode.long
            }
            _ => false,
        };
        if !known {
            return answer(cpu, false);
        }
    }
    set_sized(cpu, op, descriptor.0 >> 32 & 0x00f0_ff00);
    answer(cpu, true)
}

pub fn lsl(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    let selector = asked_selector(cpu, op)?;
    let Some(descriptor) = visible(cpu, selector)? else { return answer(cpu, false) };
    if descriptor.is_system() {
        let known = match descriptor.kind() {
            system::LDT | system::TSS | system::TSS_BUSY => true,
            system::TSS16 | system::TSS16_BUSY => !cpu.mode.long,
            _ => false,
        };
        if !known {
            return answer(cpu, false);
        }
    }
    set_sized(cpu, op, descriptor.limit() as u64);
    answer(cpu, true)
}

pub fn verr(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    let selector = selector(cpu, op)?;
    let descriptor = visible(cpu, selector)?;
    answer(cpu, descriptor.is_some_and(Descriptor::is_readable))
}

pub fn verw(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    let selector = selector(cpu, op)?;
    let descriptor = visible(cpu, selector)?;
    answer(cpu, descriptor.is_some_and(Descriptor::is_writable_data))
}

pub fn arpl(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_protected(cpu)?;
    let wanted = cpu.reg::<u16>(op.b) & 3;
    let adjust = |value: u16| if value & 3 < wanted { value & !3 | wanted } else { value };
    let old;
    if op.small != 0 {
        let linear = cpu.linear(op, 2, true)?;
        let mut seen = 0;
        cpu.modify::<u16>(linear, |_, value| {
            seen = value;
            adjust(value)
        })?;
        old = seen;
    } else {
        old = cpu.reg::<u16>(op.a);
        cpu.set_reg(op.a, adjust(old));
    }
    answer(cpu, old & 3 < wanted)
}

pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.require_supervisor()?;
    let mut linear = cpu.offset(op).wrapping_add(cpu.reg::<u64>(op.address.segment_base));
    if !cpu.mode.is_64() {
        let segment = &cpu.state.seg[op.address.segment as usize];
        linear = segment.base.wrapping_add(linear) & 0xffff_ffff;
    }
    let next = cpu.next_rip(op);
    cpu.invalidate_page(linear);
    finish(cpu, next)
}

pub fn invpcid(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.msr.cr4_known & CR4_PCIDE == 0 {
        return cpu.invalid_opcode();
    }
    cpu.require_supervisor()?;
    let kind = read_native(cpu, op.a);
    let linear = cpu.linear(op, 16, false)?;
    let mut bytes = [0; 16];
    cpu.read_bytes(linear, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let next = cpu.next_rip(op);
    cpu.invalidate_pcid(kind, descriptor as u64, (descriptor >> 64) as u64)?;
    finish(cpu, next)
}

/// INVD, WBINVD: there are no caches.
pub fn flush_caches(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.require_supervisor()?;
    Ok(Step::Next)
}

pub fn swapgs(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    if !cpu.mode.is_64() {
        return cpu.invalid_opcode();
    }
    cpu.require_supervisor()?;
    let state = &mut cpu.state;
    std::mem::swap(&mut state.seg[GS].base, &mut state.kernel_gs_base);
    Ok(Step::Next)
}

pub fn syscall(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let next = cpu.next_rip(op);
    cpu.syscall(next)?;
    Ok(Step::Jump)
}

pub fn sysret(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.sysret(op.small != 0)?;
    Ok(Step::Jump)
}

pub fn sysenter(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.sysenter()?;
    Ok(Step::Jump)
}

pub fn sysexit(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.sysexit(op.small != 0)?;
    Ok(Step::Jump)
}

fn base_register(cpu: &mut Cpu, op: &Op) -> Run<usize> {
    if !cpu.mode.is_64() || cpu.state.cr4 & CR4_FSGSBASE == 0 {
        return cpu.invalid_opcode();
    }
    Ok(if op.small != 0 { GS } else { FS })
}

/// RDFSBASE and RDGSBASE.
pub fn read_base(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let segment = base_register(cpu, op)?;
    let base = cpu.state.seg[segment].base;
    set_sized(cpu, op, base);
    Ok(Step::Next)
}

/// WRFSBASE and WRGSBASE.
pub fn write_base(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let segment = base_register(cpu, op)?;
    let base = match op.immediate {
        4 => cpu.reg::<u32>(op.a) as u64,
        _ => cpu.reg::<u64>(op.a),
    };
    if !is_canonical(base) {
        return cpu.general_protection(0);
    }
    cpu.state.seg[segment].base = base;
    Ok(Step::Next)
}
