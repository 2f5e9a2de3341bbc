//! Every feature bit that a guest may be told of.
//!
//! What is not in this list, the software engine lacks: virtual-8086 extensions, MONITOR,
//! transactions, shadow stacks, five-level paging, virtualization.

use crate::CpuModel;
use iced_x86::CpuidFeature::{self, *};

use crate::extensions::{
    Bit,
    Register::{self, Eax, Ebx, Ecx, Edx},
};

/// Each model has what the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Baseline,
    V2,
    V3,
    Host,
}

impl Level {
    pub fn of(model: CpuModel) -> Level {
        match model {
            CpuModel::Baseline => Level::Baseline,
            CpuModel::V2 => Level::V2,
            CpuModel::V3 => Level::V3,
            CpuModel::Host => Level::Host,
        }
    }
}

/// Who provides a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The software engine, on any host.
    Engine,
    /// The host's processor.
    Host(CpuidFeature),
}

#[derive(Clone, Copy, Debug)]
pub struct Feature {
    pub name: &'static str,
    pub place: Bit,
    pub source: Source,
    pub since: Level,
}

const fn at(leaf: u32, register: Register, bit: u32) -> Bit {
    Bit { leaf, subleaf: 0, register, bit }
}

const fn engine(name: &'static str, place: Bit, since: Level) -> Feature {
    Feature { name, place, source: Source::Engine, since }
}

const fn host(name: &'static str, extension: CpuidFeature, place: Bit, since: Level) -> Feature {
    Feature { name, place, source: Source::Host(extension), since }
}

use Level::{Baseline, Host, V2, V3};

const EXTENDED: u32 = 0x8000_0001;
const SEVEN_2: Bit = Bit { leaf: 7, subleaf: 2, register: Edx, bit: 0 };
const XSAVE_1: Bit = Bit { leaf: 0xd, subleaf: 1, register: Eax, bit: 0 };

