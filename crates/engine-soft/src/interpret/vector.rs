//! Instructions that run on the host's processor, and state of the floating-point and
//! vector units in memory.

use super::op::{Op, Run, Step, Trap};
use crate::access::Access;
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::fpu;
use crate::host::classify::unit_of;
use crate::host::stub::{Refusal, Stub, bit_string_offset};
use crate::host::{decimal, masked};
use crate::memory::access::Spot;
use crate::memory::walk;
use crate::state::CpuState;

/// NOP in its many forms.
pub fn hint(_cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    Ok(Step::Next)
}

/// The stub of an instruction, made when it is first executed, and whether its unit
/// may be used now.
#[inline(always)]
fn prepare(cpu: &mut Cpu, op: &Op) -> Run<Stub> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    let stub = match extra.stub.get() {
        Some(stub) => stub,
        None => {
            let stub = compile(cpu, op)?;
            extra.stub.set(Some(stub));
            stub
        }
    };
    match fpu::check(stub.unit, &cpu.state) {
        Ok(()) => Ok(stub),
        Err(exception) => cpu.raise(exception),
    }
}

#[cold]
fn compile(cpu: &mut Cpu, op: &Op) -> Run<Stub> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    match cpu.stubs.compile(&extra.instruction) {
        Ok(stub) => Ok(stub),
        Err(Refusal::Full) => {
            // Every block that holds a stub goes before the stubs do.
            cpu.renew_stubs();
            cpu.stubs.compile(&extra.instruction).or_else(|_| cpu.invalid_opcode())
        }
        Err(_) => cpu.invalid_opcode(),
    }
}

impl Cpu {
    /// Forgets all stubs, and all memory of them. The block that runs keeps its
    /// operations, but not their stubs.
    fn renew_stubs(&mut self) {
        self.cache.forget_stubs();
        self.stubs.clear();
    }

    #[inline(always)]
    fn run_stub(&mut self, op: &Op, stub: &Stub, operand: *mut u8, data: u64) -> Run {
        let state = &raw mut self.state;
        // SAFETY: the stub is of `self.stubs` and current; the state is ours; the
        // operand was found for this access, or is a buffer of the right size.
        let result = unsafe { stub.run(state, operand) };
        if let Err(exception) = result {
            return self.raise(exception);
        }
        if stub.is_x87() {
            let ip = self.state.rip.wrapping_add(op.start as u64);
            stub.set_x87_pointers(&mut self.state, operand, ip, data);
        }
        Ok(())
    }
}

/// An instruction without a memory operand.
pub fn stub(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let stub = prepare(cpu, op)?;
    cpu.run_stub(op, &stub, std::ptr::null_mut(), 0)?;
    Ok(Step::Next)
}

/// Room for an operand that is not in one piece of host memory, aligned as any.
#[repr(align(64))]
struct Bounce([u8; 192]);

fn operand_offset(cpu: &Cpu, op: &Op, stub: &Stub) -> u64 {
    let offset = cpu.offset(op);
    match &op.extra {
        Some(extra) if stub.bit_string => {
            let skip = bit_string_offset(&extra.instruction, &cpu.state);
            offset.wrapping_add(skip as u64) & op.address.mask
        }
        _ => offset,
    }
}

fn operand_linear(cpu: &mut Cpu, op: &Op, stub: &Stub, offset: u64) -> Run<u64> {
    if op.address.checked {
        let size = stub.size.max(1) as u64;
        cpu.checked_linear(op.address.segment as usize, offset, size, stub.writes)
    } else {
        Ok(offset.wrapping_add(cpu.reg::<u64>(op.address.segment_base)))
    }
}

/// An instruction with a memory operand.
pub fn stub_with_memory(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let stub = prepare(cpu, op)?;
    let offset = operand_offset(cpu, op, &stub);
    let size = stub.size as u64;
    if size == 0 {
        // The operand is an address only.
        cpu.run_stub(op, &stub, std::ptr::null_mut(), offset)?;
        return Ok(Step::Next);
    }
    let linear = operand_linear(cpu, op, &stub, offset)?;
    // SAFETY: the bank is the current view's.
    let found = unsafe {
        let bank = &*cpu.state.bank;
        if stub.writes { bank.find_write(linear, size) } else { bank.find_read(linear, size) }
    };
    match found {
        Some(host) => cpu.run_stub(op, &stub, host, offset)?,
        None => through_buffer(cpu, op, &stub, linear, offset)?,
    }
    Ok(Step::Next)
}

