//! A guest's processor: what CPUID and the feature MSRs tell of each CPU model.
//!
//! A model is a level of the list in [`features`], as far as the engine offers them.
//! Both engines tell of a named model in the same words, so that a guest which moves
//! from one to the other finds the processor that it had.
//!
//! | module | what it holds |
//! |---|---|
//! | [`features`] | every feature bit, who provides it and since which model |
//! | [`cpuid`] | the leaves |
//! | [`paravirt`] | the interface that kernels know from KVM |
//! | [`msr`] | MSRs that describe or configure the processor and do nothing else |

pub mod cpuid;
pub mod features;
pub mod msr;
pub mod paravirt;

use crate::{CpuModel, EngineError, MAX_VCPUS};

use crate::extensions::{Bit, Features, Register};
use crate::xsave;
use features::{Feature, Level, Source};

/// Bits of a guest-physical address.
pub const PHYSICAL_BITS: u32 = 46;
/// Frequency of the local APIC's timer before its divider, which CPUID tells.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// What one VM's guest is told about its processors.
#[derive(Clone, Debug)]
pub struct Model {
    kind: CpuModel,
    vcpus: u32,
    tsc_khz: u32,
    features: Features,
    /// Feature bits by CPUID register.
    bits: Vec<(Bit, u32)>,
    xcr0: u64,
}

impl Model {
    /// The model as the software engine can honour it on this host.
    pub fn new(kind: CpuModel, vcpus: u32, tsc_khz: u64) -> Result<Model, EngineError> {
        Model::on_host(kind, vcpus, tsc_khz, &Features::host())
    }

    fn on_host(
        kind: CpuModel,
        vcpus: u32,
        tsc_khz: u64,
        host: &Features,
    ) -> Result<Model, EngineError> {
        Model::offered(kind, vcpus, tsc_khz, |feature| match feature.source {
            Source::Engine => true,
            Source::Host(extension) => host.has(extension),
        })
    }

    /// The model where only some features can be had.
    pub fn offered(
        kind: CpuModel,
        vcpus: u32,
        tsc_khz: u64,
        offers: impl Fn(&Feature) -> bool,
    ) -> Result<Model, EngineError> {
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(EngineError::VcpuCount { wanted: vcpus, max: MAX_VCPUS });
        }
        let level = Level::of(kind);
        let mut missing = Vec::new();
        let mut bits: Vec<(Bit, u32)> = Vec::new();
        for feature in features::FEATURES.iter().filter(|feature| feature.since <= level) {
            if offers(feature) {
                let place = Bit { bit: 0, ..feature.place };
                match bits.iter_mut().find(|(other, _)| *other == place) {
                    Some((_, value)) => *value |= 1 << feature.place.bit,
                    None => bits.push((place, 1 << feature.place.bit)),
                }
            } else if kind != CpuModel::Host {
                missing.push(feature.name);
            }
        }
        if !missing.is_empty() {
            return Err(EngineError::Model { model: kind, missing: missing.join(", ") });
        }
        let features =
            Features::of_cpuid(|leaf, subleaf, register| find(&bits, leaf, subleaf, register));
        use iced_x86::CpuidFeature::{AVX, AVX512F, PKU, XSAVE};
        let mut xcr0 = xsave::X87 | xsave::SSE;
        if features.has(XSAVE) && features.has(AVX) {
            xcr0 |= xsave::AVX_STATE;
        }
        if features.has(XSAVE) && features.has(AVX512F) {
            xcr0 |= xsave::AVX512_STATE;
        }
        if features.has(XSAVE) && features.has(PKU) {
            xcr0 |= xsave::PKRU;
        }
        let tsc_khz = u32::try_from(tsc_khz).unwrap_or(u32::MAX);
        Ok(Model { kind, vcpus, tsc_khz, features, bits, xcr0 })
    }

    pub fn kind(&self) -> CpuModel {
        self.kind
    }

    /// Instruction-set extensions: what the decoder and the stubs let through.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Components that XCR0 may enable.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        find(&self.bits, leaf, subleaf, register)
    }

    /// Whether the guest is told of one feature bit.
    pub fn tells(&self, leaf: u32, register: Register, bit: u32) -> bool {
        self.bits(leaf, 0, register) >> bit & 1 != 0
    }

    /// Bits of CR4 that the guest may set.
    pub fn cr4_known(&self) -> u64 {
        use Register::{Ebx, Ecx, Edx};
        /// TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: there on every model.
        const ALWAYS: u64 = 0x7fc;
        let optional = [
            (1, Edx, 1, 0),
            (1, Edx, 1, 1),
            (7, Ecx, 2, 11),
            (7, Ebx, 0, 16),
            (1, Ecx, 17, 17),
            (1, Ecx, 26, 18),
            (7, Ebx, 7, 20),
            (7, Ebx, 20, 21),
            (7, Ecx, 3, 22),
            (7, Ecx, 31, 24),
        ];
        optional
            .into_iter()
            .filter(|&(leaf, register, bit, _)| self.tells(leaf, register, bit))
            .fold(ALWAYS, |known, (_, _, _, position)| known | 1 << position)
    }
}

fn find(bits: &[(Bit, u32)], leaf: u32, subleaf: u32, register: Register) -> u32 {
    let place = Bit { leaf, subleaf, register, bit: 0 };
    bits.iter().find(|(other, _)| *other == place).map_or(0, |&(_, value)| value)
}

#[cfg(test)]
mod tests;
