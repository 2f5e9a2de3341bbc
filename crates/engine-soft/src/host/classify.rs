//! Who executes an instruction: the host's processor through a stub, the masked
//! memory operations, nobody (a hint), or the interpreter itself.
//!
//! The answer is derived from iced's descriptions of instruction forms, so that every
//! form that the decoder knows has one; a test lists them all.

use std::sync::LazyLock;

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind,
};

use super::features::Features;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It runs on the host ([`super::stub`]).
    Stub,
    /// It accesses a part of its memory operand, or several places: `masked`.
    Masked,
    /// It does nothing that a guest could see, not even access its operand.
    Hint,
    /// Adjusts a decimal number; not in 64-bit mode (`decimal`).
    Decimal,
    /// The interpreter's: control flow, privilege, stack, strings, state.
    Core,
    /// There is no such instruction with these extensions: #UD.
    Invalid,
}

/// Which unit an instruction needs, for #UD and #NM before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    None,
    X87,
    Mmx,
    Sse,
    /// SSE that also touches MMX registers.
    SseMmx,
    Avx,
    Avx512,
    /// VEX-encoded, but on general registers.
    Vex,
}

/// What an instruction form is, whoever the guest is.
#[derive(Clone, Copy, Debug)]
struct Form {
    class: Class,
    unit: Unit,
    mxcsr: bool,
}

static FORMS: LazyLock<Box<[Form]>> = LazyLock::new(|| {
    Code::values()
        .map(|code| Form { class: class(code), unit: unit(code), mxcsr: mxcsr(code) })
        .collect()
});

/// Who executes an instruction for a guest with these extensions.
pub fn classify(instruction: &Instruction, features: &Features) -> Class {
    let code = instruction.code();
    let class = of_code(code, features);
    let memory = || (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    if class == Class::Stub && instruction.has_op_mask() && memory() {
        Class::Masked
    } else {
        class
    }
}

/// As [`classify`], for a form as such.
pub fn of_code(code: Code, features: &Features) -> Class {
    let class = FORMS[code as usize].class;
    if class == Class::Hint || features.allow(plain(code, features)) {
        class
    } else {
        Class::Invalid
    }
}

/// Whether the interpreter executes the form itself.
pub fn is_core(code: Code) -> bool {
    FORMS[code as usize].class == Class::Core
}

pub fn unit_of(code: Code) -> Unit {
    FORMS[code as usize].unit
}

/// Whether the result or the flags of MXCSR depend on MXCSR.
pub(super) fn uses_mxcsr(code: Code) -> bool {
    FORMS[code as usize].mxcsr
}

/// What a form means to a processor that ignores a prefix it does not know.
pub(super) fn plain(code: Code, features: &Features) -> Code {
    if !features.has(CpuidFeature::LZCNT) {
        match code {
            Code::Lzcnt_r16_rm16 => return Code::Bsr_r16_rm16,
            Code::Lzcnt_r32_rm32 => return Code::Bsr_r32_rm32,
            Code::Lzcnt_r64_rm64 => return Code::Bsr_r64_rm64,
            _ => {}
        }
    }
    if !features.has(CpuidFeature::BMI1) {
        match code {
            Code::Tzcnt_r16_rm16 => return Code::Bsf_r16_rm16,
            Code::Tzcnt_r32_rm32 => return Code::Bsf_r32_rm32,
            Code::Tzcnt_r64_rm64 => return Code::Bsf_r64_rm64,
            _ => {}
        }
    }
    code
}

fn class(code: Code) -> Class {
    use Mnemonic::*;
    let info = code.op_code();
    if !info.is_instruction() {
        return Class::Invalid;
    }
    match code.mnemonic() {
        Aaa | Aas | Daa | Das | Aam | Aad | Salc => return Class::Decimal,
        // What older processors see as a NOP with an operand.
        Nop | Reservednop | Endbr32 | Endbr64 | Rdsspd | Rdsspq | Cldemote | Prefetch
        | Prefetchw | Prefetchwt1 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta
        | Prefetchit0 | Prefetchit1 | Bndmk | Bndcl | Bndcu | Bndcn | Bndmov | Bndldx | Bndstx => {
            return Class::Hint;
        }
        Maskmovq | Maskmovdqu | Vmaskmovdqu | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => {
            return Class::Masked;
        }
        Cpuid | Rdtsc | Rdtscp | Rdpmc | Rdpid | Rdrand | Rdseed | Xgetbv | Xsetbv | Rdpkru
        | Wrpkru | Sgdt | Sidt | Sldt | Str | Smsw | Lmsw | Lgdt | Lidt | Lldt | Ltr | Lar
        | Lsl | Verr | Verw | Arpl | Ldmxcsr | Stmxcsr | Vldmxcsr | Vstmxcsr | Fldenv | Fnstenv
        | Fstenv | Fnsave | Fsave | Frstor | Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Cli
        | Sti | Cld | Std | Clac | Stac | Lea | Bound | Rdfsbase | Rdgsbase | Wrfsbase
        | Wrgsbase | Swapgs | Lds | Les | Lfs | Lgs | Lss | Monitor | Mwait | Pause | Movdir64b
        | Enqcmd | Enqcmds | Pushf | Popf | Invlpg | Invpcid | Wbinvd | Wbnoinvd | Serialize => {
            return Class::Core;
        }
        // Read and written around 24 registers, so done in memory by `stub` itself.
        Vzeroupper | Vzeroall => return Class::Stub,
        _ => {}
    }
    let core = code.flow_control() != FlowControl::Next
        || info.is_privileged()
        || info.must_be_cpl0()
        || info.is_input_output()
        || info.is_save_restore()
        || info.is_stack_instruction()
        || code.is_string_instruction();
    if core || info.op_kinds().iter().any(|&kind| is_system_operand(kind)) {
        return Class::Core;
    }
    if info.op_kinds().iter().any(|&kind| is_vsib(kind)) || compresses_memory(code) {
        return Class::Masked;
    }
    Class::Stub
}

fn is_system_operand(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        seg_reg
            | cr_reg
            | dr_reg
            | tr_reg
            | es
            | cs
            | ss
            | ds
            | fs
            | gs
            | farbr2_2
            | farbr4_2
            | bnd_reg
            | sibmem
            | tmm_reg
            | tmm_rm
            | tmm_vvvv
    )
}

