//! Instructions that move floating-point and vector state between registers and
//! memory, with their faults.

use guise_engine::xsave as standard;
use iced_x86::{Code, Instruction, Mnemonic};

use crate::access::Access;
use crate::exception::Exception;
use crate::host::classify::Unit;
use crate::state::{RAX, RDX};

use super::environment::{self, MAX_STATE};
use super::{CR0_EM, CR0_TS, CR4_OSXSAVE, NOT_AVAILABLE, UNDEFINED, check, fxsave, xsave};

/// In what mode an instruction executes, as far as layouts depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// 64-bit mode: 16 vectors.
    pub long: bool,
    /// Real or virtual-8086 mode.
    pub real: bool,
}

/// Whether [`execute`] knows the instruction.
pub fn handles(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Fnstenv
            | Fldenv
            | Fnsave
            | Frstor
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Xsave
            | Xsave64
            | Xsaveopt
            | Xsaveopt64
            | Xsavec
            | Xsavec64
            | Xsaves
            | Xsaves64
            | Xrstor
            | Xrstor64
            | Xrstors
            | Xrstors64
            | Ldmxcsr
            | Stmxcsr
            | Vldmxcsr
            | Vstmxcsr
            | Xgetbv
            | Xsetbv
    )
}

/// Executes one of these instructions; `address` is its operand's effective address.
/// `components` are those that XCR0 may enable.
pub fn execute<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    address: u64,
    mode: Mode,
    components: u64,
) -> Result<(), A::Fault> {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    match mnemonic {
        Fnstenv | Fldenv | Fnsave | Frstor => x87(cpu, instruction, address, mode),
        Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => fx(cpu, mnemonic, address, mode),
        Ldmxcsr | Stmxcsr => mxcsr(cpu, mnemonic == Ldmxcsr, Unit::Sse, address),
        Vldmxcsr | Vstmxcsr => mxcsr(cpu, mnemonic == Vldmxcsr, Unit::Avx, address),
        Xgetbv | Xsetbv => xcr(cpu, mnemonic == Xsetbv, components),
        _ => extended(cpu, mnemonic, address, mode),
    }
}

fn try_now<A: Access, T>(cpu: &mut A, result: Result<T, Exception>) -> Result<T, A::Fault> {
    result.map_err(|exception| cpu.raise(exception))
}

fn x87<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    address: u64,
    mode: Mode,
) -> Result<(), A::Fault> {
    let available = check(Unit::X87, cpu.state());
    try_now(cpu, available)?;
    let wide = matches!(
        instruction.code(),
        Code::Fnstenv_m28byte
            | Code::Fldenv_m28byte
            | Code::Fnsave_m108byte
            | Code::Frstor_m108byte
    );
    let layout = environment::Layout { wide, real: mode.real };
    match instruction.mnemonic() {
        Mnemonic::Fnstenv => {
            let bytes = environment::store(&cpu.state().x87, layout);
            cpu.write(address, &bytes[..layout.size()])?;
            environment::mask_all(&mut cpu.state().x87);
        }
        Mnemonic::Fldenv => {
            let mut bytes = [0; 28];
            cpu.read(address, &mut bytes[..layout.size()])?;
            environment::load(&mut cpu.state().x87, &bytes, layout);
        }
        Mnemonic::Fnsave => {
            let mut image = cpu.state().x87;
            let (bytes, length) = environment::save(&mut image, layout);
            cpu.write(address, &bytes[..length])?;
            cpu.state().x87 = image;
        }
        _ => {
            let mut bytes = [0; MAX_STATE];
            cpu.read(address, &mut bytes[..layout.size() + 80])?;
            environment::restore(&mut cpu.state().x87, &bytes, layout);
        }
    }
    Ok(())
}

fn fx<A: Access>(
    cpu: &mut A,
    mnemonic: Mnemonic,
    address: u64,
    mode: Mode,
) -> Result<(), A::Fault> {
    if cpu.state().cr0 & (CR0_EM | CR0_TS) != 0 {
        return Err(cpu.raise(NOT_AVAILABLE));
    }
    if address & 15 != 0 {
        return Err(cpu.raise(Exception::general_protection(0)));
    }
    let wide = matches!(mnemonic, Mnemonic::Fxsave64 | Mnemonic::Fxrstor64);
    let layout = fxsave::Layout { wide, vectors: if mode.long { 16 } else { 8 } };
    if matches!(mnemonic, Mnemonic::Fxsave | Mnemonic::Fxsave64) {
        let bytes = fxsave::save(cpu.state(), layout);
        cpu.write(address, &bytes[..fxsave::XMM + layout.vectors * 16])
    } else {
        let mut bytes = [0; fxsave::SIZE];
        cpu.read(address, &mut bytes)?;
        let restored = fxsave::restore(cpu.state(), &bytes, layout);
        try_now(cpu, restored)
    }
}