pub const FEATURES: &[Feature] = &[
    // The engine is a processor of its own as far as modes, paging and interrupts go.
    engine("fpu", at(1, Edx, 0), Baseline),
    engine("de", at(1, Edx, 2), Baseline),
    engine("pse", at(1, Edx, 3), Baseline),
    engine("tsc", at(1, Edx, 4), Baseline),
    engine("msr", at(1, Edx, 5), Baseline),
    engine("pae", at(1, Edx, 6), Baseline),
    engine("mce", at(1, Edx, 7), Baseline),
    engine("cx8", at(1, Edx, 8), Baseline),
    engine("apic", at(1, Edx, 9), Baseline),
    engine("sep", at(1, Edx, 11), Baseline),
    engine("mtrr", at(1, Edx, 12), Baseline),
    engine("pge", at(1, Edx, 13), Baseline),
    engine("mca", at(1, Edx, 14), Baseline),
    engine("cmov", at(1, Edx, 15), Baseline),
    engine("pat", at(1, Edx, 16), Baseline),
    engine("clfsh", at(1, Edx, 19), Baseline),
    host("mmx", MMX, at(1, Edx, 23), Baseline),
    engine("fxsr", at(1, Edx, 24), Baseline),
    host("sse", SSE, at(1, Edx, 25), Baseline),
    host("sse2", SSE2, at(1, Edx, 26), Baseline),
    engine("x2apic", at(1, Ecx, 21), Baseline),
    engine("tsc_deadline_timer", at(1, Ecx, 24), Baseline),
    engine("hypervisor", at(1, Ecx, 31), Baseline),
    engine("arat", at(6, Eax, 2), Baseline),
    engine("syscall", at(EXTENDED, Edx, 11), Baseline),
    engine("nx", at(EXTENDED, Edx, 20), Baseline),
    engine("lm", at(EXTENDED, Edx, 29), Baseline),
    engine("invariant_tsc", at(0x8000_0007, Edx, 8), Baseline),
    // String moves are one call each here, so kernels had better use them.
    engine("erms", at(7, Ebx, 9), Baseline),
    engine("fsrm", at(7, Edx, 4), Baseline),
    // FXSAVE and its kin store no selectors.
    engine("fcs_fds_deprecated", at(7, Ebx, 13), Baseline),
    // Enhanced IBRS, which costs nothing and replaces retpolines, and the MSR with
    // which the processor says that it has none of the known weaknesses.
    engine("spec_ctrl", at(7, Edx, 26), Baseline),
    engine("arch_capabilities", at(7, Edx, 29), Baseline),
    // The psABI's level 2, and what processors of that age have besides.
    host("sse3", SSE3, at(1, Ecx, 0), V2),
    host("ssse3", SSSE3, at(1, Ecx, 9), V2),
    host("cx16", CMPXCHG16B, at(1, Ecx, 13), V2),
    engine("pcid", at(1, Ecx, 17), V2),
    host("sse4_1", SSE4_1, at(1, Ecx, 19), V2),
    host("sse4_2", SSE4_2, at(1, Ecx, 20), V2),
    host("popcnt", POPCNT, at(1, Ecx, 23), V2),
    engine("lahf_lm", at(EXTENDED, Ecx, 0), V2),
    engine("rdtscp", at(EXTENDED, Edx, 27), V2),
    engine("pdpe1gb", at(EXTENDED, Edx, 26), V2),
    // Level 3, likewise.
    host("fma", FMA, at(1, Ecx, 12), V3),
    host("movbe", MOVBE, at(1, Ecx, 22), V3),
    engine("xsave", at(1, Ecx, 26), V3),
    host("avx", AVX, at(1, Ecx, 28), V3),
    host("f16c", F16C, at(1, Ecx, 29), V3),
    engine("fsgsbase", at(7, Ebx, 0), V3),
    host("bmi1", BMI1, at(7, Ebx, 3), V3),
    host("avx2", AVX2, at(7, Ebx, 5), V3),
    engine("smep", at(7, Ebx, 7), V3),
    host("bmi2", BMI2, at(7, Ebx, 8), V3),
    engine("invpcid", at(7, Ebx, 10), V3),
    host("lzcnt", LZCNT, at(EXTENDED, Ecx, 5), V3),
    engine("xsaveopt", XSAVE_1, V3),
    // What else there is.
    host("pclmulqdq", PCLMULQDQ, at(1, Ecx, 1), Host),
    host("aes", AES, at(1, Ecx, 25), Host),
    host("rdrand", RDRAND, at(1, Ecx, 30), Host),
    host("avx512f", AVX512F, at(7, Ebx, 16), Host),
    host("avx512dq", AVX512DQ, at(7, Ebx, 17), Host),
    host("rdseed", RDSEED, at(7, Ebx, 18), Host),
    host("adx", ADX, at(7, Ebx, 19), Host),
    engine("smap", at(7, Ebx, 20), Host),
    host("avx512_ifma", AVX512_IFMA, at(7, Ebx, 21), Host),
    host("clflushopt", CLFLUSHOPT, at(7, Ebx, 23), Host),
    host("clwb", CLWB, at(7, Ebx, 24), Host),
    host("avx512cd", AVX512CD, at(7, Ebx, 28), Host),
    host("sha_ni", SHA, at(7, Ebx, 29), Host),
    host("avx512bw", AVX512BW, at(7, Ebx, 30), Host),
    host("avx512vl", AVX512VL, at(7, Ebx, 31), Host),
    host("avx512_vbmi", AVX512_VBMI, at(7, Ecx, 1), Host),
    engine("umip", at(7, Ecx, 2), Host),
    // Keys are a matter of page walks, whatever the host has.
    engine("pku", at(7, Ecx, 3), Host),
    host("avx512_vbmi2", AVX512_VBMI2, at(7, Ecx, 6), Host),
    host("gfni", GFNI, at(7, Ecx, 8), Host),
    host("vaes", VAES, at(7, Ecx, 9), Host),
    host("vpclmulqdq", VPCLMULQDQ, at(7, Ecx, 10), Host),
    host("avx512_vnni", AVX512_VNNI, at(7, Ecx, 11), Host),
    host("avx512_bitalg", AVX512_BITALG, at(7, Ecx, 12), Host),
    host("avx512_vpopcntdq", AVX512_VPOPCNTDQ, at(7, Ecx, 14), Host),
    engine("rdpid", at(7, Ecx, 22), Host),
    engine("pks", at(7, Ecx, 31), Host),
    // Kernels that do not trust BHI_NO under a hypervisor set one bit, once, where they
    // would run a loop of thirty branches in each system call.
    engine("bhi_ctrl", Bit { bit: 4, ..SEVEN_2 }, Host),
    engine("xsavec", Bit { bit: 1, ..XSAVE_1 }, Host),
    engine("xgetbv1", Bit { bit: 2, ..XSAVE_1 }, Host),
    engine("xsaves", Bit { bit: 3, ..XSAVE_1 }, Host),
    host("3dnowprefetch", PREFETCHW, at(EXTENDED, Ecx, 8), Host),
];
