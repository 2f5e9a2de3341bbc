//! What the guest is told, from the CPU models.
//!
//! A named model says the same on every engine. Whether this host's KVM can honour it
//! is read from the CPUID that it offers, feature by feature. The model `host` is that
//! offer, with the topology of the machine.

use guise_engine::extensions::{Bit, Register};
use guise_engine::processor::Model;
use guise_engine::processor::cpuid::Context;
use guise_engine::processor::features::Feature;
use guise_engine::{CpuModel, EngineError, VmConfig, xsave};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// State components that guests never get: AMX needs permission from the host.
const AMX_COMPONENTS: u32 = 3 << 17;
const PARAVIRT_FEATURES: u32 = 0x4000_0001;

/// These say what is quick and what is not; a guest that believes them on any processor
/// runs, so they are told on all.
const HINTS: [&str; 3] = ["erms", "fsrm", "fcs_fds_deprecated"];

/// What this host's KVM can give to guests.
pub struct Offer {
    supported: CpuId,
    /// KVM tells of this timer by a capability, and not by CPUID's bit.
    deadline_timer: bool,
}

impl Offer {
    pub fn of(kvm: &Kvm) -> Result<Offer, kvm_ioctls::Error> {
        Ok(Offer {
            supported: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?,
            deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    fn register(&self, place: Bit) -> u32 {
        let leaf = self
            .supported
            .as_slice()
            .iter()
            .find(|leaf| leaf.function == place.leaf && leaf.index == place.subleaf);
        leaf.map_or(0, |leaf| match place.register {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }

    fn has(&self, feature: &Feature) -> bool {
        self.register(feature.place) >> feature.place.bit & 1 != 0
            || HINTS.contains(&feature.name)
            || feature.name == "tsc_deadline_timer" && self.deadline_timer
    }

    /// CPUID's answers for one vCPU.
    pub fn leaves(
        &self,
        config: &VmConfig,
        index: u32,
        tsc_khz: u64,
    ) -> Result<CpuId, EngineError> {
        if config.model == CpuModel::Host {
            return Ok(self.host(config, index));
        }
        let model = Model::offered(config.model, config.vcpus, tsc_khz, |each| self.has(each))?;
        let mut leaves = named(&model, index);
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == PARAVIRT_FEATURES) {
            let place = Bit { leaf: leaf.function, subleaf: 0, register: Register::Eax, bit: 0 };
            leaf.eax &= self.register(place);
        }
        Ok(CpuId::from_entries(&leaves).expect("KVM takes more leaves than there are"))
    }

    fn host(&self, config: &VmConfig, index: u32) -> CpuId {
        let mut leaves = self.supported.clone();
        for leaf in leaves.as_mut_slice() {
            topology(leaf, index, config.vcpus);
            match (leaf.function, leaf.index) {
                (1, _) if self.deadline_timer => leaf.ecx |= 1 << 24,
                (7, 0) => leaf.edx &= !(1 << 22 | 1 << 24 | 1 << 25),
                (0xd, 0) => leaf.eax &= !AMX_COMPONENTS,
                _ => {}
            }
        }
        leaves
    }
}

/// The local APIC's id and the number of threads, wherever CPUID tells them.
fn topology(leaf: &mut kvm_cpuid_entry2, index: u32, vcpus: u32) {
    match leaf.function {
        1 => leaf.ebx = leaf.ebx & 0xffff | vcpus << 16 | index << 24,
        0xb | 0x1f => leaf.edx = index,
        0x8000_001e => leaf.eax = index,
        _ => {}
    }
}

/// Every leaf of a model. KVM itself keeps up to date what depends on control registers.
fn named(model: &Model, index: u32) -> Vec<kvm_cpuid_entry2> {
    let context =
        Context { apic_id: index, apic_enabled: true, cr4: 0, xcr0: xsave::X87 | xsave::SSE };
    let whole = |function| (function, 0, 0);
    let part = |function| move |subleaf| (function, subleaf, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    let highest = |first| model.cpuid(first, 0, &context).eax;
    let mut places = Vec::new();
    for function in 0..=highest(0) {
        match function {
            4 => places.extend((0..=4).map(part(4))),
            7 => places.extend((0..=0).map(part(7))),
            0xb | 0x1f => places.extend((0..=2).map(part(function))),
            0xd => places.extend((0..=1).map(part(0xd))),
            _ => places.push(whole(function)),
        }
    }
    places.extend(xsave::COMPONENTS.iter().map(|component| part(0xd)(component.number)));
    places.extend([0x4000_0000, PARAVIRT_FEATURES, 0x4000_0010].map(whole));
    places.extend((0x8000_0000..=highest(0x8000_0000)).map(whole));
    places
        .into_iter()
        .map(|(function, subleaf, flags)| {
            let answer = model.cpuid(function, subleaf, &context);
            kvm_cpuid_entry2 {
                function,
                index: subleaf,
                flags,
                eax: answer.eax,
                ebx: answer.ebx,
                ecx: answer.ecx,
                edx: answer.edx,
                ..Default::default()
            }
        })
        .filter(|leaf| leaf.function == 0 || [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] != [0; 4])
        .collect()
}
