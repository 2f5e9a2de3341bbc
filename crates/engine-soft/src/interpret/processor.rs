//! Instructions about the processor itself: CPUID, time, MSRs, HLT, hypercalls.

use super::int::STATUS;
use super::op::{Op, Run, Step};
use crate::cpu::Cpu;
use crate::cpu::mode::bits::*;
use crate::paravirt::hypercall::{self, Call, Hypercall};
use crate::state::{RAX, RBX, RCX, RDX, RSI};
use guise_engine::processor::cpuid::Context;
use guise_engine::state::RunState;

pub fn hlt(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.require_supervisor()?;
    cpu.state.rip = cpu.next_rip(op);
    cpu.run = RunState::Halted;
    cpu.counters.halts += 1;
    cpu.want(crate::vm::shared::attention::HALT);
    Ok(Step::Jump)
}

pub fn cpuid(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    let (leaf, subleaf) = (cpu.state.gpr[RAX] as u32, cpu.state.gpr[RCX] as u32);
    let context = Context {
        apic_id: cpu.index,
        apic_enabled: cpu.apic().base() >> 11 & 1 != 0,
        cr4: cpu.state.cr4,
        xcr0: cpu.state.xcr0,
    };
    let answer = cpu.shared.model.cpuid(leaf, subleaf, &context);
    for (register, value) in
        [(RAX, answer.eax), (RBX, answer.ebx), (RCX, answer.ecx), (RDX, answer.edx)]
    {
        cpu.state.gpr[register] = value as u64;
    }
    Ok(Step::Next)
}

fn check_tsc(cpu: &mut Cpu) -> Run {
    if cpu.state.cr4 & CR4_TSD != 0 && cpu.mode.cpl != 0 {
        return cpu.general_protection(0);
    }
    Ok(())
}

pub fn rdtsc(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    check_tsc(cpu)?;
    let tsc = cpu.tsc();
    cpu.state.gpr[RAX] = tsc & 0xffff_ffff;
    cpu.state.gpr[RDX] = tsc >> 32;
    Ok(Step::Next)
}

fn require_rdtscp(
    cpu: &mut Cpu,
    leaf: u32,
    register: guise_engine::extensions::Register,
    bit: u32,
) -> Run {
    if cpu.shared.model.tells(leaf, register, bit) { Ok(()) } else { cpu.invalid_opcode() }
}

pub fn rdtscp(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_rdtscp(cpu, 0x8000_0001, guise_engine::extensions::Register::Edx, 27)?;
    rdtsc(cpu, op)?;
    cpu.state.gpr[RCX] = cpu.msr.tsc_aux;
    Ok(Step::Next)
}

pub fn rdpid(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    require_rdtscp(cpu, 7, guise_engine::extensions::Register::Ecx, 22)?;
    let value = cpu.msr.tsc_aux;
    cpu.set_reg(op.a, value);
    Ok(Step::Next)
}

/// There are no counters.
pub fn rdpmc(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.general_protection(0)
}

/// The host's RDRAND or RDSEED: a value, and whether there was one.
fn host_random(seed: bool) -> (u64, bool) {
    let (value, carry): (u64, u8);
    // SAFETY: the guest's features are a part of the host's, and were asked for.
    unsafe {
        if seed {
            std::arch::asm!("rdseed {v}", "setc {c}", v = out(reg) value, c = out(reg_byte) carry,
                options(nomem, nostack));
        } else {
            std::arch::asm!("rdrand {v}", "setc {c}", v = out(reg) value, c = out(reg_byte) carry,
                options(nomem, nostack));
        }
    }
    (value, carry != 0)
}

/// RDRAND and RDSEED: all flags but CF are cleared.
pub fn random(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    if !cpu.stubs.features().allow(extra.instruction.code()) {
        return cpu.invalid_opcode();
    }
    let seed = extra.instruction.mnemonic() == iced_x86::Mnemonic::Rdseed;
    let (value, there) = host_random(seed);
    let value = if there { value } else { 0 };
    match extra.instruction.op0_register().size() {
        2 => cpu.set_reg(op.a, value as u16),
        4 => cpu.set_reg(op.a, value as u32),
        _ => cpu.set_reg(op.a, value),
    }
    cpu.state.rflags = cpu.state.rflags & !STATUS | there as u64;
    Ok(Step::Next)
}

pub fn rdmsr(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    if cpu.mode.cpl != 0 {
        return cpu.general_protection(0);
    }
    let value = cpu.read_msr(cpu.state.gpr[RCX] as u32)?;
    cpu.state.gpr[RAX] = value & 0xffff_ffff;
    cpu.state.gpr[RDX] = value >> 32;
    Ok(Step::Next)
}

pub fn wrmsr(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.mode.cpl != 0 {
        return cpu.general_protection(0);
    }
    let gpr = &cpu.state.gpr;
    let value = gpr[RAX] & 0xffff_ffff | gpr[RDX] << 32;
    let next = cpu.next_rip(op);
    cpu.write_msr(gpr[RCX] as u32, value)?;
    cpu.state.rip = next;
    Ok(Step::Jump)
}

pub fn serialize(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if !cpu.shared.model.tells(7, guise_engine::extensions::Register::Edx, 14) {
        return cpu.invalid_opcode();
    }
    cpu.state.rip = cpu.next_rip(op);
    Ok(Step::Jump)
}

/// VMCALL and VMMCALL.
pub fn hypercall(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let gpr = &cpu.state.gpr;
    let call = Call {
        number: gpr[RAX],
        arguments: [gpr[RBX], gpr[RCX], gpr[RDX], gpr[RSI]],
        long: cpu.mode.is_64(),
        privilege: cpu.mode.cpl,
        tsc: cpu.tsc(),
    };
    let result = match hypercall::decide(&call, cpu) {
        Hypercall::Done(result) => result,
        Hypercall::Kick { apic_id } => {
            cpu.kick_halted(apic_id);
            0
        }
        Hypercall::SendIpi { first, targets, icr } => cpu.send_ipis(first, targets, icr),
    };
    let width = if cpu.mode.is_64() { 8 } else { 4 };
    cpu.set_gpr(RAX, result as u64, width);
    cpu.state.rip = cpu.next_rip(op);
    Ok(Step::Jump)
}