pub(super) fn is_vsib(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        mem_vsib32x | mem_vsib64x | mem_vsib32y | mem_vsib64y | mem_vsib32z | mem_vsib64z
    )
}

/// How many bytes it accesses depends on a mask.
fn compresses_memory(code: Code) -> bool {
    use Mnemonic::*;
    code.op_code().op_kinds().contains(&OpCodeOperandKind::mem)
        && matches!(
            code.mnemonic(),
            Vcompressps
                | Vcompresspd
                | Vpcompressd
                | Vpcompressq
                | Vpcompressb
                | Vpcompressw
                | Vexpandps
                | Vexpandpd
                | Vpexpandd
                | Vpexpandq
                | Vpexpandb
                | Vpexpandw
        )
}

/// VEX-encoded and about vectors, though without an operand that is one.
fn control(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Vzeroupper | Vzeroall | Vldmxcsr | Vstmxcsr)
}

fn unit(code: Code) -> Unit {
    use OpCodeOperandKind::*;
    let info = code.op_code();
    let any = |test: fn(OpCodeOperandKind) -> bool| info.op_kinds().iter().any(|&kind| test(kind));
    let vector = any(|kind| {
        matches!(
            kind,
            xmm_or_mem
                | ymm_or_mem
                | zmm_or_mem
                | xmm_reg
                | xmm_rm
                | xmm_vvvv
                | xmmp3_vvvv
                | xmm_is4
                | xmm_is5
                | ymm_reg
                | ymm_rm
                | ymm_vvvv
                | ymm_is4
                | ymm_is5
                | zmm_reg
                | zmm_rm
                | zmm_vvvv
                | zmmp3_vvvv
        )
    });
    let mmx = any(|kind| matches!(kind, mm_or_mem | mm_reg | mm_rm));
    let opmask = any(|kind| matches!(kind, k_or_mem | k_reg | kp1_reg | k_rm | k_vvvv));
    let mnemonic = code.mnemonic();
    match info.encoding() {
        EncodingKind::EVEX => return Unit::Avx512,
        _ if opmask => return Unit::Avx512,
        EncodingKind::VEX if vector => return Unit::Avx,
        EncodingKind::VEX if !control(mnemonic) => return Unit::Vex,
        _ => {}
    }
    match mnemonic {
        _ if control(mnemonic) => return Unit::Avx,
        Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr => return Unit::Sse,
        Mnemonic::Emms => return Unit::Mmx,
        Mnemonic::Wait => return Unit::X87,
        _ => {}
    }
    let x87 = || {
        let name = format!("{mnemonic:?}");
        name.starts_with('F') && !name.starts_with("Fx") && name != "Femms"
            || matches!(mnemonic, Mnemonic::Fxch | Mnemonic::Fxtract | Mnemonic::Fxam)
    };
    match (vector, mmx) {
        (true, true) => Unit::SseMmx,
        (true, false) => Unit::Sse,
        (false, true) => Unit::Mmx,
        (false, false) if x87() => Unit::X87,
        (false, false) => Unit::None,
    }
}

/// Stems of the mnemonics that compute with numbers of SSE and its successors. One too
/// many costs a guest a few nanoseconds; one too few would be wrong, and the
/// differential test knows.
const FLOATING_POINT: &[&str] = &[
    "addp", "adds", "subp", "subs", "mulp", "muls", "divp", "divs", "sqrt", "minp", "mins", "maxp",
    "maxs", "cmpp", "cmps", "comis", "ucomis", "cvt", "round", "dpp", "hadd", "hsub", "fmadd",
    "fmsub", "fnmadd", "fnmsub", "rndscale", "reduce", "range", "getexp", "getmant", "scalef",
    "fixupimm", "rcp", "rsqrt", "fpclass", "exp2",
];

fn mxcsr(code: Code) -> bool {
    if matches!(unit(code), Unit::None | Unit::X87 | Unit::Mmx | Unit::Vex) {
        return false;
    }
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let stem = match code.op_code().encoding() {
        EncodingKind::Legacy => name.as_str(),
        _ => name.strip_prefix('v').unwrap_or(&name),
    };
    FLOATING_POINT.iter().any(|prefix| stem.starts_with(prefix))
}

#[cfg(test)]
mod tests;
