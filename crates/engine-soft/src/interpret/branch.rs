//! Near branches, and the entrances to far ones.
//!
//! Targets of direct branches are relative to the block. `address.mask` is what the
//! operand size leaves of an instruction pointer.

use super::int::{Int, ZF, condition};
use super::op::{Op, Run, Step};
use crate::cpu::Cpu;
use crate::cpu::deliver::Event;
use crate::cpu::transfer::FarPointer;
use crate::exception;
use crate::memory::access::is_canonical;
use crate::state::{CS, RCX};

impl Cpu {
    /// The address of the instruction behind.
    #[inline(always)]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.state.rip.wrapping_add(op.end()) & self.mode.ip_mask
    }

    #[inline(always)]
    fn direct_target(&self, op: &Op) -> u64 {
        self.state.rip.wrapping_add(op.immediate) & op.address.mask
    }

    /// #GP(0) if RIP must not become `target`.
    #[inline(always)]
    fn check_near(&mut self, target: u64) -> Run {
        let good = if self.mode.is_64() {
            is_canonical(target)
        } else {
            self.mode.flat || target <= self.state.seg[CS].limit as u64
        };
        if good { Ok(()) } else { self.general_protection(0) }
    }
}

/// The end of a block that goes on with the next instruction.
pub fn fall_through(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.state.rip = cpu.state.rip.wrapping_add(op.start as u64) & cpu.mode.ip_mask;
    Ok(Step::Fall)
}

pub fn jump(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.direct_target(op);
    cpu.check_near(target)?;
    cpu.state.rip = target;
    Ok(Step::Taken)
}

pub fn jump_if<const CONDITION: u8>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if condition(CONDITION, cpu.state.rflags) {
        jump(cpu, op)
    } else {
        cpu.state.rip = cpu.next_rip(op);
        Ok(Step::Fall)
    }
}

/// The count of a loop, at the address size (`a`'s width is in `small`'s upper half).
fn count_mask(op: &Op) -> u64 {
    match op.small >> 4 {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    }
}

/// JCXZ, JECXZ, JRCXZ.
pub fn jump_if_no_count(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    if cpu.state.gpr[RCX] & count_mask(op) == 0 {
        jump(cpu, op)
    } else {
        cpu.state.rip = cpu.next_rip(op);
        Ok(Step::Fall)
    }
}

/// LOOP, LOOPE, LOOPNE: `small` low half 0, 1, 2.
pub fn loop_count(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let mask = count_mask(op);
    let count = cpu.state.gpr[RCX].wrapping_sub(1) & mask;
    let zero = cpu.state.rflags & ZF != 0;
    let goes = count != 0
        && match op.small & 15 {
            0 => true,
            1 => zero,
            _ => !zero,
        };
    let target = cpu.direct_target(op);
    if goes {
        cpu.check_near(target)?;
    }
    cpu.set_gpr(RCX, count, (op.small >> 4) as u64);
    if goes {
        cpu.state.rip = target;
        Ok(Step::Taken)
    } else {
        cpu.state.rip = cpu.next_rip(op);
        Ok(Step::Fall)
    }
}

pub fn call<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.direct_target(op);
    cpu.check_near(target)?;
    let next = cpu.next_rip(op);
    cpu.push(T::new(next))?;
    cpu.state.rip = target;
    Ok(Step::Taken)
}

pub fn jump_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.reg::<T>(op.a).get();
    cpu.check_near(target)?;
    cpu.state.rip = target;
    Ok(Step::Jump)
}

pub fn jump_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.load::<T>(op)?.get();
    cpu.check_near(target)?;
    cpu.state.rip = target;
    Ok(Step::Jump)
}

pub fn call_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.reg::<T>(op.a).get();
    cpu.check_near(target)?;
    let next = cpu.next_rip(op);
    cpu.push(T::new(next))?;
    cpu.state.rip = target;
    Ok(Step::Jump)
}

pub fn call_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.load::<T>(op)?.get();
    cpu.check_near(target)?;
    let next = cpu.next_rip(op);
    cpu.push(T::new(next))?;
    cpu.state.rip = target;
    Ok(Step::Jump)
}

/// RET, with `immediate` bytes of parameters.
pub fn ret<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let target = cpu.peek::<T>(0)?.get();
    cpu.check_near(target)?;
    cpu.drop_stack(T::SIZE + op.immediate);
    cpu.state.rip = target;
    Ok(Step::Jump)
}

/// Far JMP or CALL (`small` bit 0) through memory.
pub fn far_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let linear = cpu.linear(op, T::SIZE + 2, false)?;
    let offset = cpu.read::<T>(linear)?.get();
    let selector = cpu.read::<u16>(linear.wrapping_add(T::SIZE))?;
    far(cpu, op, FarPointer { selector, offset, size: T::SIZE })
}

/// Far JMP or CALL to what the instruction says: selector above offset.
pub fn far_direct<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let (selector, offset) = ((op.immediate >> 32) as u16, op.immediate & 0xffff_ffff);
    far(cpu, op, FarPointer { selector, offset, size: T::SIZE })
}

fn far(cpu: &mut Cpu, op: &Op, to: FarPointer) -> Run<Step> {
    let next = cpu.next_rip(op);
    if op.small & 1 != 0 {
        cpu.call_far(to, next)?;
    } else {
        cpu.jump_far(to, next)?;
    }
    Ok(Step::Jump)
}

pub fn far_return<T: Int>(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    cpu.return_far(T::SIZE, op.immediate)?;
    Ok(Step::Jump)
}

pub fn iret<T: Int>(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.return_from_interrupt(T::SIZE)?;
    Ok(Step::Jump)
}

/// INT n, INT3 (`small` 3), INT1 (`small` 1) and INTO (`small` 4).
pub fn software_interrupt(cpu: &mut Cpu, op: &Op) -> Run<Step> {
    let vector = op.immediate as u8;
    if cpu.mode.v86 && op.small == 0 && cpu.iopl() < 3 {
        return cpu.general_protection(0);
    }
    if op.small == 4 && cpu.state.rflags & super::int::OF == 0 {
        return Ok(Step::Next);
    }
    if op.small == 1 {
        // What the instruction before left (a watched operand of MOV SS) comes with it.
        let earlier = std::mem::take(&mut cpu.events.pending_debug);
        cpu.state.dr6 = cpu.state.dr6 & !crate::cpu::control::DR6_BS | earlier;
    }
    // The delivery wants RIP where the instruction is, should it fault.
    let block = cpu.state.rip;
    let return_to = cpu.next_rip(op);
    cpu.state.rip = block.wrapping_add(op.start as u64) & cpu.mode.ip_mask;
    let check_level = vector != exception::DEBUG || op.small != 1;
    let result = cpu.deliver(Event::Software { vector, return_to, check_level });
    match result {
        // TF traps in the program, not in the handler.
        Ok(()) => cpu.events.step_suppressed = true,
        Err(_) => cpu.state.rip = block,
    }
    result.map(|()| Step::Jump)
}