/// An operand that crosses pages, or is not plain memory.
#[cold]
#[inline(never)]
fn through_buffer(cpu: &mut Cpu, op: &Op, stub: &Stub, linear: u64, offset: u64) -> Run {
    let size = stub.size as usize;
    cpu.check_alignment(linear, size as u64)?;
    let access = if stub.writes { walk::Access::Write } else { walk::Access::Read };
    let view = cpu.view();
    if let (Spot::Memory(host), None) = cpu.spots(linear, size as u64, access, view)? {
        return cpu.run_stub(op, stub, host, offset);
    }
    let mut bounce = Bounce([0; 192]);
    // The same alignment as the guest's, for those that fault without it.
    let at = (linear % 64) as usize;
    if stub.reads {
        cpu.read_bytes(linear, &mut bounce.0[at..at + size])?;
    }
    let before = cpu.state.gpr;
    cpu.run_stub(op, stub, bounce.0[at..].as_mut_ptr(), offset)?;
    if stub.writes {
        let written = cpu.write_bytes(linear, &bounce.0[at..at + size]);
        debug_assert!(written.is_ok(), "translated for writing above");
        if written.is_err() {
            cpu.state.gpr = before;
            return written;
        }
    }
    Ok(())
}

/// A locked instruction without a handler of its own.
pub fn locked_stub(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let stub = prepare(cpu, op)?;
    let offset = operand_offset(cpu, op, &stub);
    let linear = operand_linear(cpu, op, &stub, offset)?;
    cpu.check_alignment(linear, stub.size as u64)?;
    let view = cpu.view();
    match cpu.spots(linear, stub.size as u64, walk::Access::Write, view)? {
        (Spot::Memory(host), None) => cpu.run_stub(op, &stub, host, offset)?,
        (Spot::Code(host), None) => {
            cpu.run_stub(op, &stub, host, offset)?;
            cpu.code_written(host, stub.size as usize);
        }
        _ => cpu.alone(|cpu| through_buffer(cpu, op, &stub, linear, offset))?,
    }
    Ok(Step::Next)
}

/// WAIT: #NM, or the pending x87 exception.
pub fn wait(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    if let Err(exception) = fpu::check_wait(&cpu.state) {
        return cpu.raise(exception);
    }
    if cpu.state.x87.has_pending_exception() {
        return cpu.raise(Exception::plain(crate::exception::X87_FLOATING_POINT));
    }
    Ok(Step::Next)
}

/// The vCPU in the middle of an instruction with a large or scattered operand.
struct Operand<'a> {
    cpu: &'a mut Cpu,
    op: &'a Op,
}

impl Operand<'_> {
    fn linear(&mut self, offset: u64, size: u64, write: bool) -> Run<u64> {
        let address = &self.op.address;
        let offset = offset & address.mask;
        if address.checked {
            self.cpu.checked_linear(address.segment as usize, offset, size, write)
        } else {
            Ok(offset.wrapping_add(self.cpu.reg::<u64>(address.segment_base)))
        }
    }
}

impl Access for Operand<'_> {
    type Fault = Trap;

    fn state(&mut self) -> &mut CpuState {
        &mut self.cpu.state
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Trap> {
        let linear = self.linear(address, bytes.len() as u64, false)?;
        self.cpu.read_bytes(linear, bytes)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Trap> {
        let linear = self.linear(address, bytes.len() as u64, true)?;
        self.cpu.write_bytes(linear, bytes)
    }

    fn raise(&mut self, exception: Exception) -> Trap {
        self.cpu.raised = crate::cpu::Raised::Exception(exception);
        Trap
    }

    fn privilege(&mut self) -> u8 {
        self.cpu.mode.cpl
    }
}

/// FXSAVE, XSAVE and their like.
pub fn state(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    if !cpu.stubs.features().allow(extra.instruction.code()) {
        return cpu.invalid_opcode();
    }
    let mode =
        fpu::execute::Mode { long: cpu.mode.is_64(), real: !cpu.mode.protected || cpu.mode.v86 };
    let address = cpu.offset(op);
    let components = cpu.shared.model.xcr0();
    let next = cpu.next_rip(op);
    let ends = extra.instruction.mnemonic() == iced_x86::Mnemonic::Xsetbv;
    let keys = cpu.state.pkru;
    fpu::execute::execute(&mut Operand { cpu, op }, &extra.instruction, address, mode, components)?;
    cpu.key_register_changed(true, keys);
    if ends {
        cpu.state.rip = next;
        return Ok(Step::Jump);
    }
    Ok(Step::Next)
}

/// Gathers and masked moves.
pub fn masked(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    let instruction = &extra.instruction;
    let stub = if masked::needs_stub(instruction) {
        Some(prepare(cpu, op)?)
    } else {
        match fpu::check(unit_of(instruction.code()), &cpu.state) {
            Ok(()) => None,
            Err(exception) => return cpu.raise(exception),
        }
    };
    let place = masked::Effective { address: cpu.offset(op), mask: op.address.mask };
    masked::execute(&mut Operand { cpu, op }, instruction, place, stub.as_ref())?;
    Ok(Step::Next)
}

/// AAA and its like.
pub fn decimal(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let Some(extra) = &op.extra else { return cpu.invalid_opcode() };
    match decimal::execute(&extra.instruction, &mut cpu.state) {
        Ok(()) => Ok(Step::Next),
        Err(exception) => cpu.raise(exception),
    }
}
