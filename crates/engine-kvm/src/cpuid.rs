//! What the guest is told, from the CPU models.

use guise_engine::{CpuModel, EngineError, VmConfig};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::missing;

/// State components that guests never get: AMX needs permission from the host.
const AMX_COMPONENTS: u32 = 3 << 17;

pub fn for_vcpu(config: &VmConfig, index: u32, supported: &CpuId) -> Result<CpuId, EngineError> {
    let mut leaves = supported.clone();
    for leaf in leaves.as_mut_slice() {
        topology(leaf, index, config.vcpus);
        match (leaf.function, leaf.index) {
            (7, 0) => leaf.edx &= !(1 << 22 | 1 << 24 | 1 << 25),
            (0xd, 0) => leaf.eax &= !AMX_COMPONENTS,
            _ => {}
        }
    }
    if config.model == CpuModel::Host {
        return Ok(leaves);
    }
    Err(missing(format!("CPU model {} is not there", config.model)))
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