fn mxcsr<A: Access>(cpu: &mut A, load: bool, unit: Unit, address: u64) -> Result<(), A::Fault> {
    let available = check(unit, cpu.state());
    try_now(cpu, available)?;
    if load {
        let mut bytes = [0; 4];
        cpu.read(address, &mut bytes)?;
        let mxcsr = try_now(cpu, fxsave::checked_mxcsr(u32::from_le_bytes(bytes)))?;
        cpu.state().mxcsr = mxcsr;
        Ok(())
    } else {
        let bytes = cpu.state().mxcsr.to_le_bytes();
        cpu.write(address, &bytes)
    }
}

/// XGETBV and XSETBV.
fn xcr<A: Access>(cpu: &mut A, set: bool, components: u64) -> Result<(), A::Fault> {
    if cpu.state().cr4 & CR4_OSXSAVE == 0 {
        return Err(cpu.raise(UNDEFINED));
    }
    let selects_0 = cpu.state().gpr[1] as u32 == 0;
    // XGETBV of register 1 tells which components are in use; all that are enabled is
    // a permitted answer.
    let readable = selects_0 || !set && cpu.state().gpr[1] as u32 == 1;
    if !readable || set && cpu.privilege() != 0 {
        return Err(cpu.raise(Exception::general_protection(0)));
    }
    let state = cpu.state();
    if set {
        let value = state.gpr[RDX] << 32 | state.gpr[RAX] & 0xffff_ffff;
        if !is_valid_xcr0(value, components) {
            return Err(cpu.raise(Exception::general_protection(0)));
        }
        state.xcr0 = value;
    } else {
        state.gpr[RAX] = state.xcr0 & 0xffff_ffff;
        state.gpr[RDX] = state.xcr0 >> 32;
    }
    Ok(())
}

/// Whether XCR0 may have this value where it may enable `components` at the most.
pub fn is_valid_xcr0(value: u64, components: u64) -> bool {
    let upper = standard::OPMASK | standard::ZMM_HIGH | standard::HIGH_ZMM;
    value & standard::X87 != 0
        && value & !components == 0
        && (value & standard::AVX == 0 || value & standard::SSE != 0)
        && (value & upper == 0 || value & upper == upper && value & standard::AVX != 0)
}

fn extended<A: Access>(
    cpu: &mut A,
    mnemonic: Mnemonic,
    address: u64,
    mode: Mode,
) -> Result<(), A::Fault> {
    use Mnemonic::*;
    if cpu.state().cr4 & CR4_OSXSAVE == 0 {
        return Err(cpu.raise(UNDEFINED));
    }
    let supervisor = matches!(mnemonic, Xsaves | Xsaves64 | Xrstors | Xrstors64);
    if supervisor && cpu.privilege() != 0 {
        return Err(cpu.raise(Exception::general_protection(0)));
    }
    if cpu.state().cr0 & CR0_TS != 0 {
        return Err(cpu.raise(NOT_AVAILABLE));
    }
    if address & 63 != 0 {
        return Err(cpu.raise(Exception::general_protection(0)));
    }
    let state = cpu.state();
    let requested = state.gpr[RDX] << 32 | state.gpr[RAX] & 0xffff_ffff;
    let wide =
        matches!(mnemonic, Xsave64 | Xsaveopt64 | Xsavec64 | Xsaves64 | Xrstor64 | Xrstors64);
    let layout = xsave::Layout { wide, vectors: if mode.long { 16 } else { 8 } };
    match mnemonic {
        Xrstor | Xrstor64 | Xrstors | Xrstors64 => {
            xsave::restore(cpu, address, requested, supervisor, layout)
        }
        Xsave | Xsave64 => xsave::save(cpu, address, requested, xsave::Form::Standard, layout),
        Xsaveopt | Xsaveopt64 => {
            xsave::save(cpu, address, requested, xsave::Form::Optimized, layout)
        }
        _ => xsave::save(cpu, address, requested, xsave::Form::Compacted, layout),
    }
}
