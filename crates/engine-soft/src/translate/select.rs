//! Which instructions are translated, and which are left to the interpreter.
//!
//! What is translated is named: an instruction set is on a list here, or its
//! instructions are interpreted, so that an unknown one is slow rather than wrong.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::host::classify;

/// Which vector instructions run without an exception in the guest's present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VectorLevel {
    None,
    Sse,
    Avx,
    Avx512,
}

/// Instruction sets whose instructions run as they are, but for their memory operands.
fn level_of(feature: CpuidFeature) -> Option<VectorLevel> {
    use CpuidFeature as F;
    Some(match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL386
        | F::INTEL486
        | F::INTEL8086_ONLY
        | F::CMOV
        | F::X64
        | F::MULTIBYTENOP
        | F::POPCNT
        | F::LZCNT
        | F::BMI1
        | F::BMI2
        | F::ADX
        | F::MOVBE
        | F::CX8
        | F::CMPXCHG16B
        | F::PAUSE
        | F::TSC
        | F::RDTSCP
        | F::PREFETCHW
        | F::CET_IBT => VectorLevel::None,
        F::SSE
        | F::SSE2
        | F::SSE3
        | F::SSSE3
        | F::SSE4_1
        | F::SSE4_2
        | F::AES
        | F::PCLMULQDQ
        | F::SHA => VectorLevel::Sse,
        F::AVX | F::AVX2 | F::FMA | F::F16C => VectorLevel::Avx,
        F::AVX512F | F::AVX512VL | F::AVX512BW | F::AVX512DQ | F::AVX512CD | F::AVX512_VNNI => {
            VectorLevel::Avx512
        }
        _ => return None,
    })
}

/// Whether the interpreter executes this instruction, at any level of vectors.
pub fn is_interpreted(instruction: &Instruction) -> bool {
    required_level(instruction).is_none()
}

/// What state the guest must be in for this instruction to be translated; none if it
/// never is.
pub fn required_level(instruction: &Instruction) -> Option<VectorLevel> {
    if instruction.is_invalid() {
        return None;
    }
    match instruction.mnemonic() {
        _ if is_nothing(instruction) => return Some(VectorLevel::None),
        _ if is_denied(instruction) => return None,
        _ => {}
    }
    let mut level = VectorLevel::None;
    for &feature in instruction.cpuid_features() {
        level = level.max(level_of(feature)?);
    }
    if instruction.encoding() == EncodingKind::EVEX {
        level = level.max(VectorLevel::Avx512);
    }
    Some(level)
}

fn is_denied(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    if instruction.is_privileged() || instruction.is_vsib() {
        return true;
    }
    let code = instruction.code();
    if classify::is_core(code) && !code.is_jcc_short_or_near() && !has_emitter(code.mnemonic()) {
        return true;
    }
    if instruction.op_kinds().any(|kind| kind == OpKind::NearBranch16) {
        return true;
    }
    match instruction.mnemonic() {
        M::Leave => instruction.code() != Code::Leaveq,
        M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Int
        | M::Into
        | M::Int1
        | M::Int3
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Hlt
        | M::Cli
        | M::Sti
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Pushf
        | M::Pushfd
        | M::Std
        | M::Xlatb
        | M::Enter
        | M::Bound
        | M::Retf => true,
        M::Cmpsb
        | M::Cmpsw
        | M::Cmpsd
        | M::Cmpsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq => instruction.op_kinds().any(is_string_kind),
        M::Movsb | M::Movsw | M::Movsd | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq => {
            instruction.op_kinds().any(is_string_kind) && !is_bulk_string(instruction)
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => true,
        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq | M::Wait | M::Emms => true,
        M::Cpuid | M::Clflush | M::Ud0 | M::Ud1 | M::Ud2 => true,
        M::Call | M::Jmp | M::Ret => !matches!(
            instruction.code(),
            Code::Call_rel32_64
                | Code::Call_rm64
                | Code::Jmp_rel8_64
                | Code::Jmp_rel32_64
                | Code::Jmp_rm64
                | Code::Retnq
                | Code::Retnq_imm16
        ),
        M::Push => !matches!(
            instruction.code(),
            Code::Push_r64 | Code::Push_rm64 | Code::Pushq_imm8 | Code::Pushq_imm32
        ),
        M::Pop => {
            !matches!(instruction.code(), Code::Pop_r64 | Code::Pop_rm64) || {
                instruction.op0_kind() == OpKind::Memory
            }
        }
        M::Mov if is_selector_read(instruction) => false,
        M::Mov => {
            matches!(
                instruction.code(),
                Code::Mov_AL_moffs8
                    | Code::Mov_AX_moffs16
                    | Code::Mov_EAX_moffs32
                    | Code::Mov_RAX_moffs64
                    | Code::Mov_moffs8_AL
                    | Code::Mov_moffs16_AX
                    | Code::Mov_moffs32_EAX
                    | Code::Mov_moffs64_RAX
            ) || has_foreign_register(instruction)
        }
        _ => {
            instruction.has_xacquire_prefix() && !instruction.has_lock_prefix()
                || has_foreign_register(instruction)
        }
    }
}

/// What the interpreter does itself, but generated code can do, too: some forms of it.
fn has_emitter(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Push
            | M::Pop
            | M::Pushfq
            | M::Leave
            | M::Call
            | M::Jmp
            | M::Ret
            | M::Mov
            | M::Lea
            | M::Pause
            | M::Rdtsc
            | M::Rdtscp
            | M::Cld
            | M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
    )
}

/// Segment, control, debug, x87 and MMX registers are not the host's.
fn has_foreign_register(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register && {
            let register = instruction.op_register(operand);
            register.is_segment_register()
                || register.is_cr()
                || register.is_dr()
                || register.is_tr()
                || register.is_st()
                || register.is_mm()
        }
    })
}

/// MOV of a segment's selector to a register of 32 or 64 bits.
pub fn is_selector_read(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg)
        && instruction.op0_kind() == OpKind::Register
}

fn is_string_kind(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// REP MOVS and REP STOS with 64-bit addresses and no segment override, which have
/// routines of their own.
pub fn is_bulk_string(instruction: &Instruction) -> bool {
    (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        && instruction.op0_kind() == OpKind::MemoryESRDI
        && !matches!(instruction.segment_prefix(), Register::FS | Register::GS)
        && (instruction.op1_kind() == OpKind::MemorySegRSI
            || instruction.op1_kind() == OpKind::Register)
}

/// Whether processors decode a branch together with the instruction before it.
pub fn fuses(instruction: &Instruction, branch: &Instruction) -> bool {
    use Mnemonic as M;
    branch.flow_control() == FlowControl::ConditionalBranch
        && branch.ip() == instruction.next_ip()
        && matches!(
            instruction.mnemonic(),
            M::Cmp | M::Test | M::Add | M::Sub | M::And | M::Inc | M::Dec
        )
}

/// Does nothing that a guest could see.
pub fn is_nothing(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Nop
            | M::Endbr64
            | M::Endbr32
            | M::Rdsspd
            | M::Rdsspq
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchw
            | M::Prefetch
            | M::Prefetchwt1
            | M::Reservednop
    )
}

#[cfg(test)]
mod tests;
