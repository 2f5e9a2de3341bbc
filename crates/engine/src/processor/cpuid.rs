//! The leaves of CPUID.

use core::arch::x86_64::{__cpuid, CpuidResult};

use crate::CpuModel;

use super::{APIC_BUS_KHZ, Model, PHYSICAL_BITS, paravirt};
use crate::extensions::Register::{Eax, Ebx, Ecx, Edx};
use crate::xsave;

const HIGHEST: u32 = 0x1f;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;
const HYPERVISOR: u32 = 0x4000_0000;
const HIGHEST_HYPERVISOR: u32 = 0x4000_0010;
const LINEAR_BITS: u32 = 48;

/// Family 6 and a model number that no processor has: kernels and libraries then go by
/// the feature bits, and not by what they know of some product.
const SIGNATURE: u32 = 0xf_06d1;

/// What answers depend on besides the model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    pub apic_id: u32,
    /// The local APIC is enabled in its base register.
    pub apic_enabled: bool,
    pub cr4: u64,
    pub xcr0: u64,
}

fn answer(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

fn words(text: &[u8; 12]) -> [u32; 3] {
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| text[i * 4 + j])))
}

impl Model {
    /// What CPUID returns. A leaf that is not there reads as zeros.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &Context) -> CpuidResult {
        let has_xsave = self.tells(1, Ecx, 26);
        match leaf {
            0 => {
                let [ebx, edx, ecx] = words(b"GenuineIntel");
                answer(HIGHEST, ebx, ecx, edx)
            }
            1 => self.basic(context),
            // One-byte descriptors: prefetch 64 bytes; caches are in leaf 4.
            2 => answer(0x00fe_ff01, 0, 0, 0),
            4 => self.cache(subleaf),
            6 => answer(self.bits(6, 0, Eax), 0, 0, 0),
            7 if subleaf == 0 => {
                const OSPKE: u32 = 1 << 4;
                let enabled = if context.cr4 >> 22 & 1 != 0 { OSPKE } else { 0 };
                let ecx = self.bits(7, 0, Ecx) | enabled;
                let highest = if self.bits(7, 2, Edx) != 0 { 2 } else { 0 };
                answer(highest, self.bits(7, 0, Ebx), ecx, self.bits(7, 0, Edx))
            }
            7 if subleaf == 2 => answer(0, 0, 0, self.bits(7, 2, Edx)),
            0xb | 0x1f => self.topology(subleaf, context.apic_id),
            0xd if has_xsave => self.extended_state(subleaf, context.xcr0),
            0x16 => {
                let mhz = self.tsc_khz / 1000;
                answer(mhz, mhz, 100, 0)
            }
            HYPERVISOR => {
                let [ebx, ecx, edx] = words(b"KVMKVMKVM\0\0\0");
                answer(HIGHEST_HYPERVISOR, ebx, ecx, edx)
            }
            0x4000_0001 => answer(paravirt::FEATURES, 0, 0, 0),
            HIGHEST_HYPERVISOR => answer(self.tsc_khz, APIC_BUS_KHZ, 0, 0),
            0x8000_0000 => answer(HIGHEST_EXTENDED, 0, 0, 0),
            0x8000_0001 => answer(0, 0, self.bits(leaf, 0, Ecx), self.bits(leaf, 0, Edx)),
            0x8000_0002..=0x8000_0004 => self.brand(leaf - 0x8000_0002),
            // Level-2 cache: 64-byte lines, 8 ways, 1 MiB.
            0x8000_0006 => answer(0, 0, 0x0400_6040, 0),
            0x8000_0007 => answer(0, 0, 0, self.bits(leaf, 0, Edx)),
            0x8000_0008 => answer(PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0),
            _ => answer(0, 0, 0, 0),
        }
    }

    fn basic(&self, context: &Context) -> CpuidResult {
        const CLFLUSH_QUADS: u32 = 8;
        const APIC: u32 = 1 << 9;
        const HYPER_THREADING: u32 = 1 << 28;
        const OSXSAVE: u32 = 1 << 27;
        let mut edx = self.bits(1, 0, Edx);
        if !context.apic_enabled {
            edx &= !APIC;
        }
        // It says that EBX has a number of processors in a package.
        if self.vcpus > 1 {
            edx |= HYPER_THREADING;
        }
        let mut ecx = self.bits(1, 0, Ecx);
        if context.cr4 >> 18 & 1 != 0 {
            ecx |= OSXSAVE;
        }
        let ids = self.vcpus.next_power_of_two();
        let ebx = context.apic_id << 24 | ids << 16 | CLFLUSH_QUADS << 8;
        answer(SIGNATURE, ebx, ecx, edx)
    }

    fn cache(&self, subleaf: u32) -> CpuidResult {
        let ids = self.vcpus.next_power_of_two();
        let describe = |kind: u32, level: u32, sharing: u32, ways: u32, sets: u32| {
            let eax = kind | level << 5 | 1 << 8 | (sharing - 1) << 14 | (ids - 1) << 26;
            answer(eax, (ways - 1) << 22 | 63, sets - 1, 0)
        };
        match subleaf {
            0 => describe(1, 1, 1, 8, 64),
            1 => describe(2, 1, 1, 8, 64),
            2 => describe(3, 2, 1, 8, 2048),
            3 => describe(3, 3, ids, 16, 16384),
            _ => answer(0, 0, 0, 0),
        }
    }

    /// One thread a core, all cores in one package.
    fn topology(&self, subleaf: u32, apic_id: u32) -> CpuidResult {
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        match subleaf {
            0 => answer(0, 1, THREAD, apic_id),
            1 => {
                let shift = self.vcpus.next_power_of_two().trailing_zeros();
                answer(shift, self.vcpus, CORE | 1, apic_id)
            }
            _ => answer(0, 0, subleaf & 0xff, apic_id),
        }
    }

    fn extended_state(&self, subleaf: u32, enabled: u64) -> CpuidResult {
        match subleaf {
            0 => answer(
                self.xcr0 as u32,
                xsave::standard_size(enabled) as u32,
                xsave::standard_size(self.xcr0) as u32,
                (self.xcr0 >> 32) as u32,
            ),
            1 => {
                let features = self.bits(0xd, 1, Eax);
                // The size is that of XSAVEC and XSAVES, where there are such.
                let size = if features & 0xa != 0 { xsave::compacted_size(enabled) } else { 0 };
                answer(features, size as u32, 0, 0)
            }
            number => xsave::COMPONENTS
                .iter()
                .find(|each| each.number == number && self.xcr0 & each.bit() != 0)
                .map_or(answer(0, 0, 0, 0), |each| {
                    answer(each.size as u32, each.offset as u32, 0, 0)
                }),
        }
    }

    /// The name of the processor, 16 of its 48 bytes.
    fn brand(&self, part: u32) -> CpuidResult {
        if self.kind == CpuModel::Host && __cpuid(0x8000_0000).eax >= 0x8000_0004 {
            return __cpuid(0x8000_0002 + part);
        }
        let mut name = [0; 48];
        let text = format!("Guise {} processor", self.kind);
        let length = text.len().min(47);
        name[..length].copy_from_slice(&text.as_bytes()[..length]);
        let word = |i: usize| {
            let start = part as usize * 16 + i * 4;
            u32::from_le_bytes(std::array::from_fn(|j| name[start + j]))
        };
        answer(word(0), word(1), word(2), word(3))
    }
}
