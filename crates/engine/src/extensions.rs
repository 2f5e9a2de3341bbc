//! Which instruction-set extensions there are: on the host, and for a guest.
//!
//! A [`Features`] is a set of iced's names for extensions, so that an instruction's
//! needs are read off its decoded form. [`BITS`] says where CPUID tells of each; the
//! CPU models speak of the same bits.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use iced_x86::CpuidFeature::{self, *};
use iced_x86::{Code, Mnemonic};

/// A register that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One bit of CPUID's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u32,
}

const fn bit(leaf: u32, register: Register, bit: u32) -> Bit {
    Bit { leaf, subleaf: 0, register, bit }
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Where CPUID tells of each extension.
pub const BITS: &[(CpuidFeature, Bit)] = &[
    (FPU, bit(1, Edx, 0)),
    (FPU287, bit(1, Edx, 0)),
    (FPU387, bit(1, Edx, 0)),
    (TSC, bit(1, Edx, 4)),
    (MSR, bit(1, Edx, 5)),
    (CX8, bit(1, Edx, 8)),
    (SEP, bit(1, Edx, 11)),
    (CMOV, bit(1, Edx, 15)),
    (CLFSH, bit(1, Edx, 19)),
    (MMX, bit(1, Edx, 23)),
    (FXSR, bit(1, Edx, 24)),
    (SSE, bit(1, Edx, 25)),
    (SSE2, bit(1, Edx, 26)),
    (SSE3, bit(1, Ecx, 0)),
    (PCLMULQDQ, bit(1, Ecx, 1)),
    (SSSE3, bit(1, Ecx, 9)),
    (FMA, bit(1, Ecx, 12)),
    (CMPXCHG16B, bit(1, Ecx, 13)),
    (SSE4_1, bit(1, Ecx, 19)),
    (SSE4_2, bit(1, Ecx, 20)),
    (MOVBE, bit(1, Ecx, 22)),
    (POPCNT, bit(1, Ecx, 23)),
    (AES, bit(1, Ecx, 25)),
    (XSAVE, bit(1, Ecx, 26)),
    (AVX, bit(1, Ecx, 28)),
    (F16C, bit(1, Ecx, 29)),
    (RDRAND, bit(1, Ecx, 30)),
    (FSGSBASE, bit(7, Ebx, 0)),
    (BMI1, bit(7, Ebx, 3)),
    (AVX2, bit(7, Ebx, 5)),
    (BMI2, bit(7, Ebx, 8)),
    (INVPCID, bit(7, Ebx, 10)),
    (AVX512F, bit(7, Ebx, 16)),
    (AVX512DQ, bit(7, Ebx, 17)),
    (RDSEED, bit(7, Ebx, 18)),
    (ADX, bit(7, Ebx, 19)),
    (SMAP, bit(7, Ebx, 20)),
    (AVX512_IFMA, bit(7, Ebx, 21)),
    (CLFLUSHOPT, bit(7, Ebx, 23)),
    (CLWB, bit(7, Ebx, 24)),
    (AVX512CD, bit(7, Ebx, 28)),
    (SHA, bit(7, Ebx, 29)),
    (AVX512BW, bit(7, Ebx, 30)),
    (AVX512VL, bit(7, Ebx, 31)),
    (AVX512_VBMI, bit(7, Ecx, 1)),
    (PKU, bit(7, Ecx, 3)),
    (AVX512_VBMI2, bit(7, Ecx, 6)),
    (GFNI, bit(7, Ecx, 8)),
    (VAES, bit(7, Ecx, 9)),
    (VPCLMULQDQ, bit(7, Ecx, 10)),
    (AVX512_VNNI, bit(7, Ecx, 11)),
    (AVX512_BITALG, bit(7, Ecx, 12)),
    (AVX512_VPOPCNTDQ, bit(7, Ecx, 14)),
    (RDPID, bit(7, Ecx, 22)),
    (XSAVEOPT, Bit { leaf: 0xd, subleaf: 1, register: Eax, bit: 0 }),
    (XSAVEC, Bit { leaf: 0xd, subleaf: 1, register: Eax, bit: 1 }),
    (XSAVES, Bit { leaf: 0xd, subleaf: 1, register: Eax, bit: 3 }),
    (LZCNT, bit(0x8000_0001, Ecx, 5)),
    (PREFETCHW, bit(0x8000_0001, Ecx, 8)),
    (SYSCALL, bit(0x8000_0001, Edx, 11)),
    (RDTSCP, bit(0x8000_0001, Edx, 27)),
    (X64, bit(0x8000_0001, Edx, 29)),
];

/// What every processor of this architecture has, without a bit that says so.
const ALWAYS: &[CpuidFeature] =
    &[INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, CPUID, MULTIBYTENOP, PAUSE, SMM];

/// A set of instruction-set extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Features([u64; 4]);

impl Features {
    /// What comes without a bit in CPUID.
    pub fn always() -> Features {
        ALWAYS.iter().fold(Features::default(), |set, &feature| set.with(feature))
    }

    /// What CPUID's answers amount to; `ask` gives one register of one leaf.
    pub fn of_cpuid(mut ask: impl FnMut(u32, u32, Register) -> u32) -> Features {
        BITS.iter().fold(Features::always(), |set, &(feature, place)| {
            let value = ask(place.leaf, place.subleaf, place.register);
            if value >> place.bit & 1 != 0 { set.with(feature) } else { set }
        })
    }

    /// What this host's processor has and its operating system allows.
    pub fn host() -> Features {
        let highest = [__cpuid(0).eax, __cpuid(0x8000_0000).eax];
        let set = Features::of_cpuid(|leaf, subleaf, register| {
            if leaf > highest[usize::from(leaf >= 0x8000_0000)] {
                return 0;
            }
            let answer = __cpuid_count(leaf, subleaf);
            match register {
                Eax => answer.eax,
                Ebx => answer.ebx,
                Ecx => answer.ecx,
                Edx => answer.edx,
            }
        });
        let enabled = host_xcr0();
        let set = if enabled & 6 == 6 { set } else { set.without_avx() };
        if enabled & 0xe6 == 0xe6 { set } else { set.without_avx512() }
    }

    pub fn has(&self, feature: CpuidFeature) -> bool {
        let number = feature as usize;
        self.0[number / 64] >> (number % 64) & 1 != 0
    }

    pub fn with(mut self, feature: CpuidFeature) -> Features {
        let number = feature as usize;
        self.0[number / 64] |= 1 << (number % 64);
        self
    }

    pub fn without(mut self, feature: CpuidFeature) -> Features {
        let number = feature as usize;
        self.0[number / 64] &= !(1 << (number % 64));
        self
    }

    pub fn and(self, other: Features) -> Features {
        Features(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// Without what needs the upper halves of vectors.
    pub fn without_avx(self) -> Features {
        [AVX, AVX2, FMA, F16C, VAES, VPCLMULQDQ]
            .into_iter()
            .fold(self.without_avx512(), Features::without)
    }

    pub fn without_avx512(self) -> Features {
        BITS.iter()
            .map(|&(feature, _)| feature)
            .filter(|feature| format!("{feature:?}").starts_with("AVX512"))
            .fold(self, Features::without)
    }

    /// Whether an instruction of this form exists with these extensions.
    pub fn allow(&self, code: Code) -> bool {
        code.cpuid_features().iter().all(|&feature| self.has(feature))
            && (code.mnemonic() != Mnemonic::Fisttp || self.has(SSE3))
    }
}

/// XCR0 of the host: which vector registers its operating system saves.
pub fn host_xcr0() -> u64 {
    if __cpuid(1).ecx >> 27 & 1 == 0 {
        return 3;
    }
    // SAFETY: OSXSAVE, tested above, says that XGETBV may be executed.
    unsafe { xgetbv() }
}

/// # Safety
///
/// The processor has XGETBV and the operating system has enabled it.
#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    // SAFETY: the caller's promise; register 0 always exists.
    unsafe { core::arch::x86_64::_xgetbv(0) }
}

#[cfg(test)]
mod tests;
